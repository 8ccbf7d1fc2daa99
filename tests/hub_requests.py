"""How the loopback Hub of tests/hub_server.py answers requests."""

import base64
import hashlib
import json
import re
import secrets
import socket
import struct
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from hub_store import Refusal, Repository, card_metadata, check_card, is_large, parse_commit


REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES = [
    (method, re.compile(pattern), name)
    for method, pattern, name in (
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("GET", rf"/api/models/{REPO}", "info"),
        ("GET", rf"/api/models/{REPO}/revision/(?P<revision>[^/]+)", "info"),
        ("GET", rf"/api/models/{REPO}/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", "tree"),
        ("POST", rf"/api/models/{REPO}/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("POST", rf"/api/models/{REPO}/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", rf"/api/models/{REPO}/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", rf"/api/models/{REPO}/branch/(?P<revision>[^/]+)", "branch"),
        ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
        ("POST", rf"/{REPO}\.git/info/lfs/objects/verify", "lfs_verify"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
        ("GET", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_get"),
        ("GET", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )
]


class Cut(Exception):
    """The connection is to break here."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "LoopbackHub"
    disable_nagle_algorithm = True  # or an answer's body may wait 40 ms for its headers to be acknowledged

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    # ---- One request ----

    def _serve(self):
        self.hub = self.server.hub
        self.user, status = None, 0
        try:
            fault = self.hub.take_fault(self.command, self.path)
            self.body = self._read_body(half=fault == "cut")
            if isinstance(fault, int):
                headers = {"Content-Type": "text/html", "X-Error-Message": "broken" + self._quoted()}
                status = self._send(fault, b"<html>broken</html>", headers)
                return
            answer = self._answer()
            if fault == "lose":
                raise Cut
            status = self._send(*answer)
        except Cut:
            # Closing with a linger of 0 seconds resets the connection.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
        finally:
            self.hub.record(self.command, self.path, status, self.user)

    def finish(self):
        try:
            super().finish()
        except OSError:
            self.close_connection = True

    def _read_body(self, half: bool) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
                if half:
                    raise Cut
            self.rfile.readline()
            return body
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length // 2 if half else length)
        if half:
            raise Cut
        return body

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> int:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if status == 200 and wanted:
            first, last = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
            headers = {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"}
            status, content = 206, content[first : last + 1]
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        return status

    def _answer(self) -> tuple[int, bytes, dict[str, str]]:
        """Status, content and headers; a method's dict or list is sent as JSON."""
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        method = "GET" if self.command == "HEAD" else self.command
        try:
            with self.hub.lock:
                self._authenticate()
                for allowed, pattern, name in ROUTES:
                    match = pattern.fullmatch(parts.path)
                    if match and allowed == method:
                        given = {key: unquote(value) for key, value in match.groupdict().items() if value}
                        answer = getattr(self, f"_{name}")(**given)
                        break
                else:
                    raise Refusal(404, f"there is no {self.command} {parts.path} here")
        except Refusal as refusal:
            message = refusal.message + self._quoted()
            headers = {"X-Error-Message": message} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            return self._json(refusal.status, {"error": message}, headers)
        return answer if isinstance(answer, tuple) else self._json(200, answer)

    def _quoted(self) -> str:
        return f" ({self.headers.get('Authorization')})" if self.hub.quote_token else ""

    @staticmethod
    def _json(status: int, value, headers: dict[str, str] | None = None) -> tuple[int, bytes, dict[str, str]]:
        return status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})}

    # ---- Who may what ----

    def _authenticate(self):
        header = self.headers.get("Authorization")
        self.sent_token = header.removeprefix("Bearer ") if header else None
        if header is not None:
            self.user = self.hub.accounts.get(self.sent_token)
            if self.user is None:
                raise Refusal(401, "Invalid credentials in Authorization header")

    def _repository(self, repo: str, write: bool = False) -> Repository:
        """A repository that the account may read, or change. A private one does not exist for others."""
        found = self.hub.repositories.get(repo)
        if found is None or (found.private and self.user != repo.split("/")[0]):
            raise Refusal(401 if self.user is None else 404, "Repository not found", "RepoNotFound")
        if write:
            self._check_write(repo.split("/")[0])
        return found

    def _check_account(self):
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")

    def _check_write(self, namespace: str):
        self._check_account()
        if self.user != namespace or self.sent_token == self.hub.read_token:
            raise Refusal(403, f"You don't have the rights to write to the namespace {namespace}")

    # ---- Answers ----

    def _create(self):
        asked = json.loads(self.body)
        namespace = asked.get("organization") or self.user
        self._check_write(namespace)
        repo = f"{namespace}/{asked['name']}"
        url = {"url": f"{self.hub.url}/{repo}", "name": repo}
        if repo in self.hub.repositories:
            return self._json(409, {"error": "You already created this model repo", **url})
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories[repo] = Repository(repo, private)
        return {**url, "id": repo, "private": private}

    def _validate(self):
        errors, warnings = check_card(json.loads(self.body)["content"])
        told = {name: [{"message": text} for text in texts] for name, texts in (("errors", errors),)}
        return self._json(400 if errors else 200, {**told, "warnings": [{"message": text} for text in warnings]})

    def _info(self, repo: str, revision: str = "main"):
        repository = self._repository(repo)
        card = repository.at(revision).files.get("README.md")
        metadata = {} if card is None else {"cardData": card_metadata(card.content)}
        return repository.info(revision, with_blobs="blobs" in self.query) | metadata

    def _tree(self, repo: str, revision: str, path: str = ""):
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        return self._repository(repo).tree(revision, path, recursive)

    def _paths_info(self, repo: str, revision: str):
        repository = self._repository(repo)
        files = repository.at(revision).files
        try:
            paths = json.loads(self.body)["paths"]
        except ValueError:
            paths = parse_qs(self.body.decode()).get("paths", [])
        return [repository.entry(path, files[path]) for path in paths if path in files]

    def _preupload(self, repo: str, revision: str):
        files = self._repository(repo, write="create_pr" not in self.query).at(revision).files
        answers = []
        for file in json.loads(self.body)["files"]:
            large = is_large(base64.b64decode(file["sample"]), file["size"])
            known = {"oid": files[file["path"]].oid} if file["path"] in files else {}
            mode = "lfs" if large else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **known})
        return {"files": answers}

    def _lfs_batch(self, repo: str):
        asked = json.loads(self.body)
        self._repository(repo, write="ref" in asked)  # for a pull request no branch is named
        self._check_account()
        objects = []
        for wanted in asked["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                signature = secrets.token_hex(8)
                self.hub.signatures.add(signature)
                upload = f"{self.hub.storage_url}/lfs/{wanted['oid']}?signature={signature}"
                verify = f"{self.hub.url}/{repo}.git/info/lfs/objects/verify"
                answer["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def _lfs_put(self, oid: str):
        if not set(self.query.get("signature", [])) & self.hub.signatures:
            raise Refusal(403, "SignatureDoesNotMatch")
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "BadDigest")
        self.hub.objects[oid] = self.body
        return 200, b"", {"ETag": f'"{oid}"'}

    def _lfs_verify(self, repo: str):
        self._repository(repo)
        self._check_account()
        wanted = json.loads(self.body)
        if len(self.hub.objects.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refusal(404, "the object was not uploaded whole")
        return {}

    def _lfs_get(self, oid: str):
        if oid not in self.hub.objects:
            raise Refusal(404, "NoSuchKey")
        return 200, self.hub.objects[oid], {"Content-Type": "application/octet-stream", "ETag": f'"{oid}"'}

    def _commit(self, repo: str, revision: str):
        pull_request = "create_pr" in self.query
        repository = self._repository(repo, write=not pull_request)
        self._check_account()
        message, changes, folders = parse_commit(self.body, self.hub.objects)
        for folder in folders:
            inside = [path for path in repository.at(revision).files if path.startswith(folder.rstrip("/") + "/")]
            changes |= dict.fromkeys(inside)
        commit = repository.change(revision, message, changes, pull_request)
        url = f"{self.hub.url}/{repo}"
        answer = {"success": True, "commitOid": commit.oid, "commitUrl": f"{url}/commit/{commit.oid}"}
        if pull_request:
            number = next(name for name, oid in repository.branches.items() if oid == commit.oid).rpartition("/")[2]
            answer["pullRequestUrl"] = f"{url}/discussions/{number}"
        return answer

    def _branch(self, repo: str, revision: str):
        repository = self._repository(repo, write=True)
        if revision in repository.branches:
            raise Refusal(409, f"Reference already exists: refs/heads/{revision}")
        start = (json.loads(self.body) if self.body else {}).get("startingPoint", "main")
        repository.branches[revision] = repository.at(start).oid
        return {}

    def _resolve(self, repo: str, revision: str, path: str):
        repository = self._repository(repo)
        blob, commit = repository.blob(revision, path), repository.at(revision)
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{blob.oid}"', "Accept-Ranges": "none"}
        if not blob.lfs:
            return 200, blob.content, {"Content-Type": "text/plain; charset=utf-8", **headers}
        linked = {"X-Linked-Etag": f'"{blob.oid}"', "X-Linked-Size": str(len(blob.content))}
        return 302, b"", {**headers, **linked, "Location": f"{self.hub.storage_url}/lfs/{blob.oid}"}

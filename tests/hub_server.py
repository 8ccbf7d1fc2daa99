"""A Hub on the loopback, for tests: model repositories in memory, spoken to by huggingface_hub and transformers.

```python
with HubServer() as hub:
    env = hub.environment(hub.token)  # for a process of its own; huggingface_hub reads it when it is imported
    subprocess.run([sys.executable, "scripts/train.py", ..., "--push_to_hub"], env=env)
    hub.files("tester/out")["config.json"]  # bytes
    hub.fail_next("PUT", "/lfs/", times=2)  # the connection breaks in the middle of the next two uploads
```

It knows accounts and private repositories, branches, pull requests and commits by hash, LFS (files of more than
LARGE bytes or with a zero byte), redirects to a storage host of another name, and the check of a card's metadata.
It does not know Xet: `environment` and `use_here` switch it off.
"""

import os
import secrets
import tempfile
import threading
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path

from hub_requests import Handler
from hub_store import Blob, Commit, Repository, is_large


@dataclass
class Request:
    """What was asked: method, path, the status answered (0: the connection was cut), the account if one was given."""

    method: str
    path: str
    status: int
    user: str | None


@dataclass
class Fault:
    """What `HubServer.fail_next` asks for; see there."""

    method: str
    path: str
    times: int
    how: str | int


class HubServer:
    """
    A Hub at `url`, running from `with` to its end in a thread of its own.

    Attributes:
        url (`str`): the endpoint.
        token, other_token, read_token (`str`): of the account "tester", of another one ("other"), and one of "tester"
            that may not write. Any other token is refused with 401.
        requests (`list[Request]`): all requests so far, in the order of their answers.
        repositories (`dict[str, Repository]`): by id.
        quote_token (`bool`): whether errors quote the Authorization header, as a careless proxy might.
    """

    def __init__(self):
        self.token, self.other_token, self.read_token = (f"hf_{secrets.token_hex(17)}" for _ in range(3))
        self.accounts = {self.token: "tester", self.other_token: "other", self.read_token: "tester"}
        self.requests: list[Request] = []
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # of LFS
        self.signatures: set[str] = set()
        self.faults: list[Fault] = []
        self.quote_token = False
        self.lock = threading.RLock()

    def __enter__(self) -> "HubServer":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.hub = self
        self._folder = tempfile.TemporaryDirectory()
        port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{port}"
        self.storage_url = f"http://localhost:{port}"  # another host, which tokens must not be sent to
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._folder.cleanup()

    def variables(self, token: str | None = None) -> dict[str, str]:
        """Environment variables that point huggingface_hub here, with an empty cache and no other token."""
        home = tempfile.mkdtemp(dir=self._folder.name)
        values = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": home,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        return values | ({} if token is None else {"HF_TOKEN": token})

    def environment(self, token: str | None = None) -> dict[str, str]:
        """The environment of a process that is to use this Hub, with a token or logged out."""
        given = ("HF_", "HUGGING_FACE_", "TRANSFORMERS_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(given)}
        return kept | self.variables(token)

    def use_here(self, monkeypatch, token: str | None = None):
        """Points this process' huggingface_hub and transformers here until the test ends."""
        from huggingface_hub import constants
        from huggingface_hub.utils import close_session
        from transformers.utils import hub

        close_session()
        values = self.variables(token)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(Path(values["HF_HOME"]) / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(Path(values["HF_HOME"]) / "token"))
        monkeypatch.setattr(hub, "_hf_api", None, raising=False)

    def add(self, repo_id: str, files: dict[str, bytes], private: bool = False) -> Repository:
        """A repository as if it had been pushed."""
        repository = self.repositories.setdefault(repo_id, Repository(repo_id, private))
        blobs = {path: Blob(content, is_large(content, len(content))) for path, content in files.items()}
        self.objects |= {blob.oid: blob.content for blob in blobs.values() if blob.lfs}
        repository.change("main", "added", blobs, pull_request=False)
        return repository

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Path -> content, without the `.gitattributes` that every repository starts with."""
        files = self.repositories[repo_id].at(revision).files
        return {path: blob.content for path, blob in files.items() if path != ".gitattributes"}

    def commits(self, repo_id: str, revision: str = "main") -> list[Commit]:
        """Newest first, without the initial one."""
        return self.repositories[repo_id].history(revision)[:-1]

    def fail_next(self, method: str, path: str, times: int = 1, how: str | int = "cut"):
        """
        Makes the next requests fail whose path contains `path`.

        Args:
            how: "cut" reads half of what is sent and breaks the connection; "lose" does what was asked but breaks the
                connection instead of answering; a number is the status answered, with a page of HTML.
        """
        with self.lock:
            self.faults.append(Fault(method, path, times, how))

    def take_fault(self, method: str, path: str) -> str | int | None:
        """For the handler: how this request is to fail."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and fault.path in path:
                    fault.times -= 1
                    return fault.how
        return None

    def record(self, method: str, path: str, status: int, user: str | None):
        """For the handler: keeps a request."""
        self.requests.append(Request(method, path, status, user))

    def count(self, method: str, path: str, status: int | None = None) -> int:
        """How many requests had this method, `path` in their path, and, if given, this status."""
        return sum(
            request.method == method and path in request.path and status in (None, request.status)
            for request in self.requests
        )

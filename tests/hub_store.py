"""What the loopback Hub of tests/hub_server.py keeps: repositories, their commits, and the check of a card."""

import base64
import hashlib
import json
from dataclasses import dataclass, field

import yaml
from huggingface_hub import ModelCard


LARGE = 100_000  # bytes from which a text file goes through LFS, too
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


def is_large(sample: bytes, size: int) -> bool:
    """Whether a file that starts with `sample` and is `size` bytes long goes through LFS."""
    return size > LARGE or b"\0" in sample


class Refusal(Exception):
    """A request that is answered with an error: its status, the Hub's error code if it has one, and its message."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass
class Blob:
    """A file's content, and whether it went through LFS."""

    content: bytes
    lfs: bool = False

    @property
    def oid(self) -> str:
        """As git names it, and sha256 for LFS, which is what huggingface_hub compares with."""
        if self.lfs:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Commit:
    """One state of a repository."""

    oid: str
    message: str
    parent: str | None
    files: dict[str, Blob]


@dataclass
class Repository:
    """A model repository: commits by their hash, and branches (and pull requests, `refs/pr/1`) that point to them."""

    id: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self._commit("main", None, "initial commit", {".gitattributes": Blob(ATTRIBUTES)})

    def _commit(self, branch: str, parent: str | None, message: str, files: dict[str, Blob]) -> Commit:
        content = repr((len(self.commits), self.id, parent, message, sorted((p, b.oid) for p, b in files.items())))
        commit = Commit(hashlib.sha1(content.encode()).hexdigest(), message, parent, files)
        self.commits[commit.oid] = commit
        self.branches[branch] = commit.oid
        return commit

    def at(self, revision: str) -> Commit:
        """The commit that a branch points to or that a hash names."""
        oid = self.branches.get(revision, revision)
        if oid not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def blob(self, revision: str, path: str) -> Blob:
        """A file at a revision."""
        files = self.at(revision).files
        if path not in files:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        return files[path]

    def change(self, revision: str, message: str, changes: dict[str, Blob | None], pull_request: bool) -> Commit:
        """A commit on a branch, or on a new pull request; None removes a file."""
        parent = self.at(revision)
        if pull_request:
            revision = f"refs/pr/{1 + sum(name.startswith('refs/pr/') for name in self.branches)}"
        elif revision not in self.branches:
            raise Refusal(400, f"{revision} is no branch, and only branches take commits")
        files = {path: blob for path, blob in {**parent.files, **changes}.items() if blob is not None}
        return self._commit(revision, parent.oid, message, files)

    def history(self, revision: str) -> list[Commit]:
        """The commits that led to a revision, newest first."""
        commits = [self.at(revision)]
        while commits[-1].parent is not None:
            commits.append(self.commits[commits[-1].parent])
        return commits

    def info(self, revision: str, with_blobs: bool = False) -> dict:
        """What `/api/models/{id}` answers."""
        commit = self.at(revision)
        card = commit.files.get("README.md")
        data = ModelCard(card.content.decode()).data.to_dict() if card else {}
        siblings = [
            {"rfilename": path} | ({"size": len(blob.content), "blobId": blob.oid} if with_blobs else {})
            for path, blob in sorted(commit.files.items())
        ]
        return {
            "_id": commit.oid[:24],
            "id": self.id,
            "modelId": self.id,
            "author": self.id.split("/")[0],
            "sha": commit.oid,
            "private": self.private,
            "tags": data.get("tags") or [],
            "pipeline_tag": data.get("pipeline_tag"),
            "library_name": data.get("library_name"),
            "cardData": data,
            "siblings": siblings,
        }

    def entry(self, path: str, blob: Blob) -> dict:
        """A file as a tree lists it."""
        found = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.oid}
        if blob.lfs:
            found["lfs"] = {"oid": blob.oid, "size": len(blob.content), "pointerSize": 130}
        return found

    def tree(self, revision: str, folder: str, recursive: bool) -> list[dict]:
        """The files, and unless `recursive` the folders, of a folder."""
        prefix, entries = (folder + "/" if folder else ""), {}
        for path, blob in sorted(self.at(revision).files.items()):
            if not path.startswith(prefix):
                continue
            head, slash, _ = path.removeprefix(prefix).partition("/")
            if slash and not recursive:
                path = prefix + head
                entries[path] = {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest()}
            else:
                entries[path] = self.entry(path, blob)
        if folder and not entries:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        return list(entries.values())


def parse_commit(body: bytes, objects: dict[str, bytes]) -> tuple[str, dict[str, Blob | None], list[str]]:
    """Message, changed files and removed folders of the lines that a commit sends; `objects` holds what LFS has."""
    message, changes, folders = "", {}, []
    for line in filter(None, body.split(b"\n")):
        item = json.loads(line)
        key, value = item["key"], item["value"]
        if key == "header":
            message = value["summary"]
        elif key == "file":
            changes[value["path"]] = Blob(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if value["oid"] not in objects:
                raise Refusal(400, f"LFS pointer of {value['path']} points to a file that does not exist")
            changes[value["path"]] = Blob(objects[value["oid"]], lfs=True)
        elif key == "deletedFile":
            changes[value["path"]] = None
        elif key == "deletedFolder":
            folders.append(value["path"])
        else:
            raise Refusal(400, f"unknown operation {key}")
    if "README.md" in changes and changes["README.md"] is not None:
        errors, _ = check_card(changes["README.md"].content.decode())
        if errors:
            raise Refusal(400, f"Invalid metadata in README.md: {'; '.join(errors)}")
    return message, changes, folders


def card_metadata(card: bytes) -> dict:
    """The metadata of a card; empty where it cannot be read."""
    try:
        return ModelCard(card.decode()).data.to_dict()
    except (KeyError, TypeError, ValueError, yaml.YAMLError):
        return {}


def check_card(card: str) -> tuple[list[str], list[str]]:
    """Errors and warnings about a card's metadata, as far as huggingface_hub and the Hub's pages need it."""
    try:
        data = ModelCard(card).data
    except (KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        return [f"metadata: {' '.join(str(error).split())}"], []
    texts = ("license", "pipeline_tag", "library_name")
    errors = [f'"{name}" must be a string' for name in texts if not isinstance(data.get(name) or "", str)]
    return errors, [] if data.get("license") else ['no "license" in the metadata']

"""Records from which files a data folder was imported, to find out later whether the export has changed."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from ...utils.files import read_json_object
from ..sources.classes import CLASS_FILES, FOREIGN_CLASS_FILES
from ..sources.pairs import visible_paths
from .export import Picture


RECORD_FILE = "import.json"  # in the data folder
BLOCK = 1 << 20


def describe_source(source: Path, pictures: Iterable[Picture] = ()) -> dict:
    """
    The content of [`RECORD_FILE`]: size, time and digest of each file of an export: all files of a folder, or the file
    and the `pictures` that it names, wherever they lie, and lists of classes beside it. An archive names no pictures.
    """
    paths = _files_in(source) if source.is_dir() else {source}
    for picture in pictures:
        paths |= {picture.image, picture.source}
    if not source.is_dir():
        lists = (source.with_name(name) for name in (*CLASS_FILES, *FOREIGN_CLASS_FILES))
        paths |= {path for path in lists if path.is_file()}
    files = {}
    for path in sorted(paths):
        stat = path.stat()
        files[Path(os.path.relpath(path, _root(source))).as_posix()] = [stat.st_size, stat.st_mtime_ns, _digest(path)]
    return {"source": source.name, "files": files}


def find_changes(source: Path, data_dir: Path) -> list[str] | None:
    """
    What has changed in an export since a folder was imported from it, a few words for each file; `None` if the folder
    has no record. A file with a newer time but the same content has not changed.
    """
    known = read_json_object(data_dir / RECORD_FILE).get("files")
    if not isinstance(known, dict):
        return None
    root, changes = _root(source), []
    if source.is_dir():
        there = {path.relative_to(root).as_posix() for path in _files_in(source)}
        changes += [f"{name} is new" for name in sorted(there - known.keys())]
    for name, (size, time, digest) in known.items():
        path = root / name
        if not path.is_file():
            changes.append(f"{name} is gone")
            continue
        stat = path.stat()
        if stat.st_size != size or (stat.st_mtime_ns != time and _digest(path) != digest):
            changes.append(f"{name} has changed")
    return changes


def _root(source: Path) -> Path:
    return source if source.is_dir() else source.parent


def _files_in(folder: Path) -> set[Path]:
    return {path for path, _ in visible_paths(folder) if path.is_file()}


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()

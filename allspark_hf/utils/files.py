"""Files: JSON that is whole or not there, which files are images, and what a Hub id looks like."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from .text import one_line


MASK_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
# EPS starts another program, the others are only recognized or need a library that is not there.
NOT_DECODED = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
PREDICTIONS = "predict.json"  # `allspark predict` writes this file into the folder of its results
LEFT_BEHIND = ("thumbs.db", "desktop.ini")  # by Windows, in any folder with pictures
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")  # user/name


@cache
def image_suffixes() -> tuple[str, ...]:
    """The extensions, in lower case, of all formats that Pillow decodes by itself; sorted."""
    import PIL.Image

    PIL.Image.init()
    decoded = PIL.Image.OPEN.keys() - set(NOT_DECODED)
    return tuple(sorted(suffix for suffix, name in PIL.Image.EXTENSION.items() if name in decoded))


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: its name begins with a dot, or a system has left it behind."""
    return name.startswith(".") or name.lower() in LEFT_BEHIND


def predictions_around(path: Path, root: Path) -> Path | None:
    """The folder of predictions below `root` that holds a file, which no command takes for an image; or `None`."""
    below = path.parents[: len(path.relative_to(root).parts) - 1]
    return next((folder for folder in below if (folder / PREDICTIONS).is_file()), None)


def find_image_files(folder: str | Path) -> tuple[list[Path], list[Path]]:
    """
    The images in a folder and its subfolders, for reading alone. Links are followed, each folder is read once and no
    link back into the folder, or to one around it, is. Subfolders of predictions are passed over.

    Args:
        folder (`str` or `Path`): any folder.

    Returns:
        `tuple[list[Path], list[Path]]`: the images and the other files, hidden ones left out; both sorted. Of
        predictions, only their `predict.json` is among the files.
    """
    root = Path(os.path.realpath(folder))
    images, others, seen = [], [], set()
    folders, links = [Path(folder)], []
    while folders or links:
        current = folders.pop() if folders else links.pop(0)  # links last, so that a file is found where it lies
        real = Path(os.path.realpath(current))
        if real in seen or (root.is_relative_to(real) and real != root):
            continue
        seen.add(real)
        if current != Path(folder) and (current / PREDICTIONS).is_file():
            others.append(current / PREDICTIONS)
            continue
        for path in sorted(current.iterdir()):
            if is_hidden(path.name):
                continue
            if path.is_dir():
                (links if path.is_symlink() else folders).append(path)
            else:
                readable = path.suffix.lower() in image_suffixes() and path.is_file()
                (images if readable else others).append(path)
    return sorted(images), sorted(others)


def left_out(files: list[Path], where: str | Path) -> str | None:
    """A sentence about what is left out of a folder, images that are predictions and others; `None` without any."""
    predictions = [file.parent for file in files if file.name == PREDICTIONS and file.parent != Path(where)]
    parts = [
        f"{_counted(len(find_image_files(folder)[0]), 'image')} in {folder}, which are predictions since it holds "
        f"{PREDICTIONS}"
        for folder in predictions
    ]
    others = [file for file in files if file.parent not in predictions]
    if others:
        parts.append(f"{_counted(len(others), 'file')} that Pillow does not read, first {others[0]}")
    return f"Left out of {where}: {'; '.join(parts)}." if parts else None


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def read_text(path: Path) -> str:
    """
    A text file in UTF-8, without the mark that Windows puts first.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error.reason}); save it as UTF-8.") from error


def read_json(path: str | Path) -> Any:
    """
    The content of a JSON file.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no JSON, with the file's name and what to do.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({one_line(error)}): remove it, or make it anew.") from error


def read_json_object(path: str | Path) -> dict:
    """A JSON object; empty if the file is missing, cut short or something else."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The name to write a file under, which is renamed at the end: under its own name it is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def removing_new_folders(folder: str | Path) -> Iterator[None]:
    """If the code inside fails, removes `folder` and those above it that are new and empty."""
    path = Path(folder).absolute()
    new = [one for one in (path, *path.parents) if not one.exists()]
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for one in new:
                one.rmdir()
        raise


def write_json(path: str | Path, value: Any):
    """Writes a JSON file by [`whole_file`]."""
    with whole_file(Path(path)) as part:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

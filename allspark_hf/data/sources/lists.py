"""Split files: text files with an image, or an image and its mask, on each line."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePosixPath

from ...utils.files import image_suffixes, read_text
from .pairs import Pairs, nfc


SHOWN_CHARACTERS = 300


def read_lines(path: str | Path) -> list[tuple[int, str]]:
    """
    The lines of a text file that are not blank, each with its number, counted from 1. Blanks around a line are kept,
    because an id may begin or end with them. Quotes around cells, as spreadsheets write them, are removed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not text in UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no list {path}; give a text file with an image and a mask, an image or an id a line."
        )
    lines = read_text(path).split("\n")  # splitlines would also cut at signs within names
    return [(number, _unquoted(line)) for number, line in enumerate(lines, 1) if line.strip()]


def _unquoted(line: str) -> str:
    return line.replace('"', "") if re.fullmatch(r'\s*"[^"]+"(\s*[\s,;]\s*"[^"]+")?\s*', line) else line


def is_file(path: Path) -> bool:
    """Whether there is such a file; False for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False


@cache
def _pair() -> re.Pattern:
    """The pattern of an image and its mask; a path may hold blanks and commas, so the extension ends the first one."""
    suffix = "|".join(map(re.escape, sorted(image_suffixes(), key=len, reverse=True)))
    return re.compile(rf"^(?P<image>.+?(?:{suffix}))(?:\s*[,;]\s*|\s+)(?P<mask>\S.*)$", re.IGNORECASE)


def split_line(line: str) -> tuple[str, str | None]:
    """The image path or id on a line of a split file, and the path of the mask, if there is one."""
    match = _pair().match(line)
    return (match["image"], match["mask"]) if match else (line, None)


def path_in(root: Path, relative: str) -> Path | None:
    """
    The file below `root` that a path in a list means, if it exists. The path may differ from the file's in slashes or
    backslashes, in the case of the extension, and in Unicode's form of accents.
    """
    for text in dict.fromkeys((relative, relative.replace("\\", "/"))):
        path = root / text
        for change in (str, str.lower, str.upper):
            if path.name and is_file(same := path.with_suffix(change(path.suffix))):
                return same
        if not text.isascii() and (path := _in_stored_form(root, path.relative_to(root).parts)):
            return path
    return None


def _in_stored_form(folder: Path, parts: Sequence[str]) -> Path | None:
    """The file below a folder whose path has these parts, whatever Unicode form of accents the disk has."""
    for part in parts:
        paths = folder.iterdir() if folder.is_dir() else ()
        folder = next((path for path in paths if nfc(path.name) == nfc(part)), None)
        if folder is None:
            return None
    return folder if folder.is_file() else None


def shown(text: str) -> str:
    """Text for an error message: cut if it is long, with codes for characters that cannot be printed."""
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


def list_text(pairs: Pairs, root: Path) -> str:
    """A split file: lines `image mask`, or `image` without a mask, sorted by id, with paths relative to `root`."""
    lines = []
    for name in sorted(pairs.images):
        files = [pairs.images[name]] + ([pairs.masks[name]] if name in pairs.masks else [])
        lines.append(" ".join(file.relative_to(root).as_posix() for file in files) + "\n")
    return "".join(lines)


def shared_images(a: Sequence[str], b: Sequence[str]) -> list[str]:
    """
    Finds the images that two lists share; only the lines are compared, no file is read.

    Args:
        a (`Sequence[str]`): lines of a split file: `image mask`, image paths or ids, in any mixture.
        b (`Sequence[str]`): lines of the other split file.

    Returns:
        `list[str]`: the images of `a` that are also in `b`, as `a` names them. Two paths are the same image if they
        are equal. An id and a path are the same image if the path, without extension and `_leftImg8bit`, ends in the
        id.
    """
    entries, entries_b = (
        [PurePosixPath(split_line(line)[0].replace("\\", "/")).as_posix() for line in lines] for lines in (a, b)
    )
    paths_b = set(filter(is_image_path, entries_b))
    ids_b, tails_b = set(entries_b) - paths_b, set().union(*map(_tails, entries_b))

    def is_shared(entry: str) -> bool:
        if not is_image_path(entry):
            return entry in tails_b
        return entry in paths_b or not ids_b.isdisjoint(_tails(entry))

    return list(filter(is_shared, entries))


def is_image_path(entry: str) -> bool:
    """Whether an entry of a list is the path of an image; otherwise it is an id."""
    return entry.lower().endswith(image_suffixes())


def _tails(entry: str) -> set[str]:
    """Every id that names the entry."""
    if not is_image_path(entry):
        return {entry}
    path = PurePosixPath(entry)
    parts = (*path.parts[:-1], path.stem.removesuffix("_leftImg8bit"))
    return {"/".join(parts[start:]) for start in range(len(parts))}

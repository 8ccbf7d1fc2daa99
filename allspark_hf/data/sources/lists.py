"""Split files: text files with an image, or an image and its mask, on each line."""

import logging
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ...utils.files import image_suffixes
from .pairs import Pairs, one_form


if TYPE_CHECKING:
    from .layout import Layout


logger = logging.getLogger(__name__)

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
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines would also cut at signs within names
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error.reason}); save the list as UTF-8.") from error
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


def read_list(path: str | Path, layout: "Layout", split: str, need_masks: bool) -> Pairs:
    """
    Reads a split file of a run, or one that UniMatch, AllSpark or U2PL publish.

    A line is `image mask`, an image path, an id, or a file name whose stem is the id. Blanks, a comma or a semicolon
    separate the two paths. Paths are relative to the root of the data set, or absolute and inside it, with slashes or
    backslashes. If a line names no mask, the mask lies where the data set keeps it. No line may lead out of the data
    set's folder; a link inside the folder is followed wherever it leads.

    Args:
        path (`str` or `Path`): the text file, in UTF-8.
        layout (`Layout`): the data set.
        split (`str`): `"train"` or `"validation"`: the split in which an id is looked up.
        need_masks (`bool`): whether the list must name an image, and every image must have a mask; otherwise a mask
            that does not exist is left out.

    Returns:
        `Pairs`: the images in the order of the lines.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not in UTF-8, or a line names an image that does not exist, an image that an earlier
            line names, a path outside the data set, or an image whose needed mask does not exist.
    """
    pairs, first_line, replaced = Pairs({}, {}), {}, []
    for number, line in read_lines(path):
        where = f"Line {number} of {path}"
        image, mask = _resolve(line, layout, split, where)
        line = _shown(line)
        if image in first_line:
            raise ValueError(f"{where} names {line}, as line {first_line[image]} does; name every image once.")
        first_line[image] = number
        name = layout.identify(image, split)
        pairs.images[name] = image
        if mask is None:
            mask = layout.mask_of(image)
        else:
            listed, mask = mask, layout.listed_mask(mask, image)
            if mask is None:
                raise ValueError(f"{where} names {line}, but {layout.name} has no masks named so; correct the list.")
            if mask != listed:
                replaced.append((listed, mask))
        if is_file(mask):
            pairs.masks[name] = mask
        elif need_masks:
            place = _shown(str(mask))
            raise ValueError(f"{where} names {line}, but there is no mask {place}; add it or correct the list.")
    if need_masks and not pairs.images:
        raise ValueError(f"{path} names no image; list at least one.")
    if replaced:
        logger.info("%s: %d masks are read from other files, first %s from %s", path, len(replaced), *replaced[0])
    return pairs


def find_image(line: str, layout: "Layout", split: str) -> tuple[Path | None, str | None]:
    """The image that a line names, if it exists, and the mask's path, if the line has one; see [`read_list`]."""
    # An id may look like a path or a pair, or end in a blank: the line is an id if such an image exists.
    for name in (line, line.strip()):
        if not _leaves(name, layout) and is_file(image := layout.image_of(one_form(name), split)):
            return image, None
        if _is_path(name) and not _leaves(name, layout) and (image := path_in(layout.root, name)):
            return image, None
    first, second = split_line(line.strip())
    if _leaves(first, layout) or not _is_path(first):
        return None, second
    if second is not None and (image := path_in(layout.root, first)):
        return image, second
    # The line may be the name of a file whose stem is the id.
    image = layout.image_of(one_form(PurePosixPath(first).with_suffix("").as_posix()), split)
    is_named = is_file(image) and one_form(image.name).lower() == one_form(PurePosixPath(first).name).lower()
    return image if is_named else None, second


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
        folder = next((path for path in paths if one_form(path.name) == one_form(part)), None)
        if folder is None:
            return None
    return folder if folder.is_file() else None


def _resolve(line: str, layout: "Layout", split: str, where: str) -> tuple[Path, Path | None]:
    """The existing image that a line names, and the path of the mask, if the line has one; ValueError otherwise."""
    image, second = find_image(line, layout, split)
    line = line.strip()
    first = split_line(line)[0] if image is None or second is not None else None
    for path in (first, second):
        if path is not None and _leaves(path, layout):
            raise ValueError(
                f"{where} names {_shown(path)}, which is outside {layout.root}; paths must be relative to that folder."
            )
    if image is None:
        is_path = second is not None or _is_path(first)
        other = "validation" if split == "train" else "train"
        if not is_path and is_file(layout.image_of(one_form(first), other)):
            kind = "training" if other == "train" else other
            raise ValueError(f"{where} names {_shown(first)}, which is a {kind} image; correct it.")
        place = _shown(str(layout.root / first if is_path else layout.image_of(first, split)))
        raise ValueError(
            f"{where} names {_shown(line)}, but there is no image {place}; correct the line or add the image."
        )
    if second is None:
        return image, None
    return image, path_in(layout.root, second) or layout.root / second


def _leaves(path: str, layout: "Layout") -> bool:
    """Whether a path leads out of the data folder: it holds `..`, or is absolute and outside the folder."""
    parts = re.split(r"[\\/]", path)  # slash and backslash, so that a list means the same on every system
    if ".." in parts:
        return True
    is_absolute = not parts[0] or re.match(r"[A-Za-z]:[\\/]", path) is not None
    return is_absolute and not Path(path).is_relative_to(layout.root)


def _shown(text: str) -> str:
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
    paths_b = set(filter(_is_path, entries_b))
    ids_b, tails_b = set(entries_b) - paths_b, set().union(*map(_tails, entries_b))

    def is_shared(entry: str) -> bool:
        if not _is_path(entry):
            return entry in tails_b
        return entry in paths_b or not ids_b.isdisjoint(_tails(entry))

    return list(filter(is_shared, entries))


def _is_path(entry: str) -> bool:
    return entry.lower().endswith(image_suffixes())


def _tails(entry: str) -> set[str]:
    """Every id that names the entry."""
    if not _is_path(entry):
        return {entry}
    path = PurePosixPath(entry)
    parts = (*path.parts[:-1], path.stem.removesuffix("_leftImg8bit"))
    return {"/".join(parts[start:]) for start in range(len(parts))}

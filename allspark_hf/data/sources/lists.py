"""Split files of the field: text files that name images, or images and masks, a line each."""

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
    The lines of a text file that are not blank, each with its number, counted from 1. Blanks around a line are kept:
    an id may begin or end with them. Of a line in quotes, as spreadsheets write cells, the quotes are left out.

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
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # and not where Unicode has line ends, as in names
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error.reason}); save the list as UTF-8.") from error
    return [(number, _unquoted(line)) for number, line in enumerate(lines, 1) if line.strip()]


def _unquoted(line: str) -> str:
    return line.replace('"', "") if re.fullmatch(r'\s*"[^"]+"(\s*[\s,;]\s*"[^"]+")?\s*', line) else line


def is_file(path: Path) -> bool:
    """Whether there is such a file; there is none whose name no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False


@cache
def _pair() -> re.Pattern:
    """A path may hold blanks and commas, so what ends the first one is its extension."""
    suffix = "|".join(map(re.escape, sorted(image_suffixes(), key=len, reverse=True)))
    return re.compile(rf"^(?P<image>.+?(?:{suffix}))(?:\s*[,;]\s*|\s+)(?P<mask>\S.*)$", re.IGNORECASE)


def split_line(line: str) -> tuple[str, str | None]:
    """The image path or id that a line of a split file names, and the mask path, if it names one."""
    match = _pair().match(line)
    return (match["image"], match["mask"]) if match else (line, None)


def read_list(path: str | Path, layout: "Layout", split: str, need_masks: bool) -> Pairs:
    """
    Reads a split file, as UniMatch, AllSpark and U2PL publish them or as a run writes them.

    A line is `image mask` or an image path, an id, or the name of a file that has that id. Between the two paths are
    blanks, a comma or a semicolon; they are relative to the root of the data set, or absolute and in it, with slashes
    or backslashes. The mask of an image path or an id lies where the data set keeps it. No line leads out of the data
    set's folder. A link in that folder is part of it, wherever it leads: whoever made it chose what to read.

    Args:
        path (`str` or `Path`): the text file, UTF-8.
        layout (`Layout`): the data set.
        split (`str`): `"train"` or `"validation"`: where to look an id up.
        need_masks (`bool`): whether every image must have a mask and there must be an image; otherwise a mask that
            does not exist is left out.

    Returns:
        `Pairs`: the images in the order of the lines.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not in UTF-8, a line names an image that does not exist, an image twice, or a path
            outside the data set, or a mask is needed that does not exist.
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
    """The image that a line names, if it exists, and the path of the mask, if it names one; see [`read_list`]."""
    # An id may look like a path or a pair, or end in a blank; that there is such an image settles it.
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
    # A file's name alone.
    image = layout.image_of(one_form(PurePosixPath(first).with_suffix("").as_posix()), split)
    is_named = is_file(image) and one_form(image.name).lower() == one_form(PurePosixPath(first).name).lower()
    return image if is_named else None, second


def path_in(root: Path, relative: str) -> Path | None:
    """
    The file that a path in a list means, if there is one below `root`: with slashes or backslashes, its extension in
    upper or lower case, and accents in either of Unicode's forms.
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
    """The file below a folder whose path has the given parts, in the form in which the disk has them."""
    for part in parts:
        paths = folder.iterdir() if folder.is_dir() else ()
        folder = next((path for path in paths if one_form(path.name) == one_form(part)), None)
        if folder is None:
            return None
    return folder if folder.is_file() else None


def _resolve(line: str, layout: "Layout", split: str, where: str) -> tuple[Path, Path | None]:
    """The image that a line names, which exists, and the mask, if it names one."""
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
    """Whether a path leads out of the data folder; an absolute one does not, if it names a file in it."""
    parts = re.split(r"[\\/]", path)  # both, so that a list means the same on every system
    if ".." in parts:
        return True
    is_absolute = not parts[0] or re.match(r"[A-Za-z]:[\\/]", path) is not None
    return is_absolute and not Path(path).is_relative_to(layout.root)


def _shown(text: str) -> str:
    """A piece of a line for an error message: the start of a long one, and what cannot be printed as its code."""
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


def list_text(pairs: Pairs, root: Path) -> str:
    """A split file with paths relative to `root`: lines `image mask`, sorted by id; an image may have no mask."""
    lines = []
    for name in sorted(pairs.images):
        files = [pairs.images[name]] + ([pairs.masks[name]] if name in pairs.masks else [])
        lines.append(" ".join(file.relative_to(root).as_posix() for file in files) + "\n")
    return "".join(lines)


def shared_images(a: Sequence[str], b: Sequence[str]) -> list[str]:
    """
    Finds the images that two lists share, from their lines alone.

    Args:
        a (`Sequence[str]`): lines of a split file: `image mask`, image paths or ids, in any mixture.
        b (`Sequence[str]`): the lines of the other.

    Returns:
        `list[str]`: the images of `a` that are also in `b`, as `a` names them. Two paths are the same image if they
        are equal; an id is the same image as a path that ends in it, extension and `_leftImg8bit` aside.
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

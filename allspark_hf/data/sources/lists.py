"""Split files of the field: text files that name images, or images and masks, a line each."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from .pairs import IMAGE_SUFFIXES, Layout, Pairs, some


logger = logging.getLogger(__name__)

SHOWN_CHARACTERS = 300
_SUFFIX = "|".join(re.escape(suffix) for suffix in IMAGE_SUFFIXES)
# A path may hold blanks, so what ends the first one is its extension.
_PAIR = re.compile(rf"^(?P<image>.+?(?:{_SUFFIX}))\s+(?P<mask>\S.*)$", re.IGNORECASE)


def read_lines(path: str | Path) -> list[tuple[int, str]]:
    """
    Reads a text file.

    Args:
        path (`str` or `Path`):
            A text file in UTF-8.

    Returns:
        `list[tuple[int, str]]`: The lines that are not blank, each with its number, counted from 1. Blanks around a
        line are kept: an id may begin or end with them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not text in UTF-8.
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
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def is_file(path: Path) -> bool:
    """Whether there is such a file; there is none whose name no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False


def split_line(line: str) -> tuple[str, str | None]:
    """
    Takes a line of a split file apart.

    Args:
        line (`str`):
            `image mask`, an image path, or an id.

    Returns:
        `tuple[str, str | None]`: The image path or id, and the mask path, if there is one.
    """
    match = _PAIR.match(line)
    return (match["image"], match["mask"]) if match else (line, None)


def read_list(path: str | Path, layout: Layout, split: str, need_masks: bool) -> Pairs:
    """
    Reads a split file, as UniMatch, AllSpark and U2PL publish them or as a run writes them.

    A line is `image mask` or an image path, relative to the root of the data set with slashes, or a bare id. The mask
    of an image path or an id lies where the data set keeps it. No line leads out of the data set's folder. A link in
    that folder is part of it, wherever it leads: whoever made it chose what to read.

    Args:
        path (`str` or `Path`):
            The text file, UTF-8.
        layout (`Layout`):
            The data set.
        split (`str`):
            `"train"` or `"validation"`: where to look an id up.
        need_masks (`bool`):
            Whether every image must have a mask and there must be an image; otherwise a mask that does not exist is
            left out.

    Returns:
        `Pairs`: The images in the order of the lines.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not in UTF-8, a line names an image that does not exist, an image twice, or a path
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


def _resolve(line: str, layout: Layout, split: str, where: str) -> tuple[Path, Path | None]:
    """The image that a line names, which exists, and the mask, if it names one."""
    # An id may look like a path or a pair, or end in a blank; that there is such an image settles it.
    for name in (line, line.strip()):
        if not _leaves(name) and is_file(image := layout.image_of(name, split)):
            return image, None
    line = line.strip()
    first, second = split_line(line)
    is_path = second is not None or first.lower().endswith(IMAGE_SUFFIXES)
    for path in (first, second):
        if path is not None and _leaves(path):
            raise ValueError(
                f"{where} names {_shown(path)}, which is outside {layout.root}; paths must be relative to that folder."
            )
    image = layout.root / first if is_path else layout.image_of(first, split)
    if not is_file(image):
        other = "validation" if split == "train" else "train"
        if not is_path and is_file(layout.image_of(first, other)):
            kind = "training" if other == "train" else other
            raise ValueError(f"{where} names {_shown(first)}, which is a {kind} image; correct it.")
        place = _shown(str(image))
        raise ValueError(
            f"{where} names {_shown(line)}, but there is no image {place}; correct the line or add the image."
        )
    return image, None if second is None else layout.root / second


def _leaves(path: str) -> bool:
    parts = re.split(r"[\\/]", path)  # both, so that a list means the same on every system
    return not parts[0] or ".." in parts or re.match(r"[A-Za-z]:[\\/]", path) is not None


def _shown(text: str) -> str:
    """A piece of a line for an error message: the start of a long one, and what cannot be printed as its code."""
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


def list_text(pairs: Pairs, root: Path) -> str:
    """
    The text of a split file.

    Args:
        pairs (`Pairs`):
            The images.
        root (`Path`):
            The folder that the paths are to be relative to.

    Returns:
        `str`: Lines `image mask`, sorted by id; an image without a mask stands alone.
    """
    lines = []
    for name in sorted(pairs.images):
        files = [pairs.images[name]] + ([pairs.masks[name]] if name in pairs.masks else [])
        lines.append(" ".join(file.relative_to(root).as_posix() for file in files) + "\n")
    return "".join(lines)


def shared_images(a: Sequence[str], b: Sequence[str]) -> list[str]:
    """
    Finds the images that two lists share, from their lines alone.

    Args:
        a (`Sequence[str]`):
            Lines of a split file: `image mask`, image paths or ids, in any mixture.
        b (`Sequence[str]`):
            The lines of the other.

    Returns:
        `list[str]`: The images of `a` that are also in `b`, as `a` names them. Two paths are the same image if they
        are equal; an id is the same image as a path that ends in it, extension and `_leftImg8bit` aside.
    """
    entries_b = {_entry(line) for line in b}
    tails_b = set().union(*(_tails(entry) for entry in entries_b)) if entries_b else set()
    ids_b = {entry for entry in entries_b if not entry.lower().endswith(IMAGE_SUFFIXES)}
    shared = []
    for entry in map(_entry, a):
        if entry.lower().endswith(IMAGE_SUFFIXES):
            same = entry in entries_b or not ids_b.isdisjoint(_tails(entry))
        else:
            same = entry in tails_b
        if same:
            shared.append(entry)
    return shared


def _entry(line: str) -> str:
    return PurePosixPath(split_line(line)[0]).as_posix()


def _tails(entry: str) -> set[str]:
    """Every id that names the entry."""
    path = PurePosixPath(entry)
    if not entry.lower().endswith(IMAGE_SUFFIXES):
        return {entry}
    parts = (*path.parts[:-1], path.stem.removesuffix("_leftImg8bit"))
    return {"/".join(parts[start:]) for start in range(len(parts))}


def require_disjoint(sets: dict[str, Pairs], hint: str = "") -> None:
    """
    Raises `ValueError` if an image is in two of the sets.

    Args:
        sets (`dict[str, Pairs]`):
            What to call each set, and its images.
        hint (`str`, *optional*):
            How to put it right.

    Raises:
        ValueError: With the number of shared images and the first few of them.
    """
    names = list(sets)
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            in_second = set(sets[second].images.values())
            both = [name for name, path in sets[first].images.items() if path in in_second]
            if both:
                raise ValueError(
                    f"{len(both)} image{'s are' if len(both) > 1 else ' is'} both in {first} and in {second} "
                    f"({some(both)}); {hint or 'take them out of one'}."
                )

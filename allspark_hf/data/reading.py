"""Rows that cannot be read any more, though they could when training began."""

import logging
from collections.abc import Callable
from typing import TypeVar

import datasets

from .overlap import row_name, undecoded


logger = logging.getLogger(__name__)

ON_BAD_IMAGE = ("stop", "skip")
MAX_REPLACED = 16  # neighbours that are tried: where all of them are bad, the disk is, and not a file
ADVICE = {
    None: ": restore the file, or take the image out of the data.",
    "stop": ", though it could when the data was checked: restore the file, or remove it and begin a new training, or "
    "take another image in its place with --on_bad_image skip.",
    "skip": ".",
}

T = TypeVar("T")


class BadImageError(ValueError):
    """
    An image or a mask that cannot be read.

    Args:
        message (`str`): one sentence; of the report by which a DataLoader's worker passes it on, only that is kept.
    """

    def __init__(self, message: str):
        name = f"{type(self).__name__}: "
        super().__init__(message.rpartition(name)[2].strip() if message.startswith("Caught ") else message)


def read_or_replace(
    read: Callable[[int], T], row: int, dataset, columns: tuple[str, ...], on_bad_image: str | None = None
) -> T:
    """
    Reads a row of a data set, or tells which file cannot be read.

    Args:
        read (`Callable`): reads the row of that number.
        row (`int`): of `dataset`.
        dataset (`datasets.Dataset` or [`StreamReader`]): where it is from, to name the file.
        columns (`tuple[str, ...]`): of image and mask.
        on_bad_image (`str`, *optional*):
            "skip" takes the next readable row instead, and logs it; "stop" stops and says so; None just stops, for an
            evaluation, which leaves nothing out.

    Returns:
        What `read` does. With "skip" it depends on the data set and `row` alone: the same run, the same images.

    Raises:
        BadImageError: if the row, or with "skip" each of 16 in a row, cannot be read.
    """
    tries = MAX_REPLACED if on_bad_image == "skip" else 1
    for offset in range(tries):
        place = (row + offset) % len(dataset) if offset else row
        try:
            return read(place)
        # Broken files make Pillow raise nearly anything, among others SyntaxError and struct.error.
        except Exception as error:
            problem = describe_bad_row(dataset, place, columns, error, ADVICE[on_bad_image])
            if offset + 1 == tries:
                more = f" ({tries} images in a row cannot be read: is the disk still there?)" if tries > 1 else ""
                raise BadImageError(problem + more) from error
            logger.warning("%s The next image is taken instead.", problem)
    raise AssertionError("unreachable")


def describe_bad_row(dataset, row: int, columns: tuple[str, ...], error: Exception, advice: str) -> str:
    """One sentence: the file of the row that cannot be read, why, and what to do, of [`ADVICE`]."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(dataset, datasets.Dataset):  # a stream, which names it itself
        return reason
    for column in columns:
        if column not in dataset.column_names:
            continue
        stored = undecoded(dataset, column)[row][column]
        if stored is None or _decodes(stored):
            continue
        where = stored.get("path") or f"The {column} of row {row_name(dataset, row, stored)}"
        return f"{where} cannot be read ({reason}){advice}"
    stored = undecoded(dataset, columns[0])[row][columns[0]]
    return f"{row_name(dataset, row, stored)} cannot be used: {reason}"


def _decodes(stored: dict) -> bool:
    try:
        datasets.Image().decode_example(stored).load()
    except Exception:
        return False
    return True


__all__ = ["ON_BAD_IMAGE", "BadImageError", "describe_bad_row", "read_or_replace"]

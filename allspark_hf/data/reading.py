"""Rows as they are stored, what to call them, and rows that cannot be read any more, though they could before."""

import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

import datasets

from ..utils.text import one_line


logger = logging.getLogger(__name__)

ON_BAD_IMAGE = ("stop", "skip")
MAX_REPLACED = 16  # neighbors that are tried: where all of them are bad, the disk is, and not a file
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
        message (`str`): one sentence. A DataLoader's worker wraps it in its traceback, of which only it is kept.
    """

    def __init__(self, message: str):
        name = f"{type(self).__name__}: "
        super().__init__(message.rpartition(name)[2].strip() if message.startswith("Caught ") else message)


def require_columns(names: Iterable[str], present: Iterable[str], where: str, fix: str):
    """Raises `ValueError`, with the columns that are there and how to put it right, if one of the names is missing."""
    missing = [repr(name) for name in names if name not in present]
    if missing:
        raise ValueError(
            f"{where} has no column {' and no column '.join(missing)} (it has {', '.join(present)}); {fix}."
        )


def undecoded(dataset: datasets.Dataset, column: str) -> datasets.Dataset:
    """
    Gives one image column as it is stored, without format, transform or decoding.

    Args:
        dataset (`datasets.Dataset`): any data set; it is not changed.
        column (`str`): the name of a column of `datasets.Image`.

    Returns:
        `datasets.Dataset`: the column alone; each row is a dict with `path` (`str` or `None`) and `bytes` (`bytes` or
        `None`).

    Raises:
        ValueError: if there is no such column, or it does not hold images.
    """
    require_columns([column], dataset.column_names, "The data set", "rename the column that holds it")
    if not isinstance(dataset.features[column], datasets.Image):
        raise ValueError(
            f"The column {column!r} holds {dataset.features[column]}, not images; cast it with "
            f"dataset.cast_column({column!r}, datasets.Image())."
        )
    return dataset.with_format(None).select_columns([column]).cast_column(column, datasets.Image(decode=False))


def row_name(dataset: datasets.Dataset, row: int, stored: dict | None) -> str:
    """What to call a row: its `id` where there is such a column, else the path of its image, else its number."""
    if "id" in dataset.column_names:
        return str(dataset.with_format(None).select_columns(["id"])[row]["id"])
    return (stored or {}).get("path") or str(row)


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
        on_bad_image (`str`, *optional*): "skip" takes the next readable row instead, and logs it; "stop" stops and
            says so; None just stops, for an evaluation, which leaves nothing out.

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
            problem = _describe_bad_row(dataset, place, columns, error, ADVICE[on_bad_image])
            if offset + 1 == tries:
                more = f" ({tries} images in a row cannot be read: is the disk still there?)" if tries > 1 else ""
                raise BadImageError(problem + more) from error
            logger.warning("%s The next image is taken instead.", problem)
    raise AssertionError("unreachable")


def _describe_bad_row(dataset, row: int, columns: tuple[str, ...], error: Exception, advice: str) -> str:
    """One sentence: the file of the row that cannot be read, why, and what to do, of [`ADVICE`]."""
    reason = one_line(error)
    if not isinstance(dataset, datasets.Dataset):  # a stream, which names it itself
        return reason
    for column in columns:
        if column not in dataset.column_names:
            continue
        stored = undecoded(dataset, column)[row][column]
        if stored is None or _decodes(dataset.features[column], stored):
            continue
        where = stored.get("path") or f"The {column} of row {row_name(dataset, row, stored)}"
        return f"{where} cannot be read ({reason}){advice}"
    stored = undecoded(dataset, columns[0])[row][columns[0]]
    return f"{row_name(dataset, row, stored)} cannot be used: {reason}"


def _decodes(feature: datasets.Image, stored: dict) -> bool:
    try:
        feature.decode_example(stored).load()
    except Exception:
        return False
    return True


__all__ = [
    "ON_BAD_IMAGE",
    "BadImageError",
    "_describe_bad_row",
    "read_or_replace",
    "require_columns",
    "row_name",
    "undecoded",
]

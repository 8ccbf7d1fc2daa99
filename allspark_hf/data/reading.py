"""Rows as they are stored, their names, and what to do with a row that cannot be read."""

import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

import datasets

from ..utils.text import one_line


logger = logging.getLogger(__name__)

ON_BAD_IMAGE = ("stop", "skip")
MAX_REPLACED = 16  # rows that are tried one after another: if all are bad, the disk is the problem, not a file
ADVICE = {  # by the value of on_bad_image
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
        message (`str`): one sentence. A DataLoader's worker wraps the sentence in its traceback, which is cut off
            here.
    """

    def __init__(self, message: str):
        name = f"{type(self).__name__}: "
        super().__init__(message.rpartition(name)[2].strip() if message.startswith("Caught ") else message)


def require_columns(names: Iterable[str], present: Iterable[str], where: str, fix: str):
    """Raises `ValueError` if a column is missing; the message lists the columns that are there, and says `fix`."""
    missing = [repr(name) for name in names if name not in present]
    if missing:
        raise ValueError(
            f"{where} has no column {' and no column '.join(missing)} (it has {', '.join(present)}); {fix}."
        )


def undecoded(dataset: datasets.Dataset, column: str) -> datasets.Dataset:
    """
    One column of `datasets.Image` as it is stored, without format, transform or decoding: each row is a dict with
    `path` (`str` or `None`) and `bytes` (`bytes` or `None`).

    Raises:
        ValueError: if there is no such column, or the column does not hold images.
    """
    require_columns(
        [column], dataset.column_names, "The data set", f"rename the column of images or masks to {column!r}"
    )
    if not isinstance(dataset.features[column], datasets.Image):
        raise ValueError(
            f"The column {column!r} holds {dataset.features[column]}, not images; cast it with "
            f"dataset.cast_column({column!r}, datasets.Image())."
        )
    return dataset.with_format(None).select_columns([column]).cast_column(column, datasets.Image(decode=False))


def row_name(dataset: datasets.Dataset, row: int, stored: dict | None) -> str:
    """The name of a row: its `id` if there is such a column, else the path of its image, else its number."""
    if "id" in dataset.column_names:
        return str(dataset.with_format(None).select_columns(["id"])[row]["id"])
    return (stored or {}).get("path") or str(row)


def read_or_replace(
    read: Callable[[int], T], row: int, dataset, columns: tuple[str, ...], on_bad_image: str | None = None
) -> T:
    """
    Reads a row of a data set, or names the file that cannot be read.

    Args:
        read (`Callable`): reads the row of a number.
        row (`int`): number of the row in `dataset`.
        dataset (`datasets.Dataset` or [`StreamReader`]): the data set, to name the file.
        columns (`tuple[str, ...]`): names of the columns of images and masks.
        on_bad_image (`str`, *optional*): "skip" takes the next readable row instead, and logs it; "stop" raises an
            error that suggests "skip"; None raises one that does not, for an evaluation, which must leave nothing out.

    Returns:
        What `read` returns. With "skip", the choice depends on the data set and `row` alone, so that a repeated run
        reads the same images.

    Raises:
        BadImageError: if the row cannot be read, or with "skip" 16 rows one after another.
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


def _describe_bad_row(dataset, row: int, columns: tuple[str, ...], error: Exception, advice: str) -> str:
    """One sentence: the file of the row that cannot be read, why, and the advice."""
    reason = one_line(error)
    if not isinstance(dataset, datasets.Dataset):  # a stream, whose error names the file
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

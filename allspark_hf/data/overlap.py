"""Finding the images that occur in two data sets, by their encoded bytes."""

import hashlib
import os
from collections import defaultdict
from pathlib import Path

from datasets import Dataset

from .reading import row_name, undecoded


def find_overlap(a: Dataset, b: Dataset, image_column: str = "image") -> list[tuple[str, str]]:
    """
    The images that are in both data sets, whatever their file names.

    Two images are the same if their files are equal byte for byte; an image that was encoded again is not found. Only
    files whose size occurs in both data sets are read, and no pixel is decoded.

    Returns:
        `list[tuple[str, str]]`: one pair per image of `a` and equal image of `b`, in the order of the rows; a row is
        named by its `id`, else its path, else its number.

    Raises:
        ValueError: if a data set has no such column of images, or a row has neither bytes nor a local file.
    """
    rows_a, rows_b = undecoded(a, image_column), undecoded(b, image_column)
    sizes_a, sizes_b = _sizes(a, rows_a, image_column), _sizes(b, rows_b, image_column)
    hashes_b = defaultdict(list)
    in_a, in_b = set(sizes_a), set(sizes_b)
    for row, size in enumerate(sizes_b):
        if size in in_a:
            hashes_b[_sha256(rows_b[row][image_column])].append(row)
    pairs = []
    for row, size in enumerate(sizes_a):
        if size in in_b:
            stored = rows_a[row][image_column]
            for other in hashes_b.get(_sha256(stored), []):
                pairs.append((row_name(a, row, stored), row_name(b, other, rows_b[other][image_column])))
    return pairs


def _sizes(dataset: Dataset, rows: Dataset, column: str) -> list[int]:
    sizes = []
    for row, example in enumerate(rows):
        stored = example[column] or {}
        if stored.get("bytes") is not None:
            sizes.append(len(stored["bytes"]))
        elif stored.get("path") is not None and os.path.isfile(stored["path"]):
            sizes.append(os.path.getsize(stored["path"]))
        else:
            raise ValueError(
                f"The image of row {row_name(dataset, row, stored)} has neither bytes nor a local file "
                f"(path: {stored.get('path')}); download it, or remove the row."
            )
    return sizes


def _sha256(stored: dict) -> bytes:
    content = stored["bytes"] if stored["bytes"] is not None else Path(stored["path"]).read_bytes()
    return hashlib.sha256(content).digest()

"""What a set of images with masks holds: sizes and stored values, each file read once however many ask."""

import io
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import datasets
import numpy as np
import PIL.Image

from .columns import Mask
from .images import mask_to_array, open_image
from .masks import MaskConvention
from .reading import row_name, undecoded


@dataclass(frozen=True)
class SetSummary:
    """
    What is stored in the rows of a data set.

    Args:
        sizes (`tuple`): (width, height) of each row's image as stored; None where it cannot be read or is not here.
        values (`tuple`): the values of each row's mask as stored, a frozenset; None without a mask or where it cannot
            be read.
    """

    sizes: tuple[tuple[int, int] | None, ...]
    values: tuple[frozenset[int] | None, ...]

    def classes(self, convention: MaskConvention) -> set[int]:
        """The class indices that occur in some mask."""
        stored = sorted(set().union(*(values for values in self.values if values is not None)))
        return set(convention.map(np.array(stored, dtype=np.int64)).tolist()) - {convention.ignore_index}


_SUMMARIES: WeakKeyDictionary[datasets.Dataset, SetSummary] = WeakKeyDictionary()


def note(dataset: datasets.Dataset, summary: SetSummary):
    """Keeps what was found when a data set was read for another reason."""
    _SUMMARIES[dataset] = summary


def summarize(dataset: datasets.Dataset, image_column: str = "image", label_column: str = "label") -> SetSummary:
    """
    Reads the masks and the beginnings of the images, once for each data set. A broken file is told when it is read.

    Args:
        dataset (`datasets.Dataset`): rows with images and perhaps masks.
        image_column (`str`): name of the image column.
        label_column (`str`): name of the mask column; may be missing.
    """
    if dataset not in _SUMMARIES:
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without holding the interpreter lock
            sizes = _look(dataset, image_column, _size, pool)
            note(dataset, SetSummary(sizes, _look(dataset, label_column, _values, pool)))
    return _SUMMARIES[dataset]


def convention_of(dataset: datasets.Dataset) -> MaskConvention | None:
    """The convention that the data set maps its masks by when rows are read; None if it does not."""
    transform = dataset.format["format_kwargs"].get("transform")
    return transform if isinstance(transform, MaskConvention) else None


def stored_values(array: np.ndarray) -> np.ndarray:
    """int64: the values that occur, ascending."""
    # Counting is several times faster than sorting where the values are few.
    small = array.dtype == np.uint8
    found = np.flatnonzero(np.bincount(array.ravel(), minlength=256)) if small else np.unique(array)
    return found.astype(np.int64)


def file_of(dataset: datasets.Dataset, row: int, column: str) -> str:
    """What to call a row in an error: the path of its file, else its `id` or its number."""
    try:
        stored = undecoded(dataset, column)[row][column] or {}
    except ValueError:  # a column that a transform of one's own makes
        stored = {}
    return stored.get("path") or row_name(dataset, row, None)


def require_known_values(
    sets: Mapping[str, datasets.Dataset], config, image_column: str = "image", label_column: str = "label"
):
    """
    Raises ValueError if 255 may be a class in masks that a model is to be trained or scored on; see
    [`describe_binary_masks`]. `config` is the model's configuration.
    """
    convention = MaskConvention.of(config)
    sentence = describe_binary_masks(sets, config.num_labels, convention, image_column, label_column)
    if sentence:
        raise ValueError(sentence)


def describe_binary_masks(
    sets: Mapping[str, datasets.Dataset],
    num_labels: int,
    convention: MaskConvention,
    image_column: str = "image",
    label_column: str = "label",
) -> str | None:
    """
    The sentence about masks whose 255 may be the object and not pixels that do not count; None if there are none.

    Such a mask holds 255 and nothing else but 0. It is what binary masks look like, but also an image of a set with
    more classes that shows background and borders only: there, other masks of the same set show other classes.

    Args:
        sets (`Mapping[str, datasets.Dataset]`): name -> rows, as they are stored.
        num_labels (`int`): classes.
        convention ([`MaskConvention`]): of the masks, unless a set is read through one.
        image_column (`str`): name of the image column.
        label_column (`str`): name of the mask column.
    """
    values = {name: summarize(dataset, image_column, label_column).values for name, dataset in sets.items()}
    values = {name: [one for one in rows if one is not None] for name, rows in values.items()}
    others = sorted(set().union(*(one for rows in values.values() for one in rows)) - {0, 255})
    for name, dataset in sets.items():
        shown = set().union(*values[name])
        known = (convention_of(dataset) or convention).says_what_255_is
        if known or 255 not in shown or shown == {255} or (num_labels > 2 and shown - {0, 255}):
            continue
        rows = summarize(dataset).values
        suspects = [row for row, one in enumerate(rows) if one is not None and 255 in one and one <= {0, 255}]
        if suspects:
            count = f"All {len(suspects)}" if len(suspects) == len(values[name]) else f"{len(suspects)}"
            first = file_of(dataset, suspects[0], label_column)
            return binary_sentence(f"{count} {name} masks (first {first}) hold", others)
    return None


def binary_sentence(masks_hold: str, others: list[int]) -> str:
    """One sentence about such masks, with the options; `others` are the values that further masks hold."""
    void = "--ignored_mask_values 255 (in Python ignored_mask_values=[255] in the model's configuration)"
    if others:
        return (
            f"{masks_hold} only 0 and 255, while others hold {others[0]}: if 255 is a class, store all masks in one "
            f"way (class indices); if its pixels do not count, give {void}."
        )
    return (
        f"{masks_hold} only 0 and 255, so that 255 may be a class, as in binary masks: if it is, give --mask_values "
        "0 255 (in Python mask_values=[0, 255] in the model's configuration); if its pixels do not count, give "
        f"{void}."
    )


# ---- Reading ----


def _reader(dataset: datasets.Dataset, column: str) -> Callable[[int], object]:
    """Gives of a row what is stored, or where a transform of one's own makes the column, what that gives."""
    own = dataset.format["type"] is not None and convention_of(dataset) is None
    if own:
        return lambda row: dataset[row].get(column)
    if column not in dataset.column_names:
        return lambda row: None
    if not isinstance(dataset.features[column], datasets.Image):
        return lambda row: dataset[row][column]
    rows = undecoded(dataset, column)
    return lambda row: rows[row][column]


def _look(dataset: datasets.Dataset, column: str, find: Callable, pool: ThreadPoolExecutor) -> tuple:
    read = _reader(dataset, column)

    def look(row: int):
        try:
            return find(read(row))
        # Broken files make Pillow raise nearly anything; it is told when the row is read for use.
        except Exception:
            return None

    return tuple(pool.map(look, range(len(dataset))))


def _size(image) -> tuple[int, int] | None:
    if not isinstance(image, dict):
        return image.size if isinstance(image, PIL.Image.Image) else None
    content, path = image.get("bytes"), image.get("path")
    with open_image(path if content is None else io.BytesIO(content)) as opened:
        return opened.size


def _values(mask) -> frozenset[int] | None:
    decoded = Mask().decode_example(mask) if isinstance(mask, dict) else mask
    return None if decoded is None else frozenset(stored_values(mask_to_array(decoded)).tolist())


__all__ = [
    "SetSummary",
    "binary_sentence",
    "convention_of",
    "describe_binary_masks",
    "file_of",
    "note",
    "require_known_values",
    "stored_values",
    "summarize",
]

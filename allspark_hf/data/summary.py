"""What a set of images with masks holds: sizes, stored values and ranges. Each file is read once, however many ask."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakKeyDictionary

import datasets
import numpy as np
import PIL.Image

from .columns import Mask, holds_pictures, page_of
from .images import mask_to_array, open_stored
from .masks import MaskConvention, binary_sentence
from .pixels import FULL_RANGE, LITTLE_SEEN, ORIENTATION, WIDTH, deep_values, load_image, say_once
from .reading import row_name, undecoded


OUTLIERS = 1000  # one value in so many does not count at either end: dead and glowing pixels
# Data set -> function (`_size`, `_values` or `_range`) and column -> what the function found in each row.
_FOUND: WeakKeyDictionary[datasets.Dataset, dict[tuple[Callable, str], tuple]] = WeakKeyDictionary()

logger = logging.getLogger(__name__)


def remember(dataset: datasets.Dataset, sizes: Iterable, values: Iterable, ranges: Iterable):
    """Keeps what the check of the data found in the columns `image` and `label`."""
    found = {(_size, "image"): sizes, (_values, "label"): values, (_range, "image"): ranges}
    _FOUND[dataset] = {key: tuple(rows) for key, rows in found.items()}


def find_image_range(sets: Iterable[datasets.Dataset], image_column: str = "image") -> list[int] | None:
    """
    The values of 16-bit images that become black and white, for `config.image_range`: one range for all sets that a
    training reads ([`common_range`]). A range narrower than 16 bits is logged.
    """
    found = [one for dataset in sets for one in image_ranges(dataset, image_column) if one is not None]
    image_range = common_range(found)
    if image_range is not None:
        logger.info(
            "%d images have 16 bits: in all of this data set, %d becomes black and %d white (image_range in the "
            "model's configuration).",
            *(len(found), *image_range),
        )
    return image_range


def value_range(values: np.ndarray) -> tuple[int, int]:
    """The smallest and largest of an image's [`deep_values`], without one value in 1000 at either end."""
    values = values.ravel()
    rest = len(values) // OUTLIERS
    ends = [rest, len(values) - 1 - rest]
    low, high = np.partition(values, ends)[ends]
    return int(low), int(high)


def common_range(ranges: Sequence[tuple[int, int]]) -> list[int] | None:
    """
    The range by which the 16-bit images of a data set are scaled, from the [`value_range`] of each: the range that
    they span together, or `None` (0 to 65535) if that is half of all 16-bit values or more, or a single value.
    """
    low, high = min((low for low, _ in ranges), default=0), max((high for _, high in ranges), default=0)
    return [low, high] if 0 < high - low < FULL_RANGE[1] // 2 else None


def warn_of_range(images: Iterable[tuple[int, int] | None], image_range: Sequence[int] | None):
    """
    Logs once if a model sees little of 16-bit images, which then are nearly black or mostly white to it.

    Args:
        images (`Iterable[tuple[int, int] | None]`): of [`image_ranges`].
        image_range (`Sequence[int]`, *optional*): of the model's configuration.
    """
    deep = [one for one in images if one is not None]
    low, high = min((low for low, _ in deep), default=0), max((high for _, high in deep), default=0)
    black, white = image_range or FULL_RANGE
    seen = min(high, white) - max(low, black)
    # One image may well use little of the range that a model has from many.
    if low < high and 2 * seen < (high - low if image_range else white - black):
        say_once(
            LITTLE_SEEN,
            f"The values of 16-bit images go from {low} to {high}, but to the model {black} is black and {white} "
            f"white, so that it sees little of them: set image_range in its config.json, such as [{low}, {high}].",
        )


def image_sizes(dataset: datasets.Dataset, image_column: str = "image") -> tuple[tuple[int, int] | None, ...]:
    """(width, height) of each row's upright image, from its header; None if it is unreadable or not on this disk."""
    return _in_rows(dataset, image_column, _size)


def image_ranges(dataset: datasets.Dataset, image_column: str = "image") -> tuple[tuple[int, int] | None, ...]:
    """The [`value_range`] of each row's image; None for one of 8 bits, or one that cannot be read."""
    return _in_rows(dataset, image_column, _range)


def mask_values(dataset: datasets.Dataset, label_column: str = "label") -> tuple[frozenset[int] | None, ...]:
    """The values of each row's mask as stored; empty without a mask, None where it cannot be read."""
    return _in_rows(dataset, label_column, _values)


def classes_of(dataset: datasets.Dataset, convention: MaskConvention, label_column: str = "label") -> set[int]:
    """The class indices that occur in the masks; `convention` applies if the data set has none of its own."""
    values = (one for one in mask_values(dataset, label_column) if one is not None)
    stored = np.array(sorted(set().union(*values)), dtype=np.int64)
    convention = convention_of(dataset) or convention
    return set(convention.map(stored).tolist()) - {convention.ignore_index}


def convention_of(dataset: datasets.Dataset) -> MaskConvention | None:
    """The convention by which the data set itself maps its masks when rows are read; None if it does not."""
    transform = dataset.format["format_kwargs"].get("transform")
    return transform if isinstance(transform, MaskConvention) else None


def stored_values(array: np.ndarray) -> np.ndarray:
    """int64: the values that occur, ascending."""
    if array.dtype == np.uint8:  # counting is several times faster than sorting
        return np.flatnonzero(np.bincount(array.ravel()))
    return np.unique(array).astype(np.int64)


def file_of(dataset: datasets.Dataset, row: int, column: str) -> str:
    """What to call a row in an error: the path of its file, else its `id`, else its number."""
    try:
        stored = undecoded(dataset, column)[row][column] or {}
    except ValueError:  # the user's own transform makes the column
        stored = {}
    has_name = "id" in dataset.column_names
    return stored.get("path") or (row_name(dataset, row, None) if has_name else f"row {row}")


def require_known_values(sets: Mapping[str, datasets.Dataset], config, label_column: str = "label"):
    """
    Checks masks, by the names of their sets, against the convention of the model that is trained or scored on them. A
    set that maps its masks by a convention of its own may hold other values.

    Raises:
        ValueError: if 255 may be a class, see [`describe_binary_masks`], or a value is not among the mask values.
    """
    convention = MaskConvention.of(config)
    sentence = describe_binary_masks(sets, config.num_labels, convention, label_column)
    if sentence:
        raise ValueError(sentence)
    if convention.mask_values is None:
        return
    for dataset in (dataset for dataset in sets.values() if convention_of(dataset) is None):
        for row, values in enumerate(mask_values(dataset, label_column)):
            try:
                convention.map(np.array(sorted(values or ()), dtype=np.int64))
            except ValueError as error:
                problem = str(error).replace("the mask values", "the model's mask values", 1)
                raise ValueError(f"{file_of(dataset, row, label_column)}: {problem}") from error


def describe_binary_masks(
    sets: Mapping[str, datasets.Dataset],
    num_labels: int,
    convention: MaskConvention,
    label_column: str = "label",
) -> str | None:
    """
    The sentence about masks in which 255 may be a class instead of ignored pixels; None if there are none. The
    convention is that of the masks, unless a set maps them by its own.

    Such a mask holds only 0 and 255. A binary mask looks like this, and so does a mask of a set with more classes
    whose image shows only background and borders: in the second case, other masks of the same set show other classes.
    """
    values = {name: [one for one in mask_values(rows, label_column) if one] for name, rows in sets.items()}
    others = sorted(set().union(*(one for rows in values.values() for one in rows)) - {0, 255})
    for name, dataset in sets.items():
        shown = set().union(*values[name])
        known = (convention_of(dataset) or convention).says_what_255_is
        if known or 255 not in shown or shown == {255} or (num_labels > 2 and shown - {0, 255}):
            continue
        rows = enumerate(mask_values(dataset, label_column))
        suspects = [row for row, one in rows if one and 255 in one and one <= {0, 255}]
        if suspects:
            count = f"{len(suspects)} of {len(values[name])}"
            first = file_of(dataset, suspects[0], label_column)
            return binary_sentence(f"{count} {name} masks (first {first}) hold", others)
    return None


# ---- Reading ----


def _reader(dataset: datasets.Dataset, column: str) -> Callable[[int], object]:
    """A function that gives what a row stores, or what the user's own transform makes of it."""
    own = dataset.format["type"] is not None and convention_of(dataset) is None
    if own:
        return lambda row: dataset[row].get(column)
    if not holds_pictures(dataset, column):
        return lambda row: None
    rows = undecoded(dataset, column)
    return lambda row: rows[row][column]


def _in_rows(dataset: datasets.Dataset, column: str, find: Callable) -> tuple:
    """What `find` gives for the image or mask of each row, and None for an unreadable one; each file is read once."""
    known = _FOUND.setdefault(dataset, {})
    if (find, column) in known:
        return known[find, column]
    read, tiff_page = _reader(dataset, column), page_of(dataset, column)

    def look(row: int):
        try:
            return find(read(row), tiff_page)
        # Broken files make Pillow raise nearly anything; the error is reported when the row is read for use.
        except Exception:
            return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without holding the interpreter lock
        known[find, column] = tuple(pool.map(look, range(len(dataset))))
    return known[find, column]


def _size(image, tiff_page: int | None) -> tuple[int, int] | None:
    if isinstance(image, dict):
        with open_stored(image, tiff_page) as opened:
            return _upright_size(opened)
    return _upright_size(image) if isinstance(image, PIL.Image.Image) else None


def _upright_size(image: PIL.Image.Image) -> tuple[int, int]:
    is_turned = PIL.Image.Image.getexif(image).get(ORIENTATION) in (5, 6, 7, 8)  # that of PNG files would decode them
    if image.format == "TIFF":  # newer versions of Pillow give the upright size
        is_turned = is_turned and image.width == image.tag_v2.get(WIDTH)
    return image.size[::-1] if is_turned else image.size


def _range(image, tiff_page: int | None) -> tuple[int, int] | None:
    """[`value_range`] of an image; None for one of 8 bits, which is not decoded."""
    if isinstance(image, dict):
        with open_stored(image, tiff_page) as opened:
            if not opened.mode.startswith("I") and not any("16" in str(tile.args) for tile in opened.tile):
                return None
            image = load_image(opened, tiff_page=tiff_page)
    values = None if image is None else deep_values(image)
    return None if values is None else value_range(values)


def _values(mask, tiff_page: None) -> frozenset[int] | None:
    decoded = Mask().decode_example(mask) if isinstance(mask, dict) else mask
    return frozenset(() if decoded is None else stored_values(mask_to_array(decoded)).tolist())

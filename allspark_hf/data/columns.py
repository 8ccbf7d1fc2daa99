"""Columns of images and masks whose rows are decoded by this package, whoever made the data set."""

import os
from dataclasses import dataclass

import datasets
import PIL.Image

from .images import decode, require_exact_values


@dataclass
class Picture(datasets.Image):
    """
    A column of images for [`to_rgb`]: like `datasets.Image` without its `mode`, but [`load_image`] decodes the files.
    `datasets` itself decodes a file on a network.

    Args:
        tiff_page (`int`, *optional*): the page of TIFF files, see [`Reading`].
    """

    tiff_page: int | None = None

    is_mask = False

    def decode_example(self, value: dict, token_per_repo_id: dict | None = None) -> PIL.Image.Image:
        """
        Decodes a row.

        Raises:
            ImageError: if the file cannot be used as it is, see [`decode`].
        """
        if not isinstance(value, dict) or (value["bytes"] is None and not os.path.isfile(value["path"] or "")):
            image = datasets.Image().decode_example(value, token_per_repo_id)
            if self.is_mask:
                require_exact_values(image)
            return image
        return decode(value, self.is_mask, self.tiff_page)


class Mask(Picture):
    """A column of masks that keep their stored values, even if the `datasets.Image` before it had a `mode`."""

    is_mask = True


def page_of(dataset: datasets.Dataset, image_column: str = "image") -> int | None:
    """The page of TIFF files that a [`Picture`] column reads; None if the column names none."""
    return getattr(dataset.features.get(image_column), "tiff_page", None)


def holds_pictures(dataset: datasets.Dataset, column: str) -> bool:
    """Whether a column is there and holds images or masks, as far as the user's own transform lets that be known."""
    feature = dataset.features.get(column)
    return isinstance(feature, datasets.Image) or (feature is not None and dataset.format["type"] == "custom")


def exact_columns(dataset, image_column: str = "image", label_column: str = "label", tiff_page: int | None = None):
    """
    The same data set with columns of [`Picture`] and [`Mask`], and without a format, such as that of
    `with_format("torch")`. A column without `datasets.Image` (or no such column), one that the data set's own
    transform decodes, and an object that is no `datasets.Dataset` stay as they are. By default, the page of TIFF
    images is that of the column, if any.
    """
    if not isinstance(dataset, datasets.Dataset):
        return dataset
    tiff_page = page_of(dataset, image_column) if tiff_page is None else tiff_page
    if dataset.format["type"] not in (None, "custom"):
        dataset = dataset.with_format(None)
    for name, exact in ((image_column, Picture(tiff_page=tiff_page)), (label_column, Mask())):
        feature = dataset.features.get(name)
        decodes = getattr(feature, "decode", False) or dataset.format["type"] != "custom"
        is_exact = isinstance(feature, type(exact)) and feature.tiff_page == exact.tiff_page
        if isinstance(feature, datasets.Image) and not is_exact and decodes:
            dataset = dataset.cast_column(name, exact)
    return dataset

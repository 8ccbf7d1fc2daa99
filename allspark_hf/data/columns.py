"""Columns of images and masks whose rows are decoded by this package, whoever made the data set."""

import os

import datasets
import PIL.Image

from .images import decode, require_exact_values


class Picture(datasets.Image):
    """
    A column of images for [`to_rgb`]: `datasets.Image`, but for all that [`load_image`] says of it, and without its
    `mode`. A file that lies on a network and was not fetched is decoded by `datasets` itself.
    """

    is_mask = False

    def decode_example(self, value: dict, token_per_repo_id: dict | None = None) -> PIL.Image.Image:
        """
        Decodes a row.

        Raises:
            ImageError: if it cannot be used as it is, see [`decode`].
        """
        if not isinstance(value, dict) or (value["bytes"] is None and not os.path.isfile(value["path"] or "")):
            image = datasets.Image().decode_example(value, token_per_repo_id)
            if self.is_mask:
                require_exact_values(image)
            return image
        return decode(value, self.is_mask)


class Mask(Picture):
    """A column of masks, whose values are those that were stored, also where `datasets.Image` has a `mode`."""

    is_mask = True


def exact_columns(dataset, image_column: str = "image", label_column: str = "label"):
    """
    The same data set, whose images and masks are decoded by [`Picture`] and [`Mask`]. What is no `datasets.Dataset`,
    what holds no `datasets.Image`, and what a transform of the data set's own decodes, stays as it is.

    Args:
        dataset (`datasets.Dataset`): it is not changed.
        image_column (`str`): name of the image column.
        label_column (`str`): name of the mask column, which need not be there.
    """
    if not isinstance(dataset, datasets.Dataset):
        return dataset
    for name, kind in ((image_column, Picture), (label_column, Mask)):
        feature = dataset.features.get(name)
        decodes = getattr(feature, "decode", False) or dataset.format["type"] != "custom"
        if isinstance(feature, datasets.Image) and not isinstance(feature, kind) and decodes:
            dataset = dataset.cast_column(name, kind())
    return dataset


__all__ = ["Mask", "Picture", "exact_columns"]

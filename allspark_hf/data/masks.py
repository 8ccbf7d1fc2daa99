"""Masks on their way into a loss or a metric."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .images import check_mask_values, map_mask_values, mask_to_array


@dataclass(frozen=True)
class MaskValueTransform:
    """
    Maps the values of the masks when rows are read; for `Dataset.with_transform`. Other columns stay as they are.

    Args:
        mask_values (`tuple[int]`, *optional*): the stored value of class 0, of class 1 and so on.
        ignore_index (`int`, *optional*, defaults to 255): the value of ignored pixels.
        ignored_mask_values (`tuple[int]`, *optional*): further stored values that do not count.

    Raises:
        ValueError: if the values cannot be used, see [`check_mask_values`].
    """

    mask_values: tuple[int, ...] | None
    ignore_index: int = 255
    ignored_mask_values: tuple[int, ...] = ()

    def __post_init__(self):
        check_mask_values(self.mask_values, self.ignore_index, self.ignored_mask_values)

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """
        Maps the masks of some rows.

        Args:
            batch (`dict[str, list]`): columns of rows; `label`, where present, holds masks or `None`.

        Returns:
            `dict[str, list]`: the same columns; `label` holds gray masks of mode L with the class indices (mode I
            where an index or the ignore index is above 255).
        """
        if "label" not in batch:
            return batch
        masks = [None if mask is None else Image.fromarray(self.map(mask_to_array(mask))) for mask in batch["label"]]
        return {**batch, "label": masks}

    @property
    def maps(self) -> bool:
        """Whether any value is changed."""
        return self.mask_values is not None or bool(self.ignored_mask_values)

    def map(self, array: np.ndarray) -> np.ndarray:
        """The class indices of a mask, by [`map_mask_values`]."""
        return map_mask_values(array, self.mask_values, self.ignore_index, self.ignored_mask_values)


def read_label(
    mask: Image.Image, image_size: tuple[int, int], num_labels: int, ignore_index: int, where: str
) -> np.ndarray:
    """
    A decoded mask as class indices, checked against its image and the number of classes.

    Args:
        mask (`PIL.Image.Image`): indexed or gray.
        image_size (`tuple[int, int]`): (width, height) of its image.
        num_labels (`int`): classes.
        ignore_index (`int`): label of pixels that do not count.
        where (`str`): what to call the mask in an error.

    Returns:
        `np.ndarray`: uint8 (height, width), in [0, num_labels) or `ignore_index`.

    Raises:
        ValueError: if the sizes differ, or a value is no class or does not fit into 8 bits.
    """
    array = mask_to_array(mask)
    height, width = array.shape
    if (width, height) != image_size:
        raise ValueError(
            f"The mask of {where} is {width}x{height} pixels, its image {image_size[0]}x{image_size[1]}: "
            "give every image a mask of its own size."
        )
    wrong = (array != ignore_index) & ((array < 0) | (array >= num_labels))
    if wrong.any():
        raise ValueError(
            f"The mask of {where} has the value {int(array[wrong][0])}, but the model has classes 0 to "
            f"{num_labels - 1} and ignores {ignore_index}: correct the mask, or list the stored values (mask_values)."
        )
    large = (array < 0) | (array > 255)
    if large.any():
        raise ValueError(
            f"The mask of {where} has the value {int(array[large][0])}, but labels have 8 bits: number classes and "
            "ignored pixels from 0 to 255."
        )
    return array.astype(np.uint8)


__all__ = ["MaskValueTransform", "read_label"]

"""Masks on their way into a loss or a metric."""

import numpy as np
from PIL import Image

from .images import mask_to_array


def read_label(
    mask: Image.Image, image_size: tuple[int, int], num_labels: int, ignore_index: int, where: str
) -> np.ndarray:
    """
    A decoded mask as class indices, checked against its image and the number of classes.

    Args:
        mask (`PIL.Image.Image`): indexed or grey.
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


__all__ = ["read_label"]

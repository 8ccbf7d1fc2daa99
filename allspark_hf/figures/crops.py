"""The pictures that the figures of channels are made from: center crops of the training crop's size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from PIL import Image, ImageOps

from ..data.columns import exact_columns
from ..data.geometry import PADDING_COLOR
from ..data.masks import MaskConvention, read_label
from ..data.pixels import Reading, to_rgb


@dataclass
class CenterCrop:
    """
    The middle of an image, in the size of the training crop, which fixes the token grid of the semantic memory.

    Args:
        picture (`np.ndarray`): uint8 (height, width, 3), red, green and blue.
        pixel_values (`torch.Tensor`): float32 (1, 3, height, width), normalized, what the model gets.
        label (`np.ndarray`, *optional*): uint8 (height, width), class or the ignore index; None without a mask.
    """

    picture: np.ndarray
    pixel_values: torch.Tensor
    label: np.ndarray | None


def crop_row(images: Sequence[dict], row: int, image_processor, config) -> CenterCrop:
    """
    Cuts the middle out of an image that the image processor has scaled as for inference.

    Where the scaled image is smaller than the training crop, it is padded at the bottom and the right, black and
    ignored, as in training.

    Args:
        images (`Sequence[dict]`):
            rows with `image`, of any mode that [`to_rgb`] takes, and perhaps `label`, a mask of the image's size.
        row (`int`): which of them.
        image_processor ([`BaseImageProcessor`]): of inference, with `image_mean` and `image_std`.
        config ([`AllSparkConfig`]): of the model; crop, number of classes and ignore index count.

    Raises:
        ValueError: if [`to_rgb`] refuses the image or [`read_label`] the mask.
    """
    example = exact_columns(images, tiff_page=config.tiff_page)[row]
    mask, masks = example.get("label"), MaskConvention.of(config)
    picture = to_rgb(example["image"], Reading.of(config))
    label = Image.new("L", picture.size, masks.ignore_index)
    if mask is not None:
        label = Image.fromarray(read_label(mask, picture.size, config.num_labels, masks, "an image to draw"))
    (scaled,) = image_processor(images=picture, do_rescale=False, do_normalize=False, return_tensors="np").pixel_values
    picture = Image.fromarray(scaled.transpose(1, 2, 0))
    label = label.resize(picture.size, Image.Resampling.NEAREST)

    height, width = config.crop_height_width
    left, top = max(picture.width - width, 0) // 2, max(picture.height - height, 0) // 2
    padding = (0, 0, max(width - picture.width, 0), max(height - picture.height, 0))  # left, top, right, bottom
    box = (left, top, left + width, top + height)
    picture = ImageOps.expand(picture, padding, fill=PADDING_COLOR).crop(box)
    label = ImageOps.expand(label, padding, fill=masks.ignore_index).crop(box)
    pixel_values = image_processor(images=picture, do_resize=False, return_tensors="pt").pixel_values
    return CenterCrop(np.array(picture), pixel_values, None if mask is None else np.array(label))


def row_ids(images: Sequence[dict]) -> list[str]:
    """The `id` of every row of a dataset or list, or its number where there is none."""
    if isinstance(images, Dataset):  # without decoding the images
        ids = images["id"] if "id" in images.column_names else range(len(images))
    else:
        ids = [example.get("id", row) for row, example in enumerate(images)]
    return [str(name) for name in ids]


def class_names(config) -> np.ndarray:
    """str (num_labels,), in the order of the class indices."""
    return np.array([config.id2label[index] for index in range(config.num_labels)])


def require_same_classes(models: Mapping[str, tuple]):
    """Raises ValueError unless all models, name -> (model, image processor), have the same classes in one order."""
    first, *others = [class_names(model.config) for model, _ in models.values()]
    if not all(np.array_equal(first, other) for other in others):
        raise ValueError("The models have different classes, so that they do not compare: draw them apart.")

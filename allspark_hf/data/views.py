"""Views: the versions of one crop that a method trains on, and the CutMix boxes of strong ones."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch


CUTMIX_PROBABILITY = 0.5
CUTMIX_AREA = (0.02, 0.4)  # of the crop
CUTMIX_RATIO = (0.3, 1 / 0.3)  # height over width
CHANNEL_BITS = 4096  # more than an encoder has channels


@dataclass(frozen=True)
class View:
    """
    One version of a crop. All views of an image show the same crop.

    Args:
        name (`str`): suffix of the names of the view's batch entries; those of the first view have none.
        strong (`bool`): whether the colors are jittered, grayed and blurred, each with its probability.
        cutmix (`bool`): whether a box is drawn that the view shares with a partner, see [`draw_cutmix_box`].
        channel_bits (`bool`): whether bits are drawn for the dropout of feature channels, `CHANNEL_BITS` an image.
        draw (`Callable`, *optional*): draws what the method needs for the view. The arguments are the crop (height,
            width), the number of classes and a `numpy.random.Generator`; the result has an array for each name, of one
            dtype and shape for all images.
        has_pixels (`bool`): whether the view has pixel values; without, a method makes them from those of the first
            view.
    """

    name: str
    strong: bool = False
    cutmix: bool = False
    channel_bits: bool = False
    draw: Callable[[tuple[int, int], int, np.random.Generator], dict[str, np.ndarray]] | None = None
    has_pixels: bool = True


WEAK = View("weak")
STRONG = View("strong", strong=True)
STRONG_1 = View("strong_1", strong=True, cutmix=True)
STRONG_2 = View("strong_2", strong=True, cutmix=True)


def draw_cutmix_box(crop: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """
    Draws a box (top, left, bottom, right) in a crop (height, width) for CutMix (ICCV 2019), with the ranges of
    UniMatch V2; with a probability of one half, the box is empty, (0, 0, 0, 0).
    """
    if rng.random() > CUTMIX_PROBABILITY:
        return 0, 0, 0, 0
    area = rng.uniform(*CUTMIX_AREA) * crop[0] * crop[1]
    while True:
        ratio = rng.uniform(*CUTMIX_RATIO)
        height, width = int(math.sqrt(area * ratio)), int(math.sqrt(area / ratio))
        left, top = int(rng.integers(crop[1])), int(rng.integers(crop[0]))
        if top + height <= crop[0] and left + width <= crop[1]:
            return top, left, top + height, left + width


def inside_boxes(boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """bool (batch, height, width), True inside: from int64 (batch, 4) of [`draw_cutmix_box`] and (height, width)."""
    rows, columns = (torch.arange(side, device=boxes.device) for side in size)
    top, left, bottom, right = boxes[:, :, None, None].unbind(dim=1)  # each (batch, 1, 1)
    return (rows[:, None] >= top) & (rows[:, None] < bottom) & (columns >= left) & (columns < right)

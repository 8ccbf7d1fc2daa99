"""
The augmentation of Alonso et al. (ICCV 2021) on the device, after ClassMix: scale, flip, color jitter, blur. A worker
draws the numbers of each image (published: one flip, scale and set of operations for a whole batch).
"""

import numpy as np
import torch
from torch.nn import functional as F

from .class_mix import draw_class_order
from .jitter import draw_jitter, jitter


SCALES = (0.75, 1.75)
BLUR_SIGMA = 1.5  # along the rows only: of the two published sigmas, 0.1 is that of the columns
BLUR_RADIUS = 11


def draw_weak(crop: tuple[int, int], num_labels: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draws for a labeled image, whose crop was scaled and flipped: [`draw_class_order`] and [`draw_jitter`]."""
    return draw_class_order(num_labels, 0.2, rng) | draw_jitter(0.2, 0.125, rng)


def draw_strong(crop: tuple[int, int], num_labels: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """
    Draws for an unlabeled image.

    Args:
        crop (`tuple[int, int]`): (height, width).
        num_labels (`int`): classes.
        rng (`numpy.random.Generator`): source of every draw.

    Returns:
        `dict[str, np.ndarray]`: `scaled_size` int64 (2,), (height, width); `corner` int64 (2,), (top, left) of the
        crop in the scaled image, negative where that is padded; `flip` and `blur`, bool (); and those of
        [`draw_class_order`] and [`draw_jitter`].
    """
    drawn = draw_class_order(num_labels, 0.75, rng) | draw_jitter(0.8, 0.25, rng)
    scales, flips, blurs = rng.random(3) < (0.8, 0.5, 0.2)
    size = (np.array(crop) * (rng.uniform(*SCALES) if scales else 1)).astype(np.int64)
    missing = crop - size
    padding = (missing + np.array([1, 0])) // 2  # the odd row on top, the odd column on the right
    corner = -padding if (missing > 0).any() else rng.integers(-missing, endpoint=True)
    return drawn | {"scaled_size": size, "corner": corner, "flip": flips, "blur": blurs}


def augment(
    drawn: dict[str, torch.Tensor],
    pixels: torch.Tensor,
    labels: torch.Tensor,
    confidence: torch.Tensor,
    ignore_index: int,
) -> list[torch.Tensor]:
    """
    Scale, flip, jitter and blur.

    Args:
        drawn (`dict[str, torch.Tensor]`): numbers of [`draw_strong`], those of each image stacked, on the device.
        pixels (`torch.Tensor`): float (batch, 3, height, width), RGB in [0, 1].
        labels (`torch.Tensor`): int64 (batch, height, width), class or the ignore index.
        confidence (`torch.Tensor`): float (batch, height, width).
        ignore_index (`int`): label of padding.

    Returns:
        `list[torch.Tensor]`: pixels, labels and confidence; padding is black, ignored, and has confidence 0.
    """
    pixels, labels, confidence = scale_crop(
        drawn["scaled_size"], drawn["corner"], pixels, labels, confidence, ignore_index
    )
    flip = drawn["flip"][:, None, None]
    labels, confidence = (torch.where(flip, one.flip(-1), one) for one in (labels, confidence))
    pixels = torch.where(flip[:, None], pixels.flip(-1), pixels)
    pixels = jitter(pixels, drawn["jitter_order"], drawn["jitter_amounts"])
    return [torch.where(drawn["blur"][:, None, None, None], blur(pixels), pixels), labels, confidence]


def scale_crop(size, corner, pixels, labels, confidence, ignore_index: int) -> list[torch.Tensor]:
    """
    Scales each image and cuts a crop of its old size: bilinear with aligned corners, labels by the nearest neighbor.
    Arguments and results are those of [`augment`].
    """
    nearest, grid, inside = [], [], True
    for axis, side in enumerate(labels.shape[1:]):
        shape = (-1, side, 1) if axis == 0 else (-1, 1, side)
        place = torch.arange(side, device=labels.device) + corner[:, axis, None]  # in the scaled image
        new = size[:, axis, None]
        inside = inside & ((place >= 0) & (place < new)).view(shape)
        nearest.append((place * side // new).clamp(0, side - 1).view(shape))
        grid.append((2 * place.to(pixels.dtype) / (new - 1).clamp(min=1) - 1).view(shape).expand_as(labels))
    index = (nearest[0] * labels.shape[2] + nearest[1]).flatten(1)
    labels = labels.flatten(1).gather(1, index).view_as(labels).where(inside, ignore_index)
    maps = torch.cat([pixels, confidence[:, None]], dim=1)
    maps = F.grid_sample(maps, torch.stack(grid[::-1], dim=3), padding_mode="border", align_corners=True)
    maps = maps * inside[:, None]
    return [maps[:, :3], labels, maps[:, 3]]


def blur(pixels: torch.Tensor) -> torch.Tensor:
    """Gaussian blur of float (batch, 3, height, width) along the rows, mirrored at the borders."""
    radius = min(BLUR_RADIUS, pixels.shape[3] - 1)
    distance = torch.arange(-radius, radius + 1, device=pixels.device).to(pixels.dtype)
    weights = (-0.5 * (distance / BLUR_SIGMA) ** 2).exp()
    weights = (weights / weights.sum()).expand(3, 1, 1, -1)
    return F.conv2d(F.pad(pixels, (radius, radius, 0, 0), mode="reflect"), weights, groups=3)

"""Logits at the size of the image, in pieces that fit into memory."""

import torch
from torch.nn import functional as F


# Values of upsampled logits held at a time, or those of one image if it has more: 16 MiB in float32.
VALUES_AT_A_TIME = 2**22


def upsample(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear resize of float logits (batch, num_labels, height, width) to `size` (height, width)."""
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def images_at_a_time(num_labels: int, size: tuple[int, int]) -> int:
    """How many images' logits at `size` (height, width) `VALUES_AT_A_TIME` holds; at least one."""
    return max(1, VALUES_AT_A_TIME // (num_labels * size[0] * size[1]))


def cross_entropy_sum(
    logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = 255, class_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Cross-entropy summed over the pixels that are not ignored.

    Args:
        logits (`torch.Tensor`): float (batch, num_labels, height, width).
        labels (`torch.Tensor`): int64 (batch, height, width), in [0, num_labels) or `ignore_index`.
        ignore_index (`int`): label of pixels that do not count.
        class_weights (`torch.Tensor`, *optional*): float (num_labels,), factor of a pixel by its label.

    Returns:
        `torch.Tensor`: float scalar; 0 with zero gradient if every pixel is ignored.
    """
    if class_weights is not None:
        class_weights = class_weights.to(logits.dtype)
    return F.cross_entropy(logits, labels, class_weights, ignore_index=ignore_index, reduction="sum")

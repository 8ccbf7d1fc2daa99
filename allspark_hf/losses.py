"""Losses on full-resolution logits, each a sum over pixels so that the caller chooses what to divide by."""

import torch
from torch.nn import functional as F


def upsample(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear resize of float logits (batch, num_labels, height, width) to `size` (height, width)."""
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def cross_entropy_sum(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = 255) -> torch.Tensor:
    """
    Cross-entropy summed over the pixels that are not ignored.

    Args:
        logits (`torch.Tensor`): float (batch, num_labels, height, width).
        labels (`torch.Tensor`): int64 (batch, height, width), in [0, num_labels) or `ignore_index`.
        ignore_index (`int`): label of pixels that do not count.

    Returns:
        `torch.Tensor`: float scalar; 0 with zero gradient if every pixel is ignored.
    """
    return F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")


@torch.no_grad()
def ohem_labels(
    logits: torch.Tensor,
    labels: torch.Tensor,
    threshold: float = 0.7,
    min_kept: int = 200_000,
    ignore_index: int = 255,
) -> torch.Tensor:
    """
    Online hard example mining: the labels with every easy pixel set to `ignore_index`.

    A pixel is kept when the probability of its true class is at most `threshold`, or at most the `min_kept`-th
    smallest such probability of the batch. With `min_kept` 0, or more than there are valid pixels, all are kept.

    Args:
        logits (`torch.Tensor`): float (batch, num_labels, height, width).
        labels (`torch.Tensor`): int64 (batch, height, width), in [0, num_labels) or `ignore_index`.
        threshold (`float`): probability in [0, 1].
        min_kept (`int`): pixels of the batch to keep at least.
        ignore_index (`int`): label of pixels that do not count.

    Returns:
        `torch.Tensor`: int64 (batch, height, width).
    """
    valid = labels != ignore_index
    num_valid = int(valid.sum())
    if min_kept == 0 or min_kept > num_valid:
        return labels
    true_class = labels.where(valid, 0).unsqueeze(1)
    probability = logits.softmax(dim=1).gather(1, true_class).squeeze(1)
    kth_smallest = probability[valid].kthvalue(min_kept).values
    return labels.where(probability <= kth_smallest.clamp(min=threshold), ignore_index)


__all__ = ["cross_entropy_sum", "ohem_labels", "upsample"]

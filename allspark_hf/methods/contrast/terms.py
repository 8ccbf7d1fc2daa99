"""Losses of full-resolution logits with weights of pixels: by class, and by the teacher's confidence."""

import math

import torch
from torch.nn import functional as F

from ..losses import sum_by_images
from .heads import mean_over_processes


CONFIDENCE_POWER = 6
ENTROPY_WEIGHT = 0.01


def weighted_cross_entropy_sum(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ignore_index: int,
    class_weights: torch.Tensor | None,
    pixel_weights: torch.Tensor,
) -> torch.Tensor:
    """
    Sum of w_class * w_pixel * cross-entropy over the pixels that are not ignored.

    Args:
        logits (`torch.Tensor`): float (batch, num_labels, height, width).
        labels (`torch.Tensor`): int64 (batch, height, width), in [0, num_labels) or `ignore_index`.
        ignore_index (`int`): label of pixels that do not count.
        class_weights (`torch.Tensor`, *optional*): float (num_labels,); None for ones.
        pixel_weights (`torch.Tensor`): float (batch, height, width).

    Returns:
        `torch.Tensor`: float scalar.
    """
    weights = None if class_weights is None else class_weights.to(logits.dtype)
    losses = F.cross_entropy(logits, labels, weight=weights, ignore_index=ignore_index, reduction="none")
    return (losses * pixel_weights).sum()


def entropy_sum(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """
    Entropy of each prediction as a share of the largest possible one, log(num_labels), summed over the pixels whose
    label is not ignored.

    Args:
        logits (`torch.Tensor`): float (batch, num_labels, height, width).
        labels (`torch.Tensor`): int64 (batch, height, width); only which of them are ignored matters.
        ignore_index (`int`): label of pixels that do not count.

    Returns:
        `torch.Tensor`: float scalar.
    """
    probabilities = logits.softmax(dim=1)
    entropy = -(probabilities * (probabilities + 1e-30).log2()).sum(dim=1)
    return (entropy * (labels != ignore_index)).sum() / math.log2(logits.shape[1])


def confident_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    confidence: torch.Tensor,
    ignore_index: int,
    num_pixels: torch.Tensor,
    class_weights: torch.Tensor | None = None,
    weight: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    weight * L_u + 0.01 H: cross-entropy with confidence^6 as the weight of a pixel, divided by the number of all
    pixels, and the mean entropy, as a share of the largest one, of pixels that are not ignored.

    Args:
        logits (`torch.Tensor`): float (batch, num_labels, any height, any width).
        labels (`torch.Tensor`): int64 (batch, height, width), in [0, num_labels) or `ignore_index`.
        confidence (`torch.Tensor`): float (batch, height, width), in [0, 1].
        ignore_index (`int`): label of pixels that do not count.
        num_pixels (`torch.Tensor`): float scalar, what L_u is divided by.
        class_weights (`torch.Tensor`, *optional*): float (num_labels,), of L_u.
        weight (`float`, *optional*, defaults to 1): of L_u.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: float scalars: the sum, weight * L_u, and H; the last two
        take no gradient.
    """
    num_valid = mean_over_processes((labels != ignore_index).sum().to(confidence.dtype)).clamp(min=1)
    num_pixels = num_pixels.clamp(min=1)

    def terms(images, labels, confidence):
        sure = weight * confidence**CONFIDENCE_POWER
        loss_u = weighted_cross_entropy_sum(images, labels, ignore_index, class_weights, sure)
        return [loss_u, ENTROPY_WEIGHT * (num_pixels / num_valid) * entropy_sum(images, labels, ignore_index)]

    loss, sums = sum_by_images(logits, terms, labels, confidence)
    loss_u, entropy = sums / num_pixels  # here, since float16 would round the gradient of a mean to 0
    return loss / num_pixels, loss_u, entropy / ENTROPY_WEIGHT


def ramp_up(update: int, length: int) -> float:
    """exp(-5 (1 - update / length)^2), which grows from 0.007 to 1, and stays 1."""
    return math.exp(-5 * (1 - update / length) ** 2) if update < length else 1.0

"""Losses on full-resolution logits, each a sum over pixels so that the caller chooses what to divide by.

Logits at full resolution are the largest thing of a training step (COCO: 81 classes x 513 x 513, 85 MB an image in
float32, and as much again for each of softmax and gradient), so what is computed from them goes image by image.
"""

from collections.abc import Iterator

import torch
from torch.autograd.function import once_differentiable

from ..models.bottleneck_allspark import at_least_float32
from ..models.upsampling import cross_entropy_sum, images_at_a_time, upsample


def upsampled_cross_entropy_sum(
    logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = 255, class_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """
    [`cross_entropy_sum`] of the logits, resized bilinearly to the labels' size. Images go one by one (small ones a few
    at a time), and the gradient of each is computed at once: logits at full resolution never exist for the whole
    batch, and are neither kept for the backward pass nor computed again in it.

    Args:
        logits (`torch.Tensor`): float (batch, num_labels, any height, any width); differentiable once.
        labels (`torch.Tensor`): int64 (batch, height, width), in [0, num_labels) or `ignore_index`.
        ignore_index (`int`): label of pixels that do not count.
        class_weights (`torch.Tensor`, *optional*): float (num_labels,), factor of a pixel by its label.

    Returns:
        `torch.Tensor`: scalar, float32 or as precise as the logits; 0 with zero gradient if every pixel is ignored.
    """
    if torch.is_grad_enabled() and logits.requires_grad:
        return _UpsampledCrossEntropy.apply(logits, labels, ignore_index, class_weights)
    losses = _losses(at_least_float32(logits), labels, ignore_index, class_weights)
    return torch.stack([loss for _, loss in losses]).sum()


def _losses(logits, labels, *settings) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The images that are taken together, and their summed cross-entropy."""
    size = labels.shape[1:]
    number = images_at_a_time(logits.shape[1], size)
    for images, their_labels in zip(logits.split(number), labels.split(number), strict=True):
        yield images, cross_entropy_sum(upsample(images, size), their_labels, *settings)


class _UpsampledCrossEntropy(torch.autograd.Function):
    """The gradient of a sum is a stored gradient times one factor: forward computes it, and keeps no logits."""

    @staticmethod
    def forward(ctx, logits, labels, *settings):
        losses, gradients = [], []
        with torch.enable_grad():
            for images, loss in _losses(at_least_float32(logits.detach()).requires_grad_(), labels, *settings):
                gradients.append(torch.autograd.grad(loss, images)[0])  # frees the logits at full resolution
                losses.append(loss.detach())
        ctx.save_for_backward(torch.cat(gradients).to(logits.dtype))
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient_of_loss):
        (gradient,) = ctx.saved_tensors
        return (gradient * gradient_of_loss).to(gradient.dtype), None, None, None


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
    The host does not wait for the device.

    Args:
        logits (`torch.Tensor`): float (batch, num_labels, any height, any width), resized to the labels' size.
        labels (`torch.Tensor`): int64 (batch, height, width), in [0, num_labels) or `ignore_index`.
        threshold (`float`): probability in [0, 1].
        min_kept (`int`): pixels of the batch to keep at least.
        ignore_index (`int`): label of pixels that do not count.

    Returns:
        `torch.Tensor`: int64 (batch, height, width).
    """
    if min_kept == 0 or min_kept > labels.numel():
        return labels
    valid = labels != ignore_index
    probability = _true_class_probability(at_least_float32(logits), labels.where(valid, 0))
    # Ignored pixels come last in the order: with too few valid ones the limit is infinite, and all are kept.
    limit = probability.where(valid, torch.inf).flatten().kthvalue(min_kept).values.clamp(min=threshold)
    return labels.where(~(probability > limit), ignore_index)  # a NaN is kept, so that the loss shows it


def _true_class_probability(logits, labels) -> torch.Tensor:
    """float (batch, height, width), of labels that are all classes; without gradient, images as for the loss."""
    size = labels.shape[1:]
    number = images_at_a_time(logits.shape[1], size)
    of_images = [
        upsample(images, size).softmax(dim=1).gather(1, their_labels.unsqueeze(1)).squeeze(1)
        for images, their_labels in zip(logits.split(number), labels.split(number), strict=True)
    ]
    return torch.cat(of_images)

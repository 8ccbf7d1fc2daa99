"""Losses on full-resolution logits, each a sum over pixels so that the caller chooses what to divide by.

Logits at full resolution are the largest thing of a training step (COCO: 81 classes x 513 x 513, 85 MB an image in
float32, and as much again for each of softmax and gradient), so what is computed from them goes image by image.
"""

from collections.abc import Callable

import torch
from torch.autograd.function import once_differentiable

from ..models.bottleneck_allspark import at_least_float32
from ..models.upsampling import cross_entropy_sum, images_at_a_time, upsample


Terms = Callable[..., list[torch.Tensor]]


def upsampled_cross_entropy_sum(
    logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = 255, class_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """
    [`cross_entropy_sum`] of the logits, resized bilinearly to the labels' size, image by image as in
    [`sum_by_images`].

    Args:
        logits (`torch.Tensor`): float (batch, num_labels, any height, any width); differentiable once.
        labels (`torch.Tensor`): int64 (batch, height, width), in [0, num_labels) or `ignore_index`.
        ignore_index (`int`): label of pixels that do not count.
        class_weights (`torch.Tensor`, *optional*): float (num_labels,), factor of a pixel by its label.

    Returns:
        `torch.Tensor`: scalar, float32 or as precise as the logits; 0 with zero gradient if every pixel is ignored.
    """

    def terms(images, their_labels):
        return [cross_entropy_sum(images, their_labels, ignore_index, class_weights)]

    return sum_by_images(logits, terms, labels)[0]


def sum_by_images(logits: torch.Tensor, terms: Terms, *maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Sums terms of a loss over the images of a batch. Images go one by one (small ones a few at a time), and the
    gradient of each is computed at once: logits at full resolution never exist for the whole batch, and are neither
    kept for the backward pass nor computed again in it.

    Args:
        logits (`torch.Tensor`): float (batch, num_labels, any height, any width); differentiable once.
        terms (`Callable`): gives scalar tensors from some images' logits (images, num_labels, height, width) and maps.
        maps (`torch.Tensor`): what the terms need besides, (batch, height, width) each.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: the sum of all terms, float scalar; and each term, float (terms,), which
        takes no gradient.
    """
    return _SumByImages.apply(logits, terms, maps)


class _SumByImages(torch.autograd.Function):
    """The gradient of a sum is a stored gradient times one factor: forward computes it, and keeps no logits."""

    @staticmethod
    def forward(ctx, logits, terms, maps):
        size, gradients, values = maps[0].shape[1:], [], []
        number, needs_gradient = images_at_a_time(logits.shape[1], size), ctx.needs_input_grad[0]
        with torch.set_grad_enabled(needs_gradient):
            given = at_least_float32(logits.detach()).requires_grad_(needs_gradient)
            for images, *their_maps in zip(given.split(number), *(one.split(number) for one in maps), strict=True):
                of_images = torch.stack(terms(upsample(images, size), *their_maps))
                if needs_gradient:
                    gradients.append(torch.autograd.grad(of_images.sum(), images)[0])  # frees the full resolution
                values.append(of_images.detach())
        if needs_gradient:
            ctx.save_for_backward(torch.cat(gradients).to(logits.dtype))
        sums = torch.stack(values).sum(dim=0)
        ctx.mark_non_differentiable(sums)
        return sums.sum(), sums

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient_of_total, _):
        (gradient,) = ctx.saved_tensors
        return (gradient * gradient_of_total).to(gradient.dtype), None, None


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

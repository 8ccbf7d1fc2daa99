"""Losses of full-resolution logits with weights of pixels: by class, and by the teacher's confidence."""

import math
from collections.abc import Callable

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ...models.bottleneck_allspark import at_least_float32
from ...models.upsampling import images_at_a_time, upsample
from .heads import mean_over_processes


CONFIDENCE_POWER = 6
ENTROPY_WEIGHT = 0.01

Terms = Callable[..., list[torch.Tensor]]


def weighted_cross_entropy_sum(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ignore_index: int,
    class_weights: torch.Tensor | None = None,
    pixel_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Sum of w_class * w_pixel * cross-entropy over the pixels that are not ignored.

    Args:
        logits (`torch.Tensor`): float (batch, num_labels, height, width).
        labels (`torch.Tensor`): int64 (batch, height, width), in [0, num_labels) or `ignore_index`.
        ignore_index (`int`): label of pixels that do not count.
        class_weights (`torch.Tensor`, *optional*): float (num_labels,); ones if left out.
        pixel_weights (`torch.Tensor`, *optional*): float (batch, height, width); ones if left out.

    Returns:
        `torch.Tensor`: float scalar.
    """
    weights = None if class_weights is None else class_weights.to(logits.dtype)
    losses = F.cross_entropy(logits, labels, weight=weights, ignore_index=ignore_index, reduction="none")
    return losses.sum() if pixel_weights is None else (losses * pixel_weights).sum()


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


def sum_by_images(logits: torch.Tensor, terms: Terms, *maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Sums terms of a loss over the images of a batch, without ever holding full-resolution logits of all of them.

    A few images are resized at a time, and their gradient is taken at once, as in [`upsampled_cross_entropy_sum`].

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
    @staticmethod
    def forward(ctx, logits, terms, maps):
        size, gradients, values = maps[0].shape[1:], [], []
        number = images_at_a_time(logits.shape[1], size)
        with torch.enable_grad():
            given = at_least_float32(logits.detach()).requires_grad_()
            for images, *their_maps in zip(given.split(number), *(one.split(number) for one in maps), strict=True):
                of_images = torch.stack(terms(upsample(images, size), *their_maps))
                gradients.append(torch.autograd.grad(of_images.sum(), images)[0])  # frees the full resolution
                values.append(of_images.detach())
        ctx.save_for_backward(torch.cat(gradients).to(logits.dtype))
        sums = torch.stack(values).sum(dim=0)
        ctx.mark_non_differentiable(sums)
        return sums.sum(), sums

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient_of_total, _):
        (gradient,) = ctx.saved_tensors
        return (gradient * gradient_of_total).to(gradient.dtype), None, None


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

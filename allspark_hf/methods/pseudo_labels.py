"""The pseudo-label pass: what the model itself says of unlabeled images, before it trains on them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F

from ..models.bottleneck_allspark import at_least_float32
from ..models.modeling_allspark import FeatureMaps
from ..models.upsampling import images_at_a_time, upsample


CONFIDENCE_STEP = 4  # every fourth row and column is enough for a mean


@dataclass
class PseudoLabels:
    """
    Result of the pseudo-label pass. None of it takes part in a gradient.

    Args:
        labels (`torch.Tensor`): int64 (unlabeled, height, width), the most probable class.
        confidence (`torch.Tensor`):
            float (unlabeled, height / 4, width / 4), sides rounded up: probability in [0, 1] of that class, at every
            fourth row and column.
        logits (`torch.Tensor`, *optional*):
            float (unlabeled, num_labels, height, width) at the size of the encoder's last stage, for the model's
            `unlabeled_logits`; None for a model that does not group channels.
        confident (`torch.Tensor`, *optional*):
            bool (unlabeled, height, width), whether the probability [`reaches`] a threshold; None without one.
        features (`torch.Tensor`, *optional*):
            float (unlabeled, channels, height, width), the encoder's last feature map, if asked for.
    """

    labels: torch.Tensor
    confidence: torch.Tensor
    logits: torch.Tensor | None
    confident: torch.Tensor | None = None
    features: torch.Tensor | None = None


def reaches(
    confidence: torch.Tensor, labels: torch.Tensor, threshold: float | torch.Tensor | None
) -> torch.Tensor | None:
    """
    Where a pseudo-label is confident enough.

    Args:
        confidence (`torch.Tensor`): float (images, height, width), probability in [0, 1] of the label.
        labels (`torch.Tensor`): int64 (images, height, width), in [0, num_labels).
        threshold (`float` or `torch.Tensor`, *optional*):
            least probability, of all classes, or float (num_labels,) of each.

    Returns:
        `torch.Tensor`, *optional*: bool (images, height, width); None without a threshold.
    """
    if threshold is None:
        return None
    return confidence >= (threshold[labels] if isinstance(threshold, torch.Tensor) else threshold)


def pseudo_label_pass(
    model: nn.Module,
    pixel_values: torch.Tensor,
    threshold: float | torch.Tensor | None = None,
    keep_features: bool = False,
) -> PseudoLabels:
    """
    Predicts unlabeled images in eval mode, without gradient, and with the labeled branch alone, as in inference.

    Labels and the token grid are computed from the logits at full resolution, as in the authors' code, of a few images
    at a time: see [`images_at_a_time`].

    Args:
        model (`nn.Module`): the model as wrapped for training (DDP, FSDP, compiled, ...), or a teacher.
        pixel_values (`torch.Tensor`): float (unlabeled, 3, height, width), normalized.
        threshold (`float` or `torch.Tensor`, *optional*): probability of a confident pixel, see [`reaches`].
        keep_features (`bool`, *optional*, defaults to `False`): whether to return the `features`.
    """
    maps = []

    def keep(features: FeatureMaps) -> FeatureMaps:
        maps.append(features[-1])
        return features

    module = _beneath_wrappers(model)
    # FSDP uses the gathered weights again in training, which inference tensors do not allow.
    no_gradient = torch.no_grad() if isinstance(module, FSDPModule) else torch.inference_mode()
    with _evaluating(module), no_gradient:
        seen = {"perturb": keep} if keep_features else {}
        logits = at_least_float32(module(pixel_values=pixel_values, **seen).logits)
        number = images_at_a_time(logits.shape[1], pixel_values.shape[2:])
        images = logits.split(number)
        parts = [_read(some, pixel_values.shape[2:], module.config, threshold) for some in images]
    # Joined outside inference mode: the copies are ordinary tensors, which a backward pass may keep.
    joined = (None if some[0] is None else torch.cat(some) for some in zip(*parts, strict=True))
    return PseudoLabels(*joined, features=maps[0].clone() if maps else None)


def _read(logits, size, config, threshold) -> tuple[torch.Tensor | None, ...]:
    """The fields of [`PseudoLabels`], from float (images, num_labels, any height, any width)."""
    full = upsample(logits, size)
    every = full[:, :, ::CONFIDENCE_STEP, ::CONFIDENCE_STEP]
    if threshold is None:
        return full.argmax(dim=1), every.softmax(dim=1).amax(dim=1), _on_token_grid(full, config), None
    confidence, labels = full.softmax(dim=1).max(dim=1)
    step = CONFIDENCE_STEP
    return labels, confidence[:, ::step, ::step], _on_token_grid(full, config), reaches(confidence, labels, threshold)


def _on_token_grid(full: torch.Tensor, config) -> torch.Tensor | None:
    """
    float (images, num_labels, *grid), by which the model groups channels; None if it does not. The grid is computed
    here so that the model never receives the full-resolution logits.
    """
    if not (config.use_cross_attention and config.use_memory and config.use_grouping):
        return None
    grid = config.token_grid_of(*full.shape[2:])
    bottom, right = (-side % getattr(config, "padded_multiple", 1) for side in full.shape[2:])
    if bottom or right:  # the tokens reach over what the model pads
        full = F.pad(full, (0, right, 0, bottom), mode="replicate")
    if config.grouping_source == "logits":
        return F.interpolate(full, size=grid, mode="bilinear", align_corners=False)
    # The model takes a softmax of what it gets; the softmax of logarithms of probabilities is the probabilities.
    probabilities = F.interpolate(full.softmax(dim=1), size=grid, mode="bilinear", align_corners=False)
    return probabilities.clamp(min=torch.finfo(full.dtype).tiny).log()


def _beneath_wrappers(model: nn.Module) -> nn.Module:
    """Beneath DDP, DeepSpeed or torch.compile: this pass takes no part in gradient synchronization."""
    module = getattr(model, "_orig_mod", model)
    module = getattr(module, "module", module)
    return getattr(module, "_orig_mod", module)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, the mode as before outside."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)

"""The step of UniMatch V2 as a plain script has it: what ours is measured against.

Whole batches of probabilities and logits at full resolution, a cross-entropy of each pixel times a mask, CutMix in a
Python loop over images: the same loss as [`allspark_hf.methods.unimatch_v2.UniMatchV2`].
"""

from functools import partial

import torch
from torch.nn import functional as F

from ..methods import StepLosses
from ..methods.strong_views import complementary_dropout, unpack_channel_bits


def plain_unimatch_step(method, model, batch, pixels, epoch) -> StepLosses:
    """As [`Method.step`]; of one batch in one process, so that the pixel counts are not read."""
    ignored = ~batch["unlabeled_pixel_mask"]
    full_size = partial(F.interpolate, size=ignored.shape[1:], mode="bilinear")
    with torch.no_grad():
        probabilities = full_size(method.teacher(pixel_values=batch["unlabeled_pixel_values"]).logits).softmax(dim=1)
        confidence, labels = probabilities.max(dim=1)
    mixed = [_mix(batch, view, labels, confidence, ignored) for view in ("strong_1", "strong_2")]
    drawn, kept = unpack_channel_bits(batch["unlabeled_channel_bits_strong_2"])

    logits_x = full_size(model(pixel_values=batch["pixel_values"]).logits)
    strong = torch.cat([images for images, *_ in mixed])
    dropout = partial(complementary_dropout, drawn=drawn, kept=kept)
    logits_u = full_size(model(pixel_values=strong, perturb=dropout).logits)

    loss_x = F.cross_entropy(logits_x, batch["labels"], ignore_index=method.ignore_index)
    losses = []
    for logits, (_, labels, confidence, ignored) in zip(logits_u.chunk(2), mixed, strict=True):
        loss = F.cross_entropy(logits, labels, reduction="none")
        loss = loss * ((confidence >= method.args.confidence_threshold) & ~ignored)
        losses.append(loss.sum() / (~ignored).sum())
    loss_u = (losses[0] + losses[1]) / 2
    return StepLosses((loss_x + loss_u) / 2, {"loss_x": loss_x, "loss_u": loss_u})


def _mix(batch, view: str, *maps: torch.Tensor) -> list[torch.Tensor]:
    """The view's images and the maps, each with the partner's pixels in its box."""
    maps = [batch[f"unlabeled_pixel_values_{view}"], *maps]
    mixed = [one.clone() for one in maps]
    for number, (top, left, bottom, right) in enumerate(batch[f"unlabeled_cutmix_box_{view}"].tolist()):
        for result, one in zip(mixed, maps, strict=True):
            result[number, ..., top:bottom, left:right] = one[-1 - number, ..., top:bottom, left:right]
    return mixed

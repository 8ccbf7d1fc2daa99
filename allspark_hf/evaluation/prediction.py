"""Prediction for evaluation: whole or resized images, sliding windows, center crops, several scales, mirrored."""

from itertools import groupby

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..models.upsampling import upsample
from .arguments import PredictionArguments, eval_crop


@torch.no_grad()
def predict_logits(
    model: PreTrainedModel, pixel_values: torch.Tensor, size: tuple[int, int], args: PredictionArguments
) -> torch.Tensor:
    """
    Predicts images of one size; the argmax over classes is the prediction, the softmax its probabilities.

    In one piece, at one scale and not mirrored, these are the model's own logits, resized bilinearly. Else they are
    the logarithm of probabilities: the softmax maps of every scale, and of the mirrored image, each brought to `size`,
    are averaged with equal weight. A scaled image has `round(scale * side)` pixels a side (bilinear, antialiased as
    training's own resizing is). Sums are float32 also for a half-precision model, and one map at a time is added.

    Args:
        model ([`PreTrainedModel`]): in eval mode.
        pixel_values (`torch.Tensor`): float (batch, 3, height, width), as the image processor gives them.
        size (`tuple[int, int]`): (height, width) of the result, usually that of the masks.
        args ([`PredictionArguments`]): `eval_mode` (of which `center_crop` predicts as `whole` does: see
            [`center_crop`]), `eval_crop_size`, `eval_stride`, `eval_windows_per_batch`, `eval_scales`, `eval_flip`.

    Returns:
        `torch.Tensor`: float32 (float64 of a float64 model) (batch, num_labels, *size).

    Raises:
        ValueError: if an image, at one of the scales, is too small for the encoder.
    """
    scales = args.eval_scales or [1.0]
    if args.eval_mode != "sliding_window" and scales == [1.0] and not args.eval_flip:
        return _in_one_piece(model, pixel_values, size, args)
    total = None
    for scale in scales:
        scaled = _rescale(pixel_values, scale)
        for mirrored in (False, True) if args.eval_flip else (False,):
            probabilities = _probabilities(model, scaled.flip(3) if mirrored else scaled, size, args)
            if mirrored:
                probabilities = probabilities.flip(3)
            total = probabilities if total is None else total.add_(probabilities)
            del probabilities  # or it lives on while the next map is made
    total /= len(scales) * (2 if args.eval_flip else 1)
    return total.clamp_(min=torch.finfo(total.dtype).tiny).log_()  # a probability of 0 gives a finite loss


def _in_one_piece(
    model: PreTrainedModel, pixel_values: torch.Tensor, size: tuple[int, int], args: PredictionArguments
) -> torch.Tensor:
    """Float logits (batch, num_labels, *size); corners stay corners where images are resized to whole patches."""
    if args.eval_mode != "resized":
        return upsample(_logits(model, pixel_values), size)
    multiple = getattr(model.config, "padded_multiple", 1)
    patches = [max(1, int(side / multiple + 0.5)) * multiple for side in pixel_values.shape[2:]]
    resized = F.interpolate(pixel_values, size=patches, mode="bilinear", align_corners=True)
    return F.interpolate(_logits(model, resized), size=size, mode="bilinear", align_corners=True)


def _logits(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """The model's logits in at least float32, for images large enough."""
    height, width = pixel_values.shape[2:]
    smallest = model.config.smallest_side
    if min(height, width) < smallest:
        raise ValueError(
            f"An image is {width}x{height} pixels where the model gets it, but the encoder needs {smallest} a side: "
            "leave out such images, or small eval_scales, or let the image processor resize less."
        )
    logits = model(pixel_values=pixel_values.to(model.dtype)).logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _rescale(pixel_values: torch.Tensor, scale: float) -> torch.Tensor:
    if scale == 1:
        return pixel_values
    size = [max(1, round(scale * side)) for side in pixel_values.shape[2:]]
    return F.interpolate(pixel_values, size=size, mode="bilinear", align_corners=False, antialias=True)


def _probabilities(
    model: PreTrainedModel, pixel_values: torch.Tensor, size: tuple[int, int], args: PredictionArguments
) -> torch.Tensor:
    """Class probabilities of one scale and side: float (batch, num_labels, *size)."""
    if args.eval_mode != "sliding_window":
        return _in_one_piece(model, pixel_values, size, args).softmax(dim=1)
    crop = eval_crop(args, model.config)
    total, coverage = sliding_window_sum(model, pixel_values, crop, args.eval_stride, args.eval_windows_per_batch)
    total /= coverage
    return total if total.shape[2:] == tuple(size) else upsample(total, size)


@torch.no_grad()
def sliding_window_sum(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    crop: tuple[int, int],
    stride: float = 2 / 3,
    windows_per_batch: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The softmax maps of overlapping windows, added up as in the authors' Cityscapes evaluation.

    Args:
        model ([`PreTrainedModel`]): in eval mode.
        pixel_values (`torch.Tensor`): float (batch, 3, height, width).
        crop (`tuple[int, int]`): (height, width) of a window; see [`window_spans`] for where they lie.
        stride (`float`): step between windows as a share of the crop.
        windows_per_batch (`int`): windows of one size that run together.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: summed probabilities, float32 (float64 of a float64 model) (batch,
        num_labels, height, width), and how many windows each pixel is in, the same type (height, width), at least 1.
    """
    height, width = pixel_values.shape[2:]
    smallest = model.config.smallest_side
    rows, columns = (
        window_spans(length, side, stride, smallest) for length, side in zip((height, width), crop, strict=True)
    )
    windows = [(slice(*row), slice(*column)) for row in rows for column in columns]
    windows.sort(key=_window_size)  # stable: windows of one size stay in order
    total = coverage = None
    for size, group in groupby(windows, key=_window_size):
        group = list(group)
        for start in range(0, len(group), windows_per_batch):
            together = group[start : start + windows_per_batch]
            pixels = torch.cat([pixel_values[:, :, row, column] for row, column in together])
            probabilities = upsample(_logits(model, pixels), size).softmax(dim=1)
            if total is None:
                total = probabilities.new_zeros(len(pixel_values), probabilities.shape[1], height, width)
                coverage = probabilities.new_zeros(height, width)
            for (row, column), part in zip(together, probabilities.split(len(pixel_values)), strict=True):
                total[:, :, row, column] += part
                coverage[row, column] += 1
    return total, coverage


def _window_size(window: tuple[slice, slice]) -> tuple[int, int]:
    return tuple(side.stop - side.start for side in window)


def window_spans(length: int, crop: int, stride: float = 2 / 3, smallest: int = 1) -> list[tuple[int, int]]:
    """
    Where the windows lie along one side of an image.

    They start every `int(stride * crop)` pixels from 0 as long as the start is inside, and end at the image's border
    at the latest, so that the last one may be shorter. Two exceptions to the authors' way, where it does needless
    work or fails: a side that fits into one window gets one, and a last window shorter than `smallest` is left out
    if the one before it reaches the border, else moved back to full length.

    Args:
        length (`int`): side of the image in pixels.
        crop (`int`): side of a window in pixels.
        stride (`float`): step between windows as a share of the crop.
        smallest (`int`): shortest side that the model takes.

    Returns:
        `list[tuple[int, int]]`: (start, end) of each window, end excluded; together they cover the side.
    """
    if length <= crop:
        return [(0, length)]
    step = max(1, int(stride * crop + 1e-6))  # 2/3 of 513 shall be 342 however the product is rounded
    spans = [(start, min(start + crop, length)) for start in range(0, length, step)]
    while spans[-1][1] - spans[-1][0] < min(smallest, crop):
        spans.pop()
        if spans[-1][1] < length:
            spans.append((length - crop, length))
    return spans


def center_crop(images: torch.Tensor, crop: tuple[int, int]) -> torch.Tensor:
    """
    The middle of images or label maps, rounded toward the top left; a side shorter than the crop stays whole.

    Args:
        images (`torch.Tensor`): (..., height, width).
        crop (`tuple[int, int]`): (height, width).

    Returns:
        `torch.Tensor`: a view (..., at most crop height, at most crop width).
    """
    for axis, side in zip((-2, -1), crop, strict=True):
        length = images.shape[axis]
        if length > side:
            images = images.narrow(axis, (length - side) // 2, side)
    return images

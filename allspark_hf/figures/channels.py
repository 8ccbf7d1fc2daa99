"""Figures 5 and 6: channels before and after the bottleneck, and the class that the grouping gives each of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm

from ..inference.prediction import palette_of
from ..models.bottleneck_allspark import group_channels
from ..models.modeling_allspark import SemiSupervisedSegmenter
from ..models.upsampling import upsample
from .crops import class_names, crop_row, row_ids


@dataclass
class BottleneckPass:
    """
    What one inference of some images leaves at the bottleneck.

    Args:
        before (`torch.Tensor`): float (batch, channels, height, width), the encoder's last stage, into the bottleneck.
        after (`torch.Tensor`): float, the same shape, out of the bottleneck and into the decode head.
        tokens (`torch.Tensor`):
            float (batch, height * width, channels), normalized: what is grouped and remembered in training.
        logits (`torch.Tensor`): float (batch, num_labels, image height, image width).
    """

    before: torch.Tensor
    after: torch.Tensor
    tokens: torch.Tensor
    logits: torch.Tensor


@torch.no_grad()
def bottleneck_pass(model: SemiSupervisedSegmenter, pixel_values: torch.Tensor) -> BottleneckPass:
    """
    Runs a model in eval mode and keeps what goes into and comes out of its bottleneck.

    Training groups and remembers the tokens of a pass in train mode, i.e. with dropout and stochastic depth, and of
    the weights of that step. Here all is in eval mode and of the model as it is, so that results are repeatable.

    Args:
        model ([`SemiSupervisedSegmenter`]): with a bottleneck, in eval mode.
        pixel_values (`torch.Tensor`):
            float (batch, 3, height, width), normalized; moved to the model's device and type.

    Raises:
        ValueError: if the model has no bottleneck or is in training mode.
    """
    if model.bottleneck is None:
        raise ValueError(
            "The model is a plain SegFormer (use_cross_attention=False), which has no bottleneck to draw: give a "
            "model trained with the method allspark."
        )
    if model.training:
        raise ValueError("The model is in training mode, where dropout makes channels random: call model.eval().")
    seen = {}

    def keep(name: str):
        return lambda module, inputs, output: seen.__setitem__(name, (inputs[0], output))

    hooks = [
        model.bottleneck.register_forward_hook(keep("bottleneck")),
        model.bottleneck.token_norm.register_forward_hook(keep("tokens")),
    ]
    try:
        logits = model(pixel_values=pixel_values.to(device=model.device, dtype=model.dtype)).logits
    finally:
        for hook in hooks:
            hook.remove()
    before, after = seen["bottleneck"]
    return BottleneckPass(before, after, seen["tokens"][1], upsample(logits, pixel_values.shape[2:]))


def choose_slots(model: SemiSupervisedSegmenter, seen: BottleneckPass) -> torch.Tensor:
    """
    The slot of the memory for each channel, as training chooses it: int64 (batch, channels).

    Raises:
        ValueError: if the model has no memory.
    """
    config = model.config
    if not config.use_memory:
        raise ValueError("The model has no semantic memory (use_memory=False): give a model trained with it.")
    batch, _, channels = seen.tokens.shape
    if not config.use_grouping:
        return torch.zeros(batch, channels, dtype=torch.int64, device=seen.tokens.device)
    grid = tuple(seen.before.shape[2:])
    return group_channels(seen.tokens, seen.logits, grid, config.grouping_similarity, config.grouping_source)


def bottleneck_channels(
    model: SemiSupervisedSegmenter, image_processor, images: Sequence[dict], num_shown: int = 6
) -> dict:
    """
    The encoder's last stage before and after the bottleneck, for the center crop of every image (Figure 5).

    The channels to show are those that the bottleneck changes most: by the root mean square, over the crop, of after
    minus before, each first divided by its standard deviation over all channels of the image. The bottleneck begins
    and ends with a 1x1 convolution, so channel i after it is what the decode head gets in the place of channel i.

    Args:
        model ([`SemiSupervisedSegmenter`]): with a bottleneck, in eval mode.
        image_processor ([`BaseImageProcessor`]): the model's.
        images (`Sequence[dict]`): rows with `image`, and perhaps `id`: a `datasets.Dataset` or a list.
        num_shown (`int`, *optional*, defaults to 6): channels to show per image, at most all.

    Returns:
        `dict`: `ids` str (images,), `pictures` uint8 (images, crop height, crop width, 3), `before` and `after`
        float32 (images, channels, height, width), `change` float32 (images, channels), `shown` int64 (images,
        num_shown), the channels of the largest change, largest first.

    Raises:
        ValueError: if the model has no bottleneck or is in training mode, or there is no image.
    """
    _require_rows(images, "5")
    pictures, before, after = [], [], []
    for row in range(len(images)):
        crop = crop_row(images, row, image_processor, model.config)
        seen = bottleneck_pass(model, crop.pixel_values)
        pictures.append(crop.picture)
        before.append(seen.before[0].float().cpu().numpy())
        after.append(seen.after[0].float().cpu().numpy())
    before, after = np.stack(before), np.stack(after)
    scaled = [maps / np.maximum(maps.std(axis=(1, 2, 3), keepdims=True), 1e-12) for maps in (before, after)]
    change = np.sqrt(np.square(scaled[1] - scaled[0]).mean(axis=(2, 3)))
    return {
        "ids": np.array(row_ids(images)),
        "pictures": np.stack(pictures),
        "before": before,
        "after": after,
        "change": change,
        "shown": np.argsort(-change, axis=1, kind="stable")[:, :num_shown],
    }


def channels_per_class(
    model: SemiSupervisedSegmenter,
    image_processor,
    chosen: Sequence[dict],
    images: Sequence[dict],
    set_name: str,
) -> dict:
    """
    How many channels of an image the grouping gives to each class (Figure 6), in center crops.

    See [`bottleneck_pass`] for how this differs from what happens in a training step.

    Args:
        model ([`SemiSupervisedSegmenter`]): with grouping, in eval mode.
        image_processor ([`BaseImageProcessor`]): the model's.
        chosen (`Sequence[dict]`): images to show one by one, rows with `image` and, where there is a mask, `label`.
        images (`Sequence[dict]`): rows of the images to take the mean over, with the same columns.
        set_name (`str`): what to call them.

    Returns:
        `dict`: of the chosen images `ids` str (images,), `pictures` uint8 (images, crop height, crop width, 3),
        `counts` int64 (images, num_labels), which add up to the channels of an image, `present` bool (images,
        num_labels), whether the crop's mask has the class, `has_mask` bool (images,); of the set `set_ids`,
        `set_counts`, `set_present`, `set_has_mask` in the same form, and `mean_counts` float64 (num_labels,).
        `set_name` str (), `class_names` str (num_labels,), `palette` uint8 (num_labels, 3).

    Raises:
        ValueError: if the model has no bottleneck or no grouping, is in training mode, or there is no image.
    """
    _require_rows(chosen, "6")
    _require_rows(images, "6")
    if not model.config.use_grouping:
        raise ValueError("The model has no grouping of channels (use_grouping=False): give a model trained with it.")
    over_set = _count_channels(model, image_processor, images)
    pictures = [crop_row(chosen, row, image_processor, model.config).picture for row in range(len(chosen))]
    return {
        **_count_channels(model, image_processor, chosen),
        "pictures": np.stack(pictures),
        **{f"set_{name}": values for name, values in over_set.items()},
        "mean_counts": over_set["counts"].mean(axis=0),
        "set_name": np.array(set_name),
        "class_names": class_names(model.config),
        "palette": palette_of(model.config),
    }


def _count_channels(model, image_processor, images: Sequence[dict]) -> dict:
    config = model.config
    counts, present, has_mask = [], [], []
    for row in tqdm(range(len(images)), desc="Grouping", unit="image", disable=None):
        crop = crop_row(images, row, image_processor, config)
        slots = choose_slots(model, bottleneck_pass(model, crop.pixel_values))[0]
        counts.append(torch.bincount(slots, minlength=config.num_labels).cpu().numpy())
        has_mask.append(crop.label is not None)
        present.append(np.isin(np.arange(config.num_labels), crop.label if has_mask[-1] else []))
    return {
        "ids": np.array(row_ids(images)),
        "counts": np.stack(counts),
        "present": np.stack(present),
        "has_mask": np.array(has_mask),
    }


def _require_rows(images: Sequence[dict], figure: str):
    if not len(images):
        raise ValueError(f"Figure {figure} needs at least one image: give some.")

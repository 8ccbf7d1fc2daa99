"""Figure 7: what the semantic memory holds, and the image that each channel in it came from."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from tqdm.auto import tqdm

from ..models.bottleneck_allspark import SemanticMemory
from ..models.modeling_allspark import SemiSupervisedSegmenter
from .channels import bottleneck_pass, choose_slots
from .crops import class_names, crop_row, row_ids


def refill_memory(model: SemiSupervisedSegmenter, pixel_values: Iterable[torch.Tensor]) -> dict:
    """
    Fills a fresh semantic memory by one pass over some images, and notes where every channel came from.

    A saved model carries no memory; that of a `checkpoint-*` folder does not say which images it came from, and is
    not used here. The model is in eval mode, see [`bottleneck_pass`] for how this differs from training.

    Args:
        model ([`SemiSupervisedSegmenter`]):
            with a semantic memory, in eval mode; its own memory is left alone.
        pixel_values (`Iterable[torch.Tensor]`):
            float (batch, 3, height, width) each, of the training crop's size, in the order of the images.

    Returns:
        `dict`: `channels` float32 (num_slots, slot_size, num_tokens), NaN where nothing was written (in training: the
        initial noise); `source_row` and `source_channel` int64 (num_slots, slot_size), the number of the image counted
        from 0 and its channel, -1 where nothing was written; `num_enqueued` int64 (num_slots,), channels ever written,
        whose remainder by slot_size is the place that the next one goes to.

    Raises:
        ValueError: if the model has no bottleneck or no memory, is in training mode, or there is no image.
    """
    memory, num_images = None, 0
    for batch in pixel_values:
        seen = bottleneck_pass(model, batch)
        slots = choose_slots(model, seen)
        if memory is None:
            num_slots, slot_size, num_tokens = model.bottleneck.memory.channels.shape
            # Two tokens more than the model's: a channel and its origin go through one and the same ring.
            memory = SemanticMemory(num_slots, slot_size, num_tokens + 2)
            memory.channels[..., :num_tokens] = torch.nan
            memory.channels[..., num_tokens:] = -1
        memory.enqueue(_with_origin(seen.tokens.float().cpu(), num_images), slots.cpu())
        num_images += len(batch)
    if memory is None:
        raise ValueError("The memory is filled from unlabeled images, but none was given: give at least one.")
    channels, source_row, source_channel = memory.channels.split([memory.channels.shape[2] - 2, 1, 1], dim=2)
    return {
        "channels": channels.numpy(),
        "source_row": source_row.squeeze(2).long().numpy(),
        "source_channel": source_channel.squeeze(2).long().numpy(),
        "num_enqueued": memory.num_enqueued.numpy(),
    }


def _with_origin(tokens: torch.Tensor, first_image: int) -> torch.Tensor:
    """Appends to float32 (batch, tokens, channels) two tokens: the number of the image, and of the channel."""
    batch, _, num_channels = tokens.shape
    image = torch.arange(first_image, first_image + batch, dtype=tokens.dtype)[:, None].expand(batch, num_channels)
    channel = torch.arange(num_channels, dtype=tokens.dtype).expand(batch, num_channels)
    return torch.cat([tokens, torch.stack([image, channel], dim=1)], dim=1)


def memory_contents(
    model: SemiSupervisedSegmenter,
    image_processor,
    images: Sequence[dict],
    num_classes: int = 6,
    num_shown: int = 4,
) -> dict:
    """
    Channels in the memory after one pass over the unlabeled images' center crops, and their images (Figure 7).

    Shown are the slots that got most channels, and of each the images that most of its content came from, with one
    channel: the one written last.

    Args:
        model ([`SemiSupervisedSegmenter`]): with a semantic memory, in eval mode.
        image_processor ([`BaseImageProcessor`]): the model's.
        images (`Sequence[dict]`): rows of the unlabeled images in order, with `image`, and perhaps `id`.
        num_classes (`int`, *optional*, defaults to 6): slots to show, at most; empty ones are not.
        num_shown (`int`, *optional*, defaults to 4): channels to show per slot, at most.

    Returns:
        `dict`: the entries of [`refill_memory`]; `ids` str (images,) of the images passed; `grid` int64 (2,), tokens
        in height and width; `slot_names` str (num_slots,), class names or "all classes" for a memory without grouping;
        `shown_slots` int64 (classes,), ascending; `shown_places` int64 (classes, num_shown), -1 where the slot has
        channels of fewer images; `pictures` uint8 (classes, num_shown, crop height, crop width, 3).

    Raises:
        ValueError: as [`refill_memory`].
    """
    config = model.config
    rows = tqdm(range(len(images)), desc="Filling the memory", unit="image", disable=None)
    arrays = refill_memory(model, (crop_row(images, row, image_processor, config).pixel_values for row in rows))
    slots = np.argsort(-arrays["num_enqueued"], kind="stable")[:num_classes]
    slots = np.sort(slots[arrays["num_enqueued"][slots] > 0])
    places = np.stack([_places_to_show(arrays, slot, num_shown) for slot in slots])
    pictures = np.zeros((*places.shape, *config.crop_height_width, 3), dtype=np.uint8)
    for index, column in zip(*np.nonzero(places >= 0), strict=True):
        row = int(arrays["source_row"][slots[index], places[index, column]])
        pictures[index, column] = crop_row(images, row, image_processor, config).picture
    return {
        **arrays,
        "ids": np.array(row_ids(images)),
        "grid": np.array(config.token_grid),
        "slot_names": class_names(config) if config.use_grouping else np.array(["all classes"]),
        "shown_slots": slots,
        "shown_places": places,
        "pictures": pictures,
    }


def _places_to_show(arrays: dict, slot: int, num_shown: int) -> np.ndarray:
    """Places of the newest channel of each image in a slot, the images with most channels first, filled up with -1."""
    rows = arrays["source_row"][slot]
    age = (arrays["num_enqueued"][slot] - 1 - np.arange(len(rows))) % len(rows)  # 0 for the place written last
    written = np.flatnonzero(rows >= 0)
    images, counts = np.unique(rows[written], return_counts=True)
    newest = [min(written[rows[written] == image], key=lambda place: age[place]) for image in images]
    order = sorted(range(len(images)), key=lambda index: (-counts[index], age[newest[index]]))[:num_shown]
    return np.array([newest[index] for index in order] + [-1] * (num_shown - len(order)))

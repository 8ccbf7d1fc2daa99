"""Perturbations of the strong views of unlabeled images: CutMix, and complementary dropout of channels."""

import torch

from ..data.mixed import MixedBatch
from ..data.views import inside_boxes
from ..models.modeling_allspark import FeatureMaps


def cutmix(batch: MixedBatch, view: str, *maps: torch.Tensor) -> list[torch.Tensor]:
    """
    Fills the box that a view has drawn in each image with the pixels of its partner. Partners mirror each other in the
    batch: the first image and the last, the second and the last but one. See [`MixedBatchCollator`] for the order.

    Args:
        batch ([`MixedBatch`]): with the view's boxes.
        view (`str`): name of the view.
        maps (`torch.Tensor`): each (unlabeled, channels, height, width) or (unlabeled, height, width), any dtype.

    Returns:
        `list[torch.Tensor]`: of the same shapes and dtypes.
    """
    inside = inside_boxes(batch[f"unlabeled_cutmix_box_{view}"], batch["unlabeled_pixel_mask"].shape[1:])
    return [torch.where(inside if one.dim() == 3 else inside[:, None], one.flip(0), one) for one in maps]


def complementary_dropout(features: FeatureMaps, drawn: torch.Tensor, kept: torch.Tensor) -> FeatureMaps:
    """
    Dropout of whole channels of two views of the same images (UniMatch V2, TPAMI 2025): a channel is doubled in one
    view and zero in the other, the same in all feature maps. Maps with fewer channels read the first draws.

    Args:
        features (`tuple[torch.Tensor, ...]`):
            float (any number + 2 * images, channels, height, width) each: images that stay as they are, the first
            views, the second ones.
        drawn (`torch.Tensor`): bool (images, at least as many channels), whether the first view has the channel.
        kept (`torch.Tensor`): bool (images,), whether an image keeps all its channels as they are.

    Returns:
        `tuple[torch.Tensor, ...]`: of the same shapes.
    """
    first = (2.0 * drawn).masked_fill(kept[:, None], 1.0)
    others = first.new_ones(len(features[0]) - 2 * len(first), first.shape[1])
    factors = torch.cat([others, first, 2.0 - first])[:, :, None, None]
    return tuple(maps * factors[:, : maps.shape[1]].to(maps.dtype) for maps in features)


def unpack_channel_bits(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The draws of complementary dropout, from the random bits of a batch's images.

    Args:
        packed (`torch.Tensor`): uint8 (images, bytes), of [`View`]'s `channel_bits`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: `drawn`, bool (images, 8 * bytes), and `kept`, bool (images,): one image
        of each mirrored pair, which is half of the batch, as published.
    """
    drawn = (packed[:, :, None] >> torch.arange(8, device=packed.device) & 1).flatten(1).bool()
    half = len(packed) // 2
    first = drawn[:half, -1]
    middle = drawn.new_zeros(len(packed) - 2 * half)
    return drawn, torch.cat([first, middle, ~first.flip(0)])


def in_drawn_order(images: torch.Tensor) -> torch.Tensor:
    """
    Any tensor (unlabeled, ...) of a mirrored batch in the order in which the images were drawn, which does not depend
    on how a batch is cut over processes: the first, the last, the second, the last but one, ...
    """
    place = torch.arange(len(images), device=images.device)
    return images[torch.where(place % 2 == 0, place // 2, len(images) - 1 - place // 2)]

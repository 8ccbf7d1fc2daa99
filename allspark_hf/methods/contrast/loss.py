"""The contrastive loss of Alonso et al. (ICCV 2021) between pixels and a memory of their class."""

import torch
from torch.nn import functional as F

from .heads import ClassMLP, class_blocks, class_sums, over_processes
from .memory import PixelMemory


def contrastive_loss(
    features: torch.Tensor,
    labels: torch.Tensor,
    memory: PixelMemory,
    selectors: ClassMLP,
    memory_selectors: ClassMLP | None = None,
) -> torch.Tensor:
    """
    Draws pixels toward the memory of their class: the weighted mean over a class's pixels i and rows j of the cosine
    distance 1 - cos(p_i, z_j), summed over classes and divided by the number of all of them. There are no negatives.

    The mean over the rows comes first, since it is linear: a pixel meets the mean direction of its class, and the map
    of pixels and rows never exists. A class counts if it has two pixels, those of all processes, and two rows. The
    weight of a pixel is the share of its selector's score in its class. Features reach the loss through the cosine
    only, selectors through the weights only.

    Args:
        features (`torch.Tensor`): float (rows, width), p.
        labels (`torch.Tensor`): int64 (rows,); rows whose label is not in [0, num_classes) do not count.
        memory ([`PixelMemory`]): z.
        selectors (`ClassMLP`): from width to one score, for each class.
        memory_selectors (`ClassMLP`, *optional*):
            The same for the rows of the memory, normalized. Without them all rows weigh the same.

    Returns:
        `torch.Tensor`: float scalar, that of all processes; 0 if no class counts.
    """
    num_classes = len(memory.fill)
    blocks = class_blocks(labels, num_classes)
    counts = (over_processes(blocks.counts) > 1) & (memory.fill > 1)
    directions = _mean_directions(memory, counts, memory_selectors)
    rows = features[blocks.index]
    # (blocks, rows of a block, width) @ (blocks, width, 1)
    distance = 1 - F.normalize(rows, dim=-1) @ directions[blocks.classes][:, :, None]
    used = blocks.mask & counts[blocks.classes][:, None]
    scores = selectors(rows.detach(), used, blocks.classes).sigmoid()
    sums = class_sums(torch.cat([scores * distance, scores], dim=-1), used, blocks.classes, num_classes)
    of_classes = sums[:, 0] / sums[:, 1].where(counts, 1)
    return of_classes.where(counts, 0).sum() / num_classes


def _mean_directions(memory: PixelMemory, counts: torch.Tensor, memory_selectors: ClassMLP | None) -> torch.Tensor:
    """float (num_classes, width): weighted mean of each class's normalized rows; of no meaning where none count."""
    rows = F.normalize(memory.rows, dim=-1)
    used = memory.mask & counts[:, None]
    weights = used.to(rows.dtype)
    if memory_selectors is not None:
        scores = memory_selectors(rows, used, torch.arange(len(rows), device=rows.device))
        weights = scores.sigmoid().squeeze(-1) * weights
    weights = weights / weights.sum(dim=1, keepdim=True).where(counts[:, None], 1)
    return (weights[:, None] @ rows).squeeze(1)

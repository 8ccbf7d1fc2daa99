"""The memory bank of Alonso et al. (ICCV 2021): for each class the newest good features of labeled pixels."""

import torch
from torch import nn

from .heads import ClassMLP, class_blocks, over_processes


def rows_per_image(memory_rows: int, num_labeled: int, inflow: float = 1.0) -> int:
    """
    Rows that an image may add to each class, at least 1: as many as fill a class in one pass over the labeled images
    for an inflow of 1, the published one for Cityscapes; for Pascal it is a third of the number of classes.
    """
    return max(1, int(inflow * round(memory_rows / num_labeled)))


class PixelMemory(nn.Module):
    """
    First-in-first-out lists of features, one for each class, the same in all processes.

    Args:
        num_classes (`int`): lists.
        size (`int`): rows that a list is cut to.
        quota (`int`): rows that a class may get from one batch of all processes.
        width (`int`): channels of a row.

    Buffers:
        rows: float (num_classes, max(size, quota), width), newest first; zeros in empty places.
        fill: int64 (num_classes,), rows in each list.
    """

    def __init__(self, num_classes: int, size: int, quota: int, width: int):
        super().__init__()
        self.size, self.quota = size, quota
        # As published, what enters an empty list is not cut.
        self.register_buffer("rows", torch.zeros(num_classes, max(size, quota), width))
        self.register_buffer("fill", torch.zeros(num_classes, dtype=torch.int64))

    @property
    def mask(self) -> torch.Tensor:
        """bool (num_classes, rows of a list), False in an empty place."""
        return torch.arange(self.rows.shape[1], device=self.fill.device) < self.fill[:, None]

    @property
    def share(self) -> torch.Tensor:
        """float32 scalar in [0, 1]: how full the lists are."""
        return (self.fill.clamp(max=self.size) / self.size).mean()

    @torch.no_grad()
    def update(self, features: torch.Tensor, labels: torch.Tensor, selectors: ClassMLP, keep: str = "lowest"):
        """
        Offers rows. A class with more of them than the quota ranks them by its selector and takes that many; one with
        fewer takes all, in their order.

        Args:
            features (`torch.Tensor`): float (rows, width).
            labels (`torch.Tensor`): int64 (rows,); rows whose label is not in [0, num_classes) are not offered.
            selectors (`ClassMLP`): from width to one score, for each class.
            keep (`str`, *optional*, defaults to `"lowest"`): which scores are taken, and come first.
        """
        num_classes = len(self.fill)
        blocks = class_blocks(labels, num_classes)
        ranked = (over_processes(blocks.counts) > self.quota)[blocks.classes][:, None] & blocks.mask
        rows = features[blocks.index]
        scores = selectors(rows, ranked, blocks.classes).squeeze(-1)
        keys = (scores if keep == "lowest" else -scores).where(ranked, 0).where(blocks.mask, torch.inf)
        order = torch.argsort(keys.flatten(), stable=True)
        classes = blocks.classes[:, None].where(blocks.mask, num_classes).flatten()
        order = order[torch.argsort(classes[order], stable=True)]  # by class, then by score, then by position
        first = blocks.counts.cumsum(0) - blocks.counts
        place = torch.arange(self.quota, device=labels.device)
        index = order[(first[:, None] + place).clamp(max=len(order) - 1)]
        keys = keys.flatten()[index].where(place < blocks.counts[:, None], torch.inf)
        self._insert(*_best_of_processes(rows.flatten(0, 1)[index], keys))

    def _insert(self, incoming: torch.Tensor, keys: torch.Tensor):
        """Puts the rows of float (num_classes, quota, width) whose keys are finite in front of the lists."""
        number = (keys < torch.inf).sum(dim=1)
        place = torch.arange(self.rows.shape[1], device=number.device)
        old = self.quota + place - number[:, None]
        index = place.where(place < number[:, None], old)
        both = torch.cat([incoming.to(self.rows.dtype), self.rows], dim=1)
        limit = (self.fill + number).clamp(max=self.size)
        limit = number.where(self.fill == 0, limit)
        self.fill.copy_(self.fill.where(number == 0, limit))
        rows = both.gather(1, index[:, :, None].expand(-1, -1, both.shape[2]))
        self.rows.copy_(rows.where(self.mask[:, :, None], 0))


def _best_of_processes(rows: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first of all processes' candidates by key: float (num_classes, quota, width) and (num_classes, quota)."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return rows, keys
    quota, everyone = keys.shape[1], []
    for tensor in (rows, keys):
        of_processes = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(of_processes, tensor.contiguous())
        everyone.append(torch.cat(of_processes, dim=1))
    rows, keys = everyone
    keys, order = keys.sort(dim=1, stable=True)
    order = order[:, :quota, None].expand(-1, -1, rows.shape[2])
    return rows.gather(1, order), keys[:, :quota]

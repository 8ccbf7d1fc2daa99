"""Class weights from the classes that the last batches showed (Alonso et al., ICCV 2021; there on Cityscapes only)."""

import torch
from torch import nn

from .heads import class_counts, over_processes


class ClassBalance(nn.Module):
    """
    Counts the pixels of each class update by update: labels in the first updates that show the labeled set once, and
    pseudo-labels in the last updates that show the unlabeled set once.

    Args:
        labeled_updates (`int`): updates that show the labeled set once, rounded down; at least one is counted.
        unlabeled_updates (`int`): likewise for the unlabeled set.
        num_labels (`int`): classes.

    Buffers:
        labeled: int64 (labeled_updates, num_labels), pixels of each class in the first updates' labels.
        unlabeled: int64 (unlabeled_updates, num_labels), pixels in the last updates' pseudo-labels, newest last.
        seen: int64 scalar, updates counted so far.
    """

    def __init__(self, labeled_updates: int, unlabeled_updates: int, num_labels: int):
        super().__init__()
        for name, updates in (("labeled", labeled_updates), ("unlabeled", unlabeled_updates)):
            self.register_buffer(name, torch.zeros(max(1, updates), num_labels, dtype=torch.int64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.update: int | None = None

    @torch.no_grad()
    def count(self, labels: torch.Tensor, pseudo_labels: torch.Tensor, update: int):
        """
        Adds a batch of all processes, from int64 (batch, height, width) twice; what is no class does not count.
        `update` tells accumulated batches of one update from those of the next.
        """
        of_labels, of_pseudo_labels = (
            over_processes(class_counts(one, self.labeled.shape[1])) for one in (labels, pseudo_labels)
        )
        if update != self.update:
            self.update = update
            self.seen += 1
            self.unlabeled.copy_(torch.cat([self.unlabeled[1:], torch.zeros_like(self.unlabeled[:1])]))
        row = torch.arange(len(self.labeled), device=labels.device)[:, None] == self.seen - 1
        self.labeled += of_labels.where(row, 0)
        self.unlabeled[-1] += of_pseudo_labels

    def weights(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """
        Float (num_labels,): sqrt(median frequency / frequency) of each class. A class that never occurred gets the
        largest of these weights; until both tables are full, all weights are 1.
        """
        frequencies = (self.labeled.sum(dim=0) + self.unlabeled.sum(dim=0)).to(dtype)
        middle = frequencies.sort().values[[(len(frequencies) - 1) // 2, len(frequencies) // 2]].mean()
        weights = (middle / frequencies).sqrt()
        finite = weights.isfinite()
        weights = weights.where(finite, weights.where(finite, 1).amax())
        return weights.where(self.seen >= max(len(self.labeled), len(self.unlabeled)), 1)

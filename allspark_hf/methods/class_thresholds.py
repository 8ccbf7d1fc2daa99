"""A threshold of confidence for each class, for teachers whose labels nearly all pass a single threshold."""

import torch
from torch import nn

from .pseudo_labels import CONFIDENCE_STEP


HALVINGS = 24  # of the distance to 1, in which float32 has no probability nearer to 1 than 2**-24
BINS_PER_HALVING = 40  # the distance to 1 differs by 1.7 % from bin to bin
RESOLUTION = 2**20  # of the largest bin, since sums of whole numbers are the same in any order


class ClassThresholds(nn.Module):
    """
    Of the pixels predicted as a class, the most confident share counts. The threshold of the class is the highest
    lower edge of a bin in its histogram of confidences such that the bins from there on hold at least this share.
    After an update of the weights, the counts of its batches enter the histogram as a moving average; the next update
    uses it.

    Args:
        num_labels (`int`): classes.
        share (`float`): of a class's pixels that are to count, in (0, 1).
        least (`float`): probability in [0, 1] below which no pixel counts.

    Buffers:
        histogram: float32 (num_labels, bins), averaged pixels of an update by class and confidence.
        counted: int64 (num_labels, bins), pixels since the last update; zero whenever a checkpoint is saved.
        edges: float32 (bins,), lower edges of the bins, evenly spaced in the logarithm of the distance to 1.
    """

    def __init__(self, num_labels: int, share: float, least: float):
        super().__init__()
        self.share, self.least = share, least
        bins = torch.arange(HALVINGS * BINS_PER_HALVING + 1)
        self.register_buffer("edges", (1 - 0.5 ** (bins.double() / BINS_PER_HALVING)).float(), persistent=False)
        self.register_buffer("histogram", torch.zeros(num_labels, len(bins)))
        self.register_buffer("counted", torch.zeros(num_labels, len(bins), dtype=torch.int64), persistent=False)

    def count(self, labels: torch.Tensor, confidence: torch.Tensor, shown: torch.Tensor):
        """
        Adds a batch.

        Args:
            labels (`torch.Tensor`): int64 (unlabeled, height, width), the predicted class in [0, num_labels).
            confidence (`torch.Tensor`): float (unlabeled, height / 4, width / 4), as in [`PseudoLabels`].
            shown (`torch.Tensor`): bool (unlabeled, height, width), pixels that are no padding.
        """
        labels, shown = (one[:, ::CONFIDENCE_STEP, ::CONFIDENCE_STEP] for one in (labels, shown))
        bins = torch.bucketize(confidence.float(), self.edges, right=True) - 1
        index = labels * len(self.edges) + bins
        self.counted.view(-1).scatter_add_(0, index.flatten(), shown.flatten().long())

    @torch.no_grad()
    def update(self, decay: float):
        """Adds the counts of all processes since the last update; a share `decay` of the old histogram stays."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.counted)
        self.histogram.lerp_(self.counted.to(self.histogram.dtype), 1 - decay)
        self.counted.zero_()

    @property
    def values(self) -> torch.Tensor:
        """float32 (num_labels,): least probability that counts; `least` for a class that has not been predicted."""
        largest = self.histogram.amax(dim=1, keepdim=True)
        pixels = (self.histogram / largest.clamp(min=torch.finfo(largest.dtype).tiny) * RESOLUTION).long()
        from_here = pixels.flip(1).cumsum(1).flip(1)
        enough = from_here >= self.share * from_here[:, :1]
        last = (enough.sum(dim=1) - 1).where(largest[:, 0] > 0, 0)
        return self.edges[last].clamp(min=self.least)

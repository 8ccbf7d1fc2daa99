"""Small networks over pixels, one for each class, and the arrangement of pixels that runs them together.

How many pixels a class has is known on the device only. So that the host need not wait for it, rows are put into
blocks of one size, each of one class: as many blocks as there may have to be, the surplus empty.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F


ROWS_PER_BLOCK = 256
PIXELS_PER_POSITION = 4


class ClassBlocks(NamedTuple):
    """
    Rows in blocks of one class each, in their order, see [`class_blocks`].

    Args:
        index (`torch.Tensor`): int64 (blocks, rows of a block), which row is in a place; any one in an empty place.
        mask (`torch.Tensor`): bool (blocks, rows of a block), False in an empty place.
        classes (`torch.Tensor`): int64 (blocks,), in [0, num_classes).
        counts (`torch.Tensor`): int64 (num_classes,), rows of each class.
    """

    index: torch.Tensor
    mask: torch.Tensor
    classes: torch.Tensor
    counts: torch.Tensor


def pixel_rows(
    features: torch.Tensor, labels: torch.Tensor, ignore_index: int, multiple: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The pixels of feature maps, one row each, and their labels. Of maps with less than about 4 pixels of the image from
    position to position, every second (third, ...) row and column is taken.

    Args:
        features (`torch.Tensor`):
            float (batch, channels, head height, head width), see [`SemiSupervisedSegmenter.decode_features`].
        labels (`torch.Tensor`): int64 (batch, height, width); a position takes the nearest label above and left of it.
        ignore_index (`int`): label of what the model pads.
        multiple (`int`): number of pixels to a multiple of which the model pads images at the right and bottom.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: float (rows, channels) and int64 (rows,), by image, row and column.
    """
    sides = zip(labels.shape[1:], features.shape[2:], strict=True)
    step = [max(1, round(PIXELS_PER_POSITION * found / side)) for side, found in sides]
    bottom, right = (-side % multiple for side in labels.shape[1:])
    padded = F.pad(labels, (0, right, 0, bottom), value=ignore_index).unsqueeze(1).float()  # which are exact
    labels = F.interpolate(padded, size=features.shape[2:], mode="nearest").squeeze(1).long()
    features, labels = (one[..., :: step[0], :: step[1]] for one in (features, labels))
    return features.movedim(1, -1).flatten(0, 2), labels.flatten()


def class_counts(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """int64 (num_classes,): how often each class occurs in int64 `labels`; other values do not count."""
    index = labels.where((labels >= 0) & (labels < num_classes), num_classes).flatten()
    counts = torch.zeros(num_classes + 1, dtype=torch.int64, device=labels.device)
    # Not bincount, which makes the host wait for the device.
    return counts.scatter_add_(0, index, torch.ones_like(index))[:num_classes]


def class_blocks(labels: torch.Tensor, num_classes: int) -> ClassBlocks:
    """
    Args:
        labels (`torch.Tensor`): int64 (rows,); a row whose label is not in [0, num_classes) is in no block.
        num_classes (`int`): classes.
    """
    num_rows, size = len(labels), min(ROWS_PER_BLOCK, len(labels))
    counts = class_counts(labels, num_classes)
    inside = (labels >= 0) & (labels < num_classes)
    order = torch.argsort(labels.where(inside, num_classes), stable=True)
    needed = (counts + size - 1) // size
    ends = needed.cumsum(0)
    block = torch.arange(num_rows // size + num_classes, device=labels.device)
    classes = torch.searchsorted(ends, block, right=True).clamp(max=num_classes - 1)
    # (blocks, rows of a block): the how-many-th row of its class is in a place.
    place = (block - (ends - needed)[classes])[:, None] * size + torch.arange(size, device=labels.device)
    first = (counts.cumsum(0) - counts)[classes]
    index = order[(first[:, None] + place).clamp(max=num_rows - 1)]
    return ClassBlocks(index, place < counts[classes][:, None], classes, counts)


def over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all processes, also in the backward pass, where each process gets its share of the gradient."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return tensor
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(tensor)


def mean_over_processes(number: torch.Tensor) -> torch.Tensor:
    """The mean of a scalar over processes, without gradient. A sum divided by it averages exactly over processes."""
    total = over_processes(torch.stack([number.detach(), torch.ones_like(number)]))
    return total[0] / total[1]


def class_sums(values: torch.Tensor, mask: torch.Tensor, classes: torch.Tensor, num_classes: int) -> torch.Tensor:
    """
    Sums the rows of each class over all processes.

    Args:
        values (`torch.Tensor`): float (blocks, rows of a block, channels).
        mask (`torch.Tensor`): bool (blocks, rows of a block), False where a row does not count.
        classes (`torch.Tensor`): int64 (blocks,), in [0, num_classes).
        num_classes (`int`): classes.

    Returns:
        `torch.Tensor`: float (num_classes, channels).
    """
    of_blocks = (mask.to(values.dtype)[:, None] @ values).squeeze(1)
    member = torch.arange(num_classes, device=classes.device)[:, None] == classes
    return over_processes(member.to(values.dtype) @ of_blocks)


class ClassMLP(nn.Module):
    """
    For each class a network of its own over rows: linear, BatchNorm, (leaky) ReLU, linear.

    The BatchNorm of a class sees the rows of that class only, those of all processes. In train mode a class with fewer
    than two of them keeps its running statistics.

    Args:
        num_classes (`int`): networks.
        inputs (`int`): channels of a row.
        width (`int`): hidden channels.
        outputs (`int`): channels of a result.
        slope (`float`, *optional*, defaults to 0): of the leaky ReLU; 0 is ReLU.
    """

    eps = 1e-5
    momentum = 0.1

    def __init__(self, num_classes: int, inputs: int, width: int, outputs: int, slope: float = 0.0):
        super().__init__()
        self.num_classes, self.slope = num_classes, slope
        self.hidden_weight = _uniform(num_classes, width, inputs, fan_in=inputs)
        self.hidden_bias = _uniform(num_classes, width, fan_in=inputs)
        self.norm_weight = nn.Parameter(torch.ones(num_classes, width))
        self.norm_bias = nn.Parameter(torch.zeros(num_classes, width))
        self.output_weight = _uniform(num_classes, outputs, width, fan_in=width)
        self.output_bias = _uniform(num_classes, outputs, fan_in=width)
        self.register_buffer("running_mean", torch.zeros(num_classes, width))
        self.register_buffer("running_var", torch.ones(num_classes, width))
        self.register_buffer("num_batches_tracked", torch.zeros(num_classes, dtype=torch.int64))

    def forward(self, rows: torch.Tensor, mask: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            rows (`torch.Tensor`): float (blocks, rows of a block, inputs).
            mask (`torch.Tensor`): bool (blocks, rows of a block); where it is False, the result means nothing.
            classes (`torch.Tensor`, *optional*): int64 (blocks,), whose network each block runs through; not needed
                with one network.

        Returns:
            `torch.Tensor`: float (blocks, rows of a block, outputs).
        """
        if classes is None:
            classes = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        rows = rows.to(self.hidden_weight.dtype)
        hidden = torch.baddbmm(self.hidden_bias[classes][:, None], rows, self.hidden_weight[classes].mT)
        hidden = F.leaky_relu(self._normalize(hidden, mask, classes), self.slope)
        return torch.baddbmm(self.output_bias[classes][:, None], hidden, self.output_weight[classes].mT)

    def _normalize(self, hidden: torch.Tensor, mask: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """BatchNorm of each class. Rows are centered before squares are summed, which would cancel in float32."""
        center, mean, variance = self.running_mean, torch.zeros_like(self.running_mean), self.running_var
        if self.training:
            count = class_sums(torch.ones_like(hidden[..., :1]), mask, classes, self.num_classes)
            center = class_sums(hidden.detach(), mask, classes, self.num_classes) / count.clamp(min=1)
        centered = hidden - center[classes][:, None]
        if self.training:
            mean, squares = (
                class_sums(values, mask, classes, self.num_classes) / count.clamp(min=1)
                for values in (centered, centered.square())
            )
            variance = squares - mean.square()
            self._track(center, variance, count)
        scale = self.norm_weight / (variance + self.eps).sqrt()
        shift = self.norm_bias - mean * scale
        return centered * scale[classes][:, None] + shift[classes][:, None]

    @torch.no_grad()
    def _track(self, mean: torch.Tensor, variance: torch.Tensor, count: torch.Tensor):
        """Moves the running statistics: float (num_classes, width) twice, and float (num_classes, 1)."""
        share = self.momentum * (count > 1).to(count.dtype)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), share)
        self.num_batches_tracked += (count > 1).squeeze(1)


def _uniform(*shape: int, fan_in: int) -> nn.Parameter:
    """As `nn.Linear` begins."""
    return nn.Parameter(torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5))

"""What the training methods share: the batch, the losses they return, and a few steps with one right way."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ..utils.arguments import argument, documented
from .losses import ohem_labels, upsampled_cross_entropy_sum
from .pseudo_labels import CONFIDENCE_STEP


@documented
@dataclass
class MethodArguments:
    """What every method reads. A method with more declares a dataclass based on this one, beside itself."""

    labeled_loss: str = argument(
        "cross_entropy",
        "Loss of labeled images: cross_entropy, or ohem (online hard example mining), the paper's for Cityscapes.",
        choices=("cross_entropy", "ohem"),
        resume="changed",
        shown=True,
    )
    ohem_threshold: float = argument(
        0.7, "OHEM keeps pixels whose true class has at most this probability.", interval="[0, 1]", resume="changed"
    )
    ohem_min_kept: int = argument(
        200_000, "OHEM keeps at least this many pixels of a batch.", interval="[0, inf)", resume="changed"
    )


@dataclass
class MixedBatch:
    """
    One mixed batch.

    Args:
        pixel_values (`torch.Tensor`): float32 (labeled, 3, height, width), normalised.
        labels (`torch.Tensor`): int64 (labeled, height, width), class or the ignore index.
        unlabeled_pixel_values (`torch.Tensor`, *optional*): float32 (unlabeled, 3, height, width), normalised.
        unlabeled_pixel_mask (`torch.Tensor`, *optional*): bool (unlabeled, height, width), False on padding.
        unlabeled_truth (`torch.Tensor`, *optional*):
            int64 (unlabeled, height, width), class or the ignore index: masks that were hidden, to measure
            pseudo-labels by. No method trains on them.
    """

    pixel_values: torch.Tensor
    labels: torch.Tensor
    unlabeled_pixel_values: torch.Tensor | None = None
    unlabeled_pixel_mask: torch.Tensor | None = None
    unlabeled_truth: torch.Tensor | None = None


@dataclass
class PixelCounts:
    """Pixels that each loss is divided by: float scalars, so that accumulation and processes average exactly."""

    labeled: torch.Tensor
    unlabeled: torch.Tensor


@dataclass
class StepLosses:
    """
    Result of one training step.

    Args:
        loss (`torch.Tensor`): float scalar, to be differentiated.
        terms (`dict[str, torch.Tensor]`):
            float scalars to log: `loss_x`, `loss_u` (the paper's names), and the shares of pixels in [0, 1] that
            these count, `used_x`, `used_u`; `pseudo_confidence`, mean probability of the pseudo-labels.
        pseudo_labels (`torch.Tensor`, *optional*): int64 (unlabeled, height, width), class or the ignore index.
    """

    loss: torch.Tensor
    terms: dict[str, torch.Tensor]
    pseudo_labels: torch.Tensor | None = None


class Method:
    """
    A training method: how a mixed batch becomes a loss.

    Args:
        args ([`AllSparkTrainingArguments`]): loss settings.
        ignore_index (`int`): label of pixels that do not count.
    """

    arguments_class: ClassVar[type] = MethodArguments
    title: ClassVar[str]  # for tables and cards
    description: ClassVar[str]  # a few words, for --help and cards
    uses_unlabeled = True
    needs_bottleneck = False

    def __init__(self, args, ignore_index: int):
        self.args = args
        self.ignore_index = ignore_index

    @classmethod
    def check_arguments(cls, args):
        """
        Refuses arguments that do not fit the method, when they are made.

        Args:
            args ([`AllSparkTrainingArguments`]): with this method.

        Raises:
            ValueError: if an epoch would leave out images that the method reads.
        """
        if args.epoch_length == "labeled" and cls.uses_unlabeled:
            raise ValueError(
                f"epoch_length='labeled' would leave most unlabeled images out of an epoch of method={args.method!r}: "
                "set it to 'unlabeled'."
            )

    def step(self, model: nn.Module, batch: MixedBatch, pixels: PixelCounts, epoch: int) -> StepLosses:
        """
        Args:
            model (`nn.Module`): the model as wrapped for training (DDP, compiled, ...), in train mode.
            batch ([`MixedBatch`]): on the model's device.
            pixels ([`PixelCounts`]): what to divide the summed losses by.
            epoch (`int`): counted from 0.
        """
        raise NotImplementedError

    def labeled_loss(self, logits, labels, pixels: PixelCounts) -> tuple[torch.Tensor, torch.Tensor]:
        """
        L_x, cross-entropy per labeled pixel or per kept one with `--labeled_loss ohem`, and the share of pixels used:
        float scalars, from float (labeled, num_labels, any height, any width) and int64 (labeled, height, width).
        """
        count = pixels.labeled
        if self.args.labeled_loss == "ohem":
            labels = ohem_labels(logits, labels, self.args.ohem_threshold, self.args.ohem_min_kept, self.ignore_index)
            count = (labels != self.ignore_index).sum()
        return self._per_pixel(logits, labels, count)

    def unlabeled_loss(self, logits, pseudo_labels, pixels: PixelCounts) -> tuple[torch.Tensor, torch.Tensor]:
        """L_u, cross-entropy per pixel against the pseudo-labels, and the share of pixels used; shapes as for L_x."""
        return self._per_pixel(logits, pseudo_labels, pixels.unlabeled)

    def _per_pixel(self, logits, labels, count) -> tuple[torch.Tensor, torch.Tensor]:
        loss = upsampled_cross_entropy_sum(logits, labels, self.ignore_index) / count.clamp(min=1)
        return loss, (labels != self.ignore_index).float().mean()

    def without_padding(self, labels: torch.Tensor, pixel_mask: torch.Tensor) -> torch.Tensor:
        """
        int64 (unlabeled, height, width): pseudo-labels, padding ignored unless `--train_on_padding`, from int64 and
        bool (unlabeled, height, width), False on padding.
        """
        return labels if self.args.train_on_padding else labels.where(pixel_mask, self.ignore_index)

    def confidence(self, confidence: torch.Tensor, pseudo_labels: torch.Tensor) -> torch.Tensor:
        """
        Mean probability in [0, 1] of the pseudo-labels: float scalar, from that of [`PseudoLabels`] and int64
        (unlabeled, height, width).
        """
        counted = pseudo_labels[:, ::CONFIDENCE_STEP, ::CONFIDENCE_STEP] != self.ignore_index
        return (confidence * counted).sum() / counted.sum().clamp(min=1)

    def total(self, loss_x: torch.Tensor, loss_u: torch.Tensor, epoch: int) -> torch.Tensor:
        """(L_x + weight * L_u) / (1 + weight): the paper's mean of the two for a weight of 1."""
        weight = self.args.unlabeled_loss_weight if epoch >= self.args.unlabeled_warmup_epochs else 0.0
        return (loss_x + weight * loss_u) / (1 + weight)

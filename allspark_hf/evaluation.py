"""Evaluation of semantic segmentation: one confusion matrix, filled image by image at the masks' own size."""

from collections.abc import Iterable
from itertools import groupby

import datasets
import torch
from torch import nn
from torch.utils.data import Dataset

from .data.images import to_rgb
from .data.labels import read_label
from .losses import cross_entropy_sum, upsample


class ConfusionMatrix:
    """
    Pixel counts by true and predicted class; constant memory for any number and size of images.

    Args:
        num_labels (`int`): classes.
        ignore_index (`int`): label of pixels that do not count.
        device (`torch.device` or `str`, *optional*): where the counts live.

    Attributes:
        counts: int64 (true class, predicted class).
    """

    def __init__(self, num_labels: int, ignore_index: int = 255, device: torch.device | str | None = None):
        self.ignore_index = ignore_index
        self.counts = torch.zeros(num_labels, num_labels, dtype=torch.int64, device=device)

    def update(self, predictions: torch.Tensor, labels: torch.Tensor):
        """
        Args:
            predictions (`torch.Tensor`): int64, any shape, in [0, num_labels).
            labels (`torch.Tensor`): int64 of the same shape, in [0, num_labels) or `ignore_index`.
        """
        num_labels = self.counts.shape[0]
        valid = labels != self.ignore_index
        pairs = labels[valid] * num_labels + predictions[valid]
        self.counts += torch.bincount(pairs, minlength=num_labels**2).view(num_labels, num_labels)

    def iou(self) -> torch.Tensor:
        """float64 (num_labels,) in [0, 1]; NaN for a class in neither labels nor predictions."""
        counts = self.counts.cpu().double()  # not every device has float64
        intersection = counts.diagonal()
        return intersection / (counts.sum(0) + counts.sum(1) - intersection)

    def metrics(self, id2label: dict[int, str], count_absent_classes: bool = False) -> dict[str, float]:
        """
        Metrics in [0, 1].

        Args:
            id2label (`dict[int, str]`): class names.
            count_absent_classes (`bool`):
                Whether a class in neither labels nor predictions counts as IoU 0 in the mean, as in the authors' code,
                instead of being left out.

        Returns:
            `dict[str, float]`: `mean_iou`, `mean_accuracy`, `overall_accuracy`, and `iou_<class>` of each class that
            is not absent (blanks in names as underscores).
        """
        counts = self.counts.cpu().double()
        iou = self.iou()
        accuracy = counts.diagonal() / counts.sum(1)  # NaN for a class that no label has
        return {
            "mean_iou": _mean(iou.nan_to_num(0) if count_absent_classes else iou),
            "mean_accuracy": _mean(accuracy),
            "overall_accuracy": (counts.trace() / counts.sum().clamp(min=1)).item(),
            **{
                f"iou_{metric_name(id2label[index])}": value
                for index, value in enumerate(iou.tolist())
                if value == value
            },
        }


def metric_name(label: str) -> str:
    """A class name without blanks, which TensorBoard tags cannot have."""
    return "_".join(label.split())


def _mean(values: torch.Tensor) -> float:
    """Mean of what is not NaN; 0 if nothing is left."""
    return values.nanmean().nan_to_num(0).item()


class EvaluationDataset(Dataset):
    """
    Whole images through the image processor, masks at their own size.

    Args:
        dataset (`datasets.Dataset`): an image and a mask column.
        image_processor: what inference uses, e.g. [`~transformers.SegformerImageProcessor`].
        num_labels (`int`): classes.
        ignore_index (`int`): label of pixels that do not count.
        image_column (`str`): name of the image column.
        label_column (`str`): name of the mask column.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        image_processor,
        num_labels: int,
        ignore_index: int = 255,
        image_column: str = "image",
        label_column: str = "label",
    ):
        self.dataset = dataset
        self.image_processor = image_processor
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.image_column = image_column
        self.label_column = label_column

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        """
        Returns:
            `dict[str, torch.Tensor]`: `pixel_values` float32 (3, height, width) as processed, `labels` int64 (mask
            height, mask width).
        """
        example = self.dataset[row]
        image = to_rgb(example[self.image_column])
        label = read_label(example[self.label_column], image.size, self.num_labels, self.ignore_index, f"row {row}")
        pixel_values = self.image_processor(images=image, return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixel_values, "labels": torch.from_numpy(label).long()}


@torch.no_grad()
def evaluate_batch(
    model: nn.Module, samples: Iterable[dict[str, torch.Tensor]], confusion: ConfusionMatrix, device: torch.device
) -> tuple[float, int]:
    """
    Predicts images of any sizes and adds them to a confusion matrix.

    Args:
        model (`nn.Module`): in eval mode.
        samples (`Iterable[dict[str, torch.Tensor]]`): of [`EvaluationDataset`]; neighbours of one size run together.
        confusion ([`ConfusionMatrix`]): updated in place.
        device (`torch.device`): of the model.

    Returns:
        `tuple[float, int]`: summed cross-entropy and the number of pixels in the sum.
    """
    loss_sum, num_pixels = 0.0, 0
    for _, group in groupby(samples, key=lambda sample: (sample["pixel_values"].shape, sample["labels"].shape)):
        group = list(group)
        labels = torch.stack([sample["labels"] for sample in group]).to(device)
        logits = model(pixel_values=torch.stack([sample["pixel_values"] for sample in group]).to(device)).logits
        logits = upsample(logits.float(), labels.shape[1:])
        confusion.update(logits.argmax(dim=1), labels)
        loss_sum += cross_entropy_sum(logits, labels, confusion.ignore_index).item()
        num_pixels += int((labels != confusion.ignore_index).sum())
    return loss_sum, num_pixels


__all__ = ["ConfusionMatrix", "EvaluationDataset", "evaluate_batch", "metric_name"]

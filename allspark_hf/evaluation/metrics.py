"""Metrics of semantic segmentation as sums over images: a confusion matrix, and boundary IoU."""

import math

import torch


COLLAPSE_RATIO = 0.25  # the least part of their share of the labels that other classes should keep


def collapses(share: float, in_labels: float) -> bool:
    """Whether a class with these shares of the pseudo-labels and of the labels leaves too little to the others."""
    return 1 - share < COLLAPSE_RATIO * (1 - in_labels)


class ConfusionMatrix:
    """
    Pixel counts by true and predicted class; constant memory for any number and size of images.

    Args:
        num_labels (`int`): classes.
        ignore_index (`int`, *optional*): label of pixels that do not count; None counts all pixels.
        device (`torch.device` or `str`, *optional*): where the counts live.

    Attributes:
        counts: int64 (true class, predicted class).
    """

    def __init__(self, num_labels: int, ignore_index: int | None = 255, device: torch.device | str | None = None):
        self.ignore_index = ignore_index
        self.counts = torch.zeros(num_labels, num_labels, dtype=torch.int64, device=device)

    def update(self, predictions: torch.Tensor, labels: torch.Tensor):
        """
        Args:
            predictions (`torch.Tensor`):
                integer, any shape, in [0, num_labels); where the label is `ignore_index`, any value.
            labels (`torch.Tensor`): integer of the same shape, in [0, num_labels) or `ignore_index`.

        Raises:
            ValueError: if the shapes differ, or a value is out of range, which the counts would put elsewhere.
        """
        num_labels = self.counts.shape[0]
        if predictions.shape != labels.shape:
            raise ValueError(
                f"Predictions have the shape {tuple(predictions.shape)}, labels {tuple(labels.shape)}: give one "
                "prediction for every label."
            )
        predictions, labels = predictions.long().flatten(), labels.long().flatten()
        if self.ignore_index is not None:
            valid = labels != self.ignore_index
            predictions, labels = predictions[valid], labels[valid]
        _check_range("label", labels, num_labels, self.ignore_index)
        _check_range("prediction", predictions, num_labels, None)
        pairs = labels * num_labels + predictions
        self.counts += torch.bincount(pairs, minlength=num_labels**2).view(num_labels, num_labels)

    def iou(self) -> torch.Tensor:
        """float64 (num_labels,) in [0, 1]; NaN for a class in neither labels nor predictions."""
        counts = self.counts.cpu().double()  # not every device has float64
        intersection = counts.diagonal()
        return intersection / (counts.sum(0) + counts.sum(1) - intersection)

    def accuracy(self) -> torch.Tensor:
        """float64 (num_labels,) in [0, 1], the share of a class's pixels that is found; NaN if no label has it."""
        counts = self.counts.cpu().double()
        return counts.diagonal() / counts.sum(1)

    def precision(self) -> torch.Tensor:
        """float64 (num_labels,) in [0, 1], the share of what is predicted as a class that is right; NaN if none is."""
        counts = self.counts.cpu().double()
        return counts.diagonal() / counts.sum(0)

    def pixel_share(self) -> torch.Tensor:
        """float64 (num_labels,) in [0, 1], the share of all labeled pixels that are of a class."""
        counts = self.counts.cpu().double()
        return counts.sum(1) / counts.sum().clamp(min=1)

    def metrics(self, id2label: dict[int, str], count_absent_classes: bool = False) -> dict[str, float]:
        """
        Metrics in [0, 1].

        Args:
            id2label (`dict[int, str]`): class names.
            count_absent_classes (`bool`):
                Whether a class in neither labels nor predictions counts as IoU 0 in the mean, as in the authors' code,
                instead of being left out.

        Returns:
            `dict[str, float]`: `mean_iou`, `mean_accuracy` (of the classes that some label has), `overall_accuracy`
            (of pixels), and `iou_<class>` of each class that is not absent (blanks in names as underscores). A mean
            of nothing is 0.
        """
        counts = self.counts.cpu().double()
        iou = self.iou()
        return {
            "mean_iou": mean_of(iou, count_absent_classes),
            "mean_accuracy": mean_of(self.accuracy()),
            "overall_accuracy": (counts.trace() / counts.sum().clamp(min=1)).item(),
            **by_class("iou", iou, id2label),
        }


class BoundaryCounts:
    """
    Boundary IoU of label maps with many classes, in constant memory. Source: *Boundary IoU: Improving Object-Centric
    Image Segmentation Evaluation*, CVPR 2021, Section 4, there for one binary mask at a time.

    A pixel is on the boundary of its own class if within d pixels of it (Chebyshev distance, that is in the square of
    2 d + 1 pixels a side around it) lies another class or the outside of the image: the mask of the class minus its
    erosion by d steps of a 3x3 square. d is `round(dilation_ratio * diagonal)` of the image, at least 1. Of each class
    the boundary pixels of labels and of predictions are intersected and united, and summed over images.

    Ignored pixels never count. They are a region of their own in both maps, so that its edge is a boundary in both.

    Args:
        num_labels (`int`): classes.
        ignore_index (`int`): label of pixels that do not count.
        device (`torch.device` or `str`, *optional*): where the counts live.
        dilation_ratio (`float`): d as a share of the image's diagonal; the source has 0.02.

    Attributes:
        counts: int64 (3, num_labels): boundary pixels in both maps, of the labels, of the predictions.
    """

    def __init__(
        self,
        num_labels: int,
        ignore_index: int = 255,
        device: torch.device | str | None = None,
        dilation_ratio: float = 0.02,
    ):
        self.ignore_index = ignore_index
        self.dilation_ratio = dilation_ratio
        self.counts = torch.zeros(3, num_labels, dtype=torch.int64, device=device)

    def update(self, predictions: torch.Tensor, labels: torch.Tensor):
        """
        Args:
            predictions (`torch.Tensor`): int64 (batch, height, width), in [0, num_labels).
            labels (`torch.Tensor`): int64 (batch, height, width), in [0, num_labels) or `ignore_index`.

        Raises:
            ValueError: if a label or a prediction is out of range.
        """
        num_labels = self.counts.shape[1]
        valid = labels != self.ignore_index
        _check_range("label", labels[valid], num_labels, self.ignore_index)
        _check_range("prediction", predictions[valid], num_labels, None)
        distance = boundary_distance(*labels.shape[1:], self.dilation_ratio)
        predictions = predictions.where(valid, self.ignore_index)
        of_labels = valid & on_boundary(labels, distance)
        of_predictions = valid & on_boundary(predictions, distance)
        in_both = of_labels & of_predictions & (labels == predictions)
        for row, values in enumerate((labels[in_both], labels[of_labels], predictions[of_predictions])):
            self.counts[row] += torch.bincount(values, minlength=num_labels)

    def iou(self) -> torch.Tensor:
        """float64 (num_labels,) in [0, 1]; NaN for a class in neither labels nor predictions."""
        in_both, of_labels, of_predictions = self.counts.cpu().double()
        return in_both / (of_labels + of_predictions - in_both)

    def metrics(self, id2label: dict[int, str], count_absent_classes: bool = False) -> dict[str, float]:
        """`mean_boundary_iou` and `boundary_iou_<class>`, as [`ConfusionMatrix.metrics`] has them for IoU."""
        iou = self.iou()
        return {
            "mean_boundary_iou": mean_of(iou, count_absent_classes),
            **by_class("boundary_iou", iou, id2label),
        }


def boundary_distance(height: int, width: int, dilation_ratio: float = 0.02) -> int:
    """Width in pixels of the boundary of an image's regions: a share of the image's diagonal, at least 1."""
    return max(1, round(dilation_ratio * math.hypot(height, width)))


def on_boundary(label_map: torch.Tensor, distance: int) -> torch.Tensor:
    """
    Whether another value, or the outside of the image, lies within a Chebyshev distance.

    Args:
        label_map (`torch.Tensor`): integer (batch, height, width).
        distance (`int`): pixels, at least 1.

    Returns:
        `torch.Tensor`: bool (batch, height, width).
    """
    height, width = label_map.shape[1:]
    boundary = torch.ones_like(label_map, dtype=torch.bool)
    if min(height, width) > 2 * distance:  # else the outside is near everywhere
        # A square holds two values exactly if two neighbors in it differ, below or beside each other.
        side = 2 * distance + 1
        below = _any_in_boxes(label_map[:, 1:] != label_map[:, :-1], side - 1, side)
        beside = _any_in_boxes(label_map[:, :, 1:] != label_map[:, :, :-1], side, side - 1)
        boundary[:, distance : height - distance, distance : width - distance] = below | beside
    return boundary


def _any_in_boxes(flags: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Whether any flag (batch, rows, columns) is set in each box that fits: bool (batch, rows - height + 1, ...)."""
    # Summed-area table: the cost does not depend on the size of the boxes.
    table = flags.cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)
    table = torch.nn.functional.pad(table, (1, 0, 1, 0))
    rows = table[:, height:] - table[:, :-height]
    return (rows[:, :, width:] - rows[:, :, :-width]) > 0


def _check_range(what: str, values: torch.Tensor, num_labels: int, ignore_index: int | None):
    if values.numel() == 0:
        return
    low, high = (int(value) for value in values.aminmax())
    if low < 0 or high >= num_labels:
        ignored = "" if ignore_index is None else f", or the label {ignore_index} of ignored pixels,"
        raise ValueError(
            f"A {what} is {low if low < 0 else high}, but there are the classes 0 to {num_labels - 1}: give one of "
            f"these{ignored} for every pixel."
        )


def metric_name(label: str) -> str:
    """A class name without blanks, which TensorBoard tags cannot have."""
    return "_".join(label.split())


def by_class(prefix: str, values: torch.Tensor, id2label: dict[int, str]) -> dict[str, float]:
    """`<prefix>_<class>` of each class whose value in the float64 (num_labels,) `values` is not NaN."""
    return {
        f"{prefix}_{metric_name(id2label[index])}": value
        for index, value in enumerate(values.tolist())
        if not math.isnan(value)
    }


def mean_of(values: torch.Tensor, count_absent_classes: bool = False) -> float:
    """Mean over classes; a NaN is left out or counts as 0, and a mean of nothing is 0."""
    if count_absent_classes:
        values = values.nan_to_num(0)
    return values.nanmean().nan_to_num(0).item()

"""
Mean IoU as an `evaluate.Metric` that keeps counts instead of images.

In a file of its own because it needs the `evaluate` package, which scripts/evaluate.py would hide.
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
import torch

from .metrics import ConfusionMatrix


_DESCRIPTION = "Mean intersection over union of semantic segmentation, from counts that are updated image by image."
_INPUTS = """
Predictions and references are label maps: whole numbers (height, width) of any size, as arrays, tensors, lists or
one-channel PIL images.
"""


class MeanIoU(evaluate.Metric):
    """
    A drop-in for `evaluate.load("mean_iou")`: the same arguments and the same values, without network and in constant
    memory, however many images are added.

    Every pixel is counted on arrival by its stored label and prediction, `num_values` x `num_values` int64 counts;
    what is a class, ignored or renamed is decided by the arguments of [`~MeanIoU.compute`].

    It differs from evaluate's own in these points, and in nothing else:
    - Values outside [0, num_values), and predictions of another size than their reference, are refused.
    - Nothing is written to files, so that it cannot join processes itself (`num_process` above 1 is refused). Add up
      `metric.confusion.counts` of all processes instead, e.g. by `accelerator.reduce(..., reduction="sum")`.
    - Arrays that are passed in are not changed.

    The metrics of training and of `allspark evaluate` ([`ConfusionMatrix.metrics`]) agree with these, except for what
    does not occur: a class in neither references nor predictions has NaN here and no entry there (both leave it out of
    the mean), and a mean of nothing is NaN here and 0 there. A label that is neither a class nor `ignore_index` counts
    here, as in evaluate, against the predicted class only; there it is an error.

    Args:
        num_values (`int`, *optional*, defaults to 256): values in predictions and references are below this.
        kwargs: of `evaluate.Metric`.

    Attributes:
        confusion ([`ConfusionMatrix`]): int64 counts (reference value, predicted value), ignored ones included.

    Raises:
        ValueError: if `num_process` is above 1.

    Example:

    ```python
    >>> from allspark_hf.evaluation.metric import MeanIoU

    >>> metric = MeanIoU()
    >>> metric.add_batch(predictions=[[[0, 1], [1, 1]]], references=[[[0, 1], [0, 255]]])
    >>> round(float(metric.compute(num_labels=2, ignore_index=255)["mean_iou"]), 3)
    0.5
    ```"""

    def __init__(self, num_values: int = 256, **kwargs):
        super().__init__(**kwargs)
        if self.num_process > 1:
            raise ValueError(
                f"num_process={self.num_process}: MeanIoU writes no files that processes could share; leave it out, "
                "and add up metric.confusion.counts of all processes before compute."
            )
        self.info.module_name = "mean_iou"  # evaluate would make mean_io_u of the class name
        self.num_values = num_values
        self._reset()

    def _reset(self):
        self.confusion = ConfusionMatrix(self.num_values, ignore_index=None)
        self._num_images = 0

    def _info(self) -> evaluate.MetricInfo:
        label_map = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": label_map, "references": label_map}),
        )

    def __len__(self) -> int:
        """Images added since the last compute."""
        return self._num_images

    def add(self, *, prediction=None, reference=None):
        """Count one image: its predicted and its true label map."""
        prediction, reference = _to_tensor(prediction), _to_tensor(reference)
        self.confusion.update(prediction, reference)
        self._num_images += 1

    def add_batch(self, *, predictions=None, references=None):
        """Count several images, whose sizes may differ: sequences, or arrays (batch, height, width)."""
        if predictions is None or references is None or len(predictions) != len(references):
            counts = [0 if maps is None else len(maps) for maps in (predictions, references)]
            raise ValueError(f"There are {counts[0]} predictions and {counts[1]} references: give as many of each.")
        for prediction, reference in zip(predictions, references, strict=True):
            self.add(prediction=prediction, reference=reference)

    def compute(
        self,
        *,
        predictions=None,
        references=None,
        num_labels: int | None = None,
        ignore_index: int | None = None,
        nan_to_num: float | None = None,
        label_map: dict[int, int] | None = None,
        reduce_labels: bool = False,
    ) -> dict[str, float | np.ndarray]:
        """
        Metrics of all images added since the last call, which this forgets.

        Args:
            predictions, references (*optional*): images to add first, as in `add_batch`.
            num_labels (`int`): classes; needed.
            ignore_index (`int`): reference value of pixels that do not count; needed.
            nan_to_num (`float`, *optional*): instead of NaN, for what has no pixels.
            label_map (`dict[int, int]`, *optional*): reference values to replace, one after another.
            reduce_labels (`bool`): replace the reference values 0 and 255 by 255, and others by one less.

        Returns:
            `dict`: `mean_iou`, `mean_accuracy`, `overall_accuracy` (float in [0, 1] or NaN), `per_category_iou`,
            `per_category_accuracy` (float64 (num_labels,)).
        """
        if num_labels is None or ignore_index is None:
            raise ValueError("compute needs num_labels and ignore_index, e.g. num_labels=21, ignore_index=255.")
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        if not self._num_images:
            raise ValueError("No image was added: call add or add_batch before compute.")
        values = _replaced_values(self.num_values, label_map or {}, reduce_labels)
        metrics = _metrics(self.confusion.counts.numpy(), values, num_labels, ignore_index)
        self._reset()
        if nan_to_num is not None:
            metrics = {name: np.nan_to_num(value, nan=nan_to_num) for name, value in metrics.items()}
        return metrics


def _to_tensor(label_map) -> torch.Tensor:
    """Whole numbers (height, width) of any kind as a tensor on the CPU."""
    if label_map is None:
        raise ValueError("A prediction or reference is None: give a label map (height, width).")
    if isinstance(label_map, torch.Tensor):
        label_map = label_map.detach().cpu()
    array = np.asarray(label_map)
    if array.ndim != 2 or array.dtype.kind not in "iub":
        raise ValueError(
            f"A label map has the shape {array.shape} and the type {array.dtype}: give whole numbers (height, width)."
        )
    return torch.from_numpy(array.astype(np.int64))


def _replaced_values(num_values: int, label_map: dict[int, int], reduce_labels: bool) -> np.ndarray:
    """int64 (num_values,): what each stored reference value stands for."""
    values = np.arange(num_values)
    for old, new in label_map.items():
        values[values == old] = new
    if reduce_labels:
        values[values == 0] = 255
        values -= 1
        values[values == 254] = 255
    return values


def _metrics(counts: np.ndarray, values: np.ndarray, num_labels: int, ignore_index: int) -> dict:
    """From counts (stored reference value, predicted value) and what each reference value stands for."""
    counts = counts[values != ignore_index]
    values = values[values != ignore_index]
    classes = np.arange(num_labels)
    # (class, predicted value): the rows whose value stands for the class
    by_class = np.stack([counts[values == index].sum(axis=0) for index in classes])
    intersection = _columns(by_class, classes).diagonal()
    of_references = by_class.sum(axis=1)
    of_predictions = _columns(counts, classes).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = intersection / (of_references + of_predictions - intersection)
        accuracy = intersection / of_references
        overall = intersection.sum() / of_references.sum()
    return {
        "mean_iou": _nan_mean(iou),
        "mean_accuracy": _nan_mean(accuracy),
        "overall_accuracy": overall,
        "per_category_iou": iou,
        "per_category_accuracy": accuracy,
    }


def _columns(counts: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """The columns of the classes; a class above every value that can be stored has zeros."""
    missing = max(0, len(classes) - counts.shape[1])
    return np.pad(counts, ((0, 0), (0, missing)))[:, : len(classes)]


def _nan_mean(values: np.ndarray) -> np.float64:
    return np.float64(np.nan) if np.isnan(values).all() else np.nanmean(values)

"""Evaluation of semantic segmentation: sums over images, each scored at its mask's own size."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby, zip_longest

import datasets
import numpy as np
import torch
from accelerate.utils import gather_object
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from ..data.columns import exact_columns
from ..data.masks import CLASS_INDICES, MaskConvention, read_label
from ..data.pixels import PLAIN, Reading, to_rgb
from ..data.reading import read_or_replace
from ..models.upsampling import cross_entropy_sum
from .arguments import EvaluationArguments, eval_crop
from .intervals import image_counts
from .metrics import BoundaryCounts, ConfusionMatrix
from .prediction import center_crop, predict_logits


class EvaluationDataset(Dataset):
    """
    Whole images through the image processor, masks at their own size.

    Args:
        dataset (`datasets.Dataset`): an image and a mask column.
        image_processor: what inference uses.
        num_labels (`int`): classes.
        masks ([`MaskConvention`]): what the values of the masks mean.
        image_column (`str`): name of the image column.
        label_column (`str`): name of the mask column.
        reading ([`Reading`]): how image files are read.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        image_processor,
        num_labels: int,
        masks: MaskConvention = CLASS_INDICES,
        image_column: str = "image",
        label_column: str = "label",
        reading: Reading = PLAIN,
    ):
        self.dataset = exact_columns(dataset, image_column, label_column, reading.tiff_page)
        self.reading = reading
        self.image_processor = image_processor
        self.num_labels = num_labels
        self.masks = masks
        self.image_column = image_column
        self.label_column = label_column

    @classmethod
    def of(
        cls, dataset: datasets.Dataset, image_processor, config, image_column="image", label_column="label"
    ) -> "EvaluationDataset":
        """With classes, convention of masks and reading of images of a model's configuration."""
        of_config = MaskConvention.of(config), image_column, label_column, Reading.of(config)
        return cls(dataset, image_processor, config.num_labels, *of_config)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        """
        Returns:
            `dict[str, torch.Tensor]`: `pixel_values` float32 (3, height, width) as processed, `labels` int64 (mask
            height, mask width).

        Raises:
            BadImageError: if the image or its mask cannot be read; an evaluation leaves none out.
        """
        return read_or_replace(self._read, row, self.dataset, (self.image_column, self.label_column))

    def _read(self, row: int) -> dict[str, torch.Tensor]:
        example = self.dataset[row]
        image = to_rgb(example[self.image_column], self.reading)
        where = f"row {row}" + (f" ({example['id']})" if "id" in example else "")
        label = read_label(example[self.label_column], image.size, self.num_labels, self.masks, where)
        pixel_values = self.image_processor(images=image, return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixel_values, "labels": torch.from_numpy(label).long()}


class Evaluation:
    """
    Sums over the images of a data set. Of each image only three numbers per class are kept.

    Args:
        config ([`~transformers.PreTrainedConfig`]): of the model: classes, ignore index, training crop.
        args ([`EvaluationArguments`]): how to predict and what to measure.
        device (`torch.device`): of the model.

    Attributes:
        confusion ([`ConfusionMatrix`]): pixels by true and predicted class.
        boundary ([`BoundaryCounts`], *optional*): with `eval_boundary_iou`.
        loss_sum (`float`): cross-entropy summed over pixels, of the logits that [`predict_logits`] gives.
        num_pixels (`int`): pixels that are not ignored.
        num_images (`int`): images.
        by_image (`list[np.ndarray]`): [`image_counts`] of each image, in the order of the data set.
    """

    def __init__(self, config, args: EvaluationArguments, device: torch.device):
        self.config, self.args, self.device = config, args, device
        num_labels, ignore_index = config.num_labels, config.semantic_loss_ignore_index
        self.confusion = ConfusionMatrix(num_labels, ignore_index, device)
        self.boundary = None
        if args.eval_boundary_iou:
            self.boundary = BoundaryCounts(num_labels, ignore_index, device, args.eval_boundary_ratio)
        self.loss_sum, self.num_pixels, self.num_images = 0.0, 0, 0
        self.by_image: list[np.ndarray] = []

    @torch.no_grad()
    def add(self, model: PreTrainedModel, samples: Iterable[dict[str, torch.Tensor]]):
        """
        Predicts and scores images of any sizes; neighbors of one size run together.

        Args:
            model (`Callable`): `model(pixel_values=...).logits`, with a `dtype`; in eval mode, on the device.
            samples (`Iterable[dict[str, torch.Tensor]]`): of [`EvaluationDataset`].

        Raises:
            ValueError: if an image cannot be predicted or scored as the arguments say.
        """
        for _, group in groupby(samples, key=lambda sample: (sample["pixel_values"].shape, sample["labels"].shape)):
            group = list(group)
            pixel_values = torch.stack([sample["pixel_values"] for sample in group]).to(self.device)
            labels = torch.stack([sample["labels"] for sample in group]).to(self.device)
            if self.args.eval_mode == "center_crop":
                pixel_values, labels = self._cut_center(pixel_values, labels)
            logits = predict_logits(model, pixel_values, labels.shape[1:], self.args)
            self._score(logits, labels)

    def _cut_center(self, pixel_values, labels) -> tuple[torch.Tensor, torch.Tensor]:
        if pixel_values.shape[2:] != labels.shape[1:]:
            raise ValueError(
                f"An image is resized to {tuple(pixel_values.shape[2:])}, its mask is {tuple(labels.shape[1:])} "
                "(height, width), so that no crop of both shows the same pixels: evaluate with eval_mode whole or "
                "sliding_window, or with do_resize=False in the image processor."
            )
        crop = eval_crop(self.args, self.config)
        return center_crop(pixel_values, crop), center_crop(labels, crop)

    def _score(self, logits: torch.Tensor, labels: torch.Tensor):
        predictions = logits.argmax(dim=1)
        for predicted, label in zip(predictions, labels, strict=True):
            of_image = ConfusionMatrix(len(self.confusion.counts), self.confusion.ignore_index, self.device)
            of_image.update(predicted, label)
            self.confusion.counts += of_image.counts
            self.by_image.append(image_counts(of_image.counts.cpu().numpy()))
        if self.boundary is not None:
            self.boundary.update(predictions, labels)
        self.loss_sum += cross_entropy_sum(logits, labels, self.confusion.ignore_index).item()
        self.num_pixels += int((labels != self.confusion.ignore_index).sum())
        self.num_images += len(labels)

    def reduce(self, accelerator):
        """
        Adds up the sums of all processes, in all of them; each process must have added other images.

        Args:
            accelerator ([`~accelerate.Accelerator`]): that the processes have in common.
        """
        counted = [self.confusion] + ([self.boundary] if self.boundary is not None else [])
        for counts in counted:
            counts.counts = accelerator.reduce(counts.counts, reduction="sum")
        loss_sum = torch.tensor(self.loss_sum, device=self.device)
        self.loss_sum = accelerator.reduce(loss_sum, reduction="sum").item()
        sizes = torch.tensor([self.num_pixels, self.num_images], device=self.device)
        self.num_pixels, self.num_images = accelerator.reduce(sizes, reduction="sum").tolist()
        # Each process had every n-th image.
        shares = gather_object([self.by_image])
        self.by_image = [one for row in zip_longest(*shares) for one in row if one is not None]

    def metrics(self) -> dict[str, float]:
        """
        Returns:
            `dict[str, float]`: `loss` (mean cross-entropy of a pixel), [`ConfusionMatrix.metrics`], and with
            `eval_boundary_iou` [`BoundaryCounts.metrics`].
        """
        names = self.config.id2label, self.args.count_absent_classes
        boundary = {} if self.boundary is None else self.boundary.metrics(*names)
        return {"loss": self.loss_sum / max(self.num_pixels, 1), **self.confusion.metrics(*names), **boundary}

    def per_class(self) -> list[dict[str, int | float | str | None]]:
        """
        Returns:
            `list[dict]`: for each class its `index` and `name`, and in [0, 1] `iou`, `accuracy`, with
            `eval_boundary_iou` also `boundary_iou`, and `pixel_share` of the labels. What is not defined for a class
            that does not occur is None.
        """
        columns = {"iou": self.confusion.iou(), "accuracy": self.confusion.accuracy()}
        if self.boundary is not None:
            columns["boundary_iou"] = self.boundary.iou()
        columns["pixel_share"] = self.confusion.pixel_share()
        values = {name: [None if x != x else x for x in column.tolist()] for name, column in columns.items()}
        return [
            {"index": index, "name": self.config.id2label[index], **{name: values[name][index] for name in values}}
            for index in range(self.config.num_labels)
        ]


class OtherProcessError(RuntimeError):
    """Another process failed; the message is its error."""


@contextmanager
def failing_together(accelerator) -> Iterator[None]:
    """
    While processes work apart from each other, an error in one of them ends all of them, so that none waits for it.

    Args:
        accelerator ([`~accelerate.Accelerator`]): that the processes have in common.

    Raises:
        OtherProcessError: in the processes that did not fail; the others raise their own error.
    """
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    failed = torch.tensor(int(failure is not None), device=accelerator.device)
    if not accelerator.reduce(failed, reduction="sum"):
        return
    # Everybody gets the message: a launcher may kill the process that failed before it can speak.
    messages = gather_object([failure and f"{type(failure).__name__}: {failure}"])
    if failure is not None:
        raise failure
    raise OtherProcessError(next(filter(None, messages)))

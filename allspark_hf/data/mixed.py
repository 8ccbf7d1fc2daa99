"""Mixed batches: labeled and unlabeled images in one, from two `datasets.Dataset`s or a dataset and a stream."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import BatchSampler, Dataset

from .augmentation import random_geometry, random_photometry, to_pixel_values
from .images import to_rgb
from .labels import read_label
from .streaming import StreamReader


class Draw(NamedTuple):
    """One sample of an epoch. Everything random about it follows from the seed and these four."""

    labeled: bool
    row: int  # of its dataset, or position in the stream
    epoch: int
    position: int  # in the epoch's labeled or unlabeled order


class MixedBatchSampler(BatchSampler):
    """
    Batches of [labeled draws, unlabeled draws], all of one size.

    An epoch is one pass over the unlabeled set. The labeled set repeats to that length, reshuffled each time round.
    What is drawn depends on seed, epoch and position only: batch size, accumulation and processes cut one order.

    Args:
        num_labeled (`int`): rows of the labeled dataset.
        num_unlabeled (`int`): rows of the unlabeled dataset; 0 makes an epoch one pass over the labeled set.
        labeled_batch_size (`int`): labeled images of a batch.
        unlabeled_batch_size (`int`): unlabeled images of a batch.
        seed (`int`): of the shuffling.
        drop_last (`bool`): whether to drop a last batch that the set does not fill; otherwise the next round of
            shuffling fills it.
        read_unlabeled (`bool`): False leaves the unlabeled half out but keeps the epoch's length.
        unlabeled_stream (`bool`): whether the unlabeled images are a stream, which has an order of its own: an epoch
            is then the next `num_unlabeled` of it, and a draw's row is the position in the stream.
    """

    def __init__(
        self,
        num_labeled: int,
        num_unlabeled: int,
        labeled_batch_size: int,
        unlabeled_batch_size: int,
        seed: int,
        drop_last: bool = False,
        read_unlabeled: bool = True,
        unlabeled_stream: bool = False,
    ):
        self.num_labeled = num_labeled
        self.num_unlabeled = num_unlabeled
        self.labeled_batch_size = labeled_batch_size
        self.unlabeled_batch_size = unlabeled_batch_size if num_unlabeled and read_unlabeled else 0
        self.seed = seed
        self.drop_last = drop_last
        self.unlabeled_stream = unlabeled_stream
        self.epoch = 0
        pace, per_batch = (num_unlabeled, unlabeled_batch_size) if num_unlabeled else (num_labeled, labeled_batch_size)
        self.num_batches = pace // per_batch if drop_last else math.ceil(pace / per_batch)

    @property
    def batch_size(self) -> int:
        """Images of a batch; accelerate compares it to a batch's length to see that it is full."""
        return self.labeled_batch_size + self.unlabeled_batch_size

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[Draw]]:
        labeled = self._order(True, self.num_labeled)
        unlabeled = self._stream_order() if self.unlabeled_stream else self._order(False, self.num_unlabeled)
        for _ in range(self.num_batches):
            batch = [next(labeled) for _ in range(self.labeled_batch_size)]
            yield batch + [next(unlabeled) for _ in range(self.unlabeled_batch_size)]

    def _order(self, labeled: bool, num_rows: int) -> Iterator[Draw]:
        epoch, position, round_number = self.epoch, 0, 0
        while True:
            rng = np.random.default_rng([self.seed, epoch, labeled, round_number])
            for row in rng.permutation(num_rows):
                yield Draw(labeled, int(row), epoch, position)
                position += 1
            round_number += 1

    def _stream_order(self) -> Iterator[Draw]:
        first = self.epoch * self.num_unlabeled
        for position in itertools.count():
            yield Draw(False, first + position, self.epoch, position)


class MixedDataset(Dataset):
    """
    Augmented crops of two datasets, addressed by [`Draw`].

    Args:
        labeled (`datasets.Dataset`): an image and a mask column.
        unlabeled (`datasets.Dataset` or [`StreamReader`], *optional*): an image column.
        crop (`tuple[int, int]`): (height, width).
        seed (`int`): of the augmentation.
        num_labels (`int`): classes.
        long_side (`int`, *optional*): see [`random_geometry`].
        image_mean (`tuple[float, ...]`): of the normalisation.
        image_std (`tuple[float, ...]`): of the normalisation.
        ignore_index (`int`): label of padding and of pixels that do not count.
        image_column (`str`): name of the image column.
        label_column (`str`): name of the mask column.
    """

    def __init__(
        self,
        labeled: datasets.Dataset,
        unlabeled: datasets.Dataset | StreamReader | None,
        crop: tuple[int, int],
        seed: int,
        num_labels: int,
        long_side: int | None,
        image_mean: tuple[float, ...],
        image_std: tuple[float, ...],
        ignore_index: int = 255,
        image_column: str = "image",
        label_column: str = "label",
    ):
        self.labeled = labeled
        # Without the mask column, a mask that an unlabeled row happens to have is not even decoded.
        if unlabeled is not None and not isinstance(unlabeled, StreamReader):
            unlabeled = unlabeled.select_columns([image_column])
        self.unlabeled = unlabeled
        self.crop = crop
        self.seed = seed
        self.num_labels = num_labels
        self.long_side = long_side
        self.image_mean = image_mean
        self.image_std = image_std
        self.ignore_index = ignore_index
        self.image_column = image_column
        self.label_column = label_column

    def __len__(self) -> int:
        return len(self.labeled) + (0 if self.unlabeled is None else len(self.unlabeled))

    def __getitem__(self, draw: Draw) -> dict[str, torch.Tensor]:
        """
        Returns:
            `dict[str, torch.Tensor]`: `pixel_values` float32 (3, height, width), and for a labeled draw `labels` int64
            (height, width), for an unlabeled one `pixel_mask` bool (height, width), False on padding.
        """
        rng = np.random.default_rng([self.seed, draw.epoch, draw.labeled, draw.position])
        example = (self.labeled if draw.labeled else self.unlabeled)[draw.row]
        image = to_rgb(example[self.image_column])
        label = Image.fromarray(self._label(example, image, draw.row)) if draw.labeled else None
        image, label = random_geometry(image, label, self.crop, rng, self.long_side, self.ignore_index)
        if draw.labeled:
            image = random_photometry(image, rng)
        pixel_values = to_pixel_values(image, self.image_mean, self.image_std)
        label = torch.from_numpy(np.array(label))
        if draw.labeled:
            return {"pixel_values": pixel_values, "labels": label.long()}
        return {"pixel_values": pixel_values, "pixel_mask": label != self.ignore_index}

    def _label(self, example: dict, image: Image.Image, row: int) -> np.ndarray:
        mask = example[self.label_column]
        return read_label(mask, image.size, self.num_labels, self.ignore_index, f"labeled row {row}")


@dataclass
class MixedBatchCollator:
    """
    Stacks the two halves of a mixed batch apart.

    ```python
    >>> collate = MixedBatchCollator()
    >>> labeled = {"pixel_values": torch.zeros(3, 2, 2), "labels": torch.tensor([[0, 1], [1, 255]])}
    >>> unlabeled = {"pixel_values": torch.ones(3, 2, 2), "pixel_mask": torch.tensor([[True, True], [True, False]])}
    >>> {name: tuple(tensor.shape) for name, tensor in collate([labeled, labeled, unlabeled]).items()}
    {'pixel_values': (2, 3, 2, 2), 'labels': (2, 2, 2), 'unlabeled_pixel_values': (1, 3, 2, 2), 'unlabeled_pixel_mask': (1, 2, 2)}
    ```
    """  # noqa: E501 (doctest output)

    def __call__(self, samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        labeled = [sample for sample in samples if "labels" in sample]
        unlabeled = [sample for sample in samples if "labels" not in sample]
        batch = {
            "pixel_values": torch.stack([sample["pixel_values"] for sample in labeled]),
            "labels": torch.stack([sample["labels"] for sample in labeled]),
        }
        if unlabeled:
            batch["unlabeled_pixel_values"] = torch.stack([sample["pixel_values"] for sample in unlabeled])
            batch["unlabeled_pixel_mask"] = torch.stack([sample["pixel_mask"] for sample in unlabeled])
        return batch


__all__ = ["Draw", "MixedBatchCollator", "MixedBatchSampler", "MixedDataset"]

"""Mixed batches: labeled and unlabeled images in one, from two `datasets.Dataset`s or a dataset and a stream."""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import BatchSampler, Dataset

from .columns import exact_columns
from .device_photometry import pack_photometry
from .geometry import crop_image, crop_label, draw_geometry, shown_pixels
from .masks import CLASS_INDICES, MaskConvention, read_label
from .photometry import apply_photometry, draw_photometry, to_pixel_values
from .pixels import PLAIN, Reading, to_rgb
from .reading import read_or_replace
from .streaming import StreamReader
from .views import CHANNEL_BITS, STRONG, WEAK, View, draw_cutmix_box


BOOKMARK = "bookmark"  # in a sample and a batch, of a stream


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
        drop_last (`bool`): whether to drop a last update that the set does not fill; otherwise the next round of
            shuffling fills its last batch.
        read_unlabeled (`bool`): False leaves the unlabeled half out but keeps the epoch's length.
        batches_per_update (`int`): batches of one update over all processes and accumulation steps.
        unlabeled_stream (`bool`): whether the unlabeled images are a stream, which has an order of its own: an epoch
            is then the next images of it, and a draw's row is the position in the stream, see [`StreamReader`].

    Raises:
        ValueError: if `drop_last` leaves nothing of the epoch.
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
        batches_per_update: int = 1,
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
        self.num_batches = math.ceil(pace / per_batch)
        if drop_last:
            self.num_batches = pace // (per_batch * batches_per_update) * batches_per_update
            if not self.num_batches:
                raise ValueError(
                    f"An epoch has {pace} images and one update needs {per_batch * batches_per_update}, so "
                    "dataloader_drop_last=True leaves nothing to train on: set it to False, or make batches smaller."
                )

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
        first = self.epoch * self.num_batches * self.unlabeled_batch_size
        for position in itertools.count():
            yield Draw(False, first + position, self.epoch, position)


class MixedDataset(Dataset):
    """
    Augmented crops of two datasets, addressed by [`Draw`]. All views of a sample show one crop.

    Args:
        labeled (`datasets.Dataset`): an image and a mask column.
        unlabeled (`datasets.Dataset` or [`StreamReader`], *optional*):
            an image column; a mask column, where a row may be None, is for measuring pseudo-labels only.
        crop (`tuple[int, int]`): (height, width).
        seed (`int`): of the augmentation.
        num_labels (`int`): classes.
        long_side (`int`, *optional*): see [`draw_geometry`].
        image_mean (`tuple[float, ...]`): of the normalization.
        image_std (`tuple[float, ...]`): of the normalization.
        labeled_views (`tuple[View, ...]`): of every labeled image.
        unlabeled_views (`tuple[View, ...]`): of every unlabeled image.
        masks ([`MaskConvention`]): what the values of the masks mean; padding gets its ignore index.
        image_column (`str`): name of the image column.
        label_column (`str`): name of the mask column.
        on_bad_image (`str`): "stop" or "skip", see [`read_or_replace`].
        augment_on_device (`bool`): leave photometry and normalization to [`~device_photometry.finish_on_device`].
        reading ([`Reading`]): how image files are read.
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
        labeled_views: tuple[View, ...] = (STRONG,),
        unlabeled_views: tuple[View, ...] = (WEAK,),
        masks: MaskConvention = CLASS_INDICES,
        image_column: str = "image",
        label_column: str = "label",
        on_bad_image: str = "stop",
        augment_on_device: bool = False,
        reading: Reading = PLAIN,
    ):
        self.labeled = exact_columns(labeled, image_column, label_column, reading.tiff_page)
        self.unlabeled = exact_columns(unlabeled, image_column, label_column, reading.tiff_page)
        self.reading = reading
        self.has_truth = isinstance(unlabeled, datasets.Dataset) and label_column in unlabeled.column_names
        self.crop = crop
        self.seed = seed
        self.num_labels = num_labels
        self.long_side = long_side
        self.image_mean = image_mean
        self.image_std = image_std
        self.labeled_views = labeled_views
        self.unlabeled_views = unlabeled_views
        self.masks = masks
        self.image_column = image_column
        self.label_column = label_column
        self.on_bad_image = on_bad_image
        self.augment_on_device = augment_on_device

    def __len__(self) -> int:
        return len(self.labeled) + (0 if self.unlabeled is None else len(self.unlabeled))

    def __getitem__(self, draw: Draw) -> dict[str, torch.Tensor]:
        """
        Returns:
            `dict[str, torch.Tensor]`: of each view `pixel_values` float32 (3, height, width) and, if the view has
            them, `cutmix_box` int64 (4,), `channel_bits` uint8 (512,) and what its `draw` gives; of a labeled draw
            `labels` int64 (height, width); of an unlabeled one `pixel_mask` bool (height, width), False on padding,
            and, if there is a mask column, `truth` int64 (height, width), the ignore index where the truth is not
            known; of a stream also the [`Bookmark`] behind it. The entries of every view but the first end in `_<name
            of the view>`. With `augment_on_device`, `pixel_values` are uint8, and each strong view has a `photometry`,
            float32 (12,).

        Raises:
            BadImageError: if the image or its mask cannot be read.
        """
        rng = np.random.default_rng([self.seed, draw.epoch, draw.labeled, draw.position])
        dataset, columns = self.labeled if draw.labeled else self.unlabeled, (self.image_column, self.label_column)
        streamed = isinstance(dataset, StreamReader)  # which goes on to its own next image
        image, label = read_or_replace(
            lambda row: self._read(draw._replace(row=row)),
            draw.row,
            dataset,
            columns,
            None if streamed else self.on_bad_image,
        )
        geometry = draw_geometry(image.size, self.crop, rng, self.long_side)
        sample = self._views(crop_image(image, geometry), draw, rng)
        if streamed:
            sample[BOOKMARK] = dataset.bookmark
        if not draw.labeled:
            sample["pixel_mask"] = torch.from_numpy(shown_pixels(geometry).copy())
        if label is not None:
            label = crop_label(label, geometry, self.masks.ignore_index)
            sample["labels" if draw.labeled else "truth"] = torch.from_numpy(label.astype(np.int64))
        return sample

    def _views(self, image: Image.Image, draw: Draw, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """The first view draws on from the crop's generator, each further one from a generator of its own."""
        sample = {}
        for number, view in enumerate(self.labeled_views if draw.labeled else self.unlabeled_views):
            if number:
                rng = np.random.default_rng([self.seed, draw.epoch, draw.labeled, draw.position, number])
            suffix = f"_{view.name}" if number else ""
            sample |= {f"{name}{suffix}": tensor for name, tensor in self._view(image, view, rng).items()}
        return sample

    def _view(self, image: Image.Image, view: View, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        sample = {}
        drawn = draw_photometry(rng) if view.strong else None
        if view.cutmix:
            sample["cutmix_box"] = torch.tensor(draw_cutmix_box(self.crop, rng))
        if view.channel_bits:
            sample["channel_bits"] = torch.from_numpy(rng.integers(256, size=CHANNEL_BITS // 8, dtype=np.uint8))
        if view.draw:
            drawn_by_method = view.draw(self.crop, self.num_labels, rng)
            sample |= {name: torch.as_tensor(array) for name, array in drawn_by_method.items()}
        if not view.has_pixels:
            return sample
        if self.augment_on_device:
            sample["pixel_values"] = torch.from_numpy(np.array(image).transpose(2, 0, 1).copy())
            return sample if drawn is None else {**sample, "photometry": pack_photometry(drawn)}
        image = image if drawn is None else apply_photometry(image, drawn)
        return {**sample, "pixel_values": to_pixel_values(image, self.image_mean, self.image_std)}

    def _read(self, draw: Draw) -> tuple[Image.Image, np.ndarray | None]:
        example = (self.labeled if draw.labeled else self.unlabeled)[draw.row]
        image = to_rgb(example[self.image_column], self.reading)
        return image, self._label(example, image.size, draw) if draw.labeled or self.has_truth else None

    def _label(self, example: dict, size: tuple[int, int], draw: Draw) -> np.ndarray:
        """uint8 (height, width) of an image of `size` (width, height)."""
        mask = example.get(self.label_column)
        if mask is None and not draw.labeled:
            return np.full(size[::-1], self.masks.ignore_index, dtype=np.uint8)
        where = f"labeled row {draw.row}" if draw.labeled else f"unlabeled row {draw.row}"
        return read_label(mask, size, self.num_labels, self.masks, where)


class MixedBatch(dict):
    """
    One mixed batch, by name: what [`MixedDataset`] gives of each labeled image, stacked, and under the same names with
    `unlabeled_` in front of each unlabeled one. A first view's entries are

    - `pixel_values` (`torch.Tensor`): float32 (labeled, 3, height, width), normalized.
    - `labels` (`torch.Tensor`): int64 (labeled, height, width), class or the ignore index.
    - `unlabeled_pixel_values` (`torch.Tensor`): float32 (unlabeled, 3, height, width), normalized.
    - `unlabeled_pixel_mask` (`torch.Tensor`): bool (unlabeled, height, width), False on padding.
    - `unlabeled_truth` (`torch.Tensor`):
        int64 (unlabeled, height, width), class or the ignore index: masks that were hidden, to measure pseudo-labels
        by. No method trains on them.

    Raises:
        ValueError: if an entry is asked for that is not there.
    """

    def __missing__(self, name: str):
        raise ValueError(
            f"The batch has no {name}, only {', '.join(self)}: declare the view that gives it in the method's "
            "labeled_views or unlabeled_views."
        )


class MixedBatchCollator:
    """
    Stacks the two halves of a mixed batch apart, entry by entry. Of a stream, `bookmark` is the [`Bookmark`] behind the
    last image.

    Where unlabeled images have CutMix boxes, neighbors of the epoch's order (images 0 and 1, 2 and 3, ...) are put in
    mirrored places: CutMix mixes an image with its mirrored one, and so with the same one however the order is cut
    into batches of an even size, by accumulation or by processes.

    ```python
    >>> collate = MixedBatchCollator()
    >>> labeled = {"pixel_values": torch.zeros(3, 2, 2), "labels": torch.tensor([[0, 1], [1, 255]])}
    >>> unlabeled = {"pixel_values": torch.ones(3, 2, 2), "pixel_mask": torch.tensor([[True, True], [True, False]])}
    >>> {name: tuple(tensor.shape) for name, tensor in collate([labeled, labeled, unlabeled]).items()}
    {'pixel_values': (2, 3, 2, 2), 'labels': (2, 2, 2), 'unlabeled_pixel_values': (1, 3, 2, 2), 'unlabeled_pixel_mask': (1, 2, 2)}
    ```
    """  # noqa: E501 (doctest output)

    def __call__(self, samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        halves = {"": [sample for sample in samples if "labels" in sample]}
        unlabeled = [sample for sample in samples if "labels" not in sample]
        if unlabeled and any(name.startswith("cutmix_box") for name in unlabeled[0]):
            unlabeled = unlabeled[::2] + unlabeled[1::2][::-1]
        halves["unlabeled_"] = unlabeled
        marks = [sample.pop(BOOKMARK) for sample in samples if BOOKMARK in sample]
        batch = {
            f"{prefix}{name}": torch.stack([sample[name] for sample in half])
            for prefix, half in halves.items()
            for name in (half[0] if half else ())
        }
        return {**batch, BOOKMARK: marks[-1]} if marks else batch


__all__ = ["BOOKMARK", "Draw", "MixedBatch", "MixedBatchCollator", "MixedBatchSampler", "MixedDataset"]

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

from .columns import exact_columns, holds_pictures
from .device_photometry import pack_photometry
from .geometry import crop_image, crop_label, draw_geometry, shown_pixels
from .masks import CLASS_INDICES, MaskConvention, read_label
from .photometry import apply_photometry, draw_photometry, to_pixel_values
from .pixels import PLAIN, Reading, to_rgb
from .reading import read_or_replace
from .streaming import StreamReader
from .views import CHANNEL_BITS, STRONG, WEAK, View, draw_cutmix_box


BOOKMARK = "bookmark"  # entry of samples and batches from a stream


class Draw(NamedTuple):
    """One sample of an epoch. The seed and these four values decide everything random about it."""

    labeled: bool
    row: int  # number of the row in its dataset, or position in the stream
    epoch: int
    position: int  # position in the labeled or unlabeled order of the epoch


class MixedBatchSampler(BatchSampler):
    """
    Batches of [labeled draws, unlabeled draws], all of one size.

    An epoch is one pass over the unlabeled set. The labeled set repeats to that length, and is shuffled anew each
    time. The order depends only on seed and epoch: batch size, accumulation and processes only cut it into pieces.

    Args:
        num_labeled (`int`): rows of the labeled dataset.
        num_unlabeled (`int`): rows of the unlabeled dataset; 0 makes an epoch one pass over the labeled set.
        labeled_batch_size (`int`): labeled images of a batch.
        unlabeled_batch_size (`int`): unlabeled images of a batch.
        seed (`int`): seed of the shuffling.
        drop_last (`bool`): whether to drop a last update that the set does not fill; otherwise the set, shuffled anew,
            fills the last batch.
        read_unlabeled (`bool`): False leaves the unlabeled half out but keeps the length of the epoch.
        batches_per_update (`int`): batches of one update over all processes and accumulation steps.
        unlabeled_stream (`bool`): whether the unlabeled images are a stream, which has an order of its own: an epoch
            is then its next images, and the row of a draw is the position in the stream, see [`StreamReader`].

    Raises:
        ValueError: if `drop_last` drops the whole epoch.
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
        labeled (`datasets.Dataset`): rows with an image and a mask.
        unlabeled (`datasets.Dataset` or [`StreamReader`], *optional*):
            rows with an image; if there is a column of masks (or None), these serve only to measure pseudo-labels.
        crop (`tuple[int, int]`): (height, width) of the crops.
        seed (`int`): seed of the augmentation.
        num_labels (`int`): number of classes.
        long_side (`int`, *optional*): see [`draw_geometry`].
        image_mean (`tuple[float, ...]`): mean of each channel, for the normalization.
        image_std (`tuple[float, ...]`): standard deviation of each channel, for the normalization.
        labeled_views (`tuple[View, ...]`): views of every labeled image.
        unlabeled_views (`tuple[View, ...]`): views of every unlabeled image.
        masks ([`MaskConvention`]): what the values of the masks mean; padding gets the ignore index.
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
        self.has_truth = isinstance(unlabeled, datasets.Dataset) and holds_pictures(unlabeled, label_column)
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
            `dict[str, torch.Tensor]`: the entries of the views and of the draw.

            - Each view has `pixel_values` float32 (3, height, width) and, if declared, `cutmix_box` int64 (4,),
              `channel_bits` uint8 (512,) and what its `draw` gives. The names of every view but the first end in
              `_<name of the view>`. With `augment_on_device`, `pixel_values` are uint8, and each strong view has
              `photometry`, float32 (12,).
            - A labeled draw has `labels` int64 (height, width), class or the ignore index.
            - An unlabeled draw has `pixel_mask` bool (height, width), False on padding, and, if there is a mask
              column, `truth` int64 (height, width), the ignore index where the truth is not known.
            - A draw from a stream has the [`Bookmark`] after it.

        Raises:
            BadImageError: if the image or its mask cannot be read.
        """
        rng = np.random.default_rng([self.seed, draw.epoch, draw.labeled, draw.position])
        dataset, columns = self.labeled if draw.labeled else self.unlabeled, (self.image_column, self.label_column)
        streamed = isinstance(dataset, StreamReader)  # it replaces bad images itself
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
        """The first view draws from the generator of the crop, each other view from a generator of its own."""
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
    One mixed batch, by name: the entries of [`MixedDataset`] stacked over the labeled images, and, with `unlabeled_`
    before their names, over the unlabeled images. The entries of the first views are

    - `pixel_values` (`torch.Tensor`): float32 (labeled, 3, height, width), normalized.
    - `labels` (`torch.Tensor`): int64 (labeled, height, width), class or the ignore index.
    - `unlabeled_pixel_values` (`torch.Tensor`): float32 (unlabeled, 3, height, width), normalized.
    - `unlabeled_pixel_mask` (`torch.Tensor`): bool (unlabeled, height, width), False on padding.
    - `unlabeled_truth` (`torch.Tensor`):
        int64 (unlabeled, height, width), class or the ignore index: hidden masks, which serve only to measure
        pseudo-labels. No method trains on them.

    Raises:
        ValueError: if the batch does not have the entry.
    """

    def __missing__(self, name: str):
        raise ValueError(
            f"The batch has no {name}, only {', '.join(self)}: declare the view that gives it in the method's "
            "labeled_views or unlabeled_views."
        )


class MixedBatchCollator:
    """
    Stacks the labeled and the unlabeled half of a mixed batch, entry by entry. For a stream, `bookmark` is the
    [`Bookmark`] after the last image.

    CutMix mixes image n of a batch with the nth from its end. If unlabeled images have CutMix boxes, neighbors in the
    order of the epoch (images 0 and 1, 2 and 3, ...) get such places, so that each image has the same partner however
    accumulation or processes cut the order into batches of an even size.

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

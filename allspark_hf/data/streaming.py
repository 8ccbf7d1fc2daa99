"""Unlabeled images that are read as they come, for sets that are larger than the disk."""

import itertools
import logging
import math
from collections.abc import Iterable, Iterator

import datasets
import fsspec.asyn
import PIL.Image
from torch.utils.data import get_worker_info

from .columns import Picture
from .pixels import to_rgb
from .reading import require_columns


logger = logging.getLogger(__name__)


class StreamReader:
    """
    The images of a stream by their position, read forwards.

    The stream is one endless sequence: the dataset shuffled within a buffer, then the dataset shuffled anew, and so
    on. Position `epoch * images_per_epoch + n` is image n of an epoch, so what is drawn depends on the seed and the
    position alone, and an interrupted run resumes with the image that comes next. The order within a pass is that of
    `datasets.IterableDataset.shuffle`, which may change with the version of datasets.

    The price of this exactness: every process and every worker reads the whole stream and passes over, undecoded, what
    others train on. A position behind the last one read starts the stream again from its beginning.

    Args:
        dataset (`datasets.IterableDataset`): with a column of images, of paths or of encoded bytes.
        images_per_epoch (`int`): the images of an epoch, at least 1.
        seed (`int`): of the shuffling.
        buffer_size (`int`): images, as stored, that are shuffled at a time; with 0 or 1 every pass has the dataset's
            own order.
        image_column (`str`): name of the image column.
        image_range (`list[int]`, *optional*): the model's, of images of 16 bits, see [`to_rgb`].

    Raises:
        ValueError: if the dataset is known to have no such column.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        images_per_epoch: int,
        seed: int,
        buffer_size: int = 1000,
        image_column: str = "image",
        image_range: list[int] | None = None,
    ):
        self.image_range = image_range
        self.images_per_epoch = images_per_epoch
        self.seed = seed
        self.buffer_size = buffer_size
        self.image_column = image_column
        self._tokens = getattr(dataset, "_token_per_repo_id", None)  # for private repositories, as datasets keeps them
        self._dataset = undecoded_stream(dataset, image_column)
        self._rows: Iterator | None = None
        self._next = 0

    def __len__(self) -> int:
        """The images of an epoch; the stream itself has no end."""
        return self.images_per_epoch

    def __getitem__(self, position: int) -> dict[str, PIL.Image.Image]:
        """
        Args:
            position (`int`): in the endless sequence, from 0.

        Returns:
            `dict[str, PIL.Image.Image]`: the image, RGB and upright, under the name of its column.

        Raises:
            ValueError: if the stream has no row, no such column, or the image cannot be read.
        """
        if self._rows is None or position < self._next:
            self._restart(position)
        rows, self._rows = self._rows, None  # None if reading fails, so that another try starts anew
        stored = next(itertools.islice(rows, position - self._next, None))
        self._rows, self._next = rows, position + 1
        return {self.image_column: self._decode(stored, position)}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_rows": None, "_next": 0}  # a worker opens the stream itself

    def _restart(self, position: int):
        if position < self._next and self._rows is not None:
            logger.warning(
                "Image %d of the unlabeled stream is asked for after image %d: it is read again from its start.",
                position,
                self._next - 1,
            )
        if get_worker_info() is not None:
            fsspec.asyn.reset_lock()  # a forked worker has no copy of fsspec's thread, and would wait for it
        self._rows, self._next = self._endless(), 0

    def _endless(self) -> Iterator:
        for pass_number in itertools.count():
            num_rows = 0
            # Unlike __iter__, iter() does not split the dataset among the workers of a DataLoader.
            for batch in self._one_pass(pass_number).iter(batch_size=1):
                _require_column(self.image_column, batch)
                num_rows += 1
                yield batch[self.image_column][0]
            if num_rows == 0:
                raise ValueError("The stream of unlabeled images is empty: give a dataset with at least one image.")

    def _one_pass(self, pass_number: int) -> datasets.IterableDataset:
        if self.buffer_size <= 1:
            return self._dataset
        # A new object each time: the epoch of one that exists is shared by all workers.
        shuffled = self._dataset.shuffle(seed=self.seed, buffer_size=self.buffer_size)
        shuffled.set_epoch(pass_number)
        return shuffled

    def _decode(self, stored, position: int) -> PIL.Image.Image:
        feature = Picture()
        try:
            if stored is None:
                raise ValueError("the entry is empty")
            if isinstance(stored, PIL.Image.Image):
                return to_rgb(stored, self.image_range)
            if not isinstance(stored, dict):
                stored = feature.encode_example(stored)  # a path, or encoded bytes
            return to_rgb(feature.decode_example(stored, token_per_repo_id=self._tokens), self.image_range)
        # Broken files make Pillow raise nearly anything, among others SyntaxError and struct.error.
        except Exception as error:
            path = (stored.get("path") if isinstance(stored, dict) else None) or "without a path"
            raise ValueError(
                f"Image {position} of the unlabeled stream ({path}) cannot be read ({error}): remove it from the "
                "dataset, or filter it out of the stream."
            ) from error


def undecoded_stream(dataset: datasets.IterableDataset, image_column: str) -> datasets.IterableDataset:
    """
    A stream of the image column alone, as it is stored: dicts with `path` and `bytes`, or whatever else the column
    holds. Where the features are not known, rows stay as the dataset gives them.

    Raises:
        ValueError: if the features are known and there is no such column.
    """
    dataset = dataset.with_format(None)
    if dataset.features is None:
        return dataset
    _require_column(image_column, dataset.features)
    return dataset.decode(False).select_columns([image_column])


def _require_column(name: str, present: Iterable[str]):
    fix = "rename the column of images (dataset.rename_column), or name it with image_column_name (to the script: "
    require_columns([name], present, "The stream of unlabeled images", f"{fix}--unlabeled_image_column_name)")


def read_first_image(dataset: datasets.IterableDataset, image_column: str):
    """Reads one image of a stream; raises ValueError if there is none, or it is unreadable."""
    StreamReader(dataset, images_per_epoch=1, seed=0, buffer_size=0, image_column=image_column)[0]


def whole_steps(args) -> int:
    """
    `args.unlabeled_images_per_epoch`, raised to a multiple of what all processes read in one step: to fill the last
    step up otherwise would reach into the next epoch, or back into this one.

    Args:
        args ([`AllSparkTrainingArguments`]): training arguments.
    """
    step = args.per_device_unlabeled_batch_size * args.world_size
    images = math.ceil(args.unlabeled_images_per_epoch / step) * step
    if images != args.unlabeled_images_per_epoch and args.should_log:
        logger.info(
            "An epoch is %d images of the unlabeled stream: %d, rounded up to whole steps of %d.",
            images,
            args.unlabeled_images_per_epoch,
            step,
        )
    return images


__all__ = ["StreamReader", "read_first_image", "undecoded_stream", "whole_steps"]

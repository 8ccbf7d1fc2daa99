"""Unlabeled images from a stream, for sets that are larger than the disk."""

import itertools
import logging
import math
from collections.abc import Iterable, Iterator

import datasets
import fsspec.asyn
import numpy as np
import PIL.Image
from torch.utils.data import get_worker_info

from ..utils.text import one_line
from .columns import Picture
from .lanes import Bookmark, Lanes
from .pixels import PLAIN, Reading, to_rgb
from .reading import MAX_REPLACED, require_columns
from .shards import name_of_shard, require_end


logger = logging.getLogger(__name__)

LEAVE_OUT = "or leave out what cannot be read (on_bad_image='skip'; to the script: --skip_bad_files)"


class StreamReader:
    """
    The images of a stream by their position; one worker of one process reads each image.

    The stream is an endless sequence of passes over the dataset. Each pass shuffles the shards and deals them out to
    the [`Lanes`] again, and each lane shuffles the images of its shards block by block. One worker reads a lane
    forwards. The image at a position depends only on the seed and the numbers of the lanes. With a [`Bookmark`],
    another worker or a resumed run begins in the middle of a lane: it reads the images of the block again, and passes
    over the rows before the block.

    With fewer shards than lanes, several lanes read one shard, and each of them keeps every n-th image.

    Args:
        dataset (`datasets.IterableDataset`): a dataset with a column of images, of paths or of encoded bytes.
        lanes ([`Lanes`]): how the images are shared among processes and workers.
        seed (`int`): seed of the shuffling.
        buffer_size (`int`): images of a block, held in memory as they are stored; with 0 or 1, every pass has the
            dataset's own order.
        image_column (`str`): name of the image column.
        reading ([`Reading`]): how image files are read.
        on_bad_image (`str`): "stop", or "skip" to count what cannot be read and go on with the next image or shard of
            the lane.
        bookmarks (`dict[int, Bookmark]`, *optional*): lane -> where it goes on. The reader keeps the dict itself, not
            a copy, so that workers that start later find later bookmarks.

    Raises:
        ValueError: if the dataset is known to have no such column.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        lanes: Lanes,
        seed: int,
        buffer_size: int = 1000,
        image_column: str = "image",
        reading: Reading = PLAIN,
        on_bad_image: str = "stop",
        bookmarks: dict[int, Bookmark] | None = None,
    ):
        self.reading = reading
        self.lanes = lanes
        self.seed = seed
        self.buffer_size = buffer_size
        self.image_column = image_column
        self.on_bad_image = on_bad_image
        self.bookmarks = {} if bookmarks is None else bookmarks
        self._tokens = getattr(dataset, "_token_per_repo_id", None)  # for private repositories, as datasets keeps them
        self._dataset = finely_sharded(undecoded_stream(dataset, image_column), lanes.number)
        self._images: Iterator | None = None
        self._counts = True
        self.bookmark: Bookmark | None = None  # behind the image that was read last

    def __len__(self) -> int:
        """The images of an epoch of all processes; the stream itself has no end."""
        return self.lanes.images_per_epoch

    @property
    def num_shards(self) -> int:
        """Parts of the dataset that can be read independently."""
        return self._dataset.num_shards

    @property
    def reads_per_image(self) -> int:
        """How often all processes and workers together read an image in one pass; only one of them decodes it."""
        return math.ceil(self.lanes.number / self.num_shards)

    def __getitem__(self, position: int) -> dict[str, PIL.Image.Image]:
        """
        Args:
            position (`int`): position in the endless order of all processes, from 0; it must belong to this process.

        Returns:
            `dict[str, PIL.Image.Image]`: the image, RGB and upright, under the name of its column. The attribute
            `bookmark` is then the place of the next image.

        Raises:
            ValueError: if the stream has no row, no such column, or the image cannot be read.
        """
        lane, index = self.lanes.find(position)
        if self._images is None or self.bookmark.lane != lane or index < self.bookmark.index:
            self._open(lane, index)
        images, self._images = self._images, None  # None if reading fails, so that another try starts anew
        image = self._next_image(images, index)
        self._images = images
        return {self.image_column: image}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_images": None, "bookmark": None}  # a worker opens the stream itself

    def _open(self, lane: int, index: int):
        read, mark = self.bookmark, self.bookmarks.get(lane, Bookmark(lane))
        if read is not None and read.lane == lane and index < read.index - 1:
            logger.warning(
                "Image %d of lane %d of the unlabeled stream is asked for after image %d, so it is read again.",
                *(index, lane, read.index - 1),
            )
        if index < mark.index:
            mark = Bookmark(lane)
        if get_worker_info() is not None:
            fsspec.asyn.reset_lock()  # a forked worker has no copy of fsspec's thread, and would wait for it
        self.bookmark = mark
        self._images = itertools.islice(self._endless(mark), mark.used, None)
        self._counts = mark.used == 0  # else the bookmark counts the bad shards of this block already

    def _next_image(self, images: Iterator, index: int) -> PIL.Image.Image:
        """Image `index` of the open lane; the images before it are not decoded."""
        failed = 0
        for place, shard, stored in images:
            self.bookmark = mark = self.bookmark._replace(**place)
            try:
                image = self._decode(stored, shard) if mark.index == index else None
            except ValueError as error:
                failed += 1
                if self.on_bad_image != "skip":
                    raise ValueError(f"{error}: remove it from the stream, {LEAVE_OUT}.") from error
                if failed == MAX_REPLACED:
                    raise ValueError(f"{error} ({failed} images in a row: is the disk still there?).") from error
                logger.warning("%s. The next image is taken instead.", error)
                self.bookmark = mark._replace(bad_images=mark.bad_images + 1)
                continue
            self.bookmark = mark._replace(index=mark.index + 1)
            if image is not None:
                return image

    # ---- Order ----

    def _endless(self, mark: Bookmark) -> Iterator[tuple[dict, int, object]]:
        """For every image of a lane, from the beginning of a block on: its place, its shard, and what is stored."""
        part, row, empty = mark.part, mark.row, 0
        for turn in itertools.count(mark.turn):
            rows = self._rows(turn, mark.lane, part, row)
            empty += part == row == 0
            while block := list(itertools.islice(rows, max(self.buffer_size, 1))):
                self._counts = True
                place = {"turn": turn, "part": block[0][0], "row": block[0][1]}
                order = range(len(block))
                if self._shuffles:
                    order = self._rng(turn, 1 + self._number_of(mark.lane), *block[0][:2]).permutation(len(block))
                for used, number in enumerate(order, 1):
                    yield {**place, "used": used}, *block[number][2:]
                empty = 0
            if empty >= self.lanes.number:  # in so many passes, the lane has read every part
                raise ValueError("The stream of unlabeled images is empty: give a dataset with at least one image.")
            part = row = 0

    def _rows(self, turn: int, lane: int, part: int, row: int) -> Iterator[tuple[int, int, int, object]]:
        """Part, row, shard and what is stored, for the lane's rows of a pass from row `row` of part `part` on."""
        stride, parts = self.reads_per_image, self._deal(turn, lane)
        for number in range(part, len(parts)):
            shard, offset = divmod(int(parts[number]), stride)
            start = row if number == part else 0
            read = self._read(shard, offset + start * stride, told=offset == 0)
            for count, stored in enumerate(itertools.islice(read, 0, None, stride), start):
                yield number, count, shard, stored

    def _deal(self, turn: int, lane: int) -> np.ndarray:
        """A lane's parts of a pass: shards, or every n-th row of a shard if there are fewer shards than lanes."""
        parts = np.arange(self.num_shards * self.reads_per_image)
        if self._shuffles:
            parts = self._rng(turn, 0).permutation(parts)
        return parts[(self._number_of(lane) + turn) % self.lanes.number :: self.lanes.number]

    def _number_of(self, lane: int) -> int:
        return self.lanes.process * self.lanes.workers + lane

    @property
    def _shuffles(self) -> bool:
        return self.buffer_size > 1

    def _rng(self, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *numbers])

    # ---- Rows ----

    def _read(self, shard: int, first: int, told: bool) -> Iterator:
        """A shard's rows from number `first` on, as they are stored."""
        # Unlike __iter__, iter() does not split the dataset among the workers of a DataLoader.
        part, count = self._dataset.shard(self.num_shards, shard), first
        rows = (part.skip(first) if first else part).iter(batch_size=1)
        while True:
            try:
                batch = next(rows, None)
                if batch is None:
                    require_end(name_of_shard(part, shard))
            # What a broken archive raises depends on its format.
            except Exception as error:
                self._leave_out(name_of_shard(part, shard), count, error, told)
                return
            if batch is None:
                return
            _require_column(self.image_column, batch)
            yield batch[self.image_column][0]
            count += 1

    def _leave_out(self, name: str, count: int, error: Exception, told: bool):
        problem = f"{name} of the unlabeled stream cannot be read from row {count} on ({one_line(error)})"
        if self.on_bad_image != "skip":
            raise ValueError(f"{problem}: restore the shard, {LEAVE_OUT}.") from error
        if told and self._counts:
            logger.warning("%s. The rest of it is left out of this pass.", problem)
            self.bookmark = self.bookmark._replace(bad_shards=self.bookmark.bad_shards + 1)

    def _decode(self, stored, shard: int) -> PIL.Image.Image:
        feature = Picture(tiff_page=self.reading.tiff_page)
        try:
            if stored is None:
                raise ValueError("the entry is empty")
            if isinstance(stored, PIL.Image.Image):
                return to_rgb(stored, self.reading)
            if not isinstance(stored, dict):
                stored = feature.encode_example(stored)  # a path, or encoded bytes
            return to_rgb(feature.decode_example(stored, token_per_repo_id=self._tokens), self.reading)
        # Broken files make Pillow raise nearly anything, among others SyntaxError and struct.error.
        except Exception as error:
            path = (stored.get("path") if isinstance(stored, dict) else None) or "without a path"
            where = f"{path} in {name_of_shard(self._dataset.shard(self.num_shards, shard), shard)}"
            raise ValueError(
                f"An image of the unlabeled stream ({where}) cannot be read ({one_line(error)})"
            ) from error


def undecoded_stream(dataset: datasets.IterableDataset, image_column: str) -> datasets.IterableDataset:
    """
    A stream of the image column alone, as it is stored: dicts with `path` and `bytes`, or what else the column holds.
    If the dataset does not know its features, its rows stay as they are.

    Raises:
        ValueError: if the dataset knows its features and has no such column.
    """
    dataset = dataset.with_format(None)
    if dataset.features is None:
        return dataset
    _require_column(image_column, dataset.features)
    return dataset.decode(False).select_columns([image_column])


def finely_sharded(dataset: datasets.IterableDataset, wanted: int) -> datasets.IterableDataset:
    """The same stream; if it has fewer shards than wanted, parquet files are cut into their row groups."""
    if dataset.num_shards >= wanted or not hasattr(dataset, "reshard"):
        return dataset
    try:
        return dataset.reshard()
    except Exception as error:  # from a broken file, which is named when it is read
        logger.warning("The shards of the unlabeled stream cannot be cut into smaller ones (%s).", one_line(error))
        return dataset


def _require_column(name: str, present: Iterable[str]):
    fix = "rename the column of images (dataset.rename_column), or name it with image_column_name (to the script: "
    require_columns([name], present, "The stream of unlabeled images", f"{fix}--unlabeled_image_column_name)")


def read_first_image(dataset: datasets.IterableDataset, image_column: str, reading: Reading, on_bad_image: str):
    """Reads the first image of a stream; raises ValueError if there is none, or it is unreadable."""
    StreamReader(dataset, Lanes(1, 1), 0, 0, image_column, reading, on_bad_image)[0]


def whole_steps(args) -> int:
    """
    `args.unlabeled_images_per_epoch`, rounded up to a multiple of the images that all processes read in one step.
    Otherwise the last step of an epoch would take images of the next epoch, or images of this epoch again.
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

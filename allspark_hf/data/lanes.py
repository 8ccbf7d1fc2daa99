"""Which process and worker draws which unlabeled image of a stream; each reads its own part."""

from typing import NamedTuple


class Bookmark(NamedTuple):
    """
    A place in a lane, small enough to travel with every batch. A reader that opens the lane at a bookmark goes on with
    the next image.

    Attributes:
        lane (`int`): number of the lane in its process.
        index (`int`): images of the lane that were drawn so far.
        turn (`int`): passes over the dataset that are complete.
        part (`int`): parts of the current pass before the part in which the current block begins.
        row (`int`): rows of that part before the current block.
        used (`int`): images of the block that were drawn.
        bad_images (`int`): images left out so far because they cannot be read.
        bad_shards (`int`): how often the rest of a shard was left out because it cannot be read.
    """

    lane: int
    index: int = 0
    turn: int = 0
    part: int = 0
    row: int = 0
    used: int = 0
    bad_images: int = 0
    bad_shards: int = 0


class Lanes(NamedTuple):
    """
    How the images of an endless stream are shared among processes and workers.

    Each process has one lane for each worker. Lane `n` gives every batch whose number in the epoch, modulo the number
    of workers, is `n`: these are the batches that a `DataLoader` hands to one worker. So each worker draws from one
    lane, in order, and the image at a position depends on the numbers here, not on which worker is faster.

    Attributes:
        batch_size (`int`): unlabeled images of a batch of one process.
        batches (`int`): batches of an epoch on each process.
        workers (`int`): workers of each process, at least 1.
        processes (`int`): processes of the training.
        process (`int`): number of this process.
    """

    batch_size: int
    batches: int
    workers: int = 1
    processes: int = 1
    process: int = 0

    @property
    def images_per_epoch(self) -> int:
        """Unlabeled images of an epoch, over all processes."""
        return self.batch_size * self.batches * self.processes

    @property
    def number(self) -> int:
        """Lanes of all processes."""
        return self.processes * self.workers

    def index_at(self, epoch: int, batch: int, lane: int) -> int:
        """Images that a lane of this process gives before batch `batch` of `epoch`."""
        of_epoch, before = (len(range(lane, until, self.workers)) for until in (self.batches, batch))
        return self.batch_size * (epoch * of_epoch + before)

    def find(self, position: int) -> tuple[int, int]:
        """The lane of this process, and the index in it, for a position in the order of all processes."""
        epoch, place = divmod(position, self.images_per_epoch)
        batch, image = divmod(place, self.batch_size)
        batch //= self.processes
        lane = batch % self.workers
        return lane, self.index_at(epoch, batch, lane) + image

    def described(self) -> dict[str, int]:
        """What must be the same if a resumed training is to have the same bits."""
        return {name: value for name, value in self._asdict().items() if name != "process"}

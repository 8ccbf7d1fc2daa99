"""Who draws which unlabeled image of a stream that every process and worker reads its own part of."""

from typing import NamedTuple


class Bookmark(NamedTuple):
    """
    A place in a lane, small enough to travel with every batch: whoever opens the lane there draws on from it.

    Attributes:
        lane (`int`): of its process.
        index (`int`): images of the lane that were drawn before.
        turn (`int`): passes over the dataset that lie behind.
        part (`int`): parts of that pass that lie behind the beginning of the block which is drawn from.
        row (`int`): rows of the next part that lie behind it.
        used (`int`): images of the block that lie behind.
        bad_images (`int`): images left out so far because they cannot be read.
        bad_shards (`int`): times that the rest of a shard was left out for that reason.
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
    How the images of an endless stream are shared out.

    Each process has as many lanes as workers, and lane `n` gives every batch whose number in the epoch, modulo the
    workers, is `n`: the batches that a `DataLoader` hands to one and the same worker. So each worker draws from one
    lane, in order, and which image a position is depends on the numbers here and not on which worker is faster.

    Attributes:
        batch_size (`int`): unlabeled images of a batch of one process.
        batches (`int`): batches of an epoch on each process.
        workers (`int`): of each process, at least 1.
        processes (`int`): of the training.
        process (`int`): this one.
    """

    batch_size: int
    batches: int
    workers: int = 1
    processes: int = 1
    process: int = 0

    @property
    def images_per_epoch(self) -> int:
        """Of all processes."""
        return self.batch_size * self.batches * self.processes

    @property
    def number(self) -> int:
        """Lanes of all processes."""
        return self.processes * self.workers

    def index_at(self, epoch: int, batch: int, lane: int) -> int:
        """Images that a lane of this process gave before batch number `batch` of its `epoch`."""
        of_epoch, before = (len(range(lane, until, self.workers)) for until in (self.batches, batch))
        return self.batch_size * (epoch * of_epoch + before)

    def find(self, position: int) -> tuple[int, int]:
        """The lane of this process, and the place in it, of a position in the order of all processes."""
        epoch, place = divmod(position, self.images_per_epoch)
        batch, image = divmod(place, self.batch_size)
        batch //= self.processes
        lane = batch % self.workers
        return lane, self.index_at(epoch, batch, lane) + image

    def described(self) -> dict[str, int]:
        """What must be the same for a training to go on bit by bit."""
        return {name: value for name, value in self._asdict().items() if name != "process"}


__all__ = ["Bookmark", "Lanes"]

"""[`StreamPlace`]: how far a training has come in its stream of unlabeled images."""

import logging
from pathlib import Path

import datasets
from accelerate.utils import gather_object
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState

from ..data.lanes import Bookmark, Lanes
from ..data.mixed import BOOKMARK
from ..data.streaming import StreamReader
from ..utils.files import read_json_object
from .storage import RUN_FILE


logger = logging.getLogger(__name__)


class StreamPlace(TrainerCallback):
    """
    Keeps, for every lane, the [`Bookmark`] after the last batch that was trained on; workers may have read further.

    Each batch brings its bookmark. Checkpoints hold the bookmarks of all processes in `allspark_run.json`. Workers
    that start after a resume read on from `bookmarks`.

    Args:
        trainer ([`AllSparkTrainer`]): a trainer whose unlabeled images are a stream.
    """

    def __init__(self, trainer):
        args, batches = trainer.args, len(trainer.sampler) // trainer.args.world_size
        self.trainer = trainer
        self.lanes = Lanes(
            batch_size=args.per_device_unlabeled_batch_size,
            batches=batches,
            workers=min(max(args.dataloader_num_workers, 1), batches),  # further workers get no batch
            processes=args.world_size,
            process=args.process_index,
        )
        self.bookmarks: dict[int, Bookmark] = {}
        self.of_all: list[list[int]] = []

    @classmethod
    def of(cls, trainer) -> "StreamPlace | None":
        """The place of a trainer; None if its unlabeled images are no stream, or are not trained on."""
        streams = isinstance(trainer.unlabeled_dataset, datasets.IterableDataset)
        return cls(trainer) if streams and trainer.sampler is not None and trainer.method.uses_unlabeled else None

    def described(self) -> dict[str, int]:
        """What must not change for a resumed run to read the stream on exactly where the checkpoint was."""
        return {**self.lanes.described(), "shards": self.trainer.unlabeled_dataset.num_shards}

    def tell_reads(self, reader: StreamReader):
        """Warns if images are read more than once, and says what to change."""
        if reader.reads_per_image > 1 and self.trainer.args.should_log:
            logger.warning(
                "The unlabeled stream has %d shards, fewer than processes x workers (%d x %d), so each image is read "
                "%d times and decoded once: cut it into %d shards or more, or lower dataloader_num_workers.",
                *(reader.num_shards, self.lanes.processes, self.lanes.workers),
                *(reader.reads_per_image, self.lanes.number),
            )

    def note(self, batches: list[dict]):
        """Takes the bookmarks out of the batches of an update."""
        for batch in batches:
            if BOOKMARK in batch:
                mark = Bookmark(*batch.pop(BOOKMARK))
                self.bookmarks[mark.lane] = mark

    def gather(self):
        """Collects the bookmarks of all processes for a checkpoint; called by all of them."""
        own = [[self.lanes.process, *mark] for mark in self.bookmarks.values()]
        self.of_all = sorted(gather_object(own))

    def restore(self, checkpoint: Path | None, state: TrainerState):
        """
        Sets the bookmarks to those of a checkpoint, or to the start without one. If the checkpoint has none, or its
        stream was shared among other lanes, all lanes begin a new pass over the stream.
        """
        self.bookmarks.clear()
        if checkpoint is None:
            return
        run = read_json_object(checkpoint / RUN_FILE)
        marks = [(process, Bookmark(*mark)) for process, *mark in run.get("bookmarks") or ()]
        if run.get("stream") == self.described():
            self.bookmarks.update({mark.lane: mark for process, mark in marks if process == self.lanes.process})
            return
        turn = 1 + max((mark.turn for _, mark in marks), default=0)
        accumulated = self.trainer.args.gradient_accumulation_steps
        epoch, update = divmod(state.global_step, -(-self.lanes.batches // accumulated))
        for lane in range(self.lanes.workers):
            index = self.lanes.index_at(epoch, update * accumulated, lane)
            self.bookmarks[lane] = Bookmark(lane, index, turn)

    def on_train_end(self, args, state, control, **kwargs):
        """Warns of what was left out of the stream."""
        left_out = gather_object([[mark.bad_images, mark.bad_shards] for mark in self.bookmarks.values()])
        images, shards = (sum(counts) for counts in zip(*left_out, strict=True)) if left_out else (0, 0)
        if images + shards and args.should_log:
            logger.warning(
                "Left out of the unlabeled stream, counted anew in every pass: %d unreadable images, the rest of %d "
                "unreadable shards; each is named above.",
                *(images, shards),
            )

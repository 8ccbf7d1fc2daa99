"""How far a training has come in its stream of unlabeled images: a [`StreamPlace`] for each trainer that has one."""

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
    Keeps the [`Bookmark`] of every lane behind the last batch that was trained on, though workers have read ahead.

    Each batch brings the bookmark behind it. Checkpoints keep those of all processes, in `allspark_run.json`; workers
    that start later, with the next epoch after a resume, find them in `bookmarks`.

    Args:
        trainer ([`AllSparkTrainer`]): whose unlabeled images are a stream.
    """

    def __init__(self, trainer):
        args, batches = trainer.args, len(trainer.sampler) // trainer.args.world_size
        self.trainer = trainer
        self.lanes = Lanes(
            batch_size=args.per_device_unlabeled_batch_size,
            batches=batches,
            workers=min(max(args.dataloader_num_workers, 1), batches),  # others get no batch, and so no images
            processes=args.world_size,
            process=args.process_index,
        )
        self.bookmarks: dict[int, Bookmark] = {}
        self.of_all: list[list[int]] = []

    @classmethod
    def of(cls, trainer) -> "StreamPlace | None":
        """None where the unlabeled images are no stream, or are not trained on."""
        streams = isinstance(trainer.unlabeled_dataset, datasets.IterableDataset)
        return cls(trainer) if streams and trainer.sampler is not None and trainer.method.uses_unlabeled else None

    def described(self) -> dict[str, int]:
        """What a checkpoint must have in common with a run that goes on from it bit by bit."""
        return {**self.lanes.described(), "shards": self.trainer.unlabeled_dataset.num_shards}

    def tell_reads(self, reader: StreamReader):
        """Says if images are read more than once, and what changes that."""
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
        Places the bookmarks where a checkpoint has them, or at the start. Where it was shared out in another way, or
        has none, all lanes begin the pass after the last one that was begun.
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
        """Counts what was left out."""
        left_out = gather_object([[mark.bad_images, mark.bad_shards] for mark in self.bookmarks.values()])
        images, shards = (sum(counts) for counts in zip(*left_out, strict=True)) if left_out else (0, 0)
        if images + shards and args.should_log:
            logger.warning(
                "Left out of the unlabeled stream, counted anew in every pass: %d unreadable images, the rest of %d "
                "unreadable shards; each is named above.",
                *(images, shards),
            )


__all__ = ["StreamPlace"]

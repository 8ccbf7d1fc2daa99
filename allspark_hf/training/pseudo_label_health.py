"""[`PseudoLabelHealth`]: what the pseudo-labels of an epoch show, how many are right, and whether they collapse."""

import logging

import torch
from transformers import TrainerCallback

from ..evaluation.metrics import ConfusionMatrix, by_class, collapses, metric_name
from ..methods import METHODS
from ..methods.contrast.heads import class_counts


logger = logging.getLogger(__name__)

MOST_WRONG = 0.1  # share of the counted pixels: twice as many as pass a threshold of 0.95 if confidences are right
LEAST_RIGHT = 0.5  # share of the pixels of a class; below, its label mostly stands for other classes
ENOUGH = 0.01  # share of the counted pixels from which on a class is judged; below, a single object may decide


def accuracy_of_kept(prefix: str, kept: ConfusionMatrix, id2label: dict[int, str]) -> dict[str, float]:
    """
    `<prefix>_accuracy`, the share in [0, 1] of the pixels in `kept` that are right, and `<prefix>_accuracy_<class>`,
    the share of the pixels labeled as the class; empty if `kept`, which has the pixels whose pseudo-label counts, is
    empty.
    """
    if not (total := kept.counts.sum().item()):
        return {}
    right = kept.counts.trace().item() / total
    return {f"{prefix}_accuracy": right, **by_class(f"{prefix}_accuracy", kept.precision(), id2label)}


def warn_of_wrong_labels(where: str, kept: ConfusionMatrix, id2label: dict[int, str], args):
    """
    Warns if more than `MOST_WRONG` of the pixels are wrong, or less than `LEAST_RIGHT` of those of a class are right.

    Args:
        where (`str`): which pixels they are, for the sentence.
        kept ([`ConfusionMatrix`]): the pixels whose pseudo-label counts.
        id2label (`dict[int, str]`): class names.
        args ([`AllSparkTrainingArguments`]): arguments of the training, on which the advice depends.
    """
    total = kept.counts.sum().item()
    if not total:
        return
    wrong, enough = 1 - kept.counts.trace().item() / total, (kept.counts.sum(0) >= ENOUGH * total).cpu()
    right, worst = (one.item() for one in kept.precision().where(enough, 1).nan_to_num(1).min(dim=0))
    if wrong <= MOST_WRONG and right >= LEAST_RIGHT:
        return
    fix = "choose a method with confidence_threshold"
    if hasattr(METHODS[args.method].arguments_class, "keep_quantile"):
        now = args.keep_quantile
        fix = "set keep_quantile to 0.8, say" if now is None else f"lower keep_quantile from {now}"
    logger.warning(
        "Of the pseudo-labels that count %s, %.0f %% of the pixels are wrong, and of those labeled %s, the worst "
        "class, %.0f %% are right: %s, raise unlabeled_warmup_epochs, or label more images that show %s.",
        *(where, 100 * wrong, id2label[worst], 100 * right, fix, id2label[worst]),
    )


class PseudoLabelHealth(TrainerCallback):
    """
    Counts the pixels of pseudo-labels and labels over an epoch, logs them at its end, and keeps them in checkpoints.

    The log gets `pseudo_share_<class>` and `label_share_<class>`, the shares of a class in the pixels of pseudo-labels
    and labels. With a grouping memory it gets `channel_share_<class>`, the share of the unlabeled channels that went
    to the slot of the class (with local memories, that of the main process). If the truth of unlabeled images is
    known, it gets `pseudo_mean_iou` and [`accuracy_of_kept`] of the pixels whose pseudo-label counts. All pixels are
    those of the augmented crops. The confidence is logged as a term of each step, see [`Method`].

    Args:
        trainer ([`AllSparkTrainer`]): the trainer whose model and log are used.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        config = trainer.model.config
        self.id2label = config.id2label
        self.ignore_index = config.semantic_loss_ignore_index
        self.epoch = 0
        self.counts: dict[str, torch.Tensor] = {}
        self.reset()

    def reset(self):
        num_labels, device = len(self.id2label), self.trainer.args.device
        sizes = {"labels": num_labels, "pseudo_labels": num_labels, "confusion": num_labels**2}
        self.counts = {name: torch.zeros(size, dtype=torch.int64, device=device) for name, size in sizes.items()}
        self.enqueued_before = self._enqueued().clone()

    def _enqueued(self) -> torch.Tensor:
        """int64 (num_labels,): channels that the slot of each class got so far; zeros if classes have no slots."""
        bottleneck = self.trainer.processes.model.bottleneck
        memory = None if bottleneck is None else bottleneck.memory
        if memory is None or len(memory.num_enqueued) != len(self.id2label):
            return torch.zeros(len(self.id2label), dtype=torch.int64)
        return memory.num_enqueued.cpu()

    def memory_fill(self) -> dict[str, float]:
        """Share of the memory's places that are taken, for each class if classes have slots."""
        bottleneck = self.trainer.processes.model.bottleneck
        if bottleneck is None or bottleneck.memory is None:
            return {}
        fill = bottleneck.memory.fill.tolist()
        if len(fill) != len(self.id2label):
            return {"memory_fill": fill[0]}  # one ring for all classes
        return {f"memory_fill_{metric_name(self.id2label[index])}": share for index, share in enumerate(fill)}

    def update(self, labels: torch.Tensor, pseudo_labels: torch.Tensor, truth: torch.Tensor | None):
        """
        Adds one batch.

        Args:
            labels (`torch.Tensor`): int64 (labeled, height, width), class or the ignore index.
            pseudo_labels (`torch.Tensor`): int64 (unlabeled, height, width), class or the ignore index.
            truth (`torch.Tensor`, *optional*): int64 (unlabeled, height, width), class or the ignore index.
        """
        num_labels = len(self.id2label)
        self.counts["labels"] += class_counts(labels, num_labels)
        self.counts["pseudo_labels"] += class_counts(pseudo_labels, num_labels)
        if truth is not None:
            known = (truth != self.ignore_index) & (pseudo_labels != self.ignore_index)
            pairs = (truth * num_labels + pseudo_labels).where(known, -1)
            self.counts["confusion"] += class_counts(pairs, num_labels**2)

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Notes the epoch; logs the one before if a run that was resumed at its end has not done so."""
        if int(state.epoch or 0) != self.epoch:
            self.log()
            self.epoch = int(state.epoch or 0)

    def on_epoch_end(self, args, state, control, **kwargs):
        self.log()

    def log(self):
        """Logs the counts and sets them to 0; does nothing if there was no pseudo-label. Called by every process."""
        self.gather()
        entry = self.summary()
        counted = torch.tensor(float(bool(entry)), device=self.trainer.args.device)
        # Only the main process holds counts, but every process takes part in logging.
        if self.trainer.accelerator.reduce(counted, reduction="sum").item() == 0:
            return
        self._warn_of_collapse()
        warn_of_wrong_labels(f"in epoch {self.epoch + 1}", self._confusion(), self.id2label, self.trainer.args)
        self.trainer.log(entry)
        self.reset()

    def gather(self):
        """Moves the counts of all processes to the main one."""
        if self.trainer.args.world_size == 1:
            return
        for name, counts in self.counts.items():
            total = self.trainer.accelerator.reduce(counts, reduction="sum")
            self.counts[name] = total if self.trainer.accelerator.is_main_process else torch.zeros_like(counts)

    def summary(self) -> dict[str, float]:
        """The entry to log, values in [0, 1]; empty if there was no pseudo-label."""
        if not self.counts["pseudo_labels"].sum():
            return {}
        entry = {}
        if self.counts["confusion"].sum():
            confusion, count_absent = self._confusion(), self.trainer.args.count_absent_classes
            entry["pseudo_mean_iou"] = confusion.metrics(self.id2label, count_absent)["mean_iou"]
            entry |= accuracy_of_kept("pseudo", confusion, self.id2label)
        enqueued = self._enqueued() - self.enqueued_before
        for prefix, counts in (
            ("pseudo_share", self.counts["pseudo_labels"]),
            ("label_share", self.counts["labels"]),
            ("channel_share", enqueued),
        ):
            if total := counts.sum().item():
                shares = [count / total for count in counts.tolist()]
                entry |= {f"{prefix}_{metric_name(self.id2label[index])}": share for index, share in enumerate(shares)}
        return entry

    def _confusion(self) -> ConfusionMatrix:
        confusion = ConfusionMatrix(len(self.id2label), self.ignore_index)
        confusion.counts = self.counts["confusion"].cpu().view_as(confusion.counts)
        return confusion

    def collapsed_onto(self) -> tuple[int, float, float] | None:
        """
        The class that nearly all pseudo-labels show although the labels do not, and its shares in both; None if there
        is none.
        """
        pseudo_labels, labels = self.counts["pseudo_labels"], self.counts["labels"]
        if not pseudo_labels.sum() or not labels.sum():
            return None
        top = int(pseudo_labels.argmax())
        share, in_labels = ((counts[top] / counts.sum()).item() for counts in (pseudo_labels, labels))
        return (top, share, in_labels) if collapses(share, in_labels) else None

    def _warn_of_collapse(self):
        if (collapsed := self.collapsed_onto()) is None:
            return
        top, in_pseudo, in_labels = collapsed
        logger.warning(
            "The pseudo-labels of epoch %d collapse onto %s: %.0f %% of their pixels, %.0f %% of the labeled ones. "
            "Train longer, start from pre-trained weights, lower unlabeled_loss_weight, or raise "
            "unlabeled_warmup_epochs.",
            *(self.epoch + 1, self.id2label[top], 100 * in_pseudo, 100 * in_labels),
        )

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The counts so far; they include other processes only after `gather`."""
        counts = {name: counts.cpu() for name, counts in self.counts.items()}
        return {**counts, "enqueued_before": self.enqueued_before, "epoch": torch.tensor(self.epoch)}

    def load_state_dict(self, state: dict[str, torch.Tensor]):
        """Loads the counts of a checkpoint, all of them in the main process."""
        self.epoch = int(state["epoch"])
        self.enqueued_before = state["enqueued_before"]
        if self.trainer.accelerator.is_main_process:
            # The order of the names must be that of the other processes, with which `gather` adds the counts.
            self.counts = {name: state[name].to(self.trainer.args.device) for name in self.counts}

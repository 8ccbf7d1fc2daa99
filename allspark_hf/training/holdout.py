"""Labeled images that are held out of a training, to measure how many pseudo-labels are right on them."""

from dataclasses import replace

import datasets
import torch
from transformers import TrainerCallback

from ..data import CheckReport, draw, fraction_to_count, list_path
from ..evaluation.evaluator import failing_together
from ..evaluation.metrics import ConfusionMatrix
from ..evaluation.prediction import predict_logits
from ..methods import METHODS
from ..methods.pseudo_labels import reaches
from .arguments import AllSparkTrainingArguments
from .loaders import data_seed, evaluation_loader
from .pseudo_label_health import accuracy_of_kept, warn_of_wrong_labels
from .resuming import names_of


def number_held_out(args: AllSparkTrainingArguments, num_labeled: int) -> int:
    """
    How many of the labeled images `args.holdout_fraction` takes, rounded up; 0 without it.

    Raises:
        ValueError: if the method has no pseudo-labels, or no labeled image would be left.
    """
    fraction = args.holdout_fraction
    if not fraction:
        return 0
    if not METHODS[args.method].uses_unlabeled:
        raise ValueError(
            f"holdout_fraction={fraction} measures pseudo-labels, and method={args.method!r} makes none: leave it "
            "out, or choose another method."
        )
    count = fraction_to_count(num_labeled, fraction)
    if count >= num_labeled:
        raise ValueError(
            f"holdout_fraction={fraction} would take {count} of {num_labeled} labeled images, which leaves none to "
            "train on: leave it out, or add labeled images."
        )
    return count


def split_holdout(
    args: AllSparkTrainingArguments, train_dataset: datasets.Dataset | None
) -> tuple[datasets.Dataset | None, datasets.Dataset | None]:
    """The labeled images to train on and those held out, drawn from the seed; no second set without a fraction."""
    count = 0 if train_dataset is None else number_held_out(args, len(train_dataset))
    if not count:
        return train_dataset, None
    rows = range(len(train_dataset))
    held_out = draw(rows, count, data_seed(args))
    return train_dataset.select(sorted({*rows} - {*held_out})), train_dataset.select(held_out)


def without_held_out(args: AllSparkTrainingArguments, report: CheckReport) -> CheckReport:
    """The checked data without the labeled images that a training with these arguments holds out, for its baseline."""
    labeled, held_out = split_holdout(args, report.data.labeled)
    if held_out is None:
        return report
    names, listed = {*names_of(held_out, "image")}, report.found.labeled
    kept = [row for row, name in enumerate(names_of(listed, "image")) if name not in names]
    found = replace(report.found, labeled=listed.select(kept))
    return replace(report, data=replace(report.data, labeled=labeled), found=found)


class Holdout(TrainerCallback):
    """
    Predicts the held-out images as evaluation does, in eval mode whatever `teacher_mode` says, with the model that
    gives the pseudo-labels: at the end of training, and once at each evaluation, also if there are several evaluation
    datasets.

    The log gets, in [0, 1], `holdout_kept`, the share of valid pixels whose confidence reaches the method's threshold
    (1 without a threshold), and for these pixels `holdout_accuracy` and `holdout_accuracy_<class>`, see
    [`accuracy_of_kept`]. `holdout_ids.txt` in the output folder names the images.

    Args:
        trainer ([`AllSparkTrainer`]): the trainer whose method, processes and log are used.
        dataset (`datasets.Dataset`): the held-out images with their masks.
    """

    def __init__(self, trainer, dataset: datasets.Dataset):
        self.trainer, self.dataset = trainer, dataset

    def on_train_begin(self, args, state, control, **kwargs):
        if args.should_save:
            lines = [f"{name}\n" for name in names_of(self.dataset, args.image_column_name)]
            list_path(args.output_dir, "holdout").write_text("".join(lines), encoding="utf-8")

    def on_evaluate(self, args, state, control, **kwargs):
        if not self._is_measured(state):
            self.measure()

    def on_train_end(self, args, state, control, **kwargs):
        best_is_another = args.load_best_model_at_end and state.best_global_step != state.global_step
        if best_is_another or not self._is_measured(state):
            self.measure()

    def _is_measured(self, state) -> bool:
        return any("holdout_kept" in entry and entry["step"] == state.global_step for entry in state.log_history)

    def measure(self):
        """Logs the entry, and warns if too many of the pixels are wrong; called by every process."""
        trainer, args, config = self.trainer, self.trainer.args, self.trainer.model.config
        kept = ConfusionMatrix(config.num_labels, config.semantic_loss_ignore_index, args.device)
        valid = torch.zeros((), dtype=torch.int64, device=args.device)
        model, threshold = trainer.method.labeling_model(trainer.processes.model), trainer.method.threshold
        with trainer.processes.predicting_apart(model), failing_together(trainer.accelerator):
            for sample in (sample for samples in evaluation_loader(trainer, self.dataset) for sample in samples):
                with trainer.compute_loss_context_manager():
                    labels, pixel_values = sample["labels"][None].to(args.device), sample["pixel_values"][None]
                    logits = predict_logits(model, pixel_values.to(args.device), labels.shape[1:], args)
                confidence, predicted = logits.softmax(dim=1).max(dim=1)
                valid += (labels != kept.ignore_index).sum()
                if threshold is not None:
                    labels = labels.where(reaches(confidence, predicted, threshold), kept.ignore_index)
                kept.update(predicted, labels)
        kept.counts, valid = (trainer.accelerator.reduce(one, reduction="sum") for one in (kept.counts, valid))
        entry = {"holdout_kept": (kept.counts.sum() / valid.clamp(min=1)).item()}
        trainer.log(entry | accuracy_of_kept("holdout", kept, config.id2label))
        if args.should_log:
            where = f"on held-out images at step {trainer.state.global_step}"
            warn_of_wrong_labels(where, kept, config.id2label, args)

"""Advice on settings and data that are allowed but spoil a training: a sentence for each, with what to change."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import datasets
from transformers import TrainerCallback

from ..data.masks import MaskConvention
from ..data.summary import classes_of
from ..methods import METHODS, arguments_of_others
from ..utils.arguments import recorded
from .arguments import AllSparkTrainingArguments


logger = logging.getLogger(__name__)

FEW_VALIDATION_IMAGES = 10
FEW_STEPS, FEW_STEPS_PER_EPOCH = 1000, 5
SHOWN_CLASSES = 5


@dataclass
class RunPlan:
    """
    What a training will do.

    Args:
        num_labeled (`int`): labeled images that are trained on.
        num_unlabeled (`int`, *optional*): unlabeled images; None for a stream.
        num_validation (`int`, *optional*): validation images; None if there is no evaluation.
        steps (`int`, *optional*): updates in all; None if they are not known yet.
        epochs (`int`): epochs in all, rounded up.
        labeled_classes (`set[int]`, *optional*): classes that the labeled masks show; None if they were not read.
        validation_classes (`set[int]`): classes that the validation masks show.
    """

    num_labeled: int
    num_unlabeled: int | None
    num_validation: int | None
    steps: int | None
    epochs: int
    labeled_classes: set[int] | None = None
    validation_classes: frozenset[int] | set[int] = frozenset()


def advise(args: AllSparkTrainingArguments, plan: RunPlan, class_names: Sequence[str]) -> list[str]:
    """
    Args:
        args ([`AllSparkTrainingArguments`]): arguments of the training.
        plan ([`RunPlan`]): what the training will do.
        class_names (`Sequence[str]`): names in the order of the class indices.

    Returns:
        `list[str]`: a sentence for each setting or lack of data that spoils the training.
    """
    of_data = [*_about_classes(plan, class_names), *_about_images(args, plan)]
    return [*of_data, *_about_lengths(args, plan), *_about_method(args)]


def _about_classes(plan: RunPlan, names: Sequence[str]) -> list[str]:
    if plan.labeled_classes is None:
        return []
    missing = [index for index in range(len(names)) if index not in plan.labeled_classes]
    scored = [index for index in missing if index in plan.validation_classes]
    nowhere = [index for index in missing if index not in plan.validation_classes]
    said = []
    if scored:
        said.append(
            f"No labeled image shows {_named(scored, names)}, but validation images do, so that training cannot learn "
            "what the score counts: label an image that shows it, or move one from the validation set."
        )
    if nowhere:
        said.append(
            f"No labeled image shows {_named(nowhere, names)}, so that the model will not predict it: label an image "
            "that shows it, or take it out of the classes (classes.txt, --num_labels)."
        )
    return said


def _named(indices: list[int], names: Sequence[str]) -> str:
    shown = ", ".join(f"{names[index]} ({index})" for index in indices[:SHOWN_CLASSES])
    rest = len(indices) - SHOWN_CLASSES
    return f"the class{'es' if len(indices) > 1 else ''} {shown}" + (f" and {rest} more" if rest > 0 else "")


def _about_images(args: AllSparkTrainingArguments, plan: RunPlan) -> list[str]:
    said = []
    if plan.num_validation is not None and 0 < plan.num_validation < FEW_VALIDATION_IMAGES:
        said.append(
            f"The validation set has {_count(plan.num_validation, 'image')}, so that scores depend on chance, and so "
            f"does a comparison of two runs: validate with {FEW_VALIDATION_IMAGES} or more (further images with "
            "masks, or a larger --validation_fraction)."
        )
    if args.max_steps > 0 or plan.steps is None or not plan.num_unlabeled or args.epoch_length != "unlabeled":
        return said
    hardly_a_step = plan.steps < min(FEW_STEPS_PER_EPOCH * plan.epochs, FEW_STEPS)
    if hardly_a_step or plan.num_unlabeled < plan.num_labeled / 4:  # an epoch shows as many labeled ones
        other = "" if METHODS[args.method].uses_unlabeled else " or --epoch_length labeled"
        said.append(
            f"{args.num_train_epochs:g} epochs are {_count(plan.steps, 'step')} because there "
            f"{'is' if plan.num_unlabeled == 1 else 'are'} {_count(plan.num_unlabeled, 'unlabeled image')}, and an "
            f"epoch is one pass over them: set the length with --max_steps{other}."
        )
    return said


def _about_lengths(args: AllSparkTrainingArguments, plan: RunPlan) -> list[str]:
    said = []
    if plan.steps is None:
        return said
    own = {one.name for one in fields(METHODS[args.method].arguments_class)}
    for name, what in (
        ("unlabeled_warmup_epochs", "no unlabeled image counts"),
        ("memory_warmup_epochs", "no labeled image reads the memory"),
    ):
        if name in own and getattr(args, name) >= plan.epochs:
            said.append(
                f"{name}={getattr(args, name):g} is as long as the training or longer "
                f"({_count(plan.epochs, 'epoch')}, {_count(plan.steps, 'step')}), so that {what}: lower it, or train "
                "longer (--max_steps)."
            )
    if "contrast_start" in own and args.contrast_start is not None and args.contrast_start >= plan.steps:
        said.append(
            f"contrast_start={args.contrast_start} is not reached in {_count(plan.steps, 'step')}, so that the "
            "contrastive loss never begins: lower it or leave it out, or train longer (--max_steps)."
        )
    if args.warmup_steps >= plan.steps:
        said.append(
            f"warmup_steps={args.warmup_steps:g} is as long as the training or longer ({_count(plan.steps, 'step')}), "
            "so that the learning rate only rises: lower it, or train longer (--max_steps)."
        )
    every = args.logging_steps if args.logging_steps >= 1 else math.ceil(args.logging_steps * plan.steps)
    if args.logging_strategy == "steps" and every > plan.steps:
        said.append(
            f"logging_steps={args.logging_steps:g} is more than the {_count(plan.steps, 'step')} of the training, so "
            "that no loss is logged: lower it."
        )
    return said


def _about_method(args: AllSparkTrainingArguments) -> list[str]:
    """Of arguments made in Python: a command line is refused if it has another method's, but its recipe may."""
    if hasattr(args, "given"):
        return []
    others = arguments_of_others(args.method)
    return [
        f"{name}={value!r} changes nothing with method={args.method!r}: leave it out, or choose another method."
        for name, value in recorded(args).items()
        if name in others
    ]


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


class Advice(TrainerCallback):
    """
    Logs the sentences of [`advise`] as warnings when a training begins.

    Args:
        trainer ([`AllSparkTrainer`]): the trainer whose data and arguments are looked at.
    """

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if not args.should_log:
            return
        config = self.trainer.model.config
        names = [config.id2label[index] for index in range(config.num_labels)]
        for sentence in advise(args, self._plan(state), names):
            logger.warning(sentence)

    def _plan(self, state) -> RunPlan:
        trainer, unlabeled = self.trainer, self.trainer.unlabeled_dataset
        evaluated = trainer.eval_dataset
        evaluated = [] if evaluated is None else evaluated.values() if isinstance(evaluated, dict) else [evaluated]
        return RunPlan(
            num_labeled=len(trainer.train_dataset),
            num_unlabeled=None if unlabeled is None else getattr(unlabeled, "num_rows", None),
            num_validation=min(map(len, evaluated), default=None),
            steps=state.max_steps,
            epochs=state.num_train_epochs,
            labeled_classes=self._classes(trainer.train_dataset),
            validation_classes=set().union(*map(self._classes, evaluated)),
        )

    def _classes(self, dataset: datasets.Dataset) -> set[int]:
        convention = MaskConvention.of(self.trainer.model.config)
        return classes_of(dataset, convention, self.trainer.args.label_column_name)

"""What the memory of pixels reads from the command line."""

from dataclasses import dataclass

from ...utils.arguments import argument, documented
from ..pseudo_label import UnlabeledArguments


@documented
@dataclass
class MemoryContrastiveArguments(UnlabeledArguments):
    """What the memory of pixels needs besides."""

    contrast_start: int | None = argument(
        None,
        "Updates before the contrastive loss and ClassMix begin; the unlabeled loss grows until then, and the memory "
        "fills from half of them on. Default: the published 2000, but at most a fifth of the training.",
        interval="[0, inf)",
        resume="changed",
        shown=True,
    )
    contrast_weight: float = argument(
        0.1, "Weight of each of the two contrastive losses.", interval="[0, inf)", resume="changed", shown=True
    )
    memory_inflow: float = argument(
        1.0,
        "How often a pass over the labeled images may renew a class's memory. Published: 1 (Cityscapes), 7 (Pascal).",
        interval="(0, inf)",
        resume="refused",
        shown=True,
    )
    memory_confidence: float = argument(
        0.95, "Labeled pixels enter the memory above this confidence.", interval="[0, 1]", resume="changed", shown=True
    )
    memory_keeps: str = argument(
        "lowest",
        "Scores that enter the memory if a class has too many: lowest, as published, or highest, as the paper says.",
        choices=("lowest", "highest"),
        resume="changed",
        shown=True,
    )
    memory_weights: str = argument(
        "equal",
        "Weights of the memory's rows in the loss: equal, which the published code comes to, or scored by selectors "
        "of their own, as the paper says.",
        choices=("equal", "scored"),
        resume="refused",
        shown=True,
    )
    teacher_mode: str = argument(
        "train",
        "Mode of the teacher: train (dropout, statistics of its batch), as published, or eval (the student's).",
        choices=("train", "eval"),
        resume="refused",
        shown=True,
    )
    evaluate_teacher: bool = argument(
        False, "Evaluate the teacher beside the trained model; its metrics begin with teacher_.", resume="changed"
    )
    balance_classes: bool = argument(
        False,
        "From contrast_start on, weigh classes by the last batches, not by class_weights; published for Cityscapes.",
        resume="refused",
        shown=True,
    )

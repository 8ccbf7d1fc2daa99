"""`--compare_supervised`: a second training without unlabeled images, and whether these helped."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from ..evaluation.intervals import Interval, difference_interval, verdict
from ..training.arguments import AllSparkTrainingArguments
from ..utils.arguments import argument, documented
from ..utils.files import read_json, write_json
from .progress import show_progress


BY_IMAGE = "eval_by_image.safetensors"
BASELINE = "supervised"  # its method, and its folder in the output folder of the training


@documented
@dataclass
class BaselineArguments:
    """Whether to train a second time, for comparison."""

    compare_supervised: bool = argument(
        False,
        "Then train again without unlabeled images, as many updates, into OUTPUT_DIR/supervised, and say whether the "
        "unlabeled images helped.",
        group="training",
        common=True,
    )


def wants_baseline(arguments: BaselineArguments, args: AllSparkTrainingArguments, chooses_method: bool) -> bool:
    """
    Whether to train twice. If `--preset auto` chooses the method (`chooses_method`) and takes `supervised`, one
    training is enough, and a line says so.

    Raises:
        ValueError: if the method was given as `supervised`, so that there is nothing to compare.
    """
    if not arguments.compare_supervised or args.method != BASELINE:
        return arguments.compare_supervised
    if not chooses_method:
        raise ValueError(
            "compare_supervised compares with method=supervised, which is the method of this training itself: leave "
            "it out, or choose another method."
        )
    if args.should_save:
        print("nothing to compare: the method that was chosen reads no unlabeled images")
    return False


def baseline_arguments(args: AllSparkTrainingArguments) -> AllSparkTrainingArguments:
    """The arguments of the same training without unlabeled images."""
    changed = copy.copy(args)
    changed.method, changed.output_dir = BASELINE, str(Path(args.output_dir) / BASELINE)
    changed.holdout_fraction, changed.push_to_hub, changed.resume_from_checkpoint = 0.0, False, None
    return changed


def save_by_image(trainer):
    """Writes the counts of each validation image in the last evaluation, from which intervals are computed."""
    evaluation = trainer.evaluation
    if evaluation is not None and trainer.args.should_save:
        save_file({"counts": np.stack(evaluation.by_image)}, Path(trainer.args.output_dir) / BY_IMAGE)


def compare_folders(supervised: Path, other: Path, count_absent: bool = False) -> tuple[Interval, str] | None:
    """
    Interval of a training's gain of mIoU over the supervised one, and a sentence; None if a folder lacks [`BY_IMAGE`].
    With `count_absent`, absent classes count as 0 in mIoU.
    """
    files = [folder / BY_IMAGE for folder in (supervised, other)]
    if not all(file.is_file() for file in files):
        return None
    first, second = (load_file(file)["counts"] for file in files)
    interval = difference_interval(first, second, count_absent)
    return interval, verdict(interval, len(first))


def compare_with_baseline(trainer, build: Callable, train_and_evaluate: Callable) -> dict | None:
    """
    Trains the baseline after the training of a trainer, prints the verdict, and gives the content of
    `comparison.json`; None in other processes. `build` makes a trainer from training arguments, `train_and_evaluate`
    trains with it and saves the results.
    """
    folder = Path(trainer.args.output_dir)
    baseline = build(baseline_arguments(trainer.args))
    show_progress(baseline)
    train_and_evaluate(baseline, None)
    if not trainer.args.should_save:
        return None
    interval, sentence = compare_folders(folder / BASELINE, folder, trainer.args.count_absent_classes)
    if trainer.checkpoints.resumed_from is None:  # else only the time of its last part is known
        seconds = [read_json(one / "train_results.json")["train_runtime"] for one in (folder / BASELINE, folder)]
        share, updates = seconds[0] / seconds[1], trainer.state.global_step
        sentence += f" Without them, as many updates took {100 * share:.0f} % of the time, and about "
        sentence += f"{updates / share:.0f} would take as long."
    comparison = {**interval._asdict(), "verdict": sentence}
    write_json(folder / "comparison.json", comparison)
    print(sentence)
    return comparison

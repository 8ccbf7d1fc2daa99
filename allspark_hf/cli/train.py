"""Trains a segmenter from images of which some have masks: a folder, or a data set of the Hub.

    allspark train --data_dir DATA --output_dir OUT                # chooses what is not given, and says why
    allspark train --data_dir DATA --output_dir OUT --method unimatch_v2 --compare_supervised
    allspark train --dataset_name segments/sidewalk-semantic --image_column_name pixel_values ...
    allspark train camvid_cpu.yaml --data_dir DATA --output_dir OUT --dry_run
    accelerate launch -m allspark_hf train ...

With --push_to_hub (and --hub_model_id user/name) the model is published when all is done, with its card; the token is
that of `hf auth login` or HF_TOKEN. `allspark push` publishes a finished output folder.

A recipe (YAML or JSON) holds arguments; those on the command line override it. It is a path, or the name of one in
allspark_hf/recipes. --dry_run takes one step on random pixels and tells what is missing.
"""

import logging
import shlex
import sys
import time
from functools import partial
from pathlib import Path


def checkpoint_to_resume(args) -> str | None:
    """The checkpoint to resume from; raises ValueError if the output folder holds another run and none was given."""
    from allspark_hf.training.storage import finish_renaming, last_complete_checkpoint, sorted_checkpoints

    with args.main_process_first(desc="looking for checkpoints"):
        if args.should_save:
            finish_renaming(args.output_dir)
    asked, last = args.resume_from_checkpoint, last_complete_checkpoint(args.output_dir)
    incomplete = sorted_checkpoints(args.output_dir) if last is None else []
    if incomplete and (asked is None or str(asked).lower() == "true"):
        raise ValueError(
            f"{args.output_dir} holds {incomplete[0].name} of an earlier run, which is not complete or of another "
            "version, so that no run can go on from it: choose another --output_dir, or remove that checkpoint."
        )
    if str(asked).lower() == "true":
        if last is None:
            raise ValueError(
                f"There is no complete checkpoint in {args.output_dir}: leave --resume_from_checkpoint out."
            )
        return last
    if asked is None and last is not None:
        raise ValueError(
            f"{args.output_dir} holds checkpoints of an earlier run, which this one would replace: go on from {last} "
            "with --resume_from_checkpoint true, or choose another --output_dir."
        )
    if asked is None and (Path(args.output_dir) / "eval_results.json").is_file():
        raise ValueError(
            f"{args.output_dir} holds the result of an earlier run, which this one would replace: choose another "
            "--output_dir, or remove that folder."
        )
    return asked


def summary(report, num_held_out: int) -> str:
    """The numbers of images and classes, and how to name classes that have no names."""
    data = report.data
    held_out = f" ({num_held_out} of them held out)" if num_held_out else ""
    unlabeled = len(data.unlabeled) if data.unlabeled_stream is None else "streamed"
    line = (
        f"{len(data.labeled)} labeled{held_out}, {unlabeled} unlabeled, {len(data.validation)} validation images, "
        f"{report.num_labels} classes, {len(report.left_out)} files left out"
    )
    if data.classes is None:
        line += "; classes are called class_0, class_1, ...: name them in classes.txt in the data folder, or --classes"
    return line


def last_evaluation(trainer) -> dict[str, float]:
    """
    Metrics of the model as saved: the training's own last evaluation if it was of this model, and in this process,
    which has its counts by image; else a new one.
    """
    entry = next((entry for entry in reversed(trainer.state.log_history) if "eval_mean_iou" in entry), {})
    is_of_the_end = entry.get("step") == trainer.state.global_step and not trainer.args.load_best_model_at_end
    if trainer.evaluation is None or not is_of_the_end:
        logged = len(trainer.state.log_history)
        metrics = trainer.evaluate()
        if trainer.args.load_best_model_at_end:  # it would stand at the last update, but is of earlier weights
            del trainer.state.log_history[logged:]
        return metrics
    return {name: value for name, value in entry.items() if name != "step"}


def check_data(data_arguments, args):
    """Decodes and checks all images and masks, and prints their numbers."""
    from allspark_hf.data import load_data
    from allspark_hf.training.holdout import number_held_out

    with args.main_process_first(desc="checking the data"):
        report = load_data(data_arguments, args.image_column_name, args.label_column_name)
    if args.should_save:
        print(f"{summary(report, number_held_out(args, len(report.data.labeled)))}, processes: {args.world_size}")
    return report


def build_trainer(data_arguments, model_arguments, args, report, command: list[str], say=print):
    """Makes a trainer from arguments and checked data; `command` is for the run's record."""
    from transformers import set_seed

    from allspark_hf.cli.encoder_defaults import apply_encoder_defaults, planned_updates
    from allspark_hf.cli.models import load_model, normalization_of
    from allspark_hf.data.streaming import whole_steps
    from allspark_hf.inference.loading import make_image_processor
    from allspark_hf.methods import METHODS
    from allspark_hf.training.records import IdLists, run_source
    from allspark_hf.training.trainer import AllSparkTrainer

    args.image_column_name, args.label_column_name = "image", "label"  # what load_data calls them
    data = report.data
    streams = data.unlabeled_stream is not None
    if streams and data_arguments.skip_bad_files:
        args.on_bad_image = "skip"  # only reading a stream shows its bad files
    set_seed(args.seed)
    without_bottleneck = not METHODS[args.method].needs_bottleneck
    model = load_model(model_arguments, report, data_arguments.ignore_index, without_bottleneck)
    for name in ("mask_values", "ignored_mask_values"):  # for `allspark evaluate`
        values = getattr(data_arguments, name)
        setattr(model.config, name, None if values is None else list(values))
    num_unlabeled = len(data.unlabeled)
    if streams:  # the trainer refuses a stream without unlabeled_images_per_epoch
        num_unlabeled = whole_steps(args) if args.unlabeled_images_per_epoch else 0
    updates = planned_updates(args, len(data.labeled), num_unlabeled)
    apply_encoder_defaults(args, model.config, updates, say if args.should_save else None)
    trainer = AllSparkTrainer(
        model=model,
        args=args,
        processing_class=make_image_processor(data_arguments.image_long_side, **normalization_of(model_arguments)),
        train_dataset=data.labeled,
        unlabeled_dataset=data.unlabeled_stream if streams else data.unlabeled,
        eval_dataset=data.validation,
        callbacks=[IdLists(report.found)],
    )
    trainer.run_source = run_source(command, data_arguments, model_arguments, report)
    return trainer


def start(command: list[str], since: float):
    """
    Starts a training; if that fails, nothing new is left in the output folder. `command` is the command line, the
    command first, and `since` the value of `time.monotonic` when it began.

    Returns:
        `tuple`: the trainer; the checkpoint to resume from, or None; and a function that makes the baseline's trainer
        from its arguments, or None if no baseline is wanted.
    """
    from allspark_hf.cli.apply_preset import Preset, applies
    from allspark_hf.cli.arguments import ModelArguments, parse_arguments
    from allspark_hf.cli.baseline import BaselineArguments, wants_baseline
    from allspark_hf.cli.dry_run import DryRunArguments, dry_run
    from allspark_hf.cli.importing import use_import
    from allspark_hf.cli.preset import PresetArguments
    from allspark_hf.cli.progress import show_progress
    from allspark_hf.data import DataArguments
    from allspark_hf.training.arguments import AllSparkTrainingArguments
    from allspark_hf.training.faults import telling_of_memory
    from allspark_hf.training.holdout import without_held_out
    from allspark_hf.utils.files import removing_new_folders

    types = (
        *(DataArguments, ModelArguments, AllSparkTrainingArguments, DryRunArguments),
        *(PresetArguments, BaselineArguments),
    )
    data_arguments, model_arguments, args, run, wanted, comparison = parse_arguments(types, command[1:])
    checkpoint = checkpoint_to_resume(args)  # first, before anything is written
    preset, chooses = None, applies(wanted, args, command[1:])
    chooses_method = chooses and "method" not in args.given
    typed = [*command[1:], *use_import(data_arguments)]
    if chooses:
        preset = Preset(types, typed, print if args.should_save else lambda line: None, since)
        data_arguments, model_arguments, args, *_ = preset.choose(data_arguments, model_arguments, args)
    trains_twice = wants_baseline(comparison, args, chooses_method)
    if run.dry_run:
        length = None if preset is None else preset.planned_length(args, wanted.minutes)
        with telling_of_memory(args.output_dir):
            sys.exit(0 if dry_run(data_arguments, model_arguments, args, length) else 1)
    with removing_new_folders(args.output_dir), telling_of_memory(args.output_dir):
        report = check_data(data_arguments, args)
        if preset is not None:
            build = partial(build_trainer, command=command, say=lambda line: None)
            arguments = data_arguments, model_arguments, args
            length = wanted.minutes, trains_twice
            data_arguments, model_arguments, args = preset.choose_length(build, report, arguments, *length)
        trainer = build_trainer(data_arguments, model_arguments, args, report, command)
        show_progress(trainer)
        if checkpoint is not None:
            trainer.checkpoints.check(checkpoint)
        if preset is not None and args.should_save:
            preset.save(args.output_dir)
    report = without_held_out(args, report)
    baseline = partial(build_trainer, data_arguments, model_arguments, report=report, command=command)
    return trainer, checkpoint, baseline if trains_twice else None


def train_and_report(trainer, checkpoint: str | None, baseline):
    """Trains what [`start`] gives, the baseline after it if one is wanted, and writes `report.html`."""
    from allspark_hf.cli.baseline import compare_with_baseline
    from allspark_hf.cli.report import write_report

    train_and_evaluate(trainer, checkpoint)
    comparison = None if baseline is None else compare_with_baseline(trainer, baseline, train_and_evaluate)
    write_report(trainer, comparison)


def train_and_evaluate(trainer, checkpoint: str | None):
    """Trains; saves the model, its metrics and its log."""
    from allspark_hf.cli.baseline import save_by_image
    from allspark_hf.cli.progress import result_lines
    from allspark_hf.training.faults import telling_of_memory

    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(_internal_call=True)  # without a push, since the card needs the evaluation below
    trainer.save_state()
    trainer.save_metrics("train", result.metrics)
    with telling_of_memory(trainer.args.output_dir):
        metrics = last_evaluation(trainer)
    trainer.save_metrics("eval", metrics)
    save_by_image(trainer)
    trainer.save_state()  # again, with this evaluation in the log
    if trainer.args.should_save:
        print(*result_lines(trainer, metrics), sep="\n", flush=True)


def push(trainer) -> str | None:
    """Publishes the output folder; returns why that failed, if it did."""
    from allspark_hf.publishing.upload import PushError

    try:
        commit = trainer.push_to_hub()
    except PushError as error:
        return f"PushError: {error}"
    if commit is not None:
        print(f"Pushed to {commit.repo_url}")
    return None


def main():
    since = time.monotonic()
    from huggingface_hub.errors import StrictDataclassError

    from allspark_hf.cli.ending import fail, leave
    from allspark_hf.data.reading import BadImageError
    from allspark_hf.evaluation.evaluator import OtherProcessError
    from allspark_hf.training.faults import TrainingFault

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    for name in ("httpx", "httpx2"):  # they log every request, with signed addresses
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        trainer, checkpoint, baseline = start(sys.argv, since)
    except (OSError, ValueError, StrictDataclassError, TrainingFault) as error:
        fail(f"{type(error).__name__}: {error}")

    try:
        train_and_report(trainer, checkpoint, baseline)
    except (TrainingFault, BadImageError, OSError) as error:
        fail(f"{type(error).__name__}: {error}")
    except OtherProcessError as error:
        fail(str(error))
    if trainer.args.should_save:
        folder = trainer.args.output_dir
        print(
            f"The model is in {folder}, and report.html says how it went. Next: "
            f"allspark predict --model {shlex.quote(folder)} --input IMAGES --output_dir predictions"
        )
    failure = push(trainer) if trainer.args.push_to_hub else None
    leave(trainer.accelerator, failure)


def train(
    data: str | Path | None = None,
    output_dir: str | Path | None = None,
    recipe: str | Path | None = None,
    **arguments,
):
    """
    `allspark train` in one call, for notebooks.

    Args:
        data (`str` or `Path`, *optional*): the data folder, or the export of a labeling tool, `data_dir`.
        output_dir (`str` or `Path`, *optional*): folder for the model and its results.
        recipe (`str` or `Path`, *optional*): a YAML or JSON file of arguments, which those given here override.
        arguments: those of `allspark train --help_all`, such as `crop_size=[168, 224]`; `None` leaves one out.

    Returns:
        [`AllSparkTrainer`]: after training and evaluation. The evaluated model is in `output_dir`; with a teacher, as
        `unimatch_v2` has, it is `trainer.method.evaluated_model(trainer.model)`, and `trainer.model` is the student.

    Raises:
        ValueError: for arguments or data that `allspark train` refuses; for a wrong name with the nearest right one.
        OSError: for a file or folder that is missing.
        TrainingFault: where training cannot go on.

    Example:

    ```python
    >>> import allspark_hf

    >>> trainer = allspark_hf.train(data="data", output_dir="out", encoder="facebook/dinov2-small", max_steps=600)
    >>> allspark_hf.segment("out", "photo.jpg")
    ```"""
    since = time.monotonic()
    from allspark_hf.training.recipes import check_entry, recipe_arguments

    if arguments.get("dry_run"):
        raise ValueError("dry_run is of the command line: type `allspark train --dry_run` with the same arguments.")
    entries = {"data_dir": data, "output_dir": output_dir} | arguments
    for name, value in entries.items():
        entries[name] = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        check_entry(name, entries[name], "allspark_hf.train()")
    recipes = [] if recipe is None else [str(recipe)]
    trainer, checkpoint, baseline = start(["allspark train", *recipes, *recipe_arguments(entries)], since)
    train_and_report(trainer, checkpoint, baseline)
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
    return trainer

"""`allspark train --dry_run`: builds everything, takes one step on random pixels, and says what is missing."""

import copy
import math
import re
import tempfile
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

from ..data import DataArguments
from ..data.presence import DataPresence, look_for_data
from ..data.streaming import whole_steps
from ..evaluation.sizes import require_large_enough
from ..methods import METHODS
from ..models.encoders import is_model_type
from ..training.advice import RunPlan, advise
from ..training.arguments import AllSparkTrainingArguments
from ..training.checks import check_datasets
from ..training.faults import NonFiniteError
from ..training.loaders import make_sampler
from ..training.trainer import AllSparkTrainer
from ..utils.arguments import argument, documented
from ..utils.files import HUB_ID
from .arguments import ModelArguments
from .encoder_defaults import apply_encoder_defaults, planned_updates
from .models import check_source
from .trial_step import GIB, StepReport, build_trainer, take_step


WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Models of the Hub that have the geometry of `AllSparkConfig.mit`.
NVIDIA = re.compile(r"nvidia/(?:mit|segformer)-(b[0-5])(?:-.*)?")
MIB = 2**20


@documented
@dataclass
class DryRunArguments:
    """Whether to train, or only to try whether a training can start."""

    dry_run: bool = argument(
        False,
        "Do not train: build everything, take one step on random pixels, print the effective batch, the steps, the "
        "memory and what is missing on disk. Nothing is written to output_dir.",
        group="training",
        common=True,
    )


def dry_run(
    data: DataArguments, model: ModelArguments, args: AllSparkTrainingArguments, length: str | None = None
) -> bool:
    """
    Prints what a training would do, and what it lacks.

    Args:
        data ([`DataArguments`]): arguments of the training.
        model ([`ModelArguments`]): arguments of the training.
        args ([`AllSparkTrainingArguments`]): arguments of the training; not changed.
        length (`str`, *optional*): how the training will choose its length, if `args` do not say it.

    Returns:
        `bool`: whether nothing is missing.

    Raises:
        ValueError, OSError: if arguments contradict each other, as in training.
    """
    say = partial(print, sep="\n", flush=True) if args.should_save else lambda *lines: None
    say("Settings", *setting_lines(model, args, length), "Batch", *batch_lines(args))
    found = look_for_data(data, args.image_column_name, args.label_column_name)
    args = copy.copy(args)
    args.image_column_name, args.label_column_name = "image", "label"  # what look_for_data calls them
    if _streams(found) and args.unlabeled_images_per_epoch is not None:
        found.counts["unlabeled"] = whole_steps(args)
    problems = found.problems
    say("Data", *data_lines(found, data, args, length))
    if found.data is not None:
        check_sets(found, args)
    buildable, lines, problem = choose_weights(model)
    problems += [problem] if problem else []
    say("Model", *lines)
    if buildable is not None and found.num_labels is not None:
        with tempfile.TemporaryDirectory() as folder:
            trainer = build_trainer(found, data, buildable, args, folder)
            say(*model_lines(trainer), *([] if length else chosen_lines(trainer, found, args)))
            if found.data is not None:
                evaluated = {"validation": found.data.validation}
                found.attempt(require_large_enough, evaluated, trainer.model.config, args, trainer.long_side)
            reading = ", reading the memory" if METHODS[args.method].needs_bottleneck else ""
            say(f"One step on random pixels{reading}")
            try:
                say(*step_lines(take_step(trainer), args))
            except NonFiniteError:
                problems.append("The loss of the step on random pixels is not finite: lower the learning rate.")
    else:
        say("  not built, and no step taken: see below")
    advice = advice_lines(found, args, length)
    if advice:
        say("To consider:", *(f"  - {sentence}" for sentence in advice))
    if problems:
        say("To do before training:", *(f"  - {problem}" for problem in problems))
    else:
        say("Ready to train.")
    return not problems


# ---- What the arguments say ----


def setting_lines(model: ModelArguments, args: AllSparkTrainingArguments, chosen: str | None) -> list[str]:
    """The most important arguments, with the values that the training will have."""
    rate = args.learning_rate
    schedule = f"{args.lr_scheduler_type.value} {args.lr_scheduler_kwargs or ''}"
    length = f"{args.max_steps} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    length = chosen or f"{length}; an epoch is one pass over the {args.epoch_length} images"
    own = {one.name: getattr(args, one.name) for one in fields(METHODS[args.method].arguments_class)}
    steps = f"{args.eval_steps:g} of the" if args.eval_steps and args.eval_steps < 1 else f"{args.eval_steps}"
    when = {"no": "never", "epoch": "every epoch", "steps": f"every {steps} steps"}[args.eval_strategy.value]
    absent = "count as 0" if args.count_absent_classes else "do not count"
    rates = f"encoder {rate:g}, rest {rate * args.head_learning_rate_multiplier:g}"
    optimizer = f"{args.optim.value}, weight decay {args.weight_decay:g}"
    if not model.backbone:  # the encoder is not read yet
        given, other = set(getattr(args, "given", ())), ", unless another is chosen for the encoder below"
        optimizer += "" if {"optim", "weight_decay"} <= given else other
        rates += "" if "learning_rate" in given else other
    return [
        f"  method: {args.method}, from {model.encoder or model.model_name_or_path or model.backbone}",
        f"  its arguments: {', '.join(f'{name} {value}' for name, value in own.items())}",
        f"  optimizer: {optimizer}",
        f"  learning rate: {rates}; {schedule}",
        f"  length: {length}",
        f"  evaluation: {'a few times' if chosen else when}; {args.eval_mode}; absent classes {absent}",
    ]


def batch_lines(args: AllSparkTrainingArguments) -> list[str]:
    """Images of one update over all processes and accumulated batches."""
    per_device = {"labeled": args.per_device_train_batch_size}
    if METHODS[args.method].uses_unlabeled:
        per_device["unlabeled"] = args.per_device_unlabeled_batch_size
    times = args.world_size * args.gradient_accumulation_steps
    each = " + ".join(f"{count} {name}" for name, count in per_device.items())
    total = " + ".join(f"{count * times} {name}" for name, count in per_device.items())
    processes = f"{args.world_size} process{'es' if args.world_size > 1 else ''}"
    lines = [f"  ({each}) x {processes} x {args.gradient_accumulation_steps} accumulated = {total} images per update"]
    if args.total_train_batch_size is not None:
        lines.append(f"  total_train_batch_size asks for {args.total_train_batch_size} labeled images per update")
    return lines


# ---- Data ----


def data_lines(
    found: DataPresence, data: DataArguments, args: AllSparkTrainingArguments, chosen: str | None
) -> list[str]:
    """Images of each set, and updates; "unknown" if files are missing."""
    sets = ("labeled", "unlabeled", "validation")
    counts = ", ".join(f"{found.counts.get(name, 'unknown')} {name}" for name in sets)
    origin = "" if found.data is not None or not found.counts else " (by the lists, files are missing)"
    origin = " (unlabeled ones: an epoch of the stream)" if _streams(found) else origin
    num_labels = "unknown" if found.num_labels is None else found.num_labels
    return [
        f"  from: {data.data_dir or data.dataset_name}, {num_labels} classes",
        f"  images: {counts}{origin}",
        f"  updates: {chosen or update_text(found.counts, args)}",
    ]


def _streams(found: DataPresence) -> bool:
    return found.data is not None and found.data.unlabeled_stream is not None


def update_text(counts: dict[str, int], args: AllSparkTrainingArguments) -> str:
    """Updates of an epoch and in all, or `unknown`."""
    lengths = _lengths(counts, args)
    if lengths is None:
        return "unknown"
    batches, updates, total = lengths
    partial = batches % args.gradient_accumulation_steps
    note = f"; the last of an epoch has {partial} of {args.gradient_accumulation_steps} batches" if partial else ""
    return f"{updates} per epoch, {total} in all{note}"


def _lengths(counts: dict[str, int], args: AllSparkTrainingArguments) -> tuple[int, int, int] | None:
    """Batches of an epoch in one process, updates of an epoch, and updates in all; None if a count is unknown."""
    if "labeled" not in counts or (args.epoch_length == "unlabeled" and "unlabeled" not in counts):
        return None
    images = counts["labeled"], counts.get("unlabeled", 0)
    batches = math.ceil(len(make_sampler(args, *images)) / args.world_size)
    return batches, math.ceil(batches / args.gradient_accumulation_steps), planned_updates(args, *images)


def check_sets(found: DataPresence, args: AllSparkTrainingArguments):
    """Adds what the trainer would refuse in the sets, without a look for images that are in two of them."""
    data = found.data
    images = data.unlabeled if len(data.unlabeled) else None
    unlabeled = images if data.unlabeled_stream is None else data.unlabeled_stream
    found.attempt(check_datasets, args, data.labeled, unlabeled, None)


def advice_lines(found: DataPresence, args: AllSparkTrainingArguments, chosen: str | None) -> list[str]:
    """What the training will warn of, without its warnings of classes, for which it reads the masks."""
    counts, lengths = found.counts, _lengths(found.counts, args)
    if lengths is None:
        return []
    _, updates, total = lengths
    plan = RunPlan(
        num_labeled=counts["labeled"],
        num_unlabeled=None if _streams(found) else counts.get("unlabeled", 0),
        num_validation=counts.get("validation"),
        steps=None if chosen else total,
        epochs=math.ceil(total / updates),
    )
    return advise(args, plan, [])


# ---- Model ----


def choose_weights(model: ModelArguments) -> tuple[ModelArguments | None, list[str], str | None]:
    """
    Where the weights of the dry run's model come from.

    Returns:
        `tuple`: the arguments to build the model with, `None` if it cannot be built; lines to print; a problem or
        `None`.

    Raises:
        ValueError: unless there is one source of weights.
    """
    check_source(model)
    name = model.encoder or model.model_name_or_path
    if name is None or (model.encoder and is_model_type(name)):
        return model, [f"  weights: random, as {'encoder' if model.encoder else 'backbone'} asks"], None
    if Path(name).is_dir():
        return model, [f"  weights: from the folder {name}"], None
    if _is_cached(name):
        return model, [f"  weights: {name} from the Hub's cache here"], None
    match = NVIDIA.fullmatch(name)
    if match is None:
        problem = (
            f"{name} is neither a folder nor in the Hub's cache here, and no Mix Transformer of NVIDIA, whose "
            "geometry would be known: correct the name, or download it first (hf download)."
        )
        return None, [f"  weights: {name} is not here"], problem
    random = replace(model, encoder=None, model_name_or_path=None, backbone=match[1])
    lines = [
        f"  weights: {name} is not in the Hub's cache here, training will download it",
        "  weights of the dry run: random, of the same geometry",
    ]
    problem = None
    if constants.HF_HUB_OFFLINE:
        problem = f"{name} is not in the Hub's cache here, and HF_HUB_OFFLINE forbids to download it."
        lines[0] = f"  weights: {name} is not in the Hub's cache here"
    return random, lines, problem


def _is_cached(name: str) -> bool:
    if not HUB_ID.fullmatch(name):
        return False
    config, *weights = (isinstance(try_to_load_from_cache(name, file), str) for file in ("config.json", *WEIGHT_FILES))
    return config and any(weights)


def model_lines(trainer: AllSparkTrainer) -> list[str]:
    """Input, parameters and memory."""
    model = trainer.model
    height, width = model.config.crop_height_width
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    shares = ", ".join(f"{name} {size / 1e6:.2f}" for name, size in sizes.items())
    lines = [
        f"  input: crops of {height} x {width}, {model.config.num_labels} classes",
        f"  parameters: {sum(sizes.values()) / 1e6:.2f} million ({shares})",
    ]
    if model.bottleneck is not None and model.bottleneck.memory is not None:
        channels = model.bottleneck.memory.channels
        size = channels.numel() * channels.element_size() / MIB
        lines.append(f"  semantic memory: {' x '.join(map(str, channels.shape))}, {size:.1f} MiB")
    return lines


def chosen_lines(trainer: AllSparkTrainer, found: DataPresence, args: AllSparkTrainingArguments) -> list[str]:
    """What the training will choose for its encoder and length, of the arguments that were not given."""
    lines, lengths = [], _lengths(found.counts, args)
    if lengths is not None:
        apply_encoder_defaults(copy.copy(args), trainer.model.config, lengths[-1], say=lines.append)
    return [f"  {line}" for line in lines]


def step_lines(step: StepReport, args: AllSparkTrainingArguments) -> list[str]:
    """Loss, time and memory of the step, and the memory that later steps need in addition."""
    lines = [
        f"  loss {step.loss:.4f}, {step.seconds:.1f} s for one batch of one process (the first, so with warming up)",
        f"  memory: {step.memory}",
    ]
    accumulated = args.gradient_accumulation_steps > 1
    extra = step.optimizer_bytes + (step.gradient_bytes if accumulated else 0)
    kept = "the optimizer's state" + (" and the gradients of batches before" if accumulated else "")
    return [*lines, f"  later batches: up to {extra / GIB:.2f} GiB more, {kept}"]

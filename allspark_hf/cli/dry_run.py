"""`scripts/train.py --dry_run`: builds everything, takes one step on random pixels, and tells what is missing."""

import copy
import math
import re
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import datasets
import numpy as np
import torch
from huggingface_hub import constants, try_to_load_from_cache
from PIL import Image
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..data import CheckReport, DataArguments, SegmentationData
from ..data.presence import DataPresence, look_for_data
from ..inference.loading import make_image_processor
from ..methods import METHODS
from ..training.arguments import AllSparkTrainingArguments
from ..training.checks import check_datasets
from ..training.faults import NonFiniteError
from ..training.trainer import AllSparkTrainer, make_sampler
from .arguments import ModelArguments, check_source, load_model


WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Names on the Hub whose geometry is that of `AllSparkConfig.mit`.
NVIDIA = re.compile(r"nvidia/(?:mit|segformer)-(b[0-5])(?:-.*)?")
MIB, GIB = 2**20, 2**30


@dataclass
class DryRunArguments:
    """Whether to train at all."""

    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Do not train: build everything, take one step on random pixels, print the effective batch, the "
            "steps, the memory and what is missing on disk. Nothing is written to output_dir."
        },
    )


def dry_run(data: DataArguments, model: ModelArguments, args: AllSparkTrainingArguments) -> bool:
    """
    Prints the report.

    Args:
        data ([`DataArguments`]): of the training to come.
        model ([`ModelArguments`]): of the training to come.
        args ([`AllSparkTrainingArguments`]): of the training to come; not changed.

    Returns:
        `bool`: whether nothing is missing.

    Raises:
        ValueError, OSError: for arguments that contradict each other, as in training.
    """
    say = _say if args.should_save else lambda *lines: None
    say("Settings", *setting_lines(model, args), "Batch", *batch_lines(args))
    found = look_for_data(data)
    problems = found.problems
    say("Data", *data_lines(found, data, args))
    problems += unlabeled_problems(found, args)
    buildable, lines, problem = choose_weights(model)
    problems += [problem] if problem else []
    say("Model", *lines)
    if buildable is not None and found.num_labels is not None:
        with tempfile.TemporaryDirectory() as folder:
            trainer = build_trainer(found, data, buildable, args, folder)
            say(*model_lines(trainer))
            reading = ", reading the memory" if METHODS[args.method].needs_bottleneck else ""
            say(f"One step on random pixels{reading}")
            try:
                say(*step_lines(take_step(trainer), args))
            except NonFiniteError:
                problems.append("The loss of the step on random pixels is not finite: lower the learning rate.")
    else:
        say("  not built, and no step taken: see below")
    if problems:
        say("To do before training:", *(f"  - {problem}" for problem in problems))
    else:
        say("Ready to train.")
    return not problems


def _say(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)


# ---- What the arguments say ----


def setting_lines(model: ModelArguments, args: AllSparkTrainingArguments) -> list[str]:
    """The arguments that matter most, as the training will have them."""
    encoder = args.learning_rate
    schedule = f"{getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)} {args.lr_scheduler_kwargs or ''}"
    length = f"{args.max_steps} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    losses = f"labeled {args.labeled_loss}"
    if args.labeled_loss == "ohem":
        losses += f" (threshold {args.ohem_threshold:g}, at least {args.ohem_min_kept} pixels)"
    if METHODS[args.method].uses_unlabeled:
        losses += f"; unlabeled cross_entropy with weight {args.unlabeled_loss_weight:g}"
        losses += f" from epoch {args.unlabeled_warmup_epochs}; padding {'' if args.train_on_padding else 'not '}used"
    lines = [
        f"  method: {args.method}, from {model.model_name_or_path or model.backbone}",
        f"  optimizer: {getattr(args.optim, 'value', args.optim)}, weight decay {args.weight_decay:g}",
        f"  learning rate: encoder {encoder:g}, rest {encoder * args.head_learning_rate_multiplier:g}; {schedule}",
        f"  length: {length}; an epoch is one pass over the {args.epoch_length} images",
        f"  losses: {losses}",
    ]
    if METHODS[args.method].needs_bottleneck:
        lines.append(f"  memory: read from epoch {args.memory_warmup_epochs} on, counted from 0")
    steps = f"{args.eval_steps:g} of the" if args.eval_steps and args.eval_steps < 1 else f"{args.eval_steps}"
    when = {"no": "never", "epoch": "every epoch", "steps": f"every {steps} steps"}[args.eval_strategy.value]
    mode = args.eval_mode
    absent = "count as 0" if args.count_absent_classes else "do not count"
    return [*lines, f"  evaluation: {when}; {mode}; absent classes {absent}"]


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


def data_lines(found: DataPresence, data: DataArguments, args: AllSparkTrainingArguments) -> list[str]:
    """Images of each set and updates of an epoch, as far as they are known."""
    sets = ("labeled", "unlabeled", "validation")
    counts = ", ".join(f"{found.counts.get(name, 'unknown')} {name}" for name in sets)
    origin = "" if found.data is not None or not found.counts else " (by the lists, files are missing)"
    return [
        f"  folder: {data.data_dir}, {'unknown' if found.num_labels is None else found.num_labels} classes",
        f"  images: {counts}{origin}",
        f"  updates: {update_text(found.counts, args)}",
    ]


def update_text(counts: dict[str, int], args: AllSparkTrainingArguments) -> str:
    """Updates of an epoch and in all, or `unknown`."""
    if "labeled" not in counts or (args.epoch_length == "unlabeled" and "unlabeled" not in counts):
        return "unknown"
    batches = math.ceil(len(make_sampler(args, counts["labeled"], counts.get("unlabeled", 0))) / args.world_size)
    updates = math.ceil(batches / args.gradient_accumulation_steps)
    total = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * updates)
    partial = batches % args.gradient_accumulation_steps
    note = f"; the last of an epoch has {partial} of {args.gradient_accumulation_steps} batches" if partial else ""
    return f"{updates} per epoch, {total} in all{note}"


def unlabeled_problems(found: DataPresence, args: AllSparkTrainingArguments) -> list[str]:
    """What the trainer would say to sets that are all there, but for images that are in two of them."""
    if found.data is None:
        return []
    unlabeled = found.data.unlabeled if len(found.data.unlabeled) else None
    try:
        check_datasets(args, found.data.labeled, unlabeled, eval_dataset=None)
    except ValueError as error:
        return [str(error)]
    return []


# ---- Model ----


def choose_weights(model: ModelArguments) -> tuple[ModelArguments | None, list[str], str | None]:
    """
    What the model of the dry run can be built from.

    Returns:
        `tuple`: the arguments to build it with, `None` if it cannot be built; what to say; a problem, if it is one.

    Raises:
        ValueError: unless there is one source of weights.
    """
    check_source(model)
    name = model.model_name_or_path
    if name is None:
        return model, ["  weights: random, as backbone asks"], None
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
    random = replace(model, model_name_or_path=None, backbone=match[1])
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
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return False
    config, *weights = (isinstance(try_to_load_from_cache(name, file), str) for file in ("config.json", *WEIGHT_FILES))
    return config and any(weights)


def model_lines(trainer: AllSparkTrainer) -> list[str]:
    """Input, parameters and memory."""
    model = trainer.model
    height, width = model.config.crop_height_width
    parts = {"encoder": model.segformer, "bottleneck": model.bottleneck, "decode head": model.decode_head}
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items() if part is not None}
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


# ---- The step ----


@dataclass
class StepReport:
    """Loss, seconds and memory of the step, and bytes that later updates have on top."""

    loss: float
    seconds: float
    memory: str
    optimizer_bytes: int
    gradient_bytes: int


class _Stopwatch(TrainerCallback):
    """Seconds from the first forward pass to the update, data loading left out."""

    seconds = math.nan

    def on_step_begin(self, args, state, control, **kwargs):
        self._synchronize()
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self._synchronize()
        self.seconds = time.perf_counter() - self.start

    def _synchronize(self):
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def build_trainer(
    found: DataPresence,
    data: DataArguments,
    model: ModelArguments,
    args: AllSparkTrainingArguments,
    folder: str,
) -> AllSparkTrainer:
    """The trainer of the training to come, but with random images, for one step that reads the memory."""
    step_args = copy.copy(args)  # not made anew: that would undo what was derived from the original ones
    changes = {
        "output_dir": folder,
        "max_steps": 1,
        "gradient_accumulation_steps": 1,
        "memory_warmup_epochs": 0,
        "unlabeled_warmup_epochs": 0,
        "eval_strategy": IntervalStrategy.NO,
        "save_strategy": SaveStrategy.NO,
        "logging_strategy": IntervalStrategy.STEPS,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "load_best_model_at_end": False,
        "push_to_hub": False,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "dataloader_persistent_workers": False,
        "dataloader_prefetch_factor": None,
        "dataloader_drop_last": False,
    }
    for name, value in changes.items():
        setattr(step_args, name, value)
    set_seed(args.seed)
    report = CheckReport(
        data=SegmentationData(labeled=None, unlabeled=None, validation=None, classes=found.classes),
        num_labels=found.num_labels,
        values=[],
    )
    model = load_model(model, report, data.ignore_index, plain_segformer=not METHODS[args.method].needs_bottleneck)
    trainer = AllSparkTrainer(
        model,
        step_args,
        make_image_processor(data.image_long_side),
        train_dataset=random_images(model.config, args, args.per_device_train_batch_size),
        unlabeled_dataset=random_images(model.config, args, args.per_device_unlabeled_batch_size),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def random_images(config, args: AllSparkTrainingArguments, per_device: int) -> datasets.Dataset:
    """Noise of the crop's size with random masks, one for every place in a batch of all processes."""
    rng = np.random.default_rng(args.seed)
    size = config.crop_height_width
    images, masks = [], []
    for _ in range(per_device * args.world_size):
        images.append(Image.fromarray(rng.integers(256, size=(*size, 3), dtype=np.uint8)))
        masks.append(Image.fromarray(rng.integers(config.num_labels, size=size, dtype=np.uint8)))
    columns = {args.image_column_name: images, args.label_column_name: masks}
    features = datasets.Features({name: datasets.Image() for name in columns})
    return datasets.Dataset.from_dict(columns, features=features)


def take_step(trainer: AllSparkTrainer) -> StepReport:
    """Forward, backward and update on one batch, through the trainer."""
    stopwatch = _Stopwatch()
    trainer.add_callback(stopwatch)
    if trainer.args.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(trainer.args.device)
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "loss_x" in entry)
    state = [value for values in trainer.optimizer.state.values() for value in values.values()]
    parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    return StepReport(
        loss=entry["loss"],
        seconds=stopwatch.seconds,
        memory=_peak_memory(trainer.args.device),
        optimizer_bytes=_num_bytes([value for value in state if torch.is_tensor(value)]),
        gradient_bytes=_num_bytes(parameters),
    )


def _num_bytes(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _peak_memory(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / GIB:.2f} GiB at most allocated by torch on {device}"
    if device.type != "cpu" or sys.platform == "win32":
        return f"not measured on {device.type} under {sys.platform}"
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"{peak / GIB:.2f} GiB, the most this process has held on the CPU, Python and libraries included"


def step_lines(step: StepReport, args: AllSparkTrainingArguments) -> list[str]:
    """Loss, time and memory of the step, and what later ones have on top."""
    lines = [
        f"  loss {step.loss:.4f}, {step.seconds:.1f} s for one batch of one process (the first, so with warming up)",
        f"  memory: {step.memory}",
    ]
    accumulated = args.gradient_accumulation_steps > 1
    extra = step.optimizer_bytes + (step.gradient_bytes if accumulated else 0)
    kept = "the optimizer's state" + (" and the gradients of batches before" if accumulated else "")
    return [*lines, f"  later batches: up to {extra / GIB:.2f} GiB more, {kept}"]


__all__ = ["DryRunArguments", "dry_run"]

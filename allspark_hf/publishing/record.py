"""What a training run says about itself, for its card: run_record.json, with nothing in it that is private."""

import json
import logging
import os
import platform
import re
import shlex
import subprocess
from dataclasses import MISSING, fields
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import TrainerCallback
from transformers.trainer_pt_utils import AcceleratorConfig

from ..utils import __version__
from .licences import base_weights_of, weights_name


logger = logging.getLogger(__name__)

RECORD_FILE = "run_record.json"
REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "datasets", "accelerate", "numpy")
# What TrainingArguments fills in by itself, and what says nothing about the model.
NOT_RECORDED = (
    *("output_dir", "logging_dir", "run_name", "report_to", "disable_tqdm", "debug", "do_eval", "local_rank"),
    *("greater_is_better", "dataloader_pin_memory", "deepspeed_plugin", "resume_from_checkpoint", "project"),
)
SETTINGS = (
    *("method", "num_train_epochs", "max_steps", "per_device_train_batch_size", "per_device_unlabeled_batch_size"),
    *("gradient_accumulation_steps", "epoch_length", "optim", "learning_rate", "head_learning_rate_multiplier"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "max_grad_norm"),
    *("labeled_loss", "unlabeled_loss_weight", "unlabeled_warmup_epochs", "memory_warmup_epochs", "train_on_padding"),
    *("eval_mode", "eval_crop_size", "eval_stride", "eval_scales", "eval_flip", "count_absent_classes"),
    *("load_best_model_at_end", "metric_for_best_model", "seed", "data_seed", "bf16", "fp16"),
)
TOKEN = re.compile(r"\b(?:hf|api_org)_\w{6,}")
ABSOLUTE = re.compile(r"[/\\~]|[A-Za-z]:[/\\]|file:")
EMBEDDED_PATH = re.compile(r"(?<![\w.:/~-])(?:~[\w.-]*)?/[^\s'\",;=]+|\b[A-Za-z]:\\[^\s'\",;=]+")


# ---- What may be public ----


def public(value: Any) -> Any:
    """
    A value as it may be published: without tokens and absolute paths.

    Args:
        value: whatever JSON holds; an enum becomes its value, and what JSON cannot hold its text.

    Returns:
        The same with `hf_...` as `<token>`, an absolute path as the part inside this repository or else its last part.
        A relative path stays as it was given.
    """
    if isinstance(value, Enum):
        return public(value.value)
    if isinstance(value, dict):
        return {str(name): public(entry) for name, entry in value.items() if not str(name).endswith("token")}
    if isinstance(value, list | tuple):
        return [public(entry) for entry in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    text = TOKEN.sub("<token>", str(value))
    if ABSOLUTE.match(text):
        return _public_path(text)
    return EMBEDDED_PATH.sub(lambda match: _public_path(match.group()), text)


def _public_path(text: str) -> str:
    path = Path(text)
    if path.is_absolute() and path.is_relative_to(REPOSITORY) and path != REPOSITORY:
        return path.relative_to(REPOSITORY).as_posix()
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1] or "."


def public_command(arguments: list[str]) -> str:
    """
    A command line as it may be published, to be typed in the repository's folder.

    Args:
        arguments (`list[str]`): `sys.argv`: the script, then its arguments. A `--..._token` goes with its value.
    """
    shown, skip = ["python"], False
    for argument in map(str, arguments):
        name, has_value, value = argument.partition("=")
        if skip and not argument.startswith("--"):
            skip = False
            continue
        # Also as argparse lets it be cut short: --hub_tok.
        is_token = name.startswith("--") and (name.endswith("token") or name.startswith("--hub_t"))
        skip = is_token and not has_value
        if is_token:
            continue
        shown.append(f"{name}={public(value)}" if name.startswith("--") and has_value else public(argument))
    return shlex.join(shown)


# ---- Parts of the record ----


def non_default(arguments) -> dict[str, Any]:
    """Fields of an arguments dataclass that differ from their defaults, as they may be published."""
    changed = {}
    for field in fields(arguments):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = getattr(arguments, field.name, None)
        own = _filled_in(arguments, field.name, value)
        if field.init and field.name not in NOT_RECORDED and value != default and not own:
            changed[field.name] = value.to_dict() if isinstance(value, AcceleratorConfig) else value
    return public(changed)


def _filled_in(arguments, name: str, value) -> bool:
    """Whether `__post_init__` gave the value, not the user."""
    if name in ("activation_checkpointing", "gradient_checkpointing"):
        return not value
    if name == "lr_scheduler_kwargs":
        return arguments.lr_scheduler_type == "polynomial" and value == {"power": 0.9, "lr_end": 0.0}
    if name == "per_device_unlabeled_batch_size":
        return value == arguments.per_device_train_batch_size
    if isinstance(value, AcceleratorConfig):  # the Trainer takes two entries out of it
        return value.to_dict().items() <= AcceleratorConfig().to_dict().items()
    return False


def run_source(arguments: list[str], data_arguments, model_arguments, report) -> dict:
    """
    What scripts/train.py knows of a run and the trainer does not; for `AllSparkTrainer.run_source`.

    Args:
        arguments (`list[str]`): `sys.argv`.
        data_arguments ([`DataArguments`]): which data.
        model_arguments ([`ModelArguments`]): which model.
        report ([`CheckReport`]): the data.
    """
    recipe = arguments[1] if len(arguments) > 1 and not arguments[1].startswith("--") else None
    return {
        "command": public_command(arguments),
        "recipe": public(recipe),
        "arguments": non_default(data_arguments) | non_default(model_arguments),
        "data": _data_source(data_arguments, report),
    }


def _data_source(arguments, report) -> dict:
    from allspark_hf.data import find_layout

    chosen = ("labeled_count", "labeled_fraction", "labeled_list", "unlabeled_list", "validation_list")
    selection = {name: getattr(arguments, name) for name in chosen if getattr(arguments, name) is not None}
    data = {"selection": selection | {"split_seed": arguments.split_seed}}
    if arguments.data_dir is not None:
        layout = find_layout(arguments.data_dir, arguments.data_format, arguments.voc_masks)
        data |= {"source": weights_name(Path(arguments.data_dir).absolute()), "on_hub": False}
        data["layout"] = type(layout).__name__.removesuffix("Layout").lower()
    else:
        data |= {"source": weights_name(arguments.dataset_name), "layout": "datasets"}
        data["on_hub"] = not Path(arguments.dataset_name).exists()
        splits = ("dataset_config_name", "train_split_name", "validation_split_name")
        data |= {name: getattr(arguments, name) for name in splits}
    if arguments.unlabeled_dir is not None:
        data["unlabeled_folder"] = weights_name(Path(arguments.unlabeled_dir).absolute())
    if arguments.unlabeled_dataset_name is not None:
        data["unlabeled_dataset"] = weights_name(arguments.unlabeled_dataset_name)
        data["unlabeled_dataset_on_hub"] = not Path(arguments.unlabeled_dataset_name).exists()
    hidden, left_out = len(report.data.hidden_ids), len(report.left_out)
    return public(data) | {"hidden_masks": hidden, "files_left_out": left_out}


def _counts(trainer) -> dict:
    """Numbers of images; None for a stream, whose number is not known."""
    evaluated = trainer.eval_dataset
    if isinstance(evaluated, dict):
        evaluated = {name: len(dataset) for name, dataset in evaluated.items()}
    elif evaluated is not None:
        evaluated = len(evaluated)
    unlabeled = trainer.unlabeled_dataset
    streams = unlabeled is not None and not hasattr(unlabeled, "__len__")
    return {
        "labeled": len(trainer.train_dataset),
        "unlabeled": None if streams else 0 if unlabeled is None else len(unlabeled),
        "unlabeled_stream": streams,
        "unlabeled_used": trainer.method.uses_unlabeled,
        "validation": evaluated,
    }


def checkout() -> dict | None:
    """Commit of the checkout this code lies in, and whether files differ from it; None without git."""
    commit, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return None if commit is None else {"commit": commit, "uncommitted_changes": bool(changed)}


def environment(num_processes: int) -> dict:
    """Versions and machine; no name of a machine or a user."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    versions = {"python": platform.python_version(), "allspark_hf": __version__}
    versions |= {name: version(name) for name in PACKAGES}
    return {
        "versions": versions,
        "machine": {
            "cpu": _cpu_name(),
            "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "gpus": gpus,
            "processes": num_processes,
            "threads_per_process": torch.get_num_threads(),
        },
    }


def _git(*arguments: str) -> str | None:
    """What git says of the checkout this code lies in; None if it is none, or git is missing."""
    if not (REPOSITORY / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", REPOSITORY, *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


# ---- The record ----


def run_record(trainer, resumed: bool = False, git: dict | None = None) -> dict:
    """The content of the file that [`write_run_record`] writes."""
    args, config, source = trainer.args, trainer.model.config, trainer.run_source
    runtimes = [entry["train_runtime"] for entry in trainer.state.log_history if "train_runtime" in entry]
    training = {
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "seconds": runtimes[-1] if runtimes else None,
        "resumed": resumed,
        "labeled_images_per_update": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
    }
    return {
        "format": 1,
        "command": source.get("command"),
        "recipe": source.get("recipe"),
        "arguments": source.get("arguments", {}) | non_default(args),
        "settings": public({name: getattr(args, name) for name in SETTINGS}),
        "model": {
            "base_weights": base_weights_of(config),
            "started_from": weights_name(getattr(config, "_name_or_path", None)),
            "parameters": trainer.accelerator.unwrap_model(trainer.model).num_parameters(),
        },
        "data": source.get("data", {}) | _counts(trainer) | {"classes": config.num_labels},
        "training": training,
        "git": git,
        **environment(args.world_size),
    }


def write_run_record(trainer, resumed: bool = False, git: dict | None = None) -> Path | None:
    """
    Writes `run_record.json` into the trainer's `output_dir`, all of it or nothing; main process only.

    It holds the command line, arguments that differ from their defaults, data and counts, base weights, versions and
    machine. It holds no token and no absolute path. A file that cannot be written is a warning, not an error, which
    would cost the model just trained.

    Args:
        trainer ([`AllSparkTrainer`]): after training.
        resumed (`bool`): whether the training went on from a checkpoint.
        git (`dict`, *optional*): of [`checkout`], from before the training.

    Returns:
        `Path`: the file; None on other processes, and if it could not be written.
    """
    if not trainer.is_world_process_zero():
        return None
    path = Path(trainer.args.output_dir) / RECORD_FILE
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(run_record(trainer, resumed, git), indent=2, ensure_ascii=False)
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        logger.warning("%s could not be written (%s): the model card will lack its content.", path, error)
        return None
    return path


class RunRecordCallback(TrainerCallback):
    """Writes the record at the end of training, with the code's version from its beginning."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.resumed, self.git = False, None

    def on_train_begin(self, args, state, control, **kwargs):
        self.resumed = state.global_step > 0
        self.git = checkout() if state.is_world_process_zero else None

    def on_train_end(self, args, state, control, **kwargs):
        write_run_record(self.trainer, self.resumed, self.git)


__all__ = [
    "RECORD_FILE",
    "RunRecordCallback",
    "base_weights_of",
    "environment",
    "non_default",
    "public",
    "public_command",
    "run_source",
    "write_run_record",
]

"""One step of a training on random pixels."""

import copy
import math
import sys
import time
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..data import CheckReport, DataArguments, SegmentationData
from ..data.presence import DataPresence
from ..inference.loading import make_image_processor
from ..methods import METHODS
from ..training.advice import Advice
from ..training.arguments import AllSparkTrainingArguments
from ..training.trainer import AllSparkTrainer
from .arguments import ModelArguments
from .models import load_model, normalization_of


GIB = 2**30


@dataclass
class StepReport:
    """Loss, seconds and memory of the step, and the bytes that later updates need in addition."""

    loss: float
    seconds: float
    memory: str
    optimizer_bytes: int
    gradient_bytes: int


class _Stopwatch(TrainerCallback):
    """Seconds from the first forward pass to the update, without data loading."""

    seconds = math.nan

    def on_step_begin(self, args, state, control, **kwargs):
        self._synchronize()
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self._synchronize()
        self.seconds = time.perf_counter() - self.start

    def _synchronize(self):
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()


def trial_arguments(args: AllSparkTrainingArguments, folder: str, updates: int) -> AllSparkTrainingArguments:
    """The arguments of a training, changed for a few updates of one batch each that leave nothing behind."""
    trial = copy.copy(args)  # a new object would derive its values again
    changes = {
        "output_dir": folder,
        "resume_from_checkpoint": None,
        "max_steps": updates,
        "warmup_steps": 0,
        "gradient_accumulation_steps": 1,
        "memory_warmup_epochs": 0,
        "contrast_start": -1,
        "holdout_fraction": 0.0,
        "unlabeled_warmup_epochs": 0,
        "eval_strategy": IntervalStrategy.NO,
        "save_strategy": SaveStrategy.NO,
        "logging_strategy": IntervalStrategy.NO,
        "logging_nan_inf_filter": False,
        "load_best_model_at_end": False,
        "push_to_hub": False,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "dataloader_persistent_workers": False,
        "dataloader_prefetch_factor": None,
        "dataloader_multiprocessing_context": None,
        "dataloader_drop_last": False,
    }
    for name, value in changes.items():
        setattr(trial, name, value)
    return trial


def build_trainer(
    found: DataPresence,
    data: DataArguments,
    model: ModelArguments,
    args: AllSparkTrainingArguments,
    folder: str,
) -> AllSparkTrainer:
    """The trainer of a training, but with random images, and for one step that reads the memory."""
    step_args = trial_arguments(args, folder, updates=1)
    step_args.logging_strategy, step_args.logging_steps = IntervalStrategy.STEPS, 1
    step_args.unlabeled_images_per_epoch = None  # the random images are no stream
    set_seed(args.seed)
    report = CheckReport(
        data=SegmentationData(labeled=None, unlabeled=None, validation=None, classes=found.classes),
        num_labels=found.num_labels,
        values=[],
    )
    normalization = normalization_of(model)
    model = load_model(model, report, data.ignore_index, plain_segformer=not METHODS[args.method].needs_bottleneck)
    trainer = AllSparkTrainer(
        model,
        step_args,
        make_image_processor(data.image_long_side, **normalization),
        train_dataset=random_images(model.config, args, args.per_device_train_batch_size),
        unlabeled_dataset=random_images(model.config, args, args.per_device_unlabeled_batch_size),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(Advice)
    return trainer


def random_images(config, args: AllSparkTrainingArguments, per_device: int) -> datasets.Dataset:
    """Noise of the crop's size with random masks, as many as a batch of all processes holds."""
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

"""`--preset auto`: what a training takes that nobody chose, from the data and the machine, each with its reason."""

import itertools
import math
import statistics
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from ..methods import METHODS
from ..utils.arguments import argument, documented
from .progress import NUM_IMAGES


GIB = 2**30
SMALL_ENCODER, BASE_ENCODER = "facebook/dinov2-small", "facebook/dinov2-base"
BASE_NEEDS = 15  # GiB of the device: more than a GPU of 12 has, and what one of 16 reports
CPU_CROP, GPU_CROP, SCRATCH_CROP = 224, 518, 128
MINUTES = {"cpu": 20.0, "cuda": 60.0}
STUDY = "scripts/studies/README.md"
TIMED_UPDATES, TIMED_IMAGES = 5, 3
EVALUATIONS, EVALUATED_SHARE = 5, 0.25  # at most so many, in at most this share of the time
FEWEST_UPDATES = 20


@documented
@dataclass
class PresetArguments:
    """Who chooses what is not given."""

    preset: str = argument(
        "auto",
        "auto: choose what is not given, from data and machine, and say why; the default without a recipe and without "
        "--method. none: the paper's settings.",
        choices=("auto", "none"),
        group="training",
        common=True,
    )
    minutes: float | None = argument(
        None,
        "Time for the training with --preset auto, which sets its length; a start of a minute or two comes before. "
        "Default: 20 on a CPU, 60 on a GPU.",
        interval="(0, inf)",
        group="training",
        common=True,
    )


class Choice(NamedTuple):
    """One argument, its value, and the reason in a few words."""

    name: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Situation:
    """
    What the choices depend on.

    Args:
        num_labeled (`int`): labeled images to train on.
        num_unlabeled (`int`, *optional*): unlabeled images; `None` for a stream.
        side (`tuple[int, int]`): median (height, width) of images in training, in pixels.
        device (`str`): "cpu" or "cuda"; others count as "cpu".
        device_memory (`float`): of a GPU, in GiB.
        method (`str`, *optional*): the method that was given.
        weights (`str`, *optional*): the encoder that was given, or the best that can be had; `None` from scratch.
        is_given (`bool`): whether the user gave these weights, or asked for a start from scratch.
        patch (`int`): pixels of a side that crops are multiples of.
        num_layers (`int`): layers of a plain ViT, 0 of other encoders.
    """

    num_labeled: int
    num_unlabeled: int | None
    side: tuple[int, int]
    device: str
    device_memory: float = 0.0
    method: str | None = None
    weights: str | None = SMALL_ENCODER
    is_given: bool = False
    patch: int = 14
    num_layers: int = 12


def best_encoder(device: str, device_memory: float) -> str:
    """The encoder that a machine takes, if it can be had."""
    return BASE_ENCODER if device == "cuda" and device_memory >= BASE_NEEDS else SMALL_ENCODER


def choose(situation: Situation) -> list[Choice]:
    """The arguments of a training, but for its length."""
    pretrained = situation.weights is not None
    own = [*_encoder(situation), *_rates(situation)] if pretrained else _from_scratch(situation)
    method = _method(situation)
    chosen = next((choice.value for choice in method if choice.name == "method"), situation.method)
    return [*own, *method, _batch(situation, METHODS[chosen].uses_unlabeled)]


def _encoder(situation: Situation) -> list[Choice]:
    limit = GPU_CROP if situation.device == "cuda" else CPU_CROP
    side = "the largest that the images fill, " + ("UniMatch V2's 518 at most" if limit == GPU_CROP else "224 at most")
    crop = Choice("crop_size", _crop(situation, limit), f"{side}, in whole patches")
    if situation.is_given:
        return [crop]
    reason = "pre-trained, Apache-2.0, and small enough for this machine"
    return [Choice("encoder", situation.weights, reason), crop]


def _rates(situation: Situation) -> list[Choice]:
    """On a GPU, and for an encoder that is no plain ViT, those that [`encoder_defaults`] takes for the length."""
    half = situation.num_layers // 2
    if situation.device == "cuda" or not half:
        return []
    return [
        Choice("freeze_encoder_layers", half, f"half of the encoder rests: faster, and better here ({STUDY})"),
        Choice("learning_rate", 5e-5, "of the half that learns, as in that study"),
        Choice("head_learning_rate_multiplier", 10.0, "times as much for the head, likewise"),
    ]


def _from_scratch(situation: Situation) -> list[Choice]:
    reason = "a small Mix Transformer at random, as no pre-trained encoder can be had: expect far less of it"
    width = "a quarter of B0's work, for a CPU"
    rate = "of recipes/demo.yaml, for small networks from scratch"
    return [
        *([] if situation.is_given else [Choice("backbone", "b0", reason)]),
        *([] if situation.is_given else [Choice("hidden_sizes", [16, 32, 64, 96], width)]),
        *([] if situation.is_given else [Choice("decoder_hidden_size", 64, width)]),
        Choice("crop_size", _crop(situation, SCRATCH_CROP), "small, for many updates"),
        Choice("optim", "adamw_torch", rate),
        Choice("learning_rate", 2e-3, rate),
        Choice("head_learning_rate_multiplier", 1.0, rate),
        Choice("weight_decay", 0.01, rate),
        Choice("max_grad_norm", 1.0, rate),
        Choice("warmup_steps", 0.1, "a tenth of the updates"),
    ]


def _method(situation: Situation) -> list[Choice]:
    if situation.method is not None:
        return _thresholds() if hasattr(METHODS[situation.method].arguments_class, "keep_quantile") else []
    if situation.num_unlabeled is not None and situation.num_unlabeled < situation.num_labeled:
        reason = f"{situation.num_unlabeled} unlabeled images are fewer than the {situation.num_labeled} labeled ones"
        return [Choice("method", "supervised", reason)]
    if situation.weights is None:
        return [Choice("method", "supervised", f"from scratch, unlabeled images did not help ({STUDY})")]
    if situation.device != "cuda":
        reason = f"in the same minutes of a CPU, more updates gain more than unlabeled images ({STUDY})"
        return [Choice("method", "supervised", reason)]
    return [
        Choice("method", "unimatch_v2", "leads the public tables with this encoder, in long trainings"),
        *_thresholds(),
    ]


def _thresholds() -> list[Choice]:
    return [
        Choice("keep_quantile", 0.8, f"a threshold for each class, or rare ones are not learned ({STUDY})"),
        Choice("confidence_threshold", 0.6, "the least of these thresholds"),
    ]


def _batch(situation: Situation, with_unlabeled: bool) -> Choice:
    most = 2 if situation.device != "cuda" else 4 if situation.device_memory < 2 * BASE_NEEDS else 8
    size = min(situation.num_labeled, most)
    reason = "labeled images" + (", and as many unlabeled ones" if with_unlabeled else "")
    return Choice("per_device_train_batch_size", size, reason)


def _crop(situation: Situation, limit: int) -> list[int]:
    """[height, width]: whole patches, no more than the limit and, if that leaves one, than the images."""
    step = situation.patch
    return [max(step, min(limit, length) // step * step) for length in situation.side]


# ---- Length ----


class Times(NamedTuple):
    """Seconds of an update, data loading included, and of an evaluation of all validation images."""

    update: float
    evaluation: float


class _Clock(TrainerCallback):
    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def measure(trainer) -> Times:
    """Trains and evaluates a little with an [`AllSparkTrainer`] that was made for `TIMED_UPDATES` updates."""
    clock, validation = _Clock(), trainer.eval_dataset
    trainer.add_callback(clock)
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    trainer.train()
    start = time.perf_counter()
    trainer.evaluate(validation.select(range(min(TIMED_IMAGES, len(validation)))))
    each = (time.perf_counter() - start) / min(TIMED_IMAGES, len(validation))
    # The first update warms up.
    update = statistics.median(after - before for before, after in itertools.pairwise(clock.ends))
    return Times(update, each * (len(validation) + NUM_IMAGES))


def choose_length(minutes: float, times: Times) -> list[Choice]:
    """
    Updates and evaluations that fit.

    Raises:
        ValueError: if the time is too short to learn anything.
    """
    budget = 60 * minutes
    most = max(0, int((budget - times.evaluation) / times.update))
    if most < FEWEST_UPDATES:
        needed = math.ceil((FEWEST_UPDATES * times.update + times.evaluation) / 60)
        raise ValueError(
            f"minutes={minutes:g} leaves {most} updates of {times.update:.1f} s, and at least {FEWEST_UPDATES} are "
            f"needed: give --minutes {needed}."
        )
    evaluations = max(1, min(EVALUATIONS, int(budget * EVALUATED_SHARE / times.evaluation)))
    every = int((budget - evaluations * times.evaluation) / times.update) // evaluations
    reason = f"{minutes:g} minutes at {times.update:.2g} s an update and {times.evaluation:.2g} s an evaluation"
    return [
        Choice("max_steps", every * evaluations, reason),
        Choice("eval_strategy", "steps", ""),
        Choice("eval_steps", every, f"{evaluations} evaluation{'s' * (evaluations != 1)}"),
        Choice("save_strategy", "steps", ""),
        Choice("save_steps", every, "a checkpoint with each"),
        Choice("save_total_limit", 1, "the last checkpoint stays"),
        Choice("logging_steps", max(1, every // 10), ""),
    ]


__all__ = [
    "BASE_ENCODER",
    "MINUTES",
    "SMALL_ENCODER",
    "TIMED_UPDATES",
    "Choice",
    "PresetArguments",
    "Situation",
    "Times",
    "best_encoder",
    "choose",
    "choose_length",
    "measure",
]

"""`--preset auto`: chooses arguments of a training from the data and the machine, each with a reason."""

import math
import time
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from ..data.summary import image_sizes
from ..methods import METHODS
from ..utils.arguments import argument, documented
from .progress import NUM_IMAGES
from .report import SHOWN_EACH


GIB = 2**30
SMALL_ENCODER, BASE_ENCODER = "facebook/dinov2-small", "facebook/dinov2-base"
BASE_NEEDS = 15  # GiB of the device; a GPU of 16 GiB reports a little less than 16
CPU_CROP, GPU_CROP, SCRATCH_CROP = 224, 518, 128
MINUTES = {"cpu": 20.0, "cuda": 60.0}
TIMED_UPDATES, TIMED_SECONDS, TIMED_IMAGES = 20, 10.0, 5  # timing ends after so many updates or seconds
FEWEST_TIMED = 5
# The share of the training before pseudo-labels count and the memory is read, and the reason.
QUARTER = "a quarter of the training (study, CamVid: {})"
WARMUPS = {
    "pseudo_label": (0.25, QUARTER.format("pseudo_label 51.8")),
    "allspark": (0.25, QUARTER.format("allspark 50.7")),
    "allspark_unimatch": (0.25, QUARTER.format("allspark_unimatch 54.7")),
    "memory_contrastive": (
        0.0,
        "it starts after a fifth of the training by itself (study, Nuclei: memory_contrastive 78.9)",
    ),
    "fixmatch": (0.0, "none with these thresholds (study, Nuclei: fixmatch 78.8)"),
    "unimatch_v2": (0.0, "none with these thresholds (study, Nuclei: keep_quantile=0.8 79.5)"),
}
SCRATCH_WARMUP = (
    0.5,
    "half of the training, or wrong pseudo-labels spoil it (study, CamVid from scratch: allspark 18.1)",
)
EVALUATIONS, EVALUATED_SHARE = 5, 0.25  # at most so many, and at most this share of the time
FEWEST_UPDATES = 20


@documented
@dataclass
class PresetArguments:
    """Whether arguments that are not given are chosen."""

    preset: str = argument(
        "auto",
        "auto: choose what is not given, from data and machine, and say why; without a recipe. none: the paper's "
        "settings.",
        choices=("auto", "none"),
        group="training",
        common=True,
    )
    minutes: float | None = argument(
        None,
        "Time until all is done with --preset auto, which sets the length of the training, start and report included; "
        "a slow start leaves at least half of it. Default: 20 on a CPU, 60 on a GPU.",
        interval="(0, inf)",
        group="training",
        common=True,
    )


class Choice(NamedTuple):
    """
    An argument, its value, and a short reason. A reason such as "(study, CamVid: max_steps=1800 62.2)" names a row in
    a table of scripts/studies/README.md by words and a number that stand in it.
    """

    name: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Situation:
    """
    What the choices depend on.

    Args:
        num_labeled (`int`): number of labeled images to train on.
        num_unlabeled (`int`, *optional*): number of unlabeled images; `None` for a stream.
        side (`tuple[int, int]`): median (height, width) of images in training, in pixels; (0, 0) if unknown.
        device (`str`): "cpu" or "cuda"; others count as "cpu".
        device_memory (`float`): memory of a GPU in GiB.
        has_bf16 (`bool`): whether there is a GPU that computes in bfloat16, and no other precision was given.
        method (`str`, *optional*): the method that was given.
        weights (`str`, *optional*): the pre-trained encoder that was given or can be loaded; `None` to start from
            scratch.
        is_given (`bool`): whether the user gave these weights, or asked for a start from scratch.
        patch (`int`): number of pixels that sides of crops are multiples of.
        num_layers (`int`): layers of a plain ViT; 0 for other encoders.
        model_type (`str`, *optional*): transformers' name of the encoder's kind.
    """

    num_labeled: int
    num_unlabeled: int | None
    side: tuple[int, int]
    device: str
    device_memory: float = 0.0
    has_bf16: bool = False
    method: str | None = None
    weights: str | None = SMALL_ENCODER
    is_given: bool = False
    patch: int = 14
    num_layers: int = 12
    model_type: str | None = "dinov2"


def best_encoder(device: str, device_memory: float) -> str:
    """The encoder for a machine, if its weights can be loaded."""
    return BASE_ENCODER if device == "cuda" and device_memory >= BASE_NEEDS else SMALL_ENCODER


def choose(situation: Situation) -> list[Choice]:
    """The arguments of a training, without its length."""
    pretrained = situation.weights is not None
    own = [*_encoder(situation), *_rates(situation)] if pretrained else _from_scratch(situation)
    method = _method(situation)
    precision = [Choice("bf16", True, "about half the memory, and faster")] if situation.has_bf16 else []
    chosen = next((choice.value for choice in method if choice.name == "method"), situation.method)
    return [*own, *method, _batch(situation, METHODS[chosen].uses_unlabeled), *precision]


def _encoder(situation: Situation) -> list[Choice]:
    limit = GPU_CROP if situation.device == "cuda" else CPU_CROP
    source = "UniMatch V2's 518" if limit == GPU_CROP else "the study's 224"
    crop = Choice("crop_size", _crop(situation, limit), f"what the images fill, {source} at most, in whole patches")
    if situation.is_given:
        return [crop]
    reason = "pre-trained, Apache-2.0, and small enough for this machine"
    return [Choice("encoder", situation.weights, reason), crop]


def _rates(situation: Situation) -> list[Choice]:
    """Rates for a plain ViT on a CPU; in other cases none, so that [`encoder_defaults`] chooses by the length."""
    half = situation.num_layers // 2
    if situation.device == "cuda" or not half:
        return []
    return [
        Choice(
            "freeze_encoder_layers",
            half,
            "half: as good as none, and faster (study, CamVid: supervised 54.2, freeze_encoder_layers=0 53.4)",
        ),
        Choice(
            "learning_rate", 5e-5, "of the other half (study, CamVid: supervised 54.2, freeze_encoder_layers=0 43.1)"
        ),
        Choice("head_learning_rate_multiplier", 10.0, "times as much for the head, as in that row"),
    ]


def _from_scratch(situation: Situation) -> list[Choice]:
    reason = "a small Mix Transformer at random, as no pre-trained encoder can be had: expect far less of it"
    width = "a quarter of B0's work, for a CPU"
    rate = "of recipes/demo.yaml, for small networks from scratch"
    network = [
        Choice("backbone", "b0", reason),
        Choice("hidden_sizes", [16, 32, 64, 96], width),
        Choice("decoder_hidden_size", 64, width),
    ]
    return [
        *([] if situation.is_given else network),
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
        return _about_method(situation.method, situation.weights is not None)
    unlabeled, labeled = situation.num_unlabeled, situation.num_labeled
    if unlabeled is not None and unlabeled < labeled:
        reason = f"{unlabeled} unlabeled images are fewer than the {labeled} labeled ones, as in no recipe here"
    elif situation.weights is None:
        reason = "unlabeled images do not help (study, CamVid from scratch: supervised 20.3, allspark 18.1)"
    elif situation.device != "cuda":
        reason = (
            "in the same minutes, more updates gain more than unlabeled images (study, Nuclei: max_steps=600 86.5, "
            "keep_quantile=0.8 79.5)"
        )
    else:
        numbers = (
            "leads the public tables with this encoder, in long trainings"
            if situation.model_type == "dinov2"
            else "learns from the unlabeled images; its public tables are of DINOv2 alone"
        )
        reason = f"{numbers}; not in the study, which had no GPU"
        return [Choice("method", "unimatch_v2", reason), *_about_method("unimatch_v2", True)]
    return [Choice("method", "supervised", reason)]


def _about_method(method: str, is_pretrained: bool) -> list[Choice]:
    """Thresholds and warm-ups that the method has."""
    own = {one.name for one in fields(METHODS[method].arguments_class)}
    row = "study, Nuclei: keep_quantile=0.8 79.5, unimatch_v2 71.5"
    warmup, reason = WARMUPS.get(method, (None, "")) if is_pretrained else SCRATCH_WARMUP
    choices = [
        Choice("keep_quantile", 0.8, f"a threshold for each class, or rare ones are not learned ({row})"),
        Choice("confidence_threshold", 0.6, "the least of these thresholds, as in that row"),
        Choice("unlabeled_warmup_epochs", warmup, reason),
        Choice("memory_warmup_epochs", warmup, "of the memory likewise"),
    ]
    return [choice for choice in choices if choice.name in own and choice.value is not None]


def _batch(situation: Situation, with_unlabeled: bool) -> Choice:
    most = 2 if situation.device != "cuda" else 4 if situation.device_memory < 2 * BASE_NEEDS else 8
    size = min(situation.num_labeled, most)
    source = "" if situation.device == "cuda" else ", at most 2 as in the study"
    reason = "labeled images" + source + (", and as many unlabeled ones" if with_unlabeled else "")
    return Choice("per_device_train_batch_size", size, reason)


def _crop(situation: Situation, limit: int) -> list[int]:
    """
    [height, width] of a crop: whole patches, at most as large as the limit and the images, where their size is known,
    but at least one.
    """
    step = situation.patch
    return [max(step, min(limit, length or limit) // step * step) for length in situation.side]


# ---- Length ----


class Times(NamedTuple):
    """
    Seconds of an update with its data loading; of an evaluation of all validation images with its picture; of what
    else comes before the first update and after the last evaluation; and since the command began.
    """

    update: float
    evaluation: float
    around: float = 0.0
    spent: float = 0.0


class _Clock(TrainerCallback):
    """Notes when updates end, and ends the training after `TIMED_SECONDS`."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.ends.append(time.perf_counter())
        if len(self.ends) >= FEWEST_TIMED and self.ends[-1] - self.ends[0] > TIMED_SECONDS:
            control.should_training_stop = True


def measure(trainer) -> Times:
    """Times an [`AllSparkTrainer`] that was made for `TIMED_UPDATES` updates, and an evaluation of a few images."""
    clock = _Clock()
    trainer.add_callback(clock)
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    trainer.train()
    update = (clock.ends[-1] - clock.ends[0]) / (len(clock.ends) - 1)  # the first one is slower
    areas = [width * height for width, height in image_sizes(trainer.eval_dataset)]
    rows = spread(areas)
    start = time.perf_counter()
    trainer.evaluate(trainer.eval_dataset.select(rows))
    seconds = time.perf_counter() - start
    image = seconds / sum(areas[row] for row in rows) * sum(areas) / len(areas)
    return Times(update, image * (len(areas) + NUM_IMAGES), image * (NUM_IMAGES + 2 * SHOWN_EACH))


def spread(areas: list[int]) -> list[int]:
    """Indices of `TIMED_IMAGES` images, evenly spread from small to large."""
    order, count = sorted(range(len(areas)), key=areas.__getitem__), min(TIMED_IMAGES, len(areas))
    return [order[(2 * place + 1) * len(order) // (2 * count)] for place in range(count)]


def seconds_left(minutes: float, spent: float) -> float:
    """Seconds of so many minutes that are left; half of them if the start took more than half."""
    return max(60 * minutes - spent, 30 * minutes)


def choose_length(minutes: float, times: Times) -> list[Choice]:
    """
    The numbers of updates and evaluations that fit into a time.

    Args:
        minutes (`float`): time from the start of the command to its end.
        times ([`Times`]): how long each part takes.

    Raises:
        ValueError: if the time is too short to learn anything.
    """
    budget = seconds_left(minutes, times.spent) - times.around
    most = max(0, int((budget - times.evaluation) / times.update))
    if most < FEWEST_UPDATES:
        needed = FEWEST_UPDATES * times.update + times.evaluation + times.around
        needed = math.ceil(min(needed + times.spent, 2 * needed) / 60)
        raise ValueError(
            f"minutes={minutes:g} leaves {most} updates of {times.update:.1f} s, and at least {FEWEST_UPDATES} are "
            f"needed: give --minutes {needed}."
        )
    evaluations = max(1, min(EVALUATIONS, int(budget * EVALUATED_SHARE / times.evaluation)))
    every = int((budget - evaluations * times.evaluation) / times.update) // evaluations
    reason = (
        f"{budget / 60:.2g} of {minutes:g} minutes, which start and report leave, at {times.update:.2g} s an update "
        f"and {times.evaluation:.2g} s an evaluation"
    )
    count = f"{evaluations} evaluation{'s' * (evaluations != 1)}"
    return [
        Choice("max_steps", every * evaluations, reason),
        *_evaluate_every(every, count),
        Choice("logging_steps", max(1, every // 10), ""),
    ]


def plan_of_given_length(given: set[str]) -> list[Choice]:
    """Evaluations of a training whose length was given, unless their strategy was given, too."""
    if given & {"eval_strategy", "save_strategy"}:
        return []
    return [*_evaluate_every(1 / EVALUATIONS, f"{EVALUATIONS} evaluations"), Choice("logging_steps", 0.02, "")]


def _evaluate_every(steps: float, reason: str) -> list[Choice]:
    """After every so many updates, or below 1 after every such share of them."""
    return [
        Choice("eval_strategy", "steps", ""),
        Choice("eval_steps", steps, reason),
        Choice("save_strategy", "steps", ""),
        Choice("save_steps", steps, "a checkpoint with each"),
        Choice("save_total_limit", 1, "the last checkpoint stays"),
    ]

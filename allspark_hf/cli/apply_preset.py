"""[`Preset`]: `--preset auto` applied to a command line."""

import gc
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import datasets
import torch
import yaml
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedConfig

from ..data import CheckReport, DataArguments, SegmentationData
from ..data.loading import find_data
from ..data.summary import image_sizes
from ..models.configuration_backbone_allspark import AllSparkBackboneConfig, check_has_backbone, default_out_indices
from ..models.encoders import encoder_config, is_model_type
from ..publishing.licenses import FROM_SCRATCH
from ..training.arguments import AllSparkTrainingArguments
from ..training.faults import NoMemoryError
from ..training.recipes import RECIPE_SUFFIXES, recipe_arguments, resolve_recipe
from .arguments import ModelArguments, parse_arguments
from .models import SEGFORMER_TYPES
from .preset import (
    GIB,
    MINUTES,
    TIMED_UPDATES,
    Choice,
    PresetArguments,
    Situation,
    Times,
    best_encoder,
    choose,
    choose_length,
    measure,
    plan_of_given_length,
    seconds_left,
)
from .trial_step import trial_arguments


LENGTHS = ("max_steps", "num_train_epochs")
FILE = "preset.yaml"  # in the output folder: the choices, as a recipe
SCRATCH_PATCH = 32  # of a Mix Transformer
BATCH = ("per_device_train_batch_size", "per_device_unlabeled_batch_size", "gradient_accumulation_steps")


class Preset:
    """
    Chooses the arguments of one command that were not given.

    Args:
        types (`tuple[type, ...]`): the argument classes of the command.
        typed (`list[str]`): its arguments.
        say (`Callable`): gets each choice as a line of text.
        since (`float`): value of `time.monotonic` when the command began.
    """

    def __init__(self, types: tuple[type, ...], typed: list[str], say: Callable[[str], None], since: float):
        self.types, self.typed, self.say, self.since = types, typed, say, since
        self.choices: list[Choice] = []
        self.stored: dict = {}  # at a resume, the choices of that run

    @property
    def entries(self) -> dict:
        """What was chosen, as entries of a recipe."""
        return self.stored | {choice.name: choice.value for choice in self.choices}

    def parse(self) -> tuple:
        """The arguments; those that were typed override the chosen ones."""
        return parse_arguments(self.types, self.typed, recipe_arguments(self.entries))

    def choose(self, data: DataArguments, model: ModelArguments, args: AllSparkTrainingArguments) -> tuple:
        """The arguments with all choices but the length; at a resume, with the choices of that run."""
        stored = Path(args.output_dir) / FILE
        if args.resume_from_checkpoint and stored.is_file():
            self.stored = resolve_recipe(stored)
            return self.parse()
        found = find_data(data, args.image_column_name, args.label_column_name)
        choices = choose(self._situation(found, data, model, args))
        if args.given.intersection(LENGTHS):
            choices += plan_of_given_length(args.given)
        self._add([choice for choice in choices if choice.name not in args.given])
        return self.parse()

    def choose_length(
        self, build: Callable, report: CheckReport, arguments: tuple, minutes: float | None, trains_twice: bool
    ) -> tuple:
        """
        The arguments with as many updates as fit into the time, unless their number was given.

        Args:
            build (`Callable`): makes a trainer from the arguments and the report.
            report ([`CheckReport`]): the checked data.
            arguments (`tuple`): [`DataArguments`], [`ModelArguments`], [`AllSparkTrainingArguments`].
            minutes (`float`, *optional*): the time; defaults to that of the device in `MINUTES`.
            trains_twice (`bool`): whether a second training follows, for which no time is planned.
        """
        args = arguments[2]
        if args.given.intersection(LENGTHS):
            if minutes is not None:
                self.say(f"minutes={minutes:g} changes nothing at this resume: --max_steps sets another length.")
            return arguments
        arguments, measured = self._time_fitting(build, report, arguments)
        times = [measured._replace(spent=time.monotonic() - self.since)]
        broadcast_object_list(times)  # all processes need those of the main one
        minutes = minutes or _default_minutes(args)
        length = choose_length(minutes, times[0])
        self._add([choice for choice in length if choice.name not in args.given])
        end = datetime.now() + timedelta(seconds=seconds_left(minutes, times[0].spent))
        done = f"done at about {end:%H:%M}" + (", but for the comparison" if trains_twice else "")
        self.say(f"{done}; the first evaluation shows {args.output_dir}/progress.png")
        return self.parse()[:3]

    def _time_fitting(self, build: Callable, report: CheckReport, arguments: tuple) -> tuple[tuple, Times]:
        """The times of the training; with half the batch, accumulated twice as often, where memory runs out."""
        while True:
            args = arguments[2]
            size, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
            is_given = args.given.difference(choice.name for choice in self.choices).intersection(BATCH)
            try:
                return arguments, _time_updates(build, report, arguments)
            except NoMemoryError:
                if is_given or args.world_size > 1 or size % 4:  # CutMix needs an even batch
                    raise
            gc.collect()
            torch.cuda.empty_cache()
            self._add([Choice(BATCH[0], size // 2, f"memory ran out with {size}")])
            self._add([Choice(BATCH[2], 2 * accumulated, "for as many images an update")])
            arguments = self.parse()[:3]

    def planned_length(self, args: AllSparkTrainingArguments, minutes: float | None) -> str | None:
        """For a dry run, how the training will choose its length; None if the length was given."""
        if args.given.intersection(LENGTHS):
            return None
        return f"what fits into {minutes or _default_minutes(args):g} minutes; training times some updates first"

    def save(self, output_dir: str):
        """Writes the choices as a recipe, with which the training can be repeated."""
        if self.entries:
            (Path(output_dir) / FILE).write_text(yaml.safe_dump(self.entries, sort_keys=False), encoding="utf-8")

    def _situation(
        self, found: SegmentationData, data: DataArguments, model: ModelArguments, args: AllSparkTrainingArguments
    ) -> Situation:
        streams = found.unlabeled_stream is not None
        self.say(
            f"Chosen for {len(found.labeled)} labeled and {'streamed' if streams else len(found.unlabeled)} unlabeled "
            f"images on {'a GPU' if args.device.type == 'cuda' else 'a CPU'} (--preset none: the paper's settings):"
        )
        on_gpu, other_precision = args.device.type == "cuda", args.given & {"fp16", "deepspeed"}
        memory = torch.cuda.get_device_properties(args.device).total_memory / GIB if on_gpu else 0.0
        weights, model_type, patch, num_layers = None, None, SCRATCH_PATCH, 0
        given = model.encoder or model.model_name_or_path
        name = None if model.backbone else given or best_encoder(args.device.type, memory)
        if name is not None:
            try:
                config = encoder_config(name)
                model_type, patch, num_layers = geometry_of(config)
                at_random = is_model_type(name) or getattr(config, "base_weights", None) == FROM_SCRATCH
                weights = None if at_random else name
            except (OSError, ValueError) as error:
                if given:
                    raise
                self.say(f"  would have taken the encoder {name}, which makes a better model: {error}")
        return Situation(
            num_labeled=len(found.labeled),
            num_unlabeled=None if streams else len(found.unlabeled),
            side=median_side(found.validation, data.image_long_side),
            device=args.device.type,
            device_memory=memory,
            has_bf16=on_gpu and not other_precision and torch.cuda.is_bf16_supported(including_emulation=False),
            method=args.method if "method" in args.given else None,
            weights=weights,
            is_given=bool(given or model.backbone),
            patch=patch,
            num_layers=num_layers,
            model_type=model_type,
        )

    def _add(self, choices: list[Choice]):
        self.choices += choices
        for name, value, reason in choices:
            shown = " ".join(map(str, value)) if isinstance(value, list) else value
            self.say(f"  {name} {shown}" + (f": {reason}" if reason else ""))


def applies(preset: PresetArguments, args: AllSparkTrainingArguments, typed: list[str]) -> bool:
    """
    Whether to choose arguments: not with a recipe.

    Raises:
        ValueError: if `minutes` is given but would not be used.
    """
    has_recipe = bool(typed) and typed[0].endswith(RECIPE_SUFFIXES)
    wanted = preset.preset == "auto" and not has_recipe
    if preset.minutes is not None and (not wanted or args.given.intersection(LENGTHS)):
        raise ValueError(
            f"minutes={preset.minutes:g} sets the length of a training with --preset auto, without recipe, max_steps "
            "and num_train_epochs: leave it out, or these."
        )
    return wanted


def geometry_of(config: PreTrainedConfig) -> tuple[str, int, int]:
    """
    Of an encoder, or of a model with its head: the encoder's model type, the number of pixels that sides of crops are
    multiples of, and the layers of a plain ViT; 0 for others.
    """
    if not isinstance(config, AllSparkBackboneConfig):
        if config.model_type in SEGFORMER_TYPES:
            return config.model_type, SCRATCH_PATCH, 0
        check_has_backbone(config)
        config.out_indices = default_out_indices(config)
        config = AllSparkBackboneConfig(backbone_config=config)
    encoder, strides = config.backbone_config, config.feature_strides
    return encoder.model_type, max(strides), encoder.num_hidden_layers if len(set(strides)) == 1 else 0


def _default_minutes(args: AllSparkTrainingArguments) -> float:
    return MINUTES.get(args.device.type, MINUTES["cpu"])


def median_side(dataset: datasets.Dataset, long_side: int | None = None) -> tuple[int, int]:
    """Median (height, width) of the images of a data set, scaled to a long side if one is given; (0, 0) if unknown."""
    sizes = [size for size in image_sizes(dataset) if size is not None]
    if not sizes:
        return 0, 0
    width, height = (statistics.median(sides) for sides in zip(*sizes, strict=True))
    scale = 1 if long_side is None else long_side / max(height, width)
    return round(scale * height), round(scale * width)


def _time_updates(build: Callable, report: CheckReport, arguments: tuple) -> Times:
    """Times a few updates of the training; keeps nothing, and leaves warnings to the training itself."""
    data, model, args = arguments
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder:
            start = time.monotonic()
            trial = trial_arguments(args, folder, TIMED_UPDATES)
            # The second batch of an update needs the most memory, since the gradients of the first are there.
            trial.gradient_accumulation_steps = min(2, args.gradient_accumulation_steps)
            trainer = build(data, model, trial, report)
            built = time.monotonic() - start  # the training will build a trainer again
            times = measure(trainer)
            update = times.update * args.gradient_accumulation_steps / trial.gradient_accumulation_steps
            return times._replace(update=update, around=times.around + built)
    finally:
        logging.disable(logging.NOTSET)

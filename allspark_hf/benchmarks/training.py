"""Measurements of training: the whole step, the bottleneck alone, the memory update alone."""

import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial

import datasets
import torch

from ..inference.loading import make_image_processor
from ..training.arguments import AllSparkTrainingArguments
from ..training.trainer import AllSparkTrainer
from .cases import (
    OURS,
    PLAIN_STEP,
    TEXTBOOK,
    TINY,
    VARIANTS,
    Case,
    autocast,
    generated_data,
    make_bottleneck,
    make_config,
    make_model,
)
from .peak import Peak, bytes_in_use, make_memory_exact, measure_peak
from .plain_step import plain_unimatch_step
from .timing import out_of_memory, summary, take_turns


def check_settings(settings: dict):
    """Raises ValueError for a name that [`AllSparkTrainingArguments`] does not have."""
    known = {field.name for field in fields(AllSparkTrainingArguments)}
    for name in settings:
        if name not in known:
            raise ValueError(f"training_arguments has {name!r}, which is no training argument: correct it.")


def make_trainer(
    case: Case,
    variant: str,
    device: torch.device,
    seed: int,
    labeled: datasets.Dataset,
    unlabeled: datasets.Dataset,
    **settings,
) -> AllSparkTrainer:
    """As `allspark train` makes it, with further `settings` of [`AllSparkTrainingArguments`]; it writes nothing."""
    own = {
        "method": VARIANTS[variant],
        "per_device_train_batch_size": case.batch_size,
        "memory_warmup_epochs": 0,  # the memory is read from the first step on
        "bf16": case.precision == "bf16",
        "use_cpu": device.type == "cpu",
        "seed": seed,
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
    }
    model = make_model(case, variant, seed)
    data = {"train_dataset": labeled, "unlabeled_dataset": unlabeled}
    with tempfile.TemporaryDirectory() as unused_dir:  # which the trainer tries to write into
        args = AllSparkTrainingArguments(output_dir=unused_dir, **(own | settings))
        trainer = AllSparkTrainer(model, args, make_image_processor(), **data)
    if variant == PLAIN_STEP:
        trainer.method.step = partial(plain_unimatch_step, trainer.method)
    return trainer


class TrainingStep:
    """
    One update of [`AllSparkTrainer`], as its training loop does it, on one batch again and again: pixels counted,
    pseudo-label pass, forward, losses, backward, optimizer.

    Args:
        case ([`Case`]): sizes.
        variant (`str`): of `VARIANTS`.
        device (`torch.device`): where to train.
        seed (`int`): of weights, images and augmentation.
        settings: of [`AllSparkTrainingArguments`].
    """

    def __init__(self, case: Case, variant: str, device: torch.device, seed: int, **settings):
        labeled = generated_data(case.batch_size, case.num_labels, case.crop, seed)
        unlabeled = generated_data(case.batch_size, case.num_labels, case.crop, seed + 1).remove_columns("label")
        self.trainer = make_trainer(case, variant, device, seed, labeled, unlabeled, **settings)
        self.trainer.current_gradient_accumulation_steps = 1  # what Trainer.train sets
        self.trainer.method.num_updates = 1000
        self.batch = next(iter(self.trainer.get_train_dataloader()))
        self.trainer.create_optimizer()
        prepared = self.trainer.accelerator.prepare(self.trainer.model, self.trainer.optimizer)
        self.model, self.optimizer = prepared

    def __call__(self):
        trainer = self.trainer
        (batch,), pixels = trainer.get_batch_samples(iter([self.batch]), 1, trainer.args.device)
        trainer.training_step(self.model, dict(batch), pixels)
        self.optimizer.step()
        if trainer.method.acts_after_updates:
            with torch.no_grad():
                trainer.method.after_update(trainer.processes.model, 1000)
        self.model.zero_grad()


def warm_up(case: Case, device: torch.device):
    """Loads what PyTorch and its libraries load late, by steps of a tiny model in the case's precision."""
    tiny = replace(case, size=TINY, crop=64, num_labels=3, memory_size=1, batch_size=2)
    for variant in VARIANTS:
        TrainingStep(tiny, variant, device, seed=0)()


def step_times(case: Case, device: torch.device, options) -> dict:
    """By variant, `seconds` of an update ([`summary`]), or its `error`."""
    makers = {
        name: partial(TrainingStep, case, name, device, options.seed, **options.settings) for name in options.variants
    }
    return _times(case, device, makers, options.repeats)


def _times(case: Case, device: torch.device, makers: dict[str, Callable[[], Callable]], repeats: int) -> dict:
    """By variant, `seconds` of the work that is made, all in turns, or the `error`."""
    warm_up(case, device)
    works, results = {}, {}
    for name, make in makers.items():
        try:
            works[name] = make()
        except (RuntimeError, MemoryError) as error:
            results[name] = {"error": out_of_memory(error, device)}
    return results | as_results(take_turns(works, device, repeats))


def step_memory(case: Case, device: torch.device, options, variant: str) -> dict:
    """
    `peak_bytes` of training: weights, memory, optimizer, batch and all that a step needs; `extra_bytes`: of these what
    is there only during a step.
    """
    start, peak = _peak(case, device, partial(TrainingStep, case, variant, device, options.seed, **options.settings))
    return {"peak_bytes": peak.peak - start, "extra_bytes": peak.extra}


def bottleneck_memory(case: Case, device: torch.device, options, variant: str) -> dict:
    """`extra_bytes`: peak of the bottleneck's forward and backward, over weights, gradients and inputs."""
    return {"extra_bytes": _peak(case, device, partial(bottleneck_pass, case, variant, device, options.seed))[1].extra}


def _peak(case: Case, device: torch.device, make: Callable[[], Callable]) -> tuple[int, Peak]:
    """Bytes in use before the work is made, and its [`Peak`] the second time that it runs."""
    warm_up(case, device)
    if device.type == "cpu":
        make_memory_exact()
    start = bytes_in_use(device)
    work = make()
    work()  # makes the gradients and the optimizer's state
    return start, measure_peak(work, device)


def bottleneck_pass(case: Case, variant: str, device: torch.device, seed: int) -> Callable[[], None]:
    """Forward and backward of the bottleneck alone in training, reading the memory; gradients add up in place."""
    bottleneck, config = make_bottleneck(case, variant, seed).to(device).train(), make_config(case, plain=False)
    grid, channels = config.token_grid, config.bottleneck_channels
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    features = noise(2 * case.batch_size, channels, *grid).requires_grad_()
    logits = noise(case.batch_size, case.num_labels, -(-case.crop // 4), -(-case.crop // 4))
    gradient = noise(*features.shape)

    def work():
        with autocast(case, device):
            output = bottleneck(features, case.batch_size, logits)
        output.backward(gradient.to(output.dtype))

    return work


def bottleneck_times(case: Case, device: torch.device, options) -> dict:
    """By "allspark" and "textbook", `seconds` of forward and backward of the bottleneck alone, or the `error`."""
    makers = {name: partial(bottleneck_pass, case, name, device, options.seed) for name in (OURS, TEXTBOOK)}
    return _times(case, device, makers, options.repeats)


def memory_update_times(case: Case, device: torch.device, options) -> dict:
    """By "allspark" and "textbook", `seconds` of one enqueueing: the batch's channels, of classes drawn at random."""
    generator = torch.Generator()
    updates = {}
    for variant in (OURS, TEXTBOOK):
        memory = make_bottleneck(case, variant, options.seed).to(device).memory
        num_slots, _, num_tokens = memory.channels.shape
        shape = (case.batch_size, make_config(case, plain=False).bottleneck_channels)
        slots = torch.randint(num_slots, shape, generator=generator.manual_seed(options.seed)).to(device)
        tokens = torch.randn(case.batch_size, num_tokens, shape[1], generator=generator).to(device)
        updates[variant] = partial(memory.enqueue, tokens, slots)
    return as_results(take_turns(updates, device, options.repeats))


def as_results(times: dict[str, list[float] | str]) -> dict[str, dict]:
    """The result of [`take_turns`] in the form of [`Results`]."""
    return {
        name: {"error": taken} if isinstance(taken, str) else {"seconds": summary(taken)}
        for name, taken in times.items()
    }

"""Measurements of an encoder of AutoBackbone in training: frozen, whole, with checkpointing, with the bottleneck."""

from dataclasses import dataclass
from functools import partial

import torch

from ..models.configuration_allspark import AllSparkConfig
from ..models.encoders import load_encoder
from ..models.freezing import freeze_encoder
from ..utils.text import one_line
from .children import in_fresh_process
from .peak import can_measure, make_memory_exact, measure_peak
from .timing import ratio, summary, take_turns


# What is trained of the encoder, and what is kept for the gradient.
ENCODER_PARTS = ("frozen", "first half frozen", "whole", "whole, checkpointed")
REFERENCE = "whole"


@dataclass(frozen=True)
class EncoderCase:
    """
    Args:
        encoder (`str`): Hub id, folder or model type.
        crop (`int`): side of the square crop in pixels.
        num_labels (`int`): classes.
        batch_size (`int`): labeled images; with the bottleneck as many unlabeled ones on top.
        repeats (`int`): rounds that count.
    """

    encoder: str
    crop: int
    num_labels: int
    batch_size: int
    repeats: int


def variant_names() -> list[str]:
    """The parts of `ENCODER_PARTS` without the bottleneck, then with it."""
    return [f"{part}{bottleneck}" for bottleneck in ("", " + bottleneck") for part in ENCODER_PARTS]


class EncoderStep:
    """
    One update with AdamW on random pixels and labels; with the bottleneck also on random unlabeled images.

    Args:
        case ([`EncoderCase`]): encoder and sizes.
        name (`str`): of [`variant_names`].
        device (`torch.device`): where to train.

    Raises:
        ValueError: if the encoder cannot be frozen or checkpointed as the variant needs it.
    """

    def __init__(self, case: EncoderCase, name: str, device: torch.device):
        torch.manual_seed(0)
        with_bottleneck, part = name.endswith("bottleneck"), name.removesuffix(" + bottleneck")
        switches = {} if with_bottleneck else AllSparkConfig.plain_segformer_switches()
        self.model = load_encoder(case.encoder, num_labels=case.num_labels, crop_size=case.crop, **switches)
        self.model.to(device).train()
        if "frozen" in part:
            layers = getattr(self.model.backbone.config, "num_hidden_layers", 2) // 2
            freeze_encoder(self.model, None if part == "frozen" else layers)
        if "checkpointed" in part:
            self.model.gradient_checkpointing_enable()
        self.optimizer = torch.optim.AdamW(p for p in self.model.parameters() if p.requires_grad)
        size = (case.batch_size, 3, case.crop, case.crop)
        self.inputs = {
            "pixel_values": torch.randn(size, device=device),
            "labels": torch.randint(case.num_labels, (case.batch_size, case.crop, case.crop), device=device),
        }
        if with_bottleneck:
            logits = torch.randn(case.batch_size, case.num_labels, 32, 32, device=device)
            self.inputs |= {"unlabeled_pixel_values": torch.randn(size, device=device), "unlabeled_logits": logits}

    def __call__(self):
        outputs = self.model(**self.inputs)
        loss = outputs.loss
        if outputs.unlabeled_logits is not None:
            loss = loss + outputs.unlabeled_logits.square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def times(case: EncoderCase, device: torch.device) -> dict[str, list[float] | str]:
    """
    Seconds of an update by variant, all in turns in one process; a sentence for a variant that the encoder does not
    allow.
    """
    steps, refused = {}, {}
    for name in variant_names():
        try:
            steps[name] = EncoderStep(case, name, device)
        except ValueError as error:
            refused[name] = one_line(error)
    found = refused | take_turns(steps, device, case.repeats)
    return {name: found[name] for name in variant_names()}


def peak(case: EncoderCase, name: str, device: torch.device) -> dict:
    """Bytes that an update needs beyond weights and optimizer state, after a first one."""
    if device.type == "cpu":
        make_memory_exact()
    step = EncoderStep(case, name, device)
    step()
    return {"extra": measure_peak(step, device).extra}


def measure(case: EncoderCase, device: torch.device) -> dict[str, dict]:
    """
    Times and peak memory of every variant.

    Returns:
        `dict`: by variant, `seconds` ([`summary`]), `ratio` of them to the whole encoder without bottleneck, and
        `extra` bytes or None where the machine cannot tell; or the `error`.
    """
    taken = in_fresh_process(device, times, case, device)
    results = {}
    for name in variant_names():
        seconds = taken.get(name, taken.get("error"))
        if isinstance(seconds, str):
            results[name] = {"error": seconds}
            continue
        results[name] = {"seconds": summary(seconds), "ratio": ratio(seconds, taken[REFERENCE])}
        measured = in_fresh_process(device, partial(peak, case, name), device) if can_measure(device) else {}
        results[name]["extra"] = measured.get("extra")
    return results

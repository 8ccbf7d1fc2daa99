"""Which weights a model started from, and the licence that follows from them."""

import re
from dataclasses import dataclass
from pathlib import Path

from .markdown import code


FROM_SCRATCH = "none"
HUB_ID = re.compile(r"[\w][\w.-]*/[\w.-]+")
# nvidia/mit-b5, nvidia/segformer-b0-finetuned-ade-512-512, and folders that are called so.
NVIDIA = re.compile(r"nvidia/.+|(?:.*/)?(?:mit-b[0-5]|segformer[.-]b[0-5].*)", re.IGNORECASE)
NVIDIA_LICENCE = "https://github.com/NVlabs/SegFormer/blob/master/LICENSE"


@dataclass(frozen=True)
class Licence:
    """
    A model's licence as the Hub's metadata and a card state it.

    Args:
        id (`str`): `license` of the metadata.
        name (`str`, *optional*): `license_name`, where the id is `"other"`.
        link (`str`, *optional*): `license_link`.
        title (`str`): what a reader calls it.
        sentence (`str`): why it is this one and what it means.
    """

    id: str
    title: str
    sentence: str
    name: str | None = None
    link: str | None = None


APACHE = Licence(
    id="apache-2.0",
    title="Apache-2.0",
    sentence="The weights were trained from scratch with allspark-hf, so that its own licence, Apache-2.0, applies.",
)


def weights_name(name_or_path: str | None) -> str:
    """What to call weights in public: a Hub id, or a folder's bare name; `"none"` for no weights."""
    if not name_or_path:
        return FROM_SCRATCH
    name_or_path = str(name_or_path)
    if not Path(name_or_path).exists() and HUB_ID.fullmatch(name_or_path):
        return name_or_path
    return Path(name_or_path).absolute().resolve().name or name_or_path


def base_weights_of(config, name_or_path: str | None = None) -> str:
    """
    The weights that a model's training started from.

    Args:
        config (`PreTrainedConfig` or `dict`): its `base_weights` wins, so that a model fine-tuned twice keeps naming
            the first.
        name_or_path (`str`, *optional*): where the weights were loaded from; default: what the configuration says.

    Returns:
        `str`: a Hub id, a folder's bare name, or `"none"` for from scratch.
    """
    stored = config if isinstance(config, dict) else vars(config)
    return stored.get("base_weights") or weights_name(name_or_path or stored.get("_name_or_path"))


def licence_of(base_weights: str | None, started_from: str | None = None) -> Licence:
    """
    The licence of a model.

    Args:
        base_weights (`str`, *optional*): of [`base_weights_of`]; None if nothing tells.
        started_from (`str`, *optional*): the Hub id or folder name of the model that the last training went on from.

    Returns:
        [`Licence`]: `apache-2.0` from scratch, NVIDIA's for their weights, else `unknown` with what to check.
    """
    for name in (base_weights, started_from):
        if name and NVIDIA.fullmatch(name):
            return _nvidia(name)
    if base_weights is None:
        return _unknown("Nothing in this folder tells which weights the training started from")
    if base_weights != FROM_SCRATCH:
        return _unknown(f"The training started from {code(base_weights)}, whose licence is not known here")
    if started_from and HUB_ID.fullmatch(started_from):
        return _unknown(f"The training went on from {code(started_from)}, whose licence is not known here")
    return APACHE


def _nvidia(name: str) -> Licence:
    on_hub = HUB_ID.fullmatch(name)
    origin = f"[{code(name)}](https://huggingface.co/{name})" if on_hub else f"{code(name)} (by its name NVIDIA's)"
    return Licence(
        id="other",
        name="nvidia-source-code-license-for-segformer",
        link=NVIDIA_LICENCE,
        title="NVIDIA Source Code License for SegFormer, non-commercial use only",
        sentence=(
            f"The weights are derived from {origin}, which NVIDIA licenses for non-commercial use only (research or "
            f"evaluation) under the [NVIDIA Source Code License for SegFormer]({NVIDIA_LICENCE}). So are these."
        ),
    )


def _unknown(reason: str) -> Licence:
    return Licence(
        id="unknown",
        title="not known",
        sentence=f"{reason}: check it before you use or pass on these weights, and state it here.",
    )


__all__ = ["FROM_SCRATCH", "Licence", "base_weights_of", "licence_of", "weights_name"]

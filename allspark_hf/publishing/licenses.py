"""Which weights a model started from, and the license that follows from them."""

import re
from dataclasses import dataclass
from pathlib import Path

from ..utils.files import HUB_ID


FROM_SCRATCH = "none"
# nvidia/mit-b5, nvidia/segformer-b0-finetuned-ade-512-512, and folders that are called so.
NVIDIA = re.compile(r"nvidia/.+|(?:.*/)?(?:mit-b[0-5]|segformer[.-]b[0-5].*)", re.IGNORECASE)


@dataclass(frozen=True)
class License:
    """
    A model's license as the Hub's metadata states it; the card's template has the sentences.

    Args:
        id (`str`): `license` of the metadata: `"apache-2.0"`, `"other"` (NVIDIA's) or `"unknown"`.
        origin (`str`, *optional*): the weights that it follows from, or whose license is not known here.
        name (`str`, *optional*): `license_name`, where the id is `"other"`.
        link (`str`, *optional*): `license_link`.
    """

    id: str
    origin: str | None = None
    name: str | None = None
    link: str | None = None


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


def license_of(base_weights: str | None, started_from: str | None = None) -> License:
    """
    The license of a model.

    Args:
        base_weights (`str`, *optional*): of [`base_weights_of`]; None if nothing tells.
        started_from (`str`, *optional*): the Hub id or folder name of the model that the last training went on from.

    Returns:
        [`License`]: `apache-2.0` from scratch, NVIDIA's for their weights, else `unknown`.
    """
    for name in (base_weights, started_from):
        if name and NVIDIA.fullmatch(name):
            link = "https://github.com/NVlabs/SegFormer/blob/master/LICENSE"
            return License("other", name, "nvidia-source-code-license-for-segformer", link)
    if base_weights != FROM_SCRATCH:
        return License("unknown", base_weights)
    if started_from and HUB_ID.fullmatch(started_from):
        return License("unknown", started_from)
    return License("apache-2.0")


__all__ = ["FROM_SCRATCH", "License", "base_weights_of", "license_of", "weights_name"]

"""The weights that a model started from, and the license that follows from them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HTTPError

from ..utils.files import HUB_ID, read_json_object


FROM_SCRATCH = "none"
HUB_SECONDS = 5.0  # to wait for the Hub to name a license
NVIDIA_LICENSE = "nvidia-source-code-license-for-segformer"
DINOV3_LICENSE = "dinov3-license"
# Licenses with an identifier in the Hub's metadata; others are "other" there, with their name.
IDENTIFIERS = ("afl-3.0", "apache-2.0", "apple-amlr", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0")
IDENTIFIERS += ("cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-sa-4.0", "gpl-3.0", "mit", "openrail")
TITLES = {
    "apache-2.0": "Apache-2.0",
    DINOV3_LICENSE: "DINOv3 License",
    NVIDIA_LICENSE: "NVIDIA Source Code License for SegFormer",
}
LINKS = {
    DINOV3_LICENSE: "https://huggingface.co/facebook/dinov3-vitl16-pretrain-lvd1689m/blob/main/LICENSE.md",
    NVIDIA_LICENSE: "https://github.com/NVlabs/SegFormer/blob/master/LICENSE",
}


class Family(NamedTuple):
    """
    Weights whose license is known: pattern of their names, the license, who gives it, whether it is strict, that is,
    taken to hold for copies too, and the model types of transformers that only these weights have.
    """

    names: re.Pattern
    license: str
    holder: str
    strict: bool
    types: tuple[str, ...]


def _family(names: str, license: str, holder: str, strict: bool = False, types: tuple[str, ...] = ()) -> Family:
    return Family(re.compile(names, re.IGNORECASE), license, holder, strict, types)


# Strict terms are taken to hold for all weights of such a name; free terms only for the originals, and for folders of
# such a name. Others publish DINOv2s and SegFormers of their own, so that these model types do not tell the license.
FAMILIES = (
    # nvidia/mit-b5, nvidia/segformer-b0-finetuned-ade-512-512, and folders of such names.
    _family(r"nvidia/.+|(?:.*/)?(?:mit-b[0-5]|segformer[.-]b[0-5].*)", NVIDIA_LICENSE, "NVIDIA", strict=True),
    _family(r".*dinov3.*", DINOV3_LICENSE, "Meta", True, types=("dinov3_vit", "dinov3_convnext")),
    _family(r"(?:.*/)?(?:convnextv2|hiera)[-_].+", "cc-by-nc-4.0", "Meta", True, types=("convnextv2", "hiera")),
    _family(r"(?:facebook/)?dinov2-(?:with-registers-)?(?:small|base|large|giant)", "apache-2.0", "Meta"),
    _family(r"(?:facebook/)?convnext-(?:tiny|small|base|large|xlarge)-.+", "apache-2.0", "Meta"),
)


@dataclass(frozen=True)
class License:
    """
    A model's license as in the Hub's metadata.

    Args:
        id (`str`): `license` of the metadata: an identifier such as `"apache-2.0"`, `"other"` or `"unknown"`.
        origin (`str`, *optional*): the weights that the license follows from, or whose license is unknown.
        name (`str`, *optional*): `license_name`, where the id is `"other"`.
        link (`str`, *optional*): `license_link`, where the id is `"other"` and there is a page.
        holder (`str`, *optional*): who licenses `origin`, if that is known.
    """

    id: str
    origin: str | None = None
    name: str | None = None
    link: str | None = None
    holder: str | None = None

    @property
    def title(self) -> str:
        """The license's name as a person writes it."""
        return TITLES.get(self.name or self.id) or self.name or self.id.upper()

    @property
    def non_commercial(self) -> bool:
        """Whether it is known to forbid commercial use."""
        return _is_non_commercial(self.name or self.id)


def _is_non_commercial(license: str) -> bool:
    return license == NVIDIA_LICENSE or "-nc" in license


def weights_name(name_or_path: str | None) -> str:
    """A public name of weights: a Hub id, also for its folder in the cache, or a folder's name; `"none"` for None."""
    if not name_or_path:
        return FROM_SCRATCH
    name_or_path = str(name_or_path)
    if not Path(name_or_path).exists() and HUB_ID.fullmatch(name_or_path):
        return name_or_path
    path = Path(name_or_path).absolute().resolve()
    if path.parent.name == "snapshots" and path.parents[1].name.startswith("models--"):  # in the Hub's cache
        return "/".join(path.parents[1].name.split("--", 2)[1:])
    return path.name or name_or_path


def base_weights_of(config, name_or_path: str | None = None) -> str:
    """
    The weights that a model's first training started from.

    Args:
        config (`PreTrainedConfig` or `dict`): its `base_weights` wins, so that a model that was fine-tuned twice names
            the weights of the first training.
        name_or_path (`str`, *optional*): where the weights were loaded from; defaults to what the configuration says.

    Returns:
        `str`: a Hub id, a folder's bare name, or `"none"` for from scratch.
    """
    stored = config if isinstance(config, dict) else vars(config)
    return stored.get("base_weights") or weights_name(name_or_path or stored.get("_name_or_path"))


def base_license_of(name_or_path: str) -> str | None:
    """
    The license of weights, for `config.base_license`: what their card says, else that of the family of their name. A
    family with strict terms wins over a card, because copies are often tagged more freely than the authors allow. Such
    a family is known by the name on the Hub, and by the model type in a folder.

    Args:
        name_or_path (`str`): Hub id or local folder.

    Returns:
        `str`: an identifier such as `"apache-2.0"`, or the name of another license; None if it is unknown, or the Hub
        does not answer.
    """
    name = weights_name(name_or_path)
    on_hub = HUB_ID.fullmatch(name)
    family = _family_of(name) if on_hub else _family_of_type(read_json_object(Path(name_or_path) / "config.json"))
    if family is not None and family.strict:
        return family.license
    family = _family_of(name)
    return _license_on_card(str(name_or_path)) or (None if family is None or family.strict else family.license)


def _license_on_card(name_or_path: str) -> str | None:
    folder = Path(name_or_path)
    try:
        if folder.is_dir():
            text = (folder / "README.md").read_text(encoding="utf-8")
            card = ModelCard(text, ignore_metadata_errors=True).data
        else:
            card = HfApi().model_info(name_or_path, timeout=HUB_SECONDS).card_data or {}
    except (HTTPError, OSError, ValueError, yaml.YAMLError):  # offline, no answer, no card, no metadata
        return None
    found = card.get("license")
    found = found[0] if isinstance(found, list) and len(found) == 1 else found
    found = card.get("license_name") if found == "other" else found
    known = isinstance(found, str) and re.fullmatch(r"\w[\w.+-]{0,95}", found) and found not in ("other", "unknown")
    return found.lower() if known else None


def _family_of(name: str | None) -> Family | None:
    return next((family for family in FAMILIES if name and family.names.fullmatch(name)), None)


def _family_of_type(config: dict) -> Family | None:
    kind = config.get("model_type")
    return next((family for family in FAMILIES if kind in family.types), None)


def license_of(base_weights: str | None, started_from: str | None = None, base_license: str | None = None) -> License:
    """
    The license of a model.

    Args:
        base_weights (`str`, *optional*): result of [`base_weights_of`]; None if unknown.
        started_from (`str`, *optional*): Hub id or folder name of the model that the last training started from.
        base_license (`str`, *optional*): result of [`base_license_of`]; defaults to that of the family of
            `base_weights`.

    Returns:
        [`License`]: `apache-2.0` from scratch, else that of the weights, or `unknown`.
    """
    for name in (base_weights, started_from):
        family = _family_of(name)
        is_told = base_license is not None and not HUB_ID.fullmatch(name or "")  # a folder's name proves nothing
        if family is not None and family.strict and not is_told:
            return _named(family.license, name, family.holder)
    family = _family_of(base_weights)
    found = base_license or (None if family is None else family.license)
    if base_weights != FROM_SCRATCH and found is None:
        return License("unknown", base_weights)
    # A model between the first weights and this one may have stricter terms than those weights.
    between = started_from != base_weights and started_from and HUB_ID.fullmatch(started_from)
    if between and (base_weights == FROM_SCRATCH or not _is_non_commercial(found)):
        return License("unknown", started_from)
    if base_weights == FROM_SCRATCH:
        return License("apache-2.0")
    return _named(found, base_weights, family.holder if family and family.license == found else None)


def _named(license: str, origin: str, holder: str | None) -> License:
    if license in IDENTIFIERS:
        return License(license, origin, holder=holder)
    page = f"https://huggingface.co/{origin}" if HUB_ID.fullmatch(origin) else None
    return License("other", origin, license, LINKS.get(license, page), holder)

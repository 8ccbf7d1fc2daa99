"""Which weights lie in a folder."""

import hashlib
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_NAME

from .modeling_allspark import SegformerForSemiSupervisedSegmentation


DIGEST = "weights_sha256"  # name of the entry in records


def weights_digest(folder: str | Path) -> str | None:
    """
    A name for the weights in a folder: SHA-256 of their names, types, sizes and bytes, without the training's memory,
    so that a checkpoint, its saved model and its published one have the same.

    Args:
        folder (`str` or `Path`): with `model.safetensors`.

    Returns:
        `str`: 64 hexadecimal digits; None if there is no such file.

    Raises:
        ValueError: if it is damaged.
    """
    path = Path(folder) / SAFE_WEIGHTS_NAME
    if not path.is_file():
        return None
    ignored = SegformerForSemiSupervisedSegmentation._keys_to_ignore_on_save
    digest = hashlib.sha256()
    with _opened(path) as file:
        for name in sorted(file.keys()):
            if any(re.search(pattern, name) for pattern in ignored):
                continue
            tensor = file.get_tensor(name).contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _opened(path: Path):
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise ValueError(f"{path} holds no weights in safetensors ({error}): save the model again.") from error


def holds_weights(folder: str | Path, model: torch.nn.Module) -> bool:
    """Whether the weights saved in a folder are those of a model in memory, the training's memory aside."""
    path, own = Path(folder) / SAFE_WEIGHTS_NAME, model.state_dict()
    if not path.is_file():
        return False
    with safe_open(path, "pt") as file:
        return all(name in own and file.get_tensor(name).equal(own[name].cpu()) for name in file.keys())  # noqa: SIM118


__all__ = ["DIGEST", "holds_weights", "weights_digest"]

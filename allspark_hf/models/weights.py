"""Which weights lie in a folder."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_NAME

from .bottleneck_allspark import MEMORY_KEYS


DIGEST = "weights_sha256"  # the name of the digest in records


def weights_digest(folder: str | Path) -> str | None:
    """
    SHA-256 of the names, types, sizes and bytes of the weights in a folder. The memory of the training does not count,
    so a checkpoint, the model saved from it and the published model have the same digest.

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
    digest = hashlib.sha256()
    with _opened(path) as file:
        for name in sorted(file.keys()):
            if name in MEMORY_KEYS:
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
    """Whether all weights that are saved in a folder equal those of a model."""
    path, own = Path(folder) / SAFE_WEIGHTS_NAME, model.state_dict()
    if not path.is_file():
        return False
    with safe_open(path, "pt") as file:
        return all(name in own and file.get_tensor(name).equal(own[name].cpu()) for name in file.keys())  # noqa: SIM118


__all__ = ["DIGEST", "holds_weights", "weights_digest"]

"""Which weights lie in a folder, or in a model."""

import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_NAME

from .modeling_allspark import SegformerForSemiSupervisedSegmentation


DIGEST = "weights_sha256"  # name of the entry in records


def weights_digest(source: str | Path | torch.nn.Module) -> str | None:
    """
    A name for weights: SHA-256 of their names, types, sizes and bytes, without the semantic memory. A checkpoint, the
    model saved from it, the published model and the model in memory have the same digest.

    Args:
        source (`str`, `Path` or `torch.nn.Module`): a folder with `model.safetensors`, or a model.

    Returns:
        `str`: 64 hexadecimal digits; None if there is no such file.

    Raises:
        ValueError: if the file is damaged.
    """
    if isinstance(source, torch.nn.Module):
        state = source.state_dict()
        return _digest(state, state.__getitem__)
    path = Path(source) / SAFE_WEIGHTS_NAME
    if not path.is_file():
        return None
    with _opened(path) as file:
        return _digest(file.keys(), file.get_tensor)


def _digest(names: Iterable[str], tensor_of: Callable[[str], torch.Tensor]) -> str:
    ignored = SegformerForSemiSupervisedSegmentation._keys_to_ignore_on_save
    digest = hashlib.sha256()
    for name in sorted(names):
        if any(re.search(pattern, name) for pattern in ignored):
            continue
        tensor = tensor_of(name).detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _opened(path: Path):
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise ValueError(f"{path} holds no weights in safetensors ({error}): save the model again.") from error

"""Loading what others have saved: every failure is one sentence, and nothing in a file is run."""

import math
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled, StrictDataclassError

from ..utils.text import one_line


MAX_SIDE = 100_000
MAX_NUMBER = 1e30  # float32 holds it
HUB_SECONDS = 5.0  # to connect; after any answer huggingface_hub goes on with its own retries
UNREACHABLE = ("ConnectError", "ConnectTimeout", "ProxyError")  # of httpx, under the name that huggingface_hub has it


@contextmanager
def loading(name: str, keep: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """
    Turns whatever goes wrong while a model is loaded into a `ValueError` of one sentence.

    Weights in safetensors are read where there are any. Others (`pytorch_model.bin`) are pickles, which transformers
    reads with `torch.load(weights_only=True)` alone: tensors and plain containers, and an error for anything that
    could run code.

    Args:
        name (`str`): the folder or Hub id.
        keep (`tuple[type[Exception], ...]`): errors that pass as they are.
    """
    try:
        yield
    except keep:
        raise
    # transformers checks little of what a file says: KeyError, TypeError, SafetensorError and others arrive here.
    except Exception as error:
        raise ValueError(f"The model {name!r} cannot be loaded: {failure(error)}") from error


def check_reachable(name: str, revision: str | None = None) -> None:
    """
    Refuses within seconds a name that cannot be loaded; huggingface_hub would retry the connection for a minute first.

    Args:
        name (`str`): folder or Hub id.
        revision (`str`, *optional*): branch, tag or commit of a Hub id.

    Raises:
        ValueError: if there is no such folder, no copy in the Hub's cache, and no way to ask the Hub.
    """
    try:
        if Path(name).is_dir() or isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            return
        cause = _unreachable(name) and _unreachable(name)  # a connection may fail once
    except HFValidationError:  # no name on the Hub, which is told where it is loaded
        return
    if cause is not None:
        raise ValueError(
            f"There is no folder {name!r}, and the Hub, which may have a model of this name, cannot be reached "
            f"({cause}): correct the folder, or connect to the Hub, or run `hf download {name} --local-dir FOLDER` "
            "where there is a connection and give that folder."
        )


def _unreachable(name: str) -> str | None:
    """Why the Hub cannot be asked for a model; None if it answers, whatever that is."""
    try:
        HfApi().model_info(name, timeout=HUB_SECONDS)
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set"
    except HTTPError as error:
        return one_line(error) if type(error).__name__ in UNREACHABLE else None
    return None


def failure(error: Exception) -> str:
    """The message of an error on one line, after the error's type where the message may be a bare name or number."""
    if isinstance(error, pickle.UnpicklingError):  # torch's message tells how to run the file
        return "a pickle in it is damaged or holds more than tensors, which could run code: save its tensors alone"
    if isinstance(error, OSError | ValueError | RuntimeError | StrictDataclassError):
        return one_line(error)
    return f"{type(error).__name__} {' '.join(str(error).split())}".strip()


def check_labels(config) -> None:
    """
    Refuses class names that do not name the model's classes.

    Args:
        config ([`AllSparkConfig`]): of a model.

    Raises:
        ValueError: unless `id2label` has a text for each of 0 to `num_labels - 1`, and nothing else.
    """
    names = config.id2label
    if sorted(names) != list(range(config.num_labels)) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(
            f"id2label in the model's configuration does not name the classes 0 to {config.num_labels - 1}, each with "
            "a text: correct it in config.json."
        )


def stored_palette(config) -> np.ndarray | None:
    """
    The colors of a model's classes.

    Args:
        config (`PreTrainedConfig`): of a model, with or without `palette`.

    Returns:
        `np.ndarray`: uint8 (num_labels, 3), red, green and blue in 0..255; None if the configuration has none.

    Raises:
        ValueError: if there is not one color per class.
    """
    palette = getattr(config, "palette", None)
    if palette is None:
        return None
    if len(palette) != config.num_labels:
        raise ValueError(
            f"palette in the model's configuration has {len(palette)} colors, but the model has {config.num_labels} "
            "classes: correct or remove it in config.json."
        )
    return np.array(palette, dtype=np.uint8)


def check_image_processor(image_processor) -> None:
    """
    Refuses an image processor that would fail, or give the model noise, with the first image.

    Args:
        image_processor ([`SegformerImageProcessorPil`]): as loaded.

    Raises:
        ValueError: naming the entry of preprocessor_config.json, its value, and what is needed.
    """
    needed = dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), "true or false")
    right = {name: isinstance(getattr(image_processor, name), bool) for name in needed}
    for name in ("image_mean", "image_std"):
        needed[name] = "a number for each of red, green and blue" + (", above 0" if name == "image_std" else "")
        value, lowest = getattr(image_processor, name), 0 if name == "image_std" else -math.inf
        right[name] = isinstance(value, list | tuple) and len(value) == 3 and all(_finite(v, lowest) for v in value)
    needed["rescale_factor"], right["rescale_factor"] = "a number above 0", _finite(image_processor.rescale_factor, 0)
    needed["resample"], right["resample"] = "0 to 5", image_processor.resample in range(6)
    needed["size"], right["size"] = f"sides of 1 to {MAX_SIDE} pixels", _is_size(image_processor.size)
    for name, fits in right.items():
        if not fits:
            raise ValueError(
                f"{name} in preprocessor_config.json is {getattr(image_processor, name)!r}, but {needed[name]} is "
                "needed: correct it."
            )


def _finite(value: object, lowest: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and lowest < value < MAX_NUMBER


def _is_size(size) -> bool:
    sides = {} if size is None else {name: side for name, side in dict(size).items() if side is not None}
    return bool(sides) and all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides.values())

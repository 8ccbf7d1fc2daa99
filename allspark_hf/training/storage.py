"""Folders and files that are whole or not there, and nested states as safetensors: no pickle is written or read."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME


RUN_FILE = "allspark_run.json"  # what a checkpoint was made with; the last of its files to be written
IDS_FILE = "trained_on.json"  # names of the images, which are not for others to see
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
UNFINISHED = "unfinished-"  # a checkpoint, or a model, that is being written
REMOVED = "removed-"  # a checkpoint that is being deleted
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


# ---- Nested states ----


def save_state(state: Any, path: str | Path):
    """
    Writes dicts, lists, tuples, numbers, texts, None, arrays and tensors, in any nesting, as one safetensors file.

    Args:
        state: e.g. the `state_dict()` of an optimizer, a scheduler or a gradient scaler.
        path (`str` or `Path`): the file. The tensors are its tensors, all else is JSON in its metadata.

    Raises:
        TypeError: if there is anything else in it, which only a pickle could hold.
    """
    tensors: dict[int, tuple[str, torch.Tensor]] = {}
    structure = json.dumps(_encode(state, tensors))
    contents = {name: tensor.detach().contiguous() for name, tensor in tensors.values()}
    save_file(contents, path, {"structure": structure})


def load_state(path: str | Path) -> Any:
    """
    What [`save_state`] wrote; tensors on the CPU, with their dtype, shape and memory format.

    Raises:
        ValueError: if the file is no such file, or not whole.
    """
    try:
        with safe_open(path, "pt") as file:
            return _decode(json.loads((file.metadata() or {})["structure"]), file.get_tensor)
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} holds no training state of this package ({error}): use another one.") from None


def _encode(value: Any, tensors: dict[int, tuple[str, torch.Tensor]]) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        name, _ = tensors.setdefault(id(value), (str(len(tensors)), value))  # named twice, written once
        channels_last = value.ndim == 4 and not value.is_contiguous()
        channels_last = channels_last and value.is_contiguous(memory_format=torch.channels_last)
        return {"tensor": name, "channels_last": channels_last}
    if isinstance(value, np.ndarray):
        return {"array": value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, dict):
        return {"dict": [[_encode(name, tensors), _encode(entry, tensors)] for name, entry in value.items()]}
    if isinstance(value, list | tuple):
        return {"list" if isinstance(value, list) else "tuple": [_encode(entry, tensors) for entry in value]}
    raise TypeError(
        f"The training state holds a {type(value).__name__}, which a checkpoint without pickles cannot: choose "
        "another optimizer (--optim) or schedule (--lr_scheduler_type), or set save_only_model."
    )


def _decode(value: Any, get_tensor) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        tensor = get_tensor(value["tensor"])
        return tensor.contiguous(memory_format=torch.channels_last) if value["channels_last"] else tensor
    if "array" in value:
        return np.array(value["array"], dtype=value["dtype"])
    if "dict" in value:
        return {_decode(name, get_tensor): _decode(entry, get_tensor) for name, entry in value["dict"]}
    entries = [_decode(entry, get_tensor) for entry in value["list" if "list" in value else "tuple"]]
    return entries if "list" in value else tuple(entries)


# ---- Weights ----


def load_weights(model: torch.nn.Module, folder: str | Path):
    """
    Loads the safetensors of a checkpoint, whole or in shards; every weight and buffer must be there.

    Raises:
        ValueError: if there are none, or they are of another model.
    """
    folder = Path(folder)
    files = [folder / SAFE_WEIGHTS_NAME]
    if not files[0].is_file():
        index = read_json(folder / SAFE_WEIGHTS_INDEX_NAME) or {"weight_map": {}}
        files = [folder / Path(name).name for name in sorted(set(index["weight_map"].values()))]
    if not files or not all(path.suffix == ".safetensors" and path.is_file() for path in files):
        raise ValueError(f"{folder} holds no weights as safetensors, and nothing else is loaded: use another one.")
    expected, found = set(model.state_dict()), set()
    for path in files:
        with safe_open(path, "pt") as file:
            found |= set(file.keys())
    if found != expected:
        other = sorted(found ^ expected)
        raise ValueError(
            f"{folder} holds the weights of another model ({len(other)} names differ, among them {other[0]}): resume "
            "with the model that it was made with."
        )
    for path in files:
        with safe_open(path, "pt") as file:
            model.load_state_dict({name: file.get_tensor(name) for name in file.keys()}, strict=False)  # noqa: SIM118


# ---- Checkpoint folders ----


def read_json(path: str | Path) -> dict | None:
    """A JSON object; None if the file is missing, cut short or something else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_run_file(folder: str | Path, content: dict):
    """Closes a checkpoint: writes `content` and the size of every file, by which [`is_complete`] judges it."""
    folder = Path(folder)
    ours = (RUN_FILE, IDS_FILE)
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in ours)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    (folder / RUN_FILE).write_text(json.dumps({**content, "files": sizes}, indent=2) + "\n", encoding="utf-8")


def is_complete(folder: str | Path) -> bool:
    """Whether a checkpoint was written to its end, and all its files are still there at full length."""
    folder, run = Path(folder), read_json(Path(folder) / RUN_FILE)
    files = (run or {}).get("files")
    if not isinstance(files, dict) or read_json(folder / TRAINER_STATE_NAME) is None:
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == files[name] for name in files)


def sorted_checkpoints(output_dir: str | Path) -> list[Path]:
    """
    The folders `checkpoint-*`, in the order in which they were saved; those that are not complete come first. After a
    resume from an earlier one, a later step may have been saved before.
    """
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if CHECKPOINT.fullmatch(path.name)]

    def key(path: Path) -> tuple[int, int]:
        order = read_json(path / RUN_FILE).get("order", 0) if is_complete(path) else -1
        return order if isinstance(order, int) else 0, int(CHECKPOINT.fullmatch(path.name).group(1))

    return sorted(folders, key=key)


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """The complete `checkpoint-*` folder that was saved last; None if there is none."""
    complete = [path for path in sorted_checkpoints(output_dir) if is_complete(path)]
    return str(complete[-1]) if complete else None


def finish_renaming(output_dir: str | Path):
    """Gives a checkpoint its name that was complete, but not yet called so, when the process ended."""
    for path in Path(output_dir).glob(f"{UNFINISHED}checkpoint-*"):
        target = path.with_name(path.name.removeprefix(UNFINISHED))
        if not target.exists() and is_complete(path):
            os.rename(path, target)


def remove_leftovers(output_dir: str | Path):
    """Deletes what a process that was killed had not written, or not deleted, to the end."""
    finish_renaming(output_dir)
    for pattern in (f"{UNFINISHED}checkpoint-*", f"{UNFINISHED}model", f"{REMOVED}checkpoint-*"):
        for path in Path(output_dir).glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def put_in_place(unfinished: Path, folder: Path):
    """Renames a complete checkpoint, once it is on the disk, to its name; one of that name goes."""
    sync(unfinished)
    replaced = _set_aside(folder) if folder.exists() else None
    os.rename(unfinished, folder)
    _sync_one(folder.parent)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)


def remove_checkpoint(folder: Path):
    """Deletes a checkpoint, which at no moment looks complete and is not."""
    shutil.rmtree(_set_aside(folder), ignore_errors=True)


def _set_aside(folder: Path) -> Path:
    aside = folder.with_name(f"{REMOVED}{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(folder, aside)
    return aside


def put_model_in_place(unfinished: Path, folder: Path):
    """Moves the files of a saved model into a folder, each whole; the configuration comes last, so that it loads."""
    sync(unfinished)
    names = sorted(path.name for path in unfinished.iterdir())
    names.sort(key=lambda name: (name == CONFIG_NAME, not WEIGHTS.fullmatch(name)))
    for name in names:
        os.replace(unfinished / name, folder / name)
    for path in folder.iterdir():  # weights of an earlier save, in another number of files
        if WEIGHTS.fullmatch(path.name) and path.name not in names:
            path.unlink()
    _sync_one(folder)
    shutil.rmtree(unfinished, ignore_errors=True)


def sync(folder: Path):
    """Returns when all of a folder is on the disk, and not only on its way there."""
    for path in folder.rglob("*"):
        _sync_one(path)
    _sync_one(folder)


def _sync_one(path: Path):
    if os.name == "nt":  # which knows no such thing for folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = [
    "IDS_FILE",
    "RUN_FILE",
    "UNFINISHED",
    "finish_renaming",
    "is_complete",
    "last_complete_checkpoint",
    "load_state",
    "load_weights",
    "put_in_place",
    "put_model_in_place",
    "read_json",
    "remove_checkpoint",
    "remove_leftovers",
    "save_state",
    "sorted_checkpoints",
    "sync",
    "write_run_file",
]

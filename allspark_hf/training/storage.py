"""Checkpoint folders, which are complete or do not exist."""

import json
import os
import re
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import CONFIG_NAME

from ..utils.files import read_json_object


RUN_FILE = "allspark_run.json"  # what a checkpoint was made with; written last
STUDENT_FILE = "student.safetensors"  # the trained weights, if another model is evaluated
IDS_FILE = "trained_on.json"  # names of the images; never published
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
UNFINISHED = "unfinished-"  # a checkpoint, or a model, that is being written
REMOVED = "removed-"  # a checkpoint that is being deleted
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


# ---- Weights ----


def check_weights(model: torch.nn.Module, path: str | Path):
    """
    Raises:
        ValueError: unless a safetensors file has exactly the weights and buffers of a model.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} is missing, and weights are loaded from safetensors only: use another checkpoint.")
    with safe_open(path, "pt") as file:
        other = sorted(set(file.keys()) ^ set(model.state_dict()))
    if other:
        raise ValueError(
            f"{path} holds the weights of another model ({len(other)} names differ, among them {other[0]}): resume "
            "with the model that it was made with."
        )


# ---- Checkpoint folders ----


def write_run_file(folder: str | Path, content: dict):
    """Writes the last file of a checkpoint: `content`, and the sizes of all files for [`is_complete`]."""
    folder = Path(folder)
    ours = (RUN_FILE, IDS_FILE)
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in ours)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    (folder / RUN_FILE).write_text(json.dumps({**content, "files": sizes}, indent=2) + "\n", encoding="utf-8")


def is_complete(folder: str | Path) -> bool:
    """Whether a checkpoint was written to its end, and all of its files still have their sizes."""
    folder, run = Path(folder), read_json_object(Path(folder) / RUN_FILE)
    files = run.get("files")
    if not isinstance(files, dict) or TRAINER_STATE_NAME not in files:
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == files[name] for name in files)


def sorted_checkpoints(output_dir: str | Path) -> list[Path]:
    """
    The folders `checkpoint-*` in the order in which they were saved, incomplete ones first. This need not be the order
    of their steps if a run was resumed from an earlier checkpoint.
    """
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if CHECKPOINT.fullmatch(path.name)]

    def key(path: Path) -> tuple[int, int]:
        order = read_json_object(path / RUN_FILE).get("order", 0) if is_complete(path) else -1
        return order if isinstance(order, int) else 0, int(CHECKPOINT.fullmatch(path.name).group(1))

    return sorted(folders, key=key)


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """The complete `checkpoint-*` folder that was saved last; None if there is none."""
    complete = [path for path in sorted_checkpoints(output_dir) if is_complete(path)]
    return str(complete[-1]) if complete else None


def finish_renaming(output_dir: str | Path):
    """Renames a checkpoint that was complete, but not yet renamed, when its process ended."""
    for path in Path(output_dir).glob(f"{UNFINISHED}checkpoint-*"):
        target = path.with_name(path.name.removeprefix(UNFINISHED))
        if not target.exists() and is_complete(path):
            os.rename(path, target)


def remove_leftovers(output_dir: str | Path):
    """Deletes what a killed process left half written or half deleted."""
    finish_renaming(output_dir)
    for pattern in (f"{UNFINISHED}checkpoint-*", f"{UNFINISHED}model", f"{REMOVED}checkpoint-*"):
        for path in Path(output_dir).glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def put_in_place(unfinished: Path, folder: Path):
    """Renames a complete checkpoint to `folder` once it is on the disk; an older folder of that name is deleted."""
    sync(unfinished)
    replaced = _set_aside(folder) if folder.exists() else None
    os.rename(unfinished, folder)
    _sync_one(folder.parent)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)


def remove_checkpoint(folder: Path):
    """Deletes a checkpoint; renames it first, so that a half deleted one is not called a checkpoint."""
    shutil.rmtree(_set_aside(folder), ignore_errors=True)


def _set_aside(folder: Path) -> Path:
    aside = folder.with_name(f"{REMOVED}{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(folder, aside)
    return aside


def put_model_in_place(unfinished: Path, folder: Path):
    """Moves the files of a saved model into a folder, the configuration last, without which nothing is loaded."""
    sync(unfinished)
    names = sorted(path.name for path in unfinished.iterdir())
    names.sort(key=lambda name: (name == CONFIG_NAME, not WEIGHTS.fullmatch(name)))
    for name in names:
        os.replace(unfinished / name, folder / name)
    for path in folder.iterdir():  # an earlier save may have had another number of weight files
        if WEIGHTS.fullmatch(path.name) and path.name not in names:
            path.unlink()
    _sync_one(folder)
    shutil.rmtree(unfinished, ignore_errors=True)


def sync(folder: Path):
    """Returns when all files of a folder are on the disk."""
    for path in folder.rglob("*"):
        _sync_one(path)
    _sync_one(folder)


def _sync_one(path: Path):
    if os.name == "nt":  # Windows cannot do so for folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Pickles that write a file when they are loaded without care, in every form that weights and arrays come in."""

import pickle
from pathlib import Path

import numpy as np
import torch


class Bomb:
    """Leaves `path` behind when it is unpickled."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def goes_off(path: Path) -> None:
    """Shows that a bomb is one: loaded without care, it leaves its mark, which is removed again."""
    pickle.loads(pickle.dumps(Bomb(path)))
    assert path.is_file()
    path.unlink()


def write_bomb(file: Path, mark: Path, form: str) -> Path:
    """
    A file that leaves `mark` behind if its pickle is run.

    Args:
        form: "zip" and "legacy" as torch.save writes, "nested" in a state dict beside tensors, "bare" a plain pickle,
            "npy" and "npz" arrays of objects.
    """
    bomb = Bomb(mark)
    file.parent.mkdir(parents=True, exist_ok=True)
    if form == "bare":
        file.write_bytes(pickle.dumps(bomb))
    elif form == "npy":
        with open(file, "wb") as target:
            np.save(target, np.array([bomb], dtype=object), allow_pickle=True)
    elif form == "npz":
        with open(file, "wb") as target:
            np.savez(target, a=np.array([bomb], dtype=object))
    else:
        content = {"state_dict": {"a": torch.zeros(2), "b": bomb}} if form == "nested" else bomb
        torch.save(content, file, _use_new_zipfile_serialization=form != "legacy")
    return file

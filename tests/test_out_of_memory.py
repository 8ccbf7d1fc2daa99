"""What a training says when memory runs out."""

import pytest
import torch

from allspark_hf.training import faults
from allspark_hf.training.faults import NoMemoryError, telling_faults


@pytest.mark.parametrize(
    ("error", "cause", "advice"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU"),
            "CUDA out of memory",
            "--bf16",
        ),
        (MemoryError(), "MemoryError", "--bf16"),
        (MemoryError("Caught MemoryError in DataLoader worker process 0.\nOriginal"), "MemoryError", "fewer --data"),
    ],
)
def test_too_little_memory(tmp_path, error, cause, advice):
    sentence = rf"^Memory ran out \({cause}\): take {advice}.*[a-z]\.$"
    with pytest.raises(NoMemoryError, match=sentence), telling_faults(tmp_path, num_workers=2):
        raise error
    with pytest.raises(RuntimeError, match="shapes differ"), telling_faults(tmp_path, num_workers=2):
        raise RuntimeError("shapes differ")


def test_too_little_memory_of_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "last_complete_checkpoint", lambda folder: "checkpoint-7")
    sentence = (
        r"^Memory ran out \(can't allocate memory\): .*; the last complete checkpoint is checkpoint-7, from which"
    )
    with pytest.raises(NoMemoryError, match=sentence), telling_faults(tmp_path, num_workers=0):
        torch.empty(10**15)

"""The method `memory_contrastive` in training: how the batch is cut, resuming, options, encoders; no waiting."""

import pytest
import torch
from run_training import build_trainer, result_of
from test_distributed import differing


METHOD = {"method": "memory_contrastive", "num_unlabeled": 12, "seed": 1, "contrast_start": 1}
SAVING = {**METHOD, "max_steps": 6, "save_strategy": "steps", "save_steps": 4}


def test_resume_is_bit_identical(tmp_path):
    """From a step after the contrast has begun: with teacher, memory, heads, and dropout in both networks."""
    whole = build_trainer({**SAVING, "output_dir": str(tmp_path), "balance_classes": True})
    whole.train()
    memory = whole.method.contrast.memory
    print(memory.fill, [entry for entry in whole.state.log_history][:6])
    resumed = build_trainer({**SAVING, "output_dir": str(tmp_path), "balance_classes": True, "switches": {"seed": 9}})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert result_of(resumed)["losses"] == result_of(whole)["losses"]
    for one, other in ((resumed.model, whole.model), (resumed.method, whole.method)):
        assert differing(one.state_dict(), other.state_dict()) == []

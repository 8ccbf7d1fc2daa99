"""An interrupted and resumed run ends with the same bits as an uninterrupted one."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from run_training import make_trainer, result_of, run


SCRIPT = Path(__file__).with_name("run_training.py")
# 10 unlabeled images in batches of 2: 5 steps an epoch. The checkpoint of step 7 lies in the middle of the second.
SETTINGS = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 7, "seed": 3}


def assert_same(resumed: dict, whole: dict, first_step: int):
    assert resumed["losses"][-len(whole["losses"]) + first_step :] == whole["losses"][first_step:]
    assert len(whole["health"]) == 3 and resumed["health"] == whole["health"]
    assert resumed["state"].keys() == whole["state"].keys()
    assert "bottleneck.memory.channels" in whole["state"]
    for name, value in whole["state"].items():
        assert torch.equal(resumed["state"][name], value), name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    trainer = make_trainer(tiny_model(), output_dir=str(tmp_path_factory.mktemp("whole")), **SETTINGS)
    trainer.train()
    return result_of(trainer)


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_after_a_stop(tmp_path, uninterrupted, workers):
    settings = {**SETTINGS, "output_dir": str(tmp_path), "dataloader_num_workers": workers}
    make_trainer(tiny_model(), **settings).train()
    torch.manual_seed(99)  # the resumed process has drawn other numbers before
    resumed = make_trainer(tiny_model(seed=5), **settings)  # and other weights, all of which must be replaced
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    assert resumed.state.global_step == 15
    assert_same(result_of(resumed), uninterrupted, first_step=7)


def test_resume_after_sigkill(tmp_path, uninterrupted):
    settings = {**SETTINGS, "output_dir": str(tmp_path / "run"), "result": str(tmp_path / "result")}
    command = [sys.executable, SCRIPT]
    killed = subprocess.run([*command, json.dumps({**settings, "kill_at": 12})], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert not list(tmp_path.glob("result*"))
    (tmp_path / "run" / "checkpoint-14").mkdir()  # a save that the kill cut short
    run({**settings, "resume": True})
    assert_same(torch.load(tmp_path / "result.0"), uninterrupted, first_step=7)


def test_other_seed_gives_another_run(tmp_path, uninterrupted):
    """So that the comparisons above can fail."""
    trainer = make_trainer(tiny_model(), output_dir=str(tmp_path), **{**SETTINGS, "seed": 4})
    trainer.train()
    assert result_of(trainer)["losses"] != uninterrupted["losses"]


def test_same_seed_gives_the_same_run(tmp_path, uninterrupted):
    trainer = make_trainer(tiny_model(), output_dir=str(tmp_path), **SETTINGS)
    trainer.train()
    assert_same(result_of(trainer), uninterrupted, first_step=0)


def test_a_finished_run_is_not_trained_further(tmp_path):
    """transformers looks at max_steps only after a step; 7 steps end in the middle of an epoch."""
    settings = {"max_steps": 7, "save_strategy": "steps", "save_steps": 7, "seed": 3, "output_dir": str(tmp_path)}
    first = make_trainer(tiny_model(), **settings)
    first.train()
    again = make_trainer(tiny_model(seed=5), **settings)
    output = again.train(resume_from_checkpoint=True)
    assert output.global_step == again.state.global_step == 7
    assert again.state.log_history == first.state.log_history[: len(again.state.log_history)]
    for name, value in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
    longer = make_trainer(tiny_model(seed=5), **{**settings, "max_steps": 8})
    longer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    assert longer.state.global_step == 8

"""An interrupted and resumed run ends with the same bits as an uninterrupted one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import small_model
from run_training import make_trainer, result_of
from transformers import TrainerCallback


# 6 unlabeled images in batches of 2: 3 steps an epoch. The checkpoint of step 4 lies in the middle of the second.
SETTINGS = {"num_unlabeled": 6, "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 4, "seed": 3}
SETTINGS |= {"unlabeled_warmup_epochs": 0.6}  # until the sixth update


class _End(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 7:
            raise KeyboardInterrupt


def assert_same(resumed: dict, whole: dict, first_step: int):
    assert resumed["losses"][-len(whole["losses"]) + first_step :] == whole["losses"][first_step:]
    assert len(whole["health"]) == 3 and resumed["health"] == whole["health"]
    assert resumed["state"].keys() == whole["state"].keys()
    assert "bottleneck.memory.channels" in whole["state"]
    for name, value in whole["state"].items():
        assert torch.equal(resumed["state"][name], value), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def uninterrupted(folder):
    trainer = make_trainer(small_model(), output_dir=str(folder), **SETTINGS)
    trainer.train()
    return result_of(trainer)


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_after_a_stop(tmp_path, folder, uninterrupted, workers):
    """And the same seed gives the same run, whatever the workers."""
    settings = {**SETTINGS, "output_dir": str(tmp_path), "dataloader_num_workers": workers}
    settings["dataloader_persistent_workers"] = workers > 0  # which start once, in another epoch after a resume
    if workers:
        whole = make_trainer(small_model(), **settings)
        whole.train()
        assert_same(result_of(whole), uninterrupted, first_step=0)
    else:
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    torch.manual_seed(99)  # the resumed process has drawn other numbers before
    resumed = make_trainer(small_model(seed=5), **settings)  # and other weights, all of which must be replaced
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.state.global_step == 9
    assert_same(result_of(resumed), uninterrupted, first_step=4)


def test_resume_after_an_end_between_two_saves(tmp_path, uninterrupted):
    """tests/test_kill_and_resume.py does it with SIGKILL."""
    settings = {**SETTINGS, "output_dir": str(tmp_path / "run")}
    ended = make_trainer(small_model(), **settings)
    ended.add_callback(_End())
    with pytest.raises(KeyboardInterrupt):
        ended.train()
    (tmp_path / "run" / "checkpoint-8").mkdir()  # a save that was cut short
    resumed = make_trainer(small_model(seed=5), **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same(result_of(resumed), uninterrupted, first_step=4)


def test_other_seed_gives_another_run(tmp_path, uninterrupted):
    """So that the comparisons above can fail."""
    trainer = make_trainer(small_model(), output_dir=str(tmp_path), **{**SETTINGS, "seed": 4}, max_steps=1)
    trainer.train()
    assert result_of(trainer)["losses"][0] != uninterrupted["losses"][0]


def test_a_finished_run_is_not_trained_further(tmp_path):
    """transformers looks at max_steps only after a step; 7 steps end in the middle of an epoch."""
    settings = {"max_steps": 7, "save_strategy": "steps", "save_steps": 7, "seed": 3, "output_dir": str(tmp_path)}
    settings["method"] = "unimatch_v2"  # its decay depends on the number of updates
    first = make_trainer(small_model(), **settings)
    first.train()
    again = make_trainer(small_model(seed=5), **settings)
    output = again.train(resume_from_checkpoint=True)
    assert output.global_step == again.state.global_step == 7
    assert again.state.log_history == first.state.log_history[: len(again.state.log_history)]
    for name, value in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
    again.save_model()  # which the first process had no time for
    settings_of_record = json.loads((tmp_path / "run_record.json").read_text())["settings"]
    assert settings_of_record["ema_decay"] == pytest.approx(1 - 6 / 7)
    longer = make_trainer(small_model(seed=5), **{**settings, "max_steps": 8})
    longer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    assert longer.state.global_step == 8


def test_the_last_checkpoint_stays_at_the_end(tmp_path):
    """Although transformers keeps the best one, which was not asked for."""
    settings = {"max_steps": 4, "eval_steps": 2, "save_steps": 2, "eval_strategy": "steps", "save_strategy": "steps"}
    settings |= {"metric_for_best_model": "loss", "greater_is_better": True, "save_total_limit": 1}
    trainer = make_trainer(small_model(), **settings, output_dir=str(tmp_path))
    trainer.train()
    assert trainer.state.best_global_step == 2
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]

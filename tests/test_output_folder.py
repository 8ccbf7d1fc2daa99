"""The folder of a run: one training at a time, room to save, what a resume says, what is refused at the start."""

import logging
import subprocess
import sys

import pytest
from conftest import small_model
from run_training import make_trainer

from allspark_hf import AllSparkConfig, AllSparkTrainingArguments
from allspark_hf.cli.arguments import parse_arguments
from allspark_hf.training.faults import LOCK_FILE, FolderInUseError, sole_training


SAVING = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "seed": 3}
HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


def test_one_training_at_a_time(tmp_path):
    """The lock goes with the process that holds it, also if that is killed."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / LOCK_FILE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"locked\n"
    trainer = make_trainer(small_model(), **SAVING, output_dir=str(tmp_path))
    with pytest.raises(FolderInUseError, match=f"Another process is training in {tmp_path}: choose"):
        trainer.train()
    assert trainer.state.global_step == 0
    holder.kill()
    holder.communicate()
    with sole_training(tmp_path):
        assert (tmp_path / LOCK_FILE).is_file()
    assert not (tmp_path / LOCK_FILE).exists()


def test_no_room_for_one_checkpoint_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("allspark_hf.training.checks.free_bytes", lambda folder: 100_000)
    with pytest.raises(ValueError, match=r"There are 0.1 MB free .* not enough to save once: a checkpoint takes 0\."):
        make_trainer(small_model(), **SAVING, output_dir=str(tmp_path))


@pytest.mark.parametrize("method", ["supervised", "unimatch_v2", "memory_contrastive"])
def test_the_room_for_a_checkpoint_is_what_it_takes(tmp_path, monkeypatch, method):
    """A fifth less is refused, and a tenth is for names and sizes of the weights, which are tiny."""
    settings = {**SAVING, "method": method, "max_steps": 2, "optim": "adamw_torch", "output_dir": str(tmp_path)}
    switches = AllSparkConfig.plain_segformer_switches()
    make_trainer(small_model(**switches), **settings).train()
    files = [path for kind in ("*.pt", "*.safetensors") for path in (tmp_path / "checkpoint-2").glob(kind)]
    taken = sum(path.stat().st_size for path in files)
    monkeypatch.setattr("allspark_hf.training.checks.free_bytes", lambda folder: taken)
    make_trainer(small_model(**switches), **settings)
    monkeypatch.setattr("allspark_hf.training.checks.free_bytes", lambda folder: 0.8 * taken)
    with pytest.raises(ValueError, match="not enough to save once"):
        make_trainer(small_model(**switches), **settings)


def test_a_resume_says_where_it_goes_on_and_what_it_passes_over(tmp_path, caplog):
    make_trainer(small_model(), **SAVING, output_dir=str(tmp_path)).train()
    weights = tmp_path / "checkpoint-6" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with caplog.at_level(logging.INFO, logger="allspark_hf"):
        make_trainer(small_model(), **SAVING, output_dir=str(tmp_path)).train(resume_from_checkpoint=True)
    told = [record.getMessage() for record in caplog.records if "checkpoint-" in record.getMessage()]
    assert f"Going on from {tmp_path}/checkpoint-4." in told
    assert [text.split(" is passed over")[0] for text in told if "passed over" in text] == [str(weights.parent)]


def test_a_crop_too_small_for_the_encoder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="crop_size=7 is too small for the encoder, which needs"):
        make_trainer(small_model(crop_size=7), output_dir=str(tmp_path))


@pytest.mark.parametrize("rate", ["nan", "inf", "-1"])
def test_a_learning_rate_that_is_none_is_refused(tmp_path, rate):
    with pytest.raises(ValueError, match=rf"learning_rate={rate}.* set a finite number"):
        AllSparkTrainingArguments(output_dir=str(tmp_path), use_cpu=True, learning_rate=float(rate))


def test_arguments_are_not_guessed_from_their_beginning(tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text("learning_rat: 0.1\n")
    for argv in (["--learning_rat", "0.1"], [str(tmp_path / "recipe.yaml")]):
        monkeypatch.setattr("sys.argv", ["train.py", *argv, "--output_dir", str(tmp_path), "--use_cpu"])
        with pytest.raises((ValueError, SystemExit), match="learning_rat"):
            parse_arguments((AllSparkTrainingArguments,))

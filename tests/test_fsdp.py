"""FSDP2 as scripts/accelerate/fsdp.yaml has it, on two processes on CPU (gloo): see accelerators_on_cpu.py."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from run_training import build_trainer, result_of
from test_distributed import CONFIG, CPU_RESUME_IS_BROKEN, EQUAL, EVALUATION, LAUNCH, differing

from allspark_hf import SegformerForSemiSupervisedSegmentation


SCRIPT = Path(__file__).with_name("run_fsdp.py")
BOTTLENECK = {"use_cross_attention": True, "use_memory": True, "use_grouping": True}
# 5 images to evaluate, 3 in one process and 2 in the other.
ALLSPARK = {**EQUAL["allspark"], "save_strategy": "steps", "save_steps": 1, "eval_strategy": "epoch"}
JOBS = {
    "pseudo_label": EQUAL["pseudo_label"],
    "supervised": {**EQUAL["supervised"], "switches": BOTTLENECK},  # of which some weights get no gradient
    "allspark": ALLSPARK,
    "checkpointing": {**EQUAL["allspark"], "gradient_checkpointing": True},
    "adamw": {**EQUAL["allspark"], "optim": "adamw_torch", "max_grad_norm": 1.0, "eval_on_start": True},
    "sample": EQUAL["sample"],
    "evaluation": {**EVALUATION, "eval_mode": "whole"},
}
if not CPU_RESUME_IS_BROKEN:
    JOBS["resumed"] = {**ALLSPARK, "own_weights": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fsdp")


@pytest.fixture(scope="module")
def saved(folder) -> dict[str, dict]:
    """What the first process saved of every job; the others have no weights to save."""
    jobs = []
    for name, job in JOBS.items():
        job = {**job, "output_dir": str(folder / name), "result": str(folder / f"{name}.result")}
        if name == "resumed":
            job["resume"] = str(folder / "allspark" / "checkpoint-3")
        jobs.append({"per_device_train_batch_size": 2, **job})
    command = [*LAUNCH, CONFIG.with_name("fsdp.yaml"), "--num_processes", "2", SCRIPT, json.dumps(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-9000:-2500]
    return {name: torch.load(folder / f"{name}.result.0") for name in JOBS}


@pytest.mark.parametrize("name", ["pseudo_label", "supervised", "allspark", "checkpointing", "adamw", "sample"])
def test_shards_train_as_one_process_with_the_doubled_batch(folder, saved, name):
    trainer = build_trainer({**JOBS[name], "output_dir": str(folder / "one"), "per_device_train_batch_size": 4})
    trainer.train()
    one = result_of(trainer)
    assert saved[name]["wrapper"]["class"] == "FSDPSegformerForSemiSupervisedSegmentation"
    for step, (losses, expected) in enumerate(zip(saved[name]["losses"], one["losses"], strict=True)):
        assert losses == pytest.approx(expected, rel=1e-5), step
    assert len(one["evaluations"]) == {"allspark": 2, "adamw": 1}.get(name, 0)
    for entry, expected in zip(saved[name]["evaluations"], one["evaluations"], strict=True):
        for metric in ("eval_loss", "eval_mean_iou"):
            assert entry[metric] == pytest.approx(expected[metric], rel=1e-5), metric
    for part in ("state", "method"):
        for weights, value in one[part].items():
            assert torch.allclose(saved[name][part][weights], value, rtol=0, atol=1e-6), weights


def test_a_checkpoint_loads_as_a_model_without_fsdp(folder, saved):
    checkpoint = folder / "allspark" / "checkpoint-4"
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["architectures"] == ["SegformerForSemiSupervisedSegmentation"]
    assert config["auto_map"]["AutoModel"] == "modeling_allspark.SegformerForSemiSupervisedSegmentation"
    assert sorted(path.name for path in checkpoint.glob("*.py")) == [
        "bottleneck_allspark.py",
        "configuration_allspark.py",
        "modeling_allspark.py",
    ]
    loaded = SegformerForSemiSupervisedSegmentation.from_pretrained(checkpoint).state_dict()
    for name, value in saved["allspark"]["state"].items():
        assert torch.equal(loaded[name], value), name


@pytest.mark.skipif(CPU_RESUME_IS_BROKEN, reason="this transformers cannot resume several CPU processes")
def test_resumed_shards_end_with_the_same_bits(saved):
    assert saved["resumed"]["losses"] == saved["allspark"]["losses"]
    assert saved["resumed"]["evaluations"][0] == saved["allspark"]["evaluations"][0]
    assert differing(saved["resumed"]["state"], saved["allspark"]["state"]) == []


def test_evaluation_without_training(folder, saved):
    settings = {name: value for name, value in JOBS["evaluation"].items() if name != "evaluate"}
    trainer = build_trainer({**settings, "output_dir": str(folder / "one")})
    assert saved["evaluation"]["metrics"]["eval_loss"] == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-6)
    assert torch.equal(saved["evaluation"]["confusion"], trainer.evaluation.confusion.counts)

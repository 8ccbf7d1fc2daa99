"""Two processes under `accelerate launch` on CPU (gloo). One launch does everything, since starting takes longest.

FSDP2, as scripts/accelerate/fsdp.yaml has it, comes last: see accelerators_on_cpu.py.
"""

import inspect
import json
import os
import shutil
import subprocess
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from conftest import ONE_STAGE, TWO_STAGES, small_model
from forking import python
from run_training import build_trainer, make_trainer, result_of
from safetensors.torch import load_file
from transformers import Trainer

from allspark_hf import SegformerForSemiSupervisedSegmentation


SCRIPT = Path(__file__).with_name("run_training.py")
LAUNCH = ["-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"]
CONFIG = Path(__file__).resolve().parents[1] / "scripts" / "accelerate" / "ddp_cpu.yaml"
MEMORY = ["bottleneck.memory.channels", "bottleneck.memory.num_enqueued"]

# transformers 5.17 maps the optimizer's state to "cpu:0", which torch cannot restore; 5.23 does not.
CPU_RESUME_IS_BROKEN = "map_location = self.args.device if" in inspect.getsource(Trainer._load_optimizer_and_scheduler)

# Where batch statistics and dropout are out of the way, two processes equal one with twice the batch.
EQUAL = {
    "supervised": {"method": "supervised", "num_unlabeled": 8, "max_steps": 2},
    "pseudo_label": {"method": "pseudo_label", "num_unlabeled": 8, "max_steps": 2},
    # Two steps before the memory is read and two that read it.
    "allspark": {"method": "allspark", "num_unlabeled": 8, "num_train_epochs": 2, "memory_warmup_epochs": 1},
}
EQUAL["sample"] = {"method": "sample", "num_unlabeled": 8, "max_steps": 2, "max_grad_norm": 0.01}
EQUAL["unimatch_v2"] = {**EQUAL["sample"], "method": "unimatch_v2", "confidence_threshold": 0.4, "ema_decay": 0.5}
EQUAL["allspark_unimatch"] = {**EQUAL["unimatch_v2"], "method": "allspark_unimatch", "memory_warmup_epochs": 0}
EQUAL["unimatch_v2"] |= {"keep_quantile": 0.5, "holdout_fraction": 0.4}
# Its heads have batch statistics, those of all processes. The second step fills the memory and has the contrast.
EQUAL["memory_contrastive"] = {"method": "memory_contrastive", "num_unlabeled": 8, "max_steps": 2}
EQUAL["memory_contrastive"] |= {"contrast_start": 0, "memory_confidence": 0.3, "memory_inflow": 0.2}
EQUAL["sync_batchnorm"] = {**EQUAL["pseudo_label"], "switches": {"batch_norm": True}, "sync_batchnorm": True}
EQUAL = {name: {**job, "exact": True, "seed": 1} for name, job in EQUAL.items()}
# With all that training has: dropout, batch statistics, a memory that is read. 2 steps an epoch.
PLAIN = {"method": "allspark", "num_unlabeled": 8, "num_train_epochs": 2, "seed": 2}
STEPWISE = {**PLAIN, "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 3}
UNWEIGHTED = {**PLAIN, "max_steps": 2, "unlabeled_warmup_epochs": 9}
UNWEIGHTED["switches"] = {"use_memory": False, "use_grouping": False}
EVALUATED_TEACHER = {**PLAIN, "method": "memory_contrastive", "max_steps": 1, "evaluate_teacher": True}
EVALUATION = {"method": "allspark", "evaluate": True, "eval_boundary_iou": True}
JOBS = {
    **EQUAL,
    "plain": PLAIN,
    "checkpointing": {**PLAIN, "gradient_checkpointing": True},
    "reentrant": {
        **PLAIN,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
    "own_weights": {**PLAIN, "max_steps": 1, "own_weights": True},
    "own_memory": {**PLAIN, "max_steps": 1, "own_weights": True, "local_memory": True},
    # Every method with a bottleneck in the model; an unused parameter ends a run in its second step.
    "bottleneck_supervised": {**PLAIN, "method": "supervised", "max_steps": 2},
    "bottleneck_pseudo_label": {**UNWEIGHTED, "method": "pseudo_label"},
    "bottleneck_unimatch_v2": {**PLAIN, "method": "unimatch_v2", "max_steps": 2},
    "bottleneck_no_memory": UNWEIGHTED,
    # A teacher in train mode has statistics of its own process, until it is evaluated.
    "evaluated_teacher": {**EVALUATED_TEACHER, "eval_strategy": "steps", "eval_steps": 1},
    "find_unused": {**PLAIN, "max_steps": 1, "ddp_find_unused_parameters": True},
    "whole": {**EVALUATION, "eval_mode": "whole"},
    "sliding_window": {**EVALUATION, "eval_mode": "sliding_window", "eval_crop_size": [48, 60], "eval_flip": True},
}
if not CPU_RESUME_IS_BROKEN:
    for name, local in (("shared", False), ("local", True)):
        JOBS[f"{name}_uninterrupted"] = {**STEPWISE, "local_memory": local}
        # Other weights in each process, all of which must be replaced.
        JOBS[f"{name}_resumed"] = {**STEPWISE, "local_memory": local, "own_weights": True}

TEACHERS = ("allspark_unimatch", "memory_contrastive")
BOTTLENECK = {"use_cross_attention": True, "use_memory": True, "use_grouping": True}
# 5 images to evaluate, 3 in one process and 2 in the other. Checkpoints of the third and the last step.
SHARDED = {**EQUAL["allspark"], "save_strategy": "steps", "save_steps": 3, "eval_strategy": "epoch"}
SHARDED |= {"optim": "adamw_torch", "max_grad_norm": 1.0}
BEST = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
BEST |= {"metric_for_best_model": "loss", "greater_is_better": True}
FSDP_JOBS = {
    "supervised": {**EQUAL["supervised"], "switches": BOTTLENECK},  # of which some weights get no gradient
    "allspark": SHARDED,
    "checkpointing": {**EQUAL["allspark"], "gradient_checkpointing": True},
    # A teacher that is published and fills a memory; a teacher, heads and a memory beside the published model.
    # Gathering takes its time for every weight, and several stages are sharded above.
    **{name: {**EQUAL[name], "save_strategy": "steps", "save_steps": 1, "switches": ONE_STAGE} for name in TEACHERS},
    # Of two evaluated teachers the first one is the best, and is loaded at the end.
    "best": {**EQUAL["allspark_unimatch"], "save_strategy": "steps", "save_steps": 1, "switches": ONE_STAGE, **BEST},
    "evaluation": {**EVALUATION, "eval_mode": "whole"},
}
if not CPU_RESUME_IS_BROKEN:
    FSDP_JOBS["resumed"] = {**SHARDED, "own_weights": True}
    FSDP_JOBS |= {f"{name}_resumed": {**FSDP_JOBS[name], "own_weights": True} for name in TEACHERS}
JOBS, FSDP_JOBS = (
    {name: {**job, "switches": TWO_STAGES | job.get("switches", {})} for name, job in jobs.items()}
    for jobs in (JOBS, FSDP_JOBS)
)


def read_as_launch(name: str, *options: str) -> Namespace:
    """What `accelerate launch --config_file` makes of a file."""
    argv = ["--config_file", str(CONFIG.with_name(f"{name}.yaml")), *options, "scripts/train.py"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(argv))
    return arguments


def environment_of(launched: dict[str, str]) -> dict[str, str]:
    """Those variables of a launcher that say how to train."""
    return {name: value for name, value in launched.items() if name.startswith(("ACCELERATE_", "FSDP_"))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def launched(folder) -> dict[str, list[dict]]:
    """What each of the two processes saved of every job, those of FSDP as `fsdp_...`."""
    everything = JOBS | {f"fsdp_{name}": job for name, job in FSDP_JOBS.items()}
    resumed = {f"{memory}_resumed": f"{memory}_uninterrupted" for memory in ("shared", "local")}
    resumed = {name: f"{whole}/checkpoint-3" for name, whole in resumed.items()}
    resumed |= {"fsdp_resumed": "fsdp_allspark/checkpoint-3"}
    resumed |= {f"fsdp_{name}_resumed": f"fsdp_{name}/checkpoint-1" for name in TEACHERS}
    jobs = []
    for name, job in everything.items():
        job = {**job, "output_dir": str(folder / name), "result": str(folder / f"{name}.result")}
        if name in resumed:
            job["resume"] = str(folder / resumed[name])
        jobs.append({"per_device_train_batch_size": 2, **job})
    # accelerate launch is told this with --config_file fsdp.yaml.
    sharded = read_as_launch("fsdp", "--num_processes", "2")
    jobs[len(JOBS)]["fsdp"] = environment_of(prepare_multi_gpu_env(sharded))
    command = [python(), *LAUNCH, CONFIG, SCRIPT, json.dumps(jobs)]
    environment = os.environ | {"PYTHON_EXEC": python()}  # which torchrun then starts
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr[-9000:-2500]
    return {name: [torch.load(folder / f"{name}.result.{rank}") for rank in range(2)] for name in everything}


@pytest.fixture(scope="module")
def ranks(launched) -> dict[str, list[dict]]:
    return {name: launched[name] for name in JOBS}


@pytest.fixture(scope="module")
def sharded(launched) -> dict[str, dict]:
    """What the first process saved of every job of FSDP; the others have no weights to save."""
    return {name: launched[f"fsdp_{name}"][0] for name in FSDP_JOBS}


def one_process(folder, job: dict) -> dict:
    """The job in this process, with twice the batch."""
    job = {setting: value for setting, value in job.items() if setting != "sync_batchnorm"}
    trainer = build_trainer({**job, "output_dir": str(folder / "one"), "per_device_train_batch_size": 4})
    trainer.train()
    return result_of(trainer)


def differing(first: dict, second: dict) -> list[str]:
    """Names of weights and buffers that are not the same bits."""
    assert first.keys() == second.keys()
    return [name for name, value in first.items() if not torch.equal(value, second[name])]


@pytest.mark.parametrize("method", EQUAL)
def test_two_processes_equal_one_with_the_doubled_batch(folder, ranks, method):
    one = one_process(folder, JOBS[method])
    for step, (losses, expected) in enumerate(zip(ranks[method][0]["losses"], one["losses"], strict=True)):
        assert losses == pytest.approx(expected, rel=1e-5), step
    assert len(one["health"]) == {"supervised": 0, "allspark": 2, "unimatch_v2": 2}.get(method, 1)
    for entry, expected in zip(ranks[method][0]["health"], one["health"], strict=True):
        assert entry == pytest.approx(expected, rel=1e-6)
    for part in ("state", "method"):  # the second one is a teacher, a memory, a buffer
        for name, value in one[part].items():
            for rank in ranks[method]:
                assert torch.allclose(rank[part][name], value, rtol=0, atol=1e-7), name


def test_allspark_stays_in_step_with_one_memory(ranks):
    first, second = ranks["plain"]
    assert len(first["losses"]) == 4
    assert not [name for name in differing(first["state"], second["state"]) if "running" not in name]


@pytest.mark.parametrize("variant", ["checkpointing", "reentrant"])
def test_gradient_checkpointing_changes_nothing(ranks, variant):
    """The memory of 4 steps of 2 images with 16 channels, in one process or all, is written once."""
    for rank, plain in zip(ranks[variant], ranks["plain"], strict=True):
        assert rank["losses"] == plain["losses"]
        assert differing(rank["state"], plain["state"]) == []
        assert rank["state"]["bottleneck.memory.num_enqueued"].sum() in (4 * 2 * 16, 2 * 4 * 2 * 16)


def test_gradient_checkpointing_in_one_process(tmp_path):
    results = []
    for reentrant in (None, False, True):
        settings = {**PLAIN, "output_dir": str(tmp_path), "gradient_checkpointing": reentrant is not None}
        kwargs = None if reentrant is None else {"use_reentrant": reentrant}
        trainer = make_trainer(small_model(), **settings, gradient_checkpointing_kwargs=kwargs)
        trainer.train()
        assert trainer.model.is_gradient_checkpointing == (reentrant is not None)
        results.append(result_of(trainer))
    for result in results[1:]:
        assert result["losses"] == results[0]["losses"]
        assert differing(result["state"], results[0]["state"]) == []


@pytest.mark.parametrize("name", ["supervised", "pseudo_label", "unimatch_v2", "no_memory"])
def test_no_parameter_is_waited_for_in_vain(ranks, name):
    first, second = ranks[f"bottleneck_{name}"]
    assert first["wrapper"]["class"] == "DistributedDataParallel"
    assert first["wrapper"]["find_unused_parameters"] is False and len(first["losses"]) == 2
    for name, value in first["state"].items():
        if "running" not in name and name not in MEMORY:
            assert torch.equal(value, second["state"][name]), name


def test_a_teacher_is_evaluated_with_the_first_ones_statistics(ranks):
    """Which are saved: else a resumed training would have other metrics."""
    first, second = ranks["evaluated_teacher"]
    assert first["method"]["teacher.model.decode_head.batch_norm.num_batches_tracked"] == 1
    assert differing(first["method"], second["method"]) == []


def test_what_the_user_says_of_unused_parameters_holds(ranks):
    assert ranks["plain"][0]["wrapper"]["find_unused_parameters"] is False
    assert ranks["find_unused"][0]["wrapper"]["find_unused_parameters"] is True


def test_processes_start_with_the_first_ones_weights_and_memory(ranks):
    first, second = (rank["start"] for rank in ranks["own_weights"])
    assert differing(first, second) == []
    assert set(MEMORY) < set(ranks["own_weights"][0]["wrapper"]["ignored"])  # which DDP would send at every step
    assert differing(first, ranks["plain"][0]["start"])  # so that the comparison can fail


def test_local_memories_stay_apart(ranks):
    first, second = (rank["start"] for rank in ranks["own_memory"])
    assert differing(first, second) == [MEMORY[0]]
    first, second = (rank["state"] for rank in ranks["own_memory"])
    assert [name for name in differing(first, second) if "running" not in name] == MEMORY


@pytest.mark.skipif(CPU_RESUME_IS_BROKEN, reason="this transformers cannot resume several CPU processes")
@pytest.mark.parametrize("memory", ["shared", "local"])
def test_resumed_processes_end_with_the_same_bits(folder, ranks, memory):
    """In the middle of the second epoch; accelerate does not tell a resumed batch sampler its epoch, ours does."""
    checkpoint = folder / f"{memory}_uninterrupted" / "checkpoint-3"
    assert len(list(checkpoint.glob("memory_*.pt"))) == (2 if memory == "local" else 0)
    for whole, resumed in zip(ranks[f"{memory}_uninterrupted"], ranks[f"{memory}_resumed"], strict=True):
        assert resumed["losses"] == whole["losses"] and len(whole["losses"]) == 6
        assert not whole["health"] or resumed["health"] == whole["health"]  # the first process keeps it
        assert differing(whole["state"], resumed["state"]) == []


def test_a_checkpoint_with_other_memories_is_refused(tmp_path):
    """Local memories of one process; those of two, by the checkpoint's word."""

    def trainer(max_steps=2, **kwargs):
        settings = {"output_dir": str(tmp_path), "save_strategy": "steps", "save_steps": 1}
        return make_trainer(small_model(), max_steps=max_steps, **settings, **kwargs)

    trainer(max_steps=1).train()
    checkpoint = tmp_path / "checkpoint-1"
    with pytest.raises(ValueError, match="one memory for all, but this run has a memory for each of 1 proc"):
        trainer(local_memory=True).train(resume_from_checkpoint=str(checkpoint))
    local = trainer(max_steps=1, local_memory=True)
    local.train()
    kept = torch.load(checkpoint / "memory_0.pt", weights_only=True)
    assert torch.equal(kept["channels"], local.model.bottleneck.memory.channels)
    with pytest.raises(ValueError, match="a memory for each of 1 processes, but this run has one memory for al"):
        trainer().train(resume_from_checkpoint=str(checkpoint))
    run = json.loads((checkpoint / "allspark_run.json").read_text())
    (checkpoint / "allspark_run.json").write_text(json.dumps({**run, "processes": 2}))
    with pytest.raises(
        ValueError, match=r"for each of 2 processes, but this run has a memory for each of 1 proc.*start 2"
    ):
        trainer(local_memory=True).train(resume_from_checkpoint=str(checkpoint))


def test_a_memory_comes_from_the_checkpoint_that_the_rest_comes_from(tmp_path):
    """Killed between writing a checkpoint's last byte and giving it its name, which the resume then does."""

    def trainer():
        settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 9, "local_memory": True}
        return make_trainer(small_model(), output_dir=str(tmp_path), max_steps=3, **settings)

    whole = trainer()
    whole.train()
    (tmp_path / "checkpoint-2").rename(tmp_path / "unfinished-checkpoint-2")
    shutil.rmtree(tmp_path / "checkpoint-3")
    resumed = trainer()
    resumed.train(resume_from_checkpoint=True)
    assert differing(resumed.model.state_dict(), whole.model.state_dict()) == []


@pytest.mark.parametrize("mode", ["whole", "sliding_window"])
def test_evaluation_counts_every_image_once(folder, ranks, mode):
    """Five images in two processes."""
    settings = {name: value for name, value in JOBS[mode].items() if name != "evaluate"}
    trainer = build_trainer({**settings, "output_dir": str(folder / "one")})
    one = trainer.evaluate()
    by_image = torch.from_numpy(np.stack(trainer.evaluation.by_image))
    assert torch.equal(by_image.sum(dim=0)[1], trainer.evaluation.confusion.counts.sum(dim=1))
    assert len(by_image.unique(dim=0)) == 5
    for rank in ranks[mode]:
        assert torch.equal(rank["by_image"], by_image)
        assert torch.equal(rank["confusion"], trainer.evaluation.confusion.counts)
        assert torch.equal(rank["boundary"], trainer.evaluation.boundary.counts)
        assert rank["num_images"] == 5
        for name in ("eval_mean_iou", "eval_mean_boundary_iou", "eval_overall_accuracy", "eval_loss"):
            assert rank["metrics"][name] == pytest.approx(one[name], rel=1e-6), name


# ---- FSDP ----


@pytest.mark.parametrize("name", ["supervised", "allspark", "checkpointing", *TEACHERS])
def test_shards_train_as_one_process_with_the_doubled_batch(folder, sharded, name):
    one, shards = one_process(folder, FSDP_JOBS[name]), sharded[name]
    assert shards["wrapper"]["class"] == "FSDPSegformerForSemiSupervisedSegmentation"
    for step, (losses, expected) in enumerate(zip(shards["losses"], one["losses"], strict=True)):
        assert losses == pytest.approx(expected, rel=1e-5), step
    assert len(one["evaluations"]) == (2 if name == "allspark" else 0)
    for entry, expected in zip(shards["evaluations"], one["evaluations"], strict=True):
        for metric in ("eval_loss", "eval_mean_iou"):
            assert entry[metric] == pytest.approx(expected[metric], rel=1e-5), metric
    for part in ("state", "method"):
        for weights, value in one[part].items():
            assert torch.allclose(shards[part][weights], value, rtol=0, atol=1e-6), weights


def test_a_checkpoint_of_shards_loads_as_a_model_without_fsdp(folder, sharded):
    checkpoint = folder / "fsdp_allspark" / "checkpoint-4"
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["architectures"] == ["SegformerForSemiSupervisedSegmentation"]
    assert config["auto_map"]["AutoModel"] == "modeling_allspark.SegformerForSemiSupervisedSegmentation"
    assert sorted(path.name for path in checkpoint.glob("*.py")) == [
        "bottleneck_allspark.py",
        "configuration_allspark.py",
        "modeling_allspark.py",
    ]
    loaded = SegformerForSemiSupervisedSegmentation.from_pretrained(checkpoint).state_dict()
    for name, value in sharded["allspark"]["state"].items():
        assert torch.equal(loaded[name], value), name


def test_shards_publish_the_whole_teacher(folder, sharded):
    published = load_file(folder / "fsdp_allspark_unimatch" / "checkpoint-2" / "model.safetensors")
    result = sharded["allspark_unimatch"]
    assert result["state"].keys() - published.keys() == set(MEMORY)  # inference reads none
    for name, value in published.items():
        assert torch.equal(value, result["method"][f"teacher.{name}"]), name
    assert differing(published, {name: result["state"][name] for name in published})


def test_shards_load_the_best_teacher(folder, sharded):
    first, last = (load_file(folder / "fsdp_best" / f"checkpoint-{step}" / "model.safetensors") for step in (1, 2))
    teacher = {name: sharded["best"]["method"][f"teacher.{name}"] for name in first}
    losses = [entry["eval_loss"] for entry in sharded["best"]["evaluations"]]
    assert losses[0] > losses[1] and differing(first, last)
    assert differing(teacher, first) == []


@pytest.mark.skipif(CPU_RESUME_IS_BROKEN, reason="this transformers cannot resume several CPU processes")
def test_resumed_shards_end_with_the_same_bits(sharded):
    assert sharded["resumed"]["losses"] == sharded["allspark"]["losses"]
    assert sharded["resumed"]["evaluations"][0] == sharded["allspark"]["evaluations"][0]
    names = {"resumed": "allspark"} | {f"{name}_resumed": name for name in TEACHERS}
    for name, whole in names.items():
        assert sharded[name]["losses"] == sharded[whole]["losses"]
        for part in ("state", "method"):
            assert differing(sharded[name][part], sharded[whole][part]) == [], (name, part)


def test_shards_are_evaluated_without_training(folder, sharded):
    settings = {name: value for name, value in FSDP_JOBS["evaluation"].items() if name != "evaluate"}
    trainer = build_trainer({**settings, "output_dir": str(folder / "one")})
    assert sharded["evaluation"]["metrics"]["eval_loss"] == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-6)
    assert torch.equal(sharded["evaluation"]["confusion"], trainer.evaluation.confusion.counts)

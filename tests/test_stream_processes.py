"""A stream on two processes of two workers each, under `accelerate launch` on CPU (gloo): on one and two machines."""

import io
import json
import os
import socket
import subprocess
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import TWO_STAGES, make_dataset
from forking import python
from test_distributed import CONFIG, CPU_RESUME_IS_BROKEN, SCRIPT, differing


# 24 images in 8 shards, of which each of 2 workers of 2 processes has two in a pass; 3 epochs of 8 are a pass.
STREAM = {"method": "allspark", "unlabeled_images_per_epoch": 7, "num_train_epochs": 3, "seed": 1}
STREAM |= {"shuffle_buffer_size": 4, "dataloader_num_workers": 2, "save_strategy": "steps", "save_steps": 3}
STREAM |= {"per_device_train_batch_size": 2, "switches": TWO_STAGES}


def write_shards(folder: Path) -> str:
    """Tar archives of three images each."""
    for shard in range(8):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for number in range(3 * shard, 3 * shard + 3):
                content = io.BytesIO()
                make_dataset(24, seed=2)[number]["image"].save(content, "PNG")
                entry = tarfile.TarInfo(f"{number:03d}.png")
                entry.size = content.tell()
                content.seek(0)
                archive.addfile(entry, content)
    return str(folder / "*.tar")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stream")


def launch(folder: Path, config: str, jobs: dict[str, dict], *options: str) -> subprocess.Popen:
    """One call of `accelerate launch`, for jobs by name."""
    outputs = [{"output_dir": str(folder / name), "result": str(folder / f"{name}.result")} for name in jobs]
    settings = [{**STREAM, **job, **output} for job, output in zip(jobs.values(), outputs, strict=True)]
    command = [python(), "-m", "accelerate.commands.launch", "--config_file", CONFIG.with_name(config)]
    environment = os.environ | {"PYTHON_EXEC": python(), "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        [*command, *options, SCRIPT, json.dumps(settings)], stderr=subprocess.PIPE, text=True, env=environment
    )


def results(folder: Path, launches: list[subprocess.Popen], names: list[str]) -> dict[str, list[dict]]:
    """What each of two processes saved of every job."""
    for one in launches:
        _, errors = one.communicate(timeout=400)
        assert one.returncode == 0, errors[-9000:-2500]
    return {name: [torch.load(folder / f"{name}.result.{rank}") for rank in range(2)] for name in names}


@pytest.fixture(scope="module")
def ranks(folder) -> dict[str, list[dict]]:
    shards = write_shards(folder)
    jobs = {"stream": {"shards": shards, "log": str(folder / "reads.log")}}
    if not CPU_RESUME_IS_BROKEN:
        jobs["resumed"] = {"shards": shards, "own_weights": True, "resume": str(folder / "stream" / "checkpoint-3")}
    return results(folder, [launch(folder, "ddp_cpu.yaml", jobs, "--main_process_port", "0")], list(jobs))


def test_each_image_is_read_by_one_worker_of_one_process(folder, ranks):
    lines = [line.split() for line in (folder / "reads.log").read_text().splitlines()]
    for what in ("read", "decoded"):
        done = [(name, tuple(reader)) for action, name, *reader in lines if action == what]
        assert Counter(name for name, _ in done) == {f"{number:03d}.png": 1 for number in range(24)}
        assert Counter(reader for _, reader in done) == {(rank, worker): 6 for rank in "01" for worker in "01"}
    assert len(ranks["stream"][0]["losses"]) == 6


@pytest.mark.skipif(CPU_RESUME_IS_BROKEN, reason="transformers cannot resume on CPUs")
def test_a_resumed_stream_ends_with_the_same_bits(ranks):
    """After 3 of 6 updates: one lane has read more than the other, and each batch comes from the other worker."""
    for whole, resumed in zip(ranks["stream"], ranks["resumed"], strict=True):
        assert resumed["losses"] == whole["losses"]
        assert differing(whole["state"], resumed["state"]) == []


def test_two_machines_equal_one(folder, ranks):
    """Two launches that meet at an address, as on two machines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    jobs = {"machines": {"shards": str(folder / "*.tar")}}
    where = ("--main_process_ip", "127.0.0.1", "--main_process_port", port, "--num_processes", "2")
    launches = [launch(folder, "two_machines.yaml", jobs, *where, "--machine_rank", str(rank)) for rank in range(2)]
    for one, two in zip(ranks["stream"], results(folder, launches, ["machines"])["machines"], strict=True):
        assert two["losses"] == one["losses"]
        assert differing(one["state"], two["state"]) == []

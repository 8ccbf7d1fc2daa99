"""Faults in the midst of training: a full disk, a dead worker, NaN, a broken image; each has its answer."""

import contextlib
import json
import logging
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import time
from multiprocessing.connection import Client
from pathlib import Path

import datasets
import pytest
import torch
from conftest import make_dataset, small_model, tiny_model
from faulty_training import kill_workers, poison
from forking import python
from run_training import make_trainer
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset
from transformers import TrainerCallback

from allspark_hf.data.mixed import MixedDataset
from allspark_hf.data.reading import BadImageError
from allspark_hf.training import faults
from allspark_hf.training.faults import (
    NonFiniteError,
    SavingFailedError,
    WorkerDiedError,
    telling_faults,
)
from allspark_hf.training.trainer import AllSparkTrainer


SCRIPT = Path(__file__).with_name("faulty_training.py")
LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
SAVING = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2, "seed": 3}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def losses_of(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss_x" in entry]


# ---- A full disk ----


@contextlib.contextmanager
def files_of_at_most(size: int):
    """The kernel refuses to write further than that into any file, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class _Limit(TrainerCallback):
    def __init__(self, stack, step: int, size: int):
        self.stack, self.step, self.size = stack, step, size

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.stack.enter_context(files_of_at_most(self.size))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> list[float]:
    """Losses of the six steps that a full disk interrupts."""
    whole = make_trainer(tiny_model(), **SAVING, max_steps=6, output_dir=str(tmp_path_factory.mktemp("whole")))
    whole.train()
    return losses_of(whole)


@pytest.mark.parametrize(
    ("size", "part", "cause"),
    [
        (200_000, "the model", "File too large"),
        (308_000, "the state of the optimizer and the sched", "the file could not be written whole"),
    ],
)
def test_full_disk_in_the_midst_of_a_checkpoint(tmp_path, undisturbed, size, part, cause):
    settings = {**SAVING, "output_dir": str(tmp_path), "save_total_limit": 1, "max_steps": 6}
    trainer = make_trainer(tiny_model(), **settings)
    with contextlib.ExitStack() as stack:
        trainer.add_callback(_Limit(stack, 4, size))
        with pytest.raises(SavingFailedError) as error:
            trainer.train()
    sentence = str(error.value)
    assert sentence.startswith(f"{tmp_path}/checkpoint-6 could not be saved: writing {part}")
    assert cause in sentence and f"{tmp_path} has " in sentence and " GB free" in sentence
    assert f"the last complete checkpoint is {tmp_path}/checkpoint-4, from which" in sentence
    assert "\n" not in sentence and sentence.count(". ") == 0
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["checkpoint-4"]
    resumed = make_trainer(tiny_model(seed=5), **settings)
    resumed.train(resume_from_checkpoint=True)
    assert losses_of(resumed) == undisturbed and len(undisturbed) == 6


def test_full_file_system(tmp_path):
    """A file system of 1 MB, where one checkpoint has room and a second one has not."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        trainer = make_trainer(tiny_model(), **SAVING, output_dir=str(tmp_path / "out"))
        with pytest.raises(SavingFailedError, match="No space left on device") as error:
            trainer.train()
        assert f"make room there: the last complete checkpoint is {tmp_path}/out/checkpoint-2" in str(error.value)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["checkpoint-2"]
        torch.load(tmp_path / "out" / "checkpoint-2" / "optimizer.pt", weights_only=True)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_full_disk_leaves_the_model_saved_before(tmp_path):
    trainer = make_trainer(tiny_model(), output_dir=str(tmp_path))
    trainer.save_model()
    before = contents(tmp_path)
    with torch.no_grad():
        trainer.model.decode_head.classifier.bias.add_(1)
    with files_of_at_most(100_000), pytest.raises(SavingFailedError, match=f"The model in {tmp_path} could not be"):
        trainer.save_model()
    assert contents(tmp_path) == before
    trainer.save_model()
    after = contents(tmp_path)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {"model.safetensors"}


def test_output_folder_is_tried_before_training(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"Nothing can be written into output_dir=.*/file/out \(.*choose another one"):
        make_trainer(tiny_model(), output_dir=str(tmp_path / "file" / "out"))
    monkeypatch.setattr("allspark_hf.training.checks.free_bytes", lambda folder: 900_000)
    make_trainer(tiny_model(), output_dir=str(tmp_path), save_strategy="epoch", save_total_limit=2)
    assert "There are 0.9 MB free" in caplog.text and "3 checkpoints of 0.6 MB" in caplog.text
    caplog.clear()
    make_trainer(tiny_model(), output_dir=str(tmp_path), save_strategy="no")
    assert "free" not in caplog.text


# ---- A dead worker ----


def test_a_worker_that_is_killed(tmp_path):
    read = kill_workers(position=8)  # of the fifth step
    try:
        trainer = make_trainer(small_model(), **SAVING, output_dir=str(tmp_path), dataloader_num_workers=1)
        begun = time.perf_counter()
        with pytest.raises(WorkerDiedError) as error:
            trainer.train()
    finally:
        MixedDataset.__getitem__ = read
    assert time.perf_counter() - begun < 60
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL  # or the DataLoader tells it again, at any moment
    sentence = str(error.value)
    assert sentence.startswith("A data loading worker died (")  # then how that was noticed, which is a race
    assert "set fewer --dataloader_num_workers" in sentence and "\n" not in sentence
    assert "there is no complete checkpoint in" in sentence or f"{tmp_path}/checkpoint-" in sentence


def from_a_closed_pipe(folder: Path):
    reader, writer = multiprocessing.Pipe(duplex=False)
    writer.close()
    reader.recv()


def from_a_deaf_socket(folder: Path):
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(folder / "deaf"))
        Client(str(folder / "deaf"))


def from_a_server(folder: Path):
    with socket.socket() as deaf:
        deaf.bind(("localhost", 0))
        socket.create_connection(deaf.getsockname())


def from_a_dataset(folder: Path):
    class Ended(Dataset):
        def __getitem__(self, index):
            raise EOFError

    next(iter(DataLoader(Ended(), sampler=[0], num_workers=1)))


@pytest.mark.parametrize(("fail", "cause"), [(from_a_closed_pipe, "EOFError"), (from_a_deaf_socket, "refused")])
def test_a_worker_that_dies_while_a_tensor_is_taken_over_from_it(tmp_path, fail, cause):
    """The DataLoader has not noticed yet: what comes is the error of a pipe."""
    with pytest.raises(WorkerDiedError, match=rf"worker died \(.*{cause}"), telling_faults(tmp_path, num_workers=1):
        fail(tmp_path)


@pytest.mark.parametrize(
    ("fail", "num_workers", "kind"),
    [
        (from_a_closed_pipe, 0, EOFError),
        (from_a_server, 1, ConnectionRefusedError),
        (from_a_dataset, 1, EOFError),
    ],
)
def test_no_worker_is_blamed_for_what_others_raise(tmp_path, fail, num_workers, kind):
    with pytest.raises(kind), telling_faults(tmp_path, num_workers):
        fail(tmp_path)


def test_the_dead_worker_is_reported_again_in_the_midst_of_the_sentence(tmp_path, monkeypatch):
    """The DataLoader's signal handler raises wherever the process is."""
    report = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    found = iter([report, True])

    def interrupted(error):
        if isinstance(now := next(found), Exception):
            raise now
        return now

    monkeypatch.setattr(faults, "_worker_is_gone", interrupted)
    with pytest.raises(WorkerDiedError, match=r"died \(DataLoader worker \(pid 7\)"), telling_faults(tmp_path, 1):
        raise ConnectionResetError(104, "Connection reset by peer")
    assert next(found, None) is None


def test_a_file_that_is_missing_is_no_dead_worker(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.png"), telling_faults(tmp_path, 1):
        (tmp_path / "nowhere.png").read_bytes()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    """
    One launch of two, and its folder. A checkpoint of one process with two batches an update is taken up by two, with
    NaN in one of them only; then a worker of one of them dies.
    """
    folder = tmp_path_factory.mktemp("two")
    settings = {**SAVING, "num_unlabeled": 16, "output_dir": str(folder / "run")}
    make_trainer(tiny_model(), **settings, gradient_accumulation_steps=2).train()
    resume = str(folder / "run" / "checkpoint-2")
    nan = {**settings, "result": str(folder / "nan"), "resume": resume, "nan": [1, 4]}
    dead = {**settings, "result": str(folder / "dead"), "dataloader_num_workers": 1, "kill_worker": 1}
    command = [python(), *LAUNCH, str(SCRIPT), json.dumps([nan, {**dead, "output_dir": str(folder / "dead")}])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHON_EXEC": python()}
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment), folder


def test_a_worker_of_one_of_two_processes(two_processes):
    """Without a hang: the launcher ends the process that waits for the other one."""
    done, folder = two_processes
    assert done.returncode == 1
    assert sum(line.startswith("WorkerDiedError: A data load") for line in done.stderr.splitlines()) == 1, done.stderr
    assert not list(folder.glob("dead.*"))


# ---- NaN ----


def test_nan_stops_and_is_not_saved(tmp_path):
    trainer = make_trainer(small_model(), **{**SAVING, "logging_steps": 3}, output_dir=str(tmp_path))
    poison(trainer, [5])
    with pytest.raises(NonFiniteError) as error:
        trainer.train()
    assert trainer.state.global_step == 6  # where it was to be saved and logged
    sentence = str(error.value)
    assert "not finite at step 5 (loss_x nan, loss_u " in sentence and "learning rate 0.00" in sentence
    assert f"the last complete checkpoint is {tmp_path}/checkpoint-4" in sentence
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    for tensor in load_file(tmp_path / "checkpoint-4" / "model.safetensors").values():
        assert torch.isfinite(tensor.float()).all()
    assert not torch.isfinite(trainer.model.decode_head.classifier.weight).all()  # it was not prevented, but found


def test_a_gradient_that_is_not_finite_is_found_before_the_next_save(tmp_path):
    trainer = make_trainer(small_model(), **SAVING, output_dir=str(tmp_path), logging_strategy="no")
    bias = trainer.model.decode_head.classifier.bias
    bias.register_hook(lambda gradient: gradient * torch.inf if trainer.state.global_step == 3 else gradient)
    with pytest.raises(NonFiniteError, match=r"not finite after step 4 \("):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_a_training_after_one_that_nan_ended(tmp_path):
    trainer = make_trainer(small_model(), **SAVING, output_dir=str(tmp_path))
    poison(trainer, [5])
    with pytest.raises(NonFiniteError):
        trainer.train()
    assert trainer.train(resume_from_checkpoint=True).global_step == 10


def test_nan_in_the_last_update_is_found(tmp_path):
    trainer = make_trainer(small_model(), output_dir=str(tmp_path), max_steps=3, logging_strategy="no")
    poison(trainer, [3])
    with pytest.raises(NonFiniteError, match=r"at step 3 .*there is no complete checkpoint in"):
        trainer.train()


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    trainer = make_trainer(small_model(), **SAVING, output_dir=str(tmp_path))

    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                trainer.model.decode_head.batch_norm.running_var[1] = torch.inf

    trainer.add_callback(Break())
    with pytest.raises(NonFiniteError, match=r"not finite after step 4 \(decode_head.batch_norm.running_var.*point-2"):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_two_processes_go_on_from_one_and_stop_together(two_processes):
    done, folder = two_processes
    assert sum("processes 1 -> 2" in line for line in done.stderr.splitlines()) == 1, done.stderr
    for rank in range(2):
        assert "not finite at step 4" in (folder / f"nan.{rank}").read_text()


# ---- A broken image ----


def trainer_on_files(tmp_path: Path, **kwargs) -> tuple[AllSparkTrainer, list[str]]:
    """A trainer whose unlabeled images are PNG files, and their paths."""
    folder = tmp_path / "images"
    folder.mkdir(exist_ok=True)
    paths = [str(folder / f"{row}.png") for row in range(6)]
    for row, path in zip(make_dataset(6, seed=2), paths, strict=True):
        row["image"].save(path)
    unlabeled = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
    settings = {"output_dir": str(tmp_path / "out"), "seed": 3, "max_steps": 6, **kwargs}
    return make_trainer(small_model(), unlabeled=unlabeled, **settings), paths


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_image_is_named(tmp_path, workers):
    settings = {"save_strategy": "steps", "save_steps": 1, "dataloader_num_workers": workers}
    trainer, paths = trainer_on_files(tmp_path, **settings)
    Path(paths[2]).write_bytes(Path(paths[2]).read_bytes()[:2000])
    with pytest.raises(BadImageError) as error:
        trainer.train()
    sentence = str(error.value)
    assert sentence.startswith(f"{paths[2]} cannot be read (") and "--on_bad_image skip. Training has" in sentence
    assert "\n" not in sentence and "Caught" not in sentence
    assert "Training has stopped; " in sentence and ("checkpoint-" in sentence or "no complete" in sentence)


def test_broken_images_are_skipped_the_same_way_each_time(tmp_path, caplog):
    runs = []
    for attempt in range(2):
        trainer, paths = trainer_on_files(tmp_path, on_bad_image="skip", output_dir=str(tmp_path / f"out{attempt}"))
        os.remove(paths[5])
        Path(paths[2]).write_bytes(b"")
        with caplog.at_level(logging.WARNING):
            trainer.train()
        runs.append(losses_of(trainer))
        for row, path in enumerate(paths):
            logged = [line for line in caplog.messages if line.startswith(f"{path} cannot be read")]
            # Two epochs; each draws row 2 once, and row 5 once.
            assert len(logged) == (2 * (attempt + 1) if row in (2, 5) else 0), (row, caplog.messages)
    assert runs[0] == runs[1] and len(runs[0]) == 6
    shifted, paths = trainer_on_files(tmp_path, output_dir=str(tmp_path / "shifted"))
    for broken, following in ((2, 3), (5, 0)):
        Path(paths[broken]).write_bytes(Path(paths[following]).read_bytes())
    shifted.train()
    assert losses_of(shifted) == runs[0]  # the next image, and the last one's is the first


def test_a_disk_that_is_gone_stops_a_run_that_skips(tmp_path):
    trainer, paths = trainer_on_files(tmp_path, on_bad_image="skip")
    for path in paths:
        os.remove(path)
    with pytest.raises(BadImageError, match="16 images in a row cannot be read: is the disk still there") as error:
        trainer.train()
    assert "--on_bad_image" not in str(error.value)  # which it does


def test_broken_image_in_an_evaluation_is_named(tmp_path):
    trainer, paths = trainer_on_files(tmp_path, on_bad_image="skip")
    rows = make_dataset(6, seed=2).remove_columns("image").add_column("image", paths)
    rows = rows.cast_column("image", datasets.Image())
    Path(paths[1]).write_bytes(b"no image")
    with pytest.raises(BadImageError, match=f"^{paths[1]} cannot be read") as error:
        trainer.evaluate(rows)
    assert str(error.value).endswith("): restore the file, or take the image out of the data.")

"""Kills a training with SIGKILL at random moments, resumes it each time, and compares its end to an undisturbed run.

    python tests/kill_and_resume.py --kills 20 --seed 0

A third of the kills come after a random time, a third before a random operation on a file (of saving, renaming or
deleting), and a third there as well, with the file that was written last cut to a random length.
"""

import argparse
import gc
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path


if __name__ == "__main__":  # what is forked must not have threads of its own
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from conftest import small_model
from run_training import make_trainer
from safetensors.torch import load_file

from allspark_hf.training.storage import finish_renaming, is_complete, last_complete_checkpoint


# 6 unlabeled images in batches of 2: 3 steps an epoch, 3 checkpoints of which 2 are kept.
SETTINGS = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2, "seed": 3}
# A teacher, heads and a memory of pixels beside the model; the second step fills the memory and has the contrast.
SETTINGS |= {"num_unlabeled": 6, "method": "memory_contrastive", "contrast_start": 0, "memory_confidence": 0.3}
LAST = "checkpoint-6"
WAYS = ("time", "operation", "half a file")
OPERATIONS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
OPERATIONS_OF_A_SAVE = 45
STATES = ("method.pt", "optimizer.pt", "scheduler.pt", "pseudo_label_counts.pt")


def kill_before_operation(folder: Path, count: int, cut: random.Random | None):
    """Ends this process before its `count`-th change of a file, after cutting what was written last."""
    seen = 0

    def hook(event, arguments):
        nonlocal seen
        writes = event == "open" and str(arguments[0]).startswith(str(folder)) and arguments[2] & os.O_ACCMODE
        if not writes and event not in OPERATIONS:
            return
        seen += 1
        if seen != count:
            return
        seen += 1  # what follows counts no more
        cut_length = ""
        written = [path for path in folder.glob("unfinished-*/*") if path.is_file()]
        if cut is not None and written:
            last = max(written, key=lambda path: path.stat().st_mtime_ns)
            length = cut.randrange(last.stat().st_size) if last.stat().st_size else 0
            os.truncate(last, length)
            cut_length = f", {last.name} cut to {length} bytes"
        (folder.parent / "where.txt").write_text(f"before {event} {Path(str(arguments[0])).name}{cut_length}")
        os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def train(folder: Path, log: Path, before: int | None = None, cut: random.Random | None = None):
    """One attempt, from the start or the last complete checkpoint; runs in a process of its own."""
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        resume = last_complete_checkpoint(folder) is not None
        # Other weights than those of the first start, all of which a resume must replace.
        trainer = make_trainer(small_model(seed=5 if resume else 0), output_dir=str(folder), **SETTINGS)
        if before is not None:
            kill_before_operation(folder, before, cut)
        trainer.train(resume_from_checkpoint=resume)
        trainer.save_model()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def start(*arguments) -> int:
    child = os.fork()
    if child == 0:
        train(*arguments)
    return child


def attempt(rng: random.Random, folder: Path, log: Path, duration: float) -> tuple[str | None, str]:
    """Starts and kills; how, or None if it had come to its end before, and where."""
    way, where = rng.choice(WAYS), folder.parent / "where.txt"
    where.unlink(missing_ok=True)
    if way == "time":
        child = start(folder, log)
        delay = rng.uniform(0, duration)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        text = f"after {delay:.2f} s"
    else:
        before = rng.randint(1, 2 * OPERATIONS_OF_A_SAVE)
        child = start(folder, log, before, rng if way == "half a file" else None)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        if os.WEXITSTATUS(status):
            raise AssertionError(f"the attempt failed:\n{log.read_text()[-3000:]}")
        return None, ""
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    return way, text if way == "time" else where.read_text()


def check_folder(folder: Path, least: int) -> int:
    """The step of the last complete checkpoint, which is no earlier one than before, and readable."""
    finish_renaming(folder)
    last = last_complete_checkpoint(folder)
    if last is None:
        assert least == 0, f"{folder} had a checkpoint of step {least} and has none now"
        return 0
    step = int(last.rpartition("-")[2])
    assert step >= least, f"the checkpoint of step {least} is gone, the last one is {last}"
    load_file(Path(last) / "model.safetensors")
    for name in STATES:
        torch.load(Path(last) / name, weights_only=True)
    named = [path for path in folder.glob("checkpoint-*") if not is_complete(path)]
    assert not named, f"{named} have their name and are not complete"
    model = folder / "model.safetensors"
    if model.exists():
        load_file(model)
    return step


def assert_same(folder: Path, whole: Path):
    """Weights, teacher, heads, memory, optimizer, schedule, random numbers and the log of all steps, bit by bit."""
    for name in ("model.safetensors", "rng_state.pth", *STATES):
        assert (folder / LAST / name).read_bytes() == (whole / LAST / name).read_bytes(), name
    logs = [json.loads((path / LAST / "trainer_state.json").read_text())["log_history"] for path in (folder, whole)]
    assert len(logs[0]) == len(logs[1]) and sum("loss_x" in entry for entry in logs[0]) == 6
    for entry, expected in zip(*logs, strict=True):
        assert entry == expected
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert not list(folder.glob("unfinished-*")) and not list(folder.glob("removed-*"))


def kill_and_resume(kills: int, seed: int, root: Path):
    rng, log, whole = random.Random(seed), root / "log.txt", root / "whole"
    begun = time.perf_counter()
    assert os.waitpid(start(whole, log), 0)[1] == 0, log.read_text()
    duration = time.perf_counter() - begun
    method = torch.load(whole / LAST / "method.pt", weights_only=True)
    assert (method["contrast.memory.fill"] > 0).all() and any(name.startswith("teacher.") for name in method)
    print(f"undisturbed: {duration:.1f} s")
    done, runs = 0, 0
    while done < kills:
        runs, least = runs + 1, 0
        folder = root / f"run{runs}" / "out"
        folder.mkdir(parents=True)
        while done < kills:
            way, where = attempt(rng, folder, log, duration)
            if way is None:
                break
            done += 1
            least = check_folder(folder, least)
            print(f"kill {done}: run {runs}, {way}: {where}; last complete checkpoint: {least or 'none'}", flush=True)
        assert os.waitpid(start(folder, log), 0)[1] == 0, log.read_text()[-3000:]
        assert_same(folder, whole)
        print(f"run {runs} ends bit-identical to the undisturbed one", flush=True)
    print(f"{done} kills, {runs} runs, seed {seed}: no checkpoint lost, none half-written, all ends the same")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    gc.freeze()  # see conftest.py
    with tempfile.TemporaryDirectory() as temporary:
        kill_and_resume(given.kills, given.seed, Path(temporary))

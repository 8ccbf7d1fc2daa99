"""Trains the tiny model with faults that the command line asks for; for tests that start two processes of it.

python faulty_training.py '[{"output_dir": ..., "result": ..., "nan": [rank, step], "kill_worker": rank, ...}, ...]'

A fault is written to the file that `result` and the process's rank name; the last one ends the process.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from conftest import prepare, tiny_model
from run_training import make_trainer
from torch.utils.data import get_worker_info

from allspark_hf import AllSparkTrainer
from allspark_hf.cli.ending import fail, leave
from allspark_hf.data.mixed import MixedDataset
from allspark_hf.training.faults import TrainingFault


def poison(trainer, steps: list[int], batch_number: int = 0):
    """Makes NaN of the pixels of one batch of these updates, counted from 1: weights, statistics and memory get it."""
    step, seen = trainer.method.step, {}

    def poisoned(model, batch, pixels, epoch):
        update = trainer.state.global_step + 1
        seen[update] = seen.get(update, -1) + 1
        if update in steps and seen[update] == batch_number:
            batch |= {name: batch[name] * torch.nan for name in batch if name.endswith("pixel_values")}
        return step(model, batch, pixels, epoch)

    trainer.method.step = poisoned


def kill_workers(position: int):
    """From now on a DataLoader's worker dies where it is to read the unlabeled image of that place in the epoch."""
    read = MixedDataset.__getitem__

    def deadly(self, draw):
        if get_worker_info() is not None and not draw.labeled and draw.position == position:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, draw)

    MixedDataset.__getitem__ = deadly
    return read


def train(settings: dict) -> AllSparkTrainer:
    resume, nan, kill_worker = (settings.pop(name, None) for name in ("resume", "nan", "kill_worker"))
    trainer = make_trainer(tiny_model(), **settings)
    rank = trainer.args.process_index
    if nan is not None and rank == nan[0]:
        poison(trainer, [nan[1]])
    if kill_worker == rank:
        kill_workers(position=6)  # of the second step
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def main(jobs: list[dict]):
    for number, settings in enumerate(jobs, start=1):
        told = Path(f"{settings.pop('result')}.{os.environ['RANK']}")
        try:
            trainer = train(settings)
        except TrainingFault as error:
            sentence = f"{type(error).__name__}: {error}"
            if number == len(jobs):
                fail(sentence)
            told.write_text(sentence)
        else:
            told.write_text("no fault")
    leave(trainer.accelerator)


if __name__ == "__main__":
    prepare()
    main(json.loads(sys.argv[1]))

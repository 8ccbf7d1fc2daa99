"""Trains the tiny model with faults that the command line asks for; for tests that start two processes of it.

python faulty_training.py '{"output_dir": ..., "result": ..., "nan": [rank, step], "kill_worker": rank, ...}'
"""

import json
import os
import signal
import sys

import torch
from conftest import tiny_model
from run_training import make_trainer
from torch.utils.data import get_worker_info

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


def main(settings: dict):
    result, resume = settings.pop("result"), settings.pop("resume", None)
    nan, kill_worker = settings.pop("nan", None), settings.pop("kill_worker", None)
    trainer = make_trainer(tiny_model(), **settings)
    rank = trainer.args.process_index
    if nan is not None and rank == nan[0]:
        poison(trainer, [nan[1]])
    if kill_worker == rank:
        kill_workers(position=6)  # of the second step
    try:
        trainer.train(resume_from_checkpoint=resume)
    except TrainingFault as error:
        fail(f"{type(error).__name__}: {error}")
    torch.save(trainer.model.state_dict(), f"{result}.{rank}")
    leave(trainer.accelerator)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

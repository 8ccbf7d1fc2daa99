"""Trains the tiny model, for many tests, also in processes of its own.

python run_training.py '{"output_dir": ..., "result": ..., ...}'    # or a list of several, one after the other
"""

import faulthandler
import gc
import json
import os
import sys
from contextlib import contextmanager

import numpy as np
import torch
from accelerators_on_cpu import allow_fsdp, allow_sync_batchnorm
from conftest import NO_DROPOUT, make_dataset, prepare, tiny_model
from datasets.packaged_modules.webdataset.webdataset import WebDataset
from sample_method import SampleTrainingArguments
from torch.utils.data import get_worker_info
from transformers import TrainerCallback

from allspark_hf import AllSparkConfig, AllSparkTrainer, AllSparkTrainingArguments
from allspark_hf.cli.ending import leave
from allspark_hf.data import open_unlabeled_stream
from allspark_hf.data.columns import Picture
from allspark_hf.inference.loading import make_image_processor


class StartCallback(TrainerCallback):
    """Copies of all weights and buffers as the first step finds them, and of how the model is wrapped."""

    def __init__(self, trainer):
        self.trainer, self.state, self.wrapper = trainer, None, None

    def on_step_begin(self, args, state, control, **kwargs):
        if self.state is None:
            self.state = {name: value.clone() for name, value in full_state(self.trainer).items()}
            wrapper = self.trainer.model_wrapped
            self.wrapper = {
                "class": type(wrapper).__name__,
                "find_unused_parameters": getattr(wrapper, "find_unused_parameters", None),
                "ignored": sorted(getattr(wrapper, "parameters_to_ignore", ())),
            }


def make_arguments(**kwargs) -> AllSparkTrainingArguments:
    arguments_class = SampleTrainingArguments if kwargs.get("method") == "sample" else AllSparkTrainingArguments
    return arguments_class(
        **{
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "eval_strategy": "no",
            "save_strategy": "no",
            "save_total_limit": 9,
            "logging_steps": 1,
            "learning_rate": 0.01,
            "memory_warmup_epochs": 1,
            **kwargs,
        }
    )


def make_trainer(
    model,
    num_unlabeled=10,
    stream=False,
    num_shards=2,
    shards=None,
    train=None,
    unlabeled=None,
    long_side=None,
    **kwargs,
) -> AllSparkTrainer:
    if unlabeled is None:
        unlabeled = make_dataset(num_unlabeled, seed=2)  # its masks only measure the pseudo-labels
    if stream:
        unlabeled = unlabeled.to_iterable_dataset(num_shards=num_shards)
    if shards:
        unlabeled = open_unlabeled_stream(shards)
    return AllSparkTrainer(
        model,
        make_arguments(**kwargs),
        make_image_processor(long_side),
        train_dataset=make_dataset(5, seed=1) if train is None else train,
        unlabeled_dataset=unlabeled,
        eval_dataset=make_dataset(5, seed=3),
    )


def exact_model(method: str, batch_norm: bool = False, **kwargs):
    """Float64, no dropout, no batch statistics: what is left must not depend on how the batch is cut."""
    switches = {} if "allspark" in method else AllSparkConfig.plain_segformer_switches()
    model = tiny_model(**{**switches, **NO_DROPOUT, **kwargs}).double()
    if not batch_norm:
        model.decode_head.batch_norm = torch.nn.Identity()
    return model


def feed_doubles(trainer: AllSparkTrainer):
    step = trainer.method.step

    def double_step(model, batch, pixels, epoch):
        batch |= {name: batch[name].double() for name in batch if "pixel_values" in name}
        return step(model, batch, pixels, epoch)

    trainer.method.step = double_step


@contextmanager
def recorded_reading(log: str | None):
    """
    Inside, every image that a data loading worker reads from a tar archive, or decodes, is a line of a file: what was
    done to it, its name, the rank of the process, the worker.
    """
    if log is None:
        yield
        return
    read, decode = WebDataset._get_pipeline_from_tar.__func__, Picture.decode_example

    def note(what: str, name: str):
        if get_worker_info() is not None:
            with open(log, "a") as file:
                file.write(f"{what} {name} {os.environ['RANK']} {get_worker_info().id}\n")

    def noted_reading(cls, *arguments):
        for example in read(cls, *arguments):
            note("read", f"{example['__key__']}.png")
            yield example

    def noted_decoding(self, value, **kwargs):
        if value["path"]:
            note("decoded", value["path"])
        return decode(self, value, **kwargs)

    WebDataset._get_pipeline_from_tar, Picture.decode_example = classmethod(noted_reading), noted_decoding
    try:
        yield
    finally:
        WebDataset._get_pipeline_from_tar, Picture.decode_example = classmethod(read), decode


def result_of(trainer: AllSparkTrainer) -> dict:
    """
    Losses of every step, the pseudo-labels' health of every epoch and on held-out images, all evaluations, weights,
    the method's state.
    """
    losses = [
        {name: entry[name] for name in ("loss", "loss_x", "loss_u") if name in entry}
        for entry in trainer.state.log_history
        if "loss_x" in entry
    ]
    health = [entry for entry in trainer.state.log_history if {"pseudo_mean_iou", "holdout_kept"} & entry.keys()]
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    result = {"losses": losses, "health": health, "evaluations": evaluations, "state": full_state(trainer)}
    return {**result, "method": trainer.method.state_dict()}


def full_state(trainer: AllSparkTrainer) -> dict[str, torch.Tensor]:
    """All weights and buffers; under FSDP empty on other processes than the first."""
    return trainer.accelerator.get_state_dict(trainer.model)


def build_trainer(settings: dict) -> AllSparkTrainer:
    """
    `exact` takes [`exact_model`], `switches` are fields of the model, `own_weights` differ between processes; `fsdp`
    is what a launcher's environment says of it, for all that follows.
    """
    exact, switches = settings.pop("exact", False), settings.pop("switches", {})
    if fsdp := settings.pop("fsdp", None):
        os.environ.update(fsdp)
        allow_fsdp()
    if settings.get("sync_batchnorm"):
        allow_sync_batchnorm()
    if settings.pop("own_weights", False):
        switches["seed"] = int(os.environ["RANK"]) + 7
    model = exact_model(settings["method"], **switches) if exact else tiny_model(**switches)
    trainer = make_trainer(model, **settings)
    if exact:
        feed_doubles(trainer)
    return trainer


def run(settings: dict) -> AllSparkTrainer:
    """One training or evaluation; what came of it is saved to the file that `result` and the process's rank name."""
    result, evaluate, resume = settings.pop("result"), settings.pop("evaluate", False), settings.pop("resume", None)
    log = settings.pop("log", None)
    trainer = build_trainer(settings)
    outcome = {}
    if evaluate:
        outcome["metrics"] = trainer.evaluate()
        outcome["confusion"] = trainer.evaluation.confusion.counts
        outcome["boundary"] = trainer.evaluation.boundary.counts
        outcome["by_image"] = torch.from_numpy(np.stack(trainer.evaluation.by_image))
        outcome["num_images"] = trainer.evaluation.num_images
    else:
        start = StartCallback(trainer)
        trainer.add_callback(start)
        with recorded_reading(log):
            trainer.train(resume_from_checkpoint=resume)
        outcome |= {"start": start.state, "wrapper": start.wrapper, **result_of(trainer)}
    torch.save(outcome, f"{result}.{trainer.args.process_index}")
    return trainer


def run_all(settings: dict | list[dict]):
    """One after the other; then the process ends."""
    gc.freeze()  # see conftest.py
    for one in settings if isinstance(settings, list) else [settings]:
        trainer = run(one)
    leave(trainer.accelerator)


if __name__ == "__main__":
    faulthandler.enable()  # a crash in a library says where it was
    prepare()
    run_all(json.loads(sys.argv[1]))

"""[`CheckpointMixin`]: what [`AllSparkTrainer`] saves on the way, and how it goes on from there."""

import json
import logging
import random
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from transformers import set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from . import storage
from .faults import Saving, sole_training, telling_faults, telling_of_saving
from .resuming import (
    OPTIMIZER_FILE,
    RNG_FILE,
    SCALER_FILE,
    SCHEDULER_FILE,
    check_resume,
    describe_run,
    names_of_images,
)
from .storage import last_complete_checkpoint, load_state, save_state


logger = logging.getLogger(__name__)


class CheckpointMixin:
    """
    Overrides how [`~transformers.Trainer`] saves and resumes; to be named before it among the base classes.

    A checkpoint carries the memory and the pseudo-labels' counts, so that a resumed run equals an uninterrupted one.
    It is written into `unfinished-checkpoint-N`, and gets its name when all of it, of all processes, is on the disk;
    older ones are deleted after that. Whenever a process is killed, what is called `checkpoint-N` is complete. There
    is no pickle in it and none is loaded: states are safetensors and JSON (but those of FSDP and DeepSpeed, which
    have formats of their own).
    """

    _saving_checkpoint = False
    _resumed_from: str | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """
        Trains; adds `last_` and `best_` of the evaluated `metric_for_best_model` to the metrics, and writes
        `run_record.json` into `output_dir`.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint folder, or True for the last complete one in `output_dir`.

        Raises:
            ValueError: if there is no such checkpoint, or it does not fit the run, see [`check_resume`].
            TrainingFault: if training cannot go on, see there.
            BadImageError: if an image cannot be read.
        """
        with sole_training(self.args.output_dir) if self.args.should_save else nullcontext():
            return self._train(resume_from_checkpoint, **kwargs)

    def _train(self, resume_from_checkpoint, **kwargs) -> TrainOutput:
        if self.args.should_save:
            storage.remove_leftovers(self.args.output_dir)
        self.accelerator.wait_for_everyone()
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"No complete checkpoint in {self.args.output_dir}: train without resuming.")
        output, self._resumed_from = None, resume_from_checkpoint or None
        self._finite.skipped.zero_()
        if resume_from_checkpoint:
            run = self.check_resume(resume_from_checkpoint)
            self._tell_where_it_goes_on(Path(resume_from_checkpoint))
            self._finite.skipped.fill_(run.get("skipped_steps", 0))
            self._health.load(resume_from_checkpoint)
            output = self._finished_run(resume_from_checkpoint)
        if output is None:
            with telling_faults(self.args.output_dir):
                output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        output.metrics.update(self.last_and_best())
        return output

    def _tell_where_it_goes_on(self, checkpoint: Path):
        if not self.is_world_process_zero():
            return
        for other in storage.sorted_checkpoints(checkpoint.parent):
            if not storage.is_complete(other):
                logger.warning("%s is passed over: files of it are missing, or not as long as they were.", other)
        logger.info("Going on from %s.", checkpoint)

    def check_resume(self, checkpoint: str | Path) -> dict:
        """What a checkpoint was made with; ValueError if this run cannot go on from it, see [`check_resume`]."""
        run = check_resume(self, checkpoint)
        best = _best_checkpoint(TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME)), checkpoint)
        if self.args.load_best_model_at_end and best is not None and not best.is_dir():
            raise ValueError(
                f"{checkpoint} is of a run whose best checkpoint was {best.name}, which is not beside it, but "
                "load_best_model_at_end=True may need it: copy that too, or leave load_best_model_at_end out."
            )
        return run

    def _finished_run(self, checkpoint: str) -> TrainOutput | None:
        """Takes up a checkpoint that has all of `max_steps`; transformers would train a step more."""
        state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        if not 0 < self.args.max_steps <= state.global_step:
            return None
        self._load_from_checkpoint(checkpoint)
        self.state = state
        state.is_local_process_zero = self.is_local_process_zero()
        state.is_world_process_zero = self.is_world_process_zero()
        if self.args.load_best_model_at_end and state.best_model_checkpoint:
            self._load_best_model()
        return TrainOutput(state.global_step, 0.0, {"train_runtime": 0.0, "epoch": state.epoch})

    def last_and_best(self) -> dict[str, float]:
        """Value and epoch of `metric_for_best_model` at the last and the best evaluation; empty if there was none."""
        name = self.args.metric_for_best_model.removeprefix("eval_")
        evaluated = [entry for entry in self.state.log_history if f"eval_{name}" in entry]
        if not evaluated:
            return {}
        choose = max if self.args.greater_is_better else min
        best = choose(evaluated, key=lambda entry: entry[f"eval_{name}"])
        return {
            f"last_{name}": evaluated[-1][f"eval_{name}"],
            f"best_{name}": best[f"eval_{name}"],
            "best_epoch": best["epoch"],
        }

    # ---- Saving ----

    def _save_checkpoint(self, model, trial):
        self._finite.check_weights()
        if self._finite.in_streak:  # or the last good checkpoints would be deleted while nothing is learned
            logger.warning("Step %d was left out, so that no checkpoint is saved of it.", self.state.global_step)
            return
        run_dir = Path(self._get_output_dir(trial))
        folder = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        unfinished = run_dir / f"{storage.UNFINISHED}{folder.name}"
        if trial is None:
            self.store_flos()
        self._health.gather()
        self._saving_checkpoint = True
        try:
            with telling_of_saving(str(folder), unfinished, run_dir) as saving:
                self._write_checkpoint(unfinished, folder, saving)
        finally:
            self._saving_checkpoint = False
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))
        if self.args.should_save:
            self._remove_old_checkpoints(run_dir)

    def _write_checkpoint(self, unfinished: Path, folder: Path, saving: Saving):
        """The files of all processes, then the name."""
        if self.args.should_save:
            storage.remove_leftovers(folder.parent)
            unfinished.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        unfinished.mkdir(parents=True, exist_ok=True)  # on the disk of another machine
        saving.part = "the model"
        self.save_model(str(unfinished), _internal_call=True)
        if not self.args.save_only_model:
            saving.part = "the state of the optimizer and the schedule"
            self._save_optimizer_and_scheduler(str(unfinished))
            self._save_scaler(str(unfinished))
            saving.part = "the state of the random numbers"
            self._save_rng_state(str(unfinished))
        saving.part = "the run's records"
        self._note_best_checkpoint(folder)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._write_records(unfinished)
            storage.put_in_place(unfinished, folder)
        self.accelerator.wait_for_everyone()
        if self.args.local_process_index == 0 and unfinished.is_dir():  # of a machine with a disk of its own
            storage.put_in_place(unfinished, folder)

    def _note_best_checkpoint(self, folder: Path):
        best = self.state.best_global_step
        if best and (best == self.state.global_step or (folder.parent / f"{PREFIX_CHECKPOINT_DIR}-{best}").is_dir()):
            self.state.best_model_checkpoint = str(folder.parent / f"{PREFIX_CHECKPOINT_DIR}-{best}")

    def _write_records(self, folder: Path):
        """The Trainer's state, and what the run was made with, which closes the checkpoint."""
        exported = defaultdict(list)
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                exported[type(callback).__name__].append(callback.state())
        self.state.stateful_callbacks = {name: all_ if len(all_) > 1 else all_[0] for name, all_ in exported.items()}
        self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        (folder / storage.IDS_FILE).write_text(json.dumps(names_of_images(self)), encoding="utf-8")
        last = last_complete_checkpoint(folder.parent)
        order = 1 + (0 if last is None else storage.read_json(Path(last) / storage.RUN_FILE).get("order", 0))
        counted = {"order": order, "skipped_steps": int(self._finite.skipped)}
        storage.write_run_file(folder, {**describe_run(self), **counted})

    def _remove_old_checkpoints(self, run_dir: Path):
        """Down to `save_total_limit`, the newest and the best among them."""
        limit, kept = self.args.save_total_limit, storage.sorted_checkpoints(run_dir)
        if not limit or limit < 1:
            return
        protected = {kept[-1].name, Path(self.state.best_model_checkpoint or kept[-1]).name}
        for folder in list(kept):
            if len(kept) > max(limit, len(protected)) and folder.name not in protected:
                kept.remove(folder)
                storage.remove_checkpoint(folder)

    def _save(self, output_dir=None, state_dict=None):
        """A checkpoint carries the memory; a model saved for use does not. Neither has a pickle of the arguments."""
        if not self.args.should_save:
            return
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if self._saving_checkpoint:
            model._keys_to_ignore_on_save = None  # shadows the class attribute
            try:
                self._save_model_files(model, folder, state_dict)
            finally:
                del model._keys_to_ignore_on_save
            if self.method.uses_unlabeled:
                self._health.save(folder)
            return
        unfinished = folder / f"{storage.UNFINISHED}model"
        with telling_of_saving(f"The model in {folder}", unfinished, self.args.output_dir) as saving:
            storage.remove_leftovers(folder)
            saving.part = "the weights"
            self._save_model_files(model, unfinished, state_dict)
            storage.put_model_in_place(unfinished, folder)
        self._record.note_saved(folder)

    def _save_model_files(self, model, folder: Path, state_dict):
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder, state_dict=state_dict)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    # ---- States: what a checkpoint has beside the model ----

    @property
    def _states_are_sharded(self) -> bool:
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def _save_optimizer_and_scheduler(self, output_dir):
        if self._states_are_sharded:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            save_state(self.optimizer.state_dict(), Path(output_dir) / OPTIMIZER_FILE)
            save_state(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint):
        if self._states_are_sharded:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            self.optimizer.load_state_dict(load_state(Path(checkpoint) / OPTIMIZER_FILE))
            self.lr_scheduler.load_state_dict(load_state(Path(checkpoint) / SCHEDULER_FILE))

    def _save_scaler(self, output_dir):
        if getattr(self.accelerator, "scaler", None) is not None and self.args.should_save:
            save_state(self.accelerator.scaler.state_dict(), Path(output_dir) / SCALER_FILE)

    def _load_scaler(self, checkpoint):
        path = Path(checkpoint or "") / SCALER_FILE
        if getattr(self.accelerator, "scaler", None) is not None and checkpoint is not None and path.is_file():
            self.accelerator.scaler.load_state_dict(load_state(path))

    def _save_rng_state(self, output_dir):
        states = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
        device = torch.get_device_module(self.args.device)
        if self.args.device.type != "cpu" and hasattr(device, "get_rng_state"):
            states["device"] = device.get_rng_state()
        save_state(states, Path(output_dir) / RNG_FILE.format(rank=self.args.process_index))

    def _load_rng_state(self, checkpoint):
        """Another number of processes draws anew, but the same at each resume."""
        if checkpoint is None:
            return
        processes = (storage.read_json(Path(checkpoint) / storage.RUN_FILE) or {}).get("processes")
        if processes != self.args.world_size:
            set_seed(self.args.seed + self.state.global_step * self.args.world_size + self.args.process_index)
            return
        states = load_state(Path(checkpoint) / RNG_FILE.format(rank=self.args.process_index))
        random.setstate(states["python"])
        np.random.set_state(states["numpy"])
        torch.set_rng_state(states["cpu"])
        device = torch.get_device_module(self.args.device)
        if "device" in states and hasattr(device, "set_rng_state"):
            device.set_rng_state(states["device"])

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if self._states_are_sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            storage.load_weights(self.model if model is None else model, resume_from_checkpoint)

    def _load_best_model(self):
        self.state.best_model_checkpoint = str(_best_checkpoint(self.state, self._resumed_from))
        if self._states_are_sharded:
            super()._load_best_model()
        else:
            storage.load_weights(self.model, self.state.best_model_checkpoint)


def _best_checkpoint(state: TrainerState, resumed_from: str | Path | None) -> Path | None:
    """Where the best checkpoint is, or should be, although its folder was perhaps moved before a resume."""
    if state.best_model_checkpoint is None:
        return None
    best = Path(state.best_model_checkpoint)
    return best if best.is_dir() or resumed_from is None else Path(resumed_from).with_name(best.name)


__all__ = ["CheckpointMixin", "last_complete_checkpoint"]

"""[`Checkpoints`]: how a trainer saves its training, and goes on from what it saved."""

import json
import logging
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput
from transformers.utils import SAFE_WEIGHTS_NAME

from ..utils.files import read_json_object
from . import storage
from .faults import Saving, telling_of_saving
from .processes import plain_model
from .resuming import check_resume, describe_run, names_of_images


logger = logging.getLogger(__name__)

METHOD_MODULES = "method_modules."  # prefix of weights that a method trains beside the model


class Checkpoints:
    """
    Writes and restores checkpoints.

    All processes write a checkpoint into `unfinished-checkpoint-N`, which is renamed when all of its files are on the
    disk. Older checkpoints are deleted after that. A folder called `checkpoint-N` is therefore complete, whenever a
    process is killed. Its `model.safetensors` holds the evaluated model with its memory. Optimizer, schedule and
    random numbers are in transformers' files, and every registered state is in a file of its name, without an
    evaluated model in it. All states are read with `torch.load(weights_only=True)`, which runs no code.

    Args:
        trainer ([`AllSparkTrainer`]): the trainer whose training is saved.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.resumed_from: Path | None = None
        self._states: dict[str, tuple[Any, bool]] = {}

    def register(self, name: str, holder: Any, of_each_process: bool = False):
        """
        Adds a state to every checkpoint from now on.

        Args:
            name (`str`): name of the state's file, without its ending.
            holder: an object with `state_dict` and `load_state_dict`, such as a module.
            of_each_process (`bool`): whether each process saves and restores its own.
        """
        self._states[name] = holder, of_each_process

    def _files(self, folder: Path) -> Iterator[tuple[str, Path, Any, bool]]:
        """Name and file of each registered state, its holder, and whether each process has one."""
        for name, (holder, of_each_process) in self._states.items():
            rank = f"_{self.trainer.args.process_index}" if of_each_process else ""
            yield name, folder / f"{name}{rank}.pt", holder, of_each_process

    def _evaluated_in(self, holder: Any) -> str | tuple:
        """What names of the evaluated model, which has its own file, begin with in a state; () if it is not there."""
        modules = holder.named_modules() if isinstance(holder, torch.nn.Module) else ()
        return next((f"{name}." for name, module in modules if module is self._evaluated), ())

    # ---- Going on ----

    def take_up(self, checkpoint: str | Path):
        """Makes a training go on from a checkpoint, which is only checked yet, see [`Checkpoints.check`]."""
        self.check(checkpoint)
        self.resumed_from = Path(checkpoint)
        if not self.trainer.is_world_process_zero():
            return
        for other in storage.sorted_checkpoints(self.resumed_from.parent):
            if not storage.is_complete(other):
                logger.warning("%s is passed over: files of it are missing, or not as long as they were.", other)
        logger.info("Going on from %s.", checkpoint)

    def check(self, checkpoint: str | Path):
        """Raises ValueError if this run cannot go on from a checkpoint, see [`check_resume`]; loads nothing."""
        folder = Path(checkpoint)
        run = check_resume(self.trainer, folder)
        self.trainer.processes.check_saved_memory(folder, run)
        if not self.trainer.processes.are_sharded:
            storage.check_weights(self._evaluated, folder / SAFE_WEIGHTS_NAME)
            if self._evaluated is not self.trainer.processes.model:
                storage.check_weights(self.trainer.processes.model, folder / storage.STUDENT_FILE)
        best = _best_checkpoint(TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME)), folder)
        if self.trainer.args.load_best_model_at_end and best is not None and not best.is_dir():
            raise ValueError(
                f"{checkpoint} is of a run whose best checkpoint was {best.name}, which is not beside it, but "
                "load_best_model_at_end=True may need it: copy that too, or leave load_best_model_at_end out."
            )

    def restore(self, state: TrainerState):
        """Restores what transformers does not; called after the model is wrapped and before the first step."""
        self.trainer.method.num_updates, self.trainer.method.updates = state.max_steps, state.global_step
        if self.trainer.stream is not None:
            self.trainer.stream.restore(self.resumed_from, state)
        if self.resumed_from is None:
            return
        best = _best_checkpoint(state, self.resumed_from) if self.trainer.args.load_best_model_at_end else None
        state.best_model_checkpoint = None if best is None else str(best)
        self._restore_states(self.resumed_from)

    def _restore_states(self, folder: Path, names: Collection[str] | None = None):
        """Restores the trained model, where another is evaluated, and the registered states, or only those named."""
        student = folder / storage.STUDENT_FILE
        if student.is_file() and not self.trainer.processes.are_sharded:  # FSDP has a file of its own
            self.trainer.processes.model.load_state_dict(load_file(student))
        for name, path, holder, _ in self._files(folder):
            if names is not None and name not in names:
                continue
            saved, prefix = torch.load(path, map_location="cpu", weights_only=True), self._evaluated_in(holder)
            if prefix:
                evaluated = load_file(folder / SAFE_WEIGHTS_NAME)
                saved = {f"{prefix}{name}": tensor for name, tensor in evaluated.items()} | saved
            holder.load_state_dict(saved)

    def finished_run(self) -> TrainOutput | None:
        """
        Loads a checkpoint that has all `max_steps` updates, which transformers would train for one more.

        Returns:
            `TrainOutput`, *optional*: None, and nothing is loaded, if updates are left.
        """
        trainer, checkpoint = self.trainer, str(self.resumed_from)
        state = TrainerState.load_from_json(str(self.resumed_from / TRAINER_STATE_NAME))
        if not 0 < trainer.args.max_steps <= state.global_step:
            return None
        trainer._load_from_checkpoint(checkpoint)
        trainer.state = state
        state.is_local_process_zero = trainer.is_local_process_zero()
        state.is_world_process_zero = trainer.is_world_process_zero()
        self.restore(state)
        if trainer.args.load_best_model_at_end and state.best_model_checkpoint:
            trainer._load_best_model()
        trainer.record.is_of_earlier_process = True
        earlier = read_json_object(Path(trainer.args.output_dir) / "train_results.json")  # if the process wrote it
        runtime = earlier.get("train_runtime", 0.0)
        return TrainOutput(state.global_step, 0.0, {"train_runtime": runtime, "epoch": state.epoch})

    def best_model_loaded(self):
        """Takes the rest of the best checkpoint, after transformers put its evaluated model into the trained one."""
        self._restore_states(Path(self.trainer.state.best_model_checkpoint), ["method"])

    # ---- Saving ----

    def write(self, run_dir: Path):
        """Writes a checkpoint of the present step, then deletes the oldest ones; called by all processes."""
        trainer = self.trainer
        trainer.finite.check_weights()
        folder = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
        unfinished = run_dir / f"{storage.UNFINISHED}{folder.name}"
        trainer.health.gather()
        if trainer.stream is not None:
            trainer.stream.gather()
        with telling_of_saving(str(folder), unfinished, run_dir) as saving:
            self._write(unfinished, folder, saving)
        if trainer.args.push_to_hub:
            trainer.hub.push_checkpoint(str(folder))
        if trainer.args.should_save:
            self._remove_old(run_dir)

    def _write(self, unfinished: Path, folder: Path, saving: Saving):
        """Writes the files of all processes, then renames their folder."""
        trainer = self.trainer
        if trainer.args.should_save:
            storage.remove_leftovers(folder.parent)
            unfinished.mkdir(parents=True)
        trainer.accelerator.wait_for_everyone()
        unfinished.mkdir(parents=True, exist_ok=True)  # on the disk of another machine
        saving.part = "the model"
        self._save_models(unfinished)
        if not trainer.args.save_only_model:
            saving.part = "the state of the optimizer and the schedule"
            trainer._save_optimizer_and_scheduler(str(unfinished))
            trainer._save_scaler(str(unfinished))
            saving.part = "the state of the random numbers"
            trainer._save_rng_state(str(unfinished))
        saving.part = "the state of the method"
        for _, path, holder, of_each_process in self._files(unfinished):
            if of_each_process or trainer.args.should_save:
                state, prefix = holder.state_dict(), self._evaluated_in(holder)
                torch.save({name: value for name, value in state.items() if not name.startswith(prefix)}, path)
        saving.part = "the run's records"
        self._note_best(folder)
        trainer.accelerator.wait_for_everyone()
        if trainer.args.should_save:
            self._write_records(unfinished)
            storage.put_in_place(unfinished, folder)
        trainer.accelerator.wait_for_everyone()
        if trainer.args.local_process_index == 0 and unfinished.is_dir():  # of a machine with a disk of its own
            storage.put_in_place(unfinished, folder)

    def _save_models(self, folder: Path):
        """Writes the evaluated model with its memory, and the trained model if that is another one."""
        model, state_dict = self.trainer.processes.model, self._gathered_weights()
        if not self.trainer.args.should_save:
            return
        if self._evaluated is model:
            _save_pretrained(model, folder, state_dict, everything=True)
        else:
            _save_pretrained(self._evaluated, folder, None, everything=True)
            student = {name: tensor.contiguous() for name, tensor in (state_dict or model.state_dict()).items()}
            save_file(student, folder / storage.STUDENT_FILE)
        self._save_processor(folder)

    def save_model(self, folder: Path):
        """Saves the evaluated model without what only training needs; called by all processes."""
        model, state_dict = self.trainer.processes.model, self._gathered_weights()
        if not self.trainer.args.should_save:
            return
        unfinished = folder / f"{storage.UNFINISHED}model"
        with telling_of_saving(f"The model in {folder}", unfinished, self.trainer.args.output_dir) as saving:
            storage.remove_leftovers(folder)
            saving.part = "the weights"
            unfinished.mkdir(parents=True)
            _save_pretrained(self._evaluated, unfinished, state_dict if self._evaluated is model else None)
            self._save_processor(unfinished)
            storage.put_model_in_place(unfinished, folder)
        self.trainer.record.note_saved(folder)

    def _save_processor(self, folder: Path):
        if self.trainer.processing_class is not None:
            self.trainer.processing_class.save_pretrained(folder)

    @property
    def _evaluated(self) -> PreTrainedModel:
        return self.trainer.method.evaluated_model(self.trainer.processes.model)

    def _gathered_weights(self) -> dict[str, torch.Tensor] | None:
        """The whole weights if FSDP or DeepSpeed has cut them into parts, else None."""
        trainer = self.trainer
        return trainer.accelerator.get_state_dict(trainer.model_wrapped) if trainer.processes.are_sharded else None

    def _note_best(self, folder: Path):
        state = self.trainer.state
        if not self.trainer.args.load_best_model_at_end:  # else transformers might keep the best instead of the last
            return
        best = folder.parent / f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
        if state.best_global_step and (best == folder or best.is_dir()):
            state.best_model_checkpoint = str(best)

    def _write_records(self, folder: Path):
        """Writes the Trainer's state and, as the last file, what the run was made with."""
        trainer, exported = self.trainer, defaultdict(list)
        for callback in [*trainer.callback_handler.callbacks, trainer.control]:
            if isinstance(callback, ExportableState):
                exported[type(callback).__name__].append(callback.state())
        trainer.state.stateful_callbacks = {
            name: all_ if len(all_) > 1 else all_[0] for name, all_ in exported.items()
        }
        trainer.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        (folder / storage.IDS_FILE).write_text(json.dumps(names_of_images(trainer)), encoding="utf-8")
        last = storage.last_complete_checkpoint(folder.parent)
        order = 1 + (0 if last is None else read_json_object(Path(last) / storage.RUN_FILE).get("order", 0))
        own = {"order": order, "local_memory": trainer.processes.local_memory is not None}
        if trainer.stream is not None:
            own["bookmarks"] = trainer.stream.of_all
        storage.write_run_file(folder, {**describe_run(trainer), **own})

    def _remove_old(self, run_dir: Path):
        """Deletes the oldest checkpoints until `save_total_limit` are left, never the newest or the noted best one."""
        limit, kept = self.trainer.args.save_total_limit, storage.sorted_checkpoints(run_dir)
        if not limit or limit < 1:
            return
        protected = {kept[-1].name, Path(self.trainer.state.best_model_checkpoint or kept[-1]).name}
        for folder in list(kept):
            if len(kept) > max(limit, len(protected)) and folder.name not in protected:
                kept.remove(folder)
                storage.remove_checkpoint(folder)


def _save_pretrained(
    model: PreTrainedModel, folder: Path, state_dict: dict[str, torch.Tensor] | None, everything: bool = False
):
    """Saves a model under its own class, not FSDP's; with `everything` also what only training needs."""
    saved = model if state_dict is None else plain_model(model)
    if not everything:
        state_dict = _without_method_modules(model.state_dict() if state_dict is None else state_dict)
    if everything:
        saved._keys_to_ignore_on_save = None  # shadows the class attribute
    try:
        saved.save_pretrained(folder, state_dict=state_dict)
    finally:
        if everything:
            del saved._keys_to_ignore_on_save


def _without_method_modules(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state_dict.items() if not name.startswith(METHOD_MODULES)}


def _best_checkpoint(state: TrainerState, resumed_from: Path) -> Path | None:
    """The folder of the best checkpoint, also if the run's folder was moved before the resume."""
    if state.best_model_checkpoint is None:
        return None
    best = Path(state.best_model_checkpoint)
    return best if best.is_dir() else resumed_from.with_name(best.name)

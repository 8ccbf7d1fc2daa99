"""[`CheckpointMixin`]: what [`AllSparkTrainer`] saves on the way, and how it goes on from there."""

from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput


class CheckpointMixin:
    """
    Overrides how [`~transformers.Trainer`] saves and resumes; to be named before it among the base classes. A
    checkpoint carries the memory and the pseudo-labels' counts, so that a resumed run equals an uninterrupted one.
    """

    _saving_checkpoint = False

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """
        Trains; adds `last_` and `best_` of the evaluated `metric_for_best_model` to the metrics, and writes
        `run_record.json` into `output_dir`.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint folder, or True for the last complete one in `output_dir`.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"No complete checkpoint in {self.args.output_dir}: train without resuming.")
        output = None
        if resume_from_checkpoint:
            self._health.load(resume_from_checkpoint)
            output = self._finished_run(resume_from_checkpoint)
        if output is None:
            output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        output.metrics.update(self.last_and_best())
        return output

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

    def _save_checkpoint(self, model, trial):
        self._saving_checkpoint = True
        self._health.gather()
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving_checkpoint = False

    def _save(self, output_dir=None, state_dict=None):
        """A checkpoint carries the memory; a model saved for use does not."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if self._saving_checkpoint:
            model._keys_to_ignore_on_save = None  # shadows the class attribute
        try:
            super()._save(output_dir, state_dict)
            if self._saving_checkpoint and self.method.uses_unlabeled and self.args.should_save:
                self._health.save(output_dir)
        finally:
            model.__dict__.pop("_keys_to_ignore_on_save", None)


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """The newest `checkpoint-*` folder that was written to its end: its trainer state is the last file to come."""
    complete = [path.parent for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")]
    return str(max(complete, key=lambda path: int(path.name.rpartition("-")[2]))) if complete else None


__all__ = ["CheckpointMixin", "last_complete_checkpoint"]

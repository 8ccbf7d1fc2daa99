"""[`Hooks`]: when the parts of a trainer act."""

import torch
from transformers import TrainerCallback


class Hooks(TrainerCallback):
    """
    Calls a trainer's parts at moments of transformers' training loop.

    Args:
        trainer ([`AllSparkTrainer`]): the trainer.
    """

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        """Called after transformers has loaded a checkpoint and before the first step."""
        trainer = self.trainer
        trainer._terms.clear()  # of an earlier training
        trainer.checkpoints.restore(state)
        if trainer.checkpoints.resumed_from is None:
            trainer.method.before_training(trainer.processes.model)
        trainer.processes.start()

    def on_epoch_begin(self, args, state, control, **kwargs):
        """accelerate does not pass the epoch on after a resume if the data loader is shared among processes."""
        self.trainer.sampler.set_epoch(int(state.epoch or 0))

    @torch.no_grad()
    def on_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.method.updates = state.global_step + 1
        if self.trainer.method.acts_after_updates and not self.trainer.accelerator.optimizer_step_was_skipped:
            self.trainer.processes.share_statistics(self.trainer.processes.model)
            self.trainer.method.after_update(self.trainer.processes.model, state.global_step + 1)

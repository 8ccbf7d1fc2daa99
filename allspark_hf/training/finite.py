"""[`FiniteGuard`]: ends a training whose loss or weights are NaN or infinite, before they are saved."""

import math

import torch
from transformers import TrainerCallback

from ..models.bottleneck_allspark import at_least_float32
from .faults import NonFiniteError, going_on


ADVICE = (
    "Set --max_grad_norm 1, use --bf16 instead of --fp16, or look at the data; a resume keeps its learning rate, so "
    "for a lower one begin a new training, from a checkpoint's weights (--model_name_or_path) or anew."
)


class FiniteGuard(TrainerCallback):
    """
    Notes on the device whether the loss of every batch is finite, so that the host need not wait, and reads the note
    when something is logged, evaluated or saved, and at the end. A loss that was not finite then ends the training,
    and nothing is saved. A gradient that is not finite shows in the next loss, or in the weights before they are
    saved.

    Args:
        trainer ([`AllSparkTrainer`]): the trainer whose loss and model are watched.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        device = trainer.args.device
        self.first_step = torch.full((), -1, dtype=torch.int64, device=device)  # whose loss was not finite
        self.first_terms = torch.zeros(2, device=device)  # loss_x and loss_u of that step

    @torch.no_grad()
    def note_loss(self, loss: torch.Tensor, terms: dict[str, torch.Tensor]):
        """Notes the loss of one batch, a float scalar, and its terms `loss_x` and, if there is one, `loss_u`."""
        parts = [terms[name].detach().float() for name in ("loss_x", "loss_u") if name in terms]
        values = torch.stack([*parts, *[torch.zeros_like(self.first_terms[0])] * (2 - len(parts))])
        first = ~torch.isfinite(loss) & (self.first_step < 0)
        self.first_terms = torch.where(first, values, self.first_terms)
        self.first_step.masked_fill_(first, self.trainer.state.global_step + 1)

    def on_train_begin(self, args, state, control, **kwargs):
        """Forgets the loss that ended an earlier training with the same trainer."""
        self.first_step.fill_(-1)

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_log or control.should_evaluate or control.should_save:
            self.check()

    def on_epoch_end(self, args, state, control, **kwargs):
        self.on_step_end(args, state, control)

    def on_train_end(self, args, state, control, **kwargs):
        self.check()

    def check(self):
        """Raises [`NonFiniteError`] in all processes if the loss of one was not finite; all must call this method."""
        found = torch.cat([self.first_step.float().reshape(1), self.first_terms])
        found = self.trainer.accelerator.gather(found.reshape(1, -1)).tolist()
        # Names the process whose own loss was NaN, if only one had it.
        step, loss_x, loss_u = max(found, key=lambda row: (row[0], not math.isfinite(sum(row))))
        if step < 0:
            return
        terms = f"loss_x {loss_x:g}" + (f", loss_u {loss_u:g}" if self.trainer.method.uses_unlabeled else "")
        raise NonFiniteError(
            f"The loss was not finite at step {int(step)} ({terms}; learning rate "
            f"{self.trainer._get_learning_rate():.3g}), and nothing was saved since: "
            f"{going_on(self.trainer.args.output_dir)}. {ADVICE}"
        )

    def check_weights(self):
        """Raises [`NonFiniteError`] if a weight or a buffer is not finite; all processes call it before a save."""
        self.check()
        model = self.trainer.processes.model
        named = [*model.named_parameters(), *model.named_buffers()]
        named = [(name, tensor) for name, tensor in named if tensor.is_floating_point()]
        # Each process looks at its own part of a weight that FSDP has cut.
        parts = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for _, tensor in named]
        finite = torch.stack([torch.isfinite(part.detach()).all() for part in parts])
        if self.trainer.accelerator.reduce((~finite).sum(), reduction="sum").item() == 0:
            return
        bad = [name for (name, _), is_finite in zip(named, finite.tolist(), strict=True) if not is_finite]
        where = f"{bad[0]} and {len(bad) - 1} others" if bad else "on another process"
        raise NonFiniteError(
            f"The weights are not finite after step {self.trainer.state.global_step} ({where}), and are not saved: "
            f"{going_on(self.trainer.args.output_dir)}. {ADVICE}"
        )


@torch.no_grad()
def sum_and_count(value: torch.Tensor) -> torch.Tensor:
    """float (2,): a float scalar and 1, or twice 0 if it is not finite. Their sums give the mean of finite values."""
    value, is_finite = at_least_float32(value), torch.isfinite(value)
    return torch.stack([value.where(is_finite, 0), is_finite.to(value.dtype)])

"""A loss that is NaN or infinite: noticed on the device, told late, and never saved."""

import math

import torch
from transformers import TrainerCallback

from .faults import NonFiniteError, going_on


NAN_LOSS = ("stop", "skip")
MAX_SKIPPED = 10  # updates in a row


class FiniteGuard(TrainerCallback):
    """
    Watches the loss of every batch and the gradient of every update, without making the host wait for the device: it
    reads what it found when something is logged, evaluated or saved, and at the end.

    With `nan_loss="stop"` it then ends training. With "skip", an update with a batch whose loss is not finite in any
    process, or with a gradient that is not, leaves no trace: weights, the optimizer's tensors, and the buffers
    (BatchNorm's statistics and the memory, which the forward pass has already written) become what they were before
    it. The schedule and the order of the data go on. For this a copy of all of them is kept, and an optimizer that
    counts its steps on the CPU (AdamW that is not fused) makes the host wait. 10 of these in a row end training.

    With fp16, a gradient that overflows is the scaler's matter: it leaves the update out itself.

    Args:
        trainer ([`AllSparkTrainer`]): whose model and optimizer are watched.

    Attributes:
        skipped (`torch.Tensor`): int64 scalar, updates that were left out since the run began.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.skips = False
        if self.skips and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
            raise ValueError(
                "nan_loss='skip' needs weights and optimizer whole on every device, but FSDP and DeepSpeed cut them: "
                "set it to 'stop'."
            )
        device = trainer.args.device
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.in_a_row = torch.zeros_like(self.skipped)
        self.longest = torch.zeros_like(self.skipped)  # of those in a row, since last told
        self.first_step = torch.full_like(self.skipped, -1)  # that was bad, since the start
        self.first_terms = torch.zeros(2, device=device)  # loss_x and loss_u of it
        self.bad = torch.zeros((), dtype=torch.bool, device=device)  # in this update
        self.terms = torch.zeros(2, device=device)
        self.kept: dict[str, torch.Tensor] = {}
        self.kept_state: list[tuple[dict, str, torch.Tensor]] = []

    # ---- During an update: on the device only ----

    @torch.no_grad()
    def note_loss(self, loss: torch.Tensor, terms: dict[str, torch.Tensor]):
        """Looks at the loss of one batch: float scalar, and its `loss_x` and, if any, `loss_u`."""
        bad = ~torch.isfinite(loss)
        parts = [terms[name].detach().float() for name in ("loss_x", "loss_u") if name in terms]
        values = torch.stack([*parts, *[torch.zeros_like(parts[0])] * (2 - len(parts))])
        self.terms = torch.where(self.bad, self.terms, values)
        self.bad = self.bad | bad

    @torch.no_grad()
    def note_gradient(self, norm: torch.Tensor | float | None):
        """Looks at the norm of an update's gradient, which is that of all processes."""
        if hasattr(norm, "full_tensor"):  # of FSDP
            norm = norm.full_tensor()
        if norm is not None and getattr(self.trainer.accelerator, "scaler", None) is None:
            self.bad = self.bad | ~torch.isfinite(torch.as_tensor(norm, device=self.bad.device))

    def on_train_begin(self, args, state, control, **kwargs):
        """What an earlier training with the same trainer ended by is no fault of this one."""
        self.in_a_row.zero_()
        self.longest.zero_()
        self.first_step.fill_(-1)

    def on_step_begin(self, args, state, control, **kwargs):
        self.bad = torch.zeros_like(self.bad)
        self.terms = torch.zeros_like(self.terms)
        if self.skips:
            self._keep()

    @torch.no_grad()
    def on_optimizer_step(self, args, state, control, **kwargs):
        if self.skips:
            if args.world_size > 1:  # all leave it out, or none
                flag = self.bad.to(torch.int32)
                torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
                self.bad = flag.bool()
            self._put_back()
        first = self.bad & (self.first_step < 0)
        self.first_terms = torch.where(first, self.terms, self.first_terms)
        self.first_step.masked_fill_(first, state.global_step + 1)
        self.skipped += self.bad
        self.in_a_row = torch.where(self.bad, self.in_a_row + 1, torch.zeros_like(self.in_a_row))
        self.longest = torch.maximum(self.longest, self.in_a_row)

    def _tensors(self) -> dict[str, torch.Tensor]:
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return dict(model.named_parameters()) | dict(model.named_buffers())

    def _state(self):
        for of_parameter in self.trainer.optimizer.state.values():
            for name, value in of_parameter.items():
                if isinstance(value, torch.Tensor):
                    yield of_parameter, name, value

    @torch.no_grad()
    def _keep(self):
        self.kept = {name: tensor.detach().clone() for name, tensor in self._tensors().items()}
        self.kept_state = [(owner, name, value.clone()) for owner, name, value in self._state()]

    @torch.no_grad()
    def _put_back(self):
        for name, tensor in self._tensors().items():
            tensor.copy_(torch.where(self.bad, self.kept[name], tensor))
        before = {(id(owner), name): value for owner, name, value in self.kept_state}
        for owner, name, value in self._state():
            # What this very update brought into being starts from zero, as it does in every optimizer of torch.
            kept = before.get((id(owner), name), torch.zeros_like(value))
            value.copy_(torch.where(self.bad.to(value.device), kept.to(value.device), value))

    # ---- Late: on the host ----

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_log or control.should_evaluate or control.should_save:
            self.check()

    def on_epoch_end(self, args, state, control, **kwargs):
        self.on_step_end(args, state, control)

    def on_train_end(self, args, state, control, **kwargs):
        self.kept, self.kept_state = {}, []
        self.check()

    def check(self):
        """Raises [`NonFiniteError`], in all processes alike, if training has to end; all of them must call it."""
        found = torch.cat([torch.stack([self.first_step, self.longest]).float(), self.first_terms])
        found = self.trainer.accelerator.gather(found.reshape(1, -1)).tolist()
        # Of the process whose own loss it was, if it was one's.
        step, longest, loss_x, loss_u = max(found, key=lambda row: (row[0], not math.isfinite(sum(row))))
        self.longest.zero_()
        if longest < MAX_SKIPPED if self.skips else step < 0:
            return
        args = self.trainer.args
        terms = f"loss_x {loss_x:g}" + (f", loss_u {loss_u:g}" if self.trainer.method.uses_unlabeled else "")
        rate = f"learning rate {self.trainer._get_learning_rate():.3g}"
        advice = (
            "Set --max_grad_norm 1, use --bf16 instead of --fp16, or look at the data; a resume keeps its learning "
            "rate, so for a lower one begin a new training, from a checkpoint's weights (--model_name_or_path) or anew"
        )
        if self.skips:
            raise NonFiniteError(
                f"{int(longest)} updates in a row had a loss or gradient that is not finite ({rate}), the first of "
                f"all at step {int(step)} ({terms}), and were left out: {going_on(args.output_dir)}. {advice}."
            )
        raise NonFiniteError(
            f"The loss or its gradient was not finite at step {int(step)} ({terms}; {rate}), and nothing was saved "
            f"since: {going_on(args.output_dir)}. {advice}; --nan_loss skip leaves single updates out."
        )

    @property
    def in_streak(self) -> bool:
        """Whether the last update was left out; reads the device."""
        return bool(self.in_a_row)

    def check_weights(self):
        """Raises [`NonFiniteError`] if a weight or a buffer is not finite; before each save, in all processes."""
        self.check()
        tensors = {name: tensor for name, tensor in self._tensors().items() if tensor.is_floating_point()}
        names = list(tensors)
        # Of a weight that FSDP has cut, each process looks at its own part.
        parts = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors.values()]
        finite = torch.stack([torch.isfinite(part.detach()).all() for part in parts])
        if self.trainer.accelerator.reduce((~finite).sum(), reduction="sum").item() == 0:
            return
        bad = [name for name, is_finite in zip(names, finite.tolist(), strict=True) if not is_finite]
        where = f"{bad[0]} and {len(bad) - 1} others" if bad else "one of another process"
        raise NonFiniteError(
            f"The weights are not finite after step {self.trainer.state.global_step} ({where}), and are not saved: "
            f"{going_on(self.trainer.args.output_dir)}. Set --max_grad_norm 1, or begin anew with a lower learning "
            "rate."
        )


def finite_mean(values: list[torch.Tensor]) -> torch.Tensor:
    """Mean of float scalars, those left out that are not finite; NaN if none is."""
    values = torch.stack(values)
    return values.where(torch.isfinite(values), torch.nan).nanmean()


class NonFiniteMixin:
    """The Trainer's side of [`FiniteGuard`], to be named before [`~transformers.Trainer`] among the base classes."""

    _finite: FiniteGuard

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        """With `nan_loss="skip"` the logged loss has the mean so far instead of one that is not finite."""
        loss = super().training_step(*args, **kwargs)
        if not self._finite.skips:
            return loss
        so_far = self._tr_loss / (1 + self.state.global_step - self._globalstep_last_logged)
        return torch.where(torch.isfinite(loss), loss, so_far)

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._finite.note_gradient(norm)
        return norm


__all__ = ["MAX_SKIPPED", "NAN_LOSS", "FiniteGuard", "NonFiniteMixin", "finite_mean"]

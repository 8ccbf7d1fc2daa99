"""The teacher: a copy of the model that follows the trained one as an exponential moving average of its weights."""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn

from ..utils.arguments import argument, documented
from .base import Method, MixedBatch, whole
from .class_thresholds import ClassThresholds
from .pseudo_label import UnlabeledArguments
from .pseudo_labels import PseudoLabels
from .strong_views import cutmix


PUBLISHED_DECAY = 0.996
AVERAGES_IN_A_RUN = 6  # 0.996 averages over 250 updates, and is level with the student in a run of 1,500


@documented
@dataclass
class TeacherArguments(UnlabeledArguments):
    """What every method with a teacher reads."""

    confidence_threshold: float = argument(
        0.95,
        "Pseudo-labels of a lower probability do not count.",
        interval="[0, 1]",
        resume="changed",
        common=True,
        shown=True,
    )
    keep_quantile: float | None = argument(
        None,
        "Share of the pixels predicted as a class that counts, the most confident ones, such as 0.8; pixels below "
        "confidence_threshold never count. With a lower confidence_threshold it keeps rare classes in, whose pixels "
        "are seldom sure.",
        interval="(0, 1)",
        resume="refused",
        shown=True,
    )
    ema_decay: float | None = argument(
        None,
        "Share of the teacher that stays at an update. Default: 0.996, the published one, but 1 - 6 / updates in runs "
        "below 1,500 updates, where such a teacher would lag behind.",
        interval="[0, 1)",
        resume="changed",
        shown=True,
    )
    evaluate_student: bool = argument(
        False, "Evaluate the trained model beside its teacher; its metrics begin with student_.", resume="changed"
    )


class TeacherMethod(Method):
    """
    A method whose teacher gives the pseudo-labels and is what is evaluated, saved and published.

    Each unlabeled loss counts the pixels of one CutMix view, in the order in which the method declares them.

    The teacher is in float32 or better, and in eval mode. After update i, counted from 1, its weights and buffers are
    `r * teacher + (1 - r) * student` with `r = min(1 - 1 / i, ema_decay)`; integers are rounded down (UniMatch V2).
    """

    arguments_class = TeacherArguments

    def build(self, model):
        precision = torch.promote_types(model.dtype, torch.float32)  # an update of 0.004 is lost in bfloat16
        self.teacher = deepcopy(model).to(precision).requires_grad_(False).eval()
        if self.teacher.bottleneck is not None:
            self.teacher.bottleneck.memory = None  # only training reads the memory
        if self.args.keep_quantile is not None:
            own = self.args.keep_quantile, self.args.confidence_threshold
            self.class_thresholds = ClassThresholds(model.config.num_labels, *own)
        return {}

    def derived(self):
        return super().derived() | ({"ema_decay": self.decay} if self.args.ema_decay is None else {})

    def before_training(self, model):
        update_teacher(self.teacher, model, decay=0)

    def after_update(self, model, updates):
        decay = min(1 - 1 / updates, self.decay)
        update_teacher(self.teacher, model, decay)
        if self.args.keep_quantile is not None:
            self.class_thresholds.update(decay)

    def evaluated_model(self, model):
        return self.teacher

    @property
    def threshold(self):
        return self.args.confidence_threshold if self.args.keep_quantile is None else self.class_thresholds.values

    def also_evaluated(self, model):
        return {"student_": model} if self.args.evaluate_student else {}

    def count_unlabeled(self, batch):
        """int64 (views,): shown pixels of each CutMix view; inside the box the partner's padding counts."""
        views = [view.name for view in self.unlabeled_views if view.cutmix]
        return torch.stack([cutmix(batch, view, self.shown(batch))[0].sum() for view in views])

    def confident_labels(self, predicted: PseudoLabels, batch: MixedBatch) -> torch.Tensor:
        """int64 (unlabeled, height, width): the teacher's labels; the ignore index where unsure, and on padding."""
        if self.args.keep_quantile is not None:
            self.class_thresholds.count(predicted.labels, predicted.confidence, self.shown(batch))
        return predicted.labels.where(predicted.confident & self.shown(batch), self.ignore_index)

    def kept(self, pseudo_labels: torch.Tensor, batch: MixedBatch) -> torch.Tensor:
        """Share of the shown pixels whose pseudo-label counts, float scalar in [0, 1]."""
        return (pseudo_labels != self.ignore_index).sum() / self.shown(batch).sum().clamp(min=1)

    @property
    def decay(self) -> float:
        """`ema_decay`, or its default for the length of the training."""
        if self.args.ema_decay is not None:
            return self.args.ema_decay
        return min(PUBLISHED_DECAY, max(0.0, 1 - AVERAGES_IN_A_RUN / self.num_updates))


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, decay: float):
    """
    Moves all weights and buffers of a teacher toward those of a student.

    Args:
        teacher (`nn.Module`): changed in place.
        student (`nn.Module`): with at least the teacher's weights and buffers, in any precision, sharded or not.
        decay (`float`): share of the teacher that stays, in [0, 1].
    """
    new = dict(student.named_parameters()) | dict(student.named_buffers())
    old = dict(teacher.named_parameters()) | dict(teacher.named_buffers())
    pairs = [(value, whole(new[name]).to(value.dtype)) for name, value in old.items()]
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    share = int((1 - decay) * 2**32)  # whole numbers alone: MPS has no float64, and float32 would change large ones
    for value, target in pairs:
        if not value.is_floating_point():
            kept = value.long()
            value.copy_(kept + ((target.long() - kept) * share >> 32))
    torch._foreach_lerp_([value for value, _ in floats], [target for _, target in floats], 1 - decay)

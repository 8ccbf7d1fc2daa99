"""The teacher of Alonso et al. (ICCV 2021): a copy of model and heads that follows their weights only."""

import math
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import nn

from ...models.bottleneck_allspark import at_least_float32
from ...models.upsampling import images_at_a_time, upsample
from ..base import whole
from ..pseudo_labels import CONFIDENCE_STEP


PUBLISHED_DECAY = 0.995
AVERAGES_IN_A_RUN = 6  # 0.995 averages over 200 updates; shorter runs than 1,200 updates average over a sixth of them


class TeacherPrediction(NamedTuple):
    """
    What a teacher says of images.

    Args:
        labels (`torch.Tensor`): int64 (batch, height, width), the most probable class.
        confidence (`torch.Tensor`): float (batch, height, width), its probability in [0, 1].
        features (`torch.Tensor`): float (batch, channels, head height, head width), what the classifier gets.
    """

    labels: torch.Tensor
    confidence: torch.Tensor
    features: torch.Tensor

    @property
    def sampled_confidence(self) -> torch.Tensor:
        """The confidence at every fourth row and column, enough for a mean."""
        return self.confidence[:, ::CONFIDENCE_STEP, ::CONFIDENCE_STEP]


def teacher_decay(update: int, num_updates: int) -> float:
    """
    The share of the teacher that stays at an update, counted from 0: along half a cosine from 0.995 (in short runs
    `1 - 6 / num_updates`) to 1, and in the first updates 1 - 1 / (10 update + 1), from 0.
    """
    first = min(PUBLISHED_DECAY, max(0.0, 1 - AVERAGES_IN_A_RUN / num_updates))
    return min(1 - 1 / (10 * update + 1), 1 - (1 - first) * (math.cos(math.pi * update / num_updates) + 1) / 2)


class PixelTeacher(nn.Module):
    """
    Args:
        model ([`SemiSupervisedSegmenter`]): to be copied.
        heads (`nn.ModuleDict`): of the method, to be copied; they become `method_modules` of the model.
        mode (`str`):
            `"train"`, as published: the teacher keeps dropout and the statistics of each batch, and its running
            statistics, which begin anew, are its own; only `evaluate_teacher` and `holdout_fraction` read them, since
            they put it in eval mode. `"eval"`: the student's statistics.
    """

    def __init__(self, model: nn.Module, heads: nn.ModuleDict, mode: str):
        super().__init__()
        self.copies_buffers = mode == "eval"
        # What is frozen in the student rests in the teacher too: its mode is set while it says what is trained.
        self.model, self.heads = deepcopy(model), deepcopy(heads)
        self.model.train(mode == "train")
        self.heads.train(mode == "train")
        self.requires_grad_(False)
        self.to(torch.promote_types(model.dtype, torch.float32))  # an update of 0.005 is lost in bfloat16
        if not self.copies_buffers:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
                    module.reset_running_stats()

    @torch.no_grad()
    def follow(self, student: nn.Module, decay: float):
        """Moves the weights toward those of the student, a model, sharded or not; a share `decay` stays."""
        new = dict(student.named_parameters()) | dict(student.named_buffers())
        weights = [*self.model.named_parameters(), *self.heads.named_parameters("method_modules")]
        targets = [whole(new[name]).to(value.dtype) for name, value in weights]
        torch._foreach_lerp_([value for _, value in weights], targets, 1 - decay)
        if self.copies_buffers:
            for name, value in [*self.model.named_buffers(), *self.heads.named_buffers("method_modules")]:
                value.copy_(whole(new[name]))

    @torch.no_grad()
    def predict(self, pixel_values: torch.Tensor) -> TeacherPrediction:
        """Of float (batch, 3, height, width), normalized; no more than a few images' logits are at full resolution."""
        outputs = self.model(pixel_values=pixel_values, output_decoder_features=True)
        logits, size, found = at_least_float32(outputs.logits), pixel_values.shape[2:], []
        for images in logits.split(images_at_a_time(logits.shape[1], size)):
            found.append(upsample(images, size).softmax(dim=1).max(dim=1))
        confidence, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        return TeacherPrediction(labels, confidence, outputs.decoder_features)

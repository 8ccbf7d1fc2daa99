"""UniMatch V2 (TPAMI 2025): confident labels of a weak view, learned from two strong ones."""

from dataclasses import replace
from functools import partial

import torch

from ..data.views import STRONG_1, STRONG_2, WEAK
from .base import StepLosses
from .pseudo_labels import pseudo_label_pass
from .strong_views import complementary_dropout, cutmix, unpack_channel_bits
from .teacher import TeacherMethod


class UniMatchV2(TeacherMethod):
    """L = (L_x + (L_s1 + L_s2) / 2) / 2, with CutMix, complementary dropout of channels and an EMA teacher."""

    labeled_views = (WEAK,)
    unlabeled_views = (WEAK, STRONG_1, replace(STRONG_2, channel_bits=True))
    title = "UniMatch V2"
    description = "an EMA teacher's confident labels, learned from two strong views with complementary channels"
    trains_unlabeled_branch = False

    def step(self, model, batch, pixels, epoch):
        predicted = pseudo_label_pass(self.teacher, batch["unlabeled_pixel_values"], self.threshold)
        pseudo_labels = self.confident_labels(predicted, batch)
        strong_1, labels_1 = cutmix(batch, "strong_1", batch["unlabeled_pixel_values_strong_1"], pseudo_labels)
        strong_2, labels_2 = cutmix(batch, "strong_2", batch["unlabeled_pixel_values_strong_2"], pseudo_labels)
        drawn, kept = unpack_channel_bits(batch["unlabeled_channel_bits_strong_2"])

        outputs = model(pixel_values=batch["pixel_values"])
        strong = torch.cat([strong_1, strong_2])
        logits = model(pixel_values=strong, perturb=partial(complementary_dropout, drawn=drawn, kept=kept)).logits
        logits_1, logits_2 = logits.chunk(2)

        loss_x, used_x = self.labeled_loss(outputs.logits, batch["labels"], pixels)
        loss_1, _ = self.unlabeled_loss(logits_1, labels_1, pixels)
        loss_2, _ = self.unlabeled_loss(logits_2, labels_2, pixels, view=1)
        loss_u = (loss_1 + loss_2) / 2
        terms = {"loss_x": loss_x, "loss_u": loss_u, "used_x": used_x, "used_u": self.kept(pseudo_labels, batch)}
        terms["pseudo_confidence"] = self.confidence(predicted.confidence, pseudo_labels)
        return StepLosses(self.total(loss_x, loss_u, epoch), terms, pseudo_labels)

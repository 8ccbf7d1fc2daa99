"""FixMatch (NeurIPS 2020) for segmentation: confident labels of a weak view, learned from a strong one."""

from ..data.views import STRONG_1, WEAK
from .base import StepLosses
from .pseudo_labels import pseudo_label_pass
from .strong_views import cutmix
from .teacher import TeacherMethod


class FixMatch(TeacherMethod):
    """L = (L_x + L_u) / 2, with CutMix and an EMA teacher: the baseline of UniMatch V2 (TPAMI 2025)."""

    labeled_views = (WEAK,)
    unlabeled_views = (WEAK, STRONG_1)
    title = "FixMatch"
    description = "an EMA teacher's confident labels, learned from a strong view"
    works_with_grouping = False

    def step(self, model, batch, pixels, epoch):
        predicted = pseudo_label_pass(self.teacher, batch["unlabeled_pixel_values"], self.threshold)
        pseudo_labels = self.confident_labels(predicted, batch)
        strong, strong_labels = cutmix(batch, "strong_1", batch["unlabeled_pixel_values_strong_1"], pseudo_labels)

        outputs = model(pixel_values=batch["pixel_values"], unlabeled_pixel_values=strong)

        loss_x, used_x = self.labeled_loss(outputs.logits, batch["labels"], pixels)
        loss_u, _ = self.unlabeled_loss(outputs.unlabeled_logits, strong_labels, pixels)
        terms = {"loss_x": loss_x, "loss_u": loss_u, "used_x": used_x, "used_u": self.kept(pseudo_labels, batch)}
        terms["pseudo_confidence"] = self.confidence(predicted.confidence, pseudo_labels)
        return StepLosses(self.total(loss_x, loss_u, epoch), terms, pseudo_labels)

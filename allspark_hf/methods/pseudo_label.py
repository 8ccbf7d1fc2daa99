"""SemiBaseline: the model's own argmax on unlabeled images is their label."""

from .base import Method, StepLosses
from .pseudo_labels import pseudo_label_pass


class PseudoLabel(Method):
    """L = (L_x + L_u) / 2 (paper, Section 3.1)."""

    def step(self, model, batch, pixels, epoch):
        predicted = pseudo_label_pass(model, batch["unlabeled_pixel_values"])
        pseudo_labels = self.without_padding(predicted.labels, batch["unlabeled_pixel_mask"])

        outputs = model(
            pixel_values=batch["pixel_values"],
            unlabeled_pixel_values=batch["unlabeled_pixel_values"],
        )

        loss_x, used_x = self.labeled_loss(outputs.logits, batch["labels"], pixels)
        loss_u, used_u = self.unlabeled_loss(outputs.unlabeled_logits, pseudo_labels, pixels)
        terms = {"loss_x": loss_x, "loss_u": loss_u, "used_x": used_x, "used_u": used_u}
        terms["pseudo_confidence"] = self.confidence(predicted.confidence, pseudo_labels)
        return StepLosses(self.total(loss_x, loss_u, epoch), terms, pseudo_labels)

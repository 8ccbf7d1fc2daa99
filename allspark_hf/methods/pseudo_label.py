"""SemiBaseline: the model's own argmax on unlabeled images is their label."""

from dataclasses import dataclass

from ..utils.arguments import argument, documented
from .base import Method, MethodArguments, StepLosses
from .pseudo_labels import pseudo_label_pass


@documented
@dataclass
class UnlabeledArguments(MethodArguments):
    """What every method with pseudo-labels reads."""

    unlabeled_loss_weight: float = argument(
        1.0,
        "Weight w of the unlabeled loss: the loss is (L_x + w L_u) / (1 + w), with memory_contrastive L_x + w L_u and "
        "its other terms. The paper has 1.",
        interval="[0, inf)",
        resume="changed",
        common=True,
        shown=True,
    )
    unlabeled_warmup_epochs: float = argument(
        0,
        "Epochs before the unlabeled loss counts, or below 1 their share of the training. The paper has 0; from "
        "scratch, where early pseudo-labels show only the most frequent class, a third of the training or more keeps "
        "the model from learning just that.",
        interval="[0, inf)",
        resume="changed",
        shown=True,
    )
    train_on_padding: bool = argument(
        False,
        "Also train on the padding of unlabeled crops, as the authors' code does.",
        resume="changed",
        shown=True,
    )


class PseudoLabel(Method):
    """L = (L_x + L_u) / 2 (paper, Section 3.1)."""

    arguments_class = UnlabeledArguments
    title = "pseudo-labels"
    description = "the model's own labels on unlabeled images, without AllSpark's bottleneck"
    works_with_grouping = False

    def step(self, model, batch, pixels, epoch):
        predicted = pseudo_label_pass(model, batch["unlabeled_pixel_values"])
        pseudo_labels = predicted.labels.where(self.shown(batch), self.ignore_index)

        outputs = model(
            pixel_values=batch["pixel_values"],
            unlabeled_pixel_values=batch["unlabeled_pixel_values"],
        )

        loss_x, used_x = self.labeled_loss(outputs.logits, batch["labels"], pixels)
        loss_u, used_u = self.unlabeled_loss(outputs.unlabeled_logits, pseudo_labels, pixels)
        terms = {"loss_x": loss_x, "loss_u": loss_u, "used_x": used_x, "used_u": used_u}
        terms["pseudo_confidence"] = self.confidence(predicted.confidence, pseudo_labels)
        return StepLosses(self.total(loss_x, loss_u, epoch), terms, pseudo_labels)

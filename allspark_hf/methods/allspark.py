"""AllSpark: pseudo-labels, and labeled features rebuilt from unlabeled ones through the semantic memory."""

from dataclasses import dataclass

from ..utils.arguments import argument, documented
from .base import Method, StepLosses
from .pseudo_label import UnlabeledArguments
from .pseudo_labels import pseudo_label_pass


@documented
@dataclass
class AllSparkMethodArguments(UnlabeledArguments):
    """What the memory of AllSpark needs besides."""

    memory_warmup_epochs: float = argument(
        1 / 16,
        "Epochs before labeled images read the memory, or below 1 their share of the training; it is filled from the "
        "first step on. Default: a sixteenth, which the paper's 5 of 80 epochs are.",
        interval="[0, inf)",
        resume="changed",
        common=True,
        shown=True,
    )
    local_memory: bool = argument(
        False, "Give each process a memory of its own unlabeled images, instead of one with the channels of all."
    )


class AllSpark(Method):
    """L = (L_x + L_u) / 2, with the bottleneck between encoder and decode head (paper, Sections 3.2 to 3.4)."""

    arguments_class = AllSparkMethodArguments
    title = "AllSpark"
    description = "labeled features rebuilt from unlabeled ones through a semantic memory"
    needs_bottleneck = True

    def step(self, model, batch, pixels, epoch):
        predicted = pseudo_label_pass(model, batch["unlabeled_pixel_values"])
        pseudo_labels = predicted.labels.where(self.shown(batch), self.ignore_index)

        outputs = model(
            pixel_values=batch["pixel_values"],
            unlabeled_pixel_values=batch["unlabeled_pixel_values"],
            unlabeled_logits=predicted.logits,
            read_memory=self.is_over(self.args.memory_warmup_epochs, epoch),
        )

        loss_x, used_x = self.labeled_loss(outputs.logits, batch["labels"], pixels)
        loss_u, used_u = self.unlabeled_loss(outputs.unlabeled_logits, pseudo_labels, pixels)
        terms = {"loss_x": loss_x, "loss_u": loss_u, "used_x": used_x, "used_u": used_u}
        terms["pseudo_confidence"] = self.confidence(predicted.confidence, pseudo_labels)
        return StepLosses(self.total(loss_x, loss_u, epoch), terms, pseudo_labels)

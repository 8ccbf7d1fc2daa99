"""SupBaseline: labeled images only."""

from .base import Method, StepLosses


class Supervised(Method):
    """L = L_x. Unlabeled images set the length of an epoch, so that budgets compare, but are not read."""

    unlabeled_views = ()
    title = "supervised learning"
    description = "labeled images only"

    def step(self, model, batch, pixels, epoch):
        outputs = model(pixel_values=batch["pixel_values"])

        loss_x, used_x = self.labeled_loss(outputs.logits, batch["labels"], pixels)
        return StepLosses(loss_x, {"loss_x": loss_x, "used_x": used_x})

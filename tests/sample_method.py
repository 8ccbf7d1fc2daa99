"""A training method that uses all that a method may have, for tests/test_method.py: registered when it is imported."""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn

from allspark_hf import AllSparkTrainingArguments
from allspark_hf.data.views import STRONG_1, STRONG_2, WEAK, inside_boxes
from allspark_hf.methods import METHODS, Method, MethodArguments, StepLosses
from allspark_hf.methods.base import whole
from allspark_hf.methods.pseudo_labels import pseudo_label_pass
from allspark_hf.utils.arguments import argument


@dataclass
class SampleArguments(MethodArguments):
    """Arguments of the sample method."""

    sample_decay: float = argument(0.9, "Share of the teacher that stays at an update.")


class Sample(Method):
    """A teacher labels weak views; the student learns them from two strong ones; a head predicts the color."""

    labeled_views = (WEAK,)
    unlabeled_views = (WEAK, STRONG_1, STRONG_2)
    arguments_class = SampleArguments
    title = "Sample"
    description = "a teacher, two strong views, a head and a buffer"

    def __init__(self, args, ignore_index):
        super().__init__(args, ignore_index)
        self.teacher = None
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def build(self, model):
        self.teacher = deepcopy(model).requires_grad_(False).eval()
        return {"color": (nn.Conv2d(model.config.num_labels, 3, kernel_size=1).to(model.dtype), 3.0)}

    def before_training(self, model):
        self.teacher.load_state_dict(
            {
                name: whole(value)
                for name, value in model.state_dict().items()
                if not name.startswith("method_modules.")
            }
        )

    def after_update(self, model, updates):
        self.seen += 1
        student = dict(model.named_parameters()) | dict(model.named_buffers())
        for name, value in [*self.teacher.named_parameters(), *self.teacher.named_buffers()]:
            new = whole(student[name])
            value.lerp_(new, 1 - self.args.sample_decay) if value.is_floating_point() else value.copy_(new)

    def evaluated_model(self, model):
        return self.teacher

    def step(self, model, batch, pixels, epoch):
        labels = pseudo_label_pass(self.teacher, batch["unlabeled_pixel_values"]).labels
        labels = labels.where(batch["unlabeled_pixel_mask"], self.ignore_index)
        outputs = model(pixel_values=batch["pixel_values"])
        loss_x, used_x = self.labeled_loss(outputs.logits, batch["labels"], pixels)
        loss_u = 0
        # The partner of an image is its own mirror image, so that processes and accumulation may cut the batch.
        for name in ("strong_1", "strong_2"):
            inside = inside_boxes(batch[f"unlabeled_cutmix_box_{name}"], labels.shape[1:])
            images = batch[f"unlabeled_pixel_values_{name}"]
            mixed = torch.where(inside[:, None], images.flip(3), images)
            logits = model(pixel_values=mixed).logits
            loss_u = loss_u + self.unlabeled_loss(logits, torch.where(inside, labels.flip(2), labels), pixels)[0] / 2
        small = nn.functional.adaptive_avg_pool2d(batch["pixel_values"], outputs.logits.shape[2:])
        loss_color = (self.built["color"](outputs.logits) - small).abs().mean()
        terms = {"loss_x": loss_x, "loss_u": loss_u, "loss_color": loss_color, "used_x": used_x}
        return StepLosses((loss_x + loss_u + loss_color) / 3, terms, labels)


METHODS["sample"] = Sample


@dataclass
class SampleTrainingArguments(AllSparkTrainingArguments, SampleArguments):
    """The arguments of training with those of the sample method."""

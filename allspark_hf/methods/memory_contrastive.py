"""Pixel contrast against a class-wise memory bank, with an EMA teacher (Alonso et al., ICCV 2021)."""

from dataclasses import dataclass

import torch

from ..data.views import WEAK, View
from ..utils.arguments import argument, documented
from .base import Method, StepLosses
from .class_balance import ClassBalance
from .class_mix import mix_with_neighbors
from .pixel_contrast import MEMORY_ROWS, PixelContrast, contrast_heads
from .pixel_losses import confident_loss, ramp_up, weighted_cross_entropy
from .pixel_memory import rows_per_image
from .pixel_teacher import PixelTeacher, teacher_decay
from .pseudo_label import UnlabeledArguments
from .pseudo_labels import CONFIDENCE_STEP


PUBLISHED_START = 2000


@documented
@dataclass
class MemoryContrastiveArguments(UnlabeledArguments):
    """What the memory of pixels needs besides."""

    contrast_start: int | None = argument(
        None,
        "Updates before the contrastive loss and ClassMix begin; the confidence-weighted loss has grown to its weight "
        "by then, and the memory fills from half of them on. Default: 2000, as published, but at most a fifth of the "
        "updates.",
        interval="[0, inf)",
        resume="changed",
        common=True,
        shown=True,
    )
    contrast_weight: float = argument(
        0.1,
        "Weight of each of the two contrastive losses, of labeled and of unlabeled pixels.",
        interval="[0, inf)",
        resume="changed",
        shown=True,
    )
    memory_inflow: float = argument(
        1.0,
        "How often a pass over the labeled images may renew the memory of a class that all of them show. Published: 1 "
        "for Cityscapes, a third of the number of classes for Pascal.",
        interval="(0, inf)",
        resume="refused",
        shown=True,
    )
    memory_confidence: float = argument(
        0.95,
        "The memory takes labeled pixels only that the teacher gives their class with a higher probability.",
        interval="[0, 1]",
        resume="changed",
        shown=True,
    )
    memory_keeps: str = argument(
        "lowest",
        "Which of a class's pixels enter the memory if there are too many: those that the selector scores lowest, as "
        "the published code does, or highest, as the paper says.",
        choices=("lowest", "highest"),
        resume="changed",
        shown=True,
    )
    memory_weights: str = argument(
        "equal",
        "Weights of the memory's rows in the loss: equal, which is what the published code comes to, or scored by "
        "selectors of their own, as the paper says.",
        choices=("equal", "scored"),
        resume="refused",
        shown=True,
    )
    teacher_mode: str = argument(
        "train",
        "Mode that the teacher predicts in: train, with dropout and the statistics of its batch, as in the published "
        "code, or eval, with the student's statistics.",
        choices=("train", "eval"),
        resume="refused",
        shown=True,
    )
    balance_classes: bool = argument(
        False,
        "Weigh classes by how rare they were in the last batches, once the contrast has begun; published for "
        "Cityscapes.",
        resume="refused",
        shown=True,
    )


class MemoryContrastive(Method):
    """
    L = L_x + L_u + 0.01 H + 0.1 (C_x + C_u): labels; the teacher's labels of two strong views, each pixel weighted by
    confidence^6; entropy of these; and pixels drawn towards the memory of their class. Published for BatchNorm
    networks with features at a stride of 4 or 8; here the features are what the classifier gets, every position of a
    stride of about 4 pixels, whatever encoder and head. Crops and colors are the project's views, ClassMix is theirs.

    Batch statistics of the heads, the memory's quota and the contrastive loss are those of one batch of all processes,
    so that two processes equal one with twice the batch; accumulated batches each have their own.
    """

    unlabeled_views = (WEAK, *(View(name, strong=True, class_mix=0.75) for name in ("strong_1", "strong_2")))
    labeled_views = (WEAK,)
    arguments_class = MemoryContrastiveArguments
    title = "memory contrast"
    description = "labels of an EMA teacher, and pixels drawn towards a class-wise memory of good labeled ones"
    updates = 0

    def build(self, model):
        config, batch = (
            model.config,
            [self.args.per_device_train_batch_size, self.args.per_device_unlabeled_batch_size],
        )
        batch = [size * self.args.world_size for size in batch]
        heads = contrast_heads(config.num_labels, config.decoder_hidden_size, self.args.memory_weights == "scored")
        heads.to(model.dtype)
        per_image = rows_per_image(MEMORY_ROWS, max(1, self.num_images[0]), self.args.memory_inflow)
        self.contrast = PixelContrast(config, self.args, batch[0] * per_image).to(model.dtype)
        if self.args.balance_classes:
            batches = [max(1, images // size) for images, size in zip(self.num_images, batch, strict=True)]
            self.balance = ClassBalance(*batches, config.num_labels)
        self.teacher = PixelTeacher(model, heads, self.args.teacher_mode)
        return {name: (head, self.args.head_learning_rate_multiplier) for name, head in heads.items()}

    def before_training(self, model):
        self.teacher.follow(model, decay=0.0)

    def after_update(self, model, updates):
        self.teacher.follow(model, teacher_decay(updates - 1, self.num_updates))
        self.updates = updates

    def get_extra_state(self):
        return torch.tensor(self.updates)  # kept on the host, which has to know it

    def set_extra_state(self, state):
        self.updates = int(state)

    @property
    def contrast_start(self) -> int:
        start = self.args.contrast_start
        return min(PUBLISHED_START, self.num_updates // 5) if start is None else start

    @property
    def has_begun(self) -> bool:
        return self.updates > self.contrast_start

    def step(self, model, batch, pixels, epoch):
        predicted = self.teacher.predict(batch["unlabeled_pixel_values"])
        pseudo_labels = predicted.labels.where(self.shown(batch), self.ignore_index)
        strong, confidence, strong_labels = self.strong_views(batch, predicted.confidence, pseudo_labels)
        weights = self.batch_weights(batch["labels"], pseudo_labels)
        loss, terms = self.losses(model, batch, strong, confidence, strong_labels, weights, pixels, epoch)
        terms["pseudo_confidence"] = self.confidence(
            predicted.confidence[:, ::CONFIDENCE_STEP, ::CONFIDENCE_STEP], pseudo_labels
        )
        return StepLosses(loss, terms, pseudo_labels)

    def batch_weights(self, labels, pseudo_labels) -> torch.Tensor | None:
        """Float (num_labels,) from this batch on, or None for ones."""
        if not self.args.balance_classes:
            return None
        self.balance.count(labels, pseudo_labels)
        return self.balance.weights(self.contrast.memory.rows.dtype) if self.has_begun else None

    def strong_views(self, batch, confidence, labels) -> list[torch.Tensor]:
        """Of both strong views pixel values, confidence and labels, with ClassMix once the contrast has begun."""
        views = []
        for name in ("strong_1", "strong_2"):
            view = batch[f"unlabeled_pixel_values_{name}"], confidence, labels
            order = batch[f"unlabeled_class_order_{name}"]
            views.append(mix_with_neighbors(order, labels, *view) if self.has_begun else view)
        return [torch.cat(both) for both in zip(*views, strict=True)]

    def labeled_loss(self, logits, labels, pixels, weights=None):
        if weights is None:
            return super().labeled_loss(logits, labels, pixels)
        used = (labels != self.ignore_index).float().mean()
        return weighted_cross_entropy(logits, labels, self.ignore_index, weights), used

    def losses(self, model, batch, strong, confidence, strong_labels, weights, pixels, epoch):
        """The loss and its terms."""
        labels, ignore_index = batch["labels"], self.ignore_index
        unlabeled = model(pixel_values=strong, output_decoder_features=True)
        labeled = model(pixel_values=batch["pixel_values"], output_decoder_features=True)

        loss_x, used_x = self.labeled_loss(labeled.logits, labels, pixels, weights)
        weight = self.args.unlabeled_loss_weight if epoch >= self.args.unlabeled_warmup_epochs else 0.0
        weight *= ramp_up(self.updates, self.contrast_start)
        loss_strong, loss_u, entropy = confident_loss(
            unlabeled.logits, strong_labels, confidence, ignore_index, 2 * pixels.unlabeled[0], weights, weight
        )
        loss = loss_x + loss_strong
        terms = {"loss_x": loss_x, "loss_u": loss_u, "used_x": used_x, "loss_entropy": entropy}
        terms["used_u"] = (strong_labels != ignore_index).float().mean()

        if self.updates > self.contrast_start // 2:
            self.contrast.fill(self.teacher.predict(batch["pixel_values"]), labels, self.teacher.heads)
        if self.has_begun:
            contrast_x = self.contrast.loss(labeled.decoder_features, labels, self.built)
            contrast_u = self.contrast.loss(unlabeled.decoder_features, strong_labels, self.built)
            loss = loss + self.args.contrast_weight * (contrast_x + contrast_u)
            terms |= {"loss_contrast_x": contrast_x, "loss_contrast_u": contrast_u}
        else:  # each takes part, as DDP waits for every gradient
            loss = loss + 0 * sum(parameter.sum() for parameter in self.built.parameters())
        terms["memory_fill"] = self.contrast.memory.share
        return loss, terms

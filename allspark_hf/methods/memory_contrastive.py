"""Pixel contrast against a class-wise memory bank, with an EMA teacher (Alonso et al., ICCV 2021)."""

import torch

from ..data.views import WEAK, View
from .base import Method, PixelCounts, StepLosses
from .contrast.arguments import MemoryContrastiveArguments
from .contrast.balance import ClassBalance
from .contrast.class_mix import mix_with_neighbors
from .contrast.heads import mean_over_processes
from .contrast.pixel_contrast import PixelContrast
from .contrast.teacher import PixelTeacher, teacher_decay
from .contrast.terms import confident_loss, ramp_up


PUBLISHED_START = 2000


class MemoryContrastive(Method):
    """
    L = L_x + L_u + 0.01 H + 0.1 (C_x + C_u): labels; the teacher's labels of two strong views, each pixel weighted by
    confidence^6; entropy of these; and pixels drawn towards the memory of their class. Features are what the
    classifier gets, at a stride of about 4 (published: 4 or 8, BatchNorm). Crops and colors are the project's views,
    ClassMix of strong views is theirs; that of labeled images (p 0.2) is left out. The student is evaluated and
    published.
    """

    unlabeled_views = (WEAK, *(View(name, strong=True, class_mix=0.75) for name in ("strong_1", "strong_2")))
    labeled_views = (WEAK,)
    arguments_class = MemoryContrastiveArguments
    title = "memory contrast"
    description = "labels of an EMA teacher, and pixels drawn towards a class-wise memory of good labeled ones"
    trains_unlabeled_branch = False

    def build(self, model):
        config, args = model.config, self.args
        precision = torch.promote_types(model.dtype, torch.float32)
        self.contrast = PixelContrast(config, args, self.num_images[0]).to(precision)
        heads = self.contrast.make_heads(config.decoder_hidden_size).to(precision)
        if args.balance_classes:
            batches = args.world_size * args.gradient_accumulation_steps
            labeled = self.num_images[0] // (args.per_device_train_batch_size * batches)
            unlabeled = self.num_images[1] // (args.per_device_unlabeled_batch_size * batches)
            self.balance = ClassBalance(labeled, unlabeled, config.num_labels)
        self.teacher = PixelTeacher(model, heads, args.teacher_mode)
        return {name: (head, args.head_learning_rate_multiplier) for name, head in heads.items()}

    def derived(self):
        own = {"contrast_start": self.contrast_start} if self.args.contrast_start is None else {}
        return super().derived() | own

    def before_training(self, model):
        self.teacher.follow(model, decay=0.0)

    def after_update(self, model, updates):
        self.teacher.follow(model, teacher_decay(updates - 1, self.num_updates))
        self.updates = updates

    def labeling_model(self, model):
        return self.teacher.model

    def also_evaluated(self, model):
        return {"teacher_": self.teacher.model} if self.args.evaluate_teacher else {}

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
        terms["pseudo_confidence"] = self.confidence(predicted.sampled_confidence, pseudo_labels)
        return StepLosses(loss, terms, pseudo_labels)

    def batch_weights(self, labels, pseudo_labels) -> torch.Tensor | None:
        """Float (num_labels,), or None for ones."""
        if not self.args.balance_classes:
            return None
        self.balance.count(labels, pseudo_labels, self.updates)
        return self.balance.weights(self.contrast.memory.rows.dtype) if self.has_begun else None

    def strong_views(self, batch, confidence, labels) -> list[torch.Tensor]:
        """Of both strong views pixel values, confidence and labels, with ClassMix once the contrast has begun."""
        views = []
        for name in ("strong_1", "strong_2"):
            view = batch[f"unlabeled_pixel_values_{name}"], confidence, labels
            order = batch[f"unlabeled_class_order_{name}"]
            views.append(mix_with_neighbors(order, labels, *view) if self.has_begun else view)
        return [torch.cat(both) for both in zip(*views, strict=True)]

    def losses(self, model, batch, strong, confidence, strong_labels, weights, pixels, epoch):
        """The loss and its terms."""
        labels, args = batch["labels"], self.args
        unlabeled = model(pixel_values=strong, output_decoder_features=True)
        labeled = model(pixel_values=batch["pixel_values"], output_decoder_features=True)

        if weights is not None:
            self.class_weights = weights
            pixels = PixelCounts(mean_over_processes(self.count_labeled(labels)), pixels.unlabeled)
        loss_x, used_x = self.labeled_loss(labeled.logits, labels, pixels)
        weight = args.unlabeled_loss_weight if epoch >= args.unlabeled_warmup_epochs else 0.0
        weight *= ramp_up(self.updates, self.contrast_start)
        loss_strong, loss_u, entropy = confident_loss(
            unlabeled.logits, strong_labels, confidence, self.ignore_index, 2 * pixels.unlabeled[0], weights, weight
        )
        loss = loss_x + loss_strong
        terms = {"loss_x": loss_x, "loss_u": loss_u, "loss_entropy": entropy, "used_x": used_x}
        terms["used_u"] = (strong_labels != self.ignore_index).float().mean()

        if self.updates > self.contrast_start // 2:
            self.contrast.fill(self.teacher.predict(batch["pixel_values"]), labels, self.teacher.heads)
        terms["memory_fill"] = self.contrast.memory.share
        if not self.has_begun:  # DDP waits for every gradient
            return loss + 0 * sum(parameter.sum() for parameter in self.built.parameters()), terms
        contrast_x = self.contrast.loss(labeled.decoder_features, labels, self.built)
        contrast_u = self.contrast.loss(unlabeled.decoder_features, strong_labels, self.built)
        terms |= {"loss_contrast_x": contrast_x, "loss_contrast_u": contrast_u}
        return loss + args.contrast_weight * (contrast_x + contrast_u), terms

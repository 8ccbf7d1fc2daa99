"""Pixel contrast against a class-wise memory bank, with an EMA teacher (Alonso et al., ICCV 2021)."""

import torch

from ..data.views import WEAK, View
from .base import Method, PixelCounts, StepLosses
from .contrast.arguments import MemoryContrastiveArguments
from .contrast.augment import augment, draw_strong, draw_weak
from .contrast.balance import ClassBalance
from .contrast.class_mix import mix_with_neighbors
from .contrast.heads import mean_over_processes
from .contrast.jitter import jitter
from .contrast.pixel_contrast import PixelContrast
from .contrast.teacher import PixelTeacher, teacher_decay
from .contrast.terms import confident_loss, ramp_up


PUBLISHED_START = 2000
STRONG = ("strong_1", "strong_2")


class MemoryContrastive(Method):
    """
    L = L_x + L_u + 0.01 H + 0.1 (C_x + C_u): L_x of the labels; L_u of the teacher's labels on two strong views, each
    pixel weighted by confidence^6; H, the entropy of the student there; C_x and C_u, which draw pixels toward the
    memory of their class. Features are those before the classifier, at a stride of about 4 (published: 4 or 8,
    BatchNorm). Crops are scaled and flipped as in the other methods (published: labeled crops are scaled and flipped
    later); the augmentation after that is the authors'. The student is evaluated and published.
    """

    unlabeled_views = (WEAK, *(View(name, draw=draw_strong, has_pixels=False) for name in STRONG))
    labeled_views = (View("weak", draw=draw_weak),)
    arguments_class = MemoryContrastiveArguments
    title = "memory contrast"
    description = "labels of an EMA teacher, and pixels drawn toward a class-wise memory of good labeled ones"
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
        for name, values in zip(("image_mean", "image_std"), self.normalization, strict=True):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        self.teacher = PixelTeacher(model, heads, args.teacher_mode)
        return {name: (head, args.head_learning_rate_multiplier) for name, head in heads.items()}

    def derived(self):
        own = {"contrast_start": self.contrast_start} if self.args.contrast_start is None else {}
        return super().derived() | own

    def before_training(self, model):
        self.teacher.follow(model, decay=0.0)

    def after_update(self, model, updates):
        self.teacher.follow(model, teacher_decay(updates - 1, self.num_updates))

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

    def labels(self, batch):
        labels = batch["labels"]
        return mix_with_neighbors(batch["class_order"], labels, labels)[0]

    def step(self, model, batch, pixels, epoch):
        predicted = self.teacher.predict(batch["unlabeled_pixel_values"])
        pseudo_labels = predicted.labels.where(self.shown(batch), self.ignore_index)
        weights = self.batch_weights(batch["labels"], pseudo_labels)
        labeled = self.labeled_view(batch)
        strong = self.strong_views(batch, predicted.confidence, pseudo_labels)
        loss, terms = self.losses(model, labeled, strong, weights, pixels, epoch)
        terms["pseudo_confidence"] = self.confidence(predicted.sampled_confidence, pseudo_labels)
        return StepLosses(loss, terms, pseudo_labels)

    def batch_weights(self, labels, pseudo_labels) -> torch.Tensor | None:
        """Class weights of the batch, float (num_labels,); None if all are 1."""
        if not self.args.balance_classes:
            return None
        self.balance.count(labels, pseudo_labels, self.updates)
        return self.balance.weights(self.contrast.memory.rows.dtype) if self.has_begun else None

    def labeled_view(self, batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixel values and labels, with ClassMix and jitter."""
        (pixels,) = mix_with_neighbors(batch["class_order"], batch["labels"], self.levels(batch["pixel_values"]))
        pixels = jitter(pixels, batch["jitter_order"], batch["jitter_amounts"])
        return self.normalized(pixels), self.labels(batch)

    def strong_views(self, batch, confidence, labels) -> list[torch.Tensor]:
        """Pixel values, labels and confidence of both strong views, with ClassMix once the contrast has begun."""
        maps, views = [self.levels(batch["unlabeled_pixel_values"]), labels, confidence], []
        for name in STRONG:
            own = [key for key in batch if key.endswith(f"_{name}")]
            drawn = {key.removeprefix("unlabeled_").removesuffix(f"_{name}"): batch[key] for key in own}
            mixed = mix_with_neighbors(drawn["class_order"], labels, *maps) if self.has_begun else maps
            views.append(augment(drawn, *mixed, self.ignore_index))
        pixels, labels, confidence = (torch.cat(both) for both in zip(*views, strict=True))
        return [self.normalized(pixels), labels, confidence]

    def levels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Images in [0, 1]."""
        return pixel_values * self.image_std + self.image_mean

    def normalized(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels - self.image_mean) / self.image_std

    def losses(self, model, labeled_view, strong_views, weights, pixels, epoch):
        """The loss and its terms."""
        (pixel_values, labels), (strong, strong_labels, confidence), args = labeled_view, strong_views, self.args
        unlabeled = model(pixel_values=strong, output_decoder_features=True)
        labeled = model(pixel_values=pixel_values, output_decoder_features=True)

        if weights is not None:
            self.class_weights = weights
            pixels = PixelCounts(mean_over_processes(self.count_labeled(labels)), pixels.unlabeled)
        loss_x, used_x = self.labeled_loss(labeled.logits, labels, pixels)
        weight = args.unlabeled_loss_weight if self.is_over(args.unlabeled_warmup_epochs, epoch) else 0.0
        weight *= ramp_up(self.updates, self.contrast_start)
        loss_strong, loss_u, entropy = confident_loss(
            unlabeled.logits, strong_labels, confidence, self.ignore_index, 2 * pixels.unlabeled[0], weights, weight
        )
        loss = loss_x + loss_strong
        terms = {"loss_x": loss_x, "loss_u": loss_u, "loss_entropy": entropy, "used_x": used_x}
        terms["used_u"] = (strong_labels != self.ignore_index).float().mean()

        if self.updates > self.contrast_start // 2:
            self.contrast.fill(self.teacher.predict(pixel_values), labels, self.teacher.heads)
        terms["memory_fill"] = self.contrast.memory.share
        if not self.has_begun:  # DDP waits for every gradient
            return loss + 0 * sum(parameter.sum() for parameter in self.built.parameters()), terms
        contrast_x = self.contrast.loss(labeled.decoder_features, labels, self.built)
        contrast_u = self.contrast.loss(unlabeled.decoder_features, strong_labels, self.built)
        terms |= {"loss_contrast_x": contrast_x, "loss_contrast_u": contrast_u}
        return loss + args.contrast_weight * (contrast_x + contrast_u), terms

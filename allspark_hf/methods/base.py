"""What the training methods share: the batch, the losses they return, and a few steps with one right way."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from ..data.mixed import MixedBatch
from ..data.views import STRONG, WEAK, View
from ..models.encoders import IMAGENET
from ..models.modeling_allspark import SemiSupervisedSegmenter
from ..utils.arguments import argument, documented, names
from .losses import ohem_labels, upsampled_cross_entropy_sum
from .pseudo_labels import CONFIDENCE_STEP


BALANCED = "balanced"
LABELED_VIEWS = {"weak": (WEAK,), "strong": (STRONG,)}


@documented
@dataclass
class MethodArguments:
    """What every method reads. A method with more declares a dataclass based on this one, beside itself."""

    labeled_loss: str = argument(
        "cross_entropy",
        "Loss of labeled images: cross_entropy, or ohem (online hard example mining), the paper's for Cityscapes.",
        choices=("cross_entropy", "ohem"),
        resume="changed",
        shown=True,
    )
    ohem_threshold: float = argument(
        0.7, "OHEM keeps pixels whose true class has at most this probability.", interval="[0, 1]", resume="changed"
    )
    ohem_min_kept: int = argument(
        200_000, "OHEM keeps at least this many pixels of a batch.", interval="[0, inf)", resume="changed"
    )
    class_weights: list[str] | None = argument(
        None,
        "Weights of the classes in the labeled loss: one number for each, or balanced, which gives rare classes more: "
        "sqrt(median of the classes' pixels / pixels of the class), counted in the labeled masks.",
        resume="changed",
        shown=True,
    )
    labeled_view: str | None = argument(
        None,
        "View of labeled images: weak (scaled, cropped, mirrored), or strong (also color jitter, gray and blur). "
        "Default: that of the method, as published.",
        choices=LABELED_VIEWS,
        resume="changed",
        shown=True,
    )


@dataclass
class PixelCounts:
    """
    Pixels that each loss is divided by, counted so that accumulation and processes average exactly.

    Args:
        labeled (`torch.Tensor`): float scalar, see [`Method.count_labeled`].
        unlabeled (`torch.Tensor`): float (unlabeled losses,), see [`Method.count_unlabeled`].
    """

    labeled: torch.Tensor
    unlabeled: torch.Tensor


@dataclass
class StepLosses:
    """
    Result of one training step.

    Args:
        loss (`torch.Tensor`): float scalar, to be differentiated.
        terms (`dict[str, torch.Tensor]`):
            float scalars to log: `loss_x`, `loss_u` (the paper's names), and the shares of pixels in [0, 1] that
            these count, `used_x`, `used_u`; `pseudo_confidence`, mean probability of the pseudo-labels.
        pseudo_labels (`torch.Tensor`, *optional*): int64 (unlabeled, height, width), class or the ignore index.
    """

    loss: torch.Tensor
    terms: dict[str, torch.Tensor]
    pseudo_labels: torch.Tensor | None = None


class Method(nn.Module):
    """
    A training method: how a mixed batch becomes a loss, and all that is needed for it. A subclass declares what it
    needs and overrides `step`, and the hooks that it has a use for.

    - `labeled_views`, `unlabeled_views`: the views of each image, see [`View`]; no unlabeled views, no unlabeled half.
    - Submodules and buffers: the method's state, e.g. a teacher. It goes to the device and into checkpoints.
    - `build`: modules to train beside the model, e.g. a projection head.
    - `arguments_class`: a dataclass beside the method; its fields join the command line under the method's title.

    None of this is published, except the model that `evaluated_model` names.

    Args:
        args ([`AllSparkTrainingArguments`]): loss settings.
        ignore_index (`int`): label of pixels that do not count.
    """

    labeled_views: tuple[View, ...] = (STRONG,)
    unlabeled_views: tuple[View, ...] = (WEAK,)
    arguments_class: ClassVar[type] = MethodArguments
    title: ClassVar[str]  # for tables and cards
    description: ClassVar[str]  # a few words, for --help and cards
    uses_unlabeled = True
    acts_after_updates = False
    needs_bottleneck = False
    works_with_grouping = True  # False if a step gives the bottleneck unlabeled images without logits to group by
    trains_unlabeled_branch = True  # of the bottleneck; False for a step without it, or DDP waits for its gradients

    # The trainer sets these: the images before `build`, the updates before the first step.
    num_updates = 0  # updates of the whole training
    updates = 0  # updates so far, skipped ones included
    num_images = (0, 0)  # labeled and unlabeled images of an epoch
    normalization = (IMAGENET["image_mean"], IMAGENET["image_std"])  # of the images

    def __init__(self, args, ignore_index: int):
        super().__init__()
        self.args = args
        self.ignore_index = ignore_index
        if args.labeled_view is not None:
            self.labeled_views = LABELED_VIEWS[args.labeled_view]
        self.class_weights: torch.Tensor | None = None  # float32 (num_labels,) on the device; set by the trainer

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.uses_unlabeled = bool(cls.unlabeled_views)
        cls.acts_after_updates = cls.after_update is not Method.after_update

    def build(self, model: PreTrainedModel) -> dict[str, tuple[nn.Module, float]]:
        """
        Called once, before the model is wrapped or changed.

        Args:
            model ([`SemiSupervisedSegmenter`]): the model to train.

        Returns:
            `dict[str, tuple[nn.Module, float]]`: modules to train, each with its learning rate as a multiple of the
            encoder's. They are `self.built[name]` in a step, are wrapped (DDP, FSDP2), clipped and saved in
            checkpoints with the model, and left out where it is published. Each must take part in every step's loss.
        """
        return {}

    def attach(
        self, model: PreTrainedModel, device: torch.device, autocast: Callable | None = None
    ) -> dict[str, float]:
        """
        Adds the modules of `build` to a model; their learning rates by name, as multiples of the encoder's. `autocast`
        decorates the forward of the method's copies of the model with the training's mixed precision.
        """
        if hasattr(model, "method_modules"):  # those of an earlier training
            del model.method_modules
        built = self.build(model)
        if built:
            modules = nn.ModuleDict({name: module for name, (module, _) in built.items()}).to(device)
            model.method_modules = modules
            # Not as a submodule of the method: the modules belong to the model's weights, not to the method's state.
            object.__setattr__(self, "built", modules)
        for part in self.modules() if autocast is not None else ():  # accelerate casts the trained model alone
            if isinstance(part, SemiSupervisedSegmenter):
                part.forward = MethodType(autocast(type(part).forward), part)
        self.to(device)
        return {name: rate for name, (_, rate) in built.items()}

    def derived(self) -> dict:
        """Arguments whose values follow from the data or the length of the training, known once it has begun."""
        if self.args.class_weights != [BALANCED] or self.class_weights is None:
            return {}
        return {"class_weights": [float(f"{weight:.4g}") for weight in self.class_weights]}

    def before_training(self, model: PreTrainedModel):
        """Called before the first step of a training that does not resume one."""

    def after_update(self, model: PreTrainedModel, updates: int):
        """
        Called after each update of the weights, without gradient, once whatever the accumulation steps.

        Args:
            model ([`SemiSupervisedSegmenter`]):
                with the new weights, and the BatchNorm statistics that all processes evaluate with. With FSDP2 the
                weights are sharded: see [`whole`].
            updates (`int`): how many there have been, this one included.
        """

    def evaluated_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model that is evaluated, saved and published: `model`, which is trained, or e.g. a teacher."""
        return model

    def labeling_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model that gives the pseudo-labels, also those of held-out images: `model`, or e.g. a teacher."""
        return self.evaluated_model(model)

    @property
    def threshold(self) -> float | torch.Tensor | None:
        """Least probability of a pseudo-label that counts, for all classes or for each; None if all count."""
        return None

    def also_evaluated(self, model: PreTrainedModel) -> dict[str, PreTrainedModel]:
        """Models that are evaluated beside [`evaluated_model`], by the prefix of their metrics' names."""
        return {}

    @classmethod
    def check_arguments(cls, args):
        """
        Refuses arguments that do not fit the method, when they are made.

        Args:
            args ([`AllSparkTrainingArguments`]): with this method.

        Raises:
            ValueError:
                if an epoch would leave out images that the method reads, `class_weights` are no weights, the method
                augments labeled images in a way of its own and a view is given, or a warm-up above 1 is no whole
                number of epochs.
        """
        for name in names(cls.arguments_class):
            value = getattr(args, name)
            if name.endswith("_warmup_epochs") and value > 1 and value % 1:
                raise ValueError(f"{name}={value:g}: set whole epochs, or below 1 a share of the training.")
        if args.labeled_view is not None and cls.labeled_views not in LABELED_VIEWS.values():
            raise ValueError(
                f"labeled_view={args.labeled_view!r}, but method={args.method!r} augments labeled images in a way of "
                "its own: leave labeled_view out."
            )
        given = args.class_weights
        if given is not None and given != [BALANCED] and not all(map(_is_weight, given)):
            raise ValueError(
                f"class_weights={' '.join(map(str, given))}: set it to balanced, or to a number of at least 0 for "
                "each class."
            )
        if args.epoch_length == "labeled" and cls.uses_unlabeled:
            raise ValueError(
                f"epoch_length='labeled' would leave most unlabeled images out of an epoch of method={args.method!r}: "
                "set it to 'unlabeled'."
            )

    def step(self, model: nn.Module, batch: MixedBatch, pixels: PixelCounts, epoch: int) -> StepLosses:
        """
        Args:
            model (`nn.Module`): the model as wrapped for training (DDP, compiled, ...), in train mode.
            batch ([`MixedBatch`]): on the model's device.
            pixels ([`PixelCounts`]): what to divide the summed losses by.
            epoch (`int`): counted from 0.

        Returns:
            [`StepLosses`]: the loss, which the trainer differentiates, and what is logged.
        """
        raise NotImplementedError

    def labeled_loss(self, logits, labels, pixels: PixelCounts) -> tuple[torch.Tensor, torch.Tensor]:
        """
        L_x, the cross-entropy per labeled pixel, or with `--labeled_loss ohem` per kept pixel, and the share of pixels
        used: float scalars. `logits` are float (labeled, num_labels, any height, any width), `labels` int64 (labeled,
        height, width), class or the ignore index.
        """
        count = pixels.labeled
        if self.args.labeled_loss == "ohem":
            labels = ohem_labels(logits, labels, self.args.ohem_threshold, self.args.ohem_min_kept, self.ignore_index)
            count = self.count_labeled(labels)
        return self._per_pixel(logits, labels, count, self.class_weights)

    def labels(self, batch: MixedBatch) -> torch.Tensor:
        """int64 (labeled, height, width): what the step trains on, class or the ignore index."""
        return batch["labels"]

    def count_labeled(self, labels: torch.Tensor) -> torch.Tensor:
        """Scalar: the pixels of int64 labels (labeled, height, width) that count, or the sum of their weights."""
        counted = labels != self.ignore_index
        if self.class_weights is None:
            return counted.sum()
        return (self.class_weights[labels.where(counted, 0)] * counted).sum()

    def count_unlabeled(self, batch: MixedBatch) -> torch.Tensor:
        """int64 (unlabeled losses,): the pixels of a batch that each unlabeled loss is divided by."""
        return self.shown(batch).sum().reshape(1)

    def unlabeled_loss(
        self, logits, pseudo_labels, pixels: PixelCounts, view: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        L_u, the cross-entropy per pixel against the pseudo-labels, and the share of pixels used; shapes as for
        `labeled_loss`. `view` is the place in `pixels.unlabeled`.
        """
        return self._per_pixel(logits, pseudo_labels, pixels.unlabeled[view])

    def _per_pixel(self, logits, labels, count, weights=None) -> tuple[torch.Tensor, torch.Tensor]:
        loss = upsampled_cross_entropy_sum(logits, labels, self.ignore_index, weights)
        loss = loss / count.clamp(min=torch.finfo(torch.float32).tiny)  # without a pixel both are 0
        return loss, (labels != self.ignore_index).float().mean()

    def shown(self, batch: MixedBatch) -> torch.Tensor:
        """bool (unlabeled, height, width): pixels to train on: all, but without `--train_on_padding` no padding."""
        mask = batch["unlabeled_pixel_mask"]
        return torch.ones_like(mask) if self.args.train_on_padding else mask

    def confidence(self, confidence: torch.Tensor, pseudo_labels: torch.Tensor) -> torch.Tensor:
        """
        Mean probability of the pseudo-labels, float scalar in [0, 1], from the `confidence` of [`PseudoLabels`] and
        int64 `pseudo_labels` (unlabeled, height, width), class or the ignore index.
        """
        counted = pseudo_labels[:, ::CONFIDENCE_STEP, ::CONFIDENCE_STEP] != self.ignore_index
        return (confidence * counted).sum() / counted.sum().clamp(min=1)

    def is_over(self, warmup: float, epoch: int) -> bool:
        """Whether a warm-up is over: `warmup` epochs, or below 1 that share of the training's updates."""
        return epoch >= warmup if warmup >= 1 else self.updates >= warmup * self.num_updates

    def total(self, loss_x: torch.Tensor, loss_u: torch.Tensor, epoch: int) -> torch.Tensor:
        """(L_x + weight * L_u) / (1 + weight): the paper's mean of the two for a weight of 1."""
        weight = self.args.unlabeled_loss_weight if self.is_over(self.args.unlabeled_warmup_epochs, epoch) else 0.0
        return (loss_x + weight * loss_u) / (1 + weight)


def _is_weight(given: str | float) -> bool:
    try:
        return 0 <= float(given) < math.inf
    except ValueError:
        return False


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A weight as one tensor. If FSDP2 has sharded it over processes, all of them must call this."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

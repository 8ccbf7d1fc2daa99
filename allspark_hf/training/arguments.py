"""Arguments of [`AllSparkTrainer`]."""

import math
import os
from dataclasses import dataclass, field

from transformers import TrainingArguments

from ..data.reading import ON_BAD_IMAGE
from ..evaluation.arguments import EvaluationArguments
from ..methods import METHODS
from .finite import MAX_SKIPPED, NAN_LOSS


LABELED_LOSSES = ("cross_entropy", "ohem")
EPOCH_LENGTHS = ("unlabeled", "labeled")


@dataclass
class AllSparkTrainingArguments(TrainingArguments, EvaluationArguments):
    r"""
    [`~transformers.TrainingArguments`] and [`EvaluationArguments`], plus what AllSpark adds. Every other argument
    keeps its meaning; `per_device_train_batch_size` counts labeled images.

    Args:
        method (`str`, *optional*, defaults to `"allspark"`): `"supervised"`, `"pseudo_label"` or `"allspark"`.
        unlabeled_loss_weight (`float`, *optional*, defaults to 1.0): weight of L_u; L = (L_x + w L_u) / (1 + w).
        unlabeled_warmup_epochs (`int`, *optional*, defaults to 0): epochs with an unlabeled loss of weight 0.
        labeled_loss (`str`, *optional*, defaults to `"cross_entropy"`): or `"ohem"`, the paper's for Cityscapes.
        ohem_threshold (`float`, *optional*, defaults to 0.7): pixels below this probability of their class are kept.
        ohem_min_kept (`int`, *optional*, defaults to 200000): pixels of a batch that are kept at least.
        train_on_padding (`bool`, *optional*, defaults to `False`): give padding of unlabeled crops a pseudo-label.
        memory_warmup_epochs (`int`, *optional*, defaults to 5): epochs before the memory is read.
        head_learning_rate_multiplier (`float`, *optional*, defaults to 10.0): of bottleneck and decode head.
        sgd_momentum (`float`, *optional*, defaults to 0.9): with `optim="sgd"`.
        decay_norm_and_bias (`bool`, *optional*, defaults to `True`): weight decay on every parameter.
        per_device_unlabeled_batch_size (`int`, *optional*): defaults to `per_device_train_batch_size`.
        total_train_batch_size (`int`, *optional*):
            labeled images of one update over all processes and accumulation steps; it sets
            `gradient_accumulation_steps`, so that a learning rate stated for it holds on any number of GPUs.
        epoch_length (`str`, *optional*, defaults to `"unlabeled"`):
            the set that an epoch is one pass over; `"labeled"` with the method `"supervised"` only.
        unlabeled_images_per_epoch (`int`, *optional*): what an epoch is if the unlabeled images are a stream; needed
            then, and rounded up to whole steps.
        shuffle_buffer_size (`int`, *optional*, defaults to 1000): images a stream is shuffled within; 0 is its order.
        sync_batchnorm (`bool`, *optional*, defaults to `False`):
            the decode head's BatchNorm counts the batches of all processes as one, as in the paper; GPUs only, and
            without effect on one process.
        local_memory (`bool`, *optional*, defaults to `False`):
            each process has a memory of its own, of its own unlabeled images, instead of
            one memory of those of all processes.
        nan_loss (`str`, *optional*, defaults to `"stop"`):
            what a loss that is NaN or infinite does: `"stop"` ends training without saving, `"skip"` leaves that
            update out, see [`FiniteGuard`].
        on_bad_image (`str`, *optional*, defaults to `"stop"`):
            what an image does that cannot be read in the midst of training: `"stop"`, or `"skip"` takes the next one.
        augment_on_device (`bool`, *optional*, defaults to `False`):
            run colour jitter, grey, blur and normalisation batched on the device instead of in the workers, with the
            same pixels as result; not on MPS, which has no float64.
        channels_last (`bool`, *optional*, defaults to `False`): keep images and weights channels-last.
        image_column_name (`str`, *optional*, defaults to `"image"`): of the datasets.
        label_column_name (`str`, *optional*, defaults to `"label"`): of the datasets.

    Defaults that differ from [`~transformers.TrainingArguments`]: `learning_rate` 1e-3, `optim` `"sgd"`,
    `weight_decay` 1e-4, `lr_scheduler_type` `"polynomial"` with power 0.9 and end 0, `max_grad_norm` 0 (off),
    `num_train_epochs` 80, `per_device_train_batch_size` 2, `per_device_eval_batch_size` 1, `eval_strategy` and
    `save_strategy` `"epoch"`, `save_total_limit` 2, `metric_for_best_model` `"mean_iou"`, `logging_steps` 10,
    `report_to` `"tensorboard"`, `label_names` `["labels"]`, `remove_unused_columns` `False`, `logging_nan_inf_filter`
    `False`, `ddp_find_unused_parameters` `False`.

    Raises:
        ValueError: if a value is out of range, or a setting does not fit mixed batches.
    """

    method: str = field(
        default="allspark",
        metadata={
            "help": "supervised (labeled images only), pseudo_label (plus the model's own labels on unlabeled "
            "images), or allspark (plus the bottleneck and its memory).",
            "choices": list(METHODS),
        },
    )
    unlabeled_loss_weight: float = field(
        default=1.0,
        metadata={"help": "Weight w of the unlabeled loss: the loss is (L_x + w L_u) / (1 + w). The paper has 1."},
    )
    unlabeled_warmup_epochs: int = field(
        default=0,
        metadata={
            "help": "Epochs before the unlabeled loss counts. The paper has 0; from scratch, where early "
            "pseudo-labels show only the most frequent class, a few epochs keep the model from learning just that."
        },
    )
    labeled_loss: str = field(
        default="cross_entropy",
        metadata={
            "help": "Loss of labeled images: cross_entropy, or ohem (online hard example mining).",
            "choices": list(LABELED_LOSSES),
        },
    )
    ohem_threshold: float = field(
        default=0.7, metadata={"help": "OHEM keeps pixels whose true class has at most this probability."}
    )
    ohem_min_kept: int = field(default=200_000, metadata={"help": "OHEM keeps at least this many pixels of a batch."})
    train_on_padding: bool = field(
        default=False,
        metadata={"help": "Also train on the padding of unlabeled crops, as the authors' code does."},
    )
    memory_warmup_epochs: int = field(
        default=5,
        metadata={"help": "Epochs before labeled images read the memory; it is filled from the first step on."},
    )
    head_learning_rate_multiplier: float = field(
        default=10.0,
        metadata={"help": "Learning rate of bottleneck and decode head, as a multiple of the encoder's."},
    )
    sgd_momentum: float = field(default=0.9, metadata={"help": "Momentum of --optim sgd."})
    decay_norm_and_bias: bool = field(
        default=True,
        metadata={"help": "Apply weight decay to norms and biases too, as the authors do. False: transformers' rule."},
    )
    per_device_unlabeled_batch_size: int | None = field(
        default=None,
        metadata={"help": "Unlabeled images of a batch per device. Default: per_device_train_batch_size."},
    )
    total_train_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Labeled images of one update over all processes and accumulation steps; sets "
            "gradient_accumulation_steps."
        },
    )
    epoch_length: str = field(
        default="unlabeled",
        metadata={
            "help": "The set that an epoch is one pass over: unlabeled, so that the methods' budgets compare, or "
            "labeled, as in the authors' supervised baseline.",
            "choices": list(EPOCH_LENGTHS),
        },
    )
    unlabeled_images_per_epoch: int | None = field(
        default=None,
        metadata={"help": "What an epoch is with a stream of unlabeled images; rounded up to whole steps."},
    )
    shuffle_buffer_size: int = field(
        default=1000,
        metadata={
            "help": "Images that a stream is shuffled within, held in memory as they are stored by each process or "
            "worker; 0 or 1 keeps the stream's order."
        },
    )
    sync_batchnorm: bool = field(
        default=False,
        metadata={"help": "Synchronise the decode head's BatchNorm over processes, as in the paper. GPUs only."},
    )
    local_memory: bool = field(
        default=False,
        metadata={"help": "Give each process a memory of its own, instead of one with the channels of all."},
    )
    nan_loss: str = field(
        default="stop",
        metadata={
            "help": "When a loss is NaN or infinite: stop (nothing is saved; the last checkpoint is named), or skip "
            f"(that update leaves no trace, skipped_steps counts it; {MAX_SKIPPED} in a row stop).",
            "choices": list(NAN_LOSS),
        },
    )
    on_bad_image: str = field(
        default="stop",
        metadata={
            "help": "When an image cannot be read in the midst of training: stop (the file is named), or skip (the "
            "next readable one is taken and that is logged; always the same one).",
            "choices": list(ON_BAD_IMAGE),
        },
    )
    augment_on_device: bool = field(
        default=False,
        metadata={
            "help": "Run colour jitter, grey, blur and normalisation batched on the device instead of in the workers; "
            "the pixels are the same."
        },
    )
    channels_last: bool = field(
        default=False,
        metadata={"help": "Keep images and weights channels-last in memory, which suits convolutions on GPUs."},
    )
    image_column_name: str = field(default="image", metadata={"help": "Column of the datasets that holds the image."})
    label_column_name: str = field(default="label", metadata={"help": "Column of the datasets that holds the mask."})

    # Defaults of transformers that the paper or mixed batches change.
    learning_rate: float = field(default=1e-3, metadata={"help": "Initial learning rate of the encoder."})
    optim: str = field(default="sgd", metadata={"help": "Optimizer, any of transformers'. The paper has sgd."})
    weight_decay: float = field(default=1e-4, metadata={"help": "Weight decay."})
    lr_scheduler_type: str = field(
        default="polynomial", metadata={"help": "Schedule; polynomial has power 0.9 and end 0 unless set otherwise."}
    )
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradient norm to clip at; 0 does not clip."})
    num_train_epochs: float = field(default=80.0, metadata={"help": "Epochs; one is a pass over the unlabeled set."})
    per_device_train_batch_size: int = field(
        default=2, metadata={"help": "Labeled images of a batch per device; as many unlabeled ones come on top."}
    )
    per_device_eval_batch_size: int = field(
        default=1, metadata={"help": "Images of an evaluation batch per device; those of one size run together."}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: no, steps, epoch or best."})
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints to keep: the last and the best with 2 and load_best_model_at_end."}
    )
    metric_for_best_model: str | None = field(default="mean_iou", metadata={"help": "What the best checkpoint has."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two log entries."})
    report_to: None | str | list[str] = field(  # noqa: RUF036 (the order HfArgumentParser can read)
        default="tensorboard", metadata={"help": "Where to log besides trainer_state.json; none for nowhere."}
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Hide NaN and infinite losses in the log, at the price of waiting for each step's loss."},
    )
    label_names: list[str] | None = field(
        default_factory=lambda: ["labels"], metadata={"help": "Names of the label tensors in a batch."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Look for parameters that a step does not use; no method has any."}
    )
    remove_unused_columns: bool | None = field(
        default=False, metadata={"help": "Must stay False: images are transformed when they are read."}
    )

    def __post_init__(self):
        if self.lr_scheduler_type == "polynomial" and self.lr_scheduler_kwargs is None:
            self.lr_scheduler_kwargs = {"power": 0.9, "lr_end": 0.0}
        self.ddp_find_unused_parameters = bool(self.ddp_find_unused_parameters)
        super().__post_init__()
        EvaluationArguments.__post_init__(self)  # TrainingArguments' own does not pass on
        if self.per_device_unlabeled_batch_size is None:
            self.per_device_unlabeled_batch_size = self.per_device_train_batch_size
        self._check_choices()
        self._check_ranges()
        self._check_batches()
        self._check_processes()
        if self.total_train_batch_size is not None:
            self._set_accumulation()

    def _set_accumulation(self):
        total, per_device, processes = self.total_train_batch_size, self.per_device_train_batch_size, self.world_size
        step = per_device * processes
        given = f"{per_device} labeled images per device x {processes} process{'es' if processes > 1 else ''} = {step}"
        if total < step:
            raise ValueError(
                f"total_train_batch_size={total} is less than one batch, {given}: lower per_device_train_batch_size, "
                "start fewer processes, or leave total_train_batch_size out."
            )
        if total % step:
            raise ValueError(
                f"total_train_batch_size={total} is no multiple of {given}: change per_device_train_batch_size or the "
                "number of processes, or leave total_train_batch_size out."
            )
        if self.gradient_accumulation_steps not in (1, total // step):
            raise ValueError(
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} contradicts "
                f"total_train_batch_size={total}, which needs {total // step} ({given}): leave one of the two out."
            )
        self.gradient_accumulation_steps = total // step

    def _check_choices(self):
        choices_of = {"method": METHODS, "labeled_loss": LABELED_LOSSES, "epoch_length": EPOCH_LENGTHS}
        choices_of |= {"nan_loss": NAN_LOSS, "on_bad_image": ON_BAD_IMAGE}
        for name, choices in choices_of.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown: choose one of {', '.join(choices)}.")
        if self.epoch_length == "labeled" and METHODS[self.method].uses_unlabeled:
            raise ValueError(
                f"epoch_length='labeled' would leave most unlabeled images out of an epoch of method={self.method!r}: "
                "set it to 'unlabeled'."
            )

    def _check_ranges(self):
        non_negative = ("unlabeled_loss_weight", "unlabeled_warmup_epochs", "memory_warmup_epochs", "ohem_min_kept")
        for name in (*non_negative, "shuffle_buffer_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} is negative: set 0 or more.")
        if not 0 <= self.ohem_threshold <= 1:
            raise ValueError(f"ohem_threshold={self.ohem_threshold} is no probability: set it in [0, 1].")
        if not 0 <= self.learning_rate < math.inf:
            raise ValueError(f"learning_rate={self.learning_rate} is no step size: set a finite number, 0 or more.")
        if self.head_learning_rate_multiplier <= 0:
            raise ValueError(f"head_learning_rate_multiplier={self.head_learning_rate_multiplier}: set more than 0.")
        for name in ("per_device_train_batch_size", "per_device_unlabeled_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: set at least 1 image.")
        if self.unlabeled_images_per_epoch is not None and self.unlabeled_images_per_epoch < 1:
            raise ValueError(
                f"unlabeled_images_per_epoch={self.unlabeled_images_per_epoch}: set at least 1 image, or leave it out."
            )

    def _check_processes(self):
        started = int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1
        if started > 1 and self.world_size == 1:
            raise ValueError(
                f"{started} processes were started, but without a GPU each would train by itself: set use_cpu=True to "
                "let them train together on CPUs."
            )

    def _check_batches(self):
        if self.augment_on_device and self.device.type == "mps":
            raise ValueError("augment_on_device=True needs float64, which MPS does not have: leave it out.")
        if self.accelerator_config.split_batches:
            raise ValueError(
                "split_batches=True cuts a mixed batch so that one process gets its labeled and another its unlabeled "
                "images: set it to False in accelerator_config, or leave it out."
            )
        if self.accelerator_config.dispatch_batches:
            raise ValueError(
                "dispatch_batches=True joins and cuts mixed batches on the main process: set it to False in "
                "accelerator_config, or leave it out."
            )
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns=True removes the image and mask columns: set it to False.")


__all__ = ["AllSparkTrainingArguments"]

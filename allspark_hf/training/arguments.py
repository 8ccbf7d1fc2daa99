"""Arguments of [`AllSparkTrainer`]."""

import os
from dataclasses import dataclass, fields

from transformers import TrainingArguments

from ..data.reading import ON_BAD_IMAGE
from ..evaluation.arguments import EvaluationArguments
from ..methods import METHODS, arguments_classes
from ..utils.arguments import argument, check_values, default_of, documented


# Arguments of transformers that nothing obeys: batches are mixed, and an evaluation keeps counts, not predictions.
WITHOUT_EFFECT = ("auto_find_batch_size", "average_tokens_across_devices", "train_sampling_strategy")
WITHOUT_EFFECT += ("label_smoothing_factor", "prediction_loss_only", "include_for_metrics", "batch_eval_metrics")
WITHOUT_EFFECT += ("eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object")
WITHOUT_EFFECT += ("bf16_full_eval", "fp16_full_eval")


@documented
@dataclass
class AllSparkTrainingArguments(TrainingArguments, EvaluationArguments, *arguments_classes()):
    """
    [`~transformers.TrainingArguments`], [`EvaluationArguments`], the arguments of every method (such as
    [`AllSparkMethodArguments`]), and those below. Listed below are also the arguments of transformers that have
    another default or a rule for resuming here; all others keep their meaning, or are refused ([`WITHOUT_EFFECT`]).

    Attributes:
        filled_in (`dict`): values of the arguments that were left at their defaults; some are derived from others.

    Raises:
        ValueError: if a value is out of range, or a setting does not fit mixed batches or the method.
    """

    # ---- Method ----

    method: str = argument(
        "allspark",
        "How to train: " + ", ".join(f"{name} ({method.description})" for name, method in METHODS.items()) + ".",
        choices=METHODS,
        group="method",
        resume="refused",
        common=True,
        shown=True,
    )
    head_learning_rate_multiplier: float = argument(
        10.0,
        "Learning rate of bottleneck and decode head, as a multiple of the encoder's.",
        interval="(0, inf)",
        resume="kept",
        shown=True,
        by_encoder=True,
    )
    freeze_encoder: bool = argument(
        False,
        "Train bottleneck and head only; the encoder keeps its weights.",
        resume="refused",
        common=True,
        shown=True,
    )
    freeze_encoder_layers: int = argument(
        0,
        "Layers at the start of a plain ViT that keep their weights, as its embeddings then do; half of them save a "
        "quarter of the step.",
        interval="[0, inf)",
        resume="refused",
        shown=True,
    )
    sgd_momentum: float = argument(0.9, "Momentum of --optim sgd.", resume="kept")
    decay_norm_and_bias: bool = argument(
        True,
        "Apply weight decay to norms and biases too, as the authors do. False: transformers' rule.",
        resume="kept",
    )
    sync_batchnorm: bool = argument(
        False,
        "Synchronize BatchNorm, an encoder's too, over processes, as in the paper. GPUs only.",
        resume="changed",
    )

    # ---- Batches and epochs ----

    num_train_epochs: float = argument(
        80.0, "Epochs; one is a pass over the unlabeled set.", resume="changed", common=True, shown=True
    )
    max_steps: int = argument(
        -1,
        "Updates in all, instead of num_train_epochs, if more than 0.",
        resume="changed",
        common=True,
        shown=True,
    )
    per_device_train_batch_size: int = argument(
        2,
        "Labeled images of a batch per device; as many unlabeled ones come on top.",
        interval="[1, inf)",
        resume="cut",
        common=True,
        shown=True,
    )
    per_device_unlabeled_batch_size: int | None = argument(
        None,
        "Unlabeled images of a batch per device. Default: per_device_train_batch_size.",
        interval="[1, inf)",
        resume="cut",
        shown=True,
    )
    gradient_accumulation_steps: int = argument(1, "Batches of one update.", resume="cut", shown=True)
    total_train_batch_size: int | None = argument(
        None,
        "Labeled images of one update over all processes and accumulation steps; sets gradient_accumulation_steps, so "
        "that a learning rate stated for it holds on any number of GPUs.",
        common=True,
    )
    epoch_length: str = argument(
        "unlabeled",
        "The set that an epoch is one pass over: unlabeled, so that the methods' budgets compare, or labeled, as in "
        "the authors' supervised baseline, with that method only.",
        choices=("unlabeled", "labeled"),
        shown=True,
    )
    unlabeled_images_per_epoch: int | None = argument(
        None,
        "What an epoch is with a stream of unlabeled images, needed then; rounded up to whole steps.",
        interval="[1, inf)",
    )
    shuffle_buffer_size: int = argument(
        1000,
        "Images that a stream is shuffled within, held in memory as they are stored by each process or worker, after "
        "the order of its shards; 0 or 1 keeps the stream's order.",
        interval="[0, inf)",
        resume="changed",
    )
    seed: int = argument(42, "Seed of weights, order and augmentation.", resume="changed", common=True, shown=True)
    data_seed: int | None = argument(
        None, "Seed of order and augmentation. Default: seed.", resume="changed", shown=True
    )

    # ---- Optimizer and schedule ----

    optim: str = argument(
        "sgd",
        "Optimizer, any of transformers'. The paper has sgd.",
        resume="refused",
        shown=True,
        by_encoder=True,
    )
    learning_rate: float = argument(
        1e-3,
        "Initial learning rate of the encoder.",
        interval="[0, inf)",
        resume="kept",
        common=True,
        shown=True,
        by_encoder=True,
    )
    weight_decay: float = argument(1e-4, "Weight decay.", resume="kept", shown=True, by_encoder=True)
    adam_beta1: float = argument(0.9, "Share of AdamW's mean of gradients that stays at an update.", resume="kept")
    adam_beta2: float = argument(0.999, "The same of its mean of squared gradients.", resume="kept")
    adam_epsilon: float = argument(1e-8, "What AdamW adds to its divisor.", resume="kept")
    lr_scheduler_type: str = argument(
        "polynomial",
        "Schedule; polynomial has power 0.9 and end 0 unless set otherwise.",
        resume="refused",
        shown=True,
    )
    lr_scheduler_kwargs: dict | str | None = argument(
        None, "Settings of the schedule in JSON, such as '{\"power\": 0.9}'.", resume="changed", shown=True
    )
    warmup_steps: float = argument(
        0, "Updates of a linear warm-up, or below 1 their share of all updates.", resume="changed", shown=True
    )
    max_grad_norm: float = argument(0.0, "Gradient norm to clip at; 0 does not clip.", resume="changed", shown=True)

    # ---- Device ----

    bf16: bool = argument(
        False, "Mixed precision with bfloat16, for GPUs since Ampere.", resume="changed", common=True, shown=True
    )
    fp16: bool = argument(False, "Mixed precision with float16.", resume="changed", shown=True)
    augment_on_device: bool = argument(
        False,
        "Run color jitter, gray, blur and normalization batched on the device instead of in the workers; the pixels "
        "are the same. Not on MPS, which has no float64.",
    )
    channels_last: bool = argument(
        False, "Keep images and weights channels-last in memory, which suits convolutions on GPUs."
    )

    # ---- Data ----

    on_bad_image: str = argument(
        "stop",
        "When an image cannot be read in the midst of training: stop (the file is named), or skip (the next readable "
        "one is taken and that is logged; always the same one).",
        choices=ON_BAD_IMAGE,
        group="data",
        resume="changed",
    )
    image_column_name: str = argument("image", "Column of the datasets that holds the image.", group="data")
    label_column_name: str = argument("label", "Column of the datasets that holds the mask.", group="data")
    label_names: list[str] | None = argument(
        default_factory=lambda: ["labels"], help="Names of the label tensors in a batch."
    )
    remove_unused_columns: bool | None = argument(False, "Must stay False: images are transformed when they are read.")
    ddp_find_unused_parameters: bool | None = argument(
        False, "Look for parameters that a step does not use; no method has any."
    )

    # ---- Evaluation, checkpoints and logs ----

    holdout_fraction: float = argument(
        0.0,
        "Share of the labeled images that is not trained on, drawn from the seed: each evaluation says how many of "
        "their pixels get a pseudo-label that counts, and how many of these are right. Leave it out below 20 labeled "
        "images: with few labels, every mask is worth more in training.",
        interval="[0, 0.5]",
        group="evaluation",
        resume="refused",
        shown=True,
    )

    output_dir: str | None = argument(
        None, "Folder for the model, its checkpoints, logs and results.", common=True, recorded=False
    )
    resume_from_checkpoint: str | None = argument(
        None, "Go on from this checkpoint; true: from the last one in output_dir.", common=True, recorded=False
    )
    per_device_eval_batch_size: int = argument(
        1, "Images of an evaluation batch per device; those of one size run together.", group="evaluation"
    )
    eval_strategy: str = argument("epoch", "When to evaluate: no, steps or epoch.", group="evaluation", common=True)
    save_strategy: str = argument("epoch", "When to save: no, steps, epoch or best.")
    save_total_limit: int | None = argument(
        2, "Checkpoints to keep: the last and the best with 2 and load_best_model_at_end."
    )
    load_best_model_at_end: bool = argument(
        False, "Take the best checkpoint in the end instead of the last weights.", shown=True
    )
    metric_for_best_model: str | None = argument("mean_iou", "What the best checkpoint has.", shown=True)
    logging_steps: float = argument(10, "Steps between two log entries.")
    logging_nan_inf_filter: bool = argument(
        False, "Hide NaN and infinite losses in the log, at the price of waiting for each step's loss."
    )
    report_to: None | str | list[str] = argument(  # noqa: RUF036 (the order HfArgumentParser can read)
        "tensorboard", "Where to log besides trainer_state.json; none for nowhere.", recorded=False
    )
    run_name: str | None = argument(None, "Name of the run in those logs.", recorded=False)
    project: str = argument("huggingface", "Name of the project in those of Trackio.", recorded=False)
    disable_tqdm: bool | None = argument(
        None, "Show no progress bar. Default: whether transformers logs less than warnings.", recorded=False
    )

    def __post_init__(self):
        given = {one.name: getattr(self, one.name) for one in fields(self) if one.init}
        self.ddp_find_unused_parameters = bool(self.ddp_find_unused_parameters)
        super().__post_init__()
        if given["accelerator_config"] is None:  # copying a batch to the GPU need not wait for its computations
            self.accelerator_config.non_blocking = self.dataloader_pin_memory and self.device.type == "cuda"
        own = {"power": 0.9, "lr_end": 0.0} if self.lr_scheduler_type == "polynomial" else {}
        if self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):  # by default, these wait for a metric to fall
            own = {"mode": "max" if self.greater_is_better else "min"}
        if own:
            self.lr_scheduler_kwargs = own | (self.lr_scheduler_kwargs or {})
        EvaluationArguments.__post_init__(self)  # TrainingArguments' own does not pass on
        if self.per_device_unlabeled_batch_size is None:
            self.per_device_unlabeled_batch_size = self.per_device_train_batch_size
        check_values(self)
        METHODS[self.method].check_arguments(self)
        self._check_batches()
        self._check_processes()
        self._check_effects(given)
        if self.total_train_batch_size is not None:
            self._set_accumulation()
        defaults = {one.name: default_of(one) for one in fields(self) if one.init}
        # HfArgumentParser reads an empty default as None.
        given = {name: "" if value is None and defaults[name] == "" else value for name, value in given.items()}
        self.filled_in = {name: getattr(self, name) for name, value in given.items() if value == defaults[name]}

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """As in transformers, but not all updates, since its polynomial schedule would then divide by 0 at the end."""
        warmup = super().get_warmup_steps(num_training_steps)
        return warmup - 1 if warmup == num_training_steps else warmup

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

    def _check_processes(self):
        started = int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1
        if started > 1 and self.world_size == 1:
            raise ValueError(
                f"{started} processes were started, but without a GPU each would train by itself: set use_cpu=True to "
                "let them train together on CPUs."
            )

    def _check_effects(self, given: dict):
        if self.full_determinism and self.device.type == "cuda":
            raise ValueError(
                "full_determinism=True lets PyTorch refuse the loss on a GPU, for which it has no deterministic "
                "implementation: leave it out, or set use_cpu=True."
            )
        for one in fields(self):
            if one.name in WITHOUT_EFFECT and given[one.name] != default_of(one):
                raise ValueError(f"{one.name}={given[one.name]!r} would change nothing: leave it out.")
        if self.optim.value.startswith("schedule_free"):
            raise ValueError(
                f"optim={self.optim.value!r} keeps the weights to evaluate apart from those that it trains, and the "
                "teacher and the saved model would be made of the latter: choose another."
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

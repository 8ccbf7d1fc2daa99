"""[`AllSparkTrainer`]: transformers' Trainer on mixed batches of labeled and unlabeled images."""

from collections import defaultdict

import datasets
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput
from transformers.training_args import OptimizerNames

from ..data.device_photometry import finish_on_device
from ..data.mixed import MixedBatchCollator, MixedBatchSampler, MixedDataset
from ..data.streaming import StreamReader, whole_steps
from ..evaluation.evaluator import Evaluation, EvaluationDataset, failing_together
from ..evaluation.metrics import metric_name
from ..inference.prediction import long_side_of
from ..methods import METHODS, MixedBatch, PixelCounts
from ..models.modeling_allspark import SegformerForSemiSupervisedSegmentation
from ..publishing.licenses import base_weights_of
from .arguments import AllSparkTrainingArguments
from .checkpoints import CheckpointMixin
from .checks import check_datasets, check_evaluation, check_model, check_output_dir
from .finite import FiniteGuard, NonFiniteMixin, finite_mean
from .hub import HubSide
from .processes import DistributedMixin, check_sharding, synchronize_batchnorm
from .pseudo_label_health import PseudoLabelHealth
from .records import RunRecord


class _EpochCallback(TrainerCallback):
    """Tells the batch sampler the epoch; accelerate's own relay misses it on a resumed, sharded data loader."""

    def __init__(self, sampler: MixedBatchSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.set_epoch(int(state.epoch or 0))


class AllSparkTrainer(DistributedMixin, CheckpointMixin, NonFiniteMixin, Trainer):
    """
    Trains [`SegformerForSemiSupervisedSegmentation`] on a labeled and an unlabeled dataset.

    Args:
        model ([`SegformerForSemiSupervisedSegmentation`]):
            For the methods `supervised` and `pseudo_label` usually a plain SegFormer, i.e. with
            `AllSparkConfig.plain_segformer_switches()`.
        args ([`AllSparkTrainingArguments`]): training arguments.
        processing_class:
            Image processor of inference, e.g. [`~transformers.SegformerImageProcessor`]: it either does not resize, or
            resizes the long side (`size={"max_height": n, "max_width": n}`), to which training then scales too.
        train_dataset (`datasets.Dataset`, *optional*): labeled images, with an image and a mask column.
        unlabeled_dataset (`datasets.Dataset` or `datasets.IterableDataset`, *optional*):
            unlabeled images; a mask column, where a row may be None, serves to measure the pseudo-labels only. A
            stream, whose masks are not read, needs `args.unlabeled_images_per_epoch`.
        eval_dataset (`datasets.Dataset` or `dict[str, datasets.Dataset]`, *optional*):
            labeled images, none of which may be among those trained on.
        kwargs: of [`~transformers.Trainer`].

    Attributes:
        evaluation ([`Evaluation`], *optional*): the sums behind the last evaluation's metrics, of all processes.
        run_source (`dict`): of [`run_source`], for the run's record.

    Raises:
        ValueError: if model, method, datasets and image processor do not fit each other.
    """

    def __init__(
        self,
        model: SegformerForSemiSupervisedSegmentation,
        args: AllSparkTrainingArguments,
        processing_class,
        train_dataset: datasets.Dataset | None = None,
        unlabeled_dataset: datasets.Dataset | datasets.IterableDataset | None = None,
        eval_dataset: datasets.Dataset | dict[str, datasets.Dataset] | None = None,
        **kwargs,
    ):
        self.unlabeled_dataset = unlabeled_dataset
        if unlabeled_dataset is not None and not self._streams and len(unlabeled_dataset) == 0:
            self.unlabeled_dataset = None
        check_model(model, args)
        if train_dataset is not None:
            check_datasets(args, train_dataset, self.unlabeled_dataset, eval_dataset)
            check_output_dir(args, model)
        self.method = METHODS[args.method](args, model.config.semantic_loss_ignore_index)
        self.long_side = long_side_of(processing_class)
        check_evaluation(model.config, args, processing_class)
        if args.sync_batchnorm:
            synchronize_batchnorm(model, args.world_size, args.device)
        if args.local_memory:
            model.config.share_memory = False
        if args.channels_last:
            model.to(memory_format=torch.channels_last)
        self._hub = HubSide(self)
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            **kwargs,
        )
        check_sharding(self.accelerator)
        self.evaluation: Evaluation | None = None
        self.run_source: dict = {}
        model.config.base_weights = base_weights_of(model.config)
        self._terms: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._sampler = self._make_sampler() if train_dataset is not None else None
        if self._sampler is not None:
            self.add_callback(_EpochCallback(self._sampler))
        self._record = RunRecord(self)
        self.add_callback(self._record)
        self._health = PseudoLabelHealth(self)
        if self.method.uses_unlabeled:
            self.add_callback(self._health)
        self._finite = FiniteGuard(self)
        self.add_callback(self._finite)

    # ---- The Hub, and the run's record ----

    def init_hf_repo(self, token: str | None = None, private: bool | None = None):
        """See [`HubSide.prepare_repository`]."""
        self._hub.prepare_repository(token, private)

    def create_model_card(self, language=None, license=None, tags=None, model_name: str | None = None, **kwargs):
        """See [`HubSide.write_card`]."""
        self._hub.write_card(model_name, language=language, license=license, tags=tags, **kwargs)

    def push_to_hub(self, *args, **kwargs):
        """See [`HubSide.push`]."""
        return self._hub.push(*args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str):
        self._hub.push_checkpoint(checkpoint_folder)

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True):
        """As in transformers, and into `run_record.json`, from which the card takes them."""
        super().save_metrics(split, metrics, combined)
        self._record.note_metrics(split, metrics)

    # ---- Mixed batches ----

    @property
    def _streams(self) -> bool:
        return isinstance(self.unlabeled_dataset, datasets.IterableDataset)

    def _make_sampler(self) -> MixedBatchSampler:
        return make_sampler(self.args, len(self.train_dataset), self._unlabeled_per_epoch(), self._streams)

    def _unlabeled_per_epoch(self) -> int:
        if self._streams:
            return whole_steps(self.args)
        return 0 if self.unlabeled_dataset is None else len(self.unlabeled_dataset)

    def _unlabeled_source(self) -> datasets.Dataset | StreamReader | None:
        if not self._streams:
            return self.unlabeled_dataset
        return StreamReader(
            self.unlabeled_dataset,
            images_per_epoch=self._sampler.num_unlabeled,
            seed=_data_seed(self.args),
            buffer_size=self.args.shuffle_buffer_size,
            image_column=self.args.image_column_name,
        )

    def get_train_dataloader(self) -> DataLoader:
        """Mixed batches, sharded over processes by accelerate: see [`MixedBatchCollator`] for what is in one."""
        if self.train_dataset is None:
            raise ValueError("Training needs labeled images: give train_dataset.")
        config = self.model.config
        dataset = MixedDataset(
            labeled=self.train_dataset,
            unlabeled=self._unlabeled_source(),
            crop=config.crop_height_width,
            seed=_data_seed(self.args),
            num_labels=config.num_labels,
            long_side=self.long_side,
            image_mean=self.processing_class.image_mean,
            image_std=self.processing_class.image_std,
            ignore_index=config.semantic_loss_ignore_index,
            image_column=self.args.image_column_name,
            label_column=self.args.label_column_name,
            on_bad_image=self.args.on_bad_image,
            augment_on_device=self.args.augment_on_device,
        )
        settings = self._loader_settings()
        if self._streams:
            # New workers would read the stream from its start, epoch after epoch.
            settings["persistent_workers"] = settings["num_workers"] > 0
            # Whether workers are started must not move the global generator, which dropout draws from.
            settings["generator"] = torch.Generator()
        loader = DataLoader(dataset, batch_sampler=self._sampler, collate_fn=MixedBatchCollator(), **settings)
        return self.accelerator.prepare(loader)

    def _loader_settings(self) -> dict:
        return {
            "num_workers": self.args.dataloader_num_workers,
            "pin_memory": self.args.dataloader_pin_memory,
            "persistent_workers": self.args.dataloader_persistent_workers,
            "prefetch_factor": self.args.dataloader_prefetch_factor,
        }

    # ---- Training step ----

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of one update, and instead of token counts the pixels that their losses are divided by."""
        batch_samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batch_samples, self._count_pixels(batch_samples) if batch_samples else None

    def _count_pixels(self, batches: list[dict[str, torch.Tensor]]) -> PixelCounts:
        """
        Pixels per batch, averaged over the batches and processes of one update: dividing each batch's summed loss by
        it makes accumulation and processes add up to exactly the mean over all pixels of the update.
        """
        labeled = sum((batch["labels"] != self.method.ignore_index).sum() for batch in batches)
        unlabeled = torch.zeros_like(labeled)
        if self.method.uses_unlabeled:
            masks = [batch["unlabeled_pixel_mask"] for batch in batches]
            unlabeled = sum(
                torch.ones_like(mask).sum() if self.args.train_on_padding else mask.sum() for mask in masks
            )
        counts = self.accelerator.reduce(torch.stack([labeled, unlabeled]).to(self.args.device), reduction="sum")
        counts = counts.float() / (len(batches) * self.args.world_size)
        return PixelCounts(labeled=counts[0], unlabeled=counts[1])

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """One step of the method; `num_items_in_batch` is the [`PixelCounts`] of `get_batch_samples`."""
        pixels = num_items_in_batch if num_items_in_batch is not None else self._count_pixels([inputs])
        inputs = self._finish_images(inputs)
        losses = self.method.step(model, MixedBatch(**inputs), pixels, epoch=int(self.state.epoch or 0))
        self._finite.note_loss(losses.loss, losses.terms)
        for name, value in losses.terms.items():
            self._terms[name].append(value.detach())
        if losses.pseudo_labels is not None:
            epoch, truth = int(self.state.epoch or 0), inputs.get("unlabeled_truth")
            self._health.update(epoch, inputs["labels"], losses.pseudo_labels, truth)
        return (losses.loss, None) if return_outputs else losses.loss

    def _finish_images(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What is left to do on the device."""
        if "photometry" in inputs:
            inputs = finish_on_device(inputs, self.processing_class.image_mean, self.processing_class.image_std)
        if self.args.channels_last:
            images = [name for name in inputs if name.endswith("pixel_values")]
            inputs = {**inputs, **{name: inputs[name].to(memory_format=torch.channels_last) for name in images}}
        return inputs

    # ---- Optimizer ----

    @staticmethod
    def get_optimizer_cls_and_kwargs(args, model=None):
        """transformers' choice, with momentum for SGD."""
        optimizer_class, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if args.optim == OptimizerNames.SGD:
            kwargs["momentum"] = args.sgd_momentum
        return optimizer_class, kwargs

    def get_decay_parameter_names(self, model) -> list[str]:
        """Parameters with weight decay: all of them, unless `decay_norm_and_bias` is off."""
        if self.args.decay_norm_and_bias:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """transformers' optimizer, its groups split into encoder and head with their own learning rates."""
        if self.optimizer is not None:
            return super().create_optimizer(model)
        optimizer = super().create_optimizer(model)
        # Parameters on a device mesh (FSDP) have no fused SGD, and DeepSpeed brings its own step.
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if self.args.optim == OptimizerNames.SGD and self.args.device.type in ("cpu", "cuda") and not sharded:
            for group in optimizer.param_groups:
                group["fused"] = True  # the same numbers in one kernel
        encoder = {id(parameter) for parameter in (model or self.model).base_model.parameters()}
        groups, optimizer.param_groups = optimizer.param_groups, []
        for is_encoder, multiplier in ((True, 1.0), (False, self.args.head_learning_rate_multiplier)):
            for group in groups:
                members = [parameter for parameter in group["params"] if (id(parameter) in encoder) == is_encoder]
                if members:
                    optimizer.add_param_group({**group, "params": members, "lr": group["lr"] * multiplier})
        return optimizer

    # ---- Logging ----

    def log(self, logs: dict[str, float], start_time: float | None = None):
        """Adds to a training entry the loss terms, pixels used, memory fill and the head's learning rate."""
        if "learning_rate" in logs:
            logs["learning_rate_head"] = logs["learning_rate"] * self.args.head_learning_rate_multiplier
            for name, values in self._terms.items():
                logs[name] = finite_mean(list(self.accelerator.gather(finite_mean(values).reshape(1)))).item()
            self._terms.clear()
            if self._finite.skips:
                logs["skipped_steps"] = int(self._finite.skipped)
            logs.update(self._memory_fill())
        super().log(logs, start_time)

    def _memory_fill(self) -> dict[str, float]:
        bottleneck = self.accelerator.unwrap_model(self.model).bottleneck
        if bottleneck is None or bottleneck.memory is None:
            return {}
        fill = bottleneck.memory.fill.tolist()
        if len(fill) != self.model.config.num_labels:
            return {"memory_fill": fill[0]}  # one ring for all classes
        id2label = self.model.config.id2label
        return {f"memory_fill_{metric_name(id2label[index])}": share for index, share in enumerate(fill)}

    # ---- Evaluation ----

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """Lists of samples of [`EvaluationDataset`]; every process reads its own rows, none of them twice."""
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("Evaluation needs labeled images: give eval_dataset.")
        prepared = EvaluationDataset(
            dataset,
            self.processing_class,
            self.model.config.num_labels,
            self.model.config.semantic_loss_ignore_index,
            self.args.image_column_name,
            self.args.label_column_name,
        )
        # Not prepared by accelerate, which would repeat rows to even out the processes.
        return DataLoader(
            prepared,
            batch_size=self.args.per_device_eval_batch_size,
            sampler=range(self.args.process_index, len(dataset), self.args.world_size),
            collate_fn=list,
            **self._loader_settings(),
        )

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """Streams the sums of [`Evaluation`] at the masks' own size; no logits are kept or gathered."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        was_training = model.training
        model.eval()
        self.callback_handler.eval_dataloader = dataloader
        self.evaluation = Evaluation(self.model.config, self.args, self.args.device)
        with failing_together(self.accelerator):
            for samples in dataloader:
                with self.compute_loss_context_manager():
                    self.evaluation.add(model, samples)
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        model.train(was_training)
        self.evaluation.reduce(self.accelerator)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.evaluation.metrics().items()}
        num_images = self.evaluation.num_images
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=num_images)


def make_sampler(
    args: AllSparkTrainingArguments, num_labeled: int, num_unlabeled: int, unlabeled_stream: bool = False
) -> MixedBatchSampler:
    """The batches of an epoch over so many labeled and unlabeled images, as the arguments cut it."""
    return MixedBatchSampler(
        num_labeled=num_labeled,
        num_unlabeled=num_unlabeled if args.epoch_length == "unlabeled" else 0,
        labeled_batch_size=args.per_device_train_batch_size,
        unlabeled_batch_size=args.per_device_unlabeled_batch_size,
        seed=_data_seed(args),
        drop_last=args.dataloader_drop_last,
        read_unlabeled=METHODS[args.method].uses_unlabeled,
        unlabeled_stream=unlabeled_stream,
        batches_per_update=args.gradient_accumulation_steps * args.world_size,
    )


def _data_seed(args: AllSparkTrainingArguments) -> int:
    return args.seed if args.data_seed is None else args.data_seed


__all__ = ["AllSparkTrainer", "make_sampler"]

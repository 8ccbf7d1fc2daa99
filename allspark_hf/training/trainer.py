"""[`AllSparkTrainer`]: transformers' Trainer on mixed batches of labeled and unlabeled images."""

from contextlib import nullcontext
from pathlib import Path

import datasets
import torch
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput
from transformers.training_args import OptimizerNames

from ..data.device_photometry import finish_on_device
from ..evaluation.evaluator import Evaluation, failing_together
from ..inference.loading import long_side_of
from ..methods import METHODS, MixedBatch, PixelCounts
from ..models.freezing import freeze_encoder, thaw_encoder
from ..models.modeling_allspark import SemiSupervisedSegmenter
from ..publishing.licenses import base_weights_of
from . import storage
from .advice import Advice
from .arguments import AllSparkTrainingArguments
from .checkpoints import Checkpoints
from .checks import (
    as_the_model_reads,
    check_contents,
    check_datasets,
    check_evaluation,
    check_labeled,
    check_model,
    check_output_dir,
    check_parts,
    check_processor,
    check_room,
)
from .class_weights import class_weights
from .faults import sole_training, telling_faults
from .finite import FiniteGuard, sum_and_count
from .holdout import Holdout, split_holdout
from .hooks import Hooks
from .hub import HubSide
from .loaders import evaluation_loader, sampler_of, train_loader
from .optimizer import check_optimizer, split_by_rate
from .processes import Processes, check_sharding, synchronize_batchnorm
from .pseudo_label_health import PseudoLabelHealth
from .records import RunRecord
from .stream_place import StreamPlace


class AllSparkTrainer(Trainer):
    """
    Trains a [`SemiSupervisedSegmenter`], such as [`SegformerForSemiSupervisedSegmentation`], on a labeled and an
    unlabeled dataset.

    Args:
        model ([`SemiSupervisedSegmenter`]):
            the model; a plain SegFormer (`AllSparkConfig.plain_segformer_switches()`) for methods without bottleneck.
        args ([`AllSparkTrainingArguments`]): training arguments.
        processing_class:
            image processor of inference, e.g. [`~transformers.SegformerImageProcessor`], that does not resize, or
            resizes the long side (`size={"max_height": n, "max_width": n}`); training then scales images likewise.
        train_dataset (`datasets.Dataset`, *optional*):
            labeled images, with an image and a mask column; `args.holdout_fraction` of them is not trained on.
        unlabeled_dataset (`datasets.Dataset` or `datasets.IterableDataset`, *optional*):
            unlabeled images; masks in a mask column, where a row may be None, only measure the pseudo-labels. A
            stream, whose masks are not read, needs `args.unlabeled_images_per_epoch`.
        eval_dataset (`datasets.Dataset` or `dict[str, datasets.Dataset]`, *optional*):
            labeled images that are not trained on. `model.config.mask_values` says what the values of all masks mean.
        kwargs: `callbacks`, `optimizers` and `optimizer_cls_and_kwargs` of [`~transformers.Trainer`].

    Attributes:
        method ([`Method`]): turns a batch into a loss; has a state of its own.
        processes ([`Processes`]): keeps several processes equal.
        checkpoints ([`Checkpoints`]): saves and restores the training.
        evaluation ([`Evaluation`], *optional*): sums of all processes, from which the last metrics were computed.
        run_source (`dict`): what [`run_source`] says, for the run's record.

    Raises:
        ValueError: if model, method, datasets and image processor do not fit each other.
    """

    def __init__(
        self,
        model: SemiSupervisedSegmenter,
        args: AllSparkTrainingArguments,
        processing_class,
        train_dataset: datasets.Dataset | None = None,
        unlabeled_dataset: datasets.Dataset | datasets.IterableDataset | None = None,
        eval_dataset: datasets.Dataset | dict[str, datasets.Dataset] | None = None,
        **kwargs,
    ):
        check_parts(model, args, processing_class, kwargs)
        check_model(model, args, trains=train_dataset is not None)
        sets = as_the_model_reads(args, model.config, train_dataset, unlabeled_dataset, eval_dataset)
        train_dataset, unlabeled_dataset, eval_dataset = sets
        empty = isinstance(unlabeled_dataset, datasets.Dataset) and len(unlabeled_dataset) == 0
        self.unlabeled_dataset = None if empty else unlabeled_dataset
        if train_dataset is not None:
            check_datasets(args, train_dataset, self.unlabeled_dataset, eval_dataset)
            check_output_dir(args)
        self.long_side = long_side_of(processing_class)
        check_processor(processing_class, self.long_side)
        check_evaluation(model.config, args, processing_class)
        check_contents(args, model.config, self.long_side, train_dataset, self.unlabeled_dataset, eval_dataset)
        train_dataset, held_out = split_holdout(args, train_dataset)
        self._prepare_model(model, args)
        self.hub = HubSide(self)
        data = {"train_dataset": train_dataset, "eval_dataset": eval_dataset}
        super().__init__(model, args, processing_class=processing_class, **data, **kwargs)
        check_sharding(self.accelerator)
        self.evaluation: Evaluation | None = None
        self.run_source: dict = {}
        model.config.base_weights = base_weights_of(model.config)
        self._head_group: int | None = None  # a parameter group of the head; None if the user made the optimizer
        self._terms: dict[str, torch.Tensor] = {}  # sum and number of its values since the last log
        self.sampler = sampler_of(self) if train_dataset is not None else None
        self.method = METHODS[args.method](args, model.config.semantic_loss_ignore_index)
        self.stream = StreamPlace.of(self)
        self._method_rates = self._attach_method()
        check_room(self)
        self.processes = Processes(self)
        self.checkpoints = Checkpoints(self)
        self.record, self.health, self.finite = RunRecord(self), PseudoLabelHealth(self), FiniteGuard(self)
        self._connect_parts()
        if held_out is not None:
            self.add_callback(Holdout(self, held_out))

    @staticmethod
    def _prepare_model(model: SemiSupervisedSegmenter, args: AllSparkTrainingArguments):
        thaw_encoder(model)
        if args.freeze_encoder or args.freeze_encoder_layers:
            freeze_encoder(model, None if args.freeze_encoder else args.freeze_encoder_layers)
        if args.sync_batchnorm:
            synchronize_batchnorm(model, args.world_size, args.device)
        if model.bottleneck is not None:
            model.bottleneck.share_memory = not args.local_memory
        if args.channels_last:
            model.to(memory_format=torch.channels_last)

    def _attach_method(self) -> dict:
        if self.sampler is not None:
            self.method.num_images = (self.sampler.num_labeled, self.sampler.num_unlabeled)
        self.method.normalization = (self.processing_class.image_mean, self.processing_class.image_std)
        weights = class_weights(self.args, self.train_dataset, self.model.config)
        self.method.class_weights = None if weights is None else weights.to(self.args.device)
        autocast = self.accelerator.autocast() if self.accelerator.native_amp else None
        return self.method.attach(self.model, self.args.device, autocast)

    def _connect_parts(self):
        for callback in filter(None, (Hooks(self), self.record, self.stream)):
            self.add_callback(callback)
        self.callback_handler.callbacks.insert(0, Advice(self))  # before the progress bar begins
        if self.method.state_dict():
            self.checkpoints.register("method", self.method)
        if self.method.uses_unlabeled:
            self.checkpoints.register("pseudo_label_counts", self.health)
            self.add_callback(self.health)
        if self.processes.local_memory is not None:
            self.checkpoints.register("memory", self.processes.local_memory, of_each_process=True)
        self.add_callback(self.finite)

    # ---- Training ----

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """
        Trains; adds `last_` and `best_` of the evaluated `metric_for_best_model` to the metrics, and writes
        `run_record.json` into `output_dir`.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): a checkpoint, or True for the last complete one in
                `output_dir`; by default `args.resume_from_checkpoint`. False begins anew.

        Raises:
            ValueError: if there is no such checkpoint, or it does not fit the run, see [`check_resume`].
            TrainingFault: if training cannot go on.
            BadImageError: if an image cannot be read.
        """
        with sole_training(self.args.output_dir) if self.args.should_save else nullcontext():
            if self.args.should_save:
                storage.remove_leftovers(self.args.output_dir)
            self.accelerator.wait_for_everyone()
            checkpoint, output = self._checkpoint_to_resume(resume_from_checkpoint), None
            self.processes.prepare_to_wrap()
            if checkpoint is not None:
                self.checkpoints.take_up(checkpoint)
            with telling_faults(self.args.output_dir, self.args.dataloader_num_workers, checkpoint):
                if checkpoint is not None:
                    output = self.checkpoints.finished_run()
                if output is None:
                    output = super().train(resume_from_checkpoint=checkpoint, **kwargs)
        output.metrics.update(self.last_and_best())
        return output

    def _checkpoint_to_resume(self, asked: str | bool | None) -> str | None:
        self.checkpoints.resumed_from = None
        asked = self.args.resume_from_checkpoint if asked is None else asked
        if str(asked).lower() != "true":
            return asked or None
        last = storage.last_complete_checkpoint(self.args.output_dir)
        if last is None:
            raise ValueError(f"No complete checkpoint in {self.args.output_dir}: train without resuming.")
        return last

    def last_and_best(self) -> dict[str, float]:
        """Value and epoch of `metric_for_best_model` at the last and the best evaluation; empty if there was none."""
        name = (self.args.metric_for_best_model or "").removeprefix("eval_")
        evaluated = [entry for entry in self.state.log_history if f"eval_{name}" in entry]
        if not evaluated:
            return {}
        choose = max if self.args.greater_is_better else min
        best = choose(evaluated, key=lambda entry: entry[f"eval_{name}"])
        return {
            f"last_{name}": evaluated[-1][f"eval_{name}"],
            f"best_{name}": best[f"eval_{name}"],
            "best_epoch": best["epoch"],
        }

    def _load_best_model(self):
        super()._load_best_model()
        self.checkpoints.best_model_loaded()

    def _save_checkpoint(self, model, trial):
        """See [`Checkpoints.write`]."""
        if trial is None:
            self.store_flos()
        self.checkpoints.write(Path(self._get_output_dir(trial)))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """As in transformers, but saves the evaluated model, without what only training needs, and no pickle."""
        self.checkpoints.save_model(Path(self.args.output_dir if output_dir is None else output_dir))
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    # ---- The Hub, and the run's record ----

    def init_hf_repo(self, token: str | None = None, private: bool | None = None):
        """See [`HubSide.prepare_repository`]."""
        self.hub.prepare_repository(token, private)

    def create_model_card(self, language=None, license=None, tags=None, model_name: str | None = None, **kwargs):
        """See [`HubSide.write_card`]."""
        self.hub.write_card(model_name, language=language, license=license, tags=tags, **kwargs)

    def push_to_hub(self, *args, **kwargs):
        """See [`HubSide.push`]."""
        return self.hub.push(*args, **kwargs)

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True):
        """As in transformers, and also into `run_record.json` for the model card."""
        super().save_metrics(split, metrics, combined)
        self.record.note_metrics(split, metrics)

    # ---- Mixed batches ----

    def get_train_dataloader(self) -> DataLoader:
        """Mixed batches, see [`MixedBatch`], which accelerate shares among processes."""
        if self.train_dataset is None:
            raise ValueError("Training needs labeled images: give train_dataset.")
        return self.accelerator.prepare(train_loader(self))

    # ---- Training step ----

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of one update, and the pixels that their losses are divided by, in place of token counts."""
        batch_samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.stream is not None:
            self.stream.note(batch_samples)
        return batch_samples, self._count_pixels(batch_samples) if batch_samples else None

    def _count_pixels(self, batches: list[dict[str, torch.Tensor]]) -> PixelCounts:
        """
        Pixels of a batch, averaged over the batches and processes of one update. If each batch's summed loss is
        divided by it, accumulation and processes add up to exactly the mean over all pixels of the update.
        """
        batches = [MixedBatch(batch) for batch in batches]
        labeled = sum(self.method.count_labeled(self.method.labels(batch)) for batch in batches)
        counts = [labeled.reshape(1)]
        if self.method.uses_unlabeled:
            counts.append(sum(self.method.count_unlabeled(batch) for batch in batches))
        counts = self.accelerator.reduce(torch.cat(counts).to(self.args.device), reduction="sum")
        counts = counts.float() / (len(batches) * self.args.world_size)
        return PixelCounts(labeled=counts[0], unlabeled=counts[1:])

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """One step of the method; `num_items_in_batch` is the [`PixelCounts`] of `get_batch_samples`."""
        pixels = num_items_in_batch if num_items_in_batch is not None else self._count_pixels([inputs])
        inputs = self._finish_images(inputs)
        self.processes.share_statistics(self.processes.model)
        self.processes.gather_method_modules()
        losses = self.method.step(model, MixedBatch(inputs), pixels, epoch=int(self.state.epoch or 0))
        self.finite.note_loss(losses.loss, losses.terms)
        for name, value in losses.terms.items():
            self._terms[name] = self._terms.get(name, 0) + sum_and_count(value)
        if losses.pseudo_labels is not None:
            self.health.update(inputs["labels"], losses.pseudo_labels, inputs.get("unlabeled_truth"))
        return (losses.loss, None) if return_outputs else losses.loss

    def _finish_images(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Augments and arranges images on the device, as far as the arguments ask for it."""
        if self.args.augment_on_device:
            inputs = finish_on_device(inputs, self.processing_class.image_mean, self.processing_class.image_std)
        if self.args.channels_last:
            images = [name for name in inputs if "pixel_values" in name]
            inputs = {**inputs, **{name: inputs[name].to(memory_format=torch.channels_last) for name in images}}
        return inputs

    # ---- Optimizer ----

    @staticmethod
    def get_optimizer_cls_and_kwargs(args, model=None):
        """As in transformers, with momentum for SGD."""
        optimizer_class, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if args.optim == OptimizerNames.SGD:
            kwargs["momentum"] = args.sgd_momentum
        return optimizer_class, kwargs

    def get_decay_parameter_names(self, model) -> list[str]:
        """Parameters with weight decay: all, or with `decay_norm_and_bias=False` those of transformers."""
        if self.args.decay_norm_and_bias:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """transformers' optimizer, with a parameter group for each learning rate, see [`split_by_rate`]."""
        if self.optimizer is not None:
            check_optimizer(self.optimizer, self.model, self.args.method)
            return super().create_optimizer(model)
        optimizer = super().create_optimizer(model)
        # torch has no fused SGD for FSDP's parameters, and DeepSpeed takes the step itself.
        fused = isinstance(optimizer, torch.optim.SGD) and not self.processes.are_sharded
        if fused and self.args.device.type in ("cpu", "cuda"):
            for group in optimizer.param_groups:
                group["fused"] = True  # one kernel, same numbers
        model, multiplier = model or self.model, self.args.head_learning_rate_multiplier
        unread = self.processes.unread_parameters(model).values()
        self._head_group = split_by_rate(optimizer, model, multiplier, self._method_rates, unread)
        return optimizer

    # ---- Logging ----

    def log(self, logs: dict[str, float], start_time: float | None = None):
        """Adds to a training entry the loss terms, pixels used, memory fill and the head's learning rate."""
        if "learning_rate" in logs:
            if self._head_group is not None:
                # The schedule is the same for all groups; a resumed optimizer has the initial rates of its checkpoint.
                initial = [group.get("initial_lr", group["lr"]) for group in self.optimizer.param_groups]
                multiplier = initial[self._head_group] / initial[0] if initial[0] else 1
                logs["learning_rate_head"] = logs["learning_rate"] * multiplier
            for name, (total, count) in self._terms.items():
                logs[name] = self.accelerator.gather((total / count).reshape(1)).nanmean().item()
            self._terms.clear()
            logs.update(self.health.memory_fill())
        super().log(logs, start_time)

    # ---- Evaluation ----

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """See [`evaluation_loader`]."""
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("Evaluation needs labeled images: give eval_dataset.")
        check_labeled(self.args, {"eval_dataset": dataset})
        return evaluation_loader(self, dataset)

    def predict(self, *args, **kwargs):
        """Not offered: transformers would keep the logits of all images."""
        raise NotImplementedError(
            'predict() would keep the logits of all images: take evaluate(dataset, metric_key_prefix="test") for '
            "metrics, and allspark_hf.segment or `allspark predict` for masks."
        )

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """Adds image after image to an [`Evaluation`], at the masks' own size; no logits are kept or gathered."""
        self.callback_handler.eval_dataloader = dataloader
        student = self.processes.model
        models = {"": self.method.evaluated_model(student), **self.method.also_evaluated(student)}
        evaluations = {name: Evaluation(self.model.config, self.args, self.args.device) for name in models}
        self.evaluation = evaluations[""]
        with self.processes.predicting_apart(*models.values()), failing_together(self.accelerator):
            for samples in dataloader:
                with self.compute_loss_context_manager():
                    for name, model in models.items():
                        evaluations[name].add(model, samples)
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        metrics = {}
        for of, evaluation in evaluations.items():
            evaluation.reduce(self.accelerator)
            metrics |= {f"{metric_key_prefix}_{of}{name}": value for name, value in evaluation.metrics().items()}
        num_images = self.evaluation.num_images
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=num_images)

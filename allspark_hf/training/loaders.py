"""Data loaders of [`AllSparkTrainer`]: mixed batches to train on, whole images to evaluate."""

import datasets
import torch
from torch.utils.data import DataLoader

from ..data.columns import exact_columns
from ..data.masks import MaskConvention
from ..data.mixed import MixedBatchCollator, MixedBatchSampler, MixedDataset
from ..data.pixels import Reading
from ..data.streaming import StreamReader, whole_steps
from ..data.summary import require_known_values
from ..evaluation.evaluator import EvaluationDataset
from ..evaluation.sizes import require_large_enough
from ..methods import METHODS
from .arguments import AllSparkTrainingArguments


def sampler_of(trainer) -> MixedBatchSampler:
    """The sampler of a trainer that has labeled images."""
    unlabeled, streams = trainer.unlabeled_dataset, isinstance(trainer.unlabeled_dataset, datasets.IterableDataset)
    num_unlabeled = whole_steps(trainer.args) if streams else 0 if unlabeled is None else len(unlabeled)
    return make_sampler(trainer.args, len(trainer.train_dataset), num_unlabeled, streams)


def make_sampler(
    args: AllSparkTrainingArguments, num_labeled: int, num_unlabeled: int, unlabeled_stream: bool = False
) -> MixedBatchSampler:
    """The sampler of an epoch over so many labeled and unlabeled images, in batches of the arguments' sizes."""
    return MixedBatchSampler(
        num_labeled=num_labeled,
        num_unlabeled=num_unlabeled if args.epoch_length == "unlabeled" else 0,
        labeled_batch_size=args.per_device_train_batch_size,
        unlabeled_batch_size=args.per_device_unlabeled_batch_size,
        seed=data_seed(args),
        drop_last=args.dataloader_drop_last,
        read_unlabeled=METHODS[args.method].uses_unlabeled,
        unlabeled_stream=unlabeled_stream,
        batches_per_update=args.gradient_accumulation_steps * args.world_size,
    )


def data_seed(args: AllSparkTrainingArguments) -> int:
    """The seed of order and augmentation."""
    return args.seed if args.data_seed is None else args.data_seed


def train_loader(trainer) -> DataLoader:
    """Mixed batches of the method's views, see [`MixedBatch`], before accelerate shares them among processes."""
    args, config, unlabeled = trainer.args, trainer.model.config, trainer.unlabeled_dataset
    streams = isinstance(unlabeled, datasets.IterableDataset)
    if streams and trainer.stream is None:
        unlabeled = None
    elif streams:
        unlabeled = StreamReader(
            unlabeled,
            trainer.stream.lanes,
            seed=data_seed(args),
            buffer_size=args.shuffle_buffer_size,
            image_column=args.image_column_name,
            reading=Reading.of(config),
            on_bad_image=args.on_bad_image,
            bookmarks=trainer.stream.bookmarks,
        )
        trainer.stream.tell_reads(unlabeled)
    dataset = MixedDataset(
        labeled=trainer.train_dataset,
        unlabeled=unlabeled,
        crop=config.crop_height_width,
        seed=data_seed(args),
        num_labels=config.num_labels,
        long_side=trainer.long_side,
        image_mean=trainer.processing_class.image_mean,
        image_std=trainer.processing_class.image_std,
        labeled_views=trainer.method.labeled_views,
        unlabeled_views=trainer.method.unlabeled_views,
        masks=MaskConvention.of(config),
        image_column=args.image_column_name,
        label_column=args.label_column_name,
        on_bad_image=args.on_bad_image,
        augment_on_device=args.augment_on_device,
        reading=Reading.of(config),
    )
    settings = _settings(args)
    if streams:
        # New workers in each epoch would read a part of a shard again.
        settings["persistent_workers"] = settings["num_workers"] > 0
    return DataLoader(dataset, batch_sampler=trainer.sampler, collate_fn=MixedBatchCollator(), **settings)


def evaluation_loader(trainer, dataset: datasets.Dataset) -> DataLoader:
    """
    Lists of samples of [`EvaluationDataset`]; every process reads other rows, and no row is read twice.

    Raises:
        ValueError: if 255 may be a class in the masks, or an image is too small.
    """
    args, config = trainer.args, trainer.model.config
    columns = args.image_column_name, args.label_column_name
    dataset = exact_columns(dataset, *columns, config.tiff_page)
    require_known_values({"validation": dataset}, config, args.label_column_name)
    require_large_enough({"validation": dataset}, config, args, trainer.long_side, args.image_column_name)
    prepared = EvaluationDataset.of(dataset, trainer.processing_class, config, *columns)
    # accelerate does not prepare this loader, since it would repeat rows to give all processes as many.
    return DataLoader(
        prepared,
        batch_size=args.per_device_eval_batch_size,
        sampler=range(args.process_index, len(dataset), args.world_size),
        collate_fn=list,
        **_settings(args),
    )


def _settings(args: AllSparkTrainingArguments) -> dict:
    return {
        # Starting workers would else draw from the global generator, which dropout draws from too.
        "generator": torch.Generator(),
        "num_workers": args.dataloader_num_workers,
        "pin_memory": args.dataloader_pin_memory and args.device.type not in ("cpu", "mps"),  # torch warns there
        "persistent_workers": args.dataloader_persistent_workers,
        "prefetch_factor": args.dataloader_prefetch_factor,
        # arguments of transformers since 5.24
        "multiprocessing_context": getattr(args, "dataloader_multiprocessing_context", None),
        "in_order": getattr(args, "dataloader_in_order", True),
    }

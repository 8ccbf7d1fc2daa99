"""What [`AllSparkTrainer`] refuses because its parts do not fit each other."""

import logging
import tempfile
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import torch

from ..data.columns import exact_columns, page_of
from ..data.masks import MaskConvention, value_sentence
from ..data.overlap import find_overlap
from ..data.photometry import to_pixel_values
from ..data.pixels import Reading
from ..data.reading import undecoded
from ..data.sources.classes import Classes
from ..data.streaming import read_first_image
from ..data.summary import (
    classes_of,
    convention_of,
    file_of,
    find_image_range,
    mask_values,
    require_known_values,
)
from ..evaluation.arguments import ONE_PIECE, EvaluationArguments, eval_crop
from ..evaluation.sizes import require_large_enough
from ..methods import METHODS
from ..models.configuration_allspark import AllSparkConfig
from ..models.modeling_allspark import SemiSupervisedSegmenter
from ..models.pretrained import check_labels
from ..utils.text import megabytes
from .arguments import AllSparkTrainingArguments
from .faults import free_bytes
from .holdout import split_holdout
from .storage import sorted_checkpoints


logger = logging.getLogger(__name__)

_OTHER_METRICS = "compute other metrics from trainer.evaluation.confusion.counts, in a callback's on_evaluate"
# Arguments of transformers' Trainer that nothing would call, and what to do instead.
NOT_CALLED = {
    "model_init": "make a trainer for each trial",
    "data_collator": "a method declares what a batch holds, in labeled_views and unlabeled_views",
    "compute_loss_func": "a method of your own gives its loss in step",
    "compute_metrics": _OTHER_METRICS,
    "preprocess_logits_for_metrics": _OTHER_METRICS,
}


def check_parts(model: SemiSupervisedSegmenter, args: AllSparkTrainingArguments, processing_class, others: dict):
    """Raises ValueError for parts of another kind, and for those of `others` that nothing would call."""
    for name, instead in NOT_CALLED.items():
        if others.get(name) is not None:
            raise ValueError(f"{name} would not be called: leave it out; {instead}.")
    kinds = [
        (
            "model",
            model,
            hasattr(model, "encoder_parameters"),  # a class of this package, or of the code in a model's repository
            "a model of this package, as load_trained does",
        ),
        ("args", args, isinstance(args, AllSparkTrainingArguments), "AllSparkTrainingArguments"),
        ("processing_class", processing_class, hasattr(processing_class, "image_mean"), "make_image_processor()"),
    ]
    for name, part, fits, needed in kinds:
        if not fits:
            raise ValueError(f"{name} is of type {type(part).__name__}: give {needed}.")


def check_processor(image_processor, long_side: int | None):
    """Raises ValueError for an image processor that gives evaluated images other pixels than training gets."""
    side = long_side or 32
    picture = np.random.default_rng(0).integers(256, size=(side, 8, 3), dtype=np.uint8)
    picture = PIL.Image.fromarray(picture)
    given = image_processor(images=picture, return_tensors="pt")["pixel_values"][0]
    trained = to_pixel_values(picture, image_processor.image_mean, image_processor.image_std)
    if given.shape != trained.shape or not torch.allclose(given, trained, atol=1e-3):
        raise ValueError(
            "The image processor changes images in another way than training does, which divides by 255 and "
            "normalizes: give make_image_processor(), with image_mean and image_std."
        )
    if getattr(image_processor, "do_reduce_labels", False):
        raise ValueError(
            "do_reduce_labels=True of the image processor would not be obeyed: set it to False, and in the model's "
            "configuration mask_values to the stored value of each class, such as [1, 2, 3], and "
            "ignored_mask_values=[0]."
        )


def check_model(model: SemiSupervisedSegmenter, args: AllSparkTrainingArguments, trains: bool = True):
    """Raises ValueError for a model or class names that the method, or training on 8-bit masks, cannot work with."""
    if trains and model.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"The model's weights are {model.dtype}, in which small updates are lost: load it with "
            "dtype=torch.float32, and set bf16=True for mixed precision."
        )
    if METHODS[args.method].needs_bottleneck and not model.config.use_cross_attention:
        raise ValueError(
            f"method={args.method!r} needs the bottleneck, but the model's configuration has "
            "use_cross_attention=False: set it to True, or choose another method."
        )
    groups = model.config.use_cross_attention and model.config.use_grouping
    if groups and not METHODS[args.method].works_with_grouping:
        raise ValueError(
            f"method={args.method!r} gives the bottleneck no logits by which it could group channels, and the model's "
            "configuration has use_grouping=True: build the model with AllSparkConfig.plain_segformer_switches(), or "
            "choose method='allspark'."
        )
    check_labels(model.config)
    Classes([model.config.id2label[index] for index in range(model.config.num_labels)])
    smallest = model.config.smallest_side
    if min(model.config.crop_height_width) < smallest:
        raise ValueError(
            f"crop_size={model.config.crop_size} is too small for the encoder, which needs {smallest} pixels a side: "
            "set a larger one."
        )
    ignore_index = model.config.semantic_loss_ignore_index
    if not model.config.num_labels <= ignore_index <= 255:
        raise ValueError(
            f"semantic_loss_ignore_index={ignore_index} is not between num_labels={model.config.num_labels} and 255, "
            "the values that an 8-bit mask has left: set it to 255 (to the script: leave --ignore_index out), and "
            f"where masks hold {ignore_index}, name it in ignored_mask_values."
        )
    if model.config.num_labels < 2:
        raise ValueError(
            "The model has 1 class, whose prediction is always the same: give background a class of its own "
            "(num_labels=2)."
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"One process sees {args.n_gpu} GPUs, and nn.DataParallel would lose the memory: start one process per "
            "GPU with `accelerate launch`, or set CUDA_VISIBLE_DEVICES to one of them."
        )


def check_evaluation(config: AllSparkConfig, args: EvaluationArguments, image_processor):
    """Raises ValueError for a way of evaluation that the model or the image processor does not allow."""
    if args.eval_mode in ONE_PIECE:
        return
    if args.eval_mode == "center_crop" and image_processor.do_resize:
        raise ValueError(
            "eval_mode='center_crop' cuts image and mask alike, but the image processor resizes the image: choose "
            "whole or sliding_window, or an image processor with do_resize=False (image_long_side left out)."
        )
    eval_crop(args, config)  # which refuses a small one
    if config.mix_images_in_eval and args.eval_windows_per_batch > 1:
        raise ValueError(
            f"eval_windows_per_batch={args.eval_windows_per_batch} would mix the windows of an image, because the "
            "model's configuration has mix_images_in_eval=True: set one of the two off."
        )


def as_the_model_reads(args: AllSparkTrainingArguments, config: AllSparkConfig, *sets) -> list:
    """
    The data sets, or dicts of data sets, with images and masks read as the configuration says; anything that is no
    `datasets.Dataset` stays as it is. If the configuration names no page of TIFF files, it gets that of the first set.
    """
    columns = args.image_column_name, args.label_column_name
    if config.tiff_page is None and isinstance(sets[0], datasets.Dataset):
        config.tiff_page = page_of(sets[0], args.image_column_name)
    return [
        {name: exact_columns(rows, *columns, config.tiff_page) for name, rows in one.items()}
        if isinstance(one, dict)
        else exact_columns(one, *columns, config.tiff_page)
        for one in sets
    ]


def check_datasets(
    args: AllSparkTrainingArguments,
    train_dataset: datasets.Dataset,
    unlabeled_dataset: datasets.Dataset | datasets.IterableDataset | None,
    eval_dataset: datasets.Dataset | dict[str, datasets.Dataset] | None,
):
    """
    Raises ValueError for empty sets, a holdout that leaves no labeled image, missing columns, and images that are both
    trained and evaluated on. Of a stream only the first image is read, and a warning says that the rest is not
    checked.
    """
    evaluated = eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}
    check_labeled(args, {"train_dataset": train_dataset, **evaluated})
    if isinstance(eval_dataset, dict) and args.eval_strategy != "no":
        _check_metric(args.metric_for_best_model, list(eval_dataset))
    if len(train_dataset) == 0:
        raise ValueError("The labeled dataset (train_dataset) is empty: give at least one image with a mask.")
    if METHODS[args.method].uses_unlabeled and unlabeled_dataset is None:
        raise ValueError(
            f"method={args.method!r} needs unlabeled images, but unlabeled_dataset is missing or empty: give some "
            "(to the script: training images without a mask, or --labeled_count to hide masks), or set "
            "method='supervised'."
        )
    train_dataset, held_out = split_holdout(args, train_dataset)
    evaluated = {**evaluated, "the held-out part of train_dataset": held_out}
    check_stream(args, unlabeled_dataset, Reading(tiff_page=page_of(train_dataset, args.image_column_name)))
    if isinstance(unlabeled_dataset, datasets.IterableDataset):
        unlabeled_dataset = None  # the checks below need a list of files
    _check_columns("unlabeled_dataset", unlabeled_dataset, [args.image_column_name])
    for name, dataset in evaluated.items():
        if dataset is not None:
            _check_overlap("train_dataset", train_dataset, name, dataset, args.image_column_name)
            _check_overlap("unlabeled_dataset", unlabeled_dataset, name, dataset, args.image_column_name)


def check_contents(
    args: AllSparkTrainingArguments,
    config: AllSparkConfig,
    long_side: int | None,
    train_dataset: datasets.Dataset | None,
    unlabeled_dataset: datasets.Dataset | datasets.IterableDataset | None,
    eval_dataset: datasets.Dataset | dict[str, datasets.Dataset] | None,
):
    """
    Raises ValueError for images without a mask, for masks with a value that is no class, or in which 255 may be one,
    and for evaluated images that are too small. Reads every mask that [`check_data`] has not read. With a
    `train_dataset`, `config` gets the mask values of the labeled images, and the range of 16-bit images.
    """
    evaluated = eval_dataset if isinstance(eval_dataset, dict) else {"validation": eval_dataset}
    evaluated = {name: dataset for name, dataset in evaluated.items() if isinstance(dataset, datasets.Dataset)}
    masked = dict(evaluated)
    if train_dataset is not None:
        read_with = convention_of(train_dataset)
        if read_with is not None:
            config.mask_values = None if read_with.mask_values is None else list(read_with.mask_values)
            config.ignored_mask_values = list(read_with.ignored_mask_values) or None
        masked = {"labeled": train_dataset, **masked}
        read = [train_dataset, *evaluated.values()]
        read += [unlabeled_dataset] if isinstance(unlabeled_dataset, datasets.Dataset) else []
        config.image_range = config.image_range or find_image_range(read, args.image_column_name)
        held_out = split_holdout(args, train_dataset)[1]
        evaluated |= {} if held_out is None else {"held-out": held_out}
    if isinstance(unlabeled_dataset, datasets.Dataset):
        masked["unlabeled"] = unlabeled_dataset
    require_known_values(masked, config, args.label_column_name)
    for name, dataset in masked.items():
        if name != "unlabeled":
            _check_masks(name, dataset, config, args.label_column_name)
    require_large_enough(evaluated, config, args, long_side, args.image_column_name)


def _check_masks(name: str, dataset: datasets.Dataset, config: AllSparkConfig, label_column: str):
    """Raises ValueError for images without a mask, and for values of masks that are no class."""
    found = mask_values(dataset, label_column)
    without = [row for row, values in enumerate(found) if values == frozenset()]
    if without:
        raise ValueError(
            f"{len(without)} of {len(dataset)} {name} images have no mask (first "
            f"{file_of(dataset, without[0], label_column)}): take them out (dataset.select), or give those to train "
            "on as unlabeled_dataset."
        )
    if convention_of(dataset) is not None:
        return
    classes = classes_of(dataset, MaskConvention.of(config), label_column)
    wrong = {index for index in classes if not 0 <= index < config.num_labels}  # stored so: no list maps to them
    for row, values in enumerate(found):
        if values and values & wrong:
            where, value = file_of(dataset, row, label_column), min(values & wrong)
            raise ValueError(value_sentence(where, value, config.num_labels, config.semantic_loss_ignore_index))


def check_stream(
    args: AllSparkTrainingArguments,
    unlabeled_dataset: datasets.Dataset | datasets.IterableDataset | None,
    reading: Reading,
):
    """Raises ValueError for a stream without a length of its epoch or a first image, and for a length without one."""
    if not isinstance(unlabeled_dataset, datasets.IterableDataset):
        if args.unlabeled_images_per_epoch is not None:
            raise ValueError(
                f"unlabeled_images_per_epoch={args.unlabeled_images_per_epoch} is for a stream of unlabeled images, "
                "and there is none: leave it out, or give an IterableDataset (to the script: --unlabeled_streaming)."
            )
        return
    if args.unlabeled_images_per_epoch is None:
        raise ValueError(
            "The unlabeled images are a stream, which has no known length: set unlabeled_images_per_epoch to the "
            "number of images that are to count as an epoch."
        )
    if not METHODS[args.method].uses_unlabeled:
        return
    read_first_image(unlabeled_dataset, args.image_column_name, reading, args.on_bad_image)
    if args.should_log:
        logger.warning(
            "The unlabeled images are a stream: its files are not checked before they are read, and images of the "
            "validation set are not looked for in it. See to it yourself that there are none."
        )


def check_output_dir(args: AllSparkTrainingArguments):
    """Raises ValueError if nothing can be written into `output_dir`."""
    if not args.should_save:
        return
    try:
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=args.output_dir) as file:
            file.write(b"1")
    except OSError as error:
        raise ValueError(
            f"Nothing can be written into output_dir={args.output_dir} ({error}): choose another one, or make room."
        ) from None


def check_room(trainer):
    """
    Raises ValueError if the disk of `output_dir` has no room for one checkpoint. Warns if the disk has less room than
    the training needs: the model, and one checkpoint more than are kept, since an old one is deleted when the new one
    is complete.

    Args:
        trainer ([`AllSparkTrainer`]): with a method that is attached to the model.
    """
    args, model = trainer.args, trainer.model
    if not args.should_save or trainer.train_dataset is None:
        return
    weights, of_method = (
        sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
        for module in (model, trainer.method)
    )
    trained = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters() if tensor.requires_grad)
    per_weight = 1 if args.optim == "sgd" else 2  # as Adam's, the largest of the usual ones
    checkpoint = weights + of_method + per_weight * trained * (not args.save_only_model)
    checkpoint *= args.save_strategy != "no"
    there = len(sorted_checkpoints(args.output_dir))
    checkpoints = max((args.save_total_limit or 1) + 1 - there, 1)
    needed, free = checkpoints * checkpoint + weights, free_bytes(args.output_dir)
    if free < max(checkpoint, weights):
        raise ValueError(
            f"There are {megabytes(free)} free for output_dir={args.output_dir}, which is not enough to save once: a "
            f"checkpoint takes {megabytes(checkpoint)}, the model {megabytes(weights)}. Make room, or choose another "
            "output_dir."
        )
    if free < needed:
        logger.warning(
            "There are %s free for output_dir=%s, but training saves %s: %d checkpoints of %s (one more than "
            "save_total_limit keeps) and the model of %s. Make room, or lower save_total_limit.",
            *(megabytes(free), args.output_dir, megabytes(needed)),
            *(checkpoints, megabytes(checkpoint), megabytes(weights)),
        )


def check_labeled(args: AllSparkTrainingArguments, sets: dict[str, datasets.Dataset | None]):
    """Raises ValueError for what is no `datasets.Dataset` of images and masks."""
    for name, dataset in sets.items():
        _check_columns(name, dataset, [args.image_column_name, args.label_column_name])


def _check_metric(metric: str | None, names: list[str]):
    if metric is not None and not metric.removeprefix("eval_").startswith(tuple(f"{name}_" for name in names)):
        raise ValueError(
            f"metric_for_best_model={metric!r} is of none of the evaluation sets {', '.join(names)}: set it to "
            f"'{names[0]}_{metric.removeprefix('eval_')}', say."
        )


def _check_columns(name: str, dataset: datasets.Dataset | None, needed: list[str]):
    if dataset is None:
        return
    if not isinstance(dataset, datasets.Dataset):
        stream = ", or a stream, an IterableDataset" if name == "unlabeled_dataset" else ""
        raise ValueError(f"{name} is of type {type(dataset).__name__}: give a datasets.Dataset{stream}.")
    missing = [column for column in needed if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"{name} has the columns {dataset.column_names} but lacks {missing}: rename them "
            "(dataset.rename_column), or set image_column_name and label_column_name."
        )
    if dataset.format["type"] != "custom" or convention_of(dataset) is not None:
        for column in needed:
            undecoded(dataset, column)
        return
    try:
        example = dataset[0]
    except Exception:  # of an empty set, or a broken file, which is named where it is needed
        return
    for column in needed:
        if not isinstance(example.get(column, 0), PIL.Image.Image | None):
            raise ValueError(
                f"The transform of {name} (set_transform) gives no PIL image as {column!r}: let it give one, since "
                "crops, augmentation and normalization come after it."
            )


def _check_overlap(name: str, dataset: datasets.Dataset | None, eval_name: str, evaluated, image_column: str):
    pairs = [] if dataset is None else find_overlap(dataset, evaluated, image_column)
    if pairs:
        shown = ", ".join(f"{trained} = {validated}" for trained, validated in pairs[:5])
        raise ValueError(
            f"{len(pairs)} images are in both {name} and {eval_name} ({shown}{', ...' if len(pairs) > 5 else ''}): "
            "remove them from one, or the evaluation measures memorizing."
        )

"""Weights of the classes in the labeled loss, for data with rare classes."""

import datasets
import torch

from ..data.columns import exact_columns
from ..data.masks import MaskConvention, read_label
from ..methods.base import BALANCED
from .arguments import AllSparkTrainingArguments


def class_weights(
    args: AllSparkTrainingArguments, train_dataset: datasets.Dataset | None, config
) -> torch.Tensor | None:
    """
    Weights from `args.class_weights`. With `balanced`, the pixels f of each class are counted in all labeled masks,
    and the weight is sqrt(median(f) / f), as of Alonso et al. (ICCV 2021), who count the images of the last steps. The
    median is over the classes that occur; a class that does not occur gets the largest weight of those.

    Args:
        args ([`AllSparkTrainingArguments`]): arguments of the training.
        train_dataset (`datasets.Dataset`, *optional*): labeled images, whose masks are read for `balanced`.
        config ([`AllSparkFields`]): configuration of the model.

    Returns:
        `torch.Tensor`, *optional*: float32 (num_labels,); None without `class_weights`.

    Raises:
        ValueError: if there are not as many weights as classes, or no labeled pixel at all.
    """
    given, num_labels = args.class_weights, config.num_labels
    if given is None or (given == [BALANCED] and train_dataset is None):
        return None
    if given != [BALANCED]:
        if len(given) != num_labels:
            raise ValueError(
                f"class_weights has {len(given)} numbers, but there are {num_labels} classes: give one for each."
            )
        return torch.tensor([float(weight) for weight in given])
    counts = _pixels_of_classes(args, train_dataset, num_labels, MaskConvention.of(config)).double()
    occurs = counts > 0
    if not occurs.any():
        raise ValueError("class_weights=balanced needs labeled pixels, but every pixel of the masks is ignored.")
    weights = (counts[occurs].quantile(0.5) / counts).sqrt()
    return weights.where(occurs, weights[occurs].max()).float()


def _pixels_of_classes(args, dataset: datasets.Dataset, num_labels: int, masks: MaskConvention) -> torch.Tensor:
    """int64 (num_labels,): how many pixels of all masks each class has."""
    counts = torch.zeros(num_labels, dtype=torch.int64)
    for row, example in enumerate(exact_columns(dataset, args.image_column_name, args.label_column_name)):
        mask = example[args.label_column_name]
        label = torch.from_numpy(read_label(mask, mask.size, num_labels, masks, f"labeled row {row}"))
        counts += label[label != masks.ignore_index].long().bincount(minlength=num_labels)
    return counts

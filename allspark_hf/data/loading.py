"""From arguments to data: which images and masks, and what their values mean."""

import logging
from dataclasses import dataclass, field

from datasets import Dataset

from .checks import CheckReport, MaskValueTransform, check_data
from .classes import read_classes
from .folder import SegmentationData, load_folder
from .images import check_mask_values


logger = logging.getLogger(__name__)


@dataclass
class DataArguments:
    """Which images and masks, and what their values mean."""

    data_dir: str = field(
        metadata={"help": "Folder with images/{train,val} and masks/{train,val}, or flat images/ and masks/."}
    )
    labeled_fraction: float | None = field(
        default=None, metadata={"help": "Share of the training masks to use; the others are hidden."}
    )
    labeled_count: int | None = field(default=None, metadata={"help": "The same as a number of masks."})
    labeled_ids: str | None = field(
        default=None, metadata={"help": "The same as a file of ids, e.g. labeled_ids.txt of an earlier run."}
    )
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Share of the labeled images held out when there is no images/val."}
    )
    split_seed: int = field(default=42, metadata={"help": "Seed of these choices; --seed does not touch them."})
    classes: str | None = field(
        default=None, metadata={"help": "classes.txt or classes.json; default: the one in data_dir, if any."}
    )
    num_labels: int | None = field(
        default=None, metadata={"help": "Number of classes; default: from the classes file, else from the masks."}
    )
    mask_values: list[int] | None = field(
        default=None, metadata={"help": "Mask value of class 0, 1, ...; e.g. 0 255 for binary masks stored as 0/255."}
    )
    ignore_index: int = field(default=255, metadata={"help": "Mask value of pixels that do not count."})
    skip_bad_files: bool = field(default=False, metadata={"help": "Leave unusable files out and list them."})
    image_long_side: int | None = field(
        default=None, metadata={"help": "Scale images to this long side; default: as they are. Masks stay native."}
    )


def find_data(arguments: DataArguments, output_dir: str | None = None) -> SegmentationData:
    """The datasets that the arguments name, nothing decoded; the ids of the three sets go to `output_dir`."""
    data = load_folder(
        arguments.data_dir,
        labeled_fraction=arguments.labeled_fraction,
        labeled_count=arguments.labeled_count,
        validation_fraction=arguments.validation_fraction,
        seed=arguments.split_seed,
        labeled_ids=arguments.labeled_ids,
        output_dir=output_dir,
    )
    if arguments.classes:
        data.classes = read_classes(arguments.classes)
    return data


def load_data(arguments: DataArguments, output_dir: str | None = None) -> CheckReport:
    """[`find_data`], checked file by file and with class indices as masks; files left out are logged."""
    report = check_data(
        find_data(arguments, output_dir),
        num_labels=arguments.num_labels,
        ignore_index=arguments.ignore_index,
        mask_values=arguments.mask_values,
        skip_bad_files=arguments.skip_bad_files,
    )
    for sentence in report.left_out:
        logger.warning("left out: %s", sentence)
    return report


def with_class_indices(dataset: Dataset, arguments: DataArguments) -> Dataset:
    """One set of [`find_data`] whose masks, when read, hold class indices; rows are not checked."""
    if not arguments.mask_values:
        return dataset
    check_mask_values(arguments.mask_values, arguments.ignore_index)
    return dataset.with_transform(MaskValueTransform(tuple(arguments.mask_values), arguments.ignore_index))


__all__ = ["DataArguments", "find_data", "load_data", "with_class_indices"]

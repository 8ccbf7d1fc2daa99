"""From arguments to data: which images and masks, and what their values mean."""

import logging
from dataclasses import dataclass, field

from .checks import CheckReport, check_data
from .classes import read_classes
from .layouts import DATA_FORMATS, VOC_MASKS, find_layout
from .pairs import SegmentationData
from .splits import Selection, load_layout


logger = logging.getLogger(__name__)


@dataclass
class DataArguments:
    """Which images and masks, and what their values mean."""

    data_dir: str = field(
        metadata={
            "help": "Folder with images/{train,val} and masks/{train,val}, or flat images/ and masks/; or Pascal VOC "
            "2012, Cityscapes or COCO as unpacked."
        }
    )
    data_format: str | None = field(
        default=None,
        metadata={"help": "What data_dir holds; default: what its folders show.", "choices": list(DATA_FORMATS)},
    )
    voc_masks: str = field(
        default="original",
        metadata={
            "help": "Pascal VOC: train on the images of train.txt, or augmented with SBD on those of train_aug.txt "
            "(scripts/prepare_sbd.py makes it); lists of one's own come before either.",
            "choices": list(VOC_MASKS),
        },
    )
    labeled_fraction: float | None = field(
        default=None, metadata={"help": "Share of the training masks to use; the others are hidden."}
    )
    labeled_count: int | None = field(default=None, metadata={"help": "The same as a number of masks."})
    labeled_list: str | None = field(
        default=None,
        metadata={
            "help": "The same as a split file: a line is `image mask` or an image, relative to data_dir, or an id; "
            "e.g. a published labeled.txt, or labeled_ids.txt of an earlier run."
        },
    )
    unlabeled_list: str | None = field(
        default=None,
        metadata={
            "help": "Split file of the unlabeled images, with labeled_list; default: all other training images."
        },
    )
    validation_list: str | None = field(
        default=None, metadata={"help": "Split file of the validation images; default: those of the data set."}
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
    ignored_mask_values: list[int] | None = field(
        default=None,
        metadata={"help": "Further mask values that do not count, e.g. 0 where 0 means unknown; see mask_values."},
    )
    ignore_index: int = field(default=255, metadata={"help": "Mask value of pixels that do not count."})
    skip_bad_files: bool = field(default=False, metadata={"help": "Leave unusable files out and list them."})
    image_long_side: int | None = field(
        default=None, metadata={"help": "Scale images to this long side; default: as they are. Masks stay native."}
    )


def find_data(arguments: DataArguments, output_dir: str | None = None) -> SegmentationData:
    """The datasets that the arguments name, nothing decoded; the ids of the three sets go to `output_dir`."""
    selection = Selection(
        labeled_fraction=arguments.labeled_fraction,
        labeled_count=arguments.labeled_count,
        labeled_list=arguments.labeled_list,
        unlabeled_list=arguments.unlabeled_list,
        validation_list=arguments.validation_list,
        validation_fraction=arguments.validation_fraction,
        seed=arguments.split_seed,
    )
    layout = find_layout(arguments.data_dir, arguments.data_format, arguments.voc_masks)
    data = load_layout(layout, selection, output_dir)
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
        ignored_mask_values=arguments.ignored_mask_values,
    )
    for sentence in report.left_out:
        logger.warning("left out: %s", sentence)
    return report


__all__ = ["DataArguments", "find_data", "load_data"]

"""From arguments to data: which images and masks are read, and what the values of the masks mean."""

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import Dataset

from ..utils.arguments import argument
from .checks import CheckReport, check_data
from .columns import exact_columns
from .overlap import find_overlap
from .reading import undecoded
from .recognition import find_layout
from .sources.classes import read_classes
from .sources.hub import HubLayout
from .sources.layout import Layout
from .sources.layouts import LAYOUTS, VOC_MASKS
from .sources.pairs import SegmentationData
from .sources.splits import Selection, load_layout
from .sources.unlabeled import add_unlabeled, open_unlabeled_stream, read_image_folder, read_unlabeled_dataset


logger = logging.getLogger(__name__)

BELONGING = {  # an argument -> those that say more about it
    "data_dir": ("data_format", "voc_masks"),
    "dataset_name": ("dataset_config_name", "train_split_name", "validation_split_name", "classes_column_name"),
    "unlabeled_dataset_name": ("unlabeled_dataset_config_name", "unlabeled_split_name", "unlabeled_image_column_name"),
}
VALIDATION_CHOICES = ("validation_split_name", "validation_list", "validation_fraction", "split_seed")


@dataclass
class DataArguments(Selection):
    """Which images and masks, and what their values mean."""

    data_dir: str | None = argument(
        None,
        "Folder with images/{train,val} and masks/{train,val}, or {train,val}/{images,masks}, or flat images/ and "
        "masks/; Pascal VOC 2012, Cityscapes or COCO as unpacked; or the export of a labeling tool.",
        common=True,
    )
    data_format: str | None = argument(
        None, "What data_dir holds; default: what its folders show.", choices=[*LAYOUTS]
    )
    voc_masks: str = argument(
        "original",
        "Pascal VOC: train on the images of train.txt, or augmented with SBD on those of train_aug.txt "
        "(scripts/prepare_sbd.py makes it); lists of one's own come before either.",
        choices=[*VOC_MASKS],
    )
    dataset_name: str | None = argument(
        None,
        "Instead of data_dir: a Hub id, a folder that datasets.load_dataset reads, or one written by save_to_disk. "
        "Columns: --image_column_name, --label_column_name. Rows without a mask are unlabeled.",
        common=True,
    )
    dataset_config_name: str | None = argument(None, "Configuration of dataset_name.")
    train_split_name: str | None = argument(
        None, "Split of dataset_name to train on; default: train, or what means the same."
    )
    validation_split_name: str | None = argument(
        None, "Split to validate with; default: validation, val, dev or the like, else a held-out share."
    )
    classes_column_name: str | None = argument(
        None, "Column of dataset_name whose ClassLabel names are those of the mask values."
    )
    unlabeled_dir: str | None = argument(
        None, "Any folder of images, added to the unlabeled ones; read recursively.", common=True
    )
    unlabeled_dataset_name: str | None = argument(
        None,
        "A second data set, like dataset_name, whose images are added unlabeled; with unlabeled_streaming shards too: "
        "'shards/*.tar' (WebDataset) or '*.parquet', here or at hf://datasets/..., or a .txt file with one a line.",
    )
    unlabeled_dataset_config_name: str | None = argument(None, "Configuration of unlabeled_dataset_name.")
    unlabeled_split_name: str = argument("train", "Split of unlabeled_dataset_name.")
    unlabeled_image_column_name: str = argument("image", "Column of unlabeled_dataset_name that holds the image.")
    unlabeled_streaming: bool = argument(
        False,
        "Read unlabeled_dataset_name as a stream instead of downloading it, and train on no other unlabeled image; "
        "needs --unlabeled_images_per_epoch. See --shuffle_buffer_size.",
    )
    classes: str | None = argument(
        None,
        "File of class names, like classes.txt, classes.json or _classes.csv; default: the one in data_dir, if any.",
    )
    num_labels: int | None = argument(None, "Number of classes; default: from the classes file, else from the masks.")
    mask_values: list[int] | None = argument(
        None, "Mask value of class 0, 1, ...; e.g. 0 255 for binary masks stored as 0/255.", common=True
    )
    ignored_mask_values: list[int] | None = argument(
        None, "Further mask values that do not count, e.g. 0 where 0 means unknown; see mask_values."
    )
    ignore_index: int = argument(255, "Mask value of pixels that do not count.")
    skip_bad_files: bool = argument(
        False, "Leave unusable files out and list them; of a stream, images and shards when their turn comes."
    )
    tiff_page: int | None = argument(
        None,
        "Page of TIFF images to read, 0 for the first, as Pillow and tifffile count; where a model is given, default: "
        "the one it was trained on. Files of several pages are refused without; masks have one page.",
        interval="[0, inf)",
    )
    image_long_side: int | None = argument(
        None, "Scale images to this long side; default: as they are. Masks stay native.", common=True
    )

    def __post_init__(self):
        super().__post_init__()
        if (self.data_dir is None) == (self.dataset_name is None):
            raise ValueError("Give either --data_dir (a folder of images and masks) or --dataset_name.")
        for owner, names in BELONGING.items():
            for name in names:
                if getattr(self, owner) is None and getattr(self, name) != getattr(DataArguments, name):
                    raise ValueError(f"--{name} belongs to --{owner}, which was not given: leave --{name} out.")
        if self.unlabeled_streaming and self.unlabeled_dataset_name is None:
            raise ValueError("--unlabeled_streaming needs --unlabeled_dataset_name, the data set to stream.")
        if self.unlabeled_streaming and self.unlabeled_dir is not None:
            raise ValueError(
                "--unlabeled_streaming trains on the stream alone and not on --unlabeled_dir: leave one of them out."
            )


def find_data(
    arguments: DataArguments, image_column: str = "image", label_column: str = "label", test: bool = False
) -> SegmentationData:
    """
    The datasets that the arguments name; nothing is decoded.

    Args:
        arguments ([`DataArguments`]): the data to find.
        image_column (`str`): column of images in `arguments.dataset_name`; the datasets returned call it `image`.
        label_column (`str`): column of masks in `arguments.dataset_name`; the datasets returned call it `label`.
        test (`bool`): whether the test split takes the place of the validation split.

    Raises:
        FileNotFoundError: if a folder or file is missing.
        ValueError: if the data does not fit the arguments, or the arguments contradict each other.
    """
    classes = read_classes(arguments.classes) if arguments.classes else None
    layout = _layout(arguments, image_column, label_column)
    if test and not layout.use_test_split():
        raise ValueError(
            f"{arguments.data_dir or arguments.dataset_name} has no test split with masks (images/test and masks/test "
            "in a folder): add one, or instead of --split test name images with --validation_list, or a split of the "
            "Hub with --validation_split_name."
        )
    data = load_layout(layout, arguments, classes)
    data = _with_second_source(data, arguments)
    return replace(
        data, **{name: exact_columns(rows, tiff_page=arguments.tiff_page) for name, rows in data.sets.items()}
    )


def _layout(arguments: DataArguments, image_column: str, label_column: str) -> Layout:
    if arguments.dataset_name is None:
        return find_layout(arguments.data_dir, arguments.data_format, arguments.voc_masks)
    return HubLayout(
        arguments.dataset_name,
        {"image": image_column, "label": label_column},
        arguments.dataset_config_name,
        arguments.train_split_name,
        arguments.validation_split_name,
        arguments.classes_column_name,
    )


def _with_second_source(data: SegmentationData, arguments: DataArguments) -> SegmentationData:
    second = (
        arguments.unlabeled_dataset_name,
        arguments.unlabeled_dataset_config_name,
        arguments.unlabeled_split_name,
        arguments.unlabeled_image_column_name,
    )
    if arguments.unlabeled_streaming:
        if len(data.unlabeled):
            logger.warning(
                "The %d unlabeled images of %s are not trained on: with --unlabeled_streaming, the stream alone is.",
                len(data.unlabeled),
                arguments.data_dir or arguments.dataset_name,
            )
        return replace(data, unlabeled_stream=open_unlabeled_stream(*second, arguments.skip_bad_files))
    if arguments.unlabeled_dir is not None:
        images = _without_files_of(data.unlabeled, read_image_folder(arguments.unlabeled_dir))
        data = add_unlabeled(data, "unlabeled_dir", images) if len(images) else data
    if arguments.unlabeled_dataset_name is not None:
        data = add_unlabeled(data, "unlabeled_dataset", read_unlabeled_dataset(*second))
    return data


def _without_files_of(dataset: Dataset, images: Dataset) -> Dataset:
    """The images whose files the data set does not have already: `unlabeled_dir` may be one of its own folders."""
    files, known = ([row["image"] for row in undecoded(rows, "image")] for rows in (images, dataset))
    # A row with bytes has its path in an archive, which says nothing about a file here.
    known = {os.path.realpath(image["path"]) for image in known if image["bytes"] is None}
    new = [row for row, image in enumerate(files) if os.path.realpath(image["path"]) not in known]
    if len(new) < len(images):
        logger.info("%d images of unlabeled_dir are unlabeled images of the data already.", len(images) - len(new))
    return images.select(new)


def load_data(arguments: DataArguments, image_column: str = "image", label_column: str = "label") -> CheckReport:
    """Finds the data ([`find_data`]), checks every file and maps masks to class indices; logs files left out."""
    report = check_found(find_data(arguments, image_column, label_column), arguments)
    for sentence in report.left_out:
        logger.warning("left out: %s", sentence)
    second_source = arguments.unlabeled_dir is not None or arguments.unlabeled_dataset_name is not None
    if second_source and not arguments.unlabeled_streaming:
        # Unlabeled copies of labeled images do no harm, but the user may want to know.
        twins = find_overlap(report.data.unlabeled, report.data.labeled)
        if twins:
            logger.info("%d unlabeled images are also labeled, first %s = %s.", len(twins), *twins[0])
    return report


def check_found(data: SegmentationData, arguments: DataArguments) -> CheckReport:
    """Checks ([`check_data`]) what [`find_data`] returned for these arguments."""
    names = ("num_labels", "ignore_index", "mask_values", "skip_bad_files", "ignored_mask_values")
    return check_data(data, **{name: getattr(arguments, name) for name in names})


def with_class_indices(dataset: Dataset, data: SegmentationData, arguments: DataArguments) -> Dataset:
    """
    The rows `dataset` of `data`, which [`find_data`] returned, with masks that hold class indices when they are read;
    nothing is checked. If neither arguments nor data say what the masks hold, the rows stay as they are, and the
    convention of a model applies.
    """
    transform = data.mask_transform(arguments.ignore_index, arguments.mask_values, arguments.ignored_mask_values)
    return dataset.with_transform(transform) if transform.maps else dataset


def with_page_of(arguments: DataArguments, *configs) -> DataArguments:
    """
    The arguments with the page of TIFF files that the models of these configurations were trained on. If the arguments
    name a page, the configurations get that one instead.

    Raises:
        ValueError: if the models were trained on different pages, and the arguments name none.
    """
    if arguments.tiff_page is not None:
        for config in configs:
            config.tiff_page = arguments.tiff_page
    pages = {config.tiff_page for config in configs}
    if len(pages) > 1:
        raise ValueError(
            f"The models were trained on the pages {', '.join(map(str, pages))} of TIFF files (None: on files of one "
            "page): name the page to read with --tiff_page, or take models that were trained on the same page."
        )
    return replace(arguments, tiff_page=pages.pop())


def list_path(folder: str, kind: str) -> Path:
    """Where a run keeps the ids of one set, "labeled", "unlabeled" or "validation"; the file may be missing."""
    path = Path(folder)
    return (path.parent if path.name.startswith("checkpoint-") else path) / f"{kind}_ids.txt"


def split_of_run(arguments: DataArguments, folder: str) -> DataArguments:
    """
    The arguments with the lists of the images that were labeled and that were for validation in a run, as far as it
    has them. Each of the two choices that the arguments make themselves stays.
    """
    labeled, validation = list_path(folder, "labeled"), list_path(folder, "validation")
    if validation.is_file() and not _choose(arguments, *VALIDATION_CHOICES):
        arguments = replace(arguments, validation_list=str(validation))
    if labeled.is_file() and not _choose(arguments, "labeled_fraction", "labeled_count", "labeled_list"):
        arguments = replace(arguments, labeled_list=str(labeled))
    return arguments


def _choose(arguments: DataArguments, *names: str) -> bool:
    return any(getattr(arguments, name) != getattr(DataArguments, name) for name in names)


def held_out_in_run(
    arguments: DataArguments, folder: str, image_column: str = "image", label_column: str = "label"
) -> bool:
    """
    Whether a run held its validation images out of this data, which have no validation split of their own, and the
    arguments choose no other validation images. The columns are those of [`find_data`].
    """
    path = list_path(folder, "validation")
    if _choose(arguments, *VALIDATION_CHOICES) or not path.is_file():
        return False
    layout = _layout(arguments, image_column, label_column)
    listed = path.read_text(encoding="utf-8").split("\n")[:-1]
    return not layout.has_validation and not layout.pairs("train").images.keys().isdisjoint(listed)

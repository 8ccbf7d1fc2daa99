"""Unlabeled images from a second source: a folder, or a data set that `datasets.load_dataset` reads."""

import logging
from dataclasses import replace
from pathlib import Path

from datasets import Dataset, Features, Image, IterableDataset, Value, concatenate_datasets

from ..overlap import find_overlap
from ..streaming import undecoded_stream
from .hub import open_dataset, pick_split, require_columns, standard_columns
from .pairs import IMAGE_SUFFIXES, SegmentationData, require_usable_name


logger = logging.getLogger(__name__)

COLUMN_FIX = "name the column of images with --unlabeled_image_column_name"


def read_image_folder(folder: str | Path) -> Dataset:
    """
    The images in a folder and its subfolders; hidden files and other files are passed over.

    Args:
        folder (`str` or `Path`):
            Any folder with jpg, jpeg, png, bmp, tif, tiff or webp files, in upper or lower case.

    Returns:
        `datasets.Dataset`: Columns `id` (string: path in the folder, with its extension) and `image`
        (`datasets.Image`), sorted by path.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no image, or a file has a name that cannot be listed.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}; unlabeled_dir names a folder of images.")
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    paths = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not paths:
        accepted = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
        raise ValueError(f"{folder} holds no image; put some there (accepted: {accepted}).")
    for path in paths:
        require_usable_name(path, path.relative_to(folder).with_suffix("").as_posix())
    columns = {"id": [path.relative_to(folder).as_posix() for path in paths], "image": list(map(str, paths))}
    features = Features({name: Value("string") for name in columns})
    return Dataset.from_dict(columns, features=features).cast_column("image", Image())


def read_unlabeled_dataset(
    dataset_name: str, config_name: str | None = None, split: str = "train", image_column: str = "image"
) -> Dataset:
    """
    The images of one split of a data set, without anything else.

    Args:
        dataset_name (`str`):
            See [`open_dataset`].
        config_name (`str`, *optional*):
            The configuration, where the data set has several.
        split (`str`, *optional*, defaults to `"train"`):
            The split to read.
        image_column (`str`, *optional*, defaults to `"image"`):
            The column of images: `datasets.Image`, or paths or encoded bytes.

    Returns:
        `datasets.Dataset`: Columns `id` (string) and `image` (`datasets.Image`).

    Raises:
        ValueError: If the data set cannot be loaded, or has no such split or column.
    """
    dataset = pick_split(open_dataset(dataset_name, config_name), split, dataset_name, "unlabeled_split_name")
    where = f"The split {split} of {dataset_name}"
    require_columns(dataset, [image_column], where, COLUMN_FIX)
    return standard_columns(dataset, {"image": image_column}, where, split)


def open_unlabeled_stream(
    dataset_name: str, config_name: str | None = None, split: str = "train", image_column: str = "image"
) -> IterableDataset:
    """
    The images of one split of a data set as a stream; the arguments of [`read_unlabeled_dataset`].

    Returns:
        `datasets.IterableDataset`: Column `image`, not decoded: see [`StreamReader`].

    Raises:
        ValueError: If the data set cannot be opened, or has no such split or column.
    """
    splits = open_dataset(dataset_name, config_name, streaming=True)
    stream = pick_split(splits, split, dataset_name, "unlabeled_split_name")
    if stream.features is not None:
        require_columns(stream, [image_column], f"The split {split} of {dataset_name}", COLUMN_FIX)
    # Undecoded before it is renamed: after that, datasets would decode every image that is passed over.
    stream = undecoded_stream(stream, image_column)
    return stream if image_column == "image" else stream.rename_column(image_column, "image")


def add_unlabeled(data: SegmentationData, name: str, images: Dataset) -> SegmentationData:
    """
    Adds images to the unlabeled ones.

    Args:
        data (`SegmentationData`):
            The sets; not changed.
        name (`str`):
            What to put, with a colon, before the ids of `images`, so that every id occurs once.
        images (`datasets.Dataset`):
            Columns `id` and `image`.

    Returns:
        `SegmentationData`: The same sets; `unlabeled` has its own rows first.
    """
    ids = [f"{name}:{identifier}" for identifier in images["id"]]
    images = images.remove_columns("id").add_column("id", ids)
    return replace(data, unlabeled=concatenate_datasets([data.unlabeled, images]))


def tell_labeled_twins(data: SegmentationData) -> None:
    """Logs how many unlabeled images are labeled ones too, which does no harm but adds nothing."""
    twins = find_overlap(data.unlabeled, data.labeled)
    if twins:
        logger.info("%d unlabeled images are also labeled, first %s = %s.", len(twins), *twins[0])


__all__ = [
    "add_unlabeled",
    "open_unlabeled_stream",
    "read_image_folder",
    "read_unlabeled_dataset",
    "tell_labeled_twins",
]

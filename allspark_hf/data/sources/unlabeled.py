"""Unlabeled images from a second source: a folder, or a data set that `datasets.load_dataset` reads."""

import logging
from dataclasses import replace
from pathlib import Path

from datasets import Dataset, Image, IterableDataset, concatenate_datasets

from ...utils.files import find_image_files, left_out
from ..shards import names_shards, open_shards
from ..streaming import undecoded_stream
from .hub import open_dataset, pick_split, standard_columns
from .pairs import ACCEPTED_IMAGES, SegmentationData, dataset_of_files, nfc, require_folder, require_usable_name


logger = logging.getLogger(__name__)


def read_image_folder(folder: str | Path) -> Dataset:
    """
    The images in a folder and its subfolders; links are followed. Hidden files are passed over, and other files that
    are no images are counted in the log.

    Returns:
        `datasets.Dataset`: columns `id` (string: path in the folder, with its extension) and `image`
        (`datasets.Image`), sorted by path.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if the folder holds no image, or a list cannot hold the name of a file.
    """
    folder = Path(folder).absolute()
    require_folder(folder, "unlabeled_dir names a folder of images")
    paths, others = find_image_files(folder)
    if not paths:
        raise ValueError(f"{folder} holds no image; put some there ({ACCEPTED_IMAGES}).")
    ids = [path.relative_to(folder).as_posix() for path in paths]
    for path, name in zip(paths, ids, strict=True):
        require_usable_name(path, name)
    if others:
        logger.warning(left_out(others, folder))
    return dataset_of_files([nfc(name) for name in ids], image=list(map(str, paths)))


def read_unlabeled_dataset(
    dataset_name: str, config_name: str | None = None, split: str = "train", image_column: str = "image"
) -> Dataset:
    """
    The images of one split of a data set ([`open_dataset`]) without its other columns: columns `id` (string) and
    `image` (`datasets.Image`).

    Raises:
        ValueError: if the data set cannot be loaded, or has no such split or column.
    """
    if names_shards(dataset_name):
        raise ValueError(f"The shards {dataset_name} are read as a stream: give --unlabeled_streaming as well.")
    dataset = pick_split(open_dataset(dataset_name, config_name), split, dataset_name, "unlabeled_split_name")
    fix = "name the column of images with --unlabeled_image_column_name"
    return standard_columns(dataset, {"image": image_column}, f"The split {split} of {dataset_name}", split, fix)


def open_unlabeled_stream(
    dataset_name: str,
    config_name: str | None = None,
    split: str = "train",
    image_column: str = "image",
    skip_bad_files: bool = False,
) -> IterableDataset:
    """
    The images of one split of a data set, or of shards ([`shard_files`]), as a stream with the column `image`, not
    decoded: see [`StreamReader`]. If there is no column `image`, the only column of images is taken. With
    `skip_bad_files`, a shard that cannot be opened is passed over, see [`open_shards`].

    Raises:
        ValueError: if the data set or a shard cannot be opened, or there is no such split or column.
    """
    if names_shards(dataset_name):
        if config_name is not None:
            raise ValueError(f"The shards {dataset_name} have no configuration {config_name!r}: leave it out.")
        splits = {"train": open_shards(dataset_name, skip_bad_files)}
    else:
        splits = open_dataset(dataset_name, config_name, streaming=True)
    stream = pick_split(splits, split, dataset_name, "unlabeled_split_name")
    found = [name for name, feature in (stream.features or {}).items() if isinstance(feature, Image)]
    if image_column == "image" and image_column not in found and len(found) == 1:
        (image_column,) = found  # WebDataset names columns by the extensions of their files
        logger.info("The images of %s are those of its column %s.", dataset_name, image_column)
    # Decoding is turned off before the column is renamed: afterwards, datasets would decode every image passed over.
    stream = undecoded_stream(stream, image_column)
    return stream if image_column == "image" else stream.rename_column(image_column, "image")


def add_unlabeled(data: SegmentationData, name: str, images: Dataset) -> SegmentationData:
    """
    The data with images, of columns `id` and `image`, after the unlabeled ones. Their ids get `name` and a colon in
    front, so that every id occurs once.
    """
    ids = [f"{name}:{identifier}" for identifier in images["id"]]
    images = images.remove_columns("id").add_column("id", ids)
    return replace(data, unlabeled=concatenate_datasets([data.unlabeled, images]))

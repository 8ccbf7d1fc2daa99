"""Unlabeled images from a second source: a folder, or a data set that `datasets.load_dataset` reads."""

from dataclasses import replace
from pathlib import Path

from datasets import Dataset, IterableDataset, concatenate_datasets

from ...utils.files import IMAGE_SUFFIXES
from ..streaming import undecoded_stream
from .hub import open_dataset, pick_split, standard_columns
from .pairs import ACCEPTED, SegmentationData, dataset_of_files, require_folder, require_usable_name, visible_paths


def read_image_folder(folder: str | Path) -> Dataset:
    """
    The images in a folder and its subfolders; hidden files and other files are passed over.

    Args:
        folder (`str` or `Path`): any folder with jpg, jpeg, png, bmp, tif, tiff or webp files, in upper or lower case.

    Returns:
        `datasets.Dataset`: columns `id` (string: path in the folder, with its extension) and `image`
        (`datasets.Image`), sorted by path.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no image, or a file has a name that cannot be listed.
    """
    folder = Path(folder).absolute()
    require_folder(folder, "unlabeled_dir names a folder of images")
    paths = []
    for path, name in visible_paths(folder):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            require_usable_name(path, name)
            paths.append(path)
    if not paths:
        raise ValueError(f"{folder} holds no image; put some there ({ACCEPTED}).")
    return dataset_of_files([path.relative_to(folder).as_posix() for path in paths], image=list(map(str, paths)))


def read_unlabeled_dataset(
    dataset_name: str, config_name: str | None = None, split: str = "train", image_column: str = "image"
) -> Dataset:
    """
    The images of one split of a data set, without anything else.

    Args:
        dataset_name (`str`): see [`open_dataset`].
        config_name (`str`, *optional*): the configuration, where the data set has several.
        split (`str`, *optional*, defaults to `"train"`): the split to read.
        image_column (`str`, *optional*, defaults to `"image"`): the column of images: `datasets.Image`, or paths or
            encoded bytes.

    Returns:
        `datasets.Dataset`: columns `id` (string) and `image` (`datasets.Image`).

    Raises:
        ValueError: if the data set cannot be loaded, or has no such split or column.
    """
    dataset = pick_split(open_dataset(dataset_name, config_name), split, dataset_name, "unlabeled_split_name")
    fix = "name the column of images with --unlabeled_image_column_name"
    return standard_columns(dataset, {"image": image_column}, f"The split {split} of {dataset_name}", split, fix)


def open_unlabeled_stream(
    dataset_name: str, config_name: str | None = None, split: str = "train", image_column: str = "image"
) -> IterableDataset:
    """
    The images of one split of a data set as a stream; the arguments of [`read_unlabeled_dataset`].

    Returns:
        `datasets.IterableDataset`: column `image`, not decoded: see [`StreamReader`].

    Raises:
        ValueError: if the data set cannot be opened, or has no such split or column.
    """
    splits = open_dataset(dataset_name, config_name, streaming=True)
    stream = pick_split(splits, split, dataset_name, "unlabeled_split_name")
    # Undecoded before it is renamed: after that, datasets would decode every image that is passed over.
    stream = undecoded_stream(stream, image_column)
    return stream if image_column == "image" else stream.rename_column(image_column, "image")


def add_unlabeled(data: SegmentationData, name: str, images: Dataset) -> SegmentationData:
    """
    Adds images to the unlabeled ones, after those that are there.

    Args:
        data (`SegmentationData`): the sets; not changed.
        name (`str`): what to put, with a colon, before the ids of `images`, so that every id occurs once.
        images (`datasets.Dataset`): columns `id` and `image`.
    """
    ids = [f"{name}:{identifier}" for identifier in images["id"]]
    images = images.remove_columns("id").add_column("id", ids)
    return replace(data, unlabeled=concatenate_datasets([data.unlabeled, images]))

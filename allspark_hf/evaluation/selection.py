"""Which images with masks a trained model is evaluated on."""

from collections.abc import Sequence
from dataclasses import replace

from datasets import Dataset, concatenate_datasets

from ..data import DataArguments, SegmentationData, find_data, split_of_run, with_class_indices, with_page_of
from ..data.images import require_readable_mask
from ..data.loading import BELONGING, held_out_in_run
from ..data.overlap import row_name, undecoded
from ..data.summary import image_ranges, require_known_values, warn_of_range
from ..utils.text import one_line


EVALUATION_SPLITS = ("labeled", "unlabeled", "validation", "test", "all")


def fit_to_model(data_arguments: DataArguments, config, long_side: int | None) -> DataArguments:
    """
    The data arguments with the model's ignore index and page of TIFF files. Its mask values need no option:
    [`read_label`] takes them from the configuration where neither the arguments nor the data set say what the masks
    hold.

    Args:
        data_arguments ([`DataArguments`]): as given.
        config ([`AllSparkConfig`]): of the model.
        long_side (`int`, *optional*): what the model's image processor scales the long side to, if anything.

    Raises:
        ValueError: where they contradict the model.
    """
    own = {"num_labels": config.num_labels, "image_long_side": long_side}
    for name, value in own.items():
        given = getattr(data_arguments, name)
        if given is not None and given != value:
            raise ValueError(f"{name}={given} was given, but the model has {value}: leave --{name} out.")
    values = data_arguments.mask_values
    if values and len(values) != config.num_labels:
        raise ValueError(f"mask_values lists {len(values)} classes, but the model has {config.num_labels}: list each.")
    ignored = config.semantic_loss_ignore_index
    if data_arguments.ignore_index not in (255, ignored):  # 255 is also what it is when not given
        raise ValueError(
            f"ignore_index={data_arguments.ignore_index} was given, but the model ignores {ignored}: leave "
            "--ignore_index out, and change the masks if they differ."
        )
    if data_arguments.skip_bad_files:
        raise ValueError(
            "skip_bad_files is for trainings alone: correct or remove bad files, and leave --skip_bad_files out."
        )
    return with_page_of(replace(data_arguments, ignore_index=ignored), config)


def find_data_of_models(
    data_arguments: DataArguments,
    models: Sequence[tuple],
    image_column: str = "image",
    label_column: str = "label",
) -> SegmentationData:
    """
    The data that the arguments name, read as one or several models read it, with masks of class indices where the
    arguments or the data say what the masks hold.

    Args:
        data_arguments ([`DataArguments`]): as given, or of [`split_of_run`].
        models (`Sequence[tuple]`): of each model, config and long_side of [`fit_to_model`].
        image_column (`str`): column of images, of a data set of the Hub.
        label_column (`str`): column of masks, of a data set of the Hub.

    Raises:
        ValueError: where the arguments contradict a model, or the models read different pages of TIFF files.
    """
    fitted = [fit_to_model(data_arguments, *model) for model in models][-1]
    fitted = with_page_of(replace(fitted, tiff_page=data_arguments.tiff_page), *(config for config, _ in models))
    data = find_data(fitted, image_column, label_column)
    sets = {name: with_class_indices(rows, data, fitted) for name, rows in data.sets.items()}
    return replace(data, **sets, mask_values=None, ignored_mask_values=None)


def select_split(
    split: str,
    data_arguments: DataArguments,
    config,
    model_folder: str,
    image_column: str = "image",
    label_column: str = "label",
) -> Dataset:
    """
    The images with masks to evaluate on, to be read with the model's [`MaskConvention`].

    Args:
        split (`str`): one of `EVALUATION_SPLITS`.
        data_arguments ([`DataArguments`]): of [`fit_to_model`].
        config ([`AllSparkConfig`]): of the model.
        model_folder (`str`): where the lists of a run's labeled images may lie; or a Hub id.
        image_column (`str`): column of images, of a data set of the Hub.
        label_column (`str`): column of masks, of a data set of the Hub.

    Raises:
        ValueError: if the data's classes are not the model's, there is no such image, or 255 may be a class in them.
    """
    where = data_arguments.data_dir or data_arguments.dataset_name
    second = ("unlabeled_dir", "unlabeled_dataset_name", *BELONGING["unlabeled_dataset_name"], "unlabeled_streaming")
    no_second_source = {name: getattr(DataArguments, name) for name in second}
    is_test = split == "test"
    for name in ("validation_list", "validation_split_name"):
        if is_test and getattr(data_arguments, name) is not None:
            raise ValueError(f"--{name} and --split test both choose the images to score: leave one of them out.")
    columns = image_column, label_column
    if split in ("labeled", "unlabeled") or (not is_test and held_out_in_run(data_arguments, model_folder, *columns)):
        data_arguments = split_of_run(data_arguments, model_folder)
    data = find_data(replace(data_arguments, **no_second_source), *columns, test=is_test)
    check_classes(config, data.classes, where)
    wanted = "validation" if is_test else split  # the test images are in its place
    parts = [getattr(data, name) for name in EVALUATION_SPLITS[:3] if wanted in (name, "all")]
    parts = [part for part in map(_rows_with_mask, parts) if len(part)]
    if not parts:
        hint = "give --labeled_count or the like, which hides masks" if split == "unlabeled" else "add some"
        raise ValueError(f"There is no {split} image with a mask in {where}: {hint}.")
    chosen = with_class_indices(concatenate_datasets(parts), data, data_arguments)
    title = "training and validation" if split == "all" else split
    require_known_values({title: chosen}, config)
    warn_of_range(image_ranges(chosen), config.image_range)
    return chosen


def check_classes(config, classes, where: str):
    """
    Refuses data whose classes are not the model's, or not in the model's order, as far as both name them.

    Args:
        config ([`AllSparkFields`]): of the model.
        classes ([`Classes`], *optional*): of the data; None if the data names none.
        where (`str`): what to call the data.

    Raises:
        ValueError: naming the numbers of classes, or the first class whose names differ.
    """
    if classes is None:
        return
    if classes.num_labels != config.num_labels:
        raise ValueError(
            f"The model has {config.num_labels} classes, the data {where} names {classes.num_labels}: give data with "
            "the model's classes, or correct the class list."
        )
    for index, name in classes.id2label.items():
        own = config.id2label[index]
        if own != name and own not in (f"class_{index}", f"LABEL_{index}"):
            raise ValueError(
                f"Class {index} is {own!r} for the model and {name!r} for {where}: give data with the model's classes "
                "in the same order, or correct the class list."
            )


def _rows_with_mask(dataset: Dataset) -> Dataset:
    """The rows whose mask is known; nothing is decoded, but a mask that has lost its values is a `ValueError`."""
    if "label" not in dataset.column_names:
        return dataset.select([])
    stored = [row["label"] for row in undecoded(dataset, "label")]
    for row, label in enumerate(stored):
        try:
            if label is not None:
                require_readable_mask(label)
        except (OSError, ValueError) as error:
            where = label["path"] or f"The mask of {row_name(dataset, row, None)}"
            raise ValueError(f"{where}: {one_line(error)}") from error
    return dataset.select([row for row, label in enumerate(stored) if label is not None])

"""Data sets that `datasets.load_dataset` reads: from the Hub, a local folder, or saved by `save_to_disk`."""

import logging
from collections.abc import Iterable
from pathlib import Path

import datasets
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Image, IterableDataset, LargeList, List, Value
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ...utils.text import one_line
from ..reading import require_columns
from .classes import Classes, read_classes
from .lists import read_lines
from .pairs import SegmentationData, can_be_listed
from .splits import Selection, choose_labeled, hold_out


logger = logging.getLogger(__name__)

ID2LABEL = "id2label.json"
VALIDATION_SPLITS = ("validation", "val")
COLUMN_FIX = "name the column of images with --image_column_name and the column of masks with --label_column_name"


def load_hub_data(
    dataset_name: str,
    config_name: str | None = None,
    train_split: str = "train",
    validation_split: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    classes: Classes | None = None,
    classes_column: str | None = None,
    **selection,
) -> SegmentationData:
    """
    Reads a data set with an image and a mask in every row; training rows whose mask is `None` are unlabeled.

    A row is named by its `id` where there is such a column and no id occurs twice, else by split and number.
    What is drawn depends on these ids and the seed, as for folders ([`load_folder`]).

    Args:
        dataset_name (`str`): a Hub id, a local folder that `datasets.load_dataset` reads (parquet, imagefolder with
            metadata, ...), or a folder written by `save_to_disk`.
        config_name (`str`, *optional*): the configuration, where the data set has several.
        train_split (`str`, *optional*, defaults to `"train"`): the split to train on.
        validation_split (`str`, *optional*): the split to validate with; `None` takes `validation`, else `val`, else
            holds rows with a mask out of `train_split`.
        image_column (`str`, *optional*, defaults to `"image"`): the column of images: `datasets.Image`, or paths or
            encoded bytes.
        label_column (`str`, *optional*, defaults to `"label"`): the column of masks, of the same kinds; class indices.
        classes (`Classes`, *optional*): names of the classes; without them, the data set is asked ([`find_classes`]).
        classes_column (`str`, *optional*): see [`find_classes`].
        selection: what to choose: the fields of [`Selection`]. `labeled_list` is a text file with one id per line,
            such as the `labeled_ids.txt` of an earlier run; there are no other lists.

    Returns:
        [`SegmentationData`]: columns `id`, `image` and `label` whatever they were called; rows in the data set's
        order.

    Raises:
        ValueError: if the data set cannot be loaded, has no such split, column or class names, no mask to train on, or
            the options contradict each other or are out of range.
        FileNotFoundError: if the list of labeled ids is missing.
    """
    selection = Selection(**selection)
    for name in ("unlabeled_list", "validation_list"):
        if getattr(selection, name) is not None:
            raise ValueError(f"{name} belongs to a folder, but the data set {dataset_name} was given: leave it out.")
    splits = open_dataset(dataset_name, config_name)
    source = pick_split(splits, train_split, dataset_name, "train_split_name")
    if classes is None:
        classes = find_classes(dataset_name, source, classes_column)
    where = f"The split {train_split} of {dataset_name}"
    columns = {"image": image_column, "label": label_column}
    train = standard_columns(source, columns, where, train_split, COLUMN_FIX)
    validation_split = validation_split or next((name for name in VALIDATION_SPLITS if name in splits), None)
    validation = None
    if validation_split is not None:
        validation = pick_split(splits, validation_split, dataset_name, "validation_split_name")
        title = f"The split {validation_split} of {dataset_name}"
        validation = standard_columns(validation, columns, title, validation_split, COLUMN_FIX)
    rows = {name: row for row, name in enumerate(train["id"])}
    masked = _ids_with_mask(train)
    held_out = set(hold_out(masked, where, selection)) if validation is None else set()
    masked = [name for name in masked if name not in held_out]
    if selection.labeled_list is None:
        keep = set(choose_labeled(masked, where, selection))
    else:
        keep = _read_ids(Path(selection.labeled_list), rows, set(masked), held_out)

    def select(ids: Iterable[str]) -> Dataset:
        return train.select(sorted(rows[name] for name in ids))

    hidden = [name for name in masked if name not in keep]
    unlabeled = select(rows.keys() - keep - held_out)
    return SegmentationData(
        labeled=select(keep),
        unlabeled=unlabeled if hidden else unlabeled.remove_columns("label"),
        validation=select(held_out) if validation is None else validation,
        classes=classes,
        hidden_ids=hidden,
    )


def _ids_with_mask(dataset: Dataset) -> list[str]:
    """The ids of the rows that have a mask; nothing is decoded."""
    masked: list[bool] = []
    for table in dataset.select_columns(["label"]).with_format("arrow").iter(batch_size=1000):
        label = table["label"]
        stored = pc.or_(*(pc.is_valid(pc.struct_field(label, name)) for name in ("bytes", "path")))
        masked += pc.and_(pc.is_valid(label), stored).to_pylist()
    return [name for name, has_mask in zip(dataset["id"], masked, strict=True) if has_mask]


def _read_ids(path: Path, rows: dict[str, int], masked: set[str], held_out: set[str]) -> set[str]:
    """The ids in a list, each of a training row with a mask."""
    ids = [line if line in rows else line.strip() for _, line in read_lines(path)]
    if not ids:
        raise ValueError(f"{path} names no id, so the labeled set is empty; list at least one id per line.")
    for name in (name for name in ids if name not in masked):
        if name in held_out:
            raise ValueError(
                f"{path} names {name}, held out for validation; use the seed and validation_fraction of the run that "
                "wrote the list."
            )
        reason = "which has no mask" if name in rows else "but there is no such training row"
        raise ValueError(f"{path} names {name}, {reason}; correct the list.")
    return set(ids)


def open_dataset(
    dataset_name: str, config_name: str | None = None, streaming: bool = False
) -> dict[str, Dataset] | dict[str, IterableDataset]:
    """
    All splits of a data set.

    Args:
        dataset_name (`str`): a Hub id, a local folder that `datasets.load_dataset` reads, or one written by
            `save_to_disk`; of the latter, a data set without splits is the split `train`.
        config_name (`str`, *optional*): the configuration, where the data set has several.
        streaming (`bool`, *optional*, defaults to `False`): whether to read rows as they come instead of downloading
            them all.

    Returns:
        `dict`: name of a split to `datasets.Dataset`, or to `datasets.IterableDataset` with `streaming`.

    Raises:
        ValueError: if it cannot be loaded; the message has the reason that `datasets` gives.
    """
    folder = Path(dataset_name)
    saved = (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()
    try:
        if not saved:
            return dict(datasets.load_dataset(dataset_name, config_name, streaming=streaming))
        if config_name is not None:
            raise ValueError(f"a folder of save_to_disk has no configuration {config_name!r}")
        stored = datasets.load_from_disk(dataset_name)
    # Among others RuntimeError for a Python script, which datasets no longer runs, and pickle.UnpicklingError for a
    # pickle of more than tensors in an archive; a broken file raises nearly anything.
    except Exception as error:
        raise ValueError(f"The data set {dataset_name} cannot be loaded: {one_line(error)}") from error
    splits = {"train": stored} if isinstance(stored, Dataset) else dict(stored)
    return {name: split.to_iterable_dataset() for name, split in splits.items()} if streaming else splits


def pick_split(splits: dict, name: str, dataset_name: str, option: str) -> Dataset | IterableDataset:
    """One of the splits; ValueError if there is none of that name, with the option that names it."""
    if name not in splits:
        raise ValueError(
            f"{dataset_name} has no split {name!r} but {', '.join(splits)}: name one of these with --{option}."
        )
    return splits[name]


def standard_columns(dataset: Dataset, columns: dict[str, str], where: str, split: str, fix: str) -> Dataset:
    """
    The columns that [`SegmentationData`] has, whatever they are called.

    Args:
        dataset (`datasets.Dataset`): a data set; it is not changed.
        columns (`dict[str, str]`): new to old name of columns of images.
        where (`str`): what to call the data set in an error.
        split (`str`): what the ids start with where the data set has none of its own.
        fix (`str`): how to name another column, for an error.

    Returns:
        `datasets.Dataset`: the columns as decoded `datasets.Image`, and `id` (string).

    Raises:
        ValueError: if there is no such column, or one holds neither images nor their paths or bytes.
    """
    require_columns(columns.values(), dataset.features, where, fix)
    ids = _ids(dataset, where, split)
    dataset = dataset.with_format(None).select_columns(list(columns.values()))
    dataset = dataset.rename_columns({old: new for new, old in columns.items() if old != new})
    for name, old in columns.items():
        dataset = dataset.cast_column(name, _as_images(dataset.features[name], f"{where}: the column {old!r}"))
    return dataset.add_column("id", ids)


def _ids(dataset: Dataset, where: str, split: str) -> list[str]:
    if "id" in dataset.column_names:
        ids = [str(name) for name in dataset.with_format(None).select_columns(["id"])[:]["id"]]
        if len(set(ids)) == len(ids) and all(map(can_be_listed, ids)):
            return ids
        reason = "several rows with one id" if len(set(ids)) < len(ids) else "a row with a blank or broken line"
        logger.warning("%s names %s; its rows are numbered instead.", where, reason)
    width = len(str(max(len(dataset) - 1, 0)))
    return [f"{split}-{row:0{width}d}" for row in range(len(dataset))]


def _as_images(feature, where: str) -> Image:
    if isinstance(feature, Image):
        return Image(mode=feature.mode)  # decoded, even if stored otherwise
    if isinstance(feature, Value) and feature.dtype.removeprefix("large_") in ("string", "binary"):
        return Image()
    raise ValueError(
        f"{where} holds {feature}, not images: store images (datasets.Image), their paths or their bytes."
    )


def find_classes(dataset_name: str, dataset: Dataset, classes_column: str | None = None) -> Classes | None:
    """
    The names of the classes in the order of the mask values; `None` if a data set has none.

    Args:
        dataset_name (`str`): Hub id or local folder.
        dataset (`datasets.Dataset`): one of its splits.
        classes_column (`str`, *optional*): a column of `ClassLabel`, or of lists of it, whose names are those of the
            mask values. `None` takes the file `id2label.json` of the data set, else the one column of lists of
            `ClassLabel`, if there is just one. A column of single `ClassLabel`s, which says what the whole image
            shows, is taken only if named here.

    Raises:
        ValueError: if there is no such column, or the file cannot be used.
    """
    found = {name: _class_label(feature) for name, feature in dataset.features.items()}
    found = {name: label for name, label in found.items() if label is not None}
    if classes_column is None:
        path = _find_id2label(dataset_name)
        if path is not None:
            return _read_id2label(path)
        lists = [name for name in found if not isinstance(dataset.features[name], ClassLabel)]
        if len(lists) != 1:
            return None
        classes_column = lists[0]
        logger.info("The names of the classes are those of the column %s; --classes overrides them.", classes_column)
    if classes_column not in found:
        raise ValueError(
            f"{dataset_name} has no column {classes_column!r} with names of classes (ClassLabel, or lists of it); "
            f"columns that have such names: {', '.join(found) or 'none'}."
        )
    return Classes(list(found[classes_column].names))


def _class_label(feature) -> ClassLabel | None:
    inner = feature.feature if isinstance(feature, List | LargeList) else feature
    return inner if isinstance(inner, ClassLabel) else None


def _read_id2label(path: Path) -> Classes:
    try:
        return read_classes(path)
    except ValueError as error:
        raise ValueError(f"{error} Or name the classes with --classes.") from error


def _find_id2label(dataset_name: str) -> Path | None:
    if Path(dataset_name).is_dir():
        path = Path(dataset_name) / ID2LABEL
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(dataset_name, ID2LABEL, repo_type="dataset"))
    except (EntryNotFoundError, OSError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        logger.warning(
            "Whether %s has names of classes in %s could not be found out (%s); --classes names them.",
            dataset_name,
            ID2LABEL,
            error,
        )
    return None

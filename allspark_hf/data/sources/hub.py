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
from .classes import Classes, read_classes
from .lists import read_lines
from .pairs import SegmentationData, can_be_listed
from .splits import Selection, draw, fraction_to_count


logger = logging.getLogger(__name__)

ID2LABEL = "id2label.json"
VALIDATION_SPLITS = ("validation", "val")


def load_hub_data(
    dataset_name: str,
    config_name: str | None = None,
    train_split: str = "train",
    validation_split: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    labeled_fraction: float | None = None,
    labeled_count: int | None = None,
    labeled_list: str | Path | None = None,
    validation_fraction: float = 0.1,
    seed: int = 42,
    classes: Classes | None = None,
    classes_column: str | None = None,
) -> SegmentationData:
    """
    Reads a data set with an image and a mask in every row; training rows whose mask is `None` are unlabeled.

    A row is named by its `id` where there is such a column and no id occurs twice, else by split and number.
    What is drawn depends on these ids and the seed, as for folders ([`load_folder`]).

    Args:
        dataset_name (`str`):
            A Hub id, a local folder that `datasets.load_dataset` reads (parquet, imagefolder with metadata, ...), or a
            folder written by `save_to_disk`.
        config_name (`str`, *optional*):
            The configuration, where the data set has several.
        train_split (`str`, *optional*, defaults to `"train"`):
            The split to train on.
        validation_split (`str`, *optional*):
            The split to validate with; `None` takes `validation`, else `val`, else holds rows with a mask out of
            `train_split`.
        image_column (`str`, *optional*, defaults to `"image"`):
            The column of images: `datasets.Image`, or paths or encoded bytes.
        label_column (`str`, *optional*, defaults to `"label"`):
            The column of masks, of the same kinds; class indices.
        labeled_fraction (`float`, *optional*):
            The share, above 0 and up to 1, of the training masks that stay; the others are hidden.
        labeled_count (`int`, *optional*):
            The same as a number of masks.
        labeled_list (`str` or `Path`, *optional*):
            The same as a text file with one id per line, such as the `labeled_ids.txt` of an earlier run.
        validation_fraction (`float`, *optional*, defaults to 0.1):
            The share of the rows with a mask, above 0 and below 1, held out where there is no validation split.
        seed (`int`, *optional*, defaults to 42):
            Seed of both draws, at least 0.
        classes (`Classes`, *optional*):
            Names of the classes; without them, the data set is asked ([`find_classes`]).
        classes_column (`str`, *optional*):
            See [`find_classes`].

    Returns:
        `SegmentationData`: Columns `id`, `image` and `label` whatever they were called; rows in the data set's order.

    Raises:
        ValueError: If the data set cannot be loaded, has no such split, column or class names, no mask to train on, or
            the options contradict each other or are out of range.
        FileNotFoundError: If the list of labeled ids is missing.
    """
    Selection(  # refuses what contradicts or is out of range
        labeled_fraction, labeled_count, labeled_list, validation_fraction=validation_fraction, seed=seed
    )
    splits = open_dataset(dataset_name, config_name)
    source = pick_split(splits, train_split, dataset_name, "train_split_name")
    if classes is None:
        classes = find_classes(dataset_name, source, classes_column)
    where = f"The split {train_split} of {dataset_name}"
    columns = {"image": image_column, "label": label_column}
    train = _pairs(source, columns, where, train_split)
    validation_split = validation_split or next((name for name in VALIDATION_SPLITS if name in splits), None)
    validation = None
    if validation_split is not None:
        validation = pick_split(splits, validation_split, dataset_name, "validation_split_name")
        validation = _pairs(validation, columns, f"The split {validation_split} of {dataset_name}", validation_split)
    rows, masked = _rows(train, where, label_column)
    held_out = _hold_out(masked, where, validation_fraction, seed) if validation is None else set()
    masked = [name for name in masked if name not in held_out]
    if labeled_list is not None:
        keep = _read_ids(Path(labeled_list), rows, masked, held_out)
    else:
        keep = _draw_labeled(masked, where, labeled_fraction, labeled_count, seed)
    hidden = [name for name in masked if name not in keep]
    unlabeled = _select(train, rows, rows.keys() - keep - held_out)
    return SegmentationData(
        labeled=_select(train, rows, keep),
        unlabeled=unlabeled if hidden else unlabeled.remove_columns("label"),
        validation=_select(train, rows, held_out) if validation is None else validation,
        classes=classes,
        hidden_ids=hidden,
    )


def _select(dataset: Dataset, rows: dict[str, int], ids: Iterable[str]) -> Dataset:
    return dataset.select(sorted(rows[name] for name in ids))


def _pairs(dataset: Dataset, columns: dict[str, str], where: str, split: str) -> Dataset:
    fix = "name the column of images with --image_column_name and the column of masks with --label_column_name"
    require_columns(dataset, columns.values(), where, fix)
    return standard_columns(dataset, columns, where, split)


def _hold_out(masked: list[str], where: str, fraction: float, seed: int) -> set[str]:
    count = fraction_to_count(len(masked), fraction)
    if count >= len(masked):
        raise ValueError(
            f"{where} has {len(masked)} mask{'s' if len(masked) > 1 else ''} and {count} would be held out for "
            "validation, which leaves none to train on: name a validation split, or lower validation_fraction."
        )
    return set(draw(masked, count, seed))


def _draw_labeled(masked: list[str], where: str, fraction: float | None, count: int | None, seed: int) -> set[str]:
    if fraction is not None:
        count = fraction_to_count(len(masked), fraction)
    if count is None:
        return set(masked)
    if count > len(masked):
        raise ValueError(f"labeled_count is {count}, but {where} has only {len(masked)} masks to train on: lower it.")
    return set(draw(masked, count, seed))


def _read_ids(path: Path, rows: dict[str, int], masked: list[str], held_out: set[str]) -> set[str]:
    ids = [line if line in rows else line.strip() for _, line in read_lines(path)]
    if not ids:
        raise ValueError(f"{path} names no id, so the labeled set is empty; list at least one id per line.")
    usable = set(masked)
    for name in ids:
        if name in held_out:
            raise ValueError(
                f"{path} names {name}, held out for validation; use the seed and validation_fraction of the run that "
                "wrote the list."
            )
        if name not in usable:
            reason = "which has no mask" if name in rows else "but there is no such training row"
            raise ValueError(f"{path} names {name}, {reason}; correct the list.")
    return set(ids)


def open_dataset(
    dataset_name: str, config_name: str | None = None, streaming: bool = False
) -> dict[str, Dataset] | dict[str, IterableDataset]:
    """
    All splits of a data set.

    Args:
        dataset_name (`str`):
            A Hub id, a local folder that `datasets.load_dataset` reads, or one written by `save_to_disk`; of the
            latter, a data set without splits is the split `train`.
        config_name (`str`, *optional*):
            The configuration, where the data set has several.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to read rows as they come instead of downloading them all.

    Returns:
        `dict`: Name of a split to `datasets.Dataset`, or to `datasets.IterableDataset` with `streaming`.

    Raises:
        ValueError: If it cannot be loaded; the message has the reason that `datasets` gives.
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


def require_columns(dataset: Dataset | IterableDataset, names: Iterable[str], where: str, fix: str) -> None:
    """ValueError, ending in `fix`, if one of the columns is missing; the message lists those that are there."""
    missing = [repr(name) for name in names if name not in dataset.features]
    if missing:
        listed = ", ".join(f"{name} ({feature})" for name, feature in dataset.features.items())
        raise ValueError(f"{where} has no column {' and no column '.join(missing)}, but {listed}: {fix}.")


def standard_columns(dataset: Dataset, columns: dict[str, str], where: str, split: str) -> Dataset:
    """
    The columns that [`SegmentationData`] has, whatever they are called.

    Args:
        dataset (`datasets.Dataset`):
            A data set that has them; it is not changed.
        columns (`dict[str, str]`):
            New to old name of columns of images.
        where (`str`):
            What to call the data set in an error.
        split (`str`):
            What the ids start with where the data set has none of its own.

    Returns:
        `datasets.Dataset`: The columns as decoded `datasets.Image`, and `id` (string).

    Raises:
        ValueError: If a column holds neither images nor their paths or bytes.
    """
    ids = _ids(dataset, where, split)
    dataset = dataset.with_format(None).select_columns(list(columns.values()))
    dataset = dataset.rename_columns({old: new for new, old in columns.items() if old != new})
    for name, old in columns.items():
        dataset = _as_images(dataset, name, f"{where}: the column {old!r}")
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


def _as_images(dataset: Dataset, column: str, where: str) -> Dataset:
    feature = dataset.features[column]
    if isinstance(feature, Image):
        return dataset.cast_column(column, Image(mode=feature.mode))  # decoded, even if stored otherwise
    if isinstance(feature, Value) and feature.dtype.removeprefix("large_") in ("string", "binary"):
        return dataset.cast_column(column, Image())
    raise ValueError(
        f"{where} holds {feature}, not images: store images (datasets.Image), their paths or their bytes."
    )


def _rows(dataset: Dataset, where: str, label_column: str) -> tuple[dict[str, int], list[str]]:
    """Row number by id, and the ids of the rows that have a mask, at least one."""
    masked: list[bool] = []
    for table in dataset.select_columns(["label"]).with_format("arrow").iter(batch_size=1000):
        label = table["label"]
        stored = pc.or_(*(pc.is_valid(pc.struct_field(label, name)) for name in ("bytes", "path")))
        masked += pc.and_(pc.is_valid(label), stored).to_pylist()
    rows = {name: row for row, name in enumerate(dataset["id"])}
    if not any(masked):
        raise ValueError(
            f"{where} has no mask in the column {label_column!r}, so the labeled set is empty: name another split or "
            "column."
        )
    return rows, [name for name, row in rows.items() if masked[row]]


def find_classes(dataset_name: str, dataset: Dataset, classes_column: str | None = None) -> Classes | None:
    """
    The names of the classes, where a data set has them.

    Args:
        dataset_name (`str`):
            Hub id or local folder.
        dataset (`datasets.Dataset`):
            One of its splits.
        classes_column (`str`, *optional*):
            A column of `ClassLabel`, or of lists of it, whose names are those of the mask values. `None` takes the
            file `id2label.json` of the data set, else the one column of lists of `ClassLabel`, if there is just one. A
            column of single `ClassLabel`s, which says what the whole image shows, is taken only if named here.

    Returns:
        `Classes` or `None`: Names in the order of the mask values; `None` if there are none.

    Raises:
        ValueError: If there is no such column, or the file cannot be used.
    """
    if classes_column is None:
        path = _find_id2label(dataset_name)
        if path is not None:
            return _read_id2label(path)
    found = {name: feature for name, feature in dataset.features.items() if _class_label(feature) is not None}
    if classes_column is None:
        lists = [name for name, feature in found.items() if not isinstance(feature, ClassLabel)]
        if len(lists) != 1:
            return None
        classes_column = lists[0]
        logger.info("The names of the classes are those of the column %s; --classes overrides them.", classes_column)
    if classes_column not in found:
        raise ValueError(
            f"{dataset_name} has no column {classes_column!r} with names of classes (ClassLabel, or lists of it); "
            f"columns that have such names: {', '.join(found) or 'none'}."
        )
    return Classes(list(_class_label(found[classes_column]).names))


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
    except EntryNotFoundError as error:
        if not isinstance(error, LocalEntryNotFoundError):
            return None
        reason = error
    except OSError as error:
        reason = error
    logger.warning(
        "Whether %s has names of classes in %s could not be found out (%s); --classes names them.",
        dataset_name,
        ID2LABEL,
        reason,
    )
    return None


__all__ = ["find_classes", "load_hub_data", "open_dataset", "pick_split", "require_columns", "standard_columns"]

"""Data sets that `datasets` reads: from the Hub, from a local folder, or written by `save_to_disk`."""

import logging
from pathlib import Path
from typing import NamedTuple

import datasets
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Image, IterableDataset, LargeList, List, Value, concatenate_datasets
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ...utils.text import one_line
from ..reading import require_columns
from .classes import Classes, read_classes
from .layout import Layout
from .lists import read_lines
from .pairs import Pairs, can_be_listed, nfc
from .split_names import TEST_FIX, sort_splits, split_of


logger = logging.getLogger(__name__)

ID2LABEL = "id2label.json"
SPLIT_FIX = "name one with --train_split_name or --validation_split_name"
COLUMN_FIX = "name the column of images with --image_column_name and the column of masks with --label_column_name"


def choose_splits(
    splits: dict, dataset_name: str, train_split: str | None, validation_split: str | None
) -> tuple[dict[str, str], list[str]]:
    """[`sort_splits`], but the splits that the user names come first; `ValueError` if there is no training split."""
    named = {"train": train_split, "validation": validation_split}
    named = {split: name for split, name in named.items() if name is not None}
    for split, name in named.items():
        pick_split(splits, name, dataset_name, f"{split}_split_name")
    rest = [name for name in splits if split_of(name) not in named]
    chosen = {**sort_splits(rest, dataset_name, SPLIT_FIX)[0], **named}
    pick_split(splits, chosen.get("train", "train"), dataset_name, "train_split_name")
    if chosen.get("unlabeled") in named.values():
        del chosen["unlabeled"]
    return chosen, [name for name in splits if name not in chosen.values()]


class Row(NamedTuple):
    """A row of a data set, which [`Pairs`] holds instead of a file."""

    split: str
    number: int

    def __str__(self) -> str:
        return f"row {self.number} of {self.split}"


class HubLayout(Layout):
    """
    A data set with an image and a mask in every row; training rows whose mask is `None` are unlabeled.

    The id of a row is its `id`, if there is such a column and no id occurs twice, else the split and the number. The
    rows of a split called unlabeled are added to the unlabeled rows, with the ids `unlabeled:ID`. A list is a text
    file with one id per line, such as the `labeled_ids.txt` of an earlier run.

    Args:
        dataset_name (`str`): see [`open_dataset`].
        columns (`dict[str, str]`): `"image"` and `"label"` -> the name of the column.
        config_name (`str`, *optional*): the configuration, where the data set has several.
        train_split (`str`, *optional*): the split to train on; `None` takes the one whose name means training
            ([`split_of`]).
        validation_split (`str`, *optional*): the split to validate with; `None` takes the one whose name means
            validation, or else holds rows with a mask out of the training split.
        classes_column (`str`, *optional*): see [`find_classes`].

    Raises:
        ValueError: if the data set cannot be loaded, has no such split, or a column is missing or holds neither images
            nor their paths or bytes.
    """

    needs_every_mask = False

    def __init__(
        self,
        dataset_name: str,
        columns: dict[str, str],
        config_name: str | None = None,
        train_split: str | None = None,
        validation_split: str | None = None,
        classes_column: str | None = None,
    ):
        super().__init__(Path(dataset_name))
        splits = open_dataset(dataset_name, config_name)
        chosen, left_alone = choose_splits(splits, dataset_name, train_split, validation_split)
        self.has_validation, self.has_unlabeled = "validation" in chosen, "unlabeled" in chosen
        self._splits, self._columns, self._dataset_name = splits, columns, dataset_name
        self.where = f"The split {chosen['train']} of {dataset_name}"
        if left_alone:
            self.left_alone = (
                f"Left alone in {dataset_name}: {', '.join(left_alone)}; to use one, {SPLIT_FIX}; {TEST_FIX}."
            )
        self._of_classes = dataset_name, splits[chosen["train"]], classes_column
        self.rows = {split: self._read(split, source) for split, source in chosen.items()}

    def _read(self, split: str, source: str) -> Dataset:
        title = f"The split {source} of {self._dataset_name}"
        columns = self._columns if split != "unlabeled" else {"image": self._columns["image"]}
        return standard_columns(self._splits[source], columns, title, source, COLUMN_FIX)

    def use_test_split(self) -> bool:
        named, _ = sort_splits(self._splits, self._dataset_name, "name one with --validation_split_name", ["test"])
        if named:
            self.rows["test"] = self._read("test", named["test"])
            self.validation, self.has_validation, self.left_alone = "test", True, None
        return bool(named)

    def find_classes(self) -> Classes | None:
        return find_classes(*self._of_classes)

    def find(self, split: str) -> Pairs:
        rows = self.rows[split]
        prefix = "unlabeled:" if split == "unlabeled" else ""
        images = {prefix + name: Row(split, number) for number, name in enumerate(rows["id"])}
        if "label" not in rows.column_names:
            return Pairs(images, {})
        return Pairs(images, {name: images[name] for name in _ids_with_mask(rows)})

    def pairs(self, split: str) -> Pairs:
        return super().pairs(split if split in self.rows else "train")

    def mask_of(self, image: Row) -> str:
        return f"mask in {image}"

    def read_list(self, path: str | Path, split: str, need_masks: bool) -> Pairs:
        pairs = self.pairs(split)
        if split == "train" and self.has_unlabeled and not need_masks:
            pairs = pairs.union(self.pairs("unlabeled"))
        known = {nfc(name): name for name in pairs.images}
        named = []
        for _, line in read_lines(path):
            name = next((known[text] for text in map(nfc, (line, line.strip())) if text in known), None)
            if name is None:
                kind = "training" if split == "train" else split
                raise ValueError(f"{path} names {line.strip()}, but there is no such {kind} row; correct the list.")
            if need_masks and name not in pairs.masks:
                raise ValueError(f"{path} names {name}, which has no mask; correct the list.")
            named.append(name)
        if need_masks and not named:
            raise ValueError(f"{path} names no id, so the set is empty; list at least one id per line.")
        return pairs.only(named)

    def to_dataset(self, pairs: Pairs, with_masks: bool) -> Dataset:
        ids = {row: name for name, row in pairs.images.items()}
        parts = []
        for split, rows in self.rows.items():
            numbers = sorted(row.number for row in ids if row.split == split)
            if not numbers:
                continue
            part = rows.select(numbers)
            if split == "unlabeled":
                part = part.remove_columns("id").add_column("id", [ids[Row(split, number)] for number in numbers])
            elif not with_masks:
                part = part.remove_columns("label")
            parts.append(part)
        if not parts:
            empty = self.rows["train"].select([])
            return empty if with_masks else empty.remove_columns("label")
        return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def _ids_with_mask(dataset: Dataset) -> list[str]:
    """The ids of the rows that have a mask; nothing is decoded."""
    masked: list[bool] = []
    for table in dataset.select_columns(["label"]).with_format("arrow").iter(batch_size=1000):
        label = table["label"]
        stored = pc.or_(*(pc.is_valid(pc.struct_field(label, name)) for name in ("bytes", "path")))
        masked += pc.and_(pc.is_valid(label), stored).to_pylist()
    return [name for name, has_mask in zip(dataset["id"], masked, strict=True) if has_mask]


def open_dataset(
    dataset_name: str, config_name: str | None = None, streaming: bool = False
) -> dict[str, Dataset] | dict[str, IterableDataset]:
    """
    The splits of a data set by name, as `datasets.Dataset`, or with `streaming` as `datasets.IterableDataset`.

    Args:
        dataset_name (`str`): a Hub id, a local folder that `datasets.load_dataset` reads, or a folder written by
            `save_to_disk`, in which a data set without splits is the split `train`.
        config_name (`str`, *optional*): the configuration, if the data set has several.
        streaming (`bool`, *optional*, defaults to `False`): whether to read rows as they come, without a
            download.

    Raises:
        ValueError: if the data set cannot be loaded; the message has the reason that `datasets` gives.
    """
    folder = Path(dataset_name)
    saved = (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()
    try:
        if not saved:
            return dict(datasets.load_dataset(dataset_name, config_name, streaming=streaming))
        if config_name is not None:
            raise ValueError(f"a folder of save_to_disk has no configuration {config_name!r}")
        stored = datasets.load_from_disk(dataset_name)
    # RuntimeError for a Python script, which datasets no longer runs, pickle.UnpicklingError for a pickle of more than
    # tensors in an archive, and for a broken file nearly anything.
    except Exception as error:
        raise ValueError(f"The data set {dataset_name} cannot be loaded: {one_line(error)}") from error
    splits = {"train": stored} if isinstance(stored, Dataset) else dict(stored)
    return {name: split.to_iterable_dataset() for name, split in splits.items()} if streaming else splits


def pick_split(splits: dict, name: str, dataset_name: str, option: str) -> Dataset | IterableDataset:
    """The split of this name; ValueError, which names the option to change, if there is none."""
    if name not in splits:
        raise ValueError(
            f"{dataset_name} has no split {name!r} but {', '.join(splits)}: name one of these with --{option}."
        )
    return splits[name]


def standard_columns(dataset: Dataset, columns: dict[str, str], where: str, split: str, fix: str) -> Dataset:
    """
    The columns of a data set under the names that [`SegmentationData`] needs, as decoded `datasets.Image`, and `id`
    (string).

    Args:
        dataset (`datasets.Dataset`): the data set, which is not changed.
        columns (`dict[str, str]`): new name -> old name of the columns of images and masks.
        where (`str`): what to call the data set in an error.
        split (`str`): what the ids begin with if the data set has no usable ids.
        fix (`str`): what the error tells the user to do about a missing column.

    Raises:
        ValueError: if a column is missing, or holds neither images nor their paths or bytes.
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
        return Image(mode=feature.mode)  # with decode=True, whatever the column had
    if isinstance(feature, dict) and "bytes" in feature and feature.keys() <= {"bytes", "path"}:
        return Image()  # as `datasets` and pandas store an image in a file that does not name its features
    if isinstance(feature, Value) and feature.dtype.removeprefix("large_") in ("string", "binary"):
        return Image()
    raise ValueError(
        f"{where} holds {feature}, not images: store images (datasets.Image), their paths or their bytes."
    )


def find_classes(dataset_name: str, dataset: Dataset, classes_column: str | None = None) -> Classes | None:
    """
    The names of the classes in the order of the mask values; `None` if the data set has none.

    Args:
        dataset_name (`str`): Hub id or local folder.
        dataset (`datasets.Dataset`): a split of the data set.
        classes_column (`str`, *optional*): a column of `ClassLabel`, or of lists of it, whose names are those of the
            mask values. `None` takes the file `id2label.json` of the data set, else the only column of lists of
            `ClassLabel`. A column of single `ClassLabel`s says what the whole image shows, and is taken only if it is
            named here.

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
            "The names of the classes of %s cannot be looked up in %s (%s); name them with --classes.",
            dataset_name,
            ID2LABEL,
            error,
        )
    return None

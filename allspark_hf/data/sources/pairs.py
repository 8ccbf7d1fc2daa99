"""Images and their masks by id, and the datasets made of them."""

import unicodedata
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, Features, Image, IterableDataset, Value

from ...utils.files import MASK_SUFFIXES, is_hidden
from ..masks import MaskConvention
from .classes import Classes


SHOWN_IDS = 5
SETS = ("labeled", "unlabeled", "validation")
ACCEPTED = "accepted: " + ", ".join(suffix[1:] for suffix in MASK_SUFFIXES)  # for an error message
ACCEPTED_IMAGES = f"{ACCEPTED} and what else Pillow reads"


@dataclass
class SegmentationData:
    """
    The data of a training. Nothing is decoded before a row is read.

    Args:
        labeled (`datasets.Dataset`): training images with masks: columns `id` (string), `image` (`datasets.Image`),
            `label` (`datasets.Image`, class indices).
        unlabeled (`datasets.Dataset`): training images without a mask: columns `id` and `image`; may have no rows. If
            masks were hidden, a column `label` has these masks, and `None` in the other rows; they serve only to
            measure pseudo-labels.
        validation (`datasets.Dataset`): the columns of `labeled`; the other two sets have none of its images.
        classes (`Classes`, *optional*): names and colors, if the data set has them.
        hidden_ids (`list[str]`, *optional*): the ids of the unlabeled images whose masks were hidden.
        mask_values (`tuple[int]`, *optional*): the value stored for class 0, for class 1 and so on, if the masks do
            not hold class indices.
        ignored_mask_values (`tuple[int]`, *optional*): further stored values, which are ignored.
        unlabeled_stream (`datasets.IterableDataset`, *optional*): a stream of images, column `image`, to learn from
            instead of `unlabeled`.
    """

    labeled: Dataset
    unlabeled: Dataset
    validation: Dataset
    classes: Classes | None = None
    hidden_ids: list[str] = field(default_factory=list)
    mask_values: tuple[int, ...] | None = None
    ignored_mask_values: tuple[int, ...] | None = None
    unlabeled_stream: IterableDataset | None = None

    @property
    def sets(self) -> dict[str, Dataset]:
        """The three sets by name."""
        return {name: getattr(self, name) for name in SETS}

    def mask_transform(
        self,
        ignore_index: int = 255,
        mask_values: Iterable[int] | None = None,
        ignored_mask_values: Iterable[int] | None = None,
    ) -> MaskConvention:
        """
        The transform from mask values to class indices, by the options or else by the values of the data set;
        `mask_values` replaces both lists of the data set.

        Raises:
            ValueError: if the values contradict each other.
        """
        if ignored_mask_values is None and mask_values is None:
            ignored_mask_values = self.ignored_mask_values
        if mask_values is None:
            mask_values = self.mask_values
        stored = None if mask_values is None else tuple(mask_values)
        return MaskConvention(stored, ignore_index, tuple(ignored_mask_values or ()))


@dataclass
class Pairs:
    """
    The images of one set and their masks.

    Args:
        images (`dict[str, Path]`): id -> file, or what else names a row, such as [`~hub.Row`].
        masks (`dict[str, Path]`): the same for the masks; an image may have none.
    """

    images: dict[str, Path | Hashable]
    masks: dict[str, Path | Hashable]

    def only(self, ids: Iterable[str]) -> "Pairs":
        """The images with these ids and their masks, in the order of the ids."""
        images = {name: self.images[name] for name in ids}
        return Pairs(images, {name: self.masks[name] for name in images if name in self.masks})

    def without(self, *others: "Pairs") -> "Pairs":
        """The images whose files are not in the other sets, and their masks."""
        left_out = {path for other in others for path in other.images.values()}
        return self.only(name for name, path in self.images.items() if path not in left_out)

    def union(self, other: "Pairs") -> "Pairs":
        """The images and masks of both sets, which must not share an id."""
        return Pairs(self.images | other.images, self.masks | other.masks)

    def to_dataset(self, with_masks: bool) -> Dataset:
        """
        The images as a dataset, sorted by id: columns `id`, `image` and, `with_masks`, `label`, which is `None` for an
        image without a mask.
        """
        ids = sorted(self.images)
        columns = {"image": [str(self.images[name]) for name in ids]}
        if with_masks:
            columns["label"] = [str(self.masks[name]) if name in self.masks else None for name in ids]
        return dataset_of_files(ids, **columns)


def dataset_of_files(ids: list[str], **columns: list[str | None]) -> Dataset:
    """A dataset with the column `id` and columns of image files; nothing is decoded."""
    columns = {"id": ids, **columns}
    # The types are named because a set without rows does not show them.
    dataset = Dataset.from_dict(columns, features=Features({name: Value("string") for name in columns}))
    for name in list(columns)[1:]:
        dataset = dataset.cast_column(name, Image())
    return dataset


def visible_paths(folder: Path, deep: bool = True) -> Iterator[tuple[Path, str]]:
    """The sorted paths in a folder (`deep`: and its subfolders) that are not hidden, each with its id."""
    for path in sorted(folder.rglob("*") if deep else folder.glob("*")):
        relative = path.relative_to(folder)
        if not any(is_hidden(part) for part in relative.parts):
            yield path, nfc(relative.with_suffix("").as_posix())


def nfc(name: str) -> str:
    """A name with its accents in one of Unicode's two forms; a Mac stores names in the other one."""
    return unicodedata.normalize("NFC", name)


def require_folder(folder: Path, need: str):
    """Raises `FileNotFoundError`, with what is needed, if there is no such folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}; {need}.")


def require_images(masks: Iterable[Path], used: Iterable[Path], fix: str = "add the images or remove the masks"):
    """Raises `ValueError` if a mask has no image, because then images are missing."""
    used = set(used)
    orphans = [mask for mask in masks if mask not in used and not is_hidden(mask.name)]
    if orphans:
        counted = "1 mask has" if len(orphans) == 1 else f"{len(orphans)} masks have"
        raise ValueError(f"{counted} no image, first {orphans[0]}; {fix}.")


def can_be_listed(name: str) -> bool:
    """Whether an id can stand on a line of a list, in UTF-8."""
    return bool(name.strip()) and name[0] != "\ufeff" and not set("\r\n") & set(name) and _encodes(name)


def _encodes(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # a file's name in another encoding
        return False
    return True


def require_usable_name(path: Path, name: str):
    """Raises `ValueError` if a list cannot hold a file's id, or a data set its path."""
    if not can_be_listed(name) or not _encodes(str(path)):
        raise ValueError(
            f"The name of the file {str(path)!a} is blank, has a line break or a byte order mark, or is not in "
            "UTF-8; rename it."
        )


def first_few(ids: list[str]) -> str:
    """The first few ids for an error message, and the number of the others."""
    rest = len(ids) - SHOWN_IDS
    return ", ".join(ids[:SHOWN_IDS]) + (f" and {rest} more" if rest > 0 else "")

"""Images with their masks, by id, and datasets made of them."""

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
    What a training needs. Nothing is decoded before a row is read.

    Args:
        labeled (`datasets.Dataset`): training images with masks: columns `id` (string), `image` (`datasets.Image`),
            `label` (`datasets.Image`, class indices).
        unlabeled (`datasets.Dataset`): training images to learn from without a mask: columns `id` and `image`; may
            have no rows. Where masks were hidden, a column `label` has these (and `None` in the other rows), to
            measure pseudo-labels by and never to train on.
        validation (`datasets.Dataset`): the columns of `labeled`; no image of it is in the other two.
        classes (`Classes`, *optional*): names and colors, where the data set has them.
        hidden_ids (`list[str]`, *optional*): the ids of the unlabeled images that do have a mask, which was hidden.
        mask_values (`tuple[int]`, *optional*): the value stored for class 0, for class 1 and so on, where the masks do
            not hold class indices.
        ignored_mask_values (`tuple[int]`, *optional*): further stored values, which do not count.
        unlabeled_stream (`datasets.IterableDataset`, *optional*): images to learn from instead of `unlabeled`, which
            no disk has to hold: column `image`.
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
        What makes class indices of the masks: by the options, else by what the data set says of itself.

        Args:
            ignore_index (`int`, *optional*, defaults to 255): the value of ignored pixels.
            mask_values (`Iterable[int]`, *optional*): the option; it replaces both lists of the data set.
            ignored_mask_values (`Iterable[int]`, *optional*): the option; it replaces that list of the data set.

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
        images (`dict[str, Path]`): id to file; a data set in rows has something else there that names the row.
        masks (`dict[str, Path]`): the same for the masks; an image may have none.
    """

    images: dict[str, Path | Hashable]
    masks: dict[str, Path | Hashable]

    def only(self, ids: Iterable[str]) -> "Pairs":
        """The images of these ids and the masks they have, in the order of the ids."""
        images = {name: self.images[name] for name in ids}
        return Pairs(images, {name: self.masks[name] for name in images if name in self.masks})

    def without(self, *others: "Pairs") -> "Pairs":
        """All but the image files of other sets."""
        left_out = {path for other in others for path in other.images.values()}
        return self.only(name for name, path in self.images.items() if path not in left_out)

    def beside(self, other: "Pairs") -> "Pairs":
        """Those of both sets, which share no id."""
        return Pairs(self.images | other.images, self.masks | other.masks)

    def to_dataset(self, with_masks: bool) -> Dataset:
        """
        The images as a dataset.

        Args:
            with_masks (`bool`): whether to have a column `label`; an image without a mask has `None` there.

        Returns:
            `datasets.Dataset`: columns `id`, `image` and perhaps `label`, sorted by id.
        """
        ids = sorted(self.images)
        columns = {"image": [str(self.images[name]) for name in ids]}
        if with_masks:
            columns["label"] = [str(self.masks[name]) if name in self.masks else None for name in ids]
        return dataset_of_files(ids, **columns)


def dataset_of_files(ids: list[str], **columns: list[str | None]) -> Dataset:
    """A dataset with the column `id` and columns of image files, which are not decoded yet."""
    columns = {"id": ids, **columns}
    # The types are given because those of a set without rows cannot be seen.
    dataset = Dataset.from_dict(columns, features=Features({name: Value("string") for name in columns}))
    for name in list(columns)[1:]:
        dataset = dataset.cast_column(name, Image())
    return dataset


def visible_paths(folder: Path, deep: bool = True) -> Iterator[tuple[Path, str]]:
    """Sorted paths in a folder and its subfolders, each with its id, for what a list can name; none is hidden."""
    for path in sorted(folder.rglob("*") if deep else folder.glob("*")):
        relative = path.relative_to(folder)
        if not any(is_hidden(part) for part in relative.parts):
            yield path, one_form(relative.with_suffix("").as_posix())


def one_form(name: str) -> str:
    """A name with its accents in one of the two forms that Unicode has; a Mac stores names in the other one."""
    return unicodedata.normalize("NFC", name)


def require_folder(folder: Path, need: str):
    """Raises `FileNotFoundError`, with what is needed, if there is no such folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}; {need}.")


def require_images(masks: Iterable[Path], used: Iterable[Path], fix: str = "add the images or remove the masks"):
    """Raises `ValueError` if a mask is of no image, which shows that the images are not all there."""
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
    """Raises `ValueError` for a file whose id no list, or whose path no data set can hold."""
    if not can_be_listed(name) or not _encodes(str(path)):
        raise ValueError(
            f"The name of the file {str(path)!a} is blank, has a line break or a byte order mark, or is not in "
            "UTF-8; rename it."
        )


def some(ids: list[str]) -> str:
    """The first few ids for an error message, and the number of the others."""
    rest = len(ids) - SHOWN_IDS
    return ", ".join(ids[:SHOWN_IDS]) + (f" and {rest} more" if rest > 0 else "")

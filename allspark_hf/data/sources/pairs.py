"""Images with their masks, by id; where a data set keeps them; and datasets made of them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, Features, Image, IterableDataset, Value

from .classes import Classes


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
SHOWN_IDS = 5


@dataclass
class SegmentationData:
    """
    What a training needs. Nothing is decoded before a row is read.

    Args:
        labeled (`datasets.Dataset`):
            Training images with masks: columns `id` (string), `image` (`datasets.Image`), `label` (`datasets.Image`,
            class indices).
        unlabeled (`datasets.Dataset`):
            Training images to learn from without a mask: columns `id` and `image`; may have no rows. Where masks were
            hidden, a column `label` has these (and `None` in the other rows), to measure pseudo-labels by and never to
            train on.
        validation (`datasets.Dataset`):
            The columns of `labeled`; no image of it is in the other two.
        classes (`Classes`, *optional*):
            Names and colours, where the folder has them.
        hidden_ids (`list[str]`, *optional*):
            The ids of the unlabeled images that do have a mask, which was hidden.
        mask_values (`tuple[int]`, *optional*):
            The value stored for class 0, for class 1 and so on, where the masks do not hold class indices.
        ignored_mask_values (`tuple[int]`, *optional*):
            Further stored values, which do not count.
        unlabeled_stream (`datasets.IterableDataset`, *optional*):
            Images to learn from instead of `unlabeled`, which no disk has to hold: column `image`.
    """

    labeled: Dataset
    unlabeled: Dataset
    validation: Dataset
    classes: Classes | None = None
    hidden_ids: list[str] = field(default_factory=list)
    mask_values: tuple[int, ...] | None = None
    ignored_mask_values: tuple[int, ...] | None = None
    unlabeled_stream: IterableDataset | None = None

    def stored_values(
        self, mask_values: Iterable[int] | None = None, ignored_mask_values: Iterable[int] | None = None
    ) -> tuple[tuple[int, ...] | None, tuple[int, ...]]:
        """
        What the masks hold: the options, else what the data set says of itself.

        Args:
            mask_values (`Iterable[int]`, *optional*):
                The option; given, it replaces both of the data set's.
            ignored_mask_values (`Iterable[int]`, *optional*):
                The option; given, it replaces the data set's.

        Returns:
            `tuple`: The stored value of each class (`None` for class indices) and the stored values that do not count.
        """
        if ignored_mask_values is None and mask_values is None:
            ignored_mask_values = self.ignored_mask_values
        if mask_values is None:
            mask_values = self.mask_values
        return None if mask_values is None else tuple(mask_values), tuple(ignored_mask_values or ())


@dataclass
class Pairs:
    """
    The images of one set and their masks.

    Args:
        images (`dict[str, Path]`):
            Id to file.
        masks (`dict[str, Path]`):
            The same for the masks; an image may have none.
    """

    images: dict[str, Path]
    masks: dict[str, Path]

    def only(self, ids: Iterable[str]) -> "Pairs":
        """The images of these ids and the masks they have, in the order of the ids."""
        ids = list(ids)
        return Pairs(
            {name: self.images[name] for name in ids}, {name: self.masks[name] for name in ids if name in self.masks}
        )

    def without(self, images: Iterable[Path]) -> "Pairs":
        """All but these image files."""
        left_out = set(images)
        return self.only(name for name, path in self.images.items() if path not in left_out)

    def to_dataset(self, with_masks: bool) -> Dataset:
        """
        The images as a dataset.

        Args:
            with_masks (`bool`):
                Whether to have a column `label`; an image without a mask has `None` there.

        Returns:
            `datasets.Dataset`: Columns `id`, `image` and perhaps `label`, sorted by id.
        """
        ids = sorted(self.images)
        columns = {"id": ids, "image": [str(self.images[name]) for name in ids]}
        if with_masks:
            columns["label"] = [str(self.masks[name]) if name in self.masks else None for name in ids]
        # The types are given because those of a set without rows cannot be seen.
        dataset = Dataset.from_dict(columns, features=Features({name: Value("string") for name in columns}))
        for name in list(columns)[1:]:
            dataset = dataset.cast_column(name, Image())
        return dataset


class Layout:
    """
    Where a data set keeps its images and masks, and what its masks mean. Subclasses: the own folder, VOC, Cityscapes,
    COCO.

    Args:
        root (`Path`):
            The folder that the paths in split files are relative to.
    """

    name: str
    every_mask = True  # whether a training image without a mask is a mistake, unless a list says what is labeled
    classes: Classes | None = None
    mask_values: tuple[int, ...] | None = None
    ignored_mask_values: tuple[int, ...] | None = None

    def __init__(self, root: Path):
        self.root = root

    def train(self) -> Pairs:
        """All training images, with the masks there are."""
        raise NotImplementedError

    def validation(self) -> Pairs | None:
        """The validation images, all with masks; `None` where the data set has set none aside."""
        raise NotImplementedError

    def image_of(self, name: str, split: str) -> Path:
        """Where the image of a bare id lies or would lie; `split` is `"train"` or `"validation"`."""
        raise NotImplementedError

    def mask_of(self, image: Path) -> Path:
        """Where the mask of an image lies or would lie."""
        raise NotImplementedError

    def name_of(self, image: Path) -> str:
        """The bare id of an image, if the data set keeps it where it keeps its own."""
        raise NotImplementedError

    def listed_mask(self, mask: Path, image: Path) -> Path | None:
        """The mask to read where a list names `mask`: this one or one that shows the same; `None` refuses it."""
        return mask

    def identify(self, image: Path, split: str) -> str:
        """The id under which [`image_of`] finds an image again, else its path relative to the root."""
        name = self.name_of(image)
        return name if self.image_of(name, split) == image else image.relative_to(self.root).as_posix()


def can_be_listed(name: str) -> bool:
    """Whether an id can stand on a line of a list, in UTF-8."""
    return bool(name.strip()) and name[0] != "\ufeff" and not set("\r\n") & set(name) and _encodes(name)


def _encodes(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # a file's name in another encoding
        return False
    return True


def require_usable_name(path: Path, name: str) -> None:
    """`ValueError` for a file whose id no list, or whose path no data set can hold."""
    if not can_be_listed(name) or not _encodes(str(path)):
        raise ValueError(
            f"The name of the file {str(path)!a} is blank, has a line break or a byte order mark, or is not in "
            "UTF-8; rename it."
        )


def some(ids: list[str]) -> str:
    """The first few ids for an error message, and the number of the others."""
    rest = len(ids) - SHOWN_IDS
    return ", ".join(ids[:SHOWN_IDS]) + (f" and {rest} more" if rest > 0 else "")


def accepted_suffixes() -> str:
    """The kinds of image files, for an error message."""
    return "accepted: " + ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)

"""Where a data set keeps its images and masks: what all forms have in common."""

from pathlib import Path

from datasets import Dataset

from .classes import Classes, classes_in
from .lists import read_list
from .pairs import Pairs, one_form


class Layout:
    """
    Where a data set keeps its images and masks, and what its masks mean. Subclasses: the own folder, VOC, Cityscapes,
    COCO, rows of the Hub. A split is `"train"`, `"validation"` or `"unlabeled"`.

    Args:
        root (`Path`): the folder that the paths in split files are relative to.
    """

    name: str
    every_mask = True  # whether a training image without a mask is a mistake, unless a list says what is labeled
    has_validation = True  # whether the data set has set images aside for validation
    has_unlabeled = False  # whether it has set images aside that have no mask
    left_alone: str | None = None  # a sentence about what it holds besides
    classes: Classes | None = None
    mask_values: tuple[int, ...] | None = None
    ignored_mask_values: tuple[int, ...] | None = None

    def __init__(self, root: Path):
        self.root = root
        self.where = str(root)  # what to call the data in an error
        self._found: dict[str, Pairs] = {}

    def pairs(self, split: str) -> Pairs:
        """All images of a split, with the masks there are; looked for once."""
        if split not in self._found:
            self._found[split] = self.find(split)
        return self._found[split]

    def find_classes(self) -> Classes | None:
        """The classes that a file in the folder names, else those that the data set is known to have."""
        return classes_in(self.root) or self.classes

    def find(self, split: str) -> Pairs:
        """Looks for the images of a split and their masks."""
        raise NotImplementedError

    def image_of(self, name: str, split: str) -> Path:
        """Where the image of a bare id lies or would lie."""
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
        return name if self.image_of(name, split) == image else one_form(image.relative_to(self.root).as_posix())

    def read_list(self, path: str | Path, split: str, need_masks: bool) -> Pairs:
        """The images that a list names ([`read_list`])."""
        return read_list(path, self, split, need_masks)

    def to_dataset(self, pairs: Pairs, with_masks: bool) -> Dataset:
        """Some of the images as a dataset ([`Pairs.to_dataset`])."""
        return pairs.to_dataset(with_masks)

"""What all layouts of data sets have in common: where images and masks lie, and how to find them by id."""

from pathlib import Path

from datasets import Dataset

from .classes import Classes, classes_in
from .lists import read_list
from .pairs import Pairs, one_form


class Layout:
    """
    Where a data set keeps its images and masks, and what its masks mean. There are subclasses for the user's own
    folder, VOC, Cityscapes, COCO and rows of the Hub. A split is `"train"`, `"validation"` or `"unlabeled"`.

    Args:
        root (`Path`): the folder that the paths in split files are relative to.
    """

    name: str
    every_mask = True  # whether a training image without a mask is a mistake, unless a list names the labeled images
    has_validation = True  # whether the data set has a validation split
    has_unlabeled = False  # whether the data set has a split of unlabeled images
    left_alone: str | None = None  # a sentence about images in the data set that are not read
    classes: Classes | None = None
    mask_values: tuple[int, ...] | None = None
    ignored_mask_values: tuple[int, ...] | None = None

    def __init__(self, root: Path):
        self.root = root
        self.where = str(root)  # what to call the data in an error
        self._found: dict[str, Pairs] = {}

    def pairs(self, split: str) -> Pairs:
        """All images of a split and the masks that exist; the search runs once."""
        if split not in self._found:
            self._found[split] = self.find(split)
        return self._found[split]

    def find_classes(self) -> Classes | None:
        """The classes that a file in the folder names, else the known classes of the data set."""
        return classes_in(self.root) or self.classes

    def find(self, split: str) -> Pairs:
        """Searches the images of a split and their masks."""
        raise NotImplementedError

    def image_of(self, name: str, split: str) -> Path:
        """The path of the image with this id, whether it exists or not."""
        raise NotImplementedError

    def mask_of(self, image: Path) -> Path:
        """The path of an image's mask, whether it exists or not."""
        raise NotImplementedError

    def name_of(self, image: Path) -> str:
        """The id of an image that lies where the data set keeps its images."""
        raise NotImplementedError

    def listed_mask(self, mask: Path, image: Path) -> Path | None:
        """The mask to read if a list names `mask`: this one or its equivalent; `None` refuses the line."""
        return mask

    def identify(self, image: Path, split: str) -> str:
        """The id by which [`image_of`] finds an image, or else the image's path relative to the root."""
        name = self.name_of(image)
        return name if self.image_of(name, split) == image else one_form(image.relative_to(self.root).as_posix())

    def read_list(self, path: str | Path, split: str, need_masks: bool) -> Pairs:
        """The images that a list names ([`read_list`])."""
        return read_list(path, self, split, need_masks)

    def to_dataset(self, pairs: Pairs, with_masks: bool) -> Dataset:
        """Some of the images as a dataset ([`Pairs.to_dataset`])."""
        return pairs.to_dataset(with_masks)

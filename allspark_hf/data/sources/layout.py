"""What all layouts of data sets have in common: where images and masks lie, and how to find them by id."""

import logging
import re
from pathlib import Path, PurePosixPath

from datasets import Dataset

from .classes import Classes, classes_in
from .lists import is_file, is_image_path, path_in, read_lines, shown, split_line
from .pairs import Pairs, nfc


logger = logging.getLogger(__name__)


class Layout:
    """
    Where a data set keeps its images and masks, and what its masks mean. There are subclasses for the user's own
    folder, VOC, Cityscapes, COCO and rows of the Hub. A split is `"train"`, `"validation"`, `"unlabeled"` or `"test"`.

    Args:
        root (`Path`): the folder that the paths in split files are relative to.
    """

    name: str
    needs_every_mask = True  # whether a training image without a mask is a mistake, unless a list names the labeled
    has_validation = True  # whether the data set has a validation split
    validation = "validation"  # the split to validate with
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

    def use_test_split(self) -> bool:
        """Makes the test split take the place of the validation split; `False` if there is none with masks."""
        return False

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
        return name if self.image_of(name, split) == image else nfc(image.relative_to(self.root).as_posix())

    def to_dataset(self, pairs: Pairs, with_masks: bool) -> Dataset:
        """Some of the images as a dataset ([`Pairs.to_dataset`])."""
        return pairs.to_dataset(with_masks)

    def read_list(self, path: str | Path, split: str, need_masks: bool) -> Pairs:
        """
        Reads a split file of a run, or one that UniMatch, AllSpark or U2PL publish.

        A line is `image mask`, an image path, an id, or a file name whose stem is the id. Blanks, a comma or a
        semicolon separate the two paths. Paths are relative to the root of the data set, or absolute and inside it,
        with slashes or backslashes. If a line names no mask, the mask lies where the data set keeps it. No line may
        lead out of the data set's folder; a link inside the folder is followed wherever it leads.

        Args:
            path (`str` or `Path`): the text file, in UTF-8.
            split (`str`): `"train"` or `"validation"`: the split in which an id is looked up.
            need_masks (`bool`): whether the list must name an image, and every image must have a mask; otherwise a
                mask that does not exist is left out.

        Returns:
            `Pairs`: the images in the order of the lines.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is not in UTF-8, or a line names an image that does not exist, an image that an
                earlier line names, a path outside the data set, or an image whose needed mask does not exist.
        """
        pairs, first_line, replaced = Pairs({}, {}), {}, []
        for number, line in read_lines(path):
            where = f"Line {number} of {path}"
            image, mask = self._resolve(line, split, where)
            line = shown(line)
            if image in first_line:
                raise ValueError(f"{where} names {line}, as line {first_line[image]} does; name every image once.")
            first_line[image] = number
            name = self.identify(image, split)
            pairs.images[name] = image
            if mask is None:
                mask = self.mask_of(image)
            else:
                listed, mask = mask, self.listed_mask(mask, image)
                if mask is None:
                    raise ValueError(f"{where} names {line}, but {self.name} has no masks named so; correct the list.")
                if mask != listed:
                    replaced.append((listed, mask))
            if is_file(mask):
                pairs.masks[name] = mask
            elif need_masks:
                place = shown(str(mask))
                raise ValueError(f"{where} names {line}, but there is no mask {place}; add it or correct the list.")
        if need_masks and not pairs.images:
            raise ValueError(f"{path} names no image; list at least one.")
        if replaced:
            logger.info("%s: %d masks are read from other files, first %s from %s", path, len(replaced), *replaced[0])
        return pairs

    def find_image(self, line: str, split: str) -> tuple[Path | None, str | None]:
        """The image that a line names, if it exists, and the mask's path, if the line has one; see [`read_list`]."""
        # An id may look like a path or a pair, or end in a blank: the line is an id if such an image exists.
        for name in (line, line.strip()):
            if not self._leaves(name) and is_file(image := self.image_of(nfc(name), split)):
                return image, None
            if is_image_path(name) and not self._leaves(name) and (image := path_in(self.root, name)):
                return image, None
        first, second = split_line(line.strip())
        if self._leaves(first) or not is_image_path(first):
            return None, second
        if second is not None and (image := path_in(self.root, first)):
            return image, second
        # The line may be the name of a file whose stem is the id.
        image = self.image_of(nfc(PurePosixPath(first).with_suffix("").as_posix()), split)
        is_named = is_file(image) and nfc(image.name).lower() == nfc(PurePosixPath(first).name).lower()
        return image if is_named else None, second

    def _resolve(self, line: str, split: str, where: str) -> tuple[Path, Path | None]:
        """[`find_image`], but `ValueError` if the line leads out of the data folder or names no image."""
        image, second = self.find_image(line, split)
        line = line.strip()
        first = split_line(line)[0] if image is None or second is not None else None
        for path in (first, second):
            if path is not None and self._leaves(path):
                raise ValueError(
                    f"{where} names {shown(path)}, which is outside {self.root}; paths must be relative to that "
                    "folder."
                )
        if image is None:
            is_path = second is not None or is_image_path(first)
            other = "validation" if split == "train" else "train"
            if not is_path and is_file(self.image_of(nfc(first), other)):
                kind = "training" if other == "train" else other
                raise ValueError(f"{where} names {shown(first)}, which is a {kind} image; correct it.")
            place = shown(str(self.root / first if is_path else self.image_of(first, split)))
            raise ValueError(
                f"{where} names {shown(line)}, but there is no image {place}; correct the line or add the image."
            )
        if second is None:
            return image, None
        return image, path_in(self.root, second) or self.root / second

    def _leaves(self, path: str) -> bool:
        """Whether a path leads out of the data folder: it holds `..`, or is absolute and outside the folder."""
        parts = re.split(r"[\\/]", path)  # slash and backslash, so that a list means the same on every system
        if ".." in parts:
            return True
        is_absolute = not parts[0] or re.match(r"[A-Za-z]:[\\/]", path) is not None
        return is_absolute and not Path(path).is_relative_to(self.root)

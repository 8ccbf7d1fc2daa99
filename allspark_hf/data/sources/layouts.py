"""Pascal VOC 2012, Cityscapes and COCO in their usual folders."""

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from ...utils.files import image_suffixes, is_hidden
from .folder import FolderLayout
from .layout import Layout
from .lists import path_in
from .pairs import Pairs, nfc, require_folder, require_images, require_usable_name
from .published_classes import (
    CITYSCAPES_CLASSES,
    CITYSCAPES_IGNORED_LABEL_IDS,
    CITYSCAPES_LABEL_IDS,
    COCO_CLASSES,
    VOC_CLASSES,
)
from .split_names import sort_splits, split_of, subfolders


VOC_MASKS = ("original", "augmented")
VOC_ID = re.compile(r"\d{4}_\d{6}")  # the name of every image of Pascal VOC 2012, such as 2007_000032


class PublishedLayout(Layout):
    """A published data set: files in fixed folders, and a mask for every training image."""

    image_form: str  # pattern of the names of image files, for an error message

    def name_of(self, image: Path) -> str:
        return nfc(image.stem)

    def _require_folders(self, *names: str):
        for name in names:
            require_folder(self.root / name, f"{self.name} data must have one")

    def _collect(self, images: Iterable[Path], folder: Path) -> Pairs:
        """The images found in a folder, and those of their masks that exist."""
        files = {self.name_of(image): image for image in sorted(images) if not is_hidden(image.name)}
        if not files:
            raise ValueError(f"{folder} holds no image of the form {self.image_form}; unpack the images there.")
        for name, image in files.items():
            require_usable_name(image, name)
        masks = {name: self.mask_of(image) for name, image in files.items()}
        return Pairs(files, {name: mask for name, mask in masks.items() if mask.is_file()})

    def _leave_alone(self, folder: Path, used: Iterable[str], fix: str):
        """Notes the folders beside the used ones, of which no image is read."""
        others = [name for name in subfolders(folder) if name not in used]
        if others:
            self.left_alone = f"Left alone in {folder}: {', '.join(others)}; {fix}."


def voc_roots(data_dir: Path) -> tuple[Path, ...]:
    return data_dir, data_dir / "VOC2012", data_dir / "VOCdevkit" / "VOC2012"


def _images_by_id(folder: Path) -> dict[str, Path]:
    """The images in a folder, by their names without extension, sorted."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*")):
        if is_hidden(path.name) or path.suffix.lower() not in image_suffixes():
            continue
        name = nfc(path.stem)
        if name in found:
            raise ValueError(f"{found[name]} and {path} have the same name but for the extension; keep one of them.")
        found[name] = path
    return found


def holds_own_images(root: Path) -> bool:
    """Whether VOC's folders hold other images and no lists of VOC's names: then they are read like any folder."""
    names = [path.stem for path in (root / "ImageSets" / "Segmentation").glob("*.txt")]
    has_lists = any(split_of(name.removesuffix("aug")) in ("train", "validation") for name in names)
    return not has_lists and not _has_voc_ids(root)


def _has_voc_ids(root: Path) -> bool:
    stems = [path.stem for path in (root / "JPEGImages").glob("*") if not is_hidden(path.name)]
    return bool(stems) and all(map(VOC_ID.fullmatch, stems))


class VocLayout(PublishedLayout):
    """
    Pascal VOC 2012, or the user's own images and classes in its folders: `JPEGImages`, `SegmentationClass/*.png` with
    the class as palette index and 255 for borders, and lists of ids in `ImageSets/Segmentation`. An id is a file's
    name without extension. The classes are VOC's if the names of all images have VOC's form.

    An image without a mask in `SegmentationClass` may have one of SBD's in `SegmentationClassAug`.

    Args:
        data_dir (`Path`): `VOCdevkit/VOC2012`, or one of the two folders above it. Without `ImageSets`, the user's
            lists must name the labeled, unlabeled and validation images.
        voc_masks (`str`, *optional*, defaults to `"original"`): `"original"` trains on the images of `train.txt`,
            `"augmented"` on those of `train_aug.txt` or `trainaug.txt`; lists of the user come before either.

    Raises:
        FileNotFoundError: if a folder is missing.
        ValueError: if `voc_masks` is something else.
    """

    name = "voc"
    classes = VOC_CLASSES

    def __init__(self, data_dir: Path, voc_masks: str = "original"):
        if voc_masks not in VOC_MASKS:
            raise ValueError(f"voc_masks is {voc_masks!r}, but it must be one of {' and '.join(VOC_MASKS)}.")
        roots = voc_roots(data_dir)
        super().__init__(next((root for root in roots if (root / "JPEGImages").is_dir()), data_dir))
        self.is_augmented = voc_masks == "augmented"
        self.aug_folder = self.root / "SegmentationClassAug"
        names = ("SegmentationClass", "SegmentationClassPNG")  # labelme2voc writes both, and PNG files into the second
        self.mask_folder = self.root / next((n for n in names[::-1] if (self.root / n).is_dir()), names[0])
        self._require_folders("JPEGImages")
        if not self.aug_folder.is_dir():
            self._require_folders(self.mask_folder.name)
        if not _has_voc_ids(self.root):
            self.classes = None

    @cached_property
    def _images(self) -> dict[str, Path]:
        return _images_by_id(self.root / "JPEGImages")

    def find(self, split: str) -> Pairs:
        names, fix = ("train",), "name the images with labeled_list and unlabeled_list"
        if split == "validation":
            names, fix = ("val",), "name the images with validation_list"
        elif self.is_augmented:
            names, fix = ("train_aug", "trainaug"), f"make it with scripts/prepare_sbd.py, or {fix}"
        folder = self.root / "ImageSets" / "Segmentation"
        paths = [folder / f"{name}.txt" for name in names]
        path = next((path for path in paths if path.is_file()), None)
        if path is None and (split == "validation" or not self.is_augmented):
            named, _ = sort_splits((path.stem for path in folder.glob("*.txt")), str(folder), "keep one")
            path = folder / f"{named[split]}.txt" if split in named else None
        if path is None:
            raise FileNotFoundError(f"There is no list {paths[0]}; {fix}.")
        return self.read_list(path, split, need_masks=split == "validation")

    @property
    def left_alone(self) -> str | None:
        """A sentence about the images that no list names; None for VOC's own images, most of which have no mask."""
        if self.classes is not None or len(self._found) < 2:
            return None
        listed = {path for pairs in self._found.values() for path in pairs.images.values()}
        others = [name for name, path in self._images.items() if path not in listed]
        if not others:
            return None
        return (
            f"Left alone in {self.root / 'JPEGImages'}: {len(others)} images that no list names, first {others[0]}; "
            "to learn from them, name them in --labeled_list and --unlabeled_list."
        )

    def image_of(self, name: str, split: str) -> Path:
        return self._images.get(name, self.root / "JPEGImages" / f"{name}.jpg")

    def mask_of(self, image: Path) -> Path:
        name = f"{image.stem}.png"
        return path_in(self.mask_folder, name) or self._present(self.mask_folder / name)

    def listed_mask(self, mask: Path, image: Path) -> Path:
        # Published lists name SBD's masks in SegmentationClass, because their authors unpacked both there.
        return self._present(mask) if mask.parent == self.mask_folder else mask

    def _present(self, mask: Path) -> Path:
        augmented = self.aug_folder / mask.name
        return augmented if not mask.is_file() and augmented.is_file() else mask


class CityscapesLayout(PublishedLayout):
    """
    Cityscapes: `leftImg8bit/{train,val}/CITY/*_leftImg8bit.png` and `gtFine/{train,val}/CITY/*_gtFine_labelIds.png` or
    `*_gtFine_labelTrainIds.png`. An id is an image's name without `_leftImg8bit.png`.

    If every mask exists as `labelTrainIds`, these are read as they are: 0 to 18, and 255 to ignore. Otherwise
    `labelIds` are read and mapped to the same 19 classes; all other ids are ignored. A list may name either kind.

    Args:
        data_dir (`Path`): the folder that holds the two.

    Raises:
        FileNotFoundError: if a folder is missing.
    """

    name = "cityscapes"
    classes = CITYSCAPES_CLASSES
    image_form = "CITY/*_leftImg8bit.png"
    image_end = "_leftImg8bit"
    mask_ends = ("_gtFine_labelTrainIds.png", "_gtFine_labelIds.png")
    splits = {"train": "train", "validation": "val"}

    def __init__(self, data_dir: Path):
        super().__init__(data_dir)
        self._require_folders("leftImg8bit", "gtFine")
        fix = "to learn from unlabeled images such as train_extra, give --unlabeled_dir or --unlabeled_list"
        self._leave_alone(self.root / "leftImg8bit", self.splits.values(), fix)
        train_ids, label_ids = (
            {mask.name.removesuffix(end) for split in self.splits for mask in self._masks(split, end)}
            for end in self.mask_ends
        )
        self.mask_end = self.mask_ends[0]
        self.mask_values = tuple(range(CITYSCAPES_CLASSES.num_labels))  # so that a model's own values do not apply
        if not label_ids <= train_ids:
            self.mask_end = self.mask_ends[1]
            self.mask_values = CITYSCAPES_LABEL_IDS
            self.ignored_mask_values = CITYSCAPES_IGNORED_LABEL_IDS

    def _masks(self, split: str, end: str) -> list[Path]:
        return sorted((self.root / "gtFine" / self.splits[split]).glob(f"*/*{end}"))

    def find(self, split: str) -> Pairs:
        folder = self.root / "leftImg8bit" / self.splits[split]
        pairs = self._collect(folder.glob(f"*/*{self.image_end}.png"), folder)
        require_images(self._masks(split, self.mask_end), pairs.masks.values())
        return pairs

    def image_of(self, name: str, split: str) -> Path:
        folder = self.root / "leftImg8bit" / self.splits[split]
        return folder / name.split("_")[0] / f"{name}{self.image_end}.png"

    def mask_of(self, image: Path) -> Path:
        parts = image.relative_to(self.root).parts
        return self.root.joinpath("gtFine", *parts[1:-1], self.name_of(image) + self.mask_end)

    def name_of(self, image: Path) -> str:
        return image.stem.removesuffix(self.image_end)

    def listed_mask(self, mask: Path, image: Path) -> Path | None:
        for end in self.mask_ends:
            if mask.name.endswith(end):
                return mask.with_name(mask.name.removesuffix(end) + self.mask_end)
        return None  # nothing says whether its values must be mapped


class CocoLayout(PublishedLayout):
    """
    COCO 2017: images in `train2017` and `val2017`, and for each a PNG with the class indices 0 to 80, where 0 is the
    background and 255 is ignored. The masks lie in `masks` itself or in `masks/train2017` and `masks/val2017`. If
    there is a folder `unlabeled2017`, its images are unlabeled. An id is a file's name without extension.

    Args:
        data_dir (`Path`): the folder that holds them.

    Raises:
        FileNotFoundError: if a folder is missing.
    """

    name = "coco"
    classes = COCO_CLASSES
    image_form = "*.jpg"
    splits = {"train": "train2017", "validation": "val2017", "unlabeled": "unlabeled2017"}

    def __init__(self, data_dir: Path):
        super().__init__(data_dir)
        need = "PNG files of class indices, one for each image"
        require_folder(self.root / "masks", f"coco data must have one: {need}")
        self.mask_folder = self.root / "masks"
        self._by_id: dict[str, dict[str, Path]] = {}
        self.has_unlabeled = (self.root / self.splits["unlabeled"]).is_dir()
        used = {name for name in subfolders(self.root) if split_of(name) != "test"}
        self._leave_alone(self.root, used, "rename it to use it")
        self.has_subfolders = any((self.mask_folder / name).is_dir() for name in self.splits.values())

    def find(self, split: str) -> Pairs:
        folder = self.root / self.splits[split]
        pairs = self._collect(self._images(split).values(), folder)
        used = [*pairs.masks.values()]
        if split == "unlabeled":
            return pairs
        if not self.has_subfolders:
            # The split of a mask in the common folder is known only if the images of both splits are there.
            if split == "validation" or not (self.root / self.splits["validation"]).is_dir():
                return pairs
            used += self.pairs("validation").masks.values()
        mask_folder = self.mask_folder / folder.name if self.has_subfolders else self.mask_folder
        require_images(sorted(mask_folder.glob("*.png")), used)
        return pairs

    def _images(self, split: str) -> dict[str, Path]:
        if split not in self._by_id:
            self._by_id[split] = _images_by_id(self.root / self.splits[split])
        return self._by_id[split]

    def image_of(self, name: str, split: str) -> Path:
        return self._images(split).get(name, self.root / self.splits[split] / f"{name}.jpg")

    def mask_of(self, image: Path) -> Path:
        folder = self.mask_folder / image.parent.name if self.has_subfolders else self.mask_folder
        return folder / f"{image.stem}.png"

    def listed_mask(self, mask: Path, image: Path) -> Path:
        is_elsewhere = self.has_subfolders and mask.parent == self.mask_folder and mask.stem == image.stem
        return self.mask_of(image) if is_elsewhere else mask


LAYOUTS = {layout.name: layout for layout in (FolderLayout, VocLayout, CityscapesLayout, CocoLayout)}

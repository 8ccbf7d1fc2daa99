"""Pascal VOC 2012, Cityscapes and COCO, in the folders that their archives unpack to or that the field shares."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from .folder import FolderLayout
from .lists import read_list
from .pairs import Layout, Pairs, require_usable_name
from .published_classes import (
    CITYSCAPES_CLASSES,
    CITYSCAPES_IGNORED_LABEL_IDS,
    CITYSCAPES_LABEL_IDS,
    COCO_CLASSES,
    VOC_CLASSES,
)


DATA_FORMATS = ("folder", "voc", "cityscapes", "coco")
VOC_MASKS = ("original", "augmented")


def find_layout(data_dir: str | Path, data_format: str | None = None, voc_masks: str = "original") -> Layout:
    """
    Tells how a folder holds its data.

    Args:
        data_dir (`str` or `Path`):
            The folder.
        data_format (`str`, *optional*):
            `"folder"`, `"voc"`, `"cityscapes"` or `"coco"`; `None` goes by the folders in it: `images`, `JPEGImages`
            (also in `VOC2012` or `VOCdevkit/VOC2012`), `leftImg8bit`, or `train2017` and `val2017`.
        voc_masks (`str`, *optional*, defaults to `"original"`):
            See [`VocLayout`].

    Returns:
        `Layout`: One of `FolderLayout`, `VocLayout`, `CityscapesLayout` and `CocoLayout`.

    Raises:
        FileNotFoundError: If a folder is missing.
        ValueError: If the folder is of none of these forms, or of several.
    """
    data_dir = Path(data_dir).absolute()
    if not data_dir.is_dir():
        raise FileNotFoundError(f"There is no folder {data_dir}; data_dir must name one.")
    if data_format is None:
        data_format = _recognise(data_dir)
    if data_format not in DATA_FORMATS:
        raise ValueError(f"data_format is {data_format!r}, but it must be one of {', '.join(DATA_FORMATS)}.")
    if voc_masks != "original" and data_format != "voc":
        raise ValueError(f"voc_masks is {voc_masks!r}, but {data_dir} is read as {data_format}; leave it out.")
    if data_format == "voc":
        return VocLayout(data_dir, voc_masks)
    layouts = {"folder": FolderLayout, "cityscapes": CityscapesLayout, "coco": CocoLayout}
    return layouts[data_format](data_dir)


def _recognise(data_dir: Path) -> str:
    signs = {
        "folder": (data_dir / "images",),
        "voc": tuple(root / "JPEGImages" for root in _voc_roots(data_dir)),
        "cityscapes": (data_dir / "leftImg8bit",),
        "coco": (data_dir / "train2017", data_dir / "val2017"),
    }
    found = [name for name, folders in signs.items() if any(folder.is_dir() for folder in folders)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{data_dir} may be read as {' or '.join(found)}; choose one with --data_format.")
    raise ValueError(
        f"{data_dir} holds neither images/ and masks/ (a folder of your own), nor JPEGImages/ or VOCdevkit/VOC2012/ "
        "(Pascal VOC), leftImg8bit/ and gtFine/ (Cityscapes), or train2017/, val2017/ and masks/ (COCO); give the "
        "folder that holds them."
    )


class PublishedLayout(Layout):
    """What the published data sets share: files in fixed folders, and a mask for every training image."""

    image_form: str  # how image files are called, for an error message

    def _require_folders(self, *names: str) -> None:
        for name in names:
            if not (self.root / name).is_dir():
                raise FileNotFoundError(f"There is no folder {self.root / name}; {self.name} data must have one.")

    def _collect(self, images: Iterable[Path], folder: Path) -> Pairs:
        """The images found in a folder, and those masks of theirs that exist."""
        files = {self.name_of(image): image for image in images if not image.name.startswith(".")}
        if not files:
            raise ValueError(f"{folder} holds no image of the form {self.image_form}; unpack the images there.")
        for name, image in files.items():
            require_usable_name(image, name)
        masks = {name: self.mask_of(image) for name, image in files.items()}
        return Pairs(files, {name: mask for name, mask in masks.items() if mask.is_file()})

    def _require_images(self, used: Iterable[Path], masks: Iterable[Path]) -> None:
        """`ValueError` if a mask is of no image, which shows that the images are not all there."""
        used = set(used)
        orphans = [mask for mask in masks if mask not in used and not mask.name.startswith(".")]
        if orphans:
            raise ValueError(
                f"{len(orphans)} mask{'s have' if len(orphans) > 1 else ' has'} no image, first {orphans[0]}; add the "
                "images or remove the masks."
            )

    def _require_validation_masks(self, pairs: Pairs) -> Pairs:
        for name, image in pairs.images.items():
            if name not in pairs.masks:
                raise ValueError(
                    f"The validation image {image} has no mask {self.mask_of(image)}; add it, or name the validation "
                    "images with validation_list."
                )
        return pairs


def _voc_roots(data_dir: Path) -> tuple[Path, ...]:
    return data_dir, data_dir / "VOC2012", data_dir / "VOCdevkit" / "VOC2012"


class VocLayout(PublishedLayout):
    """
    Pascal VOC 2012: `JPEGImages/*.jpg`, `SegmentationClass/*.png` with the class as palette index and 255 for borders,
    and lists of ids in `ImageSets/Segmentation`. An id is a file's name without extension.

    An image without a mask in `SegmentationClass` may have one in `SegmentationClassAug`, SBD's.

    Args:
        data_dir (`Path`):
            `VOCdevkit/VOC2012`, or one of the two folders above it. Without `ImageSets` (the field's own folders)
            lists must say what is labeled, unlabeled and for validation.
        voc_masks (`str`, *optional*, defaults to `"original"`):
            `"original"` trains on the images of `train.txt`, `"augmented"` on those of `train_aug.txt` or
            `trainaug.txt`, where lists do not say it.

    Raises:
        FileNotFoundError: If a folder is missing.
        ValueError: If `voc_masks` is something else.
    """

    name = "voc"
    classes = VOC_CLASSES

    def __init__(self, data_dir: Path, voc_masks: str = "original"):
        if voc_masks not in VOC_MASKS:
            raise ValueError(f"voc_masks is {voc_masks!r}, but it must be one of {' and '.join(VOC_MASKS)}.")
        roots = _voc_roots(data_dir)
        super().__init__(next((root for root in roots if (root / "JPEGImages").is_dir()), data_dir))
        self.is_augmented = voc_masks == "augmented"
        self.mask_folder, self.aug_folder = self.root / "SegmentationClass", self.root / "SegmentationClassAug"
        self._require_folders("JPEGImages")
        if not self.aug_folder.is_dir():
            self._require_folders("SegmentationClass")

    def train(self) -> Pairs:
        if self.is_augmented:
            hint = "make it with scripts/prepare_sbd.py, or name the images with labeled_list and unlabeled_list"
            return read_list(self._image_set("train_aug", "trainaug", hint=hint), self, "train", need_masks=False)
        hint = "name the images with labeled_list and unlabeled_list"
        return read_list(self._image_set("train", hint=hint), self, "train", need_masks=False)

    def validation(self) -> Pairs:
        hint = "name the images with validation_list"
        return read_list(self._image_set("val", hint=hint), self, "validation", need_masks=True)

    def _image_set(self, *names: str, hint: str) -> Path:
        folder = self.root / "ImageSets" / "Segmentation"
        found = [folder / f"{name}.txt" for name in names if (folder / f"{name}.txt").is_file()]
        if not found:
            raise FileNotFoundError(f"There is no list {folder / names[0]}.txt; {hint}.")
        return found[0]

    def image_of(self, name: str, split: str) -> Path:
        return self.root / "JPEGImages" / f"{name}.jpg"

    def mask_of(self, image: Path) -> Path:
        return self._present(self.mask_folder / f"{image.stem}.png")

    def name_of(self, image: Path) -> str:
        return image.stem

    def listed_mask(self, mask: Path, image: Path) -> Path:
        # The field unpacks SBD's masks over SegmentationClass, and its lists name them there.
        return self._present(mask) if mask.parent == self.mask_folder else mask

    def _present(self, mask: Path) -> Path:
        augmented = self.aug_folder / mask.name
        return augmented if not mask.is_file() and augmented.is_file() else mask


class CityscapesLayout(PublishedLayout):
    """
    Cityscapes: `leftImg8bit/{train,val}/CITY/*_leftImg8bit.png` and `gtFine/{train,val}/CITY/*_gtFine_labelIds.png` or
    `*_gtFine_labelTrainIds.png`. An id is an image's name without `_leftImg8bit.png`.

    If every mask exists as `labelTrainIds`, these are taken as they are: 0 to 18, and 255 to ignore. Otherwise
    `labelIds` are, and mapped to the same 19 classes; all other ids are ignored. A list may name either.

    Args:
        data_dir (`Path`):
            The folder that holds the two.

    Raises:
        FileNotFoundError: If a folder is missing.
    """

    name = "cityscapes"
    classes = CITYSCAPES_CLASSES
    image_form = "CITY/*_leftImg8bit.png"
    image_end = "_leftImg8bit"
    mask_ends = ("_gtFine_labelTrainIds.png", "_gtFine_labelIds.png")

    def __init__(self, data_dir: Path):
        super().__init__(data_dir)
        self._require_folders("leftImg8bit", "gtFine")
        train_ids, label_ids = (self._mask_names(end) for end in self.mask_ends)
        self.mask_end = self.mask_ends[0]
        if not label_ids <= train_ids:
            self.mask_end = self.mask_ends[1]
            self.mask_values = CITYSCAPES_LABEL_IDS
            self.ignored_mask_values = CITYSCAPES_IGNORED_LABEL_IDS

    def _mask_names(self, end: str) -> set[str]:
        masks = [mask for split in ("train", "val") for mask in self._masks(split, end)]
        return {mask.name.removesuffix(end) for mask in masks}

    def _masks(self, split: str, end: str) -> list[Path]:
        return sorted((self.root / "gtFine" / split).glob(f"*/*{end}"))

    def train(self) -> Pairs:
        return self._set("train")

    def validation(self) -> Pairs:
        return self._require_validation_masks(self._set("val"))

    def _set(self, split: str) -> Pairs:
        folder = self.root / "leftImg8bit" / split
        pairs = self._collect(sorted(folder.glob(f"*/*{self.image_end}.png")), folder)
        self._require_images(pairs.masks.values(), self._masks(split, self.mask_end))
        return pairs

    def image_of(self, name: str, split: str) -> Path:
        folder = self.root / "leftImg8bit" / ("train" if split == "train" else "val")
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
        return None  # whether to map its values could not be told


class CocoLayout(PublishedLayout):
    """
    COCO 2017: `train2017/*.jpg`, `val2017/*.jpg`, and in `masks` a PNG per image with 81 class indices, 0 for
    background, 255 to ignore. The masks lie in `masks` itself or in `masks/train2017` and `masks/val2017`. An id is a
    file's name without extension.

    Args:
        data_dir (`Path`):
            The folder that holds them.

    Raises:
        FileNotFoundError: If a folder is missing.
    """

    name = "coco"
    classes = COCO_CLASSES
    image_form = "*.jpg"
    splits = {"train": "train2017", "validation": "val2017"}

    def __init__(self, data_dir: Path):
        super().__init__(data_dir)
        self._require_folders("masks")
        self.mask_folder = self.root / "masks"
        self.has_subfolders = any((self.mask_folder / name).is_dir() for name in self.splits.values())

    def train(self) -> Pairs:
        if not self.has_subfolders and all((self.root / name).is_dir() for name in self.splits.values()):
            used = [*self._train.masks.values(), *self._validation.masks.values()]
            self._require_images(used, sorted(self.mask_folder.glob("*.png")))
        return self._train

    def validation(self) -> Pairs:
        return self._require_validation_masks(self._validation)

    @cached_property
    def _train(self) -> Pairs:
        return self._set("train")

    @cached_property
    def _validation(self) -> Pairs:
        return self._set("validation")

    def _set(self, split: str) -> Pairs:
        folder = self.root / self.splits[split]
        pairs = self._collect(sorted(folder.glob("*.jpg")), folder)
        if self.has_subfolders:
            masks = sorted((self.mask_folder / self.splits[split]).glob("*.png"))
            self._require_images(pairs.masks.values(), masks)
        return pairs

    def image_of(self, name: str, split: str) -> Path:
        return self.root / self.splits[split] / f"{name}.jpg"

    def mask_of(self, image: Path) -> Path:
        folder = self.mask_folder / image.parent.name if self.has_subfolders else self.mask_folder
        return folder / f"{image.stem}.png"

    def name_of(self, image: Path) -> str:
        return image.stem

    def listed_mask(self, mask: Path, image: Path) -> Path:
        is_elsewhere = self.has_subfolders and mask.parent == self.mask_folder and mask.stem == image.stem
        return self.mask_of(image) if is_elsewhere else mask

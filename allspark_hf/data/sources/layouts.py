"""Pascal VOC 2012, Cityscapes and COCO, in the folders that their archives unpack to or that the field shares."""

from collections.abc import Iterable
from pathlib import Path

from .folder import FolderLayout
from .lists import read_list
from .pairs import Layout, Pairs, require_folder, require_images, require_usable_name
from .published_classes import (
    CITYSCAPES_CLASSES,
    CITYSCAPES_IGNORED_LABEL_IDS,
    CITYSCAPES_LABEL_IDS,
    COCO_CLASSES,
    VOC_CLASSES,
)


VOC_MASKS = ("original", "augmented")


class PublishedLayout(Layout):
    """What the published data sets share: files in fixed folders, and a mask for every training image."""

    image_form: str  # how image files are called, for an error message

    def _require_folders(self, *names: str):
        for name in names:
            require_folder(self.root / name, f"{self.name} data must have one")

    def _collect(self, images: Iterable[Path], folder: Path) -> Pairs:
        """The images found in a folder, and those masks of theirs that exist."""
        files = {self.name_of(image): image for image in sorted(images) if not image.name.startswith(".")}
        if not files:
            raise ValueError(f"{folder} holds no image of the form {self.image_form}; unpack the images there.")
        for name, image in files.items():
            require_usable_name(image, name)
        masks = {name: self.mask_of(image) for name, image in files.items()}
        return Pairs(files, {name: mask for name, mask in masks.items() if mask.is_file()})


def _voc_roots(data_dir: Path) -> tuple[Path, ...]:
    return data_dir, data_dir / "VOC2012", data_dir / "VOCdevkit" / "VOC2012"


class VocLayout(PublishedLayout):
    """
    Pascal VOC 2012: `JPEGImages/*.jpg`, `SegmentationClass/*.png` with the class as palette index and 255 for borders,
    and lists of ids in `ImageSets/Segmentation`. An id is a file's name without extension.

    An image without a mask in `SegmentationClass` may have one in `SegmentationClassAug`, SBD's.

    Args:
        data_dir (`Path`): `VOCdevkit/VOC2012`, or one of the two folders above it. Without `ImageSets` (the field's
            own folders) lists must say what is labeled, unlabeled and for validation.
        voc_masks (`str`, *optional*, defaults to `"original"`): `"original"` trains on the images of `train.txt`,
            `"augmented"` on those of `train_aug.txt` or `trainaug.txt`, where lists do not say it.

    Raises:
        FileNotFoundError: if a folder is missing.
        ValueError: if `voc_masks` is something else.
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

    def find(self, split: str) -> Pairs:
        names, fix = ("train",), "name the images with labeled_list and unlabeled_list"
        if split == "validation":
            names, fix = ("val",), "name the images with validation_list"
        elif self.is_augmented:
            names, fix = ("train_aug", "trainaug"), f"make it with scripts/prepare_sbd.py, or {fix}"
        paths = [self.root / "ImageSets" / "Segmentation" / f"{name}.txt" for name in names]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise FileNotFoundError(f"There is no list {paths[0]}; {fix}.")
        return read_list(path, self, split, need_masks=split == "validation")

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
        train_ids, label_ids = (
            {mask.name.removesuffix(end) for split in self.splits for mask in self._masks(split, end)}
            for end in self.mask_ends
        )
        self.mask_end = self.mask_ends[0]
        self.mask_values = tuple(range(CITYSCAPES_CLASSES.num_labels))  # whatever a model was trained on
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
        return None  # whether to map its values could not be told


class CocoLayout(PublishedLayout):
    """
    COCO 2017: `train2017/*.jpg`, `val2017/*.jpg`, and in `masks` a PNG per image with 81 class indices, 0 for
    background, 255 to ignore. The masks lie in `masks` itself or in `masks/train2017` and `masks/val2017`. An id is a
    file's name without extension.

    Args:
        data_dir (`Path`): the folder that holds them.

    Raises:
        FileNotFoundError: if a folder is missing.
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

    def find(self, split: str) -> Pairs:
        folder = self.root / self.splits[split]
        pairs = self._collect(folder.glob("*.jpg"), folder)
        used = [*pairs.masks.values()]
        if not self.has_subfolders:
            # Of which split a mask in the common folder is can only be told where the images of both are there.
            if split == "validation" or not (self.root / self.splits["validation"]).is_dir():
                return pairs
            used += self.pairs("validation").masks.values()
        mask_folder = self.mask_folder / folder.name if self.has_subfolders else self.mask_folder
        require_images(sorted(mask_folder.glob("*.png")), used)
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


LAYOUTS = {layout.name: layout for layout in (FolderLayout, VocLayout, CityscapesLayout, CocoLayout)}


def find_layout(data_dir: str | Path, data_format: str | None = None, voc_masks: str = "original") -> Layout:
    """
    Tells how a folder holds its data.

    Args:
        data_dir (`str` or `Path`): the folder.
        data_format (`str`, *optional*): `"folder"`, `"voc"`, `"cityscapes"` or `"coco"`; `None` goes by the folders in
            it: `images`, `JPEGImages` (also in `VOC2012` or `VOCdevkit/VOC2012`), `leftImg8bit`, or `train2017` and
            `val2017`.
        voc_masks (`str`, *optional*, defaults to `"original"`): see [`VocLayout`].

    Raises:
        FileNotFoundError: if a folder is missing.
        ValueError: if the folder is of none of these forms, or of several.
    """
    data_dir = Path(data_dir).absolute()
    require_folder(data_dir, "data_dir must name one")
    if data_format is None:
        data_format = _recognize(data_dir)
    if data_format not in LAYOUTS:
        raise ValueError(f"data_format is {data_format!r}, but it must be one of {', '.join(LAYOUTS)}.")
    if data_format == "voc":
        return VocLayout(data_dir, voc_masks)
    if voc_masks != "original":
        raise ValueError(f"voc_masks is {voc_masks!r}, but {data_dir} is read as {data_format}; leave it out.")
    return LAYOUTS[data_format](data_dir)


def _recognize(data_dir: Path) -> str:
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

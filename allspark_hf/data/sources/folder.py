"""Images and masks in folders of one's own."""

import logging
from functools import cached_property
from pathlib import Path

from .classes import Classes, classes_in
from .pairs import IMAGE_SUFFIXES, Layout, Pairs, SegmentationData, accepted_suffixes, require_usable_name
from .splits import Selection, load_layout


logger = logging.getLogger(__name__)

NEED = "the data folder must hold images/ and masks/"


def load_folder(data_dir: str | Path, output_dir: str | Path | None = None, **selection) -> SegmentationData:
    """
    Reads a folder of images and masks.

    Either the folder holds `images/train`, `images/val`, `masks/train` and `masks/val`, or `images` and `masks` hold
    the files directly; then some of the images with masks are held out for validation. Subfolders are read too. Links
    to files, and `images/train` and the like as links to folders, are followed wherever they lead; a link to a folder
    further down is refused. A mask
    has the path of its image but for the extension, which may be any of jpg, jpeg, png, bmp, tif, tiff and webp, in
    upper or lower case. A training image without a mask is unlabeled. A `classes.json` or `classes.txt` in the folder
    is read ([`read_classes`]).

    Args:
        data_dir (`str` or `Path`):
            The folder.
        output_dir (`str` or `Path`, *optional*):
            Where to write the ids of the three sets ([`write_id_lists`]).
        selection:
            What to choose: the fields of [`Selection`].

    Returns:
        `SegmentationData`: No image is in two of the sets; rows are sorted by id.

    Raises:
        FileNotFoundError: If a folder or a list is missing.
        ValueError: If the options contradict each other or are out of range, there is no image or no mask to train
            on, a mask has no image, a validation image has no mask, two files claim one id, or a file has a name that
            cannot be listed.
    """
    selection = Selection(**selection)
    return load_layout(FolderLayout(data_dir), selection, output_dir)


class FolderLayout(Layout):
    """
    `images` and `masks`, with `train` and `val` in both or in neither; see [`load_folder`].

    An id is the path of the image within `images`, `images/train` or `images/val`, without the extension.

    Args:
        data_dir (`str` or `Path`):
            The folder that holds the two.

    Raises:
        FileNotFoundError: If a folder is missing.
        ValueError: If an image lies beside `train` and `val`.
    """

    name = "folder"
    every_mask = False

    def __init__(self, data_dir: str | Path):
        super().__init__(Path(data_dir).absolute())
        self.image_folder, self.mask_folder = self.root / "images", self.root / "masks"
        for folder in (self.root, self.image_folder, self.mask_folder):
            _require_folder(folder, NEED)
        folders = (self.image_folder, self.mask_folder)
        self.is_split = any((folder / split).is_dir() for folder in folders for split in ("train", "val"))
        if not self.is_split:
            return
        for folder in folders:
            for split in ("train", "val"):
                need = "images/ and masks/ must both have train/ and val/, or neither of the two"
                _require_folder(folder / split, need)
            for path in sorted(folder.iterdir()):
                if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
                    raise ValueError(f"{path} lies beside train/ and val/, so it would not be used; move it into one.")

    @property
    def classes(self) -> Classes | None:
        return classes_in(self.root)

    @cached_property
    def _train(self) -> Pairs:
        return _pair(*self._folders("train"))

    @cached_property
    def _validation(self) -> Pairs:
        return _pair(*self._folders("validation")) if self.is_split else self._train

    def _folders(self, split: str) -> tuple[Path, Path]:
        if not self.is_split:
            return self.image_folder, self.mask_folder
        name = "train" if split == "train" else "val"
        return self.image_folder / name, self.mask_folder / name

    def _pairs(self, split: str) -> Pairs:
        return self._train if split == "train" else self._validation

    def train(self) -> Pairs:
        if not self._train.masks:
            raise ValueError(
                f"{self._folders('train')[1]} holds no mask, so the labeled set is empty; put at least one there, "
                f"named like its image ({accepted_suffixes()})."
            )
        return self._train

    def validation(self) -> Pairs | None:
        if not self.is_split:
            return None
        images, masks = self._folders("validation")
        if not self._validation.images:
            raise ValueError(f"{images} holds no image; put validation images there ({accepted_suffixes()}).")
        for name, path in self._validation.images.items():
            if name not in self._validation.masks:
                raise ValueError(f"The validation image {path} has no mask in {masks}; add one, or move the image.")
        return self._validation

    def image_of(self, name: str, split: str) -> Path:
        return self._pairs(split).images.get(name, self._folders(split)[0] / name)

    def mask_of(self, image: Path) -> Path:
        split, name = self._place(image)
        return self._pairs(split).masks.get(name, self._folders(split)[1] / name)

    def name_of(self, image: Path) -> str:
        return self._place(image)[1]

    def _place(self, image: Path) -> tuple[str, str]:
        """The set whose folder an image lies in, and its id there."""
        for split in ("train", "validation"):
            folder = self._folders(split)[0]
            if image.is_relative_to(folder):
                return split, image.relative_to(folder).with_suffix("").as_posix()
        return "train", image.relative_to(self.root).with_suffix("").as_posix()


def _require_folder(folder: Path, need: str) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}; {need}.")


def _pair(image_folder: Path, mask_folder: Path) -> Pairs:
    images, unused_images = _list_files(image_folder)
    masks, unused_masks = _list_files(mask_folder)
    orphans = [name for name in masks if name not in images]
    if orphans:
        others = f" ({len(orphans) - 1} more masks have none either)" if len(orphans) > 1 else ""
        raise ValueError(
            f"The mask {masks[orphans[0]]} has no image {image_folder / orphans[0]} with any extension "
            f"({accepted_suffixes()}){others}; a mask must be named like its image, without a suffix such as _mask."
        )
    for path in unused_masks:
        name = path.relative_to(mask_folder).with_suffix("").as_posix()
        if name in images and name not in masks:
            raise ValueError(
                f"The mask {path} is not of a usable kind ({accepted_suffixes()}); convert it, for example to png."
            )
    if not images:
        raise ValueError(f"{image_folder} holds no image; put some there ({accepted_suffixes()}).")
    if unused_images:
        logger.warning(
            "%d files in %s are not used (%s), first %s",
            len(unused_images),
            image_folder,
            accepted_suffixes(),
            unused_images[0],
        )
    return Pairs(images, masks)


def _list_files(folder: Path) -> tuple[dict[str, Path], list[Path]]:
    """Files by id, sorted by id, and the files with another extension; hidden files count as absent."""
    found, others = {}, []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts):
            continue
        if path.is_symlink() and path.is_dir():
            raise ValueError(
                f"{path} is a link to a folder, whose files would not be found; link the files, or all of {folder}."
            )
        if not path.is_file():
            continue
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            others.append(path)
            continue
        name = relative.with_suffix("").as_posix()
        require_usable_name(path, name)
        if name in found:
            raise ValueError(f"{found[name]} and {path} have the same name but for the extension; keep one of them.")
        found[name] = path
    return dict(sorted(found.items())), others

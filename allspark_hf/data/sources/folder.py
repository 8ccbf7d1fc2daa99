"""Images and masks in folders of one's own."""

import logging
from pathlib import Path

from ...utils.files import IMAGE_SUFFIXES
from .classes import Classes, classes_in
from .pairs import (
    ACCEPTED,
    Layout,
    Pairs,
    SegmentationData,
    require_folder,
    require_images,
    require_usable_name,
    visible_paths,
)
from .splits import Selection, load_layout, write_id_lists


logger = logging.getLogger(__name__)


def load_folder(data_dir: str | Path, output_dir: str | Path | None = None, **selection) -> SegmentationData:
    """
    Reads a folder of images and masks.

    Either the folder holds `images/train`, `images/val`, `masks/train` and `masks/val`, or `images` and `masks` hold
    the files directly; then some of the images with masks are held out for validation. Subfolders are read too. Links
    to files, and `images/train` and the like as links to folders, are followed wherever they lead; a link to a folder
    further down is refused. A mask has the path of its image but for the extension, which may be any of jpg, jpeg,
    png, bmp, tif, tiff and webp, in upper or lower case. A training image without a mask is unlabeled. A
    `classes.json` or `classes.txt` in the folder is read ([`read_classes`]).

    Args:
        data_dir (`str` or `Path`): the folder.
        output_dir (`str` or `Path`, *optional*): where to write the ids of the three sets ([`write_id_lists`]).
        selection: what to choose: the fields of [`Selection`].

    Returns:
        [`SegmentationData`]: no image is in two of the sets; rows are sorted by id.

    Raises:
        FileNotFoundError: if a folder or a list is missing.
        ValueError: if the options contradict each other or are out of range, there is no image or no mask to train
            on, a mask has no image, a validation image has no mask, two files claim one id, or a file has a name that
            cannot be listed.
    """
    selection = Selection(**selection)
    data = load_layout(FolderLayout(data_dir), selection)
    if output_dir is not None:
        write_id_lists(data, output_dir)
    return data


class FolderLayout(Layout):
    """
    `images` and `masks`, with `train` and `val` in both or in neither; see [`load_folder`].

    An id is the path of the image within `images`, `images/train` or `images/val`, without the extension.

    Args:
        data_dir (`str` or `Path`): the folder that holds the two.

    Raises:
        FileNotFoundError: if a folder is missing.
        ValueError: if an image lies beside `train` and `val`.
    """

    name = "folder"
    every_mask = False

    def __init__(self, data_dir: str | Path):
        super().__init__(Path(data_dir).absolute())
        kinds = self.root / "images", self.root / "masks"
        for folder in (self.root, *kinds):
            require_folder(folder, "the data folder must hold images/ and masks/")
        self.has_validation = any((kind / split).is_dir() for kind in kinds for split in ("train", "val"))
        self.folders = {"train": kinds, "validation": kinds}
        if not self.has_validation:
            return
        for split, name in (("train", "train"), ("validation", "val")):
            self.folders[split] = tuple(kind / name for kind in kinds)
            for folder in self.folders[split]:
                require_folder(folder, "images/ and masks/ must both have train/ and val/, or neither of the two")
        for path in sorted(path for kind in kinds for path in kind.iterdir()):
            if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
                raise ValueError(f"{path} lies beside train/ and val/, so it would not be used; move it into one.")

    @property
    def classes(self) -> Classes | None:
        return classes_in(self.root)

    def find(self, split: str) -> Pairs:
        image_folder, mask_folder = self.folders[split]
        images, unused = _list_files(image_folder)
        masks, unused_masks = _list_files(mask_folder)
        used = [mask for name, mask in masks.items() if name in images]
        require_images(
            masks.values(), used, f"a mask must be named like its image in {image_folder}, without a suffix like _mask"
        )
        for path, name in unused_masks:
            if name in images and name not in masks:
                raise ValueError(f"The mask {path} is not of a usable kind ({ACCEPTED}); convert it, say to png.")
        if not images:
            raise ValueError(f"{image_folder} holds no image; put some there ({ACCEPTED}).")
        if unused:
            logger.warning(
                "%d files in %s are not used (%s), first %s", len(unused), image_folder, ACCEPTED, unused[0][0]
            )
        return Pairs(images, masks)

    def pairs(self, split: str) -> Pairs:
        return super().pairs(split if self.has_validation else "train")

    def image_of(self, name: str, split: str) -> Path:
        return self.pairs(split).images.get(name, self.folders[split][0] / name)

    def mask_of(self, image: Path) -> Path:
        split, name = self._place(image)
        return self.pairs(split).masks.get(name, self.folders[split][1] / name)

    def name_of(self, image: Path) -> str:
        return self._place(image)[1]

    def _place(self, image: Path) -> tuple[str, str]:
        """The split whose folder an image lies in, and its id there."""
        for split, (folder, _) in self.folders.items():
            if image.is_relative_to(folder):
                return split, image.relative_to(folder).with_suffix("").as_posix()
        return "train", image.relative_to(self.root).with_suffix("").as_posix()


def _list_files(folder: Path) -> tuple[dict[str, Path], list[tuple[Path, str]]]:
    """Files by id, sorted by id, and the files with another extension, each with its id."""
    found, others = {}, []
    for path, name in visible_paths(folder):
        if path.is_symlink() and path.is_dir():
            raise ValueError(
                f"{path} is a link to a folder, whose files would not be found; link the files, or all of {folder}."
            )
        if not path.is_file():
            continue
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            others.append((path, name))
            continue
        require_usable_name(path, name)
        if name in found:
            raise ValueError(f"{found[name]} and {path} have the same name but for the extension; keep one of them.")
        found[name] = path
    return dict(sorted(found.items())), others

"""Images and masks in the user's own folders."""

import logging
from pathlib import Path
from typing import NamedTuple

from ...utils.files import MASK_SUFFIXES, PREDICTIONS, image_suffixes, left_out, predictions_around
from .layout import Layout
from .pairs import (
    ACCEPTED,
    ACCEPTED_IMAGES,
    Pairs,
    nfc,
    require_folder,
    require_images,
    require_usable_name,
    visible_paths,
)
from .split_names import TEST_FIX, find_kinds, sort_splits, split_of, subfolders


logger = logging.getLogger(__name__)

NEED = "the data folder must hold images/ and masks/, or train/images/ and train/masks/"
ONE_EACH = "keep one, or put both into one folder"


class Place(NamedTuple):
    """
    Where the files of a split lie: a folder of images, one of masks, which may be missing for unlabeled images, and
    whether their subfolders are read.
    """

    images: Path
    masks: Path
    deep: bool = True


class FolderLayout(Layout):
    """
    The user's own folder of images and masks.

    The folder holds `images` and `masks`, with or without a folder for each split in both; or it holds a folder for
    each split, with `images` and `masks` in each. The names of folders tell the split ([`split_of`]: `train`, `Val`,
    `training` and the like). The images in a folder called unlabeled, among the splits or in the data folder, are
    unlabeled and need no masks. Test images, until [`use_test_split`] is called, and folders of other names beside the
    splits are not read, and the log says so.

    Subfolders are read too. Links to files are followed wherever they lead, and so are links to folders such as
    `images/train`; a link to a folder further down is refused. An image may have any format that Pillow reads. A mask
    has the path of its image, but for the extension, which may be jpg, jpeg, png, bmp, tif, tiff or webp, in upper or
    lower case; accents may be stored in either of Unicode's forms.

    An id is the path of the image within the images of its split, without the extension. The id of an image in a
    folder called unlabeled is its path within the data folder, with the extension.

    Args:
        data_dir (`str` or `Path`): the data folder.

    Raises:
        FileNotFoundError: if a folder is missing.
        ValueError: if two folders mean the same split, or an image lies beside the folder of training images.
    """

    name = "folder"
    needs_every_mask = False

    def __init__(self, data_dir: str | Path):
        super().__init__(Path(data_dir).absolute())
        kinds = find_kinds(self.root)
        is_outside = "images" not in kinds and bool(split_folders(self.root))
        self.places, self._unused = _splits_outside(self.root) if is_outside else _splits_inside(self.root, kinds)
        self.has_validation, self.has_unlabeled = "validation" in self.places, "unlabeled" in self.places

    @property
    def left_alone(self) -> str | None:
        """A sentence about the folders that are not read."""
        fix = f"to use one, rename it (train, val or unlabeled); {TEST_FIX}"
        return f"Left alone in {self.root}: {', '.join(self._unused)}; {fix}." if self._unused else None

    def use_test_split(self) -> bool:
        place = _test_place(self.root)
        if place is not None:
            self.places["test"], self.validation, self.has_validation = place, "test", True
            self._unused = [name for name in self._unused if split_of(name.split("/")[-1]) != "test"]
        return place is not None

    def find(self, split: str) -> Pairs:
        place = self.places[split]
        images, unused = _list_files(place.images, image_suffixes(), place.deep, but=place.masks)
        masks, unused_masks = _list_files(place.masks, MASK_SUFFIXES, place.deep)
        used = [mask for name, mask in masks.items() if name in images]
        require_images(
            masks.values(), used, f"a mask must be named like its image in {place.images}, without a suffix like _mask"
        )
        for path, name in unused_masks:
            if name in images and name not in masks:
                raise ValueError(f"The mask {path} is not of a usable kind ({ACCEPTED}); convert it, say to png.")
        if unused:
            logger.warning(left_out([path for path, _ in unused], place.images))
        if not images:
            raise ValueError(f"{place.images} holds no image; put some there ({ACCEPTED_IMAGES}).")
        if split == "unlabeled":
            ids = {name: nfc(path.relative_to(self.root).as_posix()) for name, path in images.items()}
            return Pairs({ids[name]: images[name] for name in images}, {ids[name]: masks[name] for name in masks})
        if not self.has_validation:
            self._require_no_split_further_down(place.images, images)
        return Pairs(images, masks)

    def _require_no_split_further_down(self, folder: Path, images: dict[str, Path]):
        """Raises `ValueError` if a subfolder of the training images is called after a validation or test split."""
        for name, path in images.items():
            for part in name.split("/")[:-1]:
                if split_of(part) in ("validation", "test"):
                    raise ValueError(
                        f"{path} lies in a folder called {part}, but would be trained on; move that folder out of "
                        f"{folder}, or rename it."
                    )

    def pairs(self, split: str) -> Pairs:
        return super().pairs(split if split in self.places else "train")

    def image_of(self, name: str, split: str) -> Path:
        place = self.places.get(split, self.places["train"])
        return self.pairs(split).images.get(name, place.images / name)

    def mask_of(self, image: Path) -> Path:
        split, name = self._place(image)
        place = self.places.get(split, self.places["train"])
        return self.pairs(split).masks.get(name, place.masks / name)

    def name_of(self, image: Path) -> str:
        return self._place(image)[1]

    def _place(self, image: Path) -> tuple[str, str]:
        """The split in whose folder an image lies, and the image's id there."""
        inner_first = sorted(self.places.items(), key=lambda item: -len(item[1].images.parts))
        for split, place in inner_first:
            if image.is_relative_to(place.images):
                within = self.root if split == "unlabeled" else place.images
                name = image.relative_to(within)
                return split, nfc((name if split == "unlabeled" else name.with_suffix("")).as_posix())
        return "train", nfc(image.relative_to(self.root).with_suffix("").as_posix())


def split_folders(root: Path) -> dict[str, Path]:
    """The folders in a folder whose names mean a split and that hold a folder of images."""
    folders = subfolders(root).items()
    return {name: path for name, path in folders if split_of(name) and "images" in find_kinds(path)}


def _test_place(root: Path) -> Place | None:
    """The place of test images with masks: `images/test` and `masks/test`, or `test/images` and `test/masks`."""
    inside = {kind: test for kind, folder in find_kinds(root).items() if (test := _test_folder(folder))}
    beside = find_kinds(_test_folder(root) or root / "test")
    places = [Place(**kinds) for kinds in (inside, beside) if len(kinds) == 2]
    if len(places) == 2:
        raise ValueError(f"{places[0].images} and {places[1].images} both hold test images; {ONE_EACH}.")
    return places[0] if places else None


def _test_folder(folder: Path) -> Path | None:
    named, _ = sort_splits(subfolders(folder), str(folder), ONE_EACH, ["test"])
    return folder / named["test"] if named else None


def _splits_outside(root: Path) -> tuple[dict[str, Place], list[str]]:
    """`train/images` and `train/masks`: the places of the splits, and the folders that are not used."""
    folders = subfolders(root)
    known = {name: path for name, path in folders.items() if split_of(name) or "images" in find_kinds(path)}
    named, unused = sort_splits(known, str(root), ONE_EACH)
    require_folder(
        root / named.get("train", "train"), f"beside {', '.join(known)}, there must be one of training images"
    )
    places = {}
    for split, name in named.items():
        kinds = find_kinds(folders[name])
        if split == "unlabeled":
            places[split] = _unlabeled_place(folders[name])
            continue
        for kind in ("images", "masks"):
            require_folder(kinds.get(kind, folders[name] / kind), f"{folders[name]} must hold images/ and masks/")
        places[split] = Place(kinds["images"], kinds["masks"])
    return places, unused


def _unlabeled_place(folder: Path) -> Place:
    """The place of a folder of unlabeled images, which may lie in the folder itself or in its folder of images."""
    kinds = find_kinds(folder)
    return Place(kinds.get("images", folder), kinds.get("masks", folder / "masks"))


def _splits_inside(root: Path, kinds: dict[str, Path]) -> tuple[dict[str, Place], list[str]]:
    """`images/train` and `masks/train`, or no splits: the places of the splits, and the folders that are not used."""
    for kind in ("images", "masks"):
        require_folder(kinds.get(kind, root / kind), NEED)
    images, masks = kinds["images"], kinds["masks"]
    named, others = {}, {}
    for folder in (images, masks):
        named[folder], others[folder] = sort_splits(subfolders(folder), str(folder), ONE_EACH)
    found = {split: name for folder in (masks, images) for split, name in named[folder].items()}
    tests = [name for folder in (images, masks) for name in others[folder] if split_of(name)]
    places = {}
    for split, name in found.items():
        place = Place(*(folder / named[folder].get(split, name) for folder in (images, masks)))
        for folder in place[: 1 if split == "unlabeled" else 2]:
            require_folder(folder, f"{images.name}/ and {masks.name}/ must both have a folder of {split} images")
        places[split] = place
    has_splits = bool(found or tests)
    if has_splits:
        _place_training_images(images, masks, places)
    else:
        places["train"] = Place(images, masks)
    unused = []
    for name, folder in subfolders(root).items():
        if split_of(name) == "validation" and "validation" not in places and "images" in find_kinds(folder):
            raise ValueError(
                f"{images} lies beside {folder}, so it is unclear which images are for validation; move those of "
                f"{name}/ to {images.name}/{name} and {masks.name}/{name}, or move {images.name}/ and {masks.name}/ "
                "into train/."
            )
        if split_of(name) != "unlabeled":
            unused += [name] if split_of(name) else []
        elif "unlabeled" in places:
            raise ValueError(f"{places['unlabeled'].images} and {folder} both hold unlabeled images; {ONE_EACH}.")
        else:
            places["unlabeled"] = _unlabeled_place(folder)
    if has_splits:
        unused += dict.fromkeys(f"{kind.name}/{name}" for kind in (images, masks) for name in others[kind])
    return places, sorted(unused)


def _place_training_images(images: Path, masks: Path, places: dict[str, Place]):
    """Adds the place of training images, which lie in a folder of their own or beside the folders of other splits."""
    beside = [
        path
        for folder in (images, masks)
        for path, _ in visible_paths(folder, deep=False)
        if path.is_file() and path.suffix.lower() in image_suffixes()
    ]
    if "train" not in places and not beside:
        names = ", ".join(f"{images.name}/{name}" for name in subfolders(images))
        raise FileNotFoundError(f"There is no folder {images / 'train'}; beside {names}, there must be one.")
    if "train" not in places:
        places["train"] = Place(images, masks, deep=False)
    elif beside:
        names = " and ".join(f"{place.images.name}/" for place in places.values())
        raise ValueError(f"{beside[0]} lies beside {names}, so it would not be used; move it into one.")


def _list_files(
    folder: Path, suffixes: tuple[str, ...], deep: bool, but: Path | None = None
) -> tuple[dict[str, Path], list[tuple[Path, str]]]:
    """The files outside `but` by id, sorted by id, and the files with another extension, each with its id."""
    found, others = {}, []
    for path, name in visible_paths(folder, deep):
        if but is not None and path.is_relative_to(but):
            continue
        if path.name != PREDICTIONS and predictions_around(path, folder):
            continue
        is_usable = path.suffix.lower() in suffixes
        if not path.is_file():
            if deep and path.is_symlink() and path.is_dir():
                raise ValueError(
                    f"{path} is a link to a folder, whose files would not be found; link the files, or all of "
                    f"{folder}."
                )
            if is_usable and path.is_symlink() and not path.exists():
                raise ValueError(f"{path} is a link that leads nowhere; bring back what it leads to, or remove it.")
            continue
        if not is_usable:
            others.append((path, name))
            continue
        require_usable_name(path, name)
        if name in found:
            raise ValueError(f"{found[name]} and {path} have the same name but for the extension; keep one of them.")
        found[name] = path
    return dict(sorted(found.items())), others

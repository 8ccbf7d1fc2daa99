"""Images and masks in folders of one's own, split into labeled, unlabeled and validation images."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image, IterableDataset, Value

from .classes import Classes, read_classes


logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
CLASS_FILES = ("classes.json", "classes.txt")
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
        unlabeled_stream (`datasets.IterableDataset`, *optional*):
            Images to learn from instead of `unlabeled`, which no disk has to hold: column `image`.
    """

    labeled: Dataset
    unlabeled: Dataset
    validation: Dataset
    classes: Classes | None = None
    hidden_ids: list[str] = field(default_factory=list)
    unlabeled_stream: IterableDataset | None = None


def load_folder(
    data_dir: str | Path,
    labeled_fraction: float | None = None,
    labeled_count: int | None = None,
    validation_fraction: float = 0.1,
    seed: int = 42,
    labeled_ids: str | Path | None = None,
    output_dir: str | Path | None = None,
) -> SegmentationData:
    """
    Reads a folder of images and masks.

    Either the folder holds `images/train`, `images/val`, `masks/train` and `masks/val`, or `images` and `masks` hold
    the files directly; then some of the images with masks are held out for validation. Subfolders are read too. A mask
    has the path of its image but for the extension, which may be any of jpg, jpeg, png, bmp, tif, tiff and webp, in
    upper or lower case. A training image without a mask is unlabeled. A `classes.json` or `classes.txt` in the folder
    is read ([`read_classes`]).

    A fraction of n images is `ceil(n * fraction)` images, at least one; rounding up gives the published splits (1/8
    of 10,582 is 1,323). What is drawn depends on nothing but the ids and the seed, and a smaller share is part of a
    larger one of the same seed.

    Args:
        data_dir (`str` or `Path`):
            The folder.
        labeled_fraction (`float`, *optional*):
            The share, above 0 and up to 1, of the training images with masks that stay labeled; the masks of the
            others are hidden and these images are unlabeled. `None` keeps all masks.
        labeled_count (`int`, *optional*):
            The same as a number of images.
        validation_fraction (`float`, *optional*, defaults to 0.1):
            The share of the images with masks, above 0 and below 1, that is held out for validation where the folder
            has no `images/val`; otherwise not used.
        seed (`int`, *optional*, defaults to 42):
            Seed of both draws, at least 0.
        labeled_ids (`str` or `Path`, *optional*):
            A text file with one id per line, such as the `labeled_ids.txt` of an earlier run: these images stay
            labeled. With a held-out validation, `seed` and `validation_fraction` must be those of that run.
        output_dir (`str` or `Path`, *optional*):
            Where to write the ids of the three sets ([`write_id_lists`]).

    Returns:
        `SegmentationData`: Every training image is in exactly one of labeled and unlabeled; rows are sorted by id.

    Raises:
        FileNotFoundError: If a folder, or the file of labeled ids, is missing.
        ValueError: If the options contradict each other or are out of range, there is no image or no mask to train
            on, a mask has no image, a validation image has no mask, or two files claim one id.
    """
    _check_options(labeled_fraction, labeled_count, validation_fraction, seed, labeled_ids)
    data_dir = Path(data_dir).absolute()
    train, validation = _find_pairs(data_dir, validation_fraction, seed)
    with_mask = [name for name in train.images if name in train.masks]
    keep = _choose_labeled(with_mask, train, validation, labeled_fraction, labeled_count, seed, labeled_ids)
    others = [name for name in train.images if name not in keep]
    data = SegmentationData(
        labeled=_to_dataset(train, sorted(keep), with_label=True),
        unlabeled=_to_dataset(train, others, with_label=any(name in train.masks for name in others)),
        validation=_to_dataset(validation, list(validation.images), with_label=True),
        classes=_find_classes(data_dir),
        hidden_ids=[name for name in others if name in train.masks],
    )
    if output_dir is not None:
        write_id_lists(data, output_dir)
    return data


def write_id_lists(data: SegmentationData, output_dir: str | Path) -> None:
    """
    Writes `labeled_ids.txt`, `unlabeled_ids.txt` and `validation_ids.txt`, one id per line, in UTF-8.

    Args:
        data (`SegmentationData`):
            The three sets.
        output_dir (`str` or `Path`):
            The folder to write to; it is made if need be, and older lists in it are replaced.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    for name in ("labeled", "unlabeled", "validation"):
        lines = [f"{identifier}\n" for identifier in getattr(data, name)["id"]]
        (output_dir / f"{name}_ids.txt").write_text("".join(lines), encoding="utf-8")


def fraction_to_count(total: int, fraction: float) -> int:
    """
    Turns a share of some images into a number of images.

    Args:
        total (`int`):
            The number of images, at least 1.
        fraction (`float`):
            The share, above 0 and up to 1.

    Returns:
        `int`: `ceil(total * fraction)`, between 1 and `total`.
    """
    # 100 * 0.07 is 7.000000000000001 in floating point and must still give 7.
    return min(total, max(1, math.ceil(total * fraction - 1e-6)))


def draw(ids: Sequence[str], count: int, seed: int) -> list[str]:
    """
    Draws some of the ids at random.

    Args:
        ids (`Sequence[str]`):
            Distinct ids; their order has no influence.
        count (`int`):
            How many to draw, 0 to `len(ids)`.
        seed (`int`):
            The seed. With one seed, a smaller draw is part of a larger one.

    Returns:
        `list[str]`: The ids drawn, sorted.
    """
    ids = sorted(ids)
    order = np.random.default_rng(seed).permutation(len(ids))
    return sorted(ids[index] for index in order[:count])


@dataclass
class _Files:
    """Images and masks of one set: id to file, sorted by id; an image may have no mask."""

    images: dict[str, Path]
    masks: dict[str, Path]

    def without(self, ids: Sequence[str]) -> "_Files":
        left_out = set(ids)
        return _Files(*({k: v for k, v in files.items() if k not in left_out} for files in (self.images, self.masks)))

    def only(self, ids: Sequence[str]) -> "_Files":
        return _Files({name: self.images[name] for name in ids}, {name: self.masks[name] for name in ids})


def _check_options(labeled_fraction, labeled_count, validation_fraction, seed, labeled_ids) -> None:
    given = {"labeled_fraction": labeled_fraction, "labeled_count": labeled_count, "labeled_ids": labeled_ids}
    given = [name for name, value in given.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} were given together; give only one of them.")
    if labeled_fraction is not None and not 0 < labeled_fraction <= 1:
        raise ValueError(f"labeled_fraction is {labeled_fraction}, but it must be above 0 and at most 1.")
    if labeled_count is not None and labeled_count < 1:
        raise ValueError(f"labeled_count is {labeled_count}, but at least 1 image must stay labeled.")
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction is {validation_fraction}, but it must be above 0 and below 1.")
    if seed < 0:
        raise ValueError(f"seed is {seed}, but it must be 0 or above.")


def _find_pairs(data_dir: Path, validation_fraction: float, seed: int) -> tuple[_Files, _Files]:
    images, masks = data_dir / "images", data_dir / "masks"
    for folder in (data_dir, images, masks):
        _require_folder(folder, "the data folder must hold images/ and masks/")
    if not any((folder / split).is_dir() for folder in (images, masks) for split in ("train", "val")):
        return _hold_out(_pair(images, masks), masks, validation_fraction, seed)
    for folder in (images, masks):
        for split in ("train", "val"):
            _require_folder(folder / split, "images/ and masks/ must both have train/ and val/, or neither of the two")
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
                raise ValueError(f"{path} lies beside train/ and val/, so it would not be used; move it into one.")
    train, validation = (_pair(images / split, masks / split) for split in ("train", "val"))
    _require_masks(train, masks / "train")
    if not validation.images:
        raise ValueError(f"{images / 'val'} holds no image; put validation images there ({_accepted()}).")
    for name, path in validation.images.items():
        if name not in validation.masks:
            raise ValueError(
                f"The validation image {path} has no mask in {masks / 'val'}; add one, or move the image."
            )
    return train, validation


def _require_folder(folder: Path, need: str) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}; {need}.")


def _require_masks(files: _Files, folder: Path) -> None:
    if not files.masks:
        raise ValueError(
            f"{folder} holds no mask, so the labeled set is empty; put at least one there, named like its image "
            f"({_accepted()})."
        )


def _accepted() -> str:
    return "accepted: " + ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)


def _hold_out(files: _Files, mask_folder: Path, fraction: float, seed: int) -> tuple[_Files, _Files]:
    _require_masks(files, mask_folder)
    total = len(files.masks)
    count = fraction_to_count(total, fraction)
    if count >= total:
        raise ValueError(
            f"{mask_folder} holds {total} mask{'s' if total > 1 else ''} and {count} would be held out for "
            "validation, which leaves none to train on; add masks, or lower validation_fraction."
        )
    held_out = draw(list(files.masks), count, seed)
    return files.without(held_out), files.only(held_out)


def _pair(image_folder: Path, mask_folder: Path) -> _Files:
    images, unused_images = _list_files(image_folder)
    masks, unused_masks = _list_files(mask_folder)
    orphans = [name for name in masks if name not in images]
    if orphans:
        others = f" ({len(orphans) - 1} more masks have none either)" if len(orphans) > 1 else ""
        raise ValueError(
            f"The mask {masks[orphans[0]]} has no image {image_folder / orphans[0]} with any extension "
            f"({_accepted()}){others}; a mask must be named like its image, without a suffix such as _mask."
        )
    for path in unused_masks:
        name = path.relative_to(mask_folder).with_suffix("").as_posix()
        if name in images and name not in masks:
            raise ValueError(
                f"The mask {path} is not of a usable kind ({_accepted()}); convert it, for example to png."
            )
    if not images:
        raise ValueError(f"{image_folder} holds no image; put some there ({_accepted()}).")
    if unused_images:
        logger.warning(
            "%d files in %s are not used (%s), first %s",
            len(unused_images),
            image_folder,
            _accepted(),
            unused_images[0],
        )
    return _Files(images, masks)


def _list_files(folder: Path) -> tuple[dict[str, Path], list[Path]]:
    """Files by id, sorted by id, and the files with another extension; hidden files count as absent."""
    found, others = {}, []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts) or not path.is_file():
            continue
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            others.append(path)
            continue
        name = relative.with_suffix("").as_posix()
        if name in found:
            raise ValueError(f"{found[name]} and {path} have the same name but for the extension; keep one of them.")
        found[name] = path
    return dict(sorted(found.items())), others


def _choose_labeled(with_mask, train, validation, labeled_fraction, labeled_count, seed, labeled_ids) -> set[str]:
    if labeled_ids is not None:
        return _read_labeled_ids(Path(labeled_ids), train, validation)
    if labeled_fraction is not None:
        labeled_count = fraction_to_count(len(with_mask), labeled_fraction)
    if labeled_count is None:
        return set(with_mask)
    if labeled_count > len(with_mask):
        raise ValueError(
            f"labeled_count is {labeled_count}, but only {len(with_mask)} training images have a mask; lower it."
        )
    return set(draw(with_mask, labeled_count, seed))


def _read_labeled_ids(path: Path, train: _Files, validation: _Files) -> set[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; labeled_ids names a text file with one id per line.")
    ids = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not ids:
        raise ValueError(f"{path} names no id, so the labeled set is empty; list at least one id per line.")
    if len(set(ids)) != len(ids):
        double = next(name for index, name in enumerate(ids) if name in ids[:index])
        raise ValueError(f"{path} names {double} twice; name every id once.")
    reserved = [name for name in ids if name in validation.images and name not in train.images]
    if reserved:
        raise ValueError(
            f"{path} names {_some(reserved)}, held out for validation; use the seed and validation_fraction of the "
            "run that wrote the list, or remove what is held out."
        )
    unknown = [name for name in ids if name not in train.images]
    if unknown:
        raise ValueError(f"{path} names {_some(unknown)}, but there is no such training image; correct the list.")
    bare = [name for name in ids if name not in train.masks]
    if bare:
        raise ValueError(f"{path} names {_some(bare)}, but there is no mask for it; add the mask or correct the list.")
    return set(ids)


def _some(ids: list[str]) -> str:
    rest = len(ids) - SHOWN_IDS
    return ", ".join(ids[:SHOWN_IDS]) + (f" and {rest} more" if rest > 0 else "")


def _find_classes(data_dir: Path) -> Classes | None:
    found = [data_dir / name for name in CLASS_FILES if (data_dir / name).is_file()]
    if len(found) > 1:
        raise ValueError(f"{found[0]} and {found[1]} both exist; keep one of them.")
    return read_classes(found[0]) if found else None


def _to_dataset(files: _Files, ids: list[str], with_label: bool) -> Dataset:
    columns = {"id": ids, "image": [str(files.images[name]) for name in ids]}
    if with_label:
        columns["label"] = [str(files.masks[name]) if name in files.masks else None for name in ids]
    # The types are given because those of a set without rows cannot be seen.
    dataset = Dataset.from_dict(columns, features=Features({name: Value("string") for name in columns}))
    for name in list(columns)[1:]:
        dataset = dataset.cast_column(name, Image())
    return dataset

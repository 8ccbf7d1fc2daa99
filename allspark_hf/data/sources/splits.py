"""Which images are labeled, unlabeled and for validation: drawn from a seed, or named by lists."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .lists import read_list, require_disjoint
from .pairs import Layout, Pairs, SegmentationData


@dataclass
class Selection:
    """
    What to choose from a data set.

    Args:
        labeled_fraction (`float`, *optional*):
            The share, above 0 and up to 1, of the training images with masks that stay labeled; the masks of the
            others are hidden and these images are unlabeled. `None` keeps all masks.
        labeled_count (`int`, *optional*):
            The same as a number of images.
        labeled_list (`str` or `Path`, *optional*):
            The same as a split file ([`read_list`]): one of the published ones, or the `labeled_ids.txt` of an earlier
            run. With a held-out validation, `seed` and `validation_fraction` must be those of that run.
        unlabeled_list (`str` or `Path`, *optional*):
            A split file of the unlabeled images, together with `labeled_list`; `None` takes all other training images.
            Masks in it are hidden: they are there to measure by, and one that does not exist is left out.
        validation_list (`str` or `Path`, *optional*):
            A split file of the validation images; `None` takes those of the data set. Training images in it are held
            out.
        validation_fraction (`float`, *optional*, defaults to 0.1):
            The share of the training images with masks, above 0 and below 1, that is held out for validation where
            the data set has set none aside; otherwise not used.
        seed (`int`, *optional*, defaults to 42):
            Seed of both draws, at least 0.

    Raises:
        ValueError: If the options contradict each other or are out of range.
    """

    labeled_fraction: float | None = None
    labeled_count: int | None = None
    labeled_list: str | Path | None = None
    unlabeled_list: str | Path | None = None
    validation_list: str | Path | None = None
    validation_fraction: float = 0.1
    seed: int = 42

    def __post_init__(self):
        given = [
            name for name in ("labeled_fraction", "labeled_count", "labeled_list") if getattr(self, name) is not None
        ]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} were given together; give only one of them.")
        if self.unlabeled_list is not None and self.labeled_list is None:
            raise ValueError("unlabeled_list was given without labeled_list; give both, or only labeled_list.")
        if self.labeled_fraction is not None and not 0 < self.labeled_fraction <= 1:
            raise ValueError(f"labeled_fraction is {self.labeled_fraction}, but it must be above 0 and at most 1.")
        if self.labeled_count is not None and self.labeled_count < 1:
            raise ValueError(f"labeled_count is {self.labeled_count}, but at least 1 image must stay labeled.")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction is {self.validation_fraction}, but it must be above 0 and below 1.")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, but it must be 0 or above.")


def load_layout(layout: Layout, selection: Selection, output_dir: str | Path | None = None) -> SegmentationData:
    """
    Chooses the three sets and makes datasets of them; nothing is decoded.

    Args:
        layout (`Layout`):
            The data set.
        selection (`Selection`):
            What to choose.
        output_dir (`str` or `Path`, *optional*):
            Where to write the ids of the three sets ([`write_id_lists`]).

    Returns:
        `SegmentationData`: No image is in two of the sets; rows are sorted by id.

    Raises:
        FileNotFoundError: If a folder or a list is missing.
        ValueError: If a list cannot be used, sets share images, a mask is missing, or too few images have masks.
    """
    labeled, unlabeled, validation = select_pairs(layout, selection)
    data = SegmentationData(
        labeled=labeled.to_dataset(with_masks=True),
        unlabeled=unlabeled.to_dataset(with_masks=bool(unlabeled.masks)),
        validation=validation.to_dataset(with_masks=True),
        classes=layout.classes,
        hidden_ids=sorted(unlabeled.masks),
        mask_values=layout.mask_values,
        ignored_mask_values=layout.ignored_mask_values,
    )
    if output_dir is not None:
        write_id_lists(data, output_dir)
    return data


def select_pairs(layout: Layout, selection: Selection) -> tuple[Pairs, Pairs, Pairs]:
    """
    Chooses labeled, unlabeled and validation images; see [`load_layout`].

    A fraction of n images is `ceil(n * fraction)` images, at least one; rounding up gives the published splits (1/8
    of 10,582 is 1,323). What is drawn depends on nothing but the ids and the seed, and a smaller share is part of a
    larger one of the same seed.

    Returns:
        `tuple[Pairs, Pairs, Pairs]`: Labeled (all with masks), unlabeled (masks are hidden ones), validation (all with
        masks).
    """
    lists = {
        "labeled": ("train", selection.labeled_list, True),
        "unlabeled": ("train", selection.unlabeled_list, False),
        "validation": ("validation", selection.validation_list, True),
    }
    listed = {
        name: None if path is None else read_list(path, layout, split, need_masks)
        for name, (split, path, need_masks) in lists.items()
    }
    labeled, unlabeled, validation = listed.values()
    hint = ""
    if validation is None:
        validation = layout.validation()
    if validation is None or unlabeled is None:
        train = layout.train()
        if validation is None:
            train, validation = hold_out(train, str(layout.root), selection)
            hint = "use the seed and validation_fraction of the run that wrote the list, or take them out of it"
        if selection.validation_list is not None:
            train = train.without(validation.images.values())
        if labeled is None:
            _require_masks(train, layout)
            labeled = choose_labeled(train, selection)
        if unlabeled is None:
            unlabeled = train.without(labeled.images.values())
    titles = {
        name: f"the {name} set" if path is None else f"{name}_list {path}" for name, (_, path, _) in lists.items()
    }
    sets = {"labeled": labeled, "unlabeled": unlabeled, "validation": validation}
    require_disjoint({titles[name]: pairs for name, pairs in sets.items()}, hint)
    return labeled, unlabeled, validation


def hold_out(train: Pairs, where: str, selection: Selection) -> tuple[Pairs, Pairs]:
    """
    Takes a share of the images with masks out of the training images, for validation.

    Args:
        train (`Pairs`):
            All images.
        where (`str`):
            What to call them in an error.
        selection (`Selection`):
            `validation_fraction` and `seed`.

    Returns:
        `tuple[Pairs, Pairs]`: The training images that remain, and the validation images.

    Raises:
        ValueError: If no mask would remain.
    """
    total = len(train.masks)
    count = fraction_to_count(total, selection.validation_fraction)
    if count >= total:
        raise ValueError(
            f"{where} holds {total} mask{'s' if total > 1 else ''} and {count} would be held out for validation, "
            "which leaves none to train on; add masks, or lower validation_fraction."
        )
    validation = train.only(draw(list(train.masks), count, selection.seed))
    return train.without(validation.images.values()), validation


def choose_labeled(train: Pairs, selection: Selection) -> Pairs:
    """
    Draws the images that stay labeled.

    Args:
        train (`Pairs`):
            The training images.
        selection (`Selection`):
            `labeled_fraction` or `labeled_count`, and `seed`; all images with masks if neither is given.

    Returns:
        `Pairs`: Those images, all with masks.

    Raises:
        ValueError: If fewer images have masks than are asked for.
    """
    count = selection.labeled_count
    if selection.labeled_fraction is not None:
        count = fraction_to_count(len(train.masks), selection.labeled_fraction)
    if count is None:
        return train.only(train.masks)
    if count > len(train.masks):
        raise ValueError(
            f"labeled_count is {count}, but only {len(train.masks)} training images have a mask; lower it."
        )
    return train.only(draw(list(train.masks), count, selection.seed))


def _require_masks(train: Pairs, layout: Layout) -> None:
    bare = [name for name in train.images if name not in train.masks]
    if bare and layout.every_mask:
        image = train.images[bare[0]]
        raise ValueError(
            f"{len(bare)} of {len(train.images)} training images have no mask, first {image} (no "
            f"{layout.mask_of(image)}); add the masks, or name the labeled images with labeled_list."
        )


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

"""Which images are labeled, unlabeled and for validation, drawn by a seed or named by lists."""

import logging
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from ...utils.arguments import argument, check_values
from .classes import Classes
from .layout import Layout
from .pairs import SETS, Pairs, SegmentationData, first_few


logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Selection:
    """Which images of a data set are labeled, unlabeled and for validation."""

    labeled_fraction: float | None = argument(
        None, "Share of the training masks to use; the others are hidden.", common=True, interval="(0, 1]"
    )
    labeled_count: int | None = argument(None, "The same as a number of masks.", common=True, interval="[1, inf)")
    labeled_list: str | None = argument(
        None,
        "The same as a split file: a line is `image mask` or an image, relative to data_dir, or an id; e.g. a "
        "published labeled.txt, or labeled_ids.txt of an earlier run.",
    )
    unlabeled_list: str | None = argument(
        None, "Split file of the unlabeled images, with labeled_list; default: all other training images."
    )
    validation_list: str | None = argument(
        None, "Split file of the validation images; default: those of the data set."
    )
    validation_fraction: float = argument(
        0.1, "Share of the labeled images held out when there is no validation set.", interval="(0, 1)"
    )
    split_seed: int = argument(42, "Seed of these choices; --seed does not touch them.", interval="[0, inf)")

    def __post_init__(self):
        check_values(self)
        given = [
            name for name in ("labeled_fraction", "labeled_count", "labeled_list") if getattr(self, name) is not None
        ]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} were given together; give only one of them.")


def load_layout(layout: Layout, selection: Selection, classes: Classes | None = None) -> SegmentationData:
    """
    Chooses the three sets ([`select_pairs`]) and makes datasets of them, sorted by id; nothing is decoded. Images of
    the data set that are in none of the sets are logged. Without `classes`, the layout finds them
    ([`Layout.find_classes`]).

    Raises:
        FileNotFoundError: if a folder or a list is missing.
        ValueError: if a list cannot be used, sets share images, a mask is missing, or too few images have masks.
    """
    labeled, unlabeled, validation = select_pairs(layout, selection)
    if layout.left_alone is not None:
        logger.warning(layout.left_alone)
    unlabeled_set = layout.to_dataset(unlabeled, with_masks=bool(unlabeled.masks))
    return SegmentationData(
        labeled=layout.to_dataset(labeled, with_masks=True),
        unlabeled=unlabeled_set,
        validation=layout.to_dataset(validation, with_masks=True),
        classes=classes or layout.find_classes(),
        hidden_ids=[name for name in unlabeled_set["id"] if name in unlabeled.masks],
        mask_values=layout.mask_values,
        ignored_mask_values=layout.ignored_mask_values,
    )


def select_pairs(layout: Layout, selection: Selection) -> tuple[Pairs, Pairs, Pairs]:
    """
    Chooses labeled, unlabeled and validation images; see [`load_layout`].

    A fraction of n images is `ceil(n * fraction)` images, at least one; rounding up gives the published splits (1/8
    of 10,582 is 1,323). The draw depends only on the ids and the seed, and a smaller share is part of a larger one
    with the same seed.

    Returns:
        `tuple[Pairs, Pairs, Pairs]`: labeled (all with masks), unlabeled (masks are hidden ones), validation (all with
        masks).
    """
    if selection.unlabeled_list is not None and selection.labeled_list is None:
        raise ValueError("unlabeled_list was given without labeled_list; give both, or only labeled_list.")
    labeled = _listed(layout, selection.labeled_list, "train")
    unlabeled = _listed(layout, selection.unlabeled_list, "train", need_masks=False)
    validation = _listed(layout, selection.validation_list, "validation")
    fix = "take them out of one"
    if validation is None and layout.has_validation:
        validation = layout.pairs(layout.validation)
        _require_masks(validation, layout, layout.validation, "name the images to use with validation_list")
    if validation is None or unlabeled is None:
        train = layout.pairs("train")
        if validation is None:
            validation = train.only(hold_out(train.masks, layout.where, selection))
            train = train.without(validation)
            fix = "use the seed and validation_fraction of the run that wrote the list, or take them out of it"
        elif selection.validation_list is not None:
            train = train.without(validation)
        if labeled is None:
            if layout.needs_every_mask:
                _require_masks(train, layout, "training", "name the labeled images with labeled_list")
            labeled = train.only(choose_labeled(train.masks, layout.where, selection))
        if unlabeled is None:
            unlabeled = train.without(labeled)
            if layout.has_unlabeled:
                unlabeled = unlabeled.union(layout.pairs("unlabeled").without(labeled, validation))
    _require_disjoint(selection, (labeled, unlabeled, validation), fix)
    return labeled, unlabeled, validation


def _listed(layout: Layout, path: str | Path | None, split: str, need_masks: bool = True) -> Pairs | None:
    return None if path is None else layout.read_list(path, split, need_masks)


def _require_masks(pairs: Pairs, layout: Layout, kind: str, fix: str):
    bare = [image for name, image in pairs.images.items() if name not in pairs.masks]
    if bare:
        raise ValueError(
            f"{len(bare)} of {len(pairs.images)} {kind} images have no mask, first {bare[0]} (no "
            f"{layout.mask_of(bare[0])}); add the masks, or {fix}."
        )


def _require_disjoint(selection: Selection, chosen: tuple[Pairs, ...], fix: str):
    """Raises `ValueError` if an image is in two sets, with the number of such images and the first few of them."""
    lists = {name: getattr(selection, f"{name}_list") for name in SETS}
    titles = [f"the {name} set" if path is None else f"{name}_list {path}" for name, path in lists.items()]
    for (first, a), (second, b) in combinations(zip(titles, chosen, strict=True), 2):
        in_b = set(b.images.values())
        both = [name for name, path in a.images.items() if path in in_b]
        if both:
            counted = "1 image is" if len(both) == 1 else f"{len(both)} images are"
            raise ValueError(f"{counted} both in {first} and in {second} ({first_few(both)}); {fix}.")


def hold_out(masked: Collection[str], where: str, selection: Selection) -> list[str]:
    """
    Draws the images that are held out for validation, of the ids of those with masks; `where` is what to call the data
    in an error, which comes if no mask would be left to train on.
    """
    _require_any(masked, where)
    count = fraction_to_count(len(masked), selection.validation_fraction)
    if count >= len(masked):
        raise ValueError(
            f"{where} has {len(masked)} mask{'s' if len(masked) > 1 else ''} and {count} would be held out for "
            "validation, so that none is left to train on; add masks or a validation set, or lower "
            "validation_fraction."
        )
    return draw(masked, count, selection.split_seed)


def choose_labeled(masked: Collection[str], where: str, selection: Selection) -> list[str]:
    """Draws the images that stay labeled, of the ids of those with masks: all if there is no fraction and no count."""
    _require_any(masked, where)
    count = selection.labeled_count
    if selection.labeled_fraction is not None:
        count = fraction_to_count(len(masked), selection.labeled_fraction)
    if count is None:
        return list(masked)
    if count > len(masked):
        raise ValueError(f"labeled_count is {count}, but {where} has only {len(masked)} masks to train on; lower it.")
    return draw(masked, count, selection.split_seed)


def _require_any(masked: Collection[str], where: str):
    if not masked:
        raise ValueError(
            f"{where} has no mask of a training image, so the labeled set is empty; add at least one, named like its "
            "image in a folder, or name another split or column."
        )


def write_id_lists(data: SegmentationData, output_dir: str | Path):
    """
    Writes `labeled_ids.txt`, `unlabeled_ids.txt` and `validation_ids.txt` into a folder, one id per line, in UTF-8.
    Older lists are replaced.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    for name, dataset in data.sets.items():
        lines = [f"{identifier}\n" for identifier in dataset["id"]]
        (output_dir / f"{name}_ids.txt").write_text("".join(lines), encoding="utf-8")


def fraction_to_count(total: int, fraction: float) -> int:
    """The number of images in a share, above 0 and up to 1: `ceil(total * fraction)`, between 1 and `total`."""
    # 100 * 0.07 is 7.000000000000001 in floating point, and must still give 7.
    return min(total, max(1, math.ceil(total * fraction - 1e-6)))


def draw(ids: Iterable[str], count: int, seed: int) -> list[str]:
    """
    Draws some of the ids at random, and sorts them. With one seed, a smaller draw is part of a larger one.

    Args:
        ids (`Iterable[str]`): distinct ids; their order does not matter.
        count (`int`): how many to draw, 0 to all.
        seed (`int`): seed of the draw.
    """
    ids = sorted(ids)
    order = np.random.default_rng(seed).permutation(len(ids))
    return sorted(ids[index] for index in order[:count])

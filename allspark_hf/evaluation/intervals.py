"""Intervals of scores and of differences of models: IoU of validation images drawn with replacement (bootstrap)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


SAMPLES = 2000
LEVEL = 0.95
FEW_IMAGES = 10  # below this, resampled scores say little about other images


class Interval(NamedTuple):
    """A difference of mIoU, second model minus first, and the ends of its interval, each in [-1, 1]."""

    difference: float
    low: float
    high: float


class Score(NamedTuple):
    """An IoU or mIoU in [0, 1], or a gain of it, and the ends of its interval."""

    value: float
    low: float
    high: float


def image_counts(confusion: np.ndarray) -> np.ndarray:
    """
    The counts behind the IoU of an image: int64 (3, num_labels), the right, the true and the predicted pixels of each
    class, from int64 `confusion` (num_labels, num_labels), pixels by true and predicted class.
    """
    return np.stack([confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)])


def difference_interval(first: np.ndarray, second: np.ndarray, count_absent: bool = False, seed: int = 0) -> Interval:
    """
    The 95 % interval of the difference of two models' mIoU on the same images. Only the choice of images is in it:
    another seed of the training, or other labels, would move the difference further.

    Args:
        first (`np.ndarray`): int64 (images, 3, num_labels), of [`image_counts`].
        second (`np.ndarray`): the same of the other model, the images in the same order.
        count_absent (`bool`, *optional*, defaults to `False`): whether an absent class counts as 0 in mIoU.
        seed (`int`, *optional*, defaults to 0): of the draws.

    Raises:
        ValueError: if the shapes differ, or there is no image.
    """
    if first.shape != second.shape or not len(first):
        raise ValueError(
            f"The models have counts of the shapes {first.shape} and {second.shape}: give those of the "
            "same images, at least one."
        )
    weights = _draws(len(first), seed)
    whole = np.ones((1, len(first)), dtype=np.int64)
    difference, drawn = (
        _mean_iou(rows, second, count_absent) - _mean_iou(rows, first, count_absent) for rows in (whole, weights)
    )
    return Interval(difference.item(), *_ends(drawn))


def margin_interval(
    first: np.ndarray,
    second: np.ndarray,
    baseline: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
) -> Interval:
    """
    The 95 % interval of a margin: a model's mIoU on some images minus its mIoU on other ones, drawn independently.

    Args:
        first (`np.ndarray`): int64 (images, 3, num_labels), of [`image_counts`], at least one image.
        second (`np.ndarray`): int64 (other images, 3, num_labels), of [`image_counts`], at least one image.
        baseline (`tuple[np.ndarray, np.ndarray]`, *optional*):
            `first` and `second` of another model, the images in the same order: its margin is subtracted, with the
            same draws.
        seed (`int`, *optional*, defaults to 0): of the draws.

    Raises:
        ValueError: if the baseline's shapes differ.
    """
    pairs = [(first, second)] if baseline is None else [(first, second), baseline]
    shapes = [[counts.shape for counts in pair] for pair in pairs]
    if shapes[0] != shapes[-1]:
        raise ValueError(f"The models have counts of the shapes {shapes[0]} and {shapes[1]}: give the same images.")
    rng = np.random.default_rng(seed)  # one for both: with a seed each, two sets of one size would be drawn alike
    weights = [_draws(len(counts), rng) for counts in (first, second)]
    whole = [np.ones((1, len(counts)), dtype=np.int64) for counts in (first, second)]
    value, drawn = ([_mean_iou(w[0], a) - _mean_iou(w[1], b) for a, b in pairs] for w in (whole, weights))
    if baseline is not None:
        value, drawn = [value[0] - value[1]], [drawn[0] - drawn[1]]
    return Interval(value[0].item(), *_ends(drawn[0]))


def score_intervals(counts: np.ndarray, count_absent: bool = False, seed: int = 0) -> tuple[Score, list[Score | None]]:
    """
    The 95 % intervals of a model's scores. Only the choice of images is in them, see [`difference_interval`].

    Args:
        counts (`np.ndarray`): int64 (images, 3, num_labels), of [`image_counts`], at least one image.
        count_absent (`bool`, *optional*, defaults to `False`): whether an absent class counts as 0 in mIoU.
        seed (`int`, *optional*, defaults to 0): of the draws.

    Returns:
        `tuple[Score, list[Score | None]]`: of mIoU, and of the IoU of each class; None of a class that neither masks
        nor predictions show.
    """
    drawn = _iou(_draws(len(counts), seed), counts)
    (whole,) = _iou(np.ones((1, len(counts)), dtype=np.int64), counts)
    mean = Score(float(_mean(whole, count_absent)), *_ends(_mean(drawn, count_absent)))
    return mean, [None if np.isnan(iou) else Score(float(iou), *_ends(drawn[:, k])) for k, iou in enumerate(whole)]


def seeds_interval(
    models: Sequence[np.ndarray], baselines: Sequence[np.ndarray] | None = None, seed: int = 0
) -> Score:
    """
    The mean over trainings of one recipe with several seeds, or of their gains, and its 95 % interval: images and
    trainings are drawn with replacement, images the same for all. With three seeds it is rather too narrow.

    Args:
        models (`Sequence[np.ndarray]`): of each training int64 (images, 3, num_labels), of [`image_counts`].
        baselines (`Sequence[np.ndarray]`, *optional*):
            of other trainings with the same seeds and images: then the gain over them instead.
        seed (`int`, *optional*, defaults to 0): of the draws.

    Returns:
        [`Score`]: mIoU in [0, 1], or the gain in [-1, 1].
    """
    images = _draws(len(models[0]), seed)
    everything = np.ones((1, len(models[0])), dtype=np.int64)
    drawn, whole = (np.stack([_mean_iou(rows, counts) for counts in models]) for rows in (images, everything))
    if baselines is not None:
        drawn -= np.stack([_mean_iou(images, counts) for counts in baselines])
        whole -= np.stack([_mean_iou(everything, counts) for counts in baselines])
    trainings = _draws(len(models), seed + 1) / len(models)
    return Score(whole.mean().item(), *_ends((trainings.T * drawn).sum(axis=0)))


def _draws(num_images: int, seed: int | np.random.Generator) -> np.ndarray:
    """int64 (samples, images): how often each image is drawn."""
    return np.random.default_rng(seed).multinomial(num_images, np.full(num_images, 1 / num_images), size=SAMPLES)


def _ends(drawn: np.ndarray) -> list[float]:
    return np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()


def _mean_iou(weights: np.ndarray, counts: np.ndarray, count_absent: bool = False) -> np.ndarray:
    """float64 (samples,): mIoU, from int64 (samples, images)."""
    return _mean(_iou(weights, counts), count_absent)


def _mean(iou: np.ndarray, count_absent: bool) -> np.ndarray:
    """Mean of the last axis, over the classes that masks or predictions show, or over all, absent ones as 0."""
    return np.nan_to_num(iou).mean(axis=-1) if count_absent else np.nanmean(iou, axis=-1)


def _iou(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """float64 (samples, num_labels): IoU of each class, NaN where it is absent."""
    return iou_of(np.tensordot(weights.astype(np.float64), counts.astype(np.float64), 1))


def iou_of(counts: np.ndarray) -> np.ndarray:
    """float64 (rows, num_labels): IoU, NaN for absent classes, from (rows, 3, num_labels) as of [`image_counts`]."""
    hits, true, predicted = np.moveaxis(counts.astype(np.float64), 1, 0)
    with np.errstate(invalid="ignore"):  # an absent class is 0 / 0
        return hits / (true + predicted - hits)


def verdict(interval: Interval, num_images: int) -> str:
    """
    One sentence on whether the unlabeled images helped.

    Args:
        interval ([`Interval`]): of the model with them against the one without.
        num_images (`int`): validation images that were resampled.
    """
    images = f"{num_images} validation image{'s' * (num_images != 1)}"
    points = f"{100 * interval.difference:+.1f} points of mIoU, 95 % interval {100 * interval.low:+.1f} to "
    points += f"{100 * interval.high:+.1f} from resampling {images}"
    unsure = f"Whether the unlabeled images helped, {images} cannot tell"
    if num_images < FEW_IMAGES:
        return f"{unsure}: {points}; label at least {FEW_IMAGES} to validate with."
    if interval.low > 0:
        return f"The unlabeled images helped: {points}."
    if interval.high < 0:
        return f"The unlabeled images did not help, the model got worse: {points}."
    return f"{unsure}: {points}, which includes 0."

"""Which values of 16-bit images become black and white: one range for all images of a data set."""

from collections.abc import Sequence

import numpy as np

from .pixels import FULL_RANGE


OUTLIERS = 1000  # one value in so many does not count at either end: dead and glowing pixels


def value_range(values: np.ndarray) -> tuple[int, int]:
    """The smallest and largest of an image's [`deep_values`], without one value in 1000 at either end."""
    values = values.ravel()
    rest = len(values) // OUTLIERS
    ends = [rest, len(values) - 1 - rest]
    low, high = np.partition(values, ends)[ends]
    return int(low), int(high)


def common_range(ranges: Sequence[tuple[int, int]]) -> list[int] | None:
    """
    The range by which the 16-bit images of a data set are scaled, from the [`value_range`] of each: the range that
    they span together, or `None` (0 to 65535) if that is half of all 16-bit values or more, or a single value.
    """
    low, high = min((low for low, _ in ranges), default=0), max((high for _, high in ranges), default=0)
    return [low, high] if 0 < high - low < FULL_RANGE[1] // 2 else None


__all__ = ["common_range", "value_range"]

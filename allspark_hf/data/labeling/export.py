"""
What every reader returns: class names, and pictures whose objects can be painted as masks.

A reader is a function that gets the pictures ([`Files`]) and the path or the content of the files that annotate them.
It raises `FileNotFoundError` if a picture is missing, and `ValueError` if the export cannot be read or contradicts
itself; both name the file and the fix. Masks are painted later, by [`Picture.paint`].
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..sources.class_lists import Color
from .rasterize import checked_ring, rasterize


IGNORED = 255
Ring = Sequence[Sequence[float]]


class Canvas:
    """
    The mask of one picture while its objects are painted. Where objects overlap, the one painted last stays.

    Args:
        height (`int`): height of the picture, as the export sees it.
        width (`int`): width of the picture, as the export sees it.
        values (`dict[str, int]`): the mask's value for each class of the export, in its order; 255: these pixels are
            ignored; -1: an object of this class is an error.
        outside (`int`): the mask's value outside all objects.

    Attributes:
        mask (`np.ndarray`): uint8 (height, width), values of classes and 255.
        overlapped (`np.ndarray`): bool (height, width), pixels where an object covered one of another class.
        events (`Counter`): number of objects that were "cut" at the picture's edge, or are "empty".
        extent (`float`): the largest coordinate of the outlines; 0 without outlines.
    """

    def __init__(self, height: int, width: int, values: dict[str, int], outside: int):
        self.mask = np.full((height, width), outside, dtype=np.uint8)
        self.overlapped = np.zeros((height, width), dtype=bool)
        self.events: Counter[str] = Counter()
        self.extent = 0.0
        self._names = list(values)
        self._values = np.array(list(values.values()), dtype=np.int64)
        self._painted = np.zeros((height, width), dtype=bool)

    def paint(self, inside: np.ndarray, label: int | None, left: int = 0, top: int = 0):
        """
        Paints the pixels of an object, bool (rows, columns), whose upper left corner lies at `left` and `top`; the
        part beyond the picture is cut off. The class `label` is an index into the export's list; `None`: ignored
        pixels.

        Raises:
            ValueError: if all of `inside` lies beyond the picture.
        """
        height, width = self.mask.shape
        rows, columns = inside.shape
        if left >= width or top >= height or left + columns <= 0 or top + rows <= 0:
            raise ValueError(f"an object lies outside the picture of {height}x{width} pixels (height x width)")
        inner = inside[max(-top, 0) : height - top, max(-left, 0) : width - left]
        self.events["cut"] += int(inner.shape != inside.shape)
        self.events["empty"] += int(not inner.any())
        top, left = max(top, 0), max(left, 0)
        box = np.s_[top : top + inner.shape[0], left : left + inner.shape[1]]
        value = self._value_of(label)
        self.overlapped[box] |= inner & self._painted[box] & (self.mask[box] != value)
        self.mask[box][inner] = value
        self._painted[box] |= inner

    def outline(self, rings: Sequence[Ring], label: int | None, unite: bool = False):
        """
        Paints the inside of the rings of one object, in pixels ([`rasterize`]), see [`Canvas.paint`]. With `unite`,
        rings are united, so that a ring within a ring is no hole.

        Raises:
            ValueError: if [`checked_ring`] refuses a ring, or the object lies beyond the picture, as with a wrong
                scale.
        """
        rings = [checked_ring(ring) for ring in rings]
        height, width = self.mask.shape
        points, size = np.concatenate(rings), np.array([width, height])
        low, high = points.min(axis=0), points.max(axis=0)
        if (low >= size).any() or (high <= 0).any() or (low < -size).any() or (high > 2 * size).any():
            raise ValueError(
                f"an outline reaches from x {low[0]:g}, y {low[1]:g} to x {high[0]:g}, y {high[1]:g}, but the picture "
                f"has {height}x{width} pixels (height x width); correct it, or export at the scale of the picture"
            )
        self.extent = max(self.extent, float(high.max()))
        self.events["cut"] += int((low < -1).any() or (high > size + 1).any())
        first, last = np.floor(low).clip(0).astype(int), np.ceil(high).clip(0, size).astype(int)
        shifted = [ring - first for ring in rings]
        inside = np.zeros((last - first)[::-1], dtype=bool)  # only the object's box, to save time with small objects
        for group in [[ring] for ring in shifted] if unite else [shifted]:
            inside |= rasterize(group, *inside.shape)
        self.paint(inside, label, *first)

    def fill(self, labels: np.ndarray):
        """
        Sets every pixel, from int64 (height, width), indices into the export's list of classes.

        Raises:
            ValueError: if `values` does not list a class that occurs.
        """
        for label in np.unique(labels):
            self._value_of(label)
        self.mask[:] = self._values[labels]

    def _value_of(self, label: int | None) -> int:
        value = IGNORED if label is None else int(self._values[label])
        if value < 0:
            raise ValueError(f"it shows the class {self._names[label]!r}, which --classes does not list; add it there")
        return value


@dataclass(frozen=True, eq=False)
class Picture:
    """
    One picture of an export.

    Args:
        image (`Path`): the image file.
        source (`Path`): the file that annotates the picture, for error messages.
        split (`str`, *optional*): "train", "validation", "test" or "unlabeled", if the export has splits.
        size (`tuple[int, int]`, *optional*): height and width of the picture according to the export.
        paint (`Callable`, *optional*): paints the objects on a [`Canvas`], or raises `ValueError`; `None`: the picture
            has no annotation.
        may_be_empty (`bool`): whether a picture without annotation may also be one that was looked at and shows no
            object.
    """

    image: Path
    source: Path
    split: str | None = None
    size: tuple[int, int] | None = None
    paint: Callable[[Canvas], None] | None = None
    may_be_empty: bool = False


@dataclass
class Export:
    """
    What a labeling tool wrote.

    Args:
        classes (`list[str]`): names of the classes, in the order of the export.
        pictures (`list[Picture]`): all pictures that the export names or holds.
        is_dense (`bool`): whether every pixel has a class, so that nothing lies outside all objects.
        colors (`list[tuple[int, int, int]]`, *optional*): a color for each class.
        notes (`list[str]`): sentences for the report, about decisions and about files that were not read.
    """

    classes: list[str]
    pictures: list[Picture]
    is_dense: bool = False
    colors: list[Color] | None = None
    notes: list[str] = field(default_factory=list)


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Puts the name of an object before the sentence of a `ValueError`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def ellipse_ring(x: float, y: float, radius_x: float, radius_y: float, degrees: float = 0) -> np.ndarray:
    """An ellipse as a ring (72, 2), turned clockwise around its center by the degrees."""
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    return turned(np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], axis=1), (x, y), degrees)


def box_ring(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """A box as a ring (4, 2)."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], dtype=np.float64)


def turned(points: np.ndarray, center: Sequence[float], degrees: float) -> np.ndarray:
    """Points (count, 2), turned around a center; clockwise, since y goes down."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return (points - center) @ np.array([[cosine, sine], [-sine, cosine]]) + center

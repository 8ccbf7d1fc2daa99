"""Outlines of the regions of a mask, to be corrected in a labeling tool."""

from collections.abc import Collection, Iterator, Sequence
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np

from .rasterize import INSTALL, rasterize
from .writing import is_background


LEAST_LEFT = 0.5  # a region that would keep no more than this share of its area is not simplified


class Region(NamedTuple):
    """
    Connected pixels of a class; pixels that touch at corners only are connected too.

    Args:
        label (`int`): the class.
        rings (`list[np.ndarray]`): the outline, then the outlines of holes: each int64 (points, 2), x and y, without
            the first point again at the end. (0, 0) is the upper left corner of the upper left pixel.
    """

    label: int
    rings: list[np.ndarray]

    def one_ring(self) -> np.ndarray:
        """
        The region as a single ring, int64 (points, 2), for tools that know no holes: a cut of no width leads to each
        hole and back. The ring encloses the pixels of the region by the even-odd and by the non-zero rule.
        """
        ring, *holes = self.rings
        for hole in holes:
            place = int(np.abs(ring - hole[0]).sum(axis=1).argmin())
            ring = np.concatenate([ring[: place + 1], hole, hole[:1], ring[place:]])
        return ring


def require_outlines():
    """Raises ImportError, with what to install, if [`annotate`] lacks a library."""
    for name in ("rasterio", "pycocotools"):
        if find_spec(name) is None:
            raise ImportError(INSTALL.format(name))


def outline_regions(mask: np.ndarray, tolerance: float = 0.0) -> list[Region]:
    """
    Outlines all regions of a mask along the edges of pixels, and simplifies the outlines (Douglas and Peucker).

    Neighbors keep a common outline: outlines are cut where three regions meet, or two touch at a corner, and each part
    is simplified once. A region that would lose half of its area or more, such as a line of one pixel, keeps all
    points.

    Args:
        mask (`np.ndarray`): uint8 or int32 (height, width), classes.
        tolerance (`float`, *optional*, defaults to 0.0): how far, in pixels, a removed point may lie from the
            simplified outline; 0 removes no point.

    Returns:
        `list[Region]`: the largest region first; together they cover the mask.

    Raises:
        ImportError: if rasterio or pycocotools is not installed.
    """
    require_outlines()
    from rasterio.features import shapes

    junctions = _junctions(mask)
    arcs: dict[bytes, np.ndarray] = {}
    found = []
    for shape, label in shapes(mask, connectivity=8):
        rings = [np.array(ring, dtype=np.int64) for ring in shape["coordinates"]]
        area = sum(map(_signed_area, rings))
        found.append((abs(area), int(label), [list(_cut(ring, junctions, arcs)) for ring in rings]))
    found.sort(key=lambda region: -region[0])
    simplified = {key: simplify(arc, tolerance) for key, arc in arcs.items()} if tolerance else arcs
    kept = {}  # parts of small regions that keep all points, in the outlines of their neighbors too
    for area, _, rings in found if tolerance else ():
        if abs(sum(_signed_area(_join(ring, simplified)) for ring in rings)) <= LEAST_LEFT * area:
            kept |= {key: arcs[key] for ring in rings for key, _ in ring}
    simplified = {**simplified, **kept}
    regions = []
    for _, label, rings in found:
        outlines = [_join(ring, simplified)[:-1] for ring in rings]
        regions.append(Region(label, [outline for outline in outlines if len(outline) > 2]))
    return regions


def _junctions(mask: np.ndarray) -> np.ndarray:
    """
    Bool (height + 1, width + 1): the corners of pixels at which three or four edges between classes meet, and the four
    corners of the image, which no outline may cut off.
    """
    padded = np.pad(mask.astype(np.int32), 1, constant_values=-1)
    upright, level = padded[:, 1:] != padded[:, :-1], padded[1:] != padded[:-1]
    edges = [upright[:-1], upright[1:], level[:, :-1], level[:, 1:]]
    junctions = np.sum(edges, axis=0, dtype=np.uint8) > 2
    junctions[:: mask.shape[0], :: mask.shape[1]] = True
    return junctions


def _cut(ring: np.ndarray, junctions: np.ndarray, arcs: dict[bytes, np.ndarray]) -> Iterator[tuple[bytes, bool]]:
    """
    Cuts a closed ring, int64 (points, 2), whose last point is its first one, at junctions. The parts go into `arcs`;
    both regions beside a part store it in the same direction.

    Yields:
        `tuple[bytes, bool]`: the key of a part in `arcs`, and whether the ring goes through the part backwards.
    """
    steps = np.diff(ring, axis=0)
    lengths = np.abs(steps).sum(axis=1)
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    along = np.arange(lengths.sum()) - starts
    points = np.repeat(ring[:-1], lengths, axis=0) + np.repeat(np.sign(steps), lengths, axis=0) * along[:, None]
    is_junction = junctions[points[:, 1], points[:, 0]]
    needed = is_junction | (along == 0)
    points, is_junction = points[needed], is_junction[needed]
    cuts = np.flatnonzero(is_junction)
    if not len(cuts):  # the ring begins at its farthest point, which is kept, and which both regions find
        away = np.hypot(*((len(points) * points - points.sum(axis=0)) / len(points)).T)
        cuts = np.lexsort((*points.T, -away))[:1]
    points = np.concatenate([points, points])
    for first, last in zip(cuts, [*cuts[1:], cuts[0] + len(is_junction)], strict=True):
        arc = points[first : last + 1]
        backwards = arc[:-3:-1].tolist() < arc[:2].tolist()
        arc = np.ascontiguousarray(arc[::-1] if backwards else arc)
        key = arc.tobytes()
        arcs[key] = arc
        yield key, backwards


def _join(parts: Sequence[tuple[bytes, bool]], arcs: dict[bytes, np.ndarray]) -> np.ndarray:
    """The ring, int64 (points, 2), of the parts of [`_cut`], with its first point again at the end."""
    pieces = [arcs[key][::-1] if backwards else arcs[key] for key, backwards in parts]
    return np.concatenate([pieces[0][:1], *(piece[1:] for piece in pieces)])


def _signed_area(ring: np.ndarray) -> float:
    """The area of a closed ring, with its first point again at the end; that of a hole has the other sign."""
    x, y = ring.T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def simplify(points: np.ndarray, tolerance: float) -> np.ndarray:
    """
    Removes points of a line, (points, 2), by Douglas and Peucker: a removed point lies within `tolerance` pixels of
    the part of the line that replaces it. The first and the last point stay; a closed line has the first point again
    at the end, and keeps the point farthest from it too.
    """
    keep = np.zeros(len(points), dtype=bool)
    keep[[0, -1]] = True
    waiting = [(0, len(points) - 1)]
    while waiting:
        first, last = waiting.pop()
        if last - first < 2:
            continue
        distances = _distances(points[first + 1 : last], points[first], points[last])
        farthest = int(distances.argmax())
        is_closed = (points[first] == points[last]).all()
        if distances[farthest] > tolerance or is_closed:
            middle = first + 1 + farthest
            keep[middle] = True
            waiting += [(first, middle), (middle, last)]
    return points[keep]


def _distances(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The distances of points (count, 2) from the straight line that begins and ends at two points."""
    direction, offsets = end - start, points - start
    length = float(direction @ direction)
    share = np.clip(offsets @ direction / length, 0, 1) if length else np.zeros(len(points))
    return np.hypot(*(offsets - share[:, None] * direction).T)


def drawn_classes(labels: Sequence[str]) -> list[int]:
    """The classes whose regions are outlined: all but `background`, the class of what no outline covers."""
    return [index for index, name in enumerate(labels) if not is_background(name)]


def annotate(mask: np.ndarray, image: str, name: str, drawn: Collection[int], tolerance: float) -> dict:
    """
    The outlines of a mask, for one of the writers of [`~allspark_hf.data.labeling.annotations`].

    Args:
        mask (`np.ndarray`): uint8 or int32 (height, width), classes 0 to num_labels - 1.
        image (`str`): path of the image, relative to the folder of images, with slashes.
        name (`str`): name of the image's own files, with slashes and without extension.
        drawn (`Collection[int]`): the classes to outline, such as [`drawn_classes`].
        tolerance (`float`): see [`outline_regions`].

    Returns:
        `dict`, as JSON holds it: `image`, `name`, `width`, `height`, `regions` (each with `label`, the index of its
        class, `ring`, a list of points x, y, and `area`, its number of pixels), and `lost`, the number of pixels of
        the image that get another class when the outlines are read again.

    Raises:
        ImportError: if rasterio or pycocotools is not installed.
    """
    height, width = mask.shape
    again = np.where(np.isin(mask, list(drawn)), -1, mask.astype(np.int32))
    regions = []
    for region in outline_regions(mask, tolerance):
        if region.label not in drawn:
            continue
        ring = region.one_ring()
        left, top = ring.min(axis=0)
        right, bottom = ring.max(axis=0)
        inside = rasterize([ring - (left, top)], bottom - top, right - left)
        again[top:bottom, left:right][inside] = region.label
        regions.append({"label": region.label, "ring": ring.tolist(), "area": int(inside.sum())})
    lost = int((again != mask).sum())
    size = {"width": width, "height": height}
    return {"image": image, "name": name, **size, "regions": regions, "lost": lost}

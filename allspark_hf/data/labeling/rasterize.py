"""Turns outlines and run lengths into pixels."""

from collections.abc import Sequence

import numpy as np


INSTALL = "Outlines need {}, which is not installed: pip install 'allspark-hf[import]'."
MAX_COORDINATE = 1e6  # far beyond any image; long outlines would take long to draw


def rasterize(rings: Sequence[Sequence[Sequence[float]]], height: int, width: int) -> np.ndarray:
    """
    The pixels of one object, bool (height, width), from rings: closed outlines of x and y in pixels, each of 3 points
    or more.

    (0, 0) is the upper left corner of the upper left pixel, x goes right and y down. A pixel belongs to the object if
    its center lies inside an odd number of rings, so a ring within a ring is a hole. Rings along the edges of pixels
    give exactly their pixels, even if corners touch; elsewhere pycocotools rounds outlines to a fifth of a pixel. Two
    objects that share an edge neither overlap nor leave a gap. The part outside the image is cut off.

    pycocotools draws each ring, with the function that makes the masks of COCO. Since pycocotools can only unite
    rings, this function combines them.

    Raises:
        ImportError: if pycocotools is not installed.
        ValueError: if a ring has fewer than 3 points, or a coordinate is no number or beyond a million pixels.
    """
    try:
        from pycocotools import mask as coco
    except ImportError as error:
        raise ImportError(INSTALL.format("pycocotools")) from error
    inside = np.zeros((height, width), dtype=bool)
    for ring in rings:
        points = checked_ring(ring)
        # Only the box around the ring is drawn, so that thousands of small objects take little time.
        left, top = np.clip(np.floor(points.min(axis=0)), 0, (width, height)).astype(int)
        right, bottom = np.clip(np.ceil(points.max(axis=0)), 0, (width, height)).astype(int)
        if left < right and top < bottom:
            flat = (points - (left, top)).ravel().tolist()
            runs = coco.frPyObjects([flat], int(bottom - top), int(right - left))
            inside[top:bottom, left:right] ^= coco.decode(runs)[..., 0].astype(bool)
    return inside


def checked_ring(ring: Sequence[Sequence[float]]) -> np.ndarray:
    """
    A ring as float64 (points, 2).

    Raises:
        ValueError: see [`rasterize`].
    """
    try:
        points = np.asarray(ring, dtype=np.float64)
    except (TypeError, ValueError):
        points = np.empty(0)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError("an outline is not a list of pairs x, y; export it anew")
    if len(points) < 3:
        raise ValueError(f"an outline has {len(points)} points, but 3 or more are needed; complete or delete it")
    if not (np.abs(points) <= MAX_COORDINATE).all():  # NaN is refused too
        raise ValueError("an outline has a coordinate that is no number, or beyond a million pixels; correct it")
    return points


def expand_runs(counts: Sequence[int], height: int, width: int, by_rows: bool = False) -> np.ndarray:
    """
    The pixels, bool (height, width), of run lengths: in turn outside and inside the object, the first outside. COCO's
    go down the first column, then down the second and so on; CVAT's go along the rows (`by_rows`).

    Raises:
        ValueError: if the runs do not fill the image exactly, as with a mask of another size.
    """
    counts = np.asarray(counts)
    if counts.ndim != 1 or (counts.size and counts.dtype.kind not in "iu") or (counts < 0).any():
        raise ValueError("run lengths are not a list of whole numbers from 0 on; export them anew")
    if counts.sum() != height * width:
        raise ValueError(
            f"the run lengths cover {counts.sum()} pixels, but there are {height}x{width} = {height * width} "
            "(height x width); export the masks at the size of the images"
        )
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts.astype(np.int64))
    return inside.reshape(height, width) if by_rows else inside.reshape(width, height).T


def parse_runs(text: str) -> list[int]:
    """
    Decodes COCO's compressed run lengths for [`expand_runs`]. (pycocotools reads them too, but gives undefined pixels
    if the text is cut short.)

    Raises:
        ValueError: if the text holds characters that COCO does not use, or ends within a number.
    """
    counts: list[int] = []
    value, bits = 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"compressed run lengths hold the character {character!r}; export them anew")
        value |= (code & 31) << bits
        bits += 5
        if not code & 32:  # the number's last five bits, of which the highest is the sign
            value -= (1 << bits) if code & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))  # stored as a difference
            value, bits = 0, 0
    if bits:
        raise ValueError("compressed run lengths are cut short; export them anew")
    return counts

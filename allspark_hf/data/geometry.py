"""Random scale, crop and flip of an image and its mask. Only the part that the crop shows is resized."""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps


SCALE_RANGE = (0.5, 2.0)
PADDING_COLOR = (0, 0, 0)


class Geometry(NamedTuple):
    """How a crop is made: the image is scaled, padded at the bottom and the right, cut, and perhaps mirrored."""

    size: tuple[int, int]  # (width, height) of the scaled image
    left: int  # column of the scaled image where the crop begins
    top: int  # row of the scaled image where the crop begins
    crop: tuple[int, int]  # (height, width)
    mirrored: bool

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of the part of the scaled image that the crop shows."""
        height, width = self.crop
        return self.left, self.top, min(self.left + width, self.size[0]), min(self.top + height, self.size[1])

    @property
    def shown(self) -> tuple[int, int]:
        """(height, width) of the crop without padding: its upper left part before it is mirrored."""
        left, top, right, bottom = self.box
        return bottom - top, right - left


def draw_geometry(
    image_size: tuple[int, int], crop: tuple[int, int], rng: np.random.Generator, long_side: int | None = None
) -> Geometry:
    """
    Args:
        image_size (`tuple[int, int]`): (width, height) of the image, in Pillow's order.
        crop (`tuple[int, int]`): (height, width) of the crop.
        rng (`numpy.random.Generator`): source of every draw.
        long_side (`int`, *optional*): length of the long side at a scale of 1; by default that of the image.
    """
    longest = max(image_size)
    base = long_side or longest
    drawn = rng.integers(math.floor(base * SCALE_RANGE[0]), math.floor(base * SCALE_RANGE[1]), endpoint=True)
    size = tuple(max(1, round(side * drawn / longest)) for side in image_size)
    left = int(rng.integers(max(size[0] - crop[1], 0), endpoint=True))
    top = int(rng.integers(max(size[1] - crop[0], 0), endpoint=True))
    return Geometry(size, left, top, tuple(crop), bool(rng.random() < 0.5))


def crop_image(image: Image.Image, geometry: Geometry) -> Image.Image:
    """The crop of an RGB image, RGB: bilinear, antialiased as Pillow does it, with black padding."""
    image = resize_region(image, geometry.size, geometry.box)
    (height, width), (shown_height, shown_width) = geometry.crop, geometry.shown
    if (shown_height, shown_width) != (height, width):
        image = ImageOps.expand(image, (0, 0, width - shown_width, height - shown_height), fill=PADDING_COLOR)
    return ImageOps.mirror(image) if geometry.mirrored else image


def crop_label(label: np.ndarray, geometry: Geometry, padding: int) -> np.ndarray:
    """The crop of a label, integers (height, width) -> the same type (crop height, crop width): nearest neighbor."""
    left, top, right, bottom = geometry.box
    rows = _nearest(label.shape[0], geometry.size[1])[top:bottom]
    columns = _nearest(label.shape[1], geometry.size[0])[left:right]
    return _pad(label[rows[:, None], columns], geometry, padding)


def shown_pixels(geometry: Geometry) -> np.ndarray:
    """bool (crop height, crop width), False on padding."""
    return _pad(np.ones(geometry.shown, dtype=bool), geometry, False)


def _pad(array: np.ndarray, geometry: Geometry, padding: int) -> np.ndarray:
    result = np.full(geometry.crop, padding, dtype=array.dtype)
    result[: array.shape[0], : array.shape[1]] = array
    return result[:, ::-1] if geometry.mirrored else result


def _nearest(side: int, new_side: int) -> np.ndarray:
    """int64 (new_side,): the source of each pixel, summed step by step as in Pillow, so that rounding is equal too."""
    steps = np.full(new_side, side / new_side)
    steps[0] /= 2
    return steps.cumsum().astype(np.int64)


def resize_region(image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """
    `image.resize(size, BILINEAR).crop(box)`, bit for bit, but only the box is resized; for modes with 8-bit channels.
    (Pillow's own `resize(size, box=...)` takes the box in single precision, which changes some pixels by a level.)
    """
    if size == image.size:
        return image.crop(box)
    if size[1] < image.height:  # Pillow 13 may resize columns first, and a part would then save little
        return image.resize(size, Image.Resampling.BILINEAR).crop(box)
    left, top, right, bottom = box
    first, last = _rows_read(image.height, size[1], top, bottom)
    # Pillow enlarges along the rows, rounds to 8 bits, then enlarges along the columns: here in two calls.
    strip = image.crop((0, first, image.width, last)).resize((size[0], last - first), Image.Resampling.BILINEAR)
    strip = strip.crop((left, 0, right, last - first))
    if size[1] == image.height:
        return strip
    # The strip keeps its place in an image of full height, since the second resize depends on positions.
    column = Image.new(image.mode, (right - left, image.height))
    column.paste(strip, (0, first))
    column = column.resize((right - left, size[1]), Image.Resampling.BILINEAR)
    return column.crop((0, top, right - left, bottom))


def _rows_read(height: int, new_height: int, top: int, bottom: int) -> tuple[int, int]:
    """The rows, first and one past the last, from which rows `top` to `bottom` of the new image are interpolated."""
    if height == new_height:
        return top, bottom
    scale = height / new_height
    reach = max(scale, 1.0) + 1  # half the width of the triangle filter, and one row for rounding
    return max(0, math.floor((top + 0.5) * scale - reach)), min(height, math.ceil((bottom - 0.5) * scale + reach))

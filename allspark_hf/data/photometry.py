"""Training augmentation (paper, Section 4.1), on one image at a time, in Pillow.

A worker draws everything from one generator, which gives the same pixels for any batch size, worker count or device.
Photometry runs here too unless `--augment_on_device`: see device_photometry.py.
"""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter

from .geometry import PADDING_COLOR, crop_image, crop_label, draw_geometry


JITTER = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.25}
JITTER_PROBABILITY = 0.8
GRAY_PROBABILITY = 0.2
BLUR_PROBABILITY = 0.5
BLUR_SIGMA = (0.1, 2.0)


def random_geometry(
    image: Image.Image,
    label: Image.Image | None,
    crop: tuple[int, int],
    rng: np.random.Generator,
    long_side: int | None = None,
    ignore_index: int = 255,
) -> tuple[Image.Image, Image.Image]:
    """
    Random scale, crop and horizontal flip.

    Args:
        image (`PIL.Image.Image`): RGB.
        label (`PIL.Image.Image`, *optional*):
            mode L or I of the image's size, class or `ignore_index`; without one, mode L and 0 everywhere.
        crop (`tuple[int, int]`): (height, width) of the result.
        rng (`numpy.random.Generator`): source of every draw.
        long_side (`int`, *optional*): length that a scale of 1 gives the long side; the image's own without it.
        ignore_index (`int`): label of padding, which goes to the bottom and the right.

    Returns:
        `tuple[PIL.Image.Image, PIL.Image.Image]`: RGB image and label of the crop's size.
    """
    geometry = draw_geometry(image.size, crop, rng, long_side)
    label = np.zeros(image.size[::-1], dtype=np.uint8) if label is None else np.asarray(label)
    return crop_image(image, geometry), Image.fromarray(crop_label(label, geometry, ignore_index))


class Photometry(NamedTuple):
    """What an image's photometry has drawn."""

    jitter: tuple[tuple[str, float], ...]  # names of JITTER and amounts, in the order they are applied; maybe none
    gray: bool
    sigma: float | None  # of the Gaussian blur in pixels


def draw_photometry(rng: np.random.Generator) -> Photometry:
    """Color jitter in random order, gray and Gaussian blur, each with its probability."""
    jitter, sigma = (), None
    if rng.random() < JITTER_PROBABILITY:
        jitter = tuple((str(name), rng.uniform(-JITTER[name], JITTER[name])) for name in rng.permutation(list(JITTER)))
    gray = bool(rng.random() < GRAY_PROBABILITY)
    if rng.random() < BLUR_PROBABILITY:
        sigma = rng.uniform(*BLUR_SIGMA)
    return Photometry(jitter, gray, sigma)


def apply_photometry(image: Image.Image, drawn: Photometry) -> Image.Image:
    """RGB in and out."""
    for name, amount in drawn.jitter:
        image = _jitter(image, name, amount)
    if drawn.gray:
        image = image.convert("L").convert("RGB")
    if drawn.sigma is not None:
        image = image.filter(ImageFilter.GaussianBlur(drawn.sigma))
    return image


def random_photometry(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """[`apply_photometry`] of what [`draw_photometry`] draws."""
    return apply_photometry(image, draw_photometry(rng))


def _jitter(image: Image.Image, name: str, amount: float) -> Image.Image:
    if name == "hue":
        hue, saturation, value = image.convert("HSV").split()
        shift = hue_shift(amount)
        hue = hue.point([(level + shift) % 256 for level in range(256)])
        return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    enhancers = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
    }
    return enhancers[name](image).enhance(1 + amount)


def hue_shift(amount: float) -> int:
    """Levels of an 8-bit hue that an amount of jitter adds, modulo 256."""
    return round(amount * 255)


def to_pixel_values(image: Image.Image, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """RGB image -> float32 (3, height, width), scaled to [0, 1] and normalized."""
    levels = np.arange(256, dtype=np.float32)[:, None] / 255
    levels = (levels - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    pixels = np.empty((3, image.height, image.width), dtype=np.float32)
    # One look-up per value instead of three operations on each.
    for channel, band in enumerate(image.split()):
        np.take(levels[:, channel], np.asarray(band), out=pixels[channel], mode="clip")
    return torch.from_numpy(pixels)


__all__ = [
    "PADDING_COLOR",
    "Photometry",
    "apply_photometry",
    "draw_photometry",
    "hue_shift",
    "random_geometry",
    "random_photometry",
    "to_pixel_values",
]

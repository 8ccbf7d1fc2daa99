"""Color jitter, gray and blur of one image (paper, Section 4.1), in Pillow; see device_photometry.py for a batch.

Each image has a generator of its own, so that batch size and number of workers do not change its pixels.
"""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter


JITTER = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.25}
JITTER_PROBABILITY = 0.8
GRAY_PROBABILITY = 0.2
BLUR_PROBABILITY = 0.5
BLUR_SIGMA = (0.1, 2.0)


class Photometry(NamedTuple):
    """The random numbers of an image's photometry."""

    jitter: tuple[tuple[str, float], ...]  # names of JITTER and amounts, in the order of use; may be empty
    gray: bool
    sigma: float | None  # width of the Gaussian blur in pixels; None: no blur


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
    """Jitters, grays and blurs an RGB image; gives an RGB image."""
    for name, amount in drawn.jitter:
        image = _jitter(image, name, amount)
    if drawn.gray:
        image = image.convert("L").convert("RGB")
    if drawn.sigma is not None:
        image = image.filter(ImageFilter.GaussianBlur(drawn.sigma))
    return image


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
    """The number of levels that an amount of jitter adds to an 8-bit hue, modulo 256."""
    return round(amount * 255)


def to_pixel_values(image: Image.Image, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """RGB image -> float32 (3, height, width), scaled to [0, 1] and normalized."""
    levels = np.arange(256, dtype=np.float32)[:, None] / 255
    levels = (levels - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    pixels = np.empty((3, image.height, image.width), dtype=np.float32)
    # One look-up in a table replaces three operations on each value.
    for channel, band in enumerate(image.split()):
        np.take(levels[:, channel], np.asarray(band), out=pixels[channel], mode="clip")
    return torch.from_numpy(pixels)

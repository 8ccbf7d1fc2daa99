"""Photometry and normalization of a whole batch on its device, for `--augment_on_device`.

A worker draws the same numbers as without this option, and hands them over with 8-bit pixels, [`pack_photometry`].
The operations are Pillow's, rounding included, so that an image gets the same levels as from the worker, whatever else
is in the batch. `tests/test_device_augmentation.py` compares the two for equality; only a Pillow whose compiler fuses
a multiplication with an addition (not on x86-64) may differ, by one level. The operations on levels of 0 to 255 are:

- brightness, contrast, saturation: `other + factor * (image - other)` in float32, cut to 0...255, rounded down, where
  `other` is black, the image's mean gray (rounded), or the image in gray;
- gray: (19595 R + 38470 G + 7471 B + 2^15) / 2^16, rounded down;
- hue: the image in 8-bit hue, saturation and value, of which the hue is shifted modulo 256, and back to RGB;
- blur: three times along the rows, then three times along the columns, an average over a box of a fractional width
  that depends on sigma, with weights in 24-bit fixed point; beyond the border its pixels repeat.

The host never waits for the device: every image runs through every operation, and an operation that was not drawn
leaves the image as it is.
"""

import math

import numpy as np
import torch

from .photometry import Photometry, hue_shift


# In the order of their codes in a packed photometry; 0 is nothing.
OPERATIONS = ("nothing", "brightness", "contrast", "saturation", "hue")
SLOTS = 4  # places for the jitter operations of an image
BLUR_PASSES = 3
FIXED_POINT = 24  # bits of the blur's weights behind the point


def pack_photometry(drawn: Photometry) -> torch.Tensor:
    """
    float32 (12,), all numbers exact: for each of the four slots of jitter, the operation and its amount (a factor, or
    a shift of the hue in levels); 1 or 0 for gray; and three weights of the blur, of the pixel, its neighbors, and
    theirs.
    """
    numbers = []
    for name, amount in drawn.jitter:
        numbers += [OPERATIONS.index(name), hue_shift(amount) if name == "hue" else 1 + amount]
    numbers += [0.0] * (2 * SLOTS - len(numbers))
    weights = (2**FIXED_POINT, 0, 0) if drawn.sigma is None else _box_weights(drawn.sigma)
    return torch.tensor([*numbers, float(drawn.gray), *weights], dtype=torch.float32)


def _box_weights(sigma: float) -> tuple[int, int, int]:
    """
    The weights, times 2^24, of a box of fractional width; three such boxes, one after another, approximate a Gaussian
    of `sigma`: Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended box filtering" (2011),
    Eqs. 7, 11 and 14, in float32 as in Pillow. A sigma up to 2 needs at most two neighbors on each side.
    """
    variance = np.float32(sigma) * np.float32(sigma) / np.float32(BLUR_PASSES)
    length = np.float32(math.sqrt(12 * float(variance) + 1))
    radius = np.float32(math.floor((float(length) - 1) / 2))
    one, two, three, six = (np.float32(number) for number in (1, 2, 3, 6))
    fraction = (two * radius + one) * (radius * (radius + one) - three * variance)
    fraction /= six * (variance - (radius + one) * (radius + one))
    inner = int(np.float32(2**FIXED_POINT) / ((radius + fraction) * two + one))
    outer = (2**FIXED_POINT - (2 * int(radius) + 1) * inner) // 2
    return (inner, inner, outer) if radius else (inner, outer, 0)


def apply_photometry(pixels: torch.Tensor, photometry: torch.Tensor) -> torch.Tensor:
    """
    Augments RGB pixels, uint8 (batch, 3, height, width), by float32 (batch, 12) of [`pack_photometry`] on the same
    device.
    """
    levels = pixels.float()
    numbers = photometry[:, :, None, None, None]  # (batch, 12, 1, 1, 1)
    for slot in range(SLOTS):
        levels = _jitter(levels, operation=numbers[:, 2 * slot], amount=numbers[:, 2 * slot + 1])
    levels = torch.where(numbers[:, 2 * SLOTS] == 1, _gray(levels), levels)
    levels = levels.long()
    weights = numbers[:, 2 * SLOTS + 1 :].long().unbind(1)
    for axis in (3, 2):
        for _ in range(BLUR_PASSES):
            levels = _box_blur(levels, weights, axis)
    return levels.to(torch.uint8)


def _jitter(levels: torch.Tensor, operation: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """One operation on each image: whole float32 levels (batch, 3, height, width); the others (batch, 1, 1, 1)."""
    is_one = {name: operation == code for code, name in enumerate(OPERATIONS)}
    gray = _gray(levels)
    other = torch.where(is_one["contrast"], _mean(gray), gray.where(is_one["saturation"], 0))
    blended = (other + amount * (levels - other)).clamp(0, 255).floor()
    shifted = _shift_hue(levels, amount)
    levels = torch.where(is_one["nothing"], levels, blended)
    return torch.where(is_one["hue"], shifted, levels)


def _gray(levels: torch.Tensor) -> torch.Tensor:
    """(batch, 3, height, width) -> (batch, 1, height, width); float32 holds these whole numbers below 2^24 exactly."""
    red, green, blue = levels.split(1, dim=1)
    return ((19595 * red + 38470 * green + 7471 * blue + 2**15) / 2**16).floor()


def _mean(gray: torch.Tensor) -> torch.Tensor:
    """(batch, 1, 1, 1): each image's mean level, rounded to nearest in whole numbers."""
    count = gray[0].numel()
    total = gray.long().sum(dim=(1, 2, 3), keepdim=True)
    return ((2 * total + count) // (2 * count)).float()


def _shift_hue(levels: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """RGB -> RGB: whole levels (batch, 3, height, width), `shift` in levels (batch, 1, 1, 1)."""
    hue, saturation, value = _to_hsv(levels)
    return _to_rgb((hue + shift) % 256, saturation, value)


def _to_hsv(levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Hue (a sixth of the circle for each pair of largest and smallest channel), saturation and value, levels of
    (batch, 1, height, width). Ratios are float32 and what is computed from them float64: the rounding is Pillow's.
    """
    red, green, blue = levels.split(1, dim=1)
    value, smallest = levels.amax(dim=1, keepdim=True), levels.amin(dim=1, keepdim=True)
    spread = value - smallest
    from_red, from_green, from_blue = ((value - channel) / spread.clamp(min=1) for channel in (red, green, blue))
    green_sixths = (2 + from_red.double() - from_blue).float()
    blue_sixths = (4 + from_green.double() - from_red).float()
    sixths = torch.where(green == value, green_sixths, blue_sixths)
    sixths = torch.where(red == value, from_blue - from_green, sixths)
    turns = torch.remainder(_divide(sixths.double(), 6) + 1, 1).float()
    hue = (turns.double() * 255).floor().float()
    saturation = ((spread / value.clamp(min=1)).double() * 255).floor().float()
    return hue.where(spread > 0, 0), saturation, value


def _to_rgb(hue: torch.Tensor, saturation: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """RGB (batch, 3, height, width) of the three maps of [`_to_hsv`]; hue 0 and 255 are the same red."""
    sixths = _divide(hue.double() * 6, 255)
    sector = sixths.floor()
    rising = (sixths - sector).float()
    purity = _divide(saturation.double(), 255).float()
    value = value.double()
    least, falling, growing = (
        (value * (1 - part) + 0.5).floor()
        for part in (purity.double(), (purity * rising).double(), purity.double() * (1 - rising.double()))
    )
    sector = sector % 6
    red = _choose(sector, value, falling, least, least, growing, value)
    green = _choose(sector, growing, value, value, falling, least, least)
    blue = _choose(sector, least, least, growing, value, value, falling)
    return torch.cat([red, green, blue], dim=1).float()


def _choose(sector: torch.Tensor, *channels: torch.Tensor) -> torch.Tensor:
    """For each pixel, the value of that one of six maps whose number, 0 to 5, is in `sector`."""
    chosen = channels[0]
    for index, channel in enumerate(channels[1:], start=1):
        chosen = torch.where(sector == index, channel, chosen)
    return chosen


def _box_blur(levels: torch.Tensor, weights: tuple[torch.Tensor, ...], axis: int) -> torch.Tensor:
    """Blurs int64 (batch, 3, height, width) along one axis, with weights int64 (batch, 1, 1, 1) of each image."""
    side = levels.shape[axis]
    positions = torch.arange(side, device=levels.device)
    total = weights[0] * levels
    for distance in (1, 2):
        before, after = (positions - distance).clamp(min=0), (positions + distance).clamp(max=side - 1)
        neighbors = levels.index_select(axis, before) + levels.index_select(axis, after)
        total = total + weights[distance] * neighbors
    return (total + 2 ** (FIXED_POINT - 1)) >> FIXED_POINT


def normalize(pixels: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """uint8 (batch, 3, height, width) -> float32, scaled to [0, 1] and normalized, as [`to_pixel_values`] does it."""
    channels = _divide(pixels.float(), 255).split(1, dim=1)
    # One number at a time: a tensor of them would be copied to the device, and the host would wait for the copy.
    return torch.cat([_divide(channel - mean[index], std[index]) for index, channel in enumerate(channels)], dim=1)


def _divide(numbers: torch.Tensor, divisor: float) -> torch.Tensor:
    """Divides with correct rounding: CUDA turns a division by a Python number into a multiplication, which differs."""
    return numbers / torch.full((), divisor, dtype=numbers.dtype, device=numbers.device)


@torch.no_grad()
def finish_on_device(
    batch: dict[str, torch.Tensor], mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, torch.Tensor]:
    """
    Augments and normalizes a batch of [`MixedDataset`] with `augment_on_device`; the result is the batch without it.

    Args:
        batch (`dict[str, torch.Tensor]`):
            on the device: every `*pixel_values*` uint8 (batch, 3, height, width); for a strong view, `*photometry*`
            with the rest of the name equal, float32 (batch, 12). Other entries are passed on.
        mean (`tuple[float, ...]`): mean of each channel, for the normalization.
        std (`tuple[float, ...]`): standard deviation of each channel, for the normalization.

    Returns:
        `dict[str, torch.Tensor]`: without photometries; the pixel values float32, augmented and normalized.
    """
    finished = {name: tensor for name, tensor in batch.items() if "photometry" not in name}
    for name, pixels in batch.items():
        if "pixel_values" in name:
            photometry = batch.get(name.replace("pixel_values", "photometry"))
            finished[name] = normalize(
                pixels if photometry is None else apply_photometry(pixels, photometry), mean, std
            )
    return finished

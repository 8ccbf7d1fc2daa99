"""Color jitter of Alonso et al. (ICCV 2021), kornia 0.4.1's, each image with numbers and an order of its own."""

import numpy as np
import torch


BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def draw_jitter(probability: float, strength: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """
    Returns:
        `dict[str, np.ndarray]`: `jitter_order` int64 (4,), a random order of the four operations, all -1 without
        jitter; `jitter_amounts` float32 (4,), what is added to the image, its factor, that of the saturation, and what
        is added to the hue, in turns. Saturation has half of the strength, hue a third.
    """
    order = rng.permutation(4)
    amounts = rng.uniform(-1, 1, size=4) * strength / (1, 1, 2, 3) + (0, 1, 1, 0)
    jitters = rng.random() < probability
    return {
        "jitter_order": order if jitters else np.full_like(order, -1),
        "jitter_amounts": amounts.astype(np.float32),
    }


def jitter(pixels: torch.Tensor, order: torch.Tensor, amounts: torch.Tensor) -> torch.Tensor:
    """
    Args:
        pixels (`torch.Tensor`): float (batch, 3, height, width), RGB in [0, 1].
        order (`torch.Tensor`): int64 (batch, 4), of [`draw_jitter`].
        amounts (`torch.Tensor`): float (batch, 4), of [`draw_jitter`].

    Returns:
        `torch.Tensor`: of the same shape.
    """
    amounts = amounts.to(pixels.dtype)
    for operation in order.unbind(1):

        def amount(of, neutral, operation=operation):
            return amounts[:, of].where(operation == of, neutral)[:, None, None, None]

        # Images without this operation get neutral amounts, so that the host need not ask the device which they are.
        brighter = (pixels + amount(BRIGHTNESS, 0)) * amount(CONTRAST, 1)
        colored = _adjust_hsv(pixels, amount(SATURATION, 1), amount(HUE, 0))
        pixels = colored.where((operation >= SATURATION)[:, None, None, None], brighter.clamp(0, 1))
    return pixels


def _adjust_hsv(pixels: torch.Tensor, factor: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Saturation times a factor, hue plus a share of a turn, both (batch, 1, 1, 1)."""
    red, green, blue = pixels.split(1, dim=1)
    value, smallest = pixels.amax(dim=1, keepdim=True), pixels.amin(dim=1, keepdim=True)
    spread = value - smallest
    divisor = spread.where(spread > 0, 1)
    sixths = torch.where(green == value, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    sixths = torch.where(red == value, (green - blue) / divisor, sixths)
    saturation = (spread / value.where(value > 0, 1) * factor).clamp(0, 1)
    # A channel is the value, less saturation times how far the hue is from the channel's own, in sixths cut to 0...1.
    hue = sixths + 6 * turn
    channels = []
    for offset in (5, 3, 1):
        place = (hue + offset) % 6
        channels.append(value * (1 - saturation * torch.minimum(place, 4 - place).clamp(0, 1)))
    return torch.cat(channels, dim=1)

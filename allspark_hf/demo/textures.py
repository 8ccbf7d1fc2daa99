"""Textures of the demo data: wood, brick, water and so on, drawn from noise in a frame (u, v) of pixel coordinates.

Every texture takes a random generator and two float32 arrays (height, width) of coordinates, and gives a float32
array (height, width, 3): red, green and blue, about 0 (black) to 1 (white).
"""

import math

import numpy as np
from PIL import Image


GROUNDS = ("grass", "sand", "soil", "pebbles")


def _color(red: float, green: float, blue: float) -> np.ndarray:
    return np.array([red, green, blue], dtype=np.float32)


def _mix(dark: np.ndarray, light: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Blends two colors (3,) by a weight (height, width); the result is (height, width, 3)."""
    return dark + (light - dark) * weight[..., None]


def smooth_noise(rng: np.random.Generator, size: tuple[int, int], period: float) -> np.ndarray:
    """Gaussian noise float32 (height, width), about unit variance, whose features are `period` pixels wide."""
    grid_size = tuple(max(2, round(side / period) + 1) for side in size)
    grid = rng.standard_normal(grid_size, dtype=np.float32)
    return np.asarray(Image.fromarray(grid).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _board(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Weathered wood: slightly wavy grain along u, and fine fibers."""
    hue, gray, period = rng.uniform(-0.06, 0.06), rng.uniform(0.6, 1.0), rng.uniform(6.0, 9.0)
    fresh = _color(0.62 + hue, 0.43, 0.25 - hue)
    light = (fresh + (_color(0.60, 0.57, 0.52) - fresh) * gray) * rng.uniform(0.85, 1.1)
    dark = light * rng.uniform(0.45, 0.6)
    grain = 0.5 + 0.5 * np.sin(2 * math.pi * (v / period + 0.3 * smooth_noise(rng, u.shape, 26)))
    fibers = rng.random((512, 4), dtype=np.float32)
    fiber = fibers[(v * 1.5).astype(np.int32) % 512, (u / 14).astype(np.int32) % 4]
    return _mix(dark, light, 0.65 * np.sqrt(grain) + 0.35 * fiber)


def _rings(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Pale wood cut across: thin dark growth rings around a center that is not quite the middle."""
    off_u, off_v = rng.uniform(-3, 3, 2).astype(np.float32)
    period = rng.uniform(6.0, 8.0)
    wave = np.abs(np.sin(math.pi * (np.hypot(u - off_u, v - off_v) / period + 0.1 * smooth_noise(rng, u.shape, 26))))
    pale = _color(1.0, rng.uniform(0.80, 0.88), rng.uniform(0.55, 0.68)) * rng.uniform(0.9, 1.1)
    return _mix(0.4 * pale, pale, np.clip(1.6 * wave, 0, 1))


def _masonry(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, height: float, width: float, joint: float):
    """Courses of stones: the joint weight and the tone of each stone, both float32 (height, width) in 0..1."""
    row = np.floor(v / height)
    along = u / width + 0.5 * (row % 2)
    column = np.floor(along)
    to_edge = np.minimum(height * (0.5 - np.abs(v / height - row - 0.5)), width * (0.5 - np.abs(along - column - 0.5)))
    tones = rng.random((16, 16), dtype=np.float32)
    tone = tones[row.astype(np.int32) % 16, column.astype(np.int32) % 16]
    return np.clip(joint + 0.5 - to_edge, 0, 1), tone


def _brick(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    height = rng.uniform(7.0, 10.0)
    joint, tone = _masonry(rng, u, v, height, height * rng.uniform(1.8, 2.4), 0.8)
    hue = rng.uniform(0.0, 0.06)
    red = _color(0.58, 0.24 + hue, 0.17 + 0.7 * hue) * rng.uniform(0.8, 1.1)
    stone = _mix(0.7 * red, 1.15 * red, np.clip(tone + 0.12 * rng.standard_normal(u.shape, dtype=np.float32), 0, 1))
    mortar = _color(0.82, 0.79, 0.73) * rng.uniform(0.95, 1.1)
    return stone + (mortar - stone) * (0.85 * joint)[..., None]


def _water(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Crossing ripples with bright crests."""
    length = rng.uniform(7.0, 11.0)
    warp = 0.5 * smooth_noise(rng, u.shape, 18)
    ripple = np.sin(2 * math.pi * (v / length + warp)) + np.sin(
        2 * math.pi * ((0.55 * u + 0.8 * v) / (1.3 * length) - warp)
    )
    green = rng.uniform(0.0, 0.15)
    deep = _color(0.10, 0.26 + 0.5 * green, 0.44 - 0.6 * green) * rng.uniform(0.8, 1.3)
    surface = _mix(deep, deep * 1.7, 0.5 + 0.25 * ripple)
    return surface + 0.55 * np.clip(0.5 * ripple - 0.35, 0, 1)[..., None]


def _pebbles(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Cells around jittered grid points, each with its own tone, dark in the gaps."""
    period = rng.uniform(6.0, 11.0)
    x, y = x / period, y / period
    cell_x, cell_y = np.floor(x).astype(np.int32), np.floor(y).astype(np.int32)
    jitter = rng.uniform(0.1, 0.9, (2, 32, 32)).astype(np.float32)
    tones = rng.random((32, 32), dtype=np.float32)
    nearest, second = np.full(x.shape, 9, np.float32), np.full(x.shape, 9, np.float32)
    tone = np.zeros(x.shape, np.float32)
    for step_y in (-1, 0, 1):
        for step_x in (-1, 0, 1):
            near_x, near_y = cell_x + step_x, cell_y + step_y
            key = (near_y % 32, near_x % 32)
            distance = np.hypot(near_x + jitter[0][key] - x, near_y + jitter[1][key] - y)
            closer = distance < nearest
            second = np.where(closer, nearest, np.minimum(second, distance))
            nearest = np.where(closer, distance, nearest)
            tone = np.where(closer, tones[key], tone)
    stone = _mix(_color(0.42, 0.40, 0.38), _color(0.86, 0.82, 0.76), tone)
    return stone * (0.35 + 0.65 * np.clip(2.6 * (second - nearest), 0, 1) * (1.1 - 0.4 * nearest))[..., None]


def paint_ground(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The whole picture's ground, float32 (height, width, 3)."""
    kind = GROUNDS[rng.integers(len(GROUNDS))]
    fine = rng.standard_normal(x.shape, dtype=np.float32)
    patches = smooth_noise(rng, x.shape, 22)
    if kind == "grass":
        blades = smooth_noise(rng, (x.shape[0], x.shape[1] * 4), 5)[:, ::4]
        weight = np.clip(0.45 + 0.2 * blades + 0.12 * patches + 0.1 * fine, 0, 1)
        ground = _mix(_color(0.12, 0.22, 0.06), _color(0.58, 0.68, 0.26), weight)
    elif kind == "sand":
        weight = np.clip(0.5 + 0.12 * patches + 0.12 * fine, 0, 1)
        ground = _mix(_color(0.46, 0.37, 0.24), _color(0.84, 0.74, 0.54), weight)
    elif kind == "soil":
        weight = np.clip(0.4 + 0.2 * smooth_noise(rng, x.shape, 4) + 0.12 * patches + 0.1 * fine, 0, 1)
        ground = _mix(_color(0.17, 0.11, 0.07), _color(0.60, 0.45, 0.32), weight)
    else:
        ground = _pebbles(rng, x, y)
    return ground * rng.uniform(0.75, 1.15)


def _flat(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Paint of any color, plain or in a few broad stripes; never an object's texture."""
    first, second = rng.uniform(0.15, 0.95, (2, 3)).astype(np.float32)
    weight = 0.1 * smooth_noise(rng, u.shape, 30)
    if rng.random() < 0.4:
        weight = weight + (np.sin(2 * math.pi * v / rng.uniform(10, 16)) > 0)
    return _mix(first, second, weight)


def _leaf(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A mid vein along u and side veins slanting off it."""
    blade = _color(rng.uniform(0.15, 0.45), rng.uniform(0.45, 0.6), 0.12) * rng.uniform(0.8, 1.2)
    side_vein = np.abs(np.sin(math.pi * (u - 0.9 * np.abs(v)) / 7.0)) < 0.25
    vein = np.maximum(np.clip(1.2 - np.abs(v), 0, 1), 0.45 * side_vein)
    return _mix(blade, blade * 1.5, vein)


def _stone(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    weight = np.clip(0.5 + 0.16 * smooth_noise(rng, u.shape, 7) - 0.02 * v, 0, 1)
    return _mix(_color(0.25, 0.25, 0.26), _color(0.85, 0.83, 0.80), weight) * rng.uniform(0.7, 1.1)


TEXTURES = {
    "board": _board,
    "rings": _rings,
    "brick": _brick,
    "water": _water,
    "leaf": _leaf,
    "stone": _stone,
    "flat": _flat,
}

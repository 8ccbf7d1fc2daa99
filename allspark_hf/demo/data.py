"""A small generated data set: textured objects on textured ground, for trying the library without a download.

A class is a shape *and* a texture: a few small objects have a class's shape in plain or striped paint, which is
background, as are stones and twigs. Classes differ in color, but their colors overlap. Objects are large enough for
a small model to learn them from scratch in minutes, and classes about equally frequent.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from ..data.sources.classes import Classes, write_classes
from ..inference.visualization import default_palette, index_image
from .textures import TEXTURES, paint_ground, smooth_noise


CLASS_NAMES = ("background", "log slice", "plank", "brick block", "leaf", "pond")
SPLITS = ("train", "val")
IGNORE_INDEX = 255
MINIMUM_SIDE = 32

# (shape, texture, size relative to the others) of each class after the background.
_OBJECTS = (
    ("disc", "rings", 1.0),
    ("bar", "board", 1.6),
    ("block", "brick", 1.0),
    ("leaf", "leaf", 1.55),
    ("blob", "water", 1.1),
)
_CLUTTER = ("leaf", "bar", "twig", "stone", "stone", "disc", "block")
# Half the width, in pixels, of the ignored band along an object's outline.
_BORDER = 0.6


@dataclass
class _Shape:
    """An outline: kind, center and radius in pixels, rotation in radians, and its kind's own proportions."""

    kind: str
    center: tuple[float, float]
    radius: float
    angle: float
    aspect: float
    phases: np.ndarray

    def frame(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixel coordinates in the shape's own, rotated frame."""
        x, y = x - np.float32(self.center[0]), y - np.float32(self.center[1])
        cosine, sine = np.float32(math.cos(self.angle)), np.float32(math.sin(self.angle))
        return cosine * x + sine * y, cosine * y - sine * x

    def distance(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Distance to the outline in pixels, negative inside (close to exact near the outline)."""
        u, v = self.frame(x, y)
        if self.kind == "disc":
            return (np.hypot(u, v / self.aspect) - self.radius) * self.aspect
        if self.kind in ("block", "bar"):
            over_u, over_v = np.abs(u) - self.radius, np.abs(v) - self.radius * self.aspect
            return np.hypot(np.maximum(over_u, 0), np.maximum(over_v, 0)) + np.minimum(np.maximum(over_u, over_v), 0)
        if self.kind == "leaf":
            offset = 0.8 * self.radius
            return np.maximum(np.hypot(u, v - offset), np.hypot(u, v + offset)) - math.hypot(self.radius, offset)
        if self.kind == "twig":
            bend = v + 0.3 * np.sin(self.phases[0]) * u * u / self.radius
            return np.hypot(np.maximum(np.abs(u) - self.radius, 0), bend) - 1.2
        turn = np.arctan2(v, u)
        wobble = sum(0.10 * np.cos(count * turn + phase) for count, phase in zip((2, 3, 5), self.phases, strict=True))
        return (np.hypot(u, v / self.aspect) - self.radius * (1 + wobble)) * self.aspect


def _random_shape(rng: np.random.Generator, kind: str, size: tuple[int, int], radius: tuple[float, float]) -> _Shape:
    """A shape somewhere in the picture; `radius` is a range as a fraction of the shorter side."""
    aspect = {"disc": (0.82, 1.0), "block": (0.65, 1.0), "bar": (0.30, 0.40), "blob": (0.6, 1.0)}.get(kind, (1.0, 1.0))
    return _Shape(
        kind=kind,
        center=(rng.uniform(0.1, 0.9) * size[1], rng.uniform(0.1, 0.9) * size[0]),
        radius=rng.uniform(*radius) * min(size),
        angle=rng.uniform(0, 2 * math.pi),
        aspect=rng.uniform(*aspect),
        phases=rng.uniform(0, 2 * math.pi, 3),
    )


@dataclass
class _Scene:
    """The picture being painted: float32 canvas (height, width, 3), uint8 mask (height, width), light, coordinates."""

    canvas: np.ndarray
    mask: np.ndarray
    light: tuple[float, float]
    x: np.ndarray
    y: np.ndarray

    def paint(self, shape: _Shape, color: np.ndarray, label: int):
        """Puts an object with its cast shadow on top of everything painted so far."""
        distance = shape.distance(self.x, self.y)
        shadow = shape.distance(self.x - self.light[0], self.y - self.light[1])
        self.canvas *= (1 - 0.5 * np.clip(0.5 - shadow / 3, 0, 1))[..., None]
        rim = 1 - 0.3 * np.clip(1 + distance / 2.5, 0, 1)
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        self.canvas += (color * rim[..., None] - self.canvas) * cover
        border = np.abs(distance) <= _BORDER
        if label == 0:
            # Background over background has no border worth ignoring.
            border &= self.mask != 0
        self.mask[distance < 0] = label
        self.mask[border] = IGNORE_INDEX


def _add_clutter(rng: np.random.Generator, scene: _Scene, count: int, radius: tuple[float, float]):
    for _ in range(count):
        kind = _CLUTTER[rng.integers(len(_CLUTTER))]
        texture = "stone" if kind in ("twig", "stone") else "flat"
        shape = _random_shape(rng, "blob" if kind == "stone" else kind, scene.mask.shape, radius)
        scene.paint(shape, TEXTURES[texture](rng, *shape.frame(scene.x, scene.y)), 0)


def _photograph(rng: np.random.Generator, canvas: np.ndarray) -> Image.Image:
    """Light falling off to one side, cloud shadow, white balance, hue shift, contrast, sensor noise and blur."""
    height, width = canvas.shape[:2]
    side = rng.uniform(-0.2, 0.2, 2)
    falloff = side[0] * np.linspace(-1, 1, width)[None, :] + side[1] * np.linspace(-1, 1, height)[:, None]
    cloud = 0.12 * smooth_noise(rng, (height, width), 0.6 * height)
    picture = canvas * (rng.uniform(0.75, 1.2) * (1 + falloff + cloud)).astype(np.float32)[..., None]
    # Circulant rows that sum to one turn the hue and leave gray alone.
    turn = rng.normal(0, 0.04)
    hue = np.array([[1 - abs(turn), max(turn, 0), max(-turn, 0)]], np.float32)
    matrix = np.concatenate([np.roll(hue, step, axis=1) for step in range(3)])
    saturation = rng.uniform(0.8, 1.2)
    matrix = saturation * matrix + (1 - saturation) / 3
    picture = np.clip(picture @ matrix.T * rng.uniform(0.95, 1.05, 3), 0, 1) ** rng.uniform(0.85, 1.2)
    picture += rng.uniform(0.01, 0.03) * rng.standard_normal(picture.shape)
    image = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
    if rng.random() < 0.25:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8)))
    return image


def generate_demo_image(
    index: int, split: str = "train", size: tuple[int, int] = (96, 128), seed: int = 0
) -> tuple[Image.Image, np.ndarray]:
    """
    Draws one image of the demo data; the result depends on the arguments only.

    Args:
        index (`int`): number of the image in its split, from 0.
        split (`str`, *optional*, defaults to `"train"`): `"train"` or `"val"`.
        size (`tuple[int, int]`, *optional*, defaults to `(96, 128)`): (height, width) in pixels, each at least 32.
        seed (`int`, *optional*, defaults to 0): seed of the whole data set, at least 0.

    Returns:
        `tuple`: the RGB image, and its mask, uint8 (height, width): class index 0 to 5, or 255 on outlines (to be
        ignored).

    Raises:
        ValueError: if `split` is unknown, `size` is too small, or `index` or `seed` is negative.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, but the demo data has 'train' and 'val': pass one of them.")
    _check_size(size)
    if index < 0 or seed < 0:
        raise ValueError(f"index is {index} and seed is {seed}, but both must be at least 0: pass numbers from 0 up.")
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    height, width = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    light = (3 * math.cos(angle), 3 * math.sin(angle))
    scene = _Scene(paint_ground(rng, x, y), np.zeros(size, np.uint8), light, x, y)
    _add_clutter(rng, scene, rng.integers(1, 4), (0.06, 0.16))
    # Different classes in one image keep all five about equally frequent, also among few labeled images.
    for label in 1 + rng.permutation(len(_OBJECTS))[: rng.integers(3, 5)]:
        kind, texture, relative = _OBJECTS[label - 1]
        shape = _random_shape(rng, kind, size, (0.28 * relative, 0.40 * relative))
        scene.paint(shape, TEXTURES[texture](rng, *shape.frame(x, y)), int(label))
    _add_clutter(rng, scene, rng.integers(0, 2), (0.05, 0.10))
    return _photograph(rng, scene.canvas), scene.mask


def _check_size(size: tuple[int, int]):
    if len(size) != 2 or min(size) < MINIMUM_SIDE:
        raise ValueError(
            f"size is {tuple(size)}, but the demo images need (height, width) of at least {MINIMUM_SIDE} each: "
            "pass a larger size."
        )


def write_demo_data(
    output_dir: str | Path,
    num_train: int = 400,
    num_labeled: int = 24,
    num_validation: int = 100,
    size: tuple[int, int] = (96, 128),
    seed: int = 0,
) -> Path:
    """
    Writes the demo data as a folder of images and masks in the layout of one's own data.

    `images/{train,val}/*.jpg`; `masks/{train,val}/*.png` for the first `num_labeled` training images and for all
    validation images (indexed PNG: class index 0 to 5, 255 = ignore on outlines); and, last, so that its presence
    says the folder is complete, `classes.json` with `names` and `colors`. Image i is the same whatever the counts;
    the bytes are the same for one version of NumPy and Pillow.

    Args:
        output_dir (`str` or `Path`): folder to write into; made if missing, and must be empty.
        num_train (`int`, *optional*, defaults to 400): training images, at least 1.
        num_labeled (`int`, *optional*, defaults to 24): training images that get a mask, 1 to `num_train`.
        num_validation (`int`, *optional*, defaults to 100): validation images, at least 0.
        size (`tuple[int, int]`, *optional*, defaults to `(96, 128)`): (height, width) in pixels, each at least 32.
        seed (`int`, *optional*, defaults to 0): seed of the whole data set, at least 0.

    Returns:
        `Path`: the folder written.

    Raises:
        ValueError: if a count, `size` or `seed` is out of range.
        FileExistsError: if `output_dir` is a file or not empty.
    """
    output_dir = Path(output_dir)
    if not 1 <= num_labeled <= num_train:
        raise ValueError(
            f"num_labeled is {num_labeled} and num_train is {num_train}, but a mask is needed for at least one and at "
            "most all training images: pass 1 <= num_labeled <= num_train."
        )
    if num_validation < 0 or seed < 0:
        raise ValueError(
            f"num_validation is {num_validation} and seed is {seed}, but both must be at least 0: "
            "pass numbers from 0 up."
        )
    _check_size(size)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(
            f"{output_dir} already holds something, and leftover masks would change which images are labeled: "
            "choose a new or empty folder."
        )
    palette = default_palette(len(CLASS_NAMES))
    for split, count, labeled in (("train", num_train, num_labeled), ("val", num_validation, num_validation)):
        for folder in ("images", "masks"):
            (output_dir / folder / split).mkdir(parents=True)
        for index in range(count):
            image, mask = generate_demo_image(index, split, size, seed)
            name = f"{split}_{index:05d}"
            image.save(output_dir / "images" / split / f"{name}.jpg", quality=92, subsampling=0)
            if index < labeled:
                index_image(mask, palette).save(output_dir / "masks" / split / f"{name}.png")
    write_classes(Classes(list(CLASS_NAMES), palette.tolist()), output_dir / "classes.json")
    return output_dir

"""Writers of predictions: masks, pictures and a table of areas; see annotation_writer.py for labeling tools."""

import csv
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from ..data.images import mask_to_array
from ..data.masks import MaskConvention
from ..utils.files import whole_file
from ..utils.text import one_line
from .raster import count_values
from .visualization import colorize, index_image, legend, outlines, overlay


LARGEST_STORED_VALUE = 2**16 - 1  # in a 16-bit PNG
CONTOUR_SHARE = 1 / 500  # width of outlines, as a share of the image's long side
FAST = {"format": "PNG", "compress_level": 1}  # four times as fast as the default, with files an eighth larger


class ResultWriter(Protocol):
    """
    Writes results of one kind. Threads call `write` at the same time, and other processes or an earlier run may have
    written other images. So a writer keeps no results in memory, and `finish` reads them from the disk.

    Attributes:
        wants_confidence (`bool`): whether `write` needs the probabilities.
    """

    wants_confidence: bool

    def image_paths(self, name: Path) -> list[Path]:
        """The files of one image, which is done when all of them exist."""

    def run_paths(self) -> list[Path]:
        """The files of the whole run, which `finish` writes."""

    def write(self, name: Path, image: Image.Image, mask: np.ndarray, confidence: np.ndarray | None) -> None:
        """
        Writes the files of one image, each by [`whole_file`].

        Args:
            name (`Path`): name of the results, relative to the output folder, see [`name_results`].
            image (`PIL.Image.Image`): the image, RGB and upright.
            mask (`np.ndarray`): class indices (height, width), uint8 up to 256 classes, int32 above.
            confidence (`np.ndarray`, *optional*):
                probability of each pixel's class, float32 in 0..1 (height, width); None unless a writer wants it.
        """

    def finish(self) -> None:
        """Writes the files of the run. One process calls this after all images; images that failed have no files."""


@dataclass(frozen=True)
class Drawing:
    """
    How classes are drawn over images.

    Args:
        shown (`tuple[int, ...]`): indices of the classes that are drawn and counted.
        alpha (`float`): weight of the colors, 0 to 1.
        contours (`bool`): whether to draw outlines instead of areas.
        transparent (`bool`): whether to leave out the image, so that the colors lie on transparent ground.
    """

    shown: tuple[int, ...]
    alpha: float = 0.5
    contours: bool = False
    transparent: bool = False

    def draw(self, image: Image.Image, mask: np.ndarray, palette: np.ndarray) -> Image.Image:
        """RGB, or RGBA with `transparent`, of the image's size; arguments as for [`overlay`]."""
        visible = np.zeros(len(palette), dtype=bool)
        visible[list(self.shown)] = True
        drawn = visible[mask]
        if self.contours:
            drawn &= outlines(mask, max(1, round(CONTOUR_SHARE * max(mask.shape))))
        classes = np.where(drawn, mask, np.int16(-1))
        if not self.transparent:
            return overlay(image, classes, palette, self.alpha, ignore_index=-1)
        picture = colorize(classes, palette, ignore_index=-1)
        picture.putalpha(Image.fromarray(np.where(drawn, np.uint8(round(255 * self.alpha)), np.uint8(0))))
        return picture


def stored_image(mask: np.ndarray, palette: np.ndarray, mask_values: Sequence[int] | None) -> Image.Image:
    """
    The picture of a mask that is saved.

    Args:
        mask (`np.ndarray`): class indices (height, width).
        palette (`np.ndarray`): color of each class, uint8 (num_labels, 3).
        mask_values (`Sequence[int]`, *optional*): stored value of each class, 0 to 65535; None: its index.

    Returns:
        `PIL.Image.Image`: mode P in the classes' colors, or mode I;16 if a value is above 255.
    """
    mask_values = range(len(palette)) if mask_values is None else mask_values
    values = np.array(mask_values, dtype=np.uint16)[mask]
    if max(mask_values) > 255:
        return Image.fromarray(values)
    colors = np.zeros((max(mask_values) + 1, 3), dtype=np.uint8)
    colors[list(mask_values)] = palette
    return index_image(values, colors, ignore_index=None)  # 255 may be a class of the model


class PictureWriter:
    """
    Writes `<name>_mask.png`, `<name>_overlay.png`, with `probabilities` also `<name>_confidence.png` (gray: 255 times
    the probability of the predicted class, rounded), and `legend.png` for all images.

    Args:
        output_dir (`Path`): folder of the results.
        labels (`Sequence[str]`): name of each class.
        palette (`np.ndarray`): color of each class, uint8 (num_labels, 3).
        mask_values (`Sequence[int]`, *optional*): value of each class in masks, see [`stored_image`].
        drawing ([`Drawing`]): how overlays are drawn.
        probabilities (`bool`): whether to write the probabilities.
        large (`Collection[Path]`): names of the images that only have `<name>_mask.tif`, which [`predict_large`]
            writes.
    """

    KINDS = ("mask", "overlay", "confidence")

    def __init__(self, output_dir, labels, palette, mask_values, drawing: Drawing, probabilities: bool, large=()):
        self.large, self.output_dir, self.labels, self.palette = frozenset(large), output_dir, labels, palette
        self.mask_values, self.drawing, self.wants_confidence = mask_values, drawing, probabilities
        self.kinds = self.KINDS if probabilities else self.KINDS[:2]

    def path(self, name: Path, kind: str) -> Path:
        suffix = "tif" if name in self.large else "png"
        return self.output_dir / name.parent / f"{name.name}_{kind}.{suffix}"

    def image_paths(self, name: Path) -> list[Path]:
        return [self.path(name, kind) for kind in (self.KINDS[:1] if name in self.large else self.kinds)]

    def run_paths(self) -> list[Path]:
        return [self.output_dir / "legend.png"]

    def write(self, name: Path, image: Image.Image, mask: np.ndarray, confidence: np.ndarray | None):
        with whole_file(self.path(name, "mask")) as part:
            stored_image(mask, self.palette, self.mask_values).save(part, format="PNG")
        with whole_file(self.path(name, "overlay")) as part:
            self.drawing.draw(image, mask, self.palette).save(part, **FAST)
        if self.wants_confidence:
            gray = (255 * confidence).round().astype(np.uint8)
            with whole_file(self.path(name, "confidence")) as part:
                Image.fromarray(gray).save(part, **FAST)

    def read_mask(self, name: Path) -> np.ndarray:
        """Class indices, integers (height, width), of a mask on the disk; ValueError if it cannot be read."""
        path = self.path(name, "mask")
        try:
            with Image.open(path) as opened:
                return MaskConvention(self.mask_values, ignore_index=-1).map(mask_to_array(opened))
        except Exception as error:  # Pillow raises nearly anything on bad files
            raise ValueError(f"{path} cannot be read ({one_line(error)}): remove it to predict it again.") from error

    def finish(self):
        picture = legend(self.labels, self.palette, self.drawing.shown)
        with whole_file(self.output_dir / "legend.png") as part:
            picture.save(part, format="PNG")


class AreaWriter:
    """
    Writes `areas.csv`: for every predicted image, in the order of names, a line for each class, whether it occurs or
    not, with its number of pixels and their share of the image. The pixels are counted in the masks on the disk.

    Args:
        pictures ([`PictureWriter`]): the writer of the masks.
        images (`Mapping[Path, str]`): name of an image's results -> name of the image in the table.
    """

    wants_confidence = False

    def __init__(self, pictures: PictureWriter, images: Mapping[Path, str]):
        self.pictures, self.images = pictures, images

    def image_paths(self, name: Path) -> list[Path]:
        return []

    def run_paths(self) -> list[Path]:
        return [self.pictures.output_dir / "areas.csv"]

    def write(self, name: Path, image: Image.Image, mask: np.ndarray, confidence: np.ndarray | None):
        pass

    def finish(self):
        (path,) = self.run_paths()
        with whole_file(path) as part, open(part, "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(("image", "index", "class", "pixels", "share"))
            with ThreadPoolExecutor() as pool:
                for image, counts in zip(self.images.values(), pool.map(self._count, self.images), strict=True):
                    if counts is None:
                        continue
                    for index in self.pictures.drawing.shown:
                        share = f"{counts[index] / counts.sum():.6f}"
                        table.writerow((image, index, self.pictures.labels[index], counts[index], share))

    def _count(self, name: Path) -> np.ndarray | None:
        """int64 (num_labels,): number of pixels of each class; None if the image has failed."""
        path = self.pictures.path(name, "mask")
        if not path.exists():
            return None
        values = self.pictures.mask_values or range(len(self.pictures.labels))
        if name in self.pictures.large:
            return count_values(path, max(values) + 1)[list(values)]
        with Image.open(path) as opened:
            stored = mask_to_array(opened)
        return np.bincount(stored.ravel(), minlength=max(values) + 1)[list(values)]

"""
Images too large for one piece: read in windows, predicted in overlapping tiles, written as a TIFF file strip by strip.

Windows are read and written by rasterio, `pip install "allspark-hf[large]"`, which keeps the place on Earth, too.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from PIL.TiffImagePlugin import TiffImageFile
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..data.pixels import ORIENTATION, ImageError, array_to_image, open_image, require_one_page, to_rgb
from .handler import model_logits
from .prediction import model_palette
from .tiles import Span, blended_rows, tile_spans


logger = logging.getLogger(__name__)

# What GDAL keeps of a file, in MB; by default a twentieth of the machine's memory. A row of tiles fits.
CACHE_MB = 256
BLOCK = 512  # side of the blocks of the mask's file
COLORS, GRAY = ["red", "green", "blue"], (["gray"], ["gray", "alpha"])
SAME_COLORS = ("YCbCr",)  # GDAL turns CMYK and CIELAB into RGB in another way than Pillow


def is_large(file: str | Path) -> bool:
    """
    Whether an image file has more pixels than Pillow takes without a warning, 89 million.

    Raises:
        ValueError or OSError: if Pillow does not know the file.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
        try:
            with open_image(file):
                return False
        except (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError):
            return True


def predict_large(
    model: PreTrainedModel,
    image_processor: BaseImageProcessor,
    source: str | Path,
    target: str | Path,
    tile_size: int | None = None,
    overlap: int | None = None,
    palette: np.ndarray | None = None,
    mask_values: Sequence[int] | None = None,
    progress: bool = True,
) -> np.ndarray:
    """
    Predicts the class of every pixel of a large image file, and writes them as a TIFF file.

    Overlapping tiles are predicted as [`predict_mask`] predicts an image, and the mean of their probabilities,
    weighted by [`tile_weights`], decides. Memory does not grow with the image's height: besides the model on one tile,
    it is for `4 * num_labels * overlap * width` bytes, and for rasterio's cache.

    Args:
        model ([`PreTrainedModel`]): segmentation model in eval mode.
        image_processor ([`BaseImageProcessor`]): the model's, which must not resize.
        source (`str` or `Path`):
            file of a kind that rasterio reads, TIFF or another: gray or RGB, also with opacity, or with a palette, of
            8 or 16 bits, or those of its bands that are red, green and blue.
        target (`str` or `Path`):
            TIFF file, in place of one that is there; written under another name first. Its values are uint8, shown
            in the classes' colors, or uint16 if one is above 255; place and coordinate system are the image's.
        tile_size (`int`, *optional*): pixels of a tile's side; by default the longer side of the training crop.
        overlap (`int`, *optional*): pixels that tiles have in common, at most half of `tile_size`; default: a quarter.
        palette (`np.ndarray`, *optional*): uint8 (num_labels, 3), color of each class; by default the model's.
        mask_values (`Sequence[int]`, *optional*): value of each class in the file, 0 to 65535; by default its index.
        progress (`bool`, *optional*, defaults to `True`): whether to show a bar, of tiles.

    Returns:
        `np.ndarray`: int64 (num_labels,), the number of pixels of each class.

    Raises:
        ValueError: if rasterio is missing, the image is of another kind or too small, `tile_size` or `overlap` is out
            of range, the image processor resizes, or the model is in training mode.
        OSError: if a file cannot be read or written.
        RuntimeError: if the model's output is not finite.
    """
    tile_size = max(model.config.crop_height_width) if tile_size is None else tile_size
    overlap = tile_size // 4 if overlap is None else overlap
    _require_usable(model, image_processor, tile_size, overlap)
    palette = model_palette(model) if palette is None else palette
    values = np.array(range(len(palette)) if mask_values is None else mask_values)
    with _open(Path(source), Path(target)) as raster:
        picture = _Picture.of(raster, getattr(model.config, "image_range", None))
        smallest = getattr(model.config, "smallest_side", 1)
        if min(picture.size) < smallest:
            raise ValueError(
                f"{source} has {raster.width}x{raster.height} pixels, but the model needs {smallest} a side: take a "
                "larger image."
            )
        counts = np.zeros(model.config.num_labels, dtype=np.int64)
        number = np.prod([len(tile_spans(side, tile_size, overlap)) for side in picture.size])
        with (
            tqdm(total=int(number), unit="tile", desc=Path(source).name, disable=not progress) as bar,
            _new_mask(Path(target), raster, dict(zip(values.tolist(), palette.tolist(), strict=True))) as write,
        ):

            def predict(rows: Span, columns: Span) -> torch.Tensor:
                bar.update()
                return _probabilities(model, image_processor, picture.read(rows, columns))

            for top, strip in blended_rows(predict, picture.size, tile_size, overlap):
                write(top, values[strip])
                counts += np.bincount(strip.ravel(), minlength=len(counts))
    return counts


def _require_usable(model, image_processor, tile_size: int, overlap: int):
    smallest = getattr(model.config, "smallest_side", 1)
    if tile_size < smallest:
        raise ValueError(f"tile_size is {tile_size}, but the model needs {smallest} pixels a side: set that or more.")
    if not 0 <= overlap <= tile_size // 2:
        raise ValueError(
            f"overlap is {overlap}, but 0 to {tile_size // 2} is needed, half of the tile_size {tile_size}."
        )
    if model.training:
        raise ValueError("The model is in training mode, but prediction needs eval mode: call model.eval() first.")
    if getattr(image_processor, "do_resize", False):
        raise ValueError(
            f"The model's image processor scales every image to {dict(image_processor.size)}, in which a large image "
            "would lose its details, and its tiles would be larger than what the model was trained on: scale the file "
            "down yourself (gdal_translate -outsize 4000 0), or train without --image_long_side."
        )


@torch.no_grad()
def _probabilities(model, image_processor, picture: PIL.Image.Image) -> torch.Tensor:
    """float32 (num_labels, height, width)"""
    logits = model_logits(model, image_processor, picture)
    logits = F.interpolate(logits, size=picture.size[::-1], mode="bilinear", align_corners=False)
    return logits[0].float().softmax(dim=0)


@dataclass(frozen=True)
class _Picture:
    """
    The parts of a raster file that [`to_rgb`] takes.

    Args:
        raster (`rasterio.DatasetReader`): the file.
        bands (`list[int]`): of gray, or of red, green and blue, and last that of opacity, if it has one; from 1 on.
        palette (`np.ndarray`, *optional*): uint8 (256, 3), the color of each value of the single band.
        image_range (`list[int]`, *optional*): the model's, of [`to_rgb`].
    """

    raster: Any
    bands: list[int]
    palette: np.ndarray | None
    image_range: list[int] | None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.raster.height, self.raster.width

    @classmethod
    def of(cls, raster, image_range: list[int] | None) -> "_Picture":
        """
        Raises:
            ImageError: if [`to_rgb`] would not take the file, or rasterio reads it otherwise than Pillow.
        """
        names = [color.name for color in raster.colorinterp]
        structure = raster.tags(ns="IMAGE_STRUCTURE")
        given = {*raster.dtypes, structure.get("SOURCE_COLOR_SPACE")} - {None, *SAME_COLORS}
        colors = COLORS if names[:3] == COLORS else names[:1]
        known = given in ({"uint8"}, {"uint16"}) and (colors == COLORS or names in GRAY or names == ["palette"])
        bits = raster.tags(1, ns="IMAGE_STRUCTURE").get("NBITS") if known else None
        if not known or bits or (given == {"uint16"} and names == ["palette"]):
            given = sorted(map(str, [*given, *[f"{bits} bits"] * bool(bits)]))
            raise ImageError(
                f"{raster.name} has {len(names)} bands ({', '.join(names)}) of {', '.join(given)}, but gray, a "
                "palette or red, green and blue, of 8 or 16 bits without a sign, are needed: convert it "
                "(gdal_translate -b 1 -b 2 -b 3 -ot Byte -colorinterp red,green,blue)."
            )
        table = raster.colormap(1) if names == ["palette"] else {}
        shines_through = raster.nodata is not None or any(color[3] < 255 for color in table.values())
        if (raster.driver == "PNG" and shines_through) or "MINISWHITE" in structure:
            raise ImageError(
                f"{raster.name} has a transparent color, or white as 0, which is not read in windows: save it as RGB."
            )
        bands = list(range(1, len(colors) + 1))
        if "alpha" in names and _is_opacity(raster, names.index("alpha") + 1):
            bands.append(names.index("alpha") + 1)
        if len(bands) < len(names):
            logger.warning(
                "%s has %d bands, of which %d are read: gray or colors, and opacity if that is a band of nothing but "
                "0 and the largest value.",
                *(raster.name, len(names), len(bands)),
            )
        palette = np.array([table.get(value, (0, 0, 0))[:3] for value in range(256)], dtype=np.uint8)
        return cls(raster, bands, palette if table else None, image_range)

    def read(self, rows: Span, columns: Span) -> PIL.Image.Image:
        """A window in 8-bit RGB."""
        values = self.raster.read(self.bands, window=(rows, columns)).transpose(1, 2, 0)
        if self.palette is not None:
            return PIL.Image.fromarray(self.palette[values[..., 0]])
        if len(self.bands) in (1, 3):
            return to_rgb(array_to_image(values), self.image_range)
        colors, opacity = values[..., :-1], values[..., -1]
        picture = array_to_image(colors.repeat(3, axis=2) if colors.shape[2] == 1 else colors)
        picture.putalpha(PIL.Image.fromarray((opacity >> 8 * (opacity.itemsize - 1)).astype(np.uint8)))
        return to_rgb(picture, self.image_range)


def _is_opacity(raster, band: int) -> bool:
    """As [`load_image`] decides: always in PNG, else if it is 0 or the largest value in every pixel, and not all 0."""
    if raster.driver == "PNG":
        return True
    largest, seen = np.iinfo(raster.dtypes[0]).max, False
    for _, window in raster.block_windows(band):
        values = raster.read(band, window=window)
        full = values == largest
        if not (full | (values == 0)).all():
            return False
        seen = seen or bool(full.any())
    return seen


@contextmanager
def _open(source: Path, target: Path) -> Iterator[Any]:
    """The image file, in an environment of GDAL whose memory is bounded."""
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning
    except ImportError as error:
        raise ValueError(
            f'{source} is read in windows, which needs rasterio: pip install "allspark-hf[large]".'
        ) from error
    if target.exists() and target.samefile(source):
        raise ValueError(f"{target} is the image itself, which the mask would replace: choose another target.")
    with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=CACHE_MB):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(source) as raster:
            _require_plain(source, raster)
            yield raster


def _require_plain(source: Path, raster):
    """Refuses what rasterio passes over and [`load_image`] does not: pages, and pictures that lie on their side."""
    orientation = int(raster.tags().get("EXIF_Orientation", 1))
    if raster.driver == "GTiff":
        try:
            with TiffImageFile(source) as header:
                require_one_page(header)
                orientation = header.tag_v2.get(ORIENTATION, 1)
        except SyntaxError as error:
            raise ImageError(f"{source} is a TIFF file of a kind that Pillow does not know: {error}.") from error
    if orientation != 1:
        raise ImageError(
            f"{source} is to be turned when it is shown (EXIF orientation {orientation}), which is not done in "
            "windows: save it upright."
        )


@contextmanager
def _new_mask(target: Path, raster, colors: dict[int, Sequence[int]]) -> Iterator[Callable[[int, np.ndarray], None]]:
    """Gives a function that writes values from a row on to the mask's file, which gets its name when it is whole."""
    import rasterio

    few = max(colors) <= 255
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8" if few else "uint16", "compress": "deflate"}
    profile |= {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "bigtiff": "if_safer"}
    profile |= {"height": raster.height, "width": raster.width, "crs": raster.crs, "transform": raster.transform}
    part = target.with_name(f".{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with rasterio.open(part, "w", **profile) as mask:
            if raster.gcps[0]:
                mask.gcps = raster.gcps
            if few:
                mask.write_colormap(1, colors)

            def write(top: int, values: np.ndarray):
                window = (top, top + len(values)), (0, raster.width)
                mask.write(values.astype(profile["dtype"]), 1, window=window)

            yield write
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


__all__ = ["is_large", "predict_large"]

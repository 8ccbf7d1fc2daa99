"""Reads large image files and writes their masks part by part, with rasterio: `pip install "allspark-hf[large]"`."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from ..data.images import array_to_image
from ..data.pixels import ORIENTATION, ImageError, Reading, choose_page
from .prediction import model_picture
from .tiles import Span


logger = logging.getLogger(__name__)

OPTIONS = {
    "GDAL_CACHEMAX": 256,  # MB of files kept in memory; the default is a twentieth of the machine's memory
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": False,  # True reads the missing part of a PNG that is cut short as 0, silently
    "GDAL_ERROR_ON_LIBJPEG_WARNING": True,
}
BLOCK = 512  # side of the blocks of a mask's file
COLORS, GRAY = ["red", "green", "blue"], (["gray"], ["gray", "alpha"])
HEADERS = {"PNG": PngImageFile, "WEBP": WebPImageFile}  # formats of which GDAL does not tell the EXIF orientation
SAME_COLORS = ("YCbCr",)  # color spaces that GDAL turns into RGB as Pillow does, unlike CMYK and CIELAB


@contextmanager
def gdal(file: Path) -> Iterator[Any]:
    """
    Gives rasterio, with [`OPTIONS`] that bound its memory.

    Raises:
        ValueError: if rasterio is not installed; the message names the file that needs it.
    """
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning
    except ImportError as error:
        raise ValueError(
            f'{file} is read in windows, which needs rasterio: pip install "allspark-hf[large]".'
        ) from error
    with warnings.catch_warnings(), rasterio.Env(**OPTIONS):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield rasterio


def count_values(file: Path, count: int) -> np.ndarray:
    """int64 (count,): how often each of the values 0 to count - 1 occurs in a mask file, which is read in parts."""
    found = np.zeros(count, dtype=np.int64)
    with gdal(file) as rasterio, rasterio.open(file) as mask:
        for _, window in mask.block_windows(1):
            found += np.bincount(mask.read(1, window=window).ravel(), minlength=count)
    return found


def require_plain(source: Path, raster, tiff_page: int | None):
    """Refuses files of several pages and those that EXIF turns; rasterio ignores both, unlike [`load_image`]."""
    orientation = int(raster.tags().get("EXIF_Orientation", 1))
    try:
        if raster.driver == "GTiff":
            with TiffImageFile(source) as header:
                choose_page(header, tiff_page)
                orientation = header.tag_v2.get(ORIENTATION, 1)
        elif raster.driver in HEADERS:
            with HEADERS[raster.driver](source) as header:  # the class itself, which opens files of any size
                orientation = PIL.Image.Image.getexif(header).get(ORIENTATION, 1)  # PNG's own decodes the file
    except SyntaxError as error:
        raise ImageError(f"{source} is a file of a kind that Pillow does not know: {error}.") from error
    if orientation != 1:
        raise ImageError(
            f"{source} is turned when it is shown (EXIF orientation {orientation}), but a large image is read as "
            "it is stored: save it upright."
        )


@contextmanager
def open_page(rasterio, source: Path, tiff_page: int | None) -> Iterator[Any]:
    """An open raster file, at `tiff_page` if it is a TIFF file; ImageError if [`require_plain`] refuses it."""
    with rasterio.open(source) as raster:
        require_plain(source, raster, tiff_page)
        page = f"GTIFF_DIR:{tiff_page + 1}:{source}" if raster.driver == "GTiff" and tiff_page else source
    with rasterio.open(page) as raster:
        yield raster


@dataclass(frozen=True)
class WindowedPicture:
    """
    A raster file of which parts are read as [`to_rgb`] reads whole images.

    Args:
        raster (`rasterio.DatasetReader`): the open file.
        bands (`list[int]`): numbers, from 1 on, of the bands gray, or red, green and blue, and then of opacity, if
            there is one.
        palette (`np.ndarray`, *optional*): uint8 (256, 3), the color of each value of a single band.
        reading ([`Reading`]): how the model reads images.
    """

    raster: Any
    bands: list[int]
    palette: np.ndarray | None
    reading: Reading

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.raster.height, self.raster.width

    @classmethod
    def of(cls, raster, reading: Reading) -> "WindowedPicture":
        """
        Raises:
            ImageError: if [`to_rgb`] would refuse the file, or rasterio reads it differently from Pillow.
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
        if (raster.driver in ("PNG", "GIF") and shines_through) or "MINISWHITE" in structure:
            raise ImageError(
                f"{raster.name} has a transparent color, or white as 0, which large images must not have: save it as "
                "RGB."
            )
        bands = list(range(1, len(colors) + 1))
        if "alpha" in names and _is_opacity(raster, names.index("alpha") + 1):
            bands.append(names.index("alpha") + 1)
        if len(bands) < len(names):
            logger.warning(
                "%s has %d bands, of which %d are read: gray or colors, and opacity if that band holds only 0 and the "
                "largest value.",
                *(raster.name, len(names), len(bands)),
            )
        palette = np.array([table.get(value, (0, 0, 0))[:3] for value in range(256)], dtype=np.uint8)
        return cls(raster, bands, palette if table else None, reading)

    def read(self, rows: Span, columns: Span) -> PIL.Image.Image:
        """
        A part of the image in 8-bit RGB.

        Raises:
            OSError: if the file is damaged.
        """
        try:
            values = self.raster.read(self.bands, window=(rows, columns)).transpose(1, 2, 0)
        except OSError as error:  # rasterio's message hides the reason in its cause
            raise OSError(f"{self.raster.name} cannot be read: {error.__cause__ or error}") from error
        if self.palette is not None:
            return PIL.Image.fromarray(self.palette[values[..., 0]])
        if len(self.bands) in (1, 3):
            return model_picture(array_to_image(values), self.reading)
        colors, opacity = values[..., :-1], values[..., -1]
        picture = array_to_image(colors.repeat(3, axis=2) if colors.shape[2] == 1 else colors)
        picture.putalpha(PIL.Image.fromarray((opacity >> 8 * (opacity.itemsize - 1)).astype(np.uint8)))
        return model_picture(picture, self.reading)


def _is_opacity(raster, band: int) -> bool:
    """Whether a band is opacity, as [`load_image`] decides: in PNG and WebP, or if it holds only 0 and the largest."""
    if raster.driver in HEADERS:
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
def new_mask(
    rasterio, file: Path, image, colors: dict[int, Sequence[int]]
) -> Iterator[Callable[[int, np.ndarray], None]]:
    """
    Makes a TIFF file for a mask, and gives a function that writes integers (rows, width) from a row on.

    Args:
        rasterio: the module, of [`gdal`].
        file (`Path`): the file to write.
        image (`rasterio.DatasetReader`): the image; the mask gets its size, place and coordinate system.
        colors (`dict[int, Sequence[int]]`): value -> red, green and blue; stored if all values are below 256.
    """
    few = max(colors) <= 255
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8" if few else "uint16", "compress": "deflate"}
    profile |= {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "bigtiff": "if_safer"}
    profile |= {"height": image.height, "width": image.width, "crs": image.crs, "transform": image.transform}
    with rasterio.open(file, "w", **profile) as mask:
        if image.gcps[0]:
            mask.gcps = image.gcps
        if few:
            mask.write_colormap(1, colors)

        def write(top: int, values: np.ndarray):
            window = (top, top + len(values)), (0, image.width)
            mask.write(values.astype(profile["dtype"]), 1, window=window)

        yield write

"""Image files read in windows, and masks written so, with rasterio: `pip install "allspark-hf[large]"`."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from PIL.TiffImagePlugin import TiffImageFile

from ..data.images import array_to_image
from ..data.pixels import ORIENTATION, ImageError, Reading, choose_page, to_rgb
from .tiles import Span


logger = logging.getLogger(__name__)

OPTIONS = {
    "GDAL_CACHEMAX": 256,  # MB that it keeps of files; by default a twentieth of the machine's memory
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": False,  # or it reads what is missing of a PNG cut short as 0, and says nothing
    "GDAL_ERROR_ON_LIBJPEG_WARNING": True,
}
BLOCK = 512  # side of the blocks of a mask's file
COLORS, GRAY = ["red", "green", "blue"], (["gray"], ["gray", "alpha"])
SAME_COLORS = ("YCbCr",)  # GDAL turns CMYK and CIELAB into RGB in another way than Pillow


@contextmanager
def gdal(file: Path) -> Iterator[Any]:
    """
    rasterio, in an environment whose memory is bounded.

    Raises:
        ValueError: if it is not installed; names the file.
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
    """int64 (count,): how often each of the values 0 to count - 1 occurs in a mask, which is read in windows."""
    found = np.zeros(count, dtype=np.int64)
    with gdal(file) as rasterio, rasterio.open(file) as mask:
        for _, window in mask.block_windows(1):
            found += np.bincount(mask.read(1, window=window).ravel(), minlength=count)
    return found


def require_plain(source: Path, raster, tiff_page: int | None):
    """Refuses what rasterio passes over and [`load_image`] does not: pages, and pictures that lie on their side."""
    orientation = int(raster.tags().get("EXIF_Orientation", 1))
    if raster.driver == "GTiff":
        try:
            with TiffImageFile(source) as header:
                choose_page(header, tiff_page)
                orientation = header.tag_v2.get(ORIENTATION, 1)
        except SyntaxError as error:
            raise ImageError(f"{source} is a TIFF file of a kind that Pillow does not know: {error}.") from error
    if orientation != 1:
        raise ImageError(
            f"{source} is to be turned when it is shown (EXIF orientation {orientation}), which is not done in "
            "windows: save it upright."
        )


@contextmanager
def open_page(rasterio, source: Path, tiff_page: int | None) -> Iterator[Any]:
    """A raster file, of TIFF files the page of [`Reading`]; ImageError if [`require_plain`] refuses it."""
    with rasterio.open(source) as raster:
        require_plain(source, raster, tiff_page)
        page = f"GTIFF_DIR:{tiff_page + 1}:{source}" if raster.driver == "GTiff" and tiff_page else source
    with rasterio.open(page) as raster:
        yield raster


@dataclass(frozen=True)
class WindowedPicture:
    """
    The parts of a raster file that [`to_rgb`] takes.

    Args:
        raster (`rasterio.DatasetReader`): the file.
        bands (`list[int]`): of gray, or of red, green and blue, and last that of opacity, if it has one; from 1 on.
        palette (`np.ndarray`, *optional*): uint8 (256, 3), the color of each value of the single band.
        reading ([`Reading`]): the model's.
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
        return cls(raster, bands, palette if table else None, reading)

    def read(self, rows: Span, columns: Span) -> PIL.Image.Image:
        """
        A window in 8-bit RGB.

        Raises:
            OSError: if the file is damaged.
        """
        try:
            values = self.raster.read(self.bands, window=(rows, columns)).transpose(1, 2, 0)
        except OSError as error:  # whose own words name another one
            raise OSError(f"{self.raster.name} cannot be read: {error.__cause__ or error}") from error
        if self.palette is not None:
            return PIL.Image.fromarray(self.palette[values[..., 0]])
        if len(self.bands) in (1, 3):
            return to_rgb(array_to_image(values), self.reading)
        colors, opacity = values[..., :-1], values[..., -1]
        picture = array_to_image(colors.repeat(3, axis=2) if colors.shape[2] == 1 else colors)
        picture.putalpha(PIL.Image.fromarray((opacity >> 8 * (opacity.itemsize - 1)).astype(np.uint8)))
        return to_rgb(picture, self.reading)


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
def new_mask(
    rasterio, file: Path, image, colors: dict[int, Sequence[int]]
) -> Iterator[Callable[[int, np.ndarray], None]]:
    """
    Makes a TIFF file of a mask, and gives a function that writes integers (rows, width) from a row on.

    Args:
        rasterio: of [`gdal`].
        file (`Path`): to write.
        image (`rasterio.DatasetReader`): whose size, place and coordinate system the mask has.
        colors (`dict[int, Sequence[int]]`): value -> red, green and blue; shown where all values are below 256.
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


__all__ = ["WindowedPicture", "count_values", "gdal", "new_mask", "open_page"]

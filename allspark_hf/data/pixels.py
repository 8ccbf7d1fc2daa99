"""
How an image becomes 8-bit RGB, the one way that training, evaluation, prediction, endpoint, Space and ONNX code share.

This file needs only Pillow and NumPy, because it is copied: into published repositories, beside `handler.py`, into
exported folders and into the Space.
"""

import io
import itertools
import logging
import mmap
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import PIL.BmpImagePlugin
import PIL.Image
import PIL.ImageFile
import PIL.ImageOps
import PIL.ImagePalette
import PIL.TiffImagePlugin


logger = logging.getLogger(__name__)

FULL_RANGE = (0, 65535)  # of 16 bits
ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
# Programs store any fourth band in these formats as if it was opacity; GDAL does so with near infrared.
ANY_FOURTH_BAND = ("TIFF", "JPEG2000")
# Raw mode of 16-bit values -> the raw mode that reads their other byte; libtiff has the machine's order ("N").
OTHER_BYTE = {";16B": ";16L", ";16L": ";16B", ";16N": ";16B" if sys.byteorder == "little" else ";16L"}
SUBFILE, WIDTH, BITS, PHOTOMETRIC, IMAGEJ, ORIENTATION = 254, 256, 258, 262, 270, 274  # tags of TIFF
BANDS, PLANES, SUB_IFDS, EXTRA_BANDS, SAMPLE_FORMAT = 277, 284, 330, 338, 339
MAX_PAGES = 1000  # pages of a file that are counted
NOT_A_PAGE = 0b101  # bits of SUBFILE: a reduced copy, a transparency mask
_FIX = "name one with --tiff_page, 0 for the first (tiff_page in config.json), or save it as a file of its own"
_UNREADABLE = (
    "The TIFF file has {bands} band{s} of {bits}-bit {kind}, which is no picture that can be read; save it as gray or "
    "RGB of 8 or 16 bits without a sign; of more bands, save the three to show as red, green and blue."
)
BANDS_LEFT_OUT, ANIMATION, LITTLE_SEEN = range(3)  # lines that are logged once for a data set or model
_said = mmap.mmap(-1, 3)  # which of them were; forked workers share the memory
_lock = threading.Lock()


class ImageError(ValueError):
    """An image or mask that cannot be used as it is. The message is one sentence: what it is, and what to do."""


class Reading(NamedTuple):
    """How the image files of a data set are read; the configuration of a model keeps it."""

    image_range: Sequence[int] | None = None  # values of 16-bit pictures that become black and white; None: 0, 65535
    tiff_page: int | None = None  # page of TIFF files, counted from 0; None: a file of several pages is refused

    @classmethod
    def of(cls, config) -> "Reading":
        """How a model of this configuration reads images."""
        return cls(*(getattr(config, name, None) for name in cls._fields))


PLAIN = Reading()


def open_image(
    file: str | Path | BinaryIO, formats: Sequence[str] | None = None, tiff_page: int | None = None
) -> PIL.Image.Image:
    """
    Opens a picture or a mask without decoding it.

    Args:
        file (`str`, `Path` or `BinaryIO`): the file.
        formats (`Sequence[str]`, *optional*): Pillow's names of the formats to read; by default all but EPS, for which
            Pillow would start a program, Ghostscript, on the file.
        tiff_page (`int`, *optional*): see [`choose_page`]; with `None`, the file is opened at its first page, however
            many it has.

    Raises:
        ImageError: if the format is known and not read, or the file has no such page; a `ValueError`.
        OSError: if the file cannot be opened, or its format is not known.
    """
    PIL.Image.init()
    try:
        image = PIL.Image.open(file, formats=formats or [name for name in PIL.Image.OPEN if name != "EPS"])
    except PIL.UnidentifiedImageError as error:
        if (reason := _why_unknown(file)) is None:
            raise
        raise ImageError(reason) from error
    if isinstance(image, PIL.BmpImagePlugin.BmpImageFile):
        _read_bmp_as_stored(image)
    if tiff_page is not None:
        choose_page(image, tiff_page)
    return image


def load_image(image: PIL.Image.Image, name: str | None = None, tiff_page: int | None = None) -> PIL.Image.Image:
    """
    Decodes an image file to an upright picture in memory, with what [`to_rgb`] needs to know about the file.

    The fourth band of a TIFF or JPEG 2000 file is opacity only if every pixel of it is 0 or 255, and not all are 0; in
    other formats it always is. Other bands than red, green, blue and opacity are left out. Of an animation the first
    frame is read. The log says each of these once, with the name of a file.

    Args:
        image (`PIL.Image.Image`): of [`open_image`]; a picture in memory is only turned upright.
        name (`str`, *optional*): what to call the image in the log; by default its path.
        tiff_page (`int`, *optional*): see [`choose_page`].

    Returns:
        `PIL.Image.Image`: upright, in the file's mode. For 16-bit colors, of which Pillow keeps 8 bits, the attribute
        `low_bytes` is an image of the lower 8 bits. The attribute `orientation` is the EXIF orientation, 1 to 8.

    Raises:
        ImageError: if [`choose_page`] refuses the file, or Pillow cannot read its 16-bit colors.
        OSError: or another error of Pillow's, if the file is damaged.
    """
    low = getattr(image, "low_bytes", None)
    if isinstance(image, PIL.ImageFile.ImageFile):
        name = name or str(getattr(image, "filename", "") or "An image")
        choose_page(image, tiff_page)
        if image.format in ANIMATED and getattr(image, "is_animated", False) and not image.tell():
            say_once(ANIMATION, f"{name} is an animation of {image.n_frames} frames, of which the first is read.")
        bands = _keep_stored_colors(image)
        low = _low_bytes(image)
        orientation = load_orientation(image)
        image = _without_other_bands(image, bands, name)
        if image.mode == "I;16" and image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == 0:  # white is 0
            image = PIL.Image.fromarray(FULL_RANGE[1] - np.asarray(image))
    else:
        orientation = load_orientation(image)
    upright = PIL.ImageOps.exif_transpose(image)
    upright.orientation = orientation
    if low is not None:
        upright.low_bytes = PIL.ImageOps.exif_transpose(low)
    return upright


def load_orientation(image: PIL.Image.Image) -> int:
    """Decodes an image file and gives its EXIF orientation, 1 to 8, where 1 is upright."""
    # Before the file is decoded, since Pillow turns TIFF files while it decodes them.
    orientation = image.tag_v2.get(ORIENTATION) if image.format == "TIFF" else None
    if orientation:
        image.filename = ""  # else Pillow maps some files into memory, with width and height swapped
    image.load()
    return orientation or image.getexif().get(ORIENTATION) or 1


def to_rgb(image: PIL.Image.Image, reading: Reading = PLAIN) -> PIL.Image.Image:
    """
    Converts a picture to 8-bit RGB, as a person sees it: upright by its EXIF orientation, 16-bit values scaled and not
    cut off, white behind transparent pixels. A picture that is 8-bit RGB already stays as it is.

    Args:
        image (`PIL.Image.Image`): a picture of [`open_image`], of [`load_image`] or in memory, of mode 1, L, LA, P,
            PA, RGB, RGBA, CMYK, YCbCr, HSV, LAB, I;16 (any byte order) or I, which must hold values of 0 to 65535.
        reading ([`Reading`], *optional*): how the model reads images; its page matters only for a file that is not
            decoded yet.

    Returns:
        `PIL.Image.Image`: mode RGB, 0 to 255, upright.

    Raises:
        ImageError: if the picture holds floating-point values or integers outside 0 to 65535, or [`load_image`]
            refuses it; a `ValueError`.
    """
    image = image if hasattr(image, "orientation") else load_image(image, tiff_page=reading.tiff_page)
    values = deep_values(image)
    if values is None:
        if not image.has_transparency_data:
            return image.convert("RGB")
        image = image.convert("RGBA")
        return PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image).convert("RGB")
    scaled = _scale_table(*(reading.image_range or FULL_RANGE))[values]
    scaled = np.broadcast_to(scaled if scaled.ndim == 3 else scaled[..., None], (*values.shape[:2], 3))
    transparent = image.info.get("transparency")
    if isinstance(transparent, (int, tuple)):  # a value of 16 bits
        hidden = values == transparent if values.ndim == 2 else (values == transparent).all(axis=-1)
        scaled = np.where(hidden[..., None], np.uint8(255), scaled)
    rgb = PIL.Image.fromarray(np.ascontiguousarray(scaled))
    if image.mode != "RGBA":
        return rgb
    rgb.putalpha(image.getchannel("A"))
    return PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), rgb).convert("RGB")


def deep_values(image: PIL.Image.Image) -> np.ndarray | None:
    """
    The 16-bit values of a picture of [`load_image`].

    Returns:
        `np.ndarray`: uint16 (height, width), gray, or (height, width, 3), red, green and blue; `None` for a picture of
        8 bits.

    Raises:
        ImageError: if the picture holds floating-point values, or integers outside 0 to 65535.
    """
    if image.mode == "F":
        raise ImageError(
            "The image holds floating-point values, whose range for black to white is not defined; "
            "save it as 8-bit or 16-bit integers."
        )
    if image.mode.startswith("I"):
        gray = np.asarray(image).astype(np.int64)
        if gray.min() < 0 or gray.max() > FULL_RANGE[1]:
            raise ImageError(
                f"The image holds integers from {gray.min()} to {gray.max()}, but gray pictures must lie within 0 to "
                "65535 (16 bits); save it as 8-bit or 16-bit gray."
            )
        return gray.astype(np.uint16)
    low = getattr(image, "low_bytes", None)
    if low is None or low.size != image.size:
        return None
    high, low = np.asarray(image)[..., :3], np.asarray(low)[..., :3]
    return high.astype(np.uint16) * 256 + low


@lru_cache(maxsize=8)
def _scale_table(black: int, white: int) -> np.ndarray:
    """uint8 (65536,): the 8-bit level of each 16-bit value, rounded to nearest."""
    values, span = np.arange(FULL_RANGE[1] + 1, dtype=np.int64).clip(black, white), white - black
    return (((values - black) * 510 + span) // (2 * span)).astype(np.uint8)


def choose_page(image: PIL.Image.Image, page: int | None = None, fix: str = _FIX):
    """
    Turns a TIFF file to a page, counted from 0 as Pillow and tifffile do. Without a page, a file of several pages is
    refused, because Pillow would read the first. Reduced copies (the levels of a pyramid) and transparency masks do
    not count as pages. A file of another format, and one that `seek` has turned already, stay as they are.

    Args:
        image (`PIL.Image.Image`): of [`open_image`].
        page (`int`, *optional*): the page to turn to.
        fix (`str`, *optional*): what the error tells the user to do with a file of several pages.

    Raises:
        ImageError: if the file has several pages and `page` is `None`, or it does not have this page.
    """
    file = getattr(image, "fp", None)
    if image.format != "TIFF" or file is None or file.closed or image.tell():
        return
    pages = dict(itertools.islice(_tiff_pages(file), MAX_PAGES if page is None else page + 2))
    full = [number for number, tags in pages.items() if not tags.get(SUBFILE, 0) & NOT_A_PAGE]
    if not full and SUB_IFDS not in pages.get(0, ()):
        full = [0]  # marked as reduced, but there is no other
    if page in full:
        return image.seek(page)
    if page is not None:
        there = ", ".join(map(str, full[:5])) + ", ..." * (len(full) > 5)
        raise ImageError(
            f"The TIFF file has no page {page}: counted from 0, it has {there or 'none'}; give a --tiff_page that all "
            "TIFF files have (tiff_page in config.json), or leave this one out."
        )
    stack = re.match(r"ImageJ=.*?^images=(\d+)", str(pages[0].get(IMAGEJ, "")), re.DOTALL | re.MULTILINE)
    count = max(len(full), int(stack[1]) if stack else 0)
    if count > 1:
        raise ImageError(f"The TIFF file has {count} pages, and only the first would be read; {fix}.")
    if full != [0]:
        raise ImageError(
            "The first page of the TIFF file is a reduced copy, which would be read; save the picture alone."
        )


def _tiff_pages(file: BinaryIO) -> Iterator[tuple[int, dict]]:
    """Number and tags of every page up to the first damaged one, also of pages that Pillow cannot decode."""
    file.seek(0)
    header = file.read(8)
    header += file.read(8) if b"+" in header[2:4] else b""  # BigTIFF
    directory = PIL.TiffImagePlugin.ImageFileDirectory_v2(header)
    seen = {0}
    while directory.next not in seen:
        seen.add(directory.next)
        try:
            file.seek(directory.next)
            directory.load(file)
            tags = {tag: directory[tag] for tag in (SUBFILE, BITS, IMAGEJ, BANDS, SAMPLE_FORMAT) if tag in directory}
        except Exception:  # Pillow raises nearly anything
            return
        if WIDTH in directory:
            yield len(seen) - 2, tags | dict.fromkeys({SUB_IFDS} & set(directory))


def _why_unknown(file: str | Path | BinaryIO) -> str | None:
    """A sentence about a file that Pillow does not know; None if the file is of no known kind."""
    if isinstance(file, (str, os.PathLike)):
        with open(file, "rb") as opened:
            return _why_unknown(opened)
    file.seek(0)
    start = file.read(16)
    if start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"):
        return "The file is HEIC, as phones write it, which Pillow does not read; save it as JPEG or PNG."
    if start.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "The file is JPEG XL, which Pillow does not read; save it as JPEG or PNG."
    if start[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+") or len(start) < 16:
        return None
    _, page = next(_tiff_pages(file), (0, None))
    if page is None:
        return None
    bits, bands = page.get(BITS, (1,)), page.get(BANDS, 1)
    kind = {2: "signed integers", 3: "floating-point values"}.get(page.get(SAMPLE_FORMAT, (1,))[0], "integers")
    return _UNREADABLE.format(bands=bands, s="s" if bands > 1 else "", bits=bits[0], kind=kind)


def _read_bmp_as_stored(image: PIL.Image.Image):
    """Corrects Pillow, which reads 4 or 8 bits a pixel as 1 or 8 bits if the palette is black and white or gray."""
    image.fp.seek(14 if image.format == "BMP" else 0)
    header = image.fp.read(16)
    bits = header[10] if header[0] == 12 else header[14]
    if (image.mode, bits) not in (("1", 4), ("1", 8), ("L", 4)):
        return
    colors = [0, 255] if image.mode == "1" else range(16)
    image._mode = "P"
    image.palette = PIL.ImagePalette.raw("RGB", bytes(value for value in colors for _ in range(3)))
    image.tile = [tile._replace(args=("P;4" if bits == 4 else "P", *tile.args[1:])) for tile in image.tile]


def _raw_mode(tile) -> str:
    return tile.args if isinstance(tile.args, str) else str(tile.args[0]) if tile.args else ""


def _with_raw_mode(tile, mode: str):
    return tile._replace(args=mode if isinstance(tile.args, str) else (mode, *tile.args[1:]))


def _keep_stored_colors(image: PIL.Image.Image) -> int:
    """Makes Pillow read a TIFF file's colors without dividing them by their opacity; gives the number of bands."""
    if image.format != "TIFF":
        return len(image.getbands())
    tags = image.tag_v2
    bands, extra = tags.get(BANDS, 1), tags.get(EXTRA_BANDS, ())
    if image.mode in ("L", "I;16", "I;16B") and bands > 2:
        raise ImageError(_UNREADABLE.format(bands=bands, s="s", bits=tags[BITS][0], kind="integers"))
    # Bands that lie one after the other: Pillow reads only these right.
    whole = max(tags.get(BITS, (1,))) <= 8 and (extra == (2,) or not any(extra)) and (extra or bands <= 3)
    if tags.get(PLANES, 1) == 2 and bands > 1 and not whole:
        raise ImageError(
            "The TIFF file stores its bands one after the other, in a form that Pillow does not read right; save them "
            "interleaved (with GDAL: -co INTERLEAVE=PIXEL)."
        )
    image.tile = [_with_raw_mode(tile, _raw_mode(tile).replace("RGBa", "RGBA")) for tile in image.tile]
    return bands


def _low_bytes(image: PIL.Image.Image) -> PIL.Image.Image | None:
    """The lower 8 bits of 16-bit colors: decodes the file once more, with the other byte of each value."""
    modes = {_raw_mode(tile) for tile in image.tile}
    mode = modes.pop() if len(modes) == 1 else ""
    gray = mode == "LA;16B"
    if not gray and (mode[:-4] not in ("RGB", "RGBA", "RGBX") or mode[-4:] not in OTHER_BYTE):
        return None
    image.fp.seek(0)
    again = PIL.Image.open(io.BytesIO(image.fp.read()), formats=[image.format])
    again.seek(image.tell())
    other = "RGBA" if gray else mode[:-4] + OTHER_BYTE[mode[-4:]]
    again.tile = [_with_raw_mode(tile, other) for tile in again.tile]
    again.load()
    if gray:  # the four bytes of a pixel: gray, lower byte of gray, opacity, lower byte of opacity
        _, low, _, opacity = again.split()
        merged = PIL.Image.merge("RGBA", (low, low, low, opacity))
        merged.info = again.info
        return merged
    return again.copy()


def _without_other_bands(image: PIL.Image.Image, bands: int, name: str) -> PIL.Image.Image:
    """The picture without a fourth band that is not opacity; `bands` is the number of bands in the file."""
    if image.format not in ANY_FOURTH_BAND:
        return image
    colors = {"RGBA": "RGB", "LA": "L", "PA": "RGB"}.get(image.mode)
    left_out = bands - len(image.getbands())
    if colors is not None:
        counts = np.array(image.getchannel("A").histogram())
        marked = image.format != "TIFF" or image.tag_v2.get(EXTRA_BANDS, (0,))[0] != 0
        if not (marked and counts[255] and not counts[1:255].any()):
            left_out += 1
            image = image.convert(colors)
    if left_out > 0:
        say_once(
            BANDS_LEFT_OUT,
            f"{name} has {bands} bands, of which {left_out} {'is' if left_out == 1 else 'are'} left out: only colors "
            "are read, and opacity, which in TIFF and JPEG 2000 is a last band that holds only 0 and 255.",
        )
    return image


def say_again():
    """Lets each line be logged anew, for another data set or model."""
    _said[:] = bytes(len(_said))


def say_once(line: int, sentence: str):
    with _lock:
        if not _said[line]:
            _said[line] = 1
            logger.warning("%s This is said of the first such image only.", sentence)

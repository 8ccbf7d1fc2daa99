"""Reads images and masks as data sets store them, and checks that masks are exact."""

import io
import os
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageOps

from .pixels import ImageError, choose_page, load_image, load_orientation, open_image


SHOWN_VALUES = 10
ONE_PAGE = (
    "save one page as a file of its own, for example the second: tifffile.imwrite('page.tif', "
    "tifffile.imread('stack.tif', key=1)); if each page is a class, save one page whose values are the class indices"
)
LOSSY = ("JPEG", "MPO", "JPEG2000", "AVIF")


def open_stored(stored: dict, tiff_page: int | None = None) -> PIL.Image.Image:
    """Opens an image or a mask as a data set stores it, by [`open_image`]: its `bytes`, or else the file at `path`."""
    content = stored.get("bytes")
    return open_image(stored["path"] if content is None else io.BytesIO(content), tiff_page=tiff_page)


def require_exact_values(mask: PIL.Image.Image):
    """
    Refuses a mask whose values Pillow would not give as they were stored; once the mask is decoded, nothing shows it.
    Lossy compression changes values. Pillow scales gray of fewer than 8 bits, or of another maximum, to 0 to 255,
    inverts gray whose 0 is white, and reads only the first of several pages or frames.

    Args:
        mask (`PIL.Image.Image`): of [`open_image`], not decoded yet.

    Raises:
        ImageError: if it is such a mask; a `ValueError`.
    """
    choose_page(mask, fix=ONE_PAGE)
    if mask.format in ("PNG", "WEBP") and getattr(mask, "is_animated", False):
        raise ImageError(
            f"The mask is an animation of {mask.n_frames} frames, and only the first would be read; save the frame "
            "with the classes as PNG."
        )
    compression = mask.info.get("compression") if mask.format == "TIFF" else None
    if mask.format in LOSSY or compression in ("jpeg", "tiff_jpeg", "webp"):
        kind = "TIFF file with JPEG or WebP compression" if compression else f"{mask.format} file"
        raise ImageError(f"The mask is a {kind}, whose compression changes class indices; save it as PNG.")
    if mask.format == "GIF":
        raise ImageError(
            "The mask is a GIF file, and programs renumber the values of one when they write it; save it as PNG."
        )
    for tile in getattr(mask, "tile", ()):  # tells how Pillow will decode the file
        arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        scaled = any(isinstance(name, str) and name.startswith(("L;", "1;I")) for name in arguments)
        largest = arguments[1] if tile.codec_name in ("ppm", "ppm_plain") and len(arguments) > 1 else None
        if scaled or (mask.mode != "1" and largest not in (None, 255, 65535)):
            raise ImageError(
                "The mask is gray with other than 8 bits, or inverted, so that its values change when it is read "
                "(with 4 bits, 1 becomes 17); save it as indexed or 8-bit gray PNG."
            )


def require_readable_mask(stored: dict):
    """
    Checks the header of a stored mask; nothing is decoded. A path that is no file here, such as an address on a
    network, is not checked.

    Raises:
        OSError: if it is no image.
        ImageError: if its values would not be read as they were stored.
    """
    if stored.get("bytes") is None and not os.path.isfile(stored.get("path") or ""):
        return
    with open_stored(stored) as opened:
        require_exact_values(opened)


def decode(stored: dict, is_mask: bool, tiff_page: int | None = None) -> PIL.Image.Image:
    """
    Decodes a stored image or mask, upright: an image as [`load_image`] gives it, from a page of [`choose_page`]; a
    mask in the file's own mode, with exact values. Without bytes, the path must be that of a file here.

    Raises:
        ImageError: if an image is of a kind that is not read, or the values of a mask would change.
        OSError: or another error of Pillow's, if the file is damaged.
    """
    with open_stored(stored) as opened:
        if not is_mask:
            return load_image(opened, stored.get("path"), tiff_page)
        require_exact_values(opened)
        orientation = load_orientation(opened)
        upright = PIL.ImageOps.exif_transpose(opened)
        upright.orientation = orientation
        return upright


def array_to_image(array: np.ndarray) -> PIL.Image.Image:
    """
    Makes of an array a picture that [`to_rgb`] takes.

    Args:
        array (`np.ndarray`): uint8 in 0..255 or uint16 in 0..65535: gray (height, width) or (height, width, 1), or
            red, green and blue (height, width, 3).

    Raises:
        ImageError: if the array has another type or shape.
    """
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3))
    if array.dtype not in (np.uint8, np.uint16) or not fits or not array.size:
        fix = "convert it"
        if array.dtype.kind == "f":
            fix = "multiply values of 0 to 1 by 255 and convert with .round().astype(np.uint8)"
        raise ImageError(
            f"An array is {array.dtype} of shape {array.shape}, but uint8 (0 to 255) or uint16 (0 to 65535) is "
            f"needed, gray (height, width) or red, green and blue (height, width, 3): {fix}."
        )
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.dtype == np.uint8 or array.ndim == 2:
        return PIL.Image.fromarray(np.ascontiguousarray(array))
    image = PIL.Image.fromarray((array >> 8).astype(np.uint8))
    image.low_bytes = PIL.Image.fromarray((array & 255).astype(np.uint8))
    return image


def mask_to_array(mask: PIL.Image.Image) -> np.ndarray:
    """
    Gives the stored values of a mask, upright by its EXIF orientation, as images are.

    Args:
        mask (`PIL.Image.Image`): of mode 1 (values 0 and 1), L, P (the values are the palette's indices, whatever its
            colors), I;16 (any byte order) or I.

    Returns:
        `np.ndarray`: shape `(height, width)`: uint8 for the modes 1, L and P, int32 for the others. No value is mapped
        or ignored here.

    Raises:
        ValueError: if the mask has colors, transparency or floating-point values instead of one index per pixel.
    """
    mask = PIL.ImageOps.exif_transpose(mask)
    if mask.mode in ("1", "L", "P"):
        return np.array(mask, dtype=np.uint8)
    if mask.mode.startswith("I"):
        return np.array(mask).astype(np.int32)
    what = {"F": "floating-point values", "LA": "gray and transparency", "PA": "colors and transparency"}
    raise ValueError(
        f"The mask holds {what.get(mask.mode, 'the colors of a picture')} (mode {mask.mode}), not one class index per "
        "pixel; save it as indexed or gray PNG, without transparency, whose values are the class indices (`allspark "
        "import` turns colors into such masks)."
    )


def palette_of_values(mask: PIL.Image.Image, values: Sequence[int]) -> dict[tuple[int, ...], int]:
    """Color -> value for the values of an indexed mask; empty for other masks, and if two values have one color."""
    palette = np.reshape(mask.getpalette() if mask.mode == "P" else [], (-1, 3)).tolist()
    colors = {tuple(palette[value]): int(value) for value in values if value < len(palette)}
    return colors if len(colors) == len(values) else {}


def describe_values(values: Sequence[int]) -> str:
    """One or more integers for an error message, at most 10 of them: `the value 7`, `the values 7 and 12`."""
    shown = [str(int(value)) for value in values[:SHOWN_VALUES]]
    if len(values) == 1:
        return f"the value {shown[0]}"
    if len(values) > SHOWN_VALUES:
        return f"the values {', '.join(shown)} and {len(values) - SHOWN_VALUES} more"
    return f"the values {', '.join(shown[:-1])} and {shown[-1]}"

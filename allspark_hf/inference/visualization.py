"""Colors, overlays and legends of segmentation masks; needs only Pillow and NumPy."""

import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont


# Okabe and Ito's colors, which color-blind readers can distinguish: black, orange, sky blue, bluish green, yellow,
# blue, vermillion, reddish purple.
_OKABE_ITO = (
    (0, 0, 0),
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
_IGNORE_COLOR = (255, 255, 255)
_NUM_COLORS = 256
_MAX_NAME = 60
_LEGEND_ROWS = 24
_FONT_SIZE = 14
_ROWS_AT_A_TIME = 64
_GAP = 6

Palette = np.ndarray | Sequence[Sequence[int]]


def default_palette(num_labels: int) -> np.ndarray:
    """
    Colors that are easy to distinguish: none is white, and the first eight suit color-blind readers. After 256 classes
    the colors repeat.

    Every palette is the beginning of a longer one, so a class keeps its color when classes are added.

    Args:
        num_labels (`int`): number of classes.

    Returns:
        `np.ndarray`: uint8 (num_labels, 3), red, green and blue in 0..255.
    """
    return np.array(_all_colors(), dtype=np.uint8)[np.arange(num_labels) % _NUM_COLORS]


@lru_cache(maxsize=1)
def _all_colors() -> tuple[tuple[int, int, int], ...]:
    """Okabe and Ito's colors, then one after another the candidate that looks most different from all taken so far."""
    levels = np.linspace(0, 255, 9).round()
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    candidates_lab = _to_lab(candidates)
    # White counts as taken, because it means "ignored" here.
    taken_lab = _to_lab(np.array([*_OKABE_ITO, _IGNORE_COLOR], dtype=np.float64))
    nearest = np.linalg.norm(candidates_lab[:, None] - taken_lab[None], axis=-1).min(axis=1)
    colors = list(_OKABE_ITO)
    while len(colors) < _NUM_COLORS:
        best = int(nearest.round(6).argmax())
        colors.append(tuple(int(value) for value in candidates[best]))
        nearest = np.minimum(nearest, np.linalg.norm(candidates_lab - candidates_lab[best], axis=-1))
    return tuple(colors)


def _to_lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of sRGB colors in 0..255, both (count, 3)."""
    value = rgb / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * root[:, 1] - 16, 500 * (root[:, 0] - root[:, 1]), 200 * (root[:, 1] - root[:, 2])], axis=-1)


def _check_palette(palette: Palette) -> np.ndarray:
    colors = np.asarray(palette)
    if colors.ndim != 2 or colors.shape[1] != 3 or not len(colors):
        raise ValueError(
            f"palette has shape {colors.shape}, but (num_labels, 3) is needed: pass one [red, green, blue] per class."
        )
    if colors.dtype.kind not in "iu" or colors.min() < 0 or colors.max() > 255:
        raise ValueError(
            f"palette holds {colors.dtype} values from {colors.min()} to {colors.max()}, but integers from 0 to 255 "
            "are needed: scale and round the colors."
        )
    return colors.astype(np.uint8)


def _check_mask(mask: np.ndarray, num_colors: int, ignore_index: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The checked mask, and bool (height, width), True for ignored pixels."""
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype.kind not in "iu":
        raise ValueError(
            f"mask is {mask.dtype} of shape {mask.shape}, but integers of shape (height, width) are needed: "
            "pass the class index of each pixel."
        )
    ignored = np.zeros(mask.shape, dtype=bool) if ignore_index is None else mask == ignore_index
    wrong = mask[((mask < 0) | (mask >= num_colors)) & ~ignored]
    if wrong.size:
        raise ValueError(
            f"mask holds class index {wrong[0]}, but the palette has {num_colors} colors (0 to {num_colors - 1}) and "
            f"the ignore index is {ignore_index}: pass a palette with a color for every class."
        )
    return mask, ignored


def colorize(mask: np.ndarray, palette: Palette, ignore_index: int | None = 255) -> Image.Image:
    """
    Paints every class of a mask in its color, and ignored pixels white.

    Args:
        mask (`np.ndarray`): integers (height, width), class index 0 to num_labels - 1, or `ignore_index`.
        palette (`np.ndarray` or `list`): integers (num_labels, 3), red, green and blue in 0..255.
        ignore_index (`int`, *optional*, defaults to 255):
            value of ignored pixels, even if a class has the same number; None if no pixel is ignored.

    Returns:
        `PIL.Image.Image`: RGB, of the mask's size.

    Raises:
        ValueError: if the mask or palette has the wrong shape or type, or a class has no color.
    """
    colors = _check_palette(palette)
    mask, ignored = _check_mask(mask, len(colors), ignore_index)
    painted = colors[np.where(ignored, 0, mask)]
    painted[ignored] = _IGNORE_COLOR
    return Image.fromarray(painted)


def overlay(
    image: Image.Image, mask: np.ndarray, palette: Palette, alpha: float = 0.5, ignore_index: int | None = 255
) -> Image.Image:
    """
    Lays a mask's colors over its image; ignored pixels show the image alone.

    Args:
        image (`PIL.Image.Image`): of the mask's size; converted to RGB.
        mask, palette, ignore_index: as for [`colorize`].
        alpha (`float`, *optional*, defaults to 0.5): weight of the colors, 0 (image only) to 1 (colors only).

    Returns:
        `PIL.Image.Image`: RGB, of the same size.

    Raises:
        ValueError: if sizes differ, `alpha` is out of range, or [`colorize`] refuses the mask or palette.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, but a weight from 0 (image only) to 1 (colors only) is needed.")
    painted = np.asarray(colorize(mask, palette, ignore_index))
    height, width = painted.shape[:2]
    if image.size != (width, height):
        raise ValueError(
            f"mask is {height}x{width} and image is {image.height}x{image.width} (height x width), but they must be "
            "of one size: resize the mask with nearest neighbor, or pass the image it belongs to."
        )
    picture, ignored = np.asarray(image.convert("RGB")), np.asarray(mask) == ignore_index
    blended = np.empty_like(painted)
    for top in range(0, height, _ROWS_AT_A_TIME):  # in parts, because float32 needs four times as much memory
        rows = slice(top, top + _ROWS_AT_A_TIME)
        weight = np.where(ignored[rows], 0, alpha).astype(np.float32)[..., None]
        part = picture[rows].astype(np.float32)
        blended[rows] = (part + (painted[rows] - part) * weight).round()
    return Image.fromarray(blended)


def outlines(mask: np.ndarray, width: int) -> np.ndarray:
    """
    The borders of classes, each inside its own class.

    Args:
        mask (`np.ndarray`): integers (height, width).
        width (`int`): pixels of the border on either side of the line between two classes.

    Returns:
        `np.ndarray`: bool (height, width), True where another class is at most `width` pixels up, down, left or right.
    """
    border = np.zeros(mask.shape, dtype=bool)
    for along, turned in ((mask, border), (mask.T, border.T)):
        for step in range(1, min(width, len(along) - 1) + 1):
            differs = along[step:] != along[:-step]
            turned[step:] |= differs
            turned[:-step] |= differs
    return border


def index_image(mask: np.ndarray, palette: Palette, ignore_index: int | None = 255) -> Image.Image:
    """
    Turns a mask into an image of mode "P": pixel values are the class indices, shown in the palette's colors.

    Args:
        mask, palette: as for [`colorize`].
        ignore_index (`int`, *optional*, defaults to 255):
            value of ignored pixels, 0 to 255, white if no class has this number; None if no pixel is ignored.

    Returns:
        `PIL.Image.Image`: of mode "P"; saved as PNG, it reads back as the same indices.

    Raises:
        ValueError: if [`colorize`] refuses the mask or palette, or classes or `ignore_index` do not fit in 8 bits.
    """
    if ignore_index is not None and not 0 <= ignore_index < _NUM_COLORS:
        raise ValueError(
            f"ignore_index is {ignore_index}, but an indexed image holds 0 to 255: relabel ignored pixels as 255."
        )
    colors = _check_palette(palette)
    if len(colors) > _NUM_COLORS:
        raise ValueError(
            f"palette has {len(colors)} colors, but an indexed image holds {_NUM_COLORS}: save the mask in 16 bits."
        )
    mask, _ = _check_mask(mask, len(colors), ignore_index)
    full = np.zeros((_NUM_COLORS, 3), dtype=np.uint8)
    full[: len(colors)] = colors
    if ignore_index is not None and ignore_index >= len(colors):
        full[ignore_index] = _IGNORE_COLOR
    image = Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8))
    image.putpalette(full.tobytes())
    return image


def legend(names: Sequence[str], colors: Palette, present: Iterable[int] | None = None) -> Image.Image:
    """
    Draws the color and the name of each class, in columns of at most 24.

    Args:
        names (`Sequence[str]`):
            name of each class; longer names are cut at 60 characters, accents are dropped, and a character that the
            font lacks is drawn as a box.
        colors (`np.ndarray` or `list`): integers (num_labels, 3), red, green and blue in 0..255.
        present (`Iterable[int]`, *optional*): class indices to list, in any order; all classes by default.

    Returns:
        `PIL.Image.Image`: RGB, on white.

    Raises:
        ValueError: if names and colors differ in number, or `present` is empty or holds an unknown class.
    """
    colors = _check_palette(colors)
    if len(names) != len(colors):
        raise ValueError(f"names has {len(names)} entries and colors has {len(colors)}: pass one of each per class.")
    chosen = list(range(len(names))) if present is None else sorted({int(label) for label in present})
    if not chosen or chosen[0] < 0 or chosen[-1] >= len(names):
        raise ValueError(
            f"present is {chosen}, but one or more class indices from 0 to {len(names) - 1} are needed: "
            "leave out the ignore index, or pass None for all classes."
        )
    font = font_of_text()
    texts = [printable(names[label], font) for label in chosen]
    line = int(np.ceil(font.getbbox("Agjy|")[3])) + 2 + _GAP
    swatch = 2 * line
    column = swatch + 3 * _GAP + max(int(np.ceil(font.getlength(text))) for text in texts)
    num_columns = -(-len(chosen) // _LEGEND_ROWS)
    image = Image.new("RGB", (num_columns * column + _GAP, min(len(chosen), _LEGEND_ROWS) * line + _GAP), "white")
    draw = ImageDraw.Draw(image)
    for position, (label, text) in enumerate(zip(chosen, texts, strict=True)):
        left, top = _GAP + position // _LEGEND_ROWS * column, _GAP + position % _LEGEND_ROWS * line
        box = (left, top, left + swatch - 1, top + line - _GAP - 1)
        draw.rectangle(box, fill=tuple(colors[label].tolist()), outline=(96, 96, 96))
        draw.text((left + swatch + _GAP, top), text, fill="black", font=font)
    return image


def font_of_text() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    try:
        return ImageFont.load_default(size=_FONT_SIZE)
    except ImportError:
        # Pillow built without FreeType has one small bitmap font.
        return ImageFont.load_default()


def printable(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """One line that the font accepts: no line breaks or accents, "?" for what it refuses, cut at 60 characters."""
    # Pillow's default font draws only ASCII, so "é" would be an empty box.
    plain = "".join(part for part in unicodedata.normalize("NFKD", str(text)) if not unicodedata.combining(part))
    encoding = "utf-8" if isinstance(font, ImageFont.FreeTypeFont) else "latin-1"
    line = " ".join(plain.split()).encode(encoding, "replace").decode(encoding)
    return line if len(line) <= _MAX_NAME else line[: _MAX_NAME - 3] + "..."

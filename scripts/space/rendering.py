"""Colors, overlays, masks as files, and the HTML of legend and figures. NumPy and Pillow only.

`visualization.py` beside it is a link to the package's, which `hf upload` follows.
"""

import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image
from visualization import default_palette


# What is left of the picture's brightness outside the highlighted class.
_DIMMED = 0.35
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def model_colors(palette: Sequence[Sequence[int]] | None, num_labels: int) -> np.ndarray:
    """Colors of a model's classes: the palette of its configuration, else the default one.

    Args:
        palette: [red, green, blue] per class, 0 to 255, or None.
        num_labels: Number of classes.

    Returns:
        uint8 (num_labels, 3).

    Raises:
        ValueError: If the palette has not one color of three values in 0..255 per class.
    """
    if palette is None:
        return default_palette(num_labels)
    colors = np.asarray(palette)
    if colors.shape != (num_labels, 3) or colors.min() < 0 or colors.max() > 255:
        raise ValueError(
            f"palette in the model's configuration has shape {colors.shape}, but [red, green, blue] from 0 to 255 is "
            f"needed for each of {num_labels} classes: correct or remove it in config.json."
        )
    return colors.astype(np.uint8)


def shared_colors(labels: Sequence[Sequence[str]], colors: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The second model's colors made to fit the first's: one color a class name, and no color for two names.

    Args:
        labels: Class names of one or two models.
        colors: uint8 (num_labels, 3) of each.

    Returns:
        Colors of each model; the first model's are never changed.
    """
    of_name = {label: tuple(color.tolist()) for label, color in zip(labels[0], colors[0], strict=True)}
    fitted = [colors[0]]
    for more_labels, more_colors in zip(labels[1:], colors[1:], strict=True):
        for label, own in zip(more_labels, more_colors, strict=True):
            taken = set(of_name.values())
            choices = [tuple(own.tolist()), *map(tuple, default_palette(256).tolist())]
            of_name.setdefault(label, next((color for color in choices if color not in taken), choices[0]))
        fitted.append(np.array([of_name[label] for label in more_labels], dtype=np.uint8))
    return fitted


def blend(
    photo: np.ndarray, mask: np.ndarray, colors: np.ndarray, opacity: float, highlight: int | None = None
) -> Image.Image:
    """Lay a mask's colors over its picture.

    Args:
        photo: uint8 (height, width, 3).
        mask: Integers (height, width), class indices.
        colors: uint8 (num_labels, 3).
        opacity: Weight of the colors, 0 (picture only) to 1 (colors only).
        highlight: Class to show alone: all else is gray and dark. -1 for a class that the model does not know.

    Returns:
        RGB image of the same size.
    """
    picture = photo.astype(np.float32)
    blended = picture + (colors[mask] - picture) * np.float32(opacity)
    if highlight is not None:
        dimmed = (picture @ _LUMA * _DIMMED)[..., None]
        blended = np.where((mask == highlight)[..., None], blended, dimmed)
    return Image.fromarray(blended.round().astype(np.uint8))


def encode_mask(mask: np.ndarray, colors: np.ndarray) -> bytes:
    """A mask as PNG whose values are the class indices: indexed with the palette; 16-bit gray over 256 classes."""
    image = Image.fromarray(np.ascontiguousarray(mask))
    if len(colors) <= 256:
        image.putpalette(colors.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def decode_mask(png: bytes) -> np.ndarray:
    """The class indices (height, width) of `encode_mask`."""
    with Image.open(io.BytesIO(png)) as image:
        return np.array(image)


def encode_overlay(image: Image.Image) -> bytes:
    """JPEG in full color resolution, so that the edges of classes stay sharp."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


def percent(share: float) -> str:
    """A share of the pixels for people: one decimal, and neither 0.0 for something nor 100.0 for not all."""
    if share == 0:
        return "0 %"
    if share < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{100 * share:.1f} %"


def present_classes(labels: Sequence[Sequence[str]], areas: Sequence[np.ndarray]) -> list[tuple[str, list[float]]]:
    """Name and area per model of every class that some model found, the largest first."""
    shares = [dict(zip(names, of_model.tolist(), strict=True)) for names, of_model in zip(labels, areas, strict=True)]
    rows = [(name, [of_model.get(name, 0.0) for of_model in shares]) for name in dict.fromkeys(sum(labels, ()))]
    return sorted((row for row in rows if max(row[1]) > 0), key=lambda row: -max(row[1]))


def legend_html(
    labels: Sequence[tuple[str, ...]], colors: Sequence[np.ndarray], areas: Sequence[np.ndarray], highlight: str | None
) -> str:
    """The legend: one button a class with swatch, name, and area in percent of each model.

    Args:
        labels: Class names of one or two models.
        colors: Their colors as `shared_colors` gives them.
        areas: Their classes' shares of the pixels.
        highlight: Name of the highlighted class, None if there is none.
    """
    color_of = {
        name: "#{:02x}{:02x}{:02x}".format(*color)
        for names, of_model in zip(labels, colors, strict=True)
        for name, color in zip(names, of_model.tolist(), strict=True)
    }
    rows = "".join(
        _legend_row(name, shares, color_of[name], name == highlight) for name, shares in present_classes(labels, areas)
    )
    reset = "" if highlight else " hidden"
    return (
        '<div class="legend-head"><h2>Classes</h2><p>Choose one to see it alone.</p>'
        f'<button type="button" class="legend-reset" data-label=""{reset}>Show all</button></div>'
        f'<ul class="legend" aria-label="Classes found, by area">{rows}</ul>'
    )


def _legend_row(name: str, shares: Sequence[float], color: str, pressed: bool) -> str:
    text = html.escape(name)
    bars = "".join(
        f'<span class="share">{f"<abbr>{letter}</abbr>" if len(shares) > 1 else ""}'
        f'<span class="bar"><span style="width:{100 * share:.2f}%;background:{color}"></span></span>'
        f"<span>{html.escape(percent(share))}</span></span>"
        for letter, share in zip("AB", shares, strict=False)
    )
    size = "legend-row two" if len(shares) > 1 else "legend-row"
    return (
        f'<li><button type="button" class="{size}" data-label="{text}" aria-pressed="{str(pressed).lower()}">'
        f'<span class="swatch" style="background:{color}"></span><span class="name">{text}</span>'
        f'<span class="shares">{bars}</span></button></li>'
    )


def figures_html(figures: Sequence[tuple[str, str]]) -> str:
    """A row of figures: pairs of what it is, and its value."""
    tiles = "".join(f"<div><dt>{html.escape(what)}</dt><dd>{html.escape(value)}</dd></div>" for what, value in figures)
    return f'<dl class="figures">{tiles}</dl>'

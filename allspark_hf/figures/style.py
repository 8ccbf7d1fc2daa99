"""How the figures look: two backgrounds, colours that colour-blind readers tell apart, sizes for a page's width."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    from matplotlib.figure import Figure


__all__ = [
    "STYLES",
    "Style",
    "crop_note",
    "drawing",
    "hex_colors",
    "new_figure",
    "plain",
    "require_matplotlib",
    "write_figure",
]

WIDTH = 8.0  # inches
DPI = 150
FONT_SIZE = 9
FEATURE_COLORS = "cividis"  # the same to readers with and without a colour vision deficiency
MAX_NAME = 18


@dataclass(frozen=True)
class Style:
    """
    Colours of a figure, as hexadecimal strings.

    Args:
        name: "light" or "dark".
        background: Of the page.
        foreground: Of text, axes and outlines.
        muted: Of grid lines and frames.
        series: Of bars and curves, in this order: Okabe and Ito's, those that stand out from the background.
        wrong: Of pixels where only the baseline, only the model, or both are wrong.
        ignored: Of pixels that do not count.
    """

    name: str
    background: str
    foreground: str
    muted: str
    series: tuple[str, ...]
    wrong: tuple[str, str, str]
    ignored: str = "#8c8c8c"


STYLES = {
    "light": Style(
        name="light",
        background="#ffffff",
        foreground="#1a1a1a",
        muted="#c8c8c8",
        series=("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9"),
        wrong=("#56b4e9", "#d55e00", "#1a1a1a"),
    ),
    "dark": Style(
        name="dark",
        background="#14171c",
        foreground="#e8e8e8",
        muted="#4a4f57",
        series=("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#f0e442"),
        wrong=("#56b4e9", "#d55e00", "#ffffff"),
    ),
}


def require_matplotlib():
    """Raises ImportError, with the command to install it, if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Drawing figures needs matplotlib, which is not installed: pip install 'allspark-hf[figures]'."
        ) from error


@contextmanager
def drawing(style: Style) -> Iterator[None]:
    """Matplotlib's own defaults and a style's colours inside, the caller's settings again outside."""
    require_matplotlib()
    import matplotlib

    fore = style.foreground
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "font.size": FONT_SIZE,
                "axes.titlesize": FONT_SIZE,
                "figure.titlesize": FONT_SIZE + 2,
                "legend.frameon": False,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.axisbelow": True,
                "grid.color": style.muted,
                "grid.linewidth": 0.6,
                "hatch.linewidth": 0.8,
                "lines.scale_dashes": False,  # dashes of lines of any width lie on each other
                "lines.dashed_pattern": (6, 3),
                "figure.facecolor": style.background,
                "axes.facecolor": style.background,
                **{f"{name}.color": fore for name in ("text", "xtick", "ytick")},
                **{f"axes.{name}color": fore for name in ("edge", "label", "title")},
            }
        )
        yield


def new_figure(height: float, title: str) -> "Figure":
    """A figure of the page's width with a title, to be used inside [`drawing`]; `height` is in inches."""
    from matplotlib.figure import Figure  # no pyplot: nothing is global, and saving needs no display

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    figure.suptitle(plain(title))
    return figure


def write_figure(
    arrays: Mapping[str, np.ndarray],
    draw: Callable[[Mapping[str, np.ndarray], Style], "Figure"],
    folder: str | Path,
    name: str,
    backgrounds: Sequence[str] = ("light", "dark"),
) -> list[Path]:
    """Write a figure's arrays, and its picture once per background.

    Args:
        arrays: What the figure shows; numbers and strings.
        draw: Makes the picture from these arrays and a style.
        folder: Where to write; made if need be.
        name: Of the files: `<name>.npz`, `<name>_light.png`, `<name>_dark.png`.
        backgrounds: Names in `STYLES`.

    Returns:
        The files written, the arrays first.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.npz"]
    np.savez_compressed(paths[0], **arrays)
    for background in backgrounds:
        style = STYLES[background]
        paths.append(folder / f"{name}_{background}.png")
        with drawing(style):
            draw(arrays, style).savefig(paths[-1])
    return paths


def hex_colors(palette: np.ndarray) -> list[str]:
    """uint8 (colours, 3) as strings that matplotlib reads."""
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in palette]


def crop_note(arrays: Mapping[str, np.ndarray]) -> str:
    """What a title says about `pictures`, (..., height, width, 3), that are centre crops."""
    height, width = arrays["pictures"].shape[-3:-1]
    return f", centre crops of {height} x {width} pixels"


def plain(text: str, longest: int | None = None) -> str:
    """A text as it is, not as a formula, and cut to a length if one is given."""
    text = str(text)
    if longest is not None and len(text) > longest:
        text = text[: longest - 3] + "..."
    return text.replace("$", r"\$")

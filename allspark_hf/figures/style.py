"""Style of the figures: two backgrounds, colors that color-blind readers tell apart, sizes for a page's width."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 8.0  # inches
DPI = 150
FONT_SIZE = 9
FEATURE_COLORS = "cividis"  # the same to readers with and without a color vision deficiency
MAX_NAME = 18


@dataclass(frozen=True)
class Style:
    """
    Colors of a figure, as hexadecimal strings.

    Args:
        background (`str`): of the page.
        foreground (`str`): of text, axes and outlines.
        muted (`str`): of grid lines and frames.
        series (`tuple[str, ...]`):
            of bars and curves, in this order: Okabe and Ito's, those that stand out from the background.
        wrong (`tuple[str, str, str]`): of pixels where only the baseline, only the model, or both are wrong.
        ignored (`str`): of pixels that do not count.
    """

    background: str
    foreground: str
    muted: str
    series: tuple[str, ...]
    wrong: tuple[str, str, str]
    ignored: str = "#8c8c8c"


STYLES = {
    "light": Style(
        background="#ffffff",
        foreground="#1a1a1a",
        muted="#c8c8c8",
        series=("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9"),
        wrong=("#56b4e9", "#d55e00", "#1a1a1a"),
    ),
    "dark": Style(
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
    """Matplotlib's own defaults and a style's colors inside, the caller's settings again outside."""
    require_matplotlib()
    import matplotlib.style

    settings = {
        "font.size": FONT_SIZE,
        "axes.titlesize": FONT_SIZE,
        "figure.titlesize": FONT_SIZE + 2,
        "text.parse_math": False,  # a $ in the name of a class is a $
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
        **{f"{name}.color": style.foreground for name in ("text", "xtick", "ytick")},
        **{f"axes.{name}color": style.foreground for name in ("edge", "label", "title")},
    }
    with matplotlib.style.context(settings, after_reset=True):
        yield


def new_figure(height: float, title: str) -> "Figure":
    """A figure of the page's width with a title, to be used inside [`drawing`]; `height` is in inches."""
    from matplotlib.figure import Figure  # no pyplot: nothing is global, and saving needs no display

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    figure.suptitle(title)
    return figure


def write_figure(
    arrays: Mapping[str, np.ndarray],
    draw: Callable[[Mapping[str, np.ndarray], Style], "Figure"],
    folder: str | Path,
    name: str,
    backgrounds: Sequence[str] = ("light", "dark"),
) -> list[Path]:
    """
    Writes a figure's arrays, and its picture once per background.

    Args:
        arrays (`Mapping[str, np.ndarray]`): what the figure shows; numbers and strings.
        draw (`Callable`): makes the picture from these arrays and a [`Style`].
        folder (`str` or `Path`): where to write; made if need be.
        name (`str`): of the files: `<name>.npz`, `<name>_light.png`, `<name>_dark.png`.
        backgrounds (`Sequence[str]`, *optional*): names in `STYLES`.

    Returns:
        `list[Path]`: the files written, the arrays first.
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


def crop_note(arrays: Mapping[str, np.ndarray]) -> str:
    """What a title says about `pictures`, (..., height, width, 3), that are center crops."""
    height, width = arrays["pictures"].shape[-3:-1]
    return f", center crops of {height} x {width} pixels"


def shorten(text: str, longest: int = MAX_NAME) -> str:
    """A text cut to a length."""
    text = str(text)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."

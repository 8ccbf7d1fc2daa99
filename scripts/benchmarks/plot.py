"""The picture of the results: extra peak memory of the bottleneck by class count and memory size."""

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from allspark_hf.figures.style import STYLES, Style, drawing, new_figure

from .cases import OURS, TEXTBOOK, Case
from .results import Results


if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {OURS: "AllSpark", TEXTBOOK: "textbook"}
MARKERS = {0.5: "v", 1: "o", 2: "s", 4: "D"}
DASHES = {OURS: "-", TEXTBOOK: "--"}
LABEL_GAP = 0.055  # of the axis' height, that labels keep from each other


def memory_curves(results: Results) -> tuple[Case | None, dict[tuple[str, float], list[tuple[int, int]]]]:
    """
    The case whose size, crop, precision and batch the curves share, of several the one with most points; and by
    variant and memory size the points (class count, bytes), by ascending class count.
    """
    groups = defaultdict(lambda: defaultdict(list))
    for case in results.cases("bottleneck"):
        for variant in (OURS, TEXTBOOK):
            entry = results.get("bottleneck", case, variant)
            if "extra_bytes" in entry:
                shared = (case.size, case.crop, case.precision, case.batch_size)
                groups[shared][variant, case.memory_size].append((case, entry["extra_bytes"]))
    if not groups:
        return None, {}
    curves = max(groups.values(), key=lambda group: sum(map(len, group.values())))
    example = next(iter(curves.values()))[0][0]
    return example, {
        key: sorted((case.num_labels, taken) for case, taken in curves[key]) for key in sorted(curves, reverse=True)
    }


def draw_memory(example: Case, curves: dict[tuple[str, float], list[tuple[int, int]]], style: Style) -> "Figure":
    """Lines over the class count, both axes logarithmic; the lines are named at their right ends."""
    colors = {OURS: style.series[0], TEXTBOOK: style.series[4]}
    title = (
        f"Extra peak memory of the bottleneck in training, {example.size.upper()}, crop {example.crop}, "
        f"{example.precision}, batch {example.batch_size}+{example.batch_size}"
    )
    figure = new_figure(4.4, title)
    axes = figure.subplots()
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=10)
    for (variant, memory_size), points in curves.items():
        classes, taken = zip(*points, strict=True)
        axes.plot(
            classes,
            [each / 1e9 for each in taken],
            color=colors[variant],
            linestyle=DASHES[variant],
            marker=MARKERS[memory_size],
            markersize=5,
            linewidth=1.5,
        )
    ticks = sorted({classes for points in curves.values() for classes, _ in points})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("classes K")
    axes.set_ylabel("extra peak memory (GB)")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid()
    _name_lines(axes, curves, colors)
    return figure


def _name_lines(axes, curves: dict, colors: dict):
    """Names to the right of the lines' last points, moved apart where they would lie on each other."""
    axes.autoscale_view()  # which is otherwise done when drawing
    last = max(points[-1][0] for points in curves.values())
    to_axes = axes.transAxes.inverted()

    def height(taken: float) -> float:
        return to_axes.transform(axes.transData.transform((last, taken / 1e9)))[1]

    named = sorted((height(points[-1][1]), key) for key, points in curves.items())
    place = -1.0
    for own_height, (variant, memory_size) in named:
        place = max(own_height, place + LABEL_GAP)
        text = f"{NAMES[variant]}, memory {memory_size:g} C"
        axes.annotate(
            text,
            (1, place),
            (8, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            color=colors[variant],
            annotation_clip=False,
        )


def write_plot(results: Results, folder: Path, name: str) -> list[Path]:
    """
    `<name>.png` and `<name>.svg`, or nothing if the bottleneck's memory was not measured.

    Raises:
        ImportError: if matplotlib is missing.
    """
    example, curves = memory_curves(results)
    if example is None:
        return []
    style = STYLES["light"]
    paths = [folder / f"{name}.{suffix}" for suffix in ("png", "svg")]
    with drawing(style):
        figure = draw_memory(example, curves, style)
        for path in paths:
            figure.savefig(path)
    return paths


__all__ = ["draw_memory", "memory_curves", "write_plot"]

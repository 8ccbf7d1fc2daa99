"""The picture of the results: extra peak memory of the bottleneck by class count and memory size."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..figures.style import STYLES, Style, drawing, new_figure
from .cases import OURS, TEXTBOOK, Case
from .results import Results
from .timing import OUT_OF_MEMORY


if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {OURS: "AllSpark", TEXTBOOK: "textbook"}
MARKERS = {0.5: "v", 1: "o", 2: "s", 4: "D"}
DASHES = {OURS: "-", TEXTBOOK: "--"}
MEGABYTE = 1e6


@dataclass
class Curve:
    """
    Of one variant and memory size: `points` (class count, bytes) by ascending class count, and the class counts at
    which memory ran `out`.
    """

    points: list[tuple[int, int]] = field(default_factory=list)
    out: list[int] = field(default_factory=list)


def memory_curves(results: Results) -> tuple[Case | None, dict[tuple[str, float], Curve]]:
    """
    The case whose size, crop, precision and batch the curves share, of several the one with most points, or None
    without any; and the curves by variant and memory size, the largest memory first.
    """
    groups, examples = defaultdict(lambda: defaultdict(Curve)), {}
    for case in results.cases("bottleneck"):
        shared = (case.size, case.crop, case.precision, case.batch_size)
        examples.setdefault(shared, case)
        for variant in (OURS, TEXTBOOK):
            entry = results.get("bottleneck", case, variant)
            if "extra_bytes" in entry:
                groups[shared][variant, case.memory_size].points.append((case.num_labels, entry["extra_bytes"]))
            elif OUT_OF_MEMORY in entry.get("memory_error", ""):
                groups[shared][variant, case.memory_size].out.append(case.num_labels)
    sizes = {shared: sum(len(curve.points) for curve in group.values()) for shared, group in groups.items()}
    if not any(sizes.values()):
        return None, {}
    shared = max(sizes, key=sizes.get)
    curves = {key: groups[shared][key] for key in sorted(groups[shared], reverse=True) if groups[shared][key].points}
    for curve in curves.values():
        curve.points.sort()
    return examples[shared], curves


def draw_memory(example: Case, curves: dict[tuple[str, float], Curve], style: Style) -> "Figure":
    """Lines over the class count, both axes logarithmic."""
    from matplotlib.ticker import LogLocator, NullFormatter

    colors = {OURS: style.series[0], TEXTBOOK: style.series[4]}
    figure = new_figure(
        4.4,
        f"Extra peak memory of the bottleneck in training: {example.size.upper()}, crop {example.crop}, "
        f"{example.precision}, batch {example.batch_size}+{example.batch_size}",
    )
    axes = figure.subplots()
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=10)
    for (variant, memory_size), curve in curves.items():
        classes, taken = zip(*curve.points, strict=True)
        missing = f" (K {', '.join(map(str, sorted(curve.out)))}: out of memory)" if curve.out else ""
        axes.plot(
            classes,
            [each / MEGABYTE for each in taken],
            label=f"{NAMES[variant]}, memory {memory_size:g} C{missing}",
            color=colors[variant],
            linestyle=DASHES[variant],
            marker=MARKERS[memory_size],
            markersize=5,
        )
    ticks = sorted({classes for curve in curves.values() for classes, _ in curve.points})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("classes K (logarithmic)")
    axes.set_ylabel("extra peak memory, MB (logarithmic)")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=30))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid()
    figure.legend(loc="outside right center")
    return figure


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

"""The table and the plot of a study: mean and spread over seeds, last and best epoch."""

import json
import math
import statistics
from pathlib import Path

from .study import StudyRunner


LINE_STYLES = ("-", "--", "-.", ":")
# Okabe and Ito's colours without black and yellow, which a light or a dark page would swallow.
LINE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"


def collect(runner: StudyRunner) -> dict[str, dict[str, list[dict]]]:
    """Row -> column -> the results of its finished seeds, each [`read_run_metrics`] plus `seed`."""
    results = {row: {column: [] for column in runner.study.columns} for row in runner.study.rows}
    for cell in runner.study.cells():
        result = runner.result(cell)
        if result is not None:
            results[cell.row][cell.column].append({"seed": cell.seed, **result})
    return results


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; the deviation of one value is NaN, both are of none."""
    if not values:
        return math.nan, math.nan
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def table(results: dict[str, dict[str, list[dict]]], num_seeds: int) -> str:
    """Markdown table, IoU in percent: last and best epoch of each cell."""
    columns = list(next(iter(results.values())))
    lines = [["", *(f"{column}, {kind}" for column in columns for kind in ("last", "best"))]]
    for row, cells in results.items():
        line = [row]
        for column in columns:
            for kind in ("last_mean_iou", "best_mean_iou"):
                line.append(_cell_text([run[kind] for run in cells[column]], num_seeds))
        lines.append(line)
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    text = [
        "| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + " |" for line in lines
    ]
    text.insert(1, "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|")
    return "\n".join(text) + "\n"


def _cell_text(values: list[float], num_seeds: int) -> str:
    if not values:
        return "-"
    mean, spread = mean_and_spread(values)
    text = f"{100 * mean:.1f}" if math.isnan(spread) else f"{100 * mean:.1f} ± {100 * spread:.1f}"
    return text if len(values) == num_seeds else f"{text} ({len(values)} of {num_seeds})"


def draw(path: Path, runner: StudyRunner, results: dict, dark: bool = False):
    """
    The last mIoU of each row over the columns, with the spread over seeds as bars and every run as a dot.

    Columns whose names are all numbers are drawn to a logarithmic scale.
    """
    from matplotlib.figure import Figure

    study = runner.study
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    numbers = _numbers(list(study.columns))
    places = numbers or list(range(len(study.columns)))
    for index, (row, cells) in enumerate(results.items()):
        color = LINE_COLORS[index % len(LINE_COLORS)]
        points = [
            (place, *mean_and_spread([100 * run["last_mean_iou"] for run in runs]))
            for place, runs in zip(places, cells.values(), strict=True)
            if runs
        ]
        if not points:
            continue
        at, means, spreads = zip(*points, strict=True)
        bars = [0 if math.isnan(spread) else spread for spread in spreads]
        style = LINE_STYLES[index % len(LINE_STYLES)] if len(places) > 1 else ""
        axes.errorbar(
            at, means, bars, color=color, linestyle=style, marker=MARKERS[index % len(MARKERS)], capsize=3, label=row
        )
        for place, runs in zip(places, cells.values(), strict=True):
            axes.plot([place] * len(runs), [100 * run["last_mean_iou"] for run in runs], ".", color=color, alpha=0.4)
    if numbers:
        axes.set_xscale("log")
    axes.set_xticks(places, list(study.columns))
    axes.minorticks_off()
    axes.set(xlabel=study.column_title, ylabel="mIoU of the last epoch, %", title=study.title)
    axes.grid(alpha=0.25)
    axes.legend()
    if dark:
        _darken(figure, axes)
    figure.savefig(path, dpi=150)


def _numbers(names: list[str]) -> list[float] | None:
    try:
        numbers = [float(name) for name in names]
    except ValueError:
        return None
    return numbers if len(numbers) > 1 and min(numbers) > 0 else None


def _darken(figure, axes):
    ink, page = "#e6e6e6", "#16181d"
    figure.set_facecolor(page)
    axes.set_facecolor(page)
    axes.tick_params(colors=ink, which="both")
    for part in (axes.title, axes.xaxis.label, axes.yaxis.label):
        part.set_color(ink)
    for spine in axes.spines.values():
        spine.set_color(ink)
    legend = axes.get_legend()
    legend.get_frame().set(facecolor=page, edgecolor=ink)
    for text in legend.get_texts():
        text.set_color(ink)


def write_report(runner: StudyRunner) -> str:
    """Writes `study.json`, `study.md`, `study.png` and `study_dark.png` into the study's folder; returns the table."""
    results = collect(runner)
    text = table(results, len(runner.study.seeds))
    note = (
        f"\nmIoU in percent, mean ± standard deviation over the seeds {', '.join(map(str, runner.study.seeds))}, of "
        "the last and of the best evaluation; the best is picked on the same images.\n"
    )
    folder = runner.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    content = {"title": runner.study.title, "seeds": runner.study.seeds, "results": results}
    (folder / "study.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "study.md").write_text(f"# {runner.study.title}\n\n{text}{note}", encoding="utf-8")
    if any(runs for cells in results.values() for runs in cells.values()):
        draw(folder / "study.png", runner, results)
        draw(folder / "study_dark.png", runner, results, dark=True)
    return text


__all__ = ["collect", "draw", "mean_and_spread", "table", "write_report"]

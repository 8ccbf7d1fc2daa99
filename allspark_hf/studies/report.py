"""The table and the plot of a study: mean and spread over seeds, last and best epoch."""

import math
import statistics
from typing import TYPE_CHECKING

from ..figures.style import STYLES, Style, drawing, new_figure
from ..utils.files import write_json
from ..utils.text import markdown_table, text_table
from .study import StudyRunner


if TYPE_CHECKING:
    from matplotlib.figure import Figure


LINE_STYLES = ("-", "--", "-.", ":")
MARKERS = "osD^vP"


def collect(runner: StudyRunner) -> dict[str, dict[str, list[dict]]]:
    """Row -> column -> results of its finished seeds, each with the entries of [`read_run_metrics`] and `seed`."""
    results = {row: {column: [] for column in runner.study.columns} for row in runner.study.rows}
    for cell in runner.study.cells():
        result = runner.result(cell)
        if result is not None:
            results[cell.row][cell.column].append({"seed": cell.seed, **result})
    return results


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; NaN if there are too few values."""
    if not values:
        return math.nan, math.nan
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def table(results: dict[str, dict[str, list[dict]]], num_seeds: int) -> tuple[list[str], list[list[str]]]:
    """Header and rows, IoU in percent: last and best epoch of each cell."""
    columns = next(iter(results.values()))
    kinds = [(column, kind) for column in columns for kind in ("last", "best")]
    rows = [
        [row, *(_cell_text([run[f"{kind}_mean_iou"] for run in cells[column]], num_seeds) for column, kind in kinds)]
        for row, cells in results.items()
    ]
    return ["", *(f"{column}, {kind}" for column, kind in kinds)], rows


def _cell_text(values: list[float], num_seeds: int) -> str:
    if not values:
        return "-"
    mean, spread = mean_and_spread(values)
    text = f"{100 * mean:.1f}" if math.isnan(spread) else f"{100 * mean:.1f} ± {100 * spread:.1f}"
    return text if len(values) == num_seeds else f"{text} ({len(values)} of {num_seeds})"


def draw(runner: StudyRunner, results: dict, style: Style) -> "Figure":
    """
    Draws the last mIoU of each row over the columns, with the spread over seeds as bars and every run as a dot. If all
    columns are named by numbers, their scale is logarithmic. Call this inside [`drawing`].
    """
    study = runner.study
    figure = new_figure(4.5, study.title)
    axes = figure.subplots()
    numbers = _numbers(list(study.columns))
    places = numbers or list(range(len(study.columns)))
    for index, (row, cells) in enumerate(results.items()):
        look = {
            "color": style.series[index % len(style.series)],
            "linestyle": LINE_STYLES[index % len(LINE_STYLES)] if len(places) > 1 else "",
            "marker": MARKERS[index % len(MARKERS)],
        }
        values = {
            place: [100 * run["last_mean_iou"] for run in runs]
            for place, runs in zip(places, cells.values(), strict=True)
            if runs
        }
        points = [(place, *mean_and_spread(of_seeds)) for place, of_seeds in values.items()]
        if points:
            at, means, spreads = zip(*points, strict=True)
            bars = [0 if math.isnan(spread) else spread for spread in spreads]
            axes.errorbar(at, means, bars, capsize=3, label=row, **look)
        for place, of_seeds in values.items():
            axes.plot([place] * len(of_seeds), of_seeds, ".", color=look["color"], alpha=0.4)
    if numbers:
        axes.set_xscale("log")
    axes.set_xticks(places, list(study.columns))
    axes.minorticks_off()
    axes.set(xlabel=study.column_title, ylabel="mIoU of the last epoch (%)")
    axes.grid()
    figure.legend(loc="outside lower center", ncols=min(4, len(results)))
    return figure


def _numbers(names: list[str]) -> list[float] | None:
    try:
        numbers = [float(name) for name in names]
    except ValueError:
        return None
    return numbers if len(numbers) > 1 and min(numbers) > 0 else None


def write_report(runner: StudyRunner) -> str:
    """Writes `study.json`, `study.md` and the plots into the study's folder; returns the table for a terminal."""
    study, folder, results = runner.study, runner.output_dir, collect(runner)
    cells = table(results, len(study.seeds))
    note = (
        f"mIoU in percent, mean ± standard deviation over the seeds {', '.join(map(str, study.seeds))}, of the last "
        "and of the best evaluation; the best is picked on the same images."
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "study.json", {"title": study.title, "seeds": study.seeds, "results": results})
    (folder / "study.md").write_text(f"# {study.title}\n\n{markdown_table(*cells)}\n\n{note}\n", encoding="utf-8")
    if any(runs for cells in results.values() for runs in cells.values()):
        for name, style in STYLES.items():
            with drawing(style):
                draw(runner, results, style).savefig(folder / f"study_{name}.png")
    return text_table(*cells)

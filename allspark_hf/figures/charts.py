"""Drawing of the figures with axes: error by set (1c), channels per class (6), training curves."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from .style import WIDTH, Style, crop_note, new_figure, shorten


if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_BARS = 30
# Title, unit, and of each line its name in the log, in the legend, and the factor to the unit.
CURVE_PANELS = (
    ("Training loss", "cross-entropy", (("loss_x", "labeled", 1), ("loss_u", "unlabeled", 1))),
    ("Validation", "mIoU (%)", (("eval_mean_iou", "", 100),)),
    ("Learning rate", "", (("learning_rate", "encoder", 1), ("learning_rate_head", "head", 1))),
    ("Pixels used", "share (%)", (("used_x", "labeled", 100), ("used_u", "unlabeled", 100))),
    ("Held-out images", "kept pixels (%)", (("holdout_accuracy", "right", 100), ("holdout_kept", "of all", 100))),
    ("Pseudo-labels", "percent", (("pseudo_mean_iou", "mIoU", 100), ("pseudo_confidence", "confidence", 100))),
)
LINES = ("-", "--")


def draw_error_by_set(arrays: Mapping[str, np.ndarray], style: Style) -> "Figure":
    """Figure 1c from the arrays of [`error_by_set`]: error in percent by model and set, margins, their intervals."""
    error, margin, ends = (100 * arrays[name] for name in ("error", "margin", "margin_ends"))
    whiskers = np.stack([margin - ends[..., 0], ends[..., 1] - margin]).clip(min=0)  # (2, models, sets)
    *first, last = arrays["sets"]
    num_models, num_sets = error.shape
    title = f"Error on {', '.join(first)} and {last} images" if first else f"Error on {last} images"
    figure = new_figure(1.1 + 0.2 * num_models * (num_sets + 1), title)
    axes = figure.subplots()
    places, width = np.arange(num_models), 0.8 / num_sets
    for index, (name, count) in enumerate(zip(arrays["sets"], arrays["num_images"], strict=True)):
        y = places + (index - (num_sets - 1) / 2) * width
        color, label = style.series[index], f"{name} ({count} images)"
        of_margin = {"xerr": whiskers[:, :, index], "ecolor": style.foreground, "capsize": 2} if index else {}
        bars = axes.barh(y, error[:, index], 0.92 * width, color=color, label=label, **of_margin)
        texts = [f"{value:.1f}" for value in error[:, index]]
        if index:
            texts = [f"{text} ({gap:+.1f})" for text, gap in zip(texts, margin[:, index], strict=True)]
        # Its own background keeps grid lines out of the number.
        axes.bar_label(bars, texts, padding=3, bbox={"facecolor": style.background, "edgecolor": "none", "pad": 0.6})
    axes.vlines(error[:, 0], places - 0.4, places + 0.4, color=style.foreground, linewidth=1, linestyle=":")
    axes.set_yticks(places, arrays["models"])
    axes.set_ylim(num_models - 0.4, -0.6)  # the first model on top
    axes.set_xlim(0, 1.18 * max((error + whiskers[1]).max(), 1))
    axes.grid(axis="x")
    brackets = f"In brackets: margin to the {arrays['sets'][0]} images (dotted line)"
    axes.set_xlabel(f"error, 100 - mIoU (%)\n{brackets}, with its 95 % interval over images")
    figure.legend(loc="outside lower center", ncols=num_sets)
    return figure


def draw_channels_per_class(arrays: Mapping[str, np.ndarray], style: Style) -> "Figure":
    """Figure 6 from the arrays of [`channels_per_class`]: bars for all classes, or for the MAX_BARS most frequent."""
    from matplotlib.patches import Patch

    classes = _classes_to_show(arrays)
    colors = arrays["palette"][classes] / 255
    pictures = arrays["pictures"]
    num_images, height, width = pictures.shape[:3]
    figure = new_figure(
        1.0 + 1.3 * (num_images + 1), f"Channels that the grouping gives to each class{crop_note(arrays)}"
    )
    ratios = [min(1.3 * width / height, WIDTH / 3), WIDTH * 0.7]
    grid = figure.subplots(num_images + 1, 2, width_ratios=ratios, squeeze=False)
    for axes in grid[:, 0]:
        axes.set_axis_off()
    counted = len(arrays["set_counts"])
    text = f"mean of {counted}\n{arrays['set_name']} images"
    grid[0, 0].text(0.5, 0.5, text, ha="center", va="center", transform=grid[0, 0].transAxes)
    _bars(grid[0, 1], arrays["mean_counts"][classes], colors, np.ones(len(classes), dtype=bool), style)
    for row in range(num_images):
        grid[row + 1, 0].imshow(pictures[row])
        present = arrays["present"][row][classes] | ~arrays["has_mask"][row]
        _bars(grid[row + 1, 1], arrays["counts"][row][classes], colors, present, style)
        note = "" if arrays["has_mask"][row] else " (no mask)"
        grid[row + 1, 0].set_title(shorten(arrays["ids"][row]) + note, fontsize="small")
    for axes in grid[:-1, 1]:
        axes.set_xticks([])
    names = [shorten(arrays["class_names"][index]) for index in classes]
    grid[-1, 1].set_xticks(range(len(classes)), names, rotation=45, ha="right", rotation_mode="anchor")
    if len(classes) < len(arrays["class_names"]):
        grid[-1, 1].set_xlabel(f"{len(classes)} of {len(arrays['class_names'])} classes, those with most channels")
    handles = [
        Patch(facecolor=style.muted, edgecolor=style.foreground, label="class is in the image"),
        Patch(facecolor=style.background, edgecolor=style.foreground, hatch="////", label="class is not in the image"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def _classes_to_show(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """All class indices, or the MAX_BARS with most channels in the set, ascending."""
    return np.sort(np.argsort(-arrays["mean_counts"], kind="stable")[:MAX_BARS])


def _bars(axes, counts: np.ndarray, colors: np.ndarray, present: np.ndarray, style: Style):
    """Filled bars for classes in the image, hatched outlines for the others."""
    fills = [color if filled else style.background for color, filled in zip(colors, present, strict=True)]
    hatches = ["" if filled else "////" for filled in present]
    places = range(len(counts))
    bars = axes.bar(places, counts, color=fills, hatch=hatches, edgecolor=style.foreground, linewidth=0.6)
    if len(counts) <= 12:
        axes.bar_label(bars, fmt="%.1f" if counts.dtype.kind == "f" else "%d", padding=1, fontsize="small")
    axes.set_ylabel("channels")
    axes.set_ylim(0, 1.2 * max(counts.max(), 1))
    axes.set_xlim(-0.6, len(counts) - 0.4)
    axes.grid(axis="y")


def draw_curves(arrays: Mapping[str, np.ndarray], style: Style) -> "Figure":
    """Training curves from the arrays of [`read_curves`]: a panel for each kind of number that some run logged.

    Raises:
        ValueError: if no run logged any of them.
    """
    from matplotlib.lines import Line2D

    panels = [
        (title, unit, [line for line in lines if line[0] in arrays["series"]]) for title, unit, lines in CURVE_PANELS
    ]
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        raise ValueError("The runs logged neither losses nor evaluations, so there is no curve to draw: train longer.")
    runs = list(dict.fromkeys(arrays["run"].tolist()))
    colors = {run: style.series[index % len(style.series)] for index, run in enumerate(runs)}
    num_rows = -(-len(panels) // 2)
    figure = new_figure(0.9 + 2.4 * num_rows, "Training curves")
    grid = figure.subplots(num_rows, min(2, len(panels)), squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes, (title, unit, lines) in zip(grid.flat, panels, strict=False):
        for (series, _, factor), dashes in zip(lines, LINES, strict=False):
            _curve_of_each_run(axes, arrays, series, factor, colors, dashes)
        axes.set_title(title, loc="left", fontweight="bold")
        axes.set_xlabel("epoch")
        axes.set_ylabel(unit)
        axes.grid()
        if len(lines) > 1:
            keys = [
                Line2D([], [], color=style.foreground, linestyle=dashes, label=label)
                for (_, label, _), dashes in zip(lines, LINES, strict=False)
            ]
            # On the line of the title, where no data is.
            axes.legend(handles=keys, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0, ncols=2, handlelength=1.7)
    keys = [Line2D([], [], color=color, label=run) for run, color in colors.items()]
    figure.legend(handles=keys, loc="outside lower center", ncols=min(4, len(runs)))
    return figure


def _curve_of_each_run(axes, arrays: Mapping[str, np.ndarray], series: str, factor: float, colors: dict, dashes: str):
    logged = [(arrays["run"] == run) & (arrays["series"] == series) for run in colors]
    points = [np.stack([arrays["epoch"][rows], factor * arrays["value"][rows]]) for rows in logged]
    for index, ((x, y), color) in enumerate(zip(points, colors.values(), strict=True)):
        marker = "o" if len(x) <= 12 else None
        # What later runs cover exactly, such as one learning rate for all, stays visible around them.
        covered = sum(np.array_equal(points[index], later) for later in points[index + 1 :])
        width = 1.5 + 2 * covered
        axes.plot(x, y, color=color, linestyle=dashes, linewidth=width, marker=marker, markersize=2 * width)

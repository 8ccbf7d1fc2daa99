"""Drawing of the figures made of pictures: channels (5), memory (7), predictions (b)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageColor

from ..inference.visualization import colorize
from .predictions import BASELINE_WRONG, BOTH_WRONG, IGNORED, MODEL_WRONG
from .style import FEATURE_COLORS, MAX_NAME, WIDTH, Style, crop_note, new_figure, shorten


if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARGIN = 1.1  # inches for title, legend and gaps
CHARACTER = 0.078  # inches of a line that a character takes
LEGEND_COLUMNS = 5
GAP = 0.15  # between the two rows of an image and the next, in heights of a row
FAINT = 0.25  # weight of the image under a difference map


def draw_bottleneck_channels(arrays: Mapping[str, np.ndarray], style: Style) -> "Figure":
    """Figure 5 from the arrays of [`bottleneck_channels`]: of each image a row of maps before, and one after."""
    pictures, shown = arrays["pictures"], arrays["shown"]
    num_images, num_shown = shown.shape
    aspect = pictures.shape[1] / pictures.shape[2]
    # The image is twice as large as a map, because it has two rows.
    map_width = (WIDTH - 0.8) / (num_shown + 2)
    title = f"Channels before and after the bottleneck{crop_note(arrays)}"
    figure = new_figure(MARGIN + num_images * (2 * map_width * aspect + 0.4), title)
    # Two rows an image, and a gap.
    ratios = {"width_ratios": [2] + [1] * num_shown, "height_ratios": [1, 1, GAP] * num_images}
    grid = figure.add_gridspec(3 * num_images, num_shown + 1, **ratios)
    for row in range(num_images):
        axes = figure.add_subplot(grid[3 * row : 3 * row + 2, 0])
        _picture(axes, pictures[row], style)
        axes.set_title(shorten(arrays["ids"][row], 2 * MAX_NAME), fontsize="small")
        for half, name in enumerate(("before", "after")):
            for column, channel in enumerate(shown[row]):
                axes = figure.add_subplot(grid[3 * row + half, 1 + column])
                _heat_map(axes, arrays[name][row, channel], aspect, style)
                if half == 0:
                    axes.set_title(f"channel {channel}", fontsize="small")
                if column == 0:
                    axes.set_ylabel(name)
    _heat_scale(figure)
    return figure


def draw_memory_contents(arrays: Mapping[str, np.ndarray], style: Style) -> "Figure":
    """Figure 7 from the arrays of [`memory_contents`]: a row for each class, of pairs of an image and its channel."""
    places, slots, grid_size = arrays["shown_places"], arrays["shown_slots"], arrays["grid"]
    pictures = arrays["pictures"]
    aspect = pictures.shape[2] / pictures.shape[3]
    num_rows, num_shown = places.shape
    height = MARGIN + num_rows * ((WIDTH - 0.6) / (2 * num_shown) * aspect + 0.22)
    figure = new_figure(height, f"Channels in the memory, each beside its image{crop_note(arrays)}")
    grid = figure.subplots(num_rows, 2 * num_shown, squeeze=False)
    for row, slot in enumerate(slots):
        grid[row, 0].set_ylabel(shorten(arrays["slot_names"][slot]))
        for index, place in enumerate(places[row]):
            left, right = grid[row, 2 * index : 2 * index + 2]
            if place < 0:
                left.remove()
                right.remove()
                continue
            _picture(left, pictures[row, index], style)
            left.set_title(shorten(arrays["ids"][arrays["source_row"][slot, place]]), fontsize="x-small")
            _heat_map(right, arrays["channels"][slot, place].reshape(grid_size), aspect, style)
            right.set_title(f"channel {arrays['source_channel'][slot, place]}", fontsize="x-small")
    _heat_scale(figure)
    return figure


def draw_predictions(arrays: Mapping[str, np.ndarray], style: Style) -> "Figure":
    """Figure b from the arrays of [`compare_predictions`]: a row for each image."""
    models, num_images = [str(name) for name in arrays["models"]], len(arrays["ids"])
    ignore_index, palette = int(arrays["ignore_index"]), arrays["palette"]
    titles = ["image", "truth", *models, *(f"difference to\n{name}" for name in models[:-1] or ["truth"])]
    column_width = (WIDTH - 0.5) / len(titles)
    sizes = [arrays[f"picture_{row}"].shape[:2] for row in range(num_images)]
    heights = [column_width * height / width for height, width in sizes]
    handles = _prediction_legend(arrays, style)
    height = 0.95 + sum(heights) + 0.05 * num_images + 0.17 * -(-len(handles) // LEGEND_COLUMNS)
    figure = new_figure(height, "Predictions, and where they are wrong")
    grid = figure.subplots(num_images, len(titles), squeeze=False, height_ratios=heights)
    for row in range(num_images):
        picture, truth = arrays[f"picture_{row}"], arrays[f"truth_{row}"]
        painted = [picture, np.array(colorize(truth, palette, ignore_index))]
        # A model's classes may go up to 255: no predicted value is set apart as ignored.
        painted += [np.array(colorize(mask, palette, None)) for mask in arrays[f"predictions_{row}"]]
        painted += [paint_difference(codes, picture, style) for codes in arrays[f"differences_{row}"]]
        for axes, pixels in zip(grid[row], painted, strict=True):
            _picture(axes, pixels, style)
        grid[row, 0].set_ylabel(shorten(arrays["ids"][row]), fontsize="x-small")
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title("\n".join(shorten(line, int(column_width / CHARACTER)) for line in title.split("\n")))
    figure.legend(handles=handles, loc="outside lower center", ncols=LEGEND_COLUMNS, fontsize="small")
    return figure


def paint_difference(codes: np.ndarray, picture: np.ndarray, style: Style) -> np.ndarray:
    """
    A difference map in a style's colors, uint8 (height, width, 3), over the faint gray image where all is right.

    Args:
        codes (`np.ndarray`): uint8 (height, width), see [`difference`].
        picture (`np.ndarray`): uint8 (height, width, 3).
        style ([`Style`]): its `wrong` colors the errors, `ignored` the ignored pixels.
    """
    background = np.array(ImageColor.getrgb(style.background), dtype=np.float32)
    gray = np.array(Image.fromarray(picture).convert("L"), dtype=np.float32)[..., None]
    painted = (background + FAINT * (gray - background)).round().astype(np.uint8)
    of_codes = zip((BASELINE_WRONG, MODEL_WRONG, BOTH_WRONG, IGNORED), (*style.wrong, style.ignored), strict=True)
    for code, color in of_codes:
        painted[codes == code] = ImageColor.getrgb(color)
    return painted


def _prediction_legend(arrays: Mapping[str, np.ndarray], style: Style) -> list:
    """Keys of the classes that occur, and of the kinds of difference."""
    from matplotlib.patches import Patch

    num_images = len(arrays["ids"])
    masks = [arrays[f"{name}_{row}"].ravel() for name in ("truth", "predictions") for row in range(num_images)]
    occurring = np.unique(np.concatenate(masks))
    colors = arrays["palette"] / 255
    keys = [(colors[index], shorten(name)) for index, name in enumerate(arrays["class_names"]) if index in occurring]
    *baselines, model = [name.split("\n")[0] for name in arrays["models"]]
    if baselines:
        keys.append((style.wrong[0], f"wrong: {baselines[0] if len(baselines) == 1 else 'baseline'}"))
    keys.append((style.wrong[1], f"wrong: {model}"))
    if baselines:
        keys.append((style.wrong[2], "wrong: both"))
    keys.append((style.ignored, "ignored"))
    return [Patch(facecolor=color, edgecolor=style.foreground, label=label) for color, label in keys]


def _picture(axes, pixels: np.ndarray, style: Style):
    axes.imshow(pixels, interpolation="nearest", aspect="equal")
    _frame(axes, style)


def _heat_map(axes, values: np.ndarray, aspect: float, style: Style):
    """A channel from its lowest to its highest value, each token a box, in the shape of the image."""
    height, width = values.shape
    axes.imshow(values, cmap=FEATURE_COLORS, interpolation="nearest", aspect=aspect * width / height)
    _frame(axes, style)


def _frame(axes, style: Style):
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(style.muted)


def _heat_scale(figure: "Figure"):
    """The key of the heat maps, below all of them."""
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(
        ScalarMappable(cmap=FEATURE_COLORS), ax=figure.axes, location="bottom", fraction=0.02, aspect=40, shrink=0.5
    )
    bar.set_ticks([0, 1], labels=["lowest of each map", "highest"])
    bar.outline.set_visible(False)

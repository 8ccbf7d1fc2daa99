"""Pictures of the figures: size, colors, nothing cut off or covered, both backgrounds."""

import sys

import numpy as np
import pytest
from PIL import Image

from allspark_hf.figures import DRAWERS, STYLES, require_matplotlib, write_figure
from allspark_hf.figures.pictures import paint_difference
from allspark_hf.figures.style import DPI, WIDTH, drawing, shorten
from allspark_hf.inference.visualization import default_palette


matplotlib = pytest.importorskip("matplotlib")


def class_names(num_labels: int) -> np.ndarray:
    return np.array([f"class number {index} at $5" for index in range(num_labels)])


def error_arrays(num_models: int = 2, num_sets: int = 3) -> dict:
    error = np.linspace(0.2, 0.99, num_models * num_sets).reshape(num_models, num_sets)
    return {
        "models": np.array([f"model_{index}" for index in range(num_models)]),
        "sets": np.array(["labeled", "unlabeled", "validation"][:num_sets]),
        "num_images": np.array([183, 10399, 1449][:num_sets]),
        "error": error,
        "margin": error - error[:, :1],
        "margin_ends": (error - error[:, :1])[:, :, None] + [-0.05, 0.03],
    }


def channel_arrays(num_images: int = 2, num_shown: int = 6, crop=(48, 80)) -> dict:
    rng = np.random.default_rng(0)
    return {
        "ids": np.array([f"aachen_{index:06d}_000019" for index in range(num_images)]),
        "pictures": rng.integers(256, size=(num_images, *crop, 3), dtype=np.uint8),
        "before": rng.random((num_images, 8, 5, 6)),
        "after": rng.random((num_images, 8, 5, 6)),
        "shown": np.tile(np.arange(num_shown), (num_images, 1)),
    }


def grouping_arrays(num_labels: int = 5, num_images: int = 2) -> dict:
    rng = np.random.default_rng(0)
    return {
        "ids": np.array(["first", "second", "third"][:num_images]),
        "pictures": rng.integers(256, size=(num_images, 64, 64, 3), dtype=np.uint8),
        "counts": rng.integers(50, size=(num_images, num_labels)),
        "present": rng.random((num_images, num_labels)) < 0.5,
        "has_mask": np.ones(num_images, dtype=bool),
        "set_counts": np.zeros((7, num_labels), dtype=int),
        "set_name": np.array("validation"),
        "mean_counts": rng.random(num_labels) * 50,
        "class_names": class_names(num_labels),
        "palette": default_palette(num_labels),
    }


def memory_arrays(num_slots: int = 3) -> dict:
    rng = np.random.default_rng(0)
    return {
        "channels": rng.random((num_slots, 4, 6)),
        "source_row": rng.integers(2, size=(num_slots, 4)),
        "source_channel": rng.integers(32, size=(num_slots, 4)),
        "ids": np.array(["aachen_000000_000019_leftImg8bit", "b"]),
        "grid": np.array([2, 3]),
        "slot_names": class_names(num_slots),
        "shown_slots": np.arange(num_slots),
        "shown_places": np.array([[0, 2, -1]] * num_slots),
        "pictures": rng.integers(256, size=(num_slots, 3, 48, 80, 3), dtype=np.uint8),
    }


def prediction_arrays(num_models: int = 2, num_labels: int = 5) -> dict:
    rng = np.random.default_rng(0)
    arrays = {
        "models": np.array(["pseudo_label_of_a_long_name", "supervised", "allspark"][-num_models:]),
        "ids": np.array(["wide", "high"]),
        "class_names": class_names(num_labels),
        "palette": default_palette(num_labels),
        "ignore_index": np.array(255),
    }
    for row, size in enumerate([(30, 60), (60, 30)]):
        arrays[f"picture_{row}"] = rng.integers(256, size=(*size, 3), dtype=np.uint8)
        arrays[f"truth_{row}"] = rng.choice([*range(num_labels), 255], size=size).astype(np.uint8)
        arrays[f"predictions_{row}"] = rng.integers(num_labels, size=(num_models, *size), dtype=np.uint8)
        arrays[f"differences_{row}"] = rng.choice([0, 1, 2, 3, 255], size=(max(num_models - 1, 1), *size))
    return arrays


def curve_arrays(series=("loss_x", "loss_u", "eval_mean_iou"), runs=("a", "b"), num_points: int = 20) -> dict:
    rows = [(run, name, point) for run in runs for name in series for point in range(num_points)]
    run, name, point = (np.array(column) for column in zip(*rows, strict=True))
    return {"run": run, "series": name, "step": point, "epoch": point / 2, "value": np.cos(point + 1) ** 2}


ALL_CURVES = (
    *("loss_x", "loss_u", "eval_mean_iou", "learning_rate", "learning_rate_head", "used_x", "used_u"),
    *("pseudo_mean_iou", "pseudo_confidence", "grad_norm"),
)
CASES = {
    "1c": [error_arrays(), error_arrays(1, 2), error_arrays(8)],
    "5": [channel_arrays(), channel_arrays(1, 3), channel_arrays(4, crop=(96, 64))],
    "6": [grouping_arrays(), grouping_arrays(2, 1), grouping_arrays(81, 3)],
    "7": [memory_arrays(), memory_arrays(1)],
    "b": [prediction_arrays(), prediction_arrays(1), prediction_arrays(3, 21)],
    "curves": [
        curve_arrays(),
        curve_arrays(ALL_CURVES, [f"run {index}" for index in range(5)]),
        curve_arrays(("loss_x",)),
    ],
}


def titles_of(axes) -> list:
    """The text objects of the titles, left or middle, that are not empty."""
    words = {axes.get_title(place) for place in ("left", "center")} - {""}
    return [child for child in axes.get_children() if hasattr(child, "get_text") and child.get_text() in words]


ALL_CASES = [(name, index) for name, cases in CASES.items() for index in range(len(cases))]


@pytest.mark.parametrize(("name", "index"), ALL_CASES)
def test_nothing_is_cut_off_or_covered(name, index):
    style = STYLES["light"]
    with drawing(style):
        figure = DRAWERS[name](CASES[name][index], style)
        figure.draw_without_rendering()
        bounds = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert width == WIDTH
    assert bounds.x0 > -0.01 and bounds.y0 > -0.01 and bounds.x1 < width + 0.01 and bounds.y1 < height + 0.01
    frames = [axes.get_window_extent() for axes in figure.axes]
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    for legend in legends:
        assert not any(legend.get_window_extent().overlaps(frame) for frame in frames)
    titles = [title.get_window_extent() for axes in figure.axes for title in titles_of(axes)]
    assert titles or name == "1c"
    for number, title in enumerate(titles):
        others = [*titles[:number], *frames, *(legend.get_window_extent() for legend in legends)]
        assert not any(title.overlaps(other) for other in others)


@pytest.mark.parametrize("name", list(CASES))
def test_both_backgrounds_are_written_with_the_arrays_that_draw_them_again(name, tmp_path):
    arrays = CASES[name][0 if name == "curves" else 1]  # the small ones
    paths = write_figure(arrays, DRAWERS[name], tmp_path / "new", "picture")
    assert [path.name for path in paths] == ["picture.npz", "picture_light.png", "picture_dark.png"]
    pixels = {}
    for background_name, style in STYLES.items():
        with Image.open(tmp_path / "new" / f"picture_{background_name}.png") as picture:
            assert len(picture.convert("RGB").getcolors(picture.width * picture.height)) > 20
            pixels[background_name] = np.asarray(picture.convert("RGB"))
        background = tuple(bytes.fromhex(style.background[1:]))
        assert pixels[background_name].shape[1] == WIDTH * DPI
        is_background = (pixels[background_name] == background).all(axis=-1)
        assert is_background[0].all() and is_background[-1].all()
        assert 0.02 < 1 - is_background.mean() < 0.95
    assert pixels["light"][0, 0].min() == 255 and pixels["dark"][0, 0].max() < 40
    again = write_figure(np.load(paths[0]), DRAWERS[name], tmp_path / "again", "picture", ["dark"])
    assert again[0].read_bytes() == paths[0].read_bytes() and again[1].read_bytes() == paths[2].read_bytes()


def test_bars_have_the_length_of_the_numbers_and_no_number_covers_another():
    arrays, style = error_arrays(8), STYLES["dark"]
    with drawing(style):
        figure = DRAWERS["1c"](arrays, style)
        figure.draw_without_rendering()
    (axes,) = figure.axes
    lengths = sorted(patch.get_width() for patch in axes.patches if patch.get_width() > 0.1)
    np.testing.assert_allclose(lengths, np.sort(100 * arrays["error"].ravel()))
    assert figure.get_suptitle() == "Error on labeled, unlabeled and validation images"
    texts = [text.get_text() for text in axes.texts]
    assert f"{100 * arrays['error'][1, 2]:.1f} ({100 * arrays['margin'][1, 2]:+.1f})" in texts
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(box.overlaps(other) for number, box in enumerate(boxes) for other in boxes[:number])
    ends = [collection.get_segments() for collection in axes.collections if len(collection.get_segments()) == 8]
    assert any(np.allclose(np.array(of_set)[0, :, 0], error_and_ends(arrays, 0, 2)) for of_set in ends)


def error_and_ends(arrays: dict, model: int, index: int) -> np.ndarray:
    """Where the whiskers of a bar end, in percent."""
    return 100 * (arrays["error"][model, 0] + arrays["margin_ends"][model, index])


def test_bars_tell_classes_in_the_image_by_their_color():
    arrays = grouping_arrays(num_images=1)
    arrays["present"] = np.array([[True, False, True, False, True]])
    with drawing(STYLES["light"]):
        axes = DRAWERS["6"](arrays, STYLES["light"]).axes[-1]
    assert [patch.get_height() for patch in axes.patches] == arrays["counts"][0].tolist()
    assert [bool(patch.get_hatch()) for patch in axes.patches] == [False, True, False, True, False]
    assert matplotlib.colors.to_hex(axes.patches[2].get_facecolor()) == "#56b4e9"


def test_of_many_classes_those_with_most_channels_have_bars():
    arrays = grouping_arrays(81)
    with drawing(STYLES["light"]):
        axes = DRAWERS["6"](arrays, STYLES["light"]).axes[-1]
    names = [label.get_text() for label in axes.get_xticklabels()]
    most = sorted(np.argsort(-arrays["mean_counts"])[:30])
    assert names == [shorten(arrays["class_names"][index], 18) for index in most]
    assert axes.get_xlabel().startswith("30 of 81 classes")


def test_curves_are_in_percent_and_have_a_panel_each():
    arrays = curve_arrays(("loss_x", "eval_mean_iou", "pseudo_confidence"))
    with drawing(STYLES["light"]):
        panels = {axes.get_title("left"): axes for axes in DRAWERS["curves"](arrays, STYLES["light"]).axes}
    assert list(panels) == ["Training loss", "Validation", "Pseudo-labels"]
    rows = (arrays["run"] == "b") & (arrays["series"] == "eval_mean_iou")
    line = panels["Validation"].lines[1]
    np.testing.assert_allclose(line.get_ydata(), 100 * arrays["value"][rows])
    np.testing.assert_allclose(line.get_xdata(), arrays["epoch"][rows])
    with drawing(STYLES["light"]):
        same = curve_arrays(("learning_rate",)) | {"value": np.tile(np.arange(20.0), 2)}
        (axes,) = DRAWERS["curves"](same, STYLES["light"]).axes
    assert axes.lines[0].get_linewidth() > axes.lines[1].get_linewidth() == line.get_linewidth()
    with pytest.raises(ValueError, match="no curve to draw"):
        DRAWERS["curves"](curve_arrays(("grad_norm",)), STYLES["light"])


def test_difference_maps_color_the_errors():
    style = STYLES["dark"]
    codes = np.array([[0, 1], [2, 3], [255, 255]], dtype=np.uint8)
    painted = paint_difference(codes, np.full((3, 2, 3), 200, dtype=np.uint8), style)
    colors = ["#{:02x}{:02x}{:02x}".format(*pixel) for pixel in painted.reshape(-1, 3)]
    assert colors[1:] == [*style.wrong, style.ignored, style.ignored]
    assert colors[0] not in colors[1:] and painted[0, 0].max() < 90


def test_the_callers_settings_are_left_alone():
    with matplotlib.rc_context({"font.size": 33.0, "text.color": "red"}):
        with drawing(STYLES["dark"]):
            assert matplotlib.rcParams["font.size"] == 9
        assert matplotlib.rcParams["font.size"] == 33 and matplotlib.rcParams["text.color"] == "red"


def test_missing_matplotlib_gives_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"needs matplotlib.*pip install 'allspark-hf\[figures\]'"):
        require_matplotlib()
    with pytest.raises(ImportError, match="needs matplotlib"):
        write_figure(error_arrays(), DRAWERS["1c"], tmp_path, "picture")

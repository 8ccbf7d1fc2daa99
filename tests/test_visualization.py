import numpy as np
import pytest
from PIL import Image

from allspark_hf.inference.visualization import (
    colorize,
    default_palette,
    index_image,
    legend,
    overlay,
)
from allspark_hf.inference.writers import stored_image


PALETTE = [[10, 20, 30], [200, 100, 0], [0, 50, 250]]
MASK = np.array([[0, 1, 2], [2, 255, 1]])


def test_palette_starts_with_okabe_ito_and_stays_unique():
    palette = default_palette(256)
    assert palette.dtype == np.uint8
    assert palette[:4].tolist() == [[0, 0, 0], [230, 159, 0], [86, 180, 233], [0, 158, 115]]
    assert len({tuple(color) for color in palette.tolist()}) == 256
    assert [255, 255, 255] not in palette.tolist()


@pytest.mark.parametrize("num_labels", [1, 2, 8, 21, 150])
def test_a_palette_is_the_beginning_of_a_longer_one(num_labels):
    np.testing.assert_array_equal(default_palette(num_labels), default_palette(256)[:num_labels])


def test_a_changed_palette_does_not_change_the_next():
    default_palette(3)[:] = 7
    assert default_palette(3)[0].tolist() == [0, 0, 0]


def test_first_21_colors_are_far_apart():
    colors = default_palette(21).astype(int)
    distances = np.abs(colors[:, None] - colors[None]).sum(axis=-1) + 999 * np.eye(21, dtype=int)
    assert distances.min() > 60


def test_the_default_palette_repeats_after_256_classes():
    colors = default_palette(300)
    assert len(np.unique(colors[:256], axis=0)) == 256
    np.testing.assert_array_equal(colors[256:], colors[:44])


def test_masks_of_more_than_256_classes_are_saved_in_16_bits():
    saved = stored_image(np.array([[0, 299]]), default_palette(300), None)
    assert saved.mode == "I;16" and np.asarray(saved).tolist() == [[0, 299]]
    with pytest.raises(ValueError, match="palette has 300 colors, but an indexed image holds 256"):
        index_image(np.array([[0]]), default_palette(300))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_colorize(dtype):
    painted = colorize(MASK.astype(dtype), PALETTE)
    assert painted.mode == "RGB"
    expected = [[PALETTE[0], PALETTE[1], PALETTE[2]], [PALETTE[2], [255, 255, 255], PALETTE[1]]]
    assert np.asarray(painted).tolist() == expected


def test_ignore_index_can_be_negative_or_none():
    assert np.asarray(colorize(np.array([[-1, 1]]), PALETTE, ignore_index=-1)).tolist() == [
        [[255, 255, 255], PALETTE[1]]
    ]
    palette = default_palette(256)
    mask = np.array([[255]], dtype=np.uint8)
    assert np.asarray(colorize(mask, palette, ignore_index=None))[0, 0].tolist() == palette[255].tolist()


@pytest.mark.parametrize(("alpha", "expected"), [(0, [100, 100, 100]), (0.5, [150, 100, 50]), (1, [200, 100, 0])])
def test_overlay_blends_and_leaves_ignored_pixels(alpha, expected):
    image = Image.new("RGB", (3, 2), (100, 100, 100))
    blended = np.asarray(overlay(image, MASK, PALETTE, alpha))
    assert blended[0, 1].tolist() == expected
    assert blended[1, 1].tolist() == [100, 100, 100]


def test_overlay_names_both_sizes():
    with pytest.raises(ValueError, match=r"mask is 2x3 and image is 3x2 \(height x width\)"):
        overlay(Image.new("RGB", (2, 3)), MASK, PALETTE)


def test_overlay_alpha_range():
    with pytest.raises(ValueError, match=r"alpha is 1\.5"):
        overlay(Image.new("RGB", (3, 2)), MASK, PALETTE, alpha=1.5)


def test_index_image_round_trip(tmp_path):
    index_image(MASK, PALETTE).save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as read:
        assert read.mode == "P"
        np.testing.assert_array_equal(np.asarray(read), MASK)
        assert np.asarray(read.convert("RGB")).tolist() == np.asarray(colorize(MASK, PALETTE)).tolist()


def test_index_image_keeps_all_256_indices(tmp_path):
    mask = np.arange(256).reshape(16, 16)
    index_image(mask, default_palette(256), ignore_index=None).save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as read:
        np.testing.assert_array_equal(np.asarray(read), mask)
        np.testing.assert_array_equal(np.asarray(read.convert("RGB")).reshape(256, 3), default_palette(256))


@pytest.mark.parametrize("paint", [colorize, index_image])
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.array([[0, 3]]), r"class index 3, but the palette has 3 colors \(0 to 2\)"),
        (np.array([[0, -1]]), "class index -1"),
        (np.array([[0.0, 1.0]]), r"float64 of shape \(1, 2\)"),
        (np.array([0, 1]), r"int64 of shape \(2,\)"),
    ],
)
def test_bad_masks(paint, mask, message):
    with pytest.raises(ValueError, match=message):
        paint(mask, PALETTE)


@pytest.mark.parametrize(
    ("palette", "message"),
    [([1, 2, 3], r"shape \(3,\)"), ([[0.1, 0.2, 0.3]], "float64 values"), ([[0, 0, 300]], "from 0 to 300")],
)
def test_bad_palettes(palette, message):
    with pytest.raises(ValueError, match=message):
        colorize(np.array([[0]]), palette)


def test_index_image_refuses_an_ignore_index_over_8_bits():
    with pytest.raises(ValueError, match="ignore_index is -100"):
        index_image(MASK, PALETTE, ignore_index=-100)


def test_legend_shows_each_present_color_once():
    pixels = np.asarray(legend(["sky", "road", "car"], PALETTE, present=[2, 0])).reshape(-1, 3)
    counts = [int((pixels == color).all(axis=1).sum()) for color in PALETTE]
    assert counts[0] == counts[2] > 100
    assert counts[1] == 0


def test_legend_draws_the_names():
    # The swatches are equal, so only the names can make a difference.
    first, second = legend(["sky"], [[255, 0, 0]]), legend(["sea"], [[255, 0, 0]])
    assert np.asarray(first).tolist() != np.asarray(second).tolist()


def test_legend_takes_any_name():
    names = ["x" * 500, "道路", "\U0001f697", "two\nlines", "\ud800", "", "Straße"]
    image = legend(names, default_palette(7))
    assert image.width < 800
    accented, plain = legend(["été"], [[255, 0, 0]]), legend(["ete"], [[255, 0, 0]])
    assert np.asarray(accented).tolist() == np.asarray(plain).tolist()


def test_legend_without_freetype(monkeypatch):
    """Pillow's bitmap font takes no size and Latin-1 only."""
    from PIL import ImageFont

    bitmap = ImageFont.load_default_imagefont()

    def load_default(size=None):
        if size is not None:
            raise ImportError("no FreeType")
        return bitmap

    monkeypatch.setattr(ImageFont, "load_default", load_default)
    assert legend(["道路", "été"], PALETTE[:2]).height > 20


def test_legend_of_many_classes_has_columns():
    tall = legend([f"c{index}" for index in range(24)], default_palette(24))
    wide = legend([f"c{index}" for index in range(25)], default_palette(25))
    assert wide.height == tall.height
    assert wide.width > 1.8 * tall.width


@pytest.mark.parametrize("present", [[], [3], [255], [-1]])
def test_legend_refuses_unknown_classes(present):
    with pytest.raises(ValueError, match="indices from 0 to 2 are needed"):
        legend(["a", "b", "c"], PALETTE, present=present)


def test_legend_needs_a_name_per_color():
    with pytest.raises(ValueError, match="names has 2 entries and colors has 3"):
        legend(["a", "b"], PALETTE)

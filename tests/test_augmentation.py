"""Geometry and photometry of the training crops."""

import numpy as np
import pytest
from PIL import Image

from allspark_hf.data.augmentation import random_geometry, random_photometry, to_pixel_values


def checkerboard(size=(40, 60), cell=10):
    """An image whose grey level is 80 times its label, so that the two can be compared after any transform."""
    rows, columns = np.indices(size) // cell
    label = ((rows + columns) % 3).astype(np.uint8)
    image = np.repeat((label * 80)[..., None], 3, axis=2)
    return Image.fromarray(image), Image.fromarray(label)


@pytest.mark.parametrize("crop", [(33, 33), (20, 90), (128, 50), (1, 1)])
def test_image_and_label_stay_aligned(crop):
    agreement = []
    for seed in range(20):
        image, label = random_geometry(*checkerboard(), crop, np.random.default_rng(seed))
        assert image.size == label.size == crop[::-1]
        pixels, classes = np.asarray(image)[..., 0].astype(int), np.asarray(label).astype(int)
        assert (pixels[classes == 255] == 0).all()
        inside = classes != 255
        agreement.append((np.abs(pixels[inside] - 80 * classes[inside]) < 40).mean())
    assert np.mean(agreement) > 0.9  # only interpolated edges differ


def test_scales_cover_half_to_double_and_follow_the_long_side():
    for long_side, expected in ((None, 60), (120, 120)):
        widths = []
        for seed in range(300):
            _, label = random_geometry(*checkerboard(), (300, 300), np.random.default_rng(seed), long_side)
            known = np.asarray(label) != 255
            widths.append(known.any(0).sum())
            assert abs(known.any(1).sum() - widths[-1] * 40 / 60) <= 0.5  # the aspect is kept
        assert min(widths) < 0.55 * expected and max(widths) > 1.95 * expected
        assert min(widths) >= 0.5 * expected and max(widths) <= 2 * expected


def test_half_of_the_crops_are_mirrored():
    image = Image.fromarray(np.tile(np.arange(60, dtype=np.uint8)[None, :, None], (40, 1, 3)))
    mirrored = 0
    for seed in range(200):
        crop, _ = random_geometry(image, None, (10, 20), np.random.default_rng(seed))
        row = np.asarray(crop)[0, :, 0].astype(int)
        mirrored += row[-1] < row[0]
    assert 75 < mirrored < 125


def test_photometry_has_the_paper_probabilities_and_keeps_the_size():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(256, size=(24, 32, 3)).astype(np.uint8))
    original = np.asarray(image)
    unchanged = grey = 0
    for seed in range(600):
        result = np.asarray(random_photometry(image, np.random.default_rng(seed)))
        assert result.shape == original.shape and result.dtype == np.uint8
        unchanged += np.array_equal(result, original)
        grey += (result.max(2) == result.min(2)).all()
    assert 0.05 < unchanged / 600 < 0.11  # 0.2 without jitter x 0.8 in colour x 0.5 without blur = 0.08
    assert 0.16 < grey / 600 < 0.25


def test_photometry_is_reproducible():
    image, _ = checkerboard()
    one, two = (np.asarray(random_photometry(image, np.random.default_rng(5))) for _ in range(2))
    assert np.array_equal(one, two)


def test_pixel_values_are_normalised():
    image = Image.new("RGB", (3, 2), (255, 0, 51))
    values = to_pixel_values(image, mean=(0.5, 0.5, 0.1), std=(0.5, 0.25, 0.1))
    assert values.shape == (3, 2, 3)
    assert values[:, 0, 0].tolist() == pytest.approx([1.0, -2.0, 1.0])

"""Geometry and photometry of the training crops."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from allspark_hf.data.geometry import crop_image, crop_label, draw_geometry, shown_pixels
from allspark_hf.data.photometry import apply_photometry, draw_photometry, to_pixel_values


def checkerboard(size=(40, 60), cell=10):
    """An image whose gray level is 80 times its label, so that the two can be compared after any transform."""
    rows, columns = np.indices(size) // cell
    label = ((rows + columns) % 3).astype(np.uint8)
    image = np.repeat((label * 80)[..., None], 3, axis=2)
    return Image.fromarray(image), Image.fromarray(label)


def random_crop(image, label, crop, seed, long_side=None):
    """Both, with 255 as the label of padding."""
    geometry = draw_geometry(image.size, crop, np.random.default_rng(seed), long_side)
    return crop_image(image, geometry), crop_label(np.asarray(label), geometry, 255)


@pytest.mark.parametrize("crop", [(33, 33), (20, 90), (128, 50), (1, 1)])
def test_image_and_label_stay_aligned(crop):
    agreement = []
    for seed in range(20):
        image, label = random_crop(*checkerboard(), crop, seed)
        assert image.size == label.shape[::-1] == crop[::-1]
        pixels, classes = np.asarray(image)[..., 0].astype(int), np.asarray(label).astype(int)
        assert (pixels[classes == 255] == 0).all()
        inside = classes != 255
        agreement.append((np.abs(pixels[inside] - 80 * classes[inside]) < 40).mean())
    assert np.mean(agreement) > 0.9  # only interpolated edges differ


def test_scales_cover_half_to_double_and_follow_the_long_side():
    for long_side, expected in ((None, 60), (120, 120)):
        widths = []
        for seed in range(300):
            _, label = random_crop(*checkerboard(), (300, 300), seed, long_side)
            known = np.asarray(label) != 255
            widths.append(known.any(0).sum())
            assert abs(known.any(1).sum() - widths[-1] * 40 / 60) <= 0.5  # the aspect is kept
        assert min(widths) < 0.55 * expected and max(widths) > 1.95 * expected
        assert min(widths) >= 0.5 * expected and max(widths) <= 2 * expected


def test_half_of_the_crops_are_mirrored():
    image = Image.fromarray(np.tile(np.arange(60, dtype=np.uint8)[None, :, None], (40, 1, 3)))
    mirrored = 0
    for seed in range(200):
        crop, _ = random_crop(image, np.zeros((40, 60)), (10, 20), seed)
        row = np.asarray(crop)[0, :, 0].astype(int)
        mirrored += row[-1] < row[0]
    assert 75 < mirrored < 125


def test_photometry_has_the_paper_probabilities_and_keeps_the_size():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(256, size=(24, 32, 3)).astype(np.uint8))
    original = np.asarray(image)
    unchanged = gray = 0
    for seed in range(600):
        result = np.asarray(apply_photometry(image, draw_photometry(np.random.default_rng(seed))))
        assert result.shape == original.shape and result.dtype == np.uint8
        unchanged += np.array_equal(result, original)
        gray += (result.max(2) == result.min(2)).all()
    assert 0.05 < unchanged / 600 < 0.11  # 0.2 without jitter x 0.8 in color x 0.5 without blur = 0.08
    assert 0.16 < gray / 600 < 0.25


def test_photometry_is_reproducible():
    image, _ = checkerboard()
    one, two = (np.asarray(apply_photometry(image, draw_photometry(np.random.default_rng(5)))) for _ in range(2))
    assert np.array_equal(one, two)


def test_pixel_values_are_normalized():
    image = Image.new("RGB", (3, 2), (255, 0, 51))
    values = to_pixel_values(image, mean=(0.5, 0.5, 0.1), std=(0.5, 0.25, 0.1))
    assert values.shape == (3, 2, 3)
    assert values[:, 0, 0].tolist() == pytest.approx([1.0, -2.0, 1.0])


def resized_whole(image, label, geometry, padding):
    """The plain way: resize all, pad, crop, mirror."""
    resized = image.resize(geometry.size, Image.Resampling.BILINEAR)
    classes = label.resize(geometry.size, Image.Resampling.NEAREST)
    height, width = geometry.crop
    space = (0, 0, max(width - resized.width, 0), max(height - resized.height, 0))
    box = (geometry.left, geometry.top, geometry.left + width, geometry.top + height)
    resized = ImageOps.expand(resized, space, fill=(0, 0, 0)).crop(box)
    classes = ImageOps.expand(classes, space, fill=padding).crop(box)
    if geometry.mirrored:
        resized, classes = ImageOps.mirror(resized), ImageOps.mirror(classes)
    return np.asarray(resized), np.asarray(classes)


def test_a_crop_is_bit_for_bit_that_of_the_whole_resized_image():
    draw, padded, cut = np.random.default_rng(0), 0, 0
    for seed in range(300):
        size = draw.integers(1, 150, size=2)
        noise = draw.integers(256, size=(*size, 4)).astype(np.uint8)
        image, label = Image.fromarray(noise[..., :3]), Image.fromarray(noise[..., 3])
        crop, long_side = tuple(draw.integers(1, 120, size=2).tolist()), int(draw.integers(2, 250))
        geometry = draw_geometry(image.size, crop, np.random.default_rng(seed), long_side if seed % 2 else None)
        pixels, classes = resized_whole(image, label, geometry, 255)
        assert np.array_equal(crop_image(image, geometry), pixels), geometry
        assert np.array_equal(crop_label(noise[..., 3], geometry, 255), classes), geometry
        ones = Image.new("L", image.size, 1)
        assert np.array_equal(shown_pixels(geometry), resized_whole(image, ones, geometry, 0)[1] == 1), geometry
        padded += not shown_pixels(geometry).all()
        cut += geometry.size[0] > crop[1] and geometry.size[1] > crop[0]
    assert padded > 50 and cut > 50


@pytest.mark.parametrize(("size", "crop"), [((2048, 1024), (801, 801)), ((640, 480), (513, 513))])
def test_large_images_too(size, crop):
    noise = np.random.default_rng(0).integers(256, size=(*size[::-1], 4)).astype(np.uint8)
    image, label = Image.fromarray(noise[..., :3]), Image.fromarray(noise[..., 3])
    for seed in range(3):
        geometry = draw_geometry(size, crop, np.random.default_rng(seed))
        pixels, classes = resized_whole(image, label, geometry, 255)
        assert np.array_equal(crop_image(image, geometry), pixels)
        assert np.array_equal(crop_label(noise[..., 3], geometry, 255), classes)


def test_pixel_values_are_those_of_the_arithmetic():
    pixels = np.random.default_rng(0).integers(256, size=(13, 21, 3)).astype(np.uint8)
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    expected = ((pixels.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)
    assert np.array_equal(to_pixel_values(Image.fromarray(pixels), tuple(mean), tuple(std)), expected)

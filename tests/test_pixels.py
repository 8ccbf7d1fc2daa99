"""How image files become 8-bit RGB: what they hold, as a person would see it, or one sentence."""

import io
import logging
import mmap
import multiprocessing

import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, Features, Image
from layout_folders import rotated_exif
from mask_files import chunk
from picture_files import bands_tiff, bmp, deep_png

from allspark_hf.data import SegmentationData, check_data, mask_to_array, pixels, to_rgb
from allspark_hf.data.images import array_to_image, decode
from allspark_hf.data.pixels import ImageError, Reading, deep_values, load_image, open_image
from allspark_hf.data.summary import common_range, value_range, warn_of_range
from allspark_hf.inference.loading import load_trained
from allspark_hf.inference.many import read_picture
from allspark_hf.inference.prediction import model_picture


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(pixels, "_said", mmap.mmap(-1, 3))


def opened(content: bytes) -> PIL.Image.Image:
    return open_image(io.BytesIO(content))


def rgb(content: bytes, image_range=None) -> np.ndarray:
    return np.asarray(to_rgb(opened(content), Reading(image_range)))


def saved(image: PIL.Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def noise(bands: int, dtype=np.uint8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, np.iinfo(dtype).max, (5, 7, bands)).astype(dtype)


# A fourth band: what the file says of it, what it holds, whether it is opacity, and whether a line tells of it.
BANDS = {
    "near infrared, called opacity": ((2,), None, False, True),
    "near infrared, called multiplied opacity": ((1,), None, False, True),
    "unspecified, 0 and 255": ((0,), (0, 255), False, True),
    "not mentioned, 0 and 255": ((), (0, 255), False, True),
    "opacity, 0 and 255": ((2,), (0, 255), True, False),
    "multiplied opacity, 0 and 255": ((1,), (0, 255), True, False),
    "opaque throughout": ((2,), (255, 255), True, False),
    "transparent throughout": ((2,), (0, 0), False, True),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("name", BANDS)
def test_a_fourth_band_of_a_tiff_is_opacity_only_where_it_looks_like_it(name, dtype, caplog):
    extra, values, is_opacity, is_said = BANDS[name]
    stored = noise(4, dtype)
    if values is not None:
        stored[..., 3] = np.where(np.arange(7) < 3, *values).astype(dtype) * (np.iinfo(dtype).max // 255)
    colors = stored[..., :3] if dtype == np.uint8 else (stored[..., :3].astype(int) + 128) // 257
    if is_opacity:
        colors = np.where(stored[..., 3:] == 0, 255, colors)
    for _ in range(2):
        np.testing.assert_array_equal(rgb(bands_tiff(stored, extra)), colors)
    lines = [record.message for record in caplog.records]
    assert len(lines) == is_said and all("has 4 bands, of which 1 is left out" in line for line in lines)


def test_png_and_webp_always_have_opacity():
    stored = noise(4)
    expected = to_rgb(PIL.Image.fromarray(stored))
    image = PIL.Image.fromarray(stored)
    for content in (saved(image, "PNG"), saved(image, "WEBP", lossless=True, exact=True), saved(image, "TGA")):
        np.testing.assert_array_equal(rgb(content), np.asarray(expected))


def test_near_infrared_in_jpeg_2000_is_left_out():
    content = saved(PIL.Image.fromarray(noise(4)), "JPEG2000", irreversible=False)
    np.testing.assert_array_equal(rgb(content), noise(4)[..., :3])


def test_the_line_about_bands_names_the_file(tmp_path, caplog):
    (tmp_path / "field.tif").write_bytes(bands_tiff(noise(5), (0, 0)))
    assert to_rgb(open_image(tmp_path / "field.tif")).size == (7, 5)
    assert f"{tmp_path / 'field.tif'} has 5 bands, of which 2 are left out" in caplog.text


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("bands", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("said", [0, 2])
def test_gray_of_several_bands_is_right_or_refused(said, bands, planar, compressed, dtype):
    """As map programs write them; Pillow alone would show the first band of some."""
    stored, extra = noise(bands, dtype), (said,) * (bands - 1)
    try:
        shown = rgb(bands_tiff(stored, extra, rgb=False, planar=planar, compressed=compressed))
    except ValueError as error:
        assert (bands > 1 and isinstance(error, ImageError)) or (planar and "raw mode" in str(error))
        return
    assert bands < 3
    expected = stored[..., 0] if dtype == np.uint8 else (stored[..., 0].astype(int) + 128) // 257
    np.testing.assert_array_equal(shown, np.broadcast_to(expected[..., None], (5, 7, 3)))


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", [(3, ()), (4, ()), (4, (0,)), (4, (1,)), (4, (2,)), (5, (0, 0)), (5, (2, 0))])
def test_colors_of_several_bands_are_right_or_refused(kind, planar, compressed):
    bands, extra = kind
    try:
        shown = rgb(bands_tiff(noise(bands), extra, planar=planar, compressed=compressed))
    except ImageError as error:
        assert planar and "\n" not in str(error) and str(error).endswith(".")
        return
    np.testing.assert_array_equal(shown, noise(bands)[..., :3])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("bands", [3, 4])
def test_16_bit_colors_of_a_tiff_are_read_whole(bands, compressed, order):
    stored = noise(bands, np.uint16)
    image = load_image(opened(bands_tiff(stored, (2,) * (bands - 3), compressed=compressed, order=order)))
    np.testing.assert_array_equal(deep_values(image), stored[..., :3])


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_16_bit_png_is_read_whole_and_scaled_by_the_range(bands):
    stored = noise(bands, np.uint16) >> 4  # 12 bits
    if bands in (2, 4):
        stored[..., -1] = 65535
    colors = stored[..., : 3 if bands > 2 else 1]
    image = load_image(opened(deep_png(stored)))
    whole = np.broadcast_to(colors, (5, 7, 3))
    np.testing.assert_array_equal(np.broadcast_to(deep_values(image).reshape(5, 7, -1), (5, 7, 3)), whole)
    assert rgb(deep_png(stored)).max() <= 16  # nearly black
    expected = (np.clip(colors.astype(int) - 100, 0, 3900) * 255 + 1950) // 3900
    np.testing.assert_array_equal(rgb(deep_png(stored), [100, 4000]), np.broadcast_to(expected, (5, 7, 3)))


@pytest.mark.parametrize(
    ("image_range", "found", "is_said"),
    [
        (None, (100, 4000), True),
        (None, (100, 40_000), False),
        (None, (7, 7), False),
        ([0, 4095], (100, 1500), False),  # one of many images
        ([0, 4095], (100, 40_000), True),
        ([5000, 9000], (100, 4000), True),
    ],
)
def test_a_range_of_which_a_model_sees_little_is_said_once(image_range, found, is_said, caplog):
    warn_of_range([None], image_range)
    warn_of_range([None, found], image_range)
    warn_of_range([found], image_range)
    lines = [record.getMessage() for record in caplog.records]
    black, white = image_range or (0, 65535)
    assert len(lines) == is_said
    assert all(
        f"from {found[0]} to {found[1]}, but to the model {black} is black and {white} wh" in one for one in lines
    )


def test_lines_are_said_again_of_other_data_and_models(tmp_path, caplog):
    """Once for each data set that is checked and each model that is loaded, not once in a process."""
    (tmp_path / "a.tif").write_bytes(bands_tiff(noise(5), (0, 0)))
    PIL.Image.new("L", (7, 5)).save(tmp_path / "m.png")
    one = {"image": str(tmp_path / "a.tif"), "label": str(tmp_path / "m.png")}
    rows = Dataset.from_list([one] * 2, features=Features({name: Image() for name in one}))
    for count in (1, 2):
        check_data(SegmentationData(rows, rows.select([]), rows))
        assert caplog.text.count("has 5 bands") == count
    with pytest.raises(ValueError, match="There is no folder nowhere"):
        load_trained("nowhere", "cpu")
    assert load_image(open_image(one["image"])) and caplog.text.count("has 5 bands") == 3


def test_nearly_black_pictures_are_said_when_they_are_predicted(tmp_path, caplog):
    stored = noise(3, np.uint16) >> 4  # 12 bits
    (tmp_path / "deep.png").write_bytes(deep_png(stored))
    reading = Reading([0, 4095])
    np.testing.assert_array_equal(read_picture(tmp_path / "deep.png", reading), rgb(deep_png(stored), [0, 4095]))
    model_picture(PIL.Image.new("RGB", (8, 8)), Reading())
    assert not caplog.text
    read_picture(tmp_path / "deep.png", Reading())
    model_picture(array_to_image(stored), Reading())
    assert caplog.text.count(f"such as [{stored.min()}, {stored.max()}]") == 1


def test_opacity_and_a_transparent_color_of_16_bits():
    stored = noise(4, np.uint16)
    stored[..., 3] = np.where(np.arange(7) < 3, 0, 65535)
    expected = np.where(stored[..., 3:] == 0, 255, (stored[..., :3].astype(int) + 128) // 257)
    np.testing.assert_array_equal(rgb(deep_png(stored)), expected)


def test_turned_16_bit_colors():
    stored = noise(3, np.uint16)
    upright = np.rot90(stored, k=-1)
    image = load_image(opened(deep_png(stored, chunk(b"eXIf", rotated_exif().tobytes()[6:]))))
    np.testing.assert_array_equal(deep_values(image), upright)
    image = load_image(opened(bands_tiff(stored, tags=((274, 3, [6]),))))
    np.testing.assert_array_equal(deep_values(image), upright)
    assert image.orientation == 6


def test_the_range_of_a_data_set():
    values = np.arange(10_000, dtype=np.uint16).reshape(100, 100)
    values[0, :4], values[50, :4] = 0, 65535  # dead and glowing pixels
    assert value_range(values) == (10, 9993)
    assert common_range([(200, 3000), (100, 2000), (150, 4095)]) == [100, 4095]
    assert common_range([(0, 65535)]) is None  # all 16 bits
    assert common_range([(30_000, 34_000)]) == [30_000, 34_000]
    assert common_range([]) is None and common_range([(7, 7)]) is None


def test_arrays():
    gray, deep = noise(1), noise(3, np.uint16)
    for array in (gray, gray[..., 0]):
        np.testing.assert_array_equal(np.asarray(to_rgb(array_to_image(array))), np.broadcast_to(gray, (5, 7, 3)))
    for array in (deep, deep[..., 0]):
        image = array_to_image(array)
        np.testing.assert_array_equal(deep_values(image), array)
    assert np.asarray(to_rgb(array_to_image(deep), Reading([0, 4095]))).max() == 255


def stack(count: int = 2, form: str = "TIFF") -> bytes:
    pages = [PIL.Image.fromarray(noise(1, seed=seed)[..., 0]) for seed in range(count)]
    return saved(pages[0], form, save_all=True, append_images=pages[1:])


def test_several_pages_are_refused():
    with pytest.raises(ImageError, match=r"has 2 pages, and only the first would be read; name one with --tiff_page"):
        to_rgb(opened(stack()))
    with pytest.raises(ImageError, match=r"has 3 pages.*; if each page is a class, save one page whose values"):
        decode({"bytes": stack(3)}, is_mask=True)
    described = saved(PIL.Image.new("L", (4, 4)), "TIFF", description="ImageJ=1.53t\nimages=40\nslices=40\n")
    with pytest.raises(ImageError, match="has 40 pages"):  # of which the file's directory names one
        to_rgb(opened(described))


def test_a_chosen_page_is_read():
    image = opened(stack())
    image.seek(1)
    np.testing.assert_array_equal(np.asarray(to_rgb(image))[..., 0], noise(1, seed=1)[..., 0])
    image.seek(0)
    np.testing.assert_array_equal(np.asarray(to_rgb(image.copy()))[..., 0], noise(1)[..., 0])
    for page in range(3):
        read = to_rgb(opened(stack(3)), Reading(tiff_page=page))
        np.testing.assert_array_equal(np.asarray(read)[..., 0], noise(1, seed=page)[..., 0])
    deep = PIL.Image.fromarray(noise(1, np.uint16)[..., 0])
    content = saved(deep, "TIFF", save_all=True, append_images=[PIL.Image.fromarray(noise(1, np.uint16, 1)[..., 0])])
    image = open_image(io.BytesIO(content), tiff_page=1)
    np.testing.assert_array_equal(deep_values(load_image(image, tiff_page=1)), noise(1, np.uint16, 1)[..., 0])
    for form in ("GIF", "PNG", "WEBP"):  # which have no pages
        frames = to_rgb(opened(stack(3, form)), Reading(tiff_page=1))
        assert frames.tobytes() == to_rgb(opened(stack(3, form))).tobytes()


def test_a_page_that_a_file_does_not_have():
    for content, page, there in (
        (stack(3), 3, "0, 1, 2"),
        (saved(PIL.Image.new("L", (4, 4)), "TIFF"), 3, "0"),
        (with_second_page(1), 1, "0"),  # a reduced copy
    ):
        with pytest.raises(ImageError, match=f"no page {page}: counted from 0, it has {there}; give a --tiff_page"):
            to_rgb(opened(content), Reading(tiff_page=page))
    np.testing.assert_array_equal(np.asarray(to_rgb(opened(with_second_page(1)), Reading(tiff_page=0))), noise(3))
    with pytest.raises(ImageError, match="the second: tifffile"):  # masks have one page
        decode({"bytes": stack(3)}, is_mask=True, tiff_page=1)


def with_second_page(kind: int) -> bytes:
    """A TIFF whose second page is said to be of this kind (NewSubfileType); the pages share their pixels."""
    first = bands_tiff(noise(3), tags=((254, 4, [0]),))
    start = int.from_bytes(first[4:8], "little")
    second = bytearray(first[start:])
    assert second[2:4] == (254).to_bytes(2, "little")
    second[10:14] = kind.to_bytes(4, "little")
    return first[:-4] + len(first).to_bytes(4, "little") + bytes(second)


@pytest.mark.parametrize(("kind", "fits"), [(0, False), (1, True), (2, False), (4, True), (5, True)])
def test_pyramids_and_masks_of_transparency_are_no_pages(kind, fits):
    if fits:
        np.testing.assert_array_equal(rgb(with_second_page(kind)), noise(3))
    else:
        with pytest.raises(ImageError, match="has 2 pages"):
            rgb(with_second_page(kind))


def test_a_reduced_copy_in_front_is_refused():
    with pytest.raises(ImageError, match="first page of the TIFF file is a reduced copy"):
        rgb(bands_tiff(noise(3), tags=((254, 4, [1]), (330, 4, [8]))))  # as raw photos have it
    np.testing.assert_array_equal(rgb(bands_tiff(noise(3), tags=((254, 4, [1]),))), noise(3))  # the only picture


def test_a_page_that_leads_nowhere_is_none():
    one = bands_tiff(noise(3))
    for following in (8, len(one) + 50, 2**31):  # among the pixels, behind the end
        np.testing.assert_array_equal(rgb(one[:-4] + following.to_bytes(4, "little")), noise(3))


def test_16_bits_where_white_is_0():
    stored = noise(1, np.uint16)
    image = load_image(opened(bands_tiff(stored, rgb=False, tags=((262, 3, [0]),))))
    np.testing.assert_array_equal(deep_values(image), 65535 - stored[..., 0])


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_animations_show_their_first_frame_and_are_no_masks(form, caplog):
    content = stack(3, form)
    assert to_rgb(opened(content)).size == (7, 5)
    assert "An image is an animation of 3 frames, of which the first is read." in caplog.text
    with pytest.raises(ImageError, match="The mask is a"):
        decode({"bytes": content}, is_mask=True)


def test_phones_put_a_second_picture_behind_a_photo(caplog):
    photo = PIL.Image.new("RGB", (16, 8), (200, 10, 10))
    content = saved(photo, "MPO", save_all=True, append_images=[photo.resize((4, 2))])
    assert opened(content).n_frames == 2 and rgb(content).shape == (8, 16, 3) and not caplog.text


PALETTES = {"black, white": [(0, 0, 0), (255, 255, 255)], "gray": [(value,) * 3 for value in range(16)]}
PALETTES["white, black"] = PALETTES["black, white"][::-1]
PALETTES["red, green"] = [(200, 0, 0), (0, 200, 0)]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", PALETTES)
def test_bmp_of_few_colors(name, bits, old):
    colors = PALETTES[name]
    values = np.random.default_rng(0).integers(len(colors), size=(5, 7), dtype=np.uint8)
    content = bmp(values, bits, colors, old)
    np.testing.assert_array_equal(rgb(content), np.array(colors, dtype=np.uint8)[values])
    np.testing.assert_array_equal(mask_to_array(decode({"bytes": content}, is_mask=True)), values)


def test_bmp_of_one_bit():
    values = np.random.default_rng(0).integers(2, size=(5, 7), dtype=np.uint8)
    content = saved(PIL.Image.fromarray(values.astype(bool)), "BMP")
    np.testing.assert_array_equal(rgb(content)[..., 0], 255 * values)
    np.testing.assert_array_equal(mask_to_array(decode({"bytes": content}, is_mask=True)), values)


@pytest.mark.parametrize("form", ["TGA", "JPEG2000", "PPM", "PCX"])
def test_formats_that_pillow_reads(form):
    content = saved(PIL.Image.fromarray(noise(3)), form, **({"irreversible": False} if form == "JPEG2000" else {}))
    np.testing.assert_array_equal(rgb(content), noise(3))


UNREADABLE = {
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC.*save it as JPEG or PNG"),
    "heif": (b"\0\0\0\x18ftypmif1\0\0\0\0", "HEIC.*save it as JPEG or PNG"),
    "jpeg xl": (b"\xff\x0a" + bytes(30), "JPEG XL.*save it as JPEG or PNG"),
    "four bands": (
        bands_tiff(noise(4, np.uint16), (0, 0, 0), rgb=False),
        "4 bands of 16-bit integers.*red, green and",
    ),
    "signed": (bands_tiff(noise(3), tags=((339, 3, [2, 2, 2]),)), "3 bands of 8-bit signed integers"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_pillow_cannot_read_gets_a_sentence(name, tmp_path):
    content, message = UNREADABLE[name]
    (tmp_path / "file.jpg").write_bytes(content)
    for file in (io.BytesIO(content), tmp_path / "file.jpg"):
        with pytest.raises(ImageError, match=message) as caught:
            to_rgb(open_image(file))
        assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    with pytest.raises(PIL.UnidentifiedImageError):
        opened(b"II*\0" + bytes(3))


def test_lines_go_to_the_log_once(caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            rgb(bands_tiff(noise(4), (2,)))
    assert len(caplog.records) == 1


def test_of_all_workers_one_says_it(caplog):
    worker = multiprocessing.get_context("fork").Process(target=rgb, args=(bands_tiff(noise(4), (2,)),))
    worker.start()
    worker.join()
    assert rgb(bands_tiff(noise(4), (2,))).shape == (5, 7, 3)
    assert worker.exitcode == 0 and not caplog.records

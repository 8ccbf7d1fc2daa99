import io

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from layout_folders import rotated_exif

from allspark_hf.data import mask_to_array, to_rgb
from allspark_hf.data.images import decode
from allspark_hf.data.masks import MaskConvention
from allspark_hf.data.pixels import ORIENTATION, load_image, open_image


GRAY16 = np.array([[0, 128, 129, 257, 25700, 65535]], dtype=np.uint16)
GRAY16_SHOWN = [0, 0, 1, 1, 100, 255]


def reopened(image: PIL.Image.Image, kind: str, **options) -> PIL.Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return PIL.Image.open(io.BytesIO(buffer.getvalue()))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_gray_files_are_scaled_not_clipped(kind):
    rgb = to_rgb(reopened(PIL.Image.fromarray(GRAY16), kind))
    assert rgb.mode == "RGB"
    for channel in range(3):
        assert np.asarray(rgb)[0, :, channel].tolist() == GRAY16_SHOWN


@pytest.mark.parametrize(("mode", "byte_order"), [("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2"), ("I", "<i4")])
def test_16_bit_gray_modes(mode, byte_order):
    image = PIL.Image.frombytes(mode, (6, 1), GRAY16.astype(byte_order).tobytes())
    assert image.mode == mode
    assert np.asarray(to_rgb(image))[0, :, 1].tolist() == GRAY16_SHOWN
    assert mask_to_array(image).tolist() == GRAY16.tolist()


def test_transparent_value_of_16_bit_gray_is_white():
    image = reopened(PIL.Image.fromarray(GRAY16), "PNG", transparency=25700)
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 0, 1, 1, 255, 255]


@pytest.mark.parametrize("values", [[[-1, 5]], [[0, 65536]]])
def test_integers_beyond_16_bits_are_refused(values):
    with pytest.raises(ValueError, match=r"integers from .* must lie within 0 to 65535 .* save it as"):
        to_rgb(PIL.Image.fromarray(np.array(values, dtype=np.int32)))


def test_floating_point_is_refused():
    image = PIL.Image.fromarray(np.array([[0.0, 0.5]], dtype=np.float32))
    with pytest.raises(ValueError, match=r"image holds floating-point values.*save it as 8-bit or 16-bit integers"):
        to_rgb(image)
    with pytest.raises(ValueError, match="mask holds floating-point values"):
        mask_to_array(image)


def test_transparency_is_shown_on_white():
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], dtype=np.uint8)
    rgba = PIL.Image.fromarray(pixels)
    assert rgba.mode == "RGBA"
    assert np.asarray(to_rgb(rgba)).tolist() == [[[10, 20, 30], [255, 255, 255], [127, 127, 127]]]
    gray = PIL.Image.fromarray(pixels[..., [0, 3]])
    assert gray.mode == "LA"
    assert np.asarray(to_rgb(gray))[0, :, 2].tolist() == [10, 255, 127]


def test_palette_with_and_without_transparency():
    image = PIL.Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([200, 0, 0, 0, 150, 0])
    assert np.asarray(to_rgb(image)).tolist() == [[[200, 0, 0], [0, 150, 0]]]
    image = reopened(image, "PNG", transparency=1)
    assert image.mode == "P"
    assert np.asarray(to_rgb(image)).tolist() == [[[200, 0, 0], [255, 255, 255]]]


def test_black_and_white_gray_and_cmyk():
    assert np.asarray(to_rgb(PIL.Image.new("1", (1, 1), 1))).tolist() == [[[255, 255, 255]]]
    assert np.asarray(to_rgb(PIL.Image.new("L", (1, 1), 77))).tolist() == [[[77, 77, 77]]]
    assert np.asarray(to_rgb(PIL.Image.new("CMYK", (1, 1), (0, 255, 255, 0)))).tolist() == [[[255, 0, 0]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation_is_applied_once(kind):
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, kind, exif=rotated_exif())
    upright = np.rot90(pixels, k=-1).tolist()
    # Pillow itself turns TIFF files when it loads them, so this also covers a file that is upright from the start.
    assert np.asarray(to_rgb(PIL.Image.open(io.BytesIO(buffer.getvalue()))))[..., 0].tolist() == upright
    assert mask_to_array(PIL.Image.open(io.BytesIO(buffer.getvalue()))).tolist() == upright
    by_datasets = datasets.Image().decode_example({"path": None, "bytes": buffer.getvalue()})
    assert np.asarray(by_datasets).tolist() == upright
    assert np.asarray(to_rgb(by_datasets))[..., 0].tolist() == upright
    assert mask_to_array(by_datasets).tolist() == upright


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "RGB", "RGBA", "CMYK"])
def test_a_turned_tiff_file_without_compression(tmp_path, mode):
    """Pillow would map the file into memory and read its rows at the upright width."""
    gray = np.arange(60, dtype=np.uint8).reshape(6, 10)
    stored = PIL.Image.fromarray(gray.astype(np.uint16) if mode == "I;16" else gray)
    stored.convert(mode).save(tmp_path / "a.tif", tiffinfo={ORIENTATION: 6})
    with open_image(tmp_path / "a.tif") as opened:
        picture = load_image(opened)
    np.testing.assert_array_equal(np.asarray(picture), np.rot90(np.asarray(stored.convert(mode)), k=-1))
    if mode in ("L", "P", "I;16"):
        mask = decode({"path": str(tmp_path / "a.tif"), "bytes": None}, is_mask=True)
        assert mask_to_array(mask).tolist() == np.rot90(gray, k=-1).tolist()


def test_exif_orientation_of_a_palette_mask_keeps_the_indices():
    mask = PIL.Image.fromarray(np.array([[3, 1, 255]], dtype=np.uint8)).convert("P")
    mask.putpalette([index // 3 for index in range(768)])
    assert mask_to_array(reopened(mask, "PNG", exif=rotated_exif())).tolist() == [[3], [1], [255]]


def test_jpeg_orientation_turns_a_non_square_picture():
    assert to_rgb(reopened(PIL.Image.new("RGB", (30, 20)), "JPEG", exif=rotated_exif())).size == (20, 30)


def test_palette_mask_gives_indices_not_colors():
    mask = PIL.Image.fromarray(np.array([[0, 2, 255]], dtype=np.uint8)).convert("P")
    mask.putpalette([9, 8, 7] * 256)
    mask = reopened(mask, "PNG")
    assert mask.mode == "P"
    array = mask_to_array(mask)
    assert array.tolist() == [[0, 2, 255]]
    assert array.dtype == np.uint8


def test_masks_of_other_kinds():
    assert mask_to_array(PIL.Image.fromarray(np.array([[True, False]]))).tolist() == [[1, 0]]
    wide = mask_to_array(reopened(PIL.Image.fromarray(np.array([[0, 300, 65535]], dtype=np.uint16)), "PNG"))
    assert wide.tolist() == [[0, 300, 65535]]
    assert wide.dtype == np.int32


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK"])
def test_color_mask_is_refused(mode):
    with pytest.raises(ValueError, match=rf"colors of a picture \(mode {mode}\).* save it as indexed or gray"):
        mask_to_array(PIL.Image.new(mode, (2, 2)))


def test_gray_mask_with_transparency_is_refused():
    with pytest.raises(ValueError, match=r"gray and transparency \(mode LA\)"):
        mask_to_array(PIL.Image.new("LA", (2, 2)))


def test_mask_values_map_in_order():
    array = np.array([[0, 255, 7], [7, 0, 255]], dtype=np.uint8)
    assert MaskConvention(None).map(array) is array
    assert MaskConvention([7, 0]).map(array).tolist() == [[1, 255, 0], [0, 1, 255]]
    assert MaskConvention([0, 255, 7]).map(array).tolist() == [[0, 1, 2], [2, 0, 1]]
    assert MaskConvention([0, 255, 7]).map(array).dtype == np.uint8


def test_a_listed_ignore_index_is_a_class_in_a_long_list_too():
    mask_values = list(range(255, 55, -1))
    array = np.array([[255, 254, 56]], dtype=np.uint8)
    for ignore_index in (255, 254):
        assert MaskConvention(mask_values, ignore_index).map(array).tolist() == [[0, 1, 199]]


def test_mask_values_beyond_8_bits():
    array = np.array([[1000, 65535, 20]], dtype=np.int32)
    assert MaskConvention([20, 1000], ignore_index=65535).map(array).tolist() == [[1, 65535, 0]]
    assert MaskConvention([20, 1000, 65535]).map(array).dtype == np.uint8


def test_mask_values_not_listed_are_named():
    array = np.array([[0, 3, 128, 255]], dtype=np.uint8)
    with pytest.raises(ValueError, match=r"the values 3 and 128, which the mask values 0 9 do not list .* index 255;"):
        MaskConvention([0, 9]).map(array)
    with pytest.raises(ValueError, match=r"holds the value 255, which"):
        MaskConvention([0, 3, 128], ignore_index=100).map(array)
    with pytest.raises(ValueError, match=r"the values 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 5 more, which"):
        MaskConvention([0]).map(np.arange(16).reshape(4, 4))


def test_ignored_values_become_the_ignore_index():
    array = np.array([[0, 1, 2, 3, 9, 255]], dtype=np.uint8)
    assert MaskConvention([1, 2, 3], 255, [0, 9]).map(array).tolist() == [[255, 0, 1, 2, 255, 255]]
    assert MaskConvention([3, 2, 1], 100, [0, 9, 255]).map(array).tolist() == [[100, 2, 1, 0, 100, 100]]
    alone = MaskConvention(None, 255, [9]).map(array)
    assert alone.tolist() == [[0, 1, 2, 3, 255, 255]] and alone.dtype == np.uint8
    assert MaskConvention(None, 65535, [9]).map(array.astype(np.int32)).tolist() == [[0, 1, 2, 3, 65535, 255]]
    with pytest.raises(ValueError, match=r"holds the value 9, which .*--ignored_mask_values"):
        MaskConvention([1, 2, 3], 255, [0]).map(array)
    with pytest.raises(ValueError, match=r"values 1 2 3 and the ignored mask values both name the values 2 and 3"):
        MaskConvention([1, 2, 3], 255, [3, 2, 0]).map(array)


@pytest.mark.parametrize(
    ("mask_values", "ignore_index", "message"),
    [
        ([], 255, "list of mask values is empty"),
        ([0, 5, 0], 255, "mask values 0 5 0 name one value twice"),
        ([1, 2, 3], 0, "the ignore index 0 is also the index of a class"),
    ],
)
def test_unusable_mask_values(mask_values, ignore_index, message):
    with pytest.raises(ValueError, match=message):
        MaskConvention(mask_values, ignore_index)

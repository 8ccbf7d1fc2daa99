"""Masks of any kind: the classes that were written, or one sentence that names the file; never another class."""

import io
import warnings

import datasets
import numpy as np
import PIL
import pytest
from fuzzing import fuzz, is_one_sentence
from hypothesis import assume, example, given
from hypothesis import strategies as st
from layout_folders import load_folder
from mask_files import huge_png, pgm, png, tiff
from PIL import Image

from allspark_hf.data import BadDataError, check_data
from allspark_hf.data.images import mask_to_array
from allspark_hf.data.masks import MaskConvention, read_label
from allspark_hf.data.pixels import open_image, to_rgb
from allspark_hf.data.sources.pairs import SegmentationData
from allspark_hf.evaluation.selection import _rows_with_mask


def pillow(form: str, **options):
    def save(values: np.ndarray) -> bytes:
        file = io.BytesIO()
        image = Image.fromarray(values.astype(np.int32 if values.max() > 65535 or values.min() < 0 else np.uint16))
        if values.max() < 256 and values.min() >= 0:
            image = Image.fromarray(values.astype(np.uint8))
        if options.get("mode") == "P" and image.mode == "L":
            image = image.convert("P") if values.max() < 2 else image
            image.putpalette([(31 * index) % 256 for index in range(768)])
        elif options.get("mode") not in (None, "P"):
            image = image.convert(options["mode"])
        frames = {"save_all": True, "append_images": [image.transpose(Image.Transpose.ROTATE_180)]}
        image.save(file, form, **(frames if options.get("animated") else {}), **options.get("save", {}))
        return file.getvalue()

    return save


# Name -> values to bytes, and the values that fit; None where no file of this kind may be taken.
WRITERS = {
    **{f"gray png {bits}": (lambda v, b=bits: png(v, b), 2**bits - 1) for bits in (1, 2, 4, 8, 16)},
    **{f"indexed png {bits}": (lambda v, b=bits: png(v, b, palette=True), 2**bits - 1) for bits in (1, 2, 4, 8)},
    **{f"pgm {top}": (lambda v, t=top: pgm(v, t), top) for top in (1, 15, 20, 254, 255, 300, 65535)},
    **{f"plain pgm {top}": (lambda v, t=top: pgm(v, t, plain=True), top) for top in (15, 255, 65535)},
    **{f"tiff {bits}": (lambda v, b=bits: tiff(v, b), 2**bits - 1) for bits in (1, 2, 4, 8, 16)},
    **{f"inverted tiff {bits}": (lambda v, b=bits: tiff(v, b, white_is_zero=True), 2**bits - 1) for bits in (1, 4, 8)},
    **{f"pillow {form}": (pillow(form), 255) for form in ("PNG", "BMP", "TIFF", "GIF", "PPM", "TGA", "PCX")},
    **{f"pillow indexed {form}": (pillow(form, mode="P"), 255) for form in ("PNG", "BMP", "TIFF", "GIF", "TGA")},
    **{f"pillow {mode}": (pillow("TIFF", mode=mode), 255) for mode in ("RGB", "RGBA", "LA", "CMYK", "F", "YCbCr")},
    **{f"animated {form}": (pillow(form, animated=True), 255) for form in ("PNG", "GIF", "TIFF", "WEBP")},
    **{f"lossy {form}": (pillow(form), 255) for form in ("JPEG", "JPEG2000", "WEBP")},
    "jpeg in tiff": (pillow("TIFF", save={"compression": "jpeg"}), 255),
    "lzw in tiff": (pillow("TIFF", save={"compression": "tiff_lzw"}), 255),
    "turned png": (
        pillow("PNG", save={"exif": b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\1\0\0\0\0\0\0\0"}),
        255,
    ),
}
ALWAYS_TAKEN = ("gray png 1", "gray png 8", "gray png 16", "pgm 255", "tiff 8", "tiff 16", "lzw in tiff", "turned png")
ALWAYS_TAKEN += ("indexed png 1", "indexed png 2", "indexed png 4", "indexed png 8", "pillow PNG", "pillow BMP")
NEVER_TAKEN = ("gray png 2", "gray png 4", "pgm 15", "pgm 20", "tiff 4", "inverted tiff 8", "jpeg in tiff")
NEVER_TAKEN += ("pillow GIF", "pillow indexed GIF", "animated GIF", "lossy JPEG", "lossy JPEG2000")
NEVER_TAKEN += ("pillow RGB", "pillow F", "pillow LA")


def rows(images: list[bytes], masks: list[bytes]) -> datasets.Dataset:
    columns = {
        "image": [{"bytes": content, "path": None} for content in images],
        "label": [{"bytes": content, "path": None} for content in masks],
    }
    features = datasets.Features({name: datasets.Image() for name in columns})
    return datasets.Dataset.from_dict(columns, features=features)


def picture(size: tuple[int, int]) -> bytes:
    """PNG of a gray picture of (height, width)."""
    return png(np.full(size, 99), 8)


def checked(mask: bytes, size: tuple[int, int], **options):
    """The report on a data set of one mask and image, and the classes that training would get."""
    data = rows([picture(size)], [mask])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        report = check_data(SegmentationData(data, data.select([]), data), **options)
    row = report.data.labeled[0]
    masks = MaskConvention(ignore_index=options.get("ignore_index", 255))
    return report, read_label(row["label"], row["image"].size, report.num_labels, masks, "the row")


def refusal(error: ValueError) -> str:
    assert type(error) in (ValueError, BadDataError)
    for sentence in getattr(error, "problems", ()):
        assert sentence.startswith("The label of ") and "\n" not in sentence and len(sentence) < 1000
    return str(error)


SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@pytest.mark.parametrize("name", WRITERS)
def test_every_form_is_exact_or_refused(name):
    write, largest = WRITERS[name]

    @fuzz(2)
    @given(SIZES, st.integers(0, 2**32 - 1), st.integers(2, 256))
    @example((3, 5), 0, 21)
    def check(size, seed, num_labels):
        rng = np.random.default_rng(seed)
        num_labels = min(num_labels, 254)
        values = rng.integers(0, min(largest + 1, num_labels), size)
        values.flat[0] = 0
        try:
            _, found = checked(write(values), size, num_labels=num_labels)
        except ValueError as error:
            refusal(error)
            assert name not in ALWAYS_TAKEN, error
        else:
            np.testing.assert_array_equal(found, values)
            assert name not in NEVER_TAKEN

    check()


def test_four_bits_of_gray_are_not_seventeen_times_the_class():
    """VOC's class 1 would be 17, sheep; and 15, person, would be ignored."""
    values = np.array([[0, 1, 15]])
    assert np.asarray(Image.open(io.BytesIO(png(values, 4)))).tolist() == [[0, 17, 255]]
    with pytest.raises(BadDataError, match="with 4 bits, 1 becomes 17"):
        checked(png(values, 4), (1, 3), num_labels=21)
    with pytest.raises(ValueError, match=r"The mask of 0: .*1 becomes 17"):
        _rows_with_mask(rows([picture((1, 3))], [png(values, 4)]))


# ---- Values ----


@fuzz(30)
@given(
    st.lists(st.integers(-5, 300) | st.sampled_from([65535, -(2**31), 2**31, 10**30]), max_size=5),
    st.none() | st.lists(st.integers(-2, 300) | st.just(10**30), max_size=5),
    st.lists(st.integers(-2, 300) | st.just(-(10**30)), max_size=3),
    st.sampled_from([255, 0, -1, 256, 65535, 10**30]) | st.integers(-2, 300),
    st.none() | st.integers(-1, 400),
)
@example([0, 300], None, [], 255, 301)
@example([0, 1], None, [1], 256, 1)  # beside 8-bit values, NumPy's 256 is 0
@example([0, 300], None, [], 301, 301)
@example([0, 255], [0, 255], [], 255, None)
def test_values_and_their_mapping(stored, mask_values, ignored, ignore_index, num_labels):
    """Against the definition, value by value, with Python's own numbers."""
    assume(stored and all(-(2**31) <= value < 2**31 for value in stored))
    values = np.array([stored])
    mask = pillow("TIFF")(values)
    options = {"mask_values": mask_values, "ignored_mask_values": ignored, "ignore_index": ignore_index}
    try:
        report, found = checked(mask, values.shape, num_labels=num_labels, **options)
    except ValueError as error:
        refusal(error)
        return
    expected = []
    for value in stored:
        if mask_values is not None and value in mask_values:
            expected.append(mask_values.index(value))
        elif value in ignored or value == ignore_index:
            expected.append(ignore_index)
        else:
            assert mask_values is None
            expected.append(value)
    assert found.tolist() == [expected]
    assert set(expected) <= {*range(report.num_labels), ignore_index}
    assert report.values == sorted(set(expected) - {ignore_index})


@fuzz(15)
@given(SIZES, SIZES, st.integers(1, 3))
def test_sizes(size, other, num_labels):
    mask = png(np.zeros(other, int), 8)
    try:
        _, found = checked(mask, size, num_labels=num_labels)
    except ValueError as error:
        assert size != other and "but its image is" in refusal(error)
    else:
        assert size == other and not found.any()


@fuzz(15)
@given(st.integers(-10, 70000), st.integers(1, 70000), st.integers(-300, 70000))
def test_labels_fit_or_are_refused(value, num_labels, ignore_index):
    mask = Image.fromarray(np.array([[value]], dtype=np.int32))
    try:
        found = read_label(mask, (1, 1), num_labels, MaskConvention(ignore_index=ignore_index), "m.png")
    except ValueError as error:
        assert is_one_sentence(error) and "m.png" in str(error)
        assert not (0 <= value < num_labels or value == ignore_index) or not 0 <= value <= 255
    else:
        assert found.tolist() == [[value]]


def test_mapping_does_not_touch_what_it_is_given():
    array = np.array([[0, 7]], dtype=np.uint8)
    assert MaskConvention([7, 0]).map(array).tolist() == [[1, 0]] and array.tolist() == [[0, 7]]


# ---- Damaged and strange files ----

GOOD = [png(np.arange(48).reshape(6, 8) % 3, 8), tiff(np.arange(48).reshape(6, 8) % 3, 8)]
GOOD += [pillow(form)(np.arange(48).reshape(6, 8) % 3) for form in ("PNG", "GIF", "BMP", "TIFF", "PPM", "TGA", "PCX")]
GOOD += [png(np.arange(48).reshape(6, 8) % 3, 4, palette=True), png(np.arange(48).reshape(6, 8) * 300, 16)]
STRANGE = [
    b"",
    b"\0",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%%EndComments\n(it_ran) (w) file closefile\nshowpage\n%%EOF\n",
    huge_png(2**31 - 1, 2**31 - 1),
    huge_png(20_000, 20_000),
    huge_png(0, 5),
    b"P5 99999999 99999999 255\n",
    b"P5 8 6 0\n" + bytes(48),
    b"P5 8 -6 255\n" + bytes(48),
    b"GIF89a\0\0\0\0\0\0\0;",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    png(np.zeros((6, 8), int), 8, extra=b"\x7f\xff\xff\xfftEXt"),
]


@st.composite
def damaged(draw) -> bytes:
    """A good file that was cut, or some bytes of which were replaced."""
    content = bytearray(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(0, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)) | st.just(len(content)))])


@fuzz(15)
@given(damaged() | st.binary(max_size=60))
def test_damaged_masks_and_images(content):
    check_damaged(content)


@pytest.mark.parametrize("content", STRANGE, ids=range(len(STRANGE)))
def test_strange_masks_and_images(content):
    assert not check_damaged(content)


def check_damaged(content: bytes) -> bool:
    """Whether it is taken as a mask; then it holds what Pillow alone reads, and in any case nothing else is raised."""
    size = (6, 8)
    try:
        report, found = checked(content, size)
    except ValueError as error:
        refusal(error)
        taken = False
    else:
        plain = Image.open(io.BytesIO(content))
        assert plain.mode in ("1", "L", "P") or plain.mode.startswith("I")
        np.testing.assert_array_equal(found, np.asarray(plain).astype(np.int64))
        assert found.max() == 255 or found.max() < report.num_labels
        taken = True
    good = rows([picture(size)], [png(np.zeros(size, int), 8)])
    bad = rows([content], [png(np.zeros(size, int), 8)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            check_data(SegmentationData(good, bad.remove_columns("label"), good), num_labels=1)
        except ValueError as error:
            assert all(sentence.startswith("The image of unlabeled row 0: ") for sentence in error.problems)
        else:
            with open_image(io.BytesIO(content)) as opened:
                assert to_rgb(opened).mode == "RGB"
    return taken


def test_no_file_starts_a_program():
    """Pillow would give EPS to Ghostscript."""
    assert b"%!PS-Adobe" in STRANGE[2] and Image.open(io.BytesIO(STRANGE[2])).format == "EPS"
    with pytest.raises(PIL.UnidentifiedImageError):
        open_image(io.BytesIO(STRANGE[2]))


@fuzz(5)
@given(damaged(), st.sampled_from([".png", ".PNG", ".jpg", ".tif", ".bmp", ".webp"]), st.booleans())
def test_files_of_a_folder(tmp_path_factory, content, suffix, skip):
    """Any content under any accepted extension; the sentence names the file, and leaving it out leaves the others."""
    root = tmp_path_factory.mktemp("folder")
    for kind in ("images", "masks"):
        for split in ("train", "val"):
            (root / kind / split).mkdir(parents=True)
            (root / kind / split / "a.png").write_bytes(picture((6, 8)) if kind == "images" else GOOD[0])
    (root / "images" / "train" / "b.png").write_bytes(picture((6, 8)))
    bad = root / "masks" / "train" / f"b{suffix}"
    bad.write_bytes(content)
    try:
        report = check_data(load_folder(root), skip_bad_files=skip)
    except BadDataError as error:
        assert not skip and [problem.startswith(f"{bad}: ") for problem in error.problems] == [True]
    else:
        assert len(report.left_out) + len(report.data.labeled) == 2
        assert mask_to_array(report.data.labeled[0]["label"]).tolist() == (np.arange(48).reshape(6, 8) % 3).tolist()

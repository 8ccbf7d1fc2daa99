"""The check of all files before training: what is found, how it is told, what is left out."""

import io
import logging
import pickle
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import PIL.ExifTags
import PIL.Image
import pytest
from layout_folders import SIZE, ids, load_folder, make_folder, rotated_exif, write_ids, write_image, write_mask
from torch.utils.data import DataLoader

from allspark_hf.data import BadDataError, Classes, SegmentationData, check_data, mask_to_array


CAMVID = Path(__file__).resolve().parents[2] / "shared" / "data" / "camvid"
WIDTH, HEIGHT = SIZE


def truncate(path: Path):
    path.write_bytes(path.read_bytes()[:-40])


def error_of(root: Path, **options) -> str:
    with pytest.raises(BadDataError) as caught:
        check_data(load_folder(root), **options)
    return str(caught.value)


def mask_rows(dataset: datasets.Dataset) -> list[list[int]]:
    return [np.unique(mask_to_array(row["label"])).tolist() for row in dataset]


def first_values(row: dict, count: int = 3) -> list[int]:
    return mask_to_array(row["label"])[0, :count].tolist()


def as_list(rows: list[dict]) -> list[dict]:
    return rows


# ---- Values ----


def test_good_data_is_returned_as_it_is(tmp_path):
    data = load_folder(make_folder(tmp_path, values=(0, 2, 255)))
    report = check_data(data)
    assert (report.num_labels, report.values, report.left_out) == (3, [0, 2], [])
    assert report.data is data
    assert check_data(data, num_labels=7).num_labels == 7
    assert check_data(replace(data, classes=Classes(["a", "b", "c", "d"]))).num_labels == 4


@pytest.mark.parametrize("num_labels", [1, 81])
def test_number_of_classes_is_inferred(tmp_path, num_labels):
    data = load_folder(make_folder(tmp_path, values=range(num_labels), size=(40, 3)))
    for split in ("train", "val"):
        for path in (tmp_path / "images" / split).iterdir():
            write_image(path, (40, 3))
    report = check_data(data)
    assert (report.num_labels, report.values) == (num_labels, list(range(num_labels)))


def test_classes_may_occur_in_validation_only(tmp_path):
    make_folder(tmp_path)
    write_mask(tmp_path / "masks" / "val" / "v001.png", (0, 5))
    assert check_data(load_folder(tmp_path)).num_labels == 6


def test_16_bit_masks(tmp_path):
    make_folder(tmp_path, values=(0, 1, 2, 65535), dtype=np.uint16)
    assert check_data(load_folder(tmp_path), ignore_index=65535).num_labels == 3
    assert "t000.png: The mask holds the value 65535, but only 0 to 2" in error_of(tmp_path, num_labels=3)


def test_inferred_number_with_many_gaps_is_reported(tmp_path, caplog):
    make_folder(tmp_path, values=(0, 128))
    with caplog.at_level(logging.WARNING, logger="allspark_hf"):
        assert check_data(load_folder(tmp_path)).num_labels == 129
    assert "128, gives 129 classes, but 127 of them never occur" in caplog.text and "--mask_values" in caplog.text


def test_values_out_of_range(tmp_path):
    make_folder(tmp_path)
    path = write_mask(tmp_path / "masks" / "train" / "t001.png", (0, 3, 7, 255))
    message = error_of(tmp_path, num_labels=3)
    assert message.startswith("1 bad file was found") and "--skip_bad_files" in message
    assert f"- {path}: The mask holds the values 3 and 7, but only 0 to 2 (for 3 classes)" in message


def test_binary_masks_and_the_option(tmp_path):
    make_folder(tmp_path, values=(0, 255))
    for options in ({}, {"num_labels": 2}, {"skip_bad_files": True}, {"ignore_index": 100, "num_labels": 2}):
        assert "--mask_values 0 255" in error_of(tmp_path, **options)
    assert check_data(load_folder(tmp_path), num_labels=1).values == [0]
    report = check_data(load_folder(tmp_path), mask_values=[0, 255])
    assert (report.num_labels, report.values) == (2, [0, 1])
    assert mask_rows(report.data.labeled) == [[0, 1]] * 4 and mask_rows(report.data.validation) == [[0, 1]] * 2
    assert report.data.labeled[0]["label"].mode == "L"
    inverse = check_data(load_folder(tmp_path), mask_values=[255, 0]).data.labeled[0]
    assert first_values(inverse) == [1, 0, 1]


def test_value_that_the_option_does_not_list(tmp_path):
    make_folder(tmp_path, values=(0, 128, 255))
    assert "t000.png: The mask holds the value 128, which the mask values 0 255" in error_of(
        tmp_path, mask_values=[0, 255]
    )
    report = check_data(load_folder(tmp_path), mask_values=[128, 0])
    assert report.num_labels == 2 and mask_rows(report.data.labeled)[0] == [0, 1, 255]


def test_masks_where_0_is_void(tmp_path):
    data = load_folder(make_folder(tmp_path, values=(0, 1, 2, 3)))
    report = check_data(data, mask_values=[1, 2, 3], ignored_mask_values=[0])
    assert (report.num_labels, report.values) == (3, [0, 1, 2])
    for split in (report.data.labeled, report.data.validation):
        assert {tuple(first_values(row, 5)) for row in split} == {(255, 0, 1, 2, 255)}
    for options in ({"ignored_mask_values": [0]}, {"ignored_mask_values": [0], "num_labels": 4}):
        with pytest.raises(ValueError, match=r"ignored_mask_values names 0, .* 0 to 3; .*--mask_values"):
            check_data(data, **options)
    report = check_data(data, ignored_mask_values=[3])
    assert (report.num_labels, report.values) == (3, [0, 1, 2])
    assert mask_rows(report.data.labeled) == [[0, 1, 2, 255]] * 4
    for options in ({"mask_values": [0, 1, 2]}, {"num_labels": 3}):
        assert "--ignored_mask_values" in error_of(tmp_path, **options)


def test_what_the_data_says_of_its_masks_and_what_options_say(tmp_path):
    data = load_folder(make_folder(tmp_path, values=(0, 4, 6)))
    data = replace(data, mask_values=(6, 4), ignored_mask_values=(0,))
    report = check_data(data)
    assert (report.num_labels, report.values) == (2, [0, 1])
    assert first_values(report.data.validation[0]) == [255, 1, 0]
    assert not report.data.mask_transform().maps  # done; checking again must not map again
    assert first_values(check_data(data, mask_values=[0, 4, 6]).data.validation[0]) == [0, 1, 2]
    replaced, other = data.mask_transform(mask_values=[1]), data.mask_transform(ignored_mask_values=[5])
    assert (replaced.mask_values, replaced.ignored_mask_values) == ((1,), ())
    assert (other.mask_values, other.ignored_mask_values) == ((6, 4), (5,))


@pytest.mark.parametrize(("folder", "split"), [("train", "labeled"), ("val", "validation")])
def test_only_ignored_pixels(tmp_path, folder, split):
    make_folder(tmp_path)
    for path in (tmp_path / "masks" / folder).iterdir():
        write_mask(path, (255,))
    assert f"All pixels of all {split} masks have the ignore index 255" in error_of(tmp_path)


# ---- Files ----


def test_sizes_are_compared_upright(tmp_path):
    make_folder(tmp_path)
    write_mask(tmp_path / "masks" / "val" / "v000.png", size=(HEIGHT, WIDTH))
    assert "v000.png: The mask is 7 x 11 pixels (width x height), but its image is 11 x 7 once" in error_of(tmp_path)
    write_mask(tmp_path / "masks" / "val" / "v000.png")
    write_image(tmp_path / "images" / "train" / "t000.jpg", exif=rotated_exif())
    assert "t000.png: The mask is 11 x 7 pixels (width x height), but its image is 7 x 11 once" in error_of(tmp_path)
    for options in ({"size": (HEIGHT, WIDTH)}, {"exif": rotated_exif()}):
        write_mask(tmp_path / "masks" / "train" / "t000.png", **options)
        assert check_data(load_folder(tmp_path)).num_labels == 2


@pytest.mark.parametrize(
    "victim", ["images/train/t001.jpg", "images/train/t005.jpg", "masks/train/t001.png", "masks/val/v000.png"]
)
def test_truncated_and_empty_files(tmp_path, victim):
    path = make_folder(tmp_path) / victim
    for content in (path.read_bytes()[:-40], b"", b"not a picture"):
        path.write_bytes(content)
        assert f"{path}: The file cannot be read (" in error_of(tmp_path)


def test_files_that_hold_no_classes_or_no_picture(tmp_path):
    make_folder(tmp_path)
    write_image(tmp_path / "masks" / "train" / "t000.png")
    (tmp_path / "masks" / "train" / "t001.png").unlink()
    write_mask(tmp_path / "masks" / "train" / "t001.jpg")
    (tmp_path / "images" / "train" / "t005.jpg").unlink()
    PIL.Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "images" / "train" / "t005.tif")
    message = error_of(tmp_path)
    assert "t000.png: The mask holds the colors of a picture (mode RGB)" in message
    assert "t001.jpg: The mask is a JPEG file, whose compression changes class indices; save it as PNG." in message
    assert "t005.tif: The image holds floating-point values" in message


def test_first_ten_problems_and_the_total(tmp_path):
    make_folder(tmp_path, labeled=12, validation=3, values=(0, 9))
    with pytest.raises(BadDataError) as caught:
        check_data(load_folder(tmp_path), num_labels=2)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("15 bad files were found") and lines[-1] == "- and 5 more" and len(lines) == 12
    assert len(caught.value.problems) == 15


def test_bad_files_are_left_out_on_request(tmp_path):
    make_folder(tmp_path)
    truncate(tmp_path / "images" / "train" / "t000.jpg")
    truncate(tmp_path / "images" / "train" / "t004.jpg")
    write_mask(tmp_path / "masks" / "train" / "t002.png", (0, 9), size=(3, 3))
    write_mask(tmp_path / "masks" / "val" / "v001.png", size=(3, 3))
    data = load_folder(tmp_path)
    report = check_data(data, skip_bad_files=True)
    hidden = load_folder(tmp_path, labeled_list=write_ids(tmp_path / "list.txt", ["t001"]))
    assert hidden.hidden_ids == ["t000", "t002", "t003"]
    assert check_data(hidden, skip_bad_files=True).data.hidden_ids == ["t003"]
    assert ids(report.data.labeled) == ["t001", "t003"]
    assert ids(report.data.unlabeled) == ["t005"] and ids(report.data.validation) == ["v000"]
    assert len(report.left_out) == 4 and "t000.jpg: The file cannot be read" in report.left_out[0]
    assert (report.num_labels, report.values) == (2, [0, 1])  # those of files left out do not count
    assert len(data.labeled) == 4


@pytest.mark.parametrize(("folder", "split"), [("train", "labeled"), ("val", "validation")])
def test_nothing_is_there_or_left(tmp_path, folder, split):
    data = load_folder(make_folder(tmp_path))
    with pytest.raises(BadDataError, match=f"The {split} set is empty: there is nothing"):
        check_data(replace(data, **{split: data.sets[split].select([])}))
    for path in (tmp_path / "masks" / folder).iterdir():
        truncate(path)
    message = error_of(tmp_path, skip_bad_files=True)
    assert f"The {split} set is empty: all its files were left out; the first problem: {tmp_path}" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_labels": 3, "mask_values": [0, 1]}, "3 from num_labels and 2 from the list of mask values"),
        ({"num_labels": 3, "classes": ["a", "b"]}, "3 from num_labels and 2 from the list of classes"),
        ({"num_labels": 0}, "num_labels is 0"),
        ({"num_labels": 300}, "There are 300 classes, but a training has at most 255, .*: merge classes in the masks"),
        ({"ignore_index": 0}, "ignore index 0 is also one of the classes 0 to 1"),
        ({"mask_values": [1, 1]}, "name one value twice"),
    ],
)
def test_options_that_contradict(tmp_path, options, message):
    data = load_folder(make_folder(tmp_path))
    if "classes" in options:
        data = replace(data, classes=Classes(options.pop("classes")))
    with pytest.raises(ValueError, match=message):
        check_data(data, **options)


def test_missing_column_and_foreign_transform(tmp_path):
    data = load_folder(make_folder(tmp_path))
    with pytest.raises(ValueError, match=r"no column 'label' \(it has id, image, mask\)"):
        check_data(replace(data, labeled=data.labeled.rename_column("label", "mask")))
    with pytest.raises(ValueError, match=r"column 'image' holds Value.*not images; cast it with"):
        check_data(replace(data, unlabeled=datasets.Dataset.from_dict({"image": ["a.jpg"]})))
    with pytest.raises(ValueError, match=r"The validation set has the format or transform 'custom'.*after check_data"):
        check_data(replace(data, validation=data.validation.with_transform(as_list)), mask_values=[0, 1])


def test_rows_that_are_bytes_are_named():
    def encoded(mode: str, color) -> bytes:
        buffer = io.BytesIO()
        PIL.Image.new(mode, (4, 3), color).save(buffer, "PNG")
        return buffer.getvalue()

    def rows(images: list, labels: list) -> datasets.Dataset:
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
        return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)

    image, mask = encoded("RGB", 0), encoded("L", 1)
    good, bad = rows([image] * 2, [mask] * 2), rows([image] * 2, [mask, encoded("L", 8)])
    empty = datasets.Dataset.from_dict({"image": [], "label": []})
    assert check_data(SegmentationData(good, empty, good)).num_labels == 2
    cases = [
        (good, bad, "The label of validation row 1: The mask holds the value 8, but"),
        (good, bad.add_column("id", ["first", "second"]), "The label of validation row second: The mask holds"),
        (rows([image, None], [mask] * 2), good, "The image of labeled row 1: The entry is empty"),
    ]
    for labeled, validation, message in cases:
        with pytest.raises(BadDataError, match=message):
            check_data(SegmentationData(labeled, empty, validation), num_labels=2)


def test_one_round_tells_every_kind_of_fault(tmp_path):
    make_folder(tmp_path, labeled=16, values=(0, 255))
    images, masks = tmp_path / "images" / "train", tmp_path / "masks" / "train"
    for index in range(12):
        truncate(images / f"t{index:03}.jpg")
    truncate(masks / "t011.png")
    small = write_mask(masks / "t012.png", (0, 9), size=(10, 20))
    message = error_of(tmp_path, num_labels=2)
    *_, both, wrong, others, of_all = message.splitlines()[:4] + message.splitlines()[-2:]
    assert f"{images / 't011.jpg'}: The file cannot be read" in both and f" {masks / 't011.png'}: The file" in both
    assert f"{small}: The mask holds the value 9, but only" in wrong and "The mask is 10 x 20 pixels" in wrong
    assert message.startswith("13 bad files were found") and others == "- and 3 more"
    assert of_all.startswith("And of the others: 3 of 3 labeled masks") and "--mask_values 0 255" in of_all


# ---- Mapped masks ----


def test_mapped_masks_survive_select_and_workers(tmp_path):
    data = load_folder(make_folder(tmp_path, labeled=6, values=(0, 100, 200, 255)))
    mapped = check_data(data, mask_values=[0, 100, 200]).data.labeled.select([5, 0, 3])
    assert mask_rows(mapped) == [[0, 1, 2, 255]] * 3
    assert mapped.remove_columns("label")[0]["id"] == "t005"
    # Where workers are not forked they get the data set by pickling.
    mapped = pickle.loads(pickle.dumps(mapped))
    loader = DataLoader(mapped, batch_size=2, num_workers=2, collate_fn=as_list)
    rows = [row for batch in loader for row in batch]
    assert [row["id"] for row in rows] == ["t005", "t000", "t003"] and mask_rows(rows) == [[0, 1, 2, 255]] * 3
    assert {row["image"].size for row in rows} == {SIZE}


def test_masks_are_mapped_upright(tmp_path):
    make_folder(tmp_path)
    write_image(tmp_path / "images" / "train" / "t000.jpg", exif=rotated_exif())
    write_mask(tmp_path / "masks" / "train" / "t000.png", exif=rotated_exif())
    row = check_data(load_folder(tmp_path), mask_values=[1, 0]).data.labeled[0]
    assert row["image"].size == row["label"].size == (HEIGHT, WIDTH)
    assert mask_to_array(row["label"])[:, -1].tolist() == [1, 0] * 5 + [1]


@pytest.mark.skipif(not CAMVID.is_dir(), reason=f"CamVid is not at {CAMVID}")
def test_camvid_is_good():
    report = check_data(load_folder(CAMVID, labeled_fraction=1 / 8))
    assert (report.num_labels, report.values, report.left_out) == (11, list(range(11)), [])


def orientation(value: int) -> PIL.Image.Exif:
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = value
    return exif


def test_photos_that_are_turned_without_their_masks(tmp_path, caplog):
    """What the sizes would show needs no line: upright masks of photos that are stored lying."""
    root = make_folder(tmp_path)
    for name, size, photo, mask in (
        ("t000", SIZE, 3, 1),  # upside down: told
        ("t001", (40, 40), 6, 1),  # a square one: told
        ("t002", (40, 40), 6, 6),
        ("t003", (40, 40), 1, 1),
    ):
        write_image(root / f"images/train/{name}.jpg", size, exif=orientation(photo))
        write_mask(root / f"masks/train/{name}.png", size=size, exif=orientation(mask))
    write_image(root / "images/val/v000.jpg", SIZE, exif=orientation(6))
    write_mask(root / "masks/val/v000.png", size=SIZE[::-1])
    check_data(load_folder(root))
    (line,) = [record.message for record in caplog.records if "EXIF" in record.message]
    assert line.startswith("EXIF orientation turns 2 images (first t000) and not their masks")


def test_the_range_leaves_out_what_is_left_out(tmp_path):
    root = make_folder(tmp_path)
    for index, largest in enumerate((3000, 4095, 60_000)):
        (root / f"images/train/t00{index}.jpg").unlink()
        values = np.linspace(0, largest, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH).astype(np.uint16)
        PIL.Image.fromarray(values).save(root / f"images/train/t00{index}.png")
    assert check_data(load_folder(root)).reading.image_range is None  # some have all 16 bits
    truncate(root / "images/train/t002.png")
    report = check_data(load_folder(root), skip_bad_files=True)
    assert report.reading.image_range[0] <= 5 and 4080 <= report.reading.image_range[1] <= 4095


def test_pages_and_palettes_are_told_with_the_file(tmp_path):
    root = make_folder(tmp_path)
    page = PIL.Image.new("L", SIZE)
    (root / "images/train/t000.jpg").unlink()
    (root / "masks/train/t001.png").unlink()
    for path in ("images/train/t000.tif", "masks/train/t001.tif"):
        page.save(root / path, save_all=True, append_images=[page, page])
    message = error_of(root)
    assert f"{root / 'images/train/t000.tif'}: The TIFF file has 3 pages, and only the first" in message
    assert f"{root / 'masks/train/t001.tif'}: The TIFF file has 3 pages, and only the first" in message

import io
import logging
import pickle
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
from torch.utils.data import DataLoader

from allspark_hf.data import BadDataError, Classes, SegmentationData, check_data, load_folder, mask_to_array


CAMVID = Path(__file__).resolve().parents[2] / "shared" / "data" / "camvid"
WIDTH, HEIGHT = 8, 5


def save_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, (90, 60, 30)).save(path, **options)


def save_mask(path: Path, values=(0, 1), size: tuple[int, int] = (WIDTH, HEIGHT), dtype=np.uint8, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.resize(np.array(values, dtype=dtype), size[::-1])).save(path, **options)


def make_data(root: Path, labeled: int = 4, unlabeled: int = 2, validation: int = 2, **mask_options) -> Path:
    counts = {"train": (labeled, unlabeled), "val": (validation, 0)}
    for split, (with_mask, without) in counts.items():
        for index in range(with_mask + without):
            save_image(root / "images" / split / f"{split}{index}.jpg")
            if index < with_mask:
                save_mask(root / "masks" / split / f"{split}{index}.png", **mask_options)
    return root


def rotated_exif() -> PIL.Image.Exif:
    exif = PIL.Image.Exif()
    exif[PIL.Image.ExifTags.Base.Orientation] = 6
    return exif


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def error_of(root: Path, **options) -> str:
    with pytest.raises(BadDataError) as caught:
        check_data(load_folder(root), **options)
    return str(caught.value)


def mask_rows(dataset: datasets.Dataset) -> list[list[int]]:
    return [np.unique(mask_to_array(row["label"])).tolist() for row in dataset]


def as_list(rows: list[dict]) -> list[dict]:
    return rows


def test_good_data_is_returned_as_it_is(tmp_path):
    data = load_folder(make_data(tmp_path, values=(0, 2, 255)))
    report = check_data(data)
    assert report.num_labels == 3
    assert report.values == [0, 2]
    assert report.left_out == []
    assert report.data is data
    assert check_data(data, num_labels=7).num_labels == 7
    assert check_data(replace(data, classes=Classes(["a", "b", "c", "d"]))).num_labels == 4


@pytest.mark.parametrize("num_labels", [1, 2, 81])
def test_number_of_classes_is_inferred(tmp_path, num_labels):
    size = (40, 3)
    for split in ("train", "val"):
        save_image(tmp_path / "images" / split / "a.png", size)
        save_mask(tmp_path / "masks" / split / "a.png", range(num_labels), size)
    report = check_data(load_folder(tmp_path))
    assert report.num_labels == num_labels
    assert report.values == list(range(num_labels))


def test_classes_may_occur_in_validation_only(tmp_path):
    make_data(tmp_path)
    save_mask(tmp_path / "masks" / "val" / "val1.png", (0, 5))
    assert check_data(load_folder(tmp_path)).num_labels == 6


def test_16_bit_masks(tmp_path):
    make_data(tmp_path, values=(0, 1, 2, 65535), dtype=np.uint16)
    assert check_data(load_folder(tmp_path), ignore_index=65535).num_labels == 3
    assert "train0.png: The mask holds the value 65535, but only 0 to 2 (for 3 classes)" in error_of(
        tmp_path, num_labels=3
    )


def test_inferred_number_with_many_gaps_is_reported(tmp_path, caplog):
    make_data(tmp_path, values=(0, 128))
    with caplog.at_level(logging.WARNING, logger="allspark_hf"):
        assert check_data(load_folder(tmp_path)).num_labels == 129
    assert "128, gives 129 classes, but 127 of them never occur" in caplog.text
    assert "--mask_values" in caplog.text


def test_values_out_of_range(tmp_path):
    make_data(tmp_path)
    save_mask(tmp_path / "masks" / "train" / "train1.png", (0, 3, 7, 255))
    message = error_of(tmp_path, num_labels=3)
    assert message.startswith("1 bad file was found; correct the data, or leave bad files out with --skip_bad_files:")
    path = tmp_path / "masks" / "train" / "train1.png"
    assert f"- {path}: The mask holds the values 3 and 7, but only 0 to 2 (for 3 classes) and the ignore" in message
    assert "ignore index 255 are allowed; correct the mask" in message


def test_binary_masks_name_the_option(tmp_path):
    make_data(tmp_path, values=(0, 255))
    for options in ({}, {"num_labels": 2}, {"skip_bad_files": True}):
        message = error_of(tmp_path, **options)
        assert "All labeled masks hold only 0 and 255" in message
        assert "--mask_values 0 255" in message
    assert "holds only 0 and 255, so it is a binary mask" in error_of(tmp_path, ignore_index=100, num_labels=2)
    assert check_data(load_folder(tmp_path), num_labels=1).values == [0]


def test_binary_masks_with_the_option(tmp_path):
    report = check_data(load_folder(make_data(tmp_path, values=(0, 255))), mask_values=[0, 255])
    assert report.num_labels == 2
    assert report.values == [0, 1]
    assert mask_rows(report.data.labeled) == [[0, 1]] * 4
    assert mask_rows(report.data.validation) == [[0, 1]] * 2
    assert report.data.labeled[0]["label"].mode == "L"
    inverse = check_data(load_folder(tmp_path), mask_values=[255, 0]).data.labeled[0]
    assert mask_to_array(inverse["label"])[0, :4].tolist() == [1, 0, 1, 0]


def test_value_that_the_option_does_not_list(tmp_path):
    make_data(tmp_path, values=(0, 128, 255))
    message = error_of(tmp_path, mask_values=[0, 255])
    assert "train0.png: The mask holds the value 128, which the mask values 0 255 do not list" in message
    report = check_data(load_folder(tmp_path), mask_values=[128, 0])
    assert report.num_labels == 2
    assert mask_rows(report.data.labeled)[0] == [0, 1, 255]


def test_masks_where_0_is_void(tmp_path):
    data = load_folder(make_data(tmp_path, values=(0, 1, 2, 3)))
    report = check_data(data, mask_values=[1, 2, 3], ignored_mask_values=[0])
    assert (report.num_labels, report.values) == (3, [0, 1, 2])
    for split in (report.data.labeled, report.data.validation):
        assert {tuple(mask_to_array(row["label"])[0, :5]) for row in split} == {(255, 0, 1, 2, 255)}
    for options in ({"ignored_mask_values": [0]}, {"ignored_mask_values": [0], "num_labels": 4}):
        with pytest.raises(
            ValueError, match="names 0, which is also one of the classes 0 to 3; list the stored value"
        ):
            check_data(data, **options)
    report = check_data(data, ignored_mask_values=[3])
    assert (report.num_labels, report.values) == (3, [0, 1, 2])
    assert mask_rows(report.data.labeled) == [[0, 1, 2, 255]] * 4
    assert "--ignored_mask_values" in error_of(tmp_path, mask_values=[0, 1, 2])
    assert "--ignored_mask_values" in error_of(tmp_path, num_labels=3)


def test_what_the_data_says_of_its_masks_and_what_options_say(tmp_path):
    data = load_folder(make_data(tmp_path, values=(0, 4, 6)))
    data = replace(data, mask_values=(6, 4), ignored_mask_values=(0,))
    report = check_data(data)
    assert (report.num_labels, report.values) == (2, [0, 1])
    assert mask_to_array(report.data.validation[0]["label"])[0, :3].tolist() == [255, 1, 0]
    assert report.data.stored_values() == (None, ())  # done; checking again must not map again
    report = check_data(data, mask_values=[0, 4, 6])
    assert mask_to_array(report.data.validation[0]["label"])[0, :3].tolist() == [0, 1, 2]
    assert data.stored_values([1]) == ((1,), ())
    assert data.stored_values(None, [5]) == ((6, 4), (5,))


def test_only_ignored_pixels(tmp_path):
    make_data(tmp_path, values=(255,))
    assert "All pixels of all labeled masks have the ignore index 255" in error_of(tmp_path)
    make_data(tmp_path, values=(0, 1))
    for path in (tmp_path / "masks" / "val").iterdir():
        save_mask(path, (255,))
    assert "All pixels of all validation masks have the ignore index 255" in error_of(tmp_path)


def test_mask_of_another_size(tmp_path):
    make_data(tmp_path)
    save_mask(tmp_path / "masks" / "val" / "val0.png", size=(HEIGHT, WIDTH))
    message = error_of(tmp_path)
    assert "val0.png: The mask is 5 x 8 pixels (width x height), but its image is 8 x 5 once upright" in message


def test_sizes_are_compared_upright(tmp_path):
    make_data(tmp_path)
    save_image(tmp_path / "images" / "train" / "train0.jpg", exif=rotated_exif())
    assert "train0.png: The mask is 8 x 5 pixels (width x height), but its image is 5 x 8 once" in error_of(tmp_path)
    save_mask(tmp_path / "masks" / "train" / "train0.png", size=(HEIGHT, WIDTH))
    assert check_data(load_folder(tmp_path)).num_labels == 2
    save_mask(tmp_path / "masks" / "train" / "train0.png", exif=rotated_exif())
    assert check_data(load_folder(tmp_path)).num_labels == 2


@pytest.mark.parametrize(
    "victim", ["images/train/train1.jpg", "images/train/train5.jpg", "masks/train/train1.png", "masks/val/val0.png"]
)
def test_truncated_and_empty_files(tmp_path, victim):
    path = make_data(tmp_path) / victim
    truncate(path)
    assert f"{path}: The file cannot be read (" in error_of(tmp_path)
    path.write_bytes(b"")
    assert f"{path}: The file cannot be read (" in error_of(tmp_path)
    path.write_bytes(b"not a picture")
    assert f"{path}: The file cannot be read (" in error_of(tmp_path)


def test_colour_and_jpeg_masks(tmp_path):
    make_data(tmp_path)
    save_image(tmp_path / "masks" / "train" / "train0.png")
    (tmp_path / "masks" / "train" / "train1.png").unlink()
    save_mask(tmp_path / "masks" / "train" / "train1.jpg")
    message = error_of(tmp_path)
    assert "train0.png: The mask is a colour picture (mode RGB), so its palette was flattened" in message
    assert "train1.jpg: The mask is a JPEG file, whose compression changes class indices; save it as PNG." in message


def test_floating_point_image(tmp_path):
    make_data(tmp_path)
    (tmp_path / "images" / "train" / "train5.jpg").unlink()
    PIL.Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "images" / "train" / "train5.tif")
    assert "train5.tif: The image holds floating-point values" in error_of(tmp_path)


def test_first_ten_problems_and_the_total(tmp_path):
    make_data(tmp_path, labeled=12, validation=3, values=(0, 9))
    with pytest.raises(BadDataError) as caught:
        check_data(load_folder(tmp_path), num_labels=2)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("15 bad files were found")
    assert len(lines) == 12
    assert lines[-1] == "- and 5 more"
    assert len(caught.value.problems) == 15


def test_bad_files_are_left_out_on_request(tmp_path):
    make_data(tmp_path)
    truncate(tmp_path / "images" / "train" / "train0.jpg")
    truncate(tmp_path / "images" / "train" / "train4.jpg")
    save_mask(tmp_path / "masks" / "train" / "train2.png", (0, 9))
    save_mask(tmp_path / "masks" / "val" / "val1.png", size=(3, 3))
    data = load_folder(tmp_path)
    report = check_data(data, num_labels=2, skip_bad_files=True)
    assert list(report.data.labeled["id"]) == ["train1", "train3"]
    assert list(report.data.unlabeled["id"]) == ["train5"]
    assert list(report.data.validation["id"]) == ["val0"]
    assert len(report.left_out) == 4
    assert "train0.jpg: The file cannot be read" in report.left_out[0]
    assert report.values == [0, 1]
    assert len(data.labeled) == 4


def test_values_of_files_left_out_do_not_count(tmp_path):
    make_data(tmp_path)
    save_mask(tmp_path / "masks" / "train" / "train2.png", (0, 9), size=(3, 3))
    assert check_data(load_folder(tmp_path), skip_bad_files=True).num_labels == 2


@pytest.mark.parametrize(("folder", "split"), [("train", "labeled"), ("val", "validation")])
def test_nothing_is_left(tmp_path, folder, split):
    make_data(tmp_path)
    for path in (tmp_path / "masks" / folder).iterdir():
        truncate(path)
    message = error_of(tmp_path, skip_bad_files=True)
    assert f"The {split} set is empty: all its files were left out; the first problem: {tmp_path}" in message


@pytest.mark.parametrize("split", ["labeled", "validation"])
def test_empty_set(tmp_path, split):
    data = load_folder(make_data(tmp_path))
    with pytest.raises(BadDataError, match=f"The {split} set is empty: there is nothing to train on or to validate"):
        check_data(replace(data, **{split: getattr(data, split).select([])}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_labels": 3, "mask_values": [0, 1]}, "3 from num_labels and 2 from the list of mask values"),
        ({"num_labels": 3, "classes": ["a", "b"]}, "3 from num_labels and 2 from the list of classes"),
        ({"num_labels": 0}, "num_labels is 0, but there must be at least 1 class"),
        ({"num_labels": 300}, "ignore index 255 is also one of the classes 0 to 299"),
        ({"ignore_index": 0}, "ignore index 0 is also one of the classes 0 to 1"),
        ({"mask_values": [1, 1]}, "name one value twice"),
    ],
)
def test_options_that_contradict(tmp_path, options, message):
    data = load_folder(make_data(tmp_path))
    if "classes" in options:
        data = replace(data, classes=Classes(options.pop("classes")))
    with pytest.raises(ValueError, match=message):
        check_data(data, **options)


def test_missing_column_and_foreign_transform(tmp_path):
    data = load_folder(make_data(tmp_path))
    with pytest.raises(ValueError, match=r"no column 'label' \(it has id, image, mask\)"):
        check_data(replace(data, labeled=data.labeled.rename_column("label", "mask")))
    with pytest.raises(ValueError, match=r"column 'image' holds Value.*not images; cast it with"):
        check_data(replace(data, unlabeled=datasets.Dataset.from_dict({"image": ["a.jpg"]})))
    with pytest.raises(ValueError, match=r"The validation set has the format or transform 'custom'.*after check_data"):
        check_data(replace(data, validation=data.validation.with_transform(as_list)), mask_values=[0, 1])


def test_rows_that_are_bytes_are_named(tmp_path):
    def encoded(mode: str, size: tuple[int, int], color) -> bytes:
        buffer = io.BytesIO()
        PIL.Image.new(mode, size, color).save(buffer, "PNG")
        return buffer.getvalue()

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    image, mask = encoded("RGB", (4, 3), 0), encoded("L", (4, 3), 1)
    good = datasets.Dataset.from_dict({"image": [image, image], "label": [mask, mask]}, features=features)
    bad_masks = [mask, encoded("L", (4, 3), 8)]
    bad = datasets.Dataset.from_dict({"image": [image, image], "label": bad_masks}, features=features)
    empty = datasets.Dataset.from_dict({"image": [], "label": []})
    assert check_data(SegmentationData(good, empty, good)).num_labels == 2
    with pytest.raises(BadDataError, match=r"The label of validation row 1: The mask holds the value 8, but"):
        check_data(SegmentationData(good, empty, bad), num_labels=2)
    with pytest.raises(BadDataError, match=r"The label of validation row second: The mask holds the value 8, but"):
        check_data(SegmentationData(good, empty, bad.add_column("id", ["first", "second"])), num_labels=2)
    hollow = datasets.Dataset.from_dict({"image": [image, None], "label": [mask, mask]}, features=features)
    with pytest.raises(
        BadDataError, match=r"The image of labeled row 1: The entry is empty; give it a file or remove"
    ):
        check_data(SegmentationData(hollow, empty, good))


def test_mapped_masks_survive_select_and_workers(tmp_path):
    data = load_folder(make_data(tmp_path, labeled=6, values=(0, 100, 200, 255)))
    mapped = check_data(data, mask_values=[0, 100, 200]).data.labeled.select([5, 0, 3])
    assert mask_rows(mapped) == [[0, 1, 2, 255]] * 3
    assert list(mapped["id"]) == ["train5", "train0", "train3"]
    assert mapped.remove_columns("label")[0]["id"] == "train5"
    # Where workers are not forked they get the data set by pickling.
    mapped = pickle.loads(pickle.dumps(mapped))
    loader = DataLoader(mapped, batch_size=2, num_workers=2, collate_fn=as_list)
    rows = [row for batch in loader for row in batch]
    assert [row["id"] for row in rows] == ["train5", "train0", "train3"]
    for row in rows:
        assert np.unique(mask_to_array(row["label"])).tolist() == [0, 1, 2, 255]
        assert row["image"].size == (WIDTH, HEIGHT)


def test_masks_are_mapped_upright(tmp_path):
    make_data(tmp_path)
    save_image(tmp_path / "images" / "train" / "train0.jpg", exif=rotated_exif())
    save_mask(tmp_path / "masks" / "train" / "train0.png", exif=rotated_exif())
    row = check_data(load_folder(tmp_path), mask_values=[1, 0]).data.labeled[0]
    assert row["image"].size == row["label"].size == (HEIGHT, WIDTH)
    assert mask_to_array(row["label"])[:, -1].tolist() == [1, 0] * 4


@pytest.mark.skipif(not CAMVID.is_dir(), reason=f"CamVid is not at {CAMVID}")
def test_camvid_is_good():
    report = check_data(load_folder(CAMVID, labeled_fraction=1 / 8))
    assert report.num_labels == 11
    assert report.values == list(range(11))
    assert report.left_out == []

"""Images and masks in a folder of one's own: which are read, drawn, hidden and refused."""

import logging
from pathlib import Path

import datasets
import numpy as np
import pytest
from layout_folders import ids, load_folder, make_flat, make_folder, write_image, write_mask

from allspark_hf.data import draw, fraction_to_count, mask_to_array


CAMVID = Path(__file__).resolve().parents[2] / "shared" / "data" / "camvid"


def test_split_layout(tmp_path):
    data = load_folder(make_folder(tmp_path))
    assert ids(data.labeled) == ["t000", "t001", "t002", "t003"]
    assert ids(data.unlabeled) == ["t004", "t005"] and ids(data.validation) == ["v000", "v001"]
    assert data.hidden_ids == [] and data.classes is None
    assert data.labeled.column_names == data.validation.column_names == ["id", "image", "label"]
    assert data.unlabeled.column_names == ["id", "image"]
    assert all(isinstance(dataset.features["image"], datasets.Image) for dataset in data.sets.values())


def test_rows_hold_the_files_of_their_id(tmp_path):
    make_folder(tmp_path)
    write_mask(tmp_path / "images" / "train" / "t002.jpg", (200,), (9, 5))
    write_mask(tmp_path / "masks" / "train" / "t002.png", (3,), (9, 5))
    row = load_folder(tmp_path).labeled[2]
    assert row["id"] == "t002" and row["image"].size == (9, 5)
    assert np.asarray(row["image"])[0, 0] == 200
    assert np.unique(mask_to_array(row["label"])).tolist() == [3]


def test_no_unlabeled_image_gives_an_empty_set(tmp_path):
    data = load_folder(make_folder(tmp_path, unlabeled=0), output_dir=tmp_path / "out")
    assert len(data.unlabeled) == 0 and isinstance(data.unlabeled.features["image"], datasets.Image)
    assert (tmp_path / "out" / "unlabeled_ids.txt").read_text(encoding="utf-8") == ""


def test_extensions_of_any_case_and_nested_folders(tmp_path):
    suffixes = ["JPG", "jpeg", "PNG", "bmp", "tif", "TIFF", "WebP"]
    for index, suffix in enumerate(suffixes):
        write_image(tmp_path / "images" / "train" / "drive" / f"a.{index}.{suffix}")
        write_mask(tmp_path / "masks" / "train" / "drive" / f"a.{index}.{'PNG' if index % 2 else 'tif'}")
    write_image(tmp_path / "images" / "train" / "a.0.jpg")
    write_image(tmp_path / "images" / "val" / "a.0.jpg")
    write_mask(tmp_path / "masks" / "val" / "a.0.png")
    data = load_folder(tmp_path)
    assert ids(data.labeled) == [f"drive/a.{index}" for index in range(7)]
    assert ids(data.unlabeled) == ids(data.validation) == ["a.0"]


def test_flat_layout_holds_out_labeled_images_only(tmp_path):
    data = load_folder(make_flat(tmp_path))
    assert (len(data.labeled), len(data.unlabeled), len(data.validation)) == (18, 5, 2)
    assert ids(data.unlabeled) == ["i020", "i021", "i022", "i023", "i024"]
    assert sorted(ids(data.labeled) + ids(data.validation)) == [f"i{index:03}" for index in range(20)]
    again, other = load_folder(tmp_path), load_folder(tmp_path, split_seed=1)
    assert ids(again.validation) == ids(data.validation) != ids(other.validation)
    assert len(load_folder(tmp_path, validation_fraction=0.001).validation) == 1
    nested = write_image(tmp_path / "images" / "q" / "x.jpg")
    assert "q/x" in ids(load_folder(tmp_path).unlabeled) and nested.is_file()


def test_the_draw_is_fixed():
    names = [f"i{index}" for index in range(10)]
    # Written down once: a change here means that published id lists can no longer be reproduced.
    assert draw(names, 4, seed=42) == draw(names[::-1], 4, seed=42) == ["i0", "i5", "i6", "i7"]
    assert set(draw(names, 2, seed=42)) < set(draw(names, 4, seed=42))
    assert draw(names, 4, seed=43) != draw(names, 4, seed=42)


@pytest.mark.parametrize(
    ("total", "fraction", "count"),
    [
        (367, 1 / 8, 46),
        (10582, 1 / 16, 662),
        (10582, 1 / 8, 1323),
        (2975, 1 / 16, 186),
        (118287, 1 / 512, 232),
        (100, 0.07, 7),  # 7.000000000000001 in floating point
        (3, 1 / 3, 1),
        (5, 0.001, 1),
        (7, 1.0, 7),
    ],
)
def test_fraction_to_count(total, fraction, count):
    assert fraction_to_count(total, fraction) == count


@pytest.mark.parametrize("options", [{"labeled_fraction": 0.25}, {"labeled_count": 5}])
def test_hidden_masks_make_unlabeled_images(tmp_path, options):
    data = load_folder(make_folder(tmp_path, labeled=20, unlabeled=3), **options)
    assert (len(data.labeled), len(data.unlabeled), len(data.hidden_ids)) == (5, 18, 15)
    assert sorted(ids(data.labeled) + ids(data.unlabeled)) == [f"t{index:03}" for index in range(23)]
    assert sorted(ids(data.labeled) + data.hidden_ids) == [f"t{index:03}" for index in range(20)]
    assert [row["id"] for row in data.unlabeled if row["label"] is not None] == data.hidden_ids
    other = load_folder(tmp_path, split_seed=7, **options)
    assert ids(load_folder(tmp_path, **options).labeled) == ids(data.labeled) != ids(other.labeled)
    assert ids(other.validation) == ids(data.validation)


@pytest.mark.parametrize("make", [make_folder, make_flat])
def test_id_lists_restore_the_same_data(tmp_path, make):
    root, out = make(tmp_path / "data", labeled=20), tmp_path / "out" / "run"
    data = load_folder(root, labeled_fraction=0.2, split_seed=5, output_dir=out)
    again = load_folder(root, labeled_list=out / "labeled_ids.txt", split_seed=5)
    for name, dataset in data.sets.items():
        assert (out / f"{name}_ids.txt").read_text(encoding="utf-8").split() == ids(dataset) == ids(again.sets[name])
    assert again.hidden_ids == data.hidden_ids


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("", r"ids\.txt names no image"),
        ("t000\nt001\nt000\n", r"Line 3 of .*ids\.txt names t000, as line 1 does"),
        ("t000\nnothing\n", r"Line 2 of .*ids\.txt names nothing, but there is no image .*images.train.nothing"),
        ("t000\nt005\n", r"Line 2 of .*ids\.txt names t005, but there is no mask .*masks.train.t005"),
        ("t000\nv001\n", r"Line 2 of .*ids\.txt names v001, which is a validation image"),
    ],
)
def test_bad_id_lists(tmp_path, listed, message):
    make_folder(tmp_path)
    (tmp_path / "ids.txt").write_text(listed, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_folder(tmp_path, labeled_list=tmp_path / "ids.txt")
    with pytest.raises(FileNotFoundError, match=r"There is no list .*none\.txt"):
        load_folder(tmp_path, labeled_list=tmp_path / "none.txt")


def test_id_list_of_another_seed(tmp_path):
    root = make_flat(tmp_path / "data")
    held_out = ids(load_folder(root, split_seed=1).validation)
    (tmp_path / "ids.txt").write_text("\n".join(held_out), encoding="utf-8")
    load_folder(root, split_seed=3, labeled_list=tmp_path / "ids.txt")
    with pytest.raises(ValueError, match=r"^2 images are both in .*ids\.txt and in the validation set .*use the seed"):
        load_folder(root, split_seed=1, labeled_list=tmp_path / "ids.txt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labeled_fraction": 0.5, "labeled_count": 2}, "labeled_fraction and labeled_count were given together"),
        ({"labeled_count": 2, "labeled_list": "x"}, "labeled_count and labeled_list were given together"),
        ({"unlabeled_list": "x"}, "unlabeled_list was given without labeled_list"),
        ({"labeled_fraction": 0}, "labeled_fraction=0 is out of range: set a number above 0 and at most 1"),
        ({"labeled_fraction": 1.5}, r"labeled_fraction=1\.5 is out of range"),
        ({"labeled_count": 0}, "labeled_count=0 is out of range"),
        ({"labeled_count": 5}, "labeled_count is 5, but .* has only 4 masks"),
        ({"validation_fraction": 1.0}, r"validation_fraction=1\.0 is out of range"),
        ({"split_seed": -1}, "split_seed=-1 is out of range"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        load_folder(make_folder(tmp_path), **options)


def test_missing_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere; data_dir must name one"):
        load_folder(tmp_path / "nowhere")
    write_image(tmp_path / "images" / "a.jpg")
    with pytest.raises(FileNotFoundError, match=r"no folder .*masks; the data folder"):
        load_folder(tmp_path)
    write_image(tmp_path / "images" / "val" / "v.jpg")
    with pytest.raises(FileNotFoundError, match=r"no folder .*masks; the data folder"):
        load_folder(tmp_path)
    write_mask(tmp_path / "masks" / "a.png")
    with pytest.raises(FileNotFoundError, match=r"no folder .*masks.val; images/ and masks/ must both have"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ("masks/train/t000_mask.png", r"^1 mask has no image, first .*t000_mask\.png; .* without a suffix"),
        ("images/train/t001.PNG", r"t001\.PNG and .*t001\.jpg have the same name but for the extension"),
        ("masks/train/t001.tif", r"t001\.tif have the same name"),
        ("images/val/v009.jpg", r"^1 of 3 validation images have no mask, first .*v009\.jpg \(no .*masks.val.v009\)"),
        ("images/stray.jpg", r"stray\.jpg lies beside train/ and val/"),
        ("masks/train/t005.gif", r"t005\.gif is not of a usable kind \(accepted: jpg, jpeg, png"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, added, message):
    write_mask(make_folder(tmp_path) / added)
    with pytest.raises(ValueError, match=message):
        load_folder(tmp_path)


def test_nothing_to_train_on(tmp_path):
    make_folder(tmp_path / "a", labeled=0)
    (tmp_path / "a" / "masks" / "train").mkdir()
    make_flat(tmp_path / "b", labeled=0)
    (tmp_path / "b" / "masks").mkdir()
    for name in "ab":
        with pytest.raises(ValueError, match=f"/{name} has no mask of a training image, so the labeled set is empty"):
            load_folder(tmp_path / name)
    for name in ("images", "masks"):
        (tmp_path / "c" / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"images holds no image; put some there \(accepted: jpg"):
        load_folder(tmp_path / "c")
    with pytest.raises(ValueError, match=r"has 1 mask and 1 would be held out for validation, so that none is left"):
        load_folder(make_flat(tmp_path / "d", labeled=1))


def test_files_of_other_kinds_are_reported_and_hidden_files_are_not(tmp_path, caplog):
    make_folder(tmp_path)
    (tmp_path / "images" / "train" / "note.heic").write_text("x")
    (tmp_path / "images" / "train" / "._t000.jpg").write_text("x")
    with caplog.at_level(logging.WARNING, logger="allspark_hf"):
        assert len(load_folder(tmp_path).labeled) == 4
    (message,) = caplog.messages
    folder = tmp_path / "images" / "train"
    assert message == f"Left out of {folder}: 1 file that Pillow does not read, first {folder / 'note.heic'}."


def test_classes_are_read(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "classes.txt").write_text("sky\nroad\n", encoding="utf-8")
    assert load_folder(tmp_path).classes.id2label == {0: "sky", 1: "road"}
    (tmp_path / "classes.json").write_text('["sky"]', encoding="utf-8")
    with pytest.raises(ValueError, match=r"classes\.json and .*classes\.txt both exist"):
        load_folder(tmp_path)


@pytest.mark.skipif(not CAMVID.is_dir(), reason=f"CamVid is not at {CAMVID}")
def test_camvid_eighth():
    data = load_folder(CAMVID, labeled_fraction=1 / 8)
    assert (len(data.labeled), len(data.unlabeled), len(data.validation)) == (46, 321, 101)
    assert len({*ids(data.labeled), *ids(data.unlabeled)}) == 367 and len(data.hidden_ids) == 321

import logging
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest

from allspark_hf.data import draw, fraction_to_count, load_folder, mask_to_array, write_id_lists


CAMVID = Path(__file__).resolve().parents[2] / "shared" / "data" / "camvid"


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (6, 4), color=0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new(mode, size, color).save(path)
    return path


def make_split(root: Path, labeled: int = 4, unlabeled: int = 2, validation: int = 2) -> Path:
    for index in range(labeled + unlabeled):
        save(root / "images" / "train" / f"t{index:03}.jpg")
    for index in range(labeled):
        save(root / "masks" / "train" / f"t{index:03}.png", "L")
    for index in range(validation):
        save(root / "images" / "val" / f"v{index:03}.jpg")
        save(root / "masks" / "val" / f"v{index:03}.png", "L")
    return root


def make_flat(root: Path, labeled: int = 20, unlabeled: int = 5) -> Path:
    for index in range(labeled + unlabeled):
        save(root / "images" / f"i{index:03}.jpg")
    for index in range(labeled):
        save(root / "masks" / f"i{index:03}.png", "L")
    return root


def ids(dataset: datasets.Dataset) -> list[str]:
    return list(dataset["id"])


def test_split_layout(tmp_path):
    data = load_folder(make_split(tmp_path))
    assert ids(data.labeled) == ["t000", "t001", "t002", "t003"]
    assert ids(data.unlabeled) == ["t004", "t005"]
    assert ids(data.validation) == ["v000", "v001"]
    assert data.hidden_ids == []
    assert data.classes is None
    assert data.labeled.column_names == ["id", "image", "label"]
    assert data.unlabeled.column_names == ["id", "image"]
    for dataset in (data.labeled, data.unlabeled, data.validation):
        assert isinstance(dataset.features["image"], datasets.Image)


def test_rows_hold_the_files_of_their_id(tmp_path):
    make_split(tmp_path)
    save(tmp_path / "images" / "train" / "t002.jpg", "L", (9, 5), 200)
    save(tmp_path / "masks" / "train" / "t002.png", "L", (9, 5), 3)
    row = load_folder(tmp_path).labeled[2]
    assert row["id"] == "t002"
    assert row["image"].size == (9, 5)
    assert np.asarray(row["image"])[0, 0] == 200
    assert np.unique(mask_to_array(row["label"])).tolist() == [3]


def test_no_unlabeled_image_gives_an_empty_set(tmp_path):
    data = load_folder(make_split(tmp_path, unlabeled=0))
    assert len(data.unlabeled) == 0
    assert data.unlabeled.features["image"] == datasets.Image()


def test_extensions_of_any_case_and_nested_folders(tmp_path):
    suffixes = ["JPG", "jpeg", "PNG", "bmp", "tif", "TIFF", "WebP"]
    for index, suffix in enumerate(suffixes):
        save(tmp_path / "images" / "train" / "drive" / f"a.{index}.{suffix}")
        save(tmp_path / "masks" / "train" / "drive" / f"a.{index}.{'PNG' if index % 2 else 'tif'}", "L")
    save(tmp_path / "images" / "train" / "a.0.jpg")
    save(tmp_path / "images" / "val" / "a.0.jpg")
    save(tmp_path / "masks" / "val" / "a.0.png", "L")
    data = load_folder(tmp_path)
    assert ids(data.labeled) == [f"drive/a.{index}" for index in range(7)]
    assert ids(data.unlabeled) == ["a.0"]
    assert ids(data.validation) == ["a.0"]


def test_flat_layout_holds_out_labeled_images_only(tmp_path):
    data = load_folder(make_flat(tmp_path))
    assert (len(data.labeled), len(data.unlabeled), len(data.validation)) == (18, 5, 2)
    assert ids(data.unlabeled) == ["i020", "i021", "i022", "i023", "i024"]
    assert sorted(ids(data.labeled) + ids(data.validation)) == [f"i{index:03}" for index in range(20)]
    again, other = load_folder(tmp_path), load_folder(tmp_path, seed=1)
    assert ids(again.validation) == ids(data.validation)
    assert ids(other.validation) != ids(data.validation)
    assert len(load_folder(tmp_path, validation_fraction=0.001).validation) == 1


def test_flat_layout_with_nested_folders(tmp_path):
    for name in ("p/x", "q/x", "q/y"):
        save(tmp_path / "images" / f"{name}.jpg")
        save(tmp_path / "masks" / f"{name}.png", "L")
    data = load_folder(tmp_path, validation_fraction=0.3)
    assert sorted(ids(data.labeled) + ids(data.validation)) == ["p/x", "q/x", "q/y"]
    assert len(data.validation) == 1


def test_the_draw_is_fixed(tmp_path):
    names = [f"i{index}" for index in range(10)]
    # Written down once: a change here means that published id lists can no longer be reproduced.
    assert draw(names, 4, seed=42) == ["i0", "i5", "i6", "i7"]
    assert draw(names[::-1], 4, seed=42) == draw(names, 4, seed=42)
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
    data = load_folder(make_split(tmp_path, labeled=20, unlabeled=3), **options)
    assert len(data.labeled) == 5
    assert len(data.unlabeled) == 18
    assert len(data.hidden_ids) == 15
    assert sorted(ids(data.labeled) + ids(data.unlabeled)) == [f"t{index:03}" for index in range(23)]
    assert sorted(ids(data.labeled) + data.hidden_ids) == [f"t{index:03}" for index in range(20)]
    with_mask = [row["id"] for row in data.unlabeled if row["label"] is not None]
    assert with_mask == data.hidden_ids
    assert ids(load_folder(tmp_path, **options).labeled) == ids(data.labeled)
    assert ids(load_folder(tmp_path, seed=7, **options).labeled) != ids(data.labeled)
    assert ids(load_folder(tmp_path, seed=7, **options).validation) == ids(data.validation)


@pytest.mark.parametrize("make", [make_split, make_flat])
def test_id_lists_restore_the_same_data(tmp_path, make):
    root = make(tmp_path / "data", labeled=20)
    data = load_folder(root, labeled_fraction=0.2, seed=5, output_dir=tmp_path / "out" / "run")
    listed = tmp_path / "out" / "run" / "labeled_ids.txt"
    assert listed.read_text(encoding="utf-8").splitlines() == ids(data.labeled)
    assert (listed.parent / "unlabeled_ids.txt").read_text(encoding="utf-8").split() == ids(data.unlabeled)
    assert (listed.parent / "validation_ids.txt").read_text(encoding="utf-8").split() == ids(data.validation)
    again = load_folder(root, labeled_list=listed, seed=5)
    assert ids(again.labeled) == ids(data.labeled)
    assert ids(again.unlabeled) == ids(data.unlabeled)
    assert ids(again.validation) == ids(data.validation)
    assert again.hidden_ids == data.hidden_ids


def test_write_id_lists_of_an_empty_set(tmp_path):
    write_id_lists(load_folder(make_split(tmp_path, unlabeled=0)), tmp_path / "out")
    assert (tmp_path / "out" / "unlabeled_ids.txt").read_text(encoding="utf-8") == ""


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("", r"ids\.txt names no image; list at least one"),
        ("t000\nt001\nt000\n", r"Line 3 of .*ids\.txt names t000, as line 1 does; name every image once"),
        (
            "t000\nnothing\n",
            r"Line 2 of .*ids\.txt names nothing, but there is no image .*images.train.nothing; correct",
        ),
        ("t000\nt005\n", r"Line 2 of .*ids\.txt names t005, but there is no mask .*masks.train.t005; add it"),
        ("t000\nv001\n", r"Line 2 of .*ids\.txt names v001, which is a validation image; correct"),
    ],
)
def test_bad_id_lists(tmp_path, listed, message):
    make_split(tmp_path)
    (tmp_path / "ids.txt").write_text(listed, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_folder(tmp_path, labeled_list=tmp_path / "ids.txt")


def test_id_list_of_another_seed(tmp_path):
    root = make_flat(tmp_path / "data")
    held_out = ids(load_folder(root, seed=1).validation)
    (tmp_path / "ids.txt").write_text("\n".join(held_out), encoding="utf-8")
    load_folder(root, seed=3, labeled_list=tmp_path / "ids.txt")
    with pytest.raises(
        ValueError, match=r"^2 images are both in .*ids\.txt and in the validation set \(.*use the seed"
    ):
        load_folder(root, seed=1, labeled_list=tmp_path / "ids.txt")


def test_missing_id_list(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no list .*ids\.txt; give a text file"):
        load_folder(make_split(tmp_path), labeled_list=tmp_path / "ids.txt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labeled_fraction": 0.5, "labeled_count": 2}, "labeled_fraction and labeled_count were given together"),
        ({"labeled_count": 2, "labeled_list": "x"}, "labeled_count and labeled_list were given together"),
        ({"unlabeled_list": "x"}, "unlabeled_list was given without labeled_list; give both"),
        ({"labeled_fraction": 0}, "labeled_fraction is 0, but it must be above 0 and at most 1"),
        ({"labeled_fraction": 1.5}, r"labeled_fraction is 1\.5"),
        ({"labeled_count": 0}, "labeled_count is 0, but at least 1"),
        ({"labeled_count": 5}, "labeled_count is 5, but only 4 training images have a mask"),
        ({"validation_fraction": 1.0}, r"validation_fraction is 1\.0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        load_folder(make_split(tmp_path), **options)


def test_missing_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere; the data folder must hold images/ and masks/"):
        load_folder(tmp_path / "nowhere")
    save(tmp_path / "images" / "a.jpg")
    with pytest.raises(FileNotFoundError, match=r"no folder .*masks; the data folder"):
        load_folder(tmp_path)
    save(tmp_path / "images" / "train" / "a.jpg")
    save(tmp_path / "masks" / "train" / "a.png", "L")
    with pytest.raises(FileNotFoundError, match=r"no folder .*images.val; images/ and masks/ must both have"):
        load_folder(tmp_path)


def test_files_that_do_not_fit_are_named(tmp_path):
    def error_after(change) -> str:
        root = make_split(tmp_path / change.__name__)
        change(root)
        with pytest.raises(ValueError) as caught:
            load_folder(root)
        return str(caught.value)

    def mask_alone(root):
        save(root / "masks" / "train" / "t000_mask.png", "L")

    def two_images(root):
        save(root / "images" / "train" / "t001.PNG")

    def two_masks(root):
        save(root / "masks" / "train" / "t001.tif", "L")

    def bare_validation(root):
        save(root / "images" / "val" / "v009.jpg")

    def stray(root):
        save(root / "images" / "stray.jpg")

    def other_kind(root):
        save(root / "masks" / "train" / "t005.gif", "L")

    assert "t000_mask.png has no image" in error_after(mask_alone)
    assert "t001.PNG and" in error_after(two_images)
    assert "t001.jpg have the same name but for the extension; keep one" in error_after(two_images)
    assert "t001.tif have the same name" in error_after(two_masks)
    assert "v009.jpg has no mask in" in error_after(bare_validation)
    assert "stray.jpg lies beside train/ and val/" in error_after(stray)
    assert "t005.gif is not of a usable kind (accepted: jpg, jpeg, png" in error_after(other_kind)


def test_nothing_to_train_on(tmp_path):
    make_split(tmp_path / "a", labeled=0)
    (tmp_path / "a" / "masks" / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"train holds no mask, so the labeled set is empty"):
        load_folder(tmp_path / "a")
    for name in ("images", "masks"):
        (tmp_path / "b" / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"images holds no image; put some there \(accepted: jpg"):
        load_folder(tmp_path / "b")
    with pytest.raises(ValueError, match=r"holds 1 mask and 1 would be held out for validation, which leaves none"):
        load_folder(make_flat(tmp_path / "c", labeled=1))
    with pytest.raises(ValueError, match=r"masks holds no mask, so the labeled set is empty"):
        save(tmp_path / "d" / "images" / "a.jpg")
        (tmp_path / "d" / "masks").mkdir()
        load_folder(tmp_path / "d")


def test_files_of_other_kinds_are_reported_and_hidden_files_are_not(tmp_path, caplog):
    make_split(tmp_path)
    (tmp_path / "images" / "train" / "note.heic").write_text("x")
    (tmp_path / "images" / "train" / "._t000.jpg").write_text("x")
    with caplog.at_level(logging.WARNING, logger="allspark_hf"):
        assert len(load_folder(tmp_path).labeled) == 4
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().startswith("1 files in")
    assert caplog.records[0].getMessage().endswith("note.heic")


def test_classes_are_read(tmp_path):
    make_split(tmp_path)
    (tmp_path / "classes.txt").write_text("sky\nroad\n", encoding="utf-8")
    assert load_folder(tmp_path).classes.id2label == {0: "sky", 1: "road"}
    (tmp_path / "classes.json").write_text('["sky"]', encoding="utf-8")
    with pytest.raises(ValueError, match=r"classes\.json and .*classes\.txt both exist; keep one"):
        load_folder(tmp_path)


@pytest.mark.skipif(not CAMVID.is_dir(), reason=f"CamVid is not at {CAMVID}")
def test_camvid_eighth():
    data = load_folder(CAMVID, labeled_fraction=1 / 8)
    assert (len(data.labeled), len(data.unlabeled), len(data.validation)) == (46, 321, 101)
    assert len(set(ids(data.labeled)) | set(ids(data.unlabeled))) == 367
    assert len(data.hidden_ids) == 321

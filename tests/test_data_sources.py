"""Of every way to keep data in folders and splits: the ids of the three sets, and what is said of the rest."""

import logging
from pathlib import Path

import datasets
import PIL.Image
import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value
from layout_folders import (
    SBD_ONLY,
    VOC_TRAIN,
    VOC_VAL,
    ids,
    load_folder,
    load_hub_data,
    make_cityscapes,
    make_coco,
    make_files,
    make_voc,
    write_ids,
    write_image,
    write_mask,
)

from allspark_hf.data import DataArguments, find_data
from allspark_hf.data.sources.split_names import TEST_FIX, split_of


SETS = ("labeled", "unlabeled", "validation")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def loaded(root, caplog, **options) -> tuple[list[list[str]], list[str]]:
    """The ids of the three sets, and what was said."""
    with caplog.at_level(logging.WARNING, logger="allspark_hf"):
        data = find_data(DataArguments(data_dir=str(root), **options))
    return [ids(getattr(data, name)) for name in SETS], caplog.messages


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(
            (name, "train")
            for name in ("train", "Train", "TRAINING", "train2017", "train_set", "training-1", "trainset")
        ),
        *((name, "validation") for name in ("val", "Val", "valid", "VALIDATION", "val2017", "dev", "eval", "valset")),
        *((name, "test") for name in ("test", "Testing", "test2017", "test_set")),
        *((name, "unlabeled") for name in ("unlabeled", "Unlabelled", "unlabeled2017", "images_unlabeled")),
        *(
            (name, None)
            for name in ("trainval", "train_extra", "value", "devices", "contest", "2017", "", "city", "images")
        ),
    ],
)
def test_what_a_name_means(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("train", "val", "images", "masks"),
    [
        ("train", "val", "images", "masks"),
        ("training", "validation", "images", "annotations"),
        ("Train", "Val", "Images", "Masks"),
        ("TRAIN", "dev", "img", "labels"),
    ],
)
@pytest.mark.parametrize("form", ["{kind}/{split}", "{split}/{kind}"])
def test_splits_inside_and_outside(tmp_path, caplog, train, val, form, images, masks):
    for split, names in ((train, "a b sub/c"), (val, "a v")):
        for kind, suffix in ((images, ".jpg"), (masks, ".png")):
            folder = form.format(kind=kind, split=split)
            files = " ".join(f"{folder}/{name}{suffix}" for name in names.split() if (kind, name) != (masks, "b"))
            make_files(tmp_path, *(files, "") if kind == images else ("", files))
    assert loaded(tmp_path, caplog) == ([["a", "sub/c"], ["b"], ["a", "v"]], [])


TRAIN = "images/train/a.jpg images/train/b.jpg images/train/c.jpg"
MASKS = "masks/train/a.png masks/train/b.png"
OUTSIDE = "train/images/a.jpg train/images/b.jpg val/images/v.jpg"
LEFT = "Left alone in {root}: {names}; to use one, rename it (train, val or unlabeled); " + TEST_FIX + "."


@pytest.mark.parametrize(
    ("images", "masks", "sets", "left"),
    [
        # A test split, with and without one of validation, is not trained on.
        (
            f"{TRAIN} images/val/v.jpg images/test/t.jpg",
            f"{MASKS} masks/val/v.png masks/test/t.png",
            [["a", "b"], ["c"], ["v"]],
            "images/test, masks/test",
        ),
        (f"{TRAIN} images/Test/t.jpg", f"{MASKS} masks/Test/t.png", (1, 1, 1), "images/Test, masks/Test"),
        (f"{TRAIN} images/val/v.jpg test/t.jpg", f"{MASKS} masks/val/v.png", [["a", "b"], ["c"], ["v"]], "test"),
        (TRAIN, MASKS, (1, 1, 1), None),
        # Unknown folders beside known ones.
        (
            f"{TRAIN} images/valid/v.jpg images/extra/x.jpg",
            f"{MASKS} masks/valid/v.png",
            [["a", "b"], ["c"], ["v"]],
            "images/extra",
        ),
        # Unlabeled images of their own, with their path as id; a mask of one is hidden.
        (
            f"{TRAIN} images/val/v.jpg images/unlabeled/a.jpg images/unlabeled/sub/u.png",
            f"{MASKS} masks/val/v.png masks/unlabeled/a.png",
            [["a", "b"], ["c", "images/unlabeled/a.jpg", "images/unlabeled/sub/u.png"], ["v"]],
            None,
        ),
        (
            f"{TRAIN} images/val/v.jpg Unlabeled/u.jpg",
            f"{MASKS} masks/val/v.png",
            [["a", "b"], ["Unlabeled/u.jpg", "c"], ["v"]],
            None,
        ),
        (
            f"{TRAIN} images/val/v.jpg unlabeled/u.jpg",
            f"{MASKS} masks/val/v.png unlabeled/Masks/u.png",
            [["a", "b"], ["c", "unlabeled/u.jpg"], ["v"]],
            None,
        ),
        ("images/a.jpg images/b.jpg unlabeled/a.jpg", "masks/a.png masks/b.png", (1, 1, 1), None),
        ("images/a.jpg images/val/v.jpg", "masks/a.png masks/val/v.png", [["a"], [], ["v"]], None),
        # The split outside.
        (
            f"{OUTSIDE} unlabeled/u.jpg test/images/t.jpg holdout/images/h.jpg notes/n.jpg",
            "train/masks/a.png val/masks/v.png test/masks/t.png",
            [["a"], ["b", "unlabeled/u.jpg"], ["v"]],
            "holdout, test",
        ),
        (
            f"{OUTSIDE} unlabeled/images/u.jpg",
            "train/masks/a.png val/masks/v.png unlabeled/masks/u.png",
            [["a"], ["b", "unlabeled/images/u.jpg"], ["v"]],
            None,
        ),
        # A folder of one's own choice within images/ is no split.
        ("images/cats/a.jpg images/dogs/b.jpg", "masks/cats/a.png masks/dogs/b.png", (1, 0, 1), None),
    ],
)
def test_folders(tmp_path, caplog, images, masks, sets, left):
    found, messages = loaded(make_files(tmp_path, images, masks), caplog)
    assert found == sets if isinstance(sets, list) else tuple(map(len, found)) == sets
    assert messages == ([] if left is None else [LEFT.format(root=tmp_path, names=left)])
    assert not {"t", "x", "h"} & {Path(name).stem for names in found for name in names}


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        (
            f"{TRAIN} images/val/v.jpg images/valid/w.jpg",
            MASKS,
            r"images has val and valid, which both mean validation;",
        ),
        ("images/Train/a.jpg images/train/b.jpg", "masks/train/a.png", r"images has Train and train, which both mean"),
        (f"{OUTSIDE} dev/images/d.jpg", "train/masks/a.png val/masks/v.png", "has dev and val, which both mean valid"),
        ("images/val/v.jpg images/city/a.jpg", "masks/val/v.png", r"no folder .*images/train; beside images/city, im"),
        (
            "val/images/v.jpg",
            "val/masks/v.png",
            r"no folder .*/train; beside val, there must be one of training images",
        ),
        (
            f"{TRAIN} images/val/v.jpg",
            MASKS,
            r"no folder .*masks/val; images/ and masks/ must both have a folder of val",
        ),
        (OUTSIDE, "train/masks/a.png", r"no folder .*val/masks; .*val must hold images/ and masks/"),
        (TRAIN, f"{MASKS} masks/unlabeled/u.png", r"no folder .*images/unlabeled; .* a folder of unlabeled images"),
        (f"{TRAIN} images/unlabeled/u.jpg unlabeled/u.jpg", MASKS, r"both hold unlabeled images; keep one"),
        (
            "images/b/val/v.jpg images/b/a.jpg",
            "masks/b/a.png",
            r"v\.jpg lies in a folder called val, but would be train",
        ),
        (
            "images/a.jpg images/b.jpg val/images/v.jpg",
            "masks/a.png val/masks/v.png",
            r"images lies beside .*/val, .* to images/val and masks/val, or move images/ and masks/ into train/\.",
        ),
        (f"{TRAIN} images/x.jpg", MASKS, r"x\.jpg lies beside train/, so it would not be used; move it into one"),
        (f"{TRAIN} images/train/a.tga", MASKS, r"a\.jpg and .*a\.tga have the same name but for the extension"),
    ],
)
def test_folders_that_are_refused_by_name(tmp_path, images, masks, message):
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        load_folder(make_files(tmp_path, images, masks))


def test_an_unlabeled_folder_that_is_named_too_is_read_once(tmp_path, caplog):
    root = make_files(
        tmp_path, f"{TRAIN} images/val/v.jpg unlabeled/u.jpg unlabeled/w.tga", f"{MASKS} masks/val/v.png"
    )
    for folder, added in (("unlabeled", []), ("", ["unlabeled_dir:images/train/a.jpg"])):
        found, _ = loaded(root, caplog, unlabeled_dir=str(root / folder))
        assert found[1][:3] == ["c", "unlabeled/u.jpg", "unlabeled/w.tga"] and found[1][3:4] == added
    (root / "images" / "train" / "d.jpg").symlink_to(root / "gone.jpg")
    with pytest.raises(ValueError, match=r"d\.jpg is a link that leads nowhere; bring back what it leads to"):
        load_folder(root)


def test_a_path_in_an_archive_is_no_file_of_the_unlabeled_folder(tmp_path, monkeypatch):
    write_image(tmp_path / "photos" / "a.png")
    stored = {"bytes": write_image(tmp_path / "x.png").read_bytes(), "path": "a.png"}
    features = Features(id=Value("string"), image=Image(), label=Image())
    table = {"id": ["l", "u"], "image": [stored] * 2, "label": [stored, None]}
    train = Dataset.from_dict(table, features=features)
    DatasetDict(train=train, validation=train.select([0])).save_to_disk(tmp_path / "saved")
    monkeypatch.chdir(tmp_path / "photos")
    data = find_data(DataArguments(dataset_name=str(tmp_path / "saved"), unlabeled_dir="."))
    assert ids(data.unlabeled) == ["u", "unlabeled_dir:a.png"]


def test_lists_of_a_run_with_unlabeled_folders_give_the_same_run(tmp_path):
    root = make_files(
        tmp_path / "data", f"{TRAIN} images/unlabeled/é.jpg images/val/v.jpg", f"{MASKS} masks/val/v.png"
    )
    data = load_folder(root, labeled_count=1, output_dir=tmp_path / "run")
    lists = {f"{name}_list": tmp_path / "run" / f"{name}_ids.txt" for name in SETS}
    again = load_folder(root, **lists)
    assert [ids(again.sets[name]) for name in SETS] == [ids(data.sets[name]) for name in SETS]
    assert len(data.unlabeled) == 3 and again.hidden_ids == data.hidden_ids
    left = load_folder(root, labeled_list=write_ids(tmp_path / "l.txt", ["a"]))
    assert ids(left.unlabeled) == ["b", "c", "images/unlabeled/é.jpg"]


@pytest.mark.parametrize("make_data", [make_cityscapes, make_coco])
def test_published_folders_beside_those_that_are_used(tmp_path, caplog, make_data):
    make_data(tmp_path)
    name = "leftImg8bit/{}/x_leftImg8bit.png" if make_data is make_cityscapes else "{}2017/x.jpg"
    for folder in ("test", "train_extra" if make_data is make_cityscapes else "unlabeled"):
        write_image(tmp_path / name.format(folder))
    (labeled, unlabeled, _), messages = loaded(tmp_path, caplog)
    assert len(labeled) == 5 - (make_data is make_coco)
    assert unlabeled == (["x"] if make_data is make_coco else [])
    rest = "test2017;" if make_data is make_coco else "test, train_extra; to learn from unlabeled images such as"
    assert [f": {rest}" in text for text in messages] == [True]


# ---- Own classes in VOC's folders ----


@pytest.mark.parametrize("classes", ["classes.txt", "class_names.txt", "labelmap.txt", "--classes", None])
@pytest.mark.parametrize("lists", ["train valid", "default", ""])
def test_own_classes_in_vocs_folders(tmp_path, caplog, classes, lists):
    root = make_files(
        tmp_path / "voc", "JPEGImages/a.jpg JPEGImages/b.PNG JPEGImages/c.jpg", "SegmentationClass/a.png"
    )
    write_mask(root / "SegmentationClass" / "b.png")
    (root / "Annotations").mkdir()
    for name in lists.split():
        write_ids(root / "ImageSets" / "Segmentation" / f"{name}.txt", {"train": "a", "valid": "b"}.get(name, "abc"))
    options = {}
    text = "soil:0,0,0::\nroot:255,0,0::\n" if classes == "labelmap.txt" else "soil\nroot\n"
    if classes is not None:
        path = (tmp_path if classes == "--classes" else root) / classes.replace("--classes", "own.txt")
        path.write_text(text)
        options = {"classes": str(path)} if classes == "--classes" else {}
    data = find_data(DataArguments(data_dir=str(root), **options))
    assert data.classes is None if classes is None else data.classes.names == ["soil", "root"]
    if lists == "train valid":
        assert (ids(data.labeled), ids(data.unlabeled), ids(data.validation)) == (["a"], [], ["b"])
        assert "1 images that no list names, first c; to learn from them" in caplog.text
    else:
        assert sorted(ids(data.labeled) + ids(data.validation)) == ["a", "b"] and ids(data.unlabeled) == ["c"]


def test_vocs_own_images_have_vocs_classes(tmp_path, caplog):
    data = find_data(DataArguments(data_dir=str(make_voc(tmp_path))))
    assert data.classes.names[1] == "aeroplane" and caplog.messages == []
    assert (ids(data.labeled), ids(data.validation)) == (VOC_TRAIN, VOC_VAL) and len(SBD_ONLY) == 4


def test_labelme2voc(tmp_path):
    root = make_files(
        tmp_path, "JPEGImages/a.jpg JPEGImages/b.jpg", "SegmentationClassPNG/a.png SegmentationClassPNG/b.png"
    )
    (root / "SegmentationClass").mkdir()
    (root / "SegmentationClass" / "a.npy").write_bytes(b"numbers")
    (root / "class_names.txt").write_text("_background_\ncar\n")
    data = find_data(DataArguments(data_dir=str(root)))
    assert (len(data.labeled), len(data.validation), data.classes.names) == (1, 1, ["_background_", "car"])


# ---- Splits of the Hub ----


def rows(names: str, masks: str | list[str] = "") -> Dataset:
    """Rows of these ids; those of `masks` have one."""
    names = names.split()
    picture, mask = PIL.Image.new("RGB", (8, 6)), PIL.Image.new("L", (8, 6))
    columns = {"id": names, "image": [picture] * len(names), "label": [mask if n in masks else None for n in names]}
    return Dataset.from_dict(columns, Features({"id": Value("string"), "image": Image(), "label": Image()}))


@pytest.mark.parametrize(("train", "val"), [("train", "valid"), ("training", "dev"), ("Train", "Val")])
def test_splits_of_the_hub(tmp_path, caplog, train, val):
    test = {"test": rows("t", "t"), "extra": rows("x", "x")}
    DatasetDict({train: rows("a b", "a"), val: rows("v", "v"), **test}).save_to_disk(tmp_path / "saved")
    data = load_hub_data(str(tmp_path / "saved"))
    assert [ids(data.sets[name]) for name in SETS] == [["a"], ["b"], ["v"]]
    (message,) = caplog.messages
    assert message.startswith(f"Left alone in {tmp_path}/saved: test, extra; to use one, name one with --train_split")
    data = load_hub_data(str(tmp_path / "saved"), train_split_name="extra", validation_split_name="test")
    assert [ids(data.sets[name]) for name in SETS] == [["x"], [], ["t"]]


def test_unlabeled_split_of_the_hub(tmp_path, caplog):
    saved = DatasetDict(
        train=rows("a b c", "abc"), unlabeled=rows("a u").remove_columns("label"), validation=rows("v", "v")
    )
    saved.save_to_disk(tmp_path / "saved")
    data = load_hub_data(str(tmp_path / "saved"), labeled_count=2)
    assert caplog.messages == [] and len(data.labeled) == 2
    assert ids(data.unlabeled)[1:] == ["unlabeled:a", "unlabeled:u"] and data.hidden_ids == ids(data.unlabeled)[:1]
    assert [row["label"] is None for row in data.unlabeled] == [False, True, True]
    listed = write_ids(tmp_path / "l.txt", ["a"])
    unlabeled = write_ids(tmp_path / "u.txt", ["unlabeled:u", "c"])
    data = load_hub_data(str(tmp_path / "saved"), labeled_list=listed, unlabeled_list=unlabeled)
    assert [ids(data.sets[name]) for name in SETS] == [["a"], ["c", "unlabeled:u"], ["v"]]


@pytest.mark.parametrize("options", [{}, {"labeled_count": 2}, {"labeled_fraction": 0.3, "split_seed": 7}])
def test_folders_and_the_hub_choose_the_same_ids(tmp_path, options):
    names = "a b c d e f g h"
    with_mask = names[:11].split()
    images = " ".join(f"images/{name}.jpg" for name in names.split())
    make_files(tmp_path / "own", images, " ".join(f"masks/{name}.png" for name in with_mask))
    rows(names, with_mask).save_to_disk(tmp_path / "saved")
    chosen = [load(str(tmp_path / kind), **options) for load, kind in ((load_folder, "own"), (load_hub_data, "saved"))]
    first, second = ([sorted(ids(data.sets[name])) for name in SETS] + [sorted(data.hidden_ids)] for data in chosen)
    assert first == second and len(first[2]) == 1 and sorted(first[0] + first[1] + first[2]) == names.split()


def test_splits_of_the_hub_that_are_refused_by_name(tmp_path):
    for names, message in (
        (("train", "val", "valid"), "has val and valid, which both mean validation; name one with --train_split_name"),
        (("all", "test"), "has no split 'train' but all, test: name one of these with --train_split_name"),
    ):
        folder = tmp_path / names[0]
        DatasetDict({name: rows("a b", "ab") for name in names}).save_to_disk(folder)
        with pytest.raises(ValueError, match=message):
            load_hub_data(str(folder))
    assert ids(load_hub_data(str(tmp_path / "train"), validation_split_name="val").validation) == ["a", "b"]
    DatasetDict(train=rows("a", "a"), validation=rows("v w", "v")).save_to_disk(tmp_path / "bare")
    with pytest.raises(ValueError, match="1 of 2 validation images have no mask, first row 1 of validation "):
        load_hub_data(str(tmp_path / "bare"))


def test_columns_of_bytes_and_paths(tmp_path):
    """As pandas and older exports write images: a struct of which nothing says what it is."""
    stored = rows("a b", "ab").cast_column("image", Image(decode=False)).cast_column("label", Image(decode=False))
    struct = {"bytes": Value("binary"), "path": Value("string")}
    plain = Dataset.from_list(
        [dict(row) for row in stored], features=Features({"id": Value("string"), "image": struct, "label": struct})
    )
    (tmp_path / "data").mkdir()
    for split in ("train", "valid"):
        plain.to_parquet(tmp_path / "data" / f"{split}.parquet")
    DatasetDict(train=plain, valid=plain).save_to_disk(tmp_path / "saved")
    data = load_hub_data(str(tmp_path / "saved"))
    assert data.labeled[0]["image"].size == data.labeled[1]["label"].size == (8, 6)
    assert ids(load_hub_data(str(tmp_path / "data")).validation) == ["a", "b"]

"""Split files in every form the field uses, on every layout; overlap and leakage."""

import logging

import pytest
from layout_folders import (
    SBD_ONLY,
    VOC_TRAIN,
    VOC_VAL,
    ids,
    make_augmented,
    make_cityscapes,
    make_coco,
    make_flat,
    make_voc,
    write_ids,
    write_image,
    write_mask,
)

from allspark_hf.data import DataArguments, find_data, load_data, mask_to_array, write_id_lists
from allspark_hf.data.reading import undecoded
from allspark_hf.data.sources.lists import shared_images, split_line


JENA = "leftImg8bit/train/jena/jena_00000{}_000019_leftImg8bit.png"
JENA_MASK = "gtFine/train/jena/jena_00000{}_000019_gtFine_{}.png"


def paths(dataset) -> list[str]:
    return [stored["path"] for stored in undecoded(dataset, "image")["image"]]


def pair(name: str) -> str:
    return f"JPEGImages/{name}.jpg SegmentationClass/{name}.png"


def load(root, tmp_path, **lists):
    """find_data with lists written from lines; other options as they are."""
    for name, lines in lists.items():
        if name.endswith("_list"):
            lists[name] = str(write_ids(tmp_path / f"{name}.txt", lines))
    return find_data(DataArguments(data_dir=str(root), **lists))


def make_named_folder(root):
    for split, names in {"train": ["a", "b", "trip one/c d", "e.0"], "val": ["a", "v"]}.items():
        for name in names:
            write_image(root / "images" / split / f"{name}.jpg")
            if name != "b":
                write_mask(root / "masks" / split / f"{name}.png")
    return root


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("JPEGImages/a.jpg SegmentationClass/a.png", ("JPEGImages/a.jpg", "SegmentationClass/a.png")),
        ("train/my photo.JPEG\tmasks/my photo.png", ("train/my photo.JPEG", "masks/my photo.png")),
        ("leftImg8bit/train/a/a_leftImg8bit.png", ("leftImg8bit/train/a/a_leftImg8bit.png", None)),
        ("2007_000733", ("2007_000733", None)),
        ("trip one/c d", ("trip one/c d", None)),
    ],
)
def test_forms_of_a_line(line, parts):
    assert split_line(line) == parts


@pytest.mark.parametrize("form", [pair, str, "JPEGImages/{}.jpg".format])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_voc_lists_in_every_form(tmp_path, form, ending):
    make_voc(tmp_path / "voc")
    path = tmp_path / "labeled.txt"
    path.write_text("\ufeff" + ending.join(map(form, [VOC_TRAIN[4], VOC_TRAIN[1]])) + ending * 2, encoding="utf-8")
    data = find_data(DataArguments(data_dir=str(tmp_path / "voc"), labeled_list=str(path)))
    assert ids(data.labeled) == [VOC_TRAIN[1], VOC_TRAIN[4]]
    assert ids(data.unlabeled) == data.hidden_ids == [VOC_TRAIN[index] for index in (0, 2, 3, 5)]
    assert ids(data.validation) == VOC_VAL


def test_field_lists_of_voc_without_image_sets(tmp_path):
    root = make_voc(tmp_path / "voc", image_sets=False)
    unlabeled = VOC_TRAIN[2:] + SBD_ONLY
    lists = {"labeled_list": VOC_TRAIN[:2], "unlabeled_list": unlabeled, "validation_list": VOC_VAL}
    data = load(root, tmp_path, **{name: list(map(pair, names)) for name, names in lists.items()})
    assert ids(data.labeled) == VOC_TRAIN[:2]
    assert ids(data.unlabeled) == unlabeled
    # SBD's masks are not there; the others are hidden, to measure by.
    assert data.hidden_ids == VOC_TRAIN[2:]
    assert [row["label"] is None for row in data.unlabeled] == [False] * 4 + [True] * 4
    assert ids(data.validation) == VOC_VAL
    no_masks = load(root, tmp_path, **lists | {"unlabeled_list": [f"JPEGImages/{name}.jpg" for name in SBD_ONLY]})
    assert no_masks.unlabeled.column_names == ["id", "image"]


def test_lists_that_name_augmented_masks_where_the_field_unpacks_them(tmp_path, caplog):
    root = make_voc(tmp_path / "voc")
    lines = [pair(SBD_ONLY[0]), pair(VOC_TRAIN[0]), pair(SBD_ONLY[1])]
    with pytest.raises(ValueError, match=rf"Line 1 .* names JPEGImages/{SBD_ONLY[0]}.*, but there is no mask"):
        load(root, tmp_path, labeled_list=lines)
    make_augmented(root)
    with caplog.at_level(logging.INFO, logger="allspark_hf"):
        data = load(root, tmp_path, labeled_list=lines, voc_masks="augmented")
    assert [mask_to_array(row["label"])[0, 1] for row in data.labeled] == [1, 20, 20]
    assert len(data.unlabeled) == len(data.hidden_ids) == 7
    (record,) = caplog.records
    assert "labeled_list.txt: 2 masks are read from other files, first" in record.getMessage()
    # U2PL names ids; which images are labeled does not hang on the option then.
    by_id = load(root, tmp_path, labeled_list=[SBD_ONLY[0], VOC_TRAIN[0], SBD_ONLY[1]])
    assert ids(by_id.labeled) == ids(data.labeled) and ids(by_id.unlabeled) == VOC_TRAIN[1:]


@pytest.mark.parametrize("listed", ["labelTrainIds", "labelIds"])
@pytest.mark.parametrize("stored", ["labelTrainIds", "labelIds"])
def test_cityscapes_lists_name_either_kind_of_mask(tmp_path, caplog, listed, stored):
    make_cityscapes(tmp_path / "city", (stored,))
    path = write_ids(tmp_path / "l.txt", [f"{JENA.format(index)} {JENA_MASK.format(index, listed)}" for index in "10"])
    with caplog.at_level(logging.INFO, logger="allspark_hf"):
        report = load_data(DataArguments(data_dir=str(tmp_path / "city"), labeled_list=str(path)))
    assert ids(report.data.labeled) == ["jena_000000_000019", "jena_000001_000019"]
    assert len(report.data.unlabeled) == len(report.data.hidden_ids) == 3
    masks = [row["label"] for split in (report.data.labeled, report.data.unlabeled) for row in split]
    assert {tuple(mask_to_array(mask)[0, :5]) for mask in masks} == {(255, 0, 18, 255, 255)}
    assert [f"2 masks are read from other files, first {tmp_path}" in text for text in caplog.messages] == (
        [] if listed == stored else [True]
    )


def test_cityscapes_image_lists_and_ids(tmp_path):
    root = make_cityscapes(tmp_path / "city")
    by_path = load(root, tmp_path, labeled_list=[JENA.format(1)])
    by_id = load(root, tmp_path, labeled_list=["jena_000001_000019"])
    assert ids(by_path.labeled) == ids(by_id.labeled) == ["jena_000001_000019"]
    assert by_path.hidden_ids == by_id.hidden_ids and len(by_id.hidden_ids) == 4
    with pytest.raises(ValueError, match=r"Line 1 .* names lindau_000000_000019, which is a validation image"):
        load(root, tmp_path, labeled_list=["lindau_000000_000019"])
    with pytest.raises(ValueError, match=r"Line 1 .*, but cityscapes has no masks named so; correct the list"):
        load(root, tmp_path, labeled_list=[f"{JENA.format(1)} {JENA_MASK.format(1, 'color')}"])


@pytest.mark.parametrize("subfolders", [False, True])
def test_coco_lists(tmp_path, subfolders):
    root = make_coco(tmp_path / "coco", subfolders)
    data = load(
        root,
        tmp_path,
        labeled_list=["train2017/000000177254.jpg masks/000000177254.png"],
        validation_list=["val2017/000000000285.jpg masks/000000000285.png"],
    )
    assert ids(data.labeled) == ["000000177254"] and ids(data.validation) == ["000000000285"]
    assert data.hidden_ids == ["000000000009", "000000000025", "000000000030"]


def test_lists_of_ones_own_folder(tmp_path):
    root = make_named_folder(tmp_path / "own")
    data = load(root, tmp_path, labeled_list=["trip one/c d", "images/train/e.0.jpg"])
    assert ids(data.labeled) == ["e.0", "trip one/c d"]
    assert ids(data.unlabeled) == ["a", "b"] and data.hidden_ids == ["a"]
    spaces = "images/train/trip one/c d.jpg masks/train/trip one/c d.png"
    cells = '"images/train/trip one/c d.jpg", "masks/train/trip one/c d.png"'
    assert ids(load(root, tmp_path, labeled_list=[cells, '"a"']).labeled) == ["a", "trip one/c d"]
    data = load(root, tmp_path, labeled_list=[spaces], unlabeled_list=["b"], validation_list=["a"])
    assert ids(data.labeled) == ["trip one/c d"] and ids(data.unlabeled) == ["b"] and ids(data.validation) == ["a"]
    assert paths(data.validation)[0].replace("\\", "/").endswith("images/val/a.jpg")


def test_validation_list_holds_training_images_out(tmp_path):
    data = load(make_voc(tmp_path / "voc"), tmp_path, validation_list=[pair(VOC_TRAIN[3])])
    assert ids(data.validation) == [VOC_TRAIN[3]]
    assert ids(data.labeled) == [name for name in VOC_TRAIN if name != VOC_TRAIN[3]]
    flat = make_flat(tmp_path / "flat", labeled=4, unlabeled=0)
    data = load(flat, tmp_path, validation_list=["i001"], labeled_count=2)
    assert ids(data.validation) == ["i001"] and len(data.labeled) == 2
    assert sorted(ids(data.labeled) + ids(data.unlabeled)) == ["i000", "i002", "i003"]


@pytest.mark.parametrize("make", [make_voc, make_cityscapes, make_coco, make_named_folder])
def test_lists_of_a_run_give_the_same_run(tmp_path, make):
    root = make(tmp_path / "data")
    data = find_data(DataArguments(data_dir=str(root), labeled_count=2, split_seed=5))
    write_id_lists(data, tmp_path / "run")
    lists = {f"{name}_list": str(tmp_path / "run" / f"{name}_ids.txt") for name in ("labeled", "unlabeled")}
    lists["validation_list"] = str(tmp_path / "run" / "validation_ids.txt")
    again = find_data(DataArguments(data_dir=str(root), **lists))
    write_id_lists(again, tmp_path / "again")
    for name in ("labeled", "unlabeled", "validation"):
        first, second = getattr(data, name), getattr(again, name)
        assert len(first) and paths(first) == paths(second)
        listed = [(tmp_path / run / f"{name}_ids.txt").read_bytes() for run in ("run", "again")]
        assert listed[0] == listed[1]
    assert data.hidden_ids == again.hidden_ids


def test_images_outside_the_usual_folders_keep_their_path_as_id(tmp_path):
    root = make_cityscapes(tmp_path / "city")
    extra = "leftImg8bit/train_extra/erlangen/erlangen_000000_000000_leftImg8bit.png"
    write_image(root / extra)
    lists = {"labeled_list": [JENA.format(0)], "unlabeled_list": [extra]}
    data = load(root, tmp_path, **lists)
    write_id_lists(data, tmp_path / "run")
    assert ids(data.unlabeled) == [extra] and data.hidden_ids == []
    again = load(root, tmp_path, **lists | {"unlabeled_list": [(tmp_path / "run" / "unlabeled_ids.txt").read_text()]})
    assert ids(again.unlabeled) == [extra]


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"labeled_list": []}, r"labeled_list\.txt names no image"),
        ({"labeled_list": [pair("x")]}, r"Line 1 of .*labeled_list\.txt names .*, but there is no image .*x\.jpg;"),
        ({"labeled_list": ["x"]}, r"Line 1 of .*labeled_list\.txt names x, but there is no image .*JPEGImages.x\.jpg"),
        ({"labeled_list": [VOC_TRAIN[0], pair(VOC_TRAIN[0])]}, rf"Line 2 of .*{VOC_TRAIN[0]}.*, as line 1 does"),
        (
            {"labeled_list": [f"JPEGImages/{VOC_TRAIN[0]}.jpg a/none.png"]},
            r"Line 1 .*, but there is no mask .*none\.png",
        ),
        ({"validation_list": [pair(SBD_ONLY[0])]}, r"Line 1 of .*validation_list\.txt .*, but there is no mask"),
        ({"labeled_list": ["../a.jpg"]}, r"Line 1 of .* names \.\./a\.jpg, which is outside .*voc; paths must be"),
        ({"labeled_list": [f"JPEGImages/{VOC_TRAIN[0]}.jpg ../a.png"]}, r"names \.\./a\.png, which is outside"),
        (
            {"labeled_list": VOC_TRAIN[:4], "unlabeled_list": list(map(pair, VOC_TRAIN[2:]))},
            rf"^2 images are both in .*labeled_list\.txt and in .*unlabeled_list\.txt \({VOC_TRAIN[2]}, ",
        ),
        (
            {"labeled_list": [VOC_TRAIN[0], VOC_VAL[1]]},
            rf"^1 image is both in .*labeled_list\.txt and in the validation set \({VOC_VAL[1]}\); take them out",
        ),
        (
            {"labeled_list": VOC_TRAIN[:1], "unlabeled_list": VOC_VAL},
            r"^3 images are both in .*unlabeled_list\.txt and in the validation set",
        ),
        (
            {"labeled_list": VOC_TRAIN[:2], "validation_list": VOC_TRAIN[1:3]},
            r"^1 image is both in .*labeled_list\.txt and in .*validation_list\.txt",
        ),
        ({"unlabeled_list": VOC_TRAIN}, r"unlabeled_list was given without labeled_list"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, lists, message):
    root = make_voc(tmp_path / "voc")
    with pytest.raises(ValueError, match=message):
        load(root, tmp_path, **lists)


def test_one_file_for_two_lists_is_refused(tmp_path):
    root = make_voc(tmp_path / "voc")
    path = str(write_ids(tmp_path / "same.txt", VOC_TRAIN[:3]))
    for other in ("unlabeled_list", "validation_list"):
        with pytest.raises(ValueError, match=rf"^3 images are both in labeled_list .*same\.txt and in {other} .*same"):
            find_data(DataArguments(data_dir=str(root), labeled_list=path, **{other: path}))


def test_a_training_list_of_the_archive_that_names_validation_images(tmp_path):
    root = make_voc(tmp_path / "voc")
    write_ids(root / "ImageSets" / "Segmentation" / "train.txt", VOC_TRAIN + VOC_VAL[:2])
    with pytest.raises(ValueError, match=r"^2 images are both in the labeled set and in the validation set"):
        load(root, tmp_path)


@pytest.mark.parametrize(
    ("a", "b", "shared"),
    [
        ([pair("x"), pair("y")], ["y", "z"], ["JPEGImages/y.jpg"]),
        (["y", "z"], [pair("x"), pair("y")], ["y"]),
        (["y", "z"], ["z"], ["z"]),
        (["images/train/a.jpg"], ["images/val/a.jpg"], []),
        (["images/train/a.jpg"], ["./images/train/a.jpg masks/train/a.png"], ["images/train/a.jpg"]),
        (["images/train/sub/a.jpg"], ["sub/a"], ["images/train/sub/a.jpg"]),
        (["images/train/sub/xa.jpg"], ["a"], []),
        ([JENA.format(1)], ["jena_000001_000019", "x"], [JENA.format(1)]),
        ([JENA.format(1)], [f"{JENA.format(1)} {JENA_MASK.format(1, 'labelTrainIds')}"], [JENA.format(1)]),
        ([], ["a"], []),
        (["a"], [], []),
    ],
)
def test_images_that_two_lists_share(a, b, shared):
    assert shared_images(a, b) == shared

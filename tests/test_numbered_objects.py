"""Masks that number objects, as Cellpose and Fiji write them: refused by the check, and converted by the import."""

import logging
import shutil
import sys

import numpy as np
import pytest
from labeling import read_masks
from layout_folders import load_folder, write_image, write_mask
from PIL import Image

from allspark_hf.cli.main import main
from allspark_hf.data import BadDataError, DataArguments, check_data, find_data, load_data
from allspark_hf.data.labeling.formats import find_readers, read_export


SIZE = (20, 20)
CONVERT = "`allspark import FOLDER NEW_FOLDER --format numbered_objects`"


def make_objects(root, names: dict[str, object], dtype=np.uint8):
    """Images `SPLIT/NAME`, and masks with the values given, or with 0 and so many objects; None: without a mask."""
    for name, values in names.items():
        write_image(root / "images" / f"{name}.png", SIZE)
        if values is not None:
            values = range(values + 1) if isinstance(values, int) else values
            write_mask(root / "masks" / f"{name}.png", values, SIZE, dtype=dtype)
    return root


def error_of(root, **options) -> str:
    with pytest.raises(BadDataError) as caught:
        check_data(load_folder(root), **options)
    return str(caught.value)


# ---- The check ----


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    ("counts", "dtype", "highest"),
    [
        ((3, 41, 0), np.uint8, 41),
        ((range(1, 7), 5, 0), np.uint8, 6),  # no background is left in the first
        ((255, 41, 0), np.uint8, 254),  # 255 is also the ignore index
        ((300, 280, 7), np.uint16, 300),
        ((300, 300, 300), np.uint16, 300),  # too many for classes
    ],
)
def test_numbers_of_objects_are_refused(tmp_path, counts, dtype, highest, skip):
    names = dict(zip(("train/a", "train/b", "val/c"), counts, strict=True))
    root = make_objects(tmp_path, names | {"train/u": None}, dtype)
    most = next(name for name, count in names.items() if count in (highest, highest + 1, range(1, 7)))
    assert error_of(root, skip_bad_files=skip) == (
        f"The masks seem to number objects, without a gap, up to {highest} in {root}/masks/{most}.png, but must hold "
        f"the class of each pixel: make background and object of them with {CONVERT}, or, if the numbers are "
        "classes, name these in FOLDER/classes.txt."
    )


@pytest.mark.parametrize(
    ("counts", "options", "num_labels"),
    [
        ((7, 6, (0, 2, 9)), {}, 10),  # a gap in one of them
        ((9, 9, 0), {}, 10),  # all masks with an object end at one number
        ((5, 4, 3), {}, 6),  # few
        ((9, 3, 5), {"num_labels": 10}, 10),
        ((9, 3, 5), {"mask_values": [*range(10)]}, 10),
        ((9, 3, 5), {"classes": [*"abcdefghij"]}, 10),
    ],
)
def test_what_may_be_classes_is_read(tmp_path, counts, options, num_labels):
    root = make_objects(tmp_path, dict(zip(("train/a", "train/b", "val/c"), counts, strict=True)))
    if "classes" in options:
        (root / "classes.txt").write_text("\n".join(options.pop("classes")))
    assert check_data(load_folder(root), **options).num_labels == num_labels


def test_many_values_that_are_no_class_name_the_conversion(tmp_path):
    """Where the number of classes is known, and where a large picture of numbers was cut into tiles."""
    root = make_objects(tmp_path / "known", {"train/a": 9, "train/b": 1, "val/c": 1})
    ending = f"--ignored_mask_values; if they number objects, convert them with {CONVERT}."
    assert error_of(root, num_labels=2).endswith(ending)
    tiles = {"train/a": (0, *range(1000, 1010)), "train/b": (0, 1004), "val/c": 1}
    message = error_of(make_objects(tmp_path / "tiles", tiles, np.uint16))
    assert "2 bad files" in message and message.count(ending) == 1


# ---- The import ----


@pytest.fixture
def cells(tmp_path):
    """255 and 300 objects, none, a picture without a mask, and one for validation and for the test each."""
    root = make_objects(tmp_path / "cells", {"train/full": range(1, 256), "train/none": 0, "train/u": None})
    make_objects(root, {"train/many": 300, "val/v": (0, 255, 256, 65535)}, np.uint16)
    return make_objects(root, {"test/t": 7})


def test_every_object_becomes_one_class(cells):
    masks, imported = read_masks(cells, format="numbered_objects")
    assert {name: np.unique(mask).tolist() for name, mask in masks.items()} == {
        "train/full": [1],
        "train/none": [0],
        "train/many": [0, 1],
        "val/v": [0, 1],
        "test/t": [0, 1],
    }
    for name, mask in masks.items():
        stored = np.asarray(Image.open(cells / "masks" / f"{name}.png"))
        assert np.array_equal(mask, stored != 0), name
    assert imported.classes.names == ["background", "object"] and imported.unlabeled["train"] == ["images/train/u.png"]
    assert [len(imported.labeled[split]) for split in ("train", "validation", "test")] == [3, 1, 1]
    assert len(imported.notes) == 1 and imported.notes[0].startswith("Objects that touch each other become one area")


def test_without_splits_and_with_broken_masks(tmp_path):
    root = make_objects(tmp_path / "flat", {"a": 3, "sub/b": 4})
    masks, _ = read_masks(root, format="numbered_objects")
    assert sorted(masks) == ["train/a", "train/sub/b"]
    write_image(root / "masks" / "a.png", SIZE)
    with pytest.raises(ValueError, match=r"cannot be imported:\n.*a.png: The mask holds the colors of a picture"):
        read_masks(root, format="numbered_objects")


def test_masks_beside_the_pictures_as_cellpose_names_them(tmp_path):
    made = make_objects(tmp_path / "made", {"a.1": (0, 7), "b": 3, "c_flows": None})
    root = tmp_path / "cells"
    root.mkdir()
    for name in ("a.1", "b", "c_flows"):
        shutil.copyfile(made / "images" / f"{name}.png", root / f"{name}.png")
    for name in ("a.1", "b"):
        shutil.copyfile(made / "masks" / f"{name}.png", root / f"{name}_cp_masks.png")
        for end in ("_cp_output", "_flows", "_outlines_cp_masks", "_dP_cp_masks"):  # of older and newer versions
            shutil.copyfile(made / "images" / f"{name}.png", root / f"{name}{end}.png")
    masks, imported = read_masks(root, format="numbered_objects")
    assert {name: np.unique(mask).tolist() for name, mask in masks.items()} == {"train/a.1": [0, 1], "train/b": [0, 1]}
    assert imported.unlabeled["train"] == ["images/train/c_flows.png"]  # a picture of its own, not Cellpose's of `c`
    (root / "b.png").unlink()
    with pytest.raises(ValueError, match=r"masks? ha(s|ve) no image, first .*b_"):
        read_masks(root, format="numbered_objects")
    shutil.copyfile(made / "masks" / "b.png", made / "images" / "b_cp_masks.png")  # beside a folder of masks
    assert sorted(read_masks(made, format="numbered_objects")[0]) == ["train/a.1", "train/b"]


def test_the_format_is_never_chosen_by_itself(cells):
    assert find_readers(cells) == {}
    with pytest.raises(ValueError, match="is no export of a known form: COCO"):
        read_export(cells)
    with pytest.raises(ValueError, match="holds no export of the form images and masks that number objects"):
        read_export(cells / "masks" / "test" / "t.png", "numbered_objects")
    assert len(find_data(DataArguments(str(cells))).labeled) == 3  # data_dir does not take it for an export


def test_the_command_makes_data_to_train_on(tmp_path, cells, monkeypatch, capsys, caplog):
    with pytest.raises(BadDataError, match="seem to number objects, without a gap, up to 300 in"):
        make_objects(cells, {"val/v": 8})
        load_data(DataArguments(str(cells)))
    command = ["allspark", "import", str(cells), str(tmp_path / "data"), "--format", "numbered_objects"]
    monkeypatch.setattr(sys, "argv", command)
    main()
    printed = " ".join(capsys.readouterr().out.split())
    assert "train 3 1" in printed and "test 1 0" in printed
    assert "Objects that touch each other become one area" in printed
    with caplog.at_level(logging.WARNING, logger="allspark_hf"):
        report = load_data(DataArguments(str(tmp_path / "data")))
    assert (report.num_labels, report.values, report.left_out) == (2, [0, 1], [])
    assert report.data.classes.names == ["background", "object"] and list(report.data.unlabeled["id"]) == ["u"]
    test = find_data(DataArguments(str(tmp_path / "data")), test=True).validation
    assert list(test["id"]) == ["t"] and "Left alone" in caplog.text

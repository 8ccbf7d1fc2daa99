"""An export as `--data_dir`: it is imported once, into the folder beside it."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from labeling import write_picture
from PIL import Image

from allspark_hf.cli import importing
from allspark_hf.cli.importing import use_import
from allspark_hf.data import DataArguments, find_data
from allspark_hf.utils.files import read_json


SQUARE = [[0, 0], [2, 0], [2, 2], [0, 2]]
MASK = [[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0] * 6, [0] * 6]


def make_coco(folder: Path, crowd: int = 0):
    """Three pictures with a square, one with none, in the folders that COCO's tools usually write."""
    images = [{"id": number, "file_name": f"{number}.png", "height": 4, "width": 6} for number in range(4)]
    flat = [[value for point in SQUARE for value in point]]
    annotations = [
        {"id": number, "image_id": number, "category_id": 3, "segmentation": flat, "iscrowd": crowd}
        for number in range(3)
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "cell"}]}
    for image in images:
        write_picture(folder / "images" / image["file_name"], 4, 6)
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / "instances.json").write_text(json.dumps(content))


def make_labelme(folder: Path):
    for number in range(3):
        write_picture(folder / f"{number}.png", 4, 6)
        shapes = [{"label": "cell", "shape_type": "polygon", "points": SQUARE}]
        content = {"shapes": shapes, "imagePath": f"{number}.png", "imageHeight": 4, "imageWidth": 6}
        (folder / f"{number}.json").write_text(json.dumps(content))
    write_picture(folder / "3.png", 4, 6)


def used(source: Path, **options) -> DataArguments:
    arguments = DataArguments(data_dir=str(source), **options)
    options = use_import(arguments)
    assert options[:2] == ["--data_dir", arguments.data_dir]
    return arguments


@pytest.mark.parametrize("make", [make_coco, make_labelme])
def test_an_export_is_imported_once(tmp_path, make, capsys, monkeypatch):
    source = tmp_path / "my export"
    make(source)
    arguments = used(source)
    assert arguments.data_dir == str(tmp_path / "my export_imported")
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "train 3 1" in printed
        and "cell 3 12 16.67" in printed
        and "objects of different classes overlap: 0" in printed
    )
    assert f"allspark import '{source}' '{arguments.data_dir}'" in printed
    data = find_data(arguments)
    assert data.classes.names == ["background", "cell"] and data.unlabeled["id"] == ["3"]
    rows = [*data.labeled, *data.validation]
    assert [np.asarray(row["label"]).tolist() for row in rows] == [MASK] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my export", "my export_imported"]

    masks = tmp_path / "my export_imported" / "masks" / "train"
    Image.new("P", (6, 4), 1).save(masks / "0.png")  # what a user corrects there stays
    monkeypatch.setattr(importing, "import_export", None)
    assert used(source).data_dir == arguments.data_dir and "imported into before" in capsys.readouterr().out
    assert np.asarray(Image.open(masks / "0.png")).min() == 1
    monkeypatch.setenv("RANK", "1")
    used(source)
    assert not capsys.readouterr().out


def test_an_export_that_has_changed_since(tmp_path, monkeypatch):
    source = tmp_path / "export"
    make_labelme(source)
    used(source)
    for path in source.iterdir():
        os.utime(path, (1, 1))
    used(source)  # copied, say, but the same
    write_picture(source / "4.png", 4, 6)
    (source / "1.json").write_text((source / "1.json").read_text().replace("cell", "bell"))
    with pytest.raises(ValueError, match=r"has changed since .* \(4.png is new and 1 more\): rename or remove"):
        used(source)
    (source / "4.png").unlink()
    with pytest.raises(ValueError, match=r"\(1.json has changed\)"):
        used(source)
    (source / "1.json").unlink()
    with pytest.raises(ValueError, match=r"\(1.json is gone\)"):
        used(source)
    (tmp_path / "export_imported" / "import.json").unlink()
    with pytest.raises(ValueError, match="is there already and was not imported"):
        used(source)


def test_what_cannot_be_imported_as_it_is(tmp_path, monkeypatch):
    source = tmp_path / "export"
    make_coco(source)

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(FileLock, "acquire", refuse)
        with pytest.raises(ValueError, match=r"import .*export NEW_FOLDER`, and .*export_imported failed: .* denied"):
            used(source)
    (source / "images" / "0.png").unlink()
    with pytest.raises(ValueError, match=r"export_imported failed: .* names the picture 0.png, which is not in"):
        used(source)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pycocotools", None)
        write_picture(source / "images" / "0.png", 4, 6)
        with pytest.raises(ValueError, match=r"pip install 'allspark-hf\[import\]'"):
            used(source)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"notes.txt is a file: .* is no export of a known form"):
        used(tmp_path / "notes.txt")
    for name in ("export_imported", "none"):  # whoever reads them says it
        assert use_import(DataArguments(data_dir=str(tmp_path / name))) == []


def test_a_file_and_the_order_of_classes(tmp_path):
    make_coco(tmp_path / "x")
    source = tmp_path / "x" / "annotations" / "instances.json"
    os.rename(tmp_path / "x" / "images", source.with_name("images"))
    (tmp_path / "names.txt").write_text("cell\nbackground\n")
    arguments = used(source, classes=str(tmp_path / "names.txt"))
    assert Path(arguments.data_dir) == source.with_name("instances_imported")
    assert set(read_json(Path(arguments.data_dir, "import.json"))["files"]) == {
        "instances.json",
        *(f"images/{number}.png" for number in range(4)),
    }
    assert np.asarray(find_data(arguments).labeled[0]["label"]).tolist() == [
        [1 - value for value in row] for row in MASK
    ]
    used(source)
    (tmp_path / "names.txt").write_text("background\ncell\n")
    with pytest.raises(ValueError, match="with the classes cell, background, and --classes lists others"):
        used(source, classes=str(tmp_path / "names.txt"))


def test_ignored_pixels_are_no_class(tmp_path):
    """Masks of background and 255 alone, which training could take for binary ones."""
    make_coco(tmp_path / "export", crowd=1)
    assert used(tmp_path / "export").ignored_mask_values == [255]
    assert used(tmp_path / "export").ignored_mask_values == [255]
    assert used(tmp_path / "export", mask_values=[0, 1]).ignored_mask_values is None


# ---- Exports that are wrong in ways that masks would not show ----


def edit(path: Path, old: str, new: str):
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    "old, new, match",
    [
        ("", "", None),
        ("[0, 0, 2, 0, 2, 2, 0, 2]", "[0, 0, 0.5, 0, 0.5, 0.5]", "as if its coordinates were shares"),
        ('"name": "cell"', '"name": null', "has the id 3 and the name None, but a whole number and a name are needed"),
        ('"id": 3, "name"', '"id": "3", "name"', "has the id '3' and the name 'cell'"),
        ('"name": "cell"}', '"name": "e\\u0301"}, {"id": 4, "name": "\\u00e9"}', "in how accents are stored"),
    ],
)
def test_a_coco_file(tmp_path, old, new, match):
    make_coco(tmp_path / "export")
    path = tmp_path / "export" / "annotations" / "instances.json"
    edit(path, old, new)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as Windows marks UTF-8
    if match is None:
        used(tmp_path / "export")
        return
    with pytest.raises(ValueError, match=match):
        used(tmp_path / "export")


def test_panoptic_segments_are_left_alone(tmp_path, capsys):
    make_coco(tmp_path / "export")
    folder = tmp_path / "export" / "annotations"
    content = read_json(folder / "instances.json")
    segments = [{"image_id": 0, "file_name": "0.png", "segments_info": []}]
    (folder / "panoptic.json").write_text(json.dumps(content | {"annotations": segments}))
    used(tmp_path / "export")
    assert "panoptic.json, which is about panoptic segments" in capsys.readouterr().out


def test_a_folder_of_two_forms_and_one_with_a_broken_file(tmp_path):
    make_labelme(tmp_path)
    (tmp_path / "coco.json").write_text(json.dumps({"images": [], "categories": []}))
    with pytest.raises(ValueError, match=r"may be labelme or coco; choose with `allspark import .* --format FORMAT`"):
        find_data(DataArguments(data_dir=str(tmp_path)))
    (tmp_path / "coco.json").write_text("{")
    with pytest.raises(ValueError, match=r"holds neither images/ .* cannot be read either: .*coco.json is no JSON"):
        find_data(DataArguments(data_dir=str(tmp_path)))
    (tmp_path / "coco.json").unlink()
    edit(tmp_path / "0.json", '"cell"', "null")
    with pytest.raises(ValueError, match=r"0.json has a shape without a label"):
        used(tmp_path)


def test_lists_of_classes_that_disagree(tmp_path):
    write_picture(tmp_path / "yolo" / "images" / "a.jpg", 4, 6)
    (tmp_path / "yolo" / "labels").mkdir()
    (tmp_path / "yolo" / "labels" / "a.txt").write_text("0 0 0 1 0 1 1")
    path = tmp_path / "yolo" / "data.yaml"
    path.write_text("train: images\nnc: 2\nnames: [car]\n")
    with pytest.raises(ValueError, match=r"data.yaml says that there are 2 classes \(nc\), but names 1"):
        used(tmp_path / "yolo")
    edit(path, "nc: 2", "nc: 1")
    path.with_name("classes.txt").write_text("bus\n")
    with pytest.raises(ValueError, match=r"data.yaml and .*classes.txt list different classes"):
        used(tmp_path / "yolo")
    path.with_name("other.yaml").write_text("train: images\nnames: [bus]\n")
    with pytest.raises(ValueError, match=r"several yaml files of YOLO, .*data.yaml and .*other.yaml"):
        used(tmp_path / "yolo")
    write_picture(tmp_path / "cvat" / "JPEGImages" / "sub" / "a.jpg", 4, 6)
    write_picture(tmp_path / "cvat" / "SegmentationClass" / "sub" / "a.png", 4, 6)
    (tmp_path / "cvat" / "labelmap.txt").write_text("car:1,2,3::\nbus:1,2,3::\n")
    with pytest.raises(ValueError, match=r"'car' and 'bus' have the same color, 1 2 3"):
        used(tmp_path / "cvat")


def test_a_broken_picture_is_named(tmp_path):
    make_coco(tmp_path / "export")
    picture = tmp_path / "export" / "images" / "1.png"
    Image.new("RGB", (6, 4)).save(picture, "JPEG")  # whose beginning is enough for the size
    picture.write_bytes(picture.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"The picture images/train/1.png cannot be read"):
        used(tmp_path / "export")
    assert [path.name for path in tmp_path.iterdir()] == ["export"]

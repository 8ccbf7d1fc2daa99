"""What is decided of an export, what is refused, and the command `allspark import`."""

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from labeling import read_masks, write_picture
from PIL import Image, ImageOps

from allspark_hf.cli.importing import report
from allspark_hf.cli.main import main
from allspark_hf.data.labeling.export import Canvas
from allspark_hf.data.labeling.files import Files
from allspark_hf.data.labeling.writing import require_empty
from allspark_hf.data.loading import DataArguments, load_data
from allspark_hf.data.recognition import ExportFound, find_layout
from allspark_hf.data.sources.classes import Classes
from allspark_hf.data.sources.splits import Selection, load_layout


SQUARE = [[0, 0, 2, 0, 2, 2, 0, 2]]


def coco(folder: Path, name: str = "a.json", images=("a.jpg",), objects=(), categories=("car",), size=(4, 6)) -> Path:
    """A json file; `objects` are triples of the image's place, the category's and the segmentation."""
    content = {
        "images": [
            {"id": place, "file_name": image, "height": size[0], "width": size[1]}
            for place, image in enumerate(images)
        ],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": 0}
            for number, (image, category, segmentation) in enumerate(objects)
        ],
        "categories": [{"id": place, "name": category} for place, category in enumerate(categories)],
    }
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


# ---- Rules ----


def test_what_lies_outside_all_objects(tmp_path):
    """Class 0 by default, the class of this name where the export has one, or ignored."""
    write_picture(tmp_path / "x" / "a.jpg", 2, 3)
    write_picture(tmp_path / "x" / "b.jpg", 2, 3)
    coco(tmp_path / "x", images=["a.jpg", "b.jpg"], objects=[(0, 0, SQUARE)], size=(2, 3))
    masks, imported = read_masks(tmp_path / "x")
    assert masks == {"train/a": [[1, 1, 0]] * 2} and imported.classes.names == ["background", "car"]
    masks, imported = read_masks(tmp_path / "x", empty_images="background")
    assert masks == {"train/a": [[1, 1, 0]] * 2, "train/b": [[0, 0, 0]] * 2}
    masks, imported = read_masks(tmp_path / "x", outside="ignore", empty_images="background")
    assert masks == {"train/a": [[0, 0, 255]] * 2} and imported.classes.names == ["car"]
    assert imported.unlabeled["train"] == ["images/train/b.jpg"] and imported.events["nothing"] == 1
    coco(tmp_path / "x", objects=[(0, 0, SQUARE)], categories=["car", "Background"], size=(2, 3))
    masks, imported = read_masks(tmp_path / "x")
    assert masks == {"train/a": [[0, 0, 1]] * 2} and imported.classes.names == ["car", "Background"]
    assert "Left alone" in imported.notes[0] and "b.jpg" in imported.notes[0]


def test_a_list_of_classes_decides(tmp_path):
    write_picture(tmp_path / "x" / "a.jpg", 2, 3)
    coco(tmp_path / "x", objects=[(0, 1, SQUARE)], categories=["unused", "car"], size=(2, 3))
    masks, imported = read_masks(tmp_path / "x", classes=Classes(["bus", "car", "background"]))
    assert masks == {"train/a": [[1, 1, 2]] * 2} and imported.classes.names == ["bus", "car", "background"]
    with pytest.raises(ValueError, match=r"annotation 0: it shows the class 'car', which --classes does not list"):
        read_masks(tmp_path / "x", classes=Classes(["bus", "background"]))
    with pytest.raises(ValueError, match=r"has no class background .* add it, or give --outside ignore"):
        read_masks(tmp_path / "x", classes=Classes(["car"]))
    masks, imported = read_masks(tmp_path / "x", classes=Classes(["car"]), outside="ignore")
    assert masks == {"train/a": [[0, 0, 255]] * 2} and imported.classes.names == ["car"]


def test_overlap_is_of_two_classes_and_counted_once():
    canvas = Canvas(2, 4, {"a": 1, "b": 2}, 0)
    for label, columns in ((0, [1, 1, 1, 0]), (0, [0, 1, 1, 0]), (1, [0, 0, 1, 1]), (0, [0, 0, 1, 0])):
        canvas.paint(np.array([columns] * 2, dtype=bool), label)
    assert canvas.mask.tolist() == [[1, 1, 1, 2]] * 2 and canvas.overlapped.sum() == 2


def test_splits(tmp_path):
    """By the names of files and folders; equal names stay apart; a validation image needs a mask."""
    for name in ("train2017/a.jpg", "train2017/sub/a.jpg", "val2017/a.jpg", "val2017/b.jpg", "test2017/c.jpg"):
        write_picture(tmp_path / name, 4, 6)
    write_picture(tmp_path / "d.jpg", 4, 6)
    coco(tmp_path, "annotations/instances.json", ["d.jpg"])  # of no split
    names = {"train": ["a.jpg", "sub/a.jpg"], "val": ["a.jpg", "b.jpg"], "test": ["c.jpg"]}
    for split, images in names.items():
        images = [f"{split}2017/{image}" for image in images]
        coco(tmp_path, f"annotations/instances_{split}2017.json", images, [(0, 0, SQUARE)])
    masks, imported = read_masks(tmp_path)
    assert sorted(masks) == ["test/c", "train/a", "val/a"] and imported.labeled["test"] == ["images/test/c.jpg"]
    unlabeled = ["images/train/d.jpg", "images/train/from_val/b.jpg", "images/train/sub/a.jpg"]
    assert sorted(imported.unlabeled["train"]) == unlabeled and imported.events["moved"] == 1
    assert "Pictures of no split, which are training pictures now: 1." in report(imported, "unlabeled")


def test_which_picture_of_a_name_is_meant(tmp_path):
    """That beside the json file, that in the folder itself, or that nearest to the file."""
    for name in ("a.jpg", "sub/a.jpg", "other/deep/a.jpg"):
        write_picture(tmp_path / name, 4, 6)
    files = Files(tmp_path)
    expected = {"all.json": "a.jpg", "sub/sub.json": "sub/a.jpg", "ann/all.json": "a.jpg"}
    for source, picture in expected.items():
        assert files.find("a.jpg", tmp_path / source) == tmp_path / picture
        assert files.find("C:\\photos\\sub\\a.jpg", tmp_path / source) == tmp_path / "sub" / "a.jpg"
    (tmp_path / "a.jpg").unlink()
    assert Files(tmp_path).find("a.jpg", tmp_path / "other" / "ann" / "a.json") == tmp_path / "other/deep/a.jpg"


def test_a_picture_of_another_split_is_not_meant(tmp_path):
    """The mask of `val/a.jpg`, which is missing, would be that of the picture that is called so in `train`."""
    write_picture(tmp_path / "images" / "train" / "a.jpg", 4, 6)
    files = Files(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"names the picture val/a.jpg, which is not in"):
        files.find("val/a.jpg", tmp_path / "all.json")
    for name in ("train/a.jpg", "photos/a.jpg", "/home/test/a.jpg", "C:\\test\\a.jpg"):
        assert files.find(name, tmp_path / "all.json") == tmp_path / "images" / "train" / "a.jpg"


def test_the_field_s_own_coco(tmp_path):
    """Files about captions and keypoints annotate the same images once more, and are left alone."""
    for name in ("train2017/a.jpg", "val2017/a.jpg"):
        write_picture(tmp_path / name, 4, 6)
    for split in ("train", "val"):
        for kind in ("instances", "person_keypoints"):
            path = coco(tmp_path, f"annotations/{kind}_{split}2017.json", objects=[(0, 0, SQUARE)])
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"categories": [{"id": 0, "name": "person", "keypoints": ["nose"]}]}))
        captions = {"images": content["images"], "annotations": [{"id": 1, "image_id": 0, "caption": "A car."}]}
        (path.parent / f"captions_{split}2017.json").write_text(json.dumps(captions))
    masks, imported = read_masks(tmp_path)
    assert [*masks] == ["train/a", "val/a"] and imported.classes.names == ["background", "car"]
    assert [note.endswith("which is about keypoints.") for note in imported.notes] == [True, True]


def test_a_picture_moved_from_validation_replaces_none(tmp_path):
    for name in ("train/from_val/a.jpg", "val/a.jpg", "val/b.jpg"):
        write_picture(tmp_path / "images" / name, 4, 6)
    coco(tmp_path, "train.json", ["train/from_val/a.jpg"], [(0, 0, SQUARE)])
    coco(tmp_path, "val.json", ["val/a.jpg", "val/b.jpg"], [(1, 0, SQUARE)])
    with pytest.raises(ValueError, match=r"a\.jpg: another picture becomes images/train/from_val/a\.jpg too; rename"):
        read_masks(tmp_path)


def test_one_split_alone_is_for_training(tmp_path):
    write_picture(tmp_path / "images" / "a.jpg", 4, 6)
    coco(tmp_path, "test.json", objects=[(0, 0, SQUARE)])
    masks, imported = read_masks(tmp_path)
    assert [*masks] == ["train/a"] and "split test" in imported.notes[0]


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
@pytest.mark.parametrize("upright", [True, False])
def test_a_photo_turned_by_exif(tmp_path, orientation, upright, suffix):
    """The sizes in the export tell whether outlines are on the upright photo, or on the stored one."""
    write_picture(tmp_path / f"a.{suffix}", 4, 6, orientation)
    turned = orientation >= 5
    size = (6, 4) if upright and turned else (4, 6)
    coco(tmp_path, images=[f"a.{suffix}"], objects=[(0, 0, [[0, 0, 3, 0, 3, 1, 0, 1]])], size=size)
    masks, imported = read_masks(tmp_path)
    drawn = np.zeros(size, dtype=np.uint8)
    drawn[0, :3] = 1
    picture = Image.fromarray(drawn)
    if turned and not upright:
        exif = picture.getexif()
        exif[274] = orientation
        picture = ImageOps.exif_transpose(picture)
    assert masks == {"train/a": np.asarray(picture).tolist()}
    assert imported.events["turned"] == int(turned and not upright)
    assert imported.events["unsure"] == int(orientation == 3)


def test_what_reaches_beyond_the_picture_is_cut_and_counted(tmp_path):
    write_picture(tmp_path / "a.jpg", 4, 6)
    coco(tmp_path, objects=[(0, 0, [[-3, -3, 2, -3, 2, 2, -3, 2]]), (0, 0, [[5.1, 3.1, 5.3, 3.1, 5.2, 3.3]])])
    masks, imported = read_masks(tmp_path)
    assert masks["train/a"] == [[1, 1, 0, 0, 0, 0]] * 2 + [[0] * 6] * 2
    assert imported.events["cut"] == 1 and imported.events["empty"] == 1


# ---- Refusals ----


@pytest.mark.parametrize(
    "options, match",
    [
        ({"objects": [(0, 0, [[0, 0, 2, 2]])]}, r"a.json: a.jpg: annotation 0: an outline has 2 points, but 3"),
        ({"objects": [(0, 0, [[0, 0, 2]])]}, "has 3 numbers, but pairs"),
        ({"objects": [(0, 3, SQUARE)]}, r"a.json: annotation 0 is of category 3, which is not listed"),
        ({"objects": [(4, 0, SQUARE)]}, r"annotation 0 is of image 4, which is not listed"),
        ({"objects": [(0, 0, [])]}, "no outline"),
        (
            {"objects": [(0, 0, [[60, 0, 70, 0, 70, 2]])]},
            "reaches from x 60, y 0 to x 70, y 2, but the picture has 4x6",
        ),
        ({"objects": [(0, 0, {"size": [3, 6], "counts": [18]})]}, r"mask of size \[3, 6\]"),
        ({"objects": [(0, 0, {"size": [4, 6], "counts": [18]})]}, "cover 18 pixels, but there are 4x6"),
        ({"size": (8, 12)}, "says that it has 8x12 pixels .* but the file has 4x6"),
        ({"images": ["a.jpg", "b.jpg"]}, r"names the picture b.jpg, which is not in .*; put it there, or name"),
        ({"images": ["a.jpg", "a.jpg"]}, "is listed twice"),
        ({"objects": ()}, "None of the training pictures has an annotation"),
        ({"images": [], "objects": ()}, "names no picture"),
    ],
)
def test_what_is_refused_leaves_nothing(tmp_path, options, match):
    write_picture(tmp_path / "x" / "a.jpg", 4, 6)
    coco(tmp_path / "x", **({"objects": [(0, 0, SQUARE)]} | options))
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        read_masks(tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_more_refusals(tmp_path):
    write_picture(tmp_path / "x" / "one" / "a.jpg", 4, 6)
    write_picture(tmp_path / "x" / "two" / "a.jpg", 4, 6)
    path = coco(tmp_path / "x", objects=[(0, 0, SQUARE)])
    with pytest.raises(ValueError, match=r"which may be .*one/a.jpg or .*two/a.jpg"):
        read_masks(tmp_path / "x")
    coco(tmp_path / "x", "train.json", ["one/a.jpg"], [(0, 0, SQUARE)])
    coco(tmp_path / "x", "val.json", ["one/a.jpg"], [(0, 0, SQUARE)])
    path.unlink()
    with pytest.raises(ValueError, match=r"one/a.jpg, which is listed both in train and in validation"):
        read_masks(tmp_path / "x")
    coco(tmp_path / "x", "val.json", ["two/a.jpg"], [(0, 0, SQUARE)], categories=["bus"])
    with pytest.raises(ValueError, match=r"category 0 is 'bus', but elsewhere 'car'"):
        read_masks(tmp_path / "x")
    (tmp_path / "x" / "val.json").write_text("{")
    with pytest.raises(ValueError, match=r"val.json is no JSON"):
        read_masks(tmp_path / "x")
    (tmp_path / "x" / "val.json").write_text(json.dumps({"images": [{"id": 1}], "categories": []}))
    with pytest.raises(ValueError, match=r"is not a whole export of the form COCO .*KeyError: 'file_name'"):
        read_masks(tmp_path / "x")


def test_the_folder_to_write(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "file").touch()
    with pytest.raises(ValueError, match="not an empty folder"):
        require_empty(tmp_path / "x", tmp_path / "y")
    with pytest.raises(ValueError, match="lies in the export"):
        require_empty(tmp_path / "x" / "data", tmp_path / "x")
    require_empty(tmp_path / "data", tmp_path / "x")


# ---- The command ----


@pytest.fixture
def run(monkeypatch):
    def start(*arguments: str | Path):
        monkeypatch.setattr(sys, "argv", ["allspark", "import", *map(str, arguments)])
        return main()

    return start


def test_the_command_and_training_reads_what_it_wrote(tmp_path, run, capsys, caplog):
    for name in "abcd":
        write_picture(tmp_path / "x" / "images" / f"{name}.jpg", 40, 60)
    objects = [(place, place % 2, [[0, 0, 30, 0, 30, 40, 0, 40]]) for place in range(3)]
    names = [f"{name}.jpg" for name in "abcd"]
    coco(tmp_path / "x", "export.json", names, objects, ["car", "bus"], (40, 60))
    folder = tmp_path / "my data"
    folder.mkdir()
    run(tmp_path / "x", folder)
    printed = " ".join(capsys.readouterr().out.split())
    assert "train 3 1" in printed and "background 3 3,600 50.00" in printed and "car 2 2,400 33.33" in printed
    assert f"allspark train --data_dir '{folder}' --output_dir out" in printed
    assert sorted(path.name for path in folder.iterdir()) == [
        "classes.txt",
        "images",
        "import.json",
        "masks",
        "overlays",
    ]
    overlays = sorted((folder / "overlays").iterdir())
    assert len(overlays) == 3
    left, right = (Image.open(overlays[0]).getpixel((x, 20)) for x in (15, 45))
    assert left == (132, 115, 75) and right == (75, 75, 75)  # gray of 100, a quarter orange or black
    with caplog.at_level(logging.WARNING):
        data = load_layout(find_layout(folder), Selection())
    assert data.classes.names == ["background", "car", "bus"] and not caplog.records
    assert len(data.labeled) + len(data.validation) == 3 and data.unlabeled["id"] == ["d"]
    assert np.unique(np.asarray(data.labeled[0]["label"])).tolist()[0] == 0


def test_the_command_refuses_in_one_sentence(tmp_path, run, monkeypatch):
    write_picture(tmp_path / "x" / "a.jpg", 4, 6)
    path = coco(tmp_path, objects=[(0, 0, [[0, 0, 2, 2]])])
    with pytest.raises(SystemExit, match=r"not an empty folder"):
        run(path, tmp_path / "x")
    with pytest.raises(SystemExit, match=r"2 points, but 3 or more are needed; complete or delete it\.$"):
        run(path, tmp_path / "data", "--images_dir", tmp_path / "x")
    with pytest.raises(SystemExit, match=r"There is no folder .*/y; --images_dir must name that of the pictures"):
        run(path, tmp_path / "data", "--images_dir", tmp_path / "y")
    coco(tmp_path, objects=[(0, 0, SQUARE)])
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(SystemExit, match=r"Outlines need pycocotools, which is not installed: pip install"):
        run(path, tmp_path / "new" / "data", "--images_dir", tmp_path / "x")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "x"]


def test_data_dir_tells_the_command_for_an_export(tmp_path):
    """Also where its folders look like those of another form."""
    write_picture(tmp_path / "coco" / "train2017" / "a.jpg", 4, 6)
    coco(tmp_path / "coco", "annotations/instances_train2017.json", objects=[(0, 0, SQUARE)])
    write_picture(tmp_path / "yolo" / "train" / "images" / "a.jpg", 4, 6)
    (tmp_path / "yolo" / "train" / "labels").mkdir()
    (tmp_path / "yolo" / "train" / "labels" / "a.txt").write_text("0 0 0 1 0 1 1")
    (tmp_path / "yolo" / "data.yaml").write_text("train: train/images\nnames: [car]\n")
    write_picture(tmp_path / "cvat" / "JPEGImages" / "a.jpg", 4, 6)
    write_picture(tmp_path / "cvat" / "SegmentationClass" / "a.png", 4, 6)
    (tmp_path / "cvat" / "labelmap.txt").write_text("gray:100,100,100::\n")
    for name in ("coco", "yolo", "cvat"):
        folder = tmp_path / name
        with pytest.raises(ValueError, match=rf"with `allspark import {folder} NEW_FOLDER`, and give NEW_FOLDER\.$"):
            find_layout(folder)
        assert [*read_masks(folder)[0]] == ["train/a"]
    (tmp_path / "coco.zip").touch()
    with pytest.raises(ValueError, match=r"is a file: give a folder; .* `allspark import .*coco.zip NEW_FOLDER`"):
        find_layout(tmp_path / "coco.zip")
    write_picture(tmp_path / "own" / "images" / "a.jpg", 4, 6)  # folders that could be those of images and masks
    coco(tmp_path / "own", "annotations/instances.json", objects=[(0, 0, SQUARE)])
    with pytest.raises(ExportFound, match="COCO"):
        find_layout(tmp_path / "own")
    (tmp_path / "yolo" / "train" / "masks").mkdir()
    Image.new("L", (6, 4)).save(tmp_path / "yolo" / "train" / "masks" / "a.png")  # then these are the masks
    assert find_layout(tmp_path / "yolo").name == "folder"


def test_nothing_is_passed_over(tmp_path):
    """What would silently be left out of a mask, or end up in another split, is refused."""
    write_picture(tmp_path / "labelme" / "a.jpg", 4, 6)
    write_picture(tmp_path / "labelme" / "b.jpg", 4, 6)
    (tmp_path / "labelme" / "a.json").write_text(json.dumps({"shapes": [], "imagePath": "a.jpg"}))
    (tmp_path / "labelme" / "b.json").write_text(json.dumps({"shapes": []}))
    with pytest.raises(ValueError, match=r"b.json is not in LabelMe's form"):
        read_masks(tmp_path / "labelme")
    write_picture(tmp_path / "studio" / "a.jpg", 4, 6)
    size = {"original_width": 6, "original_height": 4}
    region = {"id": "r", "type": "polygon", "value": {"points": [[0, 0], [50, 0], [50, 50]]}} | size
    task = {"id": 1, "data": {"image": "a.jpg"}, "annotations": [{"id": 1, "result": [region]}]}
    (tmp_path / "studio" / "a.json").write_text(json.dumps([task]))
    with pytest.raises(ValueError, match="has no classes"):
        read_masks(tmp_path / "studio")
    (tmp_path / "studio" / "labels.txt").write_text("car\n")
    with pytest.raises(ValueError, match=r"task 1, region r: a polygon has no area or no label of its own"):
        read_masks(tmp_path / "studio")
    write_picture(tmp_path / "cvat" / "JPEGImages" / "a.jpg", 4, 6)
    write_picture(tmp_path / "cvat" / "SegmentationClass" / "a.png", 4, 6)
    (tmp_path / "cvat" / "labelmap.txt").write_text("gray:100,100,100::\n")
    lists = tmp_path / "cvat" / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"lists b, of which there is no picture"):
        read_masks(tmp_path / "cvat")
    (lists / "val.txt").write_text("a\n")
    (lists / "train.txt").write_text("a\n")
    with pytest.raises(ValueError, match=r"val.txt names a, which a list of another split names too"):
        read_masks(tmp_path / "cvat")


def test_the_command_says_when_there_is_hardly_a_background(tmp_path, run, capsys):
    write_picture(tmp_path / "x" / "a.jpg", 40, 60)
    rings = [[[0, 0, 60, 0, 60, 20, 0, 20]], [[0, 20, 60, 20, 60, 40, 1, 40]]]
    objects = [(0, place, ring) for place, ring in enumerate(rings)]
    coco(tmp_path / "x", objects=objects, categories=["sky", "ground"], size=(40, 60))
    run(tmp_path / "x", tmp_path / "data")
    assert "Hardly any pixel lies outside all objects" in capsys.readouterr().out
    run(tmp_path / "x", tmp_path / "other", "--outside", "ignore")
    assert "Hardly" not in capsys.readouterr().out
    assert (tmp_path / "other" / "classes.txt").read_text() == "sky\nground\n"


def test_the_command_says_what_training_needs_for_masks_of_0_and_255(tmp_path, run, capsys):
    """With two classes, training takes a mask of background and ignored pixels for a binary one."""
    for name in "abc":
        write_picture(tmp_path / "x" / f"{name}.jpg", 40, 60)
    objects = [(number, 0, SQUARE) for number in range(3)]
    path = coco(tmp_path / "x", images=["a.jpg", "b.jpg", "c.jpg"], objects=objects, size=(40, 60))
    content = json.loads(path.read_text())
    content["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    run(tmp_path / "x", tmp_path / "data")
    assert f"allspark train --data_dir {tmp_path / 'data'} --ignored_mask_values 255 --out" in capsys.readouterr().out
    arguments = DataArguments(data_dir=str(tmp_path / "data"))
    with pytest.raises(ValueError, match="0 and 255"):
        load_data(arguments)
    assert load_data(replace(arguments, ignored_mask_values=[255])).num_labels == 2

"""Each labeling tool's form, as small as it gets, and the masks that it must become."""

import base64
import io
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from labeling import pack_brush, read_masks, write_picture
from PIL import Image

from allspark_hf.data.labeling.formats import find_readers, read_export, unpacked
from allspark_hf.data.labeling.label_studio import decode_brush


# 4 x 6 pixels: class 1 in the upper left, class 2 over its last column and further right, one pixel of class 1 below.
EXPECTED = [
    [1, 1, 2, 2, 0, 0],
    [1, 1, 2, 2, 0, 0],
    [0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 1],
]
CAR, BUS, DOT = [(0, 0), (3, 0), (3, 2), (0, 2)], [(2, 0), (4, 0), (4, 2), (2, 2)], [(5, 3), (6, 3), (6, 4), (5, 4)]


def test_coco(tmp_path):
    """Polygons, run lengths of both kinds, a crowd below all objects, ids with gaps and in any order."""
    write_picture(tmp_path / "images" / "a.jpg", 4, 6)
    write_picture(tmp_path / "images" / "b.jpg", 2, 3)
    flat = [[value for point in ring for value in point] for ring in (CAR, DOT)]
    annotations = [
        {"id": 1, "image_id": 7, "category_id": 2, "segmentation": flat, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 18, "segmentation": {"size": [4, 6], "counts": [8, 2, 2, 2, 10]}},
        {"id": 3, "image_id": 7, "category_id": 2, "segmentation": {"size": [4, 6], "counts": [16, 8]}, "iscrowd": 1},
    ]
    images = [
        {"id": 7, "file_name": "a.jpg", "height": 4, "width": 6},
        {"id": 9, "file_name": "b.jpg", "height": 2, "width": 3},
    ]
    categories = [{"id": 18, "name": "bus"}, {"id": 2, "name": "car"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    masks, imported = read_masks(tmp_path)
    expected = [row[:4] + [value or 255 for value in row[4:]] for row in EXPECTED]
    assert masks == {"train/a": expected}
    assert imported.classes.names == ["background", "car", "bus"]
    assert imported.unlabeled["train"] == ["images/train/b.jpg"] and imported.events["maybe"] == 1
    assert imported.overlapped == 2 + 1  # the car by the bus, and the crowd by the dot
    assert "gaps" in imported.notes[0] and "are ignored: 1" in imported.notes[1]


def test_coco_of_roboflow(tmp_path):
    """Its first category only groups the others; a category without objects that is its own group is a class."""
    write_picture(tmp_path / "a.jpg", 4, 6)
    image = {"id": 0, "file_name": "a.jpg", "height": 4, "width": 6}
    ring = [value for point in CAR for value in point]
    annotation = {"id": 0, "image_id": 0, "category_id": 1, "segmentation": [ring]}
    groups = {"cars": "none", "car": "cars", "bus": "bus"}
    categories = [{"id": place, "name": name, "supercategory": groups[name]} for place, name in enumerate(groups)]
    content = {"images": [image], "annotations": [annotation], "categories": categories}
    (tmp_path / "_annotations.coco.json").write_text(json.dumps(content))
    masks, imported = read_masks(tmp_path)
    assert masks == {"train/a": [[1, 1, 1, 0, 0, 0]] * 2 + [[0] * 6] * 2}
    assert imported.classes.names == ["background", "car", "bus"]
    assert imported.notes == ["Left out, because they only group other categories and have no objects: cars."]
    content["annotations"].append(annotation | {"id": 1, "category_id": 0})
    (tmp_path / "_annotations.coco.json").write_text(json.dumps(content))
    assert read_masks(tmp_path)[1].classes.names == ["background", "cars", "car", "bus"]


def test_coco_compressed_and_united_rings(tmp_path):
    coco = pytest.importorskip("pycocotools.mask")
    write_picture(tmp_path / "a.jpg", 5, 7)
    inside = np.random.default_rng(0).random((5, 7)) < 0.4
    runs = coco.encode(np.asfortranarray(inside.astype(np.uint8)))
    runs["counts"] = runs["counts"].decode()
    rings = [[0, 0, 5, 0, 5, 5, 0, 5], [1, 1, 2, 1, 2, 2, 1, 2]]
    annotations = [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": rings}]
    annotations += [{"id": 2, "image_id": 1, "category_id": 2, "segmentation": runs}]
    image = {"id": 1, "file_name": "a.jpg", "height": 5, "width": 7}
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    content = {"images": [image], "annotations": annotations, "categories": categories}
    (tmp_path / "a.json").write_text(json.dumps(content))
    expected = np.where(inside, 2, np.arange(7)[None] < 5)
    assert read_masks(tmp_path)[0] == {"train/a": expected.tolist()}


def test_yolo(tmp_path):
    """Roboflow's `../train/images`; an empty file is all background, a missing one unlabeled."""
    for name in ("train/images/a.jpg", "train/images/b.jpg", "valid/images/c.jpg"):
        write_picture(tmp_path / name, 4, 6)
    lines = [
        f"{label} " + " ".join(f"{x / 6} {y / 4}" for x, y in ring) for label, ring in ((0, CAR), (1, BUS), (0, DOT))
    ]
    (tmp_path / "train" / "labels").mkdir()
    (tmp_path / "train" / "labels" / "a.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "valid" / "labels").mkdir()
    (tmp_path / "valid" / "labels" / "c.txt").write_text("")
    (tmp_path / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['car', 'bus']\n")
    masks, imported = read_masks(tmp_path)
    assert masks == {"train/a": EXPECTED, "val/c": [[0] * 6] * 4}
    assert imported.classes.names == ["background", "car", "bus"]
    assert imported.unlabeled["train"] == ["images/train/b.jpg"]


def test_labels_beside_their_pictures_need_these_pictures(tmp_path):
    """As labels in a folder of their own do; other text is no label."""
    write_picture(tmp_path / "photos" / "a.jpg", 4, 6)
    (tmp_path / "data.yaml").write_text("train: photos\nnames: [car]\n")
    for name, text in (("a", "0 0 0 0.5 0 0.5 0.5 0 0.5"), ("README", "5 pictures of cars"), ("more", "")):
        (tmp_path / "photos" / f"{name}.txt").write_text(text)
    assert read_masks(tmp_path)[0] == {"train/photos/a": [[1, 1, 1, 0, 0, 0]] * 2 + [[0] * 6] * 2}
    (tmp_path / "photos" / "b.txt").write_text("0 0 0 0.5 0 0.5 0.5 0 0.5")
    with pytest.raises(ValueError, match=r"b\.txt labels no picture that .*data\.yaml lists \(1 such files\); put"):
        read_masks(tmp_path)


def test_yolo_of_label_studio(tmp_path):
    """`classes.txt` beside `images` and `labels`, and no `data.yaml`."""
    write_picture(tmp_path / "images" / "a.jpg", 4, 6)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("1 " + " ".join(f"{x / 6} {y / 4}" for x, y in CAR))
    (tmp_path / "classes.txt").write_text("bus\ncar\n")
    (tmp_path / "notes.json").write_text('{"categories": [{"id": 0, "name": "bus"}], "info": {"year": 2026}}')
    masks, imported = read_masks(tmp_path)
    assert masks == {"train/a": [[2, 2, 2, 0, 0, 0]] * 2 + [[0] * 6] * 2}
    assert imported.classes.names == ["background", "bus", "car"]


def test_yolo_lists_no_picture_twice(tmp_path):
    for name in ("train", "val"):
        write_picture(tmp_path / "images" / name / f"{name}.jpg", 4, 6)
    (tmp_path / "data.yaml").write_text("train: [images/train, images/val]\nval: images/val\nnames: [car]\n")
    with pytest.raises(ValueError, match=r"val.jpg, which is listed both in train and in validation; list it once"):
        read_masks(tmp_path)
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/test\nnames: [car]\n")
    with pytest.raises(FileNotFoundError, match=r"data.yaml names images/test, which is not in"):
        read_masks(tmp_path)


@pytest.mark.parametrize(
    "line, match",
    [
        ("0 0.5 0.5 0.2 0.2", "line 1 has four numbers .* a box"),
        ("1 0 0 1 0 1 1", "line 1 is of class 1, but there are classes 0 to 0"),
        ("0 0 0 1 0 1", "line 1 has 5 numbers"),
        ("0 0 0 1 0 x 1", ".* no number"),
        ("0 10 10 40 10 40 40", ".* export at the scale"),
    ],
)
def test_lines_of_yolo_that_are_refused(tmp_path, line, match):
    write_picture(tmp_path / "x" / "images" / "train" / "a.jpg", 4, 6)
    labels = tmp_path / "x" / "labels" / "train"
    labels.mkdir(parents=True)
    (labels / "a.txt").write_text(line)
    (tmp_path / "x" / "data.yaml").write_text("path: /home/somebody/x\ntrain: images/train\nnames: {0: car}\n")
    with pytest.raises(ValueError, match=f"a.txt: a.jpg: {match}"):
        read_masks(tmp_path / "x")
    (labels / "b.txt").write_text("")
    with pytest.raises(ValueError, match=r"b.txt labels no picture"):
        read_masks(tmp_path / "x")
    (tmp_path / "x" / "data.yaml").write_text("train: images/train\nnames: {0: car}\nkpt_shape: [17, 2]\n")
    with pytest.raises(ValueError, match=r"data.yaml is about keypoints \(kpt_shape\), which have no area; export"):
        read_masks(tmp_path / "x")


def labelme(shapes: list[dict], image: str, height: int, width: int) -> str:
    return json.dumps(
        {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image, "imageData": "AAAA"}
        | {"imageHeight": height, "imageWidth": width}
    )


def test_labelme(tmp_path):
    """Polygon, rectangle, mask and `__ignore__`; no json: unlabeled; json without shapes: background."""
    for name in "abc":
        write_picture(tmp_path / f"{name}.jpg", 4, 6)
    png = io.BytesIO()
    Image.fromarray(np.ones((1, 1), dtype=bool)).save(png, "PNG")
    shapes = [
        {"label": "car", "shape_type": "polygon", "points": CAR, "group_id": None},
        {"label": "bus", "shape_type": "rectangle", "points": [(4, 2), (2, 0)]},
        {"label": "car", "shape_type": "mask", "points": [(5, 3), (5, 3)]}
        | {"mask": base64.b64encode(png.getvalue()).decode()},
        {"label": "__ignore__", "shape_type": "circle", "points": [(1, 3), (1.6, 3)]},
    ]
    (tmp_path / "a.json").write_text(labelme(shapes, "..\\photos\\a.jpg", 4, 6))
    (tmp_path / "b.json").write_text(labelme([], "b.jpg", 4, 6))
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\ncar\nbus\n")
    masks, imported = read_masks(tmp_path)
    assert imported.classes.names == ["_background_", "car", "bus"]
    # The circle of radius 0.6 around a corner has no pixel's center at distance 0.71.
    assert masks == {"train/a": EXPECTED, "train/b": [[0] * 6] * 4} and imported.events["empty"] == 1
    assert imported.unlabeled["train"] == ["images/train/c.jpg"]
    (tmp_path / "labels.txt").unlink()
    assert read_masks(tmp_path)[1].classes.names == ["background", "bus", "car"]  # sorted
    (tmp_path / "labelme").mkdir()
    for name in ("a.json", "b.json"):
        (tmp_path / name).rename(tmp_path / "labelme" / name)
    (tmp_path / "labelme/labels.txt").write_text("__ignore__\nbackground\ncar\nbus\n")  # as predictions have it
    assert read_masks(tmp_path)[1].classes.names == ["background", "car", "bus"]


def test_cvat_xml(tmp_path):
    """Polygon, box, mask and ellipse; `z_order` decides, not the order in the file."""
    write_picture(tmp_path / "images" / "photos" / "a.jpg", 4, 6)
    write_picture(tmp_path / "images" / "b.jpg", 4, 6)
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in CAR)
    (tmp_path / "annotations.xml").write_text(
        f"""<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><id>1</id><labels>
<label><name>car</name><color>#ff0000</color><type>any</type><attributes></attributes></label>
<label><name>bus</name><color>#00ff00</color><type>any</type><attributes></attributes></label>
</labels></task></meta>
<image id="0" name="photos/a.jpg" width="6" height="4">
<box label="bus" source="manual" occluded="0" xtl="2.00" ytl="0.00" xbr="4.00" ybr="2.00" z_order="1"></box>
<polygon label="car" source="manual" occluded="0" points="{points}" z_order="0"></polygon>
<mask label="car" source="manual" occluded="0" rle="1, 1, 2" left="4" top="3" width="4" height="1" z_order="0"></mask>
<ellipse label="bus" occluded="0" cx="1.00" cy="3.00" rx="0.50" ry="0.50" z_order="0"></ellipse>
</image>
<image id="1" name="b.jpg" width="6" height="4"></image></annotations>"""
    )
    masks, imported = read_masks(tmp_path)
    assert imported.classes.names == ["background", "car", "bus"]
    assert masks == {"train/photos/a": EXPECTED} and imported.overlapped == 2
    assert imported.events == {"maybe": 1, "cut": 1, "empty": 1}  # the mask's box of 4 begins in column 4 of 6


def test_cvat_masks(tmp_path):
    colors = {"background": (0, 0, 0), "bus": (0, 128, 0), "car": (128, 0, 0)}
    lines = "".join(f"{name}:{','.join(map(str, color))}::\n" for name, color in colors.items())
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + lines)
    for name in ("a", "sub/b", "c"):
        write_picture(tmp_path / "JPEGImages" / f"{name}.jpg", 4, 6)
    table = np.array([colors["background"], colors["car"], colors["bus"]], dtype=np.uint8)
    for name in ("a", "sub/b"):
        path = tmp_path / "SegmentationClass" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(table[EXPECTED]).save(path)
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "Train.txt").write_text("a\nc\n")
    (tmp_path / "ImageSets" / "Segmentation" / "Validation.txt").write_text("sub/b\n")
    masks, imported = read_masks(tmp_path)
    expected = np.array([0, 2, 1])[EXPECTED].tolist()
    assert masks == {"train/a": expected, "val/sub/b": expected}
    assert imported.classes.names == list(colors) and imported.classes.colors == list(colors.values())
    assert imported.unlabeled["train"] == ["images/train/c.jpg"]
    (tmp_path / "labelmap.txt").write_text(lines.replace("128,0,0", "127,0,0"))
    with pytest.raises(ValueError, match=r"5 pixels have 1 colors that no class has, most of them 128 0 0"):
        read_masks(tmp_path)


def region(kind: str, value: dict, label: str) -> dict:
    size = {"original_width": 6, "original_height": 4, "image_rotation": 0}
    return {"id": "r1", "type": kind, "value": value | {kind: [label]}, "from_name": "l", "to_name": "i"} | size


def test_label_studio(tmp_path):
    """Polygon, brush and rectangle; empty result: background; none or a skipped one: unlabeled; newest of several."""
    for name in ("a", "b", "c", "d"):
        write_picture(tmp_path / f"{name}.jpg", 4, 6)
    brush = np.zeros((4, 6, 4), dtype=int)
    brush[..., 3] = 255 * (np.array(EXPECTED) == 2)
    assert decode_brush(pack_brush(brush.ravel())).tolist() == brush.ravel().tolist()
    dot = {"x": 5 / 6 * 100, "y": 75.0, "width": 100 / 6, "height": 25.0, "rotation": 0}
    result = [
        region("polygonlabels", {"points": [[x / 6 * 100, y / 4 * 100] for x, y in CAR], "closed": True}, "car"),
        region("brushlabels", {"format": "rle", "rle": pack_brush(brush.ravel())}, "bus"),
        region("rectanglelabels", dot, "car"),
        {"type": "relation", "from_id": "r1", "to_id": "r1"},
        {"id": "c1", "type": "choices", "value": {"choices": ["day"]}, "from_name": "c", "to_name": "i"},
    ]
    old = {"id": 1, "result": [], "was_cancelled": False, "updated_at": "2026-01-01T00:00:00Z"}
    new = {"id": 2, "result": result, "was_cancelled": False, "updated_at": "2026-02-01T00:00:00Z"}
    tasks = [
        {"id": 1, "annotations": [new, old], "data": {"image": "/data/upload/1/0a1b2c3d-a.jpg"}, "predictions": []},
        {"id": 2, "annotations": [old], "data": {"image": "s3://bucket/x/b.jpg"}},
        {"id": 3, "annotations": [], "data": {"image": "/data/local-files/?d=x/c.jpg"}, "predictions": [new]},
        {"id": 4, "annotations": [old | {"was_cancelled": True}], "data": {"image": "https://x.org/d.jpg?key=1"}},
    ]
    (tmp_path / "project-1.json").write_text(json.dumps(tasks))
    masks, imported = read_masks(tmp_path)
    assert imported.classes.names == ["background", "bus", "car"]
    assert masks == {"train/a": np.array([0, 2, 1])[EXPECTED].tolist(), "train/b": [[0] * 6] * 4}
    assert imported.unlabeled["train"] == ["images/train/c.jpg", "images/train/d.jpg"]
    assert any("several annotations" in note for note in imported.notes)
    tasks[0]["annotations"][0]["result"][1]["to_name"] = "other"
    (tmp_path / "project-1.json").write_text(json.dumps(tasks))
    with pytest.raises(
        ValueError, match=r"a.jpg: task 1 has regions on 2 pictures \(i, other\), but masks are of one"
    ):
        read_masks(tmp_path)


def test_a_brush_of_any_values():
    values = np.repeat(np.random.default_rng(0).integers(0, 256, 60), 7)
    assert decode_brush(pack_brush(values)).tolist() == values.tolist()
    with pytest.raises(ValueError, match="cut short"):
        decode_brush(pack_brush(values)[:-3])


def test_supervisely(tmp_path):
    """A polygon with a hole, a bitmap and a rectangle, in datasets called after splits."""
    png = io.BytesIO()
    picture = Image.fromarray(np.array([[1, 0, 1, 1], [1, 0, 1, 1]], dtype=np.uint8))
    picture.putpalette([0, 0, 0, 255, 255, 255])
    picture.save(png, "PNG", transparency=0, bits=4)
    bitmap = {"data": base64.b64encode(zlib.compress(png.getvalue())).decode(), "origin": [0, 0]}
    hole = [(1, 0), (2, 0), (2, 2), (1, 2)]
    objects = [
        {"classTitle": "bus", "geometryType": "bitmap", "bitmap": bitmap},
        {"classTitle": "car", "geometryType": "polygon"}
        | {"points": {"exterior": [(0, 0), (2, 0), (2, 2), (0, 2)], "interior": [hole]}},
        {"classTitle": "car", "geometryType": "rectangle", "points": {"exterior": [(5, 3), (6, 4)], "interior": []}},
    ]
    for split, own in (("train", objects), ("val", objects), ("train2", [])):
        write_picture(tmp_path / split / "img" / "a.jpg", 4, 6)
        (tmp_path / split / "ann").mkdir()
        content = {"size": {"height": 4, "width": 6}, "objects": own, "tags": []}
        (tmp_path / split / "ann" / "a.jpg.json").write_text(json.dumps(content))
    write_picture(tmp_path / "train" / "img" / "b.jpg", 4, 6)
    classes = [{"title": "car", "shape": "any", "color": "#FF0000"}, {"title": "bus", "shape": "bitmap"}]
    (tmp_path / "meta.json").write_text(json.dumps({"classes": classes, "tags": [], "projectType": "images"}))
    masks, imported = read_masks(tmp_path)
    expected = [[1, 0, 2, 2, 0, 0]] * 2 + EXPECTED[2:]
    assert masks == {"train/train__img__a": expected, "val/a": expected}
    unlabeled = ["images/train/b.jpg", "images/train/train2__img__a.jpg"]
    assert sorted(imported.unlabeled["train"]) == unlabeled and imported.events["maybe"] == 1


def test_roboflow_masks(tmp_path):
    for split in ("train", "valid", "test"):
        write_picture(tmp_path / split / "a.jpg", 4, 6)
        Image.fromarray(np.array(EXPECTED, dtype=np.uint8)).save(tmp_path / split / "a_mask.png")
        (tmp_path / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, car\n2, bus\n")
    write_picture(tmp_path / "train" / "b.jpg", 4, 6)
    masks, imported = read_masks(tmp_path)
    assert masks == {"train/a": EXPECTED, "val/a": EXPECTED, "test/a": EXPECTED}
    assert imported.classes.names == ["background", "car", "bus"]
    assert imported.unlabeled["train"] == ["images/train/b.jpg"]
    (tmp_path / "test" / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, bus\n2, car\n")
    with pytest.raises(ValueError, match="different classes"):
        read_masks(tmp_path)


def test_color_masks(tmp_path):
    (tmp_path / "classes.txt").write_text("sky 10 20 30\ncar 1 2 3\nbus 4 5 6\n")
    table = np.array([(10, 20, 30), (1, 2, 3), (4, 5, 6)], dtype=np.uint8)
    for name in "ab":
        write_picture(tmp_path / "images" / f"{name}.jpg", 4, 6)
    (tmp_path / "masks").mkdir()
    Image.fromarray(table[EXPECTED]).save(tmp_path / "masks" / "a.png")
    masks, imported = read_masks(tmp_path)
    assert masks == {"train/a": EXPECTED} and imported.unlabeled["train"] == ["images/train/b.jpg"]
    write_picture(tmp_path / "unlabeled" / "images" / "c.jpg", 4, 6)
    (tmp_path / "unlabeled" / "masks").mkdir()
    Image.fromarray(table[EXPECTED]).save(tmp_path / "unlabeled" / "masks" / "c.png")  # hidden, as in training
    masks, imported = read_masks(tmp_path)
    assert masks == {"train/a": EXPECTED}
    assert imported.unlabeled["train"] == ["images/train/b.jpg", "images/train/c.jpg"]
    assert imported.classes.colors == table.tolist() or imported.classes.colors == list(map(tuple, table.tolist()))
    (tmp_path / "unlabeled").rename(tmp_path / "test")
    masks, imported = read_masks(tmp_path)
    assert masks == {"train/a": EXPECTED, "test/c": EXPECTED} and imported.notes == []


def test_an_archive_is_read_without_the_folders_around(tmp_path):
    import shutil

    write_picture(tmp_path / "export" / "project" / "a.jpg", 4, 6)
    (tmp_path / "export" / "project" / "a.json").write_text(labelme([], "a.jpg", 4, 6))
    for kind in ("zip", "gztar"):
        archive = shutil.make_archive(str(tmp_path / "archive"), kind, tmp_path / "export")
        with unpacked(Path(archive)) as root:
            assert list(find_readers(root)) == ["labelme"] and (root / "a.jpg").is_file()
        assert not root.exists()


def test_what_is_no_export_or_several(tmp_path):
    write_picture(tmp_path / "a.jpg", 4, 6)
    with pytest.raises(ValueError, match="is no export of a known form: COCO"):
        read_export(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_export(tmp_path / "missing")
    (tmp_path / "a.json").write_text(labelme([], "a.jpg", 4, 6))
    image = {"id": 1, "file_name": "a.jpg", "height": 4, "width": 6}
    (tmp_path / "b.json").write_text(json.dumps({"images": [image], "categories": [{"id": 1, "name": "a"}]}))
    with pytest.raises(ValueError, match="may be read as labelme or coco: choose with --format"):
        read_export(tmp_path)
    assert read_export(tmp_path, "coco")[0] == "coco"
    with pytest.raises(ValueError, match="holds no export of the form YOLO"):
        read_export(tmp_path, "yolo")

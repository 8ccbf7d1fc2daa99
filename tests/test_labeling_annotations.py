"""Masks as outlines for labeling tools, and back by `allspark import`."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from allspark_hf.data.labeling.annotations import LABELME, WRITERS, labelme_content
from allspark_hf.data.labeling.formats import read_export
from allspark_hf.data.labeling.polygons import annotate, drawn_classes, outline_regions, simplify
from allspark_hf.data.labeling.rasterize import rasterize
from allspark_hf.data.labeling.writing import write_folder


LABELS = ["background", 'cell <&> "x"', "été"]
PALETTE = [(0, 0, 0), (255, 128, 0), (1, 2, 3)]


def blobs(size: tuple[int, int], num_labels: int, seed: int) -> np.ndarray:
    """Smooth regions of many sizes."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(num_labels, *(side // 12 + 2 for side in size)))
    scaled = [np.array(Image.fromarray(one).resize(size[::-1], Image.Resampling.BICUBIC)) for one in noise]
    return np.argmax(scaled, axis=0).astype(np.uint8)


def special() -> np.ndarray:
    """Holes in holes, objects of one pixel, lines of one pixel, regions that touch along edges and at corners."""
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[2:20, 2:20] = 1
    mask[5:17, 5:17] = 0
    mask[8:14, 8:14] = 2
    mask[10, 10] = 1
    mask[12, 12] = 0
    mask[3, 3:9] = 2  # a line within a region, beside its edge
    mask[25, 3:30] = 1
    mask[22:38, 33] = 2
    np.fill_diagonal(mask[22:36, 40:58], 1)
    mask[0, 59], mask[39, 0], mask[30, 20] = 1, 2, 2  # at two corners of the image, and alone
    mask[2:10, 30:40], mask[2:10, 40:50], mask[10:18, 40:50] = 1, 2, 1
    mask[12:18, 24:30] = np.indices((6, 6)).sum(axis=0) % 2 + 1  # a checkerboard
    return mask


def masks() -> dict[str, np.ndarray]:
    noise = np.random.default_rng(0).integers(3, size=(12, 17)).astype(np.uint8)
    full, empty = np.full((7, 5), 2, dtype=np.uint8), np.zeros((6, 9), dtype=np.uint8)
    return {"special": special(), "blobs": blobs((60, 90), 3, 1), "sub/noise": noise, "full": full, "empty": empty}


def near_edges(mask: np.ndarray, reach: int) -> np.ndarray:
    """Bool (height, width): pixels with another class at most so many pixels away."""
    padded = np.pad(mask, reach, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * reach + 1, 2 * reach + 1))
    return windows.min(axis=(2, 3)) != windows.max(axis=(2, 3))


# ---- Outlines ----


@pytest.mark.parametrize("tolerance", [0, 1, 2.5])
def test_rings_have_the_pixels_of_their_regions(tolerance):
    for name, mask in masks().items():
        regions = outline_regions(mask, tolerance)
        again = np.full(mask.shape, 9)
        for region in regions:
            inside = rasterize(region.rings, *mask.shape)
            assert np.array_equal(rasterize([region.one_ring()], *mask.shape), inside)
            again[inside] = region.label
        if name != "sub/noise":  # where lines of a pixel cross
            assert (again != 9).all()  # neighbors keep their common outline, so that nothing is bare
        changed = again != mask
        assert not changed[~near_edges(mask, int(np.ceil(tolerance)))].any() if tolerance else not changed.any()


def test_regions_and_points_by_numbers():
    mask = special()
    regions = outline_regions(mask)
    of_label = [[region for region in regions if region.label == label] for label in range(3)]
    assert [len(one) for one in of_label] == [3, 7, 7]
    square = next(region for region in of_label[1] if len(region.rings) == 3)  # with a line and a square cut out
    boxes = [[*ring.min(axis=0).tolist(), *ring.max(axis=0).tolist()] for ring in square.rings]
    assert boxes[0] == [2, 2, 20, 20] and sorted(boxes[1:]) == [[3, 3, 9, 4], [5, 5, 17, 17]]
    diagonal = next(one for one in of_label[1] if one.rings[0].min(axis=0).tolist() == [40, 22])
    assert diagonal.rings[0].max(axis=0).tolist() == [54, 36] and len(diagonal.rings) == 1
    # A large square of 100 pixels with a step of one pixel in a side: the step goes.
    mask = np.zeros((120, 120), dtype=np.uint8)
    mask[10:110, 10:110] = 1
    mask[10, 10:60] = 0
    assert [len(one.rings[0]) for one in outline_regions(mask) if one.label] == [6]
    assert [len(one.rings[0]) for one in outline_regions(mask, 1.0) if one.label] == [4]


def test_small_regions_keep_their_outlines():
    mask = special()
    counted = [np.bincount([region.label for region in outline_regions(mask, tolerance)]) for tolerance in (0, 1, 3)]
    assert np.array_equal(counted[0], counted[1]) and np.array_equal(counted[0], counted[2])
    changed = np.full(mask.shape, 9)
    for region in outline_regions(mask, 1.0):
        changed[rasterize(region.rings, *mask.shape)] = region.label
    for row, column in ((10, 10), (12, 12), (30, 20), (0, 59), (25, 15), (30, 33), (28, 46)):
        assert changed[row, column] == mask[row, column]


@pytest.mark.parametrize("is_closed", [False, True])
def test_simplified_lines_stay_near(is_closed):
    rng = np.random.default_rng(0)
    for tolerance in (0.5, 1.0, 3.0):
        points = rng.integers(12, size=(40, 2)).cumsum(axis=0) % 37
        points = np.concatenate([points, points[:1]]) if is_closed else points
        kept = simplify(points, tolerance)
        assert kept[0].tolist() == points[0].tolist() and kept[-1].tolist() == points[-1].tolist()
        places, start = [], 0  # of the kept points among all
        for point in kept:
            start = next(row for row in range(start, len(points)) if (points[row] == point).all())
            places.append(start)
        assert len(kept) < len(points) and len(kept) > (3 if is_closed else 2)
    line = np.array([(0, 0), (5, 1), (10, 0), (10, 10)])
    assert simplify(line, 1.0).tolist() == [[0, 0], [10, 0], [10, 10]]
    assert simplify(line, 0.99).tolist() == line.tolist()


def test_what_is_lost_is_counted():
    mask = np.zeros((120, 120), dtype=np.uint8)
    mask[10:110, 10:110] = 1
    mask[10:12, 10:60] = 0
    assert annotate(mask, "a.png", "a", [1, 2], 0)["lost"] == 0
    part = annotate(mask, "a.png", "a", [1, 2], 1.5)
    # A slant from y 12 to y 10 takes the step's place: its half above 11 is lost, and as much is gained below.
    assert part["lost"] == 50 and [(one["label"], one["area"]) for one in part["regions"]] == [(1, 9900)]
    assert sorted(part["regions"][0]["ring"]) == [[10, 12], [10, 110], [110, 10], [110, 110]]
    assert drawn_classes(LABELS) == [1, 2] and drawn_classes(["a", "_Background_"]) == [0]
    assert json.loads(json.dumps(part)) == part
    assert annotate(np.zeros((3, 4), dtype=np.int32), "b", "b", [0], 1.0)["regions"][0]["area"] == 12


# ---- There and back ----


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos & été")
    for name, mask in masks().items():
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", mask.shape[::-1], "gray").save(folder / f"{name}.png")
    return folder


def accept(path: Path):
    """What Label Studio exports once a person has submitted each prediction as it is."""
    tasks = json.loads(path.read_text(encoding="utf-8"))
    for number, task in enumerate(tasks):
        (prediction,) = task.pop("predictions")
        task |= {"id": number, "annotations": [{"id": number, "was_cancelled": False, "result": prediction["result"]}]}
    path.write_text(json.dumps(tasks), encoding="utf-8")


@pytest.mark.parametrize("tolerance", [0, 1.0])
@pytest.mark.parametrize("name", WRITERS)
def test_round_trip(name, tolerance, photos, tmp_path):
    export = tmp_path / "export"
    export.mkdir()
    parts = [annotate(mask, f"{one}.png", one, [1, 2], tolerance) for one, mask in masks().items()]
    WRITERS[name].write(iter(parts), export, LABELS, PALETTE)
    if name == "labelme":
        for part in parts:
            path = export / LABELME / f"{part['name']}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(labelme_content(part, path, LABELS, photos / part["image"])), encoding="utf-8")
    assert all((export / file).is_file() for file in WRITERS[name].files)
    assert not [path for path in export.rglob("*") if path.name.startswith(".")]
    if name == "label_studio":
        accept(export / "label_studio.json")
        (export / "classes.txt").write_text("".join(f"{label}\n" for label in LABELS), encoding="utf-8")
        config = ElementTree.parse(export / "label_studio_config.xml")
        assert [label.get("value") for label in config.iter("Label")] == LABELS
        assert [label.get("background") for label in config.iter("Label")] == ["#000000", "#ff8000", "#010203"]
    source = export / "labelme" if name == "labelme" else export
    found, read, files = read_export(source, images_dir=photos)
    assert found == name  # one tool has one name
    imported = write_folder(read, files, tmp_path / "data", empty_images="background")
    assert imported.classes.names == LABELS and not imported.events["cut"] and not imported.events["empty"]
    lost = 0
    for one, mask in masks().items():
        with Image.open(tmp_path / "data/masks/train" / f"{one}.png") as opened:
            changed = np.asarray(opened) != mask
        assert not changed.any() if not tolerance else not changed[~near_edges(mask, 1)].any(), one
        lost += int(changed.sum())
    assert lost == sum(part["lost"] for part in parts)
    assert imported.overlapped == 0 or tolerance


def test_coco_is_what_pycocotools_reads(tmp_path):
    from pycocotools.coco import COCO

    mask = special()
    part = annotate(mask, "special.png", "special", [1, 2], 0)
    WRITERS["coco"].write([part, part], tmp_path, LABELS, PALETTE)
    coco = COCO(tmp_path / "coco.json")
    assert [one["name"] for one in coco.loadCats(coco.getCatIds())] == LABELS
    again = np.zeros_like(mask)
    for one in coco.loadAnns(coco.getAnnIds(imgIds=[2])):
        inside = coco.annToMask(one).astype(bool)
        again[inside] = one["category_id"] - 1
        ys, xs = np.nonzero(inside)
        assert one["area"] == inside.sum()
        assert one["bbox"] == [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
    assert np.array_equal(again, mask) and len(coco.getImgIds()) == 2

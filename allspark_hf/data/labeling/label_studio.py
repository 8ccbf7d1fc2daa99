"""Label Studio: the JSON export (not JSON_MIN), a list of tasks."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np

from ...utils.files import image_suffixes
from .export import Canvas, Export, Picture, box_ring, ellipse_ring, naming, turned
from .files import Files, names_of


DRAWN = ("polygonlabels", "brushlabels", "rectanglelabels", "ellipselabels")
# Answers about a picture or a region. Any other type that is not drawn is refused, because the mask would lack it.
NOT_DRAWN = ("choices", "datetime", "number", "pairwise", "rating", "relation", "taxonomy", "textarea")
UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")  # what Label Studio puts before the name of an uploaded file
OPAQUE = 128  # least opacity, 0 to 255, of a pixel that belongs to a brush


def is_label_studio(content: Any) -> bool:
    """Whether the content of a json file is a list of Label Studio's tasks."""
    tasks = content if isinstance(content, list) and content else [None]
    return all(isinstance(task, dict) and "data" in task and "annotations" in task for task in tasks)


def read_label_studio(files: Files, sources: dict[Path, Any]) -> Export:
    """
    Reads polygons, brushes, rectangles and ellipses. A task that was submitted without regions shows no object; a task
    that was skipped or never submitted has no annotation. If a task has several annotations, the one marked as ground
    truth is read, or else the one changed last. Predictions are not read.
    """
    tasks = [(source, task) for source, content in sources.items() for task in content]
    chosen = [_choose(task["annotations"]) for _, task in tasks]
    regions = [region for annotation in chosen if annotation for region in annotation["result"]]
    drawn = [region for region in regions if region["type"] in DRAWN]  # other types have no labels, or no area
    used = {name for region in drawn for name in region["value"].get(region["type"], [])}
    names, note = names_of(files.root, used)
    index = {name: place for place, name in enumerate(names)}
    pictures = []
    for (source, task), annotation in zip(tasks, chosen, strict=True):
        image = _find(files, source, task)
        split = files.split_of(image)
        if annotation is None:
            pictures.append(Picture(image, source, split))
            continue
        regions = [region for region in annotation["result"] if region["type"] not in NOT_DRAWN]
        size = (regions[0]["original_height"], regions[0]["original_width"]) if regions else None
        paint = partial(_paint, task=task["id"], regions=regions, index=index)
        pictures.append(Picture(image, source, split, size, paint))
    notes = [note, *files.not_named(one.image for one in pictures)]
    if several := sum(len(_finished(task["annotations"])) > 1 for _, task in tasks):
        notes.append(
            f"{several} tasks have several annotations: the one marked as ground truth is read, or the newest."
        )
    return Export(names, pictures, notes=notes)


def _finished(annotations: list[dict]) -> list[dict]:
    return [annotation for annotation in annotations if not annotation.get("was_cancelled")]


def _choose(annotations: list[dict]) -> dict | None:
    def rank(annotation: dict) -> tuple:
        return bool(annotation.get("ground_truth")), str(annotation.get("updated_at", "")), annotation.get("id", 0)

    return max(_finished(annotations), key=rank, default=None)


def _find(files: Files, source: Path, task: dict) -> Path:
    """The file of a task's picture; Label Studio names the picture by an address."""
    for value in task["data"].values():
        if not isinstance(value, str):
            continue
        address = urlparse(value)
        name = unquote(address.query.removeprefix("d=") if "local-files" in address.path else address.path)
        if Path(name).suffix.lower() in image_suffixes():
            bare = UPLOAD.sub("", Path(name).name)
            return files.find(name if files.has(name) else bare, source)
    raise ValueError(f"{source}: task {task['id']} names no picture in its data; export tasks of images.")


def _paint(canvas: Canvas, task: int, regions: list[dict], index: dict[str, int]):
    names = sorted({str(region["to_name"]) for region in regions if "to_name" in region})
    if len(names) > 1:
        raise ValueError(
            f"task {task} has regions on {len(names)} pictures ({', '.join(names)}), but masks are of one; export "
            "tasks with one picture each"
        )
    for region in regions:
        with naming(f"task {task}, region {region.get('id')}"):
            _paint_region(canvas, region, index)


def _paint_region(canvas: Canvas, region: dict, index: dict[str, int]):
    height, width = canvas.mask.shape
    value, kind = region["value"], region["type"]
    if kind not in DRAWN:
        raise ValueError(f"a {kind} has no area or no label of its own; draw it with PolygonLabels or BrushLabels")
    if len(value.get(kind, [])) != 1:
        raise ValueError(f"it has {len(value.get(kind, []))} labels, but one is needed; choose one")
    if region.get("image_rotation"):
        raise ValueError(f"the picture was turned by {region['image_rotation']} degrees in Label Studio; turn it back")
    if (region["original_height"], region["original_width"]) != (height, width):
        raise ValueError("its regions were drawn on pictures of several sizes; draw it anew")
    label, scale = index[value[kind][0]], np.array([width, height]) / 100
    if kind == "polygonlabels":
        canvas.outline([np.array(value["points"], dtype=np.float64) * scale], label)
    elif kind == "brushlabels":
        flat = decode_brush(value["rle"])
        if flat.size != height * width * 4:
            raise ValueError(f"its brush covers {flat.size // 4} pixels, but the picture has {height * width}")
        canvas.paint(flat.reshape(height, width, 4)[..., 3] >= OPAQUE, label)
    elif kind == "rectanglelabels":
        corner, size = np.array([value["x"], value["y"]]), np.array([value["width"], value["height"]])
        ring = box_ring(*(corner * scale), *((corner + size) * scale))
        canvas.outline([turned(ring, ring[0], value.get("rotation", 0))], label)
    else:
        numbers = np.array([value[name] for name in ("x", "y", "radiusX", "radiusY")]) * np.tile(scale, 2)
        canvas.outline([ellipse_ring(*numbers, value.get("rotation", 0))], label)


def decode_brush(encoded: Sequence[int]) -> np.ndarray:
    """
    Decodes a brush of Label Studio, packed as by the npm package `@thi.ng/rle-pack`. It begins with the number of
    values (32 bits), the number of bits in a value less one (5 bits), and four sizes of lengths, each the number of
    bits less one (4 bits each). Then come blocks: whether one value repeats (1 bit), which of the four sizes the
    length has (2 bits), the length less one, and then the repeated value, or as many values as the length says.

    Args:
        encoded (`Sequence[int]`): the bytes, 0 to 255.

    Returns:
        `np.ndarray`: int64 (values,), 0 to 255: red, green, blue and opacity of each pixel, row by row.

    Raises:
        ValueError: if the brush is cut short, or packed in another way.
    """
    bits = np.unpackbits(np.array(encoded, dtype=np.uint8))
    place = 0

    def read(size: int, count: int = 1) -> np.ndarray:
        nonlocal place
        taken = bits[place : place + size * count]
        if taken.size < size * count:
            raise ValueError("a brush is cut short; export it anew")
        place += size * count
        return taken.reshape(count, size) @ (1 << np.arange(size - 1, -1, -1, dtype=np.int64))

    total, word = int(read(32)[0]), int(read(5)[0]) + 1
    sizes = [int(size) + 1 for size in read(4, 4)]
    parts, found = [], 0
    while found < total:
        repeats = read(1)[0]
        length = int(read(sizes[read(2)[0]])[0]) + 1
        parts.append(np.repeat(read(word), length) if repeats else read(word, length))
        found += length
    if found != total:
        raise ValueError("a brush holds more pixels than it says; export it anew")
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

"""LabelMe: a json file beside each picture."""

import base64
import io
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..sources.class_lists import IGNORED_NAME
from .export import Canvas, Export, Picture, box_ring, ellipse_ring, naming
from .files import Files, names_of


LIST = "labels.txt"


def is_labelme(content: Any) -> bool:
    """Whether the content of a json file is in LabelMe's form."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def read_labelme(files: Files, sources: dict[Path, Any]) -> Export:
    """
    Reads polygons, rectangles, circles and masks. A picture without a json file has no annotation; a picture whose
    file has no shapes shows no object. The label `__ignore__` means ignored pixels. If `labels.txt` lies in the folder
    of the json files or of the export, it lists the classes.
    """
    for source, content in sources.items():
        if any(shape["label"] is None for shape in content["shapes"]):
            raise ValueError(f"{source} has a shape without a label; give one in LabelMe.")
    used = {str(shape["label"]) for content in sources.values() for shape in content["shapes"]}
    beside = Path(os.path.commonpath([source.parent for source in sources]))
    names, note = names_of(beside if (beside / LIST).is_file() else files.root, used - {IGNORED_NAME})
    index = {name: place for place, name in enumerate(names)} | {IGNORED_NAME: None}
    pictures = {}
    for source, content in sources.items():
        image = files.find(content["imagePath"], source)
        if image in pictures:
            raise ValueError(f"{source} and {pictures[image].source} both annotate {image}; keep one of them.")
        height, width = content.get("imageHeight"), content.get("imageWidth")
        size = (height, width) if height and width else None
        paint = partial(_paint, shapes=content["shapes"], index=index)
        pictures[image] = Picture(image, source, files.split_of(image), size, paint)
    for image in files.images:
        if image not in pictures:
            own = image.with_suffix(".json")
            if own.is_file() and own not in sources:
                raise ValueError(f"{own} is not in LabelMe's form; save it anew, or remove it.")
            pictures[image] = Picture(image, image, files.split_of(image))
    return Export(names, list(pictures.values()), notes=[note])


def _paint(canvas: Canvas, shapes: list[dict], index: dict[str, int | None]):
    for number, shape in enumerate(shapes, 1):
        with naming(f"shape {number} ({shape['label']})"):
            _paint_shape(canvas, shape, index[str(shape["label"])])


def _paint_shape(canvas: Canvas, shape: dict, label: int | None):
    kind, points = shape.get("shape_type") or "polygon", np.array(shape["points"], dtype=np.float64)
    if kind in ("rectangle", "circle", "mask") and len(points) < 2:
        raise ValueError(f"a {kind} has {len(points)} points, but 2 are needed; complete or delete it")
    if kind == "polygon":
        canvas.outline([points], label)
    elif kind == "rectangle":
        canvas.outline([box_ring(*points.min(axis=0), *points.max(axis=0))], label)
    elif kind == "circle":
        radius = np.hypot(*(points[1] - points[0]))
        canvas.outline([ellipse_ring(*points[0], radius, radius)], label)
    elif kind == "mask":
        inside = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))).convert("L")) > 0
        canvas.paint(inside, label, *points[0].astype(int))
    else:
        raise ValueError(f"a {kind} has no area; draw a polygon, or delete it")

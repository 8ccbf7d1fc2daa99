"""Supervisely: `meta.json`, and datasets with a folder of pictures, `img`, and one of json files, `ann`."""

import base64
import io
import zlib
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from ...utils.files import read_json
from ...utils.text import one_line
from .export import Canvas, Export, Picture, box_ring, naming
from .files import Files, split_in


def is_supervisely(content: Any) -> bool:
    """Whether the content of a `meta.json` is Supervisely's."""
    classes = content.get("classes") if isinstance(content, dict) else None
    return isinstance(classes, list) and all(isinstance(one, dict) and "title" in one for one in classes)


def read_supervisely(files: Files, meta: Any) -> Export:
    """
    Reads polygons with holes, bitmaps and rectangles. Every picture has a json file, so the export does not tell
    whether somebody looked at a picture without objects.
    """
    names = [str(one["title"]) for one in meta["classes"]]
    index = {name: place for place, name in enumerate(names)}
    pictures = {}
    for source in sorted(files.root.rglob("ann/*.json")):
        content = read_json(source)
        split = split_in(source.relative_to(files.root).parts[:-1])
        image = files.find(f"img/{source.stem}", source, split)
        size = (content["size"]["height"], content["size"]["width"])
        objects = content["objects"]
        paint = partial(_paint, objects=objects, index=index) if objects else None
        pictures[source] = Picture(image, source, split, size, paint, may_be_empty=not objects)
    used = {picture.image for picture in pictures.values()}
    others = [image for image in files.images if image.parent.name == "img" and image not in used]
    unlabeled = [Picture(image, image, files.split_of(image)) for image in others]
    return Export(names, [*pictures.values(), *unlabeled])


def _paint(canvas: Canvas, objects: list[dict], index: dict[str, int]):
    for number, one in enumerate(objects, 1):
        name = one["classTitle"]
        if name not in index:
            raise ValueError(f"object {number} is of class {name!r}, which meta.json does not list; export it anew")
        with naming(f"object {number} ({name})"):
            _paint_object(canvas, one, index[name])


def _paint_object(canvas: Canvas, one: dict, label: int):
    kind = one["geometryType"]
    if kind == "polygon":
        canvas.outline([one["points"]["exterior"], *one["points"]["interior"]], label)
    elif kind == "rectangle":
        corners = np.array(one["points"]["exterior"], dtype=np.float64)
        canvas.outline([box_ring(*corners.min(axis=0), *corners.max(axis=0))], label)
    elif kind == "bitmap":
        left, top = one["bitmap"]["origin"]
        canvas.paint(_decode_bitmap(one["bitmap"]["data"]), label, int(left), int(top))
    else:
        raise ValueError(f"a {kind} has no area; draw a polygon, or delete it")


def _decode_bitmap(data: str) -> np.ndarray:
    """Bool (height, width) of a bitmap, a PNG in zlib in base64: opaque pixels, or without opacity those not black."""
    try:
        image = Image.open(io.BytesIO(zlib.decompress(base64.b64decode(data))), formats=["PNG"])
        image.load()
    except (ValueError, zlib.error, OSError) as error:
        raise ValueError(f"its bitmap cannot be read ({one_line(error)}); export it anew") from error
    return np.asarray(image.convert("RGBA").getchannel("A") if image.has_transparency_data else image.convert("L")) > 0

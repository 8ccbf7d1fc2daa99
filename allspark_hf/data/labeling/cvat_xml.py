"""CVAT for images 1.1: one xml file with the names of the pictures and their shapes."""

from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from .export import Canvas, Export, Picture, box_ring, ellipse_ring, naming, turned
from .files import Files, split_in
from .rasterize import expand_runs


DRAWN = ("polygon", "box", "ellipse", "mask")
NOT_DRAWN = "tag"  # a tag is about the whole picture


def is_cvat_xml(path: Path) -> bool:
    """Whether an xml file is CVAT's; only its beginning is read."""
    try:
        return next(ElementTree.iterparse(path, events=("start",)))[1].tag == "annotations"
    except (ElementTree.ParseError, StopIteration):
        return False


def read_cvat_xml(files: Files, source: Path) -> Export:
    """
    Reads polygons, boxes, ellipses and masks. They are painted in the order of `z_order`, and with equal `z_order` in
    the order of the file. The file does not tell whether somebody looked at a picture without shapes. Tags of whole
    pictures are not read.
    """
    try:
        root = ElementTree.parse(source).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{source} is no whole xml file ({error}); export it anew.") from error
    if root.find("track") is not None:
        raise ValueError(f"{source} is of CVAT for video; export the task as CVAT for images 1.1.")
    labels = [label for label in root.iterfind("meta/*/labels/label") if label.find("parent") is None]
    names = list(dict.fromkeys(label.findtext("name", "").strip() for label in labels))
    index = {name: place for place, name in enumerate(names)}
    pictures = []
    for image in root.iter("image"):
        shapes = [shape for shape in image if shape.tag != NOT_DRAWN]
        try:
            shapes.sort(key=lambda shape: int(shape.get("z_order", 0)))
            size = (int(image.attrib["height"]), int(image.attrib["width"]))
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{source}: image {image.get('name')} lacks height or width, or a z_order is no whole number ({error})"
                "; export it anew."
            ) from error
        split = split_in([image.get("subset") or ""])
        path = files.find(image.attrib["name"], source, split)
        split = split or files.split_of(path)
        paint = partial(_paint, shapes=shapes, index=index) if shapes else None
        pictures.append(Picture(path, source, split, size, paint, may_be_empty=not shapes))
    return Export(names, pictures, notes=files.not_named(picture.image for picture in pictures))


def _paint(canvas: Canvas, shapes: list[ElementTree.Element], index: dict[str, int]):
    for number, shape in enumerate(shapes, 1):
        name = shape.attrib["label"].strip()
        if name not in index:
            raise ValueError(f"a {shape.tag} has the label {name!r}, which the file does not list; export it anew")
        with naming(f"{shape.tag} {number} ({name})"):
            _paint_shape(canvas, shape, index[name])


def _paint_shape(canvas: Canvas, shape: ElementTree.Element, label: int):
    if shape.tag not in DRAWN:
        raise ValueError("such a shape has no area; draw a polygon, or delete it")
    if shape.tag == "polygon":
        canvas.outline([[pair.split(",") for pair in shape.attrib["points"].split(";")]], label)
    elif shape.tag == "mask":
        left, top, width, height = (int(float(shape.attrib[name])) for name in ("left", "top", "width", "height"))
        counts = [int(count) for count in shape.attrib["rle"].split(",")]
        canvas.paint(expand_runs(counts, height, width, by_rows=True), label, left, top)
    else:
        degrees = float(shape.get("rotation", 0))
        if shape.tag == "ellipse":
            numbers = [float(shape.attrib[name]) for name in ("cx", "cy", "rx", "ry")]
            canvas.outline([ellipse_ring(*numbers, degrees)], label)
        else:
            ring = box_ring(*(float(shape.attrib[name]) for name in ("xtl", "ytl", "xbr", "ybr")))
            canvas.outline([turned(ring, np.mean(ring, axis=0), degrees)], label)

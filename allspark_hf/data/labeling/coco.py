"""COCO: json files with `images`, `annotations` and `categories`; Roboflow, CVAT and others write them too."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .export import Canvas, Export, Picture, naming
from .files import Files, split_in
from .rasterize import expand_runs, parse_runs


def is_coco(content: Any) -> bool:
    """Whether the content of a json file is in COCO's form."""
    return isinstance(content, dict) and isinstance(content.get("images"), list) and "categories" in content


def read_coco(files: Files, sources: dict[Path, Any]) -> Export:
    """
    Reads one json file, or one for each split.

    The order of the classes is that of their ids, which may have gaps. An object is a list of rings, which are united
    as in pycocotools (a ring within a ring is no hole), or run lengths, compressed or not. Pixels of a crowd
    (`iscrowd`) are ignored, except where another object covers them. A category without objects that is the
    supercategory of another one is no class.
    """
    notes, sources = [], dict(sources)
    for source, content in list(sources.items()):
        about = "keypoints" if any("keypoints" in entry for entry in content["categories"]) else None
        if any("segments_info" in one for one in content.get("annotations") or []):
            about = "panoptic segments"
        if len(sources) > 1 and about:
            del sources[source]  # another json file lists the same pictures
            notes.append(f"Left alone: {source}, which is about {about}.")
    annotations = [one for content in sources.values() for one in content.get("annotations") or []]
    names = _read_names(sources)
    groups = _groups(names, sources) - {one.get("category_id") for one in annotations}
    if groups:
        listed = ", ".join(names.pop(number) for number in sorted(groups))
        notes.append(f"Left out, because they only group other categories and have no objects: {listed}.")
    order = sorted(names)
    index = {number: place for place, number in enumerate(order)}
    pictures = [one for source, content in sources.items() for one in _read_file(files, source, content, index)]
    if order and order[-1] - order[0] >= len(order):
        notes.append(f"The category ids have gaps (up to {order[-1]}): classes are numbered in their order.")
    crowds = [one for one in annotations if one.get("iscrowd")]
    if crowds:
        notes.append(
            f"Objects marked as crowds (iscrowd), whose pixels are ignored: {len(crowds)}. CVAT marks every mask as a "
            "crowd: if they are none, export CVAT for images 1.1."
        )
    notes += files.not_named(picture.image for picture in pictures)
    return Export([names[number] for number in order], pictures, notes=notes)


def _read_names(sources: dict[Path, Any]) -> dict[int, str]:
    """The name of each category, by its id."""
    names: dict[int, str] = {}
    for source, content in sources.items():
        for entry in content["categories"]:
            if not isinstance(entry["id"], int) or entry["name"] is None:
                raise ValueError(
                    f"{source}: a category has the id {entry['id']!r} and the name {entry['name']!r}, but a whole "
                    "number and a name are needed; export it anew."
                )
            name = names.setdefault(entry["id"], str(entry["name"]))
            if name != str(entry["name"]):
                raise ValueError(
                    f"{source}: category {entry['id']} is {entry['name']!r}, but elsewhere {name!r}; give "
                    "each its own id, and export the files of the splits from one project."
                )
    return names


def _groups(names: dict[int, str], sources: dict[Path, Any]) -> set[int]:
    """The ids of categories that are the supercategory of another one."""
    entries = [entry for content in sources.values() for entry in content["categories"]]
    return {
        number
        for number, name in names.items()
        if any(entry["id"] != number and entry.get("supercategory") == name for entry in entries)
    }


def _read_file(files: Files, source: Path, content: dict, index: dict[int, int]) -> list[Picture]:
    split = split_in(source.relative_to(files.root).with_suffix("").parts)
    by_image: dict[Any, list[dict]] = {image["id"]: [] for image in content["images"]}
    if len(by_image) < len(content["images"]):
        raise ValueError(f"{source}: two images have the same id; export it anew.")
    for annotation in content.get("annotations") or []:
        where = f"{source}: annotation {annotation.get('id')}"
        if annotation.get("image_id") not in by_image:
            raise ValueError(f"{where} is of image {annotation.get('image_id')}, which is not listed; export it anew.")
        if annotation.get("category_id") not in index:
            raise ValueError(
                f"{where} is of category {annotation.get('category_id')}, which is not listed; add it to categories."
            )
        by_image[annotation["image_id"]].append(annotation)
    pictures = []
    for image in content["images"]:
        path = files.find(str(image["file_name"]), source, split)
        own_split = split or files.split_of(path)
        size = (image["height"], image["width"]) if "height" in image and "width" in image else None
        objects = sorted(by_image[image["id"]], key=lambda one: not one.get("iscrowd"))  # the sort is stable
        paint = partial(_paint, objects=objects, index=index) if objects else None
        pictures.append(Picture(path, source, own_split, size, paint, may_be_empty=not objects))
    return pictures


def _paint(canvas: Canvas, objects: list[dict], index: dict[int, int]):
    for one in objects:
        label = None if one.get("iscrowd") else index[one["category_id"]]
        with naming(f"annotation {one.get('id')}"):
            _paint_object(canvas, one.get("segmentation"), label)


def _paint_object(canvas: Canvas, segmentation: Any, label: int | None):
    if not segmentation:
        raise ValueError("it has a box or a point but no outline; draw one, or delete the annotation")
    if isinstance(segmentation, dict):
        height, width = canvas.mask.shape
        if list(segmentation.get("size", (height, width))) != [height, width]:
            raise ValueError(
                f"its run lengths are of a mask of size {segmentation['size']}, but the picture has [{height}, "
                f"{width}] (height, width); export them at the size of the picture"
            )
        counts = segmentation["counts"]
        canvas.paint(expand_runs(parse_runs(counts) if isinstance(counts, str) else counts, height, width), label)
        return
    for ring in segmentation:
        if len(ring) % 2:
            raise ValueError(f"an outline has {len(ring)} numbers, but pairs of x and y are needed; export it anew")
    canvas.outline([np.reshape(ring, (-1, 2)) for ring in segmentation], label, unite=True)

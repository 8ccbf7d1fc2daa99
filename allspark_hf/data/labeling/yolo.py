"""YOLO segmentation: `data.yaml`, and for each picture a text file whose lines are a class and a polygon."""

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ...utils.files import read_text
from ...utils.text import one_line
from ..sources.classes import read_classes
from ..sources.split_names import split_of
from .export import Canvas, Export, Picture, naming
from .files import Files


PICTURES, LABELS = "images", "labels"
OUTLINE = re.compile(r"\s*\d+(\s+[-+.\deE]+){4}")  # how labels begin, unlike other text beside pictures
SHOWN = 1000


def is_yolo(content: Any) -> bool:
    """Whether the content of a yaml file names classes and folders as YOLO does."""
    return isinstance(content, dict) and "names" in content and any(map(split_of, map(str, content)))


def read_yaml(path: Path) -> Any:
    """
    The content of a yaml file.

    Raises:
        ValueError: if it is not valid.
    """
    try:
        return yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no valid YAML ({one_line(error)}); correct it.") from error


def read_yolo(files: Files, source: Path) -> Export:
    """
    Reads the pictures that a `data.yaml` lists, by folders or by text files with a picture on each line. With the
    `classes.txt` that Label Studio writes instead, all pictures are read.

    The labels of `…/images/NAME.jpg` are in `…/labels/NAME.txt`. A line has a class index, then x and y of each point
    as a share of width and height of the upright picture. An empty file means that the picture shows no object. A
    picture without a file has no annotation, or shows no object.
    """
    classes = read_classes(source).names
    _require_outlines_and_one_list(source, classes)
    pictures, used = [], set()
    for image, split in _list_all(files, source):
        labels = _labels_of(image)
        used.add(labels)
        lines = read_text(labels).splitlines() if labels.is_file() else None
        paint = None if lines is None else partial(_paint, lines=lines, num_classes=len(classes))
        pictures.append(Picture(image, labels if lines else source, split, None, paint, lines is None))
    beside = {path for folder in {labels.parent for labels in used} for path in folder.glob("*.txt")}
    beside = {path for path in beside if OUTLINE.match(path.read_bytes()[:SHOWN].decode(errors="replace"))}
    orphans = sorted({*files.root.rglob(f"{LABELS}/**/*.txt"), *beside} - used)
    orphans = [path for path in orphans if path.name != "classes.txt"]  # labelImg writes this file beside the labels
    if orphans:
        raise ValueError(
            f"{orphans[0]} labels no picture that {source} lists ({len(orphans)} such files); put the picture there, "
            "list its folder, or remove the labels."
        )
    return Export(classes, pictures, notes=files.not_named(picture.image for picture in pictures))


def _require_outlines_and_one_list(source: Path, classes: list[str]):
    """Raises `ValueError` for keypoints, if `nc` is not the number of names, or if `classes.txt` lists other names."""
    content = read_yaml(source) if source.suffix != ".txt" else {}
    if "kpt_shape" in content:  # some lines of keypoints look like polygons
        raise ValueError(f"{source} is about keypoints (kpt_shape), which have no area; export segmentation.")
    count = content.get("nc")
    if count not in (None, len(classes)):
        raise ValueError(f"{source} says that there are {count} classes (nc), but names {len(classes)}; correct it.")
    other = source.with_name("classes.txt")
    if other.is_file() and read_classes(other).names != classes:
        raise ValueError(f"{source} and {other} list different classes; remove one of them.")


def _list_all(files: Files, source: Path) -> Iterator[tuple[Path, str | None]]:
    """The pictures with their splits; a picture that is listed twice comes twice."""
    if source.suffix == ".txt":
        yield from ((image, files.split_of(image)) for image in files.images)
        return
    content = read_yaml(source)
    for key, places in content.items():
        if split_of(str(key)) and places:
            for place in places if isinstance(places, list) else [places]:
                for image in _list_pictures(files, source, content.get("path"), str(place)):
                    yield image, split_of(str(key))


def _list_pictures(files: Files, source: Path, base: str | None, place: str) -> list[Path]:
    """The pictures of a folder or a list that the yaml file names, perhaps by a path of another machine."""
    inner = Path(*(part for part in Path(place.replace("\\", "/")).parts if part not in ("..", "/")))
    candidates = [source.parent / (base or "") / place, source.parent / place, source.parent / inner]
    candidates = [Path(os.path.normpath(path)) for path in candidates]
    found = next((path for path in candidates if path.exists() and path.is_relative_to(files.root)), None)
    if found is None:
        raise FileNotFoundError(f"{source} names {place}, which is not in {source.parent}; put it there, or edit it.")
    if found.is_dir():
        pictures = [path for path in files.images if path.is_relative_to(found)]
        if not pictures:
            raise FileNotFoundError(f"{source} names {place}, but there is no picture in {found}; put them there.")
        return pictures
    return [files.find(line.strip(), found) for line in read_text(found).splitlines() if line.strip()]


def _labels_of(image: Path) -> Path:
    """The path of a picture's labels: the last `images` in the path becomes `labels`; if there is none, beside it."""
    parts = list(image.parts)
    places = [place for place, part in enumerate(parts[:-1]) if part == PICTURES]
    if places:
        parts[places[-1]] = LABELS
    return Path(*parts).with_suffix(".txt")


def _paint(canvas: Canvas, lines: list[str], num_classes: int):
    height, width = canvas.mask.shape
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            label, *numbers = map(float, line.split())
        except ValueError:
            raise ValueError(f"line {number} ({line[:40]}) holds something that is no number; correct it") from None
        if label not in range(num_classes):
            raise ValueError(f"line {number} is of class {label:g}, but there are classes 0 to {num_classes - 1}")
        if len(numbers) == 4:
            raise ValueError(
                f"line {number} has four numbers after the class, which is a box and no outline; export segmentation"
            )
        if len(numbers) % 2:
            raise ValueError(f"line {number} has {len(numbers)} numbers after the class, but pairs are needed")
        with naming(f"line {number}"):
            canvas.outline([np.reshape(numbers, (-1, 2)) * (width, height)], int(label))

"""Writes outlines for labeling tools, in which a person corrects predictions: one function for each tool.

All functions have the same arguments, and keep one image at a time in memory:

- parts (`Iterable[dict]`): results of [`~allspark_hf.data.labeling.polygons.annotate`], one for each image.
- folder (`Path`): existing folder for the files that [`WRITERS`] names.
- labels (`Sequence[str]`): name of each class.
- palette (`Sequence[Sequence[int]]`): color of each class: red, green and blue, 0 to 255.

LabelMe also has a file for each image, in the folder `labelme`.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple, TextIO
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

from ...utils.files import whole_file
from ..sources.class_lists import IGNORED_NAME


LABELME = "labelme"
Colors = Sequence[Sequence[int]]


@contextmanager
def _whole(path: Path) -> Iterator[TextIO]:
    with whole_file(path) as part, open(part, "w", encoding="utf-8") as file:
        yield file


def _dump(value) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _hex(color: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def write_coco(parts: Iterable[dict], folder: Path, labels: Sequence[str], palette: Colors):
    """COCO; category 1 is the first class. A region with holes is a single ring, so that no tool needs run lengths."""
    categories = [{"id": index + 1, "name": name, "supercategory": ""} for index, name in enumerate(labels)]
    number = 0
    with _whole(folder / "coco.json") as file, TemporaryFile("w+", encoding="utf-8") as images:
        file.write(f'{{"categories":{_dump(categories)},\n"annotations":[')
        for image_id, part in enumerate(parts, 1):
            entry = {"id": image_id, "file_name": part["image"], "width": part["width"], "height": part["height"]}
            images.write(f"{',' if image_id > 1 else ''}\n{_dump(entry)}")
            for region in part["regions"]:
                number += 1
                xs, ys = zip(*region["ring"], strict=True)
                annotation = {
                    "id": number,
                    "image_id": image_id,
                    "category_id": region["label"] + 1,
                    "segmentation": [[value for point in region["ring"] for value in point]],
                    "area": region["area"],
                    "bbox": [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)],
                    "iscrowd": 0,
                }
                file.write(f"{',' if number > 1 else ''}\n{_dump(annotation)}")
        file.write('],\n"images":[')
        images.seek(0)
        for line in images:
            file.write(line)
        file.write("]}\n")


def write_cvat(parts: Iterable[dict], folder: Path, labels: Sequence[str], palette: Colors):
    """CVAT for images 1.1, to upload as annotations of a task with the same images and labels."""
    with _whole(folder / "cvat.xml") as file:
        file.write(
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n<meta><task><labels>\n'
        )
        for name, color in zip(labels, palette, strict=True):
            file.write(f"<label><name>{escape(name)}</name><color>{_hex(color)}</color><attributes/></label>\n")
        file.write("</labels></task></meta>\n")
        for number, part in enumerate(parts):
            size = f'width="{part["width"]}" height="{part["height"]}"'
            file.write(f'<image id="{number}" name={quoteattr(part["image"])} {size}>\n')
            for region in part["regions"]:
                points = ";".join(f"{x:.2f},{y:.2f}" for x, y in region["ring"])
                label = quoteattr(labels[region["label"]])
                file.write(f'<polygon label={label} source="auto" occluded="0" points="{points}" z_order="0"/>\n')
            file.write("</image>\n")
        file.write("</annotations>\n")


def write_label_studio(parts: Iterable[dict], folder: Path, labels: Sequence[str], palette: Colors):
    """Label Studio: tasks with predictions, and the labeling configuration for them."""
    with _whole(folder / "label_studio_config.xml") as file:
        file.write('<View>\n<Image name="image" value="$image"/>\n<PolygonLabels name="label" toName="image">\n')
        for name, color in zip(labels, palette, strict=True):
            file.write(f'<Label value={quoteattr(name)} background="{_hex(color)}"/>\n')
        file.write("</PolygonLabels>\n</View>\n")
    with _whole(folder / "label_studio.json") as file:
        file.write("[")
        for number, part in enumerate(parts):
            address = f"/data/local-files/?d={quote(part['image'])}"
            result = [_result(place, region, part, labels) for place, region in enumerate(part["regions"])]
            task = {"data": {"image": address}, "predictions": [{"model_version": "allspark", "result": result}]}
            file.write(f"{',' if number else ''}\n{_dump(task)}")
        file.write("]\n")


def _result(place: int, region: dict, part: dict, labels: Sequence[str]) -> dict:
    """A polygon of Label Studio, which has coordinates in percent of the image."""
    width, height = part["width"], part["height"]
    points = [[round(100 * x / width, 8), round(100 * y / height, 8)] for x, y in region["ring"]]
    return {
        "id": f"region{place}",
        "type": "polygonlabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {"points": points, "closed": True, "polygonlabels": [labels[region["label"]]]},
    }


def labelme_content(part: dict, path: Path, labels: Sequence[str], image: Path) -> dict:
    """
    The content of LabelMe's file, at `path`, of one image: from a result of
    [`~allspark_hf.data.labeling.polygons.annotate`] and the name of each class. The file holds the path of the image
    relative to its own.
    """
    shapes = [
        {
            "label": labels[region["label"]],
            "points": region["ring"],
            "group_id": None,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
        }
        for region in part["regions"]
    ]
    way = Path(os.path.relpath(image, path.parent)).as_posix()
    size = {"imageHeight": part["height"], "imageWidth": part["width"]}
    return {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": way, "imageData": None, **size}


def write_labelme_names(parts: Iterable[dict], folder: Path, labels: Sequence[str], palette: Colors):
    """LabelMe: only the list for its `--labels`, since the file of each image exists and may be corrected by now."""
    (folder / LABELME).mkdir(exist_ok=True)
    with _whole(folder / LABELME / "labels.txt") as file:
        file.writelines(f"{name}\n" for name in (IGNORED_NAME, *labels))


class Writer(NamedTuple):
    """The files that a tool has for all images together, and the function that writes them."""

    files: tuple[str, ...]
    write: Callable[[Iterable[dict], Path, Sequence[str], Colors], None]


WRITERS = {
    "coco": Writer(("coco.json",), write_coco),
    "cvat": Writer(("cvat.xml",), write_cvat),
    "label_studio": Writer(("label_studio.json", "label_studio_config.xml"), write_label_studio),
    "labelme": Writer((f"{LABELME}/labels.txt",), write_labelme_names),
}

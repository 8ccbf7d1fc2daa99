"""Which labeling tool wrote an export."""

import os
import shlex
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ...utils.files import MASK_SUFFIXES, is_hidden, read_json
from ..pixels import open_image
from ..sources.classes import Classes, classes_in, read_classes
from ..sources.folder import FolderLayout
from ..sources.pairs import visible_paths
from ..sources.split_names import subfolders
from .coco import is_coco, read_coco
from .cvat_xml import is_cvat_xml, read_cvat_xml
from .export import Export
from .files import Files
from .label_studio import is_label_studio, read_label_studio
from .labelme import is_labelme, read_labelme
from .masks import (
    ROBOFLOW_CLASSES,
    ROBOFLOW_END,
    read_color_masks,
    read_cvat_masks,
    read_numbered_objects,
    read_roboflow_masks,
)
from .supervisely import is_supervisely, read_supervisely
from .yolo import LABELS, PICTURES, is_yolo, read_yaml, read_yolo


FORMATS = {
    "coco": "COCO (json with images, annotations and categories)",
    "yolo": "YOLO segmentation (data.yaml)",
    "labelme": "LabelMe (a json file beside each picture)",
    "cvat": "CVAT for images 1.1 (xml)",
    "cvat_masks": "CVAT segmentation masks (labelmap.txt and SegmentationClass/)",
    "label_studio": "Label Studio (JSON)",
    "supervisely": "Supervisely (meta.json)",
    "roboflow_masks": "Roboflow semantic masks (_classes.csv)",
    "color_masks": "folders of images and masks, with a list of classes and their colors",
    "numbered_objects": "images and masks that number objects, in folders or as Cellpose names them (with --format "
    "numbered_objects)",
}
JSON_FORMATS = {
    "coco": (is_coco, read_coco),
    "labelme": (is_labelme, read_labelme),
    "label_studio": (is_label_studio, read_label_studio),
}
COLORED = ("RGB", "RGBA")
Reader = Callable[[Files], Export]


@contextmanager
def unpacked(source: Path) -> Iterator[Path]:
    """
    The folder of an export. An archive (zip, tar) is unpacked into a temporary folder, and outer folders that hold
    nothing but one folder are left out. Another file or folder stays as it is.
    """
    with tempfile.TemporaryDirectory(prefix="allspark-import-") as folder:
        if source.is_file() and zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                archive.extractall(folder)
        elif source.is_file() and tarfile.is_tarfile(source):
            with tarfile.open(source) as archive:
                archive.extractall(folder, filter="data")
        else:
            yield source
            return
        root = Path(folder)
        shutil.rmtree(root / "__MACOSX", ignore_errors=True)  # a Mac adds this folder
        while len(inner := [path for path in root.iterdir() if not is_hidden(path.name)]) == 1 and inner[0].is_dir():
            root = inner[0]
        yield root


def find_readers(source: Path, classes: Classes | None = None) -> dict[str, Reader]:
    """
    The readers that fit an export, by the names of [`FORMATS`]; usually one. Masks in colors whose folder has no list
    of classes need `classes` with colors.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if a file is broken: no JSON, YAML or list of classes.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; name the folder, archive or file of an export.")
    paths = [source] if source.is_file() else [path for path, _ in visible_paths(source) if path.is_file()]
    by_suffix: dict[str, list[Path]] = {}
    for path in paths:
        by_suffix.setdefault(path.suffix.lower().replace("yml", "yaml"), []).append(path)
    found = _by_folders(source, paths, classes)
    lists = [path for path in by_suffix.get(".yaml", []) if is_yolo(read_yaml(path))]
    if len(lists) > 1:
        raise ValueError(f"{source} holds several yaml files of YOLO, {lists[0]} and {lists[1]}; give one of them.")
    if lists:
        found["yolo"] = partial(read_yolo, source=lists[0])
    for path in by_suffix.get(".xml", []):
        if is_cvat_xml(path):
            if "cvat" in found:
                raise ValueError(f"{source} holds several xml files of CVAT, one of them {path}; give one of them.")
            found["cvat"] = partial(read_cvat_xml, source=path)
    if "supervisely" not in found:
        found |= _by_json(by_suffix.get(".json", []))
    return found


def _by_json(paths: list[Path]) -> dict[str, Reader]:
    sources: dict[str, dict[Path, Any]] = {}
    for path in paths:
        content = read_json(path)
        for name, (fits, _) in JSON_FORMATS.items():
            if fits(content):
                if name == "labelme":
                    content.pop("imageData", None)  # the picture itself; thousands of them do not fit into memory
                sources.setdefault(name, {})[path] = content
    return {name: partial(JSON_FORMATS[name][1], sources=own) for name, own in sources.items()}


def _by_folders(source: Path, paths: list[Path], classes: Classes | None) -> dict[str, Reader]:
    found: dict[str, Reader] = {}
    if not source.is_dir():
        return found
    meta = source / "meta.json"
    if meta.is_file() and is_supervisely(content := read_json(meta)):
        found["supervisely"] = partial(read_supervisely, meta=content)
    label_map = source / "labelmap.txt"
    if label_map.is_file() and (source / "SegmentationClass").is_dir():
        found["cvat_masks"] = partial(read_cvat_masks, classes=read_classes(label_map))
    has_classes = (source / "classes.txt").is_file() and (source / PICTURES).is_dir()
    if has_classes and any((source / LABELS).glob("*.txt")):
        found["yolo"] = partial(read_yolo, source=source / "classes.txt")
    names = [path.name for path in paths]
    if ROBOFLOW_CLASSES in names and any(name.endswith(ROBOFLOW_END) for name in names):
        found["roboflow_masks"] = read_roboflow_masks
    if not found and _has_color_masks(source):
        classes = classes or classes_in(source)
        if classes is not None and classes.colors is not None:
            found["color_masks"] = partial(read_color_masks, classes=classes)
    return found


def _has_color_masks(source: Path) -> bool:
    """Whether a folder holds folders of images and masks, and the first mask is a picture in colors."""
    try:
        masks = FolderLayout(source).pairs("train").masks
    except (OSError, ValueError):
        return False
    return any(map(_is_colored, list(masks.values())[:1]))


def _is_colored(mask: Path) -> bool:
    """Whether a mask is a picture in colors."""
    try:
        with open_image(mask) as opened:
            return opened.mode in COLORED
    except (OSError, ValueError):
        return False


def read_export(
    source: Path, name: str | None = None, images_dir: Path | None = None, classes: Classes | None = None
) -> tuple[str, Export, Files]:
    """
    Reads an export, a folder or its json, xml or yaml file; masks are painted later.

    Args:
        source (`Path`): the folder or file.
        name (`str`, *optional*): one of [`FORMATS`]; `None`: the format that the files show.
        images_dir (`Path`, *optional*): folder of the pictures, if they do not lie with the export.
        classes ([`Classes`], *optional*): see [`find_readers`].

    Returns:
        `tuple[str, Export, Files]`: the format's name, what the export holds, and its files.

    Raises:
        FileNotFoundError: if the export, or a picture of it, is missing.
        ValueError: if the export has no known form, or several, or is not whole.
    """
    source = Path(os.path.abspath(source))
    images_dir = images_dir and Path(os.path.abspath(images_dir))
    readers = find_readers(source, classes)
    if name == "numbered_objects" and source.is_dir():  # nothing but the user can tell such masks from class indices
        readers[name] = read_numbered_objects
    if name is None and len(readers) != 1:
        if readers:
            raise ValueError(f"{source} may be read as {' or '.join(readers)}: choose with --format.")
        raise ValueError(f"{source} is no export of a known form: {'; '.join(FORMATS.values())}.")
    name = name or next(iter(readers))
    if name not in readers:
        found = f"{' and '.join(readers)} was found" if readers else "nothing known was found"
        raise ValueError(f"{source} holds no export of the form {FORMATS[name]}; {found}.")
    files = Files(source if source.is_dir() else source.parent, images_dir)
    try:
        export = readers[name](files)
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError) as error:
        raise ValueError(
            f"{source} is not a whole export of the form {FORMATS[name]} ({type(error).__name__}: {error}); export it "
            "anew."
        ) from error
    if not export.pictures:
        raise ValueError(f"{source} names no picture; export a project that has some.")
    return name, export, files


def find_export(source: Path) -> str | None:
    """
    The format, one of [`FORMATS`], that the files of a folder show; `None` if they show none.

    Raises:
        OSError, ValueError: if a file cannot be read, or the files show several formats.
    """
    readers = list(find_readers(source))
    if len(readers) > 1:
        raise ValueError(
            f"it may be {' or '.join(readers)}; choose with `allspark import {shlex.quote(str(source))} NEW_FOLDER "
            "--format FORMAT`, and give NEW_FOLDER."
        )
    return next(iter(readers), None)


def holds_indices(masks: Path) -> bool:
    """Whether a folder holds masks of class indices; `annotations` often holds json, and `masks` colors."""
    paths = (path for path in masks.rglob("*") if path.suffix.lower() in MASK_SUFFIXES and not is_hidden(path.name))
    mask = next(paths, None)
    return mask is not None and not _is_colored(mask)


def recognize_export(data_dir: Path) -> str | None:
    """
    The format, one of [`FORMATS`], of an export whose folders look like those of a data folder or of VOC; `None` if
    the folder is none. Only names and one mask are looked at, which takes no time.
    """
    label_map, mask = data_dir / "labelmap.txt", next((data_dir / "SegmentationClass").rglob("*.png"), None)
    if label_map.is_file() and mask is not None:
        return "cvat_masks" if _is_colored(mask) else None
    places = (f"{LABELS}/*.txt", f"{LABELS}/*/*.txt", f"*/{LABELS}/*.txt")
    has_classes = any((data_dir / name).is_file() for name in ("data.yaml", "classes.txt"))
    if has_classes and any(any(data_dir.glob(place)) for place in places):
        has_masks = any((folder / "masks").is_dir() for folder in (data_dir, *subfolders(data_dir).values()))
        return None if has_masks else "yolo"
    return None

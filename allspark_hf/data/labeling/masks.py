"""Masks that are pictures: with colors from a list (CVAT and others), class indices (Roboflow) or numbered objects."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ...utils.files import read_text
from ...utils.text import one_line
from ..images import decode, describe_values, mask_to_array
from ..pixels import open_image
from ..sources.class_lists import Color
from ..sources.classes import Classes, read_classes
from ..sources.folder import FolderLayout
from ..sources.pairs import nfc, require_images
from ..sources.split_names import find_kinds, split_of
from .export import Canvas, Export, Picture
from .files import Files


ROBOFLOW_CLASSES, ROBOFLOW_END = "_classes.csv", "_mask.png"
CELLPOSE_END = "_cp_masks"
CELLPOSE_EXTRAS = ("_cp_output", "_cp_outlines", "_outlines", "_flows", "_dP")  # of pictures beside the masks


def read_cvat_masks(files: Files, classes: Classes) -> Export:
    """
    Reads CVAT's "Segmentation mask 1.1": `SegmentationClass/*.png` with the colors of `labelmap.txt`, the pictures in
    `JPEGImages`, and lists in `ImageSets/Segmentation` whose names may mean splits. A picture without a mask has no
    annotation.
    """
    masks_dir = files.root / "SegmentationClass"
    pictures_dir = files.folder if files.folder != files.root else files.root / "JPEGImages"
    splits = {}
    for path in sorted((files.root / "ImageSets" / "Segmentation").glob("*.txt")):
        names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        for name in names:
            if splits.setdefault(nfc(name), split_of(path.stem)) != split_of(path.stem):
                raise ValueError(f"{path} names {name}, which a list of another split names too; keep it in one.")
    pictures, used, known = [], [], set()
    for image in files.images:
        if image.is_relative_to(pictures_dir) and not image.is_relative_to(masks_dir):
            name = image.relative_to(pictures_dir).with_suffix("").as_posix()
            mask = masks_dir / f"{name}.png"
            used.append(mask)
            known.add(nfc(name))
            split, paint = splits.get(nfc(name)), partial(_paint_colors, colors=classes.colors)
            pictures.append(_picture(image, mask if mask.is_file() else None, split, paint))
    if missing := sorted(splits.keys() - known):
        raise ValueError(
            f"{files.root / 'ImageSets' / 'Segmentation'} lists {missing[0]}, of which there is no picture in "
            f"{pictures_dir} ({len(missing)} such names); export with the pictures, or give --images_dir."
        )
    require_images(
        sorted(masks_dir.rglob("*.png")), used, "export with the pictures, or name their folder with --images_dir"
    )
    return _colored(pictures, classes)


def read_color_masks(files: Files, classes: Classes) -> Export:
    """Reads folders like those of training ([`FolderLayout`]), but with colors in the masks."""
    pictures, notes = _read_folders(files.root, partial(_paint_colors, colors=classes.colors))
    return replace(_colored(pictures, classes), notes=notes)


def read_numbered_objects(files: Files) -> Export:
    """
    Reads masks that hold 0 for the background and 1, 2, 3 and so on for single objects; 255 is an object too. They lie
    in folders like those of training ([`FolderLayout`]), or beside the pictures as `NAME_cp_masks.png`, where Cellpose
    writes them.
    """
    is_beside = "masks" not in find_kinds(files.root) and any(map(_is_of_cellpose, files.images))
    pictures, notes = _read_cellpose(files) if is_beside else _read_folders(files.root, _paint_objects)
    notes += ["Objects that touch each other become one area, since masks of classes do not tell them apart."]
    return Export(["background", "object"], pictures, is_dense=True, notes=notes)


def _is_of_cellpose(path: Path) -> bool:
    return path.stem.endswith(CELLPOSE_END)


def _read_cellpose(files: Files) -> tuple[list[Picture], list[str]]:
    """The pictures that Cellpose's masks lie beside, without other pictures that it wrote about these."""
    pictures = [path for path in files.images if not _is_of_cellpose(path)]
    extras = {path.with_suffix("").with_name(path.stem + end) for path in pictures for end in CELLPOSE_EXTRAS}
    written = {
        path.with_name(path.stem.removesuffix(CELLPOSE_END)): path for path in filter(_is_of_cellpose, files.images)
    }
    masks = {name: path for name, path in written.items() if name not in extras}
    require_images(sorted(masks.values()), [masks.get(path.with_suffix("")) for path in pictures])
    found = [(path, masks.get(path.with_suffix(""))) for path in pictures if path.with_suffix("") not in extras]
    return [_picture(image, mask, files.split_of(image), _paint_objects) for image, mask in found], []


def _read_folders(root: Path, paint: Callable[..., None]) -> tuple[list[Picture], list[str]]:
    """The pictures of a data folder, with those of its test split, and notes about what is left alone."""
    layout = FolderLayout(root)
    layout.use_test_split()
    pictures = []
    for split in layout.places:
        pairs, own = layout.pairs(split), split if len(layout.places) > 1 else None
        masks = {} if split == "unlabeled" else pairs.masks  # training too hides the masks of such images
        pictures += [_picture(image, masks.get(name), own, paint) for name, image in pairs.images.items()]
    return pictures, [layout.left_alone] if layout.left_alone else []


def read_roboflow_masks(files: Files) -> Export:
    """
    Reads Roboflow's "Semantic Segmentation Masks": a folder for each split, in which `NAME_mask.png` has the class
    indices of `NAME.jpg`, and `_classes.csv` the names of the classes.
    """
    lists = sorted(files.root.rglob(ROBOFLOW_CLASSES))
    classes = read_classes(lists[0])
    for path in lists[1:]:
        if read_classes(path).names != classes.names:
            raise ValueError(f"{path} and {lists[0]} list different classes; export the splits from one version.")
    pictures, used = [], []
    for image in files.images:
        if image.name.endswith(ROBOFLOW_END):
            continue
        mask = image.with_name(f"{image.stem}{ROBOFLOW_END}")
        used.append(mask)
        split = files.split_of(image)
        paint = partial(_paint_indices, num_classes=len(classes.names))
        pictures.append(_picture(image, mask if mask.is_file() else None, split, paint))
    require_images(sorted(files.root.rglob(f"*{ROBOFLOW_END}")), used)
    return Export(classes.names, pictures, is_dense=True)


def _colored(pictures: list[Picture], classes: Classes) -> Export:
    if classes.colors is None:
        raise ValueError(
            "The list of classes has no colors, but the masks hold colors; write `name r g b` on each of its lines."
        )
    first: dict[Color, str] = {}
    for name, color in zip(classes.names, classes.colors, strict=True):
        if first.setdefault(color, name) != name:
            raise ValueError(
                f"The classes {first[color]!r} and {name!r} have the same color, {' '.join(map(str, color))}, so that "
                "masks cannot tell them apart; give each its own, and export anew."
            )
    return Export(classes.names, pictures, is_dense=True, colors=classes.colors)


def _picture(image: Path, mask: Path | None, split: str | None, paint: Callable[..., None]) -> Picture:
    if mask is None:
        return Picture(image, image, split)
    try:
        with open_image(mask) as opened:
            width, height = opened.size
    except OSError as error:
        raise ValueError(f"{mask} cannot be read ({one_line(error)}); export it anew.") from error
    return Picture(image, mask, split, (height, width), partial(paint, path=mask))


def _paint_colors(canvas: Canvas, path: Path, colors: list[Color]):
    rgb = np.asarray(decode({"path": str(path), "bytes": None}, is_mask=True).convert("RGB")).astype(np.int64)
    found = rgb @ (1 << 16, 1 << 8, 1)
    codes = np.array(colors, dtype=np.int64) @ (1 << 16, 1 << 8, 1)
    order = np.argsort(codes, kind="stable")
    place = np.minimum(np.searchsorted(codes[order], found), len(codes) - 1)
    labels = order[place]
    unknown = codes[labels] != found
    if unknown.any():
        counts = dict(zip(*np.unique(found[unknown], return_counts=True), strict=True))
        color = max(counts, key=counts.get)
        raise ValueError(
            f"{unknown.sum()} pixels have {len(counts)} colors that no class has, most of them "
            f"{color >> 16} {color >> 8 & 255} {color & 255}; add it to the list of classes, or export the mask "
            "without smoothing and without lossy compression"
        )
    canvas.fill(labels)


def _paint_indices(canvas: Canvas, path: Path, num_classes: int):
    labels = _stored(path)
    unknown = labels[labels >= num_classes]
    if unknown.size:
        raise ValueError(f"it holds {describe_values(np.unique(unknown))}, but there are {num_classes} classes")
    canvas.fill(labels)


def _paint_objects(canvas: Canvas, path: Path):
    canvas.fill((_stored(path) > 0).astype(np.int64))


def _stored(path: Path) -> np.ndarray:
    """int64 (height, width): the values of a mask, upright, of up to 16 bits."""
    return mask_to_array(decode({"path": str(path), "bytes": None}, is_mask=True)).astype(np.int64)

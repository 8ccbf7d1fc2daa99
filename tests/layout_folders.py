"""Small folders in the layouts of the published data sets, written file by file; every image differs."""

from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image


SIZE = (11, 7)  # width, height
VOC_TRAIN = [f"2007_{index:06}" for index in range(1, 7)]
VOC_VAL = ["2008_000001", "2008_000002", "2008_000003"]
# Of SBD, which has images of VOC's training and validation sets too.
SBD_ONLY = ["2009_000001", "2009_000002", "2009_000003", "2009_000004"]
CITIES = {"train": {"aachen": 3, "jena": 2}, "val": {"lindau": 2}}
COCO = {"train2017": [9, 25, 30, 177254], "val2017": [139, 285]}
_colors = count()


def write_image(path: Path, size=SIZE) -> Path:
    """A picture of one colour, another one with each call."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = next(_colors)
    Image.new("RGB", size, (number % 32 * 8, number // 32 % 32 * 8, number // 1024 * 8)).save(path)
    return path


def write_mask(path: Path, values, size=SIZE, palette: list[int] | None = None) -> Path:
    """A mask that repeats the values over its pixels; indexed if there is a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(np.resize(np.array(values, dtype=np.uint8), size[::-1]))
    if palette is not None:
        mask.putpalette(palette)
    mask.save(path)
    return path


def voc_mask(path: Path, values) -> Path:
    """Indexed, with three colours of VOC's palette that a test can tell from the indices, and the border's."""
    palette = [0] * 768
    palette[3:6], palette[45:48], palette[765:768] = (128, 0, 0), (192, 128, 128), (224, 224, 192)
    return write_mask(path, values, palette=palette)


def write_ids(path: Path, ids) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in ids), encoding="utf-8")
    return path


def make_voc(root: Path, image_sets: bool = True) -> Path:
    """`VOCdevkit/VOC2012`; SBD's images are there too, without masks."""
    for name in VOC_TRAIN + VOC_VAL + SBD_ONLY:
        write_image(root / "JPEGImages" / f"{name}.jpg")
        if name not in SBD_ONLY:
            voc_mask(root / "SegmentationClass" / f"{name}.png", (0, 1, 15, 255))
    if image_sets:
        sets = {"train": VOC_TRAIN, "val": VOC_VAL, "trainval": VOC_TRAIN + VOC_VAL}
        for name, ids in sets.items():
            write_ids(root / "ImageSets" / "Segmentation" / f"{name}.txt", ids)
        write_ids(root / "ImageSets" / "Main" / "train.txt", ["2007_999999"])
        (root / "Annotations").mkdir()
    return root


def make_augmented(root: Path, list_name: str = "train_aug.txt") -> Path:
    """SegmentationClassAug, and the list of all training images."""
    for name in SBD_ONLY:
        write_mask(root / "SegmentationClassAug" / f"{name}.png", (0, 20))
    write_ids(root / "ImageSets" / "Segmentation" / list_name, VOC_TRAIN + SBD_ONLY)
    return root


def make_cityscapes(root: Path, kinds=("labelIds",)) -> Path:
    """`leftImg8bit` and `gtFine` with all that the archive has beside the masks."""
    values = {"labelIds": (0, 7, 33, 14, 29), "labelTrainIds": (255, 0, 18, 255, 255)}
    for split, cities in CITIES.items():
        for city, number in cities.items():
            for index in range(number):
                name = f"{city}_{index:06}_000019"
                write_image(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
                folder = root / "gtFine" / split / city
                for kind in kinds:
                    write_mask(folder / f"{name}_gtFine_{kind}.png", values[kind])
                write_mask(folder / f"{name}_gtFine_instanceIds.png", (0, 7))
                (folder / f"{name}_gtFine_polygons.json").write_text("{}")
                write_image(folder / f"{name}_gtFine_color.png")
    return root


def make_coco(root: Path, subfolders: bool = False) -> Path:
    """`train2017`, `val2017`, and the field's `masks`."""
    for split, numbers in COCO.items():
        for number in numbers:
            write_image(root / split / f"{number:012}.jpg")
            folder = root / "masks" / split if subfolders else root / "masks"
            write_mask(folder / f"{number:012}.png", (0, 80, 255))
    return root


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file and what it holds."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

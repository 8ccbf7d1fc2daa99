"""Small folders in the layouts of the published data sets, written file by file; every image differs."""

from itertools import count
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from allspark_hf.data import DataArguments, SegmentationData, find_data, write_id_lists


SIZE = (11, 7)  # width, height
VOC_TRAIN = [f"2007_{index:06}" for index in range(1, 7)]
VOC_VAL = ["2008_000001", "2008_000002", "2008_000003"]
# Of SBD, which has images of VOC's training and validation sets too.
SBD_ONLY = ["2009_000001", "2009_000002", "2009_000003", "2009_000004"]
CITIES = {"train": {"aachen": 3, "jena": 2}, "val": {"lindau": 2}}
COCO = {"train2017": [9, 25, 30, 177254], "val2017": [139, 285]}
_colors = count()


def write_image(path: Path, size=SIZE, **options) -> Path:
    """A picture of one color, another one with each call."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = next(_colors)
    color = (number % 32 * 8, number // 32 % 32 * 8, number // 1024 * 8)
    Image.new("RGB", size, color).save(path, **options)
    return path


def write_mask(path: Path, values=(0, 1), size=SIZE, palette=None, dtype=np.uint8, **options) -> Path:
    """A mask that repeats the values over its pixels; indexed if there is a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(np.resize(np.array(values, dtype=dtype), size[::-1]))
    if palette is not None:
        mask.putpalette(palette)
    mask.save(path, **options)
    return path


def make_folder(root: Path, labeled: int = 4, unlabeled: int = 2, validation: int = 2, **mask_options) -> Path:
    """A folder of one's own: train images t000, t001, ..., the last ones without mask; v000, ... for validation."""
    for split, prefix, with_mask, without in (("train", "t", labeled, unlabeled), ("val", "v", validation, 0)):
        for index in range(with_mask + without):
            write_image(root / "images" / split / f"{prefix}{index:03}.jpg")
            if index < with_mask:
                write_mask(root / "masks" / split / f"{prefix}{index:03}.png", **mask_options)
    return root


def make_flat(root: Path, labeled: int = 20, unlabeled: int = 5) -> Path:
    """The same without splits: images i000, i001, ..., the last ones without mask."""
    for index in range(labeled + unlabeled):
        write_image(root / "images" / f"i{index:03}.jpg")
        if index < labeled:
            write_mask(root / "masks" / f"i{index:03}.png")
    return root


def load_folder(root: Path, output_dir: Path | None = None, **options) -> SegmentationData:
    """The sets of a folder of one's own, with options of the command, and perhaps the lists of their ids."""
    data = find_data(DataArguments(str(root), data_format="folder", **options))
    if output_dir is not None:
        write_id_lists(data, output_dir)
    return data


def load_hub_data(name: str, image_column: str = "image", label_column: str = "label", **options) -> SegmentationData:
    """The sets of a data set of the Hub."""
    return find_data(DataArguments(dataset_name=name, **options), image_column, label_column)


def ids(dataset) -> list[str]:
    return list(dataset["id"])


def rotated_exif() -> Image.Exif:
    """The camera was turned: show rotated clockwise by 90 degrees."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return exif


def voc_mask(path: Path, values) -> Path:
    """Indexed, with three colors of VOC's palette that a test can tell from the indices, and the border's."""
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


def make_files(root: Path, images: str, masks: str = "") -> Path:
    """Files at the paths given, with blanks between them."""
    for path in images.split():
        write_image(root / path)
    for path in masks.split():
        write_mask(root / path)
    return root

"""Small exports of labeling tools, and what is imported of them."""

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from allspark_hf.data.labeling.formats import read_export
from allspark_hf.data.labeling.writing import Imported, write_folder


def write_picture(path: Path, height: int, width: int, orientation: int | None = None):
    """A gray picture, with an EXIF orientation if one is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation:
        exif[274] = orientation
    Image.fromarray(np.full((height, width, 3), 100, dtype=np.uint8)).save(path, exif=exif)


def read_masks(source: Path, **options) -> tuple[dict[str, list], Imported]:
    """The masks of an imported export, by split and name, as lists of rows; and what was imported."""
    name, images_dir = options.pop("format", None), options.pop("images_dir", None)
    _, export, files = read_export(source, name, images_dir, options.get("classes"))
    data_dir = source.parent / f"{source.name}-data"
    try:
        imported = write_folder(export, files, data_dir, **options)
        paths = sorted((data_dir / "masks").rglob("*.png"))
        masks = {path.relative_to(data_dir / "masks").with_suffix("").as_posix(): path for path in paths}
        pictures = [
            path for split in (imported.labeled, imported.unlabeled) for paths in split.values() for path in paths
        ]
        assert all((data_dir / path).is_file() for path in pictures)
        return {name: np.asarray(Image.open(path)).tolist() for name, path in masks.items()}, imported
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)


def pack_brush(values: np.ndarray) -> list[int]:
    """Values, 0 to 255, as Label Studio's brush packs them: a block for each run of equal ones, or of single ones."""
    bits = f"{len(values):032b}" + f"{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    cuts = [0, *(np.flatnonzero(np.diff(values)) + 1), len(values)]
    for start, end in pairwise(cuts):
        length = end - start
        choice = next(place for place, size in enumerate((3, 4, 8, 16)) if length <= 1 << size)
        size = (3, 4, 8, 16)[choice]
        repeats = length > 1
        bits += f"{int(repeats)}{choice:02b}{length - 1:0{size}b}" + f"{int(values[start]):08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)]

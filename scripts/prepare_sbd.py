"""Makes Pascal VOC's augmented training set from the Semantic Boundaries Dataset (SBD).

    python scripts/prepare_sbd.py --sbd_dir benchmark_RELEASE --voc_dir VOCdevkit/VOC2012

Writes SegmentationClassAug/*.png (indexed, VOC's palette) and ImageSets/Segmentation/train_aug.txt: VOC's training
images with VOC's masks, and all other SBD images with SBD's masks, but for those in VOC's val.txt; 10,582 with the
complete data. Files that are there already are kept, so an interrupted run goes on where it stopped. Needs scipy.
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from allspark_hf.cli.ending import run_script
from allspark_hf.utils.files import whole_file


NUM_CLASSES = 21
COMPLETE = 10582


def find_sbd(sbd_dir: Path) -> Path:
    """The folder with `cls`, `train.txt` and `val.txt`, at or below `sbd_dir`."""
    for folder in (sbd_dir, sbd_dir / "dataset", sbd_dir / "benchmark_RELEASE" / "dataset"):
        if (folder / "cls").is_dir():
            return folder
    raise FileNotFoundError(
        f"There is no folder cls in {sbd_dir}, dataset/ or benchmark_RELEASE/dataset/ of it; give the unpacked SBD."
    )


def read_ids(path: Path) -> list[str]:
    """The ids of a list of ids, or of image and mask paths."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no list {path}; unpack the archive completely.")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Path(line.split()[0]).stem for line in lines if line.strip()]


def read_sbd_mask(path: Path) -> np.ndarray:
    """GTcls.Segmentation of a MATLAB file: uint8 (height, width), classes 0 to 20."""
    from scipy.io import loadmat

    try:
        array = np.asarray(loadmat(path, squeeze_me=True, struct_as_record=False)["GTcls"].Segmentation)
    # Broken files make scipy raise nearly anything.
    except Exception as error:
        raise ValueError(f"{path} cannot be read as an SBD mask ({error!r}); unpack it again.") from error
    if array.ndim != 2 or array.min() < 0 or array.max() >= NUM_CLASSES:
        raise ValueError(f"{path} holds no mask of classes 0 to {NUM_CLASSES - 1}; unpack it again.")
    return array.astype(np.uint8)


def write_mask(array: np.ndarray, path: Path):
    """An indexed PNG with VOC's palette, complete or not at all."""
    from allspark_hf.data.sources.published_classes import voc_colormap

    image = Image.fromarray(array)
    image.putpalette([channel for color in voc_colormap() for channel in color])
    with whole_file(path) as part:
        image.save(part, "PNG")


def choose_ids(sbd: Path, voc_dir: Path) -> tuple[list[str], list[str]]:
    """VOC's training ids, and SBD's that are in neither VOC list."""
    lists = voc_dir / "ImageSets" / "Segmentation"
    voc_train, voc_val = read_ids(lists / "train.txt"), set(read_ids(lists / "val.txt"))
    leaking = [name for name in voc_train if name in voc_val]
    if leaking:
        raise ValueError(f"train.txt and val.txt in {lists} both name {leaking[0]}; restore VOC's own lists.")
    sbd_ids = {*read_ids(sbd / "train.txt"), *read_ids(sbd / "val.txt")} - voc_val - set(voc_train)
    return sorted(voc_train), sorted(sbd_ids)


def check_files(sbd: Path, voc_dir: Path, voc_ids: list[str], sbd_ids: list[str]):
    """ValueError if an image or mask that will be needed is not there."""
    needed = [voc_dir / "JPEGImages" / f"{name}.jpg" for name in voc_ids + sbd_ids]
    needed += [voc_dir / "SegmentationClass" / f"{name}.png" for name in voc_ids]
    needed += [sbd / "cls" / f"{name}.mat" for name in sbd_ids]
    missing = [path for path in needed if not path.is_file()]
    if missing:
        raise ValueError(f"{missing[0]} is missing ({len(missing)} files in all); unpack the archives completely.")


def check_list(path: Path, ids: list[str]):
    """ValueError if a list is there already and names other images."""
    for other in (path, path.with_name("trainaug.txt")):
        if other.is_file() and set(read_ids(other)) != set(ids):
            raise ValueError(f"{other} exists and names other images than these {len(ids)}; move it away.")


def prepare(sbd_dir: Path, voc_dir: Path):
    """Writes the masks, then the list."""
    sbd = find_sbd(sbd_dir)
    voc_ids, sbd_ids = choose_ids(sbd, voc_dir)
    check_files(sbd, voc_dir, voc_ids, sbd_ids)
    path = voc_dir / "ImageSets" / "Segmentation" / "train_aug.txt"
    check_list(path, voc_ids + sbd_ids)
    folder = voc_dir / "SegmentationClassAug"
    folder.mkdir(exist_ok=True)
    sources = {name: voc_dir / "SegmentationClass" / f"{name}.png" for name in voc_ids}
    sources |= {name: sbd / "cls" / f"{name}.mat" for name in sbd_ids}
    missing = [name for name in sources if not (folder / f"{name}.png").is_file()]
    for name in tqdm(missing, desc="Masks", disable=None):
        make_mask(sources[name], voc_dir / "JPEGImages" / f"{name}.jpg", folder / f"{name}.png")
    if not path.is_file():
        with whole_file(path) as part:
            part.write_text("".join(f"{name}\n" for name in sorted(sources)), encoding="utf-8")
    print(f"{folder}: {len(missing)} masks written, {len(sources) - len(missing)} kept")
    print(f"{path}: {len(sources)} images; {COMPLETE} with the complete data")


def make_mask(source: Path, image_path: Path, target: Path):
    """VOC's mask as it is, or SBD's as a PNG."""
    if source.suffix == ".png":
        with whole_file(target) as part:
            shutil.copyfile(source, part)
        return
    array = read_sbd_mask(source)
    with Image.open(image_path) as image:
        if image.size != array.shape[::-1]:
            raise ValueError(
                f"{source} is {array.shape[1]} x {array.shape[0]} pixels, its image {image.width} x {image.height}; "
                "unpack both archives again."
            )
    write_mask(array, target)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sbd_dir", type=Path, required=True, help="SBD as unpacked: benchmark_RELEASE, or dataset in it"
    )
    parser.add_argument("--voc_dir", type=Path, required=True, help="VOCdevkit/VOC2012")
    options = parser.parse_args()
    try:
        import scipy.io  # noqa: F401
    except ImportError:
        sys.exit("ImportError: SBD's masks are MATLAB files, which need scipy; run pip install scipy.")
    prepare(options.sbd_dir, options.voc_dir)


if __name__ == "__main__":
    run_script(main)

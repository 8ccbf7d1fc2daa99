"""Does --preset auto keep its time? Trains on four generated folders, and prints what it chose and how long it took.

    python scripts/preset_times.py --minutes 4 --output_dir OUT --encoder DINOV2_SMALL

The folders: 30 gray images with masks of 0 and 255; 200 images with 5 classes beside background; 2,000 images, of
which 100 are labeled; and 40 images, of which 3 are labeled. Other arguments go to every `allspark train`.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from allspark_hf.cli.ending import run_script
from allspark_hf.demo.data import write_demo_data


# Name -> images, labeled ones, validation images, (height, width).
FOLDERS = {
    "gray": (30, 20, 10, (240, 320)),
    "photos": (200, 80, 20, (360, 480)),
    "generated": (2000, 100, 40, (96, 128)),
    "three_labels": (40, 3, 10, (240, 320)),
}
SHOWN = ("method", "encoder", "backbone", "crop_size", "per_device_train_batch_size", "max_steps")


def make_gray(folder: Path):
    """Turns the images gray, the masks' classes into 255, and takes the class names away."""
    for path in (folder / "images").rglob("*.jpg"):
        Image.open(path).convert("L").save(path, quality=92)
    for path in (folder / "masks").rglob("*.png"):
        Image.fromarray(np.where(np.array(Image.open(path)) > 0, 255, 0).astype(np.uint8)).save(path)
    (folder / "classes.json").unlink()


def train(name: str, data: Path, output: Path, minutes: float, extra: list[str]) -> tuple[float, dict]:
    """Seconds of the whole command, and the recipe of what it chose."""
    command = [sys.executable, "-m", "allspark_hf", "train", "--data_dir", str(data), "--output_dir", str(output)]
    command += ["--preset", "auto", "--minutes", str(minutes), *extra]
    if name == "gray":
        command += ["--mask_values", "0", "255"]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=sys.stderr)
    return time.perf_counter() - start, yaml.safe_load((output / "preset.yaml").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--minutes", type=float, required=True, help="time that each training is given")
    parser.add_argument("--output_dir", type=Path, required=True, help="new folder for images and trainings")
    options, extra = parser.parse_known_args()
    for name, (images, labeled, validation, size) in FOLDERS.items():
        data = options.output_dir / "data" / name
        write_demo_data(data, images, labeled, validation, size)
        if name == "gray":
            make_gray(data)
        seconds, chosen = train(name, data, options.output_dir / name, options.minutes, extra)
        choices = ", ".join(f"{key} {chosen[key]}" for key in SHOWN if key in chosen)
        share = seconds / (60 * options.minutes)
        print(f"{name}: {seconds:.0f} s, {share:.2f} of the time given; {choices}", flush=True)


if __name__ == "__main__":
    run_script(main)

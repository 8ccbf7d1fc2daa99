"""Does everything on generated images: data, training, prediction, report; five minutes on two CPU cores.

    allspark demo
    allspark demo OUTPUT_DIR
    allspark demo --encoder facebook/dinov2-small    # what a pre-trained encoder is worth on the same images

Writes 400 images, 24 of them with a mask, trains AllSpark from scratch, and segments images that it has not seen.
With an encoder, 100 updates with that one take two or three minutes more. A rerun keeps the images, and trains anew.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from allspark_hf.cli.ending import run_script


MARK = "made_by_demo.txt"  # says how the images were made; only a folder with this file is written again
COUNTS = {"num_train": 400, "num_labeled": 24, "num_validation": 60}
NUM_PHOTOS = 8  # images that no training sees
METHOD = "allspark"
SCRATCH = "from_scratch"
# With a pre-trained encoder, a number of updates, so that a slow machine needs more time but learns as much.
UPDATES = 100
LENGTH = ("--max_steps", UPDATES, "--eval_strategy", "steps", "--eval_steps", UPDATES // 2, "--save_strategy", "no")


def check_encoder(name: str) -> None:
    """Loads an encoder, to raise ValueError or OSError if that fails."""
    from allspark_hf.cli.models import SEGFORMER_TYPES
    from allspark_hf.models.encoders import encoder_config, is_model_type, load_encoder

    if is_model_type(name):
        raise ValueError(
            f"{name!r} is a type of encoder, without weights: give pre-trained ones, such as facebook/dinov2-small."
        )
    if encoder_config(name).model_type not in SEGFORMER_TYPES:
        load_encoder(name)


def prepare(folder: Path) -> None:
    """Writes the images unless they are there; raises ValueError if the folder holds something else."""
    from allspark_hf.demo import data, textures

    mark = folder / MARK
    if folder.exists() and not mark.is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"{folder} holds something that this demo did not make: give another folder, allspark demo OUTPUT_DIR."
        )
    code = b"".join(Path(module.__file__).read_bytes() for module in (data, textures))
    made = f"{COUNTS} {NUM_PHOTOS} {hashlib.sha256(code).hexdigest()}"
    if mark.is_file() and mark.read_text(encoding="utf-8") == made and (folder / "data" / "classes.json").is_file():
        print(f"Using the data in {folder / 'data'}.", flush=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(made, encoding="utf-8")
    for old in ("data", "photos", SCRATCH):  # a model of other images does not compare
        shutil.rmtree(folder / old, ignore_errors=True)
    (folder / "photos").mkdir()
    for index in range(NUM_PHOTOS):
        image, _ = data.generate_demo_image(COUNTS["num_validation"] + index, "val")
        image.save(folder / "photos" / f"photo_{index}.jpg", quality=92, subsampling=0)
    data.write_demo_data(folder / "data", **COUNTS)  # classes.json last
    print(
        f"Wrote {COUNTS['num_train']} images, {COUNTS['num_labeled']} of them with a mask, to {folder / 'data'}.",
        flush=True,
    )


def start(command: str, *arguments: str | int | Path) -> None:
    """Runs a subcommand in a process of its own; ends with its exit code if that is not 0."""
    code = subprocess.run([sys.executable, "-m", "allspark_hf", command, *map(str, arguments)]).returncode
    if code:
        sys.exit(code)


def train_and_predict(folder: Path, name: str, *arguments: str | int) -> None:
    """Trains a model in `folder/name`, and segments the photos with it."""
    place = folder / name
    if place.is_dir():
        print(f"Replacing {place}, made by an earlier run of this demo.", flush=True)
        shutil.rmtree(place)
    print(f"Training: {name.replace('_', ' ')}", flush=True)
    given = ["--method", METHOD, "--data_dir", folder / "data", "--output_dir", place / "model"]
    start("train", *arguments, *given)
    outputs = ["--output_dir", place / "predictions"]
    start("predict", "--model", place / "model", "--input", folder / "photos", *outputs)


def reached(place: Path) -> str:
    """The score of a model, its updates and its seconds."""
    from allspark_hf.studies.study import read_run_metrics

    run = read_run_metrics(place / "model")
    name = place.name.replace("_", " ")
    return f"{100 * run['last_mean_iou']:.1f} % {name} ({run['steps']} updates, {run['seconds']:.0f} s)"


def what_is_where(folder: Path, name: str) -> str:
    """Where everything is, and what to do next."""
    model, (total, with_masks, validation) = folder / name / "model", COUNTS.values()
    places = {
        folder / "data": f"{with_masks} images with masks, {total - with_masks} without, {validation} for validation",
        model: "the model; report.html says how it went, progress.png shows it",
        folder / name / "predictions": f"what it says of the {NUM_PHOTOS} images in photos/, which it has not seen",
    }
    width = max(len(str(place)) for place in places)
    lines = [f"  {place!s:{width}}  {what}" for place, what in places.items()]
    return "\n".join(
        [
            "What lies where:",
            *lines,
            "Next, with images of your own in folders like data/ (masks for some of them):",
            "  allspark train --data_dir YOUR_DATA --output_dir YOUR_MODEL",
        ]
    )


def demo() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "output_dir", type=Path, nargs="?", default="outputs/demo", help="folder to write (default: outputs/demo)"
    )
    parser.add_argument("--encoder", help="pre-trained encoder to train too: a Hub id or a folder")
    options = parser.parse_args()
    folder, encoder = options.output_dir, options.encoder
    if encoder is not None:
        check_encoder(encoder)
    prepare(folder)
    name = SCRATCH
    if encoder is None or not (folder / SCRATCH / "model" / "eval_results.json").is_file():
        train_and_predict(folder, SCRATCH, "demo.yaml")
    if encoder is not None:
        name = f"with_{Path(encoder).name}"
        train_and_predict(folder, name, "--preset", "auto", "--encoder", encoder, *LENGTH)
        both = " and ".join(reached(folder / one) for one in (SCRATCH, name))
        print(f"mIoU on the {COUNTS['num_validation']} validation images, one run each: {both}.")
    print(what_is_where(folder, name))
    if encoder is None:
        print(f"What a pre-trained encoder is worth: allspark demo {folder} --encoder facebook/dinov2-small")


def main() -> None:
    run_script(demo, "Interrupted; the same command keeps the images, and trains anew.")

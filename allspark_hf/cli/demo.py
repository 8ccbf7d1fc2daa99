"""Trains on generated images, without and with the unlabeled ones, and compares: seven minutes on two CPU cores.

    allspark demo
    allspark demo OUTPUT_DIR

Writes 400 images, 24 of them with a mask, trains the supervised baseline and AllSpark, and leaves a table, a picture
and both models. A rerun keeps the images, and trains anew.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path


MARK = "made_by_demo.txt"  # what the images are made of; the file also marks the folder as the demo's own
COUNTS = {"num_train": 400, "num_labeled": 24, "num_validation": 60}
METHODS = ("supervised", "allspark")


def prepare(folder: Path) -> None:
    """Writes the images, unless they are there; ValueError if the folder holds something else."""
    from allspark_hf.demo import data, textures

    mark = folder / MARK
    if folder.exists() and not mark.is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"{folder} holds something that this demo did not make: give another folder, allspark demo OUTPUT_DIR."
        )
    code = b"".join(Path(module.__file__).read_bytes() for module in (data, textures))
    made = f"{COUNTS} {hashlib.sha256(code).hexdigest()}"
    if mark.is_file() and mark.read_text(encoding="utf-8") == made and (folder / "data" / "classes.json").is_file():
        print(f"Using the data in {folder / 'data'}.", flush=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(made, encoding="utf-8")
    shutil.rmtree(folder / "data", ignore_errors=True)
    data.write_demo_data(folder / "data", **COUNTS)
    print(f"Wrote {COUNTS['num_train']} images, {COUNTS['num_labeled']} of them with a mask, to {folder / 'data'}.")


def start(command: str, *arguments: str | Path) -> None:
    """Runs a subcommand in a process of its own; ends with its exit code if that is not 0."""
    code = subprocess.run([sys.executable, "-m", "allspark_hf", command, *map(str, arguments)]).returncode
    if code:
        sys.exit(code)


def demo() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "output_dir", type=Path, nargs="?", default="outputs/demo", help="folder to write (default: outputs/demo)"
    )
    folder = parser.parse_args().output_dir
    prepare(folder)
    for method in METHODS:
        output_dir = folder / method
        if output_dir.is_dir():
            print(f"Replacing {output_dir}, made by an earlier run of this demo.", flush=True)
            shutil.rmtree(output_dir)
        print(f"Training: {method}", flush=True)
        start("train", "demo.yaml", "--method", method, "--data_dir", folder / "data", "--output_dir", output_dir)
    runs = [folder / method for method in METHODS]
    start("compare", "--data_dir", folder / "data", "--runs", *runs, "--output_dir", folder)
    print(f"The model is in {runs[-1]}")


def main() -> None:
    from allspark_hf.cli.ending import run_script

    run_script(demo)

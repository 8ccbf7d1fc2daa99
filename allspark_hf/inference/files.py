"""Finds the images to predict, and names their results."""

import glob
import os
import sys
from collections import Counter
from pathlib import Path

from ..utils.files import PREDICTIONS, find_image_files, left_out, predictions_around


RESULTS = ("_mask", "_overlay", "_confidence", "legend")  # ends of the names of pictures that a run writes


def find_images(pattern: str, output_dir: Path, quiet: bool = False) -> tuple[Path, list[Path]]:
    """
    Finds the images to predict. Unless `quiet`, stderr says what is left out of a folder: predictions, as of earlier
    runs, and files that are no images.

    Args:
        pattern (`str`): file, folder or glob pattern.
        output_dir (`Path`): folder of the results; if it lies inside the input, results in it are passed over.

    Returns:
        `tuple[Path, list[Path]]`: the folder that results mirror, and the sorted image files.

    Raises:
        ValueError: if no image is found, or results would land among images.
    """
    path = Path(pattern)
    others: list[Path] = []
    if path.is_file():
        root, found = path.parent, [path]
    elif path.is_dir():
        root = path
        found, others = find_image_files(path)
    else:
        root = glob_root(path)
        matches = sorted(map(Path, glob.glob(pattern, recursive=True)), key=lambda file: (-len(file.parts), file))
        # Links in a circle reach one file by several paths; the shortest path is kept.
        shortest = {(os.path.realpath(file.parent), file.name): file for file in matches}
        around = {file: predictions_around(file, root) for file in shortest.values()}
        found = [file for file, folder in around.items() if folder is None]
        others = sorted({folder / PREDICTIONS for folder in around.values() if folder is not None})
    inside = output_dir.resolve()
    if inside == root.resolve():
        raise ValueError(
            f"output_dir {output_dir} is the folder of the images, which would be mixed with results: choose another "
            "output_dir."
        )
    if root.resolve() in inside.parents:
        hidden = [file for file in found if inside in file.resolve().parents and not file.stem.endswith(RESULTS)]
        if hidden:
            raise ValueError(
                f"output_dir {output_dir} holds images of the input, first {hidden[0]}, which would not be predicted: "
                "choose another output_dir."
            )
        found, others = ([file for file in kept if inside not in file.resolve().parents] for kept in (found, others))
    if others and not quiet:
        print(left_out(others, root), file=sys.stderr)
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise ValueError(
            f"No image found at {pattern!r}: give an image file, a folder with images that Pillow reads, or a glob "
            "pattern that matches files."
        )
    return root, files


def glob_root(pattern: Path) -> Path:
    """The folders of a glob pattern before the first wildcard."""
    folders = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        folders.append(part)
    return Path(*folders)


def name_results(root: Path, files: list[Path]) -> list[Path]:
    """
    Gives every image file, all of them under `root`, its own result name.

    Returns:
        `list[Path]`: for each file the path of its results relative to the output folder, without `_mask.png`: the
        folders below `root`, then the stem. If two files of a folder have one stem, the extension is added
        (`photo_jpg`), and a number if that name is taken too.
    """
    # In lower case, because some file systems do not tell upper from lower.
    stems = Counter(str(file.with_suffix("")).lower() for file in files)
    names, taken = [], {stem for stem, count in stems.items() if count == 1}
    for file in files:
        stem = file.stem
        if stems[str(file.with_suffix("")).lower()] > 1:
            base = stem = f"{file.stem}_{file.suffix[1:]}"
            number = 2
            while str(file.with_name(stem)).lower() in taken:
                stem = f"{base}_{number}"
                number += 1
            taken.add(str(file.with_name(stem)).lower())
        names.append(file.relative_to(root).with_name(stem))
    return names

"""
Segments images with a trained model.

    allspark predict --model outputs/my-model --input photos --output_dir predictions

Every image gives `<stem>_mask.png` (pixel values are class indices, shown in the classes' colors) and
`<stem>_overlay.png`; every run gives one `legend.png`. Exit code 0: all done; 1: some images failed, the rest are
written; 2: nothing was done.
"""

import glob
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm
from transformers import HfArgumentParser

from allspark_hf.data.pixels import open_image, to_rgb
from allspark_hf.inference.loading import load_trained
from allspark_hf.inference.prediction import model_palette, predict_mask
from allspark_hf.inference.visualization import index_image, legend, overlay
from allspark_hf.utils.arguments import argument
from allspark_hf.utils.files import find_image_files, left_out
from allspark_hf.utils.text import one_line


@dataclass
class PredictArguments:
    """Arguments of the script."""

    model: str = argument(help="Folder or Hub id of a trained model with its image processor.")
    input: str = argument(help="Image file, folder (with subfolders) or glob pattern in quotes.")
    output_dir: str = argument(help="Folder of the results; an input folder's subfolders are mirrored.")
    alpha: float = argument(0.5, "Weight of the colors in the overlay, 0 to 1.")
    overwrite: bool = argument(False, "Replace existing results.")
    device: str | None = argument(None, "Such as cpu or cuda:0; default: the GPU if any.")

    def __post_init__(self):
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}, but a weight from 0 (image only) to 1 (colors only) is needed.")


def find_images(pattern: str, output_dir: Path) -> tuple[Path, list[Path]]:
    """
    Finds the images to predict; files of a folder that are left out are counted on stderr.

    Args:
        pattern (`str`): file, folder or glob pattern.
        output_dir (`Path`): folder of the results; where it lies inside the input, it is not searched.

    Returns:
        `tuple[Path, list[Path]]`: the folder that results mirror, and the sorted image files.

    Raises:
        ValueError: if no image is found, or results would land among the images.
    """
    path = Path(pattern)
    others: list[Path] = []
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        root = path
        found, others = find_image_files(path)
    else:
        root = glob_root(path)
        matches = sorted(map(Path, glob.glob(pattern, recursive=True)), key=lambda file: (-len(file.parts), file))
        found = {(os.path.realpath(file.parent), file.name): file for file in matches}.values()  # links in a circle
    inside = output_dir.resolve()
    if inside == root.resolve():
        raise ValueError(
            f"output_dir {output_dir} is the input folder itself, so a second run would predict its own results: "
            "choose another output_dir."
        )
    if root.resolve() in inside.parents:
        found, others = ([file for file in kept if inside not in file.resolve().parents] for kept in (found, others))
    if others:
        print(left_out(others, root), file=sys.stderr)
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise ValueError(
            f"No image found at {pattern!r}: give an image file, a folder with images that Pillow reads, or a glob "
            "pattern that matches files."
        )
    return root, files


def glob_root(pattern: Path) -> Path:
    """The longest leading folder of a glob pattern without wildcards."""
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
        `list[Path]`: for each file the path of its results relative to the output folder, without `_mask.png`:
        folders as under `root`, then the stem; with the extension (`photo_jpg`) where two files of a folder have one
        stem, and a number where even that is taken.
    """
    # Compared in lower case, because some file systems do not tell upper from lower.
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


def result_paths(output_dir: Path, name: Path) -> tuple[Path, Path]:
    """Paths of the mask and of the overlay of one image."""
    folder = output_dir / name.parent
    return folder / f"{name.name}_mask.png", folder / f"{name.name}_overlay.png"


def check_existing(output_dir: Path, names: list[Path]) -> None:
    """Raises ValueError if any result exists, before any work is done."""
    results = [output_dir / "legend.png", *(path for name in names for path in result_paths(output_dir, name))]
    existing = [path for path in results if path.exists()]
    if existing:
        raise ValueError(
            f"{len(existing)} of {len(results)} results already exist (first: {existing[0]}): pass --overwrite to "
            "replace them or choose another --output_dir."
        )


def predict_file(file: Path, results: tuple[Path, Path], model, image_processor, alpha: float) -> None:
    """
    Writes the mask and the overlay of one image file to the two paths of `results`.

    Raises:
        ValueError: if the file cannot be read as an image.
        OSError: if a result cannot be written.
    """
    try:
        with open_image(file) as opened:
            image = to_rgb(opened, getattr(model.config, "image_range", None))
    # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error and others on bad files.
    except Exception as error:
        raise ValueError(f"it cannot be read as an image ({one_line(error)})") from error
    mask = predict_mask(model, image_processor, image)
    palette = model_palette(model)
    results[0].parent.mkdir(parents=True, exist_ok=True)
    # A model's classes may go up to 255, so no value is set apart as ignored.
    index_image(mask, palette, ignore_index=None).save(results[0])
    overlay(image, mask, palette, alpha, ignore_index=None).save(results[1])


def main() -> int:
    parser = HfArgumentParser(PredictArguments, description="Segments images with a trained model.")
    try:
        arguments, unknown = parser.parse_args_into_dataclasses(return_remaining_strings=True)
        if unknown:
            raise ValueError(f"Unknown arguments {' '.join(unknown)}: put a glob pattern in quotes, see --help.")
        output_dir = Path(arguments.output_dir)
        if output_dir.exists() and not output_dir.is_dir():
            raise ValueError(
                f"output_dir {output_dir} is a file, but a folder is needed: choose another --output_dir."
            )
        root, files = find_images(arguments.input, output_dir)
        names = name_results(root, files)
        if not arguments.overwrite:
            check_existing(output_dir, names)
        model, image_processor = load_trained(arguments.model, arguments.device)
        labels = [model.config.id2label[index] for index in range(model.config.num_labels)]
        key = legend(labels, model_palette(model))
        output_dir.mkdir(parents=True, exist_ok=True)
        key.save(output_dir / "legend.png")
    except (OSError, ValueError) as error:
        print(one_line(error), file=sys.stderr)
        return 2

    failed = 0
    for file, name in tqdm(list(zip(files, names, strict=True)), unit="image"):
        try:
            predict_file(file, result_paths(output_dir, name), model, image_processor, arguments.alpha)
        except (OSError, RuntimeError, ValueError) as error:
            failed += 1
            tqdm.write(f"{file}: not predicted, {one_line(error)}", file=sys.stderr)
    print(f"{len(files) - failed} of {len(files)} images predicted, results in {output_dir}")
    return 1 if failed else 0

"""
Segments images with a trained model.

    python scripts/predict.py --model outputs/my-model --input photos --output_dir predictions

Every image gives `<stem>_mask.png` (pixel values are class indices, shown in the classes' colours) and
`<stem>_overlay.png`; every run gives one `legend.png`. Exit code 0: all done; 1: some images failed, the rest are
written; 2: nothing was done.
"""

import glob
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path


IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass
class PredictArguments:
    """
    Arguments of the prediction script.

    Args:
        model: Folder or Hub id of a trained model with its image processor.
        input: Image file, folder (searched with its subfolders), or glob pattern (`**` for any subfolders).
        output_dir: Folder of the results; an input folder's subfolders are mirrored.
        alpha: Weight of the class colours in the overlay, 0 to 1.
        overwrite: Whether existing results may be replaced.
        device: Device such as "cpu" or "cuda:0"; by default the GPU if there is one.
    """

    model: str = field(metadata={"help": "Folder or Hub id of a trained model with its image processor."})
    input: str = field(metadata={"help": "Image file, folder (with subfolders) or glob pattern (in quotes)."})
    output_dir: str = field(metadata={"help": "Folder of the results; an input folder's subfolders are mirrored."})
    alpha: float = field(default=0.5, metadata={"help": "Weight of the colours in the overlay, 0 to 1."})
    overwrite: bool = field(default=False, metadata={"help": "Replace existing results."})
    device: str | None = field(default=None, metadata={"help": "Such as cpu or cuda:0; default: the GPU if any."})

    def __post_init__(self):
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}, but a weight from 0 (image only) to 1 (colours only) is needed.")


def find_images(pattern: str, output_dir: Path) -> tuple[Path, list[Path]]:
    """
    Finds the images to predict.

    Args:
        pattern: File, folder or glob pattern.
        output_dir: Folder of the results; where it lies inside the input, it is not searched.

    Returns:
        The folder that results mirror, and the sorted image files.

    Raises:
        ValueError: If no image is found, or results would land among the images.
    """
    path = Path(pattern)
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        root = path
        found = [file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != "."]
    else:
        root = glob_root(path)
        found = [Path(file) for file in glob.glob(pattern, recursive=True)]
    inside = output_dir.resolve()
    if inside == root.resolve():
        raise ValueError(
            f"output_dir {output_dir} is the input folder itself, so a second run would predict its own results: "
            "choose another output_dir."
        )
    if root.resolve() in inside.parents:
        found = [file for file in found if inside not in file.resolve().parents]
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise ValueError(
            f"No image found at {pattern!r}: give an image file, a folder with images ({' '.join(IMAGE_SUFFIXES)}) "
            "or a glob pattern that matches files."
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
    Gives every image its own result name.

    Args:
        root: Folder that all files lie in.
        files: Image files.

    Returns:
        For each file the path of its results relative to the output folder, without `_mask.png`: folders as under
        `root`, then the stem; with the extension (`photo_jpg`) where two files of a folder have one stem, and a
        number where even that is taken.
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
    """Raise ValueError if any result exists, before any work is done."""
    results = [output_dir / "legend.png", *(path for name in names for path in result_paths(output_dir, name))]
    existing = [path for path in results if path.exists()]
    if existing:
        raise ValueError(
            f"{len(existing)} of {len(results)} results already exist (first: {existing[0]}): pass --overwrite to "
            "replace them or choose another --output_dir."
        )


def predict_file(file: Path, results: tuple[Path, Path], model, image_processor, alpha: float) -> None:
    """
    Writes the mask and the overlay of one image file.

    Args:
        file: Image file.
        results: Paths of the mask and of the overlay.
        model: Model in eval mode.
        image_processor: Its image processor.
        alpha: Weight of the colours in the overlay.

    Raises:
        ValueError: If the file cannot be read as an image.
        OSError: If a result cannot be written.
    """
    from allspark_hf.data.images import open_image, to_rgb
    from allspark_hf.inference.prediction import model_palette, predict_mask
    from allspark_hf.inference.visualization import index_image, overlay

    try:
        with open_image(file) as opened:
            image = to_rgb(opened)
    # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error and others on bad files.
    except Exception as error:
        raise ValueError(f"it cannot be read as an image ({one_line(error)})") from error
    mask = predict_mask(model, image_processor, image)
    palette = model_palette(model)
    results[0].parent.mkdir(parents=True, exist_ok=True)
    # A model's classes may go up to 255, so no value is set apart as ignored.
    index_image(mask, palette, ignore_index=None).save(results[0])
    overlay(image, mask, palette, alpha, ignore_index=None).save(results[1])


def one_line(error: Exception) -> str:
    """An error's message without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def main() -> int:
    from tqdm import tqdm
    from transformers import HfArgumentParser

    from allspark_hf.inference.loading import load_trained
    from allspark_hf.inference.prediction import model_palette
    from allspark_hf.inference.visualization import legend

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


if __name__ == "__main__":
    sys.exit(main())

"""Writes split files for a data set, or checks that split files have no image in common.

    python scripts/make_splits.py --data_dir DATA --labeled_fractions 1/16 1/8 --output_dir splits/mine
    python scripts/make_splits.py --data_dir DATA --labeled_counts 92 183 --seed 1 --output_dir splits/mine
    python scripts/make_splits.py --check splits/mine/1_8/labeled.txt splits/mine/val.txt

For every share or count a folder (1_16, 92) gets labeled.txt and unlabeled.txt; val.txt lies beside these folders. A
line is `image mask`, as in the published lists, relative to the folder with the data. With one seed a smaller labeled
set is part of a larger one; train.py draws the same images from --split_seed. Nothing is written if a training image
is a validation image too, by path or byte for byte. With --data_dir, --check also compares the files' contents.
"""

import argparse
import sys
from fractions import Fraction
from itertools import combinations
from pathlib import Path

from allspark_hf.cli.ending import run_script


def parse_fraction(text: str) -> tuple[str, float]:
    """`1/16` or `0.125` as the name of a folder and a number."""
    try:
        return text.replace("/", "_"), float(Fraction(text))
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{text} is not a fraction; write 1/16 or 0.0625, for example.") from error


def make_splits(options: argparse.Namespace):
    """Draws, checks and writes the lists."""
    from allspark_hf.data import Selection, find_layout
    from allspark_hf.data.sources.lists import list_text
    from allspark_hf.data.sources.pairs import first_few
    from allspark_hf.data.sources.splits import select_pairs

    layout = find_layout(options.data_dir, options.data_format, options.voc_masks)
    parts = {str(count): {"labeled_count": count} for count in options.labeled_counts or ()}
    for text in options.labeled_fractions or ():
        name, fraction = parse_fraction(text)
        parts[name] = {"labeled_fraction": fraction}
    texts = {}
    for name, part in parts.items():
        chosen = Selection(**part, validation_fraction=options.validation_fraction, split_seed=options.seed)
        labeled, unlabeled, validation = select_pairs(layout, chosen)
        texts[options.output_dir / name / "labeled.txt"] = list_text(labeled, layout.root)
        texts[options.output_dir / name / "unlabeled.txt"] = list_text(unlabeled, layout.root)
        print(f"{name}: {len(labeled.images)} labeled, {len(unlabeled.images)} unlabeled images")
    texts[options.output_dir / "val.txt"] = list_text(validation, layout.root)
    print(f"{len(validation.images)} validation images; paths are relative to {layout.root}")

    same = [*shared_files(labeled, validation), *shared_files(unlabeled, validation)]
    if same:
        raise ValueError(
            f"Training images are validation images too, byte for byte: {first_few(same)} ({len(same)} in all); "
            "remove them from one of the two."
        )
    write_texts(texts)


def write_texts(texts: dict[Path, str]):
    """Writes all files, or none if one of them exists with another content."""
    for path, text in texts.items():
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise ValueError(f"{path} exists and names other images; choose another --output_dir, or remove it.")
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path)


def shared_files(a, b) -> list[str]:
    """The images of two sets that are the same byte for byte: `x`, or `x = y` where their ids differ."""
    from allspark_hf.data import find_overlap

    pairs = find_overlap(a.to_dataset(False), b.to_dataset(False))
    return [name if name == other else f"{name} = {other}" for name, other in pairs]


def read_either(path: Path, layout):
    """A split file of training or of validation images."""
    try:
        return layout.read_list(path, "train", need_masks=False)
    except ValueError as error:
        try:
            return layout.read_list(path, "validation", need_masks=False)
        except ValueError:
            raise error from None


def check(options: argparse.Namespace) -> int:
    """Prints what any two of the lists share; the number of pairs of lists that share something."""
    from allspark_hf.data import find_layout
    from allspark_hf.data.sources.lists import read_lines, shared_images
    from allspark_hf.data.sources.pairs import first_few

    if len(options.check) < 2:
        raise ValueError("--check was given one list; give at least two.")
    if options.data_dir is None:
        lists = {path: [line.strip() for _, line in read_lines(path)] for path in options.check}
    else:
        layout = find_layout(options.data_dir, options.data_format, options.voc_masks)
        lists = {path: read_either(path, layout) for path in options.check}
    compare = shared_images if options.data_dir is None else shared_files
    problems = 0
    for first, second in combinations(options.check, 2):
        shared = compare(lists[first], lists[second])
        if shared:
            problems += 1
            images = "1 image" if len(shared) == 1 else f"{len(shared)} images"
            print(f"{first} and {second} share {images}: {first_few(shared)}")
    if not problems:
        print(f"No image is in two of the {len(options.check)} lists.")
    return problems


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", help="folder with the data")
    parser.add_argument("--data_format", help="folder, voc, cityscapes or coco (default: what the folder shows)")
    parser.add_argument("--voc_masks", default="original", help="Pascal VOC: original (default) or augmented")
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--labeled_fractions", nargs="+", help="shares of the training masks: 1/16 0.125")
    wanted.add_argument("--labeled_counts", nargs="+", type=int, help="the same as numbers of masks: 92 183")
    wanted.add_argument(
        "--check", nargs="+", type=Path, help="lists to compare; exit code 1 if any two share an image"
    )
    parser.add_argument("--seed", type=int, default=42, help="seed of the draw (default: 42)")
    parser.add_argument(
        "--validation_fraction", type=float, default=0.1, help="share held out where there is no images/val (0.1)"
    )
    parser.add_argument("--output_dir", type=Path, help="where to write the lists")
    options = parser.parse_args()
    if not options.check and (options.data_dir is None or options.output_dir is None):
        parser.error("writing lists needs --data_dir and --output_dir")
    return options


def main():
    options = parse_options()
    if options.check:
        sys.exit(1 if check(options) else 0)
    make_splits(options)


if __name__ == "__main__":
    run_script(main, "Interrupted.")

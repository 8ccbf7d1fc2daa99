"""Makes a data folder of what a labeling tool exported.

    allspark import EXPORT DATA_DIR
    allspark import annotations.json DATA_DIR --images_dir photos

EXPORT is a folder, an archive or a file of COCO, YOLO segmentation, LabelMe, CVAT (for images 1.1, segmentation
masks), Label Studio, Supervisely or Roboflow (semantic masks), or images and masks in colors or with numbers of
objects (--format numbered_objects). Pictures are copied, masks drawn. Printed are images and pixels of each class and
what was decided; DATA_DIR/overlays shows six pictures. If a picture cannot be imported, nothing is written.
"""

import argparse
import shlex
from pathlib import Path

from allspark_hf.cli.ending import run_script
from allspark_hf.cli.importing import import_export
from allspark_hf.data.labeling.formats import FORMATS
from allspark_hf.data.labeling.writing import EMPTY, OUTSIDE
from allspark_hf.data.sources.classes import read_classes


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "source", metavar="EXPORT", type=Path, help="Folder, archive (zip, tar) or file of the export."
    )
    parser.add_argument("data_dir", metavar="DATA_DIR", type=Path, help="Folder to write: new, or empty.")
    parser.add_argument(
        "--format", choices=[*FORMATS], help=f"What EXPORT is; default: what its files show. {', '.join(FORMATS)}."
    )
    parser.add_argument("--images_dir", type=Path, help="Folder of the pictures, if they are not in EXPORT.")
    parser.add_argument(
        "--classes",
        type=Path,
        help="List of the classes, like classes.txt, in the order to use instead of the export's.",
    )
    parser.add_argument(
        "--outside",
        choices=OUTSIDE,
        default=OUTSIDE[0],
        help="Pixels outside all objects are the class background, the export's own or a new class 0, or do not count "
        "(default: background).",
    )
    parser.add_argument(
        "--empty_images",
        choices=EMPTY,
        default=EMPTY[0],
        help="What pictures without objects are where the tool does not tell whether somebody looked at them "
        "(default: unlabeled).",
    )
    return parser.parse_args()


def run() -> None:
    arguments = parse()
    data_dir = arguments.data_dir
    classes = read_classes(arguments.classes) if arguments.classes else None
    imported = import_export(
        *(arguments.source, data_dir, arguments.format, arguments.images_dir),
        *(classes, arguments.outside, arguments.empty_images),
    )
    extra = " --ignored_mask_values 255" if imported.has_ambiguous_masks else ""
    data = shlex.quote(str(data_dir))
    print(f"\nLook at {data_dir / 'overlays'}, then: allspark train --data_dir {data}{extra} --output_dir out")


def main() -> None:
    run_script(run, "Interrupted; DATA_DIR is complete, or does not exist.")

"""Makes a data folder of what a labeling tool exported.

    allspark import EXPORT DATA_DIR
    allspark import annotations.json DATA_DIR --images_dir photos

EXPORT is a folder, an archive or a file of COCO, YOLO segmentation, LabelMe, CVAT (for images 1.1, segmentation
masks), Label Studio, Supervisely or Roboflow (semantic masks), or folders of images and masks in colors. Pictures are
copied, masks drawn. Printed are images and pixels of each class and what was decided; DATA_DIR/overlays shows six
pictures. If a picture cannot be imported, nothing is written.
"""

import argparse
import sys
from pathlib import Path

import numpy as np


OVERLAYS = 6
FEW = 2  # percent of the pixels: gaps between objects rather than a background
LONG_SIDE = 1024  # of an overlay
PALE = 0.25
EVENTS = {
    "cut": "Objects that reach beyond the edge of their picture, and are cut off there: {}.",
    "empty": "Objects so small that no pixel's center lies in them: {}.",
    "maybe": "Pictures without objects, of which the export cannot tell whether somebody looked at them: {}; ",
    "turned": "Masks drawn on photos as they are stored, and now turned by EXIF as the photos are: {}.",
    "unsure": "Photos turned or mirrored by EXIF, of which the export does not tell whether outlines are too: {}; "
    "they are taken to be drawn on the photo as a viewer shows it, so look at one.",
    "nothing": "Annotated pictures without a pixel that counts, which are unlabeled: {}.",
    "moved": "Validation pictures without annotation, which are unlabeled ones now, in images/train/from_val: {}.",
    "unknown": "Pictures of no split, which are training pictures now: {}.",
}
MAYBE = {
    "unlabeled": "they are unlabeled; if they show none, --empty_images background.",
    "background": "they are all background.",
}


def parse() -> argparse.Namespace:
    """The arguments."""
    from allspark_hf.data.labeling.formats import FORMATS
    from allspark_hf.data.labeling.writing import EMPTY, OUTSIDE

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
        help="Pixels outside all objects are the class background, class 0, or do not count (default: background).",
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
    from allspark_hf.data.labeling.formats import FORMATS, read_export, unpacked
    from allspark_hf.data.labeling.writing import require_empty, write_folder
    from allspark_hf.data.sources.classes import read_classes
    from allspark_hf.inference.visualization import default_palette, index_image

    data_dir, palette = arguments.data_dir, default_palette(255)
    require_empty(data_dir, arguments.source)
    classes = read_classes(arguments.classes) if arguments.classes else None
    with unpacked(arguments.source) as source:
        name, export, files = read_export(source, arguments.format, arguments.images_dir, classes)
        print(f"Pictures in this export of {FORMATS[name]}: {len(export.pictures)}", flush=True)
        imported = write_folder(
            export,
            files,
            data_dir,
            arguments.outside,
            arguments.empty_images,
            classes,
            lambda mask: index_image(mask, palette),
        )
    print("\n".join(report(imported, arguments.empty_images)))
    draw_overlays(imported, data_dir)
    extra = " --ignored_mask_values 255" if has_ambiguous_masks(imported) else ""
    print(f"\nLook at {data_dir / 'overlays'}, then: allspark train --data_dir {data_dir}{extra} --output_dir out")


def report(imported, empty_images: str) -> list[str]:
    """What was imported, as lines."""
    from allspark_hf.utils.text import text_table

    names, pixels = imported.classes.names, list(imported.pixels.values())
    total = sum(pixels)
    splits = [
        [split, str(len(imported.labeled[split])), str(len(imported.unlabeled[split]))]
        for split in imported.labeled
        if imported.labeled[split] or imported.unlabeled[split]
    ]
    rows = []
    for value, name in [*enumerate(names), (255, "ignored")]:
        if value != 255 or total[255]:
            images = sum(bool(counts[value]) for counts in pixels)
            rows.append([name, str(images), f"{total[value]:,}", f"{100 * total[value] / total.sum():.2f}"])
    lines = ["", text_table(["split", "labeled", "unlabeled"], splits), ""]
    lines += [text_table(["class", "images", "pixels", "%"], rows), "", *imported.notes]
    share = 100 * imported.overlapped / total.sum()
    lines.append(
        f"Pixels where objects of different classes overlap: {imported.overlapped:,} ({share:.2f} %); the object that "
        "comes later in the export lies on top, in CVAT that of the higher z_order."
    )
    for event, sentence in EVENTS.items():
        if count := imported.events[event]:
            lines.append(sentence.format(count) + (MAYBE[empty_images] if event == "maybe" else ""))
    if imported.has_new_background and 100 * total[0] < FEW * total.sum():
        lines.append(
            "Hardly any pixel lies outside all objects: if every one was to be labeled, --outside ignore makes the "
            "rest not count, and there is no class background."
        )
    if missing := [name for value, name in enumerate(names) if not total[value]]:
        lines.append(f"No mask shows {', '.join(missing)}.")
    return lines


def has_ambiguous_masks(imported) -> bool:
    """Whether training would take masks of class 0 and ignored pixels for binary ones, with 255 for class 1."""
    values = [frozenset(np.flatnonzero(counts)) for counts in imported.pixels.values()]
    return len(imported.classes.names) == 2 and {0, 255} in values


def draw_overlays(imported, data_dir: Path):
    """Draws pictures that together show as many classes as possible, in a folder that training does not read."""
    from PIL import Image

    from allspark_hf.data.pixels import open_image, to_rgb
    from allspark_hf.inference.visualization import default_palette, legend, outlines, overlay

    names, colors = imported.classes.names, imported.classes.colors
    palette = np.array(colors, dtype=np.uint8) if colors else default_palette(len(names))
    (data_dir / "overlays").mkdir()
    for number, path in enumerate(choose(imported.pixels), 1):
        with open_image(data_dir / path) as opened:
            image = to_rgb(opened)
        with Image.open(data_dir / imported.masks[path]) as opened:
            mask = np.asarray(opened).astype(np.int16)
        # Pale areas and full outlines, so that the picture shows what was missed.
        width = max(1, max(mask.shape) // 500)
        lines = np.where(outlines(mask, width) & (mask < len(names)), mask, -1)
        picture = overlay(overlay(image, mask, palette, PALE), lines, palette, 1, ignore_index=-1)
        picture.thumbnail((LONG_SIDE, LONG_SIDE))
        key = legend(names, palette, [value for value in range(len(names)) if imported.pixels[path][value]] or None)
        sheet = Image.new("RGB", (picture.width + key.width, max(picture.height, key.height)), "white")
        sheet.paste(picture, (0, 0))
        sheet.paste(key, (picture.width, 0))
        sheet.save(data_dir / "overlays" / f"{number}_{Path(path).stem}.png")


def choose(pixels: dict[str, np.ndarray]) -> list[str]:
    """Six pictures, each of which shows the most classes that those before do not, or else the most."""
    seen, chosen, left = np.zeros(256, dtype=int), [], {path: counts > 0 for path, counts in pixels.items()}
    while left and len(chosen) < OVERLAYS:
        new = {path: np.sum(shown & (seen == 0)) for path, shown in left.items()}
        best = max(left, key=lambda path: (new[path], np.sum(left[path])))
        seen += left.pop(best)
        chosen.append(best)
    return chosen


def main() -> None:
    try:
        run()
    except KeyboardInterrupt:
        sys.exit("Interrupted; the folder is whole, or not there.")
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")

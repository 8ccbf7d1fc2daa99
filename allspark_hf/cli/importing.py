"""Imports an export of a labeling tool into a data folder, for `allspark import` and a `--data_dir` that is one."""

import os
import shlex
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image

from allspark_hf.data import DataArguments
from allspark_hf.data.labeling.export import IGNORED
from allspark_hf.data.labeling.formats import FORMATS, read_export, unpacked
from allspark_hf.data.labeling.record import RECORD_FILE, describe_source, find_changes
from allspark_hf.data.labeling.writing import EMPTY, OUTSIDE, Imported, require_empty, write_folder
from allspark_hf.data.pixels import open_image, to_rgb
from allspark_hf.data.recognition import ExportFound, find_layout
from allspark_hf.data.sources.classes import Classes, classes_in, read_classes
from allspark_hf.inference.visualization import default_palette, index_image, legend, outlines, overlay
from allspark_hf.utils.files import read_json_object, write_json
from allspark_hf.utils.text import one_line, text_table


OVERLAYS = 6
FEW = 2  # percent of the pixels; so little background may be gaps between objects
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


def import_export(
    source: Path,
    data_dir: Path,
    name: str | None = None,
    images_dir: Path | None = None,
    classes: Classes | None = None,
    outside: str = OUTSIDE[0],
    empty_images: str = EMPTY[0],
) -> Imported:
    """
    Writes the data folder of an export ([`read_export`], [`write_folder`]) with overlays, and prints what was
    imported.

    Raises:
        OSError, ImportError, ValueError: if the export cannot be imported; then nothing is written.
    """
    source, palette = Path(os.path.abspath(source)), default_palette(255)
    require_empty(data_dir, source)
    with unpacked(source) as inner:
        name, export, files = read_export(inner, name, images_dir, classes)
        print(f"Pictures in this export of {FORMATS[name]}: {len(export.pictures)}", flush=True)
        record = describe_source(source, export.pictures if inner == source else ())

        def finish(imported: Imported, folder: Path):
            ignored = [IGNORED] if imported.has_ambiguous_masks else None
            write_json(folder / RECORD_FILE, record | {"ignored_mask_values": ignored})
            draw_overlays(imported, folder)

        to_image = partial(index_image, palette=palette)
        imported = write_folder(export, files, data_dir, outside, empty_images, classes, to_image, finish)
    print("\n".join(report(imported, empty_images)), flush=True)
    return imported


def use_import(arguments: DataArguments) -> list[str]:
    """
    If `data_dir` is an export, imports it into the folder `EXPORT_imported` beside it, unless that was done before,
    and makes this folder the `data_dir`. The first process imports, and others wait for it.

    Args:
        arguments ([`DataArguments`]): arguments of the command; changed in place.

    Returns:
        `list[str]`: the changes as options of a command line.

    Raises:
        ValueError: if the export cannot be imported as it is, or the folder was made of other files or classes.
    """
    if arguments.data_dir is None or arguments.data_format is not None:
        return []
    try:
        find_layout(arguments.data_dir, voc_masks=arguments.voc_masks)
        return []
    except ExportFound as found:
        refusal = str(found)
    except (OSError, ValueError):  # reading the data will raise it again
        return []
    source = Path(os.path.abspath(arguments.data_dir))
    if source.suffix.lower() in (".yaml", ".yml"):  # all files beside it are part of the export
        return []
    data_dir = source.with_name(f"{source.stem if source.is_file() else source.name}_imported")
    classes = read_classes(arguments.classes) if arguments.classes else None
    is_new = not data_dir.exists()
    if is_new:
        try:
            _import_once(source, data_dir, classes)
        except (ImportError, OSError, ValueError) as error:
            raise ValueError(f"{refusal} To do so at {data_dir} failed: {error}") from error
    _require_same(source, data_dir, classes)
    if not is_new and os.environ.get("RANK", "0") == "0":
        print(f"Reading {data_dir}, which {source} was imported into before; look at {data_dir / 'overlays'}.")
    arguments.data_dir = str(data_dir)
    options = ["--data_dir", arguments.data_dir]
    ignored = read_json_object(data_dir / RECORD_FILE).get("ignored_mask_values")
    if ignored and arguments.mask_values is None and arguments.ignored_mask_values is None:
        arguments.ignored_mask_values = ignored
        options += ["--ignored_mask_values", *map(str, ignored)]
    return options


def _import_once(source: Path, data_dir: Path, classes: Classes | None):
    lock = data_dir.with_name(f".{data_dir.name}.lock")
    with FileLock(lock):
        try:
            if not data_dir.exists():
                import_export(source, data_dir, classes=classes)
                print(
                    f"\nLook at {data_dir / 'overlays'}. The command goes on with {data_dir}; to decide otherwise, "
                    f"remove that folder and make it with `allspark import {shlex.quote(str(source))} "
                    f"{shlex.quote(str(data_dir))}` and its options.",
                    flush=True,
                )
        finally:
            with suppress(OSError):
                lock.unlink()


def _require_same(source: Path, data_dir: Path, classes: Classes | None):
    """Raises `ValueError` unless the folder was made of the export as it is now, with these classes."""
    changes = find_changes(source, data_dir)
    if changes is None:
        raise ValueError(
            f"{source} would be imported into {data_dir}, but that is there already and was not imported: give "
            f"{data_dir} as data_dir if it is the data to read, or else rename it."
        )
    if changes:
        more = f" and {len(changes) - 1} more" if len(changes) > 1 else ""
        raise ValueError(
            f"{source} has changed since it was imported into {data_dir} ({changes[0]}{more}): rename or remove that "
            "folder to import the export anew, or give it as data_dir to read what was imported."
        )
    found = classes_in(data_dir)
    if classes is not None and found is not None and classes.names != found.names:
        raise ValueError(
            f"{source} was imported into {data_dir} with the classes {', '.join(found.names)}, and --classes lists "
            "others: leave it out, or rename or remove that folder to import the export with them."
        )


def report(imported: Imported, empty_images: str) -> list[str]:
    """What was imported, as lines."""
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


def draw_overlays(imported: Imported, data_dir: Path):
    """Draws overlays of pictures that together show many classes, in a folder that training does not read."""
    names, colors = imported.classes.names, imported.classes.colors
    palette = np.array(colors, dtype=np.uint8) if colors else default_palette(len(names))
    (data_dir / "overlays").mkdir()
    for number, path in enumerate(choose(imported.pixels), 1):
        try:
            with open_image(data_dir / path) as opened:
                image = to_rgb(opened)
        except Exception as error:  # Pillow raises nearly anything
            raise ValueError(f"The picture {path} cannot be read ({one_line(error)}); replace it.") from error
        with Image.open(data_dir / imported.masks[path]) as opened:
            mask = np.asarray(opened).astype(np.int16)
        # Pale areas with strong outlines let the picture show what was missed.
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
    """Up to six pictures: each shows the most classes that no earlier one shows, then the most classes."""
    seen, chosen, left = np.zeros(256, dtype=int), [], {path: counts > 0 for path, counts in pixels.items()}
    while left and len(chosen) < OVERLAYS:
        new = {path: np.sum(shown & (seen == 0)) for path, shown in left.items()}
        best = max(left, key=lambda path: (new[path], np.sum(left[path])))
        seen += left.pop(best)
        chosen.append(best)
    return chosen

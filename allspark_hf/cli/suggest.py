"""Suggests which unlabeled images to label next, by what a trained model is unsure of.

    allspark suggest --model OUT --data_dir DATA --count 20 --output_dir SUGGESTIONS

An image is labeled if the training OUT used its mask or, where that training hid no mask, if it has one now;
--labeled_count and the like say otherwise. Each unlabeled image is predicted as it is and mirrored. Its score is the
entropy of the class probabilities plus the share of pixels whose class changes by the mirroring, each over its mean of
all images; pixels count more the lower the IoU of the classes that they may be of, in OUT/eval_results.json. Of the
4 x count images with the highest scores, those are taken that are, one after another, farthest from all labeled and
taken ones by the encoder's features. The same command gives the same images; the data stay as they are.

Writes suggestions.txt, an id a line as --labeled_list reads them, the one to label first at the top; suggestions.csv
with files and numbers; and contact_sheet.png: each image, where the model is unsure (red), and why. --format also
copies the images to images/ and writes the predictions as outlines, to be corrected in a labeling tool. Exit code
0: all done; 1: some images could not be read, the others are compared.
"""

import csv
import re
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm

from allspark_hf.cli.arguments import parse_arguments
from allspark_hf.cli.ending import run_script
from allspark_hf.cli.importing import use_import
from allspark_hf.data import DataArguments, Reading, list_path, split_of_run
from allspark_hf.data.labeling.annotations import LABELME, WRITERS
from allspark_hf.data.labeling.polygons import require_outlines
from allspark_hf.data.reading import undecoded
from allspark_hf.evaluation.metrics import metric_name
from allspark_hf.evaluation.selection import find_data_of_models
from allspark_hf.inference.annotation_writer import AnnotationWriter
from allspark_hf.inference.contact_sheet import Entry, contact_sheet
from allspark_hf.inference.files import name_results
from allspark_hf.inference.loading import load_trained, long_side_of
from allspark_hf.inference.prediction import model_picture, palette_of, predict_mask
from allspark_hf.inference.suggestion import Doubt, choose, class_weights, read_doubt, read_features, scores
from allspark_hf.publishing.record import RECORD_FILE
from allspark_hf.utils.arguments import argument, check_values
from allspark_hf.utils.files import read_json_object
from allspark_hf.utils.text import one_line


LIST, TABLE, SHEET, IMAGES = "suggestions.txt", "suggestions.csv", "contact_sheet.png", "images"


@dataclass
class SuggestArguments:
    model: str = argument(help="Folder or Hub id of a trained model.")
    output_dir: str = argument(help="Folder of the suggestions.")
    count: int = argument(20, "How many images to suggest.", interval="[1, inf)")
    format: str | None = argument(
        None, f"Also write outlines for this labeling tool: {', '.join(WRITERS)}.", choices=[*WRITERS]
    )
    tolerance: float = argument(
        1.0, "With --format: pixels that a point left out may lie from its outline.", interval="[0, inf)"
    )
    image_column_name: str = argument("image", "Column of dataset_name with the images.")
    label_column_name: str = argument("label", "Column of dataset_name with the masks.")
    overwrite: bool = argument(False, "Replace earlier suggestions.")
    device: str | None = argument(None, "Such as cpu or cuda:0; default: the GPU if any.")

    def __post_init__(self):
        check_values(self)
        folder = Path(self.output_dir)
        if self.format is not None:  # also with --overwrite, since they may have been corrected by hand
            names = [IMAGES, LABELME, *(name for kind in WRITERS.values() for name in kind.files)]
            for name in names:
                if (folder / name).exists():
                    raise ValueError(f"{folder / name} exists: remove it, or choose another --output_dir.")
        existing = [folder / name for name in (LIST, TABLE, SHEET) if (folder / name).exists()]
        if existing and not self.overwrite:
            raise ValueError(f"{existing[0]} exists: pass --overwrite, or choose another --output_dir.")


def labeled_as_in_run(arguments: DataArguments, folder: str) -> DataArguments:
    """
    Arguments of the data with the labeled images of the run in `folder`, unless they say themselves what is labeled.
    If the run hid no mask, an image is also labeled if it has a mask now, since that was drawn after the run.
    """
    of_run = split_of_run(arguments, folder)
    record = read_json_object(list_path(folder, "labeled").with_name(RECORD_FILE))
    if (record.get("data") or {}).get("hidden_masks") == 0:
        return replace(of_run, labeled_list=arguments.labeled_list)
    return of_run


def weights_of(model, folder: str) -> np.ndarray:
    """The weights of the classes, from the run's last evaluation if there is one; prints them."""
    results = read_json_object(Path(folder) / "eval_results.json")
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    iou = [results.get(f"eval_iou_{metric_name(name)}") for name in names]
    weights = class_weights(iou)
    if all(value is None for value in iou):
        print(f"All classes weigh the same, because {folder} has no eval_results.json with their IoU.")
    else:
        lowest = sorted(range(len(names)), key=lambda index: -weights[index])[:5]
        shown = ", ".join(f"{names[index]} {weights[index]:.2f}" for index in lowest)
        print(f"Weights of classes, by what their IoU lacks: {shown}{', ...' if len(names) > len(lowest) else ''}")
    return weights


class Suggestion(NamedTuple):
    """An image to label: its row, its id, its file if it has one, its score, and the doubt behind the score."""

    row: int
    id: str
    file: str | None
    score: float
    doubt: Doubt


class Images:
    """
    Reads the images of a set one by one; names on stderr, and counts, those that cannot be used.

    Args:
        dataset (`datasets.Dataset`): a set of [`find_data`], whose masks are not read.
        reading ([`Reading`]): how the model reads images.
    """

    def __init__(self, dataset: Dataset, reading: Reading):
        self.dataset = dataset.select_columns(["id", "image"])
        self.ids = dataset["id"][:]
        self.reading = reading
        self.num_bad = 0

    def picture(self, row: int):
        return model_picture(self.dataset[row]["image"], self.reading)

    def measure(self, function, title: str) -> dict[int, object]:
        """Row -> what `function` returns for its picture."""
        found = {}
        for row in tqdm(range(len(self.dataset)), desc=title, unit="image", disable=None):
            try:
                found[row] = function(self.picture(row))
            # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error and others on bad files.
            except Exception as error:
                self.num_bad += 1
                tqdm.write(f"{self.ids[row]}: left out, {one_line(error)}", file=sys.stderr)
        return found

    def file(self, row: int) -> str | None:
        """The path of an image that is a file of its own."""
        stored = undecoded(self.dataset, "image")[row]["image"]
        return stored["path"] if stored["bytes"] is None else None


def suggest(arguments: SuggestArguments, data_arguments: DataArguments) -> int:
    """Writes the suggestions; returns the number of images that could not be used."""
    if data_arguments.unlabeled_streaming:
        raise ValueError("A stream has no list of images to choose from: leave --unlabeled_streaming out.")
    if arguments.format is not None:
        require_outlines()
    model, image_processor = load_trained(arguments.model, arguments.device)
    use_import(data_arguments)
    columns = arguments.image_column_name, arguments.label_column_name
    of_run = labeled_as_in_run(data_arguments, arguments.model)
    data = find_data_of_models(of_run, [(model.config, long_side_of(image_processor))], *columns)
    where = data_arguments.data_dir or data_arguments.dataset_name
    if not len(data.unlabeled):
        raise ValueError(f"{where} has no unlabeled image, so there is nothing to suggest: add images without masks.")
    hidden = f", {len(data.hidden_ids)} of which have a mask that counts as hidden" if data.hidden_ids else ""
    print(f"{len(data.labeled)} labeled images, {len(data.unlabeled)} unlabeled ones{hidden}")
    weights = weights_of(model, arguments.model)
    network = model, image_processor
    reading = Reading.of(model.config)
    labeled, unlabeled = Images(data.labeled, reading), Images(data.unlabeled, reading)
    centers = labeled.measure(lambda picture: read_features(*network, picture), "labeled")
    found = unlabeled.measure(lambda picture: read_doubt(*network, picture, weights)[0], "unlabeled")
    if not found:
        raise ValueError(f"No unlabeled image of {where} can be used: see the lines above.")
    rows, doubts = list(found), list(found.values())
    points = scores(doubts)
    chosen = [
        Suggestion(rows[place], unlabeled.ids[rows[place]], unlabeled.file(rows[place]), points[place], doubts[place])
        for place in choose(doubts, np.array(list(centers.values())), arguments.count)
    ]
    write(arguments, chosen, unlabeled, *network, weights)
    return labeled.num_bad + unlabeled.num_bad


def write(arguments: SuggestArguments, chosen: list[Suggestion], images: Images, model, image_processor, weights):
    """Writes all files, first the list, which took longest to compute."""
    folder, id2label = Path(arguments.output_dir), model.config.id2label
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LIST).write_text("".join(f"{one.id}\n" for one in chosen), encoding="utf-8")
    write_table(folder / TABLE, chosen, id2label)
    pictures = ((one, images.picture(one.row)) for one in chosen)
    entries = (
        Entry(
            picture,
            read_doubt(model, image_processor, picture, weights)[1],
            f"{place}. {one.id}",
            one.doubt.reason(id2label).replace(" %", "%"),  # else a line may break before it
        )
        for place, (one, picture) in enumerate(pictures, 1)
    )
    contact_sheet(entries).save(folder / SHEET)
    if arguments.format is not None:
        write_outlines(arguments, chosen, images, model, image_processor)
    no_more = " (there are no more)" if len(chosen) < arguments.count else ""
    files = ", ".join(str(folder / name) for name in (LIST, TABLE, SHEET))
    print(f"{len(chosen)} images to label next{no_more}: {files}")


def write_table(path: Path, chosen: list[Suggestion], id2label: dict[int, str]):
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "file", "score", "entropy", "flips differ on", "why"])
        for one in chosen:
            numbers = (f"{value:.4f}" for value in (one.score, one.doubt.entropy, one.doubt.disagreement))
            table.writerow([one.id, one.file, *numbers, one.doubt.reason(id2label)])


def write_outlines(arguments: SuggestArguments, chosen: list[Suggestion], images: Images, model, image_processor):
    """Copies the images, and writes the model's predictions as outlines for a labeling tool."""
    folder, config = Path(arguments.output_dir), model.config
    labels = [config.id2label[index] for index in range(config.num_labels)]
    ordered = sorted(chosen, key=lambda one: one.id)  # as tools sort them
    # Tools would show the first page of a stack, so they get the page that was read as a PNG.
    as_png = (".tif", ".tiff") if images.reading.tiff_page is not None else ()
    files = [copy_of(one, as_png) for one in ordered]
    names = name_results(Path(), files)
    copies = {name: f"{name.as_posix()}{file.suffix}" for name, file in zip(names, files, strict=True)}
    what = arguments.format, labels, palette_of(model.config), range(len(labels)), arguments.tolerance
    writer = AnnotationWriter(folder, *what, copies, folder / IMAGES)
    for one, name in zip(ordered, names, strict=True):
        picture, copy = images.picture(one.row), folder / IMAGES / copies[name]
        copy.parent.mkdir(parents=True, exist_ok=True)
        if one.file and copy.suffix == Path(one.file).suffix:
            shutil.copyfile(one.file, copy)
        else:
            picture.save(copy)
        writer.write(name, picture, predict_mask(model, image_processor, picture), None)
    writer.finish()


def copy_of(one: Suggestion, as_png: tuple[str, ...]) -> Path:
    """The path of an image's copy by its id, which may be a path anywhere or `unlabeled_dir:PATH`; never leads out."""
    suffix = Path(one.file).suffix if one.file else ".png"
    parts = [part for part in re.split(r"[:/\\]+", one.id.removesuffix(suffix)) if part not in ("", ".", "..")]
    return Path(*parts[:-1], f"{parts[-1] if parts else 'image'}{'.png' if suffix.lower() in as_png else suffix}")


def main() -> int:
    num_bad = run_script(lambda: suggest(*parse_arguments((SuggestArguments, DataArguments))), "Interrupted.")
    return 1 if num_bad else 0

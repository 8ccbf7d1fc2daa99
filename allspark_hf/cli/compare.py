"""Compares trainings with the same labeled and validation images: a table and pictures.

    allspark compare --data_dir DATA --runs OUT OUT/supervised --output_dir COMPARISON

Runs of one method are told apart by the names of their folders. Writes `metrics.json`, `metrics.md`, `comparison.png`
and `legend.png`, and prints the table.
"""

import argparse
from dataclasses import fields
from pathlib import Path

from datasets import Dataset

from allspark_hf.cli.arguments import ModelArguments
from allspark_hf.cli.baseline import BASELINE, compare_folders
from allspark_hf.cli.ending import run_script
from allspark_hf.cli.importing import use_import
from allspark_hf.cli.models import CONFIG_FIELDS
from allspark_hf.data import DataArguments, split_of_run
from allspark_hf.data.summary import require_known_values
from allspark_hf.evaluation.metrics import metric_name
from allspark_hf.evaluation.selection import check_classes, find_data_of_models
from allspark_hf.figures import STYLES, compare_predictions, draw_predictions
from allspark_hf.figures.crops import require_same_classes
from allspark_hf.figures.style import drawing
from allspark_hf.inference.loading import load_trained, long_side_of
from allspark_hf.inference.visualization import legend
from allspark_hf.methods import arguments_of_others
from allspark_hf.publishing.licenses import FROM_SCRATCH
from allspark_hf.publishing.outdated import outdated_files
from allspark_hf.publishing.records import RECORD_FILE, evaluation_mode
from allspark_hf.studies.study import read_run_metrics
from allspark_hf.training.arguments import AllSparkTrainingArguments
from allspark_hf.utils.arguments import default_of, names, plain
from allspark_hf.utils.files import read_json, read_json_object, write_json
from allspark_hf.utils.text import markdown_table, text_table


NUM_ROWS = 8
ARGUMENTS = (ModelArguments, DataArguments, AllSparkTrainingArguments)
# Arguments that decide what a training with `BASELINE` learns from given images, but for its method and its length.
NOT_COMPARED = {"method", "num_train_epochs", "max_steps", "holdout_fraction", "on_bad_image", "shuffle_buffer_size"}
NOT_COMPARED |= {"model_name_or_path", "attn_implementation", *CONFIG_FIELDS, *arguments_of_others(BASELINE)}
COMPARED = [
    *(one.name for one in fields(ModelArguments)),
    *("image_long_side", "tiff_page", "mask_values", "ignored_mask_values", "ignore_index"),
    *(name for rule in ("refused", "kept", "changed") for name in names(AllSparkTrainingArguments, resume=rule)),
    "labeled_images_per_update",
]
COMPARED = [name for name in COMPARED if name not in NOT_COMPARED]


def read_run(folder: Path) -> dict:
    """
    What a training wrote about itself into its output folder: the name and title of its `method`, the entries of
    [`read_run_metrics`], counts of images, `labeled_ids` (without images held out), `validation_ids`, how it was
    evaluated, and in [0, 1] of the weights that were kept `mean_iou` and `iou`: class (with underscores for blanks) ->
    value, without classes that neither masks nor predictions show.
    """
    record = read_json_object(folder / RECORD_FILE)
    if "method" not in record:
        raise ValueError(f"{folder / RECORD_FILE} names no method: give output folders of allspark train.")
    kinds = ["labeled", "unlabeled", "validation", *["holdout"] * bool(record["settings"].get("holdout_fraction"))]
    ids = {kind: (folder / f"{kind}_ids.txt").read_text(encoding="utf-8").split("\n")[:-1] for kind in kinds}
    held_out = set(ids.get("holdout", ()))
    last = read_json(folder / "eval_results.json")
    if RECORD_FILE in outdated_files(folder):
        raise ValueError(f"The numbers in {folder} are not of the weights there: train anew, or restore the weights.")
    evaluation, method = record.get("evaluation") or {}, record["method"]["name"]
    title = record["method"]["title"] or method
    return {
        "method": method,
        "title": title[0].upper() + title[1:],
        "evaluation": evaluation_mode(evaluation),
        "count_absent_classes": bool(evaluation.get("count_absent_classes")),
        "labeled_ids": [name for name in ids["labeled"] if name not in held_out],
        "validation_ids": ids["validation"],
        "validation_images": len(ids["validation"]),
        # A supervised training reads no unlabeled images, though their number may be the length of an epoch.
        "unlabeled_images": len(ids["unlabeled"]) if record["data"]["unlabeled_used"] else 0,
        **read_run_metrics(folder),
        "mean_iou": last["eval_mean_iou"],
        "iou": {name.removeprefix("eval_iou_"): value for name, value in last.items() if "eval_iou_" in name},
    }


def read_runs(folders: list[Path]) -> dict[str, dict]:
    """[`read_run`] of each folder, by method; of several with one method, also by the folder's name."""
    runs, found = {}, [read_run(folder) for folder in folders]
    methods = [run["method"] for run in found]
    for folder, run in zip(folders, found, strict=True):
        where = f" ({folder.absolute().name})" if methods.count(run["method"]) > 1 else ""
        name = run["method"] + where
        if name in runs:
            raise ValueError(f"There are two runs of {name}: rename one of the folders, or leave it out.")
        runs[name] = run | {"title": run["title"] + where}
    return runs


def check_same_images(runs: dict[str, dict]) -> None:
    """Raises ValueError unless the runs had the same labels, validation images and evaluation."""
    first, *others = runs
    for other in others:
        for name in ("labeled_ids", "validation_ids", "kept", "evaluation", "count_absent_classes"):
            if runs[first][name] != runs[other][name]:
                raise ValueError(
                    f"{name.replace('_ids', ' images')} of {first} and {other} differ, so that their numbers do not "
                    "compare: train both anew with the same recipe."
                )


def table(runs: dict[str, dict], class_names: list[str]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, IoU in percent."""

    def percent(value: float | None) -> str:
        return "absent" if value is None else f"{100 * value:.1f}"

    rows = [
        ("Labeled images", lambda run: str(run["labeled_images"])),
        ("Unlabeled images read", lambda run: str(run["unlabeled_images"])),
        ("Steps", lambda run: str(run["steps"])),
        ("Training, seconds", lambda run: f"{run['seconds']:.0f}" + " (since it was resumed)" * run["resumed"]),
        ("**mIoU, last**", lambda run: f"**{percent(run['last_mean_iou'])}**"),
        ("mIoU, best (step)", lambda run: f"{percent(run['best_mean_iou'])} ({run['best_step']})"),
    ]
    cells = [[title, *map(cell, runs.values())] for title, cell in rows]
    for name in class_names:
        cells.append([f"IoU {name}", *(percent(run["iou"].get(metric_name(name))) for run in runs.values())])
    return ["", *(run["title"] for run in runs.values())], cells


def write_metrics(output_dir: Path, runs: dict[str, dict], class_names: list[str]) -> str:
    """Writes `metrics.json` and `metrics.md`; returns the table, for a terminal."""
    metrics = {
        key: {name: value for name, value in run.items() if not name.endswith("_ids")} for key, run in runs.items()
    }
    write_json(output_dir / "metrics.json", metrics)
    cells = table(runs, class_names)
    num_validation = next(iter(runs.values()))["validation_images"]
    note = (
        f"IoU in percent on {num_validation} validation images, per class for the weights that were kept. `best` is "
        "the highest of the evaluations, picked on these same images. Seconds include the evaluations."
    )
    (output_dir / "metrics.md").write_text(f"{markdown_table(*cells)}\n\n{note}\n", encoding="utf-8")
    return text_table(*cells)


def validation_of_run(data_dir: Path, folder: Path, models: dict[str, tuple]) -> Dataset:
    """The validation images of a run's list; ValueError if one is missing, or the classes are not the models'."""
    arguments = DataArguments(data_dir=str(data_dir))
    use_import(arguments)
    convention = [(model.config, long_side_of(processor)) for model, processor in models.values()]
    data = find_data_of_models(split_of_run(arguments, str(folder)), convention)
    for config, _ in convention:
        check_classes(config, data.classes, str(data_dir))
        require_known_values({"validation": data.validation}, config)
    return data.validation


def verdicts(runs: dict[str, dict], folders: list[Path]) -> list[str]:
    """For each training whether it is better than each supervised one, where both have counts by image."""
    pairs = list(zip(runs.values(), folders, strict=True))
    supervised, lines = [pair for pair in pairs if pair[0]["method"] == BASELINE], []
    for run, folder in pairs:
        for baseline, baseline_folder in supervised if run["method"] != BASELINE else ():
            compared = compare_folders(baseline_folder, folder, run["count_absent_classes"])
            if compared is None:
                continue
            against = f" against {baseline['title']}" if len(supervised) > 1 else ""
            lines.append(f"{run['title']}{against}: {compared[1]}")
            if run["steps"] != baseline["steps"]:
                lines[-1] += f" But the lengths differ: {length_of(run)} with them, {length_of(baseline)} without."
            others = compared_settings(baseline_folder)
            differing = [name for name, value in compared_settings(folder).items() if value != others[name]]
            if differing:
                lines[-1] += f" But they also differ in: {', '.join(differing)}."
    return lines


def compared_settings(folder: Path) -> dict:
    """The values of `COMPARED` in a training, given or not; `encoder` is also the model that it started from."""
    record, config = read_json_object(folder / RECORD_FILE), read_json(folder / "config.json")
    found = {one.name: plain(default_of(one)) for kind in ARGUMENTS for one in fields(kind)}
    found |= record["arguments"] | record["settings"] | record["training"] | config
    if isinstance(found["crop_size"], int):
        found["crop_size"] = [found["crop_size"]] * 2
    if record["model"]["started_from"] != FROM_SCRATCH:
        found["encoder"] = record["model"]["started_from"]
    return {name: found[name] for name in COMPARED}


def length_of(run: dict) -> str:
    """The updates of a training, and its seconds, if they are known whole."""
    return f"{run['steps']} updates" + ("" if run["resumed"] else f" in {run['seconds']:.0f} s")


def draw_comparison(
    output_dir: Path, validation: Dataset, runs: dict[str, dict], models: dict[str, tuple], num_rows: int
) -> None:
    """Writes `comparison.png`, whose rows are validation images, evenly spread, and `legend.png`."""
    num_rows = min(num_rows, len(validation))
    rows = [validation[index * len(validation) // num_rows] for index in range(num_rows)]
    titled = {f"{runs[name]['title']}\nmIoU {100 * runs[name]['mean_iou']:.1f} %": models[name] for name in runs}
    arrays = compare_predictions(titled, rows)
    with drawing(STYLES["light"]):
        draw_predictions(arrays, STYLES["light"]).savefig(output_dir / "comparison.png")
    legend(arrays["class_names"], arrays["palette"]).save(output_dir / "legend.png")


def compare() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder that the runs were trained on")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="output folders of `allspark train`")
    parser.add_argument("--output_dir", type=Path, required=True, help="where to write the comparison")
    parser.add_argument("--num_rows", type=int, default=NUM_ROWS, help="validation images to draw (default: 8)")
    options = parser.parse_args()
    runs = read_runs(options.runs)
    check_same_images(runs)
    models = {name: load_trained(str(folder), device="cpu") for name, folder in zip(runs, options.runs, strict=True)}
    require_same_classes(models)
    validation = validation_of_run(options.data_dir, options.runs[0], models)
    config = next(iter(models.values()))[0].config
    options.output_dir.mkdir(parents=True, exist_ok=True)
    print(write_metrics(options.output_dir, runs, [config.id2label[index] for index in range(config.num_labels)]))
    print(*verdicts(runs, options.runs), sep="\n")
    draw_comparison(options.output_dir, validation, runs, models, options.num_rows)
    for name in ("comparison.png", "legend.png", "metrics.md", "metrics.json"):
        print(options.output_dir / name)


def main() -> None:
    run_script(compare, "Interrupted.")

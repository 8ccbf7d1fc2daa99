"""Compares runs of scripts/train.py that differ in nothing but the method: a table and pictures.

    python scripts/compare_runs.py --data_dir DATA --runs OUT/supervised OUT/allspark --output_dir OUT

The folders of the runs are named like their methods. Writes `metrics.json`, `metrics.md`, `comparison.png` and
`legend.png`, and prints the table.
"""

import argparse
import json
import sys
from pathlib import Path

from PIL import Image


TITLES = {"supervised": "Supervised", "pseudo_label": "Pseudo-labels", "allspark": "AllSpark"}
NUM_ROWS = 8
MINIMUM_WIDTH = 240


def read_run(folder: Path) -> dict:
    """
    What a run of scripts/train.py says about itself.

    Args:
        folder: Its output folder, named like its method.

    Returns:
        Image counts, steps, seconds, `last_mean_iou`, `best_mean_iou` with its `best_step`, and `iou`: class (blanks
        as underscores) -> value in [0, 1]; a class in neither masks nor predictions is left out.
    """
    from allspark_hf.methods import METHODS

    last, train, state = (
        json.loads((folder / name).read_text(encoding="utf-8"))
        for name in ("eval_results.json", "train_results.json", "trainer_state.json")
    )
    ids = {
        kind: (folder / f"{kind}_ids.txt").read_text(encoding="utf-8").split("\n")[:-1]
        for kind in ("labeled", "unlabeled", "validation")
    }
    # The state is saved before the final evaluation, which therefore is added.
    evaluated = [(entry["eval_mean_iou"], entry["step"]) for entry in state["log_history"] if "eval_mean_iou" in entry]
    evaluated.append((last["eval_mean_iou"], state["global_step"]))
    best, best_step = max(evaluated, key=lambda entry: entry[0])
    return {
        "labeled_ids": ids["labeled"],
        "validation_ids": ids["validation"],
        # Supervised training sees how many unlabeled images there are (length of an epoch), but reads none.
        "unlabeled_images": len(ids["unlabeled"]) if METHODS[folder.name].uses_unlabeled else 0,
        "steps": state["global_step"],
        "seconds": train["train_runtime"],
        "last_mean_iou": last["eval_mean_iou"],
        "best_mean_iou": best,
        "best_step": best_step,
        "iou": {name.removeprefix("eval_iou_"): value for name, value in last.items() if "eval_iou_" in name},
    }


def check_same_budget(runs: dict[str, dict]) -> None:
    """Raises ValueError unless the runs had the same labels, validation images and number of steps."""
    first, *others = runs
    for other in others:
        for name in ("labeled_ids", "validation_ids", "steps"):
            if runs[first][name] != runs[other][name]:
                raise ValueError(
                    f"{name} of {first} and {other} differ, so that their numbers do not compare: train both anew "
                    "with the same recipe."
                )


def table(runs: dict[str, dict], class_names: list[str]) -> str:
    """Markdown table of both runs, IoU in percent."""
    from allspark_hf.evaluation.metrics import metric_name

    def percent(value: float | None) -> str:
        return "absent" if value is None else f"{100 * value:.1f}"

    rows = [
        ("Labeled images", lambda run: str(len(run["labeled_ids"]))),
        ("Unlabeled images read", lambda run: str(run["unlabeled_images"])),
        ("Steps", lambda run: str(run["steps"])),
        ("Training, seconds", lambda run: f"{run['seconds']:.0f}"),
        ("**mIoU, last**", lambda run: f"**{percent(run['last_mean_iou'])}**"),
        ("mIoU, best (step)", lambda run: f"{percent(run['best_mean_iou'])} ({run['best_step']})"),
    ]
    lines = [["", *(TITLES[method] for method in runs)]]
    lines += [[title, *(cell(run) for run in runs.values())] for title, cell in rows]
    for name in class_names:
        lines.append([f"IoU {name}", *(percent(run["iou"].get(metric_name(name))) for run in runs.values())])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [
        "| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + " |" for line in lines
    ]
    text.insert(1, "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|")
    return "\n".join(text) + "\n"


def write_metrics(output_dir: Path, runs: dict[str, dict], class_names: list[str]) -> str:
    """Writes `metrics.json` and `metrics.md`; returns the table."""
    metrics = {}
    for method, run in runs.items():
        counts = {"labeled_images": len(run["labeled_ids"]), "validation_images": len(run["validation_ids"])}
        metrics[method] = counts | {name: value for name, value in run.items() if not name.endswith("_ids")}
    (output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    text = table(runs, class_names)
    num_validation = len(next(iter(runs.values()))["validation_ids"])
    note = (
        f"\nIoU in percent on {num_validation} validation images, per class for the last weights. `best` is the "
        "highest of the evaluations, picked on these same images. Seconds include the evaluations.\n"
    )
    (output_dir / "metrics.md").write_text(text + note, encoding="utf-8")
    return text


def draw_comparison(
    output_dir: Path, data_dir: Path, runs: dict[str, dict], models: dict[str, tuple], num_rows: int
) -> None:
    """Writes `comparison.png`, a row for each of some validation images, evenly spread, and `legend.png`."""
    from allspark_hf.data import load_folder
    from allspark_hf.data.images import mask_to_array, to_rgb
    from allspark_hf.inference.prediction import model_palette, predict_mask
    from allspark_hf.inference.visualization import colorize, contact_sheet, legend, side_by_side

    first_model = next(iter(models.values()))[0]
    palette = model_palette(first_model)
    config = first_model.config
    key = legend([config.id2label[index] for index in range(config.num_labels)], palette)
    key.save(output_dir / "legend.png")
    validation = load_folder(data_dir).validation
    num_rows = min(num_rows, len(validation))
    strips = []
    for row in (index * len(validation) // num_rows for index in range(num_rows)):
        image = to_rgb(validation[row]["image"])
        masks = {"Truth": mask_to_array(validation[row]["label"])}
        for method, (model, image_processor) in models.items():
            title = f"{TITLES[method]}, mIoU {100 * runs[method]['last_mean_iou']:.1f} %"
            masks[title] = predict_mask(model, image_processor, image)
        panels = [("Image", enlarge(image, Image.Resampling.BICUBIC))]
        for title, mask in masks.items():
            painted = colorize(mask, palette, config.semantic_loss_ignore_index)
            panels.append((title, enlarge(painted, Image.Resampling.NEAREST)))
        # Titles on the first row only: the columns stay the same.
        strips.append(side_by_side(panels if not strips else [("", picture) for _, picture in panels]))
    side_by_side([("", contact_sheet(strips)), ("", key)]).save(output_dir / "comparison.png")


def enlarge(image: Image.Image, resample: Image.Resampling) -> Image.Image:
    """By the smallest whole factor that makes room for a title."""
    factor = max(1, -(-MINIMUM_WIDTH // image.width))
    return image.resize((factor * image.width, factor * image.height), resample)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder that the runs were trained on")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="output folders of scripts/train.py")
    parser.add_argument("--output_dir", type=Path, required=True, help="where to write the comparison")
    parser.add_argument("--num_rows", type=int, default=NUM_ROWS, help="validation images to draw (default: 8)")
    options = parser.parse_args()
    unknown = [str(folder) for folder in options.runs if folder.name not in TITLES]
    if unknown:
        raise ValueError(f"{', '.join(unknown)} is not named like a method: rename it to one of {', '.join(TITLES)}.")

    from allspark_hf.inference.loading import load_trained

    runs = {folder.name: read_run(folder) for folder in options.runs}
    check_same_budget(runs)
    models = {folder.name: load_trained(str(folder), device="cpu") for folder in options.runs}
    config = next(iter(models.values()))[0].config
    options.output_dir.mkdir(parents=True, exist_ok=True)
    draw_comparison(options.output_dir, options.data_dir, runs, models, options.num_rows)
    print(write_metrics(options.output_dir, runs, [config.id2label[index] for index in range(config.num_labels)]))
    for name in ("comparison.png", "legend.png", "metrics.md", "metrics.json"):
        print(options.output_dir / name)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")

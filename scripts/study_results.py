"""Keeps what the trainings of a study said in two small files, and makes its table and its picture of them.

    python scripts/study_results.py collect RUNS scripts/studies/results/nuclei.json
    python scripts/study_results.py draw scripts/studies/results/nuclei.json

RUNS holds output folders at any depth, such as those of `allspark study`. A NAME.log beside the folder NAME, with
what `/usr/bin/time -f "%U s user"` said, gives its CPU seconds. `collect` adds settings, scores and curves to the JSON
file, and to an .npz file beside it what the last evaluation found in each validation image, of which the intervals
are made. `draw` writes a .png beside them, and the table into scripts/studies/README.md.
"""

import argparse
import itertools
import re
import shlex
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file

from allspark_hf.cli.baseline import BY_IMAGE
from allspark_hf.cli.ending import run_script
from allspark_hf.evaluation.intervals import Score, seeds_interval
from allspark_hf.figures.style import STYLES, Style, drawing, new_figure
from allspark_hf.methods import METHODS
from allspark_hf.publishing.records import RECORD_FILE
from allspark_hf.studies.report import LINE_STYLES, MARKERS
from allspark_hf.utils.files import read_json, write_json
from allspark_hf.utils.text import markdown_table


if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = Path(__file__).parent / "studies" / "README.md"
# Of a command: what every run has, what names it, and what changes nothing in the training.
COMMON = ("--data_dir", "--encoder", "--output_dir", "--method", "--seed", "--eval_steps", "--save_steps")
COMMON += ("--resume_from_checkpoint", "--evaluate_student", "--evaluate_teacher")
CURVES = ("loss_x", "loss_u", "used_u", "pseudo_", "label_share_", "eval_mean_iou")  # beginnings of names
DRAWN = "--split_seed SEED"  # the seed draws the labeled images, too
BUDGET = re.compile(rf"--(?:labeled_count|labeled_fraction|max_steps) [\d.]+|{DRAWN}")  # a baseline has the same
USER_SECONDS = re.compile(r"([\d.]+) s user")


def read_run(folder: Path) -> dict:
    """Settings, scores and curves of a training."""
    record = read_json(folder / RECORD_FILE)
    log = folder.with_name(f"{folder.name}.log")
    said = log.read_text(encoding="utf-8") if log.is_file() else ""
    history = read_json(folder / "trainer_state.json")["log_history"]
    last = read_json(folder / "eval_results.json")
    seconds = [float(found) for found in USER_SECONDS.findall(said)]
    seed = record["settings"]["seed"]
    return {
        "arguments": own_arguments(record["command"], seed),
        "method": record["method"]["name"],
        "seed": seed,
        "updates": record["training"]["steps"],
        "labeled": record["data"]["labeled"],
        "cpu_seconds": round(sum(seconds)) if seconds else None,
        "scores": {name: round(value, 6) for name, value in last.items() if "mean_iou" in name or "_iou_" in name},
        "curves": [
            {"step": entry["step"]} | curves
            for entry in history
            if (curves := {name: round(value, 5) for name, value in entry.items() if name.startswith(CURVES)})
        ],
        "commit": record["git"]["commit"],
        "versions": record["versions"],
        "machine": record["machine"],
    }


def own_arguments(command: str, seed: int) -> str:
    """What a command adds to the study's; a `--split_seed` that is the seed becomes `DRAWN`."""
    words = shlex.split(command)
    words = words[next(place for place, word in enumerate(words) if word.endswith((".yaml", ".yml"))) + 1 :]
    starts = [place for place, word in enumerate(words) if word.startswith("--")] + [len(words)]
    parts = [words[start:end] for start, end in itertools.pairwise(starts)]
    own = shlex.join(word for part in parts if part[0] not in (*COMMON, "--use_cpu") for word in part)
    return re.sub(rf"--split_seed {seed}(?!\S)", DRAWN, own)


def collect(folder: Path, file: Path):
    """Adds all finished runs to the JSON and the .npz; a run there of the same name is replaced."""
    folders = sorted(one.parent for one in folder.rglob("eval_results.json"))
    runs, counts = stored(file) if file.is_file() else ({}, {})
    for one in folders:
        name = "_".join(one.relative_to(folder).parts)
        runs[name] = read_run(one)
        counts.pop(name, None)
        if (one / BY_IMAGE).is_file():
            counts[name] = load_file(one / BY_IMAGE)["counts"]
    write_json(file, dict(sorted(runs.items())))
    np.savez_compressed(file.with_suffix(".npz"), **{name: counts[name].astype(np.int32) for name in sorted(counts)})
    print(f"{len(folders)} runs added: {file} has {len(runs)}, {len(counts)} of them with counts of each image")


def stored(file: Path) -> tuple[dict[str, dict], dict[str, np.ndarray]]:
    """The runs of a study that were collected, and the counts of each image of those that have them."""
    with np.load(file.with_suffix(".npz")) as arrays:
        return read_json(file), {name: arrays[name].astype(np.int64) for name in arrays}


# ---- Rows: the runs that differ in nothing but the seed ----


def rows_of(runs: Mapping[str, dict]) -> dict[tuple, dict[int, str]]:
    """
    (method, arguments, updates, labeled images) -> seed -> name of the run, the methods in the project's order;
    ValueError for two runs that are the same by all of these.
    """
    rows: dict[tuple, dict[int, str]] = {}
    for name, run in runs.items():
        key = run["method"], run["arguments"], run["updates"], run["labeled"]
        other = rows.setdefault(key, {}).setdefault(run["seed"], name)
        if other != name:
            raise ValueError(f"{other} and {name} are the same training: leave one of them out.")
    for (method, arguments, *rest), seeds in rows.items():
        fixed = rows.get((method, " ".join(arguments.replace(DRAWN, "").split()), *rest), {})
        if DRAWN in arguments and 0 in fixed:  # the recipes' own split_seed is 0
            seeds.setdefault(0, fixed[0])
    order = list(METHODS)
    return {key: dict(sorted(rows[key].items())) for key in sorted(rows, key=lambda key: (order.index(key[0]), key))}


def title(key: tuple) -> str:
    """A row as one would type it."""
    return f"{key[0]} {key[1]}".strip()


def interval(counts: Mapping[str, np.ndarray], names: list[str], baselines: list[str] | None = None) -> Score | None:
    """That of [`seeds_interval`] in percent; None where counts are missing."""
    if not {*names, *(baselines or ())} <= set(counts):
        return None
    found = seeds_interval(*([counts[name] for name in group] for group in (names, baselines) if group is not None))
    return Score(*(100 * value for value in found))


def table(runs: Mapping[str, dict], counts: Mapping[str, np.ndarray]) -> str:
    """Markdown, mIoU in percent: each seed, the mean and its interval, and the gain over `supervised`."""
    rows = rows_of(runs)
    lines = []
    for key, seeds in rows.items():
        scores = [100 * runs[name]["scores"]["eval_mean_iou"] for name in seeds.values()]
        found = interval(counts, list(seeds.values()))
        mean = f"{statistics.fmean(scores):.1f}" + (f" ({found.low:.1f} to {found.high:.1f})" if found else "")
        baseline = rows.get(("supervised", " ".join(BUDGET.findall(key[1])), *key[2:]), {})
        pairs = [(name, baseline[seed]) for seed, name in seeds.items() if seed in baseline]
        names, others = [list(group) for group in zip(*pairs, strict=True)] or [[], []] if pairs else ([], [])
        gain = interval(counts, names, others) if pairs and names != others else None
        spent = [runs[name]["cpu_seconds"] for name in seeds.values() if runs[name]["cpu_seconds"]]
        lines.append(
            [
                f"`{title(key)}`",
                ", ".join(f"{score:.1f}" for score in scores),
                mean,
                "" if gain is None else f"{gain.value:+.1f} ({gain.low:+.1f} to {gain.high:+.1f})",
                f"{sum(spent) / len(spent):.0f}" if spent else "",
            ]
        )
    header = ["`--method`", "mIoU of each seed", "mean (95 % interval)", "gain over `supervised`", "CPU s"]
    return markdown_table(header, lines, left=("mIoU of each seed",))


def update_page(name: str, text: str, page: Path = PAGE):
    """Puts a study's table between its two marks on the page."""
    start, end = f"<!-- results/{name}.json -->\n", f"<!-- end of {name} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(start)
    if not found or end not in rest:
        raise ValueError(f"{page} has no lines {start.strip()} and {end}, between which the table goes: write them.")
    page.write_text(f"{before}{start}\n{text}\n\n{end}{rest.partition(end)[2]}", encoding="utf-8")


# ---- Picture ----


def looks(runs: Mapping[str, dict], style: Style) -> dict[tuple, dict]:
    """Color by method, marker and line by what else a row changes."""
    colors = dict(zip(METHODS, (*style.series, style.foreground), strict=False))
    variants = dict.fromkeys(METHODS, 0)
    found = {}
    for key in rows_of(runs):
        place, method = variants[key[0]], key[0]
        variants[method] += 1
        line = LINE_STYLES[place % len(LINE_STYLES)]
        found[key] = {"color": colors[method], "marker": MARKERS[place % len(MARKERS)], "linestyle": line}
    return found


def draw(runs: Mapping[str, dict], name: str, style: Style) -> "Figure":
    """mIoU against CPU minutes, a dot a run; share and accuracy of the pseudo-labels that are learned from."""
    rows = rows_of(runs)
    figure = new_figure(5.2 + 0.17 * len(rows), f"{name}: what CPU minutes buy, and the pseudo-labels")
    axes = figure.subplot_mosaic([["cost", "cost"], ["used_u", "pseudo_accuracy"]], height_ratios=[1.2, 1])
    for key, look in looks(runs, style).items():
        of_row = [runs[one] for one in rows[key].values()]
        timed = [run for run in of_row if run["cpu_seconds"]]
        minutes = [run["cpu_seconds"] / 60 for run in timed]
        scores = [100 * run["scores"]["eval_mean_iou"] for run in timed]
        axes["cost"].plot(minutes, scores, label=title(key), **look | {"linestyle": ""})
        for series in ("used_u", "pseudo_accuracy"):
            for run in of_row:
                points = [(entry["step"], 100 * entry[series]) for entry in run["curves"] if series in entry]
                if points and any(value for _, value in points):  # `supervised` uses none
                    axes[series].plot(*zip(*points, strict=True), markersize=3, linewidth=1, **look)
    axes["cost"].set(xlabel="CPU minutes of a training, its evaluations included", ylabel="mIoU (%)", xlim=(0, None))
    axes["used_u"].set(xlabel="update", ylabel="unlabeled pixels used (%)", xlim=(0, None))
    axes["pseudo_accuracy"].set(xlabel="update", ylabel="used pixels right (%)", xlim=(0, None))
    for panel in axes.values():
        panel.grid()
    figure.legend(loc="outside lower left", ncols=1, fontsize="small")
    return figure


def show(file: Path):
    """Writes picture and table of a study that was collected."""
    runs, counts = stored(file)
    with drawing(STYLES["light"]):
        draw(runs, file.stem, STYLES["light"]).savefig(file.with_suffix(".png"), dpi=110)
    update_page(file.stem, table(runs, counts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    collecting = commands.add_parser("collect")
    collecting.add_argument("runs", type=Path, help="folder of the output folders")
    for command in (collecting, commands.add_parser("draw")):
        command.add_argument("file", type=Path, help="JSON file of the study")
    options = parser.parse_args()
    if options.command == "collect":
        collect(options.runs, options.file)
    else:
        show(options.file)


if __name__ == "__main__":
    run_script(main)

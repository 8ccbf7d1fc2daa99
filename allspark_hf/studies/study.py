"""Studies: grids of training runs, each in a process of its own, so that a failed run does not end the study."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from types import NoneType
from typing import TextIO

import psutil

from ..publishing.record import RECORD_FILE
from ..training.recipes import check_entry, find_recipe, read_recipe, read_yaml, recipe_arguments, resolve_recipe
from ..training.storage import finish_renaming, last_complete_checkpoint
from ..utils.arguments import plain
from ..utils.files import read_json, read_json_object, write_json
from ..utils.text import one_line


STUDY_KINDS = {
    "title": str,
    "recipe": str,
    "arguments": dict,
    "rows": dict,
    "columns": dict,
    "column_title": str,
    "seeds": list,
    "seed_arguments": list,
}
RESULT_FILE = "cell.json"
LOG_FILE = "train.log"
LAST_FILE_OF_A_RUN = "eval_results.json"
PROCESS_FILE = "process.json"
SECONDS_TO_END = 20
SHOWN_LOG_LINES = 3


@dataclass
class Study:
    """
    A table of training runs: every row in every column, with every seed.

    Args:
        title (`str`): title of table and plot.
        rows (`dict[str, dict]`): name -> arguments of `allspark train`; a row may be a method.
        columns (`dict[str, dict]`): name -> arguments; a column may be a number of labels.
        arguments (`dict`): arguments of all runs, which those of the row override, and those of the column both.
        recipe (`str`, *optional*): recipe that all these arguments override.
        seeds (`list[int]`): each cell is run with each of them.
        seed_arguments (`list[str]`): names of the arguments that get the seed.
        column_title (`str`): label of the plot's axis of columns.

    Raises:
        ValueError: if there is no row, column or seed, a seed or a folder name occurs twice, or an argument of a cell
            is one that the study sets itself, or null where the recipe gives another value.
    """

    title: str
    rows: dict[str, dict]
    columns: dict[str, dict]
    arguments: dict = field(default_factory=dict)
    recipe: str | None = None
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    seed_arguments: list[str] = field(default_factory=lambda: ["seed"])
    column_title: str = ""

    def __post_init__(self):
        for name in ("rows", "columns"):
            entries = getattr(self, name)
            if not entries or not all(isinstance(arguments, dict) for arguments in entries.values()):
                raise ValueError(f"{name} of the study {self.title!r} must map at least one name to arguments.")
            folders = [_folder_name(entry) for entry in entries]
            if len(set(folders)) != len(folders):
                raise ValueError(f"Two {name} of the study {self.title!r} share a folder: rename one of {folders}.")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds is {self.seeds}: give at least one, each once.")
        own = {"output_dir", "resume_from_checkpoint", *self.seed_arguments}
        for arguments in (self.arguments, *self.rows.values(), *self.columns.values()):
            if own & set(arguments):
                raise ValueError(f"The study sets {', '.join(sorted(own & set(arguments)))} itself: leave it out.")
        by_recipe = {name for name, value in self._recipe_entries().items() if value is not None}
        for cell in self.cells():
            if left := sorted(name for name in by_recipe & set(cell.arguments) if cell.arguments[name] is None):
                raise ValueError(
                    f"{cell.name} has {left[0]} as null, which does not remove what the recipe {self.recipe} gives: "
                    f"name a recipe that has `base: {Path(self.recipe).name}` and `{left[0]}: null`."
                )

    def _recipe_entries(self) -> dict:
        return resolve_recipe(self.recipe) if self.recipe and find_recipe(self.recipe).is_file() else {}

    def cells(self) -> Iterator["Cell"]:
        """All runs, seed after seed, so that a study that is stopped early has all rows and columns."""
        for seed, column, row in product(self.seeds, self.columns, self.rows):
            arguments = {**self.arguments, **self.rows[row], **self.columns[column]}
            arguments |= dict.fromkeys(self.seed_arguments, seed)
            yield Cell(row, column, seed, arguments)


@dataclass
class Cell:
    """One run: its place in the table, and the arguments that override the study's recipe."""

    row: str
    column: str
    seed: int
    arguments: dict

    @property
    def folder(self) -> Path:
        """The run's folder, relative to the study's output folder."""
        return Path(_folder_name(self.row), _folder_name(self.column), f"seed_{self.seed}")

    @property
    def name(self) -> str:
        return f"{self.row}, {self.column}, seed {self.seed}"


def _folder_name(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", str(name)).strip("_.") or "_"


def read_study(path: str | Path) -> Study:
    """
    Reads a study from YAML; `recipe` in it is relative to the file, or one of this package.

    Raises:
        FileNotFoundError: if the file, or its recipe, is missing.
        ValueError: if the file is no mapping of [`Study`]'s fields.
    """
    path = Path(path)
    content = read_yaml(path)
    if not isinstance(content, dict) or not {"title", "rows", "columns"} <= set(content):
        raise ValueError(f"{path} is no study: it needs title, rows and columns, see scripts/studies.")
    unknown = sorted(map(one_line, set(content) - set(STUDY_KINDS)))
    if unknown:
        raise ValueError(f"{path} has the unknown entries {', '.join(unknown)}: use {', '.join(STUDY_KINDS)}.")
    _check_types(content, path)
    if content.get("recipe"):
        recipe = Path(os.path.normpath(path.parent / content["recipe"]))
        recipe = recipe if recipe.is_file() else find_recipe(content["recipe"])
        if not recipe.is_file():
            raise FileNotFoundError(f"{path} names the recipe {content['recipe']}, which does not exist: correct it.")
        content["recipe"] = str(recipe)
    for name in ("rows", "columns"):  # YAML reads 92 as a number
        content[name] = {str(key): value or {} for key, value in (content[name] or {}).items()}
    return Study(**{name: value for name, value in content.items() if value is not None})


def _check_types(content: dict, path: Path):
    """Raises ValueError unless every entry has its type, and every argument can stand on a command line."""
    for name, kind in STUDY_KINDS.items():
        value = content.get(name)
        if not isinstance(value, kind) and (value is not None or name == "title"):
            raise ValueError(f"{path} gives {name} as {value!r}, not as {kind.__name__}: see scripts/studies.")
    seeds, seed_arguments = content.get("seeds") or [], content.get("seed_arguments") or []
    if not all(type(seed) is int for seed in seeds) or not all(isinstance(name, str) for name in seed_arguments):
        raise ValueError(
            f"{path} gives seeds {seeds} to {seed_arguments}: list whole numbers, and names of arguments."
        )
    cells = {name: arguments for part in ("rows", "columns") for name, arguments in (content[part] or {}).items()}
    for name, arguments in {"arguments": content.get("arguments"), **cells}.items():
        if not isinstance(arguments, dict | NoneType):
            raise ValueError(f"{path} gives {name!r} as {arguments!r}, where arguments are needed: write a mapping.")
        for argument, value in (arguments or {}).items():
            check_entry(argument, value, f"{name!r} of {path}")


class StudyRunner:
    """
    Runs the cells of a study that are not finished, one after the other.

    A cell is finished when its folder holds `cell.json`, which is written last. An unfinished cell resumes from its
    last complete checkpoint, if it has one. What a run prints goes to `train.log` in its folder.

    Args:
        study ([`Study`]): the study.
        output_dir (`str` or `Path`): folder of the study.
        train_script (`str` or `Path`, *optional*): instead of `allspark train`.
        extra (`Sequence[str]`): command-line arguments for every run, such as `--data_dir DATA`.
        launcher (`Sequence[str]`, *optional*):
            command before `-m allspark_hf train`, e.g. `accelerate launch`; else Python.
    """

    def __init__(
        self,
        study: Study,
        output_dir: str | Path,
        train_script: str | Path | None = None,
        extra: Sequence[str] = (),
        launcher: Sequence[str] | None = None,
    ):
        self.study = study
        self.output_dir = Path(output_dir)
        self.train = ["-m", "allspark_hf", "train"] if train_script is None else [str(train_script)]
        self.extra = list(extra)
        self.launcher = list(launcher) if launcher else [sys.executable]

    def run(self, after_cell: Callable[[], object] | None = None) -> list[str]:
        """
        Args:
            after_cell (`Callable`, *optional*): called after every cell that ran, e.g. to write the table so far.

        Returns:
            `list[str]`: a sentence for each cell that failed; all others are finished.

        Raises:
            ValueError: before anything runs, if a finished or begun cell was made with other arguments.
        """
        cells = list(self.study.cells())
        for cell in cells:
            self._check_unchanged(cell)
        failures = []
        for number, cell in enumerate(cells, start=1):
            if self.result(cell) is not None:
                print(f"[{number}/{len(cells)}] {cell.name}: finished before", flush=True)
                continue
            print(f"[{number}/{len(cells)}] {cell.name}: running", flush=True)
            failure = self._run_cell(cell)
            if failure:
                print(f"  {failure}", flush=True)
                failures.append(failure)
            if after_cell is not None:
                after_cell()
        return failures

    def result(self, cell: Cell) -> dict | None:
        """The content of `cell.json`, with the metrics of the run; None if the cell is not finished."""
        path = self.output_dir / cell.folder / RESULT_FILE
        return read_json(path) if path.is_file() else None

    def command(self, cell: Cell) -> list[str]:
        """The command of a cell that starts anew."""
        recipe = [self.study.recipe] if self.study.recipe else []
        output_dir = ["--output_dir", str(self.output_dir / cell.folder)]
        arguments = recipe_arguments(cell.arguments)
        return [*self.launcher, *self.train, *recipe, *self.extra, *arguments, *output_dir]

    def _fingerprint(self, cell: Cell) -> dict:
        """What decides a cell's numbers, and so must not change between two parts of a study."""
        recipe = read_recipe(self.study.recipe) if self.study.recipe else []
        extra = list(self.extra)
        if "--data_dir" in extra:  # where the data lie may change between two parts of a study
            place = extra.index("--data_dir")
            del extra[place : place + 2]
        return {"arguments": plain(cell.arguments), "recipe": recipe, "extra": extra}

    def _check_unchanged(self, cell: Cell):
        folder = self.output_dir / cell.folder
        begun = folder.is_dir() and any(folder.iterdir())
        if begun and read_json_object(folder / "study.json") != self._fingerprint(cell):
            raise ValueError(
                f"{folder} was made with other arguments or another recipe, so that its number does not belong "
                "in this table: choose another --output_dir, or remove that folder to train it anew."
            )

    def _run_cell(self, cell: Cell) -> str | None:
        folder = self.output_dir / cell.folder
        folder.mkdir(parents=True, exist_ok=True)
        running = _running(folder)
        if running:
            return f"{cell.name} is still trained by process {running}: wait for it or end it, then start again"
        write_json(folder / "study.json", self._fingerprint(cell))
        command = self.command(cell)
        if not (folder / LAST_FILE_OF_A_RUN).is_file():
            finish_renaming(folder)
            if last_complete_checkpoint(folder):
                command += ["--resume_from_checkpoint", "true"]
            with open(folder / LOG_FILE, "a", encoding="utf-8") as log:
                print(f"$ {shlex.join(command)}", file=log, flush=True)
                code = _run(command, folder, log)
            if code != 0:
                tail = (folder / LOG_FILE).read_text(encoding="utf-8", errors="replace").strip().splitlines()
                shown = " | ".join(tail[-SHOWN_LOG_LINES:])
                return f"{cell.name} ended with exit code {code}; the end of {folder / LOG_FILE}: {shown}"
        write_json(folder / RESULT_FILE, read_run_metrics(folder) | {"command": shlex.join(command)})
        return None


def _run(command: list[str], folder: Path, log: TextIO) -> int:
    """Exit code of a run, which ends with this process; if this process is killed, [`_running`] finds the run."""
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    started = {"pid": process.pid, "create_time": psutil.Process(process.pid).create_time()}
    write_json(folder / PROCESS_FILE, started)
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()  # a launcher passes the signal on to its processes
            try:
                process.wait(timeout=SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
        (folder / PROCESS_FILE).unlink()


def _running(folder: Path) -> int | None:
    """The process that still trains in a folder after its study was killed; None if there is none."""
    path = folder / PROCESS_FILE
    if not path.is_file():
        return None
    started = read_json(path)
    try:
        process = psutil.Process(started["pid"])
        same = process.create_time() == started["create_time"] and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None
    return started["pid"] if same else None


def read_run_metrics(folder: Path) -> dict:
    """
    What a finished run of `allspark train` wrote about itself.

    Returns:
        `dict`: `last_mean_iou` and `best_mean_iou` in [0, 1], `best_epoch`, `best_step`, `kept` (`"last"` or `"best"`,
        whose weights were saved), `steps`, `seconds` (since the last start if the run was `resumed`),
        `labeled_images` (those that were trained on).
    """
    names = ("eval_results.json", "train_results.json", "trainer_state.json")
    last, train, state = (read_json(folder / name) for name in names)
    record = read_json_object(folder / RECORD_FILE)
    training, data = (record.get(part) or {} for part in ("training", "data"))
    history, kept = state["log_history"], "best" if training.get("load_best_model_at_end") else "last"
    ends = [place for place, entry in enumerate(history) if "train_runtime" in entry]
    # An evaluation after the end of training is one of the weights that were kept.
    evaluations = [entry for entry in history[: ends[-1] if ends else None] if "eval_mean_iou" in entry]
    if kept == "last" and (not evaluations or evaluations[-1]["step"] != state["global_step"]):
        evaluations.append(last | {"epoch": train["epoch"], "step": state["global_step"]})
    best = max(evaluations, key=lambda entry: entry["eval_mean_iou"])
    return {
        "last_mean_iou": evaluations[-1]["eval_mean_iou"],
        "best_mean_iou": best["eval_mean_iou"],
        "best_epoch": best["epoch"],
        "best_step": best["step"],
        "kept": kept,
        "steps": state["global_step"],
        "seconds": train["train_runtime"],
        "resumed": bool(training.get("resumed")),
        "labeled_images": data.get("labeled"),
    }

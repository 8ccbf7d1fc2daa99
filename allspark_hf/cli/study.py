"""Runs a study: a grid of trainings, one table (mean ± spread over seeds, last and best epoch) and one plot.

    allspark study scripts/studies/camvid.yaml --output_dir OUT --data_dir DATA
    allspark study STUDY.yaml --output_dir OUT --launcher "accelerate launch --num_processes 4" ...

Arguments that are not listed below go to every run of `allspark train`. Run it again after an interruption: finished
cells are skipped, a begun one resumes from its last checkpoint, and a failed one is tried again. The table is written
after every cell.
"""

import argparse
import shlex
import signal
import sys
from pathlib import Path

from allspark_hf.cli.ending import run_script
from allspark_hf.figures import require_matplotlib
from allspark_hf.studies.report import collect, write_report
from allspark_hf.studies.study import StudyRunner, read_study


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("study", type=Path, help="YAML file, see scripts/studies; the first argument")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of all runs and of the table")
    parser.add_argument("--launcher", type=shlex.split, help="command that starts a run; default: this Python")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the study's")
    parser.add_argument("--list", action="store_true", help="print the command of each cell that is left, run nothing")
    return parser


def run(study, options, extra: list[str]) -> dict | None:
    """
    Runs a study and writes its table after every cell; ends with exit code 1 if a cell failed.

    Returns:
        `dict`, *optional*: row -> column -> results, None with --list.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Terminated; the same command goes on from here."))
    runner = StudyRunner(study, options.output_dir, extra=extra, launcher=options.launcher)
    if options.list:
        for cell in study.cells():
            print(shlex.join(runner.command(cell)) if runner.result(cell) is None else f"# finished: {cell.name}")
        return None
    require_matplotlib()
    failures = runner.run(after_cell=lambda: write_report(runner))
    print(write_report(runner))
    for name in ("study.md", "study.json", "study_light.png", "study_dark.png"):
        if (options.output_dir / name).is_file():
            print(options.output_dir / name)
    if failures:
        sys.exit(f"{len(failures)} of the cells failed; the same command tries them again:\n" + "\n".join(failures))
    return collect(runner)


def study() -> None:
    options, extra = make_parser().parse_known_args()
    chosen = read_study(options.study)
    if options.seeds:
        chosen.seeds = options.seeds
    run(chosen, options, extra)


def main() -> None:
    run_script(study)

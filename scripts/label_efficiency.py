"""mIoU against the number of labels, for every method, on your own data: does labeling more pay?

    python scripts/label_efficiency.py --data_dir DATA --labeled_counts 10 20 40 --max_steps 2000 --output_dir OUT ...

Every method is trained with every number of labels and every seed, for the same number of steps. The images of a
smaller number are part of a larger one's; the other masks are hidden. Arguments that are not listed below go to every
run of scripts/train.py. Run it again after an interruption: it goes on where it stopped.
"""

import argparse
import shlex
from pathlib import Path

from allspark_hf.cli.ending import run_script
from allspark_hf.cli.study import run
from allspark_hf.methods import METHODS
from allspark_hf.studies.report import mean_and_spread
from allspark_hf.studies.study import Study


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--recipe", help="recipe of all runs (YAML or JSON)")
    parser.add_argument("--labeled_counts", type=int, nargs="+", required=True, help="numbers of labeled images")
    parser.add_argument("--max_steps", type=int, required=True, help="steps of every run")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of all runs and of the picture")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--launcher", type=shlex.split, help="command that starts a run; default: this Python")
    parser.add_argument("--list", action="store_true", help="print the command of each run that is left, run nothing")
    return parser


def make_study(options: argparse.Namespace) -> Study:
    """Methods as rows, numbers of labels as columns."""
    counts = sorted(options.labeled_counts)
    if counts[0] < 1 or len(set(counts)) != len(counts):
        raise ValueError(f"labeled_counts is {options.labeled_counts}: give numbers of at least 1, each once.")
    return Study(
        title="Label efficiency",
        recipe=options.recipe,
        rows={method: {"method": method} for method in options.methods},
        columns={str(count): {"labeled_count": count} for count in counts},
        arguments={"max_steps": options.max_steps},
        seeds=options.seeds,
        column_title="labeled images",
    )


def advice(results: dict[str, dict[str, list[dict]]]) -> list[str]:
    """One sentence per method: what the last step in labels brought, against the spread over seeds."""
    sentences = []
    for method, cells in results.items():
        finished = [(count, [run["last_mean_iou"] for run in runs]) for count, runs in cells.items() if runs]
        if len(finished) < 2:
            continue
        (fewer, before), (more, after) = finished[-2:]
        gain = 100 * (mean_and_spread(after)[0] - mean_and_spread(before)[0])
        spread = 100 * max(mean_and_spread(values)[1] for values in (before, after))
        text = f"{method}: {more} instead of {fewer} labels changed mIoU by {gain:+.1f} points"
        # NaN, the spread of a single seed, compares False.
        sentences.append(f"{text} (spread over seeds: {spread:.1f})" if spread >= 0 else f"{text} (one seed)")
    return sentences


def main() -> None:
    options, extra = make_parser().parse_known_args()
    study = make_study(options)
    results = run(study, options, extra)
    if results:
        print("\n".join(advice(results)))


if __name__ == "__main__":
    run_script(main)

"""Figure 1c in numbers: how much better a model is on its labeled images, and whether less so than a baseline.

    allspark figures --model OUT/allspark --baseline OUT/pseudo_label --data_dir DATA --figures 1c --output_dir FIG
    python scripts/label_dominance.py --figures FIG/figure_1c.npz --baseline pseudo_label > label_dominance.json

Prints JSON, in percent: mIoU of every model on every set, its margin (mIoU on labeled images minus mIoU on the set)
and the change of that margin against the baseline's, each with the ends of its 95 % interval over images. Several
files may be given, of other models on the same images.
"""

import argparse
import json
from collections.abc import Iterable

import numpy as np

from allspark_hf.cli.ending import run_script
from allspark_hf.evaluation.intervals import margin_interval, score_intervals


def percent(values: Iterable[float]) -> list[float]:
    return [round(100 * value, 1) + 0.0 for value in values]  # never -0.0


def read(paths: list[str]) -> tuple[dict[str, list[np.ndarray]], dict[str, int]]:
    """Model -> counts by image of each set, and set -> number of images."""
    models, seen = {}, set()
    for path in paths:
        with np.load(path) as arrays:
            names, numbers, by_image = (arrays[name] for name in ("models", "num_images", "by_image"))
            images = dict(zip(arrays["sets"].tolist(), numbers.tolist(), strict=True))
        for name, counts in zip(names.tolist(), by_image, strict=True):
            if name in models:
                raise ValueError(f"{name} is in {' '.join(paths)} more than once: give every model once.")
            models[name] = np.split(counts, np.cumsum(numbers)[:-1])
            seen.add((*images.items(), counts[:, 1].tobytes()))  # what the masks hold tells images apart
    if len(seen) != 1:
        raise ValueError(f"{' '.join(paths)} are of different images: draw them with the same data and --max_images.")
    return models, images


def summarize(models: dict[str, list[np.ndarray]], sets: list[str], baseline: str) -> dict:
    """Model -> set -> the scores that the script prints."""
    if baseline not in models:
        raise ValueError(f"There is no {baseline} in the figures: give one of {', '.join(models)} as --baseline.")
    labeled_before, *others_before = models[baseline]
    rows = {}
    for name, (labeled, *others) in models.items():
        rows[name] = {sets[0]: {"mean_iou": percent(score_intervals(labeled)[0])}}
        for kind, counts, before in zip(sets[1:], others, others_before, strict=True):
            margin = percent(margin_interval(labeled, counts))
            rows[name][kind] = {"mean_iou": percent(score_intervals(counts)[0]), "margin": margin}
            if name != baseline:
                change = margin_interval(labeled, counts, (labeled_before, before))
                rows[name][kind]["change"] = percent(change)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", nargs="+", required=True, help="figure_1c.npz of allspark figures.")
    parser.add_argument("--baseline", required=True, help="Model whose margins the others are compared with.")
    options = parser.parse_args()
    models, images = read(options.figures)
    rows = summarize(models, list(images), options.baseline)
    print(json.dumps({"images": images, "baseline": options.baseline, "models": rows}, indent=1))


if __name__ == "__main__":
    run_script(main)

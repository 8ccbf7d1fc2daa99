"""What an export costs in accuracy and saves in time, measured on images with masks."""

import time
from statistics import median

import torch

from ..evaluation.arguments import EvaluationArguments
from ..evaluation.evaluator import Evaluation, EvaluationDataset
from ..utils.text import text_table


class Timed:
    """
    A model, with the time that it takes.

    Args:
        model (`Callable`): `model(pixel_values=...).logits`, with a `config` and a `dtype`; on the CPU.

    Attributes:
        seconds (`list[float]`): of each call.
    """

    def __init__(self, model):
        self.model, self.config, self.dtype = model, model.config, model.dtype
        self.seconds = []

    def __call__(self, pixel_values: torch.Tensor):
        start = time.perf_counter()
        output = self.model(pixel_values=pixel_values)
        self.seconds.append(time.perf_counter() - start)
        return output


def measure_cost(variants: dict[str, object], samples: EvaluationDataset) -> dict:
    """
    Scores variants of one model on the same images: whole, one at a time, at the masks' own size ([`Evaluation`]).
    The variants take turns at every image, so that other work on the machine slows all of them alike.

    Args:
        variants (`dict[str, object]`):
            by name, a model or [`OnnxSegmenter`], on the CPU; the first is what the others are compared with.
        samples ([`EvaluationDataset`]): images and masks, at least one.

    Returns:
        `dict`: `num_images`; of each variant, by name, `mean_iou` in [0, 1], `iou` (by class name; None where a class
        does not occur), `loss`, `milliseconds` (median of an image, the model alone) and `time_ratio` (median over the
        images of its time by that of the first variant).
    """
    timed = {name: Timed(model) for name, model in variants.items()}
    evaluations = {
        name: Evaluation(model.config, EvaluationArguments(), torch.device("cpu")) for name, model in timed.items()
    }
    with torch.no_grad():
        for model in timed.values():  # the first call sets up buffers
            model(pixel_values=samples[0]["pixel_values"][None])
            model.seconds.clear()
    for row in range(len(samples)):
        sample = samples[row]
        names = list(timed)
        for name in names[row % len(names) :] + names[: row % len(names)]:
            evaluations[name].add(timed[name], [sample])
    first = next(iter(timed.values()))
    return {"num_images": len(samples)} | {
        name: _scores(evaluations[name], timed[name].seconds, first.seconds) for name in timed
    }


def _scores(evaluation: Evaluation, seconds: list[float], reference: list[float]) -> dict:
    metrics = evaluation.metrics()
    return {
        "mean_iou": metrics["mean_iou"],
        "loss": metrics["loss"],
        "iou": {row["name"]: row["iou"] for row in evaluation.per_class()},
        "milliseconds": 1000 * median(seconds),
        "time_ratio": median(own / other for own, other in zip(seconds, reference, strict=True)),
    }


def cost_table(cost: dict) -> str:
    """The result of [`measure_cost`] as a table: IoU in percent, and the gain of each variant over the first."""
    scores = {name: entry for name, entry in cost.items() if isinstance(entry, dict)}
    first, *others = scores
    header = ["IoU, percent", *scores, *(f"{name} - {first}" for name in others)]
    rows = [(name, [scores[variant]["iou"][name] for variant in scores]) for name in scores[first]["iou"]]
    rows.append(("mean", [scores[variant]["mean_iou"] for variant in scores]))
    cells = []
    for name, values in rows:
        gains = [None if None in (value, values[0]) else value - values[0] for value in values[1:]]
        cells.append(
            [name]
            + ["-" if value is None else f"{100 * value:.2f}" for value in values]
            + ["-" if gain is None else f"{100 * gain:+.2f}" for gain in gains]
        )
    cells.append(["ms per image"] + [f"{scores[name]['milliseconds']:.1f}" for name in scores] + [""] * len(others))
    cells.append(["relative time"] + [f"{scores[name]['time_ratio']:.2f}" for name in scores] + [""] * len(others))
    return text_table(header, cells)

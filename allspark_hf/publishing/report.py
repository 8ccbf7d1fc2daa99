"""`report.html`: what a training did, in one file to send to a colleague."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from ..evaluation.intervals import FEW_IMAGES, Score, score_intervals
from .content import curve_table, largest_class
from .markdown import duration, number
from .records import Records


REPORT_FILE = "report.html"
RISING = 0.01  # gain of mIoU between the last two evaluations from which on more training may help
HARDLY_ANY = 0.01  # share of the unlabeled pixels
FALLEN = 0.02  # loss of mIoU from the best evaluation to the last
WIDTH, HEIGHT, LEFT, BOTTOM = 560, 220, 44, 24  # of a chart, in its own units


@dataclass(frozen=True)
class Picture:
    """A picture of the report and its caption."""

    image: Image.Image
    caption: str


def render_report(
    records: Records,
    counts: np.ndarray,
    through_time: Sequence[Picture],
    best_and_worst: Sequence[Picture],
    comparison: dict | None = None,
) -> str:
    """
    The text of the report, which needs no other file.

    Args:
        records ([`Records`]): the records in the output folder.
        counts (`np.ndarray`): int64 (images, 3, num_labels), [`image_counts`] of the last evaluation.
        through_time (`Sequence[Picture]`): the same images at one evaluation after another.
        best_and_worst (`Sequence[Picture]`): images with masks and predictions.
        comparison (`dict`, *optional*): the content of comparison.json, if this training wrote it.
    """
    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": _percent, "source": _source, "number": number, "duration": duration}
    environment.filters["spans"] = _code_spans
    mean, classes = score_intervals(counts, bool(records.section("settings").get("count_absent_classes")))
    verdict = (comparison or {}).get("verdict")
    return environment.from_string(template).render(
        records=records,
        method=records.section("method"),
        data=records.section("data"),
        training=records.section("training"),
        mean=mean,
        num_images=len(counts),
        classes=_class_rows(records.class_names, classes, counts),
        charts=charts(records.history),
        through_time=through_time,
        best_and_worst=best_and_worst,
        health=health_sentences(records),
        pseudo_labels=curve_table(records),
        verdict=verdict,
        advice=advice(records, classes, len(counts), verdict),
        arguments={name: value for name, value in records.section("arguments").items() if value not in (None, [])},
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _code_spans(text: str) -> Markup:
    """Text in which the parts between backticks are code."""
    parts = [
        Markup("<code>{}</code>").format(part) if place % 2 else part for place, part in enumerate(text.split("`"))
    ]
    return Markup("").join(parts)


def _source(image: Image.Image) -> str:
    """An address that holds the picture itself."""
    content = io.BytesIO()
    image.convert("RGB").save(content, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"


def _class_rows(names: Sequence[str], classes: Sequence[Score | None], counts: np.ndarray) -> list[dict]:
    """Score of each class and its share of the masks' pixels, the lowest score first."""
    true = counts[:, 1].sum(axis=0)
    rows = [
        {"name": name, "score": score, "share": true[index] / max(true.sum(), 1)}
        for index, (name, score) in enumerate(zip(names, classes, strict=True))
    ]
    return sorted(rows, key=lambda row: (row["score"] is None, row["score"] and row["score"].value))


# ---- Charts ----


def charts(history: Sequence[dict]) -> list[dict]:
    """mIoU and losses by step, as points of lines; lines with one point, and charts without a line, are left out."""
    series = {
        "mIoU on validation images, %": {"mIoU": ("eval_mean_iou", 100)},
        "loss": {"labeled": ("loss_x", 1), "unlabeled": ("loss_u", 1)},
        "pseudo-labels, % of pixels": {
            "trained on": ("used_u", 100),
            "right": ("pseudo_accuracy", 100),
            "right on held-out images": ("holdout_accuracy", 100),
        },
    }
    made = []
    for title, lines in series.items():
        points = {name: _points(history, *key) for name, key in lines.items()}
        points = {name: one for name, one in points.items() if len(one) > 1}
        if points:
            made.append(_chart(title, points))
    return made


def _points(history: Sequence[dict], key: str, factor: float) -> list[tuple[float, float]]:
    found = {entry["step"]: factor * entry[key] for entry in history if key in entry and "step" in entry}
    return sorted(found.items())


def _chart(title: str, points: dict[str, list[tuple[float, float]]]) -> dict:
    """A chart whose points are in units of the drawing, where y goes down."""
    steps, values = zip(*(point for one in points.values() for point in one), strict=True)
    last, low, high = max(steps), min(0.0, *values), max(values) or 1.0

    def place(point: tuple[float, float]) -> str:
        x = LEFT + (WIDTH - LEFT - 8) * point[0] / last
        y = 8 + (HEIGHT - BOTTOM - 8) * (high - point[1]) / (high - low)
        return f"{x:.1f},{y:.1f}"

    lines = [{"name": name, "points": " ".join(map(place, one))} for name, one in points.items()]
    return {"title": title, "lines": lines, "low": f"{low:.3g}", "high": f"{high:.3g}", "last": f"{last:,.0f}"}


# ---- Words ----


def health_sentences(records: Records) -> list[str]:
    """Sentences on the pseudo-labels at the end of training; none if there were no pseudo-labels."""
    last = {}
    for entry in records.history:
        last |= {name: value for name, value in entry.items() if isinstance(value, (int, float))}
    if "used_u" not in last:
        return []
    said = [f"At the end {100 * last['used_u']:.0f} % of the unlabeled pixels were trained on."]
    if "pseudo_accuracy" in last:
        said.append(f"Of these, {100 * last['pseudo_accuracy']:.0f} % were right, by masks that were hidden.")
    if "holdout_accuracy" in last:
        said.append(f"On labeled images held out, {100 * last['holdout_accuracy']:.0f} % of such pixels are right.")
    if not {"pseudo_accuracy", "holdout_accuracy"} & set(last):
        said.append("Whether they were right is not known: --holdout_fraction 0.2 measures it.")
    largest = largest_class(last, records)
    if largest is not None and largest["in_labels"] is not None:
        shares = [f"{100 * largest[name]:.0f} %" for name in ("share", "in_labels")]
        said.append(
            f"The largest class, {largest['name']}, has {shares[0]} of them and {shares[1]} of the labeled pixels."
        )
    return said


def advice(records: Records, classes: Sequence[Score | None], num_images: int, verdict: str | None) -> list[str]:
    """What to do next, the most urgent first."""
    scores = [entry["eval_mean_iou"] for entry in records.history if "eval_mean_iou" in entry and "step" in entry]
    data, said = records.section("data"), []
    if num_images < FEW_IMAGES:
        said.append(f"Label more images to validate with: {num_images} tell little, {FEW_IMAGES} or more are needed.")
    if len(scores) < 2:
        said.append("Train longer: one evaluation does not show whether mIoU still rises (--minutes, --max_steps).")
    elif max(scores) - scores[-1] > FALLEN and not records.section("training").get("load_best_model_at_end"):
        fallen = 100 * (max(scores) - scores[-1])
        said.append(f"mIoU fell by {fallen:.1f} points after its best: --load_best_model_at_end keeps the best model.")
    elif scores[-1] - scores[-2] > RISING:
        risen = 100 * (scores[-1] - scores[-2])
        said.append(f"Train longer: mIoU still rose by {risen:.1f} points between the last two evaluations.")
    used = [entry["used_u"] for entry in records.history if "used_u" in entry]
    if used and used[-1] < HARDLY_ANY:
        said.append(
            "Lower --confidence_threshold, or train longer: at the end no unlabeled pixel passed it, so that nothing "
            "was learned from unlabeled images."
        )
    known = {name: score.value for name, score in zip(records.class_names, classes, strict=True) if score is not None}
    if len(known) > 1:
        lowest = min(known, key=known.get)
        said.append(
            f"Label more images that show {lowest} (IoU {100 * known[lowest]:.0f} %): `allspark suggest` chooses "
            "unlabeled images that the model is unsure of."
        )
    if data.get("unlabeled") and not data.get("unlabeled_used") and verdict is None:
        said.append(
            f"The {data['unlabeled']} unlabeled images were not read: `--method unimatch_v2 --compare_supervised` "
            "trains with and without them and says whether they help."
        )
    said.append("Look at images of your own: `allspark predict --model OUT --input IMAGES --output_dir predictions`.")
    return said

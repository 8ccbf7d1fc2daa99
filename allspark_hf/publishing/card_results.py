"""The measured part of a model's card: evaluations, classes, and the pseudo-labels' curve."""

import math

from ..evaluation.metrics import metric_name
from .card_records import UNKNOWN_DATA, Evaluation, Records
from .card_sections import plural
from .markdown import FOLD_FROM, code, escape, folded, number, percent, table
from .record_shapes import numbers_of


PSEUDO_LABEL_ROWS = 10


# ---- Results ----


def results(records: Records) -> str:
    """Last and best epoch, every evaluation, every class."""
    entries = all_evaluations(records)
    if not entries:
        return "No evaluation of this model was recorded."
    header = ["split", "data", "images", "predicted from", "mean IoU", "mean accuracy", "overall accuracy"]
    columns = ["mean_iou", "mean_accuracy", "overall_accuracy"]
    if any("mean_boundary_iou" in entry.metrics for entry in entries):
        header.append("boundary IoU")
        columns.append("mean_boundary_iou")
    rows = [_evaluation_row(entry, columns) for entry in entries]
    parts = [
        _last_and_best(records),
        "In percent, of the weights in this repository:",
        table(header, rows, words=["data", "predicted from"]),
        _how_averaged(entries),
        per_class(class_scores(records)),
    ]
    return "\n\n".join(part for part in parts if part)


def all_evaluations(records: Records) -> list[Evaluation]:
    """Training's own evaluation of the saved model, unless a later one says the same, and the later ones."""
    final = records.final
    if final is None or any(_repeats(entry, final) for entry in records.evaluations):
        return records.evaluations
    return [final, *records.evaluations]


def _repeats(entry: Evaluation, final: Evaluation) -> bool:
    same = (entry.split, entry.source, entry.mode) == (final.split, final.source, final.mode)
    means = ("mean_iou", "mean_accuracy", "overall_accuracy")
    return same and all(percent(entry.metrics.get(name)) == percent(final.metrics.get(name)) for name in means)


def _last_and_best(records: Records) -> str:
    """Mean IoU at the last and the best evaluation during training, and what the difference means."""
    train, history = records.train, records.history
    ends = [place for place, entry in enumerate(history) if "train_runtime" in entry]
    # What comes after the training's end is the evaluation of the model that was kept.
    evaluated = [entry for entry in history[: ends[-1] if ends else None] if "eval_mean_iou" in entry]
    if not {"last_mean_iou", "best_mean_iou"} <= train.keys() or not evaluated:
        return "" if evaluated or not history else "Nothing was evaluated during the training."
    last, best = train["last_mean_iou"], train["best_mean_iou"]
    rows = [
        ["last", number(evaluated[-1].get("epoch")), percent(last)],
        ["best", number(train.get("best_epoch")), percent(best)],
    ]
    text = table(["evaluation", "epoch", "mean IoU"], rows)
    kept = records.run.get("settings", {}).get("load_best_model_at_end")
    saved = "" if kept is None else f" The weights here are those of the {'best' if kept else 'last'} one."
    return (
        f"Mean IoU on the validation images during training ({plural(len(evaluated), 'evaluation')}):\n\n{text}\n\n"
        f"The best evaluation was chosen on the same validation images, so that its number is optimistic.{saved}"
    )


def _evaluation_row(entry: Evaluation, columns: list[str]) -> list[str]:
    return [
        escape(entry.split),
        escape(entry.source) if entry.source == UNKNOWN_DATA or entry.on_hub else code(entry.source),
        number(entry.num_images),
        entry.mode or "not recorded",
        *(percent(entry.metrics.get(name)) for name in columns),
    ]


def _how_averaged(entries: list[Evaluation]) -> str:
    ways = {entry.count_absent for entry in entries}
    if ways == {False}:
        return "The mean IoU leaves out classes that occur in neither masks nor predictions."
    if ways == {True}:
        return "The mean IoU is over all classes; one that occurs in neither masks nor predictions counts 0."
    if ways == {None}:
        return "Whether absent classes count in the mean IoU was not recorded."
    return "The evaluations differ in whether classes that occur nowhere count 0 in the mean IoU or are left out."


def class_scores(records: Records) -> Evaluation | None:
    """The evaluation whose classes are shown: of validation images, the one that tells most, else the first."""
    validation = [entry for entry in records.evaluations if entry.split == "validation"]
    same = [entry for entry in validation if records.final and entry.mode == records.final.mode]
    return next(iter([*same, *([records.final] if records.final else []), *validation, *records.evaluations]), None)


def per_class(entry: Evaluation | None) -> str:
    """A table with a row for each class."""
    if entry is None:
        return ""
    columns = {"iou": "IoU", "accuracy": "accuracy", "boundary_iou": "boundary IoU", "pixel_share": "pixels"}
    columns = {name: title for name, title in columns.items() if any(name in row for row in entry.per_class)}
    rows = [[escape(row["name"]), *(percent(row.get(name)) for name in columns)] for row in entry.per_class]
    text = table(["class", *columns.values()], rows)
    many = len(rows) >= FOLD_FROM
    where = f"{entry.split} images, {entry.mode or 'mode not recorded'}"
    lead = f'By class ({where}); "-": the class does not occur.'
    return f"{lead}\n\n{folded(plural(len(rows), 'class', 'classes'), text) if many else text}"


# ---- Pseudo-labels ----


def pseudo_labels(records: Records) -> str:
    """The curve of confidence and, where masks were only hidden, of the pseudo-labels' mean IoU."""
    if records.method == "supervised":
        return "The model was trained without unlabeled images, so that there were no pseudo-labels."
    rows = _curve(records)
    if not rows:
        return "Nothing about the pseudo-labels was recorded."
    header = ["up to epoch", "confidence", "mean IoU", "largest class", "its share", "its share of the labels"]
    filled = [column for column in range(len(header)) if any(row[column] != "-" for row in rows)]
    header, rows = ([[row[column] for column in filled] for row in part] for part in ([header], rows))
    truth = (
        "The mean IoU is against masks that were hidden from the training."
        if "mean IoU" in header[0]
        else "How right they were was not measured."
    )
    return (
        "What the model said of the unlabeled images while it was trained on them, in percent; the confidence is the "
        f"mean since the row above, the rest is of the epoch that ends there. {truth}\n\n"
        f"{table(header[0], rows, words=['largest class'])}"
    )


def _curve(records: Records) -> list[list[str]]:
    confident = [entry for entry in records.history if "pseudo_confidence" in entry]
    health = [entry for entry in records.history if any(name.startswith("pseudo_share_") for name in entry)]
    points = [entry["epoch"] for entry in health or confident]
    shown = min(PSEUDO_LABEL_ROWS, len(confident) or len(health))
    ends = points[:: -math.ceil(len(points) / shown)][::-1] if points else []
    rows, start = [], -math.inf
    for end in ends:
        inside = [entry["pseudo_confidence"] for entry in confident if start < entry["epoch"] <= end]
        latest = [entry for entry in health if entry["epoch"] <= end][-1:]
        mean = sum(inside) / len(inside) if inside else None
        rows.append([number(end), percent(mean), *_health(latest[0] if latest else {}, records)])
        start = end
    return rows


def _health(entry: dict, records: Records) -> list[str]:
    """Mean IoU of the pseudo-labels, their largest class, its share in them and in the labels."""
    prefix = "pseudo_share_"
    shares = {name.removeprefix(prefix): value for name, value in entry.items() if name.startswith(prefix)}
    if not shares:
        return [percent(entry.get("pseudo_mean_iou")), "-", "-", "-"]
    top = max(shares, key=shares.get)
    names = {metric_name(name): name for name in records.class_names}
    labels = entry.get(f"label_share_{top}")
    return [percent(entry.get("pseudo_mean_iou")), escape(names.get(top, top)), percent(shares[top]), percent(labels)]


def onnx(export: dict) -> str | None:
    """The files of an export, how far they are from PyTorch, and what 8 bits cost; None without one."""
    if not export.get("files"):
        return None
    files = ", ".join(f"{code(f'onnx/{name}')} ({size / 1e6:.1f} MB)" for name, size in export["files"].items())
    largest = max((entry["max_difference"] for entry in export.get("differences", [])), default=None)
    text = f"{files}: batch, height and width are free."
    if largest is not None:
        text += f" Logits of the float32 file differ from PyTorch's by {largest:.1e} at most, at the sizes compared."
    variants = {name: numbers_of(entry) for name, entry in (export.get("cost") or {}).items()}
    scores = {name: entry["mean_iou"] for name, entry in variants.items() if "mean_iou" in entry}
    if scores:
        values = ", ".join(f"{escape(name)} {percent(score)} %" for name, score in scores.items())
        return f"{text} Mean IoU of the variants on the same images: {values}."
    return f"{text} What the 8-bit file costs was not measured." if len(export["files"]) > 1 else text


__all__ = ["class_scores", "onnx", "per_class", "pseudo_labels", "results"]

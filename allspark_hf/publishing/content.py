"""The values that the card's template shows; the template has the sentences."""

import json
import math
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from ..evaluation.metrics import collapses, metric_name
from .architecture import architecture_of
from .licenses import FROM_SCRATCH, license_of
from .markdown import number, percent
from .metadata import card_data
from .records import EvaluationRecord, Records


SECTIONS = ("command", "recipe", "arguments", "settings", "method", "model", "data", "training", "git", "versions")
LOW_IOU = 0.2
PSEUDO_LABEL_ROWS = 10
SHARE = "pseudo_share_"


def content(records: Records, repo_id: str | None = None, model_name: str | None = None) -> dict:
    """
    All variables of the template.

    Args:
        records, repo_id, model_name: as for [`render_card`].
    """
    title = model_name or (repo_id or records.folder.resolve().name).rpartition("/")[2]
    license = license_of(records.base_weights, records.started_from, records.base_license)
    architecture = architecture_of(records.config)
    config, crop = records.config, records.config.get("crop_size")
    palette, curve = config.get("palette"), curve_table(records)
    return {
        "card_data": Markup(card_data(records, license, title, architecture.tag).to_yaml()),
        "title": title,
        "model_string": Markup(json.dumps(repo_id or records.folder.resolve().name, ensure_ascii=False)),
        "config": config,
        "architecture": architecture,
        "classes": records.class_names,
        "masks": _mask_values(config),
        "colors": palette if palette and len(palette) == len(records.class_names) else None,
        "crop": [crop, crop] if isinstance(crop, int) else crop,
        "run": records.run,
        **{name: records.run.get(name) for name in (*SECTIONS, "machine")},
        "license": license,
        "base": records.base_weights,
        "started_from": records.started_from,
        "from_scratch": FROM_SCRATCH,
        "final": records.final,
        "progress": _progress(records),
        "evaluations": all_evaluations(records),
        "scores": class_scores(records),
        "low": _low_classes(records),
        "low_iou": LOW_IOU,
        "collapse": _collapse(records),
        "curve": curve,
        "figures": [
            {"path": Markup(quote(path)), "title": Path(path).stem.replace("_", " ")} for path in records.figures
        ],
        "export": records.export,
    }


def _mask_values(config: dict) -> dict[str, str | None]:
    """The mask values of the classes, None if they are the class indices, and those of ignored pixels."""
    classes = config.get("mask_values")
    ignored = {config.get("semantic_loss_ignore_index", 255), *(config.get("ignored_mask_values") or ())}
    ignored = sorted(ignored - {*(classes or ())})
    return {"classes": _ranges(classes) if classes else None, "ignored": _ranges(ignored) if ignored else None}


def _ranges(values: list[int]) -> str:
    """Ascending values as text, such as `0, 7 to 12`."""
    runs = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    texts = [[f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run) for run in runs]
    return ", ".join(text for some in texts for text in some)


# ---- Evaluations ----


def all_evaluations(records: Records) -> list[EvaluationRecord]:
    """All evaluations; training's own is left out if a later one has the same scores."""
    final = records.final
    if final is None or any(_repeats(entry, final) for entry in records.evaluations):
        return records.evaluations
    return [final, *records.evaluations]


def _repeats(entry: EvaluationRecord, final: EvaluationRecord) -> bool:
    same = (entry.split, entry.source, entry.mode) == (final.split, final.source, final.mode)
    means = ("mean_iou", "mean_accuracy", "overall_accuracy")
    return same and all(percent(entry.metrics.get(name)) == percent(final.metrics.get(name)) for name in means)


def class_scores(records: Records) -> EvaluationRecord | None:
    """The evaluation whose classes are shown: one of validation images if there is one, the training's and its way."""
    final = [records.final] if records.final else []
    validation = [entry for entry in records.evaluations if entry.split == "validation"]
    same = [entry for entry in validation for own in final if (entry.source, entry.mode) == (own.source, own.mode)]
    return next(iter([*same, *final, *validation, *records.evaluations]), None)


def _progress(records: Records) -> dict | None:
    """The last and the best evaluation during training; None without one, or if another metric chose the best."""
    history, training = records.history, records.section("training")
    ends = [place for place, entry in enumerate(history) if "train_runtime" in entry]
    # An evaluation after the end of training is one of the model that was kept.
    evaluated = [entry for entry in history[: ends[-1] if ends else None] if "eval_mean_iou" in entry]
    if not evaluated or (training.get("metric_for_best_model") or "mean_iou").removeprefix("eval_") != "mean_iou":
        return None
    best = max(evaluated, key=lambda entry: entry["eval_mean_iou"])
    kept = training.get("load_best_model_at_end")
    kept = None if kept is None else "best" if kept else "last"
    return {"count": len(evaluated), "last": evaluated[-1], "best": best, "kept": kept}


def _low_classes(records: Records) -> list[dict]:
    scores = class_scores(records)
    rows = [row for row in scores.per_class if row.get("iou") is not None] if scores else []
    return sorted((row for row in rows if row["iou"] < LOW_IOU), key=lambda row: row["iou"])


# ---- Pseudo-labels ----


def _collapse(records: Records) -> dict | None:
    """The class that nearly all pseudo-labels showed at the end, but the labels did not; None if there is none."""
    entries = [entry for entry in records.history if any(name.startswith(SHARE) for name in entry)]
    found = largest_class(entries[-1], records) if entries else None
    if found is None or found["in_labels"] is None:
        return None
    return found if collapses(found["share"], found["in_labels"]) else None


def largest_class(entry: dict, records: Records) -> dict | None:
    """The largest class of the pseudo-labels in an entry of the log, with its shares in pseudo-labels and labels."""
    shares = {name.removeprefix(SHARE): value for name, value in entry.items() if name.startswith(SHARE)}
    if not shares:
        return None
    top = max(shares, key=shares.get)
    names = {metric_name(name): name for name in records.class_names}
    return {"name": names.get(top, top), "share": shares[top], "in_labels": entry.get(f"label_share_{top}")}


def curve_table(records: Records) -> dict | None:
    """Header and rows of a table of the pseudo-labels through the training; None if nothing was recorded."""
    confident = [entry for entry in records.history if "pseudo_confidence" in entry]
    health = [entry for entry in records.history if any(name.startswith(SHARE) for name in entry)]
    measured = [entry for entry in records.history if "holdout_accuracy" in entry]
    points = [entry["epoch"] for entry in health or confident]
    if not points:
        return None
    shown = min(PSEUDO_LABEL_ROWS, len(confident) or len(health))
    rows, start = [], -math.inf
    for end in points[:: -math.ceil(len(points) / shown)][::-1]:
        inside = [entry["pseudo_confidence"] for entry in confident if start < entry["epoch"] <= end]
        latest = ([entry for entry in health if entry["epoch"] <= end] or [{}])[-1]
        held_out = ([entry for entry in measured if entry["epoch"] <= end] or [{}])[-1]
        top = largest_class(latest, records) or {"name": "-", "share": None, "in_labels": None}
        mean = sum(inside) / len(inside) if inside else None
        shares = (percent(top["share"]), percent(top["in_labels"]))
        right = (percent(latest.get("pseudo_accuracy")), percent(held_out.get("holdout_accuracy")))
        rows.append([number(end), percent(mean), percent(latest.get("pseudo_mean_iou")), *right, top["name"], *shares])
        start = end
    header = ["up to epoch", "confidence", "mean IoU", "right", "right on held-out images"]
    header += ["largest class", "its share", "its share of the labels"]
    filled = [column for column in range(len(header)) if any(row[column] != "-" for row in rows)]
    header, *rows = ([row[column] for column in filled] for row in (header, *rows))
    return {"header": header, "rows": rows}

"""What a model's card says of limits: first what its own records show, then what holds for the method."""

from ..evaluation.metrics import metric_name
from ..training.pseudo_label_health import COLLAPSE_RATIO
from .card_records import Records
from .card_results import class_scores
from .card_sections import plural
from .licences import FROM_SCRATCH
from .markdown import escape, percent


LOW_IOU = 0.2
SHOWN_CLASSES = 12
FEW_VALIDATION_IMAGES = 200
MIXING = (
    "Its configuration has `mix_images_in_eval: true`, the authors' way: images that are predicted together influence "
    "each other. Predict them one by one, or set it to false."
)


def limits(records: Records) -> list[str]:
    """Sentences that follow from the records, then those of the method; one for each point of a list."""
    own = [*_from_records(records), *(MIXING for mixes in [records.config.get("mix_images_in_eval")] if mixes)]
    return [*own, *general(records.config.get("crop_size"), records.method)]


def _from_records(records: Records) -> list[str]:
    data, points = records.run.get("data", {}), [*_low_classes(records), *_collapse(records)]
    if data.get("labeled"):
        points.append(
            f"It has seen {plural(data['labeled'], 'labeled image')}: what does not occur in them, it can only take "
            "for one of its classes."
        )
    validation = data.get("validation")
    if isinstance(validation, int) and validation < FEW_VALIDATION_IMAGES:
        points.append(f"It was validated on {plural(validation, 'image')}: small differences of the scores are noise.")
    if records.run:
        points.append("One training run, one seed: how much the numbers vary from run to run was not measured here.")
    if records.base_weights == FROM_SCRATCH:
        points.append(
            "It was trained from scratch, where early pseudo-labels are mostly wrong. The method is made for a "
            "pre-trained encoder; in the comparisons of allspark-hf from scratch, unlabeled images helped little or "
            "not at all."
        )
    return points


def _low_classes(records: Records) -> list[str]:
    """The sentence on classes with a low IoU, if there are any."""
    scores = class_scores(records)
    rows = [row for row in scores.per_class if row.get("iou") is not None] if scores else []
    low = sorted((row for row in rows if row["iou"] < LOW_IOU), key=lambda row: row["iou"])
    if not low:
        return []
    shown = ", ".join(f"{escape(row['name'])} ({percent(row['iou'])})" for row in low[:SHOWN_CLASSES])
    more = f" and {len(low) - SHOWN_CLASSES} more" if len(low) > SHOWN_CLASSES else ""
    return [
        f"{plural(len(low), 'class', 'classes')} of {len(rows)} below {100 * LOW_IOU:.0f} % IoU, not to be relied on: "
        f"{shown}{more}."
    ]


def _collapse(records: Records) -> list[str]:
    """The sentence on pseudo-labels that showed nearly one class only at the end, as the training warned of."""
    entries = [entry for entry in records.history if any(name.startswith("pseudo_share_") for name in entry)]
    if not entries:
        return []
    shares = {name: value for name, value in entries[-1].items() if name.startswith("pseudo_share_")}
    top = max(shares, key=shares.get)
    in_labels = entries[-1].get(top.replace("pseudo_", "label_", 1))
    if in_labels is None or 1 - shares[top] >= COLLAPSE_RATIO * (1 - in_labels):
        return []
    names = {metric_name(name): name for name in records.class_names}
    name = top.removeprefix("pseudo_share_")
    return [
        f"In the last epoch the pseudo-labels had collapsed onto {escape(names.get(name, name))}: "
        f"{percent(shares[top])} % of their pixels, {percent(in_labels)} % of the labels'."
    ]


def general(crop: int | list[int] | None, method: str | None) -> list[str]:
    """What holds for every model of this kind."""
    points = []
    if method != "supervised":
        points.append(
            "Unlabeled images teach the model its own predictions: if they come from elsewhere than the labeled ones, "
            "or show mostly one class, its mistakes are confirmed and rare classes lost."
        )
    size = ""
    if crop is not None:
        height, width = (crop, crop) if isinstance(crop, int) else crop
        size = f" ({height} x {width} pixels)"
    return [
        *points,
        "Small and thin objects: predictions are made at a quarter of the image's resolution and scaled up, and the "
        "bottleneck works at a 32nd.",
        f"Images much larger or smaller than the training crop{size}, or other in light, season, camera or place than "
        "the training images: nothing is known of them.",
        "Every pixel gets a class. There is no class for what the model does not know, unless the data have one.",
        "It is not a safety component: do not let it steer, diagnose or decide without a person.",
    ]


__all__ = ["LOW_IOU", "general", "limits"]

"""Metadata of a model's card."""

import re
from pathlib import PurePosixPath
from urllib.parse import unquote, urlparse

from huggingface_hub import EvalResult, ModelCardData

from ..utils.files import HUB_ID
from .licenses import FROM_SCRATCH, License
from .records import EvaluationRecord, Records


METRICS = {"mean_iou": "Mean IoU", "mean_accuracy": "Mean accuracy", "overall_accuracy": "Overall accuracy"}
TAGS = ("vision", "image-segmentation", "semantic-segmentation", "semi-supervised-learning")
TASK = "image-segmentation"


def card_data(records: Records, license: License, model_name: str, architecture: str) -> ModelCardData:
    """
    The metadata of a trained model.

    Args:
        records ([`Records`]): the records in its folder.
        license ([`License`]): the license of its weights.
        model_name (`str`): its name in the evaluation panel.
        architecture (`str`): the tag of its encoder.
    """
    data = records.section("data")
    hub_data = [data.get("source")] if data.get("on_hub") else []
    hub_data += [data.get("unlabeled_dataset")] if data.get("unlabeled_dataset_on_hub") else []
    fields = {"license": license.id, "license_name": license.name, "license_link": license.link}
    found = eval_results(records)
    base = base_model(records)
    return ModelCardData(
        **{name: value for name, value in fields.items() if value is not None},
        library_name="transformers",
        pipeline_tag=TASK,
        tags=[*TAGS, architecture, "allspark"],
        datasets=hub_data or None,
        base_model=base,
        base_model_relation=None if base is None else "finetune",
        metrics=["mean_iou"] if found else None,
        model_name=model_name if found else None,
        eval_results=found or None,
        widget=widget(records.examples),
    )


def base_model(records: Records) -> str | None:
    """Hub id of the model that training started from, else of its base weights; None if they have none."""
    for name in (records.started_from, records.base_weights):
        if name and name != FROM_SCRATCH and HUB_ID.fullmatch(name):
            return name
    return None


def widget(examples: list[str]) -> list[dict[str, str]] | None:
    """Entries of the Hub's widget for example images, which are paths in the repository or addresses."""
    entries = []
    for place in examples:
        stem = PurePosixPath(unquote(urlparse(place).path) if "://" in place else place).stem
        entries.append({"src": place, "example_title": " ".join(re.split(r"[\s_]+", stem)).strip() or place})
    return entries or None


def eval_results(records: Records) -> list[EvalResult]:
    """Mean IoU, mean accuracy and overall accuracy of every evaluation, without repeated results."""
    found: list[EvalResult] = []
    for entry in [*([records.final] if records.final else []), *records.evaluations]:
        for result in _results(entry):
            same = [other for other in found if other.is_equal_except_value(result)]
            if any(other.metric_value == result.metric_value for other in same):
                continue
            if same:
                result.metric_name += f", {entry.file}"
            found.append(result)
    return found


def _results(entry: EvaluationRecord) -> list[EvalResult]:
    mode = "" if entry.mode in (None, "whole images") else f" ({entry.mode})"
    return [
        EvalResult(
            task_type=TASK,
            task_name="Semantic segmentation",
            dataset_type=entry.source if entry.on_hub else _slug(entry.source),
            dataset_name=entry.source,
            dataset_split=entry.split,
            metric_type=name,
            metric_name=f"{title}{mode}",
            metric_value=round(entry.metrics[name], 6),
        )
        for name, title in METRICS.items()
        if entry.metrics.get(name) is not None
    ]


def _slug(name: str) -> str:
    """A name as an identifier: letters, digits, dots and dashes."""
    return re.sub(r"[^\w.]+", "-", name.lower()).strip("-.") or "unknown"

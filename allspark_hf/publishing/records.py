"""[`Records`]: what a model's folder says about its training and evaluations."""

import logging
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from ..data.sources.split_names import split_of
from ..evaluation.metrics import metric_name
from ..utils.files import read_json, read_json_object
from ..utils.text import one_line
from .outdated import outdated_files
from .record import RECORD_FILE, public


logger = logging.getLogger(__name__)

EXAMPLES_DIR = "examples"
SHOWN_IMAGES = (".jpg", ".jpeg", ".png", ".webp")  # what a browser shows
EVALUATION_KEYS = {"data", "settings", "metrics", "per_class", "num_images"}  # of `allspark evaluate`
UNKNOWN_DATA = "not recorded"
# Errors that Python raises for a file that somebody edited in a wrong way.
UNEXPECTED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError)


@dataclass
class EvaluationRecord:
    """
    One evaluation of the model as it is saved.

    Args:
        file (`str`): where it is recorded.
        split (`str`): `"validation"`, `"labeled"`, `"unlabeled"`, `"test"` or `"all"`; or for images that the
            evaluation chose and the training did not validate with, the name of their split, or `"list FILE"`.
        source (`str`): name of the data set.
        on_hub (`bool`): whether the name is a Hub id.
        metrics (`dict[str, float]`): `mean_iou`, `mean_accuracy`, `overall_accuracy`, ... in [0, 1].
        per_class (`list[dict]`): `name` of each class and in [0, 1], or None, `iou` and what else was measured.
        mode (`str`, *optional*): how images were predicted; None if that is not recorded.
        count_absent (`bool`, *optional*): whether the mean counts absent classes as 0.
        num_images (`int`, *optional*): images.
    """

    file: str
    split: str
    source: str
    on_hub: bool
    metrics: dict[str, float]
    per_class: list[dict]
    mode: str | None = None
    count_absent: bool | None = None
    num_images: int | None = None


@dataclass
class Records:
    """
    The records in a folder; an entry that was not recorded is empty.

    Args:
        folder (`Path`): the folder.
        config (`dict`): config.json.
        class_names (`list[str]`): its classes in their order.
        run (`dict`): run_record.json.
        history (`list[dict]`): the log of trainer_state.json.
        final (`EvaluationRecord`, *optional*): training's evaluation of the saved model.
        evaluations (`list[EvaluationRecord]`): JSON files of `allspark evaluate`.
        figures (`list[str]`): paths in the folder.
        examples (`list[str]`): paths in the folder, or addresses.
        export (`dict`): onnx/export.json.
    """

    folder: Path
    config: dict
    class_names: list[str]
    run: dict = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    final: EvaluationRecord | None = None
    evaluations: list[EvaluationRecord] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)
    export: dict = field(default_factory=dict)

    def section(self, name: str) -> dict:
        """A part of run_record.json; empty if it was not recorded."""
        return self.run.get(name) or {}

    @property
    def base_weights(self) -> str | None:
        return self.config.get("base_weights") or self.section("model").get("base_weights")

    @property
    def base_license(self) -> str | None:
        return self.config.get("base_license")

    @property
    def started_from(self) -> str | None:
        return self.section("model").get("started_from")


def read_records(folder: str | Path) -> Records:
    """
    Reads the records in a model's folder, without those of [`outdated_files`], which a warning names.

    Raises:
        ValueError: if the folder has no config.json, or a record in it is not as this package writes it.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} holds no config.json: give the output folder of a training, or of save_pretrained."
        )
    outdated = outdated_files(folder)
    for name, reason in outdated.items():
        logger.warning("%s is left out of the card: %s.", folder / name, reason)
    with naming(folder / "config.json"):
        config = _object(folder / "config.json")
        names = config.get("id2label") or {}
        records = Records(folder, config, [names[index] for index in sorted(names, key=int)])
    if RECORD_FILE not in outdated:
        with naming(folder / RECORD_FILE):
            records.run = _object(folder / RECORD_FILE)
            records.final = _final(records)
    if TRAINER_STATE_NAME not in outdated:
        with naming(folder / TRAINER_STATE_NAME):
            log = _object(folder / TRAINER_STATE_NAME).get("log_history") or []
            records.history = [entry for entry in map(numbers_of, log) if "epoch" in entry]
    for path in sorted(folder.glob("*.json")):
        if path.name not in outdated and is_evaluation(content := read_json_object(path)):
            with naming(path):
                records.evaluations.append(_evaluation(path.name, content, records.section("data")))
    figures = [name for name in _images(folder, "figures") if name not in outdated]
    records.figures = [name for name in figures if not name.endswith("_dark.png")]
    records.examples = _images(folder, EXAMPLES_DIR)
    if "onnx" not in outdated:
        records.export = _object(folder / "onnx" / "export.json")
    return records


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turns errors about the content of a file into a ValueError of one sentence that names the file."""
    try:
        yield
    except UNEXPECTED as error:
        if str(path) in str(error):
            raise
        what = f"{type(error).__name__}: {one_line(error)}"[:200]
        raise ValueError(f"{path} is not as this package writes it ({what}): correct it, or remove it.") from error


def _object(path: Path) -> dict:
    """A JSON object; empty if the file is missing."""
    if not path.is_file():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object: remove it, or make it anew.")
    return content


def is_evaluation(content: Any) -> bool:
    """Whether the content of a JSON file is what `allspark evaluate` writes."""
    return isinstance(content, dict) and content.keys() >= EVALUATION_KEYS


def numbers_of(content: dict) -> dict[str, float]:
    """The entries of a mapping that are finite numbers."""
    numbers = {name: value for name, value in content.items() if isinstance(value, int | float)}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _images(folder: Path, name: str) -> list[str]:
    return [f"{name}/{path.name}" for path in sorted((folder / name).glob("*")) if path.suffix.lower() in SHOWN_IMAGES]


def _final(records: Records) -> EvaluationRecord | None:
    last = (records.section("metrics").get("eval")) or {}
    if "eval_mean_iou" not in last:
        return None
    settings, data = records.section("evaluation"), records.section("data")
    metrics = {name.removeprefix("eval_"): value for name, value in numbers_of(last).items()}
    validation = data.get("validation")
    return EvaluationRecord(
        file=RECORD_FILE,
        split="validation",
        source=data.get("source") or UNKNOWN_DATA,
        on_hub=bool(data.get("on_hub")),
        metrics=metrics,
        per_class=[{"name": name, "iou": metrics.get(f"iou_{metric_name(name)}")} for name in records.class_names],
        mode=evaluation_mode(settings) if settings else None,
        count_absent=settings.get("count_absent_classes"),
        num_images=validation if isinstance(validation, int) else None,
    )


def _evaluation(name: str, content: dict, training: dict) -> EvaluationRecord:
    data, settings = content["data"] or {}, content["settings"] or {}
    folder, dataset = data.get("data_dir"), data.get("dataset_name")
    source = str(folder or dataset or UNKNOWN_DATA)
    on_hub = folder is None and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) is not None and not os.path.exists(source)
    on_hub = on_hub and dataset is not None
    source = source if on_hub else _file_name(source) or UNKNOWN_DATA
    return EvaluationRecord(
        file=name,
        split=_split(data, content["num_images"], training if training.get("source") == source else {}),
        source=source,
        on_hub=on_hub,
        metrics=numbers_of(content["metrics"] or {}),
        per_class=[{"name": str(row["name"]), **numbers_of(row)} for row in content["per_class"] or []],
        mode=evaluation_mode(settings),
        count_absent=settings.get("count_absent_classes"),
        num_images=content["num_images"],
    )


def _split(data: dict, num_images: int, training: dict) -> str:
    """The name of the images that were evaluated; `training` is what a training on the same data recorded of these."""
    split, name, listed = (data.get(key) for key in ("split", "validation_split_name", "validation_list"))
    if split not in (None, "validation") or (name is None and listed is None):
        return split or "validation"
    own = training.get("validation_split_name")
    same = name == own or (None in (name, own) and split_of(name or own) == "validation")
    # The record of a training may have only the file name of its list, so that the number of images must agree too.
    same_list = public(listed) == (training.get("selection") or {}).get("validation_list")
    if same and same_list and (listed is None or num_images == training.get("validation")):
        return "validation"
    return name if listed is None else f"list {_file_name(public(listed))}"


def _file_name(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def evaluation_mode(settings: dict) -> str:
    """How images are predicted, in words, from the arguments of an evaluation."""
    crop = settings.get("eval_crop_size")
    size = "" if not crop else f" of {crop[0]} x {crop[-1]} pixels"
    mode = settings.get("eval_mode") or "whole"
    words = {
        "whole": "whole images",
        "resized": "whole images, resized to whole patches",
        "center_crop": f"center crops{size}",
        "sliding_window": f"sliding windows{size}, stride {settings.get('eval_stride') or 2 / 3:.2g} of the window",
    }
    extra = []
    if settings.get("eval_scales"):
        extra.append("scales " + ", ".join(f"{scale:g}" for scale in settings["eval_scales"]))
    if settings.get("eval_flip"):
        extra.append("with the mirrored image")
    return ", ".join([words.get(mode, str(mode)), *extra])

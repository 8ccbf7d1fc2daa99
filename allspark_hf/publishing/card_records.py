"""What a model's folder says of its training and evaluations."""

import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from ..evaluation.metrics import metric_name
from .markdown import escape
from .outdated import outdated_files
from .record import RECORD_FILE
from .record_shapes import EVALUATION, checked, history_of, numbers_of, read_json, read_record


logger = logging.getLogger(__name__)

EXAMPLES_DIR = "examples"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # what scripts/push.py says, and a browser shows
EVALUATION_KEYS = {"data", "settings", "metrics", "per_class", "num_images"}  # of scripts/evaluate.py
UNKNOWN_DATA = "not recorded"


@dataclass
class Evaluation:
    """
    One evaluation of the model as it is saved.

    Args:
        file (`str`): where it is recorded.
        split (`str`): `"validation"`, `"labeled"`, `"unlabeled"` or `"all"`.
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
    What a folder holds; an empty entry was not recorded.

    Args:
        name (`str`): of the folder.
        config (`dict`): config.json.
        run (`dict`): run_record.json.
        history (`list[dict]`): the log of trainer_state.json.
        train (`dict`): train_results.json.
        final (`Evaluation`, *optional*): eval_results.json, training's evaluation of the saved model.
        final_epoch (`float`, *optional*): the epoch it was made at.
        evaluations (`list[Evaluation]`): JSON files of scripts/evaluate.py.
        figures (`list[str]`): paths in the folder.
        examples (`list[str]`): paths in the folder, or addresses.
        export (`dict`): onnx/export.json.
    """

    name: str
    config: dict
    run: dict = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    train: dict = field(default_factory=dict)
    final: Evaluation | None = None
    final_epoch: float | None = None
    evaluations: list[Evaluation] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)
    export: dict = field(default_factory=dict)

    @property
    def class_names(self) -> list[str]:
        names = self.config.get("id2label") or {}
        return [names[index] for index in sorted(names, key=int)]

    @property
    def method(self) -> str | None:
        return self.run.get("settings", {}).get("method")

    @property
    def base_weights(self) -> str | None:
        return self.config.get("base_weights") or self.run.get("model", {}).get("base_weights")

    @property
    def started_from(self) -> str | None:
        return self.run.get("model", {}).get("started_from")


def read_records(folder: str | Path) -> Records:
    """
    Reads a model's folder, but what [`outdated_files`] tells of other weights, which a warning names.

    Raises:
        ValueError: if it has no config.json, or a record in it is not as this package writes it.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} holds no config.json: give the output folder of a training, or of save_pretrained."
        )
    outdated = outdated_files(folder)
    for name, reason in outdated.items():
        logger.warning("%s is left out of the card: %s.", folder / name, reason)
    config, run, state, train, last = (
        {} if name in outdated else read_record(folder / name)
        for name in ("config.json", RECORD_FILE, "trainer_state.json", "train_results.json", "eval_results.json")
    )
    train, last = numbers_of(train), numbers_of(last)
    records = Records(folder.resolve().name, config, run, history_of(state), train)
    if last:
        records.final = _final(records, last)
        records.final_epoch = last.get("epoch")
    for path in sorted(folder.glob("*.json")):
        content = {} if path.name in outdated else read_json(path)
        if isinstance(content, dict) and content.keys() >= EVALUATION_KEYS:
            content = dict.fromkeys(EVALUATION_KEYS) | checked(content, EVALUATION, path)
            records.evaluations.append(_evaluation(path.name, content))
    records.figures = [name for name in _images(folder, "figures") if not name.endswith("_dark.png")]
    records.examples = _images(folder, EXAMPLES_DIR)
    records.export = {} if "onnx" in outdated else read_record(folder / "onnx" / "export.json")
    return records


def _images(folder: Path, name: str) -> list[str]:
    files = sorted((folder / name).glob("*")) if (folder / name).is_dir() else []
    return [f"{name}/{path.name}" for path in files if path.suffix.lower() in IMAGE_SUFFIXES]


def _final(records: Records, last: dict) -> Evaluation:
    settings, data = records.run.get("settings"), records.run.get("data", {})
    prefix = "eval_iou_"
    iou = {name.removeprefix(prefix): value for name, value in last.items() if name.startswith(prefix)}
    validation = data.get("validation")
    return Evaluation(
        file="eval_results.json",
        split="validation",
        source=data.get("source") or UNKNOWN_DATA,
        on_hub=bool(data.get("on_hub")),
        metrics={name.removeprefix("eval_"): value for name, value in last.items() if name.startswith("eval_")},
        per_class=[{"name": name, "iou": iou.get(metric_name(name))} for name in records.class_names],
        mode=None if settings is None else evaluation_mode(settings),
        count_absent=None if settings is None else settings.get("count_absent_classes"),
        num_images=validation if isinstance(validation, int) else None,
    )


def _evaluation(name: str, content: dict) -> Evaluation:
    data, settings = content["data"] or {}, content["settings"] or {}
    folder, dataset = data.get("data_dir"), data.get("dataset_name")
    source = str(folder or dataset or UNKNOWN_DATA)
    on_hub = folder is None and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) is not None and not os.path.exists(source)
    on_hub = on_hub and dataset is not None
    return Evaluation(
        file=name,
        split=data.get("split") or "validation",
        source=source if on_hub else re.split(r"[/\\]", source.rstrip("/\\"))[-1] or UNKNOWN_DATA,
        on_hub=on_hub,
        metrics=numbers_of(content["metrics"]),
        per_class=content["per_class"] or [],
        mode=evaluation_mode(settings),
        count_absent=settings.get("count_absent_classes"),
        num_images=content["num_images"],
    )


def evaluation_mode(settings: dict) -> str:
    """How images are predicted, in words, of the arguments of an evaluation."""
    crop = settings.get("eval_crop_size")
    size = "" if not crop else f" of {crop[0]} x {crop[-1]} pixels"
    mode = settings.get("eval_mode", "whole")
    words = {
        "whole": "whole images",
        "center_crop": f"centre crops{size}",
        "sliding_window": f"sliding windows{size}, stride {settings.get('eval_stride') or 2 / 3:.2g} of the window",
    }
    extra = []
    if settings.get("eval_scales"):
        extra.append("scales " + ", ".join(f"{scale:g}" for scale in settings["eval_scales"]))
    if settings.get("eval_flip"):
        extra.append("with the mirrored image")
    return ", ".join([words.get(mode) or escape(mode), *extra])


__all__ = ["EXAMPLES_DIR", "Evaluation", "Records", "evaluation_mode", "read_records"]

"""Which files of an output folder tell of other weights than those that lie in it now."""

from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME

from ..models.weights import DIGEST, weights_digest
from .markdown import percent
from .record import RECORD_FILE
from .record_shapes import history_of, numbers_of, read_json


MEANS = ("eval_mean_iou", "eval_mean_accuracy", "eval_overall_accuracy")


def outdated_files(folder: str | Path) -> dict[str, str]:
    """
    Records of an earlier training or of another model that lie in a folder; they must not be published as this one's.

    A file of scripts/evaluate.py and an export name the weights they were made from; the last evaluation and the
    training's summary are held against the log in `trainer_state.json`. What does not tell counts as current.

    Args:
        folder (`str` or `Path`): an output folder.

    Returns:
        `dict[str, str]`: name in the folder (`"onnx"` for an export) -> what is wrong, and what to do.
    """
    folder = Path(folder)
    found = {}
    makers = {path.name: (path, "scripts/evaluate.py") for path in sorted(folder.glob("*.json"))}
    makers["onnx"] = (folder / "onnx" / "export.json", "scripts/export_onnx.py")
    told = {name: (_read(path).get(DIGEST), script) for name, (path, script) in makers.items()}
    told = {name: entry for name, entry in told.items() if entry[0] is not None}
    own = weights_digest(folder) if told else None
    for name, (digest, script) in told.items():
        if own is not None and digest != own:
            found[name] = f"it was made from other weights than those in {folder}: run {script} again"
    found |= _not_in_log(folder)
    if found.keys() & {"eval_results.json", "train_results.json"}:
        found["all_results.json"] = "it repeats them"
    return found


def _not_in_log(folder: Path) -> dict[str, str]:
    if not (folder / TRAINER_STATE_NAME).is_file():
        return {}
    history = history_of(_read(folder / TRAINER_STATE_NAME))
    train, last = (numbers_of(_read(folder / name)) for name in ("train_results.json", "eval_results.json"))
    found = {}
    runtimes = [entry["train_runtime"] for entry in history if "train_runtime" in entry]
    if train.get("train_runtime") is not None and runtimes[-1:] != [train["train_runtime"]]:
        found["train_results.json"] = "it is of another training than trainer_state.json: save it again, or remove it"
    evaluated = [entry for entry in history if MEANS[0] in entry]
    settings = _read(folder / RECORD_FILE).get("settings")
    best = isinstance(settings, dict) and settings.get("load_best_model_at_end")
    candidates = evaluated if best else evaluated[-1:]
    if MEANS[0] in last and not any(_means(entry) == _means(last) for entry in candidates):
        found["eval_results.json"] = (
            "it is not the last evaluation in trainer_state.json: evaluate and save both again, or remove it"
        )
    return found


def _means(entry: dict) -> list[str]:
    return [percent(entry.get(name)) for name in MEANS]


def _read(path: Path) -> dict:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}  # whoever needs the file says what is wrong with it
    return content if isinstance(content, dict) else {}


__all__ = ["outdated_files"]

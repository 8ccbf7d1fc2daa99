"""What the records of a run must look like for a card: read with care, since anyone may have edited them."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any


LARGEST = 1e15  # of a number in a record
Shape = Callable[[Any], bool] | dict | list


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST


def is_count(value: Any) -> bool:
    return is_number(value) and value >= 0


def is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < LARGEST


def is_text(value: Any) -> bool:
    return isinstance(value, str) and encodes(value)


def is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def is_crop(value: Any) -> bool:
    sides = value if isinstance(value, list) else [value]
    return 1 <= len(sides) <= 2 and (len(sides) == 2 or not isinstance(value, list)) and all(map(is_whole, sides))


def is_validation(value: Any) -> bool:
    """Images of the validation set, or of several by name."""
    return is_count(value) or (isinstance(value, dict) and all(map(is_count, value.values())))


def encodes(text: str) -> bool:
    """Whether a card, which is UTF-8, can hold a text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def is_class_list(value: Any) -> bool:
    """`id2label`: whole numbers, as JSON's keys, to names."""
    named = isinstance(value, dict) and all(map(is_text, value.values()))
    return named and all(re.fullmatch(r"\d{1,9}", index) for index in value)


def is_palette(value: Any) -> bool:
    colors = value if isinstance(value, list) else [None]
    return all(
        isinstance(color, list) and len(color) == 3 and all(is_whole(part) and part <= 255 for part in color)
        for color in colors
    )


NUMBERS = ("learning_rate", "head_learning_rate_multiplier", "weight_decay", "warmup_steps", "max_grad_norm")
NUMBERS += ("unlabeled_loss_weight", "unlabeled_warmup_epochs", "memory_warmup_epochs", "eval_stride", "seed")
SETTINGS = {
    **dict.fromkeys(NUMBERS, is_number),
    **dict.fromkeys(("method", "optim", "lr_scheduler_type", "labeled_loss", "eval_mode"), is_text),
    **dict.fromkeys(("count_absent_classes", "load_best_model_at_end", "eval_flip"), is_flag),
    "per_device_train_batch_size": is_count,
    "per_device_unlabeled_batch_size": is_count,
    "lr_scheduler_kwargs": {"power": is_number},
    "eval_crop_size": [is_count],
    "eval_scales": [is_number],
}
DATA = {
    **dict.fromkeys(("source", "layout", "dataset_config_name", "unlabeled_folder", "unlabeled_dataset"), is_text),
    **dict.fromkeys(("on_hub", "unlabeled_stream", "unlabeled_used", "unlabeled_dataset_on_hub"), is_flag),
    **dict.fromkeys(("labeled", "unlabeled", "hidden_masks", "files_left_out", "classes"), is_count),
    "validation": is_validation,
    "!": ("labeled",),
    "selection": {
        "labeled_count": is_count,
        "labeled_fraction": is_number,
        "labeled_list": is_text,
        "split_seed": is_number,
    },
}
# What a card reads. Every entry may be missing or null, but for those named by "!", without which there is no use of
# the mapping; "*" stands for any name. Entries that are not here are not looked at.
SHAPES: dict[str, dict] = {
    "config.json": {
        "id2label": is_class_list,
        "hidden_sizes": [is_whole],
        "depths": [is_whole],
        "palette": is_palette,
        "crop_size": is_crop,
        "semantic_loss_ignore_index": is_number,
        "use_cross_attention": is_flag,
        "mix_images_in_eval": is_flag,
        "base_weights": is_text,
    },
    "run_record.json": {
        "command": is_text,
        "recipe": is_text,
        "arguments": {},
        "settings": SETTINGS,
        "model": {"base_weights": is_text, "started_from": is_text, "parameters": is_count},
        "data": DATA,
        "training": {
            **dict.fromkeys(("steps", "epochs", "seconds", "labeled_images_per_update"), is_number),
            "resumed": is_flag,
        },
        "git": {"commit": is_text, "uncommitted_changes": is_flag, "!": ("commit",)},
        "versions": {"*": is_text},
        "machine": {
            **dict.fromkeys(("cores", "memory_gib", "threads_per_process"), is_number),
            "cpu": is_text,
            "gpus": [is_text],
            "processes": is_count,
        },
    },
    "trainer_state.json": {},
    "train_results.json": {},
    "eval_results.json": {},
    "export.json": {
        "files": {"*": is_number},
        "differences": [{"max_difference": is_number, "!": ("max_difference",)}],
        "cost": {},
    },
}
EVALUATION = {
    "data": {"data_dir": is_text, "dataset_name": is_text, "split": is_text},
    "settings": SETTINGS,
    "metrics": {},
    "per_class": [
        {
            "name": is_text,
            **dict.fromkeys(("iou", "accuracy", "boundary_iou", "pixel_share"), is_number),
            "!": ("name",),
        }
    ],
    "num_images": is_count,
}


def read_json(path: Path) -> Any:
    """
    What a JSON file holds; None for a number that is none (NaN, Infinity, 1e999).

    Raises:
        ValueError: if it cannot be read as JSON.
    """
    try:
        return json.loads(
            path.read_text(encoding="utf-8"), parse_constant=lambda name: None, parse_float=_finite_or_none
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({' '.join(str(error).split())}): remove it, or make it anew.") from error


def _finite_or_none(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def read_record(path: Path) -> dict:
    """
    A record of a run, of the name of one in `SHAPES`; empty if it is missing. Entries of null are left out.

    Raises:
        ValueError: if it is no JSON object, or an entry that a card reads is not as this package writes it.
    """
    if not path.is_file():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object: remove it, or make it anew.")
    return checked(content, SHAPES[path.name], path)


def checked(content: dict, shape: dict, path: Path) -> dict:
    """The content, nulls that a card would read left out; ValueError, naming the entry, if one is of another kind."""
    return _checked(content, shape, "", path)


def _checked(value: Any, shape: Shape, name: str, path: Path) -> Any:
    if isinstance(shape, dict) and isinstance(value, dict):
        known = {key: None if key == "!" else shape.get(key, shape.get("*")) for key in value}
        found = {
            key: part if known[key] is None else _checked(part, known[key], f"{name}.{key}".lstrip("."), path)
            for key, part in value.items()
            if part is not None or known[key] is None
        }
        lacking = [key for key in shape.get("!", ()) if key not in found and (found or name.endswith("]"))]
        if not lacking:
            return found
        name, value = f"{name}.{lacking[0]}", None
    elif isinstance(shape, list) and isinstance(value, list):
        return [_checked(part, shape[0], f"{name}[{index}]", path) for index, part in enumerate(value)]
    elif callable(shape) and shape(value):
        return value
    raise ValueError(
        f"{path} gives {name!a} as {ascii(value)[:100]}, which is not what this package writes there: correct it, or "
        "remove the file."
    )


def numbers_of(content: Any) -> dict[str, float]:
    """The entries of a mapping that are numbers; of anything else none."""
    return {name: value for name, value in content.items() if is_number(value)} if isinstance(content, dict) else {}


def history_of(state: dict) -> list[dict[str, float]]:
    """The log in a trainer_state.json: of each entry that has an epoch, the numbers."""
    log = state.get("log_history")
    entries = [numbers_of(entry) for entry in log] if isinstance(log, list) else []
    return [entry for entry in entries if "epoch" in entry]


__all__ = ["EVALUATION", "checked", "history_of", "is_number", "is_text", "numbers_of", "read_json", "read_record"]

"""What a published repository holds: an explicit list, collected from an output folder into an empty one."""

import json
import logging
import re
import shutil
from pathlib import Path
from urllib.parse import quote

from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from ..models.configuration_allspark import AUTO_MAP
from ..models.modeling_allspark import SegformerForSemiSupervisedSegmentation
from ..training.resuming import STATE_PATTERNS
from ..training.storage import RUN_FILE, write_run_file
from ..utils.files import read_json_object
from .card_records import EVALUATION_KEYS, EXAMPLES_DIR, IMAGE_SUFFIXES
from .outdated import outdated_files
from .record import public


logger = logging.getLogger(__name__)

PREPROCESSOR_NAME = "preprocessor_config.json"
PACKAGE = Path(__file__).resolve().parents[1]
CODE_FILES = (
    *sorted((PACKAGE / "models").glob("*_allspark.py")),
    PACKAGE / "inference" / "handler.py",
)
MODEL_FILES = (SAFE_WEIGHTS_NAME, CONFIG_NAME, PREPROCESSOR_NAME)
RECORDS = ("run_record.json", TRAINER_STATE_NAME, "train_results.json", "eval_results.json", "all_results.json")
PATTERNS = ("figures/*.png", "onnx/*.onnx", "onnx/*.onnx_data", "onnx/*.onnx.data", "onnx/export.json")
# Entries of records that may name files of this machine; class names elsewhere stay as they are.
WITH_PATHS = ("best_model_checkpoint", "data", "model")
# Needed to resume, and published only if hub_strategy asks for checkpoints.
CHECKPOINT_PATTERNS = STATE_PATTERNS


def check_output_folder(folder: str | Path):
    """
    Raises ValueError unless a folder holds a trained AllSpark model.

    Args:
        folder (`str` or `Path`): an output folder, with weights, configuration and image processor.
    """
    folder = Path(folder)
    missing = [name for name in MODEL_FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} holds no trained model ({', '.join(missing)} missing): give the output folder of a training."
        )
    config = _read_json(folder / CONFIG_NAME)
    if not isinstance(config, dict) or config.get("model_type") != "allspark":
        given = config.get("model_type") if isinstance(config, dict) else None
        raise ValueError(
            f"{folder / CONFIG_NAME} describes a model of type {given!r}, not 'allspark': give the output folder of "
            "this package's training."
        )


def stage(folder: str | Path, staging: str | Path):
    """
    Copies into an empty folder what of an output folder is published, and the code that loads it.

    That is: weights without the memory, configuration (with its `auto_map`), image processor, code and handler, card,
    the run's records and evaluations (JSON, in which an absolute path is cut to its last part), `figures/*.png`, an
    exported `onnx/`, and of `examples/` the images that the card shows. Nothing else that lies in the folder: no
    pickle, no checkpoint, no list of the user's files, no log, and nothing that [`outdated_files`] names.

    Args:
        folder (`str` or `Path`): an output folder, or a checkpoint in it.
        staging (`str` or `Path`): the folder to fill.

    Raises:
        ValueError: if the folder holds no trained AllSpark model.
    """
    folder, staging = Path(folder), Path(staging)
    check_output_folder(folder)
    _stage_weights(folder / SAFE_WEIGHTS_NAME, staging / SAFE_WEIGHTS_NAME)
    for name in (CONFIG_NAME, PREPROCESSOR_NAME):
        shutil.copyfile(folder / name, staging / name)
    outdated = outdated_files(folder)
    published = [path for pattern in PATTERNS for path in folder.glob(pattern)]
    published = [path for path in published if path.parent.name not in outdated]
    if (folder / "README.md").is_file():
        shutil.copyfile(folder / "README.md", staging / "README.md")
        published += _shown_examples(folder)
    for name, reason in outdated.items():
        logger.warning("%s is not published: %s.", folder / name, reason)
    for path in sorted(folder.glob("*.json")):
        if path.name not in (*MODEL_FILES, *outdated) and (path.name in RECORDS or _is_evaluation(path)):
            _copy_record(path, staging / path.name)
    for path in published:
        target = staging / path.relative_to(folder)
        target.parent.mkdir(exist_ok=True)
        (_copy_example if path.parent.name == EXAMPLES_DIR else shutil.copyfile)(path, target)
    add_code(staging)


def add_code(staging: str | Path):
    """
    Adds the files that `trust_remote_code=True` and Inference Endpoints run, this package's own, to a staged folder,
    and names them in its configuration.
    """
    staging = Path(staging)
    for path in CODE_FILES:
        shutil.copyfile(path, staging / path.name)
    _write_json(_read_json(staging / CONFIG_NAME) | {"auto_map": AUTO_MAP}, staging / CONFIG_NAME)


def stage_checkpoint(checkpoint: str | Path, staging: str | Path):
    """
    Copies what resuming from a checkpoint needs, its memory and its optimizer included, into a new folder.

    Args:
        checkpoint (`str` or `Path`): a folder `checkpoint-*`.
        staging (`str` or `Path`): the folder to make, e.g. `last-checkpoint` in a staged one.
    """
    checkpoint, staging = Path(checkpoint), Path(staging)
    staging.mkdir()
    resumable = [path for pattern in CHECKPOINT_PATTERNS for path in checkpoint.glob(pattern)]
    for path in [*(checkpoint / name for name in MODEL_FILES), *resumable]:
        shutil.copyfile(path, staging / path.name)
    _copy_record(checkpoint / TRAINER_STATE_NAME, staging / TRAINER_STATE_NAME)
    add_code(staging)
    write_run_file(staging, read_json_object(checkpoint / RUN_FILE))  # whose list has the files as they are now


def _stage_weights(source: Path, target: Path):
    """Weights as saved; without the memory, which belongs to training, if they are a checkpoint's."""
    ignored = SegformerForSemiSupervisedSegmentation._keys_to_ignore_on_save
    with safe_open(source, "pt") as file:
        names = list(file.keys())
        kept = [name for name in names if not any(re.search(pattern, name) for pattern in ignored)]
        if len(kept) < len(names):
            save_file({name: file.get_tensor(name) for name in kept}, target, file.metadata())
            return
    shutil.copyfile(source, target)


def _shown_examples(folder: Path) -> list[Path]:
    card = (folder / "README.md").read_text(encoding="utf-8")
    images = [path for path in folder.glob(f"{EXAMPLES_DIR}/*") if path.suffix.lower() in IMAGE_SUFFIXES]
    images = [path for path in images if not path.is_symlink()]  # which may lead anywhere
    return [path for path in images if any(f"examples/{name}" in card for name in (path.name, quote(path.name)))]


def _copy_example(source: Path, target: Path):
    """Upright, and without what a camera writes beside the pixels: place, time, owner."""
    with Image.open(source) as image:
        if not image.getexif() and not image.info.keys() & {"comment", "xmp", "XML:com.adobe.xmp", "photoshop"}:
            shutil.copyfile(source, target)
            return
        upright = ImageOps.exif_transpose(image)
        upright.info = {}
        upright.getexif().clear()
        upright.save(target, format=image.format, quality=95)


def _copy_record(source: Path, target: Path):
    content = _read_json(source)
    shared = {name: public(value) if name in WITH_PATHS else value for name, value in content.items()}
    if shared == content:
        shutil.copyfile(source, target)  # byte by byte
    else:
        _write_json(shared, target)


def _is_evaluation(path: Path) -> bool:
    try:
        content = _read_json(path)
    except ValueError:
        return False  # a file of the user's
    return isinstance(content, dict) and content.keys() >= EVALUATION_KEYS


def _read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}): restore or remove it.") from error


def _write_json(value, path: Path):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


__all__ = ["add_code", "check_output_folder", "stage", "stage_checkpoint"]

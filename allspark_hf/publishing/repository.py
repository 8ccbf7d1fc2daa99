"""Collects what is published of an output folder, an explicit list, in an empty folder."""

import logging
import re
import shutil
from pathlib import Path
from urllib.parse import quote

from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from ..models.modeling_allspark import SemiSupervisedSegmenter
from ..models.registration import auto_map_of, code_files, segmenter_classes
from ..utils.files import read_json, read_json_object, write_json
from .outdated import OF_THE_RUN, outdated_files
from .record import RECORD_FILE, public
from .records import EXAMPLES_DIR, SHOWN_IMAGES, is_evaluation


logger = logging.getLogger(__name__)

PREPROCESSOR_NAME = "preprocessor_config.json"
PACKAGE = Path(__file__).resolve().parents[1]
HANDLER_FILES = (PACKAGE / "inference" / "handler.py", PACKAGE / "data" / "pixels.py")
MODEL_FILES = (SAFE_WEIGHTS_NAME, CONFIG_NAME, PREPROCESSOR_NAME)
RECORDS = (RECORD_FILE, *OF_THE_RUN)
PATTERNS = (
    "figures/*.png",
    "onnx/*.onnx",
    "onnx/*.onnx_data",
    "onnx/*.onnx.data",
    "onnx/export.json",
    "onnx/pixels.py",
)
# Entries of records that may hold paths of this machine; in others, a class name may look like a path.
WITH_PATHS = ("best_model_checkpoint", "data", "model")


def check_output_folder(folder: str | Path):
    """
    Raises ValueError unless a folder holds a trained AllSpark model.

    Args:
        folder (`str` or `Path`): the folder, with weights, configuration and image processor.
    """
    folder = Path(folder)
    missing = [name for name in MODEL_FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} holds no trained model ({', '.join(missing)} missing): give the output folder of a training."
        )
    segmenter_classes(read_json(folder / CONFIG_NAME), folder / CONFIG_NAME)


def stage(folder: str | Path, staging: str | Path):
    """
    Copies the published files of an output folder, and the code that loads them, into an empty folder.

    These are: weights without the memory, configuration (with its `auto_map`), image processor, code and handler,
    card, the run's records and evaluations (JSON, in which an absolute path is cut to its last part), `figures/*.png`,
    an exported `onnx/`, and the images of `examples/` that the card shows. Nothing else is copied: no pickle, no
    checkpoint, no list of the user's files, no log, and nothing that [`outdated_files`] names.

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
    published = [path for path in published if path.relative_to(folder).as_posix() not in outdated]
    if (folder / "README.md").is_file():
        shutil.copyfile(folder / "README.md", staging / "README.md")
        published += _shown_examples(folder)
    for name, reason in outdated.items():
        logger.warning("%s is not published: %s.", folder / name, reason)
    for path in sorted(folder.glob("*.json")):
        if path.name not in (*MODEL_FILES, *outdated) and (
            path.name in RECORDS or is_evaluation(read_json_object(path))
        ):
            copy_record(path, staging / path.name)
    for path in published:
        target = staging / path.relative_to(folder)
        target.parent.mkdir(exist_ok=True)
        (_copy_example if path.parent.name == EXAMPLES_DIR else shutil.copyfile)(path, target)
    add_code(staging)


def add_code(staging: str | Path):
    """
    Adds the files that `trust_remote_code=True` and Inference Endpoints run, this package's own, to a staged folder,
    and names them in its configuration.

    Raises:
        ValueError: if it holds no model of this package.
    """
    path = Path(staging) / CONFIG_NAME
    config = read_json(path)
    config_class, model_class = segmenter_classes(config, path)
    for file in (*code_files(model_class), *HANDLER_FILES):
        shutil.copyfile(file, path.with_name(file.name))
    write_json(path, config | {"auto_map": auto_map_of(config_class)})


def _stage_weights(source: Path, target: Path):
    """Copies weights; those of a checkpoint without the memory, which only training needs."""
    ignored = SemiSupervisedSegmenter._keys_to_ignore_on_save
    with safe_open(source, "pt") as file:
        names = list(file.keys())
        kept = [name for name in names if not any(re.search(pattern, name) for pattern in ignored)]
        if len(kept) < len(names):
            save_file({name: file.get_tensor(name) for name in kept}, target, file.metadata())
            return
    shutil.copyfile(source, target)


def _shown_examples(folder: Path) -> list[Path]:
    card = (folder / "README.md").read_text(encoding="utf-8")
    images = [path for path in folder.glob(f"{EXAMPLES_DIR}/*") if path.suffix.lower() in SHOWN_IMAGES]
    images = [path for path in images if not path.is_symlink()]  # a link may lead anywhere
    return [path for path in images if any(f"examples/{name}" in card for name in (path.name, quote(path.name)))]


def _copy_example(source: Path, target: Path):
    """Copies an image upright, and without what a camera writes beside the pixels: place, time, owner."""
    with Image.open(source) as image:
        if not image.getexif() and not image.info.keys() & {"comment", "xmp", "XML:com.adobe.xmp", "photoshop"}:
            shutil.copyfile(source, target)
            return
        upright = ImageOps.exif_transpose(image)
        upright.info = {}
        upright.getexif().clear()
        upright.save(target, format=image.format, quality=95)


def copy_record(source: Path, target: Path):
    """Copies a record, in which paths of this machine are cut to their last part."""
    content = read_json(source)
    shared = {name: public(value) if name in WITH_PATHS else value for name, value in content.items()}
    if shared == content:
        shutil.copyfile(source, target)  # byte by byte
    else:
        write_json(target, shared)

"""The exported folder: what onnxruntime and transformers.js read, and a record of the export."""

import json
import os
import platform
import shutil
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import SegformerConfig
from transformers.image_processing_utils import BaseImageProcessor

from ..data import pixels
from ..inference.loading import long_side_of
from ..models.configuration_allspark import AllSparkFields
from ..models.modeling_allspark import SemiSupervisedSegmenter
from ..models.weights import DIGEST, weights_digest
from ..utils.files import read_json_object, removing_new_folders, write_json
from .onnx import (
    INT8_OPERATORS,
    OPSET,
    TOLERANCE,
    OnnxSegmenter,
    check_differences,
    check_exportable,
    compare_logits,
    export_graph,
    quantize_int8,
    require_onnx,
    sizes_to_compare,
)


ONNX_FOLDER = "onnx"
# As transformers.js names them: dtype "fp32" and dtype "q8".
FLOAT_FILE, INT8_FILE = "model.onnx", "model_quantized.onnx"
RECORD_FILE = "export.json"
PIXELS = Path(pixels.__file__)  # how an image becomes 8-bit RGB, for those who run the file without this package


def export_files(folder: str | Path, quantize: bool, in_model_folder: bool) -> list[Path]:
    """The files that [`export_onnx`] writes to a folder."""
    names = [FLOAT_FILE, *([INT8_FILE] if quantize else []), RECORD_FILE, PIXELS.name]
    files = [Path(folder) / ONNX_FOLDER / name for name in names]
    if not in_model_folder:
        files += [Path(folder) / "config.json", Path(folder) / "preprocessor_config.json"]
    return files


def check_output(folder: str | Path, in_model_folder: bool, overwrite: bool):
    """
    Raises ValueError if an export is in the folder already, unless it may be overwritten, or if the folder holds
    another model, whose configuration would be replaced.

    Args:
        folder (`str` or `Path`): where to export to; need not exist.
        in_model_folder (`bool`): whether it is the exported model's own.
        overwrite (`bool`): whether an earlier export may be replaced.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, but a folder is needed: choose another output_dir.")
    if not in_model_folder and (folder / "model.safetensors").exists():
        raise ValueError(
            f"{folder} holds the weights of a model, whose config.json the export would replace: choose another "
            "output_dir, or the exported model's own folder."
        )
    existing = [file for file in export_files(folder, True, in_model_folder) if file.exists()]
    if existing and not overwrite:
        raise ValueError(f"{existing[0]} exists: pass --overwrite, or choose another --output_dir.")


def export_onnx(
    model: SemiSupervisedSegmenter,
    image_processor: BaseImageProcessor,
    output_dir: str | Path,
    quantize: bool = False,
    in_model_folder: bool = False,
    overwrite: bool = False,
    fixed_size: tuple[int, int] | None = None,
) -> dict:
    """
    Exports a model, and writes nothing unless the logits equal PyTorch's at all [`sizes_to_compare`].

    `output_dir` gets onnx/model.onnx, with `quantize` onnx/model_quantized.onnx, onnx/export.json, and onnx/pixels.py,
    which makes RGB of an image without this package; an earlier export is replaced as a whole. Where it is not the
    model's own folder, it also gets the two files of [`write_for_transformers_js`].

    Args:
        model ([`SemiSupervisedSegmenter`]): on the CPU, in eval mode; becomes float32.
        image_processor ([`SegformerImageProcessor`]): of the model.
        output_dir (`str` or `Path`): made if need be.
        quantize (`bool`): whether to write the 8-bit variant too.
        in_model_folder (`bool`): whether `output_dir` is the model's own folder, whose other files stay as they are.
        overwrite (`bool`): whether an earlier export may be replaced.
        fixed_size (`tuple[int, int]`, *optional*): (height, width) of all images that the graph takes; None for any.

    Returns:
        `dict`: what is in onnx/export.json.

    Raises:
        ImportError: if onnx or what belongs to it is missing.
        ValueError: if the model cannot be exported, ONNX differs from PyTorch, or there is something in the way.
    """
    require_onnx()
    check_exportable(model, fixed_size)
    check_output(output_dir, in_model_folder, overwrite)
    output_dir, digest = Path(output_dir), weights_digest(model)  # as it is saved, perhaps in half precision
    model.float()
    with removing_new_folders(output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".export-", dir=output_dir) as staging:
            record = _export_into(Path(staging), model, image_processor, quantize, in_model_folder, fixed_size)
            record[DIGEST] = digest  # so that an export older than the weights shows
            write_record(staging, record)
            for old in export_files(output_dir, True, in_model_folder=True):
                old.unlink(missing_ok=True)
            (output_dir / ONNX_FOLDER).mkdir(exist_ok=True)
            for file in export_files("", quantize, in_model_folder):
                os.replace(Path(staging) / file, output_dir / file)
    return record


def _export_into(folder: Path, model, image_processor, quantize: bool, in_model_folder: bool, fixed_size) -> dict:
    """Writes all files but the record, and gives the record."""
    (folder / ONNX_FOLDER).mkdir()
    path = folder / ONNX_FOLDER / FLOAT_FILE
    export_graph(model, path, fixed_size)
    sizes = sizes_to_compare(model.config, fixed_size)
    differences = compare_logits(model, OnnxSegmenter(path, model.config), sizes)
    check_differences(differences)
    if quantize:
        quantize_int8(path, path.with_name(INT8_FILE))
    if not in_model_folder:
        write_for_transformers_js(folder, model.config, image_processor)
    shutil.copyfile(PIXELS, path.with_name(PIXELS.name))
    names = (FLOAT_FILE, INT8_FILE) if quantize else (FLOAT_FILE,)
    return {
        "opset": OPSET,
        "fixed_size": None if fixed_size is None else list(fixed_size),  # height, width; None for any
        "files": {name: path.with_name(name).stat().st_size for name in names},  # bytes
        "tolerance": TOLERANCE,
        "differences": [asdict(difference) for difference in differences],
        "int8_operators": list(INT8_OPERATORS) if quantize else None,
        "cost": None,
        "versions": _versions(),
        "machine": {"architecture": platform.machine(), "threads": torch.get_num_threads()},
    }


def find_onnx_file(path: str | Path, digest: str | None) -> Path:
    """
    The ONNX file of a model.

    Args:
        path (`str` or `Path`): the file, or a folder that [`export_onnx`] has written to.
        digest (`str`, *optional*): [`weights_digest`] of the model.

    Raises:
        ValueError: if there is none, or it was exported from other weights, as far as its record tells.
    """
    file = Path(path) / ONNX_FOLDER / FLOAT_FILE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise ValueError(f"There is no ONNX file {file}: make one with allspark export, or name another (--onnx).")
    told = read_json_object(file.with_name(RECORD_FILE)).get(DIGEST)
    if told not in (None, digest):
        raise ValueError(f"{file} was exported from other weights than the model's: export again with --overwrite.")
    return file


def write_record(output_dir: str | Path, record: dict):
    """Writes onnx/export.json."""
    write_json(Path(output_dir) / ONNX_FOLDER / RECORD_FILE, record)


def _versions() -> dict[str, str]:
    import onnx
    import onnxruntime
    import onnxscript
    import transformers

    modules = (torch, transformers, onnx, onnxscript, onnxruntime)
    return {module.__name__: module.__version__ for module in modules} | {"python": platform.python_version()}


def write_for_transformers_js(
    folder: str | Path, config: AllSparkFields, image_processor: BaseImageProcessor
) -> list[Path]:
    """
    The two files by which transformers.js opens an exported folder. It does not know this package's model types, but
    every graph takes pixels and gives logits as SegFormer's does, and this is what config.json says; transformers.js
    scales logits of any size to the image. The size to resize to is written in the form that both libraries read.

    Args:
        folder (`str` or `Path`): where to.
        config ([`AllSparkFields`]): of the model.
        image_processor ([`SegformerImageProcessor`]): of the model.

    Returns:
        `list[Path]`: config.json and preprocessor_config.json.
    """
    stored = config.to_dict()
    fields = {name: stored[name] for name in SegformerConfig().to_dict() if name in stored}
    fields |= {
        name: stored[name]
        for name in ("id2label", "label2id", "palette", "image_range", "tiff_page")
        if stored.get(name) is not None
    }
    fields |= {
        "architectures": ["SegformerForSemanticSegmentation"],
        "model_type": "segformer",
        "exported_from": {"architectures": stored.get("architectures"), "model_type": stored["model_type"]},
        "transformers.js_config": {"dtype": "fp32"},  # its own default in a browser is q8
    }
    fields.pop("_name_or_path", None)
    settings = json.loads(image_processor.to_json_string())
    settings["image_processor_type"] = "SegformerImageProcessor"
    if image_processor.do_resize and "max_height" in dict(image_processor.size):
        long_side = long_side_of(image_processor)
        settings["size"] = {"shortest_edge": long_side, "longest_edge": long_side}
    paths = [Path(folder) / "config.json", Path(folder) / "preprocessor_config.json"]
    for path, content in zip(paths, (fields, settings), strict=True):
        write_json(path, content)
    return paths

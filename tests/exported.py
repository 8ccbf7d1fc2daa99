"""One tiny model exported by the script, as a user does it, for all tests that need an export."""

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TWO_STAGES, tiny_model
from filelock import FileLock
from forking import python
from in_process import SCRIPTS

from allspark_hf.demo.data import CLASS_NAMES, write_demo_data
from allspark_hf.inference.loading import load_trained, make_image_processor


LONG_SIDE = 80


def spread(model):
    """With logits of zero mean, so that every class wins somewhere."""
    model.eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        logits = model(pixel_values=torch.randn(4, 3, 64, 96, generator=generator)).logits
        model.decode_head.classifier.bias -= logits.mean(dim=(0, 2, 3))
    return model


def save_model(folder: Path, **kwargs) -> Path:
    """A tiny model of the demo's classes that scales images to a long side."""
    names = dict(enumerate(CLASS_NAMES))
    label2id = {name: index for index, name in names.items()}
    palette = [[40 * index, 80, 160] for index in names]
    fields = {**TWO_STAGES, "num_labels": len(names), "id2label": names, "label2id": label2id, "palette": palette}
    model = tiny_model(**fields, **kwargs)
    spread(model).save_pretrained(folder)
    make_image_processor(LONG_SIDE).save_pretrained(folder)
    return folder


def tiny_export(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """
    `model` and `image_processor` as loaded; the folders `model_dir`, `data_dir` and `folder`, of the export; `printed`
    by the script; and the validation images' files. Tracing takes long, so the workers of pytest-xdist share it.
    """
    root = tmp_path_factory.getbasetemp()
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "exported"
    root.mkdir(exist_ok=True)
    data_dir, model_dir, printed = root / "data", root / "model", root / "printed.txt"
    with FileLock(root / "lock"):
        if not printed.is_file():
            write_demo_data(data_dir, num_train=2, num_labeled=2, num_validation=3, size=(96, 125))
            where = "--model", save_model(model_dir), "--output_dir", root / "export"
            command = [python(), SCRIPTS / "export_onnx.py", *where, "--quantize_int8", "--data_dir", data_dir]
            done = subprocess.run(command, capture_output=True, text=True, timeout=400)
            assert done.returncode == 0, done.stderr
            printed.write_text(done.stdout)
    model, image_processor = load_trained(str(model_dir), "cpu")
    return SimpleNamespace(
        model=model,
        image_processor=image_processor,
        model_dir=model_dir,
        data_dir=data_dir,
        folder=root / "export",
        printed=printed.read_text(),
        images=sorted((data_dir / "images" / "val").iterdir()),
    )


def equal_share(one: np.ndarray, other: np.ndarray) -> float:
    """Share of pixels in [0, 1] on which two label maps of one size agree."""
    assert one.shape == other.shape
    return float((one == other).mean())

"""Fixtures: tiny random models from a configuration, in-memory datasets, and the data that may lie beside us."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from allspark_hf import AllSparkConfig, SegformerForSemiSupervisedSegmentation
from allspark_hf.inference.loading import make_image_processor


SHARED = Path(__file__).resolve().parents[2] / "shared"
TINY = {
    "hidden_sizes": [8, 16, 24, 32],
    "num_attention_heads": [1, 2, 3, 4],
    "depths": [1, 1, 1, 1],
    "decoder_hidden_size": 16,
    "crop_size": 64,
    "num_labels": 3,
}
NO_DROPOUT = {"drop_path_rate": 0.0, "classifier_dropout_prob": 0.0, "channel_attention_dropout": 0.0}


def tiny_config(**kwargs) -> AllSparkConfig:
    return AllSparkConfig(**{**TINY, **kwargs})


def tiny_model(seed: int = 0, **kwargs) -> SegformerForSemiSupervisedSegmentation:
    """A small model with weights large enough that mistakes show."""
    torch.manual_seed(seed)
    model = SegformerForSemiSupervisedSegmentation(tiny_config(**kwargs))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_dataset(num_rows: int, num_labels: int = 3, seed: int = 0, size=(72, 96), masks: bool = True):
    """Noise images whose mask follows their brightness; in memory, (height, width) = `size`."""
    rng = np.random.default_rng(seed)
    images, labels = [], []
    for _ in range(num_rows):
        label = rng.integers(num_labels, size=(size[0] // 24, size[1] // 24)).repeat(24, 0).repeat(24, 1)
        noise = rng.integers(40, size=(*label.shape, 3))
        images.append(Image.fromarray((label[..., None] * (200 // num_labels) + noise).astype(np.uint8)))
        label[:2] = 255
        labels.append(Image.fromarray(label.astype(np.uint8)))
    columns = {"image": images, "label": labels} if masks else {"image": images}
    dataset = datasets.Dataset.from_dict(columns)
    for name in columns:
        dataset = dataset.cast_column(name, datasets.Image())
    return dataset


@pytest.fixture(autouse=True)
def same_threads():
    """A test that changes their number must not change the last bits of the next one's sums."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def image_processor():
    return make_image_processor()


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    folder = SHARED / "parity" / "tiny_a"
    if not folder.is_dir():
        pytest.skip(f"the authors' numbers are not at {folder}")
    return folder

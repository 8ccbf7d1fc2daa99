"""Weights of the classes in the labeled loss."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from run_training import build_trainer
from test_method import assert_accumulation_changes_nothing
from torch.nn import functional as F

from allspark_hf.data.mixed import MixedBatch
from allspark_hf.training.class_weights import class_weights


EXACT = {"num_unlabeled": 8, "seed": 1, "max_steps": 2, "exact": True, "max_grad_norm": 0.01}


def weighted(tmp_path, *weights, **settings) -> dict:
    own = {"method": "supervised", "output_dir": str(tmp_path), "class_weights": [str(one) for one in weights]}
    return {**EXACT, **own, **settings}


@pytest.mark.parametrize("labeled_loss", ["cross_entropy", "ohem"])
def test_the_loss_is_torchs_weighted_mean(tmp_path, labeled_loss):
    loss = {"labeled_loss": labeled_loss, "ohem_min_kept": 5, "ohem_threshold": 1.0}
    trainer = build_trainer(weighted(tmp_path, 0.5, 3, 0, **loss))
    labels = torch.randint(4, (2, 9, 7), generator=torch.Generator().manual_seed(0))
    labels[labels == 3] = 255
    logits = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pixels = trainer._count_pixels([MixedBatch(labels=labels)])
    loss, used = trainer.method.labeled_loss(logits, labels, pixels)
    expected = F.cross_entropy(logits, labels, torch.tensor([0.5, 3, 0], dtype=torch.float64), ignore_index=255)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert used == (labels != 255).float().mean()


def test_balanced_weights_are_those_of_the_labeled_masks(tmp_path):
    pixels = np.repeat([0, 1, 2, 255], [64 * 64 - 1000 - 90 - 6, 90, 1000, 6]).astype(np.uint8).reshape(64, 64)
    rows = {"image": [Image.new("RGB", (64, 64))], "label": [Image.fromarray(pixels)]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    trainer = build_trainer(weighted(tmp_path, 1, 1, 1))
    trainer.args.class_weights = ["balanced"]

    dataset = datasets.Dataset.from_dict(rows, features=features)
    weights = class_weights(trainer.args, dataset, trainer.model.config)
    assert weights.tolist() == pytest.approx([(1000 / 3000) ** 0.5, (1000 / 90) ** 0.5, 1])


def test_accumulation_changes_nothing(tmp_path):
    """An update's loss is divided by the weights of all its pixels, however it is cut."""
    assert_accumulation_changes_nothing(weighted(tmp_path, "balanced"), rel=1e-6)


def test_as_many_weights_as_classes(tmp_path):
    with pytest.raises(ValueError, match="class_weights has 2 numbers, but there are 3 classes"):
        build_trainer(weighted(tmp_path, 1, 2))

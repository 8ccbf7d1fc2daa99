"""Folders that version 0.1.0 wrote load to the same logits; without this package in tests/test_remote_code.py.

`fixtures/saved_by_0.1.0.zip` holds a tiny model after three training steps of that version: `published` with the code
files that it had then, weights and logits of `checkpoint-2`, and the logits of both for one input.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from segmenter_tester import assert_complete
from transformers import AutoModelForSemanticSegmentation

from allspark_hf import SegformerForSemiSupervisedSegmentation
from allspark_hf.inference.loading import load_trained


ARCHIVE = Path(__file__).parent / "fixtures" / "saved_by_0.1.0.zip"
FOLDERS = ("published", "checkpoint-2")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    shutil.unpack_archive(ARCHIVE, folder)
    return folder


@torch.no_grad()
def logits_of(model, saved):
    return model.eval()(load_file(saved / "expected.safetensors")["pixel_values"]).logits


@pytest.mark.parametrize("name", FOLDERS)
def test_same_logits_with_the_package(saved, name):
    model, info = SegformerForSemiSupervisedSegmentation.from_pretrained(saved / name, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(logits_of(model, saved), load_file(saved / "expected.safetensors")[name])
    assert (model.bottleneck.memory.num_enqueued.sum() > 0) == (name == "checkpoint-2")


def test_what_the_configuration_says(saved, tmp_path):
    """`share_memory` was a field, and the last four were set from outside."""
    assert json.loads((saved / "published" / "config.json").read_text())["share_memory"] is False
    model, _ = load_trained(str(saved / "published"), "cpu")
    config = model.config
    assert not hasattr(config, "share_memory") and model.bottleneck.share_memory
    assert (config.mask_values, config.ignored_mask_values, config.base_weights) == ([1, 2, 3], [0], "none")
    assert config.palette == [[0, 0, 0], [1, 2, 3], [200, 100, 50]] and config.id2label[2] == "car"
    model.save_pretrained(tmp_path)
    assert_complete(tmp_path)
    assert "share_memory" not in json.loads((tmp_path / "config.json").read_text())
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert torch.equal(logits_of(again, saved), load_file(saved / "expected.safetensors")["published"])

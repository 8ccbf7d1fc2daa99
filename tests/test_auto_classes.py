"""transformers' Auto classes with this package imported, and what a saved folder carries for those without it."""

import copy
import importlib
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from conftest import tiny_config, tiny_model
from segmenter_tester import assert_complete, images, logits_of
from test_loading import write_hub_folder
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForSemanticSegmentation,
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerModel,
)
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

import allspark_hf
from allspark_hf import AllSparkConfig, SegformerForSemiSupervisedSegmentation
from allspark_hf.inference.loading import make_image_processor
from allspark_hf.models.registration import code_files


MODEL = "modeling_allspark.SegformerForSemiSupervisedSegmentation"
AUTO_MAP = {
    "AutoConfig": "configuration_allspark.AllSparkConfig",
    "AutoModel": MODEL,
    "AutoModelForSemanticSegmentation": MODEL,
}
# transformers 5.17 asks for torchvision here, though SegFormer's image processor works without: fixed by 5.23.
needs_auto_image_processor = pytest.mark.skipif(
    getattr(AutoImageProcessor, "is_dummy", False),
    reason=f"AutoImageProcessor of transformers {transformers.__version__} needs torchvision",
)


@pytest.fixture(autouse=True)
def nothing_is_warned_of(transformers_warnings):
    """No test here may make transformers log a warning."""
    yield
    assert not transformers_warnings


@pytest.fixture
def folder(tmp_path):
    """A saved model of three classes."""
    tiny_model().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@needs_auto_image_processor
@pytest.mark.parametrize("long_side", [None, 30])
def test_image_processor(tmp_path, long_side):
    make_image_processor(long_side).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text()).keys().isdisjoint({"auto_map"})
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is SegformerImageProcessorPil  # torchvision is not here
    image = torch.arange(3 * 31 * 47, dtype=torch.uint8).reshape(3, 31, 47).numpy()
    values = [
        processor(images=image, return_tensors="pt").pixel_values
        for processor in (loaded, make_image_processor(long_side))
    ]
    assert values[0].shape == ((1, 3, 31, 47) if long_side is None else (1, 3, 19, 30))
    assert torch.equal(*values)


def test_folder_saved_before_there_was_an_auto_map(folder, tmp_path):
    expected = logits_of(SegformerForSemiSupervisedSegmentation.from_pretrained(folder))
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]
    (folder / "config.json").write_text(json.dumps(config))
    for path in code_files(SegformerForSemiSupervisedSegmentation):
        (folder / path.name).unlink()
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert torch.equal(logits_of(model), expected)
    model.save_pretrained(tmp_path / "new")
    assert_complete(tmp_path / "new")


def test_configuration_alone(tmp_path):
    """It cannot carry the model's file, but names it all the same, as the one that lies beside the weights."""
    tiny_config().save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "configuration_allspark.py"}
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(AutoModel.from_config(config)) is SegformerForSemiSupervisedSegmentation


class Subclass(SegformerForSemiSupervisedSegmentation):
    """A user's own model, in a module of theirs."""


def test_subclass_is_named_instead(tmp_path):
    model = Subclass(tiny_config())
    model.config.auto_map = {"AutoModel": "elsewhere.Other"}  # as a checkpoint with code of its own would bring it
    model.save_pretrained(tmp_path)
    reference = f"{__name__.rpartition('.')[2]}.Subclass"
    expected = {**AUTO_MAP, "AutoModel": reference, "AutoModelForSemanticSegmentation": reference}
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == expected
    assert (tmp_path / Path(__file__).name).read_bytes() == Path(__file__).read_bytes()


def test_plain_segformer_is_left_alone(tmp_path):
    write_hub_folder(tmp_path / "segformer", "segformer")
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "segformer")
    assert type(loaded) is SegformerForSemanticSegmentation
    assert type(loaded.config) is type(AutoConfig.from_pretrained(tmp_path / "segformer")) is SegformerConfig
    loaded.save_pretrained(tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").iterdir()} == {"config.json", "model.safetensors"}
    assert "auto_map" not in json.loads((tmp_path / "again" / "config.json").read_text())
    assert type(AutoModel.from_config(SegformerConfig())) is SegformerModel
    assert SegformerForSemanticSegmentation._auto_class is SegformerForImageClassification._auto_class is None


def test_registering_again_changes_nothing(folder):
    allspark_hf.register_auto_classes()
    importlib.reload(importlib.import_module("allspark_hf.models.registration"))
    importlib.reload(allspark_hf)
    assert type(AutoModel.from_pretrained(folder)) is SegformerForSemiSupervisedSegmentation


def test_configuration_with_auto_map_is_copied_and_pickled(folder):
    config = AutoConfig.from_pretrained(folder)
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), AllSparkConfig(**config.to_dict())):
        assert type(twin) is AllSparkConfig and twin.to_dict() == config.to_dict()
        assert twin.auto_map == AUTO_MAP
    twin = copy.deepcopy(config)
    twin.auto_map["AutoModel"] = "changed"
    assert config.auto_map == AUTO_MAP


def assert_fresh_memory(model, dtype):
    memory = model.bottleneck.memory
    assert memory.channels.dtype == dtype and memory.num_enqueued.dtype == torch.int64
    assert memory.channels.device.type == "cpu" and not memory.num_enqueued.any()
    assert memory.channels.float().std().item() == pytest.approx(1, abs=0.15)  # standard normal, NaN fails


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.08)])
def test_other_dtypes(folder, tmp_path, poisoned_memory, dtype, tolerance):
    expected = logits_of(AutoModel.from_pretrained(folder))
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert_fresh_memory(model, dtype)
    logits = logits_of(model, images(2).to(dtype))
    assert logits.dtype == dtype
    assert (logits.float() - expected).abs().max() < tolerance * expected.abs().max()
    model.save_pretrained(tmp_path / "half")
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "half", dtype="auto")
    assert torch.equal(logits_of(again, images(2).to(dtype)), logits)
    assert_fresh_memory(again, dtype)


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}], ids=str)
def test_device_map(folder, poisoned_memory, device_map):
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, device_map=device_map)
    assert_fresh_memory(model, torch.float32)
    assert torch.equal(logits_of(model), logits_of(AutoModel.from_pretrained(folder)))


def test_weights_left_on_disk(folder, tmp_path, poisoned_memory):
    """As where a model is larger than the memory: the encoder is read from its file whenever it is needed."""
    device_map = {"segformer": "disk", "bottleneck": "cpu", "decode_head": "cpu"}
    model = AutoModel.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path / "offload")
    assert model.segformer.stages[0].layer_norm.weight.device.type == "meta"
    assert_fresh_memory(model, torch.float32)
    assert (logits_of(model) - logits_of(AutoModel.from_pretrained(folder))).abs().max() <= 1e-6


def test_folder_is_no_copy_of_a_copy(folder, tmp_path):
    """A folder whose code someone changed: the installed class is loaded, and saves its own code."""
    (folder / "modeling_allspark.py").write_text("raise RuntimeError('not to be run')\n")
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    model.save_pretrained(tmp_path / "new")
    assert_complete(tmp_path / "new")
    shutil.rmtree(folder)  # nothing of it is needed anymore
    assert logits_of(model).isfinite().all()

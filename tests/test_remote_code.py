"""A saved folder in a Python without this package: what `SegmenterTester.test_remote_code` leaves out."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import NO_DROPOUT, tiny_model
from safetensors.torch import load_file, save_file
from segmenter_tester import images, logits_of
from test_auto_classes import needs_auto_image_processor
from test_loading import OLD_NAMES, old_name
from test_saved_before import ARCHIVE
from without_package import run_without_package

from allspark_hf import SegformerForSemiSupervisedSegmentation
from allspark_hf.inference.loading import make_image_processor


FOLDERS = {1: "1-class", 3: "run", 81: "coco-81"}  # leading digits and hyphens are no part of a module's name

# Arguments: folder with the saved models, folder for a report and tensors.
REMOTE = """
import copy, json, os, pickle, sys
from pathlib import Path
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation

models, made = map(Path, sys.argv[1:3])
given = torch.load(made / "given.pt")
report, tensors = {"not_trusted": []}, {}

def load(name, **options):
    return AutoModelForSemanticSegmentation.from_pretrained(models / name, trust_remote_code=True, **options)

def logits(model):
    with torch.no_grad():
        return model(given["pixel_values"].to(model.dtype)).logits

for loader in (AutoConfig, AutoModel, AutoModelForSemanticSegmentation):
    try:
        loader.from_pretrained(models / "run")
    except ValueError as error:
        report["not_trusted"].append(str(error))
report["copied_without_trust"] = [str(path) for path in Path(os.environ["HF_HOME"]).rglob("*allspark*")]
for name in given["folders"]:
    tensors[name] = logits(load(name))
old = load("saved/published")
with torch.no_grad():
    tensors["saved"] = old(given["saved"]).logits
report["saved_module"] = type(old).__module__
half = load("run", dtype=torch.bfloat16)
tensors["bfloat16"], tensors["bfloat16 memory"] = logits(half), half.bottleneck.memory.channels
config = AutoConfig.from_pretrained(models / "run", trust_remote_code=True)
report["token_grid"] = config.token_grid
for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
    assert type(twin) is type(config) and twin.to_dict() == config.to_dict()
torch.manual_seed(3)
tensors["from_config"] = logits(AutoModel.from_config(config, trust_remote_code=True).eval())
if not getattr(AutoImageProcessor, "is_dummy", False):
    processor = AutoImageProcessor.from_pretrained(models / "run", trust_remote_code=True)
    report["image_processor"] = type(processor).__module__
torch.save(tensors, made / "tensors.pt")
(made / "report.json").write_text(json.dumps(report))
"""


def load(folder, **kwargs):
    return SegformerForSemiSupervisedSegmentation.from_pretrained(folder, **kwargs).eval()


def write_old_names(source, folder):
    """The same model as `source` with the weight names of today's SegFormer checkpoints on the Hub."""
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = {old_name(name): value for name, value in load_file(source / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert {"decode_head.linear_c.0.proj.weight", "segformer.encoder.layer_norm.0.weight"} <= set(weights)
    assert len(OLD_NAMES) == 14


@pytest.fixture(scope="module")
def remote(tmp_path_factory):
    """What the script above did, run once: the folder `models`, its `report` and its `tensors`."""
    home = tmp_path_factory.mktemp("remote")
    models, made = home / "models", home / "made"
    for num_labels, name in FOLDERS.items():
        tiny_model(num_labels=num_labels, **NO_DROPOUT).save_pretrained(models / name)
    make_image_processor().save_pretrained(models / "run")
    write_old_names(models / "run", models / "old_names")
    shutil.unpack_archive(ARCHIVE, models / "saved")
    made.mkdir()
    given = {"folders": [*FOLDERS.values(), "old_names"], "pixel_values": images(2)}
    given["saved"] = load_file(models / "saved" / "expected.safetensors")["pixel_values"]
    torch.save(given, made / "given.pt")
    run_without_package(home, REMOTE, models, made)
    report = json.loads((made / "report.json").read_text())
    return SimpleNamespace(models=models, report=report, tensors=torch.load(made / "tensors.pt"))


@pytest.mark.parametrize("num_labels", FOLDERS)
def test_same_logits_bit_for_bit(remote, num_labels):
    expected = logits_of(load(remote.models / FOLDERS[num_labels]))
    assert expected.shape == (2, num_labels, 13, 18) and expected.std() > 0.05
    assert torch.equal(remote.tensors[FOLDERS[num_labels]], expected)
    assert remote.report["token_grid"] == [2, 2]


@needs_auto_image_processor
def test_image_processor_is_transformers_own(remote):
    assert remote.report["image_processor"].startswith("transformers.models.segformer.")


def test_old_weight_names(remote):
    assert torch.equal(remote.tensors["old_names"], remote.tensors["run"])


def test_a_folder_with_the_code_of_version_0_1_0(remote):
    assert remote.report["saved_module"].startswith("transformers_modules.")
    expected = load_file(remote.models / "saved" / "expected.safetensors")["published"]
    assert torch.equal(remote.tensors["saved"], expected)


def test_bfloat16(remote):
    expected = logits_of(load(remote.models / "run", dtype=torch.bfloat16), images(2, dtype=torch.bfloat16))
    assert remote.tensors["bfloat16"].dtype == torch.bfloat16
    assert torch.equal(remote.tensors["bfloat16"], expected)
    memory = remote.tensors["bfloat16 memory"]
    assert memory.dtype == torch.bfloat16 and memory.float().std().item() == pytest.approx(1, abs=0.15)


def test_from_config(remote):
    config = SegformerForSemiSupervisedSegmentation.config_class.from_pretrained(remote.models / "run")
    torch.manual_seed(3)
    expected = logits_of(SegformerForSemiSupervisedSegmentation(config).eval())
    assert torch.equal(remote.tensors["from_config"], expected)


def test_without_trust_it_is_transformers_own_error(remote):
    assert len(remote.report["not_trusted"]) == 3
    for message in remote.report["not_trusted"]:
        assert "contains custom code which must be executed" in message and "`trust_remote_code=True`" in message
    assert remote.report["copied_without_trust"] == []


def test_the_helper_fails_where_the_script_fails(tmp_path):
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_without_package(tmp_path, "1 / 0")
    assert run_without_package(tmp_path, "import sys; print(sys.argv[1:])", "a", 2) == "['a', '2']\n"

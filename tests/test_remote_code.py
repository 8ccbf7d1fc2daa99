"""A saved folder in a Python that has never heard of this package: the code in the folder does everything."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import NO_DROPOUT, tiny_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_auto_classes import assert_complete, needs_auto_image_processor, pixels
from test_loading import OLD_NAMES, old_name
from without_package import run_without_package

from allspark_hf import SegformerForSemiSupervisedSegmentation
from allspark_hf.inference.loading import make_image_processor


# Dots, hyphens and leading digits are no part of a module's name.
FOLDERS = {1: "1-class", 3: "run_0.5", 81: "coco-81"}

# Arguments: folder with the saved models, folder for what it makes of them, its report and its tensors.
REMOTE = """
import copy, json, logging, os, pickle, sys
from pathlib import Path
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation

models, made = map(Path, sys.argv[1:3])
given = torch.load(models / "given.pt")
report, tensors, messages = {"classes": []}, {}, []

class Collect(logging.Handler):
    def emit(self, record):
        messages.append(record.getMessage())

logging.getLogger("transformers").addHandler(Collect(logging.WARNING))

def load(auto_class, folder, **options):
    model, info = auto_class.from_pretrained(folder, trust_remote_code=True, output_loading_info=True, **options)
    report["classes"].append([type(model).__module__, type(model.config).__module__, type(model).__name__])
    assert not any(info.values()) and not model.training, info
    return model

def logits(model):
    with torch.no_grad():
        return model(given["pixel_values"].to(model.dtype)).logits

report["not_trusted"] = []
for loader in (AutoConfig, AutoModel, AutoModelForSemanticSegmentation):
    try:
        loader.from_pretrained(models / given["folders"][1])
    except ValueError as error:
        report["not_trusted"].append(str(error))
report["copied_without_trust"] = [str(path) for path in Path(os.environ["HF_HOME"]).rglob("*allspark*")]

for name in given["folders"]:
    for auto_class in (AutoModel, AutoModelForSemanticSegmentation):
        tensors[f"{name} {auto_class.__name__}"] = logits(load(auto_class, models / name))

folder = models / given["folders"][1]
tensors["old names"] = logits(load(AutoModelForSemanticSegmentation, models / "old_names"))
half = load(AutoModelForSemanticSegmentation, folder, dtype=torch.bfloat16)
tensors["bfloat16"], tensors["bfloat16 memory"] = logits(half), half.bottleneck.memory.channels
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
report["token_grid"] = config.token_grid
for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
    assert type(twin) is type(config) and twin.to_dict() == config.to_dict()
torch.manual_seed(3)
new = AutoModelForSemanticSegmentation.from_config(config, trust_remote_code=True)
tensors["from_config"] = logits(new.eval())
if not getattr(AutoImageProcessor, "is_dummy", False):
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    report["image_processor"] = type(processor).__module__
report["messages"] = list(messages)

model = load(AutoModel, folder)
model.save_pretrained(made / "again")
load(AutoModelForSemanticSegmentation, made / "again").save_pretrained(made / "and again")
optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
model.bottleneck.memory.channels.copy_(given["memory"])
losses = [model(given["pixel_values"], labels=given["step"]["labels"]).loss, model(**given["step"]).loss]
sum(losses).backward()
optimizer.step()
report["losses"] = [loss.item() for loss in losses]
report["written"] = int(model.bottleneck.memory.num_enqueued.sum())
model.save_pretrained(made / "tuned")
tensors["tuned"] = logits(load(AutoModelForSemanticSegmentation, made / "tuned"))
torch.save(tensors, made / "tensors.pt")
(made / "report.json").write_text(json.dumps(report))
"""


@torch.no_grad()
def logits_of(folder, **kwargs):
    model = SegformerForSemiSupervisedSegmentation.from_pretrained(folder, **kwargs).eval()
    return model(pixels().to(model.dtype)).logits


def training_step():
    """A batch of two labeled and three unlabeled images."""
    labels = torch.randint(3, (2, 50, 70), generator=torch.Generator().manual_seed(6))
    labels[:, :5] = 255
    unlabeled = {"unlabeled_pixel_values": pixels(7, (3, 3, 50, 70)), "unlabeled_logits": pixels(8, (3, 3, 13, 18))}
    return {"pixel_values": pixels(), "labels": labels, **unlabeled}


def memory():
    """Content for the memory of the model of three classes, which otherwise starts from noise."""
    return torch.randn(3, 32, 4, generator=torch.Generator().manual_seed(9))


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
    """What the script above did, run once: `models` and `made` are folders, `report` and `tensors` its results."""
    home = tmp_path_factory.mktemp("remote")
    models, made = home / "models", home / "made"
    for num_labels, name in FOLDERS.items():
        tiny_model(num_labels=num_labels, **NO_DROPOUT).save_pretrained(models / name)
    make_image_processor().save_pretrained(models / FOLDERS[3])
    write_old_names(models / FOLDERS[3], models / "old_names")
    given = {"folders": list(FOLDERS.values()), "pixel_values": pixels(), "step": training_step(), "memory": memory()}
    torch.save(given, models / "given.pt")
    made.mkdir()
    run_without_package(home, REMOTE, models, made)
    report = json.loads((made / "report.json").read_text())
    return SimpleNamespace(models=models, made=made, report=report, tensors=torch.load(made / "tensors.pt"))


@pytest.mark.parametrize("num_labels", FOLDERS)
def test_same_logits_bit_for_bit(remote, num_labels):
    name = FOLDERS[num_labels]
    expected = logits_of(remote.models / name)
    assert expected.shape == (2, num_labels, 13, 18) and expected.std() > 0.05
    for auto_class in ("AutoModel", "AutoModelForSemanticSegmentation"):
        assert torch.equal(remote.tensors[f"{name} {auto_class}"], expected)


def test_classes_come_from_the_folder(remote):
    assert len(remote.report["classes"]) == 11
    for model_module, config_module, class_name in remote.report["classes"]:
        assert class_name == "SegformerForSemiSupervisedSegmentation"
        assert model_module.startswith("transformers_modules.") and model_module.endswith(".modeling_allspark")
        assert config_module.startswith("transformers_modules.") and config_module.endswith(".configuration_allspark")
    assert remote.report["token_grid"] == [2, 2]


@needs_auto_image_processor
def test_image_processor_is_transformers_own(remote):
    assert remote.report["image_processor"].startswith("transformers.models.segformer.")


def test_nothing_is_warned_of(remote):
    assert remote.report["messages"] == []


def test_old_weight_names(remote):
    assert torch.equal(remote.tensors["old names"], logits_of(remote.models / FOLDERS[3]))


def test_bfloat16(remote):
    expected = logits_of(remote.models / FOLDERS[3], dtype=torch.bfloat16)
    assert remote.tensors["bfloat16"].dtype == torch.bfloat16
    assert torch.equal(remote.tensors["bfloat16"], expected)
    memory = remote.tensors["bfloat16 memory"]
    assert memory.dtype == torch.bfloat16 and memory.float().std().item() == pytest.approx(1, abs=0.15)


def test_from_config(remote):
    config = SegformerForSemiSupervisedSegmentation.config_class.from_pretrained(remote.models / FOLDERS[3])
    torch.manual_seed(3)
    with torch.no_grad():
        expected = SegformerForSemiSupervisedSegmentation(config).eval()(pixels()).logits
    assert torch.equal(remote.tensors["from_config"], expected)


@pytest.mark.parametrize("name", ["again", "and again"])
def test_saved_again_it_is_the_same_folder(remote, name):
    source, folder = remote.models / FOLDERS[3], remote.made / name
    assert_complete(folder)
    for file in ("config.json", "model.safetensors"):
        assert (folder / file).read_bytes() == (source / file).read_bytes()


def test_fine_tuned(remote):
    """A step on labels alone and with unlabeled images and the memory: the one that the installed package makes."""
    model = SegformerForSemiSupervisedSegmentation.from_pretrained(remote.models / FOLDERS[3]).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.bottleneck.memory.channels.copy_(memory())
    step = training_step()
    losses = [model(step["pixel_values"], labels=step["labels"]).loss, model(**step).loss]
    sum(losses).backward()
    optimizer.step()
    assert remote.report["losses"] == [loss.item() for loss in losses]
    assert losses[0] != losses[1] and remote.report["written"] == 3 * 32
    tuned = load_file(remote.made / "tuned" / "model.safetensors")
    before = load_file(remote.models / FOLDERS[3] / "model.safetensors")
    after = model.state_dict()
    assert all(torch.equal(tuned[name], after[name]) for name in tuned)
    assert sum(not torch.equal(tuned[name], before[name]) for name in tuned) > 100
    assert_complete(remote.made / "tuned")
    assert torch.equal(remote.tensors["tuned"], logits_of(remote.made / "tuned"))


def test_no_memory_in_the_weights(remote):
    for name in ("again", "tuned"):
        with safe_open(remote.made / name / "model.safetensors", "pt") as file:
            names = set(file.keys())
        with safe_open(remote.models / FOLDERS[3] / "model.safetensors", "pt") as file:
            assert names == set(file.keys())
        assert not any("memory" in weight for weight in names) and "bottleneck.project_in.weight" in names


def test_without_trust_it_is_transformers_own_error(remote):
    folder = remote.models / FOLDERS[3]
    assert len(remote.report["not_trusted"]) == 3
    for message in remote.report["not_trusted"]:
        assert message.startswith(f"The repository {folder} contains custom code which must be executed")
        assert message.endswith("Please pass the argument `trust_remote_code=True` to allow custom code to be run.")
    assert remote.report["copied_without_trust"] == []


def test_the_helper_fails_where_the_script_fails(tmp_path):
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_without_package(tmp_path, "1 / 0")
    assert run_without_package(tmp_path, "import sys; print(sys.argv[1:])", "a", 2) == "['a', '2']\n"

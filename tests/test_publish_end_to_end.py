"""From an empty folder to a stranger: train, push with one flag, load by Hub id without the package.

The same with an encoder of AutoBackbone: a stranger, the scripts and the Space get the package's masks.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import HubServer
from huggingface_hub import ModelCard, hf_hub_download, snapshot_download
from in_process import SCRIPTS, run_script
from layout_folders import load_folder
from PIL import Image
from test_auto_classes import needs_auto_image_processor
from test_backbone import tiny_backbone_model
from test_push import CODE, MODEL
from without_package import run_without_package

import allspark_hf
from allspark_hf.demo.data import CLASS_NAMES, write_demo_data
from allspark_hf.evaluation.metrics import ConfusionMatrix
from allspark_hf.inference.loading import load_trained, make_image_processor
from allspark_hf.inference.prediction import predict_mask
from allspark_hf.publishing.outdated import outdated_files


sys.path.append(str(SCRIPTS / "space"))
import segmenter


REPO_ID = "tester/allspark-tiny"
STRANGER = """
import json, sys
import numpy as np
from huggingface_hub import snapshot_download
from PIL import Image
from transformers import pipeline

for repo_id, image, target in zip(*[iter(sys.argv[1:])] * 3):
    segments = pipeline("image-segmentation", model=repo_id, trust_remote_code=True)(image)
    masks = {segment["label"]: np.asarray(segment["mask"]) > 0 for segment in segments}
    sys.modules.pop("handler", None)
    sys.path.insert(0, snapshot_download(repo_id))
    from handler import EndpointHandler

    answer = EndpointHandler(snapshot_download(repo_id))({"inputs": Image.open(image)})
    np.savez(target, **masks)
    print(json.dumps([[entry["label"], entry["score"]] for entry in answer]))
"""
DINOV2_ID = "tester/dinov2-tiny"
DINOV2_CODE = {"modeling_backbone_allspark.py", "configuration_backbone_allspark.py", "heads_allspark.py"}


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def output_dir(hub, data_dir, tmp_path_factory):
    """An empty working folder, in which the README's command has trained and pushed."""
    empty = tmp_path_factory.mktemp("empty")
    settings = {
        "data_dir": data_dir,
        "output_dir": "out",
        "backbone": "b0",
        "crop_size": 64,
        "method": "allspark",
        "max_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_strategy": "no",
        "logging_steps": 1,
        "hub_model_id": REPO_ID,
    }
    arguments = [f"--{name}={value}" for name, value in settings.items()]
    geometry = ["--hidden_sizes", "8", "16", "24", "32", "--depths", "1", "1", "1", "1", "--decoder_hidden_size", "16"]
    with pytest.MonkeyPatch.context() as patch:
        hub.use_here(patch, hub.token)
        done = run_script("train.py", *arguments, *geometry, "--use_cpu", "--push_to_hub", cwd=empty)
    assert done.returncode == 0, done.stderr
    assert hub.token not in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"Pushed to {hub.url}/{REPO_ID}"
    return empty / "out"


@pytest.fixture(scope="module")
def odd_data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd") / "demo"
    write_demo_data(folder, num_train=2, num_labeled=2, num_validation=2, size=(61, 90))  # no multiples of a patch
    return folder


@pytest.fixture(scope="module")
def odd_image(odd_data_dir) -> Path:
    return sorted((odd_data_dir / "images" / "val").iterdir())[0]


@pytest.fixture(scope="module")
def dinov2():
    """Model and image processor; each class wins somewhere, or nearly."""
    labels = {"id2label": dict(enumerate(CLASS_NAMES)), "label2id": {name: i for i, name in enumerate(CLASS_NAMES)}}
    model = tiny_backbone_model("dinov2", num_labels=len(CLASS_NAMES), base_weights="facebook/dinov2-small", **labels)
    with torch.no_grad():
        logits = model.eval()(pixel_values=torch.randn(4, 3, 61, 90)).logits
        model.classifier.bias -= logits.mean(dim=(0, 2, 3))
    return model, make_image_processor(image_mean=[0.5, 0.4, 0.3], image_std=[0.3, 0.2, 0.25])


@pytest.fixture(scope="module")
def dinov2_dir(hub, dinov2, tmp_path_factory) -> Path:
    """As a training leaves it, and pushed."""
    folder = tmp_path_factory.mktemp("run") / "out"
    for part in dinov2:
        part.save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        hub.use_here(patch, hub.token)
        done = run_script("push.py", "--model", folder, "--repo_id", DINOV2_ID)
    assert done.stdout.splitlines() == [f"Pushed to {hub.url}/{DINOV2_ID}"], done.stderr
    return folder


@pytest.fixture(scope="module")
def strangers(hub, data_dir, output_dir, odd_image, dinov2_dir, tmp_path_factory) -> dict[str, tuple]:
    """One process, since its start takes longest: the image, the masks and the handler's scores of each model."""
    folder = tmp_path_factory.mktemp("strangers")
    images = {REPO_ID: sorted((data_dir / "images" / "val").iterdir())[0], DINOV2_ID: odd_image}
    files = {repo_id: folder / f"{number}.npz" for number, repo_id in enumerate(images)}
    arguments = [part for repo_id, image in images.items() for part in (repo_id, image, files[repo_id])]
    variables = {**hub.variables(), "HF_HUB_OFFLINE": "0"}
    *_, first, second = run_without_package(folder, STRANGER, *arguments, env=variables).splitlines()
    scores = {REPO_ID: first, DINOV2_ID: second}
    return {name: (image, np.load(files[name]), dict(json.loads(scores[name]))) for name, image in images.items()}


@needs_auto_image_processor
def test_a_stranger_gets_the_same_mask(output_dir, strangers):
    image, masks, scores = strangers[REPO_ID]
    model, image_processor = load_trained(str(output_dir), "cpu")
    mask = predict_mask(model, image_processor, Image.open(image))
    present = {CLASS_NAMES[index] for index in np.unique(mask)}
    assert set(masks) == present
    for label in present:
        assert np.array_equal(masks[label], mask == CLASS_NAMES.index(label))
    ours = {
        entry.label: entry.confidence for entry in allspark_hf.segment(str(output_dir), image, device="cpu").legend
    }
    assert scores == pytest.approx(ours, abs=1e-6)


def test_by_id_with_the_package(hub, data_dir, output_dir, monkeypatch):
    hub.use_here(monkeypatch)
    images = sorted((data_dir / "images" / "val").iterdir())
    by_id = allspark_hf.segment(REPO_ID, images, device="cpu")
    local = allspark_hf.segment(str(output_dir), images, device="cpu")
    assert len(by_id) == 2
    for one, other in zip(by_id, local, strict=True):
        assert np.array_equal(one.mask, other.mask) and np.array_equal(one.confidence, other.confidence)


def test_the_card_on_the_hub_says_what_was_measured(hub, output_dir, monkeypatch):
    hub.use_here(monkeypatch)
    card = ModelCard.load(hf_hub_download(REPO_ID, "README.md"))
    measured = json.loads((output_dir / "run_record.json").read_text())["metrics"]["eval"]
    assert (card.data.license, card.data.pipeline_tag) == ("apache-2.0", "image-segmentation")
    assert card.data.library_name == "transformers" and card.data.base_model is None
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values["mean_iou"] == pytest.approx(measured["eval_mean_iou"], abs=5e-5)
    assert "2 labeled and 3 unlabeled images" in card.content and "| validation images | 2 |" in card.content
    assert str(output_dir.parent) not in card.content and str(SCRIPTS.parent) not in card.content


def test_export_by_id(hub, output_dir, tmp_path, monkeypatch):
    """The weights that the script gets; tests/test_export_onnx.py shows what it makes of a model."""
    got = {}

    def export_onnx(model, *rest):
        got.update(model.state_dict())
        raise ValueError("far enough")

    monkeypatch.setattr("allspark_hf.cli.export.export_onnx", export_onnx)
    hub.use_here(monkeypatch)
    done = run_script("export_onnx.py", "--model", REPO_ID, "--output_dir", tmp_path / "onnx")
    assert done.stderr.splitlines()[-1] == "ValueError: far enough"
    model, _ = load_trained(str(output_dir), "cpu")
    expected = {name: value for name, value in model.state_dict().items() if "memory" not in name}
    assert expected and all(torch.equal(got[name], value) for name, value in expected.items())


def test_nothing_private_is_on_the_hub(hub, output_dir, monkeypatch):
    hub.use_here(monkeypatch)
    files = hub.files(REPO_ID)
    figures = {path for path in files if path.startswith("figures/")}
    assert bool(figures) == (importlib.util.find_spec("matplotlib") is not None)
    records = {"run_record.json", "trainer_state.json", *(f"{name}_results.json" for name in ("all", "eval", "train"))}
    assert set(files) - figures == MODEL | CODE | records | {"README.md"} and outdated_files(output_dir) == {}
    for name in ("README.md", "run_record.json", "model.safetensors"):
        assert files[name] == (output_dir / name).read_bytes(), name  # the card, too, is of after the evaluation
    assert (output_dir / "validation_ids.txt").is_file()
    folder = Path(snapshot_download(REPO_ID))
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} >= set(files)
    for content in files.values():
        assert hub.token.encode() not in content and str(output_dir.parent).encode() not in content


# ---- An encoder of AutoBackbone ----


def test_what_is_published_of_dinov2(hub, dinov2_dir):
    files = hub.files(DINOV2_ID)
    assert set(files) == MODEL | CODE | DINOV2_CODE | {"README.md"}
    assert json.loads(files["config.json"])["auto_map"] == {
        "AutoConfig": "configuration_backbone_allspark.AllSparkBackboneConfig",
        "AutoModel": "modeling_backbone_allspark.BackboneForSemiSupervisedSegmentation",
        "AutoModelForSemanticSegmentation": "modeling_backbone_allspark.BackboneForSemiSupervisedSegmentation",
    }
    card = files["README.md"].decode()
    assert "license: apache-2.0\n" in card and "base_model: facebook/dinov2-small\n" in card


@needs_auto_image_processor
def test_a_stranger_and_the_package_get_the_same_mask_of_dinov2(hub, dinov2, strangers, monkeypatch):
    image, masks, scores = strangers[DINOV2_ID]
    expected = predict_mask(*dinov2, Image.open(image))
    present = [CLASS_NAMES[index] for index in np.unique(expected)]
    assert expected.shape == (61, 90) and len(present) >= 3
    assert list(masks) == present
    for label in present:
        assert np.array_equal(masks[label], expected == CLASS_NAMES.index(label))
    hub.use_here(monkeypatch)
    ours = allspark_hf.segment(DINOV2_ID, image, device="cpu")
    assert np.array_equal(ours.mask, expected)
    assert scores == pytest.approx({entry.label: entry.confidence for entry in ours.legend}, abs=1e-6)


def test_scripts_and_space(dinov2_dir, dinov2, odd_data_dir, odd_image, tmp_path):
    folder, data_dir, image = dinov2_dir, odd_data_dir, odd_image
    expected = predict_mask(*dinov2, Image.open(image))
    done = run_script("predict.py", "--model", folder, "--input", image, "--output_dir", tmp_path, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    predicted = Image.open(tmp_path / f"{image.stem}_mask.png")
    assert np.array_equal(np.asarray(predicted), expected)

    loaded = segmenter.load_model(str(folder))
    assert np.array_equal(segmenter.predict(loaded, Image.open(image), "tiny").shown_mask, expected)

    scores = tmp_path / "scores.json"
    done = run_script("evaluate.py", "--model", folder, "--data_dir", data_dir, "--output_file", scores, "--use_cpu")
    assert done.returncode == 0, done.stderr
    confusion = ConfusionMatrix(len(CLASS_NAMES))
    for row in load_folder(data_dir).validation:
        masks = [predict_mask(*dinov2, row["image"]), np.array(row["label"])]
        confusion.update(*(torch.from_numpy(mask)[None].long() for mask in masks))
    assert json.loads(scores.read_text())["confusion_matrix"] == confusion.counts.tolist()

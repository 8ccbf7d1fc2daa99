"""A published model with an encoder of AutoBackbone: a stranger, the scripts and the Space get the package's masks."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import HubServer
from in_process import run_script
from PIL import Image
from test_auto_classes import needs_auto_image_processor
from test_backbone import tiny_backbone_model
from test_publish_end_to_end import STRANGER
from test_push import CODE, MODEL
from without_package import run_without_package

import allspark_hf
from allspark_hf.data import load_folder
from allspark_hf.demo.data import CLASS_NAMES, write_demo_data
from allspark_hf.evaluation.metrics import ConfusionMatrix
from allspark_hf.inference.loading import make_image_processor
from allspark_hf.inference.prediction import predict_mask


sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts" / "space"))
import segmenter


REPO_ID = "tester/dinov2-tiny"
BACKBONE_CODE = {"modeling_backbone_allspark.py", "configuration_backbone_allspark.py", "heads_allspark.py"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "demo"
    write_demo_data(folder, num_train=2, num_labeled=2, num_validation=2, size=(61, 90))  # no multiples of a patch
    return folder


@pytest.fixture(scope="module")
def image(data_dir) -> Path:
    return sorted((data_dir / "images" / "val").iterdir())[0]


@pytest.fixture(scope="module")
def trained():
    """Model and image processor; each class wins somewhere, or nearly."""
    labels = {"id2label": dict(enumerate(CLASS_NAMES)), "label2id": {name: i for i, name in enumerate(CLASS_NAMES)}}
    model = tiny_backbone_model("dinov2", num_labels=len(CLASS_NAMES), base_weights="facebook/dinov2-small", **labels)
    with torch.no_grad():
        logits = model.eval()(pixel_values=torch.randn(4, 3, 61, 90)).logits
        model.classifier.bias -= logits.mean(dim=(0, 2, 3))
    return model, make_image_processor(image_mean=[0.5, 0.4, 0.3], image_std=[0.3, 0.2, 0.25])


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory) -> Path:
    """As a training leaves it."""
    folder = tmp_path_factory.mktemp("run") / "out"
    for part in trained:
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def hub(folder):
    """A Hub that the folder was pushed to."""
    with HubServer() as server, pytest.MonkeyPatch.context() as patch:
        server.use_here(patch, server.token)
        done = run_script("push.py", "--model", folder, "--repo_id", REPO_ID)
        assert done.stdout.splitlines() == [f"Pushed to {server.url}/{REPO_ID}"], done.stderr
        yield server


def test_what_is_published(hub):
    files = hub.files(REPO_ID)
    assert set(files) == MODEL | CODE | BACKBONE_CODE | {"README.md"}
    assert json.loads(files["config.json"])["auto_map"] == {
        "AutoConfig": "configuration_backbone_allspark.AllSparkBackboneConfig",
        "AutoModel": "modeling_backbone_allspark.BackboneForSemiSupervisedSegmentation",
        "AutoModelForSemanticSegmentation": "modeling_backbone_allspark.BackboneForSemiSupervisedSegmentation",
    }
    card = files["README.md"].decode()
    assert "license: apache-2.0\n" in card and "base_model: facebook/dinov2-small\n" in card


@needs_auto_image_processor
def test_a_stranger_and_the_package_get_the_same_mask(hub, trained, image, tmp_path, monkeypatch):
    expected = predict_mask(*trained, Image.open(image))
    present = [CLASS_NAMES[index] for index in np.unique(expected)]
    assert expected.shape == (61, 90) and len(present) >= 3
    printed = run_without_package(
        tmp_path, STRANGER, REPO_ID, image, tmp_path / "masks.npz", env={**hub.variables(), "HF_HUB_OFFLINE": "0"}
    )
    masks = np.load(tmp_path / "masks.npz")
    assert list(masks) == present
    for label in present:
        assert np.array_equal(masks[label], expected == CLASS_NAMES.index(label))
    hub.use_here(monkeypatch)
    ours = allspark_hf.segment(REPO_ID, image, device="cpu")
    assert np.array_equal(ours.mask, expected)
    scores = dict(json.loads(printed.splitlines()[-1]))  # of the handler
    assert scores == pytest.approx({entry.label: entry.confidence for entry in ours.legend}, abs=1e-6)


def test_scripts_and_space(folder, trained, data_dir, image, tmp_path):
    expected = predict_mask(*trained, Image.open(image))
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
        masks = [predict_mask(*trained, row["image"]), np.array(row["label"])]
        confusion.update(*(torch.from_numpy(mask)[None].long() for mask in masks))
    assert json.loads(scores.read_text())["confusion_matrix"] == confusion.counts.tolist()

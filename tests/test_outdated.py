"""What the card says and what is published fit each other: no records of other weights, and every example."""

import json
from pathlib import Path

import pytest
import torch
from card_folders import CLASSES, evaluation_of, history_of, rows_of, run_of, write, write_records
from conftest import tiny_model
from huggingface_hub import ModelCard
from PIL import Image

from allspark_hf.inference.loading import make_image_processor
from allspark_hf.models.weights import weights_digest
from allspark_hf.publishing.card import write_model_card
from allspark_hf.publishing.outdated import outdated_files
from allspark_hf.publishing.repository import stage


def save(folder: Path, seed: int, **kwargs):
    model = tiny_model(seed=seed)
    model.config.id2label = dict(enumerate(CLASSES))
    model.save_pretrained(folder, **kwargs)


@pytest.fixture
def folder(tmp_path):
    """A finished run, evaluated and exported."""
    folder = tmp_path / "out"
    folder.mkdir()
    write_records(folder, run=run_of())
    save(folder, seed=0)
    make_image_processor().save_pretrained(folder)
    digest = {"weights_sha256": weights_digest(folder)}
    other = {"confusion_matrix": [], "versions": {}}
    write(folder, "night.json", evaluation_of(CLASSES, "validation", 0.7107) | other | digest)
    write(folder, "all_results.json", {"eval_mean_iou": 0.4203})
    (folder / "onnx").mkdir()
    write(folder, "onnx/export.json", digest)
    (folder / "onnx" / "model.onnx").write_bytes(b"graph")
    return folder


def published(folder: Path) -> set[str]:
    staging = folder.parent / "staging"
    staging.mkdir(exist_ok=True)
    for path in [path for path in staging.rglob("*") if path.is_file()]:
        path.unlink()
    stage(folder, staging)
    return {path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file()}


def test_digest_is_of_the_published_weights(tmp_path):
    save(tmp_path / "a", seed=0)
    save(tmp_path / "b", seed=0, state_dict={**tiny_model(seed=0).state_dict()})
    save(tmp_path / "c", seed=1)
    digests = [weights_digest(tmp_path / name) for name in "abc"]
    assert digests[0] == digests[1] != digests[2] and len(digests[0]) == 64
    assert weights_digest(tmp_path) is None
    tiny_model(seed=0).to(torch.bfloat16).save_pretrained(tmp_path / "d")
    assert weights_digest(tmp_path / "d") not in digests
    stored = tiny_model(seed=0)
    stored._keys_to_ignore_on_save = None  # as in a checkpoint, with the memory
    stored.save_pretrained(tmp_path / "e")
    assert (tmp_path / "e" / "model.safetensors").stat().st_size > (
        tmp_path / "a" / "model.safetensors"
    ).stat().st_size
    assert weights_digest(tmp_path / "e") == digests[0]


def test_nothing_is_outdated_after_a_run(folder):
    assert outdated_files(folder) == {}
    text = write_model_card(folder).read_text()
    assert "71.07" in text and "42.03" in text
    records = {"night.json", "onnx/model.onnx", "eval_results.json", "train_results.json", "all_results.json"}
    assert published(folder) >= records


def test_other_weights(folder, caplog):
    save(folder, seed=1)
    assert set(outdated_files(folder)) == {"night.json", "onnx"}
    assert "71.07" not in write_model_card(folder).read_text()
    assert not published(folder) & {"night.json", "onnx/model.onnx"}
    assert "night.json is left out of the card: it was made from other weights" in caplog.text
    assert "onnx is not published: it was made from other weights" in caplog.text
    assert "run scripts/export_onnx.py again" in caplog.text


def test_results_of_an_earlier_training(folder):
    history = history_of(CLASSES)
    history[-2]["eval_mean_iou"] = 0.3303
    history[-1]["train_runtime"] = 2.5
    write(folder, "trainer_state.json", {"log_history": history})
    stale = {"eval_results.json", "train_results.json", "all_results.json"}
    assert set(outdated_files(folder)) == stale
    text = write_model_card(folder).read_text()
    assert "42.03" not in text and "Its mean IoU" not in text
    assert [row[4] for row in rows_of(text, "split")] == ["71.07"]
    assert not published(folder) & stale and "night.json" in published(folder)


def test_results_of_the_best_model(folder):
    history = history_of(CLASSES)
    history[-3], history[-2] = history[-2], history[-3]  # the better one last
    write(folder, "trainer_state.json", {"log_history": history})
    assert set(outdated_files(folder)) == {"eval_results.json", "all_results.json"}
    write(folder, "run_record.json", run_of(settings={"load_best_model_at_end": True}))
    assert outdated_files(folder) == {}


def test_what_does_not_tell_is_current(folder):
    for name in ("night.json", "onnx/export.json"):
        content = json.loads((folder / name).read_text())
        del content["weights_sha256"]
        write(folder, name, content)
    (folder / "trainer_state.json").unlink()
    save(folder, seed=1)
    assert outdated_files(folder) == {}


def test_every_example_on_the_card_is_published(folder, tmp_path):
    image = Image.new("RGB", (4, 3))
    image.save(tmp_path / "named.webp")
    image.save(tmp_path / "old.bmp")
    with pytest.raises(ValueError, match=r"old.bmp is none of .jpg, .jpeg, .png, .webp: give an image file"):
        write_model_card(folder, example_images=[tmp_path / "old.bmp"])
    write_model_card(folder, example_images=[tmp_path / "named.webp"])
    (folder / "examples" / "lies there.bmp").write_bytes((tmp_path / "old.bmp").read_bytes())
    shown = [entry["src"] for entry in ModelCard.load(write_model_card(folder)).data.widget]
    assert shown == ["examples/named.webp"] and shown[0] in published(folder)

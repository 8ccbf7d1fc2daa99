"""What the card says and what is published fit each other: no records of other weights, and every example."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from card_folders import CLASSES, evaluation_of, run_of, write, write_records
from conftest import tiny_model
from huggingface_hub import ModelCard
from PIL import Image

from allspark_hf.inference.loading import make_image_processor
from allspark_hf.models.weights import weights_digest
from allspark_hf.publishing.card import write_model_card
from allspark_hf.publishing.figures import write_run_figures
from allspark_hf.publishing.outdated import CURVES, OF_THE_RUN, outdated_files
from allspark_hf.publishing.repository import stage


RUN = {"run_record.json", *OF_THE_RUN, *CURVES}


def save(folder: Path, seed: int):
    model = tiny_model(seed=seed)
    model.config.id2label = dict(enumerate(CLASSES))
    model.save_pretrained(folder)


@pytest.fixture
def folder(tmp_path):
    """A finished run, evaluated and exported."""
    folder = tmp_path / "out"
    folder.mkdir()
    write_records(folder, run=run_of())
    save(folder, seed=0)
    make_image_processor().save_pretrained(folder)
    for name in OF_THE_RUN[1:]:
        write(folder, name, {"eval_mean_iou": 0.4203})
    other = {"confusion_matrix": [], "versions": {}}
    write(folder, "night.json", evaluation_of(CLASSES, "validation", 0.7107) | other)
    (folder / "figures").mkdir()
    for path in CURVES:
        Image.new("RGB", (4, 3)).save(folder / path)
    (folder / "onnx").mkdir()
    write(folder, "onnx/export.json", {})
    (folder / "onnx" / "model.onnx").write_bytes(b"graph")
    digest(folder, weights_digest(folder), "night.json", "onnx/export.json", "run_record.json")
    return folder


def digest(folder: Path, value: str | None, *names: str):
    for name in names:
        write(folder, name, json.loads((folder / name).read_text()) | {"weights_sha256": value})


def published(folder: Path) -> set[str]:
    staging = folder.parent / "staging"
    staging.mkdir(exist_ok=True)
    for path in [path for path in staging.rglob("*") if path.is_file()]:
        path.unlink()
    stage(folder, staging)
    return {path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file()}


def test_digest_is_of_the_published_weights(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save(tmp_path / name, seed)
    digests = [weights_digest(tmp_path / name) for name in "abc"]
    assert digests[0] == digests[1] == weights_digest(tiny_model(seed=0)) != digests[2] and len(digests[0]) == 64
    assert weights_digest(tmp_path) is None
    half = tiny_model(seed=0).to(torch.bfloat16)
    half.save_pretrained(tmp_path / "d")
    assert weights_digest(tmp_path / "d") == weights_digest(half) not in digests
    stored = tiny_model(seed=0)
    stored._keys_to_ignore_on_save = None  # as in a checkpoint, with the memory
    stored.save_pretrained(tmp_path / "e")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in "ea"]
    assert sizes[0] > sizes[1] and weights_digest(tmp_path / "e") == digests[0]


def test_nothing_is_outdated_after_a_run(folder):
    assert outdated_files(folder) == {}
    text = write_model_card(folder).read_text()
    assert "71.07" in text and "42.03" in text
    assert published(folder) >= {"night.json", "onnx/model.onnx", *RUN}


def test_other_weights(folder, caplog):
    save(folder, seed=1)
    assert set(outdated_files(folder)) == {"night.json", "onnx", *RUN}
    assert write_run_figures(folder) == []
    text = write_model_card(folder).read_text()
    assert (
        "71.07" not in text
        and "42.03" not in text
        and "curves" not in text
        and "How it was trained was not recorded." in text
    )
    assert not published(folder) & {"night.json", "onnx/model.onnx", *RUN}
    for name in ("night.json", "onnx", "run_record.json"):
        assert f"{folder / name} is left out of the card: it is not of the weights" in caplog.text
        assert f"{folder / name} is not published: it is not of the weights" in caplog.text
    assert "run `allspark export` again" in caplog.text and "run `allspark evaluate` again" in caplog.text


def test_a_record_without_a_digest(folder):
    digest(folder, None, "run_record.json")  # of a training whose model was not saved here
    assert set(outdated_files(folder)) == RUN
    content = json.loads((folder / "run_record.json").read_text())
    del content["weights_sha256"]  # of an earlier version
    write(folder, "run_record.json", content)
    save(folder, seed=1)
    assert set(outdated_files(folder)) == {"night.json", "onnx"}
    (folder / "model.safetensors").unlink()
    assert outdated_files(folder) == {}


def test_figures_of_other_weights(folder, caplog):
    """A figure with baselines is current if one of its models is the folder's; one without digests always is."""
    own, other = weights_digest(folder), weights_digest(tiny_model(seed=1))
    shown = {"figure_5": [own], "figure_b": [own, other], "figure_6": None, "training_curves": [other]}
    for name, digests in shown.items():
        entry = {} if digests is None else {"weights_sha256": np.array(digests)}
        np.savez_compressed(folder / f"figures/{name}.npz", ids=np.arange(2), **entry)
        for background in ("light", "dark"):
            Image.new("RGB", (4, 3)).save(folder / f"figures/{name}_{background}.png")
    Image.new("RGB", (4, 3)).save(folder / "figures/figure_c_light.png")
    (folder / "figures/figure_c.npz").write_bytes(b"PK damaged")

    def figures_of(names: str) -> set[str]:
        return {f"figures/{name}_{background}.png" for name in names.split() for background in ("light", "dark")}

    current = RUN - {"run_record.json", *OF_THE_RUN}
    assert set(outdated_files(folder)) == figures_of("training_curves")
    save(folder, seed=1)
    for name in ("night.json", "onnx/export.json", "run_record.json"):  # a new training, and no new figures
        digest(folder, other, name)
    assert set(outdated_files(folder)) == figures_of("figure_5")
    text = write_model_card(folder).read_text()
    expected = {"figures/figure_c_light.png", *figures_of("figure_b figure_6 training_curves"), *current}
    assert {path for path in published(folder) if path.startswith("figures/")} == expected
    assert set(re.findall(r"figures/\w+_light.png", text)) == {path for path in expected if "light" in path}
    assert (
        f"{folder / 'figures/figure_5_light.png'} is not published: it is not of the weights in {folder}: run "
        "`allspark figures` again." in caplog.messages
    )


def test_every_example_on_the_card_is_published(folder, tmp_path):
    image = Image.new("RGB", (4, 3))
    image.save(tmp_path / "named.webp")
    image.save(tmp_path / "old.bmp")
    with pytest.raises(ValueError, match=r"old.bmp is none of .jpg, .jpeg, .png, .webp"):
        write_model_card(folder, example_images=[tmp_path / "old.bmp"])
    write_model_card(folder, example_images=[tmp_path / "named.webp"])
    (folder / "examples" / "lies there.bmp").write_bytes((tmp_path / "old.bmp").read_bytes())
    shown = [entry["src"] for entry in ModelCard.load(write_model_card(folder)).data.widget]
    assert shown == ["examples/named.webp"] and shown[0] in published(folder)

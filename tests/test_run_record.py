"""run_record.json: what it says, and what it must not say; base weights and the license that follows from them."""

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import small_model
from run_training import make_trainer
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from allspark_hf import AllSparkConfig, AllSparkTrainingArguments, SegformerForSemiSupervisedSegmentation
from allspark_hf.cli.arguments import ModelArguments
from allspark_hf.cli.main import main
from allspark_hf.cli.models import load_model
from allspark_hf.data import DataArguments, load_data
from allspark_hf.demo.data import write_demo_data
from allspark_hf.models.configuration_allspark import MIT_SIZES
from allspark_hf.models.conversion import _base_weights
from allspark_hf.models.weights import weights_digest
from allspark_hf.publishing.licenses import base_weights_of, license_of, weights_name
from allspark_hf.publishing.record import REPOSITORY, checkout, public, public_command
from allspark_hf.training.records import recorded


SECRET = "hf_AbCdEfGhIjKlMnOp"
GEOMETRY = {"hidden_sizes": [8, 16, 40, 64], "decoder_hidden_size": 16}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("private") / "garden"
    write_demo_data(folder, num_train=6, num_labeled=4, num_validation=2, size=(64, 96))
    return folder


def read(tmp_path) -> dict:
    return json.loads((tmp_path / "out" / "run_record.json").read_text())


def train(tmp_path, **kwargs) -> dict:
    trainer = make_trainer(small_model(), output_dir=str(tmp_path / "out"), **kwargs)
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    return read(tmp_path)


# ---- What may be public ----


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("nvidia/mit-b5", "nvidia/mit-b5"),
        ("data/street", "data/street"),
        ("/home/jane/data/street", "street"),
        ("/home/jane/My Pictures/", "My Pictures"),
        ("~/street", "street"),
        ("C:\\Users\\jane\\street", "street"),
        ("file:///home/jane/street", "street"),
        (str(REPOSITORY / "allspark_hf" / "recipes" / "demo.yaml"), "allspark_hf/recipes/demo.yaml"),
        ("out=/home/jane/x,other=/srv/y z", "out=x,other=y z"),
        ("https://huggingface.co/a/b", "https://huggingface.co/a/b"),
        ("1/8 and/or 2 / 3", "1/8 and/or 2 / 3"),
        (f"Bearer {SECRET}", "Bearer <token>"),
        ({"hub_token": SECRET, "a": ["/x/y", 1, None, True, 0.5]}, {"a": ["y", 1, None, True, 0.5]}),
        (Path("/home/jane/x"), "x"),
    ],
)
def test_public_values(value, shown):
    assert public(value) == shown


def test_public_command():
    script = str(REPOSITORY / "scripts" / "train.py")
    given = [script, "my recipe.yaml", "--data_dir", "/home/jane/data", "--hub_token", SECRET, "--seed", "3"]
    assert public_command(given) == "python scripts/train.py 'my recipe.yaml' --data_dir data --seed 3"
    given = ["/home/jane/train.py", f"--hub_token={SECRET}", "--data_dir=/home/jane/data", "--push_to_hub"]
    assert public_command(given) == "python train.py --data_dir=data --push_to_hub"
    assert public_command(["t.py", "--hub_token", "--seed", "3"]) == "python t.py --seed 3"
    given = ["allspark train", "demo.yaml", "--data_dir", "/home/jane/data", "--hub_token", SECRET]
    assert public_command(given) == "allspark train demo.yaml --data_dir data"
    assert public_command(["t.py", "--hub_tok", "secret", "--seed", "3"]) == "python t.py --seed 3"  # cut short


def test_arguments_are_those_that_differ(tmp_path):
    common = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True}
    assert recorded(AllSparkTrainingArguments(**common)) == {"use_cpu": True}
    given = {"learning_rate": 0.5, "eval_crop_size": [64], "eval_mode": "center_crop", "seed": 7}
    given |= {"lr_scheduler_kwargs": {"power": 2.0, "lr_end": 0.0}, "per_device_unlabeled_batch_size": 3}
    given |= {"accelerator_config": {"even_batches": False}, "hub_model_id": "me/x"}
    found = public(recorded(AllSparkTrainingArguments(**common, **given, hub_token=SECRET)))
    assert found.pop("accelerator_config")["even_batches"] is False
    del given["accelerator_config"]
    assert found == given | {"use_cpu": True}


# ---- A training from Python ----


def test_record_of_a_training(tmp_path):
    record = train(tmp_path, num_train_epochs=1, hub_token=SECRET, seed=3)
    text = (tmp_path / "out" / "run_record.json").read_text()
    assert SECRET not in text and str(tmp_path) not in text and not list((tmp_path / "out").glob("*.part"))
    assert record["data"] == {
        "labeled": 5,
        "unlabeled": 10,
        "unlabeled_stream": False,
        "unlabeled_used": True,
        "validation": 5,
        "classes": 3,
    }
    assert record["training"]["steps"] == 5 and record["training"]["epochs"] == 1.0
    assert 0 < record["training"]["seconds"] < 300 and record["training"]["resumed"] is False
    assert record["training"]["labeled_images_per_update"] == record["training"]["unlabeled_images_per_update"] == 2
    parameters = sum(parameter.numel() for parameter in small_model().parameters())
    assert record["model"] == {"base_weights": "none", "started_from": "none", "parameters": parameters}
    assert record["command"] is None and record["arguments"]["learning_rate"] == 0.01
    assert record["settings"]["seed"] == 3 and record["settings"]["memory_warmup_epochs"] == 1
    assert record["method"]["name"] == "allspark" and record["evaluation"]["eval_mode"] == "whole"
    assert record["git"] == checkout()
    assert record["versions"]["torch"] == torch.__version__ and record["machine"]["processes"] == 1


def test_record_of_a_supervised_training_and_of_a_stream(tmp_path):
    record = train(tmp_path / "a", num_train_epochs=1, method="supervised", gradient_accumulation_steps=2)
    assert record["data"]["unlabeled"] == 10 and record["data"]["unlabeled_used"] is False
    assert record["training"]["labeled_images_per_update"] == 4
    trainer_arguments = {"stream": True, "unlabeled_images_per_epoch": 4, "num_train_epochs": 1}
    record = train(tmp_path / "b", **trainer_arguments)
    assert record["data"]["unlabeled"] is None and record["data"]["unlabeled_stream"] is True


def test_what_follows_from_the_training_is_logged_and_recorded(tmp_path, caplog):
    given = {"method": "fixmatch", "class_weights": ["balanced"], "max_steps": 8}
    model = small_model(**AllSparkConfig.plain_segformer_switches())
    trainer = make_trainer(model, output_dir=str(tmp_path / "out"), **given)
    with caplog.at_level("INFO"):
        trainer.train()
    record = read(tmp_path)
    weights = record["settings"]["class_weights"]
    assert record["settings"]["ema_decay"] == 1 - 6 / 8 and record["arguments"]["class_weights"] == ["balanced"]
    assert sorted(weights)[1] == 1 and len(set(weights)) == 3  # that of the median class
    assert f"for these images and 8 updates: class_weights {weights}, ema_decay 0.25" in caplog.text


def test_the_record_is_of_the_weights_that_were_saved(tmp_path):
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "output_dir": str(tmp_path / "out")}
    trainer = make_trainer(small_model(), **settings)
    trainer.train()
    assert (read(tmp_path)["weights_sha256"], read(tmp_path)["metrics"]) == (None, {})
    trainer.save_model(str(tmp_path / "elsewhere"))
    assert read(tmp_path)["weights_sha256"] is None
    trainer.save_model()
    assert read(tmp_path)["weights_sha256"] == weights_digest(tmp_path / "out") == weights_digest(trainer.model)
    assert weights_digest(tmp_path / "out" / "checkpoint-2") == weights_digest(trainer.model)  # which has the memory
    trainer.save_metrics("eval", {"eval_mean_iou": 0.25})
    assert read(tmp_path)["metrics"] == {"eval": {"eval_mean_iou": 0.25}}
    # A resume from the end trains nothing, and its evaluation is of the same weights.
    again = make_trainer(small_model(), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    again.save_metrics("eval", {"eval_mean_iou": 0.5})
    assert read(tmp_path)["metrics"] == {"eval": {"eval_mean_iou": 0.5}}
    # One that only evaluates another model says nothing of these.
    other = make_trainer(small_model(seed=1), **settings)
    other.save_metrics("eval", {"eval_mean_iou": 0.75})
    assert read(tmp_path)["metrics"] == {"eval": {"eval_mean_iou": 0.5}}


def test_a_resumed_run_says_so_and_a_finished_one_keeps_its_record(tmp_path):
    settings = {"num_train_epochs": 2, "save_strategy": "epoch", "max_steps": 10}
    assert train(tmp_path, **settings)["training"]["resumed"] is False
    path = tmp_path / "out" / "run_record.json"
    before = path.read_text()
    assert train(tmp_path, **settings, resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-10"))
    assert path.read_text() == before
    record = train(tmp_path, **settings, resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-5"))
    assert record["training"]["resumed"] is True and record["training"]["steps"] == 10


def test_a_record_that_cannot_be_written_does_not_cost_the_training(tmp_path, caplog):
    (tmp_path / "out" / "run_record.json").mkdir(parents=True)
    trainer = make_trainer(small_model(), output_dir=str(tmp_path / "out"), max_steps=1)
    assert trainer.train().global_step == 1
    assert "run_record.json could not be written" in caplog.text


# ---- A training by the script ----


def run_script(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(REPOSITORY / "scripts" / "train.py"), *map(str, arguments)])
    main("train")


def test_record_of_the_script(monkeypatch, data_dir, tmp_path):
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text("backbone: b0\nhidden_sizes: [8, 16, 40, 64]\ncrop_size: 64\nreport_to: none\nmax_steps: 1\n")
    output = ["--data_dir", data_dir, "--output_dir", tmp_path / "out", "--use_cpu", "--disable_tqdm", "true"]
    run_script(monkeypatch, recipe, *output, "--labeled_count", 3, "--save_strategy", "no", "--hub_token", SECRET)
    text = (tmp_path / "out" / "run_record.json").read_text()
    record = json.loads(text)
    assert SECRET not in text and str(tmp_path) not in text and str(data_dir.parent) not in text
    assert record["recipe"] == "tiny.yaml"
    assert record["command"] == (
        "python scripts/train.py tiny.yaml --data_dir garden --output_dir out --use_cpu --disable_tqdm true "
        "--labeled_count 3 --save_strategy no"
    )
    expected = {"labeled": 3, "unlabeled": 3, "validation": 2, "classes": 6, "hidden_masks": 1, "files_left_out": 0}
    expected |= {"source": "garden", "layout": "folder", "on_hub": False}
    expected |= {"selection": {"labeled_count": 3, "split_seed": 42}}
    assert expected.items() <= record["data"].items()
    expected = {"data_dir": "garden", "labeled_count": 3, "backbone": "b0", "crop_size": [64], "max_steps": 1}
    assert expected.items() <= record["arguments"].items() and "hub_token" not in record["arguments"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["base_weights"] == "none"


# ---- Base weights ----


def test_name_of_weights(tmp_path):
    (tmp_path / "mine").mkdir()
    assert weights_name(str(tmp_path / "mine")) == "mine" and weights_name("") == "none" == weights_name(None)
    assert weights_name("nvidia/mit-b5") == "nvidia/mit-b5" and weights_name("/gone/mine/") == "mine"
    assert weights_name("./gone/mine") == "mine"
    cached = tmp_path / "hub/models--facebook--dinov2-small/snapshots/ed25f3a"
    assert weights_name(cached) == "facebook/dinov2-small"


def test_base_weights_stay_through_a_second_training(data_dir, tmp_path):
    SegformerForSemanticSegmentation(SegformerConfig(num_labels=4, **GEOMETRY)).save_pretrained(tmp_path / "mit-b0")
    (tmp_path / "mit-b0" / "README.md").write_text("---\nlicense: mit\n---\n")
    report = load_data(DataArguments(data_dir=str(data_dir)))

    def load(source):
        return load_model(ModelArguments(model_name_or_path=str(source), crop_size=[64]), report, 255, False)

    first = load(tmp_path / "mit-b0")
    assert first.config.base_weights == "mit-b0"
    first.save_pretrained(tmp_path / "first")
    second = load(tmp_path / "first")
    assert second.config.base_weights == "mit-b0" and second.config.base_license == "mit"
    scratch = load_model(ModelArguments(backbone="b0", **GEOMETRY, crop_size=[64]), report, 255, False)
    assert scratch.config.base_weights == "none"


def test_base_weights_from_python(tmp_path):
    small_model().save_pretrained(tmp_path / "segformer-b0-mine")
    model = SegformerForSemiSupervisedSegmentation.from_pretrained(tmp_path / "segformer-b0-mine")
    trainer = make_trainer(model, output_dir=str(tmp_path / "out"), max_steps=1)
    assert trainer.model.config.base_weights == "segformer-b0-mine"
    trainer.save_model()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["base_weights"] == "segformer-b0-mine"


def test_base_weights_of_a_configuration():
    assert base_weights_of({"base_weights": "nvidia/mit-b5", "_name_or_path": "x"}, "y") == "nvidia/mit-b5"
    assert base_weights_of({"_name_or_path": "nvidia/mit-b1"}) == "nvidia/mit-b1"
    assert base_weights_of({}) == "none"


def test_base_weights_of_the_authors_checkpoints():
    hidden_sizes, depths, _ = MIT_SIZES["b5"]
    assert _base_weights({"hidden_sizes": list(hidden_sizes), "depths": list(depths)}) == "nvidia/mit-b5"
    other = _base_weights({"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]})
    assert other == "authors-checkpoint" and license_of(other).id == "unknown"

"""No pickle is ever run: bombs planted wherever one might be loaded, each of which would leave a file behind."""

import io
import shutil
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import small_model, tiny_config, tiny_model
from hub_server import HubServer
from in_process import run_script
from layout_folders import load_folder
from pickles import goes_off, write_bomb
from PIL import Image
from published_model import publish
from run_training import make_trainer
from transformers import SegformerConfig, SegformerForSemanticSegmentation

import allspark_hf
from allspark_hf.cli.arguments import ModelArguments
from allspark_hf.cli.models import load_model
from allspark_hf.data.checks import CheckReport, check_data
from allspark_hf.data.sources.hub import open_dataset
from allspark_hf.demo.data import write_demo_data
from allspark_hf.inference.handler import EndpointHandler
from allspark_hf.inference.loading import load_trained, make_image_processor
from allspark_hf.models.conversion import read_checkpoint
from allspark_hf.publishing.publish import publish_folder


FORMS = ("zip", "legacy", "nested", "bare")
BESIDE = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt", "pytorch_model.bin")


@pytest.fixture
def mark(tmp_path):
    path = tmp_path / "it_ran"
    goes_off(path)
    yield path
    assert not path.exists(), "a pickle was run"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return publish(tmp_path_factory.mktemp("saved"), tiny_model(), make_image_processor())


def bombed(saved: Path, folder: Path, mark: Path, name: str, form: str) -> Path:
    """The model's folder, its weights replaced by a bomb."""
    shutil.copytree(saved, folder)
    (folder / "model.safetensors").unlink()
    write_bomb(folder / name, mark, form)
    return folder


def refusal(name: str, *arguments) -> str:
    """The sentence with which a script ends."""
    ended = run_script(name, *arguments)
    assert ended.returncode in (1, 2)
    return one_sentence(ended.stderr.strip().splitlines()[-1])


def picture(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (64, 48), (9, 8, 7)).save(folder / "a.png")
    return folder / "a.png"


def one_sentence(text: object) -> str:
    assert isinstance(text, str) and text.strip() and "\n" not in text.strip() and "weights_only" not in text
    return text


def report() -> CheckReport:
    return CheckReport(data=type("Data", (), {"classes": None})(), num_labels=3, values=[0, 1, 2])


# ---- Weights ----


@pytest.mark.parametrize("form", [*FORMS, "by its name alone"])
def test_weights(saved, tmp_path, mark, form):
    name, form = ("pytorch_model.bin", form) if form in FORMS else ("model.safetensors", "zip")
    folder = bombed(saved, tmp_path / "model", mark, name, form)
    with pytest.raises(ValueError, match="cannot be loaded") as refused:
        load_trained(str(folder), "cpu")
    one_sentence(str(refused.value))
    with pytest.raises(ValueError, match="cannot be loaded"):
        allspark_hf.segment(folder, picture(tmp_path / "photos"))
    with pytest.raises((OSError, ValueError)):
        load_model(ModelArguments(model_name_or_path=str(folder)), report(), 255, plain_segformer=False)
    with pytest.raises((OSError, ValueError)) as refused:
        EndpointHandler(folder)
    one_sentence(str(refused.value))


def test_the_bombs_are_where_weights_are_loaded_from(saved, tmp_path, monkeypatch):
    """So that the tests here can fail: with a torch.load that runs pickles, they go off."""
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: load(*args, **{**kwargs, "weights_only": False}))
    for form in ("zip", "legacy", "nested"):
        mark = tmp_path / form
        folder = bombed(saved, tmp_path / f"model_{form}", mark, "pytorch_model.bin", form)
        with pytest.raises(ValueError, match=r"cannot be loaded|has no weights"):
            load_trained(str(folder), "cpu")
        assert mark.is_file()
        with pytest.raises(ValueError):
            EndpointHandler(bombed(saved, tmp_path / f"other_{form}", tmp_path / "never", "pytorch_model.bin", form))
        assert not (tmp_path / "never").exists()  # an Endpoint opens no pickle at all


@pytest.mark.parametrize("shards", ["pytorch_model.bin.index.json", "model.safetensors.index.json"])
def test_shards(saved, tmp_path, mark, shards):
    folder = bombed(saved, tmp_path / "model", mark, "shard.bin", "nested")
    names = tiny_model().state_dict()
    weights = ", ".join(f'"{name}": "shard.bin"' for name in names)
    (folder / shards).write_text(f'{{"metadata": {{}}, "weight_map": {{{weights}}}}}')
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_trained(str(folder), "cpu")


def test_safetensors_come_first(saved, tmp_path, mark):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    for name in BESIDE:
        write_bomb(folder / name, mark, "zip")
    model, _ = load_trained(str(folder), "cpu")
    expected = load_trained(str(saved), "cpu")[0].state_dict()
    assert all(value.equal(expected[name]) for name, value in model.state_dict().items() if "memory" not in name)
    EndpointHandler(folder)


def test_an_encoder_in_a_pickle_of_tensors_still_loads(tmp_path, monkeypatch):
    """nvidia/mit-b* on the Hub are such files; the loader is torch's that knows tensors only."""
    config = SegformerConfig(
        **{
            name: value
            for name, value in tiny_config().to_dict().items()
            if name in ("hidden_sizes", "depths", "num_attention_heads", "decoder_hidden_size")
        },
        num_labels=3,
    )
    torch.manual_seed(0)
    encoder = SegformerForSemanticSegmentation(config)
    encoder.config.save_pretrained(tmp_path)
    torch.save(encoder.state_dict(), tmp_path / "pytorch_model.bin")
    asked, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: (asked.append(k.get("weights_only")), load(*a, **k))[1])
    model = load_model(ModelArguments(model_name_or_path=str(tmp_path)), report(), 255, plain_segformer=False)
    assert asked and all(value is True for value in asked)
    own = model.segformer.state_dict()
    for name, value in encoder.segformer.state_dict().items():
        assert own[name].equal(value), name


def test_hub_repository(saved, tmp_path, mark, monkeypatch):
    folder = bombed(saved, tmp_path / "model", mark, "pytorch_model.bin", "zip")
    with HubServer() as hub:
        hub.use_here(monkeypatch)
        monkeypatch.setenv("DISABLE_SAFETENSORS_CONVERSION", "1")  # asks the Hub for a bot's pull request
        hub.add("user/bomb", {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
        with pytest.raises(ValueError, match="cannot be loaded") as refused:
            load_trained("user/bomb", "cpu")
        one_sentence(str(refused.value))
        assert hub.count("GET", "pytorch_model.bin") or hub.count("HEAD", "pytorch_model.bin")


# ---- The scripts ----


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_scripts_with_a_model(saved, tmp_path, mark, form):
    folder = bombed(saved, tmp_path / "model", mark, "pytorch_model.bin", form)
    photos = picture(tmp_path / "photos").parent
    refusal("predict.py", "--model", folder, "--input", photos, "--output_dir", tmp_path / "p")
    assert refusal("evaluate.py", "--model", folder, "--data_dir", tmp_path, "--use_cpu").startswith("ValueError: ")
    assert refusal("export_onnx.py", "--model", folder).startswith("ValueError: ")


def test_train_script(saved, tmp_path, mark):
    write_demo_data(tmp_path / "data", num_train=4, num_labeled=2, num_validation=1, size=(64, 64))
    folder = bombed(saved, tmp_path / "model", mark, "pytorch_model.bin", "nested")
    arguments = ["--data_dir", tmp_path / "data", "--output_dir", tmp_path / "out", "--model_name_or_path", folder]
    assert refusal("train.py", *arguments, "--use_cpu", "--report_to", "none").startswith("ValueError: ")


def test_push_neither_loads_nor_sends_a_pickle(saved, tmp_path, mark, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    for name in BESIDE:
        write_bomb(folder / name, mark, "zip")
    with HubServer() as hub:
        hub.use_here(monkeypatch, hub.token)
        publish_folder(folder, "tester/bomb")
        assert not {name for name in hub.files("tester/bomb") if name.endswith((".bin", ".pt", ".pth"))}


# ---- Checkpoints of the authors, and of a run ----


@pytest.mark.parametrize("form", [*FORMS, "npy", "npz"])
def test_checkpoint_of_the_authors(tmp_path, mark, form):
    file = write_bomb(tmp_path / "best.pth", mark, form)
    with pytest.raises(ValueError, match=str(file)) as refused:
        read_checkpoint(file)
    one_sentence(str(refused.value))
    refusal("convert_checkpoint.py", file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_resume_runs_no_pickle(tmp_path, mark):
    """Every file of a checkpoint that is no safetensors, JSON or text is replaced by a bomb, and more are added."""
    settings = {"output_dir": str(tmp_path / "run"), "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    make_trainer(small_model(), **settings).train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    names = {path.name for path in checkpoint.iterdir() if path.suffix not in (".safetensors", ".json", ".md", ".py")}
    for name in names | set(BESIDE):
        write_bomb(checkpoint / name, mark, "zip")
    resumed = make_trainer(small_model(), **settings)
    try:
        resumed.train(resume_from_checkpoint=str(checkpoint))
    except Exception as error:
        assert str(error)


# ---- Data ----


@pytest.mark.parametrize("form", ["zip", "bare", "npy", "npz"])
def test_masks_and_images(tmp_path, mark, form):
    for kind, mode, bad in (("images", "RGB", "b.png"), ("masks", "L", "c.tif")):
        for split in ("train", "val"):
            (tmp_path / kind / split).mkdir(parents=True)
            for name in "abc":
                Image.new(mode, (8, 8)).save(tmp_path / kind / split / f"{name}.png")
            (tmp_path / kind / split / bad.replace("tif", "png")).unlink()
            write_bomb(tmp_path / kind / split / bad, mark, form)
    with pytest.raises(ValueError, match="4 bad files were found") as refused:
        check_data(load_folder(tmp_path), num_labels=2)
    assert [Path(problem.split(": ")[0]).name for problem in refused.value.problems] == ["b.png", "c.tif"] * 2


@pytest.mark.parametrize("name", ["a.pkl", "a.pickle", "a.npy", "a.npz", "a.pth"])
def test_data_sets(tmp_path, mark, monkeypatch, name):
    """As a file of its own, and in an archive as webdataset has them."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    form = {"npy": "npy", "npz": "npz", "pth": "zip"}.get(name.rpartition(".")[2], "bare")
    file = write_bomb(tmp_path / "data" / name, mark, form)
    with pytest.raises(ValueError, match="cannot be loaded"):
        open_dataset(str(file.parent))
    (tmp_path / "tar").mkdir()
    with tarfile.open(tmp_path / "tar" / "train.tar", "w") as archive:
        archive.add(file, arcname=name)
    try:
        rows = open_dataset(str(tmp_path / "tar"))["train"]
        assert isinstance(rows[0][name.rpartition(".")[2]], bytes)
    except ValueError as error:
        assert "cannot be loaded" in str(error)


def test_arrays_of_figures(tmp_path, mark):
    """As README of the figures says: `np.load(file)`, without pickles."""
    for form in ("npy", "npz"):
        file = write_bomb(tmp_path / f"figure.{form}", mark, form)
        with pytest.raises(ValueError, match="allow_pickle"):
            loaded = np.load(io.BytesIO(file.read_bytes()))
            loaded["a"]

"""What is published of an output folder, how it gets to a loopback Hub, and what is said when it does not."""

import hashlib
import importlib.util
import io
import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from hub_server import HubServer
from huggingface_hub import ModelCard, constants
from PIL import Image
from safetensors.torch import load, load_file

from allspark_hf import SegformerForSemiSupervisedSegmentation
from allspark_hf.cli import push as push_command
from allspark_hf.inference.loading import make_image_processor
from allspark_hf.models.registration import auto_map_of
from allspark_hf.publishing import publish, upload
from allspark_hf.publishing.figures import write_run_figures
from allspark_hf.publishing.publish import publish_folder
from allspark_hf.publishing.repository import stage
from allspark_hf.publishing.upload import PushError, scrub


SCRIPTS = Path(__file__).parents[1] / "scripts"
CODE = {"bottleneck_allspark.py", "modeling_allspark.py", "configuration_allspark.py", "handler.py", "pixels.py"}
MODEL = {"model.safetensors", "config.json", "preprocessor_config.json"}
LOG = [{"epoch": 1.0, "step": 2, "loss_x": 2.5}, {"epoch": 2.0, "step": 4, "loss_x": 1.5}]
EVALUATION = {
    "model": "/home/someone/out",
    "data": {"data_dir": "/home/someone/my data/camvid", "labeled_list": None},
    "settings": {},
    "metrics": {"mean_iou": 0.25},
    "per_class": [],
    "confusion_matrix": [[1]],
    "num_images": 1,
    "versions": {},
}


@pytest.fixture
def hub(monkeypatch):
    with HubServer() as server:
        server.use_here(monkeypatch, server.token)
        server.quote_token = True  # the worst that an error can say
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        monkeypatch.setattr(upload, "FIRST_WAIT", 0.0)
        monkeypatch.setattr(publish, "write_run_figures", lambda folder: [])  # which takes a second
        yield server


@pytest.fixture
def output_folder(tmp_path):
    """A finished run without anything but its model and log."""
    folder = tmp_path / "my run"
    tiny_model().save_pretrained(folder)
    make_image_processor().save_pretrained(folder)
    state = {"log_history": LOG, "best_model_checkpoint": str(folder / "checkpoint-4")}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def hashes(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def push(*arguments):
    """`allspark push` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["push.py", *map(str, arguments)])
        push_command.main()


# ---- What is published ----


def test_only_the_list_is_published(output_folder, tmp_path):
    traps = [
        "training_args.bin",
        "checkpoint-4/model.safetensors",
        "checkpoint-4/optimizer.pt",
        "labeled_ids.txt",
        "unlabeled_ids.txt",
        "validation_ids.txt",
        "train.log",
        "cell.json",
        ".env",
        "token.json",
        "pytorch_model.bin",
        "predictions/secret.png",
        "figures/curves_light.npz",
        "figures/notes.txt",
        "figures/deep/a.png",
        "examples/not_named.png",
        "onnx/notes.txt",
        "runs/events.out.tfevents.1.my-machine.7",
        "my_code.py",
    ]
    wanted = ["all_results.json", "train_results.json", "eval_results.json", "run_record.json", "README.md"]
    wanted += ["figures/curves_light.png", "onnx/model.onnx", "examples/named.png"]
    for path in traps + wanted:
        (output_folder / path).parent.mkdir(exist_ok=True)
        (output_folder / path).write_text('{"hidden": 1}')
    Image.new("RGB", (8, 8)).save(output_folder / "examples" / "named.png")
    (output_folder / "README.md").write_text("---\nwidget:\n- src: examples/named.png\n---\n")
    (output_folder / "night.json").write_text(json.dumps(EVALUATION))
    staging = tmp_path / "staging"
    staging.mkdir()
    stage(output_folder, staging)
    found = {path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file()}
    assert found == MODEL | CODE | {*wanted, "night.json", "trainer_state.json"}
    evaluation = json.loads((staging / "night.json").read_text())
    assert evaluation == EVALUATION | {"model": "out", "data": {"data_dir": "camvid", "labeled_list": None}}
    state = json.loads((staging / "trainer_state.json").read_text())
    assert state == {"log_history": LOG, "best_model_checkpoint": "checkpoint-4"}
    config = json.loads((staging / "config.json").read_text())
    assert config["auto_map"]["AutoModelForSemanticSegmentation"] == (
        "modeling_allspark.SegformerForSemiSupervisedSegmentation"
    )
    before = json.loads((output_folder / "config.json").read_text())
    assert {name: config[name] for name in before if name != "auto_map"} == {
        name: before[name] for name in before if name != "auto_map"
    }


def test_no_memory_in_published_weights(output_folder, tmp_path):
    expected = load_file(output_folder / "model.safetensors")
    model = SegformerForSemiSupervisedSegmentation.from_pretrained(output_folder)
    model._keys_to_ignore_on_save = None  # as the Trainer saves a checkpoint
    model.save_pretrained(output_folder)
    assert {"bottleneck.memory.channels", "bottleneck.memory.num_enqueued"} == set(
        load_file(output_folder / "model.safetensors")
    ) - set(expected)
    staging = tmp_path / "staging"
    staging.mkdir()
    stage(output_folder, staging)
    published = load_file(staging / "model.safetensors")
    assert set(published) == set(expected)
    assert all(value.equal(expected[name]) for name, value in published.items())
    again = SegformerForSemiSupervisedSegmentation.from_pretrained(staging)
    images = torch.randn(2, 3, 64, 80)
    with torch.no_grad():
        assert torch.equal(again.eval()(images).logits, model.eval()(images).logits)


def test_what_is_no_output_folder_is_refused(output_folder, tmp_path):
    with pytest.raises(ValueError, match=r"holds no trained model \(model.safetensors, config.json, preprocessor"):
        publish_folder(tmp_path, "tester/x")
    (output_folder / "config.json").write_text('{"model_type": "segformer"}')
    with pytest.raises(ValueError, match="a model of type 'segformer', not 'allspark'"):
        publish_folder(output_folder, "tester/x")
    (output_folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is no JSON"):
        publish_folder(output_folder, "tester/x")


def test_figures_of_a_run(output_folder, monkeypatch):
    pytest.importorskip("matplotlib")
    names = ["curves.npz", "curves_light.png", "curves_dark.png"]
    assert [path.name for path in write_run_figures(output_folder)] == names
    width, height = Image.open(output_folder / "figures" / "curves_light.png").size
    assert width == 1200 and height > 300
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        assert write_run_figures(output_folder) == []
    (output_folder / "trainer_state.json").write_text('{"log_history": [{"epoch": 1.0, "step": 1, "other": 2.0}]}')
    assert write_run_figures(output_folder) == []
    (output_folder / "trainer_state.json").unlink()
    assert write_run_figures(output_folder) == []


# ---- The way there and back ----


def test_two_models_in_one_repository(hub, output_folder):
    before = hashes(output_folder)
    first = publish_folder(output_folder, "tester/roads", private=True)
    after = hashes(output_folder)
    assert {path: after[path] for path in before} == before  # only added to
    other = tiny_model(seed=1)
    other.save_pretrained(output_folder)
    second = publish_folder(output_folder, "roads", commit_message="Trained on")
    commits = [(commit.message, commit.oid) for commit in hub.commits("tester/roads")]
    assert commits == [("Trained on", second.oid), ("Upload model", first.oid)]
    assert hub.repositories["tester/roads"].private
    images = torch.linspace(-2, 2, 3 * 64 * 96).reshape(1, 3, 64, 96)
    for revision, model in {first.oid: tiny_model(), "main": other}.items():
        loaded = SegformerForSemiSupervisedSegmentation.from_pretrained("tester/roads", revision=revision)
        with torch.no_grad():
            assert torch.equal(loaded.eval()(images).logits, model.eval()(images).logits)


def test_script(hub, output_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(publish, "write_run_figures", write_run_figures)
    photo = tmp_path / "street.jpg"
    Image.new("RGB", (40, 30), "green").save(photo)
    push("--model", output_folder, "--repo_id", "tester/roads", "--private", "--example_images", photo)
    assert capsys.readouterr().out == f"Pushed to {hub.url}/tester/roads\n"
    files = hub.files("tester/roads")
    assert files["examples/street.jpg"] == photo.read_bytes()
    assert hub.repositories["tester/roads"].private
    card = ModelCard(files["README.md"].decode())
    assert card.data.license and card.data.pipeline_tag == "image-segmentation" and card.data.library_name
    if importlib.util.find_spec("matplotlib"):
        assert Image.open(io.BytesIO(files["figures/curves_light.png"])).size[0] == 1200
    (output_folder / "train_results.json").write_text('{"epoch": 2.0}')
    push("--model", output_folder, "--repo_id", "tester/roads", "--revision", "try")
    assert len(hub.commits("tester/roads", "try")) == 2 and len(hub.commits("tester/roads")) == 1
    assert hub.files("tester/roads", "try")["train_results.json"] == b'{"epoch": 2.0}'
    hub.add("other/roads", {})
    push("--model", output_folder, "--repo_id", "other/roads", "--create_pr")
    assert capsys.readouterr().out.splitlines()[-1] == f"Pushed to {hub.url}/other/roads/discussions/1"
    assert set(hub.files("other/roads")) == set() and set(hub.files("other/roads", "refs/pr/1")) >= MODEL


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--model", "none"], "ValueError: none holds no trained model"),
        (["--create_pr", "--private"], "ValueError: A pull request makes no repository"),
        (["--create_pr", "--revision", "x"], "ValueError: A pull request goes to main"),
        (["--example_images", "none.jpg"], "ValueError: The example image none.jpg cannot be read"),
        (["--repo_id", "a b"], "PushError: Nothing can be pushed to a b: that is no name of a repository"),
        (["--token", "hf_abc"], "There is no argument --token"),
        (["--hub_token=hf_abc"], "There is no argument --hub_token: "),
    ],
)
def test_mistakes_end_in_one_sentence(hub, output_folder, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        push("--model", output_folder, "--repo_id", "tester/roads", *arguments)
    assert sentence in stopped.value.code and "\n" not in stopped.value.code and "hf_abc" not in stopped.value.code


# ---- What is said when it fails ----


def told(output_folder, repo_id="tester/roads", **kwargs) -> str:
    """The one sentence of a push that fails, with nothing behind it that a traceback would show."""
    with pytest.raises(PushError) as failed:
        publish_folder(output_folder, repo_id, **kwargs)
    assert failed.value.__cause__ is None and failed.value.__suppress_context__ is not None
    assert "\n" not in str(failed.value)
    return str(failed.value)


def test_no_right_to_push(hub, output_folder, monkeypatch):
    hub.add("other/secret", {}, private=True)
    wrong = "hf_" + "0123456789" * 3
    before = "Nothing can be pushed to tester/roads: "
    assert f"{before}the Hub does not accept the token given (hub_token): make" in told(output_folder, token=wrong)
    said = told(output_folder, repo_id="other/roads")
    assert "Nothing can be pushed to other/roads: the token in HF_TOKEN may not write there: use" in said
    assert "may not write there" in told(output_folder, repo_id="other/secret")
    hub.add("tester/roads", {})  # which a token for reading sees, so that making it does not fail
    said = [told(output_folder, token=hub.read_token), said]
    assert f"{before}the token given (hub_token) may not write there" in said[0]
    said.append(told(output_folder, repo_id="other/none", create_pr=True))
    assert "failed: there is no such repository, or it is private" in said[-1] and "push it again with" in said[-1]
    for token in (wrong, *hub.accounts):
        assert not any(token in sentence for sentence in said)
    monkeypatch.delenv("HF_TOKEN")
    assert "Nothing can be pushed to tester/roads without a token: log in with `hf auth login`" in told(output_folder)
    assert hub.commits("tester/roads")[1:] == [] and hub.count("POST", "/commit/") == 0


def test_no_connection(hub, output_folder, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert "pushed to tester/roads: the connection to http://127.0.0.1:9 broke or could not" in told(output_folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.utils._http.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set: unset it to push." in told(output_folder)


def test_broken_connections_are_tried_again(hub, output_folder, caplog):
    hub.fail_next("POST", "/api/repos/create", how="cut")
    hub.fail_next("PUT", "/lfs/", times=2)
    hub.fail_next("POST", "/api/validate-yaml", how=502)  # an answer that is no JSON
    hub.fail_next("POST", "/preupload/", how=503)
    hub.fail_next("POST", "/commit/", how=500)
    hub.fail_next("POST", "/commit/", how="cut")
    publish_folder(output_folder, "tester/roads")
    assert len(hub.commits("tester/roads")) == 1
    expected = load_file(output_folder / "model.safetensors")
    published = load(hub.files("tester/roads")["model.safetensors"])
    assert all(value.equal(expected[name]) for name, value in published.items()) and len(published) == len(expected)
    assert hub.count("PUT", "/lfs/", 0) == 2 and hub.count("PUT", "/lfs/", 200) == len(hub.objects) > 0
    assert [request.status for request in hub.requests if "/commit/" in request.path] == [500, 0, 200]
    assert "answered 500; it may be overloaded or down. Trying again" in caplog.text


def test_a_lost_answer_is_no_second_commit(hub, output_folder):
    hub.fail_next("POST", "/commit/", how="lose")
    commit = publish_folder(output_folder, "tester/roads")
    assert [entry.oid for entry in hub.commits("tester/roads")] == [commit.oid]


@pytest.mark.parametrize(
    "method, path, how",
    [("PUT", "/lfs/", "cut"), ("POST", "/commit/", "cut"), ("PUT", "/lfs/", 503), ("POST", "/commit/", 418)],
)
def test_a_push_that_never_gets_through(hub, output_folder, method, path, how):
    before = hashes(output_folder)
    hub.fail_next(method, path, times=99, how=how)
    sentence = told(output_folder, revision="try")
    assert "Pushing to tester/roads failed: " in sentence
    reasons = {"cut": f"the connection to {hub.url} broke", 503: "answered 503", 418: "broken (Bearer ***)"}
    assert reasons[how] in sentence and hub.token not in sentence
    command = f"allspark push --model '{output_folder}' --repo_id tester/roads --revision try"
    assert sentence.endswith(f"Everything is still in {output_folder}; push it again with: {command}")
    assert hub.commits("tester/roads", "try") == []
    assert hub.count("POST", "/commit/") == (0 if path == "/lfs/" else 1 if how == 418 else upload.TRIES)
    after = hashes(output_folder)
    assert {name: after[name] for name in before} == before
    hub.faults.clear()
    push("--model", output_folder, "--repo_id", "tester/roads", "--revision", "try")  # what the sentence says
    assert set(hub.files("tester/roads", "try")) >= MODEL | CODE


def test_scrub():
    assert scrub("a\n  Bearer hf_abcdefghijkl, secret-1", "secret-1") == "a Bearer ***, ***"


# ---- model.push_to_hub ----


def test_model_and_image_processor_push_themselves(hub, output_folder):
    model = SegformerForSemiSupervisedSegmentation.from_pretrained(output_folder)
    model.push_to_hub("roads", private=True, commit_message="by itself", tags=["roads"])
    files = hub.files("tester/roads")
    assert set(files) == (MODEL | CODE | {"README.md"}) - {"preprocessor_config.json"}
    assert not any("memory" in name for name in load(files["model.safetensors"]))
    assert json.loads(files["config.json"])["auto_map"] == auto_map_of(type(model.config))
    card = ModelCard(files["README.md"].decode())
    assert card.data.license and card.data.pipeline_tag == "image-segmentation"
    assert "roads" in card.data.tags and hub.repositories["tester/roads"].private
    make_image_processor().push_to_hub("roads")
    assert set(hub.files("tester/roads")) == MODEL | CODE | {"README.md"}
    assert hub.files("tester/roads")["README.md"] == files["README.md"]

    make_image_processor().push_to_hub("tester/second")
    assert ModelCard(hub.files("tester/second")["README.md"].decode()).data.license is None
    model.push_to_hub("tester/second")  # transformers' generic card is replaced
    assert ModelCard(hub.files("tester/second")["README.md"].decode()).data.license == card.data.license
    with pytest.raises(PushError, match="Nothing can be pushed to other/x: the token in HF_TOKEN may not write there"):
        model.push_to_hub("other/x")


def test_published_code_pushes_as_transformers_does(hub, output_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "allspark_hf.publishing.publish", None)  # as where this package is missing
    SegformerForSemiSupervisedSegmentation.from_pretrained(output_folder).push_to_hub("tester/roads")
    assert ModelCard(hub.files("tester/roads")["README.md"].decode()).data.license is None

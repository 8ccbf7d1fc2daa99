"""Pushing from the Trainer and with `allspark train`, to a loopback Hub."""

import json
import sys
from pathlib import Path

import pytest
from conftest import small_model
from hub_server import HubServer
from huggingface_hub import CommitInfo, ModelCard
from run_training import make_trainer
from safetensors.torch import load, load_file
from test_push import CODE, MODEL, hashes

from allspark_hf.cli import train as train_command
from allspark_hf.publishing import upload
from allspark_hf.publishing.upload import PushError


RECORDS = {"README.md", "trainer_state.json"}
TRAINING = MODEL | CODE | RECORDS


@pytest.fixture
def hub(monkeypatch):
    with HubServer() as server:
        server.use_here(monkeypatch)  # logged out: the token comes with the arguments
        server.quote_token = True
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        monkeypatch.setattr(upload, "FIRST_WAIT", 0.0)
        # It takes a second; tests/test_publish_end_to_end.py has it.
        monkeypatch.setattr("allspark_hf.training.hub.write_run_figures", lambda folder: [])
        yield server


def short_trainer(folder: Path, hub: HubServer, **kwargs):
    """Two checkpoints, one step each."""
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "num_unlabeled": 4}
    return make_trainer(
        small_model(),
        output_dir=str(folder),
        **{**saving, "push_to_hub": True, "hub_token": hub.token, **kwargs},
    )


def own_card(content: bytes) -> bool:
    """Ours says the task; transformers' generic one does not."""
    card = ModelCard(content.decode())
    return card.data.pipeline_tag == "image-segmentation" and bool(card.data.license)


def assert_nowhere(token: str, hub: HubServer, *texts: str, folder: Path | None = None):
    """The token is in no file that was sent or written, and in no text."""
    secret = token.encode()
    commits = [commit for repository in hub.repositories.values() for commit in repository.commits.values()]
    sent = [blob.content for commit in commits for blob in commit.files.values()]
    written = [path.read_bytes() for path in folder.rglob("*") if path.is_file()] if folder else []
    assert sent and not any(secret in content for content in sent + written)
    assert not any(token in text for text in texts)


def test_every_save_and_the_end(hub, tmp_path, caplog):
    trainer = short_trainer(tmp_path / "out", hub, hub_always_push=True, hub_private_repo=True)
    assert hub.repositories["tester/out"].private and hub.commits("tester/out") == []  # made at construction
    trainer.train()
    during = hub.commits("tester/out")
    assert [commit.message for commit in during] == [f"Training in progress, step {step}" for step in (2, 1)]
    for commit, step in zip(during, (2, 1), strict=True):
        assert set(commit.files) - {".gitattributes"} == TRAINING
        checkpoint = load_file(tmp_path / "out" / f"checkpoint-{step}" / "model.safetensors")
        published = load(commit.files["model.safetensors"].content)
        assert set(checkpoint) - set(published) == {"bottleneck.memory.channels", "bottleneck.memory.num_enqueued"}
        assert all(value.equal(checkpoint[name]) for name, value in published.items())
        assert own_card(commit.files["README.md"].content)
        assert json.loads(commit.files["trainer_state.json"].content)["global_step"] == step
    commit = trainer.push_to_hub(commit_message="Done", tags=["x"])
    assert isinstance(commit, CommitInfo) and "without tags as given" in caplog.text
    assert commit.oid == hub.commits("tester/out")[0].oid and hub.commits("tester/out")[0].message == "Done"
    files = hub.files("tester/out")
    assert set(files) >= TRAINING and own_card(files["README.md"])
    assert not any("/" in path for path in files)
    assert set(load(files["model.safetensors"])) == set(published)
    assert json.loads(files["trainer_state.json"])["log_history"] == trainer.state.log_history
    assert trainer.args.hub_token == hub.token
    assert not list((tmp_path / "out").rglob("*.bin"))  # no pickle of the arguments, and of the token in them
    assert_nowhere(hub.token, hub, caplog.text, folder=tmp_path)


@pytest.mark.parametrize("strategy, folders, local", [("checkpoint", 1, False), ("all_checkpoints", 2, True)])
def test_checkpoints_only_if_asked_for(hub, tmp_path, strategy, folders, local):
    settings = {"hub_strategy": strategy, "hub_always_push": True, "hub_model_id": "a-model", "local_memory": local}
    trainer = short_trainer(tmp_path / "out", hub, **settings)
    trainer.train()
    files = hub.files("tester/a-model")
    assert {path for path in files if "/" not in path} == TRAINING
    names = {"last-checkpoint"} if strategy == "checkpoint" else {"checkpoint-1", "checkpoint-2"}
    assert {path.split("/")[0] for path in files if "/" in path} == names
    newest = "last-checkpoint" if strategy == "checkpoint" else "checkpoint-2"
    resumable = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    resumable |= {"pseudo_label_counts.pt", "allspark_run.json"}
    resumable |= {"memory_0.pt"} if local else set()
    inside = {path.removeprefix(f"{newest}/") for path in files if path.startswith(f"{newest}/")}
    assert inside == MODEL | resumable | CODE
    for name, content in files.items():
        if name.startswith(f"{newest}/"):
            path = tmp_path / "resumed" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    again = short_trainer(tmp_path / "again", hub, push_to_hub=False, max_steps=3, local_memory=local)
    again.train(resume_from_checkpoint=str(tmp_path / "resumed" / newest))
    assert again.state.global_step == 3
    assert_nowhere(hub.token, hub, folder=tmp_path)
    assert len(names) == folders


def test_strategy_end_pushes_nothing_before(hub, tmp_path):
    trainer = short_trainer(tmp_path / "out", hub, hub_strategy="end", hub_revision="run-1")
    trainer.train()
    assert hub.commits("tester/out", "run-1") == []
    job = trainer.push_to_hub(blocking=False)
    assert job.result(timeout=60).oid == hub.commits("tester/out", "run-1")[0].oid
    assert hub.commits("tester/out") == [] and set(hub.files("tester/out", "run-1")) >= TRAINING


def test_failing_pushes_do_not_end_training(hub, tmp_path, caplog):
    hub.fail_next("POST", "/commit/", times=99, how="cut")
    trainer = short_trainer(tmp_path / "out", hub, hub_always_push=True)
    trainer.train()
    assert trainer.state.global_step == 2 and hub.commits("tester/out") == []
    assert caplog.text.count("Training goes on, and everything is pushed when it ends.") == 2
    trainer.save_model(_internal_call=True)
    before = hashes(tmp_path / "out")
    with pytest.raises(PushError, match=r"Pushing to tester/out failed: the connection to .* Everything is still in"):
        trainer.push_to_hub()
    with pytest.raises(PushError, match=r"push it again with: allspark push --model"):
        trainer.push_to_hub(blocking=False).result(timeout=60)
    after = hashes(tmp_path / "out")
    assert {path: after[path] for path in before} == before
    hub.faults.clear()
    trainer.push_to_hub()
    assert len(hub.commits("tester/out")) == 1


def test_a_checkpoint_that_cannot_be_staged(hub, tmp_path, caplog, monkeypatch):
    def full(*arguments, **kwargs):
        raise OSError(f"No space left on device, token {hub.token}")

    monkeypatch.setattr("allspark_hf.training.hub.stage", full)
    trainer = short_trainer(tmp_path / "out", hub)
    trainer.train()
    assert trainer.state.global_step == 2
    assert caplog.text.count("is not pushed: No space left on device, token ***") == 2
    with pytest.raises(
        PushError, match=r"Nothing was pushed to tester/out: No space left on device, token \*\*\*"
    ) as failed:
        trainer.push_to_hub()
    assert f"Everything is still in {tmp_path / 'out'}; push it again with" in str(failed.value)


def test_push_of_a_trainer_that_was_not_told_to(hub, tmp_path):
    trainer = short_trainer(tmp_path / "out", hub, push_to_hub=False, max_steps=1)
    trainer.train()
    trainer.push_to_hub(token=hub.token, private=True, revision="branch")
    assert hub.repositories["tester/out"].private and set(hub.files("tester/out", "branch")) >= TRAINING
    before = hashes(tmp_path / "out")
    fresh = make_trainer(small_model(seed=1), output_dir=str(tmp_path / "out"), hub_token=hub.token)
    with pytest.raises(PushError, match="holds the records of a training, and this model is not the one it gave"):
        fresh.push_to_hub()
    assert hashes(tmp_path / "out") == before
    again = make_trainer(trainer.model, output_dir=str(tmp_path / "out"), hub_token=hub.token)
    again.push_to_hub()  # the same model without training: the log that is there stays
    log = json.loads(hub.files("tester/out")["trainer_state.json"])["log_history"]
    assert log == trainer.state.log_history


def test_only_the_main_process_speaks_to_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("allspark_hf.AllSparkTrainer.is_world_process_zero", lambda self: False)
    trainer = short_trainer(tmp_path / "out", hub)
    trainer.train()
    assert trainer.push_to_hub() is None
    trainer.create_model_card()
    assert hub.requests == [] and not (tmp_path / "out" / "README.md").exists()


@pytest.mark.parametrize("token", ["hf_" + "w" * 34, None])
def test_wrong_token_is_found_at_construction(hub, tmp_path, token):
    expected = "the Hub does not accept the token given" if token else "without a token: log in with `hf auth login`"
    with pytest.raises(PushError, match=expected) as failed:
        short_trainer(tmp_path / "out", hub, hub_token=token)
    assert str(token) not in str(failed.value)
    assert hub.repositories == {}


# ---- allspark train ----


def arguments(data_dir: Path, out: Path) -> list[str]:
    model = ["--backbone", "b0", "--hidden_sizes", 8, 16, 40, 64, "--decoder_hidden_size", 16, "--crop_size", 64]
    run = ["--max_steps", 2, "--use_cpu", "--report_to", "tensorboard", "--disable_tqdm", "true"]
    return [str(entry) for entry in ["--data_dir", data_dir, "--output_dir", out, *model, *run, "--push_to_hub"]]


def train(*given):
    """`allspark train` in this process, up to its exit."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(sys, "argv", ["train.py", *map(str, given)])
        train_command.main()
    return stopped.value.code


def test_token_is_tried_before_training(hub, data_dir, tmp_path):
    code = train(*arguments(data_dir, tmp_path / "out"), "--hub_token", "hf_" + "w" * 34)
    assert code.startswith("PushError: Nothing can be pushed to out: the Hub does not accept the token given")
    assert "www" not in code and "\n" not in code
    assert not list((tmp_path / "out").glob("checkpoint-*")) and hub.repositories == {}


def test_failure_at_the_end(hub, data_dir, tmp_path, capsys):
    hub.fail_next("POST", "/commit/", times=99, how=503)
    out = tmp_path / "out"
    code = train(*arguments(data_dir, out), "--hub_token", hub.token)
    assert code.startswith("PushError: Pushing to tester/out failed: ") and "answered 503" in code
    assert f"Everything is still in {out}; push it again with: allspark push --model {out}" in code
    assert (out / "model.safetensors").is_file() and (out / "eval_results.json").is_file()
    printed = capsys.readouterr()
    assert_nowhere(hub.token, hub, printed.out, printed.err, code, folder=tmp_path)

"""What a checkpoint holds, when it counts as complete, and which changes of a run can be continued."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from conftest import NO_DROPOUT, make_dataset, small_model
from run_training import make_trainer
from safetensors.torch import load_file, save_file

from allspark_hf import AllSparkConfig, AllSparkTrainer
from allspark_hf.training.faults import TrainingFault
from allspark_hf.training.storage import (
    finish_renaming,
    is_complete,
    last_complete_checkpoint,
    remove_leftovers,
    write_run_file,
)


SETTINGS = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3, "seed": 3}
PLAIN = AllSparkConfig.plain_segformer_switches()


# ---- States that run nothing ----


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride() and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


@pytest.mark.parametrize(
    ("optim", "schedule"),
    [
        ("adamw_torch", "reduce_lr_on_plateau"),
        ("adamw_torch", "cosine"),
        ("adafactor", "constant"),
        ("rmsprop", "cosine"),
    ],
)
def test_other_optimizers_and_schedules_resume_exactly(tmp_path, optim, schedule):
    settings = {**SETTINGS, "optim": optim, "lr_scheduler_type": schedule, "output_dir": str(tmp_path)}
    settings |= {"learning_rate": 0.001, "max_steps": 4}
    if schedule == "reduce_lr_on_plateau":
        settings |= {"eval_strategy": "steps", "eval_steps": 2, "lr_scheduler_kwargs": {"patience": 0}}
    whole = make_trainer(small_model(), **settings)
    whole.train()
    resumed = make_trainer(small_model(seed=5), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == 4
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    assert same(resumed.optimizer.state_dict(), whole.optimizer.state_dict())


class _Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Ten steps with checkpoints of the third, sixth, ninth and last."""
    folder = tmp_path_factory.mktemp("run")
    make_trainer(small_model(), **SETTINGS, output_dir=str(folder)).train()
    return folder


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("optimizer.pt", {}),
        ("scheduler.pt", {}),
        ("rng_state.pth", {}),
        ("pseudo_label_counts.pt", {}),
        ("pseudo_label_counts.pt", {"max_steps": 6}),  # a run that has all its steps
    ],
)
def test_a_state_that_could_run_code_is_refused(tmp_path, run_folder, name, settings):
    """Each is read with torch's loader that knows tensors only."""
    folder = tmp_path / "out"
    shutil.copytree(run_folder, folder)
    checkpoint = folder / "checkpoint-6"
    torch.save(_Bomb(tmp_path / "exploded"), checkpoint / name)
    write_run_file(checkpoint, json.loads((checkpoint / "allspark_run.json").read_text()))
    trainer = make_trainer(small_model(seed=5), **SETTINGS | settings, output_dir=str(folder))
    with pytest.raises(TrainingFault, match=r"A state in .*checkpoint-6 is damaged"):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    assert not (tmp_path / "exploded").exists()
    torch.load(checkpoint / name, weights_only=False)  # so that the test can fail
    assert (tmp_path / "exploded").exists()


def test_an_argument_newer_than_the_checkpoint_had_its_default(tmp_path, run_folder, caplog):
    checkpoint = tmp_path / "checkpoint-6"
    shutil.copytree(run_folder / "checkpoint-6", checkpoint)
    run = json.loads((checkpoint / "allspark_run.json").read_text())
    for name in ("freeze_encoder", "lr_scheduler_kwargs"):
        del run["arguments"][name]
    del run["reading"], run["fields"]  # of a version that did not write them
    write_run_file(checkpoint, run)
    make_trainer(small_model(), **SETTINGS, output_dir=str(tmp_path)).checkpoints.check(checkpoint)
    assert not caplog.messages
    frozen = make_trainer(small_model(), **SETTINGS, output_dir=str(tmp_path), freeze_encoder=True)
    with pytest.raises(ValueError, match="freeze_encoder was False and is True"):
        frozen.checkpoints.check(checkpoint)


def test_weights_of_another_model_are_refused(tmp_path, run_folder):
    folder = tmp_path / "out"
    shutil.copytree(run_folder, folder)
    model = folder / "checkpoint-6" / "model.safetensors"
    weights = load_file(model)
    save_file({f"other.{name}" if "classifier" in name else name: value for name, value in weights.items()}, model)
    write_run_file(model.parent, json.loads((model.parent / "allspark_run.json").read_text()))
    trainer = make_trainer(small_model(seed=5), **SETTINGS, output_dir=str(folder))
    with pytest.raises(ValueError, match=r"of another model \(4 names differ, among them decode_head.classifier"):
        trainer.train(resume_from_checkpoint=str(model.parent))
    model.unlink()
    write_run_file(model.parent, json.loads((model.parent / "allspark_run.json").read_text()))
    with pytest.raises(ValueError, match=r"model.safetensors is missing"):
        trainer.train(resume_from_checkpoint=str(model.parent))


# ---- Complete or not ----


def test_only_whole_checkpoints_count(tmp_path, run_folder):
    def copied() -> Path:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.copytree(run_folder, tmp_path / "out")
        return tmp_path / "out" / "checkpoint-10"

    last = copied()
    assert is_complete(last) and last_complete_checkpoint(last.parent) == str(last)
    files = sorted(path.name for path in last.iterdir() if path.name != "trained_on.json")
    for name in files:
        for damage in ("cut", "gone"):
            path = copied() / name
            if damage == "gone":
                path.unlink()
            else:
                path.write_bytes(path.read_bytes()[:-3])
            assert not is_complete(last), (name, damage)
            assert last_complete_checkpoint(last.parent) == str(last.with_name("checkpoint-9"))
    trainer = make_trainer(small_model(), **SETTINGS, output_dir=str(tmp_path / "new"))
    with pytest.raises(ValueError, match="checkpoint-10 is not complete: files are missing or cut short"):
        trainer.train(resume_from_checkpoint=str(last))
    (last / "allspark_run.json").unlink()
    with pytest.raises(ValueError, match=r"has no readable allspark_run.json of format 2"):
        trainer.train(resume_from_checkpoint=str(last))
    with pytest.raises(ValueError, match=r"There is no checkpoint .*checkpoint-4: give a folder"):
        trainer.train(resume_from_checkpoint=str(run_folder / "checkpoint-4"))
    assert last_complete_checkpoint(tmp_path / "nothing") is None
    with pytest.raises(ValueError, match="No complete checkpoint in"):
        trainer.train(resume_from_checkpoint=True)


def test_leftovers_are_finished_or_removed(tmp_path, run_folder):
    for number in (3, 6):
        shutil.copytree(run_folder / f"checkpoint-{number}", tmp_path / f"unfinished-checkpoint-{number}")
    (tmp_path / "unfinished-checkpoint-6" / "model.safetensors").unlink()
    shutil.copytree(run_folder / "checkpoint-9", tmp_path / "removed-checkpoint-9")
    finish_renaming(tmp_path)
    names = ["checkpoint-3", "removed-checkpoint-9", "unfinished-checkpoint-6"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"] and is_complete(tmp_path / "checkpoint-3")


def test_going_back_to_an_earlier_checkpoint(tmp_path, run_folder):
    """What is saved from there on is the last, though later steps were saved before, and is not what is deleted."""
    folder = tmp_path / "out"
    shutil.copytree(run_folder, folder)
    settings = {**SETTINGS, "save_steps": 2, "output_dir": str(folder)}
    trainer = make_trainer(small_model(seed=5), **{**settings, "save_total_limit": 2, "max_steps": 4})
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-4")
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-4"]
    trainer = make_trainer(small_model(seed=5), **{**settings, "save_total_limit": 1, "save_steps": 9})
    trainer.train(resume_from_checkpoint=True)
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-10"]  # and a new 9 came and went


def test_the_best_checkpoint_is_kept_and_known(tmp_path):
    settings = {"num_train_epochs": 3, "seed": 3, "save_strategy": "epoch", "eval_strategy": "epoch"}
    settings |= {"load_best_model_at_end": True, "save_total_limit": 1, "output_dir": str(tmp_path)}
    trainer = make_trainer(small_model(), **settings, metric_for_best_model="loss", greater_is_better=False)
    trainer.train()
    losses = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    best = min(losses, key=losses.get)
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert is_complete(tmp_path / f"checkpoint-{best}")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[best], abs=1e-9)


def test_the_best_checkpoint_of_a_run_whose_folder_was_moved(tmp_path):
    settings = {"max_steps": 9, "eval_steps": 3, "save_steps": 3, "eval_strategy": "steps", "save_strategy": "steps"}
    settings |= {"load_best_model_at_end": True, "save_total_limit": 2, "seed": 3}
    settings |= {"metric_for_best_model": "loss", "greater_is_better": True}  # the highest one is not the last
    run, moved = tmp_path / "run", tmp_path / "moved"
    trainer = make_trainer(small_model(), **settings, output_dir=str(run))
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name != "checkpoint-9"
    run.rename(moved)
    again = make_trainer(small_model(), **settings, output_dir=str(moved))
    again.train(resume_from_checkpoint=True)
    expected = load_file(moved / best.name / "model.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in again.model.state_dict().items())
    best = moved / best.name
    best.rename(tmp_path / best.name)
    with pytest.raises(ValueError, match=rf"whose best checkpoint was {best.name}, which is not beside it, but load_"):
        make_trainer(small_model(), **settings, output_dir=str(moved)).train(resume_from_checkpoint=True)


# ---- What changes between two starts ----


def other_trainer(tmp_path, model=None, **kwargs) -> AllSparkTrainer:
    settings = {**SETTINGS, "output_dir": str(tmp_path), **kwargs}
    switches = {} if "allspark" in settings.get("method", "allspark") else PLAIN
    return make_trainer(model or small_model(**switches), **settings)


REFUSED = [
    ({"model": {"num_labels": 4}}, {}, "the number of classes was 3 and is 4"),
    (
        {"model": {"id2label": {0: "LABEL_1", 1: "LABEL_0", 2: "LABEL_2"}}},
        {},
        "the classes were in the order LABEL_0,",
    ),
    ({"model": {"crop_size": [64, 96]}}, {}, "the crop was 64x64 and is 64x96 pixels, but the memory"),
    ({"model": {"memory_size": 2}}, {}, "memory_size was 1 and is 2"),
    ({"model": {"depths": [1, 2]}}, {}, r"depths was \[1, 1\] and is \[1, 2\]"),
    (
        {},
        {"method": "pseudo_label"},
        "use_cross_attention was True and is False.*method was allspark and is pseudo_label",
    ),
    ({"model": {"tiff_page": 1}}, {}, "tiff_page was None and is 1;"),
    ({"model": {"image_range": [0, 4095]}}, {}, r"image_range was None and is \[0, 4095\];"),
    ({"model": {"mask_values": [1, 0, 2]}}, {}, r"mask_values was None and is \[1, 0, 2\];"),
    ({}, {"long_side": 64}, "image_long_side was None and is 64;"),
    ({}, {"optim": "adamw_torch"}, "optim was sgd and is adamw_torch"),
    ({}, {"lr_scheduler_type": "linear"}, "lr_scheduler_type was polynomial and is linear"),
    (
        {},
        {"per_device_train_batch_size": 1},
        r"had 2 labeled and 2 unlabeled .* \(--total_train_batch_size 2 keeps it\)",
    ),
    ({}, {"gradient_accumulation_steps": 2}, "has 4 and 4 .1 processes x 2 per_device_train_batch_size x 2 gradient_"),
    ({}, {"per_device_unlabeled_batch_size": 1}, "an update had 2 labeled and 2 unlabeled images and has 2 and 1"),
]


@pytest.mark.parametrize("parts, kwargs, sentence", REFUSED)
def test_what_cannot_be_continued_is_refused(tmp_path, run_folder, monkeypatch, parts, kwargs, sentence):
    if parts.get("model", {}).get("id2label"):
        parts = {"model": parts["model"] | {"label2id": {"LABEL_1": 0, "LABEL_0": 1, "LABEL_2": 2}}}
    model = small_model(**parts["model"]) if parts else None
    trainer = other_trainer(tmp_path, model, **kwargs)
    monkeypatch.setattr(type(trainer), "_load_from_checkpoint", lambda *args: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match=sentence) as error:
        trainer.train(resume_from_checkpoint=str(run_folder / "checkpoint-6"))
    text = str(error.value)
    assert text.startswith(f"{run_folder / 'checkpoint-6'} cannot be continued by this run: ") and "\n" not in text
    assert f"--model_name_or_path {run_folder / 'checkpoint-6'} and another --output_dir" in text


def test_other_images_are_refused_and_named(tmp_path):
    def named(dataset, first=0):
        return dataset.add_column("id", [f"image{first + row}" for row in range(len(dataset))])

    labeled, unlabeled = named(make_dataset(5, seed=1)), named(make_dataset(10, seed=2), first=100)
    other_trainer(tmp_path, train=labeled, unlabeled=unlabeled, max_steps=3).train()
    checkpoint = str(tmp_path / "checkpoint-3")
    assert '"image1' not in Path(checkpoint, "trainer_state.json").read_text()
    assert '"image1' not in Path(checkpoint, "allspark_run.json").read_text()  # which may be published

    def refused(train, extra) -> str:
        with pytest.raises(ValueError) as error:
            other_trainer(tmp_path, train=train, unlabeled=extra).checkpoints.check(checkpoint)
        return str(error.value)

    smaller = unlabeled.select([0, 1, 2, 4, 5, 6, 7, 8, 9])
    assert "the unlabeled set had 10 images and has 9, 1 is gone (image103);" in refused(labeled, smaller)
    exchanged = named(make_dataset(5, seed=1), first=2)
    text = "the labeled set had 5 images and has 5, 2 are gone (image0, image1), 2 are new (image5, image6);"
    assert text in refused(exchanged, unlabeled)
    assert "has 5, in another order;" in refused(labeled.select([1, 0, 2, 3, 4]), unlabeled)
    (Path(checkpoint) / "trained_on.json").unlink()  # as of a checkpoint from the Hub
    assert "the unlabeled set had 10 images and has 9;" in refused(labeled, smaller)
    assert "the labeled set had 5 images and has 5, but not the same;" in refused(exchanged, unlabeled)
    other_trainer(tmp_path, train=labeled, unlabeled=unlabeled).checkpoints.check(checkpoint)


def test_images_without_ids_are_known_by_file_and_size(tmp_path, run_folder):
    trainer = other_trainer(tmp_path, unlabeled=make_dataset(10, seed=9))
    with pytest.raises(ValueError, match="the unlabeled set had 10 images and has 10, "):
        trainer.checkpoints.check(run_folder / "checkpoint-6")


WARNED = [
    ({"seed": 4}, "seed was 3 and is 4 from here on"),
    ({"learning_rate": 0.5}, "learning_rate stays 0.01, which its optimizer carries, although 0.5 is given"),
    ({"head_learning_rate_multiplier": 30.0}, "head_learning_rate_multiplier stays 10.0"),
    ({"weight_decay": 0.1}, "weight_decay stays 0.0001"),
    ({"adam_beta2": 0.95}, "adam_beta2 stays 0.999, which its optimizer carries, although 0.95 is given"),
    ({"lr_scheduler_kwargs": {"power": 1.0}}, "lr_scheduler_kwargs was {'power': 0.9, 'lr_end': 0.0} and is"),
    ({"metric_for_best_model": "loss"}, "metric_for_best_model was mean_iou and is loss, so earlier evaluations"),
    ({"eval_mode": "resized"}, "eval_mode was whole and is resized, so earlier evaluations"),
    ({"num_train_epochs": 3}, "num_train_epochs was 2 and is 3 from here on"),
    ({"unlabeled_loss_weight": 0.5}, "unlabeled_loss_weight was 1.0 and is 0.5 from here on"),
]


@pytest.mark.parametrize("kwargs, sentence", WARNED)
def test_what_changes_is_told_once(tmp_path, run_folder, caplog, kwargs, sentence):
    trainer = other_trainer(tmp_path, model=small_model(seed=5), **{"max_steps": 7, **kwargs})
    with caplog.at_level(logging.WARNING):
        trainer.checkpoints.check(run_folder / "checkpoint-6")
        trainer.train(resume_from_checkpoint=str(run_folder / "checkpoint-6"))
    told = [text for text in caplog.messages if text.startswith("Going on from")]
    assert sum(sentence in text for text in told) == 1 and len(told) == 2  # and max_steps
    assert trainer.state.global_step == 7
    if "learning_rate" in kwargs:
        assert trainer.optimizer.param_groups[0]["initial_lr"] == 0.01
    entry = next(one for one in trainer.state.log_history if one["step"] == 7 and "learning_rate" in one)
    assert entry["learning_rate_head"] == pytest.approx(10 * entry["learning_rate"])


def test_other_fields_of_the_configuration_are_told(tmp_path, run_folder, caplog):
    model = small_model(grouping_similarity="instance_norm", drop_path_rate=0.3)
    other_trainer(tmp_path, model=model).checkpoints.check(run_folder / "checkpoint-6")
    for change in ("grouping_similarity was cosine and is instance_norm", "drop_path_rate was 0.1 and is 0.3"):
        assert f"{change} from here on; no single run gives the same." in caplog.text


def test_nothing_is_told_where_nothing_changes(tmp_path, run_folder, caplog):
    trainer = other_trainer(tmp_path)
    trainer.checkpoints.check(run_folder / "checkpoint-6")
    assert not [text for text in caplog.messages if text.startswith("Going on from")]


def test_an_update_cut_otherwise_goes_on_with_the_same_images(tmp_path, caplog):
    """Batches of 4, then of 2 accumulated twice: without batch statistics and dropout, the same losses."""
    settings = {**SETTINGS, "method": "pseudo_label", "num_unlabeled": 12, "max_steps": 6}
    results = {}
    for name, batch in (("whole", 4), ("cut", 2)):
        model = small_model(seed=0 if name == "whole" else 5, **PLAIN, **NO_DROPOUT)
        model.decode_head.batch_norm = torch.nn.Identity()
        cut = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 4 // batch}
        trainer = make_trainer(model, **settings, **cut, output_dir=str(tmp_path / name))
        trainer.train(resume_from_checkpoint=None if name == "whole" else str(tmp_path / "whole" / "checkpoint-3"))
        results[name] = [entry["loss"] for entry in trainer.state.log_history if "loss_x" in entry]
    assert "per_device_train_batch_size 4 -> 2" in caplog.text and "gradient_accumulation_steps 1 -> 2" in caplog.text
    assert len(results["cut"]) == 6 and results["cut"] == pytest.approx(results["whole"], rel=1e-4)


def test_a_crop_without_a_memory_may_change(tmp_path, caplog):
    settings = {"method": "pseudo_label", "max_steps": 3}
    other_trainer(tmp_path, **settings).train()
    trainer = other_trainer(tmp_path, small_model(**PLAIN, crop_size=[64, 96]), **(settings | {"max_steps": 4}))
    trainer.train(resume_from_checkpoint=True)
    assert "the crop was 64x64 and is 64x96 pixels from here on" in caplog.text
    assert trainer.state.global_step == 4


def test_other_number_of_processes_draws_the_same_at_each_resume(tmp_path, run_folder):
    folder = tmp_path / "checkpoint-6"
    shutil.copytree(run_folder / "checkpoint-6", folder)
    run = json.loads((folder / "allspark_run.json").read_text())
    (folder / "allspark_run.json").write_text(json.dumps(run | {"processes": 2}))
    ends = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        trainer = other_trainer(tmp_path, model=small_model(seed=5))
        trainer.train(resume_from_checkpoint=str(folder))
        ends.append(trainer.model.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())

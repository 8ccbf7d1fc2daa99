"""Training on a stream of unlabeled images: resumes, workers, what is refused."""

import json
import logging
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from conftest import make_dataset, small_model
from run_training import make_trainer, result_of
from test_streaming import broken_stream, no_waiting_for_workers, numbered  # noqa: F401

from allspark_hf import AllSparkTrainer, AllSparkTrainingArguments
from allspark_hf.data.reading import BadImageError
from allspark_hf.data.streaming import whole_steps
from allspark_hf.inference.loading import make_image_processor


# 9 images in passes, 5 an epoch that become 6: 3 steps. The checkpoint of step 4 lies in the middle of epoch 2.
SETTINGS = {"num_unlabeled": 9, "stream": True, "unlabeled_images_per_epoch": 5, "shuffle_buffer_size": 4}
SETTINGS |= {"per_device_train_batch_size": 2, "num_train_epochs": 3, "seed": 3}
SETTINGS |= {"save_strategy": "steps", "save_steps": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def uninterrupted(folder):
    trainer = make_trainer(small_model(), output_dir=str(folder), **SETTINGS)
    trainer.train()
    assert trainer.state.global_step == 9
    return result_of(trainer)


def assert_same(one: dict, other: dict, last: int):
    assert len(one["losses"]) >= last and one["losses"][-last:] == other["losses"][-last:]
    for name, value in other["state"].items():
        assert torch.equal(one["state"][name], value), name


def run_of(record: Path) -> dict:
    return json.loads((record / "allspark_run.json").read_text())


def test_resumed_run_equals_the_uninterrupted(tmp_path, folder, uninterrupted):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    torch.manual_seed(99)  # the resumed process has drawn other numbers before
    resumed = make_trainer(small_model(seed=5), **SETTINGS, output_dir=str(tmp_path))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert_same(result_of(resumed), uninterrupted, last=5)


# Two lanes; 7 batches an epoch in updates of 3, 3 and 1; the checkpoint of step 4 lies behind batch 3 of epoch 2.
TWO_LANES = {**SETTINGS, "dataloader_num_workers": 2, "num_unlabeled": 24, "unlabeled_images_per_epoch": 14}
TWO_LANES |= {
    "num_train_epochs": 2,
    "num_shards": 6,
    "gradient_accumulation_steps": 3,
    "eval_strategy": "steps",
    "eval_steps": 4,
}


def test_workers_go_on_behind_what_was_trained_on(tmp_path, caplog):
    """They have read ahead, and the batches of a resumed epoch come from other workers than they came from."""
    whole = make_trainer(small_model(), **TWO_LANES, output_dir=str(tmp_path / "whole"))
    assert whole.get_train_dataloader().persistent_workers  # or each epoch would begin with a block read again
    whole.train()
    assert whole.state.global_step == 6
    marks = run_of(tmp_path / "whole" / "checkpoint-4")["bookmarks"]
    assert [mark[:3] for mark in marks] == [[0, 0, 8 + 4], [0, 1, 6 + 2]]
    assert {lane: mark.index for lane, mark in whole.stream.bookmarks.items()} == {0: 16, 1: 12}
    resumed = make_trainer(small_model(seed=5), **TWO_LANES, output_dir=str(tmp_path))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert_same(result_of(resumed), result_of(whole), last=2)
    assert resumed.stream.bookmarks == whole.stream.bookmarks
    assert not [one for one in caplog.messages if "unlabeled stream is asked for" in one or "shared out" in one]


def test_another_number_of_workers_begins_a_new_pass(tmp_path, folder, caplog):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    with caplog.at_level(logging.WARNING, "allspark_hf"):
        resumed = make_trainer(small_model(), **SETTINGS, output_dir=str(tmp_path), dataloader_num_workers=2)
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    (message,) = [one for one in caplog.messages if "Going on from" in one]
    assert "shared out in another way (workers 1 -> 2), so it goes on with a new pass: of the interrupted" in message
    more = make_trainer(small_model(), **SETTINGS, output_dir=str(tmp_path), dataloader_num_workers=4)
    assert more.stream.lanes.workers == 3  # the fourth would have images, but no batch of an epoch of three
    with caplog.at_level(logging.WARNING, "allspark_hf"):
        more.get_train_dataloader()
    assert caplog.messages[-1] == (
        "The unlabeled stream has 2 shards, fewer than processes x workers (1 x 3), so each image is read 2 times and "
        "decoded once: cut it into 3 shards or more, or lower dataloader_num_workers."
    )
    turns = {mark[1]: mark[2:4] for mark in run_of(tmp_path / "checkpoint-8")["bookmarks"]}
    assert turns == {0: [10, 1], 1: [6, 1]}  # 16 images, as if so shared out from the start, of which 8 in this pass


def test_checkpoints_without_bookmarks_begin_a_new_pass(tmp_path, folder, caplog):
    """Those of earlier versions."""
    shutil.copytree(folder / "checkpoint-4", tmp_path / "checkpoint-4")
    run = run_of(tmp_path / "checkpoint-4")
    del run["bookmarks"], run["stream"]
    (tmp_path / "checkpoint-4" / "allspark_run.json").write_text(json.dumps(run))
    with caplog.at_level(logging.WARNING, "allspark_hf"):
        resumed = make_trainer(small_model(), **SETTINGS, output_dir=str(tmp_path))
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert any("shared out in another way (batch_size unknown -> 2" in one for one in caplog.messages)
    assert run_of(tmp_path / "checkpoint-8")["bookmarks"][0][:4] == [0, 0, 16, 1]


def test_the_stream_decides_the_losses(tmp_path, uninterrupted):
    """So that the comparisons above can fail."""
    trainer = make_trainer(
        small_model(), output_dir=str(tmp_path), **{**SETTINGS, "shuffle_buffer_size": 0}, max_steps=1
    )
    trainer.train()
    assert result_of(trainer)["losses"][0] != uninterrupted["losses"][0]


def test_an_unreadable_image_stops_with_its_name_or_is_counted(tmp_path, caplog):
    stream = broken_stream(tmp_path, None)
    options = {"unlabeled_images_per_epoch": 4, "num_train_epochs": 1, "eval_strategy": "no", "save_strategy": "no"}
    with pytest.raises(BadImageError, match=r"An image of the unlabeled stream .without a path in Shard 0. cannot be"):
        stream_trainer(tmp_path, stream, **options).train()
    stream_trainer(tmp_path, stream, on_bad_image="skip", **options).train()
    assert caplog.messages[-1] == (
        "Left out of the unlabeled stream, counted anew in every pass: 2 unreadable images, the rest of 0 unreadable "
        "shards; each is named above."
    )


def stream_trainer(tmp_path, stream, train=None, evaluated=None, **kwargs):
    args = AllSparkTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **kwargs)
    train = make_dataset(3, seed=1) if train is None else train
    data = {"train_dataset": train, "unlabeled_dataset": stream, "eval_dataset": evaluated}
    return AllSparkTrainer(small_model(), args, make_image_processor(), **data)


def test_supervised_reads_nothing_but_keeps_the_length(tmp_path):
    def fail():
        raise AssertionError("read")
        yield

    stream = datasets.IterableDataset.from_generator(fail, features=datasets.Features({"image": datasets.Image()}))
    options = {"method": "supervised", "num_train_epochs": 2, "eval_strategy": "no", "save_strategy": "no"}
    trainer = stream_trainer(tmp_path, stream, unlabeled_images_per_epoch=6, **options)
    assert trainer.train().global_step == 6  # 6 images in batches of 2, twice


def test_images_of_an_epoch_are_rounded_up_to_whole_steps(tmp_path, caplog):
    sizes = {"per_device_unlabeled_batch_size": 4, "unlabeled_images_per_epoch": 9}
    args = AllSparkTrainingArguments(output_dir=str(tmp_path), **sizes)
    with caplog.at_level(logging.INFO, "allspark_hf"):
        assert whole_steps(args) == 12
        args.unlabeled_images_per_epoch = 12
        assert whole_steps(args) == 12
    assert caplog.messages == ["An epoch is 12 images of the unlabeled stream: 9, rounded up to whole steps of 4."]


def test_what_cannot_be_checked_is_said_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "allspark_hf"):
        stream_trainer(tmp_path, numbered(3), evaluated=make_dataset(2, seed=3), unlabeled_images_per_epoch=4)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1 and "images of the validation set are not looked for" in messages[0]


def test_bad_streams_are_refused(tmp_path):
    images = {"unlabeled_images_per_epoch": 4}
    labeled = make_dataset(3, seed=1)
    cases = [
        ({"stream": numbered(3)}, "set unlabeled_images_per_epoch"),
        ({"stream": make_dataset(3, seed=2), **images}, "unlabeled_images_per_epoch=4 is for a stream"),
        ({"stream": numbered(3).rename_column("image", "photo"), **images}, "no column 'image'"),
        ({"stream": numbered(3).filter(lambda row: False), **images}, "stream of unlabeled images is empty"),
        (
            {"stream": numbered(3), "train": labeled.to_iterable_dataset(), **images},
            "train_dataset is of type Iterab",
        ),
        (
            {"stream": numbered(3), "evaluated": labeled.to_iterable_dataset(), **images},
            "eval_dataset is of type Iter",
        ),
        ({"stream": numbered(3), "unlabeled_images_per_epoch": 0}, "unlabeled_images_per_epoch=0"),
        ({"stream": numbered(3), "shuffle_buffer_size": -1}, "shuffle_buffer_size=-1"),
    ]
    for kwargs, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            stream_trainer(tmp_path, **kwargs)

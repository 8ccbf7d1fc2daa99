"""A stream of unlabeled images: which image a position is, and that nothing but seed and position decides it."""

import io
import json
import logging
import pickle
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import make_dataset, small_model
from PIL import Image
from run_training import make_trainer, result_of
from torch.utils.data import DataLoader

from allspark_hf import AllSparkTrainer, AllSparkTrainingArguments
from allspark_hf.data.columns import Picture
from allspark_hf.data.lanes import Bookmark, Lanes
from allspark_hf.data.mixed import MixedBatchCollator, MixedBatchSampler, MixedDataset
from allspark_hf.data.reading import BadImageError
from allspark_hf.data.sources.unlabeled import open_unlabeled_stream
from allspark_hf.data.streaming import StreamReader, whole_steps
from allspark_hf.inference.loading import make_image_processor


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (30, 20), (10 * number, 0, 0))


def numbered(num_rows: int, num_shards: int = 1) -> datasets.IterableDataset:
    rows = datasets.Dataset.from_dict({"image": [picture(number) for number in range(num_rows)]})
    return rows.cast_column("image", datasets.Image()).to_iterable_dataset(num_shards=num_shards)


def number_of(example: dict, column: str = "image") -> int:
    return example[column].getpixel((0, 0))[0] // 10


def reader_of(dataset, images_per_epoch: int = 4, seed: int = 1, buffer_size: int = 3, **kwargs) -> StreamReader:
    """Of one process that reads by itself: a position is a place in its lane."""
    return StreamReader(dataset, Lanes(1, images_per_epoch), seed, buffer_size, **kwargs)


def numbers(reader: StreamReader, positions) -> list[int]:
    return [number_of(reader[position], reader.image_column) for position in positions]


def test_without_shuffling_the_passes_follow_each_other_in_order():
    reader = reader_of(numbered(5, num_shards=2), images_per_epoch=3, buffer_size=1)
    assert numbers(reader, range(12)) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert len(reader) == 3


def test_passes_shuffle_shards_and_blocks_anew():
    """9 images in 3 shards, blocks of 4."""
    reader = reader_of(numbered(9, num_shards=3), buffer_size=4, seed=7)
    drawn = numbers(reader, range(27))
    passes = [drawn[:9], drawn[9:18], drawn[18:]]
    for one in passes:
        assert sorted(one) == list(range(9))
        shards = [number // 3 for number in one]  # 3, 1, 2, 2, 1 images of a shard in a block
        assert len(set(shards[:4])) == 2 and len(set(shards[4:8])) == 2 and shards[8] not in shards[:4]
    assert len({tuple(one) for one in passes}) == 3 and len({one[0] // 3 for one in passes}) > 1
    assert numbers(reader_of(numbered(9, num_shards=3), buffer_size=4, seed=8), range(27)) != drawn


def test_a_position_is_one_image_however_it_is_reached(caplog):
    whole = numbers(reader_of(numbered(6)), range(20))
    assert numbers(reader_of(numbered(6)), range(1, 20, 3)) == whole[1::3]
    reader = reader_of(numbered(6))
    with caplog.at_level(logging.WARNING):
        assert numbers(reader, [13, 14]) == whole[13:15] and not caplog.records
        assert numbers(reader, [2, 3]) == whole[2:4]
    (message,) = caplog.messages
    assert message.startswith("Image 2 of lane 0 of the unlabeled stream is asked for after image 14,")


def test_a_copy_for_a_worker_starts_at_the_beginning():
    reader = reader_of(numbered(6))
    whole = numbers(reader, range(8))
    assert numbers(pickle.loads(pickle.dumps(reader)), range(8)) == whole


def count_decoding(monkeypatch) -> list:
    decoded = []
    decode = Picture.decode_example

    def counting(self, value, **kwargs):
        decoded.append(value)
        return decode(self, value, **kwargs)

    monkeypatch.setattr(Picture, "decode_example", counting)
    return decoded


def test_images_passed_over_are_not_decoded(monkeypatch, tmp_path):
    rows = datasets.Dataset.from_dict({"photo": [picture(number) for number in range(8)]})
    rows.cast_column("photo", datasets.Image()).to_parquet(tmp_path / "train.parquet")
    renamed = open_unlabeled_stream(str(tmp_path), image_column="photo")
    decoded = count_decoding(monkeypatch)
    for stream in (numbered(8), renamed):
        reader = reader_of(stream, buffer_size=0)
        decoded.clear()
        assert numbers(reader, [7, 15]) == [7, 7] and len(decoded) == 2


def test_streams_with_unknown_features(tmp_path):
    picture(2).save(tmp_path / "two.png")
    encoded = io.BytesIO()
    picture(3).save(encoded, format="PNG")

    def generate():
        for image in (picture(1), str(tmp_path / "two.png"), encoded.getvalue(), np.asarray(picture(4))):
            yield {"photo": image, "other": 1}

    stream = datasets.IterableDataset.from_generator(generate)
    assert stream.features is None
    assert numbers(reader_of(stream, buffer_size=0, image_column="photo"), range(5)) == [1, 2, 3, 4, 1]


def broken_stream(tmp_path, entry):
    rows = [str(tmp_path / "good.png"), entry, str(tmp_path / "good.png")]
    picture(1).save(rows[0])
    return datasets.Dataset.from_dict({"image": rows}).cast_column("image", datasets.Image()).to_iterable_dataset()


def test_unreadable_images_are_named(tmp_path, caplog):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    stream = broken_stream(tmp_path, str(tmp_path / "bad.png"))
    reader = reader_of(stream, buffer_size=0)
    with pytest.raises(ValueError, match=r"stream \(.*/bad.png in Shard 0\) cannot be read .*--skip_bad_files"):
        numbers(reader, [2, 4])
    assert number_of(reader[5]) == 1
    reader = reader_of(broken_stream(tmp_path, None), buffer_size=0)
    with pytest.raises(ValueError, match=r"\(without a path in .*\) cannot be read \(the entry is empty\)"):
        reader[1]
    assert number_of(reader[2]) == 1
    skipping = reader_of(stream, buffer_size=0, on_bad_image="skip")
    with caplog.at_level(logging.WARNING):
        assert numbers(skipping, range(5)) == [1] * 5
    assert skipping.bookmark == Bookmark(0, index=5, turn=2, used=1, bad_images=2)
    assert len(caplog.messages) == 2 and all("The next image is taken instead." in one for one in caplog.messages)
    nothing = datasets.IterableDataset.from_generator(lambda: iter([{"image": b"no picture"}]))
    with pytest.raises(ValueError, match=r"\(16 images in a row: is the disk still there\?\)"):
        reader_of(nothing, on_bad_image="skip")[0]


def test_streams_without_images_are_refused():
    with pytest.raises(ValueError, match=r"no column 'photo' \(it has image\); rename"):
        reader_of(numbered(2), image_column="photo")
    unknown = datasets.IterableDataset.from_generator(lambda: iter([{"a": 1, "b": 2}]))
    with pytest.raises(ValueError, match=r"no column 'image' \(it has a, b\); rename"):
        reader_of(unknown)[0]
    reader = reader_of(numbered(2).filter(lambda row: False))
    for _ in range(2):
        with pytest.raises(ValueError, match="stream of unlabeled images is empty: give a dataset with at least one"):
            reader[0]


def test_an_epoch_is_the_next_images_of_the_stream():
    sampler = MixedBatchSampler(3, 4, 1, 2, seed=0, unlabeled_stream=True)
    for epoch in (0, 1, 5):
        sampler.set_epoch(epoch)
        draws = [draw for batch in sampler for draw in batch if not draw.labeled]
        assert [draw.row for draw in draws] == [4 * epoch + position for position in range(4)]
        assert [draw.position for draw in draws] == [0, 1, 2, 3]
    mapped = MixedBatchSampler(3, 4, 1, 2, seed=0)
    mapped.set_epoch(5)
    labeled = [[d for batch in one for d in batch if d.labeled] for one in (sampler, mapped)]
    assert labeled[0] == labeled[1]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_each_worker_draws_from_its_own_lane(workers):
    """Eight images in two shards, five batches of two: epochs end within passes, and at the first lane again."""
    lanes, numbered_8 = Lanes(2, 5, max(workers, 1)), numbered(8, num_shards=2)
    sampler = MixedBatchSampler(4, 10, 1, 2, seed=5, unlabeled_stream=True)
    dataset = mixed_dataset(StreamReader(numbered_8, lanes, seed=5, buffer_size=3))
    options = {"num_workers": workers, "persistent_workers": workers > 0}
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=MixedBatchCollator(), **options)
    reference = StreamReader(numbered_8, lanes, seed=5, buffer_size=3)
    of_lane = [
        [position for position in range(30) if lanes.find(position)[0] == lane] for lane in range(lanes.workers)
    ]
    expected = {
        position: number for one in of_lane for position, number in zip(one, numbers(reference, one), strict=True)
    }
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(loader)
        pixels = torch.cat([batch["unlabeled_pixel_values"] for batch in batches])
        drawn = (pixels[:, 0].amax(dim=(1, 2)) * 127.5 + 127.5).round().int() // 10
        assert drawn.tolist() == [expected[position] for position in range(10 * epoch, 10 * epoch + 10)]
        assert [batch["bookmark"].lane for batch in batches] == [number % lanes.workers for number in range(5)]
    assert sum(batch["bookmark"].index for batch in batches[-lanes.workers :]) == 30


@pytest.mark.parametrize(("shards", "reads"), [(8, 1), (4, 1), (3, 2), (1, 4)])
def test_lanes_share_out_a_pass(shards, reads):
    """24 images for 2 processes x 2 workers, of which each is drawn once, and from any bookmark on as without it."""
    stream, drawn = numbered(24, shards), []
    for process in range(2):
        lanes = Lanes(2, 4, workers=2, processes=2, process=process)
        for lane in range(2):
            own = [
                position for position in range(96) if position // 2 % 2 == process and lanes.find(position)[0] == lane
            ]
            assert [lanes.find(position)[1] for position in own] == list(range(24))
            reader, images, marks = StreamReader(stream, lanes, 3, 4), [], [Bookmark(lane)]
            assert reader.reads_per_image == reads
            for position in own:
                images += numbers(reader, [position])
                marks.append(reader.bookmark)
            for count in range(0, 24, 5):
                opened = StreamReader(stream, lanes, 3, 4, bookmarks={lane: marks[count]})
                assert numbers(opened, own[count:]) == images[count:]
            drawn += images[:6]
    if shards != 3:  # where one lane has more of a pass than another, it is through with it later
        assert sorted(drawn) == list(range(24))


def mixed_dataset(unlabeled):
    settings = {"crop": (16, 24), "seed": 5, "num_labels": 3, "long_side": None}
    halves = {"labeled": make_dataset(4), "unlabeled": unlabeled}
    return MixedDataset(**halves, **settings, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))


def test_augmentation_is_that_of_a_dataset_in_the_same_order():
    rows = datasets.Dataset.from_list(list(numbered(6)), features=numbered(6).features)
    streamed = mixed_dataset(reader_of(numbered(6), 6, buffer_size=0))
    mapped = mixed_dataset(rows)
    for batch in MixedBatchSampler(4, 6, 1, 2, seed=5, unlabeled_stream=True):
        for draw in batch:
            assert torch.equal(streamed[draw]["pixel_values"], mapped[draw]["pixel_values"])
            assert ("bookmark" in streamed[draw]) == (not draw.labeled)


# ---- The trainer ----


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_workers():
    """Workers that have read a stream do not end when told to, and are killed after this time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)
        yield


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
        ({"stream": numbered(3), "train": labeled.to_iterable_dataset(), **images}, "train_dataset is an Iterable"),
        ({"stream": numbered(3), "evaluated": labeled.to_iterable_dataset(), **images}, "eval_dataset is an Iterable"),
        ({"stream": numbered(3), "unlabeled_images_per_epoch": 0}, "unlabeled_images_per_epoch=0"),
        ({"stream": numbered(3), "shuffle_buffer_size": -1}, "shuffle_buffer_size=-1"),
    ]
    for kwargs, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            stream_trainer(tmp_path, **kwargs)

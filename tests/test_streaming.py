"""A stream of unlabeled images: which image a position is, and that nothing but seed and position decides it."""

import io
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
from allspark_hf.data.mixed import MixedBatchCollator, MixedBatchSampler, MixedDataset
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


def numbers(reader: StreamReader, positions) -> list[int]:
    return [number_of(reader[position], reader.image_column) for position in positions]


def test_without_shuffling_the_passes_follow_each_other_in_order():
    reader = StreamReader(numbered(5, num_shards=2), images_per_epoch=3, seed=7, buffer_size=1)
    assert numbers(reader, range(12)) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert len(reader) == 3


def test_shuffled_passes_are_those_of_datasets():
    expected = []
    for number in range(3):
        shuffled = numbered(9, num_shards=3).shuffle(seed=7, buffer_size=4)
        shuffled.set_epoch(number)
        expected.append([number_of(example) for example in shuffled])
        assert sorted(expected[-1]) == list(range(9))
    assert len({tuple(one) for one in expected}) == 3
    reader = StreamReader(numbered(9, num_shards=3), images_per_epoch=5, seed=7, buffer_size=4)
    expected = [number for one in expected for number in one]
    assert numbers(reader, range(27)) == expected
    other_seed = StreamReader(numbered(9, num_shards=3), images_per_epoch=5, seed=8, buffer_size=4)
    assert numbers(other_seed, range(27)) != expected


def test_a_position_is_one_image_however_it_is_reached(caplog):
    whole = numbers(StreamReader(numbered(6), 4, seed=1, buffer_size=3), range(20))
    assert numbers(StreamReader(numbered(6), 4, seed=1, buffer_size=3), range(1, 20, 3)) == whole[1::3]
    reader = StreamReader(numbered(6), 4, seed=1, buffer_size=3)
    with caplog.at_level(logging.WARNING):
        assert numbers(reader, [13, 14]) == whole[13:15] and not caplog.records
        assert numbers(reader, [2, 3]) == whole[2:4]
    (message,) = caplog.messages
    assert message.startswith("Image 2 of the unlabeled stream is asked for after")


def test_a_copy_for_a_worker_starts_at_the_beginning():
    reader = StreamReader(numbered(6), 4, seed=1, buffer_size=3)
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
        reader = StreamReader(stream, 4, seed=1, buffer_size=0)
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
    assert numbers(StreamReader(stream, 4, 0, buffer_size=0, image_column="photo"), range(5)) == [1, 2, 3, 4, 1]


def broken_stream(tmp_path, entry):
    rows = [str(tmp_path / "good.png"), entry, str(tmp_path / "good.png")]
    picture(1).save(rows[0])
    return datasets.Dataset.from_dict({"image": rows}).cast_column("image", datasets.Image()).to_iterable_dataset()


def test_unreadable_images_are_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    reader = StreamReader(broken_stream(tmp_path, str(tmp_path / "bad.png")), 2, 0, buffer_size=0)
    with pytest.raises(ValueError, match=r"Image 4 of the unlabeled stream \(.*/bad.png\) cannot be read"):
        numbers(reader, [2, 4])
    assert number_of(reader[5]) == 1
    reader = StreamReader(broken_stream(tmp_path, None), 2, 0, buffer_size=0)
    with pytest.raises(ValueError, match=r"Image 1 of .* \(without a path\) cannot be read \(the entry is empty\)"):
        reader[1]
    assert number_of(reader[2]) == 1


def test_streams_without_images_are_refused():
    with pytest.raises(ValueError, match=r"no column 'photo' \(it has image\); rename"):
        StreamReader(numbered(2), 2, 0, image_column="photo")
    unknown = datasets.IterableDataset.from_generator(lambda: iter([{"a": 1, "b": 2}]))
    with pytest.raises(ValueError, match=r"no column 'image' \(it has a, b\); rename"):
        StreamReader(unknown, 2, 0)[0]
    reader = StreamReader(numbered(2).filter(lambda row: False), 2, 0)
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


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_draw_what_the_stream_has_in_order(workers):
    """Seven images in two shards, twelve per epoch: passes and epochs end at different places."""
    sampler = MixedBatchSampler(4, 12, 1, 3, seed=5, unlabeled_stream=True)
    dataset = mixed_dataset(StreamReader(numbered(7, num_shards=2), 12, seed=5, buffer_size=3))
    options = {"num_workers": workers, "persistent_workers": workers > 0}
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=MixedBatchCollator(), **options)
    reference = StreamReader(numbered(7, num_shards=2), 12, seed=5, buffer_size=3)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        pixels = torch.cat([batch["unlabeled_pixel_values"] for batch in loader])
        drawn = (pixels[:, 0].amax(dim=(1, 2)) * 127.5 + 127.5).round().int() // 10
        assert drawn.tolist() == numbers(reference, range(12 * epoch, 12 * epoch + 12))


def mixed_dataset(unlabeled):
    settings = {"crop": (16, 24), "seed": 5, "num_labels": 3, "long_side": None}
    halves = {"labeled": make_dataset(4), "unlabeled": unlabeled}
    return MixedDataset(**halves, **settings, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))


def test_augmentation_is_that_of_a_dataset_in_the_same_order():
    rows = datasets.Dataset.from_list(list(numbered(6)), features=numbered(6).features)
    streamed = mixed_dataset(StreamReader(numbered(6), 6, seed=5, buffer_size=0))
    mapped = mixed_dataset(rows)
    for batch in MixedBatchSampler(4, 6, 1, 2, seed=5, unlabeled_stream=True):
        for draw in batch:
            assert torch.equal(streamed[draw]["pixel_values"], mapped[draw]["pixel_values"])


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


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_run_equals_the_uninterrupted(tmp_path, folder, uninterrupted, workers):
    settings = {**SETTINGS, "output_dir": str(tmp_path), "dataloader_num_workers": workers}
    if workers:
        trainer = make_trainer(small_model(), **settings)
        trainer.train()
        assert trainer.get_train_dataloader().persistent_workers  # or each epoch would read from the stream's start
        assert_same(result_of(trainer), uninterrupted, last=9)
    else:
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    torch.manual_seed(99)  # the resumed process has drawn other numbers before
    resumed = make_trainer(small_model(seed=5), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert_same(result_of(resumed), uninterrupted, last=5)


def test_the_stream_decides_the_losses(tmp_path, uninterrupted):
    """So that the comparisons above can fail."""
    trainer = make_trainer(
        small_model(), output_dir=str(tmp_path), **{**SETTINGS, "shuffle_buffer_size": 0}, max_steps=1
    )
    trainer.train()
    assert result_of(trainer)["losses"][0] != uninterrupted["losses"][0]


def test_a_stream_cannot_skip_images(tmp_path):
    settings = {"stream": True, "unlabeled_images_per_epoch": 4, "output_dir": str(tmp_path)}
    with pytest.raises(ValueError, match="on_bad_image='skip' takes the next image, but a stream"):
        make_trainer(small_model(), **settings, on_bad_image="skip")


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

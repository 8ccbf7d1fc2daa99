"""A stream of unlabeled images: which image a position is, and that nothing but seed and position decides it."""

import io
import logging
import pickle

import datasets
import numpy as np
import pytest
import torch
from conftest import make_dataset
from PIL import Image
from torch.utils.data import DataLoader

from allspark_hf.data.columns import Picture
from allspark_hf.data.lanes import Bookmark, Lanes
from allspark_hf.data.mixed import MixedBatchCollator, MixedBatchSampler, MixedDataset
from allspark_hf.data.sources.unlabeled import open_unlabeled_stream
from allspark_hf.data.streaming import StreamReader


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_workers():
    """Workers that have read a stream do not end when told to, and are killed after this time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)
        yield


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

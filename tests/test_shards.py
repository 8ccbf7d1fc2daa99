"""Streams of files: tar archives and parquet, patterns and lists, the Hub, and files that are broken."""

import io
import logging
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from hub_server import HubServer
from huggingface_hub import CommitOperationAdd, HfApi
from PIL import Image
from torch.utils.data import DataLoader

from allspark_hf.data.lanes import Lanes
from allspark_hf.data.shards import names_shards, shard_files
from allspark_hf.data.sources.unlabeled import open_unlabeled_stream, read_unlabeled_dataset
from allspark_hf.data.streaming import StreamReader


def png(number: int) -> bytes:
    """An image whose pixels are noise, so that no two blocks of 1024 bytes are empty."""
    pixels = np.random.default_rng(number).integers(256, size=(20, 30, 3), dtype=np.uint8)
    pixels[0, 0] = number
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def write_tar(path: Path, numbers) -> Path:
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            entry = tarfile.TarInfo(f"{number:03d}.png")
            entry.size = len(png(number))
            archive.addfile(entry, io.BytesIO(png(number)))
    return path


def write_parquet(path: Path, numbers) -> Path:
    rows = datasets.Dataset.from_dict({"photo": [{"bytes": png(number), "path": None} for number in numbers]})
    rows.cast_column("photo", datasets.Image()).to_parquet(path, batch_size=2)
    return path


WRITERS = {"tar": write_tar, "parquet": write_parquet}


@pytest.fixture(params=WRITERS)
def shards(request, tmp_path) -> list[Path]:
    """Three of four images each."""
    return [WRITERS[request.param](tmp_path / f"{n}.{request.param}", range(4 * n, 4 * n + 4)) for n in range(3)]


def reader_of(name, skip: bool = False, workers: int = 1, buffer_size: int = 0) -> StreamReader:
    stream = open_unlabeled_stream(str(name), skip_bad_files=skip)
    return StreamReader(stream, Lanes(1, 12, workers), 0, buffer_size, on_bad_image="skip" if skip else "stop")


def numbers(reader: StreamReader, count: int = 12) -> list[int]:
    return [reader[position]["image"].getpixel((0, 0))[0] for position in range(count)]


def test_patterns_and_lists(shards, tmp_path):
    pattern = tmp_path / f"*{shards[0].suffix}"
    assert numbers(reader_of(pattern)) == list(range(12))
    assert numbers(reader_of(shards[1]), 5) == [4, 5, 6, 7, 4]
    (tmp_path / "list.txt").write_text(f"{shards[2].name}\n\n{shards[0]}\n", encoding="utf-8-sig")  # Windows's mark
    assert shard_files(str(tmp_path / "list.txt")) == [str(shards[2]), str(shards[0])]
    assert numbers(reader_of(tmp_path / "list.txt"), 8) == [8, 9, 10, 11, 0, 1, 2, 3]
    shuffled = numbers(reader_of(pattern, buffer_size=4))
    assert sorted(shuffled) == list(range(12)) != shuffled
    assert [len({number // 4 for number in shuffled[4 * n : 4 * n + 4]}) for n in range(3)] == [1, 1, 1]
    with pytest.raises(ValueError, match="have no configuration 'small': leave it out"):
        open_unlabeled_stream(str(pattern), "small")
    with pytest.raises(ValueError, match="are read as a stream: give --unlabeled_streaming as well"):
        read_unlabeled_dataset(str(pattern))


def test_names_that_are_no_shards(tmp_path):
    write_tar(tmp_path / "a.tar", [1])
    write_parquet(tmp_path / "b.parquet", [2])
    (tmp_path / "folder.tar").mkdir()
    assert not names_shards(str(tmp_path / "folder.tar")) and not names_shards("user/name")
    (tmp_path / "list.txt").write_text("a.tar\nb.parquet\n")
    for name, sentence in (
        ("none-*.tar", "There is no shard .*none-.*: give the path"),
        ("list.txt", "names 2 shards, which must all be tar archives or all parquet files"),
        ("missing.txt", "There is no list of shards .*missing.txt: give a text file"),
    ):
        with pytest.raises(ValueError, match=sentence):
            open_unlabeled_stream(str(tmp_path / name))


def test_parquet_is_cut_where_there_are_few_files(tmp_path, caplog):
    """Into row groups, two of two rows in each file."""
    for n in range(2):
        write_parquet(tmp_path / f"{n}.parquet", range(4 * n, 4 * n + 4))
    assert [reader_of(tmp_path / "*.parquet", workers=n).num_shards for n in (1, 2, 3, 4)] == [2, 2, 4, 4]
    assert reader_of(tmp_path / "*.parquet", workers=4).reads_per_image == 1
    cut(tmp_path / "1.parquet")
    with caplog.at_level(logging.WARNING):
        assert reader_of(tmp_path / "*.parquet", skip=True, workers=4).reads_per_image == 2
    assert any("cannot be cut into smaller ones (Could not open Parquet" in message for message in caplog.messages)


def cut(path: Path, behind: int | None = None):
    """A number of bytes behind the header of its third image, or before all of its last images."""
    length = path.stat().st_size // 2
    if path.suffix == ".tar":
        with tarfile.open(path) as archive:
            length = archive.getmembers()[2].offset + (1000 if behind is None else behind)
    path.write_bytes(path.read_bytes()[:length])


def test_a_broken_shard_is_named_and_left_out_on_request(shards, tmp_path, caplog):
    cut(shards[1])
    pattern = tmp_path / f"*{shards[0].suffix}"
    with pytest.raises(
        ValueError, match=rf"{shards[1]} of the unlabeled stream cannot be read from row \d on \(.*skip_bad_"
    ):
        numbers(reader_of(pattern))
    reader = reader_of(pattern, skip=True)
    with caplog.at_level(logging.WARNING):
        drawn = numbers(reader, 24)
    left = {*range(12)} - ({6, 7} if shards[1].suffix == ".tar" else {4, 5, 6, 7})
    assert set(drawn) == left and len(set(drawn[: len(left)])) == len(left)
    (first, *_) = [one for one in caplog.messages if "is left out of this pass" in one]
    assert first.startswith(f"{shards[1]} of the unlabeled stream cannot be read from row")
    assert reader.bookmark.bad_shards == len([one for one in caplog.messages if "out of this pass" in one]) >= 2


def test_a_first_shard_that_is_broken(shards, tmp_path):
    """Which datasets reads the columns from."""
    shards[0].write_bytes(b"nothing")
    pattern = tmp_path / f"*{shards[0].suffix}"
    with pytest.raises(ValueError, match=rf"The shard {shards[0]} cannot be read \(.*--skip_bad_files"):
        open_unlabeled_stream(str(pattern))
    reader = reader_of(pattern, skip=True)
    assert numbers(reader, 9) == [*range(4, 12), 4] and reader.bookmark.bad_shards == 1
    for shard in shards:
        shard.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=rf"The shard {shards[2]} cannot be read"):
        open_unlabeled_stream(str(pattern), skip_bad_files=True)


@pytest.mark.parametrize("behind", [0, 100])
def test_an_archive_that_is_cut_between_images(tmp_path, behind):
    """Where tarfile sees nothing but an end."""
    path = write_tar(tmp_path / "0.tar", range(4))
    cut(path, behind)
    reader = reader_of(path)
    assert numbers(reader, 2) == [0, 1]
    with pytest.raises(ValueError, match=r"0.tar .* from row 2 on \(it has no end, so images may be missing\)"):
        reader[2]


def test_shards_on_the_hub(tmp_path, monkeypatch):
    with HubServer() as server:
        server.use_here(monkeypatch, server.token)
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", server.url)
        HfApi().create_repo("shards")
        paths = [write_tar(tmp_path / f"{n}.tar", range(4 * n, 4 * n + 4)) for n in range(2)]
        cut(paths[1], behind=0)
        files = {path.name: path.read_bytes() for path in paths}
        HfApi().create_commit(
            "tester/shards", [CommitOperationAdd(*file) for file in files.items()], commit_message="a"
        )
        reader = reader_of("hf://tester/shards/*.tar", workers=2)
        loader = DataLoader(reader, batch_sampler=[[n] for n in range(4)], num_workers=2, collate_fn=list)
        assert [batch[0]["image"].getpixel((0, 0))[0] for batch in loader] == [0, 4, 1, 5]
        reader = reader_of("hf://tester/shards/*.tar")
        assert numbers(reader, 6) == [*range(6)]
        with pytest.raises(ValueError, match=r"hf://tester/shards/1.tar of .* from row 2 on \(it has no end"):
            reader[6]

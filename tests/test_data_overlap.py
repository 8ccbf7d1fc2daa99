import io
from pathlib import Path

import datasets
import PIL.Image
import pytest
from layout_folders import load_folder

from allspark_hf.data import find_overlap
from allspark_hf.data import overlap as overlap_module


CAMVID = Path(__file__).resolve().parents[2] / "shared" / "data" / "camvid"


def encoded(color: int, size: tuple[int, int] = (6, 4)) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("L", size, color).save(buffer, "BMP")
    return buffer.getvalue()


def from_paths(folder: Path, contents: dict[str, bytes], with_ids: bool = True) -> datasets.Dataset:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    columns = {"image": [str(folder / name) for name in contents]}
    if with_ids:
        columns["id"] = [Path(name).stem for name in contents]
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def from_bytes(contents: list[bytes], column: str = "image") -> datasets.Dataset:
    features = datasets.Features({column: datasets.Image()})
    return datasets.Dataset.from_dict({column: contents}, features=features)


def refuse(batch):
    raise AssertionError("a transform must not run")


def test_same_bytes_under_other_names(tmp_path):
    a = from_paths(tmp_path / "a", {"x.bmp": encoded(1), "y.bmp": encoded(2), "z.bmp": encoded(3)})
    b = from_paths(tmp_path / "b", {"copy.jpg": encoded(3), "y.bmp": encoded(9), "other.bmp": encoded(1)})
    assert find_overlap(a, b) == [("x", "other"), ("z", "copy")]
    assert find_overlap(b, a) == [("copy", "z"), ("other", "x")]


def test_every_pair_of_duplicates_is_named(tmp_path):
    a = from_paths(tmp_path / "a", {"p.bmp": encoded(1), "q.bmp": encoded(1)})
    b = from_paths(tmp_path / "b", {"r.bmp": encoded(1), "s.bmp": encoded(1)})
    assert find_overlap(a, b) == [("p", "r"), ("p", "s"), ("q", "r"), ("q", "s")]


def test_paths_and_bytes_are_compared_and_named(tmp_path):
    a = from_paths(tmp_path / "a", {"x.bmp": encoded(1), "y.bmp": encoded(2)}, with_ids=False)
    b = from_bytes([encoded(7), encoded(2)])
    assert find_overlap(a, b) == [(str(tmp_path / "a" / "y.bmp"), "1")]
    assert find_overlap(b, a) == [("1", str(tmp_path / "a" / "y.bmp"))]


def test_no_overlap_and_empty_sets(tmp_path):
    a = from_paths(tmp_path / "a", {"x.bmp": encoded(1)})
    assert find_overlap(a, from_bytes([encoded(2)])) == []
    assert find_overlap(a, a.select([])) == []
    assert find_overlap(a.select([]), a) == []


def test_pixels_are_not_decoded_and_transforms_do_not_run(tmp_path):
    a = from_paths(tmp_path / "a", {"x.jpg": b"not a picture at all"}).with_transform(refuse)
    b = from_bytes([b"not a picture at all"]).with_format("numpy")
    assert find_overlap(a, b) == [("x", "0")]


def test_only_files_of_equal_size_are_hashed(tmp_path, monkeypatch):
    a = from_bytes([encoded(1), encoded(1, (50, 50)), encoded(1, (60, 60))])
    b = from_bytes([encoded(1), encoded(2), encoded(1, (70, 70))])
    hashed = []
    original = overlap_module._sha256
    monkeypatch.setattr(overlap_module, "_sha256", lambda stored: hashed.append(1) or original(stored))
    assert find_overlap(a, b) == [("0", "0")]
    assert len(hashed) == 3


def test_other_column(tmp_path):
    a, b = from_bytes([encoded(1)], "picture"), from_bytes([encoded(1)], "picture")
    assert find_overlap(a, b, image_column="picture") == [("0", "0")]
    with pytest.raises(ValueError, match=r"no column 'image' \(it has picture\); rename"):
        find_overlap(a, b)


def test_rows_that_cannot_be_compared(tmp_path):
    a = from_paths(tmp_path / "a", {"x.bmp": encoded(1), "y.bmp": encoded(2)})
    (tmp_path / "a" / "y.bmp").unlink()
    with pytest.raises(ValueError, match=r"image of row y has neither bytes nor a local file \(path: .*y\.bmp\)"):
        find_overlap(a, a)
    with pytest.raises(ValueError, match=r"image of row 1 has neither bytes nor a local file \(path: None\)"):
        find_overlap(from_bytes([encoded(1)]), from_bytes([encoded(1), None]))
    with pytest.raises(ValueError, match=r"column 'image' holds Value.*not images; cast it"):
        find_overlap(datasets.Dataset.from_dict({"image": ["x"]}), a)


@pytest.mark.skipif(not CAMVID.is_dir(), reason=f"CamVid is not at {CAMVID}")
def test_camvid_training_and_validation_images_differ():
    data = load_folder(CAMVID)
    assert find_overlap(data.labeled, data.validation) == []
    assert len(find_overlap(data.labeled, data.labeled)) == 367

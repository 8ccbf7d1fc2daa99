"""Many images from Python: `segment` of an iterable, and [`BatchSegmenter`] as a step of a pipeline."""

import pickle
import weakref

import datasets
import numpy as np
import pytest
from datasets.fingerprint import Hasher
from picture_files import deep_png
from PIL import Image
from served_model import as_bytes, picture
from test_segmentation import empty_cache, loads, model_dir, save_model  # noqa: F401

import allspark_hf
from allspark_hf import BatchSegmenter
from allspark_hf.data.pixels import open_image
from allspark_hf.inference.loading import load_trained
from allspark_hf.inference.prediction import predict_mask


SIZES = [(50, 71), (64, 64), (40, 90)]


@pytest.fixture(scope="module")
def expected(model_dir):  # noqa: F811
    model = load_trained(str(model_dir))
    return [predict_mask(*model, image) for image in pictures()]


def pictures() -> list[Image.Image]:
    return [picture(index, size) for index, size in enumerate(SIZES)]


def test_an_iterable_is_taken_one_by_one(model_dir, expected, loads):  # noqa: F811
    taken, alive = [], weakref.WeakSet()

    def images():
        for number, image in enumerate(pictures()):
            taken.append(number)
            yield np.asarray(image)

    results = allspark_hf.segment(model_dir, images())
    assert len(loads) == 1 and taken == []
    for number, mask in enumerate(expected):
        result = next(results)
        alive.add(result)
        assert taken == [*range(number + 1)]
        np.testing.assert_array_equal(result.mask, mask)
    del result
    assert next(results, None) is None and not alive  # nothing is kept
    assert isinstance(allspark_hf.segment(model_dir, pictures()), list)
    column = datasets.Dataset.from_dict({"image": pictures()})["image"]
    masks = [result.mask for result in allspark_hf.segment(model_dir, column)]
    assert all(map(np.array_equal, masks, expected)) and len(masks) == 3


def test_a_bad_image_of_an_iterable_comes_after_the_good_ones(model_dir, tmp_path):  # noqa: F811
    results = allspark_hf.segment(model_dir, iter([picture(), tmp_path / "absent.png", picture()]))
    assert next(results).mask.shape == (50, 71)
    with pytest.raises(ValueError, match=r"^Image 2 of those to segment: There is no file .*absent\.png"):
        next(results)
    with pytest.raises(ValueError, match="no folder"):  # before the first image is asked for
        allspark_hf.segment(tmp_path / "absent", iter([]))


def test_map_of_datasets(model_dir, expected, loads):  # noqa: F811
    dataset = datasets.Dataset.from_dict({"image": pictures(), "id": ["a", "b", "c"]})
    segmented = dataset.map(BatchSegmenter(model_dir), batched=True, batch_size=2)
    assert segmented.column_names == ["image", "id", "mask", "shares"] and len(loads) == 1
    assert segmented.features["image"] == dataset.features["image"]
    assert segmented.cast_column("mask", datasets.Image(decode=False))[0]["mask"]["bytes"].startswith(b"\x89PNG")
    for row, mask in zip(segmented, expected, strict=True):
        assert row["mask"].mode == "L"
        np.testing.assert_array_equal(np.asarray(row["mask"]), mask)
        assert row["shares"] == pytest.approx(np.bincount(mask.ravel(), minlength=4) / mask.size)
    # The same from the cache.
    again = dataset.map(BatchSegmenter(model_dir), batched=True, batch_size=2)
    assert again._fingerprint == segmented._fingerprint


def test_images_are_read_as_stored(tmp_path):
    """16-bit colors in a narrow range, of which `datasets` alone would leave one or two levels."""
    folder = save_model(tmp_path / "model")
    model, image_processor = load_trained(str(folder))
    model.config.image_range = [1000, 2000]
    model.save_pretrained(folder)
    (tmp_path / "a.png").write_bytes(deep_png(np.asarray(picture()).astype(np.uint16) * 3 + 1100))
    dataset = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.png")]}).cast_column("image", datasets.Image())
    (row,) = dataset.map(BatchSegmenter(folder), batched=True)
    with open_image(tmp_path / "a.png") as opened:
        mask = predict_mask(model, image_processor, opened)
    np.testing.assert_array_equal(np.asarray(row["mask"]), mask)
    assert len(np.unique(mask)) > 1


def test_batches_of_arrays_and_of_files(model_dir, expected):  # noqa: F811
    """As Ray Data hands them: in arrays, of numbers where images have one size, else of objects."""
    segmenter = BatchSegmenter(model_dir, image_column="bytes", keep=["path"])
    files = np.array([as_bytes(image) for image in pictures()], dtype=object)
    paths = np.array(["a", "b", "c"], dtype=object)
    result = segmenter({"bytes": files, "path": paths, "other": paths})
    assert list(result) == ["path", "mask", "shares"] and result["path"] is paths
    for mask, share, right in zip(result["mask"], result["shares"], expected, strict=True):
        np.testing.assert_array_equal(mask, right)
        assert mask.dtype == np.uint8 and sum(share) == pytest.approx(1)
    same_size = np.stack([np.asarray(pictures()[0])] * 2)
    assert [*map(np.shape, BatchSegmenter(model_dir)({"image": same_size})["mask"])] == [(50, 71)] * 2


def test_it_is_pickled_by_its_model_and_arguments(model_dir, tmp_path, loads):  # noqa: F811
    segmenter = BatchSegmenter(model_dir)
    before = Hasher.hash(segmenter)
    segmenter({"image": [picture()]})
    assert len(pickle.dumps(segmenter)) < 2000 and Hasher.hash(segmenter) == before
    twin = pickle.loads(pickle.dumps(segmenter))
    assert Hasher.hash(twin) == before and twin({"image": [picture()]}).keys() == {"mask", "shares"}
    assert len(loads) == 1
    assert Hasher.hash(BatchSegmenter(model_dir, keep=["id"])) != before
    first = Hasher.hash(BatchSegmenter(save_model(tmp_path / "other")))
    assert Hasher.hash(BatchSegmenter(save_model(tmp_path / "other", seed=1))) != first != before  # trained anew


def test_wrong_batches(model_dir, tmp_path):  # noqa: F811
    segmenter = BatchSegmenter(model_dir)
    with pytest.raises(ValueError, match=r"no column 'image' \(it has photo\); name them with image_column"):
        segmenter({"photo": [picture()]})
    with pytest.raises(ValueError, match=r"a column 'mask' already.*rename_column\('mask'"):
        segmenter({"image": [picture()], "mask": [None]})
    with pytest.raises(ValueError, match="Image 2 of those to segment: An image is of type NoneType"):
        segmenter({"image": [picture(), None]})
    with pytest.raises(ValueError, match="type tuple, but a folder or Hub id"):
        BatchSegmenter(load_trained(str(model_dir)))
    with pytest.raises(ValueError, match="There is no folder"):
        BatchSegmenter(tmp_path / "absent")

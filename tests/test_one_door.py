"""Every way to the model shows it the same pixels of one file, here 12-bit colors turned by EXIF, on a range found."""

import io
import json
import logging
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from conftest import NO_DROPOUT, small_model
from layout_folders import rotated_exif
from mask_files import chunk, png
from picture_files import deep_png
from PIL import Image
from published_model import publish
from served_model import load
from test_predict import run

import allspark_hf
from allspark_hf.cli.models import class_fields
from allspark_hf.data import DataArguments, Reading, find_data, load_data, pixels
from allspark_hf.data.columns import exact_columns
from allspark_hf.data.lanes import Lanes
from allspark_hf.data.mixed import Draw, MixedDataset
from allspark_hf.data.streaming import StreamReader
from allspark_hf.data.summary import find_image_range
from allspark_hf.evaluation.evaluator import EvaluationDataset
from allspark_hf.figures.crops import crop_row
from allspark_hf.figures.predictions import compare_predictions
from allspark_hf.inference.loading import make_image_processor
from allspark_hf.training.arguments import AllSparkTrainingArguments
from allspark_hf.training.checks import check_contents


sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts" / "space"))
import segmenter


NUM_IMAGES = {"train": 3, "val": 2}


def stored(seed: int) -> np.ndarray:
    """uint16 (48, 64, 3), upright; 100 to 4000 with a few pixels that glow."""
    values = np.random.default_rng(seed).integers(100, 4001, size=(48, 64, 3)).astype(np.uint16)
    values[:20, :20], values[-20:, -20:] = 100, 4000
    values[30, 30] = 65535
    return values


def shown(values: np.ndarray) -> np.ndarray:
    """What a model should see: 100 black, 4000 white."""
    return ((values.clip(100, 4000).astype(int) - 100) * 255 + 1950) // 3900


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Photos stored lying on their side, with upright masks."""
    root, seed = tmp_path_factory.mktemp("data"), 0
    for split, count in NUM_IMAGES.items():
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            lying = np.ascontiguousarray(np.rot90(stored(seed)))
            content = deep_png(lying, chunk(b"eXIf", rotated_exif().tobytes()[6:]))
            (root / "images" / split / f"i{index}.png").write_bytes(content)
            (root / "masks" / split / f"i{index}.png").write_bytes(png(np.indices((48, 64))[0] // 24, 8))
            seed += 1
    return root


@pytest.fixture(scope="module")
def model(folder):
    fields = class_fields(load_data(DataArguments(data_dir=str(folder))))
    return small_model(num_labels=2, image_range=fields["image_range"], crop_size=[48, 64], **NO_DROPOUT).eval()


@pytest.fixture(scope="module")
def repository(model, tmp_path_factory) -> Path:
    return publish(tmp_path_factory.mktemp("repository"), model, make_image_processor())


def validation(folder) -> datasets.Dataset:
    """Rows as `datasets` alone would read them."""
    files = {kind: [str(folder / f"{kind}s/val/i{index}.png") for index in range(2)] for kind in ("image", "mask")}
    data = datasets.Dataset.from_dict({"image": files["image"], "label": files["mask"]})
    return data.cast_column("image", datasets.Image()).cast_column("label", datasets.Image())


def test_the_check_finds_the_range_and_says_so(folder, caplog, model):
    with caplog.at_level(logging.INFO):
        report = load_data(DataArguments(data_dir=str(folder)))
    assert report.reading.image_range == [100, 4000] == class_fields(report)["image_range"] == model.config.image_range
    assert "5 images have 16 bits: in all of this data set, 100 becomes black and 4000 white" in caplog.text


def test_the_trainer_finds_the_same_range_from_python(folder):
    """In rows as `datasets` alone reads them, on which nothing was checked before."""
    rows = validation(folder)
    config = small_model(num_labels=2, crop_size=[48, 64]).config
    args = AllSparkTrainingArguments(output_dir="unused", method="supervised", use_cpu=True, label_column_name="label")
    check_contents(args, config, None, rows, rows, None)
    assert config.image_range == find_image_range([rows]) == [100, 4000]
    config.image_range = [0, 4095]  # the user's choice stays
    check_contents(args, config, None, rows, rows, None)
    assert config.image_range == [0, 4095]


def test_the_range_is_saved_with_the_model(model, repository):
    assert json.loads((repository / "config.json").read_text())["image_range"] == [100, 4000]


def test_training_evaluation_and_figures(folder, model):
    rows, processor, expected = validation(folder), make_image_processor(), shown(stored(3))
    mixed = MixedDataset(rows, rows, (48, 64), 0, 2, None, (0, 0, 0), (1, 1, 1), reading=Reading([100, 4000]))
    for labeled in (True, False):
        image, label = mixed._read(Draw(labeled, 0, 0, 0))
        np.testing.assert_array_equal(np.asarray(image), expected)
        assert label.shape == (48, 64)
    samples = EvaluationDataset(rows, processor, 2, reading=Reading([100, 4000]))
    processed = processor(images=Image.fromarray(expected.astype(np.uint8)), return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(samples[0]["pixel_values"].numpy(), processed)
    stream = StreamReader(rows.to_iterable_dataset(), Lanes(1, 2), 0, buffer_size=0, reading=Reading([100, 4000]))
    np.testing.assert_array_equal(np.asarray(stream[0]["image"]), expected)
    found = find_data(DataArguments(data_dir=str(folder))).validation
    np.testing.assert_array_equal(crop_row(found, 0, processor, model.config).picture, expected)
    arrays = compare_predictions({"m": (model, processor)}, [found[0]])
    np.testing.assert_array_equal(arrays["picture_0"], expected)


def test_segment_predict_endpoint_and_space(folder, model, repository, tmp_path, monkeypatch, capsys):
    file, expected = folder / "images/val/i0.png", shown(stored(3))
    given = [str(file), {"bytes": file.read_bytes(), "path": None}, {"bytes": None, "path": str(file)}, stored(3)]
    with Image.open(file) as opened:
        results = allspark_hf.segment(str(repository), [*given, opened])
    for result in results:
        np.testing.assert_array_equal(np.asarray(result.image), expected)
    command = ("--model", repository, "--input", file, "--output_dir", tmp_path, "--alpha", "0", "--device", "cpu")
    assert run(monkeypatch, capsys, *command)[0] == 0
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "i0_overlay.png")), expected)

    module, handler = load(repository)
    seen = []
    logits = module.model_logits
    monkeypatch.setattr(module, "model_logits", lambda *given: seen.append(given[2]) or logits(*given))
    handler({"inputs": file.read_bytes()})
    np.testing.assert_array_equal(np.asarray(seen[0]), expected)

    shelf = segmenter.ModelShelf({"m": str(repository)})
    result = segmenter.segment(shelf, str(file), ["m"])
    np.testing.assert_array_equal(result.photo, expected)
    assert np.unique(expected).size > 200


def test_gray_arrays():
    gray = stored(0)[..., 0]
    network = small_model(num_labels=2, image_range=[100, 4000]).eval()
    pair = network, make_image_processor()
    for array in (gray, gray[..., None]):
        picture = allspark_hf.segment(pair, array).image
        np.testing.assert_array_equal(np.asarray(picture), np.broadcast_to(shown(gray)[..., None], (48, 64, 3)))
    eight = (gray >> 8).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(allspark_hf.segment(pair, eight).image)[..., 1], eight)


def test_a_column_of_gray_images_keeps_the_indices_of_palette_masks():
    """`Image(mode="L")` would give the brightness of each color."""
    values = np.random.default_rng(0).integers(3, size=(40, 40), dtype=np.uint8)
    mask = Image.fromarray(values).convert("P")
    mask.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200])
    file = io.BytesIO()
    mask.save(file, "PNG")
    columns = {name: [{"bytes": file.getvalue(), "path": None}] for name in ("image", "label")}
    features = datasets.Features({name: datasets.Image(mode="L") for name in columns})
    rows = datasets.Dataset.from_dict(columns, features=features)
    assert not np.array_equal(np.asarray(rows[0]["label"]), values)
    np.testing.assert_array_equal(EvaluationDataset(rows, make_image_processor(), 3)[0]["labels"], values)
    mixed = MixedDataset(rows, None, (40, 40), 0, 3, None, (0, 0, 0), (1, 1, 1))
    image, label = mixed._read(Draw(True, 0, 0, 0))
    np.testing.assert_array_equal(label, values)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(mask.convert("RGB")))
    stored_only = exact_columns(rows.cast_column("image", datasets.Image(decode=False)))
    assert isinstance(stored_only[0]["image"], Image.Image)


def test_the_space_and_repositories_have_the_packages_file(repository):
    own = Path(pixels.__file__).read_bytes()
    for folder in (repository, Path(segmenter.__file__).parent):
        assert (folder / "pixels.py").read_bytes() == own

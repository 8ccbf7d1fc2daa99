"""A page of TIFF stacks is the image, from the training's option to every way of using the model."""

import json
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
from conftest import NO_DROPOUT, small_model
from PIL import Image
from published_model import publish
from served_model import load
from test_one_door import segmenter
from test_predict import run

import allspark_hf
from allspark_hf.cli.models import class_fields
from allspark_hf.cli.suggest import Images
from allspark_hf.data import BadDataError, DataArguments, Reading, find_data, load_data
from allspark_hf.data.lanes import Lanes
from allspark_hf.data.mixed import Draw
from allspark_hf.data.streaming import StreamReader
from allspark_hf.data.summary import image_sizes
from allspark_hf.evaluation.evaluator import EvaluationDataset
from allspark_hf.evaluation.selection import fit_to_model, select_split
from allspark_hf.figures.predictions import compare_predictions
from allspark_hf.inference.large import predict_large
from allspark_hf.inference.loading import load_trained, make_image_processor
from allspark_hf.inference.prediction import predict_mask
from allspark_hf.training.arguments import AllSparkTrainingArguments
from allspark_hf.training.trainer import AllSparkTrainer


PAGE, SIZE = 1, (48, 64)


def picture(seed: int) -> np.ndarray:
    """What is on the page: uint8 (height, width, 3)."""
    return np.random.default_rng(seed).integers(256, size=(*SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Stacks of three pages, the other two smaller; masks of one page."""
    root = tmp_path_factory.mktemp("data")
    other = Image.new("RGB", (20, 10))
    for seed, name in enumerate(["train/a", "train/b", "train/unlabeled", "val/c"]):
        for kind in ("images", "masks"):
            (root / kind / name).parent.mkdir(parents=True, exist_ok=True)
        pages = [Image.fromarray(picture(seed)), other]
        other.save(root / "images" / f"{name}.tif", save_all=True, append_images=pages)
        if "unlabeled" not in name:
            Image.fromarray((np.indices(SIZE)[0] // 24).astype(np.uint8)).save(root / "masks" / f"{name}.png")
    return root


def test_from_the_option_to_the_model(folder, tmp_path, monkeypatch, capsys):
    for page, problem in ((None, "has 3 pages.*name one with --tiff_page"), (3, "has no page 3: counted .* 0, 1, 2;")):
        with pytest.raises(
            BadDataError, match=f"4 bad files.*\n- {re.escape(str(folder))}.*a.tif: The TIFF.*{problem}"
        ):
            load_data(DataArguments(data_dir=str(folder), tiff_page=page))
    report = load_data(DataArguments(data_dir=str(folder), tiff_page=PAGE))
    data, fields = report.data, class_fields(report)
    args = AllSparkTrainingArguments(
        output_dir=str(tmp_path / "run"),
        method="allspark",
        use_cpu=True,
        report_to="none",
        label_column_name="label",
    )
    model = small_model(num_labels=2, crop_size=list(SIZE), **NO_DROPOUT, **fields)
    for config_page, labeled in ((PAGE, raw(folder, "train/a")), (None, data.labeled)):  # whichever of them says so
        model.config.tiff_page = config_page
        trainer = AllSparkTrainer(model, args, make_image_processor(), labeled, data.unlabeled, data.validation)
        mixed = trainer.get_train_dataloader().dataset
        for is_labeled, seed in ((True, 0), (False, 2)):
            np.testing.assert_array_equal(mixed._read(Draw(is_labeled, 0, 0, 0))[0], picture(seed))
        (batch,) = trainer.get_eval_dataloader()
        np.testing.assert_array_equal(batch[0]["pixel_values"], processed(picture(3)))
        assert image_sizes(trainer.train_dataset)[0] == SIZE[::-1] and model.config.tiff_page == PAGE
    stream = StreamReader(
        raw(folder, "val/c").to_iterable_dataset(), Lanes(1, 1), 0, 0, reading=Reading.of(model.config)
    )
    np.testing.assert_array_equal(stream[0]["image"], picture(3))

    repository = publish(tmp_path / "repository", model, make_image_processor())
    assert json.loads((repository / "config.json").read_text())["tiff_page"] == PAGE
    every_use(repository, folder, tmp_path, monkeypatch, capsys)


def raw(folder: Path, name: str) -> datasets.Dataset:
    """An image with its mask, as `datasets` alone would read them: the first page."""
    row = {"image": [str(folder / f"images/{name}.tif")], "label": [str(folder / f"masks/{name}.png")]}
    rows = datasets.Dataset.from_dict(row)
    return rows.cast_column("image", datasets.Image()).cast_column("label", datasets.Image())


def processed(image: np.ndarray) -> np.ndarray:
    return make_image_processor()(images=Image.fromarray(image), return_tensors="np")["pixel_values"][0]


def every_use(repository: Path, folder: Path, tmp_path: Path, monkeypatch, capsys):
    """Evaluation, figures, suggestions, `segment`, `allspark predict` with and without tiles, endpoint and Space."""
    model, processor = load_trained(str(repository), "cpu")
    file, expected = folder / "images/val/c.tif", picture(3)
    arguments = fit_to_model(DataArguments(data_dir=str(folder)), model.config, None)
    rows = select_split("validation", arguments, model.config, str(repository))
    samples = EvaluationDataset.of(raw(folder, "val/c"), processor, model.config)
    np.testing.assert_array_equal(samples[0]["pixel_values"], processed(expected))
    np.testing.assert_array_equal(compare_predictions({"m": (model, processor)}, rows)["picture_0"], expected)
    images = Images(find_data(arguments).validation, Reading.of(model.config))
    np.testing.assert_array_equal(images.picture(0), expected)

    given = [str(file), {"bytes": file.read_bytes(), "path": None}]
    with Image.open(file) as opened:
        results = allspark_hf.segment((model, processor), [*given, opened])
    for result in results:
        np.testing.assert_array_equal(result.image, expected)
    command = ("--model", repository, "--input", file, "--alpha", "0", "--device", "cpu", "--num_workers", "0")
    assert run(monkeypatch, capsys, *command, "--output_dir", tmp_path / "1")[0] == 0
    np.testing.assert_array_equal(Image.open(tmp_path / "1/c_overlay.png"), expected)
    code, told = run(monkeypatch, capsys, *command, "--output_dir", tmp_path / "7", "--tiff_page", "7")
    assert code == 1 and f"{file}: not predicted, it cannot be read as an image (The TIFF file has no page 7:" in told
    predict_large(model, processor, file, tmp_path / "mask.tif", tile_size=64, progress=False)
    mask = predict_mask(model, processor, Image.fromarray(expected))
    np.testing.assert_array_equal(Image.open(tmp_path / "mask.tif"), mask)

    module, handler = load(repository)
    seen, logits = [], module.model_logits
    monkeypatch.setattr(module, "model_logits", lambda *given: seen.append(given[2]) or logits(*given))
    handler({"inputs": file.read_bytes()})
    np.testing.assert_array_equal(seen[0], expected)
    shelf = segmenter.ModelShelf({"m": str(repository)})
    np.testing.assert_array_equal(segmenter.segment(shelf, str(file), ["m"]).photo, expected)


def test_a_wrong_class_is_told_before_the_weights_are_read(tmp_path, monkeypatch, capsys):
    small_model(num_labels=2, id2label={0: "field", 1: "road"}).config.save_pretrained(tmp_path / "model")
    (tmp_path / "a.png").touch()
    command = ("--model", tmp_path / "model", "--input", tmp_path / "a.png", "--output_dir", tmp_path / "out")
    code, told = run(monkeypatch, capsys, *command, "--classes", "raod", "--device", "cpu")
    assert code == 2 and "The model has no class 'raod': did you mean 'road'?" in told

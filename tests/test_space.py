"""scripts/space without a browser: predictions, colors, legend, files, and every sentence a visitor may read."""

import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NO_DROPOUT, tiny_model
from PIL import Image
from published_model import publish
from safetensors.torch import load_file, save_file

from allspark_hf.data.pixels import to_rgb
from allspark_hf.inference.loading import make_image_processor
from allspark_hf.inference.prediction import predict_mask
from allspark_hf.inference.visualization import default_palette, overlay


sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts" / "space"))
import rendering
import segmenter
from segmenter import LoadedModel, ModelShelf, VisitorError


def loaded(num_labels: int = 3, seed: int = 0, labels=None, colors=None, **processor) -> LoadedModel:
    model = tiny_model(seed, num_labels=num_labels, **NO_DROPOUT).eval()
    labels = labels or tuple(f"class {index}" for index in range(num_labels))
    colors = rendering.model_colors(None, num_labels) if colors is None else colors
    return LoadedModel(model, make_image_processor(**processor), labels, colors)


def shelf(**models) -> ModelShelf:
    """A shelf whose models are loaded already."""
    shelf = ModelShelf(dict.fromkeys(models, "never/loaded"))
    shelf._loaded.update(models)
    return shelf


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    """Random patches, so that a random model finds several classes."""
    values = np.random.default_rng(seed).integers(256, size=(-(-height // 9), -(-width // 9), 3))
    return Image.fromarray(values.repeat(9, 0).repeat(9, 1)[:height, :width].astype(np.uint8))


@pytest.fixture
def photo(tmp_path) -> str:
    path = tmp_path / "photo.png"
    noise(61, 90).save(path)
    return str(path)


@pytest.mark.parametrize(("num_labels", "size"), [(1, (60, 70)), (3, (61, 90)), (81, (97, 71))])
@pytest.mark.parametrize("long_side", [None, 64])
def test_prediction_equals_the_packages(num_labels, size, long_side, monkeypatch):
    monkeypatch.setattr(segmenter, "_MAX_LOGIT_VALUES", 5 * size[0] * size[1])  # 81 classes in 17 parts
    model, image = loaded(num_labels, long_side=long_side), noise(*size)
    made = segmenter.predict(model, image, "m")
    expected = predict_mask(model.model, model.image_processor, image)
    assert num_labels == 1 or len(np.unique(expected)) > 1
    np.testing.assert_array_equal(made.shown_mask, expected)
    np.testing.assert_array_equal(rendering.decode_mask(made.mask_png), expected)
    assert made.areas.sum() == pytest.approx(1, abs=1e-12)
    counts = np.bincount(expected.ravel(), minlength=num_labels)
    np.testing.assert_array_equal(made.areas, counts / expected.size)
    if num_labels == 1:
        assert made.confidence is None
    else:
        inputs = model.image_processor(images=image, return_tensors="pt")
        with torch.no_grad():
            probabilities = model.model(**inputs).logits.softmax(1)
        assert made.confidence == pytest.approx(float(probabilities.max(1).values.mean()), abs=1e-6)


def test_over_256_classes_are_16_bit():
    model = loaded(300)
    made = segmenter.predict(model, noise(40, 50), "m")
    expected = predict_mask(model.model, model.image_processor, noise(40, 50))
    assert expected.max() > 255
    np.testing.assert_array_equal(rendering.decode_mask(made.mask_png), expected)


def test_tie_goes_to_the_lowest_class(monkeypatch):
    monkeypatch.setattr(segmenter, "_MAX_LOGIT_VALUES", 1)
    logits = torch.tensor([1.0, 2.0, 2.0, 0.0]).view(1, 4, 1, 1).expand(1, 4, 2, 3)
    assert (segmenter.classes_at_size(logits, 5, 7) == 1).all()


def test_large_images_are_scaled_for_model_and_page(monkeypatch):
    monkeypatch.setattr(segmenter, "MAX_MODEL_PIXELS", 5000)
    monkeypatch.setattr(segmenter, "MAX_SHOWN_SIDE", 64)
    image, model = noise(100, 201), loaded()
    made = segmenter.predict(model, image, "m")
    assert made.model_size == (100, 49)  # at most 5000 pixels
    mask = rendering.decode_mask(made.mask_png)
    assert mask.shape == (100, 201) and made.shown_mask.shape == (32, 64)
    small = model.image_processor(images=image.resize((100, 49)), return_tensors="pt")
    with torch.no_grad():
        outputs = model.model(**small)
    (expected,) = model.image_processor.post_process_semantic_segmentation(outputs, target_sizes=[(100, 201)])
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(made.shown_mask[16], mask[51][[int((x + 0.5) * 201 / 64) for x in range(64)]])
    # A model with a size of its own gets the image whole.
    assert segmenter.predict(loaded(long_side=96), image, "m").model_size is None


def test_result_is_made_once_a_model_and_bounded(photo, monkeypatch):
    runs = []
    monkeypatch.setattr(
        segmenter, "predict", lambda *args, made=segmenter.predict: runs.append(args[2]) or made(*args)
    )
    models = shelf(a=loaded(seed=0), b=loaded(seed=1), c=loaded(seed=2))
    result = None
    for names in (["a"], ["a", "b"], ["b", "a"], ["a", "a"], ["a", "c"]):
        result = segmenter.segment(models, photo, names, result)
        assert [made.model_name for made in result.predictions] == list(dict.fromkeys(names))  # nothing else is kept
    # "b" was dropped by ["a", "a"], "a" was always there.
    assert runs == ["a", "b", "c"]
    assert result.size == (90, 61) and result.photo.shape == (61, 90, 3) and result.stem == "photo"
    other = Path(photo).with_name("other.png")
    noise(61, 90, seed=1).save(other)
    segmenter.segment(models, str(other), ["a"], result)
    assert runs == ["a", "b", "c", "a"]


def test_agreement_is_by_class_name(photo):
    first, second = loaded(labels=("cat", "dog", "sky")), loaded(seed=1, labels=("sky", "cow", "cat"))
    result = segmenter.segment(shelf(a=first, b=second), photo, ["a", "b"])
    names = [
        np.array(model.labels)[made.shown_mask]
        for model, made in zip((first, second), result.predictions, strict=True)
    ]
    expected = (names[0] == names[1]).mean()
    assert 0 < expected < 1 and result.agreement == pytest.approx(expected, abs=1e-12)
    same = segmenter.segment(shelf(a=first, b=first), photo, ["a", "b"])
    assert same.agreement == 1


def test_a_failing_second_model_leaves_the_first(photo, monkeypatch):
    def fail(model_id):
        raise KeyError("secret path")

    monkeypatch.setattr(segmenter, "load_model", fail)
    models = ModelShelf({"a": "x/a", "b": "x/b"})
    models._loaded["a"] = loaded()
    result = segmenter.segment(models, photo, ["a", "b"])
    assert [made.model_name for made in result.predictions] == ["a"] and result.agreement is None
    assert result.warning.startswith("The model b cannot be loaded.") and "secret" not in result.warning
    with pytest.raises(VisitorError, match="The model b cannot be loaded"):
        segmenter.segment(models, photo, ["b", "a"])
    with pytest.raises(VisitorError, match="no such model"):
        models.get("user/typed-by-a-visitor")


def test_shelf_keeps_the_latest_models(monkeypatch):
    monkeypatch.setattr(segmenter, "load_model", lambda model_id: model_id.upper())
    models = ModelShelf({name: f"x/{name}" for name in "abcd"})
    for name in "abcad":
        assert models.get(name) == f"X/{name.upper()}"
    assert list(models._loaded) == ["c", "a", "d"]


def test_model_failing_on_an_image(photo, caplog):
    broken = loaded()
    broken.model.decode_head = None
    with pytest.raises(VisitorError, match="The model a failed on this image"):
        segmenter.segment(shelf(a=broken), photo, ["a"])
    assert "Traceback" in caplog.text and "photo" not in caplog.text


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I"])
def test_images_of_all_kinds_are_read_as_in_training(mode, tmp_path):
    image = noise(40, 51)
    if mode.startswith("I"):
        gray = np.asarray(image.convert("L")).astype(np.uint16 if mode == "I;16" else np.int32) * 257
        image = Image.fromarray(gray)
    elif mode == "RGBA":
        image.putalpha(image.convert("L"))
    else:
        image = image.convert(mode)
    assert image.mode == mode
    path = tmp_path / ("image.tiff" if mode in ("CMYK", "I") else "image.png")
    image.save(path)
    with Image.open(path) as opened:
        expected = to_rgb(opened)
    read = to_rgb(segmenter.read_image(str(path)))
    assert read.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(read), np.asarray(expected))


def test_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    path = tmp_path / "turned.jpg"
    noise(40, 56).save(path, exif=exif)
    assert segmenter.read_image(str(path)).size == (40, 56)


def test_bad_images_get_a_sentence(tmp_path, monkeypatch):
    good = io.BytesIO()
    noise(50, 50).save(good, format="PNG")
    for name, content in {
        "text.png": b"not an image",
        "empty.jpg": b"",
        "cut.png": good.getvalue()[:-2000],
        "drawing.svg": b"<svg/>",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(VisitorError, match=r"^This file cannot be read as an image: please upload"):
            segmenter.read_image(str(tmp_path / name))
    noise(31, 90).save(tmp_path / "small.png")
    with pytest.raises(VisitorError, match="90 x 31 pixels: please upload one with at least 32"):
        segmenter.read_image(str(tmp_path / "small.png"))
    Image.fromarray(np.zeros((40, 40), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(VisitorError, match="floating-point"):
        segmenter.read_image(str(tmp_path / "float.tiff"))
    with pytest.raises(VisitorError, match="upload it again"):
        segmenter.read_image(str(tmp_path / "gone.png"))
    (tmp_path / "large.png").write_bytes(good.getvalue())
    monkeypatch.setattr(segmenter, "MAX_IMAGE_PIXELS", 2499)
    with pytest.raises(VisitorError, match=r"50 x 50 pixels, over the limit"):
        segmenter.read_image(str(tmp_path / "large.png"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow's own bomb error, at twice its limit
    with pytest.raises(VisitorError, match="far over the limit"):
        segmenter.read_image(str(tmp_path / "large.png"))


def test_model_lists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("run_1/out", "run_2/out", "other"):
        Path(folder).mkdir(parents=True)
    parse = segmenter.parse_models
    assert parse(None, " user/a, ,user/b@v1.0 ") == {"a": "user/a", "b@v1.0": "user/b@v1.0"}
    assert parse(["other"], "user/a") == {"other": "other"}
    assert parse(["run_1/out", "run_2/out", "u/x"], None) == {
        "run_1/out": "run_1/out",
        "run_2/out": "run_2/out",
        "x": "u/x",
    }
    for arguments, variable, words in (
        (None, None, "No model is given"),
        (None, " , ", "No model is given"),
        (["u/a", "u/a"], None, "given twice"),
        (["missing"], None, "neither a folder here nor a Hub id"),
        (["https://example.org/a/b"], None, "neither a folder here nor a Hub id"),
    ):
        with pytest.raises(ValueError, match=words):
            parse(arguments, variable)


def test_app_without_a_model_ends_with_a_sentence(monkeypatch):
    pytest.importorskip("gradio")
    import app

    monkeypatch.setattr(sys, "argv", ["app.py"])
    monkeypatch.delenv("ALLSPARK_MODELS", raising=False)
    with pytest.raises(SystemExit) as stopped:
        app.main()
    assert str(stopped.value.code).startswith("ValueError: No model is given: set the variable ALLSPARK_MODELS")


def test_expired_result_says_so(photo, tmp_path):
    pytest.importorskip("gradio")
    import app

    result = segmenter.segment(shelf(a=loaded()), photo, ["a"])
    shown = app.redraw(result, 50, "no such class", str(tmp_path / "cache"))
    gone = app.redraw(None, 50, None, str(tmp_path / "cache"))
    assert len(shown) == len(gone) == 11
    assert shown[0]["visible"] and shown[-2] is None and "value" not in shown[-1]
    assert not gone[0]["visible"] and "upload the image again" in gone[-1]["value"]


def test_loading_with_the_code_of_the_repository(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = publish(tmp_path / "model", tiny_model(num_labels=4), make_image_processor())
    model = segmenter.load_model(str(folder))
    assert not model.model.training and model.labels == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")
    np.testing.assert_array_equal(model.colors, default_palette(4))
    weights = load_file(folder / "model.safetensors")
    del weights["decode_head.classifier.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"no weights for 1 parameters of the model \(first: decode_head.classifier"):
        segmenter.load_model(str(folder))


def test_weights_in_half_precision(tmp_path):
    folder = publish(tmp_path / "model", tiny_model().bfloat16(), make_image_processor())
    model = segmenter.load_model(str(folder))
    made = segmenter.predict(model, noise(61, 90), "m")
    np.testing.assert_array_equal(made.shown_mask, predict_mask(model.model, model.image_processor, noise(61, 90)))


def test_colors_of_a_model():
    np.testing.assert_array_equal(rendering.model_colors(None, 300), default_palette(300))
    np.testing.assert_array_equal(rendering.model_colors([[1, 2, 3], [4, 5, 255]], 2), [[1, 2, 3], [4, 5, 255]])
    for palette in ([[1, 2, 3]], [[0, 0, 256], [0, 0, 0]]):
        with pytest.raises(ValueError, match="palette in the model's configuration"):
            rendering.model_colors(palette, 2)


def test_second_model_takes_the_first_ones_colors():
    red, green, blue, gray = [200, 0, 0], [0, 200, 0], [0, 0, 200], [90, 90, 90]
    colors = [np.array([red, green], np.uint8), np.array([green, red, blue, gray], np.uint8)]
    first, second = rendering.shared_colors([("sky", "road"), ("new", "road", "sky", "car")], colors)
    np.testing.assert_array_equal(first, [red, green])
    # "new" would be the road's green: it gets the first default color instead.
    np.testing.assert_array_equal(second, [default_palette(1)[0], green, red, gray])


@pytest.mark.parametrize("opacity", [0.0, 0.35, 1.0])
def test_overlay_and_highlight(opacity):
    image, colors = noise(21, 34), default_palette(4)
    mask = np.random.default_rng(1).integers(4, size=(21, 34)).astype(np.uint8)
    plain = np.asarray(rendering.blend(np.asarray(image), mask, colors, opacity))
    np.testing.assert_array_equal(plain, np.asarray(overlay(image, mask, colors, opacity, ignore_index=None)))
    shown = np.asarray(rendering.blend(np.asarray(image), mask, colors, opacity, 2)).astype(int)
    np.testing.assert_array_equal(shown[mask == 2], plain[mask == 2])
    rest = np.asarray(image)[mask != 2].astype(float)
    gray = 0.35 * (rest @ [0.299, 0.587, 0.114])
    np.testing.assert_allclose(shown[mask != 2], gray[:, None].repeat(3, 1), atol=0.51)
    nothing = np.asarray(rendering.blend(np.asarray(image), mask, colors, opacity, -1))
    assert (nothing[..., 0] == nothing[..., 1]).all() and nothing.max() <= 90


def test_mask_file_has_indices_and_palette():
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4) % 5
    image = Image.open(io.BytesIO(rendering.encode_mask(mask, default_palette(5))))
    assert image.mode == "P" and image.format == "PNG"
    np.testing.assert_array_equal(np.asarray(image), mask)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), default_palette(5)[mask])


def test_legend():
    labels = (("sky", "<b>", "road", "never"), ("road", "sky"))
    areas = [np.array([0.7, 0.2999, 0.0001, 0.0]), np.array([0.9, 0.1])]
    colors = [default_palette(4), default_palette(2)]
    assert [name for name, _ in rendering.present_classes(labels, areas)] == ["road", "sky", "<b>"]
    page = rendering.legend_html(labels[:1], colors[:1], areas[:1], "sky")
    rows = re.findall(r'data-label="([^"]+)" aria-pressed="(\w+)".*?>([^<]+ %)<', page)
    assert rows == [("sky", "true", "70.0 %"), ("&lt;b&gt;", "false", "30.0 %"), ("road", "false", "&lt; 0.1 %")]
    assert "<b>" not in page and "never" not in page and 'data-label="">Show all' in page
    both = rendering.legend_html(labels, rendering.shared_colors(labels, colors), areas, None)
    assert both.count("<abbr>A</abbr>") == both.count("<abbr>B</abbr>") == 3 and "0 %" in both
    assert 'data-label="" hidden>Show all' in both


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (1e-6, "< 0.1 %"), (0.0005, "0.1 %"), (0.5, "50.0 %"), (0.99999, "> 99.9 %"), (1, "100.0 %")],
)
def test_percent(share, text):
    assert rendering.percent(share) == text

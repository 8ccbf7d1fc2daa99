"""The file handler.py of a published repository, loaded from its folder as Hugging Face's server does it."""

import base64
import io
import json
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from mask_files import huge_png
from PIL import Image
from published_model import publish
from safetensors.torch import load_file, save_file
from served_model import (
    NAMES,
    as_base64,
    as_bytes,
    balanced_model,
    decode,
    endpoint,
    load,
    picture,
    probabilities,
    variants,
)
from torch.nn import functional as F

from allspark_hf.data.pixels import to_rgb
from allspark_hf.inference.loading import SegformerImageProcessorPil, make_image_processor
from allspark_hf.inference.prediction import predict_mask


@pytest.fixture(scope="module")
def model():
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
    return balanced_model(5, **labels)


@pytest.fixture(scope="module")
def repository(tmp_path_factory, model):
    return publish(tmp_path_factory.mktemp("repository"), model, make_image_processor(96))


@pytest.fixture(scope="module")
def served(repository):
    return load(repository)


@pytest.fixture
def handler(served):
    return served[1]


@pytest.fixture
def limits(handler, monkeypatch):
    """Sets the handler's limits for one test."""
    return lambda **kwargs: [monkeypatch.setattr(type(handler), name, value) for name, value in kwargs.items()]


@pytest.mark.parametrize("size", [(50, 71), (131, 97), (96, 96)])
def test_answer_is_the_prediction_of_the_package(handler, model, size):
    image = picture(1, size)
    answer = json.loads(json.dumps(handler({"inputs": image}), allow_nan=False))
    expected = predict_mask(model, make_image_processor(96), image)
    softmax = probabilities(model, make_image_processor(96), image)
    present = np.unique(expected)
    assert len(present) >= 3
    assert [entry["label"] for entry in answer] == [NAMES[index] for index in present]
    for index, entry in zip(present, answer, strict=True):
        assert set(entry) == {"label", "score", "mask"}
        np.testing.assert_array_equal(decode(entry["mask"]), expected == index)
        assert entry["score"] == pytest.approx(softmax[index][expected == index].mean(), abs=1e-6)


def test_every_form_of_input_gives_the_same_answer(handler):
    image = picture()
    text = as_base64(image)
    expected = handler({"inputs": image})
    lines = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    for inputs in [
        as_bytes(image),
        bytearray(as_bytes(image)),
        text,
        lines,
        f"data:image/png;base64,{text}",
        f"data:image/png;name=a.png;base64,{text}",
        {"image": text},
        {"image": image},
    ]:
        data = {"inputs": inputs, "parameters": None}
        assert handler(data) == expected
        assert data == {"inputs": inputs, "parameters": None}


def test_exif_orientation(handler):
    upright = picture()
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # must be turned clockwise to be upright
    file = as_bytes(turned, exif=exif)
    expected = handler({"inputs": upright})
    assert handler({"inputs": file}) == expected
    # The server's own decoding of image bodies: convert keeps the orientation's mark.
    assert handler({"inputs": Image.open(io.BytesIO(file)).convert("RGB")}) == expected


@pytest.mark.parametrize(
    ("mode", "format"),
    [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("I;16", "PNG"), ("LA", "PNG"), ("P", "GIF"), ("1", "BMP")],
)
def test_files_of_unusual_modes(handler, mode, format):
    file = as_bytes(variants()[mode], format)
    with Image.open(io.BytesIO(file)) as opened:
        expected = handler({"inputs": to_rgb(opened)})
    assert handler({"inputs": file}) == expected


def test_first_frame_of_an_animation(handler):
    frames = [picture(index) for index in range(3)]
    file = as_bytes(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert handler({"inputs": file}) == handler({"inputs": frames[0]})


PNG = as_bytes(picture())
BAD = {
    "not a dict": ([1], 'no "inputs"'),
    "no inputs": ({"image": "x"}, 'no "inputs"'),
    "none": ({"inputs": None}, 'no "inputs"'),
    "list": ({"inputs": [PNG]}, "type list"),
    "number": ({"inputs": 3.5}, "type float"),
    "wrong key": ({"inputs": {"url": "x"}}, r"keys \['url'\]"),
    "two keys": ({"inputs": {"image": "x", "prompt": "y"}}, "keys"),
    "nested": ({"inputs": {"image": {"image": "x"}}}, "type dict"),
    "url": ({"inputs": "https://example.com/a.png"}, "URLs are not fetched"),
    "file url": ({"inputs": {"image": "file:///etc/passwd"}}, "URLs are not fetched"),
    "path": ({"inputs": "/etc/passwd"}, "not base64|known format"),
    "not base64": ({"inputs": "a picture!"}, "not base64"),
    "no padding": ({"inputs": base64.b64encode(PNG[:100]).decode().rstrip("=")}, "padding"),
    "plain data url": ({"inputs": "data:image/svg+xml,<svg/>"}, "not base64"),
    "not ascii": ({"inputs": "é" * 8}, "not base64"),
    "empty bytes": ({"inputs": b""}, "0 bytes"),
    "empty text": ({"inputs": ""}, "0 bytes"),
    "text file": ({"inputs": b"hello"}, "known format"),
    "postscript": ({"inputs": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"}, "known format"),
    "truncated": ({"inputs": PNG[: len(PNG) // 2]}, "damaged or incomplete"),
    "header alone": ({"inputs": huge_png(20, 20)}, "damaged or incomplete"),
    "floating point": ({"inputs": as_bytes(Image.fromarray(np.full((40, 40), np.nan, np.float32)), "TIFF")}, "float"),
    "32 bits": ({"inputs": Image.fromarray(np.full((40, 40), 70000, np.int32))}, "70000 .* within 0 to 65535"),
    "no pixels": ({"inputs": Image.new("RGB", (0, 5))}, "0x5 pixels"),
    "flat": ({"inputs": Image.new("RGB", (5000, 1))}, "5000x1 pixels.*too narrow"),
    "upright line": ({"inputs": as_bytes(Image.new("RGB", (1, 5000)))}, "1x5000 pixels.*too narrow"),
    "narrow": ({"inputs": Image.new("RGB", (100, 20))}, "with 96x19, which needs at least 29"),
    "list of parameters": ({"inputs": PNG, "parameters": [0.5]}, "parameters is of type list"),
    "unknown parameter": ({"inputs": PNG, "parameters": {"treshold": 0.5}}, r"\['treshold'\]: use threshold"),
    "instance": ({"inputs": PNG, "parameters": {"subtask": "instance"}}, "semantic segmentation only"),
    "overlap": ({"inputs": PNG, "parameters": {"overlap_mask_area_threshold": 0.5}}, "do not overlap"),
    "over 1": ({"inputs": PNG, "parameters": {"threshold": 1.5}}, "threshold is 1.5"),
    "negative": ({"inputs": PNG, "parameters": {"mask_threshold": -0.1}}, "mask_threshold is -0.1"),
    "nan": ({"inputs": PNG, "parameters": {"threshold": float("nan")}}, "threshold is nan"),
    "infinite": ({"inputs": PNG, "parameters": {"threshold": float("inf")}}, "threshold is inf"),
    "true": ({"inputs": PNG, "parameters": {"threshold": True}}, "threshold is True"),
    "words": ({"inputs": PNG, "parameters": {"threshold": "high"}}, "threshold is 'high'"),
    "list as number": ({"inputs": PNG, "parameters": {"threshold": [0.5]}}, r"threshold is \[0.5\]"),
    "long": ({"inputs": PNG, "parameters": {"threshold": "9" * 10000}}, "threshold is '9{5,20}"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_get_one_sentence(served, name):
    module, handler = served
    data, message = BAD[name]
    with pytest.raises(module.BadRequest, match=message) as caught:
        handler(data)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text and len(text) < 250 and "object at 0x" not in text


def test_one_pixel_is_enlarged_like_any_image(handler, model):
    image = Image.new("RGB", (1, 1), (200, 30, 60))
    (entry,) = handler({"inputs": as_bytes(image)})
    assert entry["label"] == NAMES[predict_mask(model, make_image_processor(96), image)[0, 0]]
    np.testing.assert_array_equal(decode(entry["mask"]), [[True]])


def test_size_of_the_file_is_limited(served, limits, monkeypatch):
    module, handler = served
    limits(max_image_bytes=len(PNG))
    text = base64.b64encode(PNG).decode()
    assert handler({"inputs": PNG}) == handler({"inputs": text})
    limits(max_image_bytes=len(PNG) - 3)
    with pytest.raises(module.BadRequest, match=f"has {len(PNG)} bytes, but at most {len(PNG) - 3}"):
        handler({"inputs": PNG})
    monkeypatch.setattr(module.base64, "b64decode", lambda *_, **__: pytest.fail("decoded before it was checked"))
    with pytest.raises(module.BadRequest, match=f"bytes, but at most {len(PNG) - 3}"):
        handler({"inputs": text})


def test_number_of_pixels_is_limited_before_decoding(served, limits):
    module, handler = served
    with pytest.raises(module.BadRequest, match="has 10000x6000 pixels, but at most 50000000"):
        handler({"inputs": huge_png(10_000, 6_000)})
    with pytest.raises(module.BadRequest, match="far more pixels, but at most 50000000"):
        handler({"inputs": huge_png(60_000, 60_000)})
    limits(max_image_pixels=50 * 71)
    assert handler({"inputs": picture()})
    with pytest.raises(module.BadRequest, match="has 72x50 pixels, but at most 3550"):
        handler({"inputs": picture(size=(50, 72))})


def test_parameters(handler, model):
    image = picture()
    everything = handler({"inputs": image})
    assert handler({"inputs": image, "parameters": {"subtask": "semantic", "threshold": None}}) == everything
    middle = sorted(entry["score"] for entry in everything)[1]
    kept = handler({"inputs": image, "parameters": {"threshold": middle}})
    assert kept == [entry for entry in everything if entry["score"] >= middle] and len(kept) == len(everything) - 1
    assert handler({"inputs": image, "parameters": {"threshold": str(middle)}}) == kept  # as in a query string
    assert handler({"inputs": image, "parameters": {"threshold": 1}}) == []

    softmax = probabilities(model, make_image_processor(96), image)
    expected, cut = predict_mask(model, make_image_processor(96), image), float(np.median(softmax.max(axis=0)))
    confident = handler({"inputs": image, "parameters": {"mask_threshold": cut}})
    total = np.zeros(expected.shape, dtype=int)
    for entry in confident:
        own = decode(entry["mask"])
        index = NAMES.index(entry["label"])
        # Rounding may decide at the threshold itself.
        unclear = np.abs(softmax[index] - cut) < 1e-6
        np.testing.assert_array_equal((own | unclear), ((expected == index) & (softmax[index] >= cut)) | unclear)
        assert entry["score"] == pytest.approx(softmax[index][own].mean(), abs=1e-6)
        total += own
    assert 0.49 < total.mean() < 0.51


@pytest.mark.parametrize("num_labels", [1, 81])
def test_other_numbers_of_classes(tmp_path, num_labels):
    model = balanced_model(num_labels)
    handler = load(publish(tmp_path, model, SegformerImageProcessorPil(size={"height": 64, "width": 96})))[1]
    image = picture()
    processor = SegformerImageProcessorPil(size={"height": 64, "width": 96})
    expected = predict_mask(model, processor, image)
    answer = handler({"inputs": image})
    assert [entry["label"] for entry in answer] == [f"LABEL_{index}" for index in np.unique(expected)]
    for index, entry in zip(np.unique(expected), answer, strict=True):
        np.testing.assert_array_equal(decode(entry["mask"]), expected == index)
    if num_labels > 1:
        assert len(answer) > 10
        return
    with torch.no_grad():
        logits = model(**processor(images=image, return_tensors="pt")).logits
    foreground = F.interpolate(logits, size=(50, 71), mode="bilinear", align_corners=False)[0, 0].sigmoid().numpy()
    assert decode(answer[0]["mask"]).all() and answer[0]["score"] == pytest.approx(foreground.mean(), abs=1e-6)
    (cut,) = handler({"inputs": image, "parameters": {"mask_threshold": 0.5}})
    np.testing.assert_array_equal(decode(cut["mask"]), foreground >= 0.5)
    assert 0 < decode(cut["mask"]).mean() < 1


def test_large_images_are_scaled_down_for_the_model(tmp_path, monkeypatch, model):
    """Only where the image processor leaves the size alone; the masks keep it."""
    module, handler = load(publish(tmp_path, model, make_image_processor()))
    image = picture(size=(150, 201))
    whole = handler({"inputs": image})
    np.testing.assert_array_equal(
        sum(decode(entry["mask"]) * NAMES.index(entry["label"]) for entry in whole),
        predict_mask(model, make_image_processor(), image),
    )
    monkeypatch.setattr(module.EndpointHandler, "max_model_pixels", 75 * 100)
    small = image.resize((100, 74), Image.Resampling.BILINEAR)  # 201 and 150 times sqrt(7500 / 30150), cut
    with torch.no_grad():
        logits = model(**make_image_processor()(images=small, return_tensors="pt")).logits
    expected = F.interpolate(logits, size=(150, 201), mode="bilinear", align_corners=False)[0].argmax(0).numpy()
    answer = handler({"inputs": image})
    np.testing.assert_array_equal(
        sum(decode(entry["mask"]) * NAMES.index(entry["label"]) for entry in answer), expected
    )
    assert answer != whole
    with pytest.raises(module.BadRequest, match="with 1x1, which needs at least 29"):
        handler({"inputs": Image.new("RGB", (1, 1))})


def test_failure_of_the_server_tells_no_details(served, monkeypatch, caplog):
    _, handler = served

    def broken(**_):
        raise KeyError("secret /home/me/weights")

    monkeypatch.setattr(handler, "image_processor", broken)
    with caplog.at_level(logging.ERROR), pytest.raises(RuntimeError, match=r"\(KeyError\); its log") as caught:
        handler({"inputs": picture()})
    assert "secret" not in str(caught.value) and "secret /home/me/weights" in caplog.text


def test_output_that_is_not_finite_is_no_answer(served, monkeypatch, model, caplog):
    _, handler = served
    broken = balanced_model(5)
    torch.nn.init.constant_(broken.decode_head.classifier.bias, float("nan"))
    monkeypatch.setattr(handler, "model", broken)
    with pytest.raises(RuntimeError, match=r"\(RuntimeError\)"):
        handler({"inputs": picture()})
    assert "NaN" in caplog.text


def test_missing_weights_are_told_at_the_start(repository, tmp_path):
    folder = shutil.copytree(repository, tmp_path / "repository")
    weights = load_file(folder / "model.safetensors")
    del weights["decode_head.classifier.bias"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 parameters of the model \(first: decode_head.classifier.bias\)"):
        load(folder)


def test_threads_do_not_disturb_each_other(handler):
    images = [picture(index, (40 + index, 60 + 2 * index)) for index in range(6)]
    alone = [handler({"inputs": image}) for image in images]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda image: handler({"inputs": image}), images * 3)) == alone * 3


def test_inference_client_reads_the_answer(handler, model, tmp_path):
    image = picture(2)
    image.save(tmp_path / "photo.png")
    expected = predict_mask(model, make_image_processor(96), image)
    with endpoint(handler) as url:
        client = InferenceClient(model=url, token="unused")
        # A path, of which the client knows the type; bytes it sends as JSON unless they come with parameters.
        elements = client.image_segmentation(str(tmp_path / "photo.png"))
        assert [element.label for element in elements] == [NAMES[index] for index in np.unique(expected)]
        for index, element in zip(np.unique(expected), elements, strict=True):
            np.testing.assert_array_equal(np.asarray(element.mask) == 255, expected == index)
            assert 0 < element.score < 1
        again = client.image_segmentation(as_bytes(image), subtask="semantic", threshold=0.0)
        assert [(element.label, element.score) for element in again] == [(e.label, e.score) for e in elements]
        best = max(element.score for element in elements)
        assert [e.score for e in client.image_segmentation(as_bytes(image), threshold=best)] == [best]
        with pytest.raises(HfHubHTTPError, match="semantic segmentation only") as caught:
            client.image_segmentation(as_bytes(image), subtask="panoptic")
        assert caught.value.response.status_code == 400
        with pytest.raises(HfHubHTTPError, match="known format"):
            client.image_segmentation(b"no image", threshold=0.5)

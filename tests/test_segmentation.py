"""`allspark_hf.segment`: one call from an image to its segmentation."""

import base64
import io
import os
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from served_model import balanced_model, picture
from torch.nn import functional as F

import allspark_hf
from allspark_hf.inference import segmentation
from allspark_hf.inference.loading import load_trained, make_image_processor
from allspark_hf.inference.prediction import predict_confidence, predict_mask
from allspark_hf.inference.segmentation import LegendEntry, Segmentation
from allspark_hf.inference.visualization import default_palette, legend, overlay


NAMES = ["ground", "road", "<b>sky</b>", "tree"]


def save_model(folder, num_labels: int = 4, seed: int = 0, names=None, palette=None):
    """A random model, each of whose classes wins somewhere, or nearly."""
    names = names or [f"class {index}" for index in range(num_labels)]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    model = balanced_model(num_labels, seed=seed, **labels)
    model.config.palette = palette
    model.save_pretrained(folder)
    make_image_processor(96).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), names=NAMES)


@pytest.fixture(autouse=True)
def empty_cache():
    segmentation._loaded.clear()
    yield
    segmentation._loaded.clear()


@pytest.fixture
def loads(monkeypatch):
    """Every load of a model, as its arguments."""
    calls = []

    def recording(*args):
        calls.append(args)
        return load_trained(*args)

    monkeypatch.setattr(segmentation, "load_trained", recording)
    return calls


@pytest.mark.parametrize("size", [(50, 71), (131, 97)])
def test_mask_and_confidence(model_dir, size):
    image = picture(1, size)
    result = allspark_hf.segment(model_dir, image)
    model, image_processor = load_trained(str(model_dir))
    assert isinstance(result, Segmentation)
    assert result.mask.dtype == np.uint8 and result.confidence.dtype == np.float32
    np.testing.assert_array_equal(result.mask, predict_mask(model, image_processor, image))
    with torch.no_grad():
        logits = model(**image_processor(images=image, return_tensors="pt")).logits
    softmax = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0].softmax(dim=0)
    np.testing.assert_allclose(result.confidence, softmax.amax(dim=0).numpy(), atol=1e-6)
    np.testing.assert_array_equal(np.asarray(result.image), np.asarray(image))
    assert result.id2label == dict(enumerate(NAMES))
    np.testing.assert_array_equal(result.palette, default_palette(4))


def test_every_form_of_image_gives_the_same_mask(model_dir, tmp_path):
    image = picture()
    image.save(tmp_path / "photo.png")
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # must be turned clockwise to be upright
    turned.save(tmp_path / "turned.png", exif=exif)
    one = allspark_hf.segment(model_dir, image)
    several = [tmp_path / "photo.png", str(tmp_path / "photo.png"), tmp_path / "turned.png", np.array(image)]
    results = allspark_hf.segment(str(model_dir), several)
    assert len(results) == 4
    for result in [*results, *allspark_hf.segment(model_dir, (image,))]:
        np.testing.assert_array_equal(result.mask, one.mask)
        np.testing.assert_array_equal(np.asarray(result.image), np.asarray(image))
    assert allspark_hf.segment(model_dir, []) == []


@pytest.mark.parametrize("num_labels", [1, 81])
def test_other_numbers_of_classes(tmp_path, num_labels):
    folder = save_model(tmp_path, num_labels)
    result = allspark_hf.segment(folder, picture())
    model, image_processor = load_trained(str(folder))
    np.testing.assert_array_equal(result.mask, predict_mask(model, image_processor, picture()))
    present = np.unique(result.mask)
    assert sorted(entry.index for entry in result.legend) == present.tolist()
    assert result.overlay().size == (71, 50)
    if num_labels > 1:
        assert len(present) > 10
        return
    with torch.no_grad():
        logits = model(**image_processor(images=picture(), return_tensors="pt")).logits
    sigmoid = F.interpolate(logits, size=(50, 71), mode="bilinear", align_corners=False)[0, 0].sigmoid().numpy()
    np.testing.assert_allclose(result.confidence, sigmoid, atol=1e-6)
    (entry,) = result.legend
    assert entry.share == 1 and entry.confidence == pytest.approx(sigmoid.mean(), abs=1e-6)


def small_segmentation() -> Segmentation:
    return Segmentation(
        image=Image.new("RGB", (4, 2), (100, 100, 100)),
        mask=np.array([[2, 2, 2, 0], [2, 0, 3, 3]], dtype=np.uint8),
        confidence=np.array([[0.5, 0.75, 1, 0.5], [0.75, 0.25, 0.5, 1]], dtype=np.float32),
        id2label=dict(enumerate(NAMES)),
        palette=np.array([[0, 0, 0], [10, 20, 30], [40, 50, 60], [70, 80, 90]], dtype=np.uint8),
    )


def test_legend_is_sorted_by_area():
    assert small_segmentation().legend == [
        LegendEntry(index=2, label="<b>sky</b>", color=(40, 50, 60), share=0.5, confidence=0.75),
        LegendEntry(index=0, label="ground", color=(0, 0, 0), share=0.25, confidence=0.375),
        LegendEntry(index=3, label="tree", color=(70, 80, 90), share=0.25, confidence=0.75),
    ]


def test_pictures():
    result = small_segmentation()
    expected = overlay(result.image, result.mask, result.palette, 0.3, ignore_index=None)
    np.testing.assert_array_equal(np.asarray(result.overlay(0.3)), np.asarray(expected))
    assert result.overlay(1).getpixel((0, 0)) == (40, 50, 60) and result.overlay().getpixel((3, 0)) == (50, 50, 50)
    expected = legend(NAMES, result.palette, present=[0, 2, 3])
    np.testing.assert_array_equal(np.asarray(result.legend_image()), np.asarray(expected))
    with pytest.raises(ValueError, match="alpha is 2"):
        result.overlay(2)


def test_palette_of_the_model(tmp_path):
    palette = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]]
    result = allspark_hf.segment(save_model(tmp_path, palette=palette), picture())
    assert result.palette.tolist() == palette
    assert result.legend[0].color == tuple(palette[result.legend[0].index])
    assert result.overlay(1).getpixel((0, 0)) == tuple(palette[result.mask[0, 0]])


def test_class_mask():
    result = small_segmentation()
    assert result.class_mask("ground").tolist() == [[False, False, False, True], [False, True, False, False]]
    assert result.class_mask(3).tolist() == [[False] * 4, [False, False, True, True]]
    assert result.class_mask("road").dtype == bool and not result.class_mask("road").any()
    with pytest.raises(ValueError, match=r"no class 'raod': did you mean 'road'\?"):
        result.class_mask("raod")
    with pytest.raises(ValueError, match=r"no class 4: the classes are ground, road, <b>sky</b>, tree\."):
        result.class_mask(4)


def test_what_a_notebook_shows():
    result = small_segmentation()
    assert repr(result) == "Segmentation(4x2 pixels: <b>sky</b> 50.0%, ground 25.0%, tree 25.0%)"
    shown = result._repr_html_()
    assert "<b>" not in shown and shown.count("&lt;b&gt;sky&lt;/b&gt;") == 2
    rows = re.findall(r"background:rgb(\(.*?\)).*?left\">(.*?)</td><td>(.*?)</td><td>(.*?)</td>", shown)
    assert rows == [
        ("(40, 50, 60)", "&lt;b&gt;sky&lt;/b&gt;", "50.0%", "0.75"),
        ("(0, 0, 0)", "ground", "25.0%", "0.38"),
        ("(70, 80, 90)", "tree", "25.0%", "0.75"),
    ]
    (source,) = re.findall(r'src="data:image/png;base64,(.*?)"', shown)
    with Image.open(io.BytesIO(base64.b64decode(source))) as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(result.overlay()))


def test_large_images_are_shown_smaller(model_dir):
    result = allspark_hf.segment(model_dir, picture(0, (400, 1001)))
    (source,) = re.findall(r'src="data:image/png;base64,(.*?)"', result._repr_html_())
    with Image.open(io.BytesIO(base64.b64decode(source))) as image:
        assert image.size == (800, 320)
    assert result.overlay().size == (1001, 400)


def test_a_model_is_loaded_once(model_dir, tmp_path, loads):
    first = allspark_hf.segment(model_dir, picture())
    again = allspark_hf.segment(str(model_dir), picture(), token="unused")
    np.testing.assert_array_equal(first.mask, again.mask)
    assert loads == [(str(model_dir), None, None, None)]
    allspark_hf.segment(model_dir, picture(), device="cpu")
    assert loads[1:] == [(str(model_dir), "cpu", None, None)]
    # A third model puts out the one that was used longest ago.
    other = shutil.copytree(model_dir, tmp_path / "other")
    allspark_hf.segment(model_dir, picture())
    allspark_hf.segment(other, picture())
    allspark_hf.segment(model_dir, picture())
    assert len(loads) == 3 and len(segmentation._loaded) == 2
    allspark_hf.segment(model_dir, picture(), device="cpu")
    assert len(loads) == 4


def test_a_changed_folder_is_loaded_anew(tmp_path, loads):
    folder = save_model(tmp_path / "model", seed=0)
    before = allspark_hf.segment(folder, picture())
    stat = (folder / "model.safetensors").stat()
    save_model(folder, seed=1)
    # Even if the clock of the file system is too coarse to show it, one of the files differs in time.
    os.utime(folder / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
    after = allspark_hf.segment(folder, picture())
    assert len(loads) == 2 and len(segmentation._loaded) == 1
    assert (before.mask != after.mask).any()
    (folder / "trainer_state.json").write_text("{}")
    allspark_hf.segment(folder, picture())
    assert len(loads) == 2


def test_a_failed_load_keeps_what_is_loaded(model_dir, tmp_path, loads):
    allspark_hf.segment(model_dir, picture())
    shutil.copy(f"{model_dir}/config.json", tmp_path)
    for folder, problem in (
        (tmp_path / "absent", "no folder .*absent: give the output"),
        (tmp_path, "cannot be loaded"),
    ):
        with pytest.raises(ValueError, match=problem):
            allspark_hf.segment(folder, picture())
    allspark_hf.segment(model_dir, picture())
    assert len(loads) == 2


def test_hub_arguments_reach_transformers(monkeypatch, model_dir):
    """What `load_trained` hands on; the Hub itself is not needed for that."""
    given = []
    model_class = allspark_hf.SegformerForSemiSupervisedSegmentation
    config_class, processor_class = allspark_hf.AllSparkConfig, type(make_image_processor())
    for owner, function in (
        (config_class, "get_config_dict"),
        (model_class, "from_pretrained"),
        (processor_class, "from_pretrained"),
    ):
        original = getattr(owner, function)

        def recording(name, revision=None, token=None, original=original, **kwargs):
            if name == "user/model":  # transformers then reads the folder by its name
                given.append((name, revision, token))
            return original(model_dir, **kwargs)

        monkeypatch.setattr(owner, function, recording)
    monkeypatch.setattr("allspark_hf.inference.loading.check_reachable", lambda *given: None)
    allspark_hf.segment("user/model", picture(), revision="v1", token="hf_x")
    assert given == [("user/model", "v1", "hf_x")] * 4  # the configuration before the image is read
    allspark_hf.segment("user/model", picture())
    assert given[4:] == [("user/model", "main", None)] * 4


def test_loaded_model(model_dir):
    model, image_processor = load_trained(str(model_dir))
    result = allspark_hf.segment((model, image_processor), picture())
    mask, confidence = predict_confidence(model, image_processor, picture())
    np.testing.assert_array_equal(result.mask, mask)
    np.testing.assert_array_equal(result.confidence, confidence)
    with pytest.raises(ValueError, match=r"loaded model is given: leave them out.*model\.to"):
        allspark_hf.segment((model, image_processor), picture(), device="cpu")
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        allspark_hf.segment((model.train(), image_processor), picture())


@pytest.mark.parametrize("model", [None, picture(), (1, 2), ("a", "b", "c")])
def test_wrong_models(model):
    with pytest.raises(ValueError, match=r"pair \(model, image_processor\) is needed: the image comes second"):
        allspark_hf.segment(model, picture())


BAD = {
    "None": (None, "type NoneType"),
    "tensor": (torch.zeros(3, 40, 40), "type Tensor"),
    "float": (np.zeros((40, 40, 3)), r"An array is float64 of shape \(40, 40, 3\).* multiply values of 0 to 1 by 255"),
    "32 bits": (np.zeros((40, 40), np.int32), r"int32 of shape \(40, 40\)"),
    "no file": ({"image": b""}, "type dict"),
    "empty file": ({"bytes": None, "path": None}, "type dict.*dict of the bytes or the path"),
    "channels first": (np.zeros((3, 40, 40), np.uint8), r"uint8 of shape \(3, 40, 40\)"),
    "alpha": (np.zeros((40, 40, 4), np.uint8), r"uint8 of shape \(40, 40, 4\)"),
    "batch": (np.zeros((2, 40, 40, 3), np.uint8), r"uint8 of shape \(2, 40, 40, 3\)"),
    "empty array": (np.zeros((0, 40, 3), np.uint8), r"uint8 of shape \(0, 40, 3\)"),
    "absent file": ("absent.png", "There is no file absent.png"),
    "url": ("https://example.com/a.png", "There is no file https"),
    "narrow": (Image.new("RGB", (1, 5000)), "1x5000 pixels.*too narrow"),
    "floating point": (Image.new("F", (40, 40)), "floating-point"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images(model_dir, name):
    image, message = BAD[name]
    for given in (image, [picture(), image]):
        with pytest.raises(ValueError, match=message) as caught:
            allspark_hf.segment(model_dir, given)
        assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_bad_files(model_dir, tmp_path, loads):
    picture().save(tmp_path / "photo.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "photo.png").read_bytes()[:500])
    (tmp_path / "text.jpg").write_text("no image")
    for name in ("broken.png", "text.jpg"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as an image: ") as caught:
            allspark_hf.segment(model_dir, [tmp_path / "photo.png", tmp_path / name])
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="There is no file"):
        allspark_hf.segment(model_dir, tmp_path)
    assert not loads  # images are read before the model is

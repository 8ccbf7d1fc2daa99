"""`pipeline("image-segmentation")`: label names and masks at the image's own size, with and without this package."""

import json

import datasets
import numpy as np
import pytest
import torch
from conftest import TINY, tiny_model
from PIL import Image
from test_auto_classes import needs_auto_image_processor, nothing_is_warned_of  # noqa: F401
from transformers import SegformerConfig, SegformerForSemanticSegmentation, pipeline
from transformers.pipelines.pt_utils import KeyDataset
from without_package import run_without_package

from allspark_hf import SegformerForSemiSupervisedSegmentation
from allspark_hf.inference.loading import load_trained, make_image_processor
from allspark_hf.inference.prediction import predict_mask


pytestmark = needs_auto_image_processor
SIZES = ((71, 57), (53, 95), (60, 60))  # (height, width)
NAMES = {0: "road", 1: "traffic sign", 2: "sky"}


def pictures() -> list[Image.Image]:
    """Blocks of random colors, for more than one class in a prediction."""
    rng = np.random.default_rng(2)
    blocks = [rng.integers(256, size=(height // 8 + 1, width // 8 + 1, 3)) for height, width in SIZES]
    arrays = [block.repeat(8, 0).repeat(8, 1)[: size[0], : size[1]] for block, size in zip(blocks, SIZES, strict=True)]
    return [Image.fromarray(array.astype(np.uint8)) for array in arrays]


def save(folder, num_labels=3, long_side=64):
    names = NAMES if num_labels == 3 else {index: f"name {index}" for index in range(num_labels)}
    model = tiny_model(num_labels=num_labels, id2label=names)
    with torch.no_grad():  # the classes' mean logits on these pictures, so that none of them wins everywhere
        processor = make_image_processor(long_side)
        inputs = [processor(images=picture, return_tensors="pt").pixel_values for picture in pictures()]
        means = torch.stack([model.eval()(pixels).logits.mean((0, 2, 3)) for pixels in inputs]).mean(0)
        model.decode_head.classifier.bias -= means
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("pipeline") / "model-0.1")


def class_map(segments: list[dict], names: dict[int, str]) -> np.ndarray:
    """The class of every pixel, from segments that must not overlap, in the order of their classes, none empty."""
    masks = [np.array(segment["mask"]) for segment in segments]
    assert all(segment.keys() == {"score", "label", "mask"} and segment["mask"].mode == "L" for segment in segments)
    assert all(set(np.unique(mask)) <= {0, 255} and mask.any() for mask in masks)
    assert (np.sum([mask == 255 for mask in masks], axis=0) == 1).all()
    index_of = {name: index for index, name in names.items()}
    classes = [index_of[segment["label"]] for segment in segments]
    assert classes == sorted(set(classes))
    return np.sum([index * (mask == 255) for index, mask in zip(classes, masks, strict=True)], axis=0)


@pytest.fixture(scope="module")
def segmenter(folder):
    segmenter = pipeline("image-segmentation", model=str(folder), device="cpu")
    assert type(segmenter.model) is SegformerForSemiSupervisedSegmentation
    return segmenter


@pytest.fixture(scope="module")
@torch.no_grad()
def expected(folder) -> list[np.ndarray]:
    """By hand: the model, then the image processor's own post-processing; (height, width) of each picture."""
    model = SegformerForSemiSupervisedSegmentation.from_pretrained(folder).eval()
    processor = load_trained(str(folder), device="cpu")[1]
    maps = []
    for picture, size in zip(pictures(), SIZES, strict=True):
        outputs = model(**processor(images=picture, return_tensors="pt"))
        (classes,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[size])
        assert classes.shape == size and len(np.unique(classes)) == 3  # all three names come up
        maps.append(classes.numpy())
    return maps


def assert_maps(results: list[list[dict]], expected: list[np.ndarray], names=NAMES):
    assert len(results) == len(expected)
    for segments, classes in zip(results, expected, strict=True):
        assert np.array_equal(class_map(segments, names), classes)


def test_images_of_any_kind_one_by_one_and_in_lists(segmenter, expected, tmp_path):
    paths = [str(tmp_path / f"{index}.png") for index in range(len(SIZES))]
    for picture, path in zip(pictures(), paths, strict=True):
        picture.save(path)
    dataset = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
    for images in (pictures(), paths, KeyDataset(dataset, "image"), (row["image"] for row in dataset)):
        assert_maps(list(segmenter(images)), expected)
    assert_maps([segmenter(picture) for picture in pictures()], expected)
    assert_maps([segmenter(paths[1])], expected[1:2])
    assert [segment["label"] for segment in segmenter(pictures()[0])] == ["road", "traffic sign", "sky"]


def test_batches(segmenter):
    """Images of one size in a batch: each gets what it gets alone."""
    same = [pictures()[0], pictures()[0].transpose(Image.Transpose.ROTATE_180), pictures()[0].convert("L")]
    alone = [class_map(segmenter(picture), NAMES) for picture in same]
    assert not np.array_equal(alone[0], alone[1])
    assert_maps(segmenter(same, batch_size=3), alone)


@pytest.mark.parametrize(("num_labels", "long_side"), [(1, 64), (3, None), (81, None)])
def test_equal_to_predict_mask(tmp_path, num_labels, long_side):
    """Given the folder as a path, or its model and image processor."""
    save(tmp_path, num_labels, long_side)
    model, processor = load_trained(str(tmp_path), device="cpu")
    expected = [predict_mask(model, processor, picture) for picture in pictures()]
    assert max(len(np.unique(classes)) for classes in expected) >= min(num_labels, 10)
    for given in ({"model": tmp_path}, {"model": model, "image_processor": processor}):
        segmenter = pipeline("image-segmentation", **given, device="cpu")
        assert_maps(segmenter(pictures()), expected, model.config.id2label)


def test_turned_photograph(folder, segmenter, tmp_path):
    """A camera's orientation mark: the mask is that of the upright picture, as from `predict_mask`."""
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    pictures()[0].save(tmp_path / "photo.png", exif=exif)
    segments = segmenter(str(tmp_path / "photo.png"))
    assert segments[0]["mask"].size == (71, 57)
    expected = predict_mask(*load_trained(str(folder), device="cpu"), Image.open(tmp_path / "photo.png"))
    assert_maps([segments], [expected])


def test_score_is_what_transformers_gives_every_semantic_model(segmenter, tmp_path):
    """None: its pipeline computes scores for instance and panoptic models only."""
    fields = {name: value for name, value in TINY.items() if name in SegformerConfig.__dataclass_fields__}
    SegformerForSemanticSegmentation(SegformerConfig(**fields, id2label=NAMES)).save_pretrained(tmp_path)
    make_image_processor().save_pretrained(tmp_path)
    of_segformer = pipeline("image-segmentation", model=str(tmp_path), device="cpu")(pictures()[0])
    of_ours = segmenter(pictures()[0])
    assert {segment["score"] for segment in of_ours} == {segment["score"] for segment in of_segformer} == {None}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(folder, expected, dtype):
    segmenter = pipeline("image-segmentation", model=folder, dtype=dtype, device="cpu")
    assert segmenter.model.dtype == dtype
    for segments, classes in zip(segmenter(pictures()), expected, strict=True):
        assert (class_map(segments, NAMES) == classes).mean() > 0.9


REMOTE = """
import json, logging, sys
from pathlib import Path
import numpy as np
from transformers import pipeline

folder, images, made = map(Path, sys.argv[1:4])
messages = []

class Collect(logging.Handler):
    def emit(self, record):
        messages.append(record.getMessage())

logging.getLogger("transformers").addHandler(Collect(logging.WARNING))
segmenter = pipeline("image-segmentation", model=str(folder), trust_remote_code=True, device="cpu")
results = segmenter([str(path) for path in sorted(images.iterdir())])
report = {"messages": messages, "class": type(segmenter.model).__module__, "labels": []}
for number, segments in enumerate(results):
    report["labels"].append([segment["label"] for segment in segments])
    for index, segment in enumerate(segments):
        segment["mask"].save(made / f"{number}_{index}.png")
segmenter.save_pretrained(made / "saved")
(made / "report.json").write_text(json.dumps(report))
"""


def test_without_the_package(folder, expected, tmp_path):
    images, made = tmp_path / "images", tmp_path / "made"
    images.mkdir()
    made.mkdir()
    for index, picture in enumerate(pictures()):
        picture.save(images / f"{index}.png")
    run_without_package(tmp_path, REMOTE, folder, images, made)
    report = json.loads((made / "report.json").read_text())
    assert report["messages"] == []
    assert report["class"].startswith("transformers_modules.") and report["class"].endswith(".modeling_allspark")
    results = [
        [
            {"score": None, "label": label, "mask": Image.open(made / f"{number}_{index}.png")}
            for index, label in enumerate(labels)
        ]
        for number, labels in enumerate(report["labels"])
    ]
    assert_maps(results, expected)
    assert {path.name for path in (made / "saved").iterdir()} == {path.name for path in folder.iterdir()}
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        assert (made / "saved" / name).read_bytes() == (folder / name).read_bytes()

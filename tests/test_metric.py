"""MeanIoU against the definition of evaluate's mean_iou, which works on whole lists of arrays."""

import os
import pickle

import evaluate
import numpy as np
import pytest
import torch
from parity import Reference
from PIL import Image

from allspark_hf.evaluation.metric import MeanIoU
from allspark_hf.evaluation.metrics import ConfusionMatrix


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """evaluate makes a folder for every metric; no file may appear in it."""
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))
    yield
    assert [files for _, _, files in os.walk(tmp_path) if files] == []


def oracle(predictions, references, num_labels, ignore_index, reduce_labels=False, label_map=None, nan_to_num=None):
    """Histograms over the classes of what is common, predicted and true, where the label is not ignored."""
    sums = np.zeros((3, num_labels))
    for prediction, label in zip(predictions, references, strict=True):
        prediction, label = np.array(prediction).astype(int), np.array(label).astype(int)
        for old, new in (label_map or {}).items():
            label[label == old] = new
        if reduce_labels:
            label[label == 0] = 255
            label = label - 1
            label[label == 254] = 255
        prediction, label = prediction[label != ignore_index], label[label != ignore_index]
        for row, values in enumerate((prediction[prediction == label], prediction, label)):
            sums[row] += np.histogram(values, bins=num_labels, range=(0, num_labels - 1))[0]
    intersect, predicted, true = sums
    with np.errstate(all="ignore"):
        iou, accuracy = intersect / (predicted + true - intersect), intersect / true
        metrics = {
            "mean_iou": np.nanmean(iou) if not np.isnan(iou).all() else np.nan,
            "mean_accuracy": np.nanmean(accuracy) if not np.isnan(accuracy).all() else np.nan,
            "overall_accuracy": intersect.sum() / true.sum(),
            "per_category_iou": iou,
            "per_category_accuracy": accuracy,
        }
    if nan_to_num is not None:
        metrics = {name: np.nan_to_num(value, nan=nan_to_num) for name, value in metrics.items()}
    return metrics


def assert_same(actual, expected):
    assert list(actual) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=0, atol=1e-12, err_msg=name)


def random_pairs(num_labels, seed=0, sizes=((20, 24), (17, 31), (26, 15)), highest=None):
    rng = np.random.default_rng(seed)
    predictions = [rng.integers(num_labels, size=size) for size in sizes]
    references = [
        np.where(rng.random(size) < 0.5, prediction, rng.integers(highest or num_labels, size=size)).astype(np.uint8)
        for size, prediction in zip(sizes, predictions, strict=True)
    ]
    for reference in references:
        reference[:3] = 255
    return predictions, references


CASES = {
    "plain": {"num_labels": 6, "ignore_index": 255},
    "two classes": {"num_labels": 2, "ignore_index": 255},
    "81 classes": {"num_labels": 81, "ignore_index": 255},
    "one class": {"num_labels": 1, "ignore_index": 255},
    "classes that never occur": {"num_labels": 9, "ignore_index": 255},
    "absent as 0": {"num_labels": 9, "ignore_index": 255, "nan_to_num": 0},
    "a class is ignored": {"num_labels": 6, "ignore_index": 2},
    "background taken off": {"num_labels": 6, "ignore_index": 255, "reduce_labels": True},
    "renamed in a chain": {"num_labels": 6, "ignore_index": 255, "label_map": {0: 3, 3: 1, 5: 255}},
    "renamed and taken off": {"num_labels": 5, "ignore_index": 255, "label_map": {4: 0}, "reduce_labels": True},
    "an ignore index that is not stored": {"num_labels": 6, "ignore_index": -100},
    "more classes than can be stored": {"num_labels": 300, "ignore_index": 255},
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_equals_the_definition(settings):
    occurring = min(settings["num_labels"], 81 if settings["num_labels"] == 81 else 6)
    # Labels also hold values that are neither class nor ignored; predictions hold classes that are not asked for.
    predictions, references = random_pairs(occurring, highest=occurring + 2)
    predictions[0][5, 5:9] = 100
    expected = oracle(predictions, references, **settings)
    metric = MeanIoU()
    for prediction, reference in zip(predictions, references, strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert_same(metric.compute(**settings), expected)
    assert_same(metric.compute(predictions=predictions, references=references, **settings), expected)
    before = [reference.copy() for reference in references]
    metric.add_batch(predictions=predictions[:2], references=references[:2])
    metric.add_batch(predictions=predictions[2:], references=references[2:])
    assert_same(metric.compute(**settings), expected)
    assert all(np.array_equal(*pair) for pair in zip(before, references, strict=True))


def test_nothing_but_ignored_pixels():
    arrays = [np.zeros((4, 5), dtype=int)], [np.full((4, 5), 255)]
    settings = {"num_labels": 3, "ignore_index": 255}
    assert_same(
        MeanIoU().compute(predictions=arrays[0], references=arrays[1], **settings), oracle(*arrays, **settings)
    )


def test_every_kind_of_label_map():
    prediction = np.array([[0, 1, 2], [2, 1, 0]])
    reference = np.array([[0, 1, 1], [2, 1, 255]])
    expected = oracle([prediction], [reference], 3, 255)
    kinds = [
        lambda array: array.tolist(),
        lambda array: array.astype(np.uint8),
        lambda array: torch.from_numpy(array),
        lambda array: torch.from_numpy(array).to(torch.uint8),
        lambda array: Image.fromarray(array.astype(np.uint8)),
        lambda array: Image.fromarray(array.astype(np.uint8)).convert("P"),
        lambda array: Image.fromarray(array.astype(np.int32)),
    ]
    for kind in kinds:
        metric = MeanIoU()
        metric.add(prediction=kind(prediction), reference=kind(reference))
        assert_same(metric.compute(num_labels=3, ignore_index=255), expected)
    metric.add_batch(predictions=torch.from_numpy(prediction)[None], references=torch.from_numpy(reference)[None])
    assert_same(metric.compute(num_labels=3, ignore_index=255), expected)


def test_memory_does_not_grow_with_images():
    metric = MeanIoU()
    predictions, references = random_pairs(6)
    sizes = set()
    for number in range(1, 21):
        metric.add_batch(predictions=predictions, references=references)
        assert len(metric) == 3 * number
        sizes.add(len(pickle.dumps(metric.__dict__)))
    assert max(sizes) - min(sizes) < 100 and max(sizes) < 256 * 256 * 8 + 20_000
    assert metric.writer is None and metric.data is None  # what evaluate's own metrics keep images in


def test_compute_forgets():
    metric = MeanIoU()
    predictions, references = random_pairs(6)
    settings = {"num_labels": 6, "ignore_index": 255}
    first = metric.compute(predictions=predictions[:1], references=references[:1], **settings)
    second = metric.compute(predictions=predictions[1:], references=references[1:], **settings)
    assert_same(first, oracle(predictions[:1], references[:1], **settings))
    assert_same(second, oracle(predictions[1:], references[1:], **settings))
    assert len(metric) == 0
    with pytest.raises(ValueError, match="No image was added"):
        metric.compute(**settings)


def test_agrees_with_the_confusion_matrix_of_training():
    predictions, references = random_pairs(6)
    confusion = ConfusionMatrix(8)
    for prediction, reference in zip(predictions, references, strict=True):
        confusion.update(torch.from_numpy(prediction), torch.from_numpy(reference))
    ours = confusion.metrics({index: str(index) for index in range(8)})
    result = MeanIoU().compute(predictions=predictions, references=references, num_labels=8, ignore_index=255)
    for name in ("mean_iou", "mean_accuracy", "overall_accuracy"):
        assert ours[name] == pytest.approx(result[name], abs=1e-12)
    assert [ours[f"iou_{index}"] for index in range(6)] == pytest.approx(result["per_category_iou"][:6].tolist())
    assert np.isnan(result["per_category_iou"][6:]).all() and "iou_6" not in ours


def test_processes_add_up_their_counts():
    predictions, references = random_pairs(6)
    settings = {"num_labels": 6, "ignore_index": 255}
    processes = [MeanIoU(), MeanIoU()]
    processes[0].add_batch(predictions=predictions[:2], references=references[:2])
    processes[1].add_batch(predictions=predictions[2:], references=references[2:])
    processes[0].confusion.counts += processes[1].confusion.counts
    assert_same(processes[0].compute(**settings), oracle(predictions, references, **settings))
    with pytest.raises(ValueError, match="num_process=2: MeanIoU writes no files that processes could share"):
        MeanIoU(num_process=2)


def test_combines_with_other_metrics():
    predictions, references = random_pairs(6)
    combined = evaluate.combine({"segmentation": MeanIoU()})
    combined.add_batch(predictions=predictions, references=references)
    result = combined.compute(num_labels=6, ignore_index=255)
    assert_same(result, oracle(predictions, references, 6, 255))
    assert MeanIoU().name == "mean_iou"


def test_the_authors_counts(parity_dir):
    """Also where labels hold 254, which the authors count as evaluate does; absent classes count 0 with them."""
    stored = Reference(parity_dir).load("mean_iou")
    metric = MeanIoU()
    for index in range(3):
        metric.add(prediction=stored[f"pred{index}"], reference=stored[f"gt{index}"])
    iou = metric.compute(num_labels=6, ignore_index=255, nan_to_num=0)["per_category_iou"]
    assert (100 * iou).tolist() == pytest.approx(stored["iou_class"].tolist(), abs=1e-9)
    assert 100 * iou.mean() == pytest.approx(stored["miou"].item(), abs=1e-9)


WRONG = [
    ([np.zeros((2, 3), int)], [], "There are 1 predictions and 0 references"),
    ([np.zeros((2, 3), int)], [np.zeros((3, 2), int)], r"Predictions have the shape \(2, 3\), labels \(3, 2\)"),
    ([np.zeros((2, 3))], [np.zeros((2, 3))], r"has the shape \(2, 3\) and the type float64: give whole numbers"),
    ([np.zeros((2, 3, 3), int)], [np.zeros((2, 3), int)], r"has the shape \(2, 3, 3\)"),
    ([np.zeros((2, 3), int)], [np.full((2, 3), 256)], "A label is 256, but there are the classes 0 to 255"),
    ([np.full((2, 3), -1)], [np.zeros((2, 3), int)], "A prediction is -1, but"),
    ([None], [np.zeros((2, 3), int)], "A prediction or reference is None"),
]


@pytest.mark.parametrize(("predictions", "references", "sentence"), WRONG)
def test_wrong_arrays_are_refused(predictions, references, sentence):
    with pytest.raises(ValueError, match=sentence):
        MeanIoU().compute(predictions=predictions, references=references, num_labels=3, ignore_index=255)


def test_compute_needs_classes():
    with pytest.raises(ValueError, match="compute needs num_labels and ignore_index"):
        MeanIoU().compute(predictions=[[[0]]], references=[[[0]]])


def test_more_than_256_values():
    metric = MeanIoU(num_values=1000)
    predictions, references = [np.array([[700, 999, 3]])], [np.array([[700, 998, 3]])]
    settings = {"num_labels": 1000, "ignore_index": 255}
    result = metric.compute(predictions=predictions, references=references, **settings)
    assert_same(result, oracle(predictions, references, **settings))

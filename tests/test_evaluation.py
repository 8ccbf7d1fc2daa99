"""The confusion matrix and the metrics drawn from it."""

import numpy as np
import pytest
import torch
from conftest import make_dataset, tiny_model

from allspark_hf.evaluation import ConfusionMatrix, EvaluationDataset, evaluate_batch
from allspark_hf.losses import upsample


NAMES = {0: "road", 1: "sign symbol", 2: "sky"}


def test_metrics_by_hand():
    confusion = ConfusionMatrix(3)
    labels = torch.tensor([[0, 0, 1, 255], [0, 1, 1, 255]])
    predictions = torch.tensor([[0, 1, 1, 2], [0, 1, 0, 1]])
    confusion.update(predictions, labels)
    assert confusion.counts.tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]
    metrics = confusion.metrics(NAMES)
    assert metrics == {
        "mean_iou": pytest.approx(0.5),
        "mean_accuracy": pytest.approx(2 / 3),
        "overall_accuracy": pytest.approx(4 / 6),
        "iou_road": pytest.approx(0.5),
        "iou_sign_symbol": pytest.approx(0.5),
    }
    assert confusion.metrics(NAMES, count_absent_classes=True)["mean_iou"] == pytest.approx(1 / 3)


def test_a_class_only_predicted_is_not_absent():
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([2, 0]), torch.tensor([0, 0]))
    metrics = confusion.metrics(NAMES)
    assert metrics["iou_sky"] == 0 and metrics["mean_iou"] == pytest.approx(0.25)


def test_nothing_valid_gives_zero_not_nan():
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([1, 2]), torch.tensor([255, 255]))
    assert confusion.metrics(NAMES) == {"mean_iou": 0.0, "mean_accuracy": 0.0, "overall_accuracy": 0.0}


@pytest.mark.parametrize("num_labels", [1, 3, 81])
def test_streaming_equals_all_at_once(num_labels):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(num_labels, (5, 17, 23), generator=generator)
    labels[labels.new_tensor(np.random.default_rng(0).random(labels.shape) < 0.1, dtype=torch.bool)] = 255
    predictions = torch.randint(num_labels, (5, 17, 23), generator=generator)
    streamed, whole = ConfusionMatrix(num_labels), ConfusionMatrix(num_labels)
    for prediction, label in zip(predictions, labels, strict=True):
        streamed.update(prediction, label)
    whole.update(predictions, labels)
    assert torch.equal(streamed.counts, whole.counts)
    for index in range(num_labels):
        intersection = ((predictions == index) & (labels == index)).sum()
        union = (((predictions == index) | (labels == index)) & (labels != 255)).sum()
        assert whole.iou()[index].item() == pytest.approx((intersection / union).item(), rel=1e-6)


def test_images_of_different_sizes_are_scored_at_their_masks_size(image_processor):
    model = tiny_model().eval()
    sizes = [(48, 72), (48, 72), (72, 48), (120, 96)]
    sets = [EvaluationDataset(make_dataset(1, seed=i, size=size), image_processor, 3) for i, size in enumerate(sizes)]
    samples = [dataset[0] for dataset in sets]
    confusion = ConfusionMatrix(3)
    loss, pixels = evaluate_batch(model, samples, confusion, torch.device("cpu"))
    expected = ConfusionMatrix(3)
    expected_loss = 0.0
    for sample, size in zip(samples, sizes, strict=True):
        assert sample["labels"].shape == size
        with torch.no_grad():
            logits = upsample(model(sample["pixel_values"][None]).logits, size)
        expected.update(logits.argmax(1)[0], sample["labels"])
        expected_loss += torch.nn.functional.cross_entropy(
            logits, sample["labels"][None], ignore_index=255, reduction="sum"
        ).item()
    assert torch.equal(confusion.counts, expected.counts)
    assert pixels == confusion.counts.sum() and loss == pytest.approx(expected_loss, rel=1e-5)

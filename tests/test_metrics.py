"""The confusion matrix and boundary IoU, and the metrics drawn from them."""

import numpy as np
import pytest
import torch
from parity import Reference

from allspark_hf.evaluation.metrics import BoundaryCounts, ConfusionMatrix, boundary_distance, on_boundary


NAMES = {0: "road", 1: "sign symbol", 2: "sky"}


def random_maps(num_labels, shape, seed=0, ignored=0.1, block=1):
    """Labels with ignored pixels, and predictions that are right about half of the time."""
    rng = np.random.default_rng(seed)
    batch, height, width = shape
    small = (batch, -(-height // block), -(-width // block))
    labels = rng.integers(num_labels, size=small).repeat(block, 1).repeat(block, 2)[:, :height, :width]
    other = rng.integers(num_labels, size=small).repeat(block, 1).repeat(block, 2)[:, :height, :width]
    predictions = np.where(rng.random(shape) < 0.5, labels, np.roll(other, 1, axis=1))
    labels = labels.copy()
    labels[rng.random(shape) < ignored / 2] = 255
    labels[:, : round(ignored * height)] = 255
    return torch.from_numpy(predictions), torch.from_numpy(labels)


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
    assert confusion.pixel_share().tolist() == [0.5, 0.5, 0]


def test_a_class_only_predicted_is_not_absent():
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([2, 0]), torch.tensor([0, 0]))
    metrics = confusion.metrics(NAMES)
    assert metrics["iou_sky"] == 0 and metrics["mean_iou"] == pytest.approx(0.25)


def test_nothing_valid_gives_zero_not_nan():
    confusion, boundary = ConfusionMatrix(3), BoundaryCounts(3)
    confusion.update(torch.tensor([[[1, 2]]]), torch.tensor([[[255, 255]]]))
    boundary.update(torch.tensor([[[1, 2]]]), torch.tensor([[[255, 255]]]))
    assert confusion.metrics(NAMES) == {"mean_iou": 0.0, "mean_accuracy": 0.0, "overall_accuracy": 0.0}
    assert boundary.metrics(NAMES) == {"mean_boundary_iou": 0.0}


@pytest.mark.parametrize("num_labels", [1, 3, 81])
def test_streaming_equals_all_at_once(num_labels):
    predictions, labels = random_maps(num_labels, (5, 17, 23))
    streamed, whole = ConfusionMatrix(num_labels), ConfusionMatrix(num_labels)
    for prediction, label in zip(predictions, labels, strict=True):
        streamed.update(prediction, label)
    whole.update(predictions.to(torch.int32), labels.to(torch.uint8))
    assert torch.equal(streamed.counts, whole.counts)
    for index in range(num_labels):
        intersection = ((predictions == index) & (labels == index)).sum()
        union = (((predictions == index) | (labels == index)) & (labels != 255)).sum()
        assert whole.iou()[index].item() == pytest.approx((intersection / union).item(), rel=1e-6)
        share = intersection / (labels == index).sum()
        assert whole.accuracy()[index].item() == pytest.approx(share.item(), rel=1e-6)


@pytest.mark.parametrize("counter", [ConfusionMatrix, BoundaryCounts])
@pytest.mark.parametrize(
    ("label", "prediction", "sentence"),
    [
        (3, 0, r"A label is 3, but there are the classes 0 to 2: give one of these, or the label 255 of ignored"),
        (254, 0, "A label is 254, but"),
        (-1, 2, "A label is -1, but"),  # with the offset of the prediction a pair in range
        (0, 4, "A prediction is 4, but there are the classes 0 to 2: give one of these for every pixel"),
        (1, -1, "A prediction is -1, but"),
        (0, 255, "A prediction is 255, but"),
    ],
)
def test_values_out_of_range_are_refused_and_not_counted_elsewhere(counter, label, prediction, sentence):
    counts = counter(3)
    labels, predictions = torch.ones(2, 1, 4, 5, dtype=torch.int64)
    labels[0, 2, 3], predictions[0, 2, 3] = label, prediction
    with pytest.raises(ValueError, match=sentence):
        counts.update(predictions, labels)
    assert counts.counts.sum() == 0


def test_maps_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match=r"Predictions have the shape \(4, 6\), labels \(6, 4\)"):
        ConfusionMatrix(3).update(torch.zeros(4, 6, dtype=torch.int64), torch.zeros(6, 4, dtype=torch.int64))


# ---- The authors' numbers ----


def counts_of(confusion):
    counts = confusion.counts
    intersection, target = counts.diagonal(), counts.sum(1)
    return intersection, counts.sum(0) + target - intersection, target


def authors_mean(intersection, union):
    return (100 * intersection.double() / (union.double() + 1e-10)).mean().item()


def test_counts_and_mean_of_the_authors(parity_dir):
    """Arrays 0 and 1 hold classes and 255 only; there everything agrees, with absent classes counted as they do."""
    stored = Reference(parity_dir).load("mean_iou")
    both = ConfusionMatrix(6)
    for index in range(2):
        confusion = ConfusionMatrix(6)
        for matrix in (confusion, both):
            matrix.update(stored[f"pred{index}"], stored[f"gt{index}"])
        for values, name in zip(counts_of(confusion), ("intersection", "union", "target"), strict=True):
            assert torch.equal(values, stored[f"{name}{index}"]), name
    sums = [stored[f"{name}0"] + stored[f"{name}1"] for name in ("intersection", "union")]
    names = {index: str(index) for index in range(6)}
    metrics = both.metrics(names, count_absent_classes=True)
    assert 100 * metrics["mean_iou"] == pytest.approx(authors_mean(*sums), abs=1e-9)
    assert 100 * both.metrics(names)["mean_iou"] == pytest.approx(authors_mean(*sums) * 6 / 5, abs=1e-9)


def test_labels_that_the_authors_miscount_are_refused(parity_dir):
    """
    254 in array 2, which is neither class nor 255, and the class count 6 as a label in `edge`. The authors count the
    first in the union of the predicted class, the second as class 5; ours are refused, and once ignored agree in all
    other counts.
    """
    stored = Reference(parity_dir).load("mean_iou")
    cases = [("pred2", "gt2", "2", 254), ("edge.pred", "edge.gt", "edge.", 6)]
    for predicted, true, case, value in cases:
        prediction, label = stored[predicted].long(), stored[true].long()
        with pytest.raises(ValueError, match=f"A label is {value}, but there are the classes 0 to 5"):
            ConfusionMatrix(6).update(prediction, label)
        confusion = ConfusionMatrix(6)
        confusion.update(prediction, label.where(label != value, 255))
        intersection, union, target = counts_of(confusion)
        key = (lambda name, case=case: case + name) if case == "edge." else (lambda name, case=case: name + case)
        miscounted = torch.bincount(prediction[label == value], minlength=6)
        in_last_class = torch.tensor([0] * 5 + [int((label == value).sum()) if case == "edge." else 0])
        assert miscounted.sum() >= 12
        assert torch.equal(intersection, stored[key("intersection")])
        assert torch.equal(target, stored[key("target")] - in_last_class)
        assert torch.equal(union, stored[key("union")] - miscounted - in_last_class)


# ---- Boundary IoU ----


def eroded(mask: np.ndarray, distance: int) -> np.ndarray:
    """Erosion by `distance` steps of a 3x3 square, the outside of the image counting as outside of the mask."""
    for _ in range(distance):
        padded = np.pad(mask, 1, constant_values=False)
        shifts = [(row, column) for row in range(3) for column in range(3)]
        height, width = mask.shape
        mask = np.logical_and.reduce([padded[row : row + height, column : column + width] for row, column in shifts])
    return mask


def boundary_by_erosion(predictions, labels, num_labels, distance):
    """The published definition, class by class and image by image."""
    counts = np.zeros((3, num_labels), dtype=np.int64)
    for prediction, label in zip(predictions.numpy(), labels.numpy(), strict=True):
        valid = label != 255
        prediction = np.where(valid, prediction, 255)
        for index in range(num_labels):
            true, predicted = label == index, prediction == index
            true, predicted = true & ~eroded(true, distance), predicted & ~eroded(predicted, distance)
            counts[:, index] += [(true & predicted).sum(), true.sum(), predicted.sum()]
    return torch.from_numpy(counts)


@pytest.mark.parametrize(
    ("num_labels", "shape", "ratio", "distance"),
    [
        (2, (3, 40, 60), 0.02, 1),
        (3, (2, 60, 40), 0.04, 3),
        (5, (1, 33, 90), 0.05, 5),
        (81, (2, 50, 47), 0.03, 2),
        (4, (1, 7, 30), 0.1, 3),  # one row is left inside
        (4, (1, 6, 30), 0.1, 3),  # all is near the border
        (1, (1, 31, 33), 0.02, 1),
        (2, (1, 9, 9), 0.02, 1),  # at least one pixel
    ],
)
def test_boundary_equals_erosion_of_every_class(num_labels, shape, ratio, distance):
    predictions, labels = random_maps(num_labels, shape, block=9)
    assert boundary_distance(*shape[1:], ratio) == distance
    boundary = BoundaryCounts(num_labels, dilation_ratio=ratio)
    boundary.update(predictions, labels)
    expected = boundary_by_erosion(predictions, labels, num_labels, distance)
    assert expected[0].sum() > 0
    assert torch.equal(boundary.counts, expected)
    in_both, of_labels, of_predictions = expected.double()
    iou = in_both / (of_labels + of_predictions - in_both)
    assert torch.equal(boundary.iou().nan_to_num(-1), iou.nan_to_num(-1))


def test_boundary_counts_add_up_over_images_of_different_sizes():
    one, both = [BoundaryCounts(3, dilation_ratio=0.05) for _ in range(2)], BoundaryCounts(3, dilation_ratio=0.05)
    for index, shape in enumerate([(1, 40, 60), (2, 90, 30)]):
        maps = random_maps(3, shape, seed=index, block=7)
        one[index].update(*maps)
        both.update(*maps)
    assert torch.equal(both.counts, one[0].counts + one[1].counts)
    metrics = both.metrics(NAMES)
    assert metrics["mean_boundary_iou"] == pytest.approx(both.iou().mean().item())
    assert metrics["boundary_iou_sign_symbol"] == both.iou()[1].item()


def test_boundary_of_a_square_by_hand():
    """A 4x4 square in the middle of 10x10 pixels, distance 1: its 12 outer pixels, 20 around it, 36 at the border."""
    label = torch.zeros(1, 10, 10, dtype=torch.int64)
    label[:, 3:7, 3:7] = 1
    boundary = on_boundary(label, 1)
    assert boundary[label == 1].sum() == 12
    assert boundary[label == 0].sum() == 36 + 20
    shifted = label.roll(1, dims=2)
    counts = BoundaryCounts(2)
    counts.update(shifted, label)
    # The two rings of 12 share 3 pixels of the top and of the bottom row; the columns lie beside each other.
    assert counts.counts[:, 1].tolist() == [6, 12, 12]
    assert counts.iou()[1].item() == pytest.approx(6 / 18)


@pytest.mark.parametrize(("shape", "inside"), [((8, 30), 48), ((7, 30), 24), ((6, 30), 0), ((30, 2), 0)])
def test_boundary_of_an_image_of_one_class(shape, inside):
    """Distance 3: what is not within 3 pixels of the border, down to a single row."""
    label = torch.zeros(1, *shape, dtype=torch.int64)
    assert (~on_boundary(label, 3)).sum() == inside


def test_ignored_pixels_have_one_edge_in_both_maps():
    """A perfect prediction scores 1, whatever it says where the label is ignored."""
    predictions, labels = random_maps(3, (2, 40, 50), block=9, ignored=0.2)
    predictions = labels.where(labels != 255, predictions)
    boundary = BoundaryCounts(3)
    boundary.update(predictions, labels)
    assert boundary.iou().tolist() == [1, 1, 1]
    assert boundary.counts.sum() == 3 * (on_boundary(labels, 1) & (labels != 255)).sum()
    absent = BoundaryCounts(4)
    absent.update(predictions, labels)
    names = {**NAMES, 3: "car"}
    assert absent.metrics(names)["mean_boundary_iou"] == 1
    assert absent.metrics(names, count_absent_classes=True)["mean_boundary_iou"] == 0.75

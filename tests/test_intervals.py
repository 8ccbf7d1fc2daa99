"""Intervals of a difference of mIoU, and the sentence made of them."""

import json

import numpy as np
import pytest
from in_process import run_script

from allspark_hf.evaluation import intervals
from allspark_hf.evaluation.intervals import (
    Interval,
    difference_interval,
    image_counts,
    margin_interval,
    seeds_interval,
    verdict,
)


@pytest.fixture(autouse=True)
def fewer_samples(monkeypatch):
    monkeypatch.setattr(intervals, "SAMPLES", 200)


def confusions(rng, images: int, num_labels: int, hit: float) -> np.ndarray:
    """Images of 1000 pixels of which a share `hit` is right."""
    found = np.zeros((images, num_labels, num_labels), dtype=np.int64)
    for image in found:
        for _ in range(1000):
            true = rng.integers(num_labels)
            image[true, true if rng.random() < hit else rng.integers(num_labels)] += 1
    return found


def mean_iou(counts: np.ndarray) -> float:
    total = counts.sum(axis=0)
    scores = []
    for index in range(len(total)):
        union = total[index].sum() + total[:, index].sum() - total[index, index]
        if union:
            scores.append(total[index, index] / union)
    return sum(scores) / len(scores)


def test_equals_a_loop():
    rng = np.random.default_rng(3)
    first, second = confusions(rng, 7, 3, 0.7), confusions(rng, 7, 3, 0.8)
    first[:, 2], first[:, :, 2] = 0, 0  # a class that the first model's images do not show
    interval = difference_interval(*(np.stack(list(map(image_counts, one))) for one in (first, second)), seed=5)
    assert interval.difference == pytest.approx(mean_iou(second) - mean_iou(first), abs=1e-12)
    drawn = np.random.default_rng(5).multinomial(7, np.full(7, 1 / 7), size=200)
    differences = []
    for times in drawn:
        chosen = np.repeat(np.arange(7), times)
        differences.append(mean_iou(second[chosen]) - mean_iou(first[chosen]))
    assert interval.low == pytest.approx(np.quantile(differences, 0.025), abs=1e-12)
    assert interval.high == pytest.approx(np.quantile(differences, 0.975), abs=1e-12)


def test_absent_classes_count_as_0_if_asked():
    """The first model is right in 1 of 1 class, or 1 of 2; the second one wrongly predicts the other class."""
    first, second = np.array([[[4, 0], [4, 0], [4, 0]]]), np.array([[[3, 0], [4, 0], [3, 1]]])
    assert difference_interval(first, second)[:] == (0.375 - 1,) * 3
    assert difference_interval(first, second, count_absent=True)[:] == (0.375 - 0.5,) * 3


def test_seeds_equal_a_loop():
    rng = np.random.default_rng(4)
    models, baselines = ([confusions(rng, 5, 3, hit + 0.02 * seed) for seed in range(3)] for hit in (0.8, 0.6))
    counted = [[np.stack(list(map(image_counts, one))) for one in group] for group in (models, baselines)]
    found = seeds_interval(*counted, seed=5)
    images = np.random.default_rng(5).multinomial(5, np.full(5, 1 / 5), size=200)
    trainings = np.random.default_rng(6).multinomial(3, np.full(3, 1 / 3), size=200)
    gains = []
    for times, seeds in zip(images, trainings, strict=True):
        chosen = np.repeat(np.arange(5), times)
        drawn = [mean_iou(models[seed][chosen]) - mean_iou(baselines[seed][chosen]) for seed in range(3)]
        gains.append(np.dot(seeds, drawn) / 3)
    whole = np.mean([mean_iou(one) - mean_iou(other) for one, other in zip(models, baselines, strict=True)])
    assert found == pytest.approx((whole, *np.quantile(gains, [0.025, 0.975])), abs=1e-12)
    assert seeds_interval(models=counted[0]).value == pytest.approx(
        np.mean([mean_iou(one) for one in models]), abs=1e-12
    )


def test_covers_the_truth_about_as_often_as_it_says():
    """Of images whose quality differs, both models being equally good: 0 lies outside about once in twenty."""
    rng = np.random.default_rng(0)
    outside = 0
    for _ in range(200):
        hits = rng.uniform(0.5, 0.9, size=(2, 40)) * 1000
        pair = []
        for of_model in hits:
            right = rng.binomial(1000, of_model / 1000)
            pair.append(np.stack([image_counts(np.array([[one, 1000 - one], [1000 - one, one]])) for one in right]))
        interval = difference_interval(*pair)
        outside += not interval.low <= 0 <= interval.high
    assert 3 <= outside <= 22


def test_a_margin_is_of_images_drawn_apart_and_of_two_models_with_the_same_draws():
    rng = np.random.default_rng(3)
    images = [confusions(rng, count, 3, hit) for hit in (0.9, 0.7) for count in (5, 7)]
    labeled, other, labeled_before, other_before = (np.stack(list(map(image_counts, one))) for one in images)
    draws = np.random.default_rng(2)
    drawn = [draws.multinomial(count, np.full(count, 1 / count), size=200) for count in (5, 7)]
    rows = [[np.repeat(np.arange(len(times)), times) for times in of_set] for of_set in drawn]
    pairs = [(images[0], images[1]), (images[2], images[3])]
    margins = np.array([[mean_iou(a[i]) - mean_iou(b[j]) for i, j in zip(*rows, strict=True)] for a, b in pairs])
    whole = [mean_iou(a) - mean_iou(b) for a, b in pairs]
    quantiles = [0.025, 0.975]
    margin = margin_interval(labeled, other, seed=2)
    assert margin == pytest.approx([whole[0], *np.quantile(margins[0], quantiles)], abs=1e-12)
    change = margin_interval(labeled, other, (labeled_before, other_before), seed=2)
    assert change == pytest.approx([whole[0] - whole[1], *np.quantile(margins[0] - margins[1], quantiles)], abs=1e-12)
    with pytest.raises(ValueError, match="give the same images"):
        margin_interval(labeled, other, (labeled, labeled))


def test_refuses_other_images():
    with pytest.raises(ValueError, match=r"shapes \(3, 3, 2\) and \(4, 3, 2\): give those of the same images"):
        difference_interval(np.ones((3, 3, 2), dtype=int), np.ones((4, 3, 2), dtype=int))


@pytest.mark.parametrize(
    ("interval", "images", "start", "end"),
    [
        (
            (0.054, 0.031, 0.08),
            80,
            "The unlabeled images helped: +5.4 points",
            "resampling 80 validation images.",
        ),
        ((-0.02, -0.03, -0.01), 80, "The unlabeled images did not help, the model got worse: -2.0 points", "images."),
        ((0.01, -0.01, 0.03), 80, "Whether the unlabeled images helped, 80 validation images cannot tell: +1.0", "0."),
        ((0.3, 0.2, 0.4), 3, "Whether the unlabeled images helped, 3 validation images cannot tell", "validate with."),
    ],
)
def test_verdicts(interval, images, start, end):
    sentence = verdict(Interval(*interval), images)
    assert sentence.startswith(start) and sentence.endswith(end)


def test_label_dominance_reads_margins_from_files_of_the_same_images(tmp_path):
    rng = np.random.default_rng(0)
    counts = {
        name: [np.stack(list(map(image_counts, confusions(rng, images, 2, hit)))) for images in (4, 5)]
        for name, hit in (("base", 0.9), ("new", 0.7))
    }
    for name, (labeled, other) in counts.items():
        labeled[:, 1], other[:, 1] = 500, 500  # the same masks
        arrays = {"sets": ["labeled", "validation"], "num_images": [4, 5], "models": [name]}
        np.savez(tmp_path / f"{name}.npz", by_image=np.concatenate([labeled, other])[None], **arrays)
    files = [tmp_path / "base.npz", tmp_path / "new.npz"]
    done = run_script("label_dominance.py", "--figures", *files, "--baseline", "base")
    found = json.loads(done.stdout)
    assert found["images"] == {"labeled": 4, "validation": 5} and list(found["models"]) == ["base", "new"]
    row = found["models"]["new"]["validation"]
    expected = margin_interval(*counts["new"], tuple(counts["base"]))
    assert row["change"] == pytest.approx([100 * value for value in expected], abs=0.051)
    assert row["margin"][0] == pytest.approx(100 * margin_interval(*counts["new"]).difference, abs=0.051)
    assert "change" not in found["models"]["base"]["validation"]
    np.savez(files[1], by_image=np.ones((1, 9, 3, 2), dtype=np.int64), **arrays)
    done = run_script("label_dominance.py", "--figures", *files, "--baseline", "base")
    assert done.returncode == 1 and "are of different images" in done.stderr

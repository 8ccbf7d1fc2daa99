"""A threshold for each class from the share of its pixels that is to count: --keep_quantile."""

import numpy as np
import pytest
import torch
from torch import nn

from allspark_hf import AllSparkTrainingArguments
from allspark_hf.data.mixed import MixedBatch
from allspark_hf.methods import METHODS
from allspark_hf.methods.class_thresholds import ClassThresholds
from allspark_hf.methods.pseudo_labels import CONFIDENCE_STEP, pseudo_label_pass
from allspark_hf.models.modeling_allspark import SemiSupervisedSegmenterOutput


def plainly(updates, decay, label, share, least):
    """The rule for one class: its pixels from the most confident one on, weighted by age, until the share is there."""
    weights = [(1 - decay) * decay**age for age in range(len(updates))][::-1]
    found = [
        (confidence, weight)
        for (labels, confidences, shown), weight in zip(updates, weights, strict=True)
        for confidence in confidences[(labels[:, ::4, ::4] == label) & shown[:, ::4, ::4]]
    ]
    if not found:
        return least
    confidences, weights = np.array(sorted(found, reverse=True)).T
    return max(least, confidences[(weights.cumsum() >= share * weights.sum()).argmax()])


@pytest.mark.parametrize(("share", "least"), [(0.8, 0.5), (0.3, 0.95)])
def test_the_rule_in_numpy(share, least):
    rng = np.random.default_rng(0)
    thresholds, updates = ClassThresholds(4, share, least), []
    for _ in range(3):
        labels = rng.integers(3, size=(2, 64, 80))  # class 3 is never predicted
        confidences = (1 - 10 ** -rng.uniform(0.1, 5, size=(2, 16, 20))).astype(np.float32)
        shown = rng.random((2, 64, 80)) < 0.7
        updates.append((labels, confidences, shown))
        for image in range(2):  # as two accumulated batches
            thresholds.count(*(torch.from_numpy(one[image : image + 1]) for one in updates[-1]))
        thresholds.update(decay=0.6)
    expected = [plainly(updates, 0.6, label, share, least) for label in range(4)]
    distance = (1 - thresholds.values.double().numpy()) / (1 - np.array(expected))
    assert ((distance > 1 - 1e-5) & (distance < 2 ** (1 / 40))).all()  # by less than a bin lower
    assert thresholds.values[3] == pytest.approx(least)


def test_most_confident_share_of_each_class_when_all_pass_the_threshold(tmp_path):
    args = AllSparkTrainingArguments(method="fixmatch", output_dir=str(tmp_path), use_cpu=True, keep_quantile=0.8)
    method = METHODS["fixmatch"](args, 255)
    method.class_thresholds = ClassThresholds(3, args.keep_quantile, args.confidence_threshold)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (2, 128, 128), generator=generator)
    margin = 6 + labels[:, None] + 9 * torch.rand(2, 1, 128, 128, generator=generator)  # a class is surer than another
    model = nn.Module()
    model.config = type("Config", (), {"use_cross_attention": False})
    logits = margin * nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2)
    model.forward = lambda pixel_values: SemiSupervisedSegmenterOutput(logits=logits)
    mask = torch.ones(2, 128, 128, dtype=torch.bool)
    mask[0, :32] = False
    batch = MixedBatch(unlabeled_pixel_mask=mask)
    shares = []
    for _ in range(2):
        predicted = pseudo_label_pass(model, logits, method.threshold)
        assert predicted.confidence.min() > 0.99 and predicted.confidence.shape[1] == 128 // CONFIDENCE_STEP
        kept = method.confident_labels(predicted, batch)
        assert (kept[~mask] == 255).all()
        shares.append([(kept == label).sum() / (mask & (labels == label)).sum() for label in range(3)])
        method.class_thresholds.update(decay=0)
    assert shares[0] == [1, 1, 1]  # in the first update nothing is known yet
    assert shares[1] == pytest.approx([0.8] * 3, abs=0.03)
    assert len(set(method.threshold.tolist())) == 3
    with pytest.raises(ValueError, match=r"keep_quantile=1\.0 is out of range: set a number above 0 and below"):
        AllSparkTrainingArguments(output_dir=str(tmp_path), use_cpu=True, keep_quantile=1.0)

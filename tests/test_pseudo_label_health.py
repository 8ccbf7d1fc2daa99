"""Health of the pseudo-labels: counted by hand, never trained on, and a warning when they collapse."""

import logging

import datasets
import numpy as np
import pytest
import torch
from conftest import make_dataset, small_model
from PIL import Image
from run_training import make_trainer
from test_step import NoFloat64

from allspark_hf import AllSparkConfig
from allspark_hf.data.geometry import crop_label, draw_geometry
from allspark_hf.data.mixed import Draw, MixedBatchCollator, MixedDataset
from allspark_hf.methods import MixedBatch, PixelCounts
from allspark_hf.methods.contrast.heads import class_counts


def dataset_of(unlabeled, num_labels=3, crop=(64, 80)) -> MixedDataset:
    return MixedDataset(make_dataset(2), unlabeled, crop, 0, num_labels, None, (0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("num_labels", [1, 3, 81])
def test_class_counts(num_labels):
    classes = torch.randint(-1, num_labels + 2, (3, 17, 23), generator=torch.Generator().manual_seed(0))
    expected = [(classes == index).sum().item() for index in range(num_labels)]
    assert class_counts(classes, num_labels).tolist() == expected


def test_truth_follows_the_image_through_the_augmentation():
    unlabeled = make_dataset(3, seed=4)
    for position in range(8):
        draw = Draw(False, position % 3, 0, position)
        sample = dataset_of(unlabeled)[draw]
        rng = np.random.default_rng([0, 0, False, position])
        row = unlabeled[draw.row]
        label = crop_label(np.asarray(row["label"]), draw_geometry(row["image"].size, (64, 80), rng), 255)
        assert torch.equal(sample["truth"], torch.from_numpy(label.copy()).long())


def test_truth_changes_nothing_else():
    """In particular a void pixel of the truth is not taken for padding."""
    masks, none = make_dataset(3, seed=4), make_dataset(3, seed=4, masks=False)
    for position in range(8):
        draw = Draw(False, position % 3, 0, position)
        with_truth, without = dataset_of(masks)[draw], dataset_of(none)[draw]
        assert "truth" not in without
        for name in ("pixel_values", "pixel_mask"):
            assert torch.equal(with_truth[name], without[name]), name


def test_rows_without_truth():
    rows = {"image": make_dataset(2)["image"], "label": [None, make_dataset(2)[1]["label"]]}
    unlabeled = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    unlabeled = unlabeled.cast_column("label", datasets.Image())
    samples = [dataset_of(unlabeled)[Draw(False, row, 0, 0)] for row in range(2)]
    assert (samples[0]["truth"] == 255).all() and (samples[1]["truth"] != 255).any()
    labeled = dataset_of(unlabeled)[Draw(True, 0, 0, 0)]
    batch = MixedBatchCollator()([labeled, *samples])
    assert torch.equal(batch["unlabeled_truth"][1], samples[1]["truth"])
    assert batch["labels"].shape == (1, 64, 80)


def test_a_bad_hidden_mask_is_named():
    bad = Image.fromarray(np.full((72, 96), 7, dtype=np.uint8))
    unlabeled = datasets.Dataset.from_dict({"image": make_dataset(1)["image"], "label": [bad]})
    unlabeled = unlabeled.cast_column("image", datasets.Image()).cast_column("label", datasets.Image())
    with pytest.raises(ValueError, match="unlabeled row 0 has the value 7"):
        dataset_of(unlabeled)[Draw(False, 0, 0, 0)]


@pytest.fixture
def trainer(tmp_path):
    return make_trainer(small_model(), output_dir=str(tmp_path), method="allspark")


def test_summary_by_hand(trainer):
    labels = torch.tensor([[[0, 0, 1, 255]]])
    pseudo_labels = torch.tensor([[[2, 2, 1, 255, 0, 2]]])
    truth = torch.tensor([[[2, 1, 1, 1, 255, 255]]])
    trainer.health.update(labels, pseudo_labels, truth)
    trainer.model.bottleneck.memory.num_enqueued += torch.tensor([0, 8, 24])
    summary = trainer.health.summary()
    # Known on both sides: (2, 2), (1, 2), (1, 1) as (truth, pseudo): IoU of 1 and 2 is 1/2 each, 0 is absent.
    assert summary["pseudo_mean_iou"] == pytest.approx(0.5)
    right = {name: value for name, value in summary.items() if "accuracy" in name}
    classes = {"pseudo_accuracy_LABEL_1": 1, "pseudo_accuracy_LABEL_2": 0.5}  # no pseudo-label of class 0 has a truth
    assert right == pytest.approx({"pseudo_accuracy": 2 / 3, **classes})
    expected = {"pseudo_share": (0.2, 0.2, 0.6), "label_share": (2 / 3, 1 / 3, 0), "channel_share": (0, 0.25, 0.75)}
    for name, shares in expected.items():
        assert [summary[f"{name}_LABEL_{index}"] for index in range(3)] == pytest.approx(shares), name


def test_shares_need_no_float64(trainer):
    with NoFloat64():
        trainer.health.update(torch.tensor([0, 1, 2]), torch.tensor([2, 2, 0]), truth=None)
        summary = trainer.health.summary()
    assert [summary[f"pseudo_share_LABEL_{index}"] for index in range(3)] == [1 / 3, 0, 2 / 3]


@pytest.mark.parametrize(
    ("labels", "pseudo_labels", "expected"),
    [
        ((50, 30, 20), (90, 5, 5), 0),  # 10 % others against 50 %
        ((50, 30, 20), (80, 10, 10), None),  # 20 % others
        ((97, 2, 1), (98, 1, 1), None),  # a set that is nearly all background
        ((97, 2, 1), (100, 0, 0), 0),
        ((10, 10, 80), (96, 2, 2), 0),
        ((10, 10, 80), (0, 1, 99), 2),
    ],
)
def test_collapse(trainer, caplog, labels, pseudo_labels, expected):
    trainer.health.counts["labels"] = torch.tensor(labels)
    trainer.health.counts["pseudo_labels"] = torch.tensor(pseudo_labels)
    collapsed = trainer.health.collapsed_onto()
    if expected is None:
        assert collapsed is None
    else:
        assert collapsed == (expected, *(pytest.approx(c[expected] / 100) for c in (pseudo_labels, labels)))
    with caplog.at_level(logging.WARNING):
        trainer.health.log()
    assert ("collapse onto LABEL_" in caplog.text) == (expected is not None)


def test_supervised_has_no_health(tmp_path):
    model = small_model(**AllSparkConfig.plain_segformer_switches())
    trainer = make_trainer(model, output_dir=str(tmp_path), method="supervised", max_steps=2)
    trainer.train()
    assert not [entry for entry in trainer.state.log_history if any("pseudo" in name for name in entry)]


def test_confidence_by_hand(trainer):
    logits = torch.zeros(1, 3, 8, 8)
    logits[0, 1, 0, 0] = 2.0
    logits[0, 2, 4, 4] = 1.0
    pseudo_labels = logits.argmax(dim=1)
    pseudo_labels[0, 0, 4] = 255
    at = [torch.tensor([0, 2.0, 0]).softmax(0).max(), torch.tensor([0, 0, 1.0]).softmax(0).max(), torch.tensor(1 / 3)]
    expected = torch.stack(at).mean().item()  # rows and columns 0 and 4, of which (0, 4) is ignored
    confidence = logits[:, :, ::4, ::4].softmax(1).amax(1)
    assert trainer.method.confidence(confidence, pseudo_labels).item() == pytest.approx(expected)


def test_one_entry_per_epoch_counts_every_pixel(tmp_path):
    trainer = make_trainer(small_model(), output_dir=str(tmp_path), num_train_epochs=2, seed=1)
    seen = []
    step = trainer.method.step

    def spy(model, batch: MixedBatch, pixels: PixelCounts, epoch: int):
        losses = step(model, batch, pixels, epoch)
        seen.append((epoch, losses.pseudo_labels, batch["unlabeled_truth"]))
        return losses

    trainer.method.step = spy
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "pseudo_mean_iou" in entry]
    assert [entry["epoch"] for entry in entries] == [1.0, 2.0]
    for number, entry in enumerate(entries):
        pseudo_labels, truth = (
            torch.cat([seen_step[part] for seen_step in seen if seen_step[0] == number]) for part in (1, 2)
        )
        counted = pseudo_labels != 255
        known = counted & (truth != 255)
        ious = []
        for index in range(3):
            both = ((pseudo_labels == index) & (truth == index) & known).sum()
            either = (((pseudo_labels == index) | (truth == index)) & known).sum()
            ious.append((both / either).item())
            share = ((pseudo_labels == index).sum() / counted.sum()).item()
            assert entry[f"pseudo_share_LABEL_{index}"] == pytest.approx(share)
        assert entry["pseudo_mean_iou"] == pytest.approx(np.nanmean(ious))
        shares = [entry[f"channel_share_LABEL_{index}"] for index in range(3)]
        assert sum(shares) == pytest.approx(1)

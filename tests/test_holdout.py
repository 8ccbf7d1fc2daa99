"""Held-out labeled images: counted by hand, once an evaluation, the same after a resume; and what is refused."""

import logging

import numpy as np
import pytest
import torch
from conftest import make_dataset, small_model
from run_training import build_trainer, make_arguments, make_trainer
from torch.nn import functional as F

from allspark_hf import AllSparkConfig
from allspark_hf.evaluation.metrics import ConfusionMatrix
from allspark_hf.training.holdout import number_held_out, split_holdout
from allspark_hf.training.pseudo_label_health import warn_of_wrong_labels


PLAIN = AllSparkConfig.plain_segformer_switches()
SETTINGS = {"method": "unimatch_v2", "num_unlabeled": 12, "seed": 1, "confidence_threshold": 0.4, "keep_quantile": 0.5}
SETTINGS |= {"holdout_fraction": 0.4, "max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
SETTINGS |= {"save_strategy": "steps", "metric_for_best_model": "a_mean_iou", "ema_decay": 0.5}


def entries(trainer):
    return [entry for entry in trainer.state.log_history if "holdout_kept" in entry]


def trained(folder, resume=None):
    trainer = build_trainer({**SETTINGS, "output_dir": str(folder), "switches": {"seed": 9} if resume else {}})
    trainer.eval_dataset = {"a": make_dataset(2, seed=3), "b": make_dataset(1, seed=4)}
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def by_hand(trainer, dataset):
    """Share of pixels kept, and the right ones of each class, with the teacher and one threshold a class."""
    kept = right = valid = 0
    threshold = trainer.method.threshold.numpy()
    for row in dataset:
        pixels = trainer.processing_class(images=row["image"], return_tensors="pt")["pixel_values"]
        label = np.asarray(row["label"])
        with torch.no_grad():
            logits = trainer.method.teacher(pixel_values=pixels).logits
        full = F.interpolate(logits, size=label.shape, mode="bilinear", align_corners=False).softmax(1)[0].numpy()
        predicted = full.argmax(0)
        counts = (full.max(0) >= threshold[predicted]) & (label != 255)
        valid += (label != 255).sum()
        kept = kept + np.array([(counts & (predicted == index)).sum() for index in range(3)])
        right = right + np.array([(counts & (predicted == label) & (label == index)).sum() for index in range(3)])
    return kept, right, valid


def test_counted_by_hand_once_an_evaluation_and_the_same_after_a_resume(tmp_path):
    whole = trained(tmp_path)
    rest, held_out = split_holdout(whole.args, make_dataset(5, seed=1))
    assert (len(rest), len(held_out), len(whole.train_dataset)) == (3, 2, 3)
    images = [np.asarray(image).tobytes() for part in (rest, held_out) for image in part["image"]]
    assert sorted(images) == sorted(np.asarray(image).tobytes() for image in make_dataset(5, seed=1)["image"])
    assert [entry["step"] for entry in entries(whole)] == [2, 4]  # not again for the second data set, nor at the end
    kept, right, valid = by_hand(whole, held_out)
    last = entries(whole)[-1]
    assert last["holdout_kept"] == pytest.approx(kept.sum() / valid, abs=1e-4) and 0.1 < kept.sum() / valid < 0.9
    assert last["holdout_accuracy"] == pytest.approx(right.sum() / kept.sum(), abs=1e-4)
    shares = {f"holdout_accuracy_LABEL_{i}": right[i] / kept[i] for i in range(3) if kept[i]}
    assert {name: last[name] for name in last if "accuracy_" in name} == pytest.approx(shares, abs=1e-4)
    listed = (tmp_path / "holdout_ids.txt").read_text(encoding="utf-8")
    assert len(listed.splitlines()) == 2
    resumed = trained(tmp_path, resume=str(tmp_path / "checkpoint-2"))
    assert entries(resumed) == entries(whole)
    assert (tmp_path / "holdout_ids.txt").read_text(encoding="utf-8") == listed
    other = make_trainer(small_model(), **{**SETTINGS, "holdout_fraction": 0.2, "output_dir": str(tmp_path)})
    with pytest.raises(ValueError, match=r"holdout_fraction was 0\.4 and is 0\.2"):
        other.checkpoints.check(tmp_path / "checkpoint-2")


def test_a_published_student_is_not_what_gives_the_labels_and_all_modes_stay(tmp_path):
    settings = {"method": "memory_contrastive", "holdout_fraction": 0.2, "output_dir": str(tmp_path)}
    trainer = make_trainer(small_model(), **settings, freeze_encoder=True)
    teacher = trainer.method.teacher
    modes = [module.training for module in teacher.modules()]
    assert any(modes) and trainer.method.labeling_model(trainer.model) is teacher.model
    trainer.evaluate()
    assert [entry["holdout_kept"] for entry in entries(trainer)] == [1.0]  # all pixels count, by their confidence
    assert [module.training for module in teacher.modules()] == modes


def test_at_the_end_without_an_evaluation(tmp_path):
    settings = {"method": "pseudo_label", "holdout_fraction": 0.2, "max_steps": 1, "output_dir": str(tmp_path)}
    trainer = make_trainer(small_model(**PLAIN), **settings)
    trainer.train()
    assert [(entry["step"], entry["holdout_kept"]) for entry in entries(trainer)] == [(1, 1.0)]


def test_what_is_refused(tmp_path):
    settings = {"holdout_fraction": 0.3, "output_dir": str(tmp_path)}
    with pytest.raises(ValueError, match="measures pseudo-labels, and method='supervised' makes none: leave it out"):
        make_trainer(small_model(**PLAIN), method="supervised", **settings)
    args = make_arguments(method="fixmatch", **settings)
    assert [number_held_out(args, number) for number in (2, 3, 4, 20)] == [1, 1, 2, 6]
    with pytest.raises(ValueError, match="would take 1 of 1 labeled images, which leaves none to train on"):
        number_held_out(args, 1)
    labeled = make_dataset(5, seed=1)  # of which 2 are held out, but trained on if they are also given as unlabeled
    with pytest.raises(ValueError, match="2 images are in both unlabeled_dataset and the held-out part of train_dat"):
        make_trainer(small_model(), train=labeled, unlabeled=labeled, **settings)


@pytest.mark.parametrize(
    ("counts", "wrong", "worst"),
    [
        ([[900, 90, 0], [0, 1, 0], [0, 0, 0]], 9, "road, the worst class, 1 %"),
        ([[880, 50, 0], [60, 1010, 0], [0, 0, 0]], None, None),
        ([[880, 50, 9], [60, 1010, 0], [0, 0, 0]], None, None),  # few pixels say little
        ([[850, 30, 0], [200, 920, 0], [0, 0, 0]], 12, "sky, the worst class, 81 %"),
        ([[0, 0, 0], [0, 0, 0], [0, 0, 0]], None, None),
    ],
)
def test_warning_of_wrong_labels(tmp_path, caplog, counts, wrong, worst):
    kept, names = ConfusionMatrix(3), {0: "sky", 1: "road", 2: "car"}
    kept.counts += torch.tensor(counts)
    fixes = {"fixmatch": "set keep_quantile to 0.8, say", "allspark": "choose a method with confidence_threshold"}
    for method, fix in fixes.items():
        caplog.clear()
        args = make_arguments(method=method, output_dir=str(tmp_path))
        with caplog.at_level(logging.WARNING):
            warn_of_wrong_labels("in epoch 3", kept, names, args)
        assert len(caplog.messages) == (wrong is not None)
        for message in caplog.messages:
            assert f"that count in epoch 3, {wrong} % of the pixels are wrong, " in message
            assert f" {worst} are right: {fix}, " in message

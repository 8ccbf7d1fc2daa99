"""Losses, schedules, class weights and augmentation of `memory_contrastive`, against the authors' code."""

import numpy as np
import pytest
import torch
from parity import Reference, assert_near
from PIL import Image

from allspark_hf.data.geometry import Geometry, crop_image, crop_label
from allspark_hf.methods.contrast.balance import ClassBalance
from allspark_hf.methods.contrast.class_mix import choose_classes, class_mix
from allspark_hf.methods.contrast.teacher import teacher_decay
from allspark_hf.methods.contrast.terms import entropy_sum, ramp_up, sum_by_images, weighted_cross_entropy_sum


TOLERANCE = 1e-12


@pytest.fixture(scope="module")
def reference(parity_root):
    return Reference(parity_root / "memory_contrastive")


@pytest.fixture(scope="module")
def description(reference):
    return reference.description


@pytest.fixture(scope="module")
def load(reference):
    return reference.load


# ---- c0, and the schedules ----


def test_loss_terms(load, description):
    stored, ignore = load("c0_loss_terms"), description["c0_loss_terms"]["ignore"]
    labels = stored["labels"].long()
    valid = labels != ignore

    def check(name, term, divisor, *maps):
        logits = stored["logits"].clone().requires_grad_()
        total, sums = sum_by_images(logits, lambda images, labels, *more: [term(images, labels, *more)], labels, *maps)
        value = total / divisor
        value.backward()
        assert_near(sums[0] / divisor, stored[f"{name}.value"], TOLERANCE, f"{name} without gradient")
        assert_near(value, stored[f"{name}.value"], TOLERANCE, name)
        assert_near(logits.grad, stored[f"{name}.grad"], TOLERANCE, f"gradient of {name}")

    for kind, weights in (("unit", torch.ones_like(stored["class_weights"])), ("weighted", stored["class_weights"])):
        check(
            f"ce_labeled.{kind}",
            lambda images, labels, weights=weights: weighted_cross_entropy_sum(images, labels, ignore, weights),
            weights[labels[valid]].sum(),
        )
        of_updates = f"ce_unlabeled.{kind}.iter"
        updates = {int(name.removeprefix(of_updates).partition(".")[0]) for name in stored if of_updates in name}
        assert len(updates) > 1
        for update in updates:
            pixel_weights = ramp_up(update, 2000) * stored["max_probs"] ** 6
            check(
                f"ce_unlabeled.{kind}.iter{update}",
                lambda images, labels, sure, weights=weights: weighted_cross_entropy_sum(
                    images, labels, ignore, weights, sure
                ),
                labels.numel(),
                pixel_weights,
            )
    check("entropy", lambda images, labels: entropy_sum(images, labels, ignore), valid.sum())


def test_schedules(description):
    for update, expected in description["schedules"]["ramp"].items():
        assert ramp_up(int(update), 2000) == pytest.approx(expected, abs=TOLERANCE)
    for update, expected in description["schedules"]["ema_alpha"].items():
        decay = teacher_decay(int(update), description["c1_full_steps"]["iterations_total"])
        assert decay == pytest.approx(expected, abs=TOLERANCE)


# ---- e ----


def test_class_balance(load, description):
    stored, sizes = load("e_class_balancing"), description["e_class_balancing"]
    balance = ClassBalance(sizes["labeled_iters"], sizes["unlabeled_iters"], sizes["classes"])
    steps = sum(name.endswith(".weights") for name in stored)
    for step in range(steps):
        balance.count(stored[f"step{step}.labels"].long(), stored[f"step{step}.pseudo"].long(), step)
        expected = stored[f"step{step}.weights"]
        assert_near(balance.weights(torch.float64), expected, TOLERANCE, f"weights after step {step}")
    assert torch.equal(balance.labeled, stored["labeled_frequencies"].long())
    assert torch.equal(balance.unlabeled, stored["unlabeled_frequencies"].long())


# ---- f ----


def test_class_mix(load, description):
    stored, given = load("f_augmentation_pieces"), description["f_augmentation_pieces"]
    labels = stored["labels"].long()
    num_labels = int(max(max(classes) for classes in given["classmix_classes"])) + 1
    chosen = torch.tensor([[index in classes for index in range(num_labels)] for classes in given["classmix_classes"]])
    partners = torch.arange(1, len(labels) + 1) % len(labels)
    own = torch.arange(len(labels))[:, None, None].expand_as(labels)
    mixed, image, probs, source = class_mix(chosen, labels, partners, labels, stored["image"], stored["probs"], own)
    assert torch.equal(source != own, stored["classmix.mask"][partners].bool())
    assert torch.equal(mixed, stored["classmix.labels"].long())
    assert torch.equal(image, stored["classmix.image"]) and torch.equal(probs, stored["classmix.probs"])


def test_flip(load):
    """
    The fixture's scale, jitter and blur are not reproduced: strong views are the project's, in which Pillow resizes,
    padding is at the right and bottom, brightness and contrast are factors around black and the mean gray, and the
    blur is round.
    """
    stored = load("f_augmentation_pieces")
    side = stored["labels"].shape[-1]
    mirrored = Geometry((side, side), 0, 0, (side, side), mirrored=True)
    for name in ("labels", "probs"):
        for given, expected in zip(stored[name].numpy(), stored[f"flip.{name}"].numpy(), strict=True):
            assert np.array_equal(crop_label(given, mirrored, 255), expected), name
    levels, expected = (stored[name].round().byte().movedim(1, 3).numpy() for name in ("image", "flip.image"))
    for given, result in zip(levels, expected, strict=True):
        assert np.array_equal(crop_image(Image.fromarray(given), mirrored), result)


def test_how_many_classes_are_mixed(description):
    for shown, number in description["f_augmentation_pieces"]["classmix_class_count"].items():
        order = torch.randperm(12)[None]
        labels = torch.tensor([*range(int(shown)), 255]).expand(1, 2, -1)
        chosen = choose_classes(order, labels)
        assert chosen.sum() == number
        first = sorted(range(int(shown)), key=lambda index: order[0, index])[:number]
        assert chosen[0].nonzero().flatten().tolist() == sorted(first)
    assert not choose_classes(torch.full((1, 12), -1), labels).any()

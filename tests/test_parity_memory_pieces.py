"""Losses, schedules, class weights and augmentation of `memory_contrastive`, against the authors' code."""

import pytest
import torch
from parity import Reference, assert_near

from allspark_hf.methods.contrast.augment import augment, blur
from allspark_hf.methods.contrast.balance import ClassBalance
from allspark_hf.methods.contrast.class_mix import choose_classes, class_mix
from allspark_hf.methods.contrast.jitter import jitter
from allspark_hf.methods.contrast.teacher import teacher_decay
from allspark_hf.methods.contrast.terms import entropy_sum, ramp_up, weighted_cross_entropy_sum
from allspark_hf.methods.losses import sum_by_images
from allspark_hf.models.upsampling import cross_entropy_sum


TOLERANCE = 1e-12
JITTER_TOLERANCE = 1e-11
IGNORED = 255


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
            lambda images, labels, weights=weights: cross_entropy_sum(images, labels, ignore, weights),
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


def neutral(number: int, side: int) -> dict[str, torch.Tensor]:
    """Numbers that leave images as they are."""
    return {
        "scaled_size": torch.full((number, 2), side),
        "corner": torch.zeros(number, 2, dtype=torch.int64),
        "flip": torch.zeros(number, dtype=torch.bool),
        "blur": torch.zeros(number, dtype=torch.bool),
        "jitter_order": torch.full((number, 4), -1),
        "jitter_amounts": torch.zeros(number, 4, dtype=torch.float64),
    }


def check_augmented(stored, name: str, drawn: dict[str, torch.Tensor]):
    given = stored["image"] / 255, stored["labels"].long(), stored["probs"]
    image, labels, probs = augment(neutral(len(given[0]), given[1].shape[-1]) | drawn, *given, IGNORED)
    assert_near(255 * image, stored[f"{name}.image"], TOLERANCE, f"{name}.image")
    assert torch.equal(labels, stored[f"{name}.labels"].long())
    assert_near(probs, stored[f"{name}.probs"], TOLERANCE, f"{name}.probs")


def test_scale(load, description):
    stored = load("f_augmentation_pieces")
    side, draws = stored["labels"].shape[-1], description["f_augmentation_pieces"]["scale_draws"]
    assert len(draws) > 2
    for scale, offsets in draws.items():
        new = int(float(scale) * side)
        corner = offsets["row_offset"], offsets["column_offset"]
        if None in corner:
            corner = -((side - new + 1) // 2), -((side - new) // 2)
        number = len(stored["labels"])
        drawn = {"scaled_size": torch.full((number, 2), new), "corner": torch.tensor([corner] * number)}
        check_augmented(stored, f"scale{scale}", drawn)


def test_flip(load):
    stored = load("f_augmentation_pieces")
    check_augmented(stored, "flip", {"flip": torch.ones(len(stored["labels"]), dtype=torch.bool)})


def test_jitter(load):
    stored = load("f_augmentation_pieces")
    names = ("brightness", "contrast", "saturation", "hue")
    amounts = torch.stack([stored[f"jitter.{name}_factor"] for name in names], dim=1)
    amounts[:, 0] -= 1
    order = stored["jitter.order"].long().expand(len(amounts), -1)
    image = 255 * jitter(stored["image"] / 255, order, amounts)
    assert_near(image, stored["jitter.image_out"], JITTER_TOLERANCE, "jitter.image_out")


def test_blur(load):
    stored = load("f_augmentation_pieces")
    assert_near(blur(stored["blur.image_in"]), stored["blur.image_out"], TOLERANCE, "blur.image_out")
    impulse = torch.zeros_like(stored["blur.image_in"])
    middle = impulse.shape[-1] // 2
    impulse[..., middle, middle] = stored["blur.impulse_response"].sum() / 3
    assert_near(blur(impulse), stored["blur.impulse_response"], TOLERANCE, "blur.impulse_response")


def test_how_many_classes_are_mixed(description):
    for shown, number in description["f_augmentation_pieces"]["classmix_class_count"].items():
        order = torch.randperm(12)[None]
        labels = torch.tensor([*range(int(shown)), 255]).expand(1, 2, -1)
        chosen = choose_classes(order, labels)
        assert chosen.sum() == number
        first = sorted(range(int(shown)), key=lambda index: order[0, index])[:number]
        assert chosen[0].nonzero().flatten().tolist() == sorted(first)
    assert not choose_classes(torch.full((1, 12), -1), labels).any()

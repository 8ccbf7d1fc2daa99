"""Losses on upsampled logits, image by image, against the plain form on the whole batch."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from allspark_hf.methods.losses import ohem_labels, upsampled_cross_entropy_sum
from allspark_hf.models import upsampling


def make_logits(num_labels, dtype=torch.float64, images=3, grid=(5, 7), scale=3.0):
    generator = torch.Generator().manual_seed(num_labels)
    logits = torch.randn(images, num_labels, *grid, generator=generator, dtype=torch.float64) * scale
    return logits.to(dtype).requires_grad_()


def make_labels(num_labels, images=3, size=(17, 26), ignored=0.2):
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(num_labels, (images, *size), generator=generator)
    return labels.where(torch.rand(labels.shape, generator=generator) >= ignored, 255)


def plain(logits, labels):
    full = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(full, labels, ignore_index=255, reduction="sum")


@pytest.mark.parametrize("num_labels", [1, 2, 21, 81])
@pytest.mark.parametrize("at_a_time", [1, 2, 3])
def test_loss_and_gradient_equal_the_plain_form(monkeypatch, num_labels, at_a_time):
    monkeypatch.setattr(upsampling, "VALUES_AT_A_TIME", at_a_time * num_labels * 17 * 26)
    labels, sums, gradients = make_labels(num_labels), [], []
    for function in (plain, upsampled_cross_entropy_sum):
        logits = make_logits(num_labels)
        loss = function(logits, labels)
        (3 * loss / 7).backward()
        sums.append(loss.detach())
        gradients.append(logits.grad)
    assert torch.allclose(sums[0], sums[1], rtol=1e-13, atol=1e-10)
    assert (gradients[0] - gradients[1]).abs().max() < 1e-10
    assert num_labels == 1 or gradients[0].abs().max() > 0.1
    with torch.no_grad():
        assert torch.allclose(upsampled_cross_entropy_sum(make_logits(num_labels), labels), sums[0], atol=1e-10)


def test_gradient_by_finite_differences():
    logits, labels = make_logits(3, grid=(2, 3), images=2), make_labels(3, images=2, size=(5, 7))
    assert torch.autograd.gradcheck(lambda x: upsampled_cross_entropy_sum(x, labels) ** 2 / 100, logits)


def test_the_whole_batch_is_never_held_at_full_resolution(monkeypatch):
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            tensors = result if isinstance(result, tuple | list) else [result]
            seen.extend(tensor.numel() for tensor in tensors if isinstance(tensor, torch.Tensor))
            return result

    monkeypatch.setattr(upsampling, "VALUES_AT_A_TIME", 1)
    logits, labels = make_logits(21), make_labels(21)
    one_image = 21 * 17 * 26
    with Watch():
        kept = ohem_labels(logits, labels, min_kept=100)
        upsampled_cross_entropy_sum(logits, kept).backward()
    assert max(seen) == one_image
    seen.clear()
    with Watch():
        plain(make_logits(21), labels)
    assert max(seen) == 3 * one_image


def test_nothing_to_learn_from():
    logits = make_logits(3)
    loss = upsampled_cross_entropy_sum(logits, torch.full((3, 9, 9), 255))
    loss.backward()
    assert loss.item() == 0 and logits.grad.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """The sum of many pixels is taken in float32, the gradient comes back as the logits are."""
    labels = make_labels(21, size=(65, 91))
    half, exact = make_logits(21, dtype), make_logits(21, dtype).detach().double().requires_grad_()
    loss = upsampled_cross_entropy_sum(half, labels)
    (loss / 1000).backward()
    expected = plain(exact, labels)
    (expected / 1000).backward()
    assert loss.dtype == torch.float32 and half.grad.dtype == dtype
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (half.grad - exact.grad).abs().max() < 0.01 * exact.grad.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        assert upsampled_cross_entropy_sum(half, labels).item() == pytest.approx(expected.item(), rel=1e-5)


def plain_ohem(logits, labels, threshold, min_kept):
    """By the definition, pixel by pixel in order of their probability."""
    full = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    valid = labels != 255
    probability = full.softmax(1).gather(1, labels.where(valid, 0).unsqueeze(1)).squeeze(1)
    ordered = probability[valid].sort().values
    if min_kept == 0 or min_kept > len(ordered):
        return labels
    return labels.where(valid & (probability <= max(threshold, ordered[min_kept - 1])), 255)


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.7, 1.0])
def test_ohem_keeps_what_its_definition_says(threshold):
    logits, labels = make_logits(4).detach(), make_labels(4)
    valid, pixels = (labels != 255).sum().item(), labels.numel()
    assert 1000 < valid < pixels - 100
    for min_kept in (0, 1, 300, valid - 1, valid, valid + 1, pixels - 1, pixels, pixels + 1, 200_000):
        kept = ohem_labels(logits, labels, threshold, min_kept)
        assert torch.equal(kept, plain_ohem(logits, labels, threshold, min_kept)), min_kept


def test_ohem_with_few_or_no_valid_pixels_keeps_them_all():
    logits, labels = make_logits(4).detach(), make_labels(4, ignored=0.99)
    assert torch.equal(ohem_labels(logits, labels, 0.0, 200), labels)
    nothing = torch.full_like(labels, 255)
    assert torch.equal(ohem_labels(logits, nothing, 0.0, 200), nothing)


def test_ohem_does_not_hide_a_nan():
    logits, labels = make_logits(4).detach(), make_labels(4)
    logits[1, 2] = torch.nan
    assert upsampled_cross_entropy_sum(logits, ohem_labels(logits, labels, 0.7, 100)).isnan()

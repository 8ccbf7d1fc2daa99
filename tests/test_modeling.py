"""What a model does whatever its encoder: the loss, what it refuses, how its weights start."""

import math
import os
import shutil

import pytest
import torch
from conftest import NO_DROPOUT, tiny_config, tiny_model
from oracle import resize
from segmenter_tester import difference, images, random_labels, train_inputs

from allspark_hf import SegformerForSemiSupervisedSegmentation


def test_mix_images_in_eval_comes_from_the_configuration():
    mixed, alone = tiny_model(mix_images_in_eval=True).eval(), tiny_model().eval()
    with torch.no_grad():
        assert difference(mixed(images(2)).logits, alone(images(2)).logits) > 0.01


def test_labeled_output_has_no_gradient_of_unlabeled_images_when_the_memory_is_read():
    model = tiny_model(**NO_DROPOUT).train()
    model.decode_head.batch_norm.eval()  # its batch statistics would mix the halves
    for read_memory in (True, False):
        inputs = train_inputs(model, read_memory=read_memory)
        unlabeled = inputs["unlabeled_pixel_values"].requires_grad_()
        (grad,) = torch.autograd.grad(model(**inputs).loss, unlabeled)
        assert (grad.abs().max() == 0) == read_memory


@pytest.mark.parametrize("num_labels", [1, 3, 81])
@pytest.mark.parametrize("ignore_index", [255, 0])
def test_loss_by_hand(num_labels, ignore_index):
    model = tiny_model(num_labels=num_labels, semantic_loss_ignore_index=ignore_index).double().eval()
    labels = random_labels(2, (11, 7), max(num_labels, 2))  # a single class is label 1, its absence label 0
    labels = labels.masked_fill(labels == 255, ignore_index)
    outputs = model(images(2, (33, 41), dtype=torch.float64), labels=labels)
    terms, pixels = [], 0
    for scores, target in zip(outputs.logits.detach(), labels, strict=True):
        scores = torch.stack([resize(plane, target.shape) for plane in scores]).flatten(1).T.tolist()
        for pixel, label in zip(scores, target.flatten().tolist(), strict=True):
            pixels += 1
            if label == ignore_index:
                continue
            if num_labels == 1:
                terms.append(math.log1p(math.exp(pixel[0])) - label * pixel[0])
            else:
                terms.append(math.log(sum(math.exp(score) for score in pixel)) - pixel[label])
    # transformers' binary loss divides by all pixels, its cross-entropy by those that count
    expected = sum(terms) / (pixels if num_labels == 1 else len(terms))
    assert 0 < len(terms) < pixels
    # torch's binary loss of float64 scores and float32 labels is float32
    assert outputs.loss.item() == pytest.approx(expected, abs=1e-7 if num_labels == 1 else 1e-12)


def test_eval_mode_refuses_unlabeled_images():
    model = tiny_model().eval()
    with pytest.raises(ValueError, match="unlabeled_pixel_values belongs to training"):
        model(images(1), unlabeled_pixel_values=images(1))


def test_features_of_unlabeled_images_rebuild_labeled_ones_as_the_images_do():
    model, memories = tiny_model(**NO_DROPOUT).double().train(), []
    model.decode_head.batch_norm = torch.nn.Identity()
    labeled, unlabeled = images(2, seed=1).double(), images(3, seed=2).double()
    sources = {"unlabeled_pixel_values": unlabeled}, {"unlabeled_features": model.encode(unlabeled)[-1].detach()}
    results, unlabeled_passes = [], []
    model.bottleneck.unlabeled_attention.register_forward_hook(lambda *_: unlabeled_passes.append(len(results)))
    for given in sources:
        torch.manual_seed(0)
        model.bottleneck.memory.reset()  # to random channels
        results.append(model(labeled, unlabeled_logits=images(3, seed=3), **given))
        memories.append(model.bottleneck.memory.channels.clone())
    assert difference(results[1].logits, results[0].logits) < 1e-12 and results[1].unlabeled_logits is None
    assert torch.allclose(*memories, rtol=0, atol=1e-12)
    assert unlabeled_passes == [0]  # no attention whose result nobody reads
    with pytest.raises(ValueError, match="both given: give one of them"):
        model(labeled, **sources[0], **sources[1])
    with pytest.raises(ValueError, match="unlabeled_features belongs to training"):
        model.eval()(labeled, **sources[1])


def test_differing_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(50, 70\) and unlabeled ones \(70, 50\)"):
        tiny_model().train()(images(1, (50, 70)), unlabeled_pixel_values=images(1, (70, 50)))


@pytest.mark.parametrize("shape", [None, (1, 3, 9, 9), (3, 2, 9, 9), (3, 4, 9, 9)], ids=str)
def test_unlabeled_logits_that_are_absent_or_of_other_images_or_classes_are_refused(shape):
    model = tiny_model().train()
    logits = None if shape is None else torch.randn(shape)
    with pytest.raises(ValueError, match="unlabeled_logits of 3 images, 3 classes"):
        model(images(1), unlabeled_pixel_values=images(3), unlabeled_logits=logits)
    assert model.bottleneck.memory.num_enqueued.sum() == 0


def test_hidden_states_in_training_hold_labeled_images_first():
    model = tiny_model(**NO_DROPOUT).train()
    outputs = model(**train_inputs(model, 1, 3), output_hidden_states=True)
    alone = model(images(1), output_hidden_states=True)
    for both, one in zip(outputs.hidden_states, alone.hidden_states, strict=True):
        assert both.shape[0] == 4 and difference(both[:1], one) <= 1e-5


@pytest.mark.skipif("ALLSPARK_TEST_COMPILE" not in os.environ, reason="a minute of C++: set ALLSPARK_TEST_COMPILE=1")
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_compiled_inference():
    model = tiny_model().eval()
    with torch.no_grad():
        expected = model(images(2)).logits
        assert difference(torch.compile(model)(images(2)).logits, expected) <= 1e-5


def test_projections_start_xavier_uniform_and_the_memory_as_noise():
    torch.manual_seed(0)
    bottleneck = SegformerForSemiSupervisedSegmentation(tiny_config()).bottleneck
    for attention in (bottleneck.labeled_attention, bottleneck.unlabeled_attention):
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
            bound = math.sqrt(6 / sum(linear.weight.shape))
            assert 0.98 * bound < linear.weight.abs().max() <= bound and linear.bias is None
            assert linear.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    channels = bottleneck.memory.channels
    assert channels.shape == (3, 32, 4) and bottleneck.memory.num_enqueued.tolist() == [0, 0, 0]
    assert abs(channels.mean().item()) < 0.2 and channels.std().item() == pytest.approx(1, abs=0.15)

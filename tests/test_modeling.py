"""The model: what it shares with SegFormer, inference, training, losses, errors, precisions, compilation."""

import math
import os
import shutil
import warnings

import pytest
import torch
from conftest import NO_DROPOUT, TINY, tiny_config, tiny_model
from oracle import resize
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from allspark_hf import AllSparkConfig, SegformerForSemiSupervisedSegmentation


PLAIN = AllSparkConfig.plain_segformer_switches()
BOTH_NORMS = ("layernorm_before", "layernorm_after")


def images(count, size=(50, 70), seed=0, dtype=torch.float32):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def random_labels(count, size, num_labels, seed=1):
    """Class indices with about a third of the pixels ignored."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_labels, (count, *size), generator=generator)
    return labels.masked_fill(torch.rand(labels.shape, generator=generator) < 0.3, 255)


def difference(first, second):
    assert first.shape == second.shape
    return (first.detach().double() - second.detach().double()).abs().max().item()


def transformers_twin(model):
    """transformers' SegFormer with the same weights; every LayerNorm of it has eps 1e-5."""
    fields = {**TINY, **NO_DROPOUT, "num_labels": model.config.num_labels}
    fields = {name: value for name, value in fields.items() if name in SegformerConfig.__dataclass_fields__}
    twin = SegformerForSemanticSegmentation(SegformerConfig(**fields, num_labels=model.config.num_labels))
    twin.load_state_dict(model.state_dict())
    return twin.train(model.training)


def train_inputs(model, labeled=2, unlabeled=2, size=(50, 70), **kwargs):
    num_labels = model.config.num_labels
    logits = torch.randn(unlabeled, num_labels, 9, 11, generator=torch.Generator().manual_seed(2))
    return {
        "pixel_values": images(labeled, size),
        "labels": random_labels(labeled, size, num_labels),
        "unlabeled_pixel_values": images(unlabeled, size, seed=3),
        "unlabeled_logits": logits,
        **kwargs,
    }


def gradients(model, **inputs):
    """Of a loss that both halves take part in."""
    model.zero_grad()
    outputs = model(**inputs)
    (outputs.loss + (outputs.unlabeled_logits**2).mean()).backward()
    return outputs, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("num_labels", [1, 3, 81])
@pytest.mark.parametrize("training", [False, True])
def test_all_switches_off_is_transformers_segformer(num_labels, training):
    model = tiny_model(**PLAIN, **NO_DROPOUT, layer_norm_eps=1e-5, num_labels=num_labels).train(training)
    twin = transformers_twin(model)
    pixel_values, labels = images(3), random_labels(3, (50, 70), num_labels)
    ours, theirs = model(pixel_values, labels=labels), twin(pixel_values, labels=labels)
    assert difference(ours.logits, theirs.logits) <= 1e-6
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), abs=1e-6)
    ours.loss.backward()
    theirs.loss.backward()
    expected = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        assert difference(parameter.grad, expected[name].grad) <= 1e-6, name


@pytest.mark.parametrize("eps", [1e-6, 1e-3])
def test_layer_norm_eps_is_honoured_where_it_should(eps):
    model = tiny_model(**PLAIN, layer_norm_eps=eps).double().eval()
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.LayerNorm):
            kind = "block" if name.endswith(BOTH_NORMS) else name.split(".", 3)[-1].split(".")[-2:][0]
            seen.setdefault("stage end" if name.count(".") == 3 else kind, set()).add(module.eps)
    assert seen == {"block": {eps}, "stage end": {eps}, "patch_embeddings": {1e-5}, "sequence_reduction": {1e-5}}
    twin = transformers_twin(model).double()
    pixel_values = images(1, dtype=torch.float64)
    with torch.no_grad():
        expected = twin(pixel_values).logits
        assert difference(model(pixel_values).logits, expected) > 1e-7  # eps 1e-5 everywhere
        for stage in twin.segformer.stages:
            for norm in (stage.layer_norm, *(getattr(block, name) for block in stage.blocks for name in BOTH_NORMS)):
                norm.eps = eps
        assert difference(model(pixel_values).logits, twin(pixel_values).logits) <= 1e-12


@pytest.mark.parametrize("num_labels", [1, 3, 81])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_prediction_of_an_image_is_independent_of_its_batch(num_labels, dtype, tolerance):
    model = tiny_model(num_labels=num_labels).to(dtype).eval()
    batch = images(5, dtype=dtype)
    with torch.no_grad():
        alone = torch.cat([model(image[None]).logits for image in batch])
        assert difference(model(batch).logits, alone) <= tolerance
        assert difference(model(batch[[3, 0]]).logits, alone[[3, 0]]) <= tolerance
        model.config.mix_images_in_eval = True
        assert difference(model(batch).logits, alone) > 0.01
        assert difference(model(batch[:1]).logits, alone[:1]) <= tolerance


def test_mix_images_in_eval_comes_from_the_configuration():
    mixed, alone = tiny_model(mix_images_in_eval=True).eval(), tiny_model().eval()
    with torch.no_grad():
        assert difference(mixed(images(2)).logits, alone(images(2)).logits) > 0.01


@pytest.mark.parametrize("read_memory", [True, False])
@pytest.mark.parametrize(("labeled", "unlabeled"), [(1, 1), (3, 2), (1, 4)])
@pytest.mark.parametrize(("num_labels", "size"), [(1, (64, 64)), (3, (50, 71)), (81, (33, 90))])
def test_training_step(num_labels, size, labeled, unlabeled, read_memory):
    model = tiny_model(num_labels=num_labels).train()
    inputs = train_inputs(model, labeled, unlabeled, size, read_memory=read_memory)
    outputs, grads = gradients(model, **inputs)
    height, width = (-(-side // 4) for side in size)
    assert outputs.logits.shape == (labeled, num_labels, height, width)
    assert outputs.unlabeled_logits.shape == (unlabeled, num_labels, height, width)
    assert outputs.loss.isfinite()
    for name, grad in grads.items():
        assert grad is not None and grad.isfinite().all(), name
        # biases may cancel (before BatchNorm, of keys), weights may not
        assert grad.ndim == 1 or grad.abs().max() > 0, name
    assert model.bottleneck.memory.num_enqueued.sum() == 32 * unlabeled
    assert model.bottleneck.memory.channels.isfinite().all()


@pytest.mark.parametrize(
    "switches", [{"use_grouping": False}, {"use_grouping": False, "use_memory": False}, PLAIN], ids=str
)
def test_training_step_of_the_ablations(switches):
    model = tiny_model(**switches).train()
    _, grads = gradients(model, **train_inputs(model, 2, 3, unlabeled_logits=None))
    assert all(grad is not None and grad.isfinite().all() for grad in grads.values())
    if switches.get("use_cross_attention", True):
        memory = model.bottleneck.memory
        assert memory is None if "use_memory" in switches else memory.num_enqueued.tolist() == [3 * 32]


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
    with pytest.raises(ValueError) as caught:
        model(images(1), unlabeled_pixel_values=images(1))
    assert str(caught.value) == (
        "unlabeled_pixel_values belongs to training, but the model is in eval mode: call model.train(), or "
        "predict unlabeled images as pixel_values."
    )


def test_differing_sizes_are_refused():
    with pytest.raises(ValueError) as caught:
        tiny_model().train()(images(1, (50, 70)), unlabeled_pixel_values=images(1, (70, 50)))
    assert str(caught.value) == (
        "Labeled images are (50, 70) and unlabeled ones (70, 50) pixels (height, width): crop both to one size."
    )


def test_missing_unlabeled_logits_are_refused():
    model = tiny_model().train()
    with pytest.raises(ValueError) as caught:
        model(images(1), unlabeled_pixel_values=images(1))
    assert str(caught.value) == (
        "Grouping needs unlabeled_logits of 1 images, 3 classes; none was given: pass the logits of an eval-mode pass "
        "over unlabeled_pixel_values, or set use_grouping=False in the configuration."
    )
    assert model.bottleneck.memory.num_enqueued.sum() == 0


@pytest.mark.parametrize("shape", [(1, 3, 9, 9), (2, 3, 9, 9), (3, 2, 9, 9), (3, 4, 9, 9)], ids=str)
def test_unlabeled_logits_of_other_images_or_classes_are_refused(shape):
    model = tiny_model().train()
    with pytest.raises(ValueError, match="unlabeled_logits"):
        model(images(1), unlabeled_pixel_values=images(3), unlabeled_logits=torch.randn(shape))
    assert model.bottleneck.memory.num_enqueued.sum() == 0


def test_hidden_states_and_attentions_are_segformers():
    model = tiny_model(**NO_DROPOUT, layer_norm_eps=1e-5, attn_implementation="eager").eval()
    plain = tiny_model(**PLAIN, **NO_DROPOUT, layer_norm_eps=1e-5)
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if "bottleneck" not in name})
    twin = transformers_twin(plain.eval())
    twin.set_attn_implementation("eager")
    asked = {"output_hidden_states": True, "output_attentions": True}
    ours, theirs = model(images(2), **asked), twin(images(2), **asked)
    for name, count in (("hidden_states", 4), ("attentions", 4)):
        pairs = list(zip(getattr(ours, name), getattr(theirs, name), strict=True))
        assert len(pairs) == count and all(difference(*pair) <= 1e-6 for pair in pairs)
    as_tuple = model(images(2), **asked, labels=random_labels(2, (50, 70), 3), return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == 4 and as_tuple[0].ndim == 0
    assert difference(as_tuple[1], ours.logits) == 0
    assert all(difference(*pair) == 0 for pair in zip(as_tuple[2], ours.hidden_states, strict=True))
    assert all(difference(*pair) == 0 for pair in zip(as_tuple[3], ours.attentions, strict=True))
    assert list(model(images(1)).keys()) == ["logits"]


def test_hidden_states_asked_for_in_the_configuration():
    model = tiny_model(output_hidden_states=True).eval()
    assert [state.shape[1] for state in model(images(1)).hidden_states] == [8, 16, 24, 32]
    assert model(images(1), output_hidden_states=False).hidden_states is None
    assert len(model(images(1), return_dict=False)) == 2


def test_hidden_states_in_training_hold_labeled_images_first():
    model = tiny_model(**NO_DROPOUT).train()
    outputs = model(**train_inputs(model, 1, 3), output_hidden_states=True)
    alone = model(images(1), output_hidden_states=True)
    for both, one in zip(outputs.hidden_states, alone.hidden_states, strict=True):
        assert both.shape[0] == 4 and difference(both[:1], one) <= 1e-5


def test_gradient_checkpointing_changes_nothing():
    results = []
    for checkpointing in (False, True):
        model = tiny_model().train()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer versions have other names for both
            if checkpointing:
                model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing == checkpointing
        torch.manual_seed(5)  # dropout and stochastic depth are on
        results.append((*gradients(model, **train_inputs(model, 2, 3)), model.bottleneck.memory))
    (plain, grads, memory), (checkpointed, recomputed, same_memory) = results
    assert plain.loss.item() == pytest.approx(checkpointed.loss.item(), abs=1e-7)
    assert all(difference(grads[name], recomputed[name]) <= 1e-6 for name in grads)
    assert memory.num_enqueued.sum() == 3 * 32  # once, not again in backward
    assert torch.equal(memory.num_enqueued, same_memory.num_enqueued)
    assert difference(memory.channels, same_memory.channels) == 0


@pytest.mark.parametrize("read_memory", [True, False])
def test_bfloat16_autocast_is_close(read_memory):
    model = tiny_model(**NO_DROPOUT, use_grouping=False).train()  # no discrete choice that rounding could flip
    inputs = train_inputs(model, 2, 3, read_memory=read_memory, unlabeled_logits=None)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    expected, full = gradients(model, **inputs)
    memory = model.bottleneck.memory.channels.clone()
    model.load_state_dict(start)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, half = gradients(model, **inputs)
    scale = expected.logits.abs().max().item()
    assert 1e-6 < difference(outputs.logits, expected.logits) / scale < 0.05
    assert outputs.loss.item() == pytest.approx(expected.loss.item(), rel=0.02)
    assert model.bottleneck.memory.channels.dtype == torch.float32
    assert difference(model.bottleneck.memory.channels, memory) < 0.1
    for name, grad in half.items():
        assert difference(grad, full[name]) < 0.1 * max(full[name].norm().item(), 0.05), name


def test_sdpa_equals_eager():
    results = {}
    for name in ("eager", "sdpa"):
        model = tiny_model(**NO_DROPOUT, attn_implementation=name).train()
        assert model.config._attn_implementation == name
        results[name] = gradients(model, **train_inputs(model))
    assert difference(results["eager"][0].logits, results["sdpa"][0].logits) <= 1e-5
    for name, grad in results["eager"][1].items():
        assert difference(grad, results["sdpa"][1][name]) <= 1e-5, name


def test_compiled_inference_in_one_graph():
    """`aot_eager` traces and decomposes like `torch.compile`'s default, without a minute of C++."""
    model = tiny_model().eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        expected = model(images(2)).logits  # the first call installs transformers' hooks, which no graph can hold
        assert difference(compiled(images(2)).logits, expected) <= 1e-5


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


def test_decode_head_drops_whole_channels():
    model = tiny_model(classifier_dropout_prob=0.5).train()
    seen = {}
    model.decode_head.dropout.register_forward_hook(lambda _, args, output: seen.update(given=args[0], out=output))
    model(images(2))
    dropped = (seen["out"] == 0).flatten(2).all(dim=2)
    assert 0 < dropped.sum() < dropped.numel()
    kept = ~dropped[:, :, None, None].expand_as(seen["out"])
    assert torch.equal(seen["out"][kept], 2 * seen["given"][kept])

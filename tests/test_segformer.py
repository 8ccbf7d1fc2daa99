"""SegFormer as a segmenter, and what it shares with transformers' own SegFormer."""

import pytest
import torch
from conftest import NO_DROPOUT, TINY, TWO_STAGES, tiny_config, tiny_model
from exported import tiny_export
from segmenter_tester import NO_BOTTLENECK, SegmenterTester, difference, gradients, images, random_labels, train_inputs
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from allspark_hf import AllSparkConfig, SegformerForSemiSupervisedSegmentation


BOTH_NORMS = ("layernorm_before", "layernorm_after")


class TestSegformer(SegmenterTester):
    def make_model(self, seed=0, **fields):
        return tiny_model(seed, **fields)

    def make_traced(self):
        return tiny_model(**TWO_STAGES).eval()

    def exported(self, tmp_path_factory):
        export = tiny_export(tmp_path_factory)
        return export.model, export.folder / "onnx" / "model.onnx"


def transformers_twin(model):
    """transformers' SegFormer with the same weights; every LayerNorm of it has eps 1e-5."""
    fields = {**TINY, **NO_DROPOUT, "num_labels": model.config.num_labels}
    fields = {name: value for name, value in fields.items() if name in SegformerConfig.__dataclass_fields__}
    twin = SegformerForSemanticSegmentation(SegformerConfig(**fields, num_labels=model.config.num_labels))
    twin.load_state_dict(model.state_dict())
    return twin.train(model.training)


@pytest.mark.parametrize("num_labels", [1, 3, 81])
@pytest.mark.parametrize("training", [False, True])
def test_without_bottleneck_it_is_transformers_segformer(num_labels, training):
    model = tiny_model(**NO_BOTTLENECK, **NO_DROPOUT, layer_norm_eps=1e-5, num_labels=num_labels).train(training)
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
def test_layer_norm_eps_is_honored_where_it_should(eps):
    model = tiny_model(**NO_BOTTLENECK, layer_norm_eps=eps).double().eval()
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


def test_hidden_states_and_attentions_are_segformers():
    model = tiny_model(**NO_DROPOUT, layer_norm_eps=1e-5, attn_implementation="eager").eval()
    plain = tiny_model(**NO_BOTTLENECK, **NO_DROPOUT, layer_norm_eps=1e-5)
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


def test_sdpa_equals_eager():
    results = {}
    for name in ("eager", "sdpa"):
        model = tiny_model(**NO_DROPOUT, attn_implementation=name).train()
        assert model.config._attn_implementation == name
        results[name] = gradients(model, **train_inputs(model))
    assert difference(results["eager"][0].logits, results["sdpa"][0].logits) <= 1e-5
    for name, grad in results["eager"][1].items():
        assert difference(grad, results["sdpa"][1][name]) <= 1e-5, name


def test_decode_head_drops_whole_channels():
    model = tiny_model(classifier_dropout_prob=0.5).train()
    seen = {}
    model.decode_head.dropout.register_forward_hook(lambda _, args, output: seen.update(given=args[0], out=output))
    model(images(2))
    dropped = (seen["out"] == 0).flatten(2).all(dim=2)
    assert 0 < dropped.sum() < dropped.numel()
    kept = ~dropped[:, :, None, None].expand_as(seen["out"])
    assert torch.equal(seen["out"][kept], 2 * seen["given"][kept])


@pytest.mark.parametrize(
    ("geometry", "smallest"),
    [({}, 29), ({"sr_ratios": [4, 2, 1, 1]}, 13), ({"sr_ratios": [1, 1, 1, 1]}, 1), ({"sr_ratios": [8, 8, 2, 1]}, 57)],
)
def test_smallest_side_is_what_the_encoder_takes(geometry, smallest):
    model = SegformerForSemiSupervisedSegmentation(tiny_config(**geometry)).eval()
    assert model.config.smallest_side == smallest
    assert model(torch.randn(1, 3, smallest, 64)).logits.isfinite().all()
    if smallest > 1:
        with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
            model(torch.randn(1, 3, smallest - 1, 64))


def test_smallest_side_of_the_published_encoders():
    assert {AllSparkConfig.mit(size).smallest_side for size in ("b0", "b1", "b2", "b3", "b4", "b5")} == {29}

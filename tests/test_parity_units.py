"""Attention, memory and OHEM alone, against the authors' code."""

import math

import pytest
import torch
from parity import PRECISIONS, Reference, assert_near

from allspark_hf import AllSparkConfig
from allspark_hf.methods.losses import ohem_labels
from allspark_hf.models.bottleneck_allspark import AllSparkBottleneck, SemanticMemory, group_channels
from allspark_hf.models.conversion import rename
from allspark_hf.models.upsampling import cross_entropy_sum


@pytest.fixture(scope="module")
def reference(parity_dir):
    return Reference(parity_dir)


def make_bottleneck(stored, dtype):
    """The attention module of the fixture: the bottleneck without its convolutions and norms."""
    bottleneck = AllSparkBottleneck(AllSparkConfig(num_labels=6, crop_size=160, channel_attention_dropout=0.0), 32)
    state = {
        f"decoder.allspark.attn.{name.removeprefix('state.')}": value
        for name, value in stored.items()
        if "state." in name
    }
    renamed, _ = rename(state)
    missing, unexpected = bottleneck.load_state_dict(
        {name.removeprefix("bottleneck."): value for name, value in renamed.items()}, strict=False
    )
    assert not unexpected and all(name.startswith(("project", "token", "output")) for name in missing)
    return bottleneck.to(dtype)


def attend(bottleneck, tokens, class_scores, read_memory):
    labeled, unlabeled = tokens.chunk(2)
    sources = bottleneck._unlabeled_sources(unlabeled, (5, 5), class_scores, read_memory)
    return torch.cat([bottleneck.labeled_attention(labeled, sources), bottleneck.unlabeled_attention(unlabeled)])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", ["nomem", "mem"])
def test_attention_module(reference, precision, case):
    stored, dtype = reference.load("unit_cross_attn_mem"), PRECISIONS[precision]
    bottleneck = make_bottleneck(stored, dtype)
    tolerance = reference.tolerance(precision, "unit outputs")
    for call in range(3):
        tokens = stored["inputs.emb"][call].to(dtype).requires_grad_()
        class_scores = stored["inputs.prob_map"][call].to(dtype)
        classes = group_channels(tokens[2:], class_scores, (5, 5))
        assert torch.equal(classes, stored["channel_cls"][call])
        bottleneck.zero_grad()
        output = attend(bottleneck, tokens, class_scores, read_memory=case == "mem")
        assert_near(output, stored[f"{precision}.{case}.out"][call], tolerance, f"output of call {call}")
        assert torch.equal(bottleneck.memory.channels.float(), stored["kv_queue_after"][call])
        assert torch.equal(bottleneck.memory.position, stored["queue_ptr_after"][call])
    (output * stored["inputs.upstream_grad"]).sum().backward()
    tolerance = reference.tolerance(precision, "unit gradients")
    prefix = f"{precision}.{case}.grad."
    assert_near(tokens.grad, stored[f"{prefix}emb"], tolerance, "gradient of the tokens")
    weights = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
    weights = {f"decoder.allspark.attn.{name}": value for name, value in weights.items() if name != "emb"}
    expected, _ = rename(weights)
    parameters = dict(bottleneck.named_parameters(prefix="bottleneck"))
    assert len(expected) == 8
    for name, value in expected.items():
        assert_near(parameters[name].grad, value, tolerance, f"gradient of {name}")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_attention_module_in_eval_mode(reference, precision):
    stored, dtype = reference.load("unit_cross_attn_mem"), PRECISIONS[precision]
    bottleneck = make_bottleneck(stored, dtype).eval()
    tokens = stored["inputs.emb"][0][:2].to(dtype)
    mixed = bottleneck.labeled_attention(tokens, tokens.unsqueeze(0))
    tolerance = reference.tolerance(precision, "unit outputs")
    assert_near(mixed, stored[f"{precision}.eval.out"][:2], tolerance, "output")


def test_queue(reference):
    stored = reference.load("unit_queue")
    memory = SemanticMemory(num_slots=3, slot_size=12, num_tokens=4)
    memory.channels.copy_(stored["kv_queue_initial"])
    for call in range(11):
        memory.enqueue(stored["emb"][call].unsqueeze(0), stored["channel_cls"][call].unsqueeze(0))
        assert torch.equal(memory.channels, stored["kv_queue_after"][call]), call
        assert torch.equal(memory.position, stored["queue_ptr_after"][call]), call


OHEM_CASES = [
    "fixed_threshold",
    "raised_threshold",
    "easy_few_kept",
    "low_thresh",
    "min_kept_equals_valid",
    "min_kept_exceeds_valid",
    "min_kept_huge",
    "min_kept_zero",
    "all_ignored",
    "all_ignored_min_kept_zero",
]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", OHEM_CASES)
def test_ohem(reference, precision, case):
    stored, settings = reference.load("unit_ohem"), reference.description["unit_ohem"][case]
    logits = stored[f"inputs.logits_{settings['logits']}"].to(PRECISIONS[precision]).requires_grad_()
    labels = stored["inputs.target"].long()
    if settings["target"] == "all 255":
        labels = torch.full_like(labels, 255)
    kept = ohem_labels(logits, labels, settings["thresh"], settings["min_kept"])
    assert torch.equal(kept != 255, stored[f"{case}.kept"].bool())
    loss = cross_entropy_sum(logits, kept) / (kept != 255).sum().clamp(min=1)
    loss.backward()
    expected = stored[f"{precision}.{case}.loss"]
    if math.isnan(expected):  # ours: nothing to learn from is a loss of 0, not NaN
        assert loss.item() == 0 and logits.grad.abs().max() == 0
        return
    assert_near(loss, expected, reference.tolerance(precision, "ohem losses"), "loss")
    assert_near(
        logits.grad, stored[f"{precision}.{case}.grad"], reference.tolerance(precision, "ohem grads"), "gradient"
    )

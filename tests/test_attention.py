"""Channel-wise attention without its map, against the plain form that has it: values, gradients, dropout, memory."""

import math

import pytest
import torch
from conftest import NO_DROPOUT, tiny_config, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from allspark_hf.models import bottleneck_allspark
from allspark_hf.models.bottleneck_allspark import (
    INSTANCE_NORM_EPS,
    AllSparkBottleneck,
    ChannelCrossAttention,
    ChannelSelfAttention,
    moments,
    normalize_query,
    pool_moments,
)


def plain_map(query, key):
    """softmax(IN(query @ key.mT)), one normalization for each whole map of the last two axes."""
    scores = query @ key.mT
    mean = scores.mean(dim=(-2, -1), keepdim=True)
    variance = (scores - mean).square().mean(dim=(-2, -1), keepdim=True)
    return ((scores - mean) / (variance + INSTANCE_NORM_EPS).sqrt()).softmax(dim=-1)


def plain_cross(module, tokens, sources, kept=1.0):
    """`kept` is what dropout multiplies the map with: (batch, 1, queries, keys)."""
    query = module.q_proj(tokens).transpose(1, 2).unsqueeze(1)
    key, value = (proj(sources).transpose(2, 3).flatten(1, 2).unsqueeze(1) for proj in (module.k_proj, module.v_proj))
    context = (plain_map(query, key) * kept) @ value
    return module.o_proj(context.squeeze(1).transpose(1, 2))


def plain_self(module, tokens, kept=1.0):
    projections = (module.q_proj, module.k_proj, module.v_proj)
    query, key, value = (proj(tokens).unflatten(2, (module.num_heads, -1)).permute(0, 2, 3, 1) for proj in projections)
    context = (plain_map(query, key) * kept) @ value
    return module.o_proj(context.permute(0, 3, 2, 1).flatten(2))


def attention(kind, channels=6, heads=2, dropout=0.0):
    module = kind(channels, heads, dropout).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return module


def assert_equal(actual, expected, leaves, tolerance=1e-8):
    assert (actual - expected).abs().max() <= tolerance
    upstream = torch.randn_like(expected)
    ours, plain = (torch.autograd.grad((out * upstream).sum(), leaves) for out in (actual, expected))
    for mine, other in zip(ours, plain, strict=True):
        assert other.abs().max() > 1e-3  # or equality would say nothing
        assert (mine - other).abs().max() <= tolerance * other.abs().max().clamp(min=1)


@pytest.fixture(params=[1, 400, 2**22], ids=lambda size: f"tiles_of_{size}")
def tile_elements(request, monkeypatch):
    """From one source at a time to all sources at once."""
    monkeypatch.setattr(bottleneck_allspark, "TILE_ELEMENTS", request.param)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("images", "of_sources", "sources", "tokens"), [(1, 1, 1, 1), (3, 1, 7, 9), (2, 2, 3, 17)])
def test_cross_attention_is_the_plain_one(tile_elements, training, images, of_sources, sources, tokens):
    torch.manual_seed(0)
    module = attention(ChannelCrossAttention).train(training)
    labeled = torch.randn(images, tokens, 6, dtype=torch.float64, requires_grad=True)
    content = torch.randn(of_sources, sources, tokens, 6, dtype=torch.float64, requires_grad=True)
    leaves = [labeled, content, *module.parameters()]
    assert_equal(module(labeled, content), plain_cross(module, labeled, content), leaves)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("heads", [1, 3])
def test_self_attention_is_the_plain_one(tile_elements, training, heads):
    torch.manual_seed(0)
    module = attention(ChannelSelfAttention, heads=heads).train(training)
    tokens = torch.randn(3, 11, 6, dtype=torch.float64, requires_grad=True)
    assert_equal(module(tokens), plain_self(module, tokens), [tokens, *module.parameters()])


def drops_of(module):
    """What the module's dropout multiplies with from now on, call after call, recomputation included."""
    factors = []
    module.dropout.register_forward_hook(
        lambda _, given, out: factors.append(torch.nan_to_num(out / given[0]).detach())
    )
    return factors


def test_dropout_of_the_map_and_its_gradient(tile_elements):
    """The plain form with the very weights dropped that were; recomputing for the gradient drops the same ones."""
    torch.manual_seed(0)
    module = attention(ChannelCrossAttention, dropout=0.25).train()
    labeled = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    content = torch.randn(1, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    factors = drops_of(module)
    actual = module(labeled, content)
    *of_map, of_output = factors
    of_map = [factor.gt(0).double() / 0.75 for factor in of_map]  # a quotient is not exact
    kept = torch.cat(of_map, dim=-1)  # (1, 1, images * queries, keys): shared keys
    assert kept.shape == (1, 1, 2 * 12, 4 * 12)
    assert (kept == 0).double().mean().item() == pytest.approx(0.25, abs=0.04)
    assert not torch.equal(kept[..., :12, :], kept[..., 12:, :])  # images do not share what is dropped
    kept = kept.squeeze(0).unflatten(1, (2, 12)).transpose(0, 1)
    expected = plain_cross(module, labeled, content, kept) * of_output
    del factors[:]
    assert_equal(actual, expected, [labeled, content, *module.parameters()])
    again = [factor.gt(0).double() / 0.75 for factor in reversed(factors)]
    assert all(torch.equal(*pair) for pair in zip(again, of_map, strict=True))


@pytest.mark.parametrize("sizes", [[5], [5, 5, 2], [1, 1]])
def test_moments_pooled_from_parts(sizes):
    channels = torch.randn(2, 3, sum(sizes), 4, dtype=torch.float64) + 5
    whole = moments(channels)
    pooled = pool_moments([moments(part) for part in channels.split(sizes, dim=-2)], sizes)
    for one, other in zip(whole, pooled, strict=True):
        assert (one - other).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_scale_is_exact_in_low_precision(dtype, offset):
    """Of scores with a mean 1e5 times their spread, which a difference of mean squares could not see in float32."""
    generator = torch.Generator().manual_seed(0)
    query, key = ((torch.randn(2, 1, 64, 32, generator=generator) + offset).to(dtype) for _ in range(2))
    scores = query.double() @ key.double().mT
    expected = query.double() / (scores.var(dim=(-2, -1), correction=0, keepdim=True) + INSTANCE_NORM_EPS).sqrt()
    scaled = normalize_query(query, moments(key))
    assert scaled.dtype == dtype and scaled.isfinite().all()
    assert (scaled.double() / expected - 1).abs().max() < 2 * torch.finfo(dtype).eps + 1e-5


def test_scores_without_variance_attend_evenly():
    """Tokens of zeros: every score is 0, and each key counts the same, with finite gradients."""
    module = attention(ChannelCrossAttention).train()
    labeled = torch.zeros(1, 5, 6, dtype=torch.float64, requires_grad=True)
    content = torch.randn(1, 2, 5, 6, dtype=torch.float64)
    out = module(labeled, content)
    value = module.v_proj(content).mean(dim=(1, 3))[..., None].expand(-1, -1, 12)
    assert torch.allclose(out, module.o_proj(value), atol=1e-12)
    out.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
def test_autocast_is_close_and_finite(dtype, training):
    """With scores of some thousands before they are normalized, where float16 ends at 65504."""
    torch.manual_seed(0)
    module = attention(ChannelCrossAttention, channels=16).float().train(training)
    labeled, content = 12 * torch.randn(2, 64, 16), 12 * torch.randn(1, 3, 64, 16)
    expected = plain_cross(module.double(), labeled.double(), content.double())
    module.float()
    with torch.autocast("cpu", dtype=dtype):
        out = module(labeled.requires_grad_(), content)
    out.float().square().mean().backward()
    assert out.dtype == dtype and labeled.grad.isfinite().all() and labeled.grad.abs().max() > 0
    assert (out.double() - expected).abs().max() < 0.03 * expected.abs().max()


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns, and the shapes of all."""

    def __init__(self):
        super().__init__()
        self.elements, self.shapes = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.shapes.add(tuple(tensor.shape[-2:]))
                if tensor.untyped_storage().nbytes():
                    self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("read_memory", [True, False])
def test_training_never_holds_the_map_nor_all_keys(monkeypatch, dropout, read_memory):
    monkeypatch.setattr(bottleneck_allspark, "TILE_ELEMENTS", 2**14)
    config = tiny_config(num_labels=81, crop_size=160, channel_attention_dropout=dropout)
    bottleneck = AllSparkBottleneck(config, 16).train()
    features = torch.randn(4, 16, 5, 5, requires_grad=True)
    with Largest() as largest:
        output = bottleneck(features, 2, torch.randn(2, 81, 5, 5), read_memory)
        output.square().mean().backward()
    memory, keys, whole_map = 81 * 16 * 25, 81 * 32 * 25, 2 * 32 * 81 * 32
    assert bottleneck.memory.channels.numel() == memory
    assert largest.elements <= memory < keys < whole_map  # nothing is larger than the memory itself


@pytest.mark.parametrize("grads", [True, False])
def test_inference_never_holds_the_map(grads):
    bottleneck = AllSparkBottleneck(tiny_config(), 12).eval()  # a map would be 24 x 24
    with Largest() as largest, torch.set_grad_enabled(grads):
        output = bottleneck(torch.randn(2, 12, 5, 4))
        if grads:
            output.sum().backward()
    assert (24, 24) not in largest.shapes and (24, 20) in largest.shapes


class OnDevice(TorchDispatchMode):
    """Fails on an operation whose result leaves the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.ndim and tensor.device.type != "meta":
                raise AssertionError(f"{func} gives a tensor on {tensor.device}")
        return result


def test_a_training_step_on_a_gpu_never_waits_for_it():
    """Tensors on the meta device have no values: whatever would read one on the host raises."""
    with torch.device("meta"):
        model = tiny_model(**NO_DROPOUT).train()
        images, logits = (torch.randn(2, *shape) for shape in ((3, 50, 70), (3, 9, 11)))
        with OnDevice():
            outputs = model(images, unlabeled_pixel_values=images, unlabeled_logits=logits)
            (outputs.logits.square().mean() + outputs.unlabeled_logits.square().mean()).backward()
        assert outputs.logits.shape == (2, 3, 13, 18)
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        assert len(grads) > 50 and all(grad.is_meta for grad in grads)
        for read in (lambda tensor: tensor.item(), lambda tensor: tensor.cpu(), lambda tensor: tensor[tensor > 0]):
            with pytest.raises((RuntimeError, NotImplementedError)):
                read(outputs.logits.sum())


def test_tokens_are_filled_up_for_cuda_without_effect():
    """What a CUDA tensor gets, tried on the CPU: zeros up to a multiple of 8 tokens."""
    torch.manual_seed(0)
    module = attention(ChannelCrossAttention)
    tokens, content = torch.randn(2, 9, 6, dtype=torch.float64), torch.randn(1, 3, 9, 6, dtype=torch.float64)
    padded = [torch.nn.functional.pad(part, (0, 0, 0, 7)) for part in (tokens, content)]
    for training in (True, False):
        module.train(training)
        assert (module.attend(*padded)[..., 9:] == 0).all()
        assert (module.attend(*padded)[..., :9] - module.attend(tokens, content)).abs().max() < 1e-12


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_compiled_training_in_one_graph(dropout):
    settings = {**NO_DROPOUT, "channel_attention_dropout": dropout}
    bottleneck = tiny_model(**settings).bottleneck.train()
    features, logits = torch.randn(5, 32, 2, 2, requires_grad=True), torch.randn(3, 3, 5, 5)
    state = {name: value.clone() for name, value in bottleneck.state_dict().items()}
    # Without dropout the gradients are compared too; with it only the graph, which tests/test_step.py differentiates.
    compiled = torch.compile(bottleneck, backend="eager" if dropout else "aot_eager", fullgraph=True)
    results = []
    for module in (bottleneck, compiled):
        bottleneck.load_state_dict(state)
        bottleneck.zero_grad()
        output = module(features, 3, logits)
        output.square().mean().backward()
        grads = [parameter.grad.clone() for parameter in bottleneck.parameters()]
        results.append((output.detach(), *grads, *(buffer.clone() for buffer in bottleneck.buffers())))
    for index, (eager, traced) in enumerate(zip(*results, strict=True)):
        if dropout and index == 0:
            assert not math.isnan(traced.sum()) and traced.shape == eager.shape
        elif not dropout or not eager.is_floating_point():
            assert (eager - traced).abs().max() <= 1e-5, index

"""The bottleneck and the memory against the plain oracle of the method: float64, outputs, gradients, contents."""

import random

import pytest
import torch
from oracle import Memory, cross_attention, group, infer, self_attention, train
from safetensors.torch import load_file

from allspark_hf import AllSparkConfig
from allspark_hf.models.bottleneck_allspark import AllSparkBottleneck, SemanticMemory, group_channels, resize_tokens


TOLERANCE = 1e-9
DEFAULTS = {
    "channels": 4,
    "classes": 3,
    "heads": 2,
    "memory_size": 1,
    "grouping": True,
    "similarity": "cosine",
    "source": "logits",
    "labeled": 2,
    "unlabeled": 2,
    "grid": (2, 3),
    "memory_grid": (2, 3),
    "prediction": (5, 7),
    "reads": (True, True, True),
}


def build(case, **kwargs) -> AllSparkBottleneck:
    """A bottleneck in float64 whose every parameter is random, norms and biases included."""
    torch.manual_seed(case.get("seed", 0))
    config = AllSparkConfig(
        num_labels=case["classes"],
        crop_size=[32 * side for side in case["memory_grid"]],
        channel_attention_heads=case["heads"],
        channel_attention_dropout=0.0,
        memory_size=case["memory_size"] or 1,
        use_memory=case["memory_size"] > 0,
        use_grouping=case["grouping"] and case["memory_size"] > 0,
        grouping_similarity=case["similarity"],
        grouping_source=case["source"],
        **kwargs,
    )
    bottleneck = AllSparkBottleneck(config, case["channels"]).double()
    for parameter in bottleneck.parameters():
        parameter.data.normal_(std=0.7)
    return bottleneck


def oracle_weights(bottleneck) -> dict:
    """The package's parameters in the oracle's names and (inputs, outputs) form, still part of the graph."""

    def attention(module):
        return {
            "query": module.q_proj.weight.T,
            "key": module.k_proj.weight.T,
            "value": module.v_proj.weight.T,
            "out": module.o_proj.weight.T,
        }

    return {
        "map_in": bottleneck.project_in.weight[:, :, 0, 0].T,
        "map_in_bias": bottleneck.project_in.bias,
        "norm_in": bottleneck.token_norm.weight,
        "norm_in_bias": bottleneck.token_norm.bias,
        "cross": attention(bottleneck.labeled_attention),
        "self": attention(bottleneck.unlabeled_attention),
        "norm_out": bottleneck.output_norm.weight,
        "norm_out_bias": bottleneck.output_norm.bias,
        "map_out": bottleneck.project_out.weight[:, :, 0, 0].T,
        "map_out_bias": bottleneck.project_out.bias,
    }


def near(actual, expected, what):
    assert actual.shape == expected.shape, what
    difference = (actual.detach() - expected.detach()).abs().max().item()
    assert difference <= TOLERANCE, f"{what}: largest difference {difference:.3g}"


def compare_gradients(actual, expected, leaves):
    """Of a random projection of both outputs; parameters without gradient must lack it in both."""
    upstream = torch.randn_like(actual)
    ours = torch.autograd.grad((actual * upstream).sum(), leaves.values(), allow_unused=True)
    theirs = torch.autograd.grad((expected * upstream).sum(), leaves.values(), allow_unused=True)
    for name, mine, other in zip(leaves, ours, theirs, strict=True):
        zero = torch.zeros_like(leaves[name])
        near(zero if mine is None else mine, zero if other is None else other, f"gradient of {name}")
    return dict(zip(leaves, ours, strict=True))


def oracle_memory(bottleneck, case):
    if bottleneck.memory is None:
        return None
    _, _, tokens = bottleneck.memory.channels.shape
    return Memory(bottleneck.memory.channels.reshape(case["classes"], -1, tokens), case["grouping"])


def compare_memory(memory, expected):
    near(memory.channels, torch.stack([torch.stack(slot) for slot in expected.slots]), "memory content")
    assert memory.position.tolist() == expected.positions


def check(**changes):
    """Several training calls in a row, then the gradients of the last. Returns the bottleneck."""
    case = {**DEFAULTS, **changes}
    bottleneck = build(case).train()
    memory = oracle_memory(bottleneck, case)
    weights = oracle_weights(bottleneck)
    options = {"similarity": case["similarity"], "source": case["source"], "memory_grid": case["memory_grid"]}
    for call, read in enumerate(case["reads"]):
        images = case["labeled"] + case["unlabeled"]
        features = torch.randn(images, case["channels"], *case["grid"], dtype=torch.float64, requires_grad=True)
        logits = 3 * torch.randn(case["unlabeled"], case["classes"], *case["prediction"], dtype=torch.float64)
        output = bottleneck(features, case["unlabeled"], logits, read)
        labeled, unlabeled = features.split([case["labeled"], case["unlabeled"]])
        expected = torch.cat(train(labeled, unlabeled, weights, memory, logits, read, **options))
        near(output, expected, f"output of call {call}")
        if memory is not None:
            compare_memory(bottleneck.memory, memory)
    gradients = compare_gradients(output, expected, {"features": features, **dict(bottleneck.named_parameters())})
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    return bottleneck


@pytest.mark.parametrize("grouping", [True, False])
@pytest.mark.parametrize("classes", [1, 3, 81])
@pytest.mark.parametrize("memory_size", [0.5, 1, 2, 4])
def test_memory_sizes(memory_size, classes, grouping):
    bottleneck = check(memory_size=memory_size, classes=classes, grouping=grouping)
    pieces = -(-classes * memory_size // 1)
    assert bottleneck.memory.sources(4).shape == (pieces, 6, 4)
    assert bottleneck.memory.num_enqueued.sum() == 3 * 2 * 4


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("reads", [(True,), (False,), (False, True), (True, False)])
def test_heads_and_warm_up(heads, reads):
    check(heads=heads, reads=reads, channels=5)


@pytest.mark.parametrize("classes", [1, 3, 81])
def test_without_memory(classes):
    bottleneck = check(memory_size=0, classes=classes, reads=(True, False))
    assert bottleneck.memory is None


@pytest.mark.parametrize(("labeled", "unlabeled"), [(1, 1), (1, 3), (3, 1), (3, 3)])
@pytest.mark.parametrize("reads", [(True,), (False,)])
def test_counts(labeled, unlabeled, reads):
    check(labeled=labeled, unlabeled=unlabeled, reads=reads)


@pytest.mark.parametrize("grouping", [True, False])
@pytest.mark.parametrize(("grid", "memory_grid"), [((3, 3), (2, 4)), ((1, 1), (3, 2)), ((4, 5), (1, 1))])
def test_training_grid_other_than_the_memorys(grid, memory_grid, grouping):
    check(grid=grid, memory_grid=memory_grid, grouping=grouping, memory_size=0.5)


@pytest.mark.parametrize("memory_size", [0.5, 1])
def test_batch_brings_more_channels_than_the_slot_holds(memory_size):
    bottleneck = check(classes=1, unlabeled=5, memory_size=memory_size, channels=6, reads=(True, True))
    assert bottleneck.memory.num_enqueued.tolist() == [60] and bottleneck.memory.channels.shape[1] == 6 * memory_size


@pytest.mark.parametrize("seed", range(16))
def test_random_cases(seed):
    rng = random.Random(seed)
    grid = (rng.randint(1, 3), rng.randint(1, 4))
    check(
        seed=seed,
        channels=rng.choice([4, 6]),
        classes=rng.choice([1, 2, 3, 5, 8]),
        heads=rng.choice([1, 2, 3]),
        memory_size=rng.choice([0, 0.5, 1, 2, 4]),
        grouping=rng.random() < 0.7,
        similarity=rng.choice(["cosine", "instance_norm"]),
        source=rng.choice(["logits", "probabilities"]),
        labeled=rng.randint(1, 4),
        unlabeled=rng.randint(1, 4),
        grid=grid,
        memory_grid=grid if rng.random() < 0.6 else (rng.randint(1, 4), rng.randint(1, 3)),
        prediction=(rng.randint(1, 9), rng.randint(1, 9)),
        reads=tuple(rng.random() < 0.6 for _ in range(rng.randint(1, 4))),
    )


@pytest.mark.parametrize("mix", [False, True])
@pytest.mark.parametrize("heads", [1, 3])
def test_inference(mix, heads):
    case = {**DEFAULTS, "heads": heads}
    bottleneck = build(case, mix_images_in_eval=mix).eval()
    before = {name: value.clone() for name, value in bottleneck.memory.named_buffers()}
    features = torch.randn(3, 4, 5, 2, dtype=torch.float64, requires_grad=True)
    output, expected = bottleneck(features), infer(features, oracle_weights(bottleneck), mix)
    near(output, expected, "output")
    gradients = compare_gradients(output, expected, {"features": features, **dict(bottleneck.named_parameters())})
    # the labeled branch's weights alone are used
    assert {name for name, value in gradients.items() if value is None} == {
        f"unlabeled_attention.{part}_proj.weight" for part in "qkvo"
    }
    assert all(torch.equal(before[name], value) for name, value in bottleneck.memory.named_buffers())


def test_training_without_unlabeled_images_is_each_image_by_itself():
    bottleneck = build(DEFAULTS, mix_images_in_eval=True).train()
    features = torch.randn(3, 4, 2, 3, dtype=torch.float64)
    near(bottleneck(features), infer(features, oracle_weights(bottleneck)), "output")
    assert bottleneck.memory.num_enqueued.sum() == 0


@pytest.mark.parametrize("classes", [1, 3, 81])
def test_grouping_alone(classes):
    """Both similarities, both sources, many random images; each option must change something."""
    torch.manual_seed(classes)
    found = {}
    tokens = torch.randn(6, 12, 5, dtype=torch.float64)
    prediction = 2 * torch.randn(6, classes, 7, 5, dtype=torch.float64)
    prediction += 3 * torch.randn(1, classes, 1, 1, dtype=torch.float64)  # classes of unequal size
    for similarity in ("cosine", "instance_norm"):
        for source in ("logits", "probabilities"):
            chosen = group_channels(tokens, prediction, (4, 3), similarity, source)
            pairs = zip(tokens, prediction, strict=True)
            assert chosen.tolist() == [group(one, maps, (4, 3), similarity, source) for one, maps in pairs]
            found[similarity, source] = tuple(chosen.flatten().tolist())
    assert len(set(found.values())) == (1 if classes == 1 else 4)


def test_memory_by_hand():
    """Seven channels into three places: the last three stay, the next write goes to place 1."""
    memory = SemanticMemory(num_slots=2, slot_size=3, num_tokens=1)
    memory.enqueue(torch.arange(7.0).reshape(1, 1, 7), torch.zeros(1, 7, dtype=torch.int64))
    assert memory.channels[0].flatten().tolist() == [6, 4, 5]
    assert memory.position.tolist() == [1, 0]
    memory.enqueue(torch.full((1, 1, 1), 7.0), torch.tensor([[0]]))
    assert memory.channels[0].flatten().tolist() == [6, 7, 5]
    assert memory.fill.tolist() == [1, 0]


def test_half_slots_are_joined_with_their_neighbors():
    """Three classes with two channels each, four channels per piece: (0, 1), (2, 0)."""
    memory = SemanticMemory(num_slots=3, slot_size=2, num_tokens=1)
    memory.channels.copy_(torch.arange(6.0).reshape(3, 2, 1))
    assert memory.sources(4).flatten().tolist() == [0, 1, 2, 3, 4, 5, 0, 1]


def test_resize_by_hand():
    """Two tokens in a row become four: 1/4 and 3/4 between them, the ends repeated."""
    tokens = torch.tensor([[[0.0], [4.0]]], dtype=torch.float64)
    assert resize_tokens(tokens, (1, 2), (1, 4)).flatten().tolist() == [0, 1, 3, 4]


def test_the_oracle_itself_against_the_authors_attention(parity_dir):
    """The oracle was written from a description; here it meets the authors' numbers without the package between."""
    stored = load_file(parity_dir / "unit_cross_attn_mem.safetensors")
    state = {name.split("state.")[1]: value.double() for name, value in stored.items() if "state." in name}
    names = {"query": "q", "key": "k", "value": "v", "out": "out"}
    cross, own = ({ours: state[f"{name}_{end}.weight"].T for ours, name in names.items()} for end in ("l2u", "u"))
    for case, read in (("nomem", False), ("mem", True)):
        memory = Memory(state["kv_queue"])
        memory.positions = state["queue_ptr"].long().tolist()
        for call, tokens in enumerate(stored["inputs.emb"].double()):
            maps = stored["inputs.prob_map"][call].double()
            classes = [group(image, scores, (5, 5)) for image, scores in zip(tokens[2:], maps, strict=True)]
            assert classes == stored["channel_cls"][call].tolist()
            for image, chosen in zip(tokens[2:], classes, strict=True):
                memory.enqueue(image, chosen)
            sources = memory.sources(tokens.shape[2]) if read else list(tokens[2:])
            output = [cross_attention(image, sources, cross) for image in tokens[:2]]
            output += [self_attention(image, own) for image in tokens[2:]]
            near(torch.stack(output), stored[f"f64.{case}.out"][call], f"{case}, call {call}")
            assert memory.positions == stored["queue_ptr_after"][call].tolist()

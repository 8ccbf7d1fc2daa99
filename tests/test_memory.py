"""The memory's update against its definition, one channel after the other."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracle import Memory

from allspark_hf.models.bottleneck_allspark import SemanticMemory


TOKENS = 2
SETTINGS = settings(max_examples=30, deadline=None, derandomize=True)


def plain_enqueue(expected: Memory, tokens: torch.Tensor, classes: list[list[int]]):
    for image, chosen in zip(tokens, classes, strict=True):
        for channel, label in enumerate(chosen):
            if 0 <= label < len(expected.slots):
                expected.write(label, image[:, channel])


def check(num_slots: int, slot_size: int, batches: list[list[list[int]]]):
    """Every channel that comes is another number, so that no two places can be mistaken for each other."""
    memory = SemanticMemory(num_slots, slot_size, TOKENS)
    expected = Memory(memory.channels)
    count = 0
    for classes in batches:
        shape = (len(classes), TOKENS, len(classes[0]))
        tokens = torch.arange(count, count + torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
        count += tokens.numel()
        memory.enqueue(tokens, torch.tensor(classes, dtype=torch.int64).reshape(len(classes), -1))
        plain_enqueue(expected, tokens, classes)
        assert torch.equal(memory.channels, torch.stack([torch.stack(slot) for slot in expected.slots]))
        assert memory.position.tolist() == expected.positions
    arrived = [label for batch in batches for chosen in batch for label in chosen]
    assert memory.num_enqueued.tolist() == [arrived.count(slot) for slot in range(num_slots)]


@st.composite
def histories(draw):
    """Slots, their size, and a few batches: any distribution over classes, skewed ones and no class included."""
    num_slots, slot_size = draw(st.integers(1, 150)), draw(st.integers(1, 12))
    common = draw(st.lists(st.integers(-2, num_slots + 1), min_size=1, max_size=4))
    label = st.one_of(st.sampled_from(common), st.integers(-2, num_slots + 1))
    batches = []
    for _ in range(draw(st.integers(1, 4))):
        images, channels = draw(st.integers(1, 3)), draw(st.integers(1, 30))
        row = st.lists(label, min_size=channels, max_size=channels)
        batches.append(draw(st.lists(row, min_size=images, max_size=images)))
    return num_slots, slot_size, batches


@given(histories())
@example((1, 1, [[[0] * 30] * 3]))
@example((2, 3, [[[1] * 7 + [0]], [[1] * 2 + [-1]], [[5] * 4]]))
@example((150, 4, [[[149, 0, 149, 0, 149, 149, 149, 149, 149, 149]]]))
@SETTINGS
def test_any_history_is_first_in_first_out(history):
    check(*history)


@given(st.integers(1, 6), st.integers(1, 9), st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 39))
@SETTINGS
def test_how_a_batch_is_cut_does_not_matter(num_slots, slot_size, classes, cut):
    """Channels in one call or in two: the same content and positions."""
    tokens = torch.randn(1, TOKENS, len(classes))
    labels = torch.tensor([classes])
    whole, halves = (SemanticMemory(num_slots, slot_size, TOKENS) for _ in range(2))
    halves.load_state_dict(whole.state_dict())
    whole.enqueue(tokens, labels)
    for part in (slice(None, cut), slice(cut, None)):
        halves.enqueue(tokens[..., part], labels[..., part])
    assert torch.equal(whole.channels, halves.channels) and torch.equal(whole.num_enqueued, halves.num_enqueued)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_memory_keeps_its_own_type(dtype):
    memory = SemanticMemory(3, 2, TOKENS)
    tokens = torch.randn(1, TOKENS, 4).to(dtype)
    memory.enqueue(tokens, torch.tensor([[0, 1, 2, 0]]))
    assert memory.channels.dtype == torch.float32
    assert torch.equal(memory.channels[0, 1], tokens[0, :, 3].float())


def test_update_compiles_to_one_graph():
    eager, traced = SemanticMemory(5, 4, TOKENS), SemanticMemory(5, 4, TOKENS)
    traced.load_state_dict(eager.state_dict())
    enqueue = torch.compile(traced.enqueue, backend="aot_eager", fullgraph=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        tokens = torch.randn(2, TOKENS, 9, generator=generator)
        slots = torch.randint(-1, 6, (2, 9), generator=generator)
        eager.enqueue(tokens, slots)
        enqueue(tokens, slots)
        assert torch.equal(eager.channels, traced.channels)
        assert torch.equal(eager.num_enqueued, traced.num_enqueued)
    assert eager.num_enqueued.sum() > 20

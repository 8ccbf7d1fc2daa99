"""Checkpoints of the authors with any change: a model that fits the file, or one sentence."""

import math

import pytest
import torch
from fuzzing import fuzz, is_one_sentence
from huggingface_hub.errors import StrictDataclassError
from hypothesis import example, given
from hypothesis import strategies as st
from test_conversion import reference_model, to_reference

from allspark_hf.models.conversion import convert_state_dict, read_checkpoint


SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 7, 8, 16, 40, 64]), max_size=5).filter(lambda s: math.prod(s) < 10**6)
OTHER_KEYS = st.sampled_from(
    [3, None, ("a", "b"), "module.module.x", "", "backbone.block9.0.attn.kv.weight", "x" * 999]
)


@pytest.fixture(scope="module")
def state():
    return to_reference(reference_model())


@pytest.fixture(scope="module")
def content(state, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "best.pth"
    torch.save({"model": {name: state[name] for name in sorted(state)[:8]}, "epoch": 3}, path)
    return path.read_bytes()


@fuzz(8)
@given(st.data())
def test_any_shape_of_any_weight(state, data):
    name = data.draw(st.sampled_from(sorted(state)))
    changed = {**state, name: torch.zeros(data.draw(SHAPES))}
    try:
        model = convert_state_dict(changed)
    except (ValueError, StrictDataclassError) as error:
        assert str(error).strip()
        return
    own = to_reference(model)
    assert own[name].shape == changed[name].shape and own[name].equal(changed[name].to(own[name].dtype))


@fuzz(10)
@given(st.data())
def test_damaged_files(content, tmp_path_factory, data):
    """Bytes replaced or cut anywhere, most of all where the pickle is."""
    path, damaged = tmp_path_factory.getbasetemp() / "damaged.pth", bytearray(content)
    for _ in range(data.draw(st.integers(0, 5))):
        place = data.draw(st.integers(0, 600) | st.integers(0, len(damaged) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged[: data.draw(st.just(len(damaged)) | st.integers(0, len(damaged)))])
    try:
        found = read_checkpoint(path)
    except ValueError as error:
        assert is_one_sentence(error) and str(path) in str(error)
    else:
        assert all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in found.items())


@fuzz(5)
@given(OTHER_KEYS, st.sampled_from([None, 3, "text", [torch.zeros(1)], torch.zeros(2)]))
@example(3, torch.zeros(2))
def test_entries_that_are_no_named_tensors(tmp_path_factory, key, value):
    path = tmp_path_factory.getbasetemp() / "other.pth"
    torch.save({key: value}, path)
    try:
        convert_state_dict(read_checkpoint(path))
    except ValueError as error:
        assert is_one_sentence(error)
    else:
        raise AssertionError("no model can be made of this")

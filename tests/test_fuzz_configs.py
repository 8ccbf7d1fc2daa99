"""Configurations of any content: a model that builds and predicts, or one sentence."""

import json
import math
import shutil

import pytest
import torch
from conftest import tiny_config, tiny_model
from fuzzing import JSON, TEXT, fuzz, is_one_sentence
from huggingface_hub.errors import StrictDataclassError
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from published_model import publish

from allspark_hf import AllSparkConfig, SegformerForSemiSupervisedSegmentation
from allspark_hf.cli.arguments import ModelArguments
from allspark_hf.cli.models import load_model
from allspark_hf.data.checks import CheckReport
from allspark_hf.inference.handler import EndpointHandler
from allspark_hf.inference.loading import load_trained, make_image_processor
from allspark_hf.inference.prediction import palette_of, predict_mask


REFUSED = (ValueError, StrictDataclassError)
OWN = ("channel_attention_heads", "channel_attention_dropout", "memory_size", "crop_size", "use_cross_attention")
OWN += ("use_memory", "use_grouping", "grouping_similarity", "grouping_source", "mix_images_in_eval")
SEGFORMERS = ("num_channels", "hidden_sizes", "depths", "num_attention_heads", "sr_ratios", "patch_sizes", "strides")
SEGFORMERS += ("mlp_ratios", "hidden_act", "decoder_hidden_size", "layer_norm_eps", "drop_path_rate")
SEGFORMERS += ("classifier_dropout_prob", "semantic_loss_ignore_index", "reshape_last_stage", "num_labels")
# Small, so that what is accepted is also quick to build.
SMALL = st.integers(-2, 40) | st.floats(-2, 2) | st.sampled_from([0.5, 1, 2, 4, 0, -1, math.nan, math.inf, True])
VALUES = SMALL | st.lists(SMALL, max_size=5) | TEXT | st.none() | st.sampled_from(["cosine", "instance_norm", "gelu"])
PROCESSOR = ("do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean")
FIELDS = (*OWN, *SEGFORMERS, *PROCESSOR, "image_std", "id2label", "label2id", "palette", "mask_values")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return publish(tmp_path_factory.mktemp("saved"), tiny_model(), make_image_processor())


@pytest.fixture(scope="module")
def folder(saved, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copies") / "model"
    shutil.copytree(saved, copy)
    return copy


@pytest.fixture
def restore(saved, folder):
    yield
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copyfile(saved / name, folder / name)


@fuzz(30)
@given(st.dictionaries(st.sampled_from(OWN + SEGFORMERS), JSON | VALUES, max_size=3))
@example({"crop_size": [64, 96]})
@example({"memory_size": True})
def test_any_field(fields):
    """The configuration round-trips and a model of it builds on the meta device; or the field is refused."""
    try:
        config = tiny_config(**fields)
    except REFUSED as error:
        assert str(error).strip() and "Traceback" not in str(error)
        return
    again = AllSparkConfig.from_dict(json.loads(config.to_json_string()))
    assert repr(again.to_dict()) == repr(config.to_dict())
    with torch.device("meta"):
        SegformerForSemiSupervisedSegmentation(config)


BROKEN = [b"", b"null", b"[]", b"3", b"{", b"\xff", b"[" * 9999, b'{"size": [[]]}']


@pytest.mark.parametrize("content", [*BROKEN[:-1], b'{"id2label": {"a": "b"}}'])
def test_files_that_are_no_configuration(folder, restore, content):
    (folder / "config.json").write_bytes(content)
    report = CheckReport(data=type("Data", (), {"classes": None})(), num_labels=3, values=[0, 1, 2])
    with pytest.raises((OSError, *REFUSED)):
        load_model(ModelArguments(model_name_or_path=str(folder)), report, 255, plain_segformer=False)
    refused_by_both(folder)


@pytest.mark.parametrize("content", BROKEN)
def test_files_that_are_no_image_processor(folder, restore, content):
    (folder / "preprocessor_config.json").write_bytes(content)
    refused_by_both(folder)


def refused_by_both(folder):
    with pytest.raises(ValueError, match="cannot be loaded") as refused:
        load_trained(str(folder), "cpu")
    assert is_one_sentence(refused.value)
    with pytest.raises(ValueError, match="cannot be loaded") as refused:
        EndpointHandler(folder)
    assert is_one_sentence(refused.value)


def test_weights_of_another_geometry_are_not_trained_on(folder, restore):
    """They would all start anew; other classes and crops may."""
    report = CheckReport(data=type("Data", (), {"classes": None})(), num_labels=5, values=[0, 1, 2])
    arguments = ModelArguments(
        model_name_or_path=str(folder), crop_size=[96], memory_size=2, channel_attention_heads=1
    )
    assert load_model(arguments, report, 255, plain_segformer=False).config.num_labels == 5
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "hidden_sizes": [8, 16, 24, 64]}))
    with pytest.raises(ValueError, match=r"weights of .* have other shapes than its config.json says"):
        load_model(arguments, report, 255, plain_segformer=False)


def predicts(folder) -> bool:
    """Whether the model of a folder loads; then it predicts, and names and colors every class."""
    try:
        model, image_processor = load_trained(str(folder), "cpu")
    except ValueError as error:
        assert is_one_sentence(error) and str(folder) in str(error)
        return False
    try:
        mask = predict_mask(model, image_processor, Image.new("RGB", (48, 40), (90, 20, 10)))
    except (RuntimeError, ValueError) as error:  # as the scripts catch, image by image
        assert is_one_sentence(error) and ("NaN" in str(error) or "pixels" in str(error)), error
        return False
    assert mask.shape == (40, 48) and mask.max() < model.config.num_labels
    assert palette_of(model.config).shape == (model.config.num_labels, 3)
    assert all(isinstance(model.config.id2label[index], str) for index in range(model.config.num_labels))
    return True


IN_CONFIG = [
    {"hidden_sizes": [8, 16, 24, 33]},
    {"depths": [1, 1, 1]},
    {"num_attention_heads": [1, 2, 3, 0]},
    {"hidden_act": "none"},
    {"layer_norm_eps": math.nan},
    {"palette": [[0, 0, 0.5]] * 3},
    {"palette": [[math.nan] * 3] * 3},
    {"palette": [[True, False, True]] * 3},
    {"palette": [["a", "b", "c"]] * 3},
    {"palette": [[0, 0, 256]] * 3},
    {"palette": [[1, 2], [3], []]},
    {"palette": [[1, 2, 3]] * 4},
    {"mask_values": [1.5]},
    {"mask_values": "123"},
    {"ignored_mask_values": 3},
    {"base_weights": 3},
    {"id2label": {"0": "a", "1": "b", "5": "c"}},
    {"id2label": {"0": "a", "1": "b", "2": None}},
]
IN_PROCESSOR = [
    {"image_mean": [0.5]},
    {"image_std": [0, 0, 0]},
    {"do_resize": True, "size": {"height": 10**9, "width": 10**9}},
    {"do_normalize": "yes"},
    {"rescale_factor": math.nan},
    {"resample": 99},
]
EDITED = [("config.json", fields) for fields in IN_CONFIG]
EDITED += [("preprocessor_config.json", fields) for fields in IN_PROCESSOR]


@pytest.mark.parametrize(("name", "fields"), EDITED, ids=str)
def test_files_edited_by_hand_are_refused(saved, folder, restore, name, fields):
    change(saved, folder, name, fields)
    assert not predicts(folder)


@fuzz(10)
@given(st.sampled_from(["config.json", "preprocessor_config.json"]), st.sampled_from(FIELDS), JSON | VALUES)
@example("preprocessor_config.json", "size", {"shortest_edge": 64})
def test_files_edited_at_random(saved, folder, restore, name, field, value):
    change(saved, folder, name, {field: value})
    predicts(folder)


def change(saved, folder, name: str, fields: dict):
    content = json.loads((saved / name).read_text())
    (folder / name).write_text(json.dumps({**content, **fields}))


def test_an_unchanged_folder_predicts(saved):
    assert predicts(saved)


# ---- What SegformerConfig lets through ----

STAGES = ("hidden_sizes", "depths", "num_attention_heads", "sr_ratios", "patch_sizes", "strides", "mlp_ratios")
DROPOUTS = ("drop_path_rate", "classifier_dropout_prob", "hidden_dropout_prob", "attention_probs_dropout_prob")
UNBUILDABLE = {
    "num_channels": [-1, 0, 10**30],
    "num_encoder_blocks": [-1, 0, 3, 10**30],
    **{name: [[], [1], [1, 1, 1], [1, 1, 1, -1], [1, 1, 1, 1, 1]] for name in STAGES},
    "hidden_act": ["x"],
    "decoder_hidden_size": [-1, 0, 10**30],
    "layer_norm_eps": [math.nan, math.inf, -1.0],
    "initializer_range": [math.nan, math.inf],
    **{name: [math.nan, -0.5, 1.5] for name in DROPOUTS},
    "num_labels": [-1, 0],
    "crop_size": [10**30],
    "channel_attention_heads": [10**30],
}


@pytest.mark.parametrize("name", UNBUILDABLE)
def test_fields_of_segformer_that_no_model_can_be_built_from(name):
    for value in [*UNBUILDABLE[name], [1, 1, 1, 10**9]] if name == "depths" else UNBUILDABLE[name]:
        with pytest.raises(REFUSED, match=name) as refused:
            tiny_config(**{name: value})
        assert str(refused.value).strip().splitlines()[-1].strip().startswith(("ValueError: ", "TypeError: "))

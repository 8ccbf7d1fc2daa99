"""The configuration: every field survives JSON, ready sizes are the paper's, contradictions are refused."""

import dataclasses
import json
import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import PreTrainedConfig

from allspark_hf import AllSparkConfig, SegformerForSemiSupervisedSegmentation


# A value other than the default for every field that SegformerConfig and AllSparkConfig declare.
OTHER_VALUES = {
    "num_channels": 4,
    "num_encoder_blocks": 3,
    "depths": [1, 2, 1, 3],
    "sr_ratios": [4, 2, 1, 1],
    "hidden_sizes": [8, 16, 40, 64],
    "patch_sizes": [5, 3, 3, 3],
    "strides": [2, 2, 2, 2],
    "num_attention_heads": [1, 2, 4, 8],
    "mlp_ratios": [2, 3, 4, 4],
    "hidden_act": "relu",
    "hidden_dropout_prob": 0.05,
    "attention_probs_dropout_prob": 0.15,
    "classifier_dropout_prob": 0.2,
    "initializer_range": 0.01,
    "drop_path_rate": 0.25,
    "layer_norm_eps": 1e-5,
    "decoder_hidden_size": 32,
    "semantic_loss_ignore_index": 7,
    "channel_attention_heads": 3,
    "channel_attention_dropout": 0.3,
    "memory_size": 0.5,
    "crop_size": [65, 130],
    "grouping_similarity": "instance_norm",
    "grouping_source": "probabilities",
    "mix_images_in_eval": True,
    "use_grouping": False,
    "use_memory": False,
    "use_cross_attention": False,
    "base_weights": "nvidia/mit-b5",
    "base_license": "apache-2.0",
    "mask_values": [7, 8],
    "ignored_mask_values": [0, 9],
    "image_range": [100, 4095],
    "tiff_page": 3,
    "palette": [[0, 0, 0], [255, 128, 1]],
}
FIXED = {"reshape_last_stage"}  # has one allowed value
STAGES = ("depths", "sr_ratios", "hidden_sizes", "patch_sizes", "strides", "num_attention_heads", "mlp_ratios")

# SegFormer paper, Table 1(a) (parameters in millions: encoder, decoder at 150 classes) and Table 6 (geometry).
PAPER = {
    "b0": ((32, 64, 160, 256), (2, 2, 2, 2), 256, 3.4, 0.4),
    "b1": ((64, 128, 320, 512), (2, 2, 2, 2), 256, 13.1, 0.6),
    "b2": ((64, 128, 320, 512), (3, 4, 6, 3), 768, 24.2, 3.3),
    "b3": ((64, 128, 320, 512), (3, 4, 18, 3), 768, 44.0, 3.3),
    "b4": ((64, 128, 320, 512), (3, 8, 27, 3), 768, 60.8, 3.3),
    "b5": ((64, 128, 320, 512), (3, 6, 40, 3), 768, 81.4, 3.3),
}


def own_fields():
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    return {field.name: field.default for field in dataclasses.fields(AllSparkConfig) if field.name not in inherited}


def test_every_field_has_another_value_here():
    defaults = own_fields()
    assert set(OTHER_VALUES) | FIXED == set(defaults)
    assert all(OTHER_VALUES[name] != default for name, default in defaults.items() if name not in FIXED)


def test_all_fields_together_survive_json(tmp_path):
    values = {**OTHER_VALUES, **{stages: OTHER_VALUES[stages][:3] for stages in STAGES}}  # as num_encoder_blocks says
    config = AllSparkConfig(**values, id2label={0: "sky", 1: "sea"}, label2id={"sky": 0, "sea": 1})
    config.save_pretrained(tmp_path)
    loaded = AllSparkConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict() and loaded.model_type == "allspark"
    assert {name: getattr(loaded, name) for name in values} == values
    assert loaded.id2label == {0: "sky", 1: "sea"} and loaded.num_labels == 2


def test_defaults_are_the_published_method():
    config = AllSparkConfig()
    expected = {
        "channel_attention_heads": 2,
        "channel_attention_dropout": 0.1,
        "memory_size": 1,
        "crop_size": 513,
        "use_cross_attention": True,
        "use_memory": True,
        "use_grouping": True,
        "grouping_similarity": "cosine",
        "grouping_source": "logits",
        "mix_images_in_eval": False,
        "layer_norm_eps": 1e-6,
        "drop_path_rate": 0.1,
        "semantic_loss_ignore_index": 255,
    }
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize("size", PAPER)
def test_ready_sizes_are_the_papers(size):
    hidden_sizes, depths, decoder_hidden_size, encoder_millions, decoder_millions = PAPER[size]
    config = AllSparkConfig.mit(size, num_labels=150, crop_size=33)
    assert (tuple(config.hidden_sizes), tuple(config.depths)) == (hidden_sizes, depths)
    assert config.decoder_hidden_size == decoder_hidden_size
    assert tuple(config.num_attention_heads) == (1, 2, 5, 8) and tuple(config.sr_ratios) == (8, 4, 2, 1)
    assert tuple(config.patch_sizes) == (7, 3, 3, 3) and tuple(config.strides) == (4, 2, 2, 2)
    with torch.device("meta"):
        model = SegformerForSemiSupervisedSegmentation(config)
    count = [
        sum(parameter.numel() for parameter in part.parameters()) for part in (model.segformer, model.decode_head)
    ]
    assert count[0] / 1e6 == pytest.approx(encoder_millions, abs=0.1)
    assert count[1] / 1e6 == pytest.approx(decoder_millions, abs=0.05)
    # bottleneck: 8 projections C x 2C, two 1x1 convolutions, two norms
    width = hidden_sizes[-1]
    expected = 16 * width**2 + 2 * (width**2 + width) + 4 * width
    assert sum(parameter.numel() for parameter in model.bottleneck.parameters()) == expected


def test_ready_size_gives_way_to_arguments():
    config = AllSparkConfig.mit("b5", depths=[1, 1, 1, 1], num_labels=4)
    assert list(config.depths) == [1, 1, 1, 1] and config.decoder_hidden_size == 768 and config.num_labels == 4


def test_unknown_size():
    with pytest.raises(ValueError, match="size 'b6': choose one of b0, b1, b2, b3, b4, b5"):
        AllSparkConfig.mit("b6")


@pytest.mark.parametrize(
    ("crop_size", "grid"),
    [
        (513, (17, 17)),
        (801, (26, 26)),
        (512, (16, 16)),
        (1, (1, 1)),
        (32, (1, 1)),
        (33, (2, 2)),
        ([65, 96], (3, 3)),
        ((97, 64), (4, 2)),
    ],
)
def test_token_grid(crop_size, grid):
    config = AllSparkConfig(crop_size=crop_size)
    assert config.token_grid == grid
    assert config.crop_height_width == ((crop_size,) * 2 if isinstance(crop_size, int) else tuple(crop_size))


CONTRADICTIONS = [
    ({"use_cross_attention": False}, "use_memory=True needs use_cross_attention=True"),
    ({"use_memory": False}, "use_grouping=True needs use_memory=True"),
    ({"reshape_last_stage": False}, "reshape_last_stage=False"),
    ({"memory_size": 3}, "memory_size=3 is not one of"),
    ({"memory_size": 0}, "memory_size=0 is not one of"),
    ({"memory_size": float("nan")}, "memory_size=nan is not one of"),
    ({"memory_size": 0.5, "hidden_sizes": [8, 16, 24, 33]}, "memory_size=0.5 needs an even number of channels"),
    ({"channel_attention_heads": 0}, "channel_attention_heads=0"),
    ({"channel_attention_dropout": 1}, "channel_attention_dropout=1"),
    ({"channel_attention_dropout": -0.1}, "channel_attention_dropout=-0.1"),
    *[({"image_range": values}, "image_range") for values in ([5], [5, 5], [-1, 5], [0, 65536], [0, 1, 2])],
    ({"palette": [[0, 0, 0], [1, 2]]}, "palette"),
    ({"palette": [[0, 0, 0], [0, 0, 256]]}, "palette"),
    *(({"crop_size": crop}, f"crop_size={crop} is neither") for crop in (0, -513, [], [513], [64, 64, 64], [0, 64])),
]


@pytest.mark.parametrize(("fields", "sentence"), CONTRADICTIONS)
def test_contradictory_settings(fields, sentence):
    with pytest.raises(StrictDataclassClassValidationError, match=re.escape(sentence)):
        AllSparkConfig(**fields)


def test_contradiction_made_later_is_refused_on_saving(tmp_path):
    config = AllSparkConfig()
    config.use_memory = False
    with pytest.raises(StrictDataclassClassValidationError, match="set use_grouping=False or use_memory=True"):
        config.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("channel_attention_heads", "2"),
        ("channel_attention_heads", True),
        ("channel_attention_dropout", None),
        ("memory_size", "1"),
        ("crop_size", "513"),
        ("crop_size", 513.0),
        ("crop_size", [64.0, 64]),
        ("use_grouping", 1),
        ("grouping_similarity", "dot"),
        ("mix_images_in_eval", None),
        ("layer_norm_eps", "1e-6"),
        ("base_weights", 3),
        ("mask_values", [0.5]),
        ("ignored_mask_values", "123"),
        ("image_range", [0, 4095.5]),
        ("palette", [[0, 0, 0.5]]),
    ],
)
def test_wrong_types(name, value):
    with pytest.raises(StrictDataclassFieldValidationError, match=f"Validation error for field '{name}'"):
        AllSparkConfig(**{name: value})
    config = AllSparkConfig()
    with pytest.raises(StrictDataclassFieldValidationError, match=f"Validation error for field '{name}'"):
        setattr(config, name, value)


def test_plain_segformer_switches_are_all_of_them():
    switches = AllSparkConfig.plain_segformer_switches()
    assert switches == {name: False for name in own_fields() if name.startswith("use_")}
    assert AllSparkConfig(**switches).use_cross_attention is False


def test_share_memory_of_older_files_has_no_effect(tmp_path):
    AllSparkConfig().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "share_memory": False}))
    loaded = AllSparkConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == AllSparkConfig.from_dict(content).to_dict() and not hasattr(loaded, "share_memory")


def test_what_a_segmenters_configuration_tells():
    config = AllSparkConfig.mit("b5", crop_size=[65, 130])
    assert (config.bottleneck_channels, config.encoder_stride) == (512, 32)
    assert config.token_grid == (3, 5) and config.token_grid_of(513, 33) == (17, 2)

"""The dpt head and DINOv2's positions, against the numbers of UniMatch V2's code."""

import re

import pytest
import torch
from parity import Reference
from segmenter_tester import difference
from transformers import Dinov2Config

from allspark_hf import AllSparkBackboneConfig, BackboneForSemiSupervisedSegmentation


# UniMatch V2's name -> ours
DPT_NAMES = (
    (r"projects\.(\d)", r"decode_head.project.\1"),
    (r"resize_layers\.(\d)", r"decode_head.resize.\1"),
    (r"scratch\.layer(\d)_rn", lambda found: f"decode_head.levels.{int(found[1]) - 1}"),
    (r"scratch\.refinenet(\d)", lambda found: f"decode_head.fusions.{int(found[1]) - 1}"),
    (r"resConfUnit1", "residual_level"),
    (r"resConfUnit2", "residual_fused"),
    (r"out_conv", "project"),
    (r"scratch\.output_conv\.0", "decode_head.output"),
    (r"scratch\.output_conv\.2", "classifier"),
)
PLAIN = {"use_cross_attention": False, "use_memory": False, "use_grouping": False, "use_skip_classifier": False}


def our_name(name):
    for theirs, ours in DPT_NAMES:
        name = re.sub(theirs, ours, name)
    return name


def test_dpt_head_is_unimatch_v2s(parity_root):
    stored = Reference(parity_root / "unimatch_v2").load("f_dpt_head")
    encoder = Dinov2Config(hidden_size=8, num_hidden_layers=4, num_attention_heads=2, out_indices=[1, 2, 3, 4])
    fields = {"num_labels": 3, "decoder_hidden_size": 8, "neck_hidden_sizes": [4, 4, 8, 8], **PLAIN}
    model = BackboneForSemiSupervisedSegmentation(AllSparkBackboneConfig(backbone_config=encoder, **fields)).double()
    weights = {our_name(k.removeprefix("weights.")): v for k, v in stored.items() if k.startswith("weights.")}
    unused = {name for name in weights if name.startswith("decode_head.fusions.3.residual_level")}  # theirs is, too
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(unexpected) == unused and all(name.startswith("backbone.") for name in missing)
    maps = tuple(stored[f"tokens{level}"].transpose(1, 2).unflatten(2, (3, 4)) for level in range(4))
    features = model.decode_features(maps, pixel_values := torch.zeros(2, 3, 42, 56, dtype=torch.float64))
    assert difference(model.classifier(features), stored["head_out"]) <= 1e-12
    assert difference(model.decode(maps, pixel_values), stored["upsampled"]) <= 1e-5  # stored in float32


@pytest.mark.parametrize("size", [(518, 518), (798, 798), (504, 700), (266, 518)])
def test_positions_are_unimatch_v2s(parity_root, size):
    stored = Reference(parity_root / "unimatch_v2").load("h_pos_embed")
    encoder = Dinov2Config(hidden_size=2, num_hidden_layers=4, num_attention_heads=1, image_size=518)
    encoder.out_indices = [1, 2, 3, 4]
    found = {}
    for way in ("size", "scale_factor"):
        fields = {"position_interpolation": way, "decoder_hidden_size": 2, "neck_hidden_sizes": [1, 1, 2, 2]}
        model = BackboneForSemiSupervisedSegmentation(
            AllSparkBackboneConfig(backbone_config=encoder, memory_size=1, **fields, **PLAIN)
        )
        embeddings = model.backbone.embeddings
        embeddings.position_embeddings.data = stored["pos_embed"]
        tokens = torch.empty(1, 1 + size[0] // 14 * (size[1] // 14), 2)
        found[way] = embeddings.interpolate_pos_encoding(tokens, *size)
    expected = stored[f"out_{size[0]}x{size[1]}"]
    assert difference(found["scale_factor"], expected) <= 1e-6
    assert (difference(found["size"], expected) > 0.1) == (size != (518, 518))

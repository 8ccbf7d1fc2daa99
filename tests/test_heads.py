"""The heads of `BackboneForSemiSupervisedSegmentation`, against the authors' numbers and transformers' SegFormer."""

import re

import pytest
import torch
from conftest import SHARED, tiny_config
from safetensors.torch import load_file
from segmenter_tester import difference, images, logits_of
from test_backbone import ENCODERS, tiny_backbone_model
from transformers import Dinov2Config, FocalNetConfig, HieraConfig, ViTConfig
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

from allspark_hf import AllSparkBackboneConfig, BackboneForSemiSupervisedSegmentation
from allspark_hf.models.heads_allspark import AllMLPHead


UNIMATCH = SHARED / "parity" / "unimatch_v2"
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


def reference(name):
    if not UNIMATCH.is_dir():
        pytest.skip(f"the authors' numbers are not at {UNIMATCH}")
    return load_file(UNIMATCH / f"{name}.safetensors")


def our_name(name):
    for theirs, ours in DPT_NAMES:
        name = re.sub(theirs, ours, name)
    return name


def test_dpt_head_is_unimatch_v2s():
    stored = reference("f_dpt_head")
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
def test_positions_are_unimatch_v2s(size):
    stored = reference("h_pos_embed")
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


def test_all_mlp_head_is_segformers():
    config = tiny_config(classifier_dropout_prob=0.0)
    theirs = SegformerDecodeHead(config).eval()
    ours = AllMLPHead(
        AllSparkBackboneConfig(backbone_config=ENCODERS["convnext"], head="all_mlp", decoder_hidden_size=16)
    )
    names = {"linear_projections": "project", "linear_fuse": "fuse", ".proj.": "."}
    for name, value in theirs.state_dict().items():
        for their_part, our_part in names.items():
            name = name.replace(their_part, our_part)
        if not name.startswith("classifier"):
            ours.state_dict()[name].copy_(value)
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3)]
    maps = tuple(torch.randn(2, width, *size) for width, size in zip(config.hidden_sizes, sizes, strict=True))
    assert difference(theirs.classifier(ours.eval()(maps)), theirs(maps)) <= 1e-6


@pytest.mark.parametrize("encoder", ["dinov2", "convnext"])
def test_all_mlp_takes_any_number_of_maps(encoder):
    config = ENCODERS[encoder].to_dict() | {"out_features": None, "out_indices": [2, 4]}
    fields = {"head": "all_mlp", "decoder_hidden_size": 8, "num_labels": 2, "crop_size": 64}
    model = BackboneForSemiSupervisedSegmentation(AllSparkBackboneConfig(backbone_config=config, **fields)).eval()
    assert logits_of(model, images(1, (50, 71))).shape == (1, 2, 50, 71)


@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_every_pixel_counts(encoder):
    """Backbones of transformers drop rows and columns that do not fill a patch."""
    model = tiny_backbone_model(encoder).eval()
    pixel_values = images(1, (65, 81))
    before = logits_of(model, pixel_values)
    for rows, columns in ((-1, slice(None)), (slice(None), -1)):
        changed = pixel_values.clone()
        changed[0, :, rows, columns] += 3
        assert difference(logits_of(model, changed), before) > 1e-3


def test_skip_classifier_starts_without_effect_and_learns():
    torch.manual_seed(0)
    config = tiny_backbone_model("dinov2").config
    model = BackboneForSemiSupervisedSegmentation(config).eval()
    skip, model.skip_classifier.classifiers = model.skip_classifier.classifiers, torch.nn.ModuleList()
    assert all(not parameter.any() for parameter in skip.parameters())
    model.skip_classifier.classifiers = skip
    before = logits_of(model)
    with torch.no_grad():
        skip[0].bias += 1
    assert difference(logits_of(model), before + 1) <= 1e-5


def test_image_stem_sees_pixels_inside_a_patch():
    """With an encoder that sees none, only the stem tells two pixels of a patch apart."""
    model = tiny_backbone_model("dinov2", use_image_stem=True).eval()
    with torch.no_grad():
        model.backbone.embeddings.patch_embeddings.projection.weight.zero_()
    changed = images(1)
    changed[0, :, 20, 30] += 5
    change = (logits_of(model, changed) - logits_of(model, images(1))).abs().amax(dim=(0, 1))
    assert change[16:25, 26:35].max() > 0.01 and change[:10].max() <= 1e-5 and change[:, 45:].max() <= 1e-5


@pytest.mark.parametrize(
    ("encoder", "sentence"),
    [
        (ViTConfig(), "no Backbone class of 'vit'"),
        (HieraConfig(), "'hiera' does not take images of any size"),
        ({"model_type": "dinov7"}, "model_type='dinov7'"),
        ({}, "default"),
        ({"hidden_size": 24}, "model_type=None"),
        ({"model_type": "dinov2", "hiden_size": 24}, "no field hiden_size"),
        (Dinov2Config(hidden_size=24, num_attention_heads=2, num_hidden_layers=4), "needs 4 feature maps"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused_encoders(encoder, sentence):
    if sentence == "default":
        assert AllSparkBackboneConfig(backbone_config=encoder or None).feature_strides == (14,) * 4
        return
    with pytest.raises(Exception, match=re.escape(sentence)):
        AllSparkBackboneConfig(backbone_config=encoder)


def test_channels_are_those_of_the_maps():
    """FocalNet's `channels` says 8, 16, 32, 64."""
    encoder = FocalNetConfig(embed_dim=8, depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 32, 64], out_indices=[1, 2, 3, 4])
    config = AllSparkBackboneConfig(backbone_config=encoder)
    assert config.feature_channels == (16, 32, 64, 64) and config.feature_strides == (8, 16, 32, 32)

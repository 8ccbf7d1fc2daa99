"""The heads of `BackboneForSemiSupervisedSegmentation`, against the authors' numbers and transformers' SegFormer."""

import re

import pytest
import torch
from conftest import tiny_config
from segmenter_tester import difference, images, logits_of
from test_backbone import ENCODERS, tiny_backbone_model
from transformers import Dinov2Config, FocalNetConfig, HieraConfig, ViTConfig
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

from allspark_hf import AllSparkBackboneConfig, BackboneForSemiSupervisedSegmentation
from allspark_hf.models.heads_allspark import AllMLPHead


PLAIN = {"use_cross_attention": False, "use_memory": False, "use_grouping": False, "use_skip_classifier": False}


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


@pytest.mark.parametrize("head", ["dpt", "all_mlp"])
def test_head_and_classifier_read_the_last_map_from_the_bottleneck_alone(head):
    """Else a training can leave out what the bottleneck rebuilds."""
    model = tiny_backbone_model("dinov2", head=head).eval()
    for parameter in model.skip_classifier.parameters():
        torch.nn.init.ones_(parameter)
    seen = []
    model.bottleneck.register_forward_hook(lambda module, inputs, output: seen.append(output) or seen[0])
    before = logits_of(model)

    def double_last_map(module, inputs, output):
        output.feature_maps = (*output.feature_maps[:-1], 2 * output.feature_maps[-1])

    model.backbone.register_forward_hook(double_last_map)
    assert torch.equal(logits_of(model), before) and difference(seen[1], seen[0]) > 0.01


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

"""Encoders by name: files in the Hub's format, what is missing or left over, freezing, and resuming with them."""

import json
import os
import re
import time
from copy import deepcopy
from dataclasses import replace

import PIL.Image
import pytest
import torch
from hub_server import HubServer
from huggingface_hub import constants, hf_hub_download
from run_training import make_trainer
from safetensors.torch import load_file, save_file
from segmenter_tester import NO_BOTTLENECK, difference, images, logits_of, train_inputs
from test_backbone import ENCODERS, VIT, tiny_backbone_model
from transformers import (
    AutoModel,
    BeitConfig,
    ConvNextForImageClassification,
    Dinov2ForImageClassification,
    PixioConfig,
    ResNetForImageClassification,
    SegformerConfig,
    SegformerModel,
    SwinForImageClassification,
)

from allspark_hf import (
    AllSparkBackboneConfig,
    AllSparkConfig,
    AllSparkTrainingArguments,
    BackboneForSemiSupervisedSegmentation,
)
from allspark_hf.cli.arguments import ModelArguments, parse_arguments
from allspark_hf.cli.encoder_defaults import apply_encoder_defaults, encoder_defaults
from allspark_hf.cli.models import resolve_encoder
from allspark_hf.inference.loading import load_trained, make_image_processor
from allspark_hf.models import encoders
from allspark_hf.models.encoders import encoder_config, encoder_normalization, load_encoder
from allspark_hf.models.freezing import freeze_encoder
from allspark_hf.models.pretrained import check_reachable
from allspark_hf.utils.arguments import names, recorded


# Besides the model alone, with the head of another task, whose names have one prefix more.
CLASSIFIERS = {
    "convnext": ConvNextForImageClassification,
    "dinov2": Dinov2ForImageClassification,
    "resnet": ResNetForImageClassification,
    "swin": SwinForImageClassification,
}
TINY = {"num_labels": 3, "crop_size": 64, "decoder_hidden_size": 16}


def write_encoder(folder, encoder: str, classifier: bool = False, **options):
    """A folder of transformers' own class, with weights that are none of a new model's."""
    torch.manual_seed(3)
    config = ENCODERS[encoder].__class__.from_dict(ENCODERS[encoder].to_dict())
    config.out_indices = [len(config.stage_names) - 1]  # as in files on the Hub
    model = CLASSIFIERS[encoder](config) if classifier else AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=max(1, parameter[0].numel()) ** -0.5 if parameter.ndim else 1.0)
    model.save_pretrained(folder, **options)
    return model.eval()


@pytest.mark.parametrize("encoder", list(ENCODERS))
@pytest.mark.parametrize("options", [{}, {"classifier": True}, {"save_original_format": False}], ids=str)
def test_every_weight_is_loaded(tmp_path, encoder, options):
    if options.get("classifier") and encoder not in CLASSIFIERS:
        pytest.skip("no classifier of this encoder is written here")
    source = write_encoder(tmp_path, encoder, **options)
    source = (source.base_model if options.get("classifier") else source).state_dict()
    model = load_encoder(str(tmp_path), **TINY)
    loaded, source = (
        {re.sub(rf"(^|\.)({encoder}|model|encoder\.model)\.", r"\1", name): value for name, value in state.items()}
        for state in (model.backbone.state_dict(), source)
    )
    added = {name for name in loaded if name.startswith("hidden_states_norms")}
    shared = loaded.keys() & source.keys()
    assert loaded.keys() - source.keys() == added and len(shared) > 10
    assert all(torch.equal(loaded[name], source[name]) for name in shared)
    assert len(model.config.feature_channels) == 4
    assert all(value.eq(float("weight" in name)).all() for name, value in loaded.items() if name in added)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_an_encoder_in_half_precision(tmp_path, dtype):
    written = write_encoder(tmp_path / "encoder", "dinov2").to(dtype)
    written.save_pretrained(tmp_path / "encoder")
    model = load_encoder(str(tmp_path / "encoder"), **TINY).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    state = model.backbone.state_dict()
    assert all(torch.equal(state[name], value.float()) for name, value in written.state_dict().items())
    expected = logits_of(model, images(2))
    assert expected.isfinite().all()
    model.save_pretrained(tmp_path / "model")
    make_image_processor().save_pretrained(tmp_path / "model")
    assert torch.equal(logits_of(load_trained(str(tmp_path / "model"), "cpu")[0], images(2)), expected)


def test_half_precision_does_not_round_between_pixels(tmp_path):
    write_encoder(tmp_path, "dinov2")
    model = load_encoder(str(tmp_path), **TINY).eval().bfloat16()
    logits = logits_of(model, images(2, dtype=torch.bfloat16))
    assert logits.dtype == torch.float32 and (logits.bfloat16() != logits).float().mean() > 0.9


def test_missing_and_left_over_weights_are_told(tmp_path):
    write_encoder(tmp_path, "dinov2")
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if "layer.2" in name and "value.weight" in name)
    save_file({key: value for key, value in weights.items() if key != name}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="no weights for 1 parameters of the encoder"):
        load_encoder(str(tmp_path), **TINY)
    deeper = {key.replace("layer.2", "layer.7"): value for key, value in weights.items() if "layer.2" in key}
    deeper = {key: value.clone() for key, value in deeper.items()}
    save_file({**weights, **deeper}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"weights of .* have no place in the encoder"):
        load_encoder(str(tmp_path), **TINY)
    token = {key: value for key, value in weights.items() if "mask_token" not in key}  # which segmentation never uses
    save_file(token, tmp_path / "model.safetensors")
    load_encoder(str(tmp_path), **TINY)


def test_a_type_starts_at_random_and_others_are_told(tmp_path, monkeypatch):
    monkeypatch.setitem(encoders.CONFIG_MAPPING._extra_content, "dinov2", lambda: deepcopy(ENCODERS["dinov2"]))
    model = load_encoder("dinov2", encoder_fields={"drop_path_rate": 0.2, "out_indices": [1, 2, 3, 4]}, **TINY)
    assert model.backbone.config.drop_path_rate == 0.2 and logits_of(model.eval()).shape == (2, 3, 50, 70)
    with pytest.raises(ValueError, match="has no sr_ratios"):
        load_encoder("dinov2", encoder_fields={"sr_ratios": [1]}, **TINY)
    with pytest.raises(ValueError, match="no Backbone class of 'vit'"):
        load_encoder("vit")

    def gated(*args, **kwargs):
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it.")

    monkeypatch.setattr(encoders, "check_reachable", lambda name: None)
    monkeypatch.setattr(encoders.AutoConfig, "from_pretrained", gated)
    with pytest.raises(
        ValueError, match=r"'facebook/dinov3-vits16' are gated: ask for access on https://huggingface\.co"
    ):
        load_encoder("facebook/dinov3-vits16")


def test_a_name_that_nobody_can_look_up_is_refused_at_once(monkeypatch):
    with HubServer() as hub:
        hub.use_here(monkeypatch)
        hub.add("a/there", {"config.json": b"{}"})
        hf_hub_download("a/there", "config.json")
        for how in (404, 503, "cut"):  # any answer leaves the rest to huggingface_hub, and so does a cut connection
            hub.fail_next("GET", "/api/models/", times=2, how=how)
            check_reachable("a/missing")
        with pytest.raises(ValueError, match="'a/missing' cannot be loaded: a/missing is not a local folder"):
            load_encoder("a/missing")
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
        start = time.monotonic()
        for load in (load_encoder, load_trained):
            with pytest.raises(ValueError, match=r"no folder .a/missing., and the Hub, .*\(.*Connection refused"):
                load("a/missing")
        assert time.monotonic() - start < 5  # huggingface_hub tries for 23 seconds
        check_reachable("a/there")  # in the Hub's cache


def test_normalization_is_the_encoders(tmp_path, caplog):
    write_encoder(tmp_path, "convnext")
    assert encoder_normalization(str(tmp_path)) == encoders.IMAGENET
    assert "has no preprocessor_config.json that can be read" in caplog.text  # it may want another normalization
    own = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**own, "image_processor_type": "X"}))
    assert encoder_normalization(str(tmp_path)) == own and encoder_normalization("dinov2") == encoders.IMAGENET


@pytest.mark.parametrize(
    ("stored", "of_gray"),
    [
        ({"do_normalize": False}, 128 / 255),
        ({"do_normalize": False, "do_rescale": False}, 128),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 127.5}, (128 / 127.5 - 0.5) / 0.5),
    ],
)
def test_values_are_those_of_the_encoders_processor(tmp_path, stored, of_gray):
    """Gray of 128, also where the processor does not normalize, or not to values of 0 to 1."""
    write_encoder(tmp_path, "convnext")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**stored, "image_processor_type": "X"}))
    processor = make_image_processor(**encoder_normalization(str(tmp_path)))
    pixels = processor(PIL.Image.new("RGB", (2, 2), (128,) * 3), return_tensors="pt")["pixel_values"]
    assert torch.allclose(pixels, torch.full_like(pixels, of_gray), atol=1e-5)


@pytest.mark.parametrize(
    "stored", [{"do_flip_channel_order": True}, {"image_processor_type": "PPLCNetImageProcessor"}]
)
def test_an_encoder_that_reads_blue_first_is_refused(tmp_path, stored):
    write_encoder(tmp_path, "convnext")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "X", **stored}))
    with pytest.raises(ValueError, match="in the order blue, green, red: choose another"):
        encoder_normalization(str(tmp_path))


def test_segformers_go_to_the_segformer_model(tmp_path):
    SegformerModel(SegformerConfig(hidden_sizes=[8, 16, 24, 32], depths=[1] * 4)).save_pretrained(tmp_path)
    for name in ("nvidia/mit-b5", str(tmp_path)):
        found = resolve_encoder(ModelArguments(encoder=name))
        assert (found.encoder, found.model_name_or_path) == (None, name)
    kept = ModelArguments(encoder="dinov2")
    assert (
        resolve_encoder(kept) == kept and resolve_encoder(replace(kept, encoder=None, backbone="b0")).backbone == "b0"
    )


# ---- Training ----


def test_rates_follow_encoder_and_length(tmp_path):
    vit, pyramid = tiny_backbone_model("dinov2").config, tiny_backbone_model("swin").config
    assert (
        encoder_defaults(vit, 300)["learning_rate"] == 1e-5 and encoder_defaults(vit, 30_000)["learning_rate"] == 5e-6
    )
    assert encoder_defaults(pyramid, 300)["head_learning_rate_multiplier"] == 10
    assert encoder_defaults(AllSparkConfig(), 300) == {}
    for config in (vit, pyramid):  # of which --help says so
        assert set(encoder_defaults(config, 300)) == set(names(AllSparkTrainingArguments, by_encoder=True))
    random = tiny_backbone_model("dinov2", base_weights="none").config
    assert set(encoder_defaults(random, 300)) == {"optim", "weight_decay"}
    given = ["--output_dir", str(tmp_path), "--use_cpu", "--learning_rate", "0.5", "--optim", "sgd"]
    (args,) = parse_arguments((AllSparkTrainingArguments,), given)
    said = []
    apply_encoder_defaults(args, vit, 300, say=said.append)
    assert said == ["for this encoder and 300 updates: weight_decay 0.01, head_learning_rate_multiplier 50.0"]
    assert (args.learning_rate, args.optim, args.head_learning_rate_multiplier) == (0.5, "sgd", 50)
    assert recorded(args) == {"use_cpu": True, "learning_rate": 0.5}  # sgd is the default


def test_a_model_type_whose_default_sizes_are_a_tuple_starts_at_random():
    with torch.device("meta"):
        model = load_encoder("convnext", num_labels=3, crop_size=64, **NO_BOTTLENECK)
    assert model.config.feature_channels == (96, 192, 384, 768)


@pytest.mark.parametrize(("settings", "layers"), [({"freeze_encoder": True}, 4), ({"freeze_encoder_layers": 2}, 2)])
def test_frozen_parts_keep_their_weights(tmp_path, settings, layers):
    model = tiny_backbone_model("dinov2", channel_attention_dropout=0.0)
    for block in model.backbone.encoder.layer:
        block.drop_path.drop_prob = 0.5
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = make_trainer(model, output_dir=str(tmp_path), max_steps=2, logging_steps=1, **settings)
    trainer.train()
    entry = trainer.state.log_history[0]
    assert entry["learning_rate_head"] == pytest.approx(entry["learning_rate"] * (1 if layers == 4 else 10))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    parts = ("embeddings", *(f"encoder.layer.{index}." for index in range(layers)))
    frozen = {name for name in before if name.startswith(tuple(f"backbone.{part}" for part in parts))}
    assert frozen and not changed & frozen
    assert any(name.startswith("backbone.") for name in changed) == (layers < 4)
    assert any(name.startswith("decode_head.") for name in changed)
    model.train()
    modes = [block.training for block in model.backbone.encoder.layer]
    assert modes == [index >= layers for index in range(4)] and model.training
    model.zero_grad()
    features = model.encode(images(1))
    assert features[-1].requires_grad == (layers < 4)  # no graph is kept in a frozen encoder


@pytest.mark.parametrize("kind", [BeitConfig, PixioConfig])
def test_embeddings_that_lie_deeper_are_frozen_with_the_layers(kind):
    encoder = kind(**VIT | {"image_size": 64}, patch_size=16)
    model = BackboneForSemiSupervisedSegmentation(AllSparkBackboneConfig(backbone_config=encoder, crop_size=64))
    freeze_encoder(model, 2)
    trained = {name for name, parameter in model.backbone.named_parameters() if parameter.requires_grad}
    assert trained and not any("embeddings" in name or re.search(r"layers?\.[01]\.", name) for name in trained)


def test_a_second_training_of_a_model_freezes_what_its_own_arguments_say(tmp_path):
    model = tiny_backbone_model("dinov2")
    model.classifier.bias.requires_grad_(False)  # by the user
    before = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for settings, frozen in (({"freeze_encoder": True}, "backbone."), ({}, "nothing")):
        make_trainer(model, output_dir=str(tmp_path), **settings)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained == {name for name in before if not name.startswith(frozen)}
    model.train()
    assert model.backbone.encoder.layer[0].training


def test_layers_that_are_not_there(tmp_path):
    nones = [(name, f"'{name}' is none") for name in ("resnet", "swin", "convnext")]
    for encoder, sentence in (("dinov2", "the encoder has 4 layers"), *nones):
        with pytest.raises(ValueError, match=sentence):
            make_trainer(tiny_backbone_model(encoder), output_dir=str(tmp_path), freeze_encoder_layers=5)


@pytest.mark.parametrize("encoder", ["dinov2", "dinov3_vit", "swin"])
def test_resume_restores_every_weight(tmp_path, encoder):
    """transformers alone would leave out those whose names it changes when it loads them (#48805)."""
    settings = {"output_dir": str(tmp_path), "max_steps": 4, "save_strategy": "steps", "save_steps": 3, "seed": 3}
    settings |= {"optim": "adamw_torch", "learning_rate": 0.001}
    whole = make_trainer(tiny_backbone_model(encoder), **settings)
    whole.train()
    resumed = make_trainer(tiny_backbone_model(encoder, seed=5), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == 4
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value) or "mask_token" in name, name


def test_a_real_dinov2():
    """Features of the segmenter are those of transformers' own model, at a size that needs other positions."""
    folder = os.environ.get("ALLSPARK_DINOV2_SMALL")
    if not folder:
        pytest.skip("ALLSPARK_DINOV2_SMALL names no folder with a download of facebook/dinov2-small")
    model, own = load_encoder(folder, num_labels=3, crop_size=224).eval(), AutoModel.from_pretrained(folder).eval()
    pixel_values = images(1, (196, 252))
    with torch.no_grad():
        tokens, maps = own(pixel_values).last_hidden_state[:, 1:], model.encode(pixel_values)
    assert difference(maps[-1].flatten(2).transpose(1, 2), tokens) <= 1e-4 and tokens.std() > 0.5


def test_gradients_are_checkpointed_in_the_encoder():
    model = tiny_backbone_model("dinov2").train()
    model.gradient_checkpointing_enable()
    calls = []
    model.backbone.encoder.layer[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    model(**train_inputs(model)).loss.backward()
    assert len(calls) == 2
    with pytest.raises(ValueError, match="activation checkpointing"):
        tiny_backbone_model("resnet").gradient_checkpointing_enable()


@pytest.mark.parametrize("name", ["/no/such/encoder", "./encoder", "models/of/mine"])
def test_a_folder_that_is_not_there(name):
    with pytest.raises(ValueError, match=r"There is no folder .* with an encoder: correct the path"):
        encoder_config(name)

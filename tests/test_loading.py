"""Weights in the Hub's old SegFormer names, and the model's own folders: all loaded, nothing left to chance."""

import re
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, tiny_config, tiny_model
from safetensors.torch import save_file
from segmenter_tester import assert_complete
from test_backbone import tiny_backbone_model
from transformers import SegformerConfig

from allspark_hf import AllSparkConfig, SegformerForSemiSupervisedSegmentation
from allspark_hf.cli.arguments import ModelArguments
from allspark_hf.cli.models import load_model
from allspark_hf.data import Reading


PLAIN = AllSparkConfig.plain_segformer_switches()
SOURCE_LABELS = 5

# Today's names -> those in nvidia/mit-b* and nvidia/segformer-* on the Hub.
OLD_NAMES = (
    (r"stages\.(\d)\.patch_embeddings\.", r"encoder.patch_embeddings.\1."),
    (r"stages\.(\d)\.layer_norm\.", r"encoder.layer_norm.\1."),
    (r"stages\.(\d)\.blocks\.(\d+)\.", r"encoder.block.\1.\2."),
    (r"\.layernorm_before\.", ".layer_norm_1."),
    (r"\.layernorm_after\.", ".layer_norm_2."),
    (r"attention\.q_proj", "attention.self.query"),
    (r"attention\.k_proj", "attention.self.key"),
    (r"attention\.v_proj", "attention.self.value"),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"attention\.sequence_reduction\.sequence_reduction", "attention.self.sr"),
    (r"attention\.sequence_reduction\.layer_norm", "attention.self.layer_norm"),
    (r"mlp\.fc1", "mlp.dense1"),
    (r"mlp\.fc2", "mlp.dense2"),
    (r"decode_head\.linear_projections", "decode_head.linear_c"),
)


def old_name(name: str) -> str:
    for pattern, replacement in OLD_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def write_hub_folder(folder, kind, binary=False):
    """A tiny `mit` (encoder, ImageNet classifier) or `segformer` (encoder, decode head) folder; its weights."""
    source = tiny_model(**PLAIN, num_labels=SOURCE_LABELS).train()
    source(torch.randn(2, 3, 64, 64))  # BatchNorm statistics other than the initial ones
    weights = {name: value.detach().clone() for name, value in source.state_dict().items()}
    stored = {old_name(name): value for name, value in weights.items()}
    num_labels = SOURCE_LABELS
    if kind == "mit":
        num_labels = 1000
        stored = {name: value for name, value in stored.items() if not name.startswith("decode_head.")}
        stored |= {"classifier.weight": torch.randn(num_labels, 32), "classifier.bias": torch.randn(num_labels)}
    # names copied from the Hub, so that the table above cannot be wrong on both sides
    assert {
        "segformer.encoder.patch_embeddings.0.proj.weight",
        "segformer.encoder.block.0.0.attention.self.query.weight",
        "segformer.encoder.block.0.0.attention.self.sr.weight",
        "segformer.encoder.block.0.0.attention.self.layer_norm.bias",
        "segformer.encoder.block.3.0.attention.output.dense.bias",
        "segformer.encoder.block.0.0.layer_norm_2.weight",
        "segformer.encoder.block.0.0.mlp.dwconv.dwconv.weight",
        "segformer.encoder.layer_norm.0.weight",
        "classifier.weight" if kind == "mit" else "decode_head.linear_c.0.proj.weight",
    } <= set(stored)
    folder.mkdir(exist_ok=True)
    if binary:
        torch.save(stored, folder / "pytorch_model.bin")
    else:
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    fields = {name: value for name, value in TINY.items() if name in SegformerConfig.__dataclass_fields__}
    architecture = "SegformerForImageClassification" if kind == "mit" else "SegformerForSemanticSegmentation"
    config = SegformerConfig(**fields, num_labels=num_labels, image_size=224, downsampling_rates=[1, 4, 8, 16])
    config.architectures = [architecture]
    config.save_pretrained(folder)
    assert '"model_type": "segformer"' in (folder / "config.json").read_text()
    return weights


def load(folder, **kwargs):
    return SegformerForSemiSupervisedSegmentation.from_pretrained(folder, output_loading_info=True, **kwargs)


def assert_same(model, weights, prefix, but=()):
    actual = model.state_dict()
    names = [name for name in weights if name.startswith(prefix) and name not in but]
    assert len(names) > 10
    for name in names:
        assert torch.equal(actual[name], weights[name]), name


def keys_of(model, *prefixes):
    """Learned weights and statistics; the memory is no weight."""
    names = {name for name in model.state_dict() if name.startswith(prefixes)}
    return {name for name in names if not name.startswith("bottleneck.memory.")}


CLASSIFIER = {"decode_head.classifier.weight", "decode_head.classifier.bias"}


@pytest.mark.parametrize(("num_labels", "binary"), [(1, False), (3, True), (81, False)])
def test_mit_folder(tmp_path, num_labels, binary):
    weights = write_hub_folder(tmp_path, "mit", binary)
    model, info = load(tmp_path, config=tiny_config(num_labels=num_labels))
    assert_same(model, weights, "segformer.")
    assert set(info["missing_keys"]) == keys_of(model, "bottleneck.", "decode_head.")
    assert set(info["unexpected_keys"]) == {"classifier.weight", "classifier.bias"}
    assert not info["mismatched_keys"] and not info["error_msgs"]
    assert model.config.model_type == "allspark" and model.config.num_labels == num_labels


@pytest.mark.parametrize("num_labels", [1, 3, SOURCE_LABELS, 81])
def test_segformer_folder(tmp_path, num_labels):
    """With the classes of the folder its classifier is kept; with others it starts anew."""
    weights = write_hub_folder(tmp_path, "segformer", binary=num_labels == SOURCE_LABELS)
    model, info = load(tmp_path, config=tiny_config(num_labels=num_labels), ignore_mismatched_sizes=True)
    anew = set() if num_labels == SOURCE_LABELS else CLASSIFIER
    assert_same(model, weights, "segformer.")
    assert_same(model, weights, "decode_head.", but=anew)
    assert model.decode_head.batch_norm.num_batches_tracked == 1
    assert set(info["missing_keys"]) == keys_of(model, "bottleneck.") and not info["unexpected_keys"]
    assert {name for name, *_ in info["mismatched_keys"]} == anew
    assert model.decode_head.classifier.weight.shape == (num_labels, 16, 1, 1)
    if anew:
        weight, bias = model.decode_head.classifier.weight, model.decode_head.classifier.bias
        assert 0 < weight.abs().max() < 0.2 and not bias.any()


def test_segformer_folder_without_bottleneck_is_that_segformer(tmp_path):
    weights = write_hub_folder(tmp_path, "segformer")
    model, info = load(tmp_path, config=tiny_config(**PLAIN, num_labels=SOURCE_LABELS))
    assert set(model.state_dict()) == set(weights)
    assert_same(model, weights, "")
    assert not any(info.values())


def test_other_classes_are_an_error_unless_asked_for(tmp_path):
    write_hub_folder(tmp_path, "segformer")
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        load(tmp_path, config=tiny_config(num_labels=3))


@pytest.mark.parametrize("kind", ["mit", "segformer"])
@pytest.mark.parametrize("options", [{}, {"memory_size": 0.5}, {"use_grouping": False, "memory_size": 2}], ids=str)
def test_nothing_is_left_uninitialized(tmp_path, poisoned_memory, kind, options):
    write_hub_folder(tmp_path, kind)
    models = []
    for _ in range(2):
        torch.manual_seed(11)
        config = tiny_config(num_labels=3, **options)
        models.append(load(tmp_path, config=config, ignore_mismatched_sizes=True)[0])
        torch.randn(7)
    first, second = (dict(model.state_dict()) for model in models)
    own = [*models[0].named_parameters(), *models[0].named_buffers()]
    assert {name for name, _ in own} == set(first)
    for name, value in first.items():
        assert value.isfinite().all(), name
        assert torch.equal(value, second[name]), name
    bottleneck = models[0].bottleneck
    for name, parameter in bottleneck.named_parameters():
        expected = 1 if name.endswith("norm.weight") else 0
        if parameter.ndim == 1:
            assert (parameter == expected).all(), name
        else:
            assert parameter.std() > 0.01, name
    channels = bottleneck.memory.channels
    assert channels.numel() == 3 * 32 * options.get("memory_size", 1) * 4
    tolerance = 5 / channels.numel() ** 0.5
    assert abs(channels.mean().item()) < tolerance
    assert abs(channels.std().item() - 1) < tolerance
    assert not bottleneck.memory.num_enqueued.any()


def data_report(num_labels):
    return SimpleNamespace(data=SimpleNamespace(classes=None), num_labels=num_labels, reading=Reading([0, 4095]))


@pytest.mark.parametrize("kind", ["mit", "segformer"])
@pytest.mark.parametrize("plain", [False, True])
def test_load_model_of_the_training_script(tmp_path, poisoned_memory, kind, plain):
    weights = write_hub_folder(tmp_path, kind)
    arguments = ModelArguments(model_name_or_path=str(tmp_path), crop_size=[64, 96], drop_path_rate=0.2)
    if not plain:
        arguments.memory_size, arguments.channel_attention_heads = 2, 3
    model = load_model(arguments, data_report(3), ignore_index=9, plain_segformer=plain)
    assert_same(model, weights, "segformer.")
    if kind == "segformer":
        assert_same(model, weights, "decode_head.", but=CLASSIFIER)
    config = model.config
    assert (config.model_type, config.num_labels, config.semantic_loss_ignore_index) == ("allspark", 3, 9)
    assert (list(config.hidden_sizes), config.decoder_hidden_size) == (TINY["hidden_sizes"], 16)
    assert config.id2label == {0: "class_0", 1: "class_1", 2: "class_2"}
    assert (config.drop_path_rate, config.layer_norm_eps, config.image_range) == (0.2, 1e-6, [0, 4095])
    assert model.segformer.stages[0].layer_norm.eps == 1e-6
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert (model.bottleneck is None) == plain
    if not plain:
        memory = model.bottleneck.memory
        assert memory.channels.shape == (3, 64, 6) and not memory.num_enqueued.any()
        assert model.bottleneck.labeled_attention.num_heads == 3


@pytest.mark.parametrize("encoder", ["dinov2", "resnet"])
def test_drop_path_of_a_loaded_model_is_the_encoders(tmp_path, encoder):
    tiny_backbone_model(encoder, use_memory=False, use_grouping=False).save_pretrained(tmp_path)
    arguments = ModelArguments(model_name_or_path=str(tmp_path), drop_path_rate=0.2)
    if encoder == "resnet":
        with pytest.raises(ValueError, match="has no drop_path_rate: leave it out"):
            load_model(arguments, data_report(3), 255, plain_segformer=True)
        return
    model = load_model(arguments, data_report(3), 255, plain_segformer=True)
    assert model.backbone.config.drop_path_rate == 0.2
    assert [block.drop_path.drop_prob for block in model.backbone.encoder.layer][-1] == pytest.approx(0.2)


def test_load_model_of_its_own_folder_keeps_what_is_not_given(tmp_path):
    fields = {"memory_size": 2, "channel_attention_heads": 3, "grouping_source": "probabilities"}
    saved = tiny_model(**fields)
    saved.save_pretrained(tmp_path)
    model = load_model(ModelArguments(model_name_or_path=str(tmp_path)), data_report(3), 255, plain_segformer=False)
    kept = ("memory_size", "channel_attention_heads", "grouping_source", "crop_size", "depths", "hidden_sizes")
    assert all(getattr(model.config, name) == getattr(saved.config, name) for name in kept)
    assert_same(model, dict(saved.named_parameters()), "")


@pytest.mark.parametrize("kind", ["allspark", "dinov2"])
def test_load_model_of_half_precision_trains_in_float32(tmp_path, kind):
    saved = (tiny_model() if kind == "allspark" else tiny_backbone_model(kind)).to(torch.bfloat16)
    saved.save_pretrained(tmp_path)
    model = load_model(ModelArguments(model_name_or_path=str(tmp_path)), data_report(3), 255, plain_segformer=False)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert_same(model, {name: value.float() for name, value in saved.named_parameters()}, "")


def train_a_little(model, num_labels):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        inputs = {"pixel_values": torch.randn(2, 3, 64, 64), "labels": torch.randint(num_labels, (2, 64, 64))}
        if model.bottleneck is not None:
            logits = torch.randn(3, num_labels, 8, 8)
            inputs |= {"unlabeled_pixel_values": torch.randn(3, 3, 64, 64), "unlabeled_logits": logits}
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("fields", [{}, {"num_labels": 1, "memory_size": 0.5}, PLAIN], ids=str)
@pytest.mark.parametrize("start", ["mit", "segformer"])
def test_what_started_from_the_hubs_weights_is_saved_and_loaded(tmp_path, transformers_warnings, fields, start):
    write_hub_folder(tmp_path / "hub", start)
    model = load(tmp_path / "hub", config=tiny_config(**fields), ignore_mismatched_sizes=True)[0]
    train_a_little(model.train(), fields.get("num_labels", 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    transformers_warnings.clear()
    model.save_pretrained(tmp_path / "own")
    loaded, info = load(tmp_path / "own")
    assert not transformers_warnings and not any(info.values())
    assert_complete(tmp_path / "own")
    assert loaded.config.model_type == "allspark"
    assert_same(loaded, {name: before[name] for name in keys_of(model, "")}, "")


def test_warnings_are_seen(tmp_path, transformers_warnings):
    """The round trip above must be able to fail."""
    write_hub_folder(tmp_path, "mit")
    load(tmp_path, config=tiny_config())
    assert any("bottleneck.project_in.weight" in message for message in transformers_warnings)
    assert not any("memory" in message for message in transformers_warnings)

"""Checkpoints in the authors' names: converted to a folder that predicts the same, or refused with nothing written."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_model
from safetensors.torch import load_file

from allspark_hf import AllSparkConfig, SegformerForSemiSupervisedSegmentation
from allspark_hf.models.conversion import convert_state_dict, infer_config, read_checkpoint, rename
from allspark_hf.models.upsampling import upsample


SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "convert_checkpoint.py"
PLAIN = AllSparkConfig.plain_segformer_switches()
GEOMETRY = {
    "hidden_sizes": [8, 16, 40, 64],
    "num_attention_heads": [1, 2, 5, 8],
    "depths": [1, 2, 1, 1],
    "mlp_ratios": [4, 2, 3, 4],
    "crop_size": 65,
}

# Our names -> the authors'. {1} is the stage counted from 1; k and v of the encoder are one tensor there.
REFERENCE_NAMES = (
    (r"segformer\.stages\.(\d)\.patch_embeddings\.layer_norm", "backbone.patch_embed{1}.norm"),
    (r"segformer\.stages\.(\d)\.patch_embeddings\.proj", "backbone.patch_embed{1}.proj"),
    (r"segformer\.stages\.(\d)\.layer_norm", "backbone.norm{1}"),
    (r"segformer\.stages\.(\d)\.blocks", "backbone.block{1}"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"attention\.sequence_reduction\.sequence_reduction", "attn.sr"),
    (r"attention\.sequence_reduction\.layer_norm", "attn.norm"),
    (r"(?<=\d\.)attention\.([qkv])_proj", "attn.{0}"),
    (r"(?<=\d\.)attention\.o_proj", "attn.proj"),
    (r"decode_head\.linear_projections\.(\d)", "decoder.decoder.linear_c{1}"),
    (r"decode_head\.linear_fuse", "decoder.decoder.linear_fuse.conv"),
    (r"decode_head\.batch_norm", "decoder.decoder.linear_fuse.bn"),
    (r"decode_head\.classifier", "decoder.decoder.linear_pred"),
    (r"bottleneck\.project_(in|out)", "decoder.allspark.map_{0}.0"),
    (r"bottleneck\.token_norm", "decoder.allspark.attn_norm"),
    (r"bottleneck\.output_norm", "decoder.allspark.encoder_norm"),
    (r"bottleneck\.labeled_attention\.([qkv])_proj", "decoder.allspark.attn.{0}_l2u"),
    (r"bottleneck\.unlabeled_attention\.([qkv])_proj", "decoder.allspark.attn.{0}_u"),
    (r"bottleneck\.labeled_attention\.o_proj", "decoder.allspark.attn.out_l2u"),
    (r"bottleneck\.unlabeled_attention\.o_proj", "decoder.allspark.attn.out_u"),
    (r"bottleneck\.memory\.channels", "decoder.allspark.attn.kv_queue"),
    (r"bottleneck\.memory\.num_enqueued", "decoder.allspark.attn.queue_ptr"),
)


def reference_name(name: str) -> str:
    for pattern, template in REFERENCE_NAMES:
        match = re.search(pattern, name)
        if match:
            group = match[1] if match.groups() else ""
            following = int(group) + 1 if group.isdigit() else group
            name = name.replace(match[0], template.format(group, following))
    return name


def to_reference(model) -> dict[str, torch.Tensor]:
    """The model's state dict in the authors' names."""
    state = {reference_name(name): value.clone() for name, value in model.state_dict().items()}
    for key in [name for name in state if re.search(r"backbone.*attn\.k\.", name)]:
        value = key.replace(".k.", ".v.")
        state[key.replace(".k.", ".kv.")] = torch.cat([state.pop(key), state.pop(value)])
    return state


def reference_model(**kwargs):
    """A tiny model with BatchNorm statistics other than the initial ones, in eval mode."""
    model = tiny_model(**{**GEOMETRY, **kwargs})
    norm = model.decode_head.batch_norm
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    if model.bottleneck is not None:
        model.bottleneck.memory.num_enqueued.copy_(torch.arange(model.config.num_labels) + 2)
    return model.eval()


@pytest.fixture
def reference():
    return to_reference(reference_model())


def run_script(*arguments):
    """In this process: exit code (0 when the script ends by itself)."""
    before = sys.argv
    sys.argv = [str(SCRIPT), *map(str, arguments)]
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as stop:
        return stop.code
    finally:
        sys.argv = before
    return 0


def assert_same_predictions(folder, model):
    loaded = SegformerForSemiSupervisedSegmentation.from_pretrained(folder).eval()
    images = torch.randn(2, 3, 50, 70)
    with torch.no_grad():
        difference = (loaded(images).logits - model(images).logits).abs().max().item()
    assert difference <= 1e-6
    return loaded


def refuse(capsys, tmp_path, content):
    """Writes `content`, expects exit code 2 and an untouched folder; returns the message."""
    path = tmp_path / "bad.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    code = run_script(path, tmp_path / "out")
    message = capsys.readouterr().err
    assert code == 2 and not (tmp_path / "out").exists()
    assert "Traceback" not in message
    return message


WRAPPINGS = {
    "plain": lambda state: state,
    "distributed": lambda state: {f"module.{name}": value for name, value in state.items()},
    "training": lambda state: {
        "model": {f"module.{name}": value for name, value in state.items()},
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "epoch": 3,
        "previous_best": 70.5,
    },
    "old pickle": lambda state: {"state_dict": state},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_wrapping_converts(tmp_path, capsys, wrapping):
    model = reference_model()
    content = WRAPPINGS[wrapping](to_reference(model))
    torch.save(content, tmp_path / "best.pth", _use_new_zipfile_serialization=wrapping != "old pickle")
    assert run_script(tmp_path / "best.pth", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "hidden_sizes [8, 16, 40, 64], depths [1, 2, 1, 1], 3 classes, crop 65, 2" in printed
    loaded = assert_same_predictions(tmp_path / "out", model)
    expected = model.state_dict()
    for name, value in loaded.state_dict().items():
        assert name.startswith("bottleneck.memory.") or torch.equal(value, expected[name]), name
    written = {path.name for path in (tmp_path / "out").iterdir()}
    code = {"bottleneck_allspark.py", "configuration_allspark.py", "modeling_allspark.py"}
    assert written == {"config.json", "model.safetensors", "preprocessor_config.json", *code}


def test_class_names_from_a_file(tmp_path):
    model = reference_model(num_labels=2)
    torch.save(WRAPPINGS["training"](to_reference(model)), tmp_path / "best.pth")
    (tmp_path / "classes.txt").write_text("sky\nsea\n")
    assert run_script(tmp_path / "best.pth", tmp_path / "out", "--classes", tmp_path / "classes.txt") == 0
    assert assert_same_predictions(tmp_path / "out", model).config.id2label == {0: "sky", 1: "sea"}


@pytest.mark.parametrize(
    ("num_labels", "memory_size", "heads", "crop_size"),
    [(1, 0.5, 1, 65), (3, 1, 2, 65), (81, 2, 3, 33), (3, 4, 2, 1), (81, 1, 2, 97)],
)
def test_inferred_configuration(num_labels, memory_size, heads, crop_size):
    fields = {"memory_size": memory_size, "channel_attention_heads": heads, "crop_size": crop_size}
    model = reference_model(num_labels=num_labels, **fields)
    config = infer_config(rename(to_reference(model))[0])
    names = ("hidden_sizes", "depths", "sr_ratios", "mlp_ratios", "patch_sizes", "num_attention_heads", "num_labels")
    for name in (*names, "decoder_hidden_size", *fields, *PLAIN):
        expected = getattr(model.config, name)
        value = getattr(config, name)
        assert (list(value) if isinstance(value, list | tuple) else value) == (
            list(expected) if isinstance(expected, list | tuple) else expected
        ), name


def test_every_tensor_arrives_with_the_memory():
    model = reference_model(memory_size=2, num_labels=5)
    converted = convert_state_dict(to_reference(model), drop_path_rate=0.0)
    assert not converted.training and converted.config.drop_path_rate == 0.0
    expected = model.state_dict()
    assert set(converted.state_dict()) == set(expected)
    for name, value in converted.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert converted.bottleneck.memory.position.tolist() == [2, 3, 4, 5, 6]


def test_plain_segformer_of_the_authors(tmp_path):
    model = reference_model(**PLAIN)
    torch.save(to_reference(model), tmp_path / "baseline.pth")
    assert run_script(tmp_path / "baseline.pth", tmp_path / "out") == 0
    assert assert_same_predictions(tmp_path / "out", model).bottleneck is None


REMOVED = ("backbone.norm1.bias", "backbone.block2.1.attn.kv.bias", "decoder.allspark.attn.out_u.weight")
MISFITS = [  # what is changed in the checkpoint, all that the refusal must say
    (
        {"backbone.head.weight": torch.zeros(1), "decoder.aux.bias": torch.zeros(1)},
        ["backbone.head.weight is mapped by no rule", "decoder.aux.bias is mapped by no rule"],
    ),
    (
        dict.fromkeys(REMOVED),
        [
            "segformer.stages.0.layer_norm.bias is missing",
            "segformer.stages.1.blocks.1.attention.k_proj.bias is missing",
            "segformer.stages.1.blocks.1.attention.v_proj.bias is missing",
            "bottleneck.unlabeled_attention.o_proj.weight is missing",
        ],
    ),
    (
        {
            "backbone.norm1.bias": torch.zeros(9),
            "decoder.decoder.linear_pred.bias": torch.zeros(4),
            "decoder.allspark.attn.queue_ptr": torch.zeros(2, dtype=torch.int64),
        },
        [
            "segformer.stages.0.layer_norm.bias has shape (9,) instead of (8,)",
            "decode_head.classifier.bias has shape (4,) instead of (3,)",
            "bottleneck.memory.num_enqueued has shape (2,) instead of (3,)",
        ],
    ),
    (
        {"backbone.block4.0.attn.sr.bias": torch.zeros(64)},
        ["stages.3.blocks.0.attention.sequence_reduction.sequence_reduction.bias is not part of the model"],
    ),
    ({"decoder.decoder.linear_pred.weight": None}, ["lacks 'decode_head.classifier.weight'"]),
    ({"decoder.allspark.attn.kv_queue": torch.zeros(3, 64, 8)}, ["The memory has 8 tokens"]),
    ({"decoder.allspark.attn.kv_queue": torch.zeros(3, 96, 9)}, ["memory_size=1.5 is not one of (0.5, 1, 2, 4)"]),
]


@pytest.mark.parametrize(("changes", "problems"), MISFITS, ids=lambda value: next(iter(value)).replace(".", "_"))
def test_checkpoints_that_do_not_fit(tmp_path, capsys, reference, changes, problems):
    changed = {name: value for name, value in (reference | changes).items() if value is not None}
    message = refuse(capsys, tmp_path, {"model": changed})
    assert all(problem in message for problem in problems) and message.count(";") == len(problems) - 1


class Malicious:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("wrapped", [False, True])
def test_python_objects_are_refused_and_do_not_run(tmp_path, capsys, reference, wrapped):
    content = {"model": reference, "args": Malicious(tmp_path / "ran")} if wrapped else Malicious(tmp_path / "ran")
    message = refuse(capsys, tmp_path, content)
    assert not (tmp_path / "ran").exists()
    assert message.startswith(f"{tmp_path / 'bad.pth'} holds Python objects besides tensors")
    assert "weights_only" not in message and message.count("\n") == 1  # torch's advice to switch the protection off


def test_absent_file(tmp_path, capsys):
    assert run_script(tmp_path / "absent.pth", tmp_path / "out") == 2
    assert "absent.pth" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"model": {"weight": 1}}, 5], ids=str)
def test_files_without_a_state_dict(tmp_path, capsys, content):
    assert f"{tmp_path / 'bad.pth'} holds no state dict" in refuse(capsys, tmp_path, content)


@pytest.mark.parametrize("cut", ["empty", "half", "text"])
def test_damaged_files(tmp_path, capsys, reference, cut):
    torch.save(reference, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    content = {"empty": b"", "half": whole[: len(whole) // 2], "text": b"not a checkpoint"}[cut]
    message = refuse(capsys, tmp_path, content)
    assert str(tmp_path / "bad.pth") in message
    assert "Python objects" not in message  # there are none in it


def test_training_checkpoint_with_a_numpy_score(tmp_path):
    """A best score that came out of numpy's mean is data, not code."""
    model = reference_model()
    content = {**WRAPPINGS["training"](to_reference(model)), "previous_best": np.float64(70.5)}
    torch.save(content, tmp_path / "best.pth")
    assert len(read_checkpoint(tmp_path / "best.pth")) == len(to_reference(model))


@pytest.mark.parametrize("classes", ["sky\nsea\n", None])
def test_class_names_that_do_not_fit_are_refused(tmp_path, capsys, reference, classes):
    """Two names for three classes, or no such file."""
    torch.save(reference, tmp_path / "best.pth")
    if classes:
        (tmp_path / "classes.txt").write_text(classes)
    code = run_script(tmp_path / "best.pth", tmp_path / "out", "--classes", tmp_path / "classes.txt")
    assert code == 2 and not (tmp_path / "out").exists()
    assert "classes" in capsys.readouterr().err


def test_authors_state_dict_end_to_end(tmp_path, parity_dir):
    state = load_file(parity_dir / "reference_state_dict.safetensors")
    torch.save(WRAPPINGS["training"](state), tmp_path / "best.pth")
    assert run_script(tmp_path / "best.pth", tmp_path / "out") == 0
    model = SegformerForSemiSupervisedSegmentation.from_pretrained(tmp_path / "out").eval()
    assert (model.config.num_labels, model.config.crop_size, model.config.memory_size) == (5, 65, 1)
    assert set(to_reference(model)) == set(state)  # the table above is the authors' names
    stored = load_file(parity_dir / "eval.safetensors")
    for shape in ("square", "rect"):
        images = stored[f"inputs.{shape}"]
        with torch.no_grad():
            logits = torch.cat([upsample(model(image[None]).logits, image.shape[1:]) for image in images])
        assert (logits - stored[f"f32.logits.single.{shape}"]).abs().max().item() < 1e-4

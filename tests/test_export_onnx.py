"""Export to ONNX: logits, files, the 8-bit variant and its cost, refusals."""

import copy
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ONE_STAGE, TWO_STAGES, tiny_model
from PIL import Image


onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'allspark-hf[onnx]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'allspark-hf[onnx]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'allspark-hf[onnx]'")

from exported import LONG_SIDE, equal_share, save_model, spread, tiny_export  # noqa: E402
from in_process import run_script  # noqa: E402
from layout_folders import load_folder, rotated_exif  # noqa: E402
from mask_files import chunk  # noqa: E402
from picture_files import deep_png  # noqa: E402
from test_backbone import ENCODERS, VIT, tiny_backbone_model  # noqa: E402
from transformers import Dinov2WithRegistersConfig  # noqa: E402

from allspark_hf import AllSparkConfig  # noqa: E402
from allspark_hf.cli.export import OptionalDataArguments, ScriptArguments, validation_samples  # noqa: E402
from allspark_hf.evaluation.evaluator import EvaluationDataset  # noqa: E402
from allspark_hf.evaluation.metrics import ConfusionMatrix  # noqa: E402
from allspark_hf.export import folder as export_folder  # noqa: E402
from allspark_hf.export.cost import cost_table, measure_cost  # noqa: E402
from allspark_hf.export.folder import export_files, export_onnx, find_onnx_file, write_for_transformers_js  # noqa: E402
from allspark_hf.export.onnx import (  # noqa: E402
    OPSET,
    OnnxSegmenter,
    check_differences,
    check_exportable,
    compare_logits,
    export_graph,
    quantize_int8,
    require_onnx,
    sizes_to_compare,
)
from allspark_hf.inference.loading import make_image_processor  # noqa: E402
from allspark_hf.inference.prediction import predict_mask  # noqa: E402
from allspark_hf.models.weights import weights_digest  # noqa: E402


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return tiny_export(tmp_path_factory)


@pytest.fixture
def copied_graph(export, monkeypatch):
    """Takes the graph that is there instead of tracing the model again, which takes long."""

    def copy(model, path, fixed_size=None):
        check_exportable(model, fixed_size)
        shutil.copy(export.folder / "onnx" / "model.onnx", path)

    monkeypatch.setattr(export_folder, "export_graph", copy)


def load(export, name: str = "model.onnx") -> OnnxSegmenter:
    return OnnxSegmenter(export.folder / "onnx" / name, export.model.config)


@pytest.mark.parametrize("size", [(1, 29, 29), (2, 61, 47), (3, 33, 130), (5, 64, 64), (1, 31, 201), (1, 200, 150)])
def test_logits_at_any_size(export, size):
    pixel_values = torch.randn(size[0], 3, *size[1:], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = export.model(pixel_values=pixel_values).logits
    got = load(export)(pixel_values=pixel_values).logits
    assert got.shape == expected.shape == (size[0], 6, -(-size[1] // 4), -(-size[2] // 4))
    assert expected.std() > 0.1
    assert (got - expected).abs().max() < 1e-5


def test_image_does_not_depend_on_its_batch(export):
    pixel_values = torch.randn(3, 3, 61, 47, generator=torch.Generator().manual_seed(2))
    segmenter = load(export)
    together = segmenter(pixel_values=pixel_values).logits
    assert (together[1:2] - segmenter(pixel_values=pixel_values[1:2]).logits).abs().max() < 1e-5


@pytest.mark.parametrize(
    "fields",
    [
        {"num_labels": 1, **AllSparkConfig.plain_segformer_switches()},
        {"num_labels": 81, "use_memory": False, "use_grouping": False},
    ],
    ids=["plain, 1 class", "bottleneck without memory, 81 classes"],
)
def test_other_models(tmp_path, fields):
    """For one size, which takes a third of the time."""
    model, size = tiny_model(**ONE_STAGE, **fields).eval(), (37, 56)
    export_graph(model, tmp_path / "model.onnx", size)
    segmenter = OnnxSegmenter(tmp_path / "model.onnx", model.config)
    differences = compare_logits(model, segmenter, sizes_to_compare(model.config, size))
    assert [(one.batch, one.height, one.width) for one in differences] == [(1, *size), (3, *size)]
    assert max(one.max_difference for one in differences) < 2e-5
    other = tiny_model(seed=1, **ONE_STAGE, **fields).eval()
    assert min(one.max_difference for one in compare_logits(other, segmenter, [(1, *size)])) > 1e-2
    quantize_int8(tmp_path / "model.onnx", tmp_path / "int8.onnx")
    (difference,) = compare_logits(model, OnnxSegmenter(tmp_path / "int8.onnx", model.config), [(1, *size)])
    assert 0 < difference.max_difference < 0.5


def two_layers_with_registers(monkeypatch):
    """A model of an encoder that can be exported for one size only."""
    fields = {**VIT, "num_hidden_layers": 2, "out_indices": [1, 2]}
    monkeypatch.setitem(ENCODERS, "dinov2_with_registers", Dinov2WithRegistersConfig(**fields, patch_size=14))
    return tiny_backbone_model("dinov2_with_registers", head="all_mlp").eval()


def test_one_size_of_an_encoder_that_cannot_have_all(tmp_path, monkeypatch):
    model, image_processor = two_layers_with_registers(monkeypatch), make_image_processor()
    with pytest.raises(ValueError, match=r"'dinov2_with_registers' cannot be .* any size: .*\(--fixed_size 64 64\)"):
        export_onnx(model, image_processor, tmp_path / "out")
    with pytest.raises(ValueError, match=r"fixed_size=\(0, 64\) is too small"):
        export_onnx(model, image_processor, tmp_path / "out", fixed_size=(0, 64))
    record = export_onnx(model, image_processor, tmp_path / "out", fixed_size=(50, 71))
    assert record["fixed_size"] == [50, 71]
    assert [(one["batch"], one["height"], one["width"]) for one in record["differences"]] == [(1, 50, 71), (3, 50, 71)]
    assert max(one["max_difference"] for one in record["differences"]) < 1e-5
    segmenter = OnnxSegmenter(tmp_path / "out" / "onnx" / "model.onnx", model.config)
    assert segmenter.fixed_size == (50, 71)
    assert segmenter(torch.zeros(2, 3, 50, 71)).logits.shape == (2, 3, 50, 71)
    with pytest.raises(ValueError, match=r"images are \(50, 70\) pixels .* takes \(50, 71\) only: bring them"):
        segmenter(torch.zeros(1, 3, 50, 70))
    segmenter.fixed_size = None  # as if it had been exported for any size
    differences = compare_logits(model, segmenter, [(1, 50, 71), (1, 50, 70)])
    assert differences[0].max_difference < 1e-5 and differences[1].max_difference == float("inf")
    with pytest.raises(ValueError, match=r"differ by inf .* 1 images of 50x70 .*: try one size .*--fixed_size"):
        check_differences(differences)


def test_one_file_without_memory_and_paths(export):
    path = export.folder / "onnx" / "model.onnx"
    graph = onnx.load(path, load_external_data=False)
    assert {one.domain: one.version for one in graph.opset_import} == {"": OPSET}
    assert not any(onnx.external_data_helper.uses_external_data(one) for one in graph.graph.initializer)
    used = sum(
        parameter.numel()
        for name, parameter in export.model.named_parameters()
        if not name.startswith("bottleneck.unlabeled_attention")
    )
    stored = sum(int(np.prod(one.dims)) for one in graph.graph.initializer)
    assert 0.95 * used < stored < 1.02 * used  # batch norm is folded into a convolution
    assert 4 * stored < path.stat().st_size < 4 * stored + 150_000
    content = path.read_bytes()
    for trace in (b"site-packages", b"modeling_allspark", str(Path.home()).encode() + b"/", b"unlabeled_attention"):
        assert trace not in content
    dims = [one.dim_param or one.dim_value for one in graph.graph.input[0].type.tensor_type.shape.dim]
    assert [one.name for one in (*graph.graph.input, *graph.graph.output)] == ["pixel_values", "logits"]
    assert dims == ["batch", 3, "height", "width"]


def test_int8_quantizes_weights_of_products_only(export):
    float_nodes, int8_nodes = (
        Counter(node.op_type for node in onnx.load(export.folder / "onnx" / name).graph.node)
        for name in ("model.onnx", "model_quantized.onnx")
    )
    assert int8_nodes["MatMulInteger"] > 15
    assert int8_nodes["MatMulInteger"] + int8_nodes["MatMul"] == float_nodes["MatMul"]
    assert int8_nodes["Conv"] == float_nodes["Conv"]
    (difference,) = compare_logits(export.model, load(export, "model_quantized.onnx"), [(2, 61, 97)])
    assert 1e-3 < difference.max_difference < 0.5


def test_script_prints_and_records(export):
    record = json.loads((export.folder / "onnx" / "export.json").read_text())
    sizes = {name: (export.folder / "onnx" / name).stat().st_size for name in ("model.onnx", "model_quantized.onnx")}
    assert record["files"] == sizes
    assert f"onnx/model.onnx  {sizes['model.onnx'] / 1e6:.2f} MB" in export.printed
    measured = [(one["batch"], one["height"], one["width"]) for one in record["differences"]]
    assert measured == sizes_to_compare(export.model.config) == [(1, 29, 29), (2, 71, 106), (3, 129, 35), (1, 64, 64)]
    assert all(one["max_difference"] < 1e-5 for one in record["differences"])
    assert f"  2 x 71 x 106: {record['differences'][1]['max_difference']:.1e}" in export.printed
    assert cost_table(record["cost"]) in export.printed
    assert record["cost"]["num_images"] == 3 and record["cost"]["data"] == "data"
    assert str(export.folder.parent) not in json.dumps(record)
    assert record["fixed_size"] is None and " only" not in export.printed
    assert not list(export.folder.glob(".export-*"))


def test_cost_is_that_of_the_masks(export):
    """Scored image by image by predict_mask; ONNX is as good as PyTorch to the pixel."""
    cost = json.loads((export.folder / "onnx" / "export.json").read_text())["cost"]
    truth = load_folder(export.data_dir).validation
    names = {"PyTorch": export.model, "ONNX": load(export), "int8": load(export, "model_quantized.onnx")}
    for name, model in names.items():
        confusion = ConfusionMatrix(6)
        for example in truth:
            mask = predict_mask(model, export.image_processor, example["image"])
            confusion.update(torch.from_numpy(mask), torch.from_numpy(np.array(example["label"])))
        assert cost[name]["mean_iou"] == pytest.approx(confusion.iou().nanmean().item(), abs=2e-3)
        assert cost[name]["milliseconds"] > 0
    assert cost["ONNX"]["mean_iou"] == pytest.approx(cost["PyTorch"]["mean_iou"], abs=1e-4)
    assert cost["int8"]["mean_iou"] != cost["PyTorch"]["mean_iou"]
    assert cost["PyTorch"]["time_ratio"] == 1


def test_cost_table(export):
    samples = EvaluationDataset(load_folder(export.data_dir).validation, export.image_processor, 6)
    cost = measure_cost({"PyTorch": export.model, "ONNX": load(export)}, samples)
    lines = cost_table(cost).splitlines()
    assert lines[0].startswith("IoU, percent")
    mean = next(line for line in lines if line.startswith("mean")).split()
    assert mean == ["mean", *(f"{100 * cost[name]['mean_iou']:.2f}" for name in ("PyTorch", "ONNX")), "+0.00"]
    cost["ONNX"]["mean_iou"] -= 0.0123
    assert cost_table(cost).splitlines()[-3].split()[-1] == "-1.23"


def test_a_fixed_size_is_measured_on_the_images_that_have_it(export, tmp_path, capsys):
    data_dir = shutil.copytree(export.data_dir, tmp_path / "data")
    for kind in ("images", "masks"):
        path = max((data_dir / kind / "val").iterdir())
        with Image.open(path) as opened:
            turned = opened.transpose(Image.Transpose.ROTATE_90)
        turned.save(path)
    given = ScriptArguments(str(export.model_dir), fixed_size=[61, 80]), OptionalDataArguments(str(data_dir))
    samples = validation_samples(*given, export.model, export.image_processor)
    assert [tuple(samples[row]["pixel_values"].shape) for row in range(len(samples))] == [(3, 61, 80)] * 2
    assert capsys.readouterr().out == "2 of 3 validation images have the fixed size\n"


def test_example_of_readme_gives_the_same_mask(export, tmp_path, monkeypatch):
    """Of a photo, and of a turned one of 12 bits in 16 with transparent parts."""
    shown = np.asarray(Image.open(export.images[0]).convert("RGB")).astype(np.uint16) * 16
    opacity = np.where(np.arange(shown.shape[1]) % 40 < 9, 0, 65535) * np.ones((shown.shape[0], 1), int)
    deep = np.dstack([shown, opacity.astype(np.uint16)])
    (tmp_path / "deep.png").write_bytes(deep_png(np.rot90(deep), chunk(b"eXIf", rotated_exif().tobytes()[6:])))
    folder = shutil.copytree(export.folder, tmp_path / "export")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"image_range": [0, 4080]}))
    monkeypatch.setattr(export.model.config, "image_range", [0, 4080])
    write_for_transformers_js(tmp_path, export.model.config, export.image_processor)
    assert json.loads((tmp_path / "config.json").read_text())["image_range"] == [0, 4080]
    example = Path(__file__).with_name("onnx_example.py")
    _, code, _ = re.split("# README from here\n|# to here\n", example.read_text(encoding="utf-8"))
    assert code in (example.parents[1] / "allspark_hf" / "export" / "README.md").read_text(encoding="utf-8")
    for image in (export.images[0], tmp_path / "deep.png"):
        command = [sys.executable, example, folder, image, tmp_path / "mask.png"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        expected = predict_mask(export.model, export.image_processor, Image.open(image))
        assert len(np.unique(expected)) > 2
        assert equal_share(np.asarray(Image.open(tmp_path / "mask.png")), expected) > 0.999


def test_folder_for_transformers_js(export, tmp_path):
    config = json.loads((export.folder / "config.json").read_text())
    assert config["model_type"] == "segformer" and config["exported_from"]["model_type"] == "allspark"
    assert config["id2label"] == {str(index): name for index, name in export.model.config.id2label.items()}
    assert config["palette"] == export.model.config.palette
    settings = json.loads((export.folder / "preprocessor_config.json").read_text())
    assert settings["size"] == {"shortest_edge": LONG_SIDE, "longest_edge": LONG_SIDE}
    here = type(export.image_processor).from_pretrained(export.folder)
    image = Image.open(export.images[0])
    pixels = [one(images=image, return_tensors="pt")["pixel_values"] for one in (here, export.image_processor)]
    assert torch.equal(*pixels)
    write_for_transformers_js(tmp_path, export.model.config, make_image_processor())
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["do_resize"] is False


def test_own_folder_only_gets_onnx(export, tmp_path, copied_graph):
    folder = shutil.copytree(export.model_dir, tmp_path / "model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    export_onnx(export.model, export.image_processor, folder, in_model_folder=True)
    assert {path.name for path in folder.iterdir()} == {*before, "onnx"}
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert {path.name for path in (folder / "onnx").iterdir()} == {"model.onnx", "export.json", "pixels.py"}


def test_an_export_knows_its_weights(export, tmp_path, copied_graph, monkeypatch):
    """In a folder of its own too, and as a model is saved, which may be in half precision."""
    monkeypatch.setattr(export_folder, "check_differences", lambda differences: None)
    half = copy.deepcopy(export.model).bfloat16()
    models = {tmp_path / "full": export.model, tmp_path / "half": half}
    digests = [weights_digest(model) for model in models.values()]
    for (folder, model), digest, other in zip(models.items(), digests, reversed(digests), strict=True):
        export_onnx(model, export.image_processor, folder)
        assert find_onnx_file(folder, digest).is_file()
        with pytest.raises(ValueError, match="exported from other weights than the model's: export again"):
            find_onnx_file(folder, other)


def test_overwrite_replaces_the_earlier_export_as_a_whole(export, tmp_path, copied_graph):
    folder = tmp_path / "a" / "b"
    export_onnx(export.model, export.image_processor, folder, quantize=True)
    (folder / "onnx" / "model.onnx").write_text("old")
    with pytest.raises(ValueError, match=r"model\.onnx exists: pass --overwrite"):
        export_onnx(export.model, export.image_processor, folder)
    assert (folder / "onnx" / "model.onnx").read_text() == "old"
    export_onnx(export.model, export.image_processor, folder, overwrite=True)
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted(export_files(folder, False, False))
    assert (folder / "onnx" / "model.onnx").stat().st_size > 1000


def test_difference_leaves_nothing_behind(export, tmp_path, copied_graph):
    other = spread(tiny_model(seed=3, num_labels=6, **TWO_STAGES))
    with pytest.raises(ValueError, match=r"differ by .* in a logit, with . images of .* nothing was written"):
        export_onnx(other, export.image_processor, tmp_path / "a" / "b", quantize=True)
    assert not list(tmp_path.iterdir())
    folder = shutil.copytree(export.folder, tmp_path / "earlier")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="nothing was written"):
        export_onnx(other, export.image_processor, folder, overwrite=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_refusals(export, tmp_path, monkeypatch, copied_graph):
    def refused(match, output_dir=tmp_path / "out", model=export.model):
        with pytest.raises(ValueError, match=match):
            export_onnx(model, export.image_processor, output_dir)
        assert not (tmp_path / "out").exists()

    refused("mix_images_in_eval=True.*set it to false", model=tiny_model(mix_images_in_eval=True).eval())
    refused("holds the weights of a model", output_dir=export.model_dir)
    (tmp_path / "file").write_text("")
    refused("is a file, but a folder is needed", output_dir=tmp_path / "file")
    monkeypatch.setattr("allspark_hf.export.onnx.MAX_BYTES", 4 * export.model.num_parameters())
    refused("an ONNX file holds 2 GiB at most")


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"needs onnxruntime, .* pip install 'allspark-hf\[onnx\]'"):
        require_onnx()


def test_script_refuses_with_one_line(export, tmp_path, monkeypatch):
    mixed = save_model(tmp_path / "mixed", mix_images_in_eval=True)
    two_layers_with_registers(monkeypatch).save_pretrained(tmp_path / "registers")
    make_image_processor().save_pretrained(tmp_path / "registers")
    arguments = {
        "ValueError: --fixed_size 64 is no size: give two": ["--model", export.model_dir, "--fixed_size", 64],
        "ValueError: The encoder 'dinov2_with_registers' cannot be": ["--model", tmp_path / "registers"],
        "ValueError: --fixed_size is [64, 64], but no validation image has these pixels (height, width) when the": [
            *("--model", export.model_dir, "--fixed_size", 64, 64, "--data_dir", export.data_dir)
        ],
        "ValueError: There is no folder user/model: correct it, or give an --output_dir": ["--model", "user/model"],
        "ValueError: --classes is about data, and there is none": ["--model", export.model_dir, "--classes", "c.txt"],
        "ValueError: The model's configuration has mix_images_in_eval=True": ["--model", mixed],
    }
    for sentence, given in arguments.items():
        assert run_script("export_onnx.py", *given).stderr.splitlines()[-1].startswith(sentence)
    assert not (mixed / "onnx").exists() and not (export.model_dir / "onnx").exists()


def test_script_says_that_the_cost_was_not_measured(export, tmp_path, copied_graph):
    folder = shutil.copytree(export.model_dir, tmp_path / "model")
    printed = run_script("export_onnx.py", "--model", folder, "--quantize_int8").stdout
    assert "What 8 bits cost in mIoU was not measured: give --data_dir or --dataset_name" in printed
    record = json.loads((folder / "onnx" / "export.json").read_text())
    assert record["weights_sha256"] == weights_digest(folder)
    assert record["cost"] is None and set(record["files"]) == {"model.onnx", "model_quantized.onnx"}
    assert {path.name for path in folder.iterdir()} == {path.name for path in export.model_dir.iterdir()} | {"onnx"}

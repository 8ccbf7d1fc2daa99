"""`allspark predict` on many images: batches, results, going on after a kill, several processes, ONNX."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import equal_share, tiny_export
from forking import python
from PIL import Image
from served_model import balanced_model

from allspark_hf.cli import predict
from allspark_hf.demo.data import generate_demo_image
from allspark_hf.evaluation.arguments import PredictionArguments
from allspark_hf.evaluation.prediction import predict_logits
from allspark_hf.export.folder import find_onnx_file
from allspark_hf.inference.classes import read_palette
from allspark_hf.inference.loading import load_trained, make_image_processor
from allspark_hf.inference.many import PreparedBatches, plan_batches, predict_many
from allspark_hf.inference.prediction import predict_confidence, predict_mask
from allspark_hf.inference.visualization import default_palette, outlines
from allspark_hf.inference.writers import Drawing, PictureWriter, stored_image


SIZES = [(40, 64), (64, 40), (40, 64), (50, 50), (40, 64), (64, 40), (40, 64), (40, 64)]
NAMES = ["ground", "road", "sky", "car"]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    torch.manual_seed(0)
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
    folder = tmp_path_factory.mktemp("model")
    balanced_model(4, **labels).save_pretrained(folder)
    make_image_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for index, size in enumerate(SIZES):
        generate_demo_image(index, size=size)[0].save(folder / f"{index}.png")
    return folder


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["allspark predict", *map(str, arguments)])
    code, said = predict.main(), capsys.readouterr()
    return code, said.out.splitlines()[-1:] + said.err.splitlines()[-1:]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def reference(model_dir, images, tmp_path_factory):
    """The files of a run in one process, in batches of three."""
    folder = tmp_path_factory.mktemp("reference") / "out"
    with pytest.MonkeyPatch.context() as patch:
        options = ["--model", model_dir, "--input", images, "--output_dir", folder, "--batch_size", "3"]
        patch.setattr(sys, "argv", ["allspark predict", *map(str, options)])
        assert predict.main() == 0
    return contents(folder)


class Keeper:
    """A writer that keeps masks and confidences."""

    def __init__(self, wants_confidence=True):
        self.wants_confidence, self.masks, self.confidences = wants_confidence, {}, {}

    def write(self, name, image, mask, confidence):
        self.masks[name], self.confidences[name] = mask, confidence


def predicted(model, files, image_processor, batch_size, args=None, num_workers=0):
    args, keeper, names = args or PredictionArguments(), Keeper(), [file.stem for file in files]
    planned = plan_batches(files, image_processor, batch_size, args)
    batches = PreparedBatches(files, planned, image_processor, model.config, args)
    outcomes = dict(predict_many(model, batches, names, [keeper], num_workers))
    return outcomes, keeper


# ---- Batches ----


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("long_side", [None, 48])
def test_a_mask_does_not_depend_on_its_batch(model_dir, images, long_side, num_workers):
    model, image_processor = load_trained(str(model_dir), "cpu")[0], make_image_processor(long_side)
    files, shapes = sorted(images.iterdir()), []
    model.register_forward_pre_hook(
        lambda module, args, given: shapes.append(tuple(given["pixel_values"].shape)), with_kwargs=True
    )
    outcomes, keeper = predicted(model, files, image_processor, 4, num_workers=num_workers)
    given = (40, 64) if long_side is None else (30, 48)
    assert sorted(shape for shape in shapes if shape[2:] == given) == [(1, 3, *given), (4, 3, *given)]
    assert sorted(shape[0] for shape in shapes) == [1, 1, 2, 4]
    assert outcomes == dict.fromkeys(range(8))
    for file, size in zip(files, SIZES, strict=True):
        mask, confidence = predict_confidence(model, image_processor, Image.open(file))
        assert mask.shape == size and keeper.masks[file.stem].dtype == np.uint8
        assert (keeper.masks[file.stem] == mask).mean() > 0.999  # rounding may decide a tie
        assert np.abs(keeper.confidences[file.stem] - confidence).max() < 1e-5


def test_batches_have_one_size_and_a_bound(images, monkeypatch):
    files, args = sorted(images.iterdir()), PredictionArguments()
    keep, scaled = make_image_processor(), make_image_processor(32)
    assert plan_batches(files, keep, 3, args) == [[0, 2, 4], [1, 5], [3], [6, 7]]
    assert plan_batches(files, keep, 1, args) == [[row] for row in range(8)]
    (images.parent / "broken.png").write_text("no image")
    assert plan_batches([*files, images.parent / "broken.png"], keep, 3, args)[-1] == [8]
    # 32 x 20 from both sizes of one shape; where maps are averaged at the images' own size, sizes stay apart.
    generate_demo_image(0, size=(80, 128))[0].save(images.parent / "double.png")
    files = [files[0], images.parent / "double.png"]
    assert plan_batches(files, scaled, 3, args) == [[0, 1]]
    assert plan_batches(files, scaled, 3, PredictionArguments(eval_flip=True)) == [[0], [1]]
    monkeypatch.setattr("allspark_hf.inference.many.BATCH_MODEL_PIXELS", 2 * 40 * 64 + 1)
    assert plan_batches([files[0]] * 5, keep, 4, args) == [[0, 1], [2, 3], [4]]
    monkeypatch.setattr("allspark_hf.inference.many.BATCH_IMAGE_PIXELS", 100)
    assert plan_batches([files[0]] * 2, keep, 4, args) == [[0], [1]]


def test_a_batch_that_fails_is_predicted_one_by_one(model_dir, images):
    model, image_processor = load_trained(str(model_dir), "cpu")
    files = sorted(images.iterdir())
    forward, bright = model.forward, image_processor(images=Image.open(files[2]), return_tensors="pt")["pixel_values"]

    def short_of_memory(pixel_values):
        if len(pixel_values) > 1 or torch.equal(pixel_values, bright):
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried a lot.")
        return forward(pixel_values=pixel_values)

    model.forward = short_of_memory
    outcomes, keeper = predicted(model, files, image_processor, 4)
    assert outcomes == dict.fromkeys(range(8)) | {2: "CUDA out of memory. Tried a lot."}
    assert sorted(keeper.masks) == ["0", "1", "3", "4", "5", "6", "7"]
    model.forward = lambda pixel_values: forward(pixel_values=pixel_values * float("nan"))
    reasons = predicted(model, files, image_processor, 4, PredictionArguments(eval_flip=True))[0].values()
    assert all("NaN" in reason for reason in reasons)


@pytest.mark.parametrize(
    "settings",
    [
        {"eval_mode": "sliding_window", "eval_crop_size": [32]},
        {"eval_mode": "resized"},
        {"eval_scales": [0.75, 1.25], "eval_flip": True},
    ],
)
def test_windows_and_scales_are_those_of_evaluation(model_dir, images, settings):
    model, image_processor = load_trained(str(model_dir), "cpu")
    files, args = sorted(images.iterdir()), PredictionArguments(**settings)
    _, keeper = predicted(model, files, image_processor, 4, args)
    for file, size in zip(files, SIZES, strict=True):
        pixel_values = image_processor(images=Image.open(file), return_tensors="pt")["pixel_values"]
        probability, expected = predict_logits(model, pixel_values, size, args).softmax(1)[0].max(dim=0)
        assert (keeper.masks[file.stem] == expected.numpy()).mean() > 0.999
        assert np.abs(keeper.confidences[file.stem] - probability.numpy()).max() < 1e-5


def test_bfloat16(model_dir, images):
    model, image_processor = load_trained(str(model_dir), "cpu")
    files = sorted(images.iterdir())[:3]
    expected = [predict_mask(model, image_processor, Image.open(file)) for file in files]
    _, keeper = predicted(model.bfloat16(), files, image_processor, 1)
    for file in files:  # `segment` and the endpoint give the same mask
        np.testing.assert_array_equal(keeper.masks[file.stem], predict_mask(model, image_processor, Image.open(file)))
    same = np.mean([(keeper.masks[file.stem] == mask).mean() for file, mask in zip(files, expected, strict=True)])
    assert 0.95 < same < 1 and keeper.confidences["0"].dtype == np.float32


# ---- Results ----


def test_masks_have_the_values_of_the_training(tmp_path):
    mask, palette = np.array([[0, 1], [1, 1]], dtype=np.uint8), np.array([[1, 2, 3], [200, 100, 50]], dtype=np.uint8)
    for values, mode in (((0, 255), "P"), ((7, 3), "P"), ((0, 1000), "I;16"), (None, "P")):
        stored_image(mask, palette, values).save(tmp_path / "a_mask.png")
        pictures = PictureWriter(tmp_path, ["x", "y"], palette, values, Drawing((0, 1)), probabilities=False)
        np.testing.assert_array_equal(pictures.read_mask(Path("a")), mask)
        with Image.open(tmp_path / "a_mask.png") as opened:
            assert opened.mode == mode
            np.testing.assert_array_equal(np.array(opened), np.array(values or (0, 1))[mask])
            if mode == "P":
                np.testing.assert_array_equal(np.asarray(opened.convert("RGB")), palette[mask])


def test_options_of_the_results(model_dir, images, tmp_path, monkeypatch, capsys):
    """0/255 back, areas, confidence, chosen classes, other colors; numbers from [`predict_confidence`]."""
    model, image_processor = load_trained(str(model_dir), "cpu")
    model.config.mask_values, model.config.palette = [0, 10, 255, 30], default_palette(4).tolist()
    model.save_pretrained(tmp_path / "m")
    image_processor.save_pretrained(tmp_path / "m")
    (tmp_path / "colors.txt").write_text("sky: #0a141e\n")
    options = ["--model", tmp_path / "m", "--input", images / "[03].png", "--output_dir", tmp_path / "out"]
    options += ["--classes", "sky", "car", "--probabilities", "--palette", tmp_path / "colors.txt", "--alpha", "1"]
    assert run(monkeypatch, capsys, *options)[0] == 0
    with open(tmp_path / "out" / "areas.csv", newline="", encoding="utf-8") as file:
        areas = list(csv.DictReader(file))
    assert [(row["image"], row["class"]) for row in areas] == [
        (image, name) for image in ("0.png", "3.png") for name in ("sky", "car")
    ]
    for stem in ("0", "3"):
        picture = Image.open(images / f"{stem}.png")
        mask, confidence = predict_confidence(model, image_processor, picture)
        np.testing.assert_array_equal(
            np.asarray(Image.open(tmp_path / "out" / f"{stem}_mask.png")), np.array([0, 10, 255, 30])[mask]
        )
        gray = np.asarray(Image.open(tmp_path / "out" / f"{stem}_confidence.png"))
        assert gray.dtype == np.uint8 and np.abs(gray - 255 * confidence).max() <= 0.51
        expected = np.asarray(picture).copy()
        expected[mask == 2], expected[mask == 3] = (10, 20, 30), default_palette(4)[3]
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / f"{stem}_overlay.png")), expected)
        for index in (2, 3):
            row = next(one for one in areas if one["image"] == f"{stem}.png" and int(one["index"]) == index)
            assert int(row["pixels"]) == (mask == index).sum()
            assert float(row["share"]) == pytest.approx((mask == index).mean(), abs=1e-6)


def test_drawings():
    mask = np.zeros((9, 12), dtype=np.uint8)
    mask[2:7, 3:9] = 1
    palette, image = np.array([[0, 0, 0], [250, 0, 0]], dtype=np.uint8), Image.new("RGB", (12, 9), (100, 100, 100))
    border = outlines(mask, 1)
    assert (border & (mask == 1)).sum() == 5 * 6 - 3 * 4 and (border & (mask == 0)).sum() == 2 * (5 + 6)
    assert outlines(np.zeros((1, 4), dtype=np.uint8), 3).sum() == 0
    drawn = np.asarray(Drawing((1,), alpha=1, contours=True).draw(image, mask, palette))
    assert (drawn == [250, 0, 0]).all(-1).sum() == 18 and (drawn == 100).all(-1).sum() == 9 * 12 - 18
    clear = np.asarray(Drawing((1,), alpha=0.5, transparent=True).draw(image, mask, palette))
    np.testing.assert_array_equal(clear[mask == 1], np.broadcast_to([250, 0, 0, 128], (30, 4)))
    assert not clear[mask == 0][:, 3].any()


def test_a_file_of_colors(tmp_path):
    file, palette = tmp_path / "colors.txt", default_palette(3)
    for text in ("car #010203\n", "car: #010203\n", "car 1 2 3\n"):
        file.write_text(text)
        assert read_palette(file, ["sky", "car", "road"], palette).tolist() == [[0, 0, 0], [1, 2, 3], [86, 180, 233]]
    for text, said in (("bus #010203\n", "has no class 'bus'"), ("car\n", "has no colors: write #rrggbb")):
        file.write_text(text)
        with pytest.raises(ValueError, match=said):
            read_palette(file, ["sky", "car", "road"], palette)


# ---- Going on ----


def test_resume_predicts_what_is_missing(model_dir, images, reference, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    options = ["--model", model_dir, "--input", images, "--output_dir", out, "--batch_size", "3"]
    assert run(monkeypatch, capsys, *options, "--resume")[0] == 0  # begins where nothing is
    assert contents(out) == reference
    kept = (out / "2_mask.png").stat().st_mtime_ns
    for name in ("0_mask.png", "6_overlay.png", "legend.png", "areas.csv"):
        (out / name).unlink()
    (out / ".0_mask.png.part").write_text("cut short")
    shapes, forward = [], predict.predict_many
    monkeypatch.setattr(predict, "predict_many", lambda *given: (shapes.extend(given[1].batches), forward(*given))[1])
    code, said = run(monkeypatch, capsys, *options, "--resume")
    assert (code, said[0]) == (0, f"8 of 8 images predicted, 6 of them earlier, results in {out}")
    assert shapes == [[0, 2, 4], [6, 7]] and (out / "2_mask.png").stat().st_mtime_ns == kept
    assert contents(out) == reference
    os.utime(out / "3_mask.png", ns=(0, (images / "3.png").stat().st_mtime_ns - 1))  # the image has changed since
    code, said = run(monkeypatch, capsys, *options, "--resume")
    assert "7 of them earlier" in said[0] and shapes[2:] == [[3]]

    for change in (["--alpha", "0.3"], ["--eval_flip"], ["--probabilities"], ["--bf16"]):
        code, said = run(monkeypatch, capsys, *options, *change, "--resume")
        assert code == 2 and f"were made with {change[0][2:]} " in said[-1] and "instead of --resume" in said[-1]
    (out / "predict.json").unlink()
    code, said = run(monkeypatch, capsys, *options, "--resume")
    assert code == 2 and "no predict.json that says how it was made" in said[-1]
    assert contents(out) == {name: content for name, content in reference.items() if name != "predict.json"}


def test_overwrite_leaves_nothing_of_the_earlier_run(model_dir, images, tmp_path, monkeypatch, capsys):
    out, options = tmp_path / "out", ["--model", model_dir, "--input", images / "3.png", "--output_dir"]
    assert run(monkeypatch, capsys, *options, out, "--probabilities")[0] == 0
    code, said = run(monkeypatch, capsys, *options, out)
    assert code == 2 and "4 of 4 results already exist" in said[-1]
    assert run(monkeypatch, capsys, *options, out, "--overwrite")[0] == 0
    assert sorted(contents(out)) == ["3_mask.png", "3_overlay.png", "areas.csv", "legend.png", "predict.json"]
    assert json.loads((out / "predict.json").read_text())["probabilities"] is False


def test_results_of_other_settings_are_never_taken_over(model_dir, images, tmp_path, monkeypatch, capsys):
    """--overwrite leaves results of images that it does not predict; they are older than its settings."""
    out, options = tmp_path / "out", ["--model", model_dir, "--alpha"]
    both = tmp_path / "both"
    both.mkdir()
    for name in ("0.png", "1.png"):
        (both / name).write_bytes((images / name).read_bytes())
    (other := tmp_path / "1.png").write_bytes((both / "1.png").read_bytes())
    assert run(monkeypatch, capsys, *options, "0.2", "--input", both, "--output_dir", out)[0] == 0
    (both / "1.png").unlink()
    assert run(monkeypatch, capsys, *options, "0.8", "--input", both, "--output_dir", out, "--overwrite")[0] == 0
    other.rename(both / "1.png")
    for earlier in ("1 of them earlier", "2 of them earlier"):
        _, said = run(monkeypatch, capsys, *options, "0.8", "--input", both, "--output_dir", out, "--resume")
        assert f"2 of 2 images predicted, {earlier}, results in" in said[0]
    assert run(monkeypatch, capsys, *options, "0.8", "--input", both, "--output_dir", tmp_path / "anew")[0] == 0
    assert contents(out) == contents(tmp_path / "anew")


def start(rank, port, *arguments):
    """As a launcher starts one of two processes."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    told |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": 1}
    env = os.environ | {name: str(value) for name, value in told.items()}
    command = [python(), "-m", "allspark_hf", "predict", *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def free_port():
    with socket.socket() as bound:
        bound.bind(("localhost", 0))
        return bound.getsockname()[1]


def test_two_processes_and_the_share_of_a_dead_one(model_dir, images, reference, tmp_path, monkeypatch, capsys):
    options = ["--model", model_dir, "--input", images, "--batch_size", "3", "--output_dir"]
    port = free_port()
    both = [start(rank, port, *options, tmp_path / "both") for rank in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said == [f"8 of 8 images predicted, results in {tmp_path / 'both'}\n", ""]
    assert contents(tmp_path / "both") == reference

    out, port = tmp_path / "out", free_port()
    processes = [start(rank, port, *options, out) for rank in range(2)]
    while not list(out.glob("*_overlay.png")):
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGKILL)
    said = processes[0].communicate(timeout=120)[0]
    processes[1].communicate(timeout=120)
    if processes[0].returncode:  # else the other one had already done all
        assert (processes[0].returncode, said[:24]) == (1, "Another process has died")
    assert run(monkeypatch, capsys, *options, out, "--resume")[0] == 0
    assert contents(out) == reference


# ---- ONNX ----


def test_onnx_predicts_the_same(tmp_path_factory, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxscript")
    exported = tiny_export(tmp_path_factory)
    options = ["--model", exported.model_dir, "--input", exported.images[0].parent, "--output_dir"]
    onnx = ["--backend", "onnx", "--onnx", exported.folder]
    code, said = run(monkeypatch, capsys, *options, tmp_path / "none", *onnx[:2])
    assert code == 2 and "make one with allspark export" in said[-1] and not (tmp_path / "none").exists()
    assert run(monkeypatch, capsys, *options, tmp_path / "torch")[0] == 0
    assert run(monkeypatch, capsys, *options, tmp_path / "onnx", *onnx)[0] == 0
    for file in exported.images:
        masks = [np.asarray(Image.open(tmp_path / one / f"{file.stem}_mask.png")) for one in ("torch", "onnx")]
        assert equal_share(*masks) > 0.999 and len(np.unique(masks[0])) > 2
    code, said = run(monkeypatch, capsys, *options, tmp_path / "torch", *onnx, "--resume")
    assert code == 2 and "were made with model" in said[-1]


def test_an_export_of_other_weights_is_refused(tmp_path):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").touch()
    (tmp_path / "onnx" / "export.json").write_text('{"weights_sha256": "a"}')
    assert find_onnx_file(tmp_path, "a") == find_onnx_file(tmp_path / "onnx/model.onnx", "a")
    with pytest.raises(ValueError, match="exported from other weights"):
        find_onnx_file(tmp_path, "b")


def test_drawing_and_writer_keep_the_labels_of_the_legend(tmp_path):
    writer = PictureWriter(tmp_path, NAMES, default_palette(4), None, Drawing((1, 3)), False)
    writer.finish()
    with Image.open(tmp_path / "legend.png") as opened:
        swatches = [opened.getpixel((12, y)) for y in (10, 34)]
    assert swatches == [tuple(default_palette(4)[index].tolist()) for index in (1, 3)]

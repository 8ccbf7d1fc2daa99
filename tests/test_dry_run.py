"""The report of --dry_run: its numbers, what it finds missing, its exit codes, and that it writes nothing."""

import copy
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_dataset
from datasets import DatasetDict
from huggingface_hub import constants
from in_process import run_script
from PIL import Image

from allspark_hf import AllSparkTrainingArguments, SegformerForSemiSupervisedSegmentation
from allspark_hf.cli import trial_step
from allspark_hf.cli.arguments import ModelArguments
from allspark_hf.cli.dry_run import batch_lines, choose_weights, dry_run, step_lines, update_text
from allspark_hf.data import DataArguments
from allspark_hf.data.presence import look_for_data
from allspark_hf.demo.data import write_demo_data
from allspark_hf.methods import Method


TINY = ModelArguments(
    backbone="b0", hidden_sizes=[8, 16, 40, 64], depths=[1, 1, 1, 1], decoder_hidden_size=16, crop_size=[64, 96]
)
TINY_RECIPE = """
backbone: b0
hidden_sizes: [8, 16, 40, 64]
depths: [1, 1, 1, 1]
decoder_hidden_size: 16
crop_size: 64
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "demo"
    write_demo_data(folder, num_train=7, num_labeled=3, num_validation=2, size=(64, 96))
    return folder


def arguments(output_dir="unused", **kwargs):
    return AllSparkTrainingArguments(**{"output_dir": str(output_dir), "use_cpu": True, **kwargs})


def on_processes(monkeypatch, count: int, **kwargs):
    monkeypatch.setattr(AllSparkTrainingArguments, "world_size", count)
    return arguments(**kwargs)


def run(*argv):
    return run_script("train.py", *argv, "--use_cpu", "--dry_run")


# ---- As a user starts it ----


def test_ready_to_train(data_dir, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    batch = "num_train_epochs: 10\nper_device_train_batch_size: 1\ntotal_train_batch_size: 2\n"
    recipe.write_text(TINY_RECIPE + batch)
    done = run(recipe, "--data_dir", data_dir, "--output_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "Ready to train."
    batch = "(1 labeled + 1 unlabeled) x 1 process x 2 accumulated = 2 labeled + 2 unlabeled images per update"
    assert f"  {batch}" in lines
    assert f"  from: {data_dir}, 6 classes" in lines
    assert "  images: 3 labeled, 4 unlabeled, 2 validation" in lines
    assert "  updates: 2 per epoch, 20 in all" in lines
    assert "  weights: random, as backbone asks" in lines
    assert "  input: crops of 64 x 64, 6 classes" in lines
    assert "  semantic memory: 6 x 64 x 4, 0.0 MiB" in lines
    assert re.search(r"  loss \d\.\d{4}, \d+\.\d s for one batch", done.stdout)
    assert float(re.search(r"  memory: (\d+\.\d\d) GiB, the most this process", done.stdout)[1]) > 0.1
    assert not (tmp_path / "out").exists()


def test_missing_data_ends_with_exit_code_1(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{TINY_RECIPE}num_labels: 3\n")
    done = run(recipe, "--data_dir", tmp_path / "none", "--output_dir", tmp_path / "out")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "  updates: unknown" in done.stdout and "  loss " in done.stdout  # a step is taken all the same
    assert done.stdout.endswith(
        f"To do before training:\n  - There is no folder {tmp_path / 'none'}; data_dir must name one.\n"
    )
    assert not (tmp_path / "out").exists()

    done = run("--data_dir", tmp_path, "--output_dir", tmp_path / "out", "--num_labels", 3, "--preset", "none")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("ValueError: Give one of --encoder")


# ---- The whole report ----


def test_the_step_reads_the_memory_and_arguments_stay(data_dir, tmp_path, monkeypatch, capsys):
    seen = []
    forward = SegformerForSemiSupervisedSegmentation.forward

    def recording(self, *args, **kwargs):
        if self.training:
            shapes = tuple(kwargs["pixel_values"].shape), tuple(kwargs["unlabeled_pixel_values"].shape)
            seen.append((kwargs["read_memory"], *shapes))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(SegformerForSemiSupervisedSegmentation, "forward", recording)
    args = arguments(tmp_path / "out", per_device_unlabeled_batch_size=3, gradient_accumulation_steps=5)
    before = copy.copy(args).to_dict()
    assert dry_run(DataArguments(str(data_dir)), TINY, args)
    assert seen == [(True, (2, 3, 64, 96), (3, 3, 64, 96))]
    assert args.to_dict() == before and not (tmp_path / "out").exists()
    # One momentum buffer and one gradient of 4 bytes per parameter.
    million = float(re.search(r"parameters: (\d+\.\d+) million", capsys.readouterr().out)[1])
    step = replace(STEP, optimizer_bytes=int(4e6 * million), gradient_bytes=int(4e6 * million))
    assert step_lines(step, args)[2].startswith(f"  later batches: up to {8e6 * million / 2**30:.2f} GiB more")


STEP = trial_step.StepReport(loss=1.0, seconds=2.0, memory="", optimizer_bytes=0, gradient_bytes=0)


def test_state_and_gradients_are_measured(data_dir, tmp_path):
    data, args = DataArguments(str(data_dir)), arguments(tmp_path)
    trainer = trial_step.build_trainer(look_for_data(data), data, TINY, args, str(tmp_path))
    step = trial_step.take_step(trainer)
    size = sum(4 * parameter.numel() for parameter in trainer.model.parameters())
    assert (step.optimizer_bytes, step.gradient_bytes) == (size, size)
    assert trainer.state.global_step == 1 and math.isfinite(step.loss) and step.seconds > 0


def test_a_baseline_has_no_memory_and_reads_no_unlabeled_images(data_dir, capsys):
    args = arguments(method="supervised", epoch_length="labeled", eval_strategy="no", max_steps=7)
    assert dry_run(DataArguments(str(data_dir)), TINY, args)
    report = capsys.readouterr().out
    assert "(2 labeled) x 1 process x 1 accumulated = 2 labeled images per update" in report
    assert "updates: 2 per epoch, 7 in all" in report and "evaluation: never" in report
    assert "labeled_loss cross_entropy, ohem_threshold 0.7" in report and "unlabeled_loss_weight" not in report
    assert "memory" not in re.sub("memory: .* GiB", "", report) and "bottleneck" not in report


def test_what_is_missing_is_told(data_dir, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Method, "total", lambda self, loss_x, loss_u, epoch: loss_x * math.nan)
        assert not dry_run(DataArguments(str(data_dir)), TINY, arguments())
    assert "  - The loss of the step on random pixels is not finite" in capsys.readouterr().out
    unknown = ModelArguments(model_name_or_path="someone/segmenter")
    assert not dry_run(DataArguments(str(data_dir), labeled_count=3), unknown, arguments())
    assert "not built, and no step taken" in capsys.readouterr().out
    everything = DataArguments(str(data_dir / "images"))
    assert not dry_run(everything, TINY, arguments())
    report = capsys.readouterr().out
    assert "holds neither images/ and masks/" in report and "with --num_labels or --classes, the dry run" in report


def test_without_unlabeled_images(tmp_path, capsys):
    write_demo_data(tmp_path / "demo", num_train=3, num_labeled=3, num_validation=2, size=(64, 96))
    assert not dry_run(DataArguments(str(tmp_path / "demo")), TINY, arguments())
    assert "  - method='allspark' needs unlabeled images" in capsys.readouterr().out


def test_unlabeled_images_that_are_streamed(data_dir, tmp_path, capsys):
    make_dataset(3, masks=False).to_parquet(tmp_path / "train-0.parquet")
    data = DataArguments(str(data_dir), unlabeled_dataset_name=str(tmp_path), unlabeled_streaming=True)
    assert dry_run(data, TINY, arguments(unlabeled_images_per_epoch=7, num_train_epochs=5))
    report = capsys.readouterr().out
    assert "3 labeled, 8 unlabeled, 2 validation (unlabeled ones: an epoch of the stream)" in report
    assert "updates: 4 per epoch, 20 in all" in report
    assert not dry_run(data, TINY, arguments())
    assert "  - The unlabeled images are a stream, which has no known length" in capsys.readouterr().out


# ---- Batches and updates ----


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 4), (4, 1)])
def test_effective_batch(monkeypatch, processes, accumulation):
    args = on_processes(monkeypatch, processes, total_train_batch_size=8)
    first, second = batch_lines(args)
    plural = "es" if processes > 1 else ""
    assert first == (
        f"  (2 labeled + 2 unlabeled) x {processes} process{plural} x {accumulation} accumulated "
        "= 8 labeled + 8 unlabeled images per update"
    )
    assert second == "  total_train_batch_size asks for 8 labeled images per update"


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_updates_of_the_paper(monkeypatch, processes):
    """Pascal, 92 labels: the authors take 10490 // 8 updates an epoch, and 92 // 16 for the supervised baseline."""
    counts = {"labeled": 92, "unlabeled": 10490}
    args = on_processes(monkeypatch, processes, total_train_batch_size=8, dataloader_drop_last=True)
    assert update_text(counts, args) == "1311 per epoch, 104880 in all"
    settings = {"method": "supervised", "epoch_length": "labeled", "per_device_train_batch_size": 4}
    args = on_processes(monkeypatch, processes, total_train_batch_size=16, dataloader_drop_last=True, **settings)
    assert update_text(counts, args) == "5 per epoch, 400 in all"
    assert update_text({"labeled": 92}, args) == "5 per epoch, 400 in all"


def test_updates_with_a_partial_one(monkeypatch):
    counts = {"labeled": 92, "unlabeled": 10490}
    text = "1312 per epoch, 104960 in all"
    partial = "; the last of an epoch has 1 of 4 batches"
    assert update_text(counts, on_processes(monkeypatch, 1, total_train_batch_size=8)) == text + partial
    assert update_text(counts, on_processes(monkeypatch, 4, total_train_batch_size=8)) == text
    assert update_text({"labeled": 92}, arguments()) == "unknown"


# ---- Data ----


def test_lists_are_looked_through(tmp_path):
    root = tmp_path / "voc"
    for name in ("JPEGImages/a.jpg", "JPEGImages/c.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(root / name)
    (root / "SegmentationClass").mkdir()
    labeled, unlabeled = tmp_path / "labeled.txt", tmp_path / "unlabeled.txt"
    names = "abcd"
    lines = [f"JPEGImages/{name}.jpg SegmentationClass/{name}.png" for name in names]
    labeled.write_text("\n".join(lines[:2]) + "\n\n")
    unlabeled.write_text("\n".join([*lines[2:], "e", *(f"JPEGImages/{name}.jpg" for name in "fgh")]) + "\n")
    lists = {"labeled_list": str(labeled), "unlabeled_list": str(unlabeled), "validation_list": "no.txt"}
    arguments = DataArguments(str(root), data_format="voc", **lists)
    found = look_for_data(arguments)
    shown = "JPEGImages/d.jpg, e, JPEGImages/f.jpg, ..."
    assert found.counts == {"labeled": 2, "unlabeled": 6} and found.num_labels == 21 and found.data is None
    assert found.problems == [
        f"1 of the 2 images of {labeled} are not in {root}: JPEGImages/b.jpg",
        f"5 of the 6 images of {unlabeled} are not in {root}: {shown}",
        "There is no list no.txt; give a text file with an image and a mask, an image or an id a line.",
    ]
    for data_format, classes in (("cityscapes", 19), ("coco", 81)):
        assert look_for_data(replace(arguments, data_format=data_format)).num_labels == classes
    absent = look_for_data(replace(arguments, data_dir="absent", validation_list=None))
    assert absent.problems == [f"There is no folder {Path('absent').absolute()}; data_dir must name one."]
    assert absent.counts == {"labeled": 2, "unlabeled": 6}


def test_where_the_number_of_classes_comes_from(data_dir, tmp_path):
    found = look_for_data(DataArguments(str(data_dir)))
    assert found.num_labels == 6 == found.classes.num_labels and not found.problems
    assert found.counts == {"labeled": 3, "unlabeled": 4, "validation": 2}
    assert look_for_data(DataArguments("absent", num_labels=7, mask_values=[0, 255])).num_labels == 7
    assert look_for_data(DataArguments("absent", mask_values=[0, 255])).num_labels == 2
    classes = tmp_path / "classes.txt"
    classes.write_text("sky\nroad\ncar\n")
    assert look_for_data(DataArguments("absent", classes=str(classes))).num_labels == 3
    unknown = look_for_data(DataArguments("absent", classes="absent.txt"))
    assert unknown.num_labels is None and unknown.problems[1].startswith("absent.txt does not exist; name a file")
    assert unknown.problems[2].startswith("The number of classes is counted in the masks, which cannot be read yet")


def test_classes_are_counted_in_the_masks_as_in_training(tmp_path, capsys):
    folder = tmp_path / "demo"
    write_demo_data(folder, num_train=5, num_labeled=3, num_validation=2, size=(64, 96))
    (folder / "classes.json").unlink()
    assert dry_run(DataArguments(str(folder)), TINY, arguments())
    assert f"  from: {folder}, 6 classes" in capsys.readouterr().out
    mask = next((folder / "masks" / "val").iterdir())
    mask.write_bytes(mask.read_bytes()[:100])
    found = look_for_data(DataArguments(str(folder)))
    assert found.num_labels is None and len(found.problems) == 1 and str(mask) in found.problems[0]
    assert look_for_data(DataArguments(str(folder), skip_bad_files=True)).num_labels == 6


def test_a_data_set_with_other_column_names(tmp_path, capsys):
    masked = make_dataset(4, seed=1).rename_columns({"image": "photo", "label": "mask"})
    DatasetDict(train=masked, validation=masked).save_to_disk(tmp_path / "data")
    args = arguments(image_column_name="photo", label_column_name="mask", method="supervised", epoch_length="labeled")
    assert dry_run(DataArguments(dataset_name=str(tmp_path / "data")), TINY, args)
    assert f"  from: {tmp_path / 'data'}, " in capsys.readouterr().out and args.image_column_name == "photo"


# ---- Weights ----


@pytest.mark.parametrize(
    ("name", "size"),
    [("nvidia/mit-b0", "b0"), ("nvidia/mit-b5", "b5"), ("nvidia/segformer-b2-finetuned-ade-512-512", "b2")],
)
def test_weights_that_are_not_in_the_cache(tmp_path, monkeypatch, name, size):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    model, lines, problem = choose_weights(ModelArguments(model_name_or_path=name, crop_size=[321]))
    assert (model.model_name_or_path, model.backbone, model.crop_size) == (None, size, [321]) and problem is None
    assert lines == [
        f"  weights: {name} is not in the Hub's cache here, training will download it",
        "  weights of the dry run: random, of the same geometry",
    ]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids to download it" in choose_weights(ModelArguments(model_name_or_path=name))[2]


def test_weights_that_are_here(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--nvidia--mit-b1"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    cached = ModelArguments(model_name_or_path="nvidia/mit-b1")
    (snapshot / "config.json").write_text("{}")
    assert choose_weights(cached)[0].backbone == "b1"  # a configuration alone is not enough
    (snapshot / "pytorch_model.bin").write_text("")
    assert choose_weights(cached) == (cached, ["  weights: nvidia/mit-b1 from the Hub's cache here"], None)
    folder = ModelArguments(model_name_or_path=str(tmp_path))
    assert choose_weights(folder) == (folder, [f"  weights: from the folder {tmp_path}"], None)


@pytest.mark.parametrize("name", ["nvidia/mit-b6", "someone/segmenter", "weights/of/mine"])
def test_weights_that_nothing_is_known_of(name):
    model, _, problem = choose_weights(ModelArguments(model_name_or_path=name))
    assert model is None and problem.startswith(f"{name} is neither a folder nor in the Hub's cache here")


def test_geometry_does_not_fit_a_checkpoint():
    with pytest.raises(ValueError, match="depths would not fit the checkpoint's weights"):
        choose_weights(ModelArguments(model_name_or_path="nvidia/mit-b5", depths=[1, 1, 1, 1]))

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from in_process import run_script
from PIL import Image

from allspark_hf.cli.compare import check_same_images, compared_settings, read_runs, table, verdicts
from allspark_hf.demo.data import CLASS_NAMES, generate_demo_image, write_demo_data
from allspark_hf.figures.style import DPI, WIDTH
from allspark_hf.inference.visualization import default_palette, legend


ROOT = Path(__file__).resolve().parents[1]
RUNS = {"supervised": "out/supervised", "allspark": "out"}  # as --compare_supervised leaves them
TINY = [
    *("--hidden_sizes", 8, 8, 16, 16, "--depths", 1, 1, 1, 1, "--decoder_hidden_size", 16, "--crop_size", 32, 48),
    *("--max_steps", 2, "--eval_steps", 1, "--per_device_train_batch_size", 2, "--warmup_steps", 1),
    *("--logging_steps", 1),
]


def options(folder) -> list:
    runs = [folder / run for run in RUNS.values()]
    return ["--data_dir", folder / "data", "--runs", *runs, "--output_dir", folder]


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def demo_dir(tmp_path_factory):
    """Two runs of the demo's recipe, two steps of a tiny model, and the report."""
    folder = tmp_path_factory.mktemp("demo")
    write_demo_data(folder / "data", num_train=8, num_labeled=3, num_validation=3, size=(48, 64))
    settings = ["--method", "allspark", "--data_dir", folder / "data", "--output_dir", folder / "out", "--use_cpu"]
    settings += ["--unlabeled_warmup_epochs", 0, "--compare_supervised"]
    trained = run_script("train.py", "scripts/recipes/demo.yaml", *settings, *TINY, cwd=ROOT)
    assert trained.returncode == 0, trained.stderr
    reported = run_script("compare_runs.py", *options(folder), "--num_rows", 2)
    assert reported.returncode == 0, reported.stderr
    (folder / "printed.txt").write_text(reported.stdout, encoding="utf-8")
    return folder


@pytest.mark.parametrize("method", RUNS)
def test_numbers_are_those_of_the_run(demo_dir, method):
    metrics = read_json(demo_dir / "metrics.json")[method]
    last = read_json(demo_dir / RUNS[method] / "eval_results.json")
    state = read_json(demo_dir / RUNS[method] / "trainer_state.json")
    history = {entry["step"]: entry["eval_mean_iou"] for entry in state["log_history"] if "eval_mean_iou" in entry}
    assert sorted(history) == [1, 2]
    assert metrics["last_mean_iou"] == last["eval_mean_iou"] == history[2]
    assert metrics["best_mean_iou"] == max(history.values()) == history[metrics["best_step"]]
    assert metrics["iou"] == {
        name.removeprefix("eval_iou_"): value for name, value in last.items() if name.startswith("eval_iou_")
    }
    assert metrics["steps"] == state["global_step"] == 2
    assert metrics["seconds"] == read_json(demo_dir / RUNS[method] / "train_results.json")["train_runtime"]
    assert (metrics["labeled_images"], metrics["validation_images"]) == (3, 3)
    assert metrics["unlabeled_images"] == (5 if method == "allspark" else 0)


def test_table_shows_the_numbers_and_is_printed(demo_dir):
    text = (demo_dir / "metrics.md").read_text(encoding="utf-8")
    printed = (demo_dir / "printed.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert "**mIoU, last**" in printed
    cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:4]] for line in lines}
    assert cells[""] == ["Supervised learning", "AllSpark"]
    metrics = read_json(demo_dir / "metrics.json")
    for column, method in enumerate(RUNS):
        run = metrics[method]
        assert cells["**mIoU, last**"][column] == f"**{100 * run['last_mean_iou']:.1f}**"
        assert cells["mIoU, best (step)"][column] == f"{100 * run['best_mean_iou']:.1f} ({run['best_step']})"
        for name in CLASS_NAMES:
            value = run["iou"].get(name.replace(" ", "_"))
            assert cells[f"IoU {name}"][column] == ("absent" if value is None else f"{100 * value:.1f}")
    _, rows = table({"supervised": metrics["supervised"] | {"seconds": 3.5, "resumed": True}}, [])
    assert ["Training, seconds", "4 (since it was resumed)"] in rows
    gain = 100 * (metrics["allspark"]["last_mean_iou"] - metrics["supervised"]["last_mean_iou"])
    assert f"AllSpark: Whether the unlabeled images helped, 3 validation images cannot tell: {gain:+.1f}" in printed
    assert "differ" not in printed  # --compare_supervised changes nothing but the method
    for name in ("metrics.md", "metrics.json", "comparison.png", "legend.png"):
        assert str(demo_dir / name) in printed


def test_pictures_show_truth_and_predictions_in_the_classes_colors(demo_dir):
    palette = default_palette(len(CLASS_NAMES))
    with Image.open(demo_dir / "legend.png") as key:
        np.testing.assert_array_equal(np.asarray(key), np.asarray(legend(CLASS_NAMES, palette)))
    with Image.open(demo_dir / "comparison.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert pixels.shape[1] == WIDTH * DPI
    for row in range(2):
        for label in np.unique(generate_demo_image(row, "val", (48, 64))[1]):
            color = [255] * 3 if label == 255 else palette[label]
            assert (pixels == color).all(axis=-1).sum() > 50, label


def test_classes_in_another_order_are_refused(demo_dir, tmp_path):
    shutil.copytree(demo_dir / "data", tmp_path / "data")
    listed = read_json(demo_dir / "data/classes.json")
    listed["names"].append(listed["names"].pop(0))
    (tmp_path / "data/classes.json").write_text(json.dumps(listed), encoding="utf-8")
    failed = run_script("compare_runs.py", *options(demo_dir), "--data_dir", tmp_path / "data")
    assert failed.returncode == 1 and f"Class 0 is {CLASS_NAMES[0]!r} for the model" in failed.stderr


def test_models_with_other_names_of_the_classes_are_refused_before_anything_is_written(demo_dir, tmp_path):
    """The table would call their classes absent."""
    for run in RUNS.values():
        shutil.copytree(demo_dir / run, tmp_path / run, dirs_exist_ok=True)
    config = read_json(demo_dir / "out/config.json")
    config["id2label"] = {index: f"class_{index}" for index in config["id2label"]}
    config["label2id"] = {name: int(index) for index, name in config["id2label"].items()}
    (tmp_path / "out/config.json").write_text(json.dumps(config), encoding="utf-8")
    failed = run_script("compare_runs.py", *options(tmp_path), "--data_dir", demo_dir / "data")
    assert failed.returncode == 1 and "The models have different classes, so that they do not comp" in failed.stderr
    assert failed.stdout == "" and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_runs_of_one_method_are_told_apart_by_their_folders(demo_dir, tmp_path):
    for name in ("again", "b/again"):
        shutil.copytree(demo_dir / "out", tmp_path / name)
    runs = read_runs([demo_dir / "out/supervised", demo_dir / "out", tmp_path / "again"])
    assert list(runs) == ["supervised", "allspark (out)", "allspark (again)"]
    assert [run["title"] for run in runs.values()] == ["Supervised learning", "AllSpark (out)", "AllSpark (again)"]
    assert [line.split(":")[0] for line in verdicts(runs, [demo_dir / "out/supervised", *[demo_dir / "out"] * 2])] == [
        "AllSpark (out)",
        "AllSpark (again)",
    ]
    with pytest.raises(
        ValueError, match=r"two runs of allspark \(again\): rename one of the folders, or leave it out"
    ):
        read_runs([tmp_path / "again", tmp_path / "b/again"])
    (tmp_path / "again/run_record.json").unlink()
    with pytest.raises(ValueError, match=r"again/run_record.json names no method: give output folders of allspark tr"):
        read_runs([tmp_path / "again"])


def test_runs_of_different_lengths_are_compared_and_their_lengths_said(demo_dir):
    folders = [demo_dir / "out/supervised", demo_dir / "out"]
    runs = read_runs(folders)
    runs["supervised"] |= {"steps": 6, "seconds": 9.6}
    runs["allspark"]["seconds"] = 10.2
    check_same_images(runs)
    [line] = verdicts(runs, folders)
    assert line.endswith(". But the lengths differ: 2 updates in 10 s with them, 6 updates in 10 s without.")
    runs["allspark"]["resumed"] = True
    [line] = verdicts(runs, folders)
    assert line.endswith(". But the lengths differ: 2 updates with them, 6 updates in 10 s without.")
    longer = runs | {"supervised (long)": runs["supervised"] | {"title": "Supervised learning (long)", "steps": 2}}
    lines = verdicts(longer, [*folders, folders[0]])
    assert [line.split(": ")[0] for line in lines] == [
        "AllSpark against Supervised learning",
        "AllSpark against Supervised learning (long)",
    ]
    assert [line.endswith(" without.") for line in lines] == [True, False]
    runs["allspark"]["labeled_ids"] = []
    with pytest.raises(ValueError, match="labeled images of supervised and allspark differ"):
        check_same_images(runs)


def test_other_settings_than_the_supervised_runs_are_named(demo_dir, tmp_path):
    data = ["--data_dir", demo_dir / "data", "--output_dir", tmp_path / "out", "--use_cpu", "--method", "supervised"]
    others = ["--hidden_sizes", 16, 8, 16, 16, "--crop_size", 32, "--drop_path_rate", 0.2, "--learning_rate", 0.001]
    others += ["--adam_beta1", 0.8, "--class_weights", "balanced", "--seed", 7, "--per_device_train_batch_size", 1]
    trained = run_script("train.py", "scripts/recipes/demo.yaml", *data, *TINY, *others, cwd=ROOT)
    assert trained.returncode == 0, trained.stderr
    folders = [tmp_path / "out", demo_dir / "out"]
    [line] = verdicts(read_runs(folders), folders)
    named = "hidden_sizes, crop_size, drop_path_rate, learning_rate, adam_beta1, class_weights, seed, "
    assert line.endswith(f". But they also differ in: {named}labeled_images_per_update.")
    shutil.copytree(demo_dir / "out/supervised", tmp_path / "pretrained")
    record = read_json(tmp_path / "pretrained/run_record.json")
    record["model"]["started_from"] = "facebook/dinov2-small"
    (tmp_path / "pretrained/run_record.json").write_text(json.dumps(record), encoding="utf-8")
    folders[0] = tmp_path / "pretrained"
    [line] = verdicts(read_runs(folders), folders)
    assert line.endswith(". But they also differ in: encoder.")


def test_runs_of_one_study_differ_in_method_and_length_alone(demo_dir, tmp_path):
    """Whatever only the one method has, and how often it is evaluated, saved and logged; and where the data lie."""
    shutil.copytree(demo_dir / "data", tmp_path / "moved")
    method = ["--method", "allspark", "--use_grouping", "false", "--memory_size", 2, "--unlabeled_loss_weight", 0.5]
    method += ["--max_steps", 4, "--eval_steps", 2, "--logging_steps", 2, "--save_strategy", "no"]
    data = ["--data_dir", tmp_path / "moved", "--output_dir", tmp_path / "out", "--use_cpu", "--crop_size", 32, 48]
    trained = run_script("train.py", "scripts/recipes/demo.yaml", *TINY, *data, *method, cwd=ROOT)
    assert trained.returncode == 0, trained.stderr
    folders = [demo_dir / "out/supervised", tmp_path / "out"]
    assert compared_settings(folders[0]) == compared_settings(folders[1])
    [line] = verdicts(read_runs(folders), folders)
    assert " But the lengths differ: 4 updates in " in line and line.endswith(" s without.")


def test_another_evaluation_and_other_weights_are_refused(demo_dir, tmp_path):
    shutil.copytree(demo_dir, tmp_path / "demo")
    record = read_json(tmp_path / "demo/out/run_record.json")
    scaled = record | {"evaluation": record["evaluation"] | {"eval_scales": [0.75, 1]}}
    (tmp_path / "demo/out/run_record.json").write_text(json.dumps(scaled), encoding="utf-8")
    failed = run_script("compare_runs.py", *options(tmp_path / "demo"))
    assert failed.returncode == 1 and "evaluation of supervised and allspark differ" in failed.stderr
    weights = demo_dir / "out/supervised/model.safetensors", tmp_path / "demo/out/model.safetensors"
    shutil.copyfile(*weights)
    failed = run_script("compare_runs.py", *options(tmp_path / "demo"))
    assert failed.returncode == 1 and "demo/out are not of the weights there" in failed.stderr

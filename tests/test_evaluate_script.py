"""scripts/evaluate.py as a user starts it, alone and in two processes."""

import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from conftest import tiny_config, tiny_model
from forking import python
from in_process import SCRIPTS, run_script
from layout_folders import load_folder
from PIL import Image

from allspark_hf.data import DataArguments
from allspark_hf.demo.data import CLASS_NAMES, write_demo_data
from allspark_hf.evaluation.arguments import EvaluationArguments
from allspark_hf.evaluation.evaluator import EvaluationDataset
from allspark_hf.evaluation.metrics import BoundaryCounts, ConfusionMatrix
from allspark_hf.evaluation.prediction import predict_logits
from allspark_hf.evaluation.selection import select_split
from allspark_hf.inference.loading import load_trained, make_image_processor
from allspark_hf.models.weights import weights_digest


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
WINDOWS = ["--eval_mode", "sliding_window", "--eval_crop_size", 48, 64, "--eval_scales", 1, 0.75]
WINDOWS += ["--eval_boundary_iou"]
# Several evaluations in turn, of which the last ends the processes; the others say that they would have.
IN_TURN = """
import json, runpy, sys
from allspark_hf.cli import evaluate
script, *runs = sys.argv[1:]
leave = evaluate.leave
for number, given in enumerate(runs, 1):
    evaluate.leave = leave if number == len(runs) else lambda accelerator: print("It leaves here", file=sys.stderr)
    sys.argv = [script, *json.loads(given)]
    runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Four of six training images have masks; three validation images."""
    folder = tmp_path_factory.mktemp("data") / "demo"
    write_demo_data(folder, num_train=6, num_labeled=4, num_validation=3, size=(64, 96))
    return folder


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    names = dict(enumerate(CLASS_NAMES))
    model = tiny_model(num_labels=len(names), id2label=names, label2id={name: index for index, name in names.items()})
    model.save_pretrained(folder)
    make_image_processor().save_pretrained(folder)
    return folder


def run(*arguments) -> subprocess.CompletedProcess:
    return run_script("evaluate.py", *arguments, "--use_cpu")


def evaluate(tmp_path, *arguments) -> tuple[dict, str]:
    """What the script writes, and what it prints."""
    output_file = tmp_path / "scores.json"
    done = run(*arguments, "--output_file", output_file, "--overwrite")
    assert done.returncode == 0, done.stderr
    return json.loads(output_file.read_text()), done.stdout


def expected_counts(model_dir, dataset):
    """One image after the other, whole."""
    model, image_processor = load_trained(str(model_dir), "cpu")
    confusion, boundary = ConfusionMatrix(len(CLASS_NAMES)), BoundaryCounts(len(CLASS_NAMES))
    for sample in EvaluationDataset(dataset, image_processor, len(CLASS_NAMES)):
        labels = sample["labels"][None]
        logits = predict_logits(model, sample["pixel_values"][None], labels.shape[1:], EvaluationArguments())
        confusion.update(logits.argmax(1), labels)
        boundary.update(logits.argmax(1), labels)
    return confusion, boundary


def test_table_and_file(tmp_path, data_dir, model_dir):
    confusion, boundary = expected_counts(model_dir, load_folder(data_dir).validation)
    arguments = ["--model", model_dir, "--data_dir", data_dir, "--eval_boundary_iou"]
    scores, printed = evaluate(tmp_path, *arguments)
    assert torch.equal(torch.tensor(scores["confusion_matrix"]), confusion.counts)
    assert scores["num_images"] == 3 and scores["num_pixels"] == confusion.counts.sum()
    assert scores["metrics"]["mean_iou"] == pytest.approx(confusion.iou().nanmean().item(), abs=1e-12)
    assert scores["metrics"]["mean_boundary_iou"] == pytest.approx(boundary.iou().nanmean().item(), abs=1e-12)
    assert scores["settings"]["eval_mode"] == "whole" and scores["data"]["split"] == "validation"
    assert set(scores["versions"]) > {"allspark_hf", "torch", "transformers", "python"} and scores["seconds"] > 0
    assert scores["weights_sha256"] == weights_digest(model_dir)

    first, header, *rows = printed.splitlines()
    assert first == "3 images, percent"
    assert header.split() == ["IoU", "accuracy", "boundary", "IoU", "pixels"]
    columns = (confusion.iou(), confusion.accuracy(), boundary.iou(), confusion.pixel_share())
    for index, name in enumerate(CLASS_NAMES):
        values = [column[index].item() for column in columns]
        cells = rows[index].removeprefix(name).split()
        assert cells == ["-" if value != value else f"{100 * value:.2f}" for value in values], name
        for key, value in zip(("iou", "accuracy", "boundary_iou", "pixel_share"), values, strict=True):
            assert scores["per_class"][index][key] == (None if value != value else pytest.approx(value, abs=1e-12))
    mean = rows[len(CLASS_NAMES)].split()
    assert mean[:2] == ["mean", f"{100 * scores['metrics']['mean_iou']:.2f}"] and mean[-1] == "100.00"
    assert rows[len(CLASS_NAMES) + 1].startswith(
        f"overall accuracy {100 * scores['metrics']['overall_accuracy']:.2f}, loss "
    )


@pytest.fixture(scope="module")
def in_two_processes(tmp_path_factory, data_dir, model_dir):
    """One launch: an evaluation of three images, then one in which one of the processes finds a damaged image."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "in_turn.py").write_text(IN_TURN)
    other = shutil.copytree(data_dir, folder / "other")
    image = sorted((other / "images" / "val").iterdir())[1]
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])  # its header is whole
    runs = [
        [*WINDOWS, "--data_dir", data_dir, "--output_file", folder / "scores.json"],
        ["--data_dir", other],
    ]
    runs = [json.dumps(["--model", str(model_dir), *map(str, given), "--use_cpu"]) for given in runs]
    command = [python(), *TORCHRUN, folder / "in_turn.py", SCRIPTS / "evaluate.py", *runs]
    environment = os.environ | {"PYTHON_EXEC": python()}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, env=environment)
    return done, folder / "scores.json", image


def test_two_processes_give_the_numbers_of_one(tmp_path, data_dir, model_dir, in_two_processes):
    """Three images: one process has one more than the other."""
    one, _ = evaluate(tmp_path, "--model", model_dir, "--data_dir", data_dir, *WINDOWS)
    done, output_file, _ = in_two_processes
    assert output_file.is_file(), done.stderr
    two = json.loads(output_file.read_text())
    assert done.stdout.count("3 images, percent") == 1 and done.stderr.count("It leaves here") == 2
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["settings"]["eval_crop_size"] == [48, 64] and one["settings"]["eval_scales"] == [1, 0.75]
    for name in ("confusion_matrix", "per_class", "num_images", "num_pixels", "settings"):
        assert two[name] == one[name], name
    for name, value in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(value, rel=1e-6), name


def test_a_damaged_image_ends_two_processes_with_one_sentence(in_two_processes):
    """Found by one process in the middle of its work; the other neither waits for it nor fails in its own way."""
    done, _, image = in_two_processes
    assert done.returncode != 0
    assert re.search(r"\noverall accuracy .*\n.* images per second\n$", done.stdout)  # nothing after the first one's
    # Two processes write to one stream, so a sentence may stand behind half a line of the other's.
    named = re.findall(r"BadImageError: (\S+) cannot be read ", done.stderr)
    # torchrun kills the slower process, maybe before it speaks.
    assert set(named) == {str(image)} and len(named) <= 2, done.stderr
    assert 'evaluate.py", line' not in done.stderr  # no traceback of ours; torchrun adds its own words


def test_splits(tmp_path, data_dir, model_dir):
    """Of four masks two are hidden: these are the unlabeled images that can be scored."""
    data = load_folder(data_dir, labeled_count=2)
    hidden = data.unlabeled.select(
        [index for index, name in enumerate(data.unlabeled["id"]) if name in data.hidden_ids]
    )
    sets = {"labeled": data.labeled, "unlabeled": hidden, "validation": data.validation}
    sums = torch.zeros(len(CLASS_NAMES), len(CLASS_NAMES), dtype=torch.int64)
    for split, dataset in sets.items():
        confusion, _ = expected_counts(model_dir, dataset)
        arguments = ["--model", model_dir, "--data_dir", data_dir, "--labeled_count", 2, "--split", split]
        scores, _ = evaluate(tmp_path, *arguments)
        assert scores["num_images"] == len(dataset) == (3 if split == "validation" else 2)
        assert scores["confusion_matrix"] == confusion.counts.tolist(), split
        sums += confusion.counts
    scores, _ = evaluate(
        tmp_path, "--model", model_dir, "--data_dir", data_dir, "--labeled_count", 2, "--split", "all"
    )
    assert scores["num_images"] == 7 and scores["confusion_matrix"] == sums.tolist()


def test_a_second_source_of_unlabeled_images_is_left_out(data_dir):
    """The options of the training may be given, though none of its unlabeled images has a mask."""
    second = {"unlabeled_dataset_name": "user/name", "unlabeled_split_name": "extra"}
    second |= {"unlabeled_dataset_config_name": "large", "unlabeled_image_column_name": "picture"}
    config = tiny_config(num_labels=len(CLASS_NAMES), id2label=dict(enumerate(CLASS_NAMES)))
    arguments = DataArguments(data_dir=str(data_dir), unlabeled_streaming=True, **second)
    assert len(select_split("validation", arguments, config, "no_folder")) == 3


def test_mask_values(tmp_path, data_dir, model_dir):
    """Masks stored with other values give the same numbers once these are listed."""
    values = [7 * index + 3 for index in range(len(CLASS_NAMES))]
    other = shutil.copytree(data_dir, tmp_path / "other")
    for path in sorted(other.glob("masks/*/*.png")):
        mask = np.array(Image.open(path))
        Image.fromarray(np.where(mask == 255, 255, 7 * mask + 3).astype(np.uint8)).save(path)
    expected, _ = evaluate(tmp_path, "--model", model_dir, "--data_dir", data_dir)
    scores, _ = evaluate(tmp_path, "--model", model_dir, "--data_dir", other, "--mask_values", *values)
    assert scores["confusion_matrix"] == expected["confusion_matrix"]


def test_what_training_was_told_of_the_masks_holds_in_evaluation(tmp_path, data_dir, model_dir):
    other = shutil.copytree(data_dir, tmp_path / "other")
    for path in sorted(other.glob("masks/*/*.png")):
        mask = np.array(Image.open(path))
        Image.fromarray(np.where(mask == 255, 0, mask + 1).astype(np.uint8)).save(path)  # 0 = void
    model = shutil.copytree(model_dir, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config |= {"mask_values": [1, 2, 3, 4, 5, 6], "ignored_mask_values": [0]}
    (model / "config.json").write_text(json.dumps(config))
    expected, _ = evaluate(tmp_path, "--model", model_dir, "--data_dir", data_dir)
    scores, _ = evaluate(tmp_path, "--model", model, "--data_dir", other)
    assert scores["confusion_matrix"] == expected["confusion_matrix"]


def test_the_labeled_images_are_those_of_the_run(tmp_path, data_dir, model_dir):
    model = shutil.copytree(model_dir, tmp_path / "model")
    labeled = load_folder(data_dir, labeled_count=1)
    (model / "labeled_ids.txt").write_text(labeled.labeled["id"][0] + "\n")
    for split, count in (("labeled", 1), ("unlabeled", 3), ("all", 7)):
        scores, _ = evaluate(tmp_path, "--model", model, "--data_dir", data_dir, "--split", split)
        assert scores["num_images"] == count, split


def test_other_names_of_the_classes_are_refused(tmp_path, data_dir, model_dir):
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(reversed(CLASS_NAMES)) + "\n")
    done = run("--model", model_dir, "--data_dir", data_dir, "--classes", classes)
    assert done.returncode == 1
    assert f"Class 0 is {CLASS_NAMES[0]!r} for the model and {CLASS_NAMES[-1]!r} for" in done.stderr


def test_an_existing_file_is_kept(tmp_path, data_dir, model_dir):
    output_file = tmp_path / "scores.json"
    output_file.write_text("earlier")
    done = run("--model", model_dir, "--data_dir", data_dir, "--output_file", output_file)
    assert (
        done.returncode == 1 and "scores.json exists: pass --overwrite, or choose another --output_file" in done.stderr
    )
    assert output_file.read_text() == "earlier"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--split", "unlabeled"], "There is no unlabeled image with a mask in"),
        (["--mask_values", "0", "1"], "mask_values lists 2 classes, but the model has 6"),
        (["--num_labels", "3"], "num_labels=3 was given, but the model has 6"),
        (["--image_long_side", "64"], "image_long_side=64 was given, but the model has None"),
        (["--ignore_index", "254"], "ignore_index=254 was given, but the model ignores 255"),
        (["--skip_bad_files"], "skip_bad_files is for trainings alone: correct or remove bad files"),
        (["--eval_stride", "2"], "eval_stride=2.0 is out of range"),
        (["--eval_scales", "0.1"], "the encoder needs 29 a side: leave out such images, or small eval_scales"),
        (["--batch_size", "0"], "batch_size=0 is out of range: set a finite number of at least 1"),
        (["--output_file", "none/scores.json"], "There is no folder for none/scores.json"),
    ],
)
def test_mistakes_end_in_one_sentence(data_dir, model_dir, arguments, sentence):
    done = run("--model", model_dir, "--data_dir", data_dir, *arguments)
    (line,) = (line for line in done.stderr.splitlines() if "Error" in line or "Traceback" in line)
    assert done.returncode == 1 and line.startswith("ValueError: ") and done.stderr.endswith(f"{line}\n")
    assert sentence in line and done.stdout == ""

"""scripts/evaluate.py as a user starts it, alone and in two processes."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_model
from PIL import Image

from allspark_hf.data import load_folder
from allspark_hf.demo.data import CLASS_NAMES, write_demo_data
from allspark_hf.evaluation.arguments import EvaluationArguments
from allspark_hf.evaluation.evaluator import EvaluationDataset
from allspark_hf.evaluation.metrics import BoundaryCounts, ConfusionMatrix
from allspark_hf.evaluation.prediction import predict_logits
from allspark_hf.inference.loading import load_trained, make_image_processor
from allspark_hf.models.weights import weights_digest


SCRIPT = Path(__file__).parents[1] / "scripts" / "evaluate.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


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


def run(*arguments, launcher=(sys.executable,)) -> subprocess.CompletedProcess:
    """In a process of its own, or two."""
    command = [*launcher, str(SCRIPT), *map(str, arguments), "--use_cpu"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def run_here(*arguments):
    """In this process, which is quicker."""
    specification = importlib.util.spec_from_file_location("evaluate_script", SCRIPT)
    script = importlib.util.module_from_spec(specification)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "evaluate_script", script)  # where dataclasses look for the types of their fields
        patch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments), "--use_cpu"])
        specification.loader.exec_module(script)
        script.main()


def evaluate(tmp_path, *arguments, launcher=None) -> tuple[dict, str]:
    """What the script writes, and what it prints if it runs in processes of its own."""
    output_file = tmp_path / "scores.json"
    arguments = [*arguments, "--output_file", output_file, "--overwrite"]
    printed = ""
    if launcher is None:
        run_here(*arguments)
    else:
        done = run(*arguments, launcher=launcher)
        assert done.returncode == 0, done.stderr
        printed = done.stdout
    return json.loads(output_file.read_text()), printed


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
    scores, printed = evaluate(tmp_path, *arguments, launcher=[sys.executable])
    assert torch.equal(torch.tensor(scores["confusion_matrix"]), confusion.counts)
    assert scores["num_images"] == 3 and scores["num_pixels"] == confusion.counts.sum()
    assert scores["metrics"]["mean_iou"] == pytest.approx(confusion.iou().nanmean().item(), abs=1e-12)
    assert scores["metrics"]["mean_boundary_iou"] == pytest.approx(boundary.iou().nanmean().item(), abs=1e-12)
    assert scores["settings"]["eval_mode"] == "whole" and scores["data"]["split"] == "validation"
    assert set(scores["versions"]) == {"allspark_hf", "torch", "transformers", "python"} and scores["seconds"] > 0
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


def test_two_processes_give_the_numbers_of_one(tmp_path, data_dir, model_dir):
    """Three images: one process has one more than the other."""
    arguments = ["--model", model_dir, "--data_dir", data_dir, "--eval_boundary_iou"]
    arguments += ["--eval_mode", "sliding_window", "--eval_crop_size", 48, 64, "--eval_scales", 1, 0.75]
    one, _ = evaluate(tmp_path, *arguments)
    two, printed = evaluate(tmp_path, *arguments, launcher=TORCHRUN)
    assert printed.count("3 images, percent") == 1
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["settings"]["eval_crop_size"] == [48, 64] and one["settings"]["eval_scales"] == [1, 0.75]
    for name in ("confusion_matrix", "per_class", "num_images", "num_pixels", "settings"):
        assert two[name] == one[name], name
    for name, value in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(value, rel=1e-6), name


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


def test_other_names_of_the_classes_are_refused(tmp_path, data_dir, model_dir, capsys):
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(reversed(CLASS_NAMES)) + "\n")
    with pytest.raises(SystemExit) as end:
        run_here("--model", model_dir, "--data_dir", data_dir, "--classes", classes)
    assert f"Class 0 is {CLASS_NAMES[0]!r} for the model and {CLASS_NAMES[-1]!r} for" in str(end.value)


def test_an_existing_file_is_kept(tmp_path, data_dir, model_dir):
    output_file = tmp_path / "scores.json"
    output_file.write_text("earlier")
    with pytest.raises(SystemExit, match=r"scores\.json exists: pass --overwrite, or choose another --output_file"):
        run_here("--model", model_dir, "--data_dir", data_dir, "--output_file", output_file)
    assert output_file.read_text() == "earlier"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--split", "unlabeled"], "There is no unlabeled image with a mask in"),
        (["--mask_values", "0", "1"], "mask_values lists 2 classes, but the model has 6"),
        (["--num_labels", "3"], "num_labels=3 was given, but the model has 6"),
        (["--image_long_side", "64"], "image_long_side=64 was given, but the model has None"),
        (["--ignore_index", "254"], "ignore_index=254 was given, but the model ignores 255"),
        (["--skip_bad_files"], "skip_bad_files would leave images out of the score"),
        (["--eval_stride", "2"], "eval_stride=2.0 is out of range"),
        (["--eval_scales", "0.1"], "the encoder needs 29 a side: leave out such images, or small eval_scales"),
        (["--batch_size", "0"], "batch_size=0: set at least 1 image"),
        (["--output_file", "none/scores.json"], "There is no folder for none/scores.json"),
    ],
)
def test_mistakes_end_in_one_sentence(data_dir, model_dir, capsys, arguments, sentence):
    with pytest.raises(SystemExit) as stop:
        run_here("--model", model_dir, "--data_dir", data_dir, *arguments)
    assert str(stop.value).startswith("ValueError: ") and "\n" not in str(stop.value)
    assert sentence in str(stop.value) and capsys.readouterr().out == ""


def test_a_bad_mask_ends_two_processes_with_one_sentence(tmp_path, data_dir, model_dir):
    """Found by one process in the middle of its work; the other neither waits for it nor fails in its own way."""
    other = shutil.copytree(data_dir, tmp_path / "other")
    mask = sorted((other / "masks" / "val").iterdir())[1]
    Image.fromarray(np.full((64, 96), 9, dtype=np.uint8)).save(mask)
    done = run("--model", model_dir, "--data_dir", other, launcher=TORCHRUN)
    assert done.returncode != 0 and done.stdout == ""
    # Two processes write to one stream, so a sentence may stand behind half a line of the other's.
    sentences = re.findall(
        r"BadImageError: \S+ cannot be used: The mask of row .*?\(mask_values\)[^.]*\.", done.stderr
    )
    # torchrun kills the slower process, maybe before it speaks.
    assert len(set(sentences)) == 1 and len(sentences) <= 2, done.stderr
    assert f"The mask of row 1 ({mask.stem}) has the value 9, but the model has" in sentences[0]
    assert 'evaluate.py", line' not in done.stderr  # no traceback of ours; torchrun adds its own words

"""Inheritance of recipes, and every recipe of the paper against the paper's table, written out by hand."""

import json
from pathlib import Path

import pytest
from transformers import HfArgumentParser

from allspark_hf import AllSparkTrainingArguments
from allspark_hf.cli.arguments import ModelArguments, parse_arguments
from allspark_hf.data import DataArguments
from allspark_hf.training.recipes import OWN, find_recipe, read_recipe, recipe_arguments, resolve_recipe


PAPER = OWN / "paper"
CELLS = sorted(PAPER.glob("*/*.yaml"))
TYPES = (DataArguments, ModelArguments, AllSparkTrainingArguments)

# Folder: data format, data set, crop, epochs, lr, head multiple, batch per GPU, warm-up, labeled loss, evaluation.
SETTINGS = {
    "pascal_original": ("voc", "pascal", 513, 80, 0.001, 10, 2, 5, "cross_entropy", None),
    "pascal_augmented": ("voc", "pascal", 513, 80, 0.001, 10, 2, 5, "cross_entropy", None),
    "pascal_augmented_u2pl": ("voc", "pascal", 513, 80, 0.001, 10, 2, 5, "cross_entropy", None),
    "cityscapes": ("cityscapes", "cityscapes", 801, 240, 0.005, 1, 2, 15, "ohem", "sliding_window"),
    "coco": ("coco", "coco", 513, 10, 0.001, 10, 4, 1, "cross_entropy", None),
}
# Folder: labeled images and the folder of their list.
LISTS = {
    "pascal_original": {92: "92", 183: "183", 366: "366", 732: "732", 1464: "1464"},
    "pascal_augmented": {662: "1_16", 1323: "1_8", 2646: "1_4", 5291: "1_2"},
    "pascal_augmented_u2pl": {662: "u2pl_1_16", 1323: "u2pl_1_8", 2646: "u2pl_1_4", 5291: "5291"},
    "cityscapes": {186: "1_16", 372: "1_8", 744: "1_4", 1488: "1_2"},
    "coco": {232: "1_512", 463: "1_256", 925: "1_128", 1849: "1_64"},
}
# Folder and model: mIoU by labeled images.
PUBLISHED = {
    ("pascal_original", "allspark_b5"): {92: 76.07, 183: 78.41, 366: 79.77, 732: 80.75, 1464: 82.12},
    ("pascal_original", "pseudo_label_b5"): {183: 68.71, 732: 74.40},
    ("pascal_original", "supervised_b5"): {92: 50.65, 183: 63.62, 366: 70.76, 732: 75.44, 1464: 77.01},
    ("pascal_augmented", "allspark_b5"): {662: 78.32, 1323: 79.98, 2646: 80.42, 5291: 81.14},
    ("pascal_augmented", "supervised_b5"): {662: 72.01, 1323: 73.20, 2646: 76.62, 5291: 77.61},
    ("pascal_augmented_u2pl", "allspark_b5"): {662: 81.56, 1323: 82.04, 2646: 80.92, 5291: 81.13},
    ("cityscapes", "allspark_b5"): {186: 78.33, 372: 79.24, 744: 80.56, 1488: 81.39},
    ("cityscapes", "supervised_b5"): {186: 65.69, 372: 70.52, 744: 74.01, 1488: 78.14},
    ("coco", "allspark_b5"): {232: 34.10, 463: 41.65, 925: 45.48, 1849: 49.56},
    ("coco", "supervised_b5"): {232: 19.66, 463: 26.72, 925: 35.90, 1849: 40.89},
}


def write(folder: Path, name: str, **entries) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries))
    return path


@pytest.fixture(scope="module")
def parser():
    return HfArgumentParser(TYPES)


# ---- Inheritance ----


def test_a_recipe_overrides_those_it_is_based_on(tmp_path):
    write(tmp_path, "all.yaml", learning_rate=0.1, seed=1, crop_size=513, method="allspark")
    write(tmp_path, "sets/one.yaml", base="../all.yaml", learning_rate=0.2, crop_size=None)
    cell = write(tmp_path, "sets/cells/one.yaml", base="../one.yaml", seed=3)
    assert resolve_recipe(cell) == {"learning_rate": 0.2, "seed": 3, "crop_size": None, "method": "allspark"}
    assert read_recipe(cell) == ["--learning_rate", "0.2", "--seed", "3", "--method", "allspark"]


def test_recipes_of_the_package_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("demo.yaml") == find_recipe("scripts/recipes/demo.yaml") == OWN / "demo.yaml"
    assert find_recipe("paper/pascal.yaml") == OWN / "paper" / "pascal.yaml"
    assert resolve_recipe("camvid_dinov2.yaml")["classes"] == str(OWN / "camvid_classes.txt")
    own = write(tmp_path, "mine/a.yaml", base="demo.yaml", classes="names.txt")
    assert resolve_recipe(own)["backbone"] == "b0" and resolve_recipe(own)["classes"] == "names.txt"
    (tmp_path / "mine" / "names.txt").write_text("a\nb\n")
    assert resolve_recipe(own)["classes"] == str(tmp_path / "mine" / "names.txt")
    write(tmp_path, "mine/demo.yaml", seed=5)  # one beside it comes first
    assert resolve_recipe(own) == {"seed": 5, "classes": str(tmp_path / "mine" / "names.txt")}
    write(tmp_path, "demo.yaml", seed=7)
    assert resolve_recipe("demo.yaml") == {"seed": 7}


def test_a_removed_value_can_be_set_again(tmp_path):
    write(tmp_path, "a.yaml", crop_size=513)
    write(tmp_path, "b.yaml", base="a.yaml", crop_size=None)
    assert read_recipe(write(tmp_path, "c.yaml", base="b.yaml", crop_size=[96, 128])) == ["--crop_size", "96", "128"]


def test_mistakes_of_inheritance(tmp_path):
    write(tmp_path, "a.yaml", base="sub/b.yaml")
    write(tmp_path, "sub/b.yaml", base="../a.yaml")
    with pytest.raises(ValueError, match=r"is based on itself \(a.yaml -> b.yaml -> a.yaml\): remove one `base`"):
        read_recipe(tmp_path / "a.yaml")
    orphan = write(tmp_path, "orphan.yaml", base="none.yaml")
    with pytest.raises(FileNotFoundError, match=r"none.yaml, which .*orphan.yaml names as its `base` \(relative"):
        read_recipe(orphan)
    with pytest.raises(FileNotFoundError, match=r"The recipe .*nothing.yaml does not exist"):
        read_recipe(tmp_path / "nothing.yaml")
    unknown = write(tmp_path, "unknown.yaml", data_dir="x", learning_speed=1)
    with pytest.raises(ValueError, match="learning_speed"):
        parse_arguments(TYPES, [str(unknown)])


# ---- The paper's rows ----


def test_every_cell_of_the_paper_has_a_recipe():
    expected = set()
    for folder, lists in LISTS.items():
        models = ["allspark_b5", "pseudo_label_b5", "supervised_b5"]
        models += ["allspark_b4"] if folder.startswith("pascal") else []
        expected |= {f"{folder}/{count}_{model}.yaml" for count in lists for model in models}
    assert {path.relative_to(PAPER).as_posix() for path in CELLS} == expected and len(expected) == 76


@pytest.mark.parametrize("path", CELLS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipe_of_the_paper(path, parser):
    folder, (count, model) = path.parent.name, path.stem.split("_", 1)
    method, size = model.rsplit("_", 1)
    data_format, name, crop, epochs, rate, multiple, per_device, warmup, loss, eval_mode = SETTINGS[folder]
    supervised = method == "supervised"
    if supervised:  # the authors' configuration of this baseline
        per_device, rate = 2 * per_device, 0.001
    entries = resolve_recipe(path)
    data, model_arguments, args = parser.parse_args_into_dataclasses([*recipe_arguments(entries), "--use_cpu"])

    split = LISTS[folder][int(count)]
    assert (entries["data_format"], data.data_dir) == (data_format, f"data/{name}")
    assert entries["labeled_list"] == f"splits/{name}/{split}/labeled.txt"
    assert entries["unlabeled_list"] == f"splits/{name}/{split}/unlabeled.txt"
    assert entries["validation_list"] == f"splits/{name}/val.txt"
    assert entries["output_dir"] == f"outputs/{folder}/{path.stem}"

    assert (model_arguments.model_name_or_path, model_arguments.crop_size) == (f"nvidia/mit-{size}", [crop])
    assert (args.method, args.epoch_length) == (method, "labeled" if supervised else "unlabeled")
    assert (args.num_train_epochs, args.learning_rate, args.head_learning_rate_multiplier) == (epochs, rate, multiple)
    assert (args.per_device_train_batch_size, args.total_train_batch_size) == (per_device, 4 * per_device)
    assert (args.per_device_unlabeled_batch_size, args.gradient_accumulation_steps) == (per_device, 4)
    assert (args.memory_warmup_epochs, args.labeled_loss) == (warmup, loss)
    assert (args.ohem_threshold, args.ohem_min_kept) == (0.7, 200_000)
    assert (args.optim, args.sgd_momentum, args.weight_decay, args.max_grad_norm) == ("sgd", 0.9, 1e-4, 0)
    assert (args.lr_scheduler_type, args.lr_scheduler_kwargs) == ("polynomial", {"power": 0.9, "lr_end": 0.0})
    assert args.train_on_padding and args.count_absent_classes and args.decay_norm_and_bias and args.sync_batchnorm
    assert args.dataloader_drop_last and model_arguments.mix_images_in_eval and args.per_device_eval_batch_size == 1
    assert entries.get("eval_mode") == eval_mode
    assert entries.get("eval_crop_size") == (None if eval_mode is None else [crop])


@pytest.mark.parametrize("path", CELLS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipe_says_the_published_number(path):
    count, model = path.stem.split("_", 1)
    number = PUBLISHED.get((path.parent.name, model), {}).get(int(count))
    first_line = path.read_text().splitlines()[0]
    assert first_line.endswith("paper: no number at hand" if number is None else f"paper: {number:.2f}")
    assert f" {count} labeled images," in first_line and first_line.count(f"MiT-{path.stem[-2:].upper()}") == 1


@pytest.mark.parametrize(("folder", "model"), PUBLISHED)
def test_readme_has_the_published_numbers(folder, model):
    numbers = PUBLISHED[folder, model]
    cells = (f"{numbers[count]:.2f}" if count in numbers else "-" for count in LISTS[folder])
    readme = (PAPER.parent / "README.md").read_text(encoding="utf-8")
    rows = [line for line in readme.splitlines() if f"`{model}` | " in line]
    expected = f"`{model}` | {' | '.join(cells)} |"
    assert any(line.endswith(expected) for line in rows)

"""Recipes, arguments, and the scripts as a user starts them."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest
from conftest import tiny_model
from in_process import SCRIPTS, run_script
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from allspark_hf import AllSparkTrainingArguments
from allspark_hf.cli.arguments import ModelArguments, parse_arguments
from allspark_hf.cli.dry_run import DryRunArguments
from allspark_hf.cli.help import render
from allspark_hf.cli.help_content import help_content
from allspark_hf.cli.models import load_model
from allspark_hf.cli.train import summary
from allspark_hf.data import DataArguments, load_data
from allspark_hf.demo.data import CLASS_NAMES, write_demo_data
from allspark_hf.evaluation.arguments import EvaluationArguments
from allspark_hf.models.auto import MODEL_TYPES
from allspark_hf.models.registration import SEGMENTERS
from allspark_hf.training.recipes import OWN, read_recipe


TYPES = (DataArguments, ModelArguments, AllSparkTrainingArguments)


@dataclass
class FewArguments:
    folder: str = field(metadata={"help": "Where."})
    fast: bool = True


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "demo"
    write_demo_data(folder, num_train=6, num_labeled=3, num_validation=2, size=(64, 96))
    return folder


# transformers imports its Auto classes in the midst of others, and looks a model up without asking this package.
LOOKED_UP = """
import sys
import allspark_hf
from transformers import SegformerModel  # which imports the Auto classes before it is there itself
from transformers import AutoConfig, AutoModel

assert "allspark_hf.models.registration" not in sys.modules
config = AutoConfig.for_model("allspark_backbone")
assert type(config).__module__.startswith("allspark_hf.models.")
assert AutoModel._model_mapping[type(config)].__module__.startswith("allspark_hf.models.")
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
assert type(CONFIG_MAPPING).__name__ == "_LazyConfigMapping" and "allspark" in CONFIG_MAPPING
"""
# Then the script that is named, as Python runs it.
THEN_RUN = """
import runpy

print("looked up", flush=True)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_recipe_and_overrides(tmp_path, suffix):
    entries = {
        "data_dir": "somewhere",
        "backbone": "b1",
        "crop_size": [96, 128],
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "learning_rate": 0.5,
        "decay_norm_and_bias": False,
        "labeled_fraction": None,
        "lr_scheduler_kwargs": {"power": 2.0},
    }
    recipe = tmp_path / f"recipe.{suffix}"
    recipe.write_text(json.dumps(entries, indent="\t" if suffix == "json" else None))
    data, model, args = parse_arguments(TYPES, [str(recipe), "--learning_rate", "0.25", "--backbone", "b0"])
    assert (data.data_dir, data.labeled_fraction) == ("somewhere", None)
    assert (model.backbone, model.crop_size) == ("b0", [96, 128])
    assert (args.learning_rate, args.decay_norm_and_bias) == (0.25, False)
    assert args.lr_scheduler_kwargs == {"power": 2.0, "lr_end": 0.0}


def test_an_unknown_argument_is_named_with_the_one_meant(tmp_path):
    arguments = ["--data_dir", "x", "--output_dir", str(tmp_path)]
    with pytest.raises(ValueError, match=r"There is no argument --labelled_count: did you mean --labeled_count\?"):
        parse_arguments(TYPES, [*arguments, "--labelled_count", "8"])
    with pytest.raises(ValueError, match=r"argument --num_train_epochs.*: invalid float value: 'two'; --help"):
        parse_arguments(TYPES, [*arguments, "--num_train_epochs", "two"])
    with pytest.raises(ValueError, match="the following arguments are required: --folder; --help"):
        parse_arguments((FewArguments,), [])


def named(content: dict) -> dict[str, list[str]]:
    """The arguments that --help names, by heading."""
    return {heading: [name for name, _ in entries] for heading, entries in content["sections"].items()}


def test_help_shows_the_common_arguments_and_all_on_demand(capsys):
    types = (*TYPES, DryRunArguments)
    common, everything = (named(help_content(types, None, everything)) for everything in (False, True))
    assert list(common) == ["start with", "data", "model", "method", "training", "evaluation"]
    first = ["--data_dir", "--output_dir", "--method", "--encoder", "--crop_size", "--max_steps"]
    assert common["start with"] == everything["start with"] == first
    assert common["model"] == ["--model_name_or_path", "--backbone"]
    assert common["method"] == ["--confidence_threshold", "--memory_warmup_epochs", "--unlabeled_loss_weight"]
    assert {"--num_train_epochs", "--dry_run"} <= set(common["training"])
    listed = [name for names in everything.values() for name in names]
    assert sorted(listed) == sorted(f"--{one.name}" for kind in types for one in fields(kind))
    (heading,) = (one for one in everything if one.startswith("method, all but supervised learning"))
    assert "--train_on_padding" in everything[heading] and max(map(len, everything)) < 60
    assert "--local_memory" in everything["method, AllSpark, AllSpark with UniMatch V2"]
    assert "--labeled_loss" in everything["method"]
    assert "--ddp_timeout" in everything["training, all of transformers"]
    with pytest.raises(SystemExit) as ended:
        parse_arguments(types, ["--help_all"])
    assert ended.value.code in (0, None) and "--ddp_timeout" in capsys.readouterr().out


def test_help_says_defaults_and_hides_nothing_of_a_command_with_few_arguments():
    content = help_content((EvaluationArguments, FewArguments), " Words. ", everything=False)
    text = render(content)
    assert text.startswith("Words.\n\n") and "(default: whole)" in text and "--eval_flip" not in text
    assert text.splitlines()[-1].startswith("These are the common arguments; --help_all")
    assert re.search(r"options:\n  --folder +Where\. \(needed\)\n  --fast +\(default: True; --no_fast\)", text)
    said = dict(help_content(TYPES, None, everything=False)["sections"]["training"])["--learning_rate"]
    assert "encoder. (default: 0.001 for a Mix Transformer; else by the encoder, and printed at the start)" in said


@pytest.mark.parametrize("typed", [["--memory_warmup_epochs", "3"], ["--memory-warmup-epochs=3"]])
def test_an_argument_of_another_method_is_refused_unless_a_recipe_has_it(tmp_path, typed):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("method: pseudo_label\nmemory_warmup_epochs: 3\n")
    argv = ["--data_dir", "x", "--output_dir", str(tmp_path), "--use_cpu"]
    args = parse_arguments(TYPES, [str(recipe), *argv, "--unlabeled_loss_weight", "2"])[2]
    assert (args.method, args.memory_warmup_epochs, args.unlabeled_loss_weight) == ("pseudo_label", 3, 2)
    with pytest.raises(ValueError, match="--memory_warmup_epochs belongs to --method allspark or allspark_unim"):
        parse_arguments(TYPES, [*argv, "--method", "pseudo_label", *typed])
    assert parse_arguments(TYPES, [*argv, *typed])[2].memory_warmup_epochs == 3


def test_recipe_that_is_no_mapping(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("- a\n- b\n")
    with pytest.raises(ValueError, match=r"recipe.yaml holds no `name: value` lines"):
        read_recipe(str(recipe))


@pytest.mark.parametrize("recipe", sorted(OWN.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_understood(recipe, tmp_path):
    """By its name, from any folder."""
    given = [recipe.name, "--data_dir", "x", "--output_dir", str(tmp_path), "--use_cpu"]
    data, model, args = parse_arguments(TYPES, given)
    assert args.num_train_epochs > 0 and (model.backbone or model.model_name_or_path or model.encoder)
    assert data.classes is None or Path(data.classes).is_file()


def test_one_source_of_weights_is_needed(data_dir):
    report = load_data(DataArguments(data_dir=str(data_dir)))
    for arguments in (ModelArguments(), ModelArguments(backbone="b0", model_name_or_path="x")):
        with pytest.raises(ValueError, match="Give one of --encoder"):
            load_model(arguments, report, 255, plain_segformer=False)


def test_model_takes_classes_and_switches(data_dir):
    report = load_data(DataArguments(data_dir=str(data_dir)))
    switches = {"memory_size": 2, "mix_images_in_eval": True}
    arguments = ModelArguments(backbone="b0", hidden_sizes=[8, 16, 40, 64], crop_size=[64, 96], **switches)
    config = load_model(arguments, report, 255, plain_segformer=False).config
    assert [config.id2label[index] for index in range(config.num_labels)] == list(CLASS_NAMES)
    assert (config.memory_size, config.token_grid, config.use_grouping) == (2, (2, 3), True)
    assert config.mix_images_in_eval
    assert len(config.palette) == config.num_labels
    plain = load_model(arguments, report, 255, plain_segformer=True)
    assert plain.bottleneck is None


def test_weights_of_another_model(data_dir, tmp_path):
    geometry = {"hidden_sizes": [8, 16, 40, 64], "decoder_hidden_size": 16}
    stored = SegformerForSemanticSegmentation(SegformerConfig(num_labels=4, **geometry))
    stored.save_pretrained(tmp_path / "segformer")
    report = load_data(DataArguments(data_dir=str(data_dir)))
    arguments = ModelArguments(model_name_or_path=str(tmp_path / "segformer"), crop_size=[64])
    model = load_model(arguments, report, 255, plain_segformer=False)
    assert model.config.num_labels == len(CLASS_NAMES) and model.config.crop_size == 64
    state = model.state_dict()
    for name, value in stored.state_dict().items():
        if "classifier" not in name:
            assert value.equal(state[name]), name
    with pytest.raises(ValueError, match="hidden_sizes would not fit the checkpoint's weights"):
        load_model(ModelArguments(model_name_or_path="x", hidden_sizes=[1]), report, 255, plain_segformer=False)


def test_a_model_with_the_classes_in_another_order_is_refused(data_dir, tmp_path):
    report = load_data(DataArguments(data_dir=str(data_dir)))
    names = [*CLASS_NAMES[1:], CLASS_NAMES[0]]
    tiny_model(num_labels=len(names), id2label=dict(enumerate(names))).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"its classes are .* in another order \({names[0]}, {names[1]}"):
        load_model(ModelArguments(model_name_or_path=str(tmp_path)), report, 255, plain_segformer=False)


@pytest.fixture(scope="module")
def trained_anew(data_dir, tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    """One start of Python, which takes 10 s: models are looked up in it, then it trains; and the folder."""
    folder = tmp_path_factory.mktemp("anew")
    (folder / "recipe.yaml").write_text(
        "backbone: b0\nhidden_sizes: [8, 16, 40, 64]\ncrop_size: 64\nreport_to: none\nmax_steps: 2\n"
    )
    arguments = ["--data_dir", data_dir, "--use_cpu", "--output_dir", folder / "out", "--labeled_count", 2]
    arguments += ["--disable_tqdm", "true", "--holdout_fraction", 0.5]
    command = [sys.executable, "-c", LOOKED_UP + THEN_RUN, SCRIPTS / "train.py", folder / "recipe.yaml", *arguments]
    command = [str(word) for word in command]
    return subprocess.run(command, cwd=SCRIPTS.parent, capture_output=True, text=True, timeout=300), folder


def test_auto_classes_know_the_models_when_they_are_looked_up(trained_anew):
    assert set(MODEL_TYPES) == set(SEGMENTERS)
    assert trained_anew[0].stdout.startswith("looked up\n"), trained_anew[0].stderr


def test_train_then_evaluate(data_dir, trained_anew):
    done, tmp_path = trained_anew
    recipe, common = tmp_path / "recipe.yaml", ["--data_dir", data_dir, "--use_cpu"]
    assert done.returncode == 0, done.stderr
    counts = "2 labeled (1 of them held out), 4 unlabeled, 2 validation images, 6 classes, 0 files left out"
    assert f"{counts}, processes: 1" in done.stdout
    labeled, held_out = ((tmp_path / "out" / f"{of}_ids.txt").read_text().split() for of in ("labeled", "holdout"))
    assert len(labeled) == 2 and len(held_out) == 1 and held_out[0] in labeled
    expected = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert {"last_mean_iou", "best_mean_iou"} <= set(json.loads((tmp_path / "out" / "train_results.json").read_text()))

    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["mask_values"] is None and config["id2label"]["0"] == CLASS_NAMES[0]

    again = run_script("train.py", recipe, *common, "--output_dir", tmp_path / "out")
    assert again.returncode == 1 and "holds checkpoints of an earlier run" in again.stderr.splitlines()[-1]
    assert (tmp_path / "out" / "checkpoint-2" / "trainer_state.json").is_file()

    scores = tmp_path / "scores.json"
    done = run_script("evaluate.py", "--model", tmp_path / "out", *common, "--output_file", scores)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 images, percent\n")
    for name, value in json.loads(scores.read_text())["metrics"].items():
        assert value == pytest.approx(expected[f"eval_{name}"], abs=1e-6), name


def test_mistakes_end_in_one_sentence(data_dir, tmp_path):
    cases = [
        ("train.py", ["--data_dir", tmp_path / "none", "--backbone", "b0", "--output_dir", tmp_path], "none"),
        ("train.py", ["--data_dir", data_dir, "--output_dir", tmp_path, "--preset", "none"], "Give one of --encoder"),
        ("evaluate.py", ["--data_dir", data_dir, "--model", tmp_path / "none"], "There is no folder"),
        ("evaluate.py", ["--data_dir", data_dir, "--model", "none"], "There is no folder none"),
    ]
    for script, arguments, sentence in cases:
        done = run_script(script, *arguments, "--use_cpu")
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert sentence in done.stderr.strip().splitlines()[-1]


def test_classes_without_names_are_told_how_to_get_them(data_dir, tmp_path):
    report = load_data(DataArguments(data_dir=str(data_dir)))
    assert summary(report, 0).endswith("6 classes, 0 files left out")
    report.data.classes = None
    assert "class_0, class_1, ...: name them in classes.txt in the data folder" in summary(report, 0)


def test_a_start_that_fails_leaves_nothing(data_dir, tmp_path):
    model = ["--backbone", "b0", "--hidden_sizes", 8, 16, 40, 64, "--crop_size", 64]
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "labeled_ids.txt").write_text("mine\n")
    for folder in (tmp_path / "new" / "out", kept):
        common = ["--data_dir", data_dir, "--output_dir", folder, *model, "--use_cpu", "--report_to", "none"]
        # before there is a model; and after the trainer has made the folder
        for wrong in (["--num_labels", 3], ["--class_weights", 1, 2, 3]):
            assert run_script("train.py", *common, *wrong).returncode == 1
            assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (kept / "labeled_ids.txt").read_text() == "mine\n"

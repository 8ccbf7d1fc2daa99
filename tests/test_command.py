"""The command `allspark`, `import allspark_hf`, and `allspark_hf.train`."""

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import allspark_hf
from allspark_hf.cli import demo
from allspark_hf.cli.help import read_help
from allspark_hf.cli.main import COMMANDS, main
from allspark_hf.demo.data import write_demo_data
from allspark_hf.models.auto import MODEL_TYPES
from allspark_hf.models.registration import SEGMENTERS


ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "backbone": "b0",
    "hidden_sizes": [8, 16, 24, 32],
    "depths": (1, 1, 1, 1),
    "decoder_hidden_size": 16,
    "crop_size": [64],
    "max_steps": 2,
    "logging_steps": 1,
    "use_cpu": True,
    "report_to": "none",
}
# In a process of its own: nothing heavy is imported by `import allspark_hf`, nor by the help of any command.
LIGHT = """
import sys
import allspark_hf
from allspark_hf.cli.main import COMMANDS, main

for arguments in (["--help"], [], *([command, option] for command in COMMANDS for option in ("-h", "--help"))):
    print("$", "allspark", *arguments)
    sys.argv = ["allspark", *arguments]
    assert main() is None
heavy = {"torch", "transformers", "numpy", "datasets", "PIL"} & set(sys.modules)
assert not heavy, heavy
"""
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


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_entry_point_is_the_command(monkeypatch, capsys):
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    module, name = re.search(r'^allspark = "(.*):(.*)"$', project, flags=re.MULTILINE).groups()
    monkeypatch.setattr(sys, "argv", ["allspark", "trian"])
    assert getattr(importlib.import_module(module), name)() == 2
    assert capsys.readouterr().err == "allspark has no command 'trian': did you mean train?\n"
    monkeypatch.setattr(sys, "argv", ["allspark", "x"])
    assert main() == 2 and capsys.readouterr().err.startswith("allspark has no command 'x': choose one of train, ")


def test_whatever_is_no_code_is_packaged():
    project, package = (ROOT / "pyproject.toml").read_text(encoding="utf-8"), Path(allspark_hf.__file__).parent
    patterns = ast.literal_eval(re.search(r"^allspark_hf = (\[.*\])$", project, flags=re.MULTILINE)[1])
    packaged = {path for pattern in patterns for path in package.glob(pattern)}
    files = {path for path in package.rglob("*") if path.is_file() and path.name not in ("README.md", "streams.md")}
    assert packaged == {path for path in files if path.suffix not in (".py", ".pyc")}
    assert package / "recipes" / "demo.yaml" in packaged


def test_help_of_every_command_imports_nothing_heavy():
    overview, again, *helps = run(LIGHT).split("$ allspark")[1:]
    assert overview.removeprefix(" --help") == again and all(f"allspark {command} " in again for command in COMMANDS)
    contents = read_help()
    assert list(contents) == list(COMMANDS) and len(helps) == 2 * len(COMMANDS)
    for text in helps:
        content = contents[text.split()[0]]
        assert content["description"] in text and f"allspark {text.split()[0]}" in text
        assert all(f"  {name}" in text for entries in content["sections"].values() for name, _ in entries)
        assert ("--help_all" in text) == content["hidden"]
    names = [name for entries in contents["train"]["sections"].values() for name, _ in entries]
    assert {"--data_dir", "--encoder", "--max_steps"} <= set(names) and len(names) < 40


def test_the_kept_help_is_that_of_the_arguments(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    write_help = importlib.import_module("write_help")
    for command, kept in read_help().items():
        now = json.loads(json.dumps(write_help.content_of(command)))
        assert now == kept, f"{command}: run python scripts/write_help.py"


def test_auto_classes_know_the_models_when_they_are_looked_up():
    assert set(MODEL_TYPES) == set(SEGMENTERS)
    run(LOOKED_UP)


def test_names_of_the_package():
    for name in allspark_hf.__all__:
        assert getattr(allspark_hf, name).__class__ and name in dir(allspark_hf)
    with pytest.raises(AttributeError, match="has no attribute 'AllSparkTrianer'"):
        allspark_hf.AllSparkTrianer  # noqa: B018


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "garden"
    write_demo_data(folder, num_train=5, num_labeled=2, num_validation=2, size=(64, 96))
    return folder


def test_demo(tmp_path, monkeypatch, capsys):
    """Which commands it starts, that it keeps its images, and that it leaves another folder alone."""
    started = []
    monkeypatch.setattr(demo, "COUNTS", {"num_train": 3, "num_labeled": 2, "num_validation": 1})
    monkeypatch.setattr(demo, "start", lambda *command: started.append([str(word) for word in command]))
    for said in ("Wrote 3 images, 2 of them with a mask", "Using the data in"):
        monkeypatch.setattr(sys, "argv", ["allspark", "demo", str(tmp_path / "out")])
        assert main() is None and said in capsys.readouterr().out
        (tmp_path / "out" / "supervised").mkdir()  # of the run before
    assert [command[0] for command in started] == ["train", "train", "compare"] * 2
    data, folder = str(tmp_path / "out" / "data"), str(tmp_path / "out" / "supervised")
    given = ["demo.yaml", "--method", "supervised", "--data_dir", data, "--output_dir", folder]
    assert started[0] == started[3] == ["train", *given]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.txt").write_text("kept")
    monkeypatch.setattr(sys, "argv", ["allspark", "demo", str(tmp_path / "mine")])
    with pytest.raises(SystemExit, match="holds something that this demo did not make"):
        main()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["mine.txt"]


def test_train_in_one_call(data_dir, tmp_path):
    trainer = allspark_hf.train(data_dir, tmp_path / "out", method="supervised", **TINY)
    assert trainer.state.global_step == 2 and trainer.args.given >= {"method", "crop_size", "data_dir"}
    assert trainer.model.config.depths == [1, 1, 1, 1]
    scores = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    logged = [entry["eval_mean_iou"] for entry in trainer.state.log_history if "eval_mean_iou" in entry]
    assert logged and scores["eval_mean_iou"] == logged[-1]
    assert (tmp_path / "out" / "model.safetensors").is_file()
    command = json.loads((tmp_path / "out" / "run_record.json").read_text())["command"]
    assert command.startswith("allspark train --data_dir garden --output_dir out --method supervised --backbone b0 ")
    with pytest.raises(ValueError, match="holds checkpoints of an earlier run"):
        allspark_hf.train(data_dir, tmp_path / "out", **TINY)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"crop_sizes": [64]}, "There is no argument --crop_sizes: did you mean --crop_size"),
        ({"max_steps": "two"}, "argument --max_steps.*: invalid int value: 'two'"),
        ({"seed": object()}, r"allspark_hf.train\(\) gives seed a value of type object"),
        ({"dry_run": True}, "dry_run is of the command line"),
        ({"recipe": "nothing.yaml"}, "such as camvid_cpu.yaml"),
        ({"data": "nowhere"}, "nowhere"),
    ],
)
def test_train_refuses_in_one_sentence(data_dir, tmp_path, arguments, sentence):
    with pytest.raises((ValueError, OSError), match=sentence):
        allspark_hf.train(**({"data": data_dir, "output_dir": tmp_path / "out"} | TINY | arguments))
    assert not (tmp_path / "out").exists()

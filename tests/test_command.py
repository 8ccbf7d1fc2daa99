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


def test_names_of_the_package():
    for name in allspark_hf.__all__:
        assert getattr(allspark_hf, name).__class__ and name in dir(allspark_hf)
    with pytest.raises(AttributeError, match="has no attribute 'AllSparkTrianer'"):
        allspark_hf.AllSparkTrianer  # noqa: B018


@pytest.fixture
def started(monkeypatch) -> list[list[str]]:
    """The commands that a tiny demo starts; each training leaves its results."""
    found = []
    results = {
        "eval_results.json": {"eval_mean_iou": 0.5},
        "train_results.json": {"epoch": 1.0, "train_runtime": 9.0},
        "trainer_state.json": {"log_history": [], "global_step": 7},
    }

    def start(*words):
        found.append([str(word) for word in words])
        if words[0] == "train":
            words[-1].mkdir(parents=True)
            (words[-1] / "labeled_ids.txt").write_text("a\n")
            for name, content in results.items():
                (words[-1] / name).write_text(json.dumps(content))

    monkeypatch.setattr(demo, "COUNTS", {"num_train": 3, "num_labeled": 2, "num_validation": 1})
    monkeypatch.setattr(demo, "NUM_PHOTOS", 1)
    monkeypatch.setattr(demo, "start", start)
    return found


def demo_main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["allspark", "demo", *map(str, arguments)])
    assert main() is None


def test_demo(tmp_path, monkeypatch, capsys, started):
    """Which commands it starts, that it keeps its images, and that it leaves another folder alone."""
    out = tmp_path / "out"
    for said in ("Wrote 3 images, 2 of them with a mask", "Using the data in"):
        demo_main(monkeypatch, out)
        printed = capsys.readouterr().out
        assert said in printed and f"{out / 'from_scratch' / 'model'} " in printed and "report.html" in printed
        assert "allspark train --data_dir YOUR_DATA" in printed and "--encoder facebook/dinov2-small" in printed
    model, photos = str(out / "from_scratch" / "model"), str(out / "photos")
    train = ["train", "demo.yaml", "--method", "allspark", "--data_dir", str(out / "data"), "--output_dir", model]
    predictions = str(out / "from_scratch" / "predictions")
    assert started == [train, ["predict", "--model", model, "--input", photos, "--output_dir", predictions]] * 2
    photo, *validation = [next(path.glob("*.jpg")) for path in (out / "photos", out / "data/images/val")]
    assert photo.read_bytes() != validation[0].read_bytes()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.txt").write_text("kept")
    with pytest.raises(SystemExit, match="holds something that this demo did not make"):
        demo_main(monkeypatch, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["mine.txt"]


def test_demo_with_an_encoder(tmp_path, monkeypatch, capsys, started):
    """It trains from scratch too, unless that was done, and says what both reached; first it looks for the encoder."""
    for encoder, sentence in (("./nowhere", "There is no folder './nowhere'"), ("dinov2", "without weights")):
        with pytest.raises(SystemExit, match=sentence):
            demo_main(monkeypatch, tmp_path / "out", "--encoder", encoder)
    assert not (tmp_path / "out").exists() and not started
    checked = []
    monkeypatch.setattr(demo, "check_encoder", checked.append)
    both = "50.0 % from scratch (7 updates, 9 s) and 50.0 % with small (7 updates, 9 s)."
    for _ in range(2):
        demo_main(monkeypatch, tmp_path / "out", "--encoder", "some/small")
        assert both in capsys.readouterr().out
    assert checked == ["some/small"] * 2
    trained = [Path(command[-1]).parent.name for command in started if command[0] == "train"]
    assert trained == ["from_scratch", "with_small", "with_small"]
    assert started[2][:7] == ["train", "--preset", "auto", "--encoder", "some/small", "--max_steps", "100"]


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


def test_a_stream_without_an_epoch_is_refused(data_dir, tmp_path):
    stream = {"unlabeled_dataset_name": str(data_dir / "images" / "train"), "unlabeled_streaming": True}
    given = {name: value for name, value in TINY.items() if name != "max_steps"}
    with pytest.raises(ValueError, match="which has no known length: set unlabeled_images_per_epoch"):
        allspark_hf.train(data_dir, tmp_path / "out", method="pseudo_label", **stream, **given)

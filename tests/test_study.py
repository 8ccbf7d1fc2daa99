"""Studies: which cells run, what survives, and the table's numbers; mostly with a stand-in for the training."""

import itertools
import json
import shlex
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import TextIO

import psutil
import pytest
import yaml
from forking import python
from in_process import SCRIPTS, run_script

from allspark_hf.demo.data import write_demo_data
from allspark_hf.studies.report import collect, mean_and_spread, table, write_report
from allspark_hf.studies.study import Study, StudyRunner, read_run_metrics, read_study
from allspark_hf.training.recipes import resolve_recipe


# mIoU = seed / 10 + width / 100 (last), 0.05 more at best. "kill" dies like a killed process, once: the folder then
# has a complete checkpoint, from which the next start must go on. "fail" ends with an error, always.
FAKE_TRAIN = """
import json, os, signal, sys
from pathlib import Path

arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
out = Path(arguments["--output_dir"])
out.mkdir(parents=True, exist_ok=True)
with open(out / "starts.txt", "a") as starts:
    print(arguments.get("--resume_from_checkpoint", "anew"), file=starts)
if arguments.get("--behavior") == "fail":
    sys.exit("ValueError: no such thing")
if arguments.get("--behavior") == "kill" and "--resume_from_checkpoint" not in arguments:
    (out / "checkpoint-5").mkdir()
    (out / "checkpoint-5" / "trainer_state.json").write_text("{}")
    (out / "checkpoint-5" / "allspark_run.json").write_text('{"files": {"trainer_state.json": 2}}')
    os.kill(os.getpid(), signal.SIGKILL)
last = int(arguments["--seed"]) / 10 + int(arguments["--width"]) / 100
history = [{"eval_mean_iou": last + 0.05, "epoch": 1.0, "step": 5}, {"eval_mean_iou": last, "epoch": 2.0, "step": 10}]
(out / "trainer_state.json").write_text(json.dumps({"global_step": 10, "log_history": history}))
(out / "train_results.json").write_text(json.dumps({"train_runtime": 3.5, "epoch": 2.0}))
(out / "eval_results.json").write_text(json.dumps({"eval_mean_iou": last}))
resumed = "--resume_from_checkpoint" in arguments
(out / "run_record.json").write_text(json.dumps({"training": {"resumed": resumed}, "data": {"labeled": 2}}))
"""


@pytest.fixture
def train_script(tmp_path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(FAKE_TRAIN)
    return path


def make_study(**rows) -> Study:
    rows = rows or {"narrow": {"width": 1}, "wide": {"width": 3}}
    return Study("Widths", rows=rows, columns={"10": {"labels": 10}, "40": {"labels": 40}}, seeds=[1, 2, 4])


def starts(runner: StudyRunner) -> dict[str, list[str]]:
    found = {}
    for cell in runner.study.cells():
        path = runner.output_dir / cell.folder / "starts.txt"
        found[cell.name] = path.read_text().split() if path.is_file() else []
    return found


def test_table_of_mean_and_spread_of_last_and_best(tmp_path, train_script):
    runner = StudyRunner(make_study(), tmp_path / "out", train_script)
    assert runner.run() == []
    # Seeds 1, 2, 4: 0.1, 0.2, 0.4 have mean 0.2333 and sample deviation 0.1528.
    assert table(collect(runner), 3) == (
        ["", "10, last", "10, best", "40, last", "40, best"],
        [["narrow", *["24.3 ± 15.3", "29.3 ± 15.3"] * 2], ["wide", *["26.3 ± 15.3", "31.3 ± 15.3"] * 2]],
    )
    printed = write_report(runner)
    assert printed.splitlines()[1].split("  ")[0] == "narrow" and printed.count("±") == 8
    assert "| wide | 26.3 ± 15.3 | 31.3 ± 15.3 |" in (tmp_path / "out" / "study.md").read_text(encoding="utf-8")
    stored = json.loads((tmp_path / "out" / "study.json").read_text())["results"]["wide"]["40"]
    assert [run["seed"] for run in stored] == [1, 2, 4]
    assert stored[2]["last_mean_iou"] == pytest.approx(0.43) and stored[2]["best_epoch"] == 1.0
    assert (
        not stored[0]["resumed"]
        and stored[0]["labeled_images"] == 2
        and stored[0]["seconds"] == 3.5
        and stored[0]["steps"] == 10
    )
    for name in ("study_light.png", "study_dark.png"):
        assert (tmp_path / "out" / name).stat().st_size > 400, name


def test_finished_cells_are_skipped(tmp_path, train_script):
    study = make_study(narrow={"width": 1}, dated={"width": 3, "run_name": date(2026, 1, 5)})
    for _ in range(2):
        runner = StudyRunner(study, tmp_path / "out", train_script)
        runner.run()
    assert set(map(tuple, starts(runner).values())) == {("anew",)}


def test_a_killed_cell_fails_alone_and_resumes(tmp_path, train_script):
    study = make_study(good={"width": 1}, killed={"width": 3, "behavior": "kill"})
    runner = StudyRunner(study, tmp_path / "out", train_script)
    failures = runner.run()
    assert len(failures) == 6 and all("killed, " in sentence and "exit code -9" in sentence for sentence in failures)
    assert [len(runs) for runs in collect(runner)["good"].values()] == [3, 3]
    assert StudyRunner(study, tmp_path / "out", train_script).run() == []
    for name, found in starts(runner).items():
        assert found == (["anew"] if name.startswith("good") else ["anew", "true"]), name
    killed = collect(runner)["killed"]["10"][1]
    assert killed["last_mean_iou"] == pytest.approx(0.23) and killed["resumed"]


def test_a_run_that_ended_before_its_cell_was_written_is_not_trained_again(tmp_path, train_script):
    runner = StudyRunner(make_study(), tmp_path / "out", train_script)
    runner.run()
    results = collect(runner)
    for path in (tmp_path / "out").rglob("cell.json"):
        path.unlink()
    again = StudyRunner(make_study(), tmp_path / "out", train_script)
    assert again.run() == [] and set(map(tuple, starts(again).values())) == {("anew",)}
    assert collect(again) == results


def test_a_terminated_study_ends_its_run(tmp_path):
    """And one that is killed outright leaves a run that the next start does not double."""
    study = {"title": "s", "rows": {"a": None}, "columns": {"b": None}, "seeds": [1]}
    launcher = shlex.join([sys.executable, "train.py"])
    folders = [tmp_path / name for name in ("terminated", "killed")]
    for folder in folders:
        folder.mkdir()
        (folder / "study.yaml").write_text(yaml.safe_dump(study))
        (folder / "train.py").write_text("import time; time.sleep(120)")
    arguments = ["study.yaml", "--output_dir", "out", "--launcher", launcher]
    command = [python(), SCRIPTS / "run_study.py", *arguments]
    studies = [subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) for folder in folders]

    def run_in(folder: Path) -> psutil.Process:
        process_file = folder / "out" / "a" / "b" / "seed_1" / "process.json"
        deadline = time.monotonic() + 200
        while not process_file.is_file():
            assert all(study.poll() is None for study in studies) and time.monotonic() < deadline
            time.sleep(0.05)
        return psutil.Process(json.loads(process_file.read_text())["pid"])

    def start_again(folder: Path) -> str:
        again = run_script("run_study.py", *arguments, cwd=folder)
        assert again.returncode == 1
        return again.stderr

    terminated, killed = map(run_in, folders)
    terminated.parent().terminate()
    killed.parent().kill()
    assert "the same command goes on from here" in studies[0].communicate(timeout=100)[1]
    assert studies[1].wait(timeout=100) == -signal.SIGKILL
    assert not terminated.is_running() and killed.is_running()
    assert f"still trained by process {killed.pid}" in start_again(folders[1])
    killed.kill()
    (folders[0] / "train.py").write_text("raise SystemExit(3)")
    assert "ended with exit code 3" in start_again(folders[0])


def test_a_failing_cell_is_reported_with_the_end_of_its_log(tmp_path, train_script):
    study = make_study(good={"width": 1}, bad={"width": 3, "behavior": "fail"})
    runner = StudyRunner(study, tmp_path / "out", train_script)
    failures = runner.run()
    assert len(failures) == 6 and all("ValueError: no such thing" in sentence for sentence in failures)
    assert table(collect(runner), 3)[1][1] == ["bad", "-", "-", "-", "-"]


def test_the_last_evaluation_is_not_that_of_the_best_weights(tmp_path):
    """With load_best_model_at_end, as in the paper's recipes, the best weights are evaluated once more at the end."""
    scores = [(0.5, 5), (0.4, 10)]
    history = [{"eval_mean_iou": score, "epoch": step / 5, "step": step} for score, step in scores]
    history += [{"train_runtime": 3.5, "epoch": 2.0, "step": 10}, {"eval_mean_iou": 0.5, "epoch": 2.0, "step": 10}]
    files = {
        "trainer_state": {"global_step": 10, "log_history": history},
        "train_results": {"train_runtime": 3.5, "epoch": 2.0},
        "eval_results": {"eval_mean_iou": 0.5},
        "run_record": {"training": {"load_best_model_at_end": True}},
    }
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    found = read_run_metrics(tmp_path)
    assert (found["last_mean_iou"], found["best_mean_iou"], found["best_step"], found["kept"]) == (0.4, 0.5, 5, "best")


def test_an_unfinished_table_says_how_many_seeds_it_has(tmp_path, train_script):
    study = make_study()
    study.seeds = [1, 2]
    StudyRunner(study, tmp_path / "out", train_script).run()
    runner = StudyRunner(make_study(), tmp_path / "out", train_script)
    assert table(collect(runner), 3)[1][0][1] == "16.0 ± 7.1 (2 of 3)"


def test_a_cell_made_with_other_arguments_is_not_mixed_in(tmp_path, train_script):
    StudyRunner(make_study(), tmp_path / "out", train_script, ["--data_dir", "here"]).run()
    StudyRunner(make_study(), tmp_path / "out", train_script, ["--data_dir", "there"]).run()  # data may move
    other = StudyRunner(make_study(narrow={"width": 2}), tmp_path / "out", train_script, ["--data_dir", "here"])
    with pytest.raises(ValueError, match="made with other arguments"):
        other.run()
    assert starts(other)["narrow, 10, seed 1"] == ["anew"]


@pytest.mark.parametrize("left", ["eval_results.json", "checkpoint-5/trainer_state.json"])
def test_a_run_that_is_not_the_studys_is_not_mixed_in(tmp_path, train_script, left):
    runner = StudyRunner(make_study(), tmp_path / "out", train_script)
    folder = tmp_path / "out" / next(runner.study.cells()).folder
    (folder / left).parent.mkdir(parents=True)
    (folder / left).write_text('{"eval_mean_iou": 0.9}')
    with pytest.raises(ValueError, match="seed_1 was made with other arguments"):
        runner.run()
    assert not (folder / "study.json").exists() and not any(starts(runner).values())


def test_a_changed_recipe_is_not_mixed_in(tmp_path, train_script):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("learning_rate: 0.1\n")
    study = Study("s", {"a": {"width": 1}}, {"b": {}}, recipe=str(recipe), seeds=[1])
    runner = StudyRunner(study, tmp_path / "out", train_script)
    assert runner.command(next(study.cells()))[2] == str(recipe)
    runner._check_unchanged(next(study.cells()))  # nothing there yet
    (tmp_path / "out" / "a" / "b" / "seed_1").mkdir(parents=True)
    (tmp_path / "out" / "a" / "b" / "seed_1" / "study.json").write_text(
        json.dumps(runner._fingerprint(next(study.cells())))
    )
    runner._check_unchanged(next(study.cells()))
    recipe.write_text("learning_rate: 0.2\n")
    with pytest.raises(ValueError, match="another recipe"):
        runner._check_unchanged(next(study.cells()))


def test_arguments_of_a_cell(tmp_path):
    study = Study(
        "s",
        rows={"r": {"method": "allspark", "crop_size": [64, 96]}},
        columns={"1/8": {"labeled_fraction": 0.125, "lr_scheduler_kwargs": {"power": 1}}},
        arguments={"method": "supervised", "max_steps": 5},
        seeds=[7],
        seed_arguments=["seed", "split_seed"],
    )
    (cell,) = study.cells()
    assert cell.folder == Path("r", "1_8", "seed_7")
    command = StudyRunner(study, "out", "train.py", ["--use_cpu"], ["accelerate", "launch"]).command(cell)
    assert command[:4] == ["accelerate", "launch", "train.py", "--use_cpu"]
    expected = "--method allspark --max_steps 5 --crop_size 64 96 --labeled_fraction 0.125"
    assert command[4:13] == expected.split()
    assert command[13:15] == ["--lr_scheduler_kwargs", '{"power": 1}']
    assert command[15:] == ["--seed", "7", "--split_seed", "7", "--output_dir", "out/r/1_8/seed_7"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": {}}, "rows of the study"),
        ({"columns": {"a": 3}}, "columns of the study"),
        ({"rows": {"a b": {}, "a_b": {}}}, "share a folder"),
        ({"seeds": []}, "at least one"),
        ({"seeds": [1, 1]}, "each once"),
        ({"arguments": {"seed": 3}}, "sets seed itself"),
        ({"columns": {"a": {"output_dir": "x"}}}, "sets output_dir itself"),
        (
            {"recipe": "demo.yaml", "rows": {"r": {"backbone": None}}},
            "r, c, seed 0 has backbone as null, which does not",
        ),
    ],
)
def test_bad_studies(change, message):
    with pytest.raises(ValueError, match=message):
        Study(**{"title": "s", "rows": {"r": {}}, "columns": {"c": {}}, **change})


def test_rows_of_table_6_have_one_source_of_weights():
    study = read_study(SCRIPTS / "studies" / "table_6.yaml")
    for cell in itertools.islice(study.cells(), len(study.rows)):
        recipe = resolve_recipe(study.recipe) | cell.arguments
        sources = {name: recipe.get(name) for name in ("encoder", "model_name_or_path", "backbone")}
        assert len([name for name in sources.values() if name]) == 1, sources


def test_bad_study_files(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("title: x\n")
    with pytest.raises(ValueError, match="needs title, rows and columns"):
        read_study(path)
    content = {"title": "x", "rows": {"a": None}, "columns": {92: None}, "recipe": "none.yaml"}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(FileNotFoundError, match="names the recipe"):
        read_study(path)
    del content["recipe"]
    path.write_text(yaml.safe_dump(content))
    assert read_study(path).columns == {"92": {}} and read_study(path).rows == {"a": {}}
    path.write_text(yaml.safe_dump({**content, "row": {}}))
    with pytest.raises(ValueError, match="unknown entries row"):
        read_study(path)


def test_mean_and_spread():
    assert mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    mean, spread = mean_and_spread([1.0])
    assert mean == 1 and spread != spread


@pytest.mark.parametrize("path", sorted((SCRIPTS / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_studies_here_can_be_read(path):
    study = read_study(path)
    assert len(list(study.cells())) == len(study.rows) * len(study.columns) * 3
    assert len({cell.folder for cell in study.cells()}) == len(list(study.cells()))


def test_label_efficiency_end_to_end(tmp_path, monkeypatch):
    """The real training script, twice, on generated images; in this process, where the tests above start one."""

    def train_here(command: list[str], folder: Path, log: TextIO) -> int:
        assert command[:4] == [sys.executable, "-m", "allspark_hf", "train"] and folder.is_dir()
        done = run_script("train.py", *command[4:])
        log.write(done.stdout + done.stderr)
        return done.returncode

    monkeypatch.setattr("allspark_hf.studies.study._run", train_here)
    write_demo_data(tmp_path / "data", num_train=6, num_labeled=5, num_validation=2, size=(64, 96))
    command = ["label_efficiency.py", "--data_dir", tmp_path / "data", "--max_steps", "2"]
    command += ["--labeled_counts", "4", "2", "--methods", "allspark", "--seeds", "3"]
    command += ["--output_dir", tmp_path / "out", "--recipe", "demo.yaml", "--use_cpu"]
    command += ["--per_device_train_batch_size", "2", "--hidden_sizes", "8", "16", "24", "32"]
    done = run_script(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "allspark: 4 instead of 2 labels changed mIoU by" in done.stdout and "(one seed)" in done.stdout
    results = json.loads((tmp_path / "out" / "study.json").read_text())["results"]["allspark"]
    assert {count: run[0]["labeled_images"] for count, run in results.items()} == {"2": 2, "4": 4}
    assert all(run[0]["steps"] == 2 and 0 < run[0]["last_mean_iou"] < 1 for run in results.values())
    again = run_script(*command)
    assert again.returncode == 0 and again.stdout.count("finished before") == 2

"""`allspark train` without a method chooses one; `--compare_supervised` trains twice and gives a verdict."""

import json
import shutil

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file
from test_command import TINY

import allspark_hf
from allspark_hf.cli import apply_preset
from allspark_hf.cli.baseline import BY_IMAGE, compare_folders
from allspark_hf.cli.compare import check_same_images, read_runs, verdicts
from allspark_hf.cli.main import main
from allspark_hf.cli.preset import Choice, Times, choose_length
from allspark_hf.demo.data import write_demo_data


def read(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_two_trainings_and_a_verdict(data_dir, tmp_path, capsys):
    out = tmp_path / "out"
    allspark_hf.train(data_dir, out, method="pseudo_label", compare_supervised=True, **TINY)
    chosen = yaml.safe_load((out / "preset.yaml").read_text())
    assert chosen["unlabeled_warmup_epochs"] == 0.5 and "method" not in chosen
    comparison, scores = (
        read(out / "comparison.json"),
        [read(one / "eval_results.json") for one in (out, out / "supervised")],
    )
    gain = scores[0]["eval_mean_iou"] - scores[1]["eval_mean_iou"]
    assert comparison["difference"] == pytest.approx(gain, abs=1e-9)
    assert comparison["low"] <= comparison["difference"] <= comparison["high"]
    printed = capsys.readouterr().out.rstrip()
    assert printed.endswith(comparison["verdict"])
    assert f"pseudo_label: mIoU {100 * scores[0]['eval_mean_iou']:.1f} % on 2 validation images, after 2" in printed
    seconds = [read(one / "train_results.json")["train_runtime"] for one in (out / "supervised", out)]
    cost = f"took {100 * seconds[0] / seconds[1]:.0f} % of the time, and about {2 * seconds[1] / seconds[0]:.0f} would"
    assert comparison["verdict"].endswith(f" Without them, as many updates {cost} take as long.")
    report = (out / "report.html").read_text(encoding="utf-8")
    assert f"{100 * scores[0]['eval_mean_iou']:.1f} % mIoU with pseudo-labels" in report
    assert comparison["verdict"].replace("+", "&#43;") in report or comparison["verdict"] in report
    assert report.count("data:image/jpeg;base64,") == 5 + 2  # image, truth, updates 0, 1, 2; both images
    records = [read(one / "run_record.json") for one in (out, out / "supervised")]
    assert [record["settings"]["method"] for record in records] == ["pseudo_label", "supervised"]
    for name in ("labeled_ids.txt", "validation_ids.txt"):
        assert (out / name).read_text() == (out / "supervised" / name).read_text()
    assert [read(one / "trainer_state.json")["global_step"] for one in (out, out / "supervised")] == [2, 2]
    counts = load_file(out / BY_IMAGE)["counts"].sum(axis=0)
    union = counts[1] + counts[2] - counts[0]
    assert np.mean(counts[0][union > 0] / union[union > 0]) == pytest.approx(scores[0]["eval_mean_iou"], abs=1e-9)


def test_both_trainings_leave_out_the_images_that_are_held_out(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    write_demo_data(data, num_train=8, num_labeled=5, num_validation=2, size=(64, 96))
    settings = TINY | {"method": "pseudo_label", "holdout_fraction": 0.4, "class_weights": ["balanced"]}
    allspark_hf.train(data, out, compare_supervised=True, **settings)
    folders = [out / "supervised", out]
    records = [read(folder / "run_record.json") for folder in folders]
    assert [record["data"]["labeled"] for record in records] == [3, 3]
    weights = [record["settings"]["class_weights"] for record in records]  # of the pixels of all labeled masks
    assert weights[0] == weights[1]
    ids = {kind: (out / f"{kind}_ids.txt").read_text().split() for kind in ("labeled", "holdout")}
    rest = [name for name in ids["labeled"] if name not in ids["holdout"]]
    assert (len(ids["labeled"]), len(ids["holdout"]), len(rest)) == (5, 2, 3)
    assert (out / "supervised/labeled_ids.txt").read_text().split() == rest
    runs = read_runs(folders)
    assert [(run["labeled_images"], run["labeled_ids"]) for run in runs.values()] == [(3, rest), (3, rest)]
    check_same_images(runs)
    assert not any("differ" in line for line in verdicts(runs, folders))
    shutil.copytree(out / "supervised", tmp_path / "of_all")  # trained on all five, as earlier versions did
    shutil.copy(out / "labeled_ids.txt", tmp_path / "of_all")
    with pytest.raises(ValueError, match="labeled images of supervised and pseudo_label differ, so that their numb"):
        check_same_images(read_runs([tmp_path / "of_all", out]))


def test_a_training_resumed_at_its_end_gets_all_its_files(data_dir, tmp_path, capsys):
    settings = TINY | {"method": "pseudo_label", "save_strategy": "steps", "save_steps": 2}
    (tmp_path / "comparison.json").write_text('{"verdict": "Of an earlier training."}')
    allspark_hf.train(data_dir, tmp_path, **settings)
    assert "Of an earlier training." not in (tmp_path / "report.html").read_text(encoding="utf-8")
    seconds = read(tmp_path / "train_results.json")["train_runtime"]
    for name in ("report.html", "run_record.json", BY_IMAGE):
        (tmp_path / name).unlink()
    capsys.readouterr()
    allspark_hf.train(data_dir, tmp_path, **settings, resume_from_checkpoint="true", compare_supervised=True)
    score = 100 * read(tmp_path / "eval_results.json")["eval_mean_iou"]
    assert f"{score:.1f} % mIoU with pseudo" in (tmp_path / "report.html").read_text(encoding="utf-8")
    record = read(tmp_path / "run_record.json")
    assert record["training"]["resumed"] and record["training"]["steps"] == 2 and "eval" in record["metrics"]
    assert read(tmp_path / "train_results.json")["train_runtime"] == seconds > 0
    assert "as many updates took" not in read(tmp_path / "comparison.json")["verdict"]  # a part of it is not known
    assert f"after 2 updates in {seconds:.0f} s since it was resumed." in capsys.readouterr().out


def test_folders_without_counts_have_no_verdict(tmp_path):
    assert compare_folders(tmp_path, tmp_path) is None
    save_file({"counts": np.ones((12, 3, 2), dtype=np.int64)}, tmp_path / BY_IMAGE)
    interval, sentence = compare_folders(tmp_path, tmp_path)
    assert tuple(interval) == (0, 0, 0) and "12 validation images cannot tell" in sentence


def test_nothing_to_compare(data_dir, tmp_path):
    with pytest.raises(ValueError, match="which is the method of this training itself: leave it out"):
        allspark_hf.train(data_dir, tmp_path / "out", method="supervised", compare_supervised=True, **TINY)


def test_without_a_method_one_is_chosen(data_dir, tmp_path, monkeypatch, capsys):
    """With the time that updates take; what was given stays; the choices are a recipe of the same training."""
    measured = []

    def of_a_slow_machine(minutes, times):
        measured.append(times)
        return choose_length(minutes, Times(update=0.5, evaluation=0.5))

    monkeypatch.setattr(apply_preset, "TIMED_UPDATES", 3)
    monkeypatch.setattr(apply_preset, "choose_length", of_a_slow_machine)
    given = {name: value for name, value in TINY.items() if name != "max_steps"}
    trainer = allspark_hf.train(data_dir, tmp_path / "out", minutes=0.25, compare_supervised=True, **given)
    args, lines = trainer.args, capsys.readouterr().out.splitlines()
    assert args.max_steps == 25 and args.eval_steps == 5  # 15 s, less 5 evaluations, at 0.5 s
    assert len(measured) == 1 and all(0 < seconds < 60 for seconds in measured[0])
    assert args.method == "supervised" and args.optim == "adamw_torch" and args.learning_rate == 2e-3
    assert trainer.model.config.crop_height_width == (64, 64)
    assert any(line.startswith("  method supervised: unlabeled images do not help (study, ") for line in lines)
    assert any(line.startswith("done at about ") for line in lines)
    assert "nothing to compare: the method that was chosen reads no unlabeled images" in lines
    assert not (tmp_path / "out" / "supervised").exists()
    recipe = yaml.safe_load((tmp_path / "out" / "preset.yaml").read_text())
    assert recipe["max_steps"] == args.max_steps and "crop_size" not in recipe
    again = allspark_hf.train(data_dir, tmp_path / "again", tmp_path / "out" / "preset.yaml", **given)
    assert again.args.max_steps == args.max_steps
    scores = [read(tmp_path / name / "eval_results.json")["eval_mean_iou"] for name in ("out", "again")]
    assert scores[0] == scores[1]
    resumed = allspark_hf.train(data_dir, tmp_path / "out", resume_from_checkpoint="true", minutes=3, **given)
    assert resumed.args.max_steps == 25 and resumed.state.global_step == 25
    assert "minutes=3 changes nothing at this resume: --max_steps sets" in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / "out" / "preset.yaml").read_text()) == recipe


def test_a_length_is_chosen_at_a_resume_too(data_dir, tmp_path, monkeypatch):
    """Where the first start gave it; the other choices are those of the first start."""
    monkeypatch.setattr(apply_preset, "TIMED_UPDATES", 2)
    monkeypatch.setattr(apply_preset, "choose_length", lambda minutes, times: [Choice("max_steps", 3, "")])
    given = {name: value for name, value in TINY.items() if name != "max_steps"}
    allspark_hf.train(data_dir, tmp_path, max_steps=2, **given)
    first = yaml.safe_load((tmp_path / "preset.yaml").read_text())
    resumed = allspark_hf.train(data_dir, tmp_path, resume_from_checkpoint="true", **given)
    assert resumed.args.method == "supervised" and resumed.state.global_step == 3
    assert yaml.safe_load((tmp_path / "preset.yaml").read_text()) == first | {"max_steps": 3}


def test_dry_run_says_how_the_length_is_chosen(data_dir, tmp_path, monkeypatch, capsys):
    options = ["--backbone", "b0", "--hidden_sizes", "8", "16", "24", "32", "--minutes", "7", "--use_cpu"]
    folders = ["--data_dir", str(data_dir), "--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["allspark", "train", *folders, *options, "--dry_run"])
    with pytest.raises(SystemExit, match="0"):
        main()
    lines = capsys.readouterr().out.splitlines()
    length = "what fits into 7 minutes; training times some updates first"
    assert {f"  length: {length}", f"  updates: {length}", "  evaluation: a few times; whole; absent classes"} <= {
        line.removesuffix(" do not count") for line in lines
    }
    assert "epochs" not in " ".join(lines).split("One step")[1]
    assert "  method: supervised, from b0" in lines and lines[-1] == "Ready to train."
    assert not (tmp_path / "out").exists()


def test_the_papers_settings_on_request(data_dir, tmp_path, capsys):
    trainer = allspark_hf.train(data_dir, tmp_path / "out", preset="none", **TINY)
    assert trainer.args.method == "allspark" and not (tmp_path / "out" / "preset.yaml").exists()
    assert "Chosen for" not in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [{"max_steps": 2}, {"preset": "none"}], ids=str)
def test_minutes_that_would_be_ignored(data_dir, tmp_path, arguments):
    given = {name: value for name, value in TINY.items() if name != "max_steps"}
    with pytest.raises(ValueError, match="minutes=5 sets the length of a training with --preset auto"):
        allspark_hf.train(data_dir, tmp_path / "out", minutes=5, **given, **arguments)

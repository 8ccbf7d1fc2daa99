"""What was kept of the studies that ran here: the page's tables are those of the files, and a row is what it says."""

import json
import runpy
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from in_process import SCRIPTS
from safetensors.numpy import save_file


RESULTS = SCRIPTS / "studies" / "results"
study_results = SimpleNamespace(**runpy.run_path(str(SCRIPTS / "study_results.py")))


def run(method: str, seed: int, score: float, arguments: str = "", updates: int = 200) -> dict:
    scores = {"eval_mean_iou": score}
    own = {"method": method, "seed": seed, "scores": scores, "arguments": arguments, "updates": updates}
    return own | {"labeled": 24, "cpu_seconds": 100 + seed, "curves": []}


def write_run(folder, score: float, counts: np.ndarray):
    """What `collect` reads of an output folder."""
    folder.mkdir(parents=True)
    record = {"command": "allspark train a.yaml", "method": {"name": "allspark"}, "settings": {"seed": 0}}
    record |= {"training": {"steps": 9}, "data": {"labeled": 2}, "git": {"commit": "c"}, "versions": {}, "machine": {}}
    files = {study_results.RECORD_FILE: record, "trainer_state.json": {"log_history": []}}
    for name, content in (files | {"eval_results.json": {"eval_mean_iou": score}}).items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    save_file({"counts": counts}, folder / study_results.BY_IMAGE)
    folder.with_name(f"{folder.name}.log").write_text("12.3 s user", encoding="utf-8")


def test_arguments_of_a_run():
    command = "python -m allspark_hf train a/nuclei.yaml --data_dir a b --use_cpu --method x --seed 1 --max_steps 5"
    found = study_results.own_arguments(command + " --crop_size 3 4 --output_dir 'a b'", 1)
    assert found == "--max_steps 5 --crop_size 3 4"
    drawn = [study_results.own_arguments(f"{command} --split_seed {draw}", 1) for draw in (1, 12)]
    assert drawn == ["--max_steps 5 --split_seed SEED", "--max_steps 5 --split_seed 12"]


def test_two_runs_of_one_training_are_refused():
    runs = {"a": run("allspark", 0, 0.5), "b": run("allspark", 1, 0.5), "c": run("allspark", 0, 0.6)}
    with pytest.raises(ValueError, match="a and c are the same training"):
        study_results.rows_of(runs)


def test_table():
    runs = {"a": run("supervised", 0, 0.5), "b": run("supervised", 1, 0.7), "c": run("allspark", 1, 0.8)}
    runs |= {"d": run("supervised", 0, 0.9, "--max_steps 600", 600), "e": run("allspark", 0, 0.4)}
    fewer = "--labeled_count 9"
    runs |= {"f": run("supervised", 0, 0.3, fewer), "g": run("allspark", 0, 0.6, f"{fewer} --x")}
    runs |= {"h": run("allspark", 0, 0.8, "--x --max_steps 600", 600)}
    # Labels that the seed draws: those of seed 0 are the recipe's.
    drawn = "--split_seed SEED"
    runs |= {"i": run("supervised", 1, 0.6, drawn), "j": run("allspark", 1, 0.9, drawn)}
    # Of 100 pixels of a class, in each image.
    hits = {"a": 50, "b": 70, "c": 80, "d": 90, "e": 40, "f": 30, "g": 60, "h": 80, "i": 60, "j": 90}
    counts = {name: np.array([[[hit], [100], [hit]]] * 3) for name, hit in hits.items()}
    lines = study_results.table(runs, counts).splitlines()[2:]
    assert lines == [
        "| `supervised` | 50.0, 70.0 | 60.0 (50.0 to 70.0) |  | 100 |",
        "| `supervised --labeled_count 9` | 30.0 | 30.0 (30.0 to 30.0) |  | 100 |",
        "| `supervised --max_steps 600` | 90.0 | 90.0 (90.0 to 90.0) |  | 100 |",
        "| `supervised --split_seed SEED` | 50.0, 60.0 | 55.0 (50.0 to 60.0) |  | 100 |",
        "| `allspark` | 40.0, 80.0 | 60.0 (40.0 to 80.0) | +0.0 (-10.0 to +10.0) | 100 |",
        "| `allspark --labeled_count 9 --x` | 60.0 | 60.0 (60.0 to 60.0) | +30.0 (+30.0 to +30.0) | 100 |",
        "| `allspark --split_seed SEED` | 40.0, 90.0 | 65.0 (40.0 to 90.0) | +10.0 (-10.0 to +30.0) | 100 |",
        "| `allspark --x --max_steps 600` | 80.0 | 80.0 (80.0 to 80.0) | -10.0 (-10.0 to -10.0) | 100 |",
    ]


def test_runs_are_added(tmp_path):
    """Also those of `allspark study`, which lie deeper and have no log of CPU seconds."""
    file = tmp_path / "some.json"
    for name, hit in (("b", 1), ("row/24/seed_0", 2), ("b", 3)):
        runs = tmp_path / f"runs_{hit}"
        write_run(runs / name, score=hit / 10, counts=np.full((2, 3, 2), hit))
        (runs / "unfinished").mkdir()
        (runs / "row" / "24" / "seed_0.log").unlink(missing_ok=True)
        study_results.collect(runs, file)
    collected, counts = study_results.stored(file)
    deep = "row_24_seed_0"
    found = [(name, one["scores"]["eval_mean_iou"], one["cpu_seconds"]) for name, one in collected.items()]
    assert found == [("b", 0.3, 12), (deep, 0.2, None)]
    assert list(counts) == ["b", deep] and (counts[deep] == 2).all() and (counts["b"] == 3).all()


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.npz")), ids=lambda file: file.stem)
def test_page(file):
    runs = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    counts = {name: value.astype(np.int64) for name, value in np.load(file).items()}
    assert len(runs) >= 10
    page = study_results.PAGE.read_text(encoding="utf-8")
    written = page.partition(f"<!-- results/{file.stem}.json -->")[2].partition(f"<!-- end of {file.stem} -->")[0]
    assert written.strip() == study_results.table(runs, counts)
    for name, of_images in counts.items():
        hits, true, predicted = of_images.sum(axis=0)
        union = true + predicted - hits
        score = np.mean(hits[union > 0] / union[union > 0])
        assert score == pytest.approx(runs[name]["scores"]["eval_mean_iou"], abs=1e-5)


def test_patch_of_the_variants_fits_the_code():
    subprocess.run(["git", "apply", "--check", RESULTS / "variants.patch"], cwd=SCRIPTS.parent, check=True)

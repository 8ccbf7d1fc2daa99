"""scripts/make_figures.py on tiny trained models: all figures as a user gets them, and what it refuses."""

import json
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from in_process import run_script
from PIL import Image

from allspark_hf.cli.figures import Material, run_names
from allspark_hf.demo.data import write_demo_data
from allspark_hf.models.weights import weights_digest


pytest.importorskip("matplotlib")
ROOT = Path(__file__).resolve().parents[1]
NAMES = ["figure_1c", "figure_5", "figure_6", "figure_7", "figure_b", "training_curves"]
TINY = [
    *("--hidden_sizes", 8, 8, 16, 16, "--depths", 1, 1, 1, 1, "--decoder_hidden_size", 16, "--crop_size", 32, 48),
    *("--max_steps", 2, "--eval_steps", 1, "--per_device_train_batch_size", 2, "--warmup_steps", 1),
    *("--logging_steps", 1),
]


def run_here(monkeypatch, script: str, *arguments):
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    return runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")


def refused(monkeypatch, *arguments) -> str:
    """The sentence that scripts/make_figures.py ends with."""
    with pytest.raises(SystemExit) as stopped:
        run_here(monkeypatch, "make_figures.py", *arguments)
    return str(stopped.value.code)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of three methods on data of which masks are hidden, two steps each, and all figures."""
    folder = tmp_path_factory.mktemp("figures")
    write_demo_data(folder / "data", num_train=7, num_labeled=6, num_validation=3, size=(48, 64))
    settings = ["--data_dir", folder / "data", "--labeled_count", 2, "--use_cpu", *TINY]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(ROOT)
        for method in ("supervised", "pseudo_label", "allspark"):
            arguments = ["scripts/recipes/demo.yaml", "--method", method, "--output_dir", folder / method, *settings]
            arguments += [] if method == "supervised" else ["--unlabeled_warmup_epochs", 0]
            run_here(monkeypatch, "train.py", *arguments)
    arguments = [*options(folder), "--output_dir", folder / "all", "--num_images", 2, "--device", "cpu"]
    arguments += ["--background", "light"]  # tests/test_figures_drawing.py draws both
    done = run_script("make_figures.py", *arguments, "--baseline", folder / "supervised", folder / "pseudo_label")
    assert done.returncode == 0, done.stderr
    (folder / "printed.txt").write_text(done.stdout, encoding="utf-8")
    return folder


def options(folder: Path, model: str = "allspark") -> list:
    return ["--model", folder / model, "--data_dir", folder / "data"]


def test_all_figures_are_written_and_named(folder):
    printed = (folder / "printed.txt").read_text(encoding="utf-8").splitlines()
    endings = (".npz", "_light.png")
    expected = [str(folder / "all" / f"{name}{ending}") for name in NAMES for ending in endings]
    assert printed == expected
    assert sorted(str(path) for path in (folder / "all").iterdir()) == sorted(expected)
    for name in NAMES:
        with Image.open(folder / "all" / f"{name}_light.png") as picture:
            assert picture.width == 1200 and min(picture.convert("RGB").getpixel((0, 0))) > 215


def test_figures_tell_which_weights_they_show(folder):
    digests = [weights_digest(folder / name) for name in ("supervised", "pseudo_label", "allspark")]
    assert len(set(digests)) == 3
    for name in NAMES:
        shown = np.load(folder / f"all/{name}.npz")["weights_sha256"].tolist()
        assert shown == (digests if name in ("figure_1c", "figure_b", "training_curves") else digests[2:])


def test_errors_are_of_the_images_that_the_run_was_trained_on(folder):
    arrays = np.load(folder / "all/figure_1c.npz")
    assert arrays["models"].tolist() == ["supervised", "pseudo_label", "allspark"]
    # Six training masks, two of them kept; the seventh training image has no mask and cannot be scored.
    assert arrays["sets"].tolist() == ["labeled", "unlabeled", "validation"]
    assert arrays["num_images"].tolist() == [2, 4, 3]
    for index, name in enumerate(arrays["models"]):
        last = json.loads((folder / name / "eval_results.json").read_text(encoding="utf-8"))
        assert arrays["mean_iou"][index, 2] == pytest.approx(last["eval_mean_iou"], abs=1e-12)


def test_the_memory_holds_the_unlabeled_images_of_the_run(folder):
    arrays = np.load(folder / "all/figure_7.npz")
    assert arrays["ids"].tolist() == (folder / "allspark/unlabeled_ids.txt").read_text(encoding="utf-8").split()
    assert arrays["num_enqueued"].sum() == 5 * 16 and arrays["pictures"].shape[2:] == (32, 48, 3)


def test_validation_images_are_shown_evenly_spread(folder):
    for name in ("figure_5", "figure_6", "figure_b"):
        assert np.load(folder / f"all/{name}.npz")["ids"].tolist() == ["val_00000", "val_00001"]
    arrays = np.load(folder / "all/figure_6.npz")
    assert arrays["set_ids"].tolist() == ["val_00000", "val_00001", "val_00002"]
    assert (arrays["set_counts"].sum(1) == 16).all() and arrays["has_mask"].all()
    masks = np.load(folder / "all/figure_b.npz")
    assert masks["truth_0"].shape == (48, 64) and masks["predictions_0"].shape == (3, 48, 64)
    assert masks["differences_0"].shape == (2, 48, 64)


def test_images_can_be_named_and_sets_limited(folder, monkeypatch, capsys, tmp_path):
    labeled = (folder / "allspark/labeled_ids.txt").read_text(encoding="utf-8").split()[0]
    arguments = ["--figures", "6", "b", "--background", "light", "--images", "train_00006", labeled, "--max_images", 1]
    refusal = refused(monkeypatch, *options(folder), *arguments, "--output_dir", tmp_path / "none")
    assert "train_00006 has no mask, which figure b shows as the truth" in refusal
    arguments[1:3] = ["6"]
    capsys.readouterr()
    run_here(monkeypatch, "make_figures.py", *options(folder), *arguments, "--output_dir", tmp_path / "some")
    assert capsys.readouterr().out.split() == [
        str(tmp_path / "some" / name) for name in ("figure_6.npz", "figure_6_light.png")
    ]
    arrays = np.load(tmp_path / "some/figure_6.npz")
    assert arrays["ids"].tolist() == ["train_00006", labeled] and arrays["has_mask"].tolist() == [False, True]
    assert arrays["set_ids"].tolist() == ["val_00000"]
    unknown = refused(monkeypatch, *options(folder), "--images", "nowhere", "--output_dir", tmp_path, "--figures", "5")
    assert unknown.startswith("ValueError: There is no image nowhere in the data")


def test_an_id_is_that_of_the_validation_image_first():
    sets = {name: Dataset.from_dict({"id": ["001"], "of": [name]}) for name in ("labeled", "validation")}
    material = SimpleNamespace(models={}, sets=sets, arguments=SimpleNamespace(images=["001"]))
    assert Material.chosen(material) == [{"id": "001", "of": "validation"}]


def test_without_id_lists_only_figures_that_need_none(folder, monkeypatch, capsys, tmp_path):
    bare = tmp_path / "elsewhere"
    bare.mkdir()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copy(folder / "allspark" / name, bare)
    arguments = ["--model", bare, "--data_dir", folder / "data", "--background", "light", "--num_images", 1]
    run_here(monkeypatch, "make_figures.py", *arguments, "--output_dir", tmp_path / "figures")
    printed = capsys.readouterr().out
    for name in ("1c", "7"):
        assert f"Left out: figure {name}, because there is no {bare}/labeled_ids.txt" in printed
    assert f"Left out: figure curves, because there is no trainer_state.json in {bare}" in printed
    assert sorted(path.name for path in (tmp_path / "figures").glob("*.npz")) == [
        "figure_5.npz",
        "figure_6.npz",
        "figure_b.npz",
    ]
    refusal = refused(monkeypatch, *arguments, "--figures", "7", "--output_dir", tmp_path / "none")
    assert refusal.startswith("ValueError: Figure 7 cannot be drawn: there is no ") and "labeled_ids.txt" in refusal


def test_a_checkpoint_has_the_lists_of_its_run(folder, monkeypatch, tmp_path):
    shutil.copytree(folder / "allspark", tmp_path / "run/checkpoint-2")
    for path in (tmp_path / "run/checkpoint-2").glob("*_ids.txt"):
        path.rename(tmp_path / "run" / path.name)
    arguments = ["--model", tmp_path / "run/checkpoint-2", "--data_dir", folder / "data", "--figures", "7"]
    run_here(monkeypatch, "make_figures.py", *arguments, "--background", "light", "--output_dir", tmp_path / "new")
    of_run, of_checkpoint = np.load(folder / "all/figure_7.npz"), np.load(tmp_path / "new/figure_7.npz")
    for name in of_run.files:
        np.testing.assert_array_equal(of_run[name], of_checkpoint[name])


def test_without_hidden_masks_there_is_no_error_on_unlabeled_images(folder, monkeypatch, capsys, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data")
    kept = (folder / "allspark/labeled_ids.txt").read_text(encoding="utf-8").split()
    for path in (tmp_path / "data/masks/train").glob("*.png"):
        if path.stem not in kept:
            path.unlink()
    arguments = ["--model", folder / "allspark", "--data_dir", tmp_path / "data", "--figures", "1c"]
    run_here(monkeypatch, "make_figures.py", *arguments, "--background", "dark", "--output_dir", tmp_path / "new")
    assert "Figure 1c has no error on unlabeled images" in capsys.readouterr().out
    arrays, of_all = np.load(tmp_path / "new/figure_1c.npz"), np.load(folder / "all/figure_1c.npz")
    assert arrays["sets"].tolist() == ["labeled", "validation"]
    np.testing.assert_array_equal(arrays["mean_iou"][0], of_all["mean_iou"][2, [0, 2]])


@pytest.mark.parametrize("figure", ["5", "6", "7"])
def test_a_plain_segformer_has_no_channels_to_draw(folder, figure, monkeypatch, tmp_path):
    arguments = [*options(folder, "pseudo_label"), "--figures", figure, "--output_dir", tmp_path / "none"]
    refusal = refused(monkeypatch, *arguments)
    assert refusal.startswith(f"ValueError: Figure {figure} cannot be drawn: ") and "plain SegFormer" in refusal
    assert not (tmp_path / "none").exists()


def test_other_data_than_in_training_is_refused(folder, monkeypatch, tmp_path):
    arguments = [*options(folder), "--figures", "1c", "--output_dir", tmp_path / "none", "--labeled_count", 3]
    assert f"the labeled images are not those of {folder}/allspark/labeled_ids.txt" in refused(monkeypatch, *arguments)


def test_classes_in_another_order_are_refused(folder, monkeypatch, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data")
    listed = (folder / "data/classes.json").read_text(encoding="utf-8")
    swapped = listed.replace('"plank"', '"?"').replace('"leaf"', '"plank"').replace('"?"', '"leaf"')
    (tmp_path / "data/classes.json").write_text(swapped, encoding="utf-8")
    arguments = ["--model", folder / "allspark", "--data_dir", tmp_path / "data", "--figures", "b"]
    refusal = refused(monkeypatch, *arguments, "--output_dir", tmp_path / "none")
    assert "Class 2 is 'plank' for the model and 'leaf' for" in refusal and not (tmp_path / "none").exists()


def test_earlier_figures_are_kept_unless_asked(folder, monkeypatch, tmp_path):
    (tmp_path / "figure_b_dark.png").write_text("mine", encoding="utf-8")
    arguments = [*options(folder), "--figures", "b", "--background", "dark", "--num_images", 1]
    arguments += ["--output_dir", tmp_path]
    assert "figure_b_dark.png exists: pass --overwrite" in refused(monkeypatch, *arguments)
    assert (tmp_path / "figure_b_dark.png").read_text(encoding="utf-8") == "mine"
    run_here(monkeypatch, "make_figures.py", *arguments, "--overwrite")
    with Image.open(tmp_path / "figure_b_dark.png") as picture:
        assert picture.width == 1200 and max(picture.convert("RGB").getpixel((0, 0))) < 40


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--figures", "2"], "figures is 2, but some of 1c 5 6 7 b curves are needed"),
        (["--background", "blue"], "background is blue, but some of light dark are needed"),
        (["--num_images", "0"], "num_images=0 is out of range: set a finite number of at least 1"),
        (["--model", "nowhere"], "There is no folder nowhere"),
        (["--num_labels", "3"], "num_labels=3 was given, but the model has 6: leave --num_labels out"),
        (["--skip_bad_files"], "skip_bad_files is for trainings alone"),
    ],
)
def test_wrong_arguments_give_one_sentence(folder, arguments, sentence, monkeypatch, tmp_path):
    assert sentence in refused(monkeypatch, *options(folder), "--output_dir", tmp_path, *arguments)


def test_missing_matplotlib_is_said_first(folder, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refusal = refused(monkeypatch, *options(folder), "--output_dir", tmp_path)
    assert refusal.startswith("ImportError: Drawing figures needs matplotlib") and "allspark-hf[figures]" in refusal


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["a/supervised", "a/allspark"], ["supervised", "allspark"]),
        (["s/supervised/1_8/seed_0", "s/allspark/1_8/seed_0"], ["supervised", "allspark"]),
        (["a/x", "b/x/"], ["a", "b"]),
        (["a/x"], ["x"]),
        (["a/x", "a/x"], ["a/x", "a/x"]),
        (["a/x", "b/x", "a/y"], ["a/x", "b/x", "a/y"]),
    ],
)
def test_models_are_named_by_what_differs(folders, names):
    assert run_names(folders) == names

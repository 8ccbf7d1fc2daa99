"""The cards in model_cards/: those of runs as their records say, those of the paper's models as the recipes say."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
from card_folders import rows_of, run_of, valid, write_records
from test_recipes import PUBLISHED

from allspark_hf.publishing.markdown import argument_rows
from allspark_hf.training.recipes import find_recipe, resolve_recipe


ROOT = Path(__file__).resolve().parents[1]
CARDS = ROOT / "model_cards"
PAPER = {
    "allspark-b5-pascal": ("nvidia/mit-b5", ["pascal_original"], 21),
    "allspark-b4-pascal": ("nvidia/mit-b4", ["pascal_original"], 21),
    "allspark-b5-pascal-augmented": ("nvidia/mit-b5", ["pascal_augmented", "pascal_augmented_u2pl"], 21),
    "allspark-b5-cityscapes": ("nvidia/mit-b5", ["cityscapes"], 19),
    "allspark-b5-coco": ("nvidia/mit-b5", ["coco"], 81),
}
# mIoU, and whether the data set's images may be shown.
STUDY = {
    "nuclei-supervised": ("86.47", True),
    "nuclei-unimatch-v2": ("79.49", True),
    "nuclei-allspark-unimatch": ("79.21", True),
    "camvid-supervised": ("62.16", False),
}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("render_card", ROOT / "scripts" / "render_card.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def citation(text: str) -> str:
    return text.split("## Citation")[1].split("<!--")[0].strip()


def start(script, *arguments) -> int:
    return script.run(script.parse([str(argument) for argument in arguments]))


def test_cards_of_runs_are_as_rendered_now(script, capsys):
    assert start(script, "--check") == 0, capsys.readouterr().out
    assert {path.stem for path in CARDS.glob("*.md")} == {"allspark-demo", *STUDY, *PAPER}
    assert {path.name for path in (CARDS / "records").iterdir()} == {"allspark-demo", *STUDY}


@pytest.mark.parametrize("name", ["allspark-demo", *STUDY, *PAPER])
def test_every_card_is_valid(name):
    text = (CARDS / f"{name}.md").read_text(encoding="utf-8")
    card = valid(text, rendered=name not in PAPER)
    assert bool(card.data.get("widget")) == (name not in STUDY) and str(ROOT) not in text
    for path in re.findall(r"(?:scripts|allspark_hf)/[\w./-]+\.(?:py|yaml|md)", text):
        assert find_recipe(ROOT / path).is_file() or find_recipe(path).is_file(), path
    demo = (CARDS / "allspark-demo.md").read_text(encoding="utf-8")
    if name in PAPER:
        assert citation(text) == citation(demo)


@pytest.mark.parametrize("name", STUDY)
def test_card_of_a_run_of_the_study(name):
    score, is_shown = STUDY[name]
    text, folder = (CARDS / f"{name}.md").read_text(encoding="utf-8"), CARDS / "records" / name
    record = json.loads((folder / "run_record.json").read_text())
    assert "**No weights come with this card.**" in text and f"on validation images is {score} %" in text
    assert (folder / "note.md").read_text(encoding="utf-8").strip() in text and record["command"] in text
    assert ("CC0" in text, "no image of it is shown" in text) == (is_shown, not is_shown)
    for file in (CARDS / f"{name}.md", *folder.glob("*.*")):
        assert not re.search(r"/work|\.\./(?!scripts/studies/README.md)", file.read_text(encoding="utf-8")), file
    shown = [ROOT / "model_cards" / path for path in re.findall(r"!\[.*\]\((.+)\)", text)]
    assert bool(shown) == is_shown == (folder / "figures").exists()
    assert all(path.stat().st_size < 150_000 for path in shown)


@pytest.mark.parametrize("name", PAPER)
def test_card_of_the_paper(name):
    """They are text: whatever the recipes say too is held against these."""
    base, folders, classes = PAPER[name]
    text = (CARDS / f"{name}.md").read_text(encoding="utf-8")
    card = valid(text, rendered=False)
    assert (card.data.base_model, card.data["base_model_relation"]) == (base, "finetune")
    assert card.data.license == "other" and "non-commercial use only" in text
    assert card.data.eval_results is None and "model-index" not in text and card.data.metrics is None
    assert "**No weights come with this card.**" in text and "None of the paper's numbers has been reproduced" in text
    assert len(rows_of(text, "index")) == classes and ("<details>" in text) == (classes == 81)
    model = f"allspark_{base[-2:]}"
    numbers = [f"{value:.2f}" for folder in folders for value in PUBLISHED.get((folder, model), {}).values()]
    if numbers:
        assert "**The paper's numbers, not measured by us**" in text
        assert re.findall(r"^\| .*, [\d,]+ \| (\d\d\.\d\d) \|$", text, flags=re.MULTILINE) == numbers
    else:
        assert "we have no number of the paper's" in text and not re.search(r"\| \d\d\.\d\d \|", text)
    commands = re.findall(r"^accelerate launch --num_processes 4 scripts/train.py (\S+)$", text, flags=re.MULTILINE)
    paths = {
        path for folder in folders for path in (ROOT / "allspark_hf/recipes/paper").glob(f"{folder}/*_{model}.yaml")
    }
    assert sorted(ROOT / command for command in commands) == sorted(paths)
    recipes = [resolve_recipe(path) for path in paths]
    shared = {name: value for name, value in recipes[0].items() if all(one.get(name) == value for one in recipes)}
    assert sorted(map(tuple, rows_of(text, "argument"))) == sorted(map(tuple, argument_rows(shared)))
    lists = {f"`{one[name]}`" for one in recipes for name in ("labeled_list", "unlabeled_list")}
    assert {cell for row in rows_of(text, "data set, labeled images") for cell in row[1:]} == lists


def test_card_of_the_demo_has_the_records_numbers():
    folder = CARDS / "records" / "allspark-demo"
    text = (CARDS / "allspark-demo.md").read_text(encoding="utf-8")
    card = valid(text)
    record = json.loads((folder / "run_record.json").read_text())
    assert card.data.license == "apache-2.0" and record["git"]["uncommitted_changes"] is False
    results = {(entry.dataset_split, entry.metric_type): entry.metric_value for entry in card.data.eval_results}
    for split, file in (("validation", "eval_validation"), ("labeled", "eval_labeled")):
        evaluation = json.loads((folder / f"{file}.json").read_text())
        for name in ("mean_iou", "mean_accuracy", "overall_accuracy"):
            assert results[split, name] == pytest.approx(evaluation["metrics"][name], abs=1e-6)
    evaluation = json.loads((folder / "eval_validation.json").read_text())
    columns = ("iou", "accuracy", "boundary_iou", "pixel_share")
    expected = [[row["name"], *(f"{100 * row[name]:.2f}" for name in columns)] for row in evaluation["per_class"]]
    assert rows_of(text, "class") == expected
    assert f"```bash\n{record['command']}\n```" in text
    last = record["metrics"]["train"]["last_mean_iou"]
    assert rows_of(text, "evaluation")[0] == ["last", "12", f"{100 * last:.2f}"]


def test_check_notices_a_changed_card(script, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "model_cards"
    shutil.copytree(CARDS, copy)
    monkeypatch.setattr(script, "CARDS", copy)
    assert start(script, "--check") == 0
    path = copy / "allspark-demo.md"
    path.write_text(path.read_text().replace("56.45", "69.40"))
    assert start(script, "--check") == 1 and "allspark-demo.md is not as rendered now" in capsys.readouterr().out
    assert start(script, "--committed") == 0 and start(script, "--check") == 0
    assert "69.40" in (copy / "allspark-demo.old.md").read_text()


def test_script_on_a_model(script, tmp_path, capsys):
    write_records(tmp_path, run=run_of())
    examples = ["--example_images", "https://a.org/b.png"]
    assert start(script, "--model", tmp_path, "--repo_id", "jane/street", *examples) == 0
    assert valid((tmp_path / "README.md").read_text()).data["widget"][0]["example_title"] == "b"
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "README.md")]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--model OUT"),
        (["--model", "x", "--check"], "--model OUT"),
        (["--check", "--repo_id", "a/b"], "--repo_id"),
        (["--model", "nowhere"], "nowhere holds no config.json"),
    ],
)
def test_mistakes(script, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        start(script, *arguments)

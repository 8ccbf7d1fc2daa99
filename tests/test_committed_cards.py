"""The cards in model_cards/, and scripts/render_card.py as a user starts it."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from card_folders import rows_of, run_of, valid, write_records
from test_recipes import PUBLISHED


ROOT = Path(__file__).resolve().parents[1]
CARDS = ROOT / "model_cards"
RECIPES = ROOT / "scripts" / "recipes" / "paper"
NAMES = list(yaml.safe_load((CARDS / "cards.yaml").read_text(encoding="utf-8")))
PAPER = {
    "allspark-b5-pascal": ("nvidia/mit-b5", ["pascal_original"], 21),
    "allspark-b4-pascal": ("nvidia/mit-b4", ["pascal_original"], 21),
    "allspark-b5-pascal-augmented": ("nvidia/mit-b5", ["pascal_augmented", "pascal_augmented_u2pl"], 21),
    "allspark-b5-cityscapes": ("nvidia/mit-b5", ["cityscapes"], 19),
    "allspark-b5-coco": ("nvidia/mit-b5", ["coco"], 81),
}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("render_card", ROOT / "scripts" / "render_card.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def start(script, *arguments) -> int:
    return script.run(script.parse([str(argument) for argument in arguments]))


def test_every_card_is_as_rendered_now(script, capsys):
    assert start(script, "--check") == 0, capsys.readouterr().out
    assert {path.stem for path in CARDS.glob("*.md")} == {"template", *NAMES} and set(PAPER) < set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_card_is_valid(name):
    text = (CARDS / f"{name}.md").read_text(encoding="utf-8")
    card = valid(text)
    assert card.data["widget"] and str(ROOT) not in text
    for path in re.findall(r"scripts/[\w./-]+\.(?:py|yaml|md)", text):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("name", PAPER)
def test_card_of_the_paper(name):
    base, folders, classes = PAPER[name]
    text = (CARDS / f"{name}.md").read_text(encoding="utf-8")
    card = valid(text)
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
    expected = {
        path.relative_to(ROOT).as_posix() for folder in folders for path in RECIPES.glob(f"{folder}/*_{model}.yaml")
    }
    assert set(commands) == expected and len(commands) == len(expected)


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
    last = json.loads((folder / "train_results.json").read_text())["last_mean_iou"]
    assert rows_of(text, "evaluation")[0] == ["last", "20", f"{100 * last:.2f}"]


def test_check_notices_a_changed_card(script, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "model_cards"
    shutil.copytree(CARDS, copy)
    for name in ("ROOT", "CARDS"):
        monkeypatch.setattr(script, name, tmp_path if name == "ROOT" else copy)
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    assert start(script, "--check") == 0
    path = copy / "allspark-b5-coco.md"
    path.write_text(path.read_text().replace("49.56", "59.56"))
    assert start(script, "--check") == 1
    assert "model_cards/allspark-b5-coco.md is not as rendered now" in capsys.readouterr().out
    assert start(script, "--committed") == 0 and start(script, "--check") == 0
    assert "59.56" in (copy / "allspark-b5-coco.old.md").read_text()


def test_script_on_a_model_and_on_recipes(script, tmp_path, capsys):
    folder = tmp_path / "out"
    folder.mkdir()
    write_records(folder, run=run_of())
    assert start(script, "--model", folder, "--repo_id", "jane/street", "--example_images", "https://a.org/b.png") == 0
    assert valid((folder / "README.md").read_text()).data["widget"][0]["example_title"] == "b"
    recipe = "scripts/recipes/paper/coco/925_allspark_b5.yaml"
    assert start(script, recipe, "--output_file", tmp_path / "mine.md") == 0
    text = (tmp_path / "mine.md").read_text()
    assert "# mine\n" in text and "| COCO 2017, 925 | 45.48 |" in text and "widget" not in valid(text).data
    assert capsys.readouterr().out.splitlines() == [str(folder / "README.md"), str(tmp_path / "mine.md")]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], r"Give one of --model OUT, recipes, --committed and --check"),
        (["--model", "x", "--check"], r"Give one of --model OUT"),
        (["scripts/recipes/demo.yaml"], r"Recipes need --output_file"),
        (["--check", "--repo_id", "a/b"], r"--repo_id belongs to --model"),
        (["--model", "nowhere"], r"nowhere holds no config.json"),
        (
            ["scripts/recipes/demo.yaml", "--output_file", "x.md"],
            r"The first line of scripts/recipes/demo.yaml does not",
        ),
        (
            [
                f"{RECIPES}/coco/925_allspark_b5.yaml",
                f"{RECIPES}/cityscapes/744_allspark_b5.yaml",
                "--output_file",
                "x",
            ],
            r"differ in crop_size, data_dir, .*: render a card for each",
        ),
    ],
)
def test_mistakes(script, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        start(script, *arguments)

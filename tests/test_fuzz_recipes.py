"""Recipes, studies and command lines of any content: what they say arrives, or one sentence says why not."""

import json
import math
from datetime import date
from pathlib import Path

import pytest
import yaml
from fuzzing import JSON, NUMBERS, SCALARS, TEXT, fuzz, is_one_sentence
from hypothesis import example, given
from hypothesis import strategies as st

from allspark_hf import AllSparkTrainingArguments
from allspark_hf.cli.arguments import ModelArguments, parse_arguments
from allspark_hf.data import DataArguments
from allspark_hf.studies.study import read_study
from allspark_hf.training.recipes import MAX_ENTRIES, read_yaml, recipe_arguments, resolve_recipe


TYPES = (DataArguments, ModelArguments)
FIELDS = st.sampled_from([name for one in TYPES for name in one.__dataclass_fields__] + ["base", "nothing"])
TAGS = ("python/object/apply:os.system [touch it_ran]", "python/object/new:list []", "int ''", "bool x", "float x")
TAGS += ("timestamp x", "timestamp 2020-99-99", "binary x", "set {a}", "omap [a: 1]")
MARKS = ("&a [*a]", "&a ", "*a", "*b", "<<: 3", "- ", "? ", "a: b: c", "a: ", "{[1]: 2}", "0x", "---\n", "...", ", ")
YAML_PIECES = st.sampled_from([*(f"!!{tag}" for tag in TAGS), *MARKS, *"'{[]}:%\t\n"])
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))
BOMBS = [
    "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)),
    MERGES,
    "[" * 20_000,
    "{a: " * 20_000,
    "a: &a\n  b: *a\n",
    "seed: 1\nseed: 2\n",
    "x: " + "9" * 5000,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("recipes")


@pytest.fixture
def inside(folder, monkeypatch):
    """Where a tag that runs a command would leave its mark."""
    monkeypatch.chdir(folder)
    yield folder
    assert not (folder / "it_ran").exists()


def read(folder: Path, content: bytes) -> dict | None:
    """The entries of a recipe; None if it was refused with one sentence that names the file."""
    path = folder / "recipe.yaml"
    path.write_bytes(content)
    try:
        return resolve_recipe(path)
    except (OSError, ValueError) as error:
        assert is_one_sentence(error) and "recipe.yaml" in str(error)
        return None


@fuzz(30)
@given(
    st.binary(max_size=60)
    | st.lists(YAML_PIECES | TEXT, max_size=9).map(lambda all: "".join(all).encode("utf-8", "replace"))
)
@example(b"\xff\xfea: 1")
@example("\ufeffseed: 3".encode())
def test_any_bytes(inside, content):
    entries = read(inside, content)
    if entries is not None:
        assert all(isinstance(text, str) for text in recipe_arguments(entries))


@pytest.mark.parametrize("content", BOMBS, ids=range(len(BOMBS)))
def test_bombs(inside, content):
    entries = read(inside, content.encode())
    if content is MERGES and entries is not None:  # from PyYAML 6.0.4 on, a merge takes each key once
        assert entries == {f"a{i}": {"x": 1} for i in range(12)}
    else:
        assert entries is None


def test_aliases_that_multiply_little_are_fine(tmp_path):
    (tmp_path / "r.yaml").write_text("a: &a [1, 2]\nb: *a\nc: &c {d: 1}\n")
    assert resolve_recipe(tmp_path / "r.yaml") == {"a": [1, 2], "b": [1, 2], "c": {"d": 1}}
    (tmp_path / "long.json").write_text(json.dumps({"a": list(range(MAX_ENTRIES))}))
    with pytest.raises(ValueError, match="more than 10000 entries"):
        read_yaml(tmp_path / "long.json")


def means(value: object, text: list[str]) -> bool:
    """Whether the words of a command line say what a value does."""
    if isinstance(value, list):
        return text == list(map(str, value))
    if isinstance(value, dict):
        return repr(json.loads(text[0])) == repr(value)
    return text == [str(value)]


@fuzz(30)
@given(st.dictionaries(FIELDS | TEXT, JSON | st.dates(), max_size=5))
@example({"learning_rate": -1e-05})
@example({"output_dir": "--push_to_hub"})
@example({"a": ["--push_to_hub"]})
@example({"a": [[1]]})
@example({"a": {"b": math.nan}})
@example({"base": ["x"]})
@example({1: 2})
def test_any_entries(folder, entries):
    """Written as YAML and read back, every entry stands on the command line as itself, and nothing else does."""
    try:
        text = yaml.safe_dump(entries, allow_unicode=True, sort_keys=False).encode()
    except (UnicodeEncodeError, yaml.YAMLError):
        return
    found = read(folder, text)
    if found is None:
        return
    assert repr(found) == repr({name: value for name, value in entries.items() if name != "base"})
    for name, value in found.items():
        words = recipe_arguments({name: value})
        if value is None:
            assert words == []
        elif words[0] == f"--{name}":
            assert means(value, words[1:]) and not any(word.startswith("--") for word in words[1:])
        else:
            head, _, rest = words[0].partition("=")
            assert head == f"--{name}" and means(value, [rest]) and len(words) == 1
        assert not isinstance(value, date) or len(words) == 2


@fuzz(15)
@given(st.dictionaries(FIELDS, SCALARS | st.lists(NUMBERS, max_size=3), max_size=4))
@example({"data_dir": "x", "labeled_fraction": math.nan})
@example({"data_dir": "x", "hidden_sizes": [-1e-05]})
@example({"data_dir": "x", "split_seed": -3})
def test_any_arguments(folder, entries):
    """From a recipe to dataclasses, as a script goes: their values, or one sentence."""
    path = folder / "arguments.json"
    path.write_text(json.dumps(entries))
    try:
        data, model = parse_arguments(TYPES, [str(path)])
    except (OSError, ValueError) as error:
        assert is_one_sentence(error)
    else:
        assert all(hasattr(data, name) or hasattr(model, name) for name in entries if name != "base")


@fuzz(20)
@given(
    st.fixed_dictionaries(
        {"title": JSON, "rows": JSON, "columns": JSON},
        optional={"recipe": JSON, "arguments": JSON, "seeds": JSON, "seed_arguments": JSON, "other": JSON},
    )
)
@example({"title": "a", "rows": {"r": {"x": [[1]]}}, "columns": {"c": None}})
@example({"title": "a", "rows": {"r": 3}, "columns": {"c": {}}})
@example({"title": "a", "rows": {"r": {}}, "columns": {"c": {}}, "seeds": 3})
@example({"title": "a", "rows": {"r": {}}, "columns": {"c": {}}, "seeds": [[1]]})
@example({"title": "a", "rows": {"r": {}}, "columns": {"c": {}}, "arguments": "x"})
@example({"title": "a", "rows": {"r": {}}, "columns": {"c": {}}, "seeds": [1, 2]})
def test_any_study(folder, content):
    path = folder / "study.yaml"
    path.write_text(json.dumps(content))
    try:
        study = read_study(path)
    except (OSError, ValueError) as error:
        assert is_one_sentence(error)
    else:
        cells = list(study.cells())
        assert len(cells) == len(study.rows) * len(study.columns) * len(study.seeds)
        assert all(isinstance(word, str) for cell in cells for word in recipe_arguments(cell.arguments))


def test_training_arguments_of_a_recipe(tmp_path):
    """Negative numbers as YAML writes small ones, which argparse takes for options where they stand alone."""
    (tmp_path / "r.yaml").write_text(f"output_dir: {tmp_path}\nuse_cpu: true\nmax_grad_norm: -1.0e-05\n")
    (args,) = parse_arguments((AllSparkTrainingArguments,), [str(tmp_path / "r.yaml")])
    assert args.max_grad_norm == -1e-05

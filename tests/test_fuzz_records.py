"""Records that somebody edited: a card, or one sentence that names the file; and nothing in them becomes markup."""

import copy
import html.parser
import json
import re
from pathlib import Path

import pytest
import yaml
from card_folders import CLASSES, RUN, config_of, evaluation_of, history_of, run_of, write_records
from fuzzing import TEXT, fuzz, is_one_sentence
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from allspark_hf.publishing.card import is_as_rendered, write_model_card
from allspark_hf.publishing.markdown import code, code_block, escape, table
from allspark_hf.publishing.outdated import outdated_files
from allspark_hf.publishing.records import read_records


NAMES = ("config.json", "run_record.json", "trainer_state.json")
EXPORT = {"files": {"model.onnx": 4e6}, "differences": [{"max_difference": 1e-6}], "cost": {"int8": {"mean_iou": 0.4}}}
ATTACKS = [
    "<script>it_ran()</script>",
    "](javascript:it_ran())",
    "a\n\n<script>it_ran()</script>",
    "`<img src=x onerror=it_ran()>",
    "\\|<img src=x onerror=it_ran()>|`",
    "``` \n<script>it_ran()</script>",
    "</summary></details><script>it_ran()</script>",
    "--> <script>it_ran()</script> <!--",
    "\n---\nlicense: mit\n---\n",
    "{{ it_ran() }}{% raw %}",
    "\\`<script>it_ran()</script>\\`",
    "a | b\n|---|---|",
    "x) onerror=it_ran() (",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, object]:
    """The content of every record of a run, as it should be."""
    folder = write_records(tmp_path_factory.mktemp("whole"), run=run_of())
    contents = {name: json.loads((folder / name).read_text()) for name in NAMES}
    evaluation = evaluation_of(CLASSES, "labeled", 0.7)
    return {**contents, "eval_train.json": evaluation, "onnx/export.json": EXPORT}


def card_of(folder: Path, contents: dict) -> str | None:
    """The card, or None if the records were refused, with one sentence that names the file."""
    for name, content in contents.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    try:
        return write_model_card(folder).read_text(encoding="utf-8")
    except ValueError as error:
        assert type(error) is ValueError and is_one_sentence(error) and ".json" in str(error), error
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("records")


# ---- Any content ----


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("config.json", ("id2label",), ["a"]),
        ("config.json", ("id2label", "x"), "a"),
        ("config.json", ("crop_size",), "wide"),
        ("config.json", ("palette",), [[1, 2], [3, 4], [5, 6]]),
        ("config.json", ("hidden_sizes",), 3),
        ("run_record.json", (), ["no", "object"]),
        ("run_record.json", ("data",), "street"),
        ("run_record.json", ("training", "metric_for_best_model"), 3),
        ("run_record.json", ("arguments",), [1]),
        ("run_record.json", ("versions",), "1.0"),
        ("run_record.json", ("evaluation", "eval_crop_size"), 10**400),
        ("run_record.json", ("metrics", "eval"), [0.5]),
        ("run_record.json", ("model", "started_from"), "\ud800"),
        ("trainer_state.json", ("log_history",), "x"),
        ("trainer_state.json", ("log_history", 0), 10**400),
        ("eval_train.json", ("per_class",), [{"iou": 0.5}]),
        ("eval_train.json", ("metrics",), ["mean_iou"]),
        ("onnx/export.json", ("files",), ["model.onnx"]),
        ("onnx/export.json", ("differences",), [{"max_difference": "small"}]),
    ],
)
def test_an_edited_record_gives_a_card_or_one_sentence(folder, whole, name, place, value):
    content = copy.deepcopy(whole[name]) if place else value
    inside = content
    for key in place[:-1]:
        inside = inside[key]
    if place:
        inside[place[-1]] = value
    text = card_of(folder, {**whole, name: content})
    if text is not None:
        assert is_as_rendered(text) and yaml.safe_load(text.split("---\n")[1])["library_name"] == "transformers"


@pytest.mark.parametrize("name", [*NAMES, "eval_train.json", "onnx/export.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b"{", b"null", b'{"a": NaN}'])
def test_files_that_are_no_records(folder, whole, name, content):
    text = card_of(folder, {**whole, name: content})
    assert text is None or name == "eval_train.json" or b"NaN" in content
    outdated_files(folder)


def test_numbers_that_are_none_are_not_recorded(folder, whole):
    """A run that diverged writes NaN; its card is made, without them."""
    history = [
        {name: float("nan") if name != "epoch" else value for name, value in entry.items()}
        for entry in history_of(CLASSES)
    ]
    last = {name: float("nan") for name in whole["run_record.json"]["metrics"]["eval"]}
    run = whole["run_record.json"] | {"metrics": {"eval": last}}
    contents = {**whole, "trainer_state.json": {"log_history": history}, "run_record.json": run}
    text = card_of(folder, contents)
    assert "Nothing about the pseudo-labels was recorded." in text and not re.search(r"\bnan\b", text)


def test_a_missing_section_is_said_to_be_missing(folder, whole):
    for section in RUN:
        text = card_of(folder, {**whole, "run_record.json": {k: v for k, v in RUN.items() if k != section}})
        assert text is not None, section
        again = card_of(folder, {**whole, "run_record.json": {**RUN, section: None}})
        assert again == text, section


def test_other_people_s_files_are_let_be(folder, whole):
    text = card_of(folder, {**whole, "notes.json": ["anything"], "more.json": {"metrics": 3, "data": "x"}})
    assert text is not None and len(read_records(folder).evaluations) == 1


# ---- Markup ----


class Reader(html.parser.HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.shown = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.shown.append(data)


def rendered(markdown: str) -> Reader:
    """Markdown as GitHub and the Hub read it: with tables, and with HTML let through."""
    reader = Reader()
    reader.feed(MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown))
    return reader


ALLOWED = {"h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "code", "pre", "ul", "li", "a", "em"}
ALLOWED |= {"details", "summary", "strong", "img"}


def assert_harmless(text: str):
    page = rendered(re.sub(r"\A---\n.*?\n---\n", "", text, count=1, flags=re.DOTALL))
    assert set(page.tags) <= ALLOWED, set(page.tags) - ALLOWED
    for name, value in page.attributes:
        assert name in ("href", "src", "alt", "class", "style"), (name, value)
        assert not value.lower().strip().startswith(("javascript:", "data:", "vbscript:"))
    assert page.attributes.count(("src", "x")) == 0


@pytest.mark.parametrize("attack", ATTACKS, ids=range(len(ATTACKS)))
def test_no_text_of_a_record_becomes_markup(folder, whole, attack):
    """Every text of every record at once, names of classes and of mappings included."""

    def attacked(content):
        if isinstance(content, dict):
            return {key: attacked(value) for key, value in content.items()}
        if isinstance(content, list):
            return [attacked(value) for value in content]
        return attack if isinstance(content, str) else content

    contents = {name: attacked(content) for name, content in whole.items()}
    names = [attack, "sky", attack + "2"]
    contents["config.json"] = config_of(names)
    contents["run_record.json"]["versions"] = {attack: attack}
    contents["run_record.json"]["arguments"] = {attack: {attack: attack}}
    contents["run_record.json"]["data"] |= {"validation": {attack: 3}, "dataset_config_name": attack}
    for on_hub, base in ((False, attack), (True, f"nvidia/{' '.join(attack.split())}")):
        contents["run_record.json"]["data"]["on_hub"] = on_hub
        contents["config.json"]["base_weights"] = base
        text = card_of(folder, contents)
        assert text is not None
        assert_harmless(text)
        metadata = yaml.safe_load(re.match(r"\A---\n(.*?)\n---\n", text, re.DOTALL)[1])
        assert metadata["license"] == ("other" if on_hub else "unknown")
        assert metadata["pipeline_tag"] == "image-segmentation"


def test_a_backslash_before_a_pipe():
    """GitHub's reading of a table ends the cell there, within a code span too; markdown-it's, used here, does not."""
    assert code("a\\|<b>") == r"<code>a\\\|&lt;b&gt;</code>"


@fuzz(30)
@given(TEXT | st.sampled_from(ATTACKS) | st.text(alphabet="\\`|<>a&*_[]()!~$#\n \t-=", max_size=14))
@example("a\\|`<b>")
@example("\\")
def test_escaped_text_shows_as_it_is(text):
    plain = " ".join(text.split())
    for cell, elements in ((escape(text), set()), (code(text), {"code"})):
        page = rendered(table(["a", "b"], [[cell, "end"]]))
        assert set(page.tags) - {"table", "thead", "tbody", "tr", "th", "td"} <= elements, cell
        assert page.tags.count("td") == 2
        if "\0" not in text and "\\" not in text:
            shown = "".join(page.shown).split("\n")
            assert plain in "".join(page.shown) or not plain, (cell, shown)
    block = rendered(code_block(text, "bash"))
    assert block.tags == ["pre", "code"]

"""Records of any content: a card with what is usable, or one sentence; and nothing in them becomes markup."""

import copy
import html.parser
import json
import re
from pathlib import Path

import pytest
import yaml
from card_folders import CLASSES, RUN, config_of, evaluation_of, history_of, run_of, write_records
from fuzzing import FACTOR, JSON, TEXT, fuzz, is_one_sentence
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from allspark_hf.publishing.card import is_as_rendered, write_model_card
from allspark_hf.publishing.card_records import read_records
from allspark_hf.publishing.markdown import code, code_block, escape, table
from allspark_hf.publishing.outdated import outdated_files


NAMES = ("config.json", "run_record.json", "trainer_state.json", "train_results.json", "eval_results.json")
ALL_NAMES = (*NAMES, "eval_train.json", "onnx/export.json")
EXPORT = {"files": {"model.onnx": 4e6}, "differences": [{"max_difference": 1e-6}], "cost": {"int8": {"mean_iou": 0.4}}}
ATTACKS = [
    "<script>it_ran()</script>",
    "<img src=x onerror=it_ran()>",
    "](javascript:it_ran())",
    "[a](javascript:it_ran())",
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
    "&lt;script&gt;",
    "<!-- it_ran -->",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, object]:
    """The content of every record of a run, as it should be."""
    folder = write_records(tmp_path_factory.mktemp("whole"), run=run_of())
    contents = {name: json.loads((folder / name).read_text()) for name in NAMES}
    evaluation = evaluation_of(CLASSES, "labeled", 0.7)
    return {**contents, "eval_train.json": evaluation, "onnx/export.json": EXPORT}


def leaves(content, path=()):
    if isinstance(content, dict | list) and content:
        for key in content if isinstance(content, dict) else range(len(content)):
            yield from leaves(content[key], (*path, key))
    yield path


def replaced(content, path, value):
    """A copy with another value at one place; the whole content for an empty path."""
    if not path:
        return value
    content = copy.deepcopy(content)
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return content


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


@pytest.mark.parametrize("name", ALL_NAMES)
def test_any_value_at_any_place(folder, whole, name):
    places = [place for place in leaves(whole[name]) if name != "config.json" or place]

    @fuzz(5)
    @given(st.sampled_from(places), JSON)
    @example(places[-1], None)
    @example((), [])
    def check(place, value):
        text = card_of(folder, {**whole, name: replaced(whole[name], place, value)})
        if text is not None:
            assert is_as_rendered(text) and "## Limits" in text
            assert yaml.safe_load(text.split("---\n")[1])["library_name"] == "transformers"

    check()


@pytest.mark.parametrize("name", ALL_NAMES)
def test_another_kind_of_value_at_every_place(folder, whole, name):
    """Systematically what the test above draws: at each place a value of the kind that is furthest from its own."""
    for place in leaves(whole[name]):
        if place[:1] == ("log_history",) and len(place) > 1 and place[1] > 2:
            continue  # entries like those before
        own = whole[name]
        for key in place:
            own = own[key]
        others = {dict: [[], None], list: [{}, "x"], str: [[1], 3]}.get(type(own), ["x", -(10**400), None])
        for value in others[: 1 if FACTOR == 1 else None]:
            card_of(folder, {**whole, name: replaced(whole[name], place, value)})


@pytest.mark.parametrize("name", ALL_NAMES)
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b"{", b"null", b"9" * 5000, b'{"a": NaN}'])
def test_files_that_are_no_records(folder, whole, name, content):
    card_of(folder, {**whole, name: content})
    outdated_files(folder)


def test_numbers_that_are_none_are_not_recorded(folder, whole):
    """A run that diverged writes NaN; its card is made, without them."""
    history = [
        {name: float("nan") if name != "epoch" else value for name, value in entry.items()}
        for entry in history_of(CLASSES)
    ]
    last = {name: float("nan") for name in whole["eval_results.json"]}
    contents = {**whole, "trainer_state.json": {"log_history": history}, "eval_results.json": last}
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
    contents["config.json"] = config_of(names, base_weights=attack)
    contents["run_record.json"]["versions"] = {attack: attack}
    contents["run_record.json"]["arguments"] = {attack: {attack: attack}}
    contents["run_record.json"]["data"] |= {"validation": {attack: 3}, "dataset_config_name": attack}
    for on_hub in (False, True):
        contents["run_record.json"]["data"]["on_hub"] = on_hub
        text = card_of(folder, contents)
        assert text is not None
        assert_harmless(text)
        metadata = yaml.safe_load(re.match(r"\A---\n(.*?)\n---\n", text, re.DOTALL)[1])
        assert metadata["license"] == "unknown" and metadata["pipeline_tag"] == "image-segmentation"


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

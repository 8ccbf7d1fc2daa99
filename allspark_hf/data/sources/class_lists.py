"""Reads lists of classes as programs and people write them: of each class the name, and index and color if given."""

import csv
import json
import logging
import re
from typing import Any, NamedTuple

import yaml

from ...utils.text import one_line


logger = logging.getLogger(__name__)

Color = tuple[int, int, int]

IGNORED_NAME = "__ignore__"  # LabelMe's name of ignored pixels; its index there is -1, which masks store as 255
IGNORED_INDICES = (-1, 255)
SHOWN_INDICES = 20

_THREE_NUMBERS = re.compile(r"^(?P<name>.*\S)[\s,]+(?P<red>-?\d+)[\s,]+(?P<green>-?\d+)[\s,]+(?P<blue>-?\d+)$")
_HEX_COLOR = re.compile(r"^(?P<name>.*\S)\s+#(?P<hex>[0-9a-fA-F]{6})$")
_CVAT = re.compile(r"^(?P<name>[^:]+):(?P<color>(?:\d+,\d+,\d+)?):[^:]*:[^:]*$")
_INDEX_FIRST = re.compile(r"^(?P<index>-?\d{1,9})(?P<mark>\s*[:,;=]\s*|[.)]\s+|\s+-\s+|\s+)(?P<rest>\S.*)$")
_COLOR_FIRST = re.compile(r"^(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})[\s,]+([^\d\s].*)$")
_INDEX_LAST = re.compile(r"^(?P<name>\S.*?)\s*[:,;=\t]\s*(?P<index>-?\d{1,9})$")
# Names of the columns of a table, in lower case and with letters and digits alone.
_INDEX_COLUMNS = ("pixelvalue", "value", "index", "idx", "id", "classid", "labelid", "classindex", "maskvalue")
_NAME_COLUMNS = ("class", "classname", "name", "label", "labelname", "category")
_COLOR_COLUMNS = (("r", "g", "b"), ("red", "green", "blue"))
_WHOLE_COLOR_COLUMNS = ("color", "colour", "rgb", "hex")
_COLUMNS = {*_INDEX_COLUMNS, *_NAME_COLUMNS, *sum(_COLOR_COLUMNS, ()), *_WHOLE_COLOR_COLUMNS}


class Entry(NamedTuple):
    """One class of a list; `index` and `color` are `None` where the list does not say."""

    name: str
    index: int | None = None
    color: Color | None = None


def parse_text(text: str, is_table: bool = False) -> list[Entry]:
    """
    Reads text with a class on each line: a name alone, `name r g b`, `name #rrggbb` or `r g b name`; on every line
    `0: name`, `0 name`, `0,name` or `name,0`; CVAT's `name:r,g,b:parts:actions`; or a table in CSV whose first line
    names its columns, as Roboflow writes it. Blank lines, and comments that begin with `#`, do not count.

    Args:
        text (`str`): the text.
        is_table (`bool`, *optional*, defaults to `False`): whether it is that of a CSV or TSV file: quotes are no part
            of a name, and a first line of nothing but names of columns, such as `name`, is no class.

    Raises:
        ValueError: if only some lines have an index, or a line of a table has too few or too many cells.
    """
    lines = {number: line.strip() for number, line in enumerate(text.splitlines(), 1)}
    lines = {number: re.sub(r"\s#\s.*", "", line).strip() for number, line in lines.items() if line[:1] != "#"}
    lines = {number: line for number, line in lines.items() if line}
    if not lines:
        return []
    if columns := _columns(next(iter(lines.values())), is_table):
        return _from_table(lines, columns)
    if is_table:
        lines = {number: _unquoted(line) for number, line in lines.items()}
    if matches := _all(_CVAT, lines):
        return [Entry(match["name"].strip(), color=_color(match["color"].split(","))) for match in matches]
    if matches := _all(_COLOR_FIRST, lines):
        return [Entry(name, color=_color(color)) for *color, name in (match.groups() for match in matches)]
    if matches := _all(_INDEX_FIRST, lines):
        return [parse_line(match["rest"])._replace(index=int(match["index"])) for match in matches]
    if (matches := _all(_INDEX_LAST, lines)) and not any(map(_THREE_NUMBERS.match, lines.values())):
        return [Entry(match["name"], int(match["index"])) for match in matches]
    _require_all_or_none(lines)
    return [parse_line(line) for line in lines.values()]


def _require_all_or_none(lines: dict[int, str]):
    """Raises `ValueError` if only some lines begin with an index; `2 wheeler` is a name."""
    numbered = {number: _INDEX_FIRST.match(line) for number, line in lines.items()}
    marked = [number for number, match in numbered.items() if match and match["mark"].strip()]
    if marked:
        bare = next(number for number, match in numbered.items() if not match)
        raise ValueError(
            f"Line {marked[0]} ({lines[marked[0]]}) has an index and line {bare} ({lines[bare]}) has none; give every "
            "class its index, or none."
        )


def parse_line(line: str) -> Entry:
    """A name, with its color if one follows."""
    if match := _HEX_COLOR.match(line):
        return Entry(match["name"], color=tuple(bytes.fromhex(match["hex"])))
    if match := _THREE_NUMBERS.match(line):
        return Entry(match["name"].rstrip(","), color=(int(match["red"]), int(match["green"]), int(match["blue"])))
    return Entry(line)


def _all(pattern: re.Pattern, lines: dict[int, str]) -> list[re.Match] | None:
    matches = [pattern.match(line) for line in lines.values()]
    return matches if all(matches) else None


def _color(parts: list[str]) -> Color | None:
    return tuple(map(int, parts)) if any(part.strip() for part in parts) else None


def _columns(line: str, is_table: bool) -> dict[str, Any] | None:
    """
    The places of the columns `index`, `name`, `r`, `g` and `b`, or `color`, that the first line of a table names, the
    number of `cells`, and the `delimiter`; `None` if the line is not that of a table.
    """
    delimiter = _delimiter(line)
    words = [re.sub(r"[\W_]", "", cell.lower()) for cell in _cells(line, delimiter)]
    index = next((place for place, word in enumerate(words) if word in _INDEX_COLUMNS), None)
    name = next((place for place, word in enumerate(words) if word in _NAME_COLUMNS), None)
    color = next((names for names in _COLOR_COLUMNS if set(names) <= set(words)), ())
    if name is None or (index is None and not color and not (is_table and _COLUMNS.issuperset(words))):
        return None
    columns = {"name": name} | {part: words.index(word) for part, word in zip("rgb", color, strict=False)}
    whole = next((place for place, word in enumerate(words) if word in _WHOLE_COLOR_COLUMNS), None)
    if is_table and not color and whole is not None:
        columns["color"] = whole
    return columns | ({} if index is None else {"index": index}) | {"cells": len(words), "delimiter": delimiter}


def _delimiter(line: str) -> str:
    return next((mark for mark in "\t;" if mark in line), ",")


def _unquoted(line: str) -> str:
    cells = _cells(line, _delimiter(line))
    return (" " if cells[-1].startswith("#") else _delimiter(line)).join(cells)


def _cells(line: str, delimiter: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]


def _from_table(lines: dict[int, str], columns: dict[str, Any]) -> list[Entry]:
    entries = []
    for number, line in list(lines.items())[1:]:
        cells = _cells(line, columns["delimiter"])
        if len(cells) != columns["cells"]:
            raise ValueError(
                f"Line {number} ({line}) has {len(cells)} cells, but the first line names {columns['cells']}; put a "
                "name with a comma into quotes."
            )
        numbers = {key: cells[place] for key, place in columns.items() if key in ("index", "r", "g", "b")}
        for key, cell in numbers.items():
            if not re.fullmatch(r"-?\d{1,9}", cell):
                raise ValueError(f"Line {number} ({line}) has {cell!r} where a whole number ({key}) is needed.")
        index = int(numbers.pop("index")) if "index" in numbers else None
        name, color = cells[columns["name"]], _color(list(numbers.values()))
        if "color" in columns:
            color = parse_line(f"{name} {cells[columns['color']]}").color
        entries.append(Entry(name, index, color))
    return entries


def parse_json(text: str) -> tuple[list[Entry], Any]:
    """Reads JSON by [`parse_content`]; ValueError if a key occurs twice."""
    return parse_content(json.loads(text, object_pairs_hook=_without_duplicates))


def parse_yaml(text: str) -> tuple[list[Entry], Any]:
    """Reads YAML by [`parse_content`]; ValueError if a key occurs twice. No tag can create an object."""
    try:
        return parse_content(yaml.load(text, _Loader))
    except yaml.YAMLError as error:
        raise ValueError(f"This is not valid YAML ({one_line(error)}); correct the file.") from error


def _without_duplicates(pairs: list[tuple]) -> dict:
    content = dict(pairs)
    if len(content) != len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f'The key "{double}" occurs twice; keep one.')
    return content


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node, deep=False):
        content = super().construct_mapping(node, deep)
        if len(content) != len(node.value):
            _without_duplicates([(self.construct_object(key), None) for key, _ in node.value])
        return content


def parse_content(content: Any) -> tuple[list[Entry], Any]:
    """
    Reads a list of names; `{"names": ..., "colors": [...]}`, colors optional; `{0: name}` or `{name: 0}`, alone or
    under `names`, `id2label` or `label2id`; or a list of objects with a name, perhaps with `id` and `color`, alone or
    under `categories`, `classes` or `labels`.

    Returns:
        `tuple[list[Entry], Any]`: the classes, and the value of `colors`, or `None`.

    Raises:
        ValueError: if the content has none of these forms.
    """
    for key in ("names", "id2label", "label2id", "categories", "classes", "labels"):
        if isinstance(content, dict) and key in content:
            if not isinstance(content[key], list | dict):
                raise ValueError(f'"{key}" must be a list, in the order of the class indices, or have them as keys.')
            return parse_content(content[key])[0], content.get("colors")
    if isinstance(content, dict) and content:
        if all(re.fullmatch(r"-1|0|[1-9][0-9]{0,8}", str(key)) for key in content):
            return [Entry(name, int(key)) for key, name in content.items()], None
        if all(type(value) is int for value in content.values()):
            return [Entry(name, index) for name, index in content.items()], None
    if isinstance(content, list) and content and all(isinstance(entry, dict) for entry in content):
        return [_from_object(number, entry) for number, entry in enumerate(content)], None
    if isinstance(content, list) and not any(isinstance(entry, dict | list) for entry in content):
        return [Entry(name) for name in content], None
    raise ValueError(
        'The file must hold a list of names, {"names": [...], "colors": [...]}, {"0": "first name", ...} or '
        '[{"name": ..., "color": [r, g, b]}, ...]; it is none of these.'
    )


def _from_object(number: int, content: dict) -> Entry:
    if "name" not in content:
        raise ValueError(f'Class {number} has no "name"; give every entry one.')
    index = next((content[key] for key in ("id", "index", "value") if type(content.get(key)) is int), None)
    return Entry(content["name"], index, content.get("color"))


def in_order(entries: list[Entry]) -> list[Entry]:
    """
    The classes in the order of their indices, without entries for ignored pixels.

    Raises:
        ValueError: if the indices do not begin at 0 or have gaps, or only some classes have one.
    """
    numbered = [entry for entry in entries if entry.index is not None]
    if not numbered:
        places = [place for place, entry in enumerate(entries) if entry.name == IGNORED_NAME]
        if places not in ([], [0]):
            raise ValueError(f"{IGNORED_NAME} is entry {places[-1] + 1} of the list, but it must be the first one.")
        return entries[len(places) :]
    if len(numbered) < len(entries):
        raise ValueError(
            f"Only {len(numbered)} of the {len(entries)} classes have an index; give every class its own."
        )
    by_index: dict[int, Entry] = {}
    for entry in entries:
        if entry.index in by_index:
            both = f"{by_index[entry.index].name!r} and {entry.name!r}"
            raise ValueError(f"{both} have the index {entry.index}; give every class its own.")
        by_index[entry.index] = entry
    for index in IGNORED_INDICES:
        if index in by_index and index - 1 not in by_index:
            logger.info("%s, with the index %d, is no class: its pixels are ignored.", by_index[index].name, index)
            del by_index[index]
    _require_no_gaps(by_index)
    return [by_index[index] for index in sorted(by_index)]


def _require_no_gaps(by_index: dict[int, Entry]):
    ignored = [index for index, entry in by_index.items() if entry.name == IGNORED_NAME]
    missing = sorted(set(range(len(by_index))) - set(by_index))
    if not missing and not ignored:
        return
    values = sorted(set(by_index) - set(ignored))
    shown = " ".join(map(str, values))
    if len(values) > SHOWN_INDICES:
        is_run = values == [*range(values[0], values[-1] + 1)]
        shown = f"$(seq {values[0]} {values[-1]})" if is_run else " ".join(map(str, values[:SHOWN_INDICES])) + " ..."
    option = f"--mask_values {shown}" + "".join(f" --ignored_mask_values {index}" for index in ignored)
    fix = f"number them so, or, if the masks hold these values, list the names alone and give {option}."
    if missing:
        raise ValueError(
            f"The {len(by_index)} class ids must be 0 to {len(by_index) - 1} without gaps, but {missing[0]} is "
            f"missing and {max(by_index)} is the highest; {fix}"
        )
    raise ValueError(f"{IGNORED_NAME} has the index {ignored[0]}, which is that of a class; {fix}")

"""The names of the classes, and their colors in pictures, read from a small file."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

from ...utils.files import read_text
from .class_lists import Color, Entry, in_order, parse_json, parse_text, parse_yaml


logger = logging.getLogger(__name__)

CLASS_FILES = ("classes.json", "classes.txt")
# Files of Roboflow, CVAT, LabelMe, labelme2voc, transformers and YOLO.
FOREIGN_CLASS_FILES = ("_classes.csv", "labelmap.txt", "labels.txt", "class_names.txt", "id2label.json", "data.yaml")
PARSERS = {".json": parse_json, ".yaml": parse_yaml, ".yml": parse_yaml}
TABLE_SUFFIXES = (".csv", ".tsv")
TEXT_SUFFIXES = (".txt", *TABLE_SUFFIXES, ".names")


@dataclass
class Classes:
    """
    The classes of a data set; the position in the list is the class index.

    Args:
        names (`list[str]`): one name per class, each used once, none empty.
        colors (`list[tuple[int, int, int]]`, *optional*): one red, green, blue triple per class, each 0 to 255, for
            pictures of the result.

    Raises:
        ValueError: if there is no class, a name is empty, no Unicode text or used twice (names that differ only in
            blanks and underscores, or in how accents are stored, count as one), the two lists differ in length, or a
            color is not three whole numbers from 0 to 255.
    """

    names: list[str]
    colors: list[Color] | None = None

    def __post_init__(self):
        if not self.names:
            raise ValueError("The list of classes is empty; name at least one class.")
        # The name of a metric is that of its class, with underscores for blanks, so two equal ones would become one.
        by_metric: dict[str, int] = {}
        for index, name in enumerate(self.names):
            if not isinstance(name, str):  # YAML reads no and on as truth values
                raise ValueError(f"Class {index} has the name {name!r}, which is no text; put it into quotes.")
            if not name.strip():
                raise ValueError(f"Class {index} has the name {name!r}; every class needs a name that is not empty.")
            try:
                name.encode("utf-8")
            except UnicodeEncodeError:
                raise ValueError(f"Class {index} has the name {name!a}, which is no Unicode text.") from None
            first = by_metric.setdefault("_".join(normalize("NFC", name).split()), index)
            if self.names[first] == name and first != index:
                raise ValueError(f"The classes {first} and {index} are both named {name!r}; give each its own name.")
            if first != index:
                raise ValueError(
                    f"The classes {self.names[first]!r} and {name!r} differ only in blanks and underscores, or in how "
                    "accents are stored, so that their metrics would share a name; rename one."
                )
        if self.colors is not None:
            self.colors = self._checked_colors()

    def _checked_colors(self) -> list[Color]:
        if not isinstance(self.colors, list | tuple) or len(self.colors) != len(self.names):
            counted = f"{len(self.colors)} colors" if isinstance(self.colors, list | tuple) else repr(self.colors)
            raise ValueError(
                f"There are {len(self.names)} class names but {counted}; give a list with a color of every class, or "
                "none."
            )
        for name, color in zip(self.names, self.colors, strict=True):
            parts = color if isinstance(color, list | tuple) else []
            if len(parts) != 3 or not all(type(part) is int and 0 <= part <= 255 for part in parts):
                raise ValueError(
                    f"The color of class {name!r} is {color!r}; give red, green and blue as whole numbers from 0 to "
                    "255."
                )
        return [tuple(color) for color in self.colors]

    @property
    def num_labels(self) -> int:
        """The number of classes."""
        return len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        """The name of each class index, as a model configuration takes it."""
        return dict(enumerate(self.names))

    @property
    def label2id(self) -> dict[str, int]:
        """The class index of each name."""
        return {name: index for index, name in enumerate(self.names)}


def read_classes(path: str | Path) -> Classes:
    """
    Reads the classes from a file.

    JSON and YAML may be a list of names, `{"names": [...], "colors": [[r, g, b], ...]}` (colors optional),
    `{"0": "sky", "1": "building", ...}` or `{"sky": 0, ...}`, also under `id2label`, `label2id` or `names`, or
    `[{"name": "sky", "id": 0, "color": [r, g, b]}, ...]` (ids and colors optional). Text has one class per line, in
    one of the forms of [`parse_text`]. If the file gives indices, they decide the order, otherwise the order of the
    file; LabelMe's `__ignore__` is no class.

    Args:
        path (`str` or `Path`): a file in UTF-8 whose name ends in `.json`, `.yaml`, `.yml`, `.txt`, `.csv`, `.tsv` or
            `.names`.

    Returns:
        `Classes`: names and colors in the order of the class indices.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file has none of these forms, ids have gaps or do not begin at 0, or [`Classes`] refuses the
            content. The message begins with the file's path.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; name a file with the class names, such as classes.txt.")
    suffix, text = path.suffix.lower(), read_text(path)
    try:
        if suffix in TEXT_SUFFIXES:
            return _from_entries(parse_text(text, suffix in TABLE_SUFFIXES))
        if suffix in PARSERS:
            return _from_entries(*PARSERS[suffix](text))
        raise ValueError(f"A file of classes must end in {', '.join((*PARSERS, *TEXT_SUFFIXES))}; rename it.")
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: This is not valid JSON ({error}); correct the file.") from error
    except RecursionError as error:
        raise ValueError(f"{path}: This is nested too deeply for a list of classes; correct the file.") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def classes_in(folder: Path) -> Classes | None:
    """
    The classes that a file in a folder names: `classes.json` or `classes.txt`, else a file of another program; `None`
    if there is no such file.

    Raises:
        ValueError: if there are two such files, or [`read_classes`] refuses the file.
    """
    for names in (CLASS_FILES, FOREIGN_CLASS_FILES):
        found = [folder / name for name in names if (folder / name).is_file()]
        if len(found) > 1:
            raise ValueError(f"{found[0]} and {found[1]} both exist; keep one of them.")
        if found:
            logger.info("The names of the classes are those in %s.", found[0])
            return read_classes(found[0])
    return None


def _from_entries(entries: list[Entry], colors: list[Color] | None = None) -> Classes:
    entries = in_order(entries)
    own = [entry.color for entry in entries if entry.color is not None]
    if own and len(own) < len(entries):
        raise ValueError(
            f"Only {len(own)} of the {len(entries)} classes have a color; give every class a color, or none."
        )
    return Classes([entry.name for entry in entries], own or None if colors is None else colors)


def write_classes(classes: Classes, path: str | Path):
    """
    Writes the classes, as [`read_classes`] reads them, into a file `.json` (an object with `names` and `colors`) or
    `.txt` (a line for each class).

    Raises:
        ValueError: if the name ends otherwise, or a class name would be read back differently from a text file.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".json":
        content = {"names": classes.names}
        if classes.colors is not None:
            content["colors"] = classes.colors
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    elif suffix == ".txt":
        path.write_text("".join(line + "\n" for line in _text_lines(classes)), encoding="utf-8")
    else:
        raise ValueError(f"{path}: A file of classes must end in .json or .txt; rename it.")


def _text_lines(classes: Classes) -> list[str]:
    colors = classes.colors or [None] * len(classes.names)
    entries = [Entry(name, color=color) for name, color in zip(classes.names, colors, strict=True)]
    lines = [name if color is None else name + "\t" + " ".join(map(str, color)) for name, _, color in entries]
    if not _reads_back(lines, entries):
        alone = (entry.name for line, entry in zip(lines, entries, strict=True) if not _reads_back([line], [entry]))
        odd = next(alone, classes.names[0])  # if no line fails alone, the lines together look like a table
        raise ValueError(f"The class name {odd!r} cannot be told apart in a text file; write a .json file.")
    return lines


def _reads_back(lines: list[str], entries: list[Entry]) -> bool:
    try:
        return in_order(parse_text("\n".join(lines))) == entries
    except ValueError:
        return False

"""The names of the classes, and their colors in pictures, read from a small text or JSON file."""

import json
import re
from dataclasses import dataclass
from pathlib import Path


Color = tuple[int, int, int]

CLASS_FILES = ("classes.json", "classes.txt")

_THREE_NUMBERS = re.compile(r"^(?P<name>.*\S)[\s,]+(?P<red>-?\d+)[\s,]+(?P<green>-?\d+)[\s,]+(?P<blue>-?\d+)$")
_HEX_COLOR = re.compile(r"^(?P<name>.*\S)\s+#(?P<hex>[0-9a-fA-F]{6})$")


@dataclass
class Classes:
    """
    The classes of a data set; the position in the list is the class index.

    Args:
        names (`list[str]`): one name per class, each used once, none empty.
        colors (`list[tuple[int, int, int]]`, *optional*): one red, green, blue triple per class, each 0 to 255, for
            pictures of the result.

    Raises:
        ValueError: if there is no class, a name is empty, no Unicode text or used twice (blanks and underscores count
            as the same), the two lists differ in length, or a color is not three whole numbers from 0 to 255.
    """

    names: list[str]
    colors: list[Color] | None = None

    def __post_init__(self):
        if not self.names:
            raise ValueError("The list of classes is empty; name at least one class.")
        # Metrics are called after the classes, with underscores for blanks: the second of two would replace the first.
        by_metric: dict[str, int] = {}
        for index, name in enumerate(self.names):
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"Class {index} has the name {name!r}; every class needs a name that is not empty.")
            try:
                name.encode("utf-8")
            except UnicodeEncodeError:
                raise ValueError(f"Class {index} has the name {name!a}, which is no Unicode text.") from None
            first = by_metric.setdefault("_".join(name.split()), index)
            if self.names[first] == name and first != index:
                raise ValueError(f"The classes {first} and {index} are both named {name!r}; give each its own name.")
            if first != index:
                raise ValueError(
                    f"The classes {self.names[first]!r} and {name!r} differ in blanks and underscores only, so that "
                    "their metrics would share a name; rename one."
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
    Reads the classes from a JSON or text file.

    JSON may be a list of names, `{"names": [...], "colors": [[r, g, b], ...]}` (colors optional),
    `{"0": "sky", "1": "building", ...}`, or `[{"name": "sky", "color": [r, g, b]}, ...]` (colors optional). A text
    file has one class per line, the name followed, if wanted, by `r g b` or `#rrggbb`; blank lines and lines that
    start with `#` do not count.

    Args:
        path (`str` or `Path`): a file ending in `.json` or `.txt`, in UTF-8.

    Returns:
        `Classes`: names and colors in the order of the class indices.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is in none of these forms, ids have gaps, or [`Classes`] refuses the content. The
            message starts with the file's path.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; name a .json or .txt file with the class names.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            return _from_json(json.loads(text, object_pairs_hook=_without_duplicates))
        if path.suffix.lower() == ".txt":
            return _from_text(text)
        raise ValueError("A file of classes must end in .json or .txt; rename it.")
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: This is not valid JSON ({error}); correct the file.") from error
    except RecursionError as error:
        raise ValueError(f"{path}: The JSON is nested too deeply for a list of classes; correct the file.") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def classes_in(folder: Path) -> Classes | None:
    """The classes of `classes.json` or `classes.txt` in a folder; `None` without either, `ValueError` with both."""
    found = [folder / name for name in CLASS_FILES if (folder / name).is_file()]
    if len(found) > 1:
        raise ValueError(f"{found[0]} and {found[1]} both exist; keep one of them.")
    return read_classes(found[0]) if found else None


def _without_duplicates(pairs: list[tuple]) -> dict:
    content = dict(pairs)
    if len(content) != len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f'The key "{double}" occurs twice; keep one.')
    return content


def _from_json(content) -> Classes:
    if isinstance(content, dict) and "names" in content:
        if not isinstance(content["names"], list):
            raise ValueError('"names" must be a list, in the order of the class indices.')
        return Classes(content["names"], content.get("colors"))
    if isinstance(content, dict) and content and all(re.fullmatch(r"0|[1-9][0-9]*", key) for key in content):
        return Classes(_names_in_order({int(key): name for key, name in content.items()}))
    if isinstance(content, list) and content and all(isinstance(entry, dict) for entry in content):
        for index, entry in enumerate(content):
            if "name" not in entry:
                raise ValueError(f'Class {index} has no "name"; give every entry one.')
        return _from_entries([(entry["name"], entry.get("color")) for entry in content])
    if isinstance(content, list) and all(isinstance(entry, str) for entry in content):
        return Classes(content)
    raise ValueError(
        'The JSON must be a list of names, {"names": [...], "colors": [...]}, {"0": "first name", ...} or '
        '[{"name": ..., "color": [r, g, b]}, ...]; it is none of these.'
    )


def _names_in_order(names: dict[int, str]) -> list[str]:
    missing = sorted(set(range(len(names))) - set(names))
    if missing:
        raise ValueError(
            f"The {len(names)} class ids must be 0 to {len(names) - 1} without gaps, but {missing[0]} is missing and "
            f"{max(names)} is the highest; number them from 0 on."
        )
    return [names[index] for index in range(len(names))]


def _from_text(text: str) -> Classes:
    lines = [line.strip() for line in text.splitlines()]
    return _from_entries([_parse_line(line) for line in lines if line and not line.startswith("#")])


def _from_entries(entries: list[tuple[str, Color | None]]) -> Classes:
    colors = [color for _, color in entries if color is not None]
    if colors and len(colors) < len(entries):
        raise ValueError(
            f"Only {len(colors)} of the {len(entries)} classes have a color; give every class a color, or none."
        )
    return Classes([name for name, _ in entries], colors or None)


def _parse_line(line: str) -> tuple[str, Color | None]:
    if match := _HEX_COLOR.match(line):
        return match["name"], tuple(bytes.fromhex(match["hex"]))
    if match := _THREE_NUMBERS.match(line):
        return match["name"].rstrip(","), (int(match["red"]), int(match["green"]), int(match["blue"]))
    return line, None


def write_classes(classes: Classes, path: str | Path):
    """
    Writes the classes so that [`read_classes`] gives back the same.

    Args:
        classes (`Classes`): what to write.
        path (`str` or `Path`): a file ending in `.json` (an object with `names` and `colors`) or `.txt` (a line per
            class).

    Raises:
        ValueError: if the path ends otherwise, or a name would be read back differently from a text file.
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
    lines = []
    for index, name in enumerate(classes.names):
        color = None if classes.colors is None else classes.colors[index]
        line = name if color is None else name + "\t" + " ".join(map(str, color))
        if name.startswith("#") or name.splitlines() != [name] or _parse_line(line.strip()) != (name, color):
            raise ValueError(f"The class name {name!r} cannot be told apart in a text file; write a .json file.")
        lines.append(line)
    return lines

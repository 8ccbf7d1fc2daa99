"""Recipes: files of command-line arguments, which are read as plain data."""

import json
import math
import re
from datetime import date
from pathlib import Path

import yaml

from ..utils.text import one_line


RECIPE_SUFFIXES = (".yaml", ".yml", ".json")
OWN = Path(__file__).parents[1] / "recipes"
MAX_ENTRIES = 10_000  # of a file; those that aliases repeat count again
MAX_DEPTH = 20
_NAME = re.compile(r"[A-Za-z][\w-]*")


class _Loader(yaml.SafeLoader):
    """Reads plain data; refuses a name that is there twice, and aliases that repeat too much."""

    def flatten_mapping(self, node: yaml.MappingNode):
        names = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
        if twice is not None and twice[0] != "tag:yaml.org,2002:merge":
            raise yaml.constructor.ConstructorError(None, None, f"{twice[1]!r} is there twice", node.start_mark)
        super().flatten_mapping(node)
        if len(node.value) > MAX_ENTRIES:
            raise yaml.constructor.ConstructorError(
                None, None, f"aliases make more than {MAX_ENTRIES} entries", node.start_mark
            )


def read_yaml(path: Path) -> object:
    """
    The content of a YAML or JSON file, as plain data.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is neither YAML nor JSON, not in UTF-8, or more than plain data: a tag such as
            `!!python/object`, an alias to itself, or aliases that make more than [`MAX_ENTRIES`] entries.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error.reason}): save it as UTF-8.") from error
    try:
        text = text.replace("\t", " ") if path.suffix == ".json" else text  # YAML contains JSON, but for tabs
        content = yaml.load(text, Loader=_Loader)
    # PyYAML also raises what int(), dict lookups and deep recursion raise.
    except Exception as error:
        raise ValueError(f"{path} is no YAML or JSON of plain data ({one_line(error)[:300]}): correct it.") from error
    _check_size(content, path)
    return content


def _check_size(content: object, path: Path) -> None:
    """Raises ValueError if aliases make the content too large or too deep; copies nothing."""
    waiting, count = [(content, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if count > MAX_ENTRIES or depth > MAX_DEPTH:
            raise ValueError(
                f"{path} holds more than {MAX_ENTRIES} entries, or more than {MAX_DEPTH} levels, aliases counted as "
                "often as they are used: write one argument per line."
            )
        if isinstance(value, dict):
            waiting += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list | tuple | set):
            waiting += [(part, depth + 1) for part in value]


def find_recipe(name: str | Path) -> Path:
    """A recipe's file: this path, or else that in allspark_hf/recipes, which older records call scripts/recipes."""
    path = Path(name)
    own = OWN / path.as_posix().removeprefix("scripts/recipes/")
    return own if own.is_file() and not path.is_file() else path


def read_recipe(path: str | Path) -> list[str]:
    """The entries of a recipe, and of the recipes that it is based on, as command-line arguments."""
    return recipe_arguments(resolve_recipe(path))


def recipe_arguments(entries: dict) -> list[str]:
    """Entries of a recipe as command-line arguments; an entry of `None` gives none."""
    arguments = []
    for name, value in entries.items():
        if value is None:
            continue
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        if not isinstance(value, list) and str(values[0]).startswith("-"):  # argparse would take -1e-05 for an option
            arguments.append(f"--{name}={values[0]}")
        else:
            arguments += [f"--{name}", *map(str, values)]
    return arguments


def resolve_recipe(path: str | Path, derived: tuple[Path, ...] = ()) -> dict:
    """
    The entries of a recipe, which override those of its `base`: another recipe, relative to the recipe's folder, or
    one of this package. A file of `classes` that is not in the working folder may lie beside the recipe.

    Args:
        path (`str` or `Path`): a YAML or JSON file, or the name of one of this package, see [`find_recipe`].
        derived (`tuple[Path, ...]`): the recipes that are based on this one, to notice a circle.

    Returns:
        `dict`: entries without `base`; `None` is the value of an entry that a derived recipe removes.

    Raises:
        FileNotFoundError: if the recipe, or one it is based on, does not exist.
        ValueError: if a recipe is not a flat mapping, or is based on itself.
    """
    path = find_recipe(path)
    chain = (*derived, path.resolve())
    if path.resolve() in derived:
        names = " -> ".join(recipe.name for recipe in chain)
        raise ValueError(f"The recipe {path} is based on itself ({names}): remove one `base`.")
    if not path.is_file():
        named = f", which {derived[-1]} names as its `base` (relative to its own folder)," if derived else ""
        raise FileNotFoundError(
            f"The recipe {path}{named} does not exist: correct the path, or name one of this package, such as "
            f"{', '.join(sorted(one.name for one in OWN.glob('*.yaml')))}."
        )
    entries = read_yaml(path)
    if not isinstance(entries, dict):
        raise ValueError(f"The recipe {path} holds no `name: value` lines: write one argument per line.")
    for name, value in entries.items():
        check_entry(name, value, f"The recipe {path}")
    classes = entries.get("classes")
    if isinstance(classes, str) and not Path(classes).is_file() and (path.parent / classes).is_file():
        entries["classes"] = str(path.parent / classes)
    base = entries.pop("base", None)
    if base is None:
        return entries
    if not isinstance(base, str) or not base.isprintable():
        raise ValueError(f"The recipe {path} has base {base!r}: name another recipe, relative to its own folder.")
    beside, own = path.parent / base, find_recipe(base)
    return {**resolve_recipe(own if own.is_file() and not beside.is_file() else beside, chain), **entries}


def check_entry(name: object, value: object, where: str) -> None:
    """
    Raises ValueError unless a command line can hold an entry without changing its meaning.

    Args:
        name (`object`): name of the argument, without dashes.
        value (`object`): text, a number, yes or no, `None`, a list of these, or a mapping for an argument in JSON.
        where (`str`): name of the file in an error.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{where} has the entry {name!r}, which is no name of an argument: correct it.")
    if isinstance(value, dict):
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where} gives {name} a mapping that JSON cannot hold ({error}): correct it.") from error
        return
    for part in value if isinstance(value, list) else [value]:
        if not isinstance(part, str | int | float | date) and not (part is None and part is value):
            raise ValueError(
                f"{where} gives {name} a value of type {type(part).__name__}, where text, a number, yes or no, or a "
                "list of these is needed: correct it."
            )
        if isinstance(value, list) and str(part).startswith("-") and not _is_plain_negative(part):
            raise ValueError(f"{where} gives {name} the list entry {part!r}, which would be an option: correct it.")


def _is_plain_negative(value: object) -> bool:
    """Whether argparse takes a negative number for a value: -1 and -0.5, but not -1e-05."""
    number = isinstance(value, int | float) and math.isfinite(value)
    return number and re.fullmatch(r"-\d+|-\d*\.\d+", str(value)) is not None

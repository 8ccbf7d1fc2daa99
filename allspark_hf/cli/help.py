"""What `--help` prints: the arguments that people use, or with `--help all` every one."""

import inspect
import shutil
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields
from textwrap import fill

from ..methods import METHODS, MethodArguments, arguments_classes
from ..utils.arguments import default_of, facts_of


# Headings of the arguments that a class declares; those of a script's own class are its options.
HEADINGS = {
    "DataArguments": "data",
    "ModelArguments": "model",
    "AllSparkTrainingArguments": "training",
    "TrainingArguments": "training, all of transformers",
    "EvaluationArguments": "evaluation",
}
ORDER = ("options", "data", "model", "method", "training", "evaluation")
COLUMN = 28  # where the explanations begin
MAX_WIDTH = 119


def help_text(types: Iterable[type], description: str | None, everything: bool) -> str:
    """
    A script's own words, and its arguments under headings, each with its default.

    Args:
        types (`Iterable[type]`): the argument classes of the script.
        description (`str`, *optional*): the script's words.
        everything (`bool`): whether to show all arguments, or of a class that has common ones only these.
    """
    sections: dict[str, list[str]] = {}
    count = hidden = 0
    for kind in types:
        has_common = any(facts_of(one).common for one in fields(kind))
        for owner, one in _fields_by_class(kind):
            count += 1
            if everything or facts_of(one).common or not has_common:
                sections.setdefault(_heading(owner, one, everything), []).append(_entry(one))
            else:
                hidden += 1
    order = sorted(sections, key=lambda heading: ORDER.index(heading.split(",")[0]))
    parts = [description.strip()] if description else []
    parts += ["\n".join([f"{heading}:", *sections[heading]]) for heading in order]
    if hidden:
        parts.append(f"These are the common ones of {count} arguments; --help all shows all.")
    return "\n\n".join(parts)


def _fields_by_class(kind: type) -> list[tuple[type, Field]]:
    """The fields in the order of the classes that declare them, the class itself first."""
    waiting = {one.name: one for one in fields(kind) if one.init}
    declared = [(base, name) for base in kind.__mro__ for name in inspect.get_annotations(base)]
    return [(base, waiting.pop(name)) for base, name in declared if name in waiting]


def _heading(owner: type, one: Field, everything: bool) -> str:
    if any(owner in declared.__mro__ for declared in arguments_classes()) and issubclass(owner, MethodArguments):
        titles = [method.title for method in METHODS.values() if issubclass(method.arguments_class, owner)]
        listed = " and ".join([", ".join(titles[:-1]), titles[-1]] if titles[1:] else titles)
        return f"method, {listed}" if everything and len(titles) < len(METHODS) else "method"
    return facts_of(one).group or HEADINGS.get(owner.__name__, "options")


def _entry(one: Field) -> str:
    text = one.metadata.get("help", "").replace("%%", "%")  # as argparse has it
    default = default_of(one)
    if default is True:
        text += f" (default: True; --no_{one.name})"
    elif default is MISSING:
        text += " (needed)"
    elif facts_of(one).by_encoder:
        text += f" (default: {default} for a Mix Transformer; else by the encoder, and printed at the start)"
    elif default is not None and default != []:
        text += f" (default: {' '.join(map(str, default)) if isinstance(default, list) else default})"
    name = f"  --{one.name}"
    lead = name.ljust(COLUMN) if len(name) < COLUMN else " " * COLUMN
    width = min(shutil.get_terminal_size().columns, MAX_WIDTH)
    filled = fill(text, max(width, 2 * COLUMN), initial_indent=lead, subsequent_indent=" " * COLUMN)
    return filled if lead.strip() else f"{name}\n{filled}"


__all__ = ["help_text"]

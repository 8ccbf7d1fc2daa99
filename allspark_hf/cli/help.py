"""
What `--help` prints, without importing what it describes: scripts/write_help.py writes help.json from the argument
classes. The file has arguments of this package alone, so that no release of transformers changes it.
"""

import json
import shutil
from pathlib import Path
from textwrap import fill


HELP_FILE = Path(__file__).with_name("help.json")
COLUMN = 28  # where the explanations begin
MAX_WIDTH = 119


def read_help() -> dict[str, dict]:
    """The content of `--help` by command, see [`render`]."""
    return json.loads(HELP_FILE.read_text(encoding="utf-8"))


def render(content: dict) -> str:
    """
    The text for a terminal, from `description` (`str`), `sections` (`dict[str, list]`: heading -> pairs of an argument
    and its explanation) and `hidden` (`bool`: whether there are more arguments).
    """
    parts = [content["description"]] if content["description"] else []
    for heading, entries in content["sections"].items():
        parts.append("\n".join([f"{heading}:", *(_entry(*entry) for entry in entries)]))
    if content["hidden"]:
        parts.append("These are the common arguments; --help_all shows all, those of transformers' Trainer too.")
    return "\n\n".join(parts)


def short(content: dict) -> str:
    """The first sentence of a description."""
    return content["description"].split("\n\n")[0].replace("\n", " ")


def _entry(name: str, text: str) -> str:
    name = f"  {name}"
    lead = name.ljust(COLUMN) if len(name) < COLUMN else " " * COLUMN
    width = min(shutil.get_terminal_size().columns, MAX_WIDTH)
    filled = fill(text, max(width, 2 * COLUMN), initial_indent=lead, subsequent_indent=" " * COLUMN)
    return filled if lead.strip() else f"{name}\n{filled}"

"""Writes allspark_hf/cli/help.json, which `allspark COMMAND --help` shows, from the commands' arguments.

python scripts/write_help.py
"""

import argparse
import importlib
import json
from unittest import mock

from allspark_hf.cli.help import HELP_FILE
from allspark_hf.cli.help_content import help_content
from allspark_hf.cli.main import COMMANDS


class _Reached(BaseException):
    """A command has made its parser, and goes no further."""


def parser_of(main) -> argparse.ArgumentParser:
    """The parser that a command makes."""

    def stop(parser, *args, **kwargs):
        raise _Reached(parser)

    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", stop):
        try:
            main()
        except _Reached as reached:
            return reached.args[0]
    raise ValueError(f"{main.__module__} makes no parser.")


def content_of(command: str) -> dict:
    """What `--help` of a command shows, for [`allspark_hf.cli.help.render`]."""
    module = importlib.import_module(f"allspark_hf.cli.{command}")
    parser = parser_of(module.main)
    if hasattr(parser, "dataclass_types"):
        return help_content(parser.dataclass_types, module.__doc__, everything=False)
    entries = [_entry(action) for action in parser._actions if action.dest != "help"]
    return {"description": module.__doc__.strip(), "sections": {"options": entries}, "hidden": False}


def _entry(action: argparse.Action) -> tuple[str, str]:
    needed = " (needed)" if action.required else ""
    return action.option_strings[0] if action.option_strings else action.dest, f"{action.help}{needed}"


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    contents = {command: content_of(command) for command in COMMANDS}
    HELP_FILE.write_text(json.dumps(contents, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(HELP_FILE)


if __name__ == "__main__":
    main()

"""The command `allspark`, also as `python -m allspark_hf`: starts a subcommand, or lists them."""

import sys
from difflib import get_close_matches
from importlib import import_module

from .help import read_help, render, short


# Each is the function `main` in the module of this name in this folder, which is imported when the command starts.
COMMANDS = (
    "train",
    "evaluate",
    "predict",
    "suggest",
    "figures",
    "compare",
    "study",
    "export",
    "push",
    "import",
    "demo",
    "benchmark",
)


def main(command: str | None = None) -> int | None:
    """
    Starts a subcommand.

    Args:
        command (`str`, *optional*): one of [`COMMANDS`]; defaults to the first argument in `sys.argv`.

    Returns:
        `int`, *optional*: the exit code, if the subcommand returns one.
    """
    if command is None:
        command, *arguments = sys.argv[1:] or ["--help"]
        if command in ("-h", "--help"):
            print(overview())
            return None
        if command not in COMMANDS:
            close = get_close_matches(command, COMMANDS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(COMMANDS)}."
            print(f"allspark has no command {command!r}: {hint}", file=sys.stderr)
            return 2
        sys.argv = [f"allspark {command}", *arguments]
    asked = {"-h", "--help", "--help_all"}.intersection(sys.argv[1:])
    if asked:
        content = read_help()[command]
        if asked != {"--help_all"} or not content["hidden"]:
            print(render(content))
            return None
        print(content["description"], end="\n\n")
    return import_module(f".{command}", __package__).main()


def overview() -> str:
    """What each command does."""
    contents = read_help()
    entries = [(f"allspark {name}", short(contents[name])) for name in COMMANDS]
    words = "Semantic segmentation from a few labeled images and many unlabeled ones."
    overview = render({"description": words, "sections": {"commands": entries}, "hidden": False})
    return f"{overview}\n\nallspark COMMAND --help shows the arguments of a command."

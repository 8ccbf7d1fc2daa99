"""What run_record.json may say about a training run, without anything private."""

import os
import platform
import re
import shlex
import subprocess
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from ..utils import __version__
from ..utils.machine import cpu_name


RECORD_FILE = "run_record.json"
REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "datasets", "accelerate", "numpy")
TOKEN = re.compile(r"\b(?:hf|api_org)_\w{6,}")
ABSOLUTE = re.compile(r"[/\\~]|[A-Za-z]:[/\\]|file:")
EMBEDDED_PATH = re.compile(r"(?<![\w.:/~-])(?:~[\w.-]*)?/[^\s'\",;=]+|\b[A-Za-z]:\\[^\s'\",;=]+")


# ---- What may be public ----


def public(value: Any) -> Any:
    """
    A value as it may be published, without tokens and absolute paths.

    Args:
        value: any value; an enum becomes its value, and what JSON cannot hold becomes text.

    Returns:
        The value with `<token>` for `hf_...`; an absolute path is cut to its part inside this repository, or else to
        its last part, and a relative path stays.
    """
    if isinstance(value, Enum):
        return public(value.value)
    if isinstance(value, dict):
        return {str(name): public(entry) for name, entry in value.items() if not str(name).endswith("token")}
    if isinstance(value, list | tuple):
        return [public(entry) for entry in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    text = TOKEN.sub("<token>", str(value))
    if ABSOLUTE.match(text):
        return _public_path(text)
    return EMBEDDED_PATH.sub(lambda match: _public_path(match.group()), text)


def _public_path(text: str) -> str:
    path = Path(text)
    if path.is_absolute() and path.is_relative_to(REPOSITORY) and path != REPOSITORY:
        return path.relative_to(REPOSITORY).as_posix()
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1] or "."


def public_command(arguments: list[str]) -> str:
    """
    A command line as it may be published, to be typed in the repository's folder.

    Args:
        arguments (`list[str]`):
            `sys.argv`: the script or `allspark train`, then its arguments. A `--..._token` is left out with its value.
    """
    command, *arguments = map(str, arguments)
    shown, skip = command.split() if command.startswith("allspark ") else ["python", public(command)], False
    for argument in arguments:
        name, has_value, value = argument.partition("=")
        if skip and not argument.startswith("--"):
            skip = False
            continue
        # argparse may accept a shortened --hub_tok.
        is_token = name.startswith("--") and (name.endswith("token") or name.startswith("--hub_t"))
        skip = is_token and not has_value
        if is_token:
            continue
        shown.append(f"{name}={public(value)}" if name.startswith("--") and has_value else public(argument))
    return shlex.join(shown)


# ---- The machine and the code ----


def environment(num_processes: int) -> dict:
    """Versions and hardware, without the names of machine and user."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    versions = {"python": platform.python_version(), "allspark_hf": __version__}
    versions |= {name: version(name) for name in PACKAGES}
    return {
        "versions": versions,
        "machine": {
            "cpu": cpu_name(),
            "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "gpus": gpus,
            "processes": num_processes,
            "threads_per_process": torch.get_num_threads(),
        },
    }


def checkout() -> dict | None:
    """Commit of this code's checkout, and whether files differ from it; None without git."""
    commit, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return None if commit is None else {"commit": commit, "uncommitted_changes": bool(changed)}


def _git(*arguments: str) -> str | None:
    """Output of git in this code's checkout; None if there is no checkout or no git."""
    if not (REPOSITORY / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", REPOSITORY, *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None

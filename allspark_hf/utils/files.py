"""Files: JSON that is whole or not there, which files are images, and what a Hub id looks like."""

import json
import os
import re
from pathlib import Path
from typing import Any


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
PREDICTED_SUFFIXES = (*IMAGE_SUFFIXES, ".gif", ".pgm", ".ppm")  # no data set of photographs has the last three
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")  # user/name


def read_json(path: str | Path) -> Any:
    """
    The content of a JSON file.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no JSON, with the file's name and what to do.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({' '.join(str(error).split())}): remove it, or make it anew.") from error


def read_json_object(path: str | Path) -> dict:
    """A JSON object; empty if the file is missing, cut short or something else."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: str | Path, value: Any):
    """Writes a JSON file under another name and renames it, so that a file of this name is always whole."""
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)


__all__ = ["HUB_ID", "IMAGE_SUFFIXES", "PREDICTED_SUFFIXES", "read_json", "read_json_object", "write_json"]

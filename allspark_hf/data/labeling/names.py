"""Class names of exports that do not list them: from a file in the folder, or those that occur."""

from collections.abc import Iterable
from pathlib import Path

from ..sources.classes import classes_in


def names_of(root: Path, used: Iterable[str]) -> tuple[list[str], str]:
    """
    The classes that a file in the export's folder lists, or else the names that occur, in alphabetical order.

    Args:
        root (`Path`): folder of the export.
        used (`Iterable[str]`): names of objects.

    Returns:
        `tuple[list[str], str]`: the names of the classes, and a sentence about their source.

    Raises:
        ValueError: if the file does not list the name of an object, or cannot be read.
    """
    used = sorted(set(used))
    listed = classes_in(root)
    if listed is None:
        return used, "The export lists no classes: they are those that occur, sorted; --classes FILE lists others."
    missing = [name for name in used if name not in listed.names]
    if missing:
        raise ValueError(f"An object is called {missing[0]!r}, which the list of classes in {root} lacks; add it.")
    return listed.names, f"The classes are those of the list in {root}."


__all__ = ["names_of"]

"""Finds a model's classes by their names, and reads colors for them."""

import difflib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..data.sources.classes import read_classes


def find_classes(names: Sequence[str], labels: Sequence[str]) -> tuple[int, ...]:
    """
    The indices of classes, ascending; a name that several classes have stands for all of them.

    Args:
        names (`Sequence[str]`): names of the classes to find.
        labels (`Sequence[str]`): name of each class of the model.

    Raises:
        ValueError: if the model has no such class.
    """
    for name in names:
        if name not in labels:
            raise unknown_class(name, labels)
    return tuple(index for index, label in enumerate(labels) if label in names)


def unknown_class(name: str | int, labels: Sequence[str]) -> ValueError:
    """The error about a class that the model does not have; it suggests the class with the most similar name."""
    close = difflib.get_close_matches(str(name), labels, n=1)
    advice = f"did you mean {close[0]!r}?" if close else f"the classes are {', '.join(labels)}."
    return ValueError(f"The model has no class {name!r}: {advice}")


def read_palette(path: str | Path, labels: Sequence[str], palette: np.ndarray) -> np.ndarray:
    """
    Colors of classes from a file; a class that the file does not name keeps its color.

    Args:
        path (`str` or `Path`):
            a file in a form of [`read_classes`] with colors, such as lines `road #804080`, `road: #804080` or
            `road 128 64 128`.
        labels (`Sequence[str]`): name of each class of the model.
        palette (`np.ndarray`): present color of each class, uint8 (num_labels, 3).

    Returns:
        `np.ndarray`: color of each class, uint8 (num_labels, 3).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file has no known form or no colors, or names a class that the model does not have.
    """
    classes = read_classes(path)
    if classes.colors is None:
        raise ValueError(f"{path} has no colors: write #rrggbb after each name, such as road #804080.")
    palette = palette.copy()
    for name, color in zip(classes.names, classes.colors, strict=True):
        name = name if name in labels else name.rstrip(" :")
        try:
            palette[list(find_classes([name], labels))] = color
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return palette

"""Classes by their names: which ones are meant, and in which colors."""

import difflib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..data.sources.classes import read_classes


def find_classes(names: Sequence[str], labels: Sequence[str]) -> tuple[int, ...]:
    """
    The indices of classes, ascending; a name that several classes have stands for all of them.

    Args:
        names (`Sequence[str]`): of the classes that are meant.
        labels (`Sequence[str]`): name of each class of the model.

    Raises:
        ValueError: if the model has no such class.
    """
    for name in names:
        if name not in labels:
            close = difflib.get_close_matches(name, labels, n=1)
            advice = f"did you mean {close[0]!r}?" if close else f"the classes are {', '.join(labels)}."
            raise ValueError(f"The model has no class {name!r}: {advice}")
    return tuple(index for index, label in enumerate(labels) if label in names)


def read_palette(path: str | Path, labels: Sequence[str], palette: np.ndarray) -> np.ndarray:
    """
    Colors of classes from a file; a class that the file does not name keeps its color.

    Args:
        path (`str` or `Path`):
            of a form of [`read_classes`] with colors, such as a line `road #804080` or `road: #804080` or
            `road 128 64 128` a class.
        labels (`Sequence[str]`): name of each class of the model.
        palette (`np.ndarray`): the colors that they have, uint8 (num_labels, 3).

    Returns:
        `np.ndarray`: uint8 (num_labels, 3).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is of no known form, has no colors, or names a class that the model does not have.
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


__all__ = ["find_classes", "read_palette"]

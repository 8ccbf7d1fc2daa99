"""The check that the colors of indexed masks agree with their values, which alone count."""

import logging

import numpy as np

from .masks import MaskConvention
from .sources.class_lists import Color
from .sources.pairs import SegmentationData
from .summary import file_of


logger = logging.getLogger(__name__)

Place = tuple[str, int]  # name of the set, row


def warn_of_palettes(found: SegmentationData, palettes: dict[str, list[dict[Color, int]]], convention: MaskConvention):
    """
    Logs once if a color has the value of another class than that of this color in the list of classes, or two values,
    as where a program saved each mask with a palette of its own.

    Args:
        found ([`SegmentationData`]): the data with the masks.
        palettes (`dict[str, list[dict]]`): name of a set -> for each row, [`palette_of_values`] of its mask.
        convention ([`MaskConvention`]): what the values mean.
    """
    placed = {(name, row): palette for name, rows in palettes.items() for row, palette in enumerate(rows)}
    problem = _unlike_the_list(found, placed, convention) or _unlike_each_other(found, placed)
    if problem:
        logger.warning(
            "%s Values count, not colors: if the colors are right, save the masks in RGB for `allspark import`.",
            problem,
        )


def _unlike_the_list(
    found: SegmentationData, placed: dict[Place, dict[Color, int]], convention: MaskConvention
) -> str | None:
    if found.classes is None or found.classes.colors is None:
        return None
    names, colors = found.classes.names, found.classes.colors
    listed = {color: index for index, color in enumerate(colors) if colors.count(color) == 1}
    first: dict[tuple[Color, int], Place] = {}
    for place, palette in placed.items():
        if any(color != (value,) * 3 for color, value in palette.items()):  # grays from 0 to 255 say nothing
            for pair in palette.items():
                first.setdefault(pair, place)
    for (color, value), (name, row) in first.items():
        index = int(convention.map(np.array(value)))
        if index != listed.get(color, index) and index < len(names):  # a value that is ignored is no class
            return (
                f"The palette of a mask contradicts the colors of the classes: the color {_shown(color)} is the value "
                f"{value}, class {names[index]!r}, in {file_of(found.sets[name], row, 'label')}, but the list of "
                f"classes gives it to {names[listed[color]]!r}."
            )
    return None


def _unlike_each_other(found: SegmentationData, placed: dict[Place, dict[Color, int]]) -> str | None:
    first: dict[Color, tuple[int, Place]] = {}
    for place, palette in placed.items():
        for color, value in palette.items():
            other, other_place = first.setdefault(color, (value, place))
            if value != other:
                files = [file_of(found.sets[name], row, "label") for name, row in (other_place, place)]
                return (
                    f"The palettes of masks differ: the color {_shown(color)} is the value {other} in {files[0]} and "
                    f"{value} in {files[1]}."
                )
    return None


def _shown(color: Color) -> str:
    return " ".join(map(str, color))

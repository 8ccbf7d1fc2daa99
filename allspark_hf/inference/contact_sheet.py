"""Draws a picture of many images with words under each."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from .visualization import font_of_text, printable


COLUMNS = 4
SIDE = 160  # pixels of each of the two pictures of an image
MARGIN = 8
LINES = 4  # lines of words under an image
MOST_RED = 0.8


class Entry(NamedTuple):
    """
    An image of the sheet.

    Args:
        picture (`PIL.Image.Image`): the image, RGB.
        heat (`np.ndarray`): float (any height, any width), 0 or more, stretched over the picture: 1 or more is red.
        name (`str`): first line of the words, shortened at the front.
        words (`str`): the other lines.
    """

    picture: Image.Image
    heat: np.ndarray
    name: str
    words: str


def contact_sheet(entries: Iterable[Entry]) -> Image.Image:
    """
    Draws each image twice, as it is and in gray with the heat in red, with its words below.

    Args:
        entries (`Iterable[Entry]`): the images, drawn one after another, so that only small pictures stay in memory.

    Returns:
        `PIL.Image.Image`: RGB, on white.
    """
    font = font_of_text()
    line = int(np.ceil(font.getbbox("Agjy|")[3])) + 2
    width, height = 2 * SIDE + 2, SIDE + 2 + LINES * line
    cells = [_draw(entry, (width, height), font, line) for entry in entries]
    columns = min(COLUMNS, len(cells))
    rows = -(-len(cells) // COLUMNS)
    size = columns * (width + MARGIN) + MARGIN, rows * (height + MARGIN) + MARGIN
    sheet = Image.new("RGB", size, "white")
    for place, cell in enumerate(cells):
        row, column = divmod(place, COLUMNS)
        sheet.paste(cell, (MARGIN + column * (width + MARGIN), MARGIN + row * (height + MARGIN)))
    return sheet


def _draw(entry: Entry, size: tuple[int, int], font, line: int) -> Image.Image:
    cell = Image.new("RGB", size, "white")
    picture = entry.picture.copy()
    picture.thumbnail((SIDE, SIDE))
    cell.paste(picture, (0, 0))
    cell.paste(_reddened(picture, entry.heat), (SIDE + 2, 0))
    pen, top = ImageDraw.Draw(cell), picture.height + 2
    lines = [_fitting(printable(entry.name, font), font, size[0]), *_wrapped(entry.words, font, size[0])]
    for number, text in enumerate(lines[:LINES]):
        pen.text((0, top + number * line), text, fill="black", font=font)
    return cell


def _reddened(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    heat = Image.fromarray(np.minimum(heat, 1).astype(np.float32)).resize(picture.size, Image.Resampling.BOX)
    red = np.array([230.0, 30.0, 30.0])
    gray = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float64)
    weight = MOST_RED * np.asarray(heat)[..., None]
    return Image.fromarray((gray + (red - gray) * weight).round().astype(np.uint8))


def _fitting(text: str, font, width: int) -> str:
    """The end of a name, in which the names of images differ."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"...{text}") > width:
        text = text[1:]
    return f"...{text}"


def _wrapped(text: str, font, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        word = printable(word, font)
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return [line for line in lines if line]

"""Predicts overlapping tiles of a large image one by one and blends them, with memory for one row of tiles."""

from collections.abc import Callable, Iterator

import numpy as np
import torch


Span = tuple[int, int]


def tile_spans(length: int, tile: int, overlap: int) -> list[Span]:
    """
    The places of tiles along one side of an image: at equal distances, from its beginning to its end.

    Args:
        length (`int`): side of the image in pixels.
        tile (`int`): side of a tile in pixels; a shorter image is one tile.
        overlap (`int`): least number of pixels that neighbors have in common, below `tile`.

    Returns:
        `list[tuple[int, int]]`: (start, end) of each tile, end excluded.
    """
    if length <= tile:
        return [(0, length)]
    count = -(-(length - overlap) // (tile - overlap))
    starts = np.linspace(0, length - tile, count).round().astype(int).tolist()
    return [(start, start + tile) for start in starts]


def tile_weights(span: Span, length: int, overlap: int) -> torch.Tensor:
    """
    The weight of each pixel of a tile along one side: 1 inside the tile and at the image's border, and falling to
    nearly 0 along half a cosine over the `overlap` pixels next to a neighbor. The weights of two tiles that overlap by
    `overlap` pixels add up to 1.

    Returns:
        `torch.Tensor`: float32 (end - start,), above 0, at most 1.
    """
    weights = torch.ones(span[1] - span[0])
    ramp = (1 - torch.cos(torch.pi * (torch.arange(overlap) + 0.5) / max(1, overlap))) / 2
    if span[0] > 0:
        weights[:overlap] *= ramp
    if span[1] < length:
        weights[len(weights) - overlap :] *= ramp.flip(0)
    return weights


def blended_rows(
    predict: Callable[[Span, Span], torch.Tensor], size: tuple[int, int], tile: int, overlap: int
) -> Iterator[tuple[int, np.ndarray]]:
    """
    The class of every pixel of an image: the one with the largest weighted mean of the tiles' probabilities.

    Memory holds only the sums to which later tiles add: float32 (num_labels, rows that two rows of tiles share,
    width), on the device of the predictions.

    Args:
        predict (`Callable`):
            gives the class probabilities of the tile at (rows, columns), float32 (num_labels, height, width); the
            tensor is changed here.
        size (`tuple[int, int]`): (height, width) of the image.
        tile, overlap (`int`): see [`tile_spans`]; `overlap` is at most half of `tile`.

    Yields:
        `tuple[int, np.ndarray]`: the first row of a strip, and the classes of the strip, uint8 up to 256 classes, else
        uint16 (rows, width). The strips follow each other from the top without a gap; each array is used again.
    """
    height, width = size
    rows, columns = (tile_spans(length, tile, overlap) for length in size)
    bottoms = [0, *(bottom for _, bottom in rows)]
    tops = [*(top for top, _ in rows), height]
    shared = max(0, *(above - top for above, top in zip(bottoms, tops, strict=True)))
    kept = strip = None
    for index, row in enumerate(rows):
        above, final = bottoms[index] - row[0], tops[index + 1] - row[0]
        row_weights, before = tile_weights(row, height, overlap), None
        for number, column in enumerate(columns):
            done = (columns[number + 1][0] if number + 1 < len(columns) else width) - column[0]
            sums = predict(row, column)
            if kept is None:
                kept = sums.new_zeros(len(sums), shared, width)
            weights = row_weights[:, None] * tile_weights(column, width, overlap)
            sums *= weights.to(sums)
            if before is not None:
                sums[:, :, : before.shape[2]] += before
            sums, before = sums[:, :, :done], sums[:, :, done:].clone()
            place = slice(column[0], column[0] + done)
            sums[:, :above] += kept[:, :above, place]
            kept[:, : sums.shape[1] - final, place] = sums[:, final:]
            if strip is None or len(strip) != final:
                strip = np.empty((final, width), dtype=np.uint8 if len(sums) <= 256 else np.uint16)
            strip[:, place] = sums[:, :final].argmax(dim=0).cpu().numpy()
        yield row[0], strip

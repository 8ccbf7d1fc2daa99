"""Pixels of outlines and run lengths."""

import numpy as np
import pytest

from allspark_hf.data.labeling.rasterize import expand_runs, parse_runs, rasterize


def edge_rings(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """Rings along the edges of the pixels of a mask, bool (height, width), which lies on their right."""
    padded = np.pad(mask, 1)
    following: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for y, x in zip(*np.nonzero(mask), strict=True):
        corners = [(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1)]
        around = [padded[y, x + 1], padded[y + 1, x + 2], padded[y + 2, x + 1], padded[y + 1, x]]
        for side, is_object in enumerate(around):
            if not is_object:
                following.setdefault(corners[side], []).append(corners[(side + 1) % 4])
    rings = []
    while following:
        ring = [next(iter(following))]
        while ring[-1] != ring[0] or len(ring) == 1:
            ends = following[ring[-1]]
            ring.append(ends.pop())
            if not ends:
                del following[ring[-2]]
        rings.append(ring[:-1])
    return rings


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_outlines_along_pixel_edges_give_back_their_pixels(share):
    generator = np.random.default_rng(0)
    for _ in range(30):
        mask = generator.random(generator.integers(2, 20, 2)) < share  # with holes, islands and touching corners
        assert np.array_equal(rasterize(edge_rings(mask), *mask.shape), mask)


def test_a_pixel_counts_whose_center_is_inside():
    triangle = [(0.2, 0.2), (3.9, 0.2), (0.2, 3.9)]
    expected = [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
    assert rasterize([triangle], 4, 4).astype(int).tolist() == expected
    almost = [(0.6, 0), (2.4, 0), (2.4, 2), (0.6, 2)]  # centers at 0.5 and 2.5 are outside
    assert rasterize([almost], 2, 4).astype(int).tolist() == [[0, 1, 0, 0]] * 2


def test_neighbors_share_an_edge():
    line = [(-3.0, 4.3), (2.7, 8.1), (6.2, 1.9), (15.0, 5.5)]
    above = rasterize([[*line, (15, -3), (-3, -3)]], 10, 12)
    below = rasterize([[*line, (15, 14), (-3, 14)]], 10, 12)
    assert np.array_equal(above, ~below)


def test_what_lies_outside_is_cut_off():
    generator = np.random.default_rng(1)
    mask = generator.random((12, 12)) < 0.6
    shifted = [[(x - 4, y - 3) for x, y in ring] for ring in edge_rings(mask)]
    assert np.array_equal(rasterize(shifted, 5, 6), mask[3:8, 4:10])
    assert not rasterize([[(30, 30), (40, 30), (40, 40)]], 5, 6).any()


@pytest.mark.parametrize(
    "ring, match",
    [
        ([(0, 0), (1, 1)], "2 points, but 3"),
        ([(0, 0), (1, float("nan")), (2, 2)], "no number"),
        ([(0, 0), (1, 1e9), (2, 2)], "million"),
        ([0, 0, 1, 1], "pairs"),
        ([(0, 0), (1,), (2, 2)], "pairs"),
    ],
)
def test_outlines_refused(ring, match):
    with pytest.raises(ValueError, match=match):
        rasterize([ring], 4, 4)


def test_runs_go_down_the_columns():
    expected = np.array([[0, 1, 1], [0, 0, 1]])
    assert np.array_equal(expand_runs([2, 1, 1, 2], 2, 3), expected)
    assert expand_runs([0, 6], 2, 3).all()
    assert np.array_equal(expand_runs([1, 2, 2, 1], 2, 3, by_rows=True), expected)


def test_compressed_runs_are_those_of_pycocotools():
    coco = pytest.importorskip("pycocotools.mask")
    generator = np.random.default_rng(0)
    for share in (0.02, 0.5, 1):
        mask = generator.random((37, 41)) < share
        text = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        assert np.array_equal(expand_runs(parse_runs(text), 37, 41), mask)


def test_runs_refused():
    with pytest.raises(ValueError, match="cover 5 pixels, but there are 2x3 = 6"):
        expand_runs([2, 3], 2, 3)
    with pytest.raises(ValueError, match="whole numbers"):
        expand_runs([-1, 7], 2, 3)
    with pytest.raises(ValueError, match="whole numbers"):
        expand_runs([1.5, 4.5], 2, 3)
    with pytest.raises(ValueError, match="cut short"):
        parse_runs("1o")
    with pytest.raises(ValueError, match="character"):
        parse_runs("1 ")

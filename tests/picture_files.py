"""Pictures written byte by byte, in forms that cameras and map programs write and Pillow does not."""

import struct
import zlib

import numpy as np
from mask_files import chunk


def deep_png(values: np.ndarray, extra: bytes = b"") -> bytes:
    """A PNG of 16 bits: uint16 (height, width, bands), gray, gray and opacity, RGB, or RGB and opacity."""
    height, width, bands = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    content = extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + content


def bands_tiff(
    values: np.ndarray,
    extra: tuple[int, ...] = (),
    rgb: bool = True,
    planar: bool = False,
    compressed: bool = False,
    order: str = "<",
    tags: tuple[tuple[int, int, list[int]], ...] = (),
) -> bytes:
    """A TIFF of uint8 or uint16 (height, width, bands); `extra` is what its tag ExtraSamples says of further bands."""
    height, width, bands = values.shape
    values = values.astype(values.dtype.newbyteorder(order))
    strips = [values[..., band].tobytes() for band in range(bands)] if planar else [values.tobytes()]
    strips = [zlib.compress(strip) if compressed else strip for strip in strips]
    offsets = [8 + sum(map(len, strips[:index])) for index in range(len(strips))]
    entries = [
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, [8 * values.dtype.itemsize] * bands),
        (259, 3, [8 if compressed else 1]),
        (262, 3, [2 if rgb else 1]),
        (273, 4, offsets),
        (277, 3, [bands]),
        (278, 4, [height]),
        (279, 4, [len(strip) for strip in strips]),
        (284, 3, [2 if planar else 1]),
        *([(338, 3, list(extra))] if extra else []),
        *tags,
    ]
    entries = {tag: (kind, numbers) for tag, kind, numbers in entries}
    content, directory = b"".join(strips), b""
    for tag, (kind, numbers) in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(numbers)}{'H' if kind == 3 else 'L'}", *numbers)
        if len(packed) > 4:
            packed, content = struct.pack(f"{order}L", 8 + len(content)), content + packed
        directory += struct.pack(f"{order}HHL", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}L", 8 + len(content))
    return head + content + struct.pack(f"{order}H", len(entries)) + directory + bytes(4)


def bmp(values: np.ndarray, bits: int, colors: list[tuple[int, int, int]], old: bool = False) -> bytes:
    """An indexed BMP of (height, width) with 4 or 8 bits a pixel and these colors; `old` is OS/2's short header."""
    height, width = values.shape
    padded = np.pad(values, ((0, 0), (0, -width % 8))).astype(np.uint8)[::-1]
    rows = padded if bits == 8 else padded[:, ::2] << 4 | padded[:, 1::2]
    content = b"".join(row.tobytes().ljust(-(-len(row) // 4) * 4, b"\0") for row in rows)
    if old:
        colors = [*colors, *[(0, 0, 0)] * (2**bits - len(colors))]
        header = struct.pack("<LHHHH", 12, width, height, 1, bits)
    else:
        header = struct.pack("<LllHHLLllLL", 40, width, height, 1, bits, 0, len(content), 2835, 2835, len(colors), 0)
    palette = b"".join(bytes(color[::-1]) + (b"" if old else b"\0") for color in colors)
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<LLL", start + len(content), 0, start) + header + palette + content

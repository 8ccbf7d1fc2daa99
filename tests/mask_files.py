"""Image files written byte by byte, in forms that Pillow reads but does not write; no image library is used."""

import struct
import zlib

import numpy as np


def png(values: np.ndarray, bits: int, palette: bool = False, extra: bytes = b"") -> bytes:
    """A PNG of (height, width) whole numbers with 1, 2, 4, 8 or 16 bits each, gray or indexed."""
    height, width = values.shape
    header = struct.pack(">IIBBBBB", width, height, bits, 3 if palette else 0, 0, 0, 0)
    colors = chunk(b"PLTE", bytes((7 * index) % 256 for index in range(3 * 2 ** min(bits, 8)))) if palette else b""
    rows = b"".join(b"\0" + packed(row, bits) for row in values)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + colors
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header asks for so many pixels, and which holds none."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def packed(row: np.ndarray, bits: int) -> bytes:
    """Numbers of so many bits side by side, the first one highest, filled up to whole bytes."""
    if bits == 16:
        return row.astype(">u2").tobytes()
    digits = (row[:, None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(digits.astype(np.uint8).ravel()).tobytes()


def pgm(values: np.ndarray, largest: int, plain: bool = False) -> bytes:
    """A PGM, binary or as text, whose header names the largest value."""
    height, width = values.shape
    head = f"{'P2' if plain else 'P5'}\n{width} {height}\n{largest}\n".encode()
    if plain:
        return head + " ".join(map(str, values.ravel().tolist())).encode()
    return head + values.astype(np.uint8 if largest < 256 else ">u2").tobytes()


def tiff(values: np.ndarray, bits: int, white_is_zero: bool = False) -> bytes:
    """A gray TIFF of 4, 8 or 16 bits without compression."""
    height, width = values.shape
    little = struct.pack
    rows = b"".join(row.astype("<u2").tobytes() if bits == 16 else packed(row, bits) for row in values)
    entries = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, bits),
        (259, 3, 1),
        (262, 3, 0 if white_is_zero else 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, height),
        (279, 4, len(rows)),
    ]
    head = b"II*\0" + little("<I", 8 + len(rows) + len(rows) % 2)
    directory = b"".join(little("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return head + rows + b"\0" * (len(rows) % 2) + little("<H", len(entries)) + directory + little("<I", 0)

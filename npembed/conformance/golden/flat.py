"""Tensors without a header: NAME.bin, their bytes end to end, and NAME.txt, a line of plain text for each.

For languages in which nobody has written a reader of safetensors. A line is

    name dtype shape offset bytes

with single spaces: the shape's lengths joined by commas, "-" where there is but one number; offset and bytes in the .bin.
Numbers are little-endian, a bool is one byte, 0 or 1. A line that begins with "#" says nothing.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from npembed.support.typing import Array

HEADER = "# name dtype shape offset bytes\n"

DTYPES = ("bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64")
"""What a line's second word may be."""

ALIGNED = 8
"""Each tensor begins at a multiple of this, so that it can be looked at in place."""


def write_flat(stem: Path, tensors: Mapping[str, Array]) -> None:
    """Write `stem`.bin and `stem`.txt.

    Equal tensors give equal bytes: they are in the order of their names.
    """
    lines, end = [HEADER], 0
    with stem.with_name(f"{stem.name}.bin").open("wb") as file:
        for name in sorted(tensors):
            array = tensors[name]
            raw = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
            file.write(bytes(-end % ALIGNED))
            offset = end + -end % ALIGNED
            shape = ",".join(map(str, array.shape)) or "-"
            lines.append(f"{name} {array.dtype.name} {shape} {offset} {len(raw)}\n")
            file.write(raw)
            end = offset + len(raw)
    stem.with_name(f"{stem.name}.txt").write_text("".join(lines), encoding="utf-8", newline="\n")


def read_flat(stem: Path) -> dict[str, Array]:
    """The tensors of `stem`.bin by the lines of `stem`.txt.

    Raises
    ------
    ValueError
        A file that cannot be read; a line that is not as above, or that does not fit the .bin: with its number.
    """
    listed, content = stem.with_name(f"{stem.name}.txt"), stem.with_name(f"{stem.name}.bin")
    try:
        lines, raw = listed.read_text(encoding="utf-8").splitlines(), content.read_bytes()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{listed} and {content.name} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    tensors: dict[str, Array] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            name, array = _tensor(line, raw)
        except ValueError as error:
            raise ValueError(f"line {number} of {listed} is {line[:80]!r}: {error}") from None
        if name in tensors:
            raise ValueError(f"line {number} of {listed} is {line[:80]!r}: {name} has a line already")
        tensors[name] = array
    return tensors


def _tensor(line: str, raw: bytes) -> tuple[str, Array]:
    words = line.split()
    if len(words) != 5:
        raise ValueError("it must have five words: name dtype shape offset bytes")
    name, dtype, lengths, *numbers = words
    if dtype not in DTYPES:
        raise ValueError(f"the dtype must be one of {', '.join(DTYPES)}")
    shape = () if lengths == "-" else tuple(map(_count, lengths.split(",")))
    offset, size = map(_count, numbers)
    kind = np.dtype(dtype).newbyteorder("<")
    needed = int(np.prod(shape, dtype=object)) * kind.itemsize
    if size != needed:
        raise ValueError(f"{dtype} of shape {shape} takes {needed} bytes")
    if offset + size > len(raw):
        raise ValueError(f"the .bin has {len(raw)} bytes")
    array = np.frombuffer(raw, kind, count=size // kind.itemsize, offset=offset).reshape(shape)
    return name, array.astype(kind.newbyteorder("="))


def _count(word: str) -> int:
    if not (word.isascii() and word.isdigit()):
        raise ValueError(f"{word!r} must be a whole number")
    return int(word)

"""The header of a safetensors file: which arrays it holds, of which types, and where; every number in it checked.

The file is a length (u64), a JSON object of that many bytes, and the arrays' bytes without a gap.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npembed.weights.ranges import Ranged
from npembed.weights.source import FLOATS, WHO, Entry, json_object

MOST_HEADER = 25_000_000
"""Bytes of JSON in a header, at most: the bound that huggingface_hub has too."""

BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8} | {
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
"""Bits of one number, by safetensors' name of its type."""


@dataclass(frozen=True)
class Header:
    """The arrays of one file by name, and where each begins, counted in bytes from the beginning of the file."""

    entries: Mapping[str, Entry]
    begins: Mapping[str, int]


def _broken(where: str, reason: str) -> ValueError:
    return ValueError(f"{WHO}: {where} is not a whole safetensors file: {reason}")


def header_length(first: bytes, size: int, where: str) -> int:
    """Bytes of JSON, by the first eight bytes of a file of `size` bytes."""
    if len(first) < 8:
        raise _broken(where, f"it has only {len(first)} bytes")
    length = int.from_bytes(first[:8], "little")
    if length > MOST_HEADER:
        raise _broken(where, f"it claims a header of {length:,} bytes; {MOST_HEADER:,} are allowed")
    if 8 + length > size:
        raise _broken(where, f"it claims a header of {length:,} bytes, but has {size:,}")
    return length


def parse_header(text: bytes, size: int, where: str) -> Header:
    """The header whose JSON is `text`, of a file of `size` bytes.

    Parameters
    ----------
    text : bytes
        Without the eight bytes of its length.
    size : int
        Of the whole file, in bytes.
    where : str
        The file, for messages.

    Returns
    -------
    Header

    Raises
    ------
    ValueError
        Not a JSON object; an unknown type; a shape that is none; places that overlap, leave a gap or the file, or hold
        another number of bytes than type and shape make.

    Notes
    -----
    Source: SPEC 10.

    Examples
    --------
    >>> text = b'{"bias": {"dtype": "F16", "shape": [3], "data_offsets": [0, 6]}}'
    >>> parse_header(text, 8 + len(text) + 6, "a file").entries["bias"]
    Entry(shape=(3,), dtype='F16', nbytes=6)
    """
    content = _json(text, where)
    content.pop("__metadata__", None)
    places = {name: _place(name, value, where) for name, value in content.items()}
    end, first = 0, 8 + len(text)
    for name, (entry, begin) in sorted(places.items(), key=lambda item: (item[1][1], item[1][0].nbytes)):
        if begin != end:
            what = "overlaps the array before it" if begin < end else f"leaves a gap of {begin - end:,} bytes before it"
            raise _broken(where, f"{name!r} {what}")
        end += entry.nbytes
    if first + end != size:
        raise _broken(where, f"it must have {first + end:,} bytes by its header; it has {size:,}")
    return Header({name: entry for name, (entry, _) in places.items()}, {name: first + at for name, (_, at) in places.items()})


def _json(text: bytes, where: str) -> dict[str, Any]:
    try:
        return json_object(text, "its header")
    except ValueError as error:
        raise _broken(where, str(error).removeprefix(f"{WHO}: ")) from None


def _place(name: str, value: Any, where: str) -> tuple[Entry, int]:
    """One array's entry, and where its bytes begin after the header."""
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _broken(where, f"{name!r} must have exactly dtype, shape and data_offsets; got {str(value)[:200]!r}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _broken(where, f"{name!r} is of the unknown dtype {str(dtype)[:40]!r}")
    if not _whole_numbers(shape) or len(shape) > 32:
        raise _broken(where, f"{name!r} has the shape {str(shape)[:80]!r}; it must be a list of whole numbers")
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _broken(where, f"{name!r} has the data_offsets {str(offsets)[:80]!r}; they must be begin and end")
    bits, nbytes = math.prod(shape) * BITS[dtype], offsets[1] - offsets[0]
    if bits != 8 * nbytes:
        raise _broken(where, f"{name!r} has {nbytes:,} bytes, but shape {tuple(shape)} of {dtype} takes {bits // 8:,}")
    return Entry(tuple(shape), dtype, nbytes, dtype in FLOATS), offsets[0]


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 2**63 for number in value)


def as_array(raw: bytes | bytearray, entry: Entry, name: str, where: str) -> NDArray[Any]:
    """The array whose little-endian bytes are `raw`: float32, half types widened, or float64.

    Examples
    --------
    >>> as_array(bytes([0x80, 0x3F, 0x00, 0xC0]), Entry((2,), "BF16", 4), "bias", "a file")
    array([ 1., -2.], dtype=float32)
    """
    if entry.dtype not in FLOATS:
        raise ValueError(f"{WHO}: {name!r} in {where} is of dtype {entry.dtype}; it must be one of {', '.join(FLOATS)}")
    if len(raw) != entry.nbytes:
        raise ValueError(f"{WHO}: {name!r} in {where} must have {entry.nbytes:,} bytes; {len(raw):,} came")
    if entry.dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(entry.shape)
    stored = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[entry.dtype]
    return np.frombuffer(raw, stored).astype(np.float64 if entry.dtype == "F64" else np.float32).reshape(entry.shape)


def read_header(file: Ranged) -> Header:
    """The header of a file that is read by parts."""
    length = header_length(file.read(0, min(8, file.size)), file.size, file.where)
    return parse_header(file.read(8, length), file.size, file.where)

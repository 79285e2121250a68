"""Named arrays in a file, .safetensors or .npz; and files that are replaced whole or left alone."""

import json
import math
import os
import stat
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npembed.support import stops
from npembed.support.atomic import file_beside, sweep
from npembed.support.messages import shown
from npembed.support.reading import check_regular, json_object, open_regular

SUFFIXES = (".safetensors", ".npz")


def check_output(path: str | Path, suffixes: tuple[str, ...] = (), inputs: Iterable[str | Path] = ()) -> Path:
    """The path, if a file of that kind, or of any, can be written there; found out before the work rather than after it.

    Parameters
    ----------
    path : path
    suffixes : tuple of str
        Those that it may have; any if there are none.
    inputs : iterable of path
        Files that the same run reads: the output may be none of them, by whichever name or link.

    Raises
    ------
    ValueError
        Another suffix; a folder that is missing or cannot be written to; something there that is no regular file, is read-only,
        or is an input.
    ImportError
        A .safetensors file without the extra `weights`.
    """
    path = Path(path)
    if suffixes and path.suffix not in suffixes:
        raise ValueError(f"the output {path} must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ValueError(f"the output {path} is a folder")
    folder = resolved(path).parent
    if not folder.is_dir():
        raise ValueError(f"the output's folder {folder} does not exist")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"the output's folder {folder} cannot be written to")
    _check_replaceable(path, path)
    for file in inputs:
        if same_file(path, file):
            raise ValueError(
                f"the output {path} is the input {file}" if str(path) != str(file) else f"the output {path} is an input"
            )
    if path.suffix == ".safetensors":
        _safetensors()  # says which extra it needs
    return path


def resolved(path: str | Path, what: str = "the output") -> Path:
    """Through every link, so that a link stays one and what it leads to is replaced."""
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError):  # what a loop of links raises depends on Python's version
        raise ValueError(f"{what} {path} cannot be written: its links lead nowhere") from None


def _check_replaceable(path: Path, shown: str | Path) -> None:
    """Only a regular file that may be written to makes way for another; a folder's refusal is the system's own."""
    try:
        mode = path.stat().st_mode
    except OSError:  # nothing is there, or nothing that can be reached, which the system will say
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError(f"the output {shown} is no regular file")
    if stat.S_ISREG(mode) and not (mode & 0o222 and os.access(path, os.W_OK)):
        raise ValueError(f"the output {shown} is read-only")


def same_file(one: str | Path, other: str | Path) -> bool:
    """Whether two paths name one file, there already or not yet: by its number on its device, so through any link."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` when the block ends, and is gone if it fails.

    What killed runs left in that folder is deleted first.

    Raises
    ------
    ValueError
        The file system's own refusal, in words; a `path` that is no regular file, or is read-only.
    """
    target = resolved(path)
    try:
        sweep(target.parent)
        with file_beside(target) as beside:
            mode = (target if target.exists() else beside).stat().st_mode
            yield beside
            with stops.held_back():
                beside.chmod(mode)
                _check_replaceable(target, path)
                os.replace(beside, target)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}") from None


def save_tensors(path: str | Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write named arrays and their metadata; the suffix says which format. Equal arrays and metadata give equal bytes.

    An .npz carries the metadata as JSON text in its array `metadata`.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    check_output(path, SUFFIXES)
    with replacing(path) as beside:
        if beside.suffix == ".npz":
            np.savez(beside, **arrays, metadata=np.array(json.dumps(dict(metadata), ensure_ascii=False, sort_keys=True)))  # type: ignore[arg-type]
        else:
            write_safetensors(beside, arrays, metadata)


_LONGEST_HEADER = 25_000_000
"""In bytes, of a safetensors file."""

MOST_TENSORS = 2**29
"""Bytes of the arrays in a file that is read whole, at most, as they are in memory."""

_SAFETENSORS_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "uint16": "U16",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
    "float64": "F64",
    "int64": "I64",
    "uint64": "U64",
}
"""NumPy's name of a type -> safetensors' own, in the order in which its writer ranks them."""


def write_safetensors(path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """C-ordered arrays straight into a file that `replacing` or `file_beside` gave.

    The header's length in eight bytes, the header as JSON, the arrays' bytes.

    safetensors' own writer puts the metadata in an order that changes from run to run. As there, wide types come first, and
    in each type the names in order, so each array begins at a multiple of its type's width.
    """
    for name, array in arrays.items():
        if array.dtype.name not in _SAFETENSORS_DTYPES:
            raise OSError(f"Unknown dtype {array.dtype} of {name}")  # `replacing` says of which file
    rank = list(_SAFETENSORS_DTYPES)
    ordered = sorted(arrays, key=lambda name: (-rank.index(arrays[name].dtype.name), name))
    header: dict[str, Any] = {"__metadata__": {name: metadata[name] for name in sorted(metadata)}}
    end = 0
    for name in ordered:
        begin, end = end, end + arrays[name].nbytes
        dtype = _SAFETENSORS_DTYPES[arrays[name].dtype.name]
        header[name] = {"dtype": dtype, "shape": list(arrays[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            file.write(_little_endian(arrays[name]).reshape(-1).view(np.uint8).data)


def _little_endian(array: NDArray[Any]) -> NDArray[Any]:
    other = array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big")
    return array.astype(array.dtype.newbyteorder("<")) if other else array


def is_own_output(path: Path) -> bool:
    """Whether a .safetensors file says of itself that `npembed embed` wrote it."""
    try:
        if path.suffix != ".safetensors":
            return False
        with open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            metadata = json_object(file.read(min(length, _LONGEST_HEADER)), "the header")["__metadata__"]
        return {"npembed", "stage"} <= set(metadata)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def load_tensors(path: str | Path) -> dict[str, NDArray[Any]]:
    """The named arrays in a .safetensors or .npz file, without its metadata.

    Raises
    ------
    ValueError
        A file that is missing, no regular file, of another kind, cut short or damaged; arrays of more than `MOST_TENSORS`
        bytes; in an .npz, something that is no array, and an array of objects.
    ImportError
        A .safetensors file without the extra `weights`.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} must end in {' or '.join(SUFFIXES)}")
    module = None if path.suffix == ".npz" else _safetensors()
    check_regular(path, MOST_TENSORS)
    try:
        return _load_npz(path) if module is None else dict(module.load_file(path))
    except Exception as error:  # a damaged file raises whatever its reader stumbles on
        raise ValueError(f"{path} cannot be read: {shown(error)}") from None


def _load_npz(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz; what each takes is known from the zip's directory and its own header before it is unpacked."""
    with open_regular(path, MOST_TENSORS) as file, zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        total = sum(member.file_size for member in members.values())
        if total > MOST_TENSORS:
            raise ValueError(f"its arrays take {total:,} bytes; at most {MOST_TENSORS:,} are read")
        arrays = {
            name: _read_npy(archive, name, member.file_size) for name, member in members.items() if name != "metadata.npy"
        }
    return {name.removesuffix(".npy"): array for name, array in arrays.items()}


def _read_npy(archive: zipfile.ZipFile, name: str, size: int) -> NDArray[Any]:
    with archive.open(name) as member:
        if member.read(6) != np.lib.format.MAGIC_PREFIX:
            raise ValueError(f"its member {shown(name, 80)!r} is no array")
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(member)
        if dtype.hasobject or math.prod(shape) * dtype.itemsize > size:
            raise ValueError(f"its member {shown(name, 80)!r} is an array of objects, or cut short")
    with archive.open(name) as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _safetensors() -> Any:
    try:
        import ml_dtypes  # noqa: F401  # with it imported, safetensors reads and writes bfloat16
        from safetensors import numpy
    except ImportError:
        raise ImportError("safetensors files need safetensors and ml_dtypes: pip install 'npembed[weights]'") from None
    return numpy

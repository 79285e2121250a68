"""Named arrays in a file, .safetensors or .npz; and files that are replaced whole or left alone."""

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SUFFIXES = (".safetensors", ".npz")


def check_output(path: str | Path, suffixes: tuple[str, ...] = ()) -> Path:
    """The path, if a file of that kind, or of any, can be written there; found out before the work rather than after it."""
    path = Path(path)
    if suffixes and path.suffix not in suffixes:
        raise ValueError(f"the output {path} must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ValueError(f"the output {path} is a folder")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise ValueError(f"the output's folder {folder} does not exist")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"the output's folder {folder} cannot be written to")
    if path.suffix == ".safetensors":
        _safetensors()  # says which extra it needs
    return path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` when the block ends, and is gone if it fails.

    Raises
    ------
    ValueError
        The file system's own refusal, in words.
    """
    target = Path(path).resolve()  # through a link, so that the link stays one
    beside = target.with_name(f".npembed-{secrets.token_hex(8)}{target.suffix}")
    try:
        beside.touch()
        mode = (target if target.exists() else beside).stat().st_mode
        yield beside
        beside.chmod(mode)  # safetensors makes its files the owner's alone
        os.replace(beside, target)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):  # nothing is there, or the folder's refusal has been said above
            beside.unlink()


def save_tensors(path: str | Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write named arrays and their metadata; the suffix says which format.

    An .npz carries the metadata as JSON text in its array `metadata`.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    check_output(path, SUFFIXES)
    with replacing(path) as beside:
        if beside.suffix == ".npz":
            np.savez(beside, **arrays, metadata=np.array(json.dumps(metadata, ensure_ascii=False)))  # type: ignore[arg-type]
        else:
            _save_safetensors(arrays, beside, metadata)


def _save_safetensors(arrays: dict[str, NDArray[Any]], path: Path, metadata: Mapping[str, str]) -> None:
    module = _safetensors()
    from safetensors import SafetensorError

    try:
        module.save_file(arrays, path, metadata=dict(metadata))
    except SafetensorError as error:  # in which it wraps a full disk's refusal, say
        raise OSError(str(error)) from None


def load_tensors(path: str | Path) -> dict[str, NDArray[Any]]:
    """The named arrays in a .safetensors or .npz file, without its metadata.

    Raises
    ------
    ValueError
        A file that is missing, of another kind, cut short or damaged.
    ImportError
        A .safetensors file without the extra `weights`.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} must end in {' or '.join(SUFFIXES)}")
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    module = None if path.suffix == ".npz" else _safetensors()
    try:
        if module is not None:
            return dict(module.load_file(path))
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:  # np.load leaves a damaged file open
            return {name: arrays[name] for name in arrays.files if name != "metadata"}
    except Exception as error:  # a damaged file raises whatever its reader stumbles on
        raise ValueError(f"{path} cannot be read: {error}") from None


def _safetensors() -> Any:
    try:
        import ml_dtypes  # noqa: F401  # with it imported, safetensors reads and writes bfloat16
        from safetensors import numpy
    except ImportError:
        raise ImportError("safetensors files need safetensors and ml_dtypes: pip install 'npembed[weights]'") from None
    return numpy

"""A checkpoint's folder: which of its safetensors files holds which array, and reading just the arrays asked for."""

import json
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from npembed import checks

READABLE_DTYPES = ("F16", "BF16", "F32", "F64")
"""safetensors' names of the types that become float32 or stay float64."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Checkpoint:
    """The arrays of a folder by name. A file is open only as long as one array is read from it: its mapped pages go with it.

    Raises
    ------
    ValueError
        No safetensors file, or several without an index; an index or a file that cannot be read as one.
    ImportError
        Without the extra `weights`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file_of = self._names()

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def _names(self) -> dict[str, str]:
        """Each array's name -> the name of the file that holds it."""
        index = self._folder / INDEX
        if index.is_file() and not (self._folder / SINGLE).is_file():
            return _read_index(index)
        found = [SINGLE] if (self._folder / SINGLE).is_file() else [path.name for path in self._folder.glob("*.safetensors")]
        if len(found) != 1:
            raise ValueError(f"load_model: {self._folder} has neither {SINGLE} nor {INDEX}")
        with _open_safetensors(self._folder / found[0]) as file:
            return dict.fromkeys(file.keys(), found[0])

    def prefix_of(self, ours: str, tail: str) -> str:
        """The prefix under which the array `tail` stands: `ours` if it does, else the only other one, else `ours`."""
        prefixes = [name.removesuffix(tail) for name in self._file_of if name == tail or name.endswith("." + tail)]
        if ours in prefixes or not prefixes:
            return ours
        if len(prefixes) > 1:
            raise ValueError(
                f"load_model: {self._folder} has {tail} under several prefixes, {', '.join(map(repr, sorted(prefixes)))}; "
                "which one is meant cannot be told"
            )
        return prefixes[0]

    def read(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """One array, float32 or float64; its type and shape are checked before its numbers are read."""
        path = self._folder / self._file_of[name]
        with _open_safetensors(path) as file:
            if name not in file.keys():  # it is no dict
                raise ValueError(f"load_model: {path} does not hold {name}, though {INDEX} says so")
            header = file.get_slice(name)
            found, dtype = tuple(header.get_shape()), header.get_dtype()
            if dtype not in READABLE_DTYPES:
                known = ", ".join(READABLE_DTYPES)
                raise ValueError(f"load_model: {name} in {path} is of dtype {dtype}; it must be one of {known}")
            if found != shape:
                raise ValueError(f"load_model: {name} in {path} must have shape {shape} by the config; got {found}")
            return checks.as_floats(file.get_tensor(name), name, "load_model")


def _open_safetensors(path: Path) -> Any:
    """The file, memory-mapped, as a context manager."""
    try:
        import ml_dtypes  # noqa: F401  # with it imported, safetensors reads bfloat16
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ImportError("reading checkpoints needs safetensors and ml_dtypes: pip install 'npembed[weights]'") from None
    if not path.is_file():
        raise ValueError(f"load_model: the checkpoint's file {path} is missing")
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"load_model: {path} is not a whole safetensors file: {error}") from None


def _read_index(index: Path) -> dict[str, str]:
    """Each array's name -> the name of the file that holds it, as the index of a sharded checkpoint says."""
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not isinstance(files, dict) or not files:
            raise TypeError("weight_map is no object, or empty")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"load_model: {index} is no index of shards: {error!r}") from None
    for name, file in files.items():
        if not isinstance(file, str) or file in ("", "..") or Path(file).name != file or "\\" in file:
            raise ValueError(f"load_model: {index} puts {name} into {file!r}; it must be the name of a file inside the folder")
    return files

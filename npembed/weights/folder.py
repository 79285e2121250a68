"""A checkpoint's folder: its configs, which of its safetensors files holds which array, and reading those asked for."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from npembed import arguments
from npembed.typing import Floats
from npembed.weights.source import INDEX, SINGLE, Entry, check_entry, entry_of, finite


class Folder:
    """The arrays of a folder by name. A file is open only as long as one array is read from it: its mapped pages go with it.

    Raises
    ------
    ValueError
        No folder; no safetensors file, or several without an index; an index or a file that cannot be read as one.
    ImportError
        Without the extra `weights`.
    """

    def __init__(self, folder: str | Path, who: str = "load_model") -> None:
        self._folder = Path(folder)
        self.where = str(folder)
        if not self._folder.is_dir():
            raise ValueError(f"{who}: {folder} is not a folder")

    def json(self, name: str) -> Mapping[str, Any] | None:
        """The JSON object in one of its files; None where there is no such file."""
        path = self._folder / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ValueError(f"read_config: {path} cannot be read as JSON: {error}") from None
        if not isinstance(content, dict):
            raise ValueError(f"read_config: {path} must hold a JSON object; got {type(content).__name__}")
        return content

    @cached_property
    def _file_of(self) -> dict[str, str]:
        """Each array's name -> the name of the file that holds it."""
        index = self._folder / INDEX
        if index.is_file() and not (self._folder / SINGLE).is_file():
            return _read_index(index)
        found = [SINGLE] if (self._folder / SINGLE).is_file() else [path.name for path in self._folder.glob("*.safetensors")]
        if len(found) != 1:
            raise ValueError(f"load_model: {self._folder} has neither {SINGLE} nor {INDEX}")
        with _open_safetensors(self._folder / found[0]) as file:
            return dict.fromkeys(file.keys(), found[0])

    def names(self) -> list[str]:
        """Every array's name; no file but the index is opened where there is one."""
        return list(self._file_of)

    def entries(self) -> Mapping[str, Entry]:
        """Every array by its name: shape, type and bytes."""
        found = {}
        for file_name in dict.fromkeys(self._file_of.values()):
            with _open_safetensors(self._folder / file_name) as file:
                for name in file.keys():
                    part = file.get_slice(name)
                    found[name] = entry_of(part.get_shape(), part.get_dtype())
        return found

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> Floats:
        """One array, float32 or float64; its type and shape are checked before its numbers are read."""
        path = self._folder / self._file_of[name]
        with _open_safetensors(path) as file:
            if name not in file.keys():  # it is no dict
                raise ValueError(f"load_model: {path} does not hold {name}, though {INDEX} says so")
            part = file.get_slice(name)
            check_entry(entry_of(part.get_shape(), part.get_dtype()), shape, f"{name} in {path}")
            return finite(arguments.as_floats(file.get_tensor(name), name, "load_model"), f"{name} in {path}")


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

"""A checkpoint's folder, wherever it is: of its safetensors files only the parts that are asked for are read.

Files on this machine, at URLs and on the Hub go this one way, by the header reader of `safetensors_header`. The package
safetensors would serve for files on this machine alone; it maps them, and a mapped file that is cut off meanwhile ends the
process, where a read is an error with a name.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Protocol

from npembed.support.messages import brief, shown
from npembed.support.reading import json_value
from npembed.support.typing import Floats
from npembed.weights.places import Ahead, Place, bytes_of
from npembed.weights.ranges import Ranged
from npembed.weights.safetensors_header import Header, as_array, read_header
from npembed.weights.source import INDEX, SINGLE, WHO, Entry, Progress, json_object, weight_map

ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "vpm_resampler_embedtokens.pt")
"""Files of a fine-tuning, PEFT's and MiniCPM-V's own, which other programs apply to the model beside them."""

MODULES = "modules.json"
"""What sentence-transformers computes: the model, and what comes after it."""


class Files(Protocol):
    """The files of one folder, wherever it is."""

    def address(self, name: str) -> str:
        """A file, for messages; never holds a credential."""

    def has(self, name: str) -> bool:
        """Whether there is such a file; nothing of it is read."""

    def whole(self, name: str) -> bytes | None:
        """A small file's bytes; None if there is none."""

    def file(self, name: str) -> Ranged | None:
        """A large file; None if there is none."""


class Checkpoint:
    """A source: safetensors files and their config in one folder.

    Parameters
    ----------
    where : str
        For messages and metadata.
    files : Files
    single : str, optional
        The one file that holds all arrays. Without it, `model.safetensors`, or the files that an index names.

    Notes
    -----
    Nothing is read before it is asked for. Of a checkpoint in several files, the index alone tells the names, so only the
    headers of files from which an array is asked are read.
    """

    def __init__(self, where: str, files: Files, single: str | None = None) -> None:
        self.where, self._source, self._single = where, files, single
        self._json: dict[str, dict[str, Any] | None] = {}
        self._files: dict[str, tuple[Ranged, Header]] = {}
        self._file_of: dict[str, str] = {}
        self._ahead = Ahead(self.ranged)
        self._stated = 0

    def json(self, name: str) -> dict[str, Any] | None:
        """The JSON object in the file `name`; None if there is no such file."""
        if name not in self._json:
            raw = self._source.whole(name)
            self._json[name] = None if raw is None else json_object(raw, self._source.address(name))
        return deepcopy(self._json[name])

    def modules(self) -> list[dict[str, Any]]:
        """What sentence-transformers would run, each with its `type`; empty if the checkpoint is not of its making."""
        if not self._source.has(MODULES):
            return []
        where = f"{WHO}: {self._source.address(MODULES)}"
        found = json_value(self._source.whole(MODULES) or b"", where)
        kinds = [each.get("type") if isinstance(each, dict) else None for each in found] if isinstance(found, list) else [None]
        if not all(isinstance(kind, str) for kind in kinds):
            raise ValueError(f"{where} is no list of modules, each with its type")
        return list(found)

    @property
    def notes(self) -> Sequence[str]:
        """What another program computes after the model, which is not applied."""
        if self.json("config.json") is None:
            return ()
        kinds = [each["type"].rpartition(".")[2] for each in self.modules()]
        after = shown(", ".join(kind for kind in kinds if kind != "Transformer"))
        words = f"{self.where}: after the model, {MODULES} has {after}; this is not applied, so the vectors are those before it"
        return (words,) if after else ()

    def _refuse_other_weights(self, read: str) -> None:
        """An error if other programs would take other weights than the arrays of this file, or change them."""
        if found := next(filter(self._source.has, ADAPTERS), None):
            words = "has an adapter that is not applied; merge it first (PEFT: merge_and_unload), or move it elsewhere:"
            raise ValueError(f"{WHO}: {self.where} {words} {found}")
        stated = (self.json("config.json") or {}).get("transformers_weights")
        if stated not in (None, read):
            words = f"config.json names {brief(stated)} as its weights (transformers_weights), but {read} would be read"
            raise ValueError(f"{WHO}: {self.where}: {words}")

    def names(self) -> Mapping[str, str]:
        """Every array's name -> the name of the file that holds it."""
        if not self._file_of:
            name = self._single or SINGLE
            if (single := self._source.file(name)) is not None:
                self._refuse_other_weights(name)
                self._files[name] = single, read_header(single)
                self._file_of = dict.fromkeys(self._files[name][1].entries, name)
            elif self._single:
                raise ValueError(f"{WHO}: the checkpoint's file {self._source.address(name)} is missing")
            else:
                self._refuse_other_weights(INDEX)
                self._file_of = self._indexed()
        return self._file_of

    def _indexed(self) -> dict[str, str]:
        raw, where = self._source.whole(INDEX), self._source.address(INDEX)
        if raw is None:
            raise ValueError(f"{WHO}: {self.where} has neither {SINGLE} nor {INDEX}{self.hint()}")
        index = json_object(raw, where)
        metadata = index.get("metadata")
        stated = metadata.get("total_size") if isinstance(metadata, dict) else None
        self._stated = stated if type(stated) is int else 0
        return weight_map(index, where)

    def hint(self) -> str:
        """What to do where config.json or the safetensors files are missing; or nothing."""
        found = next(filter(self._source.has, ADAPTERS), None)
        return f", but an adapter, {found}: merge it into its model first (PEFT: merge_and_unload)" if found else ""

    def entry(self, name: str) -> Entry:
        """What is known of an array without reading it."""
        return self.place(name).entry

    def file_of(self, name: str) -> str:
        """The file that holds an array, for messages."""
        return self._source.address(self.names()[name])

    def place(self, name: str) -> Place:
        """Where an array's bytes are."""
        file = self.names()[name]
        header = self._opened(file)[1]
        if name not in header.entries:
            raise ValueError(f"{WHO}: {self._source.address(file)} does not hold {name}, though {INDEX} says so")
        return Place(name, file, header.begins[name], header.entries[name])

    def size(self) -> int:
        """Bytes of the whole checkpoint, as far as it is known without asking for more."""
        return max(self._stated, sum(file.size for file, _ in self._files.values()))

    def far(self, names: Iterable[str]) -> int:
        """How many bytes of these arrays are not on this machine."""
        return bytes_of(self._ahead.far(map(self.place, names)))

    def prefetch(self, names: Iterable[str], progress: Progress | None = None) -> None:
        """Read these arrays' bytes together where they lie together, and keep each until it is read."""
        self._ahead.read(map(self.place, names), progress)

    def read(self, name: str) -> Floats:
        """One array: float32, half types widened, or float64."""
        place = self.place(name)
        return as_array(self._ahead.take(place), place.entry, name, self._source.address(place.file))

    def ranged(self, file: str) -> Ranged:
        """One of the safetensors files."""
        return self._opened(file)[0]

    def _opened(self, file: str) -> tuple[Ranged, Header]:
        if file not in self._files:
            opened = self._source.file(file)
            if opened is None:
                raise ValueError(f"{WHO}: the checkpoint's file {self._source.address(file)} is missing")
            self._files[file] = opened, read_header(opened)
        return self._files[file]

"""An mmproj file of llama.cpp as a source: its arrays under the checkpoint's names, and the config that it implies.

A shape is believed, the metadata's word for the same thing is compared with it: released files state a block too few,
and give the two matrices of the MLP each other's names.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from npembed.records.family import GgufNames
from npembed.support.typing import Floats
from npembed.weights.gguf import GgufFile
from npembed.weights.gguf_config import CONFIGS, GGUF_NAMES, Facts, patch_shape, spelled, stored_blocks
from npembed.weights.ranges import Ranged
from npembed.weights.source import WHO, Entry, Progress


@dataclass(frozen=True)
class _Made:
    """How one of the checkpoint's arrays is made: the file's arrays laid end to end by rows, perhaps transposed."""

    names: tuple[str, ...]
    turned: bool


class GgufSource:
    """The vision part of a model in an mmproj file of llama.cpp.

    Parameters
    ----------
    file : path or Ranged
    where : str, optional
        What it is called in metadata; as in messages by default.

    Attributes
    ----------
    where : str
    notes : tuple of str
        One line each, to show to the user: what the file says that its arrays contradict, or leaves open.

    Raises
    ------
    ValueError
        As `GgufFile`; an unknown projector; arrays that are unknown, named; metadata that the arrays contradict;
        metadata that is needed and missing.
    ImportError
        Without the extra `gguf`.

    Notes
    -----
    config.json and preprocessor_config.json are made from metadata and shapes, in the released checkpoints' layout. What
    no file says is what every released checkpoint says: max_slice_nums 9, slice_mode true, drop_vision_last_layer false.
    """

    def __init__(self, file: str | Path | Ranged, where: str = "") -> None:
        self.file = GgufFile(file)
        self.where = where or self.file.where
        facts = Facts(self.file)
        projector = facts.projector()
        self._made = _table(self.file, GGUF_NAMES[projector])
        self._entries = {name: self._entry(name) for name in self._made}
        config, preprocessor = CONFIGS[projector](facts, self._entries)
        self._json = {"config.json": config, "preprocessor_config.json": preprocessor}
        self.notes = tuple(facts.notes)

    def json(self, name: str) -> dict[str, Any] | None:
        """config.json or preprocessor_config.json, made from metadata and shapes; None for any other."""
        return deepcopy(self._json.get(name))

    def hint(self) -> str:
        """Nothing: the config is always there."""
        return ""

    def names(self) -> Mapping[str, Entry]:
        """Every array, under the checkpoint's own name."""
        return self._entries

    def entry(self, name: str) -> Entry:
        """What is known of an array without reading it."""
        return self._entries[name]

    def file_of(self, name: str) -> str:
        """The file, whatever the array."""
        return self.file.where

    def size(self) -> int:
        """Of the file, in bytes."""
        return self.file.size()

    def far(self, names: Iterable[str]) -> int:
        """How many bytes of these arrays are not on this machine."""
        return self.file.far(self._parts(names))

    def prefetch(self, names: Iterable[str], progress: Progress | None = None) -> None:
        """Read these arrays' bytes together where they lie together, if the file is far away."""
        self.file.prefetch(self._parts(names), progress)

    def _parts(self, names: Iterable[str]) -> list[str]:
        return [part for name in names for part in self._made[name].names]

    def read(self, name: str) -> Floats:
        """One array: float32, half and quantised types widened, or float64."""
        made = self._made[name]
        array = np.concatenate([self.file.read(part) for part in made.names])
        return np.ascontiguousarray(array.T) if made.turned else array

    def _entry(self, name: str) -> Entry:
        made = self._made[name]
        parts = [self.file.entries[part] for part in made.names]
        if len({part.shape[1:] for part in parts}) > 1:
            raise ValueError(f"{WHO}: {' and '.join(made.names)} in {self.where} must have rows of one length")
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        dtype = "+".join(dict.fromkeys(part.dtype for part in parts))
        nbytes, readable = sum(part.nbytes for part in parts), all(part.readable for part in parts)
        return Entry(shape[::-1] if made.turned else shape, dtype, nbytes, readable)


def _table(file: GgufFile, names: GgufNames) -> dict[str, _Made]:
    """Each of the checkpoint's arrays that the file holds -> how it is made."""
    wanted: dict[str, list[str]] = {}
    blocks = stored_blocks(file)
    for ours, theirs in names.names.items():
        for name, made in _pairs(ours, theirs, blocks):
            wanted.setdefault(made, []).append(name)
    known = names.ignored.union(*wanted.values())
    unknown = [name for name in file.entries if name not in known]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ValueError(f"{WHO}: {file.where} holds unknown arrays: {', '.join(map(repr, unknown[:5]))}{more}")
    for n in range(blocks):
        _straighten(file, names, wanted, n)
    whole = {name: parts for name, parts in wanted.items() if all(part in file.entries for part in parts)}
    return {name: _Made(tuple(parts), name in names.turned) for name, parts in whole.items()}


def _pairs(ours: str, theirs: str, blocks: int) -> list[tuple[str, str]]:
    """The pairs of names for which a pair with `*` and `N` stands."""
    tails = ("weight", "bias") if "*" in ours else ("",)
    numbers: Iterable[int | str] = range(blocks) if ".N." in ours else ("",)
    return [(spelled(ours, n, tail), spelled(theirs, n, tail)) for n in numbers for tail in tails]


def _straighten(file: GgufFile, names: GgufNames, wanted: dict[str, list[str]], n: int) -> None:
    """Exchange what is wanted for fc1 and fc2 where block n has them under each other's names: fc1's rows have D numbers."""
    up, down = (file.entries.get(f"v.blk.{n}.{name}.weight") for name in ("ffn_up", "ffn_down"))
    if up is None or down is None:
        return
    width = patch_shape(file)[0]
    if up.shape != down.shape[::-1] or width not in up.shape:
        raise ValueError(
            f"{WHO}: v.blk.{n}.ffn_up.weight and ffn_down.weight in {file.where} have shapes {up.shape} and {down.shape}; "
            f"they must be (I, {width}) and ({width}, I)"
        )
    square = up.shape == down.shape
    if names.legacy if square else down.shape[1] == width:
        for tail in ("weight", "bias"):
            fc1, fc2 = (spelled(names.names[f"v.blk.N.{name}.*"], n, tail) for name in ("ffn_up", "ffn_down"))
            wanted[fc1], wanted[fc2] = wanted[fc2], wanted[fc1]

"""The one interface of every source of arrays, and the words that sources share."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from npembed.support import reading
from npembed.support.messages import brief
from npembed.support.typing import Floats

WHO = "load_model"
"""The public function in whose name a source refuses."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

Progress = Callable[[int, int], object]
"""Called with the bytes that are there and the bytes that there will be."""

FLOATS = ("F16", "BF16", "F32", "F64")
"""The unquantised types that become float32 or stay float64."""


@dataclass(frozen=True)
class Entry:
    """What is known of an array without reading it.

    Attributes
    ----------
    shape : tuple of int
        NumPy's order.
    dtype : str
        safetensors' word, F32 or BF16 say, or GGUF's, Q8_0 say; several in one array are joined by "+".
    nbytes : int
        As stored.
    readable : bool
        Whether its source can make floats of it.
    """

    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    readable: bool = field(default=True, repr=False)


class Source(Protocol):
    """Where a model's arrays are: their names, shapes and types without reading, and one array at a time.

    A kind of source says what there is. What of it can be used, `load_model` decides, in one place for all.
    """

    @property
    def where(self) -> str:
        """For messages and metadata; never holds a credential."""

    @property
    def notes(self) -> Sequence[str]:
        """One line each, to show to the user: what the source says that its arrays contradict, or leaves open."""

    def json(self, name: str) -> Mapping[str, Any] | None:
        """The JSON object in the file `name`, config.json say; None if the source has no such file."""

    def hint(self) -> str:
        """What to do where config.json or the arrays are missing; or nothing."""

    def names(self) -> Collection[str]:
        """Every array, under the checkpoint's own name."""

    def entry(self, name: str) -> Entry:
        """What is known of an array without reading it."""

    def file_of(self, name: str) -> str:
        """The file that holds an array, for messages."""

    def size(self) -> int:
        """Bytes of the whole, as far as it is known without asking for more."""

    def far(self, names: Iterable[str]) -> int:
        """How many bytes of these arrays are not on this machine."""

    def prefetch(self, names: Iterable[str], progress: Progress | None = None) -> None:
        """Read what is far away, in as few parts as possible, and keep it until it is read."""

    def read(self, name: str) -> Floats:
        """One array: float32, half and quantised types widened, or float64."""


_SECRET = re.compile(r"(?<![^/@])[^/:@]*:[^/@]*@")
"""user:password@, looked for only where it may begin: from every letter on, a text of 100,000 took ten seconds."""


def public(address: str) -> str:
    """An address as it may be shown: without user, password, query or fragment, and without control characters.

    Examples
    --------
    >>> public("https://ann:secret@example.org/m/?token=x")
    'https://example.org/m/'
    """
    try:
        parts = urlsplit(address)
    except ValueError:  # it is no URL: http://[::1, say
        return printable(_SECRET.sub("", re.split("[?#]", address)[0]))
    host = parts.netloc.rpartition("@")[2]
    bare = urlunsplit((parts.scheme, host, parts.path, "", "")) if parts.netloc else _SECRET.sub("", address)
    return printable(bare)


def printable(text: str) -> str:
    """Text from outside, without control characters."""
    return re.sub(r"[^\x20-\x7e\xa0-\U0010ffff]", "?", text)


def most_bytes(name: str) -> int:
    """Of a JSON file of that name."""
    return reading.MOST_INDEX if name == INDEX else reading.MOST_JSON


def json_object(text: bytes | str, where: str) -> dict[str, Any]:
    """The JSON object in a text, read within bounds."""
    return reading.json_object(text, f"{WHO}: {where}")


def weight_map(index: dict[str, Any], where: str) -> dict[str, str]:
    """Each array's name -> the name of the file that holds it, as the index of a sharded checkpoint says."""
    files = index.get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{WHO}: {where} is no index of shards: its weight_map is no object, or empty")
    for name, file in files.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w.+-]*[\w+-]\.safetensors", file):
            raise ValueError(
                f"{WHO}: {where} puts {printable(name)} into {file!r}; it must be the name of a file inside the folder"
            )
    return files


QUANTISED = ". The checkpoint is quantised: take the one that it was made from, or an mmproj file of llama.cpp (.gguf)"

_QUANTISED = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|weight_scale|weight_scale_inv|weight_packed|SCB|absmax|nested_absmax|quant_map|nested_quant_map"
    r"|quant_state\..+)$"
)
"""How the arrays are called that GPTQ, AWQ, bitsandbytes and compressed-tensors add."""


def quantised(names: Iterable[str]) -> str:
    """`QUANTISED` if one of the arrays is what a quantised checkpoint has beside its numbers, or nothing."""
    return QUANTISED if any(map(_QUANTISED.search, names)) else ""


_WRAPPER = re.compile(r"(?<![^.])(base_model\.model|module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What PEFT and torch put into the names of a model that they wrap."""


def behind(missing: Sequence[str], names: Iterable[str]) -> str:
    """Where the first of the arrays that are missing is after all: behind a prefix that something has added; or nothing.

    Examples
    --------
    >>> behind(["vpm.bias"], ["llm.bias", "module.vpm.bias"])
    "; vpm.bias is there behind 'module.', which a wrapper of the model has added: save the model without it"
    """
    for name in names if missing else ():
        first, inner = missing[0], [match.end() for match in _WRAPPER.finditer(name)]
        wrapped = inner and _WRAPPER.sub("", name) == first
        if wrapped or name.endswith(f".{first}"):
            prefix = name[: inner[-1]] if wrapped else name.removesuffix(first)
            words = (
                f"; {first} is there behind {brief(prefix)}, which a wrapper of the model has added: save the model without it"
            )
            return words + " (PEFT: merge_and_unload)" * ("base_model." in prefix)
    return ""


def check_entries(source: Source, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """An error unless these arrays have these shapes, and can be read; nothing of them is read."""
    for name, shape in shapes.items():
        entry = source.entry(name)
        where = f"{WHO}: {name} in {source.file_of(name)}"
        if not entry.readable:
            words = f"{where} is of dtype {entry.dtype}; it must be one of {', '.join(FLOATS)}"
            raise ValueError(words + QUANTISED * (entry.dtype[0] in "UI" or entry.dtype.startswith(("F8", "F4"))))
        if entry.shape != shape:
            raise ValueError(f"{where} must have shape {shape} by the config; got {entry.shape}")


def finite(array: Floats, where: str) -> Floats:
    """The array, or an error that names its first element that is no number."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = array.sum(dtype=np.float64)  # one pass; only a sum that is not finite is looked into
    if np.isfinite(total):
        return array
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise ValueError(f"load_model: {where} holds {array[place]} at {list(place)}; weights must be finite")
    return array

"""A failing call as Python that can be pasted and run as it stands: its imports, then the call."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np

from npembed.conformance.filling import KINDS
from npembed.records.family import Family
from npembed.records.model import Model
from npembed.support.typing import Array

WRITTEN_OUT = 12
"""Elements of an array that is written out; one that is larger is written by what fills it, where that is known."""

SEEDS = range(100)
"""Of the generators that fill arrays in what is drawn."""


@dataclass
class _Imports:
    """What a call's expressions need."""

    lines: dict[str, None] = field(default_factory=dict)

    def add(self, line: str) -> None:
        self.lines[line] = None


def call_text(function: str, args: tuple[Any, ...], kwargs: dict[str, Any], module: str = "") -> str:
    """One line: imports, then the call; `module` is the port's, without which its function is not imported.

    Examples
    --------
    >>> call_text("bucket_coords", (25, 70), {})
    'bucket_coords(25, 70)'
    >>> call_text("patch_attention_mask", (np.array([[1, 2]]),), {}, "port")
    'import numpy as np; from port import patch_attention_mask; patch_attention_mask(np.array([[1, 2]]))'
    """
    imports = _Imports()
    words = [expression(value, imports) for value in args]
    words += [f"{name}={expression(value, imports)}" for name, value in kwargs.items()]
    if module:
        imports.add(f"from {module} import {function}")
    return "; ".join([*imports.lines, f"{function}({', '.join(words)})"])


def expression(value: Any, imports: _Imports) -> str:
    """A value as Python."""
    if isinstance(value, np.ndarray):
        imports.add("import numpy as np")
        return _array(value, imports)
    if isinstance(value, Model):
        return _model(value, imports)
    if isinstance(value, (list, tuple)):
        inner = ", ".join(expression(element, imports) for element in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' * (len(value) == 1)})"
    if is_dataclass(value) and not isinstance(value, type):
        return _record(value, imports)
    return repr(value)


def _array(array: Array, imports: _Imports) -> str:
    """An array written out, or by what fills it, or written out all the same."""
    found = None if array.size <= WRITTEN_OUT else next(_fillings(array), None)
    if found is None:
        return _literal(array)
    if "KINDS" in found:
        imports.add("from npembed.conformance.filling import KINDS")
    elif "fill(" in found:
        imports.add("from npembed.conformance.filling import fill")
    return found


def _literal(array: Array) -> str:
    """Every element; NumPy's default types without their name."""
    with np.printoptions(threshold=array.size + 1, floatmode="unique"):
        text = np.array2string(array, separator=", ", max_line_width=10**9).replace("\n", "")
    text = " ".join(text.split()).replace("[ ", "[").replace(" ]", "]").replace(" ,", ",")
    text = text.replace("nan", "np.nan").replace("inf", "np.inf")
    plain = array.dtype.name in ("int64", "float64", "bool") and array.size
    text = text.replace(" True", "True").replace(",True", ", True")
    suffix = "" if plain else f", dtype={array.dtype.name!r}"
    shape = f".reshape{array.shape}" if not array.size else ""
    return f"np.array({text}{suffix}){shape}"


def _fillings(array: Array) -> Iterator[str]:
    """Expressions of a filled array that equal this one; places of NaN stay."""
    nan = np.isnan(array) if array.dtype.kind == "f" else np.zeros(array.shape, bool)
    if nan.any():
        whole = next(_fillings_of(array, ~nan), None)
        if whole is not None:
            rows = np.argwhere(nan.all(axis=-1)).T.tolist() if array.ndim == 3 else []
            if len(rows) == 2 and nan.sum() == len(rows[0]) * array.shape[2]:
                yield f"np.where(np.isin(np.arange({array.shape[0] * array.shape[1]}).reshape{array.shape[:2]}, " + (
                    f"{[b * array.shape[1] + place for b, place in zip(*rows, strict=True)]})[..., None], np.nan, {whole})"
                    f".astype({array.dtype.name!r})"
                )
        return
    yield from _fillings_of(array, ~nan)


def _fillings_of(array: Array, places: Array) -> Iterator[str]:
    """The kinds and seeds whose array equals this one at the places."""
    dtype = array.dtype.name
    if array.dtype.kind == "f":
        for seed in SEEDS:
            for kind in KINDS:
                filled = _filled(kind, seed, array.shape, dtype)
                if np.array_equal(filled[places], array[places]):
                    shape = ", ".join(map(str, array.shape))
                    last = "" if dtype == "float32" else f", dtype={dtype!r}"
                    if seed == 0:
                        yield f"fill({kind!r}, {shape}{last})"
                    else:
                        yield f"KINDS[{kind!r}](np.random.default_rng({seed}), ({shape},)).astype({dtype!r})"
    if array.dtype == np.uint8:
        for seed in range(10):
            if np.array_equal(np.random.default_rng(seed).integers(0, 256, array.shape, dtype=np.uint8), array):
                yield f"np.random.default_rng({seed}).integers(0, 256, {array.shape}, dtype='uint8')"


def _filled(kind: str, seed: int, shape: tuple[int, ...], dtype: str) -> Array:
    filled = np.asarray(KINDS[kind](np.random.default_rng(seed), shape), dtype="float32")
    return filled.astype(dtype)


def _model(model: Model, imports: _Imports) -> str:
    """A model by the words that make it."""
    words = getattr(model, "words", "")
    if not words:
        return repr(model)
    for line in getattr(model, "imports", ()):
        imports.add(line)
    imports.add("from npembed.conformance.strategies import " + words.split("(")[0])
    if model.dtype == np.float32:
        return str(words)
    imports.add("from npembed.conformance.filling import model_at")
    return f"model_at({words}, {model.dtype.name!r})"


def _record(record: Any, imports: _Imports) -> str:
    """A config by the fields that differ from those of its class, or of its family's small one."""
    if isinstance(record, Family):
        imports.add("from npembed import FAMILIES")
        return repr(record)
    kind = type(record)
    imports.add(f"from {kind.__module__} import {kind.__name__}")
    words = [
        f"{f.name}={expression(getattr(record, f.name), imports)}"
        for f in fields(record)
        if f.init and not _is_default(f, getattr(record, f.name))
    ]
    return f"{kind.__name__}({', '.join(words)})"


def _is_default(own: Any, value: Any) -> bool:
    if callable(own.default_factory):
        return bool(own.default_factory() == value)
    return bool(own.default == value)

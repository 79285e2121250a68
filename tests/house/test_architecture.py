"""The house: no import goes up a floor or in a circle, each shape arrow is true, each section of SPEC.md exists."""

import ast
import importlib
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import npembed
from npembed import FAMILIES, random_model
from npembed.conformance import strategies as draw
from npembed.conformance.strategies import small_model
from npembed.records.arithmetic import EXACT, Arithmetic

HOUSE = Path(npembed.__file__).parent
Sources = dict[str, str]
"""Module by its dotted name -> its text."""
Graph = dict[str, set[str]]
"""Module -> the modules that it imports, anywhere in it."""


def sources() -> Sources:
    paths = {path.relative_to(HOUSE.parent).with_suffix(""): path for path in HOUSE.rglob("*.py")}
    return {".".join(parts.parts).removesuffix(".__init__"): path.read_text("utf-8") for parts, path in paths.items()}


# No import goes up a floor or in a circle


FLOORS = (
    ("support.*",),
    ("steps.patches", "steps.pixels.*", "steps.video.choices"),
    ("records.*",),
    ("steps.*",),
    ("families.*",),
    ("weights.*",),
    ("",),  # the public names
    ("conformance.*", "corpus.*"),
    ("pages.*",),
    ("cli.*",),
    ("__main__",),
    ("data.*",),
)
"""From the ground up. A room may use those below it and those beside it; `wing.*` is a package and all that is in it."""


def floor_of(module: str) -> int | None:
    """The number of the module's floor; None for one that has none."""
    name = module.removeprefix("npembed").removeprefix(".")
    for number, rooms in enumerate(FLOORS):
        for room in rooms:
            wing = room.removesuffix(".*")
            if name == wing or (room != wing and name.startswith(f"{wing}.")):
                return number
    return None


def graph_of(texts: Sources) -> Graph:
    """Every import of one module of the package by another, those in functions and for type checkers too."""
    return {module: set(imports_of(module, text, set(texts))) for module, text in texts.items()}


def imports_of(module: str, text: str, known: set[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports by a relative name"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in known or node.module in known:
                    yield inner if inner in known else str(node.module)


def upward(graph: Graph) -> list[tuple[str, str]]:
    """(importer, imported) of every import that goes up."""
    pairs = [(one, other) for one in graph for other in graph[one]]
    return sorted((one, other) for one, other in pairs if (floor_of(one) or 0) < (floor_of(other) or 0))


def circle(graph: Graph) -> list[str]:
    """The modules of one circle, in order; empty where there is none."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        for other in sorted(graph[module]):
            if found := walk(other, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := walk(module, []))), [])


def planted(module: str, *lines: str) -> Graph:
    """The house's graph, with more lines at the end of one module."""
    texts = sources()
    return graph_of(texts | {module: "\n".join([texts[module], *lines])})


def test_every_module_has_a_floor() -> None:
    assert [module for module in sources() if floor_of(module) is None] == []
    assert floor_of("npembed.cellar") is None
    assert floor_of("npembed.model_of_a_model") is None


def test_every_room_of_the_table_is_there() -> None:
    rooms = {room.removesuffix(".*") for rooms in FLOORS for room in rooms}
    names = {module.removeprefix("npembed").removeprefix(".") for module in sources()} | {"data"}
    assert rooms - names == set()


def test_no_import_goes_up_a_floor() -> None:
    assert upward(graph_of(sources())) == []


def test_no_import_goes_in_a_circle() -> None:
    assert circle(graph_of(sources())) == []


def test_the_graph_is_the_houses() -> None:
    graph = graph_of(sources())
    assert {"npembed.support.arguments", "npembed.records.model", "npembed.steps.patches"} <= graph["npembed.steps.embeddings"]
    assert "npembed.cli" in graph["npembed.__main__"], "an import in a function"
    assert "npembed.conformance.outcome" in graph["npembed.cli.reports"], "an import for type checkers"
    assert "npembed" in graph["npembed.conformance.probes.probe"], "the public names"


PLANTED = [
    ("npembed.support.typing", ["from npembed.records.model import Model"], "npembed.records.model"),
    ("npembed.records.family", ["if TYPE_CHECKING:", "    from npembed.steps.encoder import encode"], "npembed.steps.encoder"),
    ("npembed.steps.patches", ["def f():", "    import npembed.cli"], "npembed.cli"),
    ("npembed.support.arguments", ["from npembed.steps import into_text"], "npembed.steps.into_text"),
    ("npembed.steps.stages", ["from npembed import embed"], "npembed"),
    ("npembed.steps.positions.ids", ["def f():", "    from npembed import families"], "npembed.families"),
    (
        "npembed.weights.folder",
        ["from npembed.conformance.golden.contents import digest"],
        "npembed.conformance.golden.contents",
    ),
]


@pytest.mark.parametrize(("module", "lines", "other"), PLANTED, ids=[f"{row[0]} -> {row[2]}" for row in PLANTED])
def test_an_import_that_goes_up_is_caught(module: str, lines: list[str], other: str) -> None:
    assert upward(planted(module, *lines)) == [(module, other)]


@pytest.mark.parametrize(
    ("module", "line", "found"),
    [
        (
            "npembed.steps.patches",
            "    from npembed.steps.padding import pad_sequence",
            {"npembed.steps.padding", "npembed.steps.patches"},
        ),
        (
            "npembed.steps.positions.arange",
            "    from npembed.steps.positions import rules",
            {"npembed.steps.positions.arange", "npembed.steps.positions.rules"},
        ),
        ("npembed.support.typing", "    import npembed.support.typing", {"npembed.support.typing"}),
    ],
)
def test_a_circle_is_caught(module: str, line: str, found: set[str]) -> None:
    """Also one on a single floor, and one that only a call would close."""
    lines = {"npembed.steps.padding": ["def f():", "    from npembed.steps.patches import patch_conv"]}
    texts = sources()
    texts |= {name: "\n".join([texts[name], *more]) for name, more in lines.items()}
    assert circle(graph_of(texts)) == []
    caught = circle(graph_of(texts | {module: "\n".join([texts[module], "def g():", line])}))
    assert set(caught) == found


def test_a_relative_import_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"npembed\.support\.typing imports by a relative name"):
        planted("npembed.support.typing", "from . import model")


# Nothing is patched at run time


PATCHES = re.compile(r"unittest|\bmock\b|(?<!object\.__)\bsetattr\(|sys\.modules\[")


def test_nothing_of_the_house_is_patched_at_run_time() -> None:
    """A fault, a rounding run and a recording one are values, so that two of them can run in two threads."""
    found = {module: PATCHES.findall(text) for module, text in sources().items() if PATCHES.search(text)}
    assert found == {}
    assert PATCHES.search("setattr(module, name, changed)")
    assert not PATCHES.search('object.__setattr__(self, "weights", views)')


# Each shape arrow is true


DTYPES = {"int64", "bool", "float", "float32", "float64", "uint8"}
PATTERN = re.compile(r"(?:(?P<count>[\w*]+) of )?(?:(?P<dtype>\w+) )?\((?P<dims>[^()]*)\)")
LETTERS = re.compile(r"[A-Za-z]\w*'?")


class ArrowError(AssertionError):
    """A shape arrow that a call does not bear out."""


@dataclass(frozen=True)
class Pattern:
    """One array of an arrow, or a list of them: "list of float32 (C, P, L_i*P)"."""

    dims: tuple[str, ...]
    dtype: str = ""
    count: str = ""

    def match(self, value: Any, lengths: dict[str, Any], where: str) -> None:
        """Bind the letters that are not bound yet, and compare what is."""
        if isinstance(value, tuple) and len(value) == len(self.dims) and all(isinstance(side, int) for side in value):
            for dim, side in zip(self.dims, value, strict=True):  # a size, not an array of that size
                _bind(dim, side, lengths, f"{where}, {dim}")
            return None
        if not self.count:
            return self._match_array(value, lengths, where)
        if not isinstance(value, list):
            raise ArrowError(f"{where} is a {type(value).__name__}, not a list")
        if self.count != "list":
            _bind(self.count, len(value), lengths, where)
        own = lengths.pop("L_i", [])
        for index, element in enumerate(value):
            inner = lengths | ({"L_i": own[index]} if own else {})
            self._match_array(element, inner, f"{where}[{index}]")
            lengths |= {name: length for name, length in inner.items() if name != "L_i"}
            if "L_i" in inner:
                lengths["Lmax"] = max(lengths.get("Lmax", 0), inner["L_i"])
        return None

    def _match_array(self, value: Any, lengths: dict[str, Any], where: str) -> None:
        try:
            array = np.asarray(value)
        except ValueError:
            raise ArrowError(f"{where} is no array") from None
        kinds = {"": True, "float": array.dtype.kind == "f"}
        if not kinds.get(self.dtype, array.dtype.name == self.dtype):
            raise ArrowError(f"{where} is of {array.dtype}, not {self.dtype}")
        dims, shape = self.dims, array.shape
        if dims[:1] == ("...",):  # axes of any number, the same wherever they are written
            dims = dims[1:]
            shape = array.shape[max(0, array.ndim - len(dims)) :]
            before = array.shape[: array.ndim - len(shape)]
            if lengths.setdefault("...", before) != before:
                raise ArrowError(f"{where} has the axes {before} before its own, not {lengths['...']}")
        if len(shape) != len(dims):
            raise ArrowError(f"{where} has shape {array.shape}, not ({', '.join(self.dims)})")
        for dim, length in sorted(zip(dims, shape, strict=True), key=lambda pair: not _is_letter(pair[0])):
            _bind(dim, length, lengths, f"{where}, {dim}")


def _is_letter(dim: str) -> bool:
    return LETTERS.fullmatch(dim) is not None


def _bind(dim: str, length: int, lengths: dict[str, Any], where: str) -> None:
    """Compare a length with what the letters say; if one letter of a product is not bound yet, bind it."""
    unbound = set(LETTERS.findall(dim)) - set(lengths)
    if len(unbound) == 1 and "//" not in dim and "-" not in dim:
        (letter,) = unbound
        others = math.prod(_value(factor, lengths) for factor in dim.split("*") if factor.strip() != letter)
        if length % others:
            raise ArrowError(f"{where} is {length}, no multiple of {others}")
        lengths[letter] = length // others
        return
    if unbound:
        raise ArrowError(f"{where} cannot be told without {', '.join(sorted(unbound))}")
    if _value(dim, lengths) != length:
        raise ArrowError(f"{where} is {length}, not {_value(dim, lengths)}")


def _value(dim: str, lengths: Mapping[str, Any]) -> int:
    names = {letter.replace("'", "_after"): length for letter, length in lengths.items()}
    return int(eval(dim.replace("'", "_after"), {}, names))


@dataclass(frozen=True)
class Arrow:
    """What goes in and what comes out; `results` has the alternatives, each of one array or more."""

    arguments: tuple[Pattern | str, ...]
    results: tuple[tuple[Pattern, ...], ...]


def arrow_of(line: str) -> Arrow | None:
    """The arrow in a docstring's first line; None where no shape stands behind one."""
    left, sign, right = line.partition(" -> ")
    right = re.split(r":(?: |$)", right)[0]
    if not sign or not PATTERN.match(right):
        return None
    results = tuple(tuple(_patterns(alternative)) for alternative in right.split(" or "))
    given: list[Pattern | str] = list(_patterns(left))
    return Arrow(tuple(given or ([left] if _is_letter(left) else [])), results)


def _patterns(text: str) -> Iterator[Pattern]:
    for found in PATTERN.finditer(text):
        dims = tuple(dim.strip() for dim in found["dims"].split(",") if dim.strip())
        dtype = found["dtype"] if found["dtype"] in DTYPES else ""
        yield Pattern(dims, dtype or "", found["count"] or "")


@dataclass(frozen=True)
class Call:
    """One call of a function, and the lengths that the arguments of its arrow do not show."""

    arguments: tuple[Any, ...]
    lengths: Mapping[str, Any] = field(default_factory=dict)


def hold(arrow: Arrow, function: Callable[..., Any], call: Call) -> int:
    """The number of the alternative that the result is, or an `ArrowError`."""
    lengths = dict(call.lengths)
    given = list(enumerate(call.arguments))
    for pattern in arrow.arguments:
        while given and isinstance(given[0][1], int) and not isinstance(pattern, str):
            given.pop(0)  # an arrow leaves plain numbers out
        if not given:
            raise ArrowError(f"the arrow has {len(arrow.arguments)} arguments; the call {len(call.arguments)}")
        number, argument = given.pop(0)
        if isinstance(pattern, str):
            lengths[pattern] = argument
        else:
            pattern.match(argument, lengths, f"argument {number}")
    result = function(*call.arguments)
    errors = []
    for number, patterns in enumerate(arrow.results):
        try:
            _match_results(patterns, result, dict(lengths))
        except ArrowError as error:
            errors.append(str(error))
        else:
            return number
    raise ArrowError("; ".join(errors))


def _match_results(patterns: Sequence[Pattern], result: Any, lengths: dict[str, Any]) -> None:
    """Every letter of a result must be bound by now: what a result alone says of itself proves nothing."""
    results = result if isinstance(result, tuple) else (result,)
    if len(results) != len(patterns):
        raise ArrowError(f"{len(results)} results, not {len(patterns)}")
    for number, (pattern, each) in enumerate(zip(patterns, results, strict=True)):
        letters = {letter for dim in pattern.dims for letter in LETTERS.findall(dim)}
        if missing := letters - set(lengths):
            raise ArrowError(f"result {number} cannot be told without {', '.join(sorted(missing))}")
        pattern.match(each, dict(lengths), f"result {number}")


ROOMS = (
    "steps.padding",
    "steps.patches",
    "steps.positions.ids",
    "records.arithmetic",
    "steps.pixels.strips",
    "steps.pixels.shrink",
    "steps.pixels.resize",
    "steps.pixels.rules",
    "steps.embeddings",
    "steps.encoder",
    "steps.resampler",
    "steps.patch_mergers",
    "steps.pooling",
    "steps.into_text",
)
"""Whose functions have arrows; to them come the public names."""


def with_arrows() -> dict[str, tuple[Callable[..., Any], Arrow]]:
    """Every function with a shape behind an arrow, by its name."""
    found: dict[str, Any] = {name: getattr(npembed, name) for name in npembed.__all__}
    for room in ROOMS:
        module = importlib.import_module(f"npembed.{room}")
        own = {name: value for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
        found |= {name: value for name, value in own.items() if not name.startswith("_")}
    found |= {name: getattr(EXACT, name) for name in vars(Arithmetic) if not name.startswith("_")}
    functions = {name: value for name, value in found.items() if inspect.isroutine(value)}
    arrows = {name: arrow_of((function.__doc__ or "").split("\n")[0]) for name, function in functions.items()}
    return {name: (functions[name], arrow) for name, arrow in arrows.items() if arrow is not None}


SIZES = [[2, 3], [1, 4], [5, 1]]
LMAX = 6
MODEL = small_model("tokens", hidden_size=4, heads=2, channels=3, patch_size=2, side=7, queries=5)
STRIPS = [np.ones((3, 2, h * w * 2), dtype=np.float32) for h, w in SIZES]
HIDDEN = np.ones((3, LMAX, 4), dtype=np.float32)
OF_MODEL = {"C": 3, "P": 2, "D": 4, "Q": 5, "E": 128, "Lmax": LMAX, "Lmax'": LMAX}
MASK = np.zeros((2, 5, 4), dtype=bool)
MASK[0, :2, :3] = MASK[1, :1, :1] = True
PIXELS = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
TEXT = draw.TokenSequence(np.array([1, 290, 294, 294, 291, 292, 294, 293]), [290, 292], [291, 293], np.array([[2, 4], [6, 7]]))


def zeros(*shape: int) -> Any:
    return np.zeros(shape, dtype=np.float32)


MERGING = random_model(FAMILIES["minicpm-v-4.6"].small(), until="tokens")
POOLING = random_model(FAMILIES["siglip"].small(), until="pooled")

CALLS: dict[str, list[Call]] = {
    "attend": [Call((zeros(3, 4), zeros(5, 4), zeros(5, 4), 2))],
    "attention_weights": [Call((zeros(3, 4), zeros(5, 4), 2))],
    "attend_in_windows": [Call((zeros(3, 4, 6), zeros(3, 4, 6), zeros(3, 4, 6), 2))],
    "boundaries": [Call((70,)), Call((7,))],
    "bucket_coords": [Call((n,)) for n in (1, 25, 70)],
    "cells": [Call((PIXELS, 4, 2), {"rows": 2, "columns": 4})],
    "divided": [Call((np.array([[4, 8], [2, 2]]), 2, "test"))],
    "embed": [Call((STRIPS, SIZES, MODEL), {"D": 4}), Call((STRIPS[:1], SIZES[:1], MODEL), {"D": 4})],
    "encode": [Call((HIDDEN, SIZES, MODEL), {"Lmax'": LMAX})],
    "flattened_position_ids": [Call((SIZES, 7), {"Lmax": LMAX})],
    "fractional_coords": [Call((n,)) for n in (1, 25, 70)],
    "gelu": [Call((zeros(3, 4),)), Call((zeros(2, 3, 4),))],
    "gelu_erf": [Call((zeros(3, 4),))],
    "image_bounds": [
        Call((np.array([290, 294, 291]), [290], [291]), {"N": 1}),
        Call((TEXT.input_ids, TEXT.start_ids, TEXT.end_ids), {"N": 2}),
    ],
    "layer_norm": [Call((zeros(*shape, 4), zeros(4), zeros(4), 1e-6)) for shape in ((3,), (2, 3))],
    "linear": [Call((zeros(*shape, 4), zeros(5, 4), zeros(5))) for shape in ((3,), (2, 3))],
    "merge_patches": [Call((zeros(2, 8, 16), [[4, 8], [4, 4]], MERGING), {"most": 2, "E": 24})],
    "product": [Call((zeros(3, 4), zeros(4, 5))), Call((zeros(2, 3, 4), zeros(2, 4, 5)))],
    "rms_norm": [Call((zeros(*shape, 4), zeros(4), 1e-6)) for shape in ((3,), (2, 3))],
    "silu": [Call((zeros(3, 4),))],
    "pad_pixel_values": [Call((STRIPS,), {"B": 3}), Call((STRIPS[1:2],), {"B": 1})],
    "patch_attention_mask": [Call((SIZES,), {"Lmax": LMAX})],
    "patch_conv": [Call((zeros(2, 3, 5, 7), zeros(6, 3, 2, 2), zeros(6)))],
    "patches_to_strip": [Call((zeros(5, 12), 2), {"C": 3, "P": 2})],
    "picture_to_strip": [Call((zeros(3, 4, 6), 2), {"P": 2, "L": 6})],
    "pool": [Call((zeros(3, LMAX, 16), SIZES, POOLING))],
    "position_ids": [Call((SIZES, 7), {"Lmax": LMAX})],
    "resample": [Call((HIDDEN, SIZES, MODEL), {"Q": 5, "E": 128})],
    "resize": [Call((Image.fromarray(PIXELS), (5, 9)), {"H": 9, "W": 5})],
    "run_layer": [Call((zeros(2, 6, 4), MODEL, "vpm.encoder.layers.0"))],
    "scatter_image_embeds": [Call((zeros(8, 4), zeros(2, 3, 4), [[0, 3], [4, 7]]))],
    "shrink_bicubic": [Call((zeros(3, 6, 8), 4, 2), {"columns": 4, "rows": 2, "H": 3, "W": 2})],
    "slice_image": [
        Call((np.zeros((480, 640, 3), dtype=np.uint8),), {"P": 14, "B": 3, "L_i": [28 * 37, 39 * 26, 39 * 26]}),
        Call((PIXELS, MODEL.config), {"P": 2, "B": 1, "L_i": [194 * 258]}),
    ],
    "strip_of": [Call((PIXELS, 2, zeros(3, 256)), {"P": 2, "L": 12})],
    "strip_to_patches": [Call((zeros(3, 2, 10),))],
    "strip_to_picture": [Call((zeros(3, 2, 12), (2, 3)), {"h": 2, "w": 3})],
    "tgt_sizes_from_mask": [Call((MASK,))],
    "token_places": [Call((TEXT.input_ids, 294, [2, 1]))],
    "unit_length": [Call((np.ones((3, 4)),))],
    "windows": [Call((zeros(8, 5), (2, 4)), {"h": 2, "w": 4})],
}


def test_every_arrow_has_a_call() -> None:
    assert sorted(with_arrows()) == sorted(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_the_arrow_agrees_with_real_calls(name: str) -> None:
    function, arrow = with_arrows()[name]
    met = {hold(arrow, function, call) for call in CALLS[name]}
    assert met == set(range(len(arrow.results))), "an alternative that no call gives"


WRONG_ARROWS = [
    ("embed", "list of (C, P, L_i*P), (B, 2) -> (B, D, Lmax)", "result 0, D is 6, not 4"),
    ("embed", "list of (C, P, L_i*P), (B, 2) -> (Lmax, B, D)", "result 0, Lmax is 3, not 6"),
    ("embed", "list of (P, C, L_i*P), (B, 2) -> (B, Lmax, D)", r"argument 0\[1\], L_i\*P is 8, no multiple of 3"),
    ("embed", "list of (C, P, L_i*P), (B, 3) -> (B, Lmax, D)", "argument 1, 3 is 2, not 3"),
    ("embed", "list of (C, P, L_i*P), (B, 2) -> float64 (B, Lmax, D)", "result 0 is of float32, not float64"),
    ("encode", "(B, Lmax, D), (B, 2) -> (B, Lmax)", r"result 0 has shape \(3, 6, 4\), not \(B, Lmax\)"),
    ("resample", "(B, Lmax, D), (B, 2) -> (B, E, Q)", "result 0, E is 5, not 128"),
    ("patch_conv", "(B, C, H, W), (D, C, P, P), (D,) -> (B, D, W//P, H//P)", "result 0, W//P is 2, not 3"),
    ("patch_conv", "(B, C, H, W), (C, D, P, P), (D,) -> (B, D, H//P, W//P)", "argument 1, "),
    ("scatter_image_embeds", "(T, E), (N, E, Q), (N, 2) -> (T, E)", "argument 1, E is 3, not 4"),
    ("image_bounds", "(T,) -> int64 (2, N)", "result 0, N is 2, not 1"),
    ("position_ids", "(B, 2) -> bool (B, Lmax)", "result 0 is of int64, not bool"),
    ("boundaries", "G -> float (G,)", "result 0, G is 69, not 70"),
    ("fractional_coords", "n -> float (n+1,)", "is 1, not 2"),
    ("slice_image", "Picture -> list of (3, P, L_i*P)", "2 results, not 1"),
    ("slice_image", "Picture -> (B, 2), list of (3, P, L_i*P)", "result 0 is no array"),
    ("cells", "(rows*H, columns*W, 3) -> rows of (H, W, 3)", "result 0 is 8, not 2"),
    ("tgt_sizes_from_mask", "bool (B, H, W) -> int64 (B, K)", "result 0 cannot be told without K"),
    ("windows", "(h*w, D), (w, h) -> (h*w/4, 4, D)", "argument 1, w is 2, not 4"),
    ("windows", "(h*w, D), (h, w) -> (h*w/2, 4, D)", "result 0, h\\*w/2 is 2, not 4"),
    ("token_places", "(N,), (T,) -> int64 (N, 2)", "result 0, N is 2, not 8"),
    ("gelu", "(L, K), (L, K), (L, K) -> (L, K)", "the arrow has 3 arguments; the call 1"),
    ("gelu", "(..., 2*K) -> (..., K)", "is 4, not 2"),
    ("linear", "(..., K), (N, K), (N,) -> (N,)", "has shape"),
    ("linear", "(..., K), (..., K), (N,) -> (..., N)", "has the axes"),
]


@pytest.mark.parametrize(("name", "line", "message"), WRONG_ARROWS, ids=[f"{row[0]}: {row[1]}" for row in WRONG_ARROWS])
def test_a_wrong_arrow_is_caught(name: str, line: str, message: str) -> None:
    function, arrow = with_arrows()[name][0], arrow_of(line)
    assert arrow is not None
    with pytest.raises(ArrowError, match=message):
        hold(arrow, function, CALLS[name][0])


def test_what_an_arrow_is() -> None:
    assert arrow_of("The text that stands for one image.") is None
    assert arrow_of("Name -> shape of the arrays (SPEC 10).") is None
    assert arrow_of("list of (C, P), (B, 2) -> every stage in turn.") is None
    assert arrow_of("n -> int64 (n,): the row.") == Arrow(("n",), ((Pattern(("n",), "int64"),),))
    assert arrow_of("(T,), bool (B, 2) -> float (G-1,) or (G,): where.") == Arrow(
        (Pattern(("T",)), Pattern(("B", "2"), "bool")), ((Pattern(("G-1",), "float"),), (Pattern(("G",)),))
    )


# Each section of SPEC.md exists


REFERENCE = re.compile(r"SPEC (\d+(?:\.\d+)?(?:(?:, | and )\d+(?:\.\d+)?)*)")


def sections(spec: str) -> set[str]:
    """The numbers of its headings."""
    return set(re.findall(r"^##+ (\d+(?:\.\d+)?)\.? ", spec, flags=re.MULTILINE))


def dangling(texts: Sources, spec: str) -> list[str]:
    """Every section that a text names and SPEC.md has not."""
    named = [
        (module, number)
        for module, text in texts.items()
        for found in REFERENCE.findall(text)
        for number in re.findall(r"\d+(?:\.\d+)?", found)
    ]
    assert named
    return [f"{module}: SPEC {number}" for module, number in named if number not in sections(spec)]


def test_every_section_that_is_named_exists() -> None:
    assert dangling(sources(), (HOUSE / "SPEC.md").read_text("utf-8")) == []


def test_a_section_that_does_not_exist_is_caught() -> None:
    spec = "# Title\n\n## 1. One\n\n### 1.2 Deep\n\n## 12. Twelve\n"
    assert sections(spec) == {"1", "1.2", "12"}
    texts = {"a": "Source: SPEC 1 and 1.2; SPEC 12.", "b": "(SPEC 2)", "c": "SPEC 1, 1.3 and 12, and so on", "d": "SPEC 1.2.\n"}
    assert dangling(texts, spec) == ["b: SPEC 2", "c: SPEC 1.3"]

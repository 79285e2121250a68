"""Writes torch.npz: calls of the functions in tests/oracles.py, each with its arguments and torch's answer.

`python -m tests.data.make_torch`, with the extra `dev`. torch fills an arange as its CPU does: the record was made on x86-64,
where torch.backends.cpu.get_cpu_capability() is AVX2 or AVX512.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import oracles

FILE = Path(__file__).with_name("torch.npz")
SIDES = np.r_[1:101, 256, 980]
COUNTS = np.r_[1:101, 980, 2052]
RAGGED = [[(2, 3), (1, 1)], [(1, 16), (16, 1), (4, 4)], [(28, 37), (39, 26), (5, 70)], [(70, 70)], [(71, 3), (3, 100)]]


def every_boundary(sides: NDArray[np.int64]) -> NDArray[np.float32]:
    """Those of each side, end to end."""
    return np.concatenate([oracles.torch_boundaries(side) for side in sides.tolist()])


def every_coord(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Those of each number of patches, end to end."""
    return np.concatenate([oracles.torch_arange_coords(count) for count in counts.tolist()])


def every_half_coord(counts: NDArray[np.int64], rule: str, dtype: str) -> NDArray[np.float32]:
    """The same by another rule, in a type."""
    function = {"shrunk": oracles.torch_shrunk_coords, "step": oracles.torch_step_coords}[str(rule)]
    return np.concatenate([function(count, str(dtype)) for count in counts.tolist()])


FUNCTIONS: dict[str, Callable[..., NDArray[Any]]] = {
    each.__name__: each
    for each in (
        *(every_boundary, every_coord, every_half_coord, oracles.torch_bucketize, oracles.seed_position_ids),
        *(oracles.torch_pad_sequence, oracles.seed_pixel_values, oracles.seed_mask, oracles.torch_conv),
        *(oracles.seed_embeddings, oracles.torch_layer_norm, oracles.torch_gelu, oracles.torch_attention),
    )
}


def calls() -> Iterator[tuple[str, dict[str, Any]]]:
    """The name of a function and its arguments."""
    rng = np.random.default_rng(5)
    yield "every_boundary", {"sides": SIDES}
    yield "every_coord", {"counts": COUNTS}
    for rule in ("shrunk", "step"):
        for dtype in ("float32", "float16", "bfloat16"):
            yield "every_half_coord", {"counts": COUNTS[20:60], "rule": rule, "dtype": dtype}
    for right in (False, True):
        edges = np.sort(rng.integers(-9, 9, 12)) / 4
        yield "torch_bucketize", {"values": np.r_[edges, rng.normal(size=30)], "boundaries": edges, "right": right}
    for sizes in RAGGED:
        mask = [np.arange(max(h * w for h, w in sizes) + 2) < h * w for h, w in sizes]
        yield "seed_mask", {"tgt_sizes": np.array(sizes)}
        for side in (70, 27):
            yield "seed_position_ids", {"tgt_sizes": np.array(sizes), "side": side, "mask": np.array(mask)[..., None]}
    yield from _padded(rng)
    for shape in ((1, 1, 1, 1), (2, 3, 2, 5), (3, 2, 4, 3)):
        side, features = shape[-1], 3
        pixels = rng.normal(size=(*shape[:2], shape[2] * side, 2 * side))
        yield "torch_conv", {"pixels": pixels, "weight": rng.normal(size=(features, shape[1], side, side))}
    for sizes in RAGGED[:2]:
        yield "seed_embeddings", _embedded(rng, sizes)
    for rows, width in ((1, 1), (5, 8)):
        x = rng.normal(size=(rows, width))
        yield "torch_layer_norm", {"x": x, "weight": rng.normal(size=width), "bias": rng.normal(size=width), "eps": 1e-6}
        yield "torch_gelu", {"x": 4 * x}
    queries, keys, values = (rng.normal(size=(rows, 6)) for rows in (3, 5, 5))
    yield "torch_attention", {"queries": queries, "keys": keys, "values": values, "heads": 2}


def _padded(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    for trailing in ((), (2,), (2, 3)):
        for side in ("left", "right"):
            sequences = [rng.integers(1, 99, (length, *trailing)) for length in (3, 0, 5)]
            for first in (False, True):
                options = {"batch_first": first, "padding_value": 7, "padding_side": side}
                yield "torch_pad_sequence", {"sequences": sequences, **options}
    yield "seed_pixel_values", {"strips": [rng.normal(size=(3, 2, 2 * length)) for length in (4, 1, 6)]}


def _embedded(rng: np.random.Generator, sizes: list[tuple[int, int]]) -> dict[str, Any]:
    strips = [rng.normal(size=(3, 2, 2 * h * w)) for h, w in sizes]
    arrays = {"weight": rng.normal(size=(4, 3, 2, 2)), "bias": rng.normal(size=4), "table": rng.normal(size=(49, 4))}
    return {"strips": strips, "tgt_sizes": np.array(sizes), **arrays, "side": 7}


def made() -> dict[str, NDArray[Any]]:
    """Everything that the file holds: NUMBER.FUNCTION.ARGUMENT, of a list one each; and NUMBER.FUNCTION for the answer."""
    arrays: dict[str, NDArray[Any]] = {}
    for number, (name, arguments) in enumerate(calls()):
        for key, value in arguments.items():
            parts = {f".{place}": part for place, part in enumerate(value)} if isinstance(value, list) else {"": value}
            arrays |= {f"{number:03}.{name}.{key}{place}": np.asarray(part) for place, part in parts.items()}
        arrays[f"{number:03}.{name}"] = FUNCTIONS[name](**arguments)
    return arrays


def recorded() -> Iterator[tuple[str, dict[str, Any], NDArray[Any]]]:
    """The function's name, the arguments and torch's answer of each call."""
    with np.load(FILE, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    for answer in (key for key in arrays if key.count(".") == 1):
        arguments: dict[str, Any] = {}
        for key in (key for key in arrays if key.startswith(f"{answer}.")):
            name, _, place = key.removeprefix(f"{answer}.").partition(".")
            if place:
                arguments.setdefault(name, []).append(arrays[key])
            else:
                arguments[name] = arrays[key] if arrays[key].ndim else arrays[key].item()
        yield answer.partition(".")[2], arguments, arrays[answer]


if __name__ == "__main__":
    np.savez_compressed(FILE, allow_pickle=False, **made())

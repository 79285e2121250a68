"""What fills the arrays of cases and models: no draw, no Hypothesis; the same numbers on every machine.

The strategies draw from the same `KINDS`; the probes and the golden packs take them as they are.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np

from npembed.model import Model
from npembed.typing import Array, Floats, Ids

KINDS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Floats]] = {
    "ones": lambda rng, shape: np.ones(shape),
    "ramp": lambda rng, shape: np.arange(1, 1 + np.prod(shape), dtype=np.float64).reshape(shape) / 8,
    "mixed": lambda rng, shape: rng.standard_normal(shape),
    "one sign": lambda rng, shape: rng.uniform(0.5, 1.5, shape),
    "faint": lambda rng, shape: rng.standard_normal(shape) / 128,
}
"""What fills an array of floats, simplest first. "one sign" shows a sum that is rounded too often, "faint" an epsilon."""


def fill(kind: str, *shape: int, dtype: str = "float32") -> Floats:
    """An array of one of the `KINDS`.

    Examples
    --------
    >>> fill("ramp", 2, 2).tolist()
    [[0.125, 0.25], [0.375, 0.5]]
    """
    return np.asarray(KINDS[kind](np.random.default_rng(0), shape), dtype=dtype)


def sizes_of(*sizes: tuple[int, int]) -> Ids:
    """int64 (B, 2)."""
    return np.array(sizes, dtype=np.int64)


@lru_cache(maxsize=64)
def model_at(model: Model, dtype: str) -> Model:
    """The model with its arrays in another float type."""
    return Model(model.config, {name: array.astype(dtype) for name, array in model.weights.items()})


def edited(model: Model, changes: Mapping[str, Callable[[Array], Array]]) -> Model:
    """The model with some of its arrays changed."""
    return Model(model.config, model.weights | {name: change(model.weights[name]) for name, change in changes.items()})

"""What fills the arrays of cases and models: no draw, no Hypothesis; the same numbers on every machine.

The strategies draw from the same `KINDS`; the probes and the golden packs take them as they are.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from npembed.records.family import Family
from npembed.records.model import Model
from npembed.support.typing import Array, Floats, Ids
from npembed.weights import random_model

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


@lru_cache(maxsize=256)
def model_at(model: Model, dtype: str) -> Model:
    """The model with its arrays in another float type."""
    return replace(model, weights={name: array.astype(dtype) for name, array in model.weights.items()})


def edited(model: Model, changes: Mapping[str, Callable[[Array], Array]]) -> Model:
    """The model with some of its arrays changed."""
    return replace(model, weights=model.weights | {name: change(model.weights[name]) for name, change in changes.items()})


def peaked(model: Model, factor: float) -> dict[str, Floats]:
    """The model's arrays, with queries so many times as large, so that attention is as much sharper.

    Examples
    --------
    >>> from npembed import Config, VisionConfig, random_model
    >>> model = random_model(Config(vision=VisionConfig(hidden_size=8, num_attention_heads=2)), until="hidden")
    >>> name = "vpm.encoder.layers.0.self_attn.q_proj.weight"
    >>> np.array_equal(peaked(model, 10.0)[name], 10 * model.weights[name])
    True
    """
    weights = dict(model.weights)
    for name, array in weights.items():
        if ".q_proj." in name:
            weights[name] = array * np.float32(factor)
        elif "in_proj_" in name:
            weights[name] = np.concatenate([array[: len(array) // 3] * np.float32(factor), array[len(array) // 3 :]])
    return weights


def with_dropped_layer(config: Any, weights: Mapping[str, Floats], seed: int) -> dict[str, Floats]:
    """The arrays, and those of a layer that `drop_vision_last_layer` leaves out, which checkpoints hold all the same."""
    whole = changed_config(config, {"drop_vision_last_layer": False})
    dropped = {} if whole == config else random_model(whole, seed, "hidden").weights
    return {name: array for name, array in dropped.items() if name not in weights and ".layers." in name} | dict(weights)


def changed_config(config: Any, changes: Mapping[str, Any]) -> Any:
    """A config with other values in the fields of those names, whether they are its own or of a config within it."""
    own = {f.name: changes[f.name] for f in fields(config) if f.init and f.name in changes}
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value) and not isinstance(value, (type, Family)):
            changed = changed_config(value, changes)
            own |= {f.name: changed} if changed != value else {}
    return replace(config, **own)

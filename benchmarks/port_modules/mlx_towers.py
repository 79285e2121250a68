"""The vision towers of mlx-vlm as ports: the released classes with the kit's weights, on MLX's CPU build."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

import npembed
from npembed.conformance.adapters import ids_on_canvas, on_canvas, packed_ids, places_on_canvas, slice_by_slice, strip_by_strip
from npembed.support.typing import Array

FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "layer_norm_eps",
)
SMALL = {"hidden_size": 2, "intermediate_size": 2, "num_attention_heads": 1, "num_hidden_layers": 1, "num_channels": 1}
MERGER = "vit_merger."
"""What MiniCPM-V 4.6 has within its tower, and mlx-vlm beside it."""


@lru_cache(maxsize=4)
def tower_of(config_class: Any, tower_class: Any, kind: str, model: npembed.Model) -> Any:
    """The class's own module with the model's arrays."""
    vision = model.config.vision
    sizes = {name: getattr(vision, name) for name in FIELDS}
    layers = int(getattr(model.config, "encoder_layers", vision.num_hidden_layers))
    module = tower_class(config_class(model_type=kind, num_hidden_layers=layers, **sizes))
    arrays = arrays_of(model, model.tower)
    return load(module, {name: array for name, array in arrays.items() if not name.startswith(MERGER)})


def arrays_of(model: npembed.Model, prefix: str) -> dict[str, Array]:
    """The model's arrays whose names begin so, without that beginning; kernels with their channels last."""
    arrays = {name.removeprefix(prefix): array for name, array in model.weights.items() if name.startswith(prefix)}
    return {name: array.transpose(0, 2, 3, 1) if array.ndim == 4 else array for name, array in arrays.items()}


def load(module: Any, arrays: dict[str, Array]) -> Any:
    """The module with these arrays; every one of them must have its place."""
    own = dict(tree_flatten(module.parameters()))
    unread = sorted(set(arrays) - set(own))
    if unread:
        raise ValueError(f"{type(module).__module__} has no {', '.join(unread)}")
    module.update(tree_unflatten([(name, mx.array(np.ascontiguousarray(array))) for name, array in arrays.items()]))
    return module


class Given:
    """Embeddings that are ready, in the place of the module that makes them."""

    def __init__(self, own: Any, result: Any) -> None:
        self.patch_embedding, self.result = own.patch_embedding, result

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Whatever the arguments are."""
        return self.result


@contextmanager
def given(module: Any, embeddings: Array) -> Iterator[None]:
    """Within, the tower has ready embeddings."""
    own = module.embeddings
    module.embeddings = Given(own, mx.array(np.asarray(embeddings, dtype=np.float32)))
    try:
        yield
    finally:
        module.embeddings = own


def with_embeddings(module: Any, embeddings: Array, *args: Any) -> Array:
    """The tower's first result from ready embeddings, by its own call."""
    with given(module, embeddings):
        result = module(*args)
    return np.array(result[0] if isinstance(result, tuple) else result)


@cache
def watched(config_class: Any, tower_class: Any, kind: str, side: int) -> tuple[Any, list[Any]]:
    """The class's own embeddings on a table of side x side, and the ids that they look up."""
    module = tower_class(config_class(model_type=kind, image_size=side, patch_size=1, **SMALL)).embeddings
    seen: list[Any] = []

    def look_up(ids: Any) -> Any:
        seen[:] = [np.array(ids)]
        return mx.zeros((*ids.shape, SMALL["hidden_size"]))

    look_up.weight = module.position_embedding.weight  # type: ignore[attr-defined]  # some read the table's length
    module.position_embedding = look_up
    return module, seen


def channels_last(pixels: Array) -> Any:
    """(B, C, H, W) -> (B, H, W, C), in float32."""
    return mx.array(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1), dtype=np.float32))


def canvas_port(config_class: Any, tower_class: Any, kind: str) -> SimpleNamespace:
    """A tower that takes pictures on a canvas and the mask of their patches."""

    @ids_on_canvas
    def position_ids(grid: Array, side: int) -> Array:
        module, seen = watched(config_class, tower_class, kind, side)
        module(mx.zeros((*grid.shape, 1)), mx.array(grid))
        return np.asarray(seen[0])

    @on_canvas
    def embed(pixels: Array, grid: Array, model: npembed.Model) -> Array:
        return np.array(tower_of(config_class, tower_class, kind, model).embeddings(channels_last(pixels), mx.array(grid)))

    @places_on_canvas
    def encode(places: Array, grid: Array, model: npembed.Model) -> Array:
        module = tower_of(config_class, tower_class, kind, model)
        return with_embeddings(module, places, mx.zeros((*grid.shape, 1)), mx.array(grid))

    return SimpleNamespace(position_ids=position_ids, embed=embed, encode=encode)


def strip_port(config_class: Any, tower_class: Any, kind: str) -> SimpleNamespace:
    """A tower that takes one strip and its size, as mlx-vlm calls it for each slice."""
    classes = config_class, tower_class, kind

    @packed_ids
    def position_ids(tgt_sizes: Any, side: int) -> Array:
        module, seen = watched(*classes, side)
        found = []
        for h, w in np.asarray(tgt_sizes).tolist():
            module(mx.zeros((1, 1, h * w, 1)), mx.ones((1, 1, h * w), dtype=mx.bool_), mx.array([[h, w]]))
            found.append(seen[0].reshape(-1))
        return np.concatenate(found)

    @strip_by_strip
    def embed(strip: Array, size: tuple[int, int], model: npembed.Model) -> Array:
        h, w = size
        mask = mx.ones((1, 1, h * w), dtype=mx.bool_)
        return np.array(tower_of(*classes, model).embeddings(channels_last(strip[None]), mask, mx.array([[h, w]])))[0]

    @slice_by_slice
    def encode(places: Array, size: tuple[int, int], model: npembed.Model) -> Any:
        return with_embeddings(tower_of(*classes, model), places[None], mx.zeros((1, 1, 1, 1)))[0]

    return SimpleNamespace(position_ids=position_ids, embed=embed, encode=encode)

"""The vision towers of transformers as ports: the released classes with the kit's weights."""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from layouts import Array, Canvas, Packed, Sizes, pairs, ragged

import npembed

FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "layer_norm_eps",
)


def layers_of(model: npembed.Model) -> int:
    """How many layers the tower runs."""
    return int(getattr(model.config, "encoder_layers", model.config.vision.num_hidden_layers))


def vision_sizes(model: npembed.Model) -> dict[str, Any]:
    """The tower's sizes, as the config classes name them."""
    vision = model.config.vision
    return {name: getattr(vision, name) for name in FIELDS} | {"num_hidden_layers": layers_of(model)}


@lru_cache(maxsize=4)
def tower_of(config_class: Any, tower_class: Any, model: npembed.Model, dtype: torch.dtype) -> Any:
    """The class's own module with the model's arrays; a last norm that the model lacks is left out."""
    extra = {"insert_layer_id": model.config.insert_layer_id} if hasattr(model.config, "insert_layer_id") else {}
    module = load(tower_class(config_class(**vision_sizes(model), **extra)), model, model.tower, dtype)
    names = {name.removeprefix(model.tower) for name in model.weights}
    if "encoder.layers.0.layer_norm1.weight" in names and "post_layernorm.weight" not in names:
        module.post_layernorm = torch.nn.Identity()
    return module


def load(module: Any, model: npembed.Model, prefix: str, dtype: torch.dtype = torch.float32) -> Any:
    """The module with the model's arrays whose names begin so; every one of them must have its place."""
    arrays = {name.removeprefix(prefix): array for name, array in model.weights.items() if name.startswith(prefix)}
    unread = module.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()}, strict=False).unexpected_keys
    if unread:
        raise ValueError(f"{type(module).__name__} has no {', '.join(unread)}")
    return module.to(dtype).eval()


def as_array(tensor: torch.Tensor) -> Array:
    """The tensor's numbers; bfloat16 and float16 as float32."""
    return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).numpy())


class Given(torch.nn.Module):
    """Embeddings that are ready, in the place of the module that makes them."""

    def __init__(self, result: torch.Tensor) -> None:
        super().__init__()
        self.result = result

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Whatever the arguments are."""
        return self.result


def with_embeddings(module: Any, embeddings: torch.Tensor, *args: Any, **kwargs: Any) -> Array:
    """The tower's last hidden state from ready embeddings, by its own `forward`."""
    own = module.embeddings
    module.embeddings = Given(embeddings)
    try:
        with torch.no_grad():
            return as_array(module(*args, **kwargs).last_hidden_state)
    finally:
        module.embeddings = own


@cache
def watched(config_class: Any, tower_class: Any, side: int, dtype: torch.dtype) -> tuple[Any, list[Array]]:
    """The class's own embeddings on a table of side x side, and the ids that they look up."""
    sizes = {"hidden_size": 2, "intermediate_size": 2, "num_attention_heads": 1, "num_hidden_layers": 1}
    module = tower_class(config_class(**sizes, num_channels=1, image_size=side, patch_size=1)).to(dtype).embeddings
    seen: list[Array] = []

    def look_up(ids: torch.Tensor) -> torch.Tensor:
        seen.append(ids.numpy())
        return torch.zeros((*ids.shape, 2), dtype=dtype)

    module.position_embedding.forward = look_up
    return module, seen


def canvas_port(config_class: Any, tower_class: Any, dtype: torch.dtype = torch.float32) -> Canvas:
    """A tower that takes pictures on a canvas and `patch_attention_mask`."""

    def ids(side: int, grid: Array) -> Array:
        module, seen = watched(config_class, tower_class, side, dtype)
        seen.clear()
        with torch.no_grad():
            module(torch.zeros((len(grid), 1, *grid.shape[1:]), dtype=dtype), patch_attention_mask=torch.tensor(grid))
        return seen[-1]

    def embeddings(model: npembed.Model, pixels: Array, grid: Array) -> Array:
        module = tower_of(config_class, tower_class, model, dtype)
        with torch.no_grad():
            return as_array(module.embeddings(torch.tensor(pixels).to(dtype), patch_attention_mask=torch.tensor(grid)))

    def tower(model: npembed.Model, given: Array, grid: Array) -> Array:
        module = tower_of(config_class, tower_class, model, dtype)
        pixels = torch.zeros((len(grid), 1, *grid.shape[1:]), dtype=dtype)
        return with_embeddings(module, torch.tensor(given).to(dtype), pixels, patch_attention_mask=torch.tensor(grid))

    return Canvas(ids, embeddings, tower)


def packed_port(config_class: Any, tower_class: Any, dtype: torch.dtype = torch.float32) -> Packed:
    """A tower that takes strips end to end and `target_sizes`; in "16x" slices come out with half their rows and columns."""

    def as_sizes(sizes: Sizes) -> torch.Tensor:
        return torch.tensor(sizes, dtype=torch.int32)

    def ids(side: int, sizes: Sizes) -> Array:
        module, seen = watched(config_class, tower_class, side, dtype)
        seen.clear()
        with torch.no_grad():
            module(torch.zeros((1, 1, 1, sum(h * w for h, w in sizes)), dtype=dtype), target_sizes=as_sizes(sizes))
        return np.concatenate([looked_up.reshape(-1) for looked_up in seen])

    def embeddings(model: npembed.Model, pixels: Array, sizes: Sizes) -> Array:
        module = tower_of(config_class, tower_class, model, dtype)
        with torch.no_grad():
            return as_array(module.embeddings(torch.tensor(pixels).to(dtype), target_sizes=as_sizes(sizes))[0])

    def merges(model: npembed.Model) -> bool:
        return bool(getattr(model.config, "merges_inside", False))

    def tower(model: npembed.Model, given: Array, sizes: Sizes) -> Array:
        module = tower_of(config_class, tower_class, model, dtype)
        options = {"target_sizes": as_sizes(sizes), "use_vit_merger": merges(model)}
        return np.asarray(with_embeddings(module, torch.tensor(given).to(dtype)[None], torch.zeros(1), **options)[0])

    def after(model: npembed.Model, sizes: Sizes) -> Sizes:
        return [(h // 2, w // 2) for h, w in sizes] if merges(model) else sizes

    return Packed(ids, embeddings, tower, after)


def each_slice(function: Callable[..., torch.Tensor]) -> Callable[..., Array]:
    """A connector's (hidden (1, L, D), (h, w), model) -> (1, N, E) -> one of padded hidden states, slice by slice."""

    def connect(hidden: Any, tgt_sizes: Any, model: npembed.Model) -> Array:
        given = torch.tensor(np.asarray(hidden, dtype=np.float32))
        with torch.no_grad():
            rows = [function(row[None, : h * w], (h, w), model)[0] for row, (h, w) in zip(given, pairs(tgt_sizes), strict=True)]
        return ragged(map(as_array, rows))

    return connect

"""The vision towers of transformers as ports: the released classes with the kit's weights."""

from collections.abc import Callable
from functools import cache, lru_cache
from types import SimpleNamespace
from typing import Any

import torch

import npembed
from npembed.conformance.adapters import (
    Tensors,
    ids_on_canvas,
    on_canvas,
    packed,
    packed_ids,
    packed_strips,
    places_on_canvas,
    slice_by_slice,
)

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
    module = Tensors(torch, dtype).load(
        tower_class(config_class(**vision_sizes(model), **extra)), model, model.tower, part=True
    )
    names = {name.removeprefix(model.tower) for name in model.weights}
    if "encoder.layers.0.layer_norm1.weight" in names and "post_layernorm.weight" not in names:
        module.post_layernorm = torch.nn.Identity()
    return module


def load(module: Any, model: npembed.Model, prefix: str) -> Any:
    """The module in float32 with the model's arrays whose names begin so."""
    return Tensors(torch, torch.float32).load(module, model, prefix, part=True)


class Given(torch.nn.Module):
    """Embeddings that are ready, in the place of the module that makes them."""

    def __init__(self, result: torch.Tensor) -> None:
        super().__init__()
        self.result = result

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Whatever the arguments are."""
        return self.result


def with_embeddings(module: Any, embeddings: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """The tower's last hidden state from ready embeddings, by its own `forward`."""
    own = module.embeddings
    module.embeddings = Given(embeddings)
    try:
        result: torch.Tensor = module(*args, **kwargs).last_hidden_state
        return result
    finally:
        module.embeddings = own


@cache
def watched(config_class: Any, tower_class: Any, side: int, dtype: torch.dtype) -> tuple[Any, list[torch.Tensor]]:
    """The class's own embeddings on a table of side x side, and the ids that they look up."""
    sizes = {"hidden_size": 2, "intermediate_size": 2, "num_attention_heads": 1, "num_hidden_layers": 1}
    module = tower_class(config_class(**sizes, num_channels=1, image_size=side, patch_size=1)).to(dtype).embeddings
    seen: list[torch.Tensor] = []

    def look_up(ids: torch.Tensor) -> torch.Tensor:
        seen.append(ids)
        return torch.zeros((*ids.shape, 2), dtype=dtype)

    module.position_embedding.forward = look_up
    return module, seen


def canvas_port(config_class: Any, tower_class: Any, dtype: torch.dtype = torch.float32) -> SimpleNamespace:
    """A tower that takes pictures on a canvas and `patch_attention_mask`."""
    as_torch = Tensors(torch, dtype)

    @ids_on_canvas
    @as_torch.port
    def position_ids(grid: torch.Tensor, side: int) -> torch.Tensor:
        module, seen = watched(config_class, tower_class, side, dtype)
        seen.clear()
        module(torch.zeros((len(grid), 1, *grid.shape[1:]), dtype=dtype), patch_attention_mask=grid)
        return seen[-1]

    @on_canvas
    @as_torch.port
    def embed(pixels: torch.Tensor, grid: torch.Tensor, model: npembed.Model) -> Any:
        return tower_of(config_class, tower_class, model, dtype).embeddings(pixels, patch_attention_mask=grid)

    @places_on_canvas
    @as_torch.port
    def encode(places: torch.Tensor, grid: torch.Tensor, model: npembed.Model) -> torch.Tensor:
        pixels = torch.zeros((len(grid), 1, *grid.shape[1:]), dtype=dtype)
        module = tower_of(config_class, tower_class, model, dtype)
        return with_embeddings(module, places, pixels, patch_attention_mask=grid)

    return SimpleNamespace(position_ids=position_ids, embed=embed, encode=encode)


def packed_port(config_class: Any, tower_class: Any, dtype: torch.dtype = torch.float32) -> SimpleNamespace:
    """A tower that takes strips end to end and `target_sizes`; in "16x" slices come out with half their rows and columns."""
    as_torch = Tensors(torch, dtype)

    def merges(model: npembed.Model) -> bool:
        return bool(getattr(model.config, "merges_inside", False))

    def after(sizes: list[tuple[int, int]], model: npembed.Model) -> list[tuple[int, int]]:
        return [(h // 2, w // 2) for h, w in sizes] if merges(model) else sizes

    @packed_ids
    @as_torch.port
    def position_ids(tgt_sizes: torch.Tensor, side: int) -> torch.Tensor:
        module, seen = watched(config_class, tower_class, side, dtype)
        seen.clear()
        pixels = torch.zeros((1, 1, 1, int(tgt_sizes.prod(dim=1).sum())), dtype=dtype)
        module(pixels, target_sizes=tgt_sizes.int())
        return torch.cat([looked_up.reshape(-1) for looked_up in seen])

    @packed_strips
    @as_torch.port
    def embed(pixels: torch.Tensor, tgt_sizes: torch.Tensor, model: npembed.Model) -> Any:
        return tower_of(config_class, tower_class, model, dtype).embeddings(pixels, target_sizes=tgt_sizes.int())[0]

    @as_torch.port
    def tower(places: torch.Tensor, ends: torch.Tensor, tgt_sizes: torch.Tensor, model: npembed.Model) -> torch.Tensor:
        options = {"target_sizes": tgt_sizes.int(), "use_vit_merger": merges(model)}
        module = tower_of(config_class, tower_class, model, dtype)
        return with_embeddings(module, places[None], torch.zeros(1), **options)[0]

    return SimpleNamespace(position_ids=position_ids, embed=embed, encode=packed(tower, after))


def each_slice(function: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    """A connector's (hidden (1, L, D), (h, w), model) -> (1, N, E) -> one of padded hidden states, slice by slice."""
    as_torch = Tensors(torch, torch.float32)
    return slice_by_slice(as_torch.port(lambda places, size, model: function(places[None], size, model)[0]))

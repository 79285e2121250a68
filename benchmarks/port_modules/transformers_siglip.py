"""The vision model of transformers' SigLIP as a port: pictures of one size."""

from typing import Any

import torch
from torch_towers import tower_of, with_embeddings
from transformers.models.siglip.configuration_siglip import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipVisionModel

from npembed.conformance.adapters import Tensors, on_canvas, slice_by_slice

PRECISION = "float32"


def _vision_model(config: SiglipVisionConfig) -> Any:
    """The module itself; in some releases it is within another."""
    whole = SiglipVisionModel(config)
    return getattr(whole, "vision_model", whole)


def _model(model: Any) -> Any:
    return tower_of(SiglipVisionConfig, _vision_model, model, torch.float32)


_AS_TORCH = Tensors(torch, torch.float32)


@on_canvas
@_AS_TORCH.port
def embed(pixels: Any, grid: Any, model: Any) -> Any:
    """As npembed's; all pictures are of one size, so that they fill the canvas."""
    return _model(model).embeddings(pixels)


@slice_by_slice
@_AS_TORCH.port
def encode(places: Any, size: Any, model: Any) -> Any:
    """As npembed's."""
    return with_embeddings(_model(model), places[None], torch.zeros(1))[0]


@_AS_TORCH.port
def pool(hidden: Any, tgt_sizes: Any, model: Any) -> Any:
    """As npembed's, of the family's head."""
    return _model(model).head(hidden)

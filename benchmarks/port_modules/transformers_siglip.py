"""The vision model of transformers' SigLIP as a port: pictures of one size."""

from typing import Any

import numpy as np
import torch
from layouts import Alone, Array, canvas, checked
from torch_towers import as_array, tower_of, with_embeddings
from transformers.models.siglip.configuration_siglip import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipVisionModel

PRECISION = "float32"


def _vision_model(config: SiglipVisionConfig) -> Any:
    """The module itself; in some releases it is within another."""
    whole = SiglipVisionModel(config)
    return getattr(whole, "vision_model", whole)


def _model(model: Any) -> Any:
    return tower_of(SiglipVisionConfig, _vision_model, model, torch.float32)


def embed(strips: Any, tgt_sizes: Any, model: Any, rule: str | None = None) -> Array:
    """As npembed's."""
    with torch.no_grad():
        return as_array(_model(model).embeddings(torch.tensor(canvas(strips, checked(strips, tgt_sizes)))))


def _tower(model: Any, rows: Array) -> Array:
    return with_embeddings(_model(model), torch.tensor(rows)[None], torch.zeros(1))[0]


encode = Alone(_tower).encode


def pool(hidden: Any, tgt_sizes: Any, model: Any) -> Array:
    """As npembed's, of the family's head."""
    with torch.no_grad():
        return as_array(_model(model).head(torch.tensor(np.asarray(hidden, dtype=np.float32))))

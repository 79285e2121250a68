"""The vision tower and the connector of transformers' Idefics3 as a port."""

from types import SimpleNamespace
from typing import Any

from torch_towers import canvas_port, each_slice, load
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector, Idefics3VisionTransformer

PRECISION = "float32"

_PORT = canvas_port(Idefics3VisionConfig, Idefics3VisionTransformer)
position_ids, embed, encode = _PORT.position_ids, _PORT.embed, _PORT.encode


@each_slice
def shuffle_and_project(hidden: Any, size: Any, model: Any) -> Any:
    """(1, L, D) -> (1, L / s**2, E)."""
    config, text = model.config, SimpleNamespace(hidden_size=model.config.embed_dim)
    sizes = SimpleNamespace(vision_config=config.vision, text_config=text, scale_factor=config.scale_factor)
    return load(Idefics3Connector(sizes), model, "model.connector.")(hidden)

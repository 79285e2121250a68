"""The vision tower and the connector of transformers' SmolVLM as a port."""

from types import SimpleNamespace
from typing import Any

from torch_towers import canvas_port, each_slice, load
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMConnector, SmolVLMVisionTransformer

PRECISION = "float32"

_PORT = canvas_port(SmolVLMVisionConfig, SmolVLMVisionTransformer)
position_ids, embed, encode = _PORT.position_ids, _PORT.embed, _PORT.encode


@each_slice
def shuffle_and_project(hidden: Any, size: Any, model: Any) -> Any:
    """(1, L, D) -> (1, L / s**2, E)."""
    config, text = model.config, SimpleNamespace(hidden_size=model.config.embed_dim)
    sizes = SimpleNamespace(vision_config=config.vision, text_config=text, scale_factor=config.scale_factor)
    return load(SmolVLMConnector(sizes), model, "model.connector.")(hidden)

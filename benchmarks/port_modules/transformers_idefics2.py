"""The vision tower and the connector of transformers' Idefics2 as a port."""

from dataclasses import asdict
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch_towers import canvas_port, each_slice, load
from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig, Idefics2VisionConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2Connector, Idefics2VisionTransformer

PRECISION = "float32"

_PORT = canvas_port(Idefics2VisionConfig, Idefics2VisionTransformer)
position_ids, embed, encode = _PORT.position_ids, _PORT.embed, _PORT.encode


@lru_cache(maxsize=4)
def _connector(model: Any) -> Any:
    config = model.config
    text = SimpleNamespace(hidden_size=config.embed_dim, intermediate_size=config.intermediate_size, hidden_act="silu")
    perceiver = Idefics2PerceiverConfig(hidden_size=config.embed_dim, **asdict(config.perceiver))
    sizes = SimpleNamespace(vision_config=config.vision, text_config=text, perceiver_config=perceiver)
    return load(Idefics2Connector(sizes), model, "model.connector.")


@each_slice
def perceive(hidden: Any, size: Any, model: Any) -> Any:
    """(1, L, D) -> (1, Q, E)."""
    return _connector(model)(hidden, torch.ones(hidden.shape[:2], dtype=torch.bool))

"""The vision tower of transformers' Idefics3 as a port, in float16."""

import torch
from torch_towers import canvas_port
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionTransformer

PRECISION = "float16"

_PORT = canvas_port(Idefics3VisionConfig, Idefics3VisionTransformer, torch.float16)
position_ids, embed, encode = _PORT.position_ids, _PORT.embed, _PORT.encode

"""The vision tower of transformers' Phi-4-multimodal as a port."""

from torch_towers import canvas_port
from transformers.models.phi4_multimodal.configuration_phi4_multimodal import Phi4MultimodalVisionConfig
from transformers.models.phi4_multimodal.modeling_phi4_multimodal import Phi4MultimodalVisionModel

PRECISION = "float32"

_PORT = canvas_port(Phi4MultimodalVisionConfig, Phi4MultimodalVisionModel)
position_ids, embed, encode = _PORT.position_ids, _PORT.embed, _PORT.encode

"""The vision tower of mlx-vlm's SmolVLM as a port."""

from mlx_towers import canvas_port
from mlx_vlm.models.smolvlm import VisionConfig, VisionModel

PRECISION = "float32"

_PORT = canvas_port(VisionConfig, VisionModel, "smolvlm_vision")
position_ids, embed, encode = _PORT.position_ids, _PORT.embed, _PORT.encode

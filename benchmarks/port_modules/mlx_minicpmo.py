"""The vision tower of mlx-vlm's MiniCPM-o as a port."""

from mlx_towers import strip_port
from mlx_vlm.models.minicpmo import VisionConfig, VisionModel

PRECISION = "float32"

_PORT = strip_port(VisionConfig, VisionModel, "siglip_vision_model")
position_ids, embed, encode = _PORT.position_ids, _PORT.embed, _PORT.encode

"""The vision tower of mlx-vlm's Idefics3 as a port."""

from mlx_towers import canvas_port
from mlx_vlm.models.idefics3 import VisionConfig, VisionModel

PRECISION = "float32"

_PORT = canvas_port(VisionConfig, VisionModel, "idefics3")
position_ids, embed, encode = _PORT.position_ids, _PORT.embed, _PORT.encode

"""The vision tower of mlx-vlm's Idefics2 as a port."""

from mlx_towers import canvas_port
from mlx_vlm.models.idefics2 import VisionConfig, VisionModel

PRECISION = "float32"

_PORT = canvas_port(VisionConfig, VisionModel, "idefics2")
position_ids, embed, encode = _PORT.position_ids, _PORT.embed, _PORT.encode

"""The vision tower of mlx-vlm's MiniCPM-V 4.6 as a port."""

from mlx_towers import Strips
from mlx_vlm.models.minicpmv4_6 import VisionConfig, VisionModel

PRECISION = "float32"

_PORT = Strips(VisionConfig, VisionModel, "minicpmv4_6_vision")
position_ids, embed, encode = _PORT.position_ids, _PORT.embed, _PORT.encode

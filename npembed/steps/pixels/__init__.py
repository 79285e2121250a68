"""How a picture's bytes become the numbers that a tower takes: the rules of released software, and torch's resize."""

from npembed.steps.pixels.resize import resize_bytes
from npembed.steps.pixels.rules import PILLOW, PIXEL_RULES, PixelRule, fused_levels, get_pixel_rule

__all__ = ["PILLOW", "PIXEL_RULES", "PixelRule", "fused_levels", "get_pixel_rule", "resize_bytes"]

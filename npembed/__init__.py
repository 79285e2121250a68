"""How a picture becomes embeddings in MiniCPM-V 2.6 and its NaViT-SigLIP relatives: the reference, in NumPy."""

from npembed import stops

if stops.is_command_line():  # before the imports below, so that a stop while they run is no traceback
    stops.leave_at_once()

# ruff: isort: split
from npembed.config import MINICPM_V_2_6, Config, SlicingConfig, VisionConfig, read_config
from npembed.embeddings import embed
from npembed.encoder import encode
from npembed.images import slice_image
from npembed.merge import image_bounds, image_placeholder, scatter_image_embeds
from npembed.model import Model, load_model, random_model
from npembed.padding import pad_pixel_values, pad_sequence, patch_attention_mask
from npembed.patches import patch_conv
from npembed.positions import (
    boundaries,
    bucket_coords,
    bucketize,
    flattened_position_ids,
    fractional_coords,
    position_ids,
    randomized_positions,
    tgt_sizes_from_mask,
)
from npembed.resampler import resample
from npembed.rules import RULES

__version__ = "0.1.0"

__all__ = [
    "MINICPM_V_2_6",
    "RULES",
    "Config",
    "Model",
    "SlicingConfig",
    "VisionConfig",
    "boundaries",
    "bucket_coords",
    "bucketize",
    "embed",
    "encode",
    "flattened_position_ids",
    "fractional_coords",
    "image_bounds",
    "image_placeholder",
    "load_model",
    "pad_pixel_values",
    "pad_sequence",
    "patch_attention_mask",
    "patch_conv",
    "position_ids",
    "random_model",
    "randomized_positions",
    "read_config",
    "resample",
    "scatter_image_embeds",
    "slice_image",
    "tgt_sizes_from_mask",
]

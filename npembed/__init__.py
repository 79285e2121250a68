"""How a picture becomes embeddings in MiniCPM-V 2.6 and its NaViT-SigLIP relatives: the reference, in NumPy.

The rooms in reading order: `images`, `pixels`, `padding`, `patches`, `positions`, `embeddings`, `arithmetic`, `encoder`,
`resampler`, `mergers`, `merge`: a function per step. `family`: what a stage and a family are. `stages`: the steps as
records, and `run`. `families`: a module per family. `frames`: a video's frames. `weights`: where arrays come from.
`conformance`: the kit for ports. `cli`: the command line.
"""

import importlib as _importlib
import typing as _typing

from npembed import stops

if stops.is_command_line():  # before the imports below, so that a stop while they run is no traceback
    stops.leave_at_once()

# ruff: isort: split
from npembed.config import SlicingConfig, VisionConfig
from npembed.embeddings import embed
from npembed.encoder import encode
from npembed.families import FAMILIES, MINICPM_V_2_6, image_placeholder, slice_image
from npembed.families.minicpmv import Config
from npembed.merge import image_bounds, scatter_image_embeds, token_places
from npembed.mergers import merge_patches
from npembed.model import Model
from npembed.padding import pad_pixel_values, pad_sequence, patch_attention_mask
from npembed.patches import patch_conv
from npembed.pixels import PIXEL_RULES
from npembed.positions import (
    RULES,
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
from npembed.stages import run
from npembed.video.choosing import choose_frames
from npembed.video.rules import TIME_RULES

if _typing.TYPE_CHECKING:
    from npembed import weights as weights
    from npembed.weights import load_model, random_model, read_config

    conformance: _typing.Any  # these two are above this file: it knows nothing of them
    corpus: _typing.Any

__version__ = "0.1.0"

_LATER = {"conformance": "", "corpus": "", "weights": ""} | dict.fromkeys(
    ("load_model", "random_model", "read_config"), "weights"
)
"""Modules, and functions with their module, that are imported when they are first asked for: it takes its time."""


if not _typing.TYPE_CHECKING:  # a checker of types would take any name for one that is there

    def __getattr__(name: str) -> _typing.Any:
        """What is imported later."""
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = _importlib.import_module(f"{__name__}.{_LATER[name] or name}")
        globals()[name] = found = getattr(module, name) if _LATER[name] else module
        return found


def __dir__() -> list[str]:
    """With what is imported later."""
    return sorted({*globals(), *_LATER})


__all__ = [
    "FAMILIES",
    "MINICPM_V_2_6",
    "PIXEL_RULES",
    "RULES",
    "TIME_RULES",
    "Config",
    "Model",
    "SlicingConfig",
    "VisionConfig",
    "boundaries",
    "bucket_coords",
    "bucketize",
    "choose_frames",
    "embed",
    "encode",
    "flattened_position_ids",
    "fractional_coords",
    "image_bounds",
    "image_placeholder",
    "load_model",
    "merge_patches",
    "pad_pixel_values",
    "pad_sequence",
    "patch_attention_mask",
    "patch_conv",
    "position_ids",
    "random_model",
    "randomized_positions",
    "read_config",
    "resample",
    "run",
    "scatter_image_embeds",
    "slice_image",
    "tgt_sizes_from_mask",
    "token_places",
]

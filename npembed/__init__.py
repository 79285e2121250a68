"""How a picture becomes embeddings in MiniCPM-V 2.6 and its NaViT-SigLIP relatives: the reference, in NumPy.

The rooms in reading order. `steps`: from a picture to tokens, a file for each chapter of SPEC.md: `cutting`, `pixels`,
`padding`, `patches`, `positions`, `embeddings`, `encoder`, `resampler`, `patch_mergers`, `pooling`, `into_text`; `video`
chooses frames; `stages` has the steps as records, and `run`. `records`: config, family, stage, model, and the arithmetic that
they compute with. `families`: a module for each. `weights`: where arrays come from. `support`: arguments, messages, bounded
reading, files written whole. `conformance`: the kit for ports. `corpus`: many pictures. `pages`, `cli`: what a person sees.
"""

import importlib as _importlib
import typing as _typing

from npembed.families import FAMILIES, MINICPM_V_2_6, image_placeholder, slice_image
from npembed.families.minicpmv import Config
from npembed.records.config import SlicingConfig, VisionConfig
from npembed.records.model import Model
from npembed.steps.embeddings import embed
from npembed.steps.encoder import encode
from npembed.steps.into_text import image_bounds, scatter_image_embeds, token_places
from npembed.steps.padding import pad_pixel_values, pad_sequence, patch_attention_mask
from npembed.steps.patch_mergers import merge_patches
from npembed.steps.patches import patch_conv
from npembed.steps.pixels import PIXEL_RULES
from npembed.steps.positions import (
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
from npembed.steps.resampler import resample
from npembed.steps.stages import run
from npembed.steps.video.choosing import choose_frames
from npembed.steps.video.rules import TIME_RULES

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

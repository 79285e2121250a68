"""The vision tower and the merger of mlx-vlm's MiniCPM-V 4.6 as a port."""

from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_towers import MERGER, arrays_of, given, load, strip_port, tower_of
from mlx_vlm.models.minicpmv4_6 import VisionConfig, VisionModel
from mlx_vlm.models.minicpmv4_6.minicpmv4_6 import Merger, Model, VitMerger

from npembed.conformance.adapters import slice_by_slice
from npembed.support.typing import Array

PRECISION = "float32"

_CLASSES = VisionConfig, VisionModel, "minicpmv4_6_vision"
_PORT = strip_port(*_CLASSES)
position_ids, embed = _PORT.position_ids, _PORT.embed


@slice_by_slice
def encode(places: Any, size: Any, model: Any) -> Array:
    """As npembed's, by the loop of mlx-vlm's own model."""
    vision = model.config.vision
    merger = VitMerger(vision.hidden_size, 4 * vision.intermediate_size, vision.num_attention_heads)
    whole = SimpleNamespace(vision_tower=tower_of(*_CLASSES, model), vit_merger=merger, merger=lambda x, h, w: (x, h, w))
    whole.config = SimpleNamespace(insert_layer_id=0, downsample_mode="4x", patch_size=vision.patch_size)
    if getattr(model.config, "merges_inside", False):
        load(merger, arrays_of(model, model.tower + MERGER))
        whole.config.insert_layer_id, whole.config.downsample_mode = model.config.insert_layer_id, "16x"
    pixels = [[np.zeros((3, 1, 1), dtype=np.float32)]]
    with given(whole.vision_tower, places[None]):
        return np.array(Model.get_vision_embedding(whole, pixels, [[size]])[0])


def merge_patches(hidden: Any, tgt_sizes: Any, model: Any) -> Array:
    """As npembed's; the sizes are those before the tower, which in "16x" halves them."""
    merger = load(Merger(model.config.vision.hidden_size, model.config.embed_dim), arrays_of(model, "model.merger."))
    after = np.asarray(tgt_sizes) // (model.config.unit // 2)
    each = slice_by_slice(lambda places, size, model: np.array(merger(mx.array(np.float32(places)), *size)[0]))
    return np.asarray(each(hidden, after, model))

"""The vision tower and the merger of mlx-vlm's MiniCPM-V 4.6 as a port."""

from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
from layouts import Array, pairs, ragged
from mlx_towers import MERGER, Strips, arrays_of, given, load, tower_of
from mlx_vlm.models.minicpmv4_6 import VisionConfig, VisionModel
from mlx_vlm.models.minicpmv4_6.minicpmv4_6 import Merger, Model, VitMerger

PRECISION = "float32"

_CLASSES = VisionConfig, VisionModel, "minicpmv4_6_vision"
_PORT = Strips(*_CLASSES)
position_ids, embed = _PORT.position_ids, _PORT.embed


def encode(embeddings: Any, tgt_sizes: Any, model: Any) -> Array:
    """As npembed's, by the loop of mlx-vlm's own model."""
    vision, inside = model.config.vision, getattr(model.config, "merges_inside", False)
    merger = VitMerger(vision.hidden_size, 4 * vision.intermediate_size, vision.num_attention_heads)
    whole = SimpleNamespace(vision_tower=tower_of(*_CLASSES, model), vit_merger=merger, merger=lambda x, h, w: (x, h, w))
    whole.config = SimpleNamespace(insert_layer_id=0, downsample_mode="4x", patch_size=vision.patch_size)
    if inside:
        load(merger, arrays_of(model, model.tower + MERGER))
        whole.config.insert_layer_id, whole.config.downsample_mode = model.config.insert_layer_id, "16x"
    rows = []
    for row, (h, w) in zip(np.asarray(embeddings, dtype=np.float32), pairs(tgt_sizes), strict=True):
        pixels = [[np.zeros((3, 1, 1), dtype=np.float32)]]
        with given(whole.vision_tower, row[None, : h * w]):
            rows.append(np.array(Model.get_vision_embedding(whole, pixels, [[(h, w)]])[0]))
    return ragged(rows, longest=0 if inside else np.shape(embeddings)[1])


def merge_patches(hidden: Any, tgt_sizes: Any, model: Any) -> Array:
    """As npembed's; the sizes are those before the tower, which in "16x" halves them."""
    merger = load(Merger(model.config.vision.hidden_size, model.config.embed_dim), arrays_of(model, "model.merger."))
    halves, rows = model.config.unit // 2, []
    for row, (h, w) in zip(np.asarray(hidden, dtype=np.float32), pairs(tgt_sizes), strict=True):
        h, w = h // halves, w // halves
        rows.append(np.array(merger(mx.array(row[: h * w]), h, w)[0]))
    return ragged(rows)

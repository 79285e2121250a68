"""The vision tower and the merger of transformers' MiniCPM-V 4.6 as a port."""

from types import SimpleNamespace
from typing import Any

import torch
from torch_towers import each_slice, load, packed_port
from transformers.models.minicpmv4_6.configuration_minicpmv4_6 import MiniCPMV4_6VisionConfig
from transformers.models.minicpmv4_6.modeling_minicpmv4_6 import MiniCPMV4_6Merger, MiniCPMV4_6VisionModel

PRECISION = "float32"

_PORT = packed_port(MiniCPMV4_6VisionConfig, MiniCPMV4_6VisionModel)
position_ids, embed, encode = _PORT.position_ids, _PORT.embed, _PORT.encode


def merge_patches(hidden: Any, tgt_sizes: Any, model: Any) -> Any:
    """As npembed's; the sizes are those before the tower, which in "16x" halves them."""
    config, text = model.config, SimpleNamespace(hidden_size=model.config.embed_dim)
    sizes = SimpleNamespace(vision_config=config.vision, text_config=text, merge_kernel_size=(2, 2), merger_times=1)
    merger = load(MiniCPMV4_6Merger(sizes), model, "model.merger.")
    halves = config.unit // 2
    after = [(h // halves, w // halves) for h, w in tgt_sizes]
    return each_slice(lambda rows, size, model: torch.cat(merger(rows, torch.tensor([size])))[None])(hidden, after, model)

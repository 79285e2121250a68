"""The seed article's steps in torch, written anew: padded strips, a mask, Conv2d, a loop for the ids, Embedding, the sum."""

import torch
from torch import nn

from npembed.config import MINICPM_V_2_6

SIDE = MINICPM_V_2_6.vision.num_patches_per_side


def seed_modules(kernels, bias, table):  # type: ignore[no-untyped-def]
    """(D, C, P, P), (D,), (G*G, D) -> Conv2d, Embedding."""
    width, channels, patch, _ = kernels.shape
    conv = nn.Conv2d(channels, width, kernel_size=patch, stride=patch, padding="valid")
    conv.load_state_dict({"weight": torch.from_numpy(kernels), "bias": torch.from_numpy(bias)})
    return conv, nn.Embedding.from_pretrained(torch.from_numpy(table))

"""The seed article's steps in torch, written anew: padded strips, a mask, Conv2d, a loop for the ids, Embedding, the sum."""

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def seed_modules(kernels: NDArray[Any], bias: NDArray[Any], table: NDArray[Any]) -> tuple[nn.Conv2d, nn.Embedding]:
    """(D, C, P, P), (D,), (G*G, D) -> the article's two modules, which it makes in every call; here they are made once."""
    width, channels, patch_size, _ = kernels.shape
    conv = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size, padding="valid")
    conv.load_state_dict({"weight": torch.from_numpy(kernels), "bias": torch.from_numpy(bias)})
    return conv, nn.Embedding.from_pretrained(torch.from_numpy(table))


def seed_embeddings(strips: Sequence[Tensor], tgt_sizes: Tensor, conv: nn.Conv2d, positions: nn.Embedding) -> Tensor:
    """list of (C, P, L_i*P), (B, 2) -> (B, Lmax, D)."""
    pixels = seed_padding(strips)
    mask = seed_mask(tgt_sizes)
    patches = conv(pixels).flatten(2).transpose(1, 2)  # (B, D, 1, Lmax) -> (B, Lmax, D)
    return patches + positions(seed_position_ids(mask, tgt_sizes, int(positions.num_embeddings**0.5)))


def seed_padding(strips: Sequence[Tensor]) -> Tensor:
    """list of (C, P, L_i*P) -> (B, C, P, Lmax*P)."""
    channels, patch_size, _ = strips[0].shape
    columns = [strip.flatten(end_dim=1).permute(1, 0) for strip in strips]  # (L_i*P, C*P)
    padded = nn.utils.rnn.pad_sequence(columns, batch_first=True, padding_value=0.0)  # (B, Lmax*P, C*P)
    return padded.permute(0, 2, 1).reshape(len(strips), channels, patch_size, -1)


def seed_mask(tgt_sizes: Tensor) -> Tensor:
    """(B, 2) -> bool (B, 1, Lmax)."""
    longest = int(torch.max(tgt_sizes[:, 0] * tgt_sizes[:, 1]))
    mask = torch.zeros((len(tgt_sizes), 1, longest), dtype=torch.bool)
    for index in range(len(tgt_sizes)):
        mask[index, 0, : tgt_sizes[index][0] * tgt_sizes[index][1]] = True
    return mask


def seed_position_ids(mask: Tensor, tgt_sizes: Tensor, side: int) -> Tensor:
    """bool (B, 1, Lmax), (B, 2) -> int64 (B, Lmax)."""
    ids = torch.full((len(mask), mask.shape[2]), fill_value=0)
    boundaries = torch.arange(1 / side, 1.0, 1 / side)
    for index, places in enumerate(mask):
        h, w = tgt_sizes[index][0], tgt_sizes[index][1]
        rows, columns = (torch.bucketize(torch.arange(0, 1 - 1e-6, 1 / n), boundaries, right=True) for n in (h, w))
        ids[index][places.view(-1)] = (rows[:, None] * side + columns).flatten()
    return ids

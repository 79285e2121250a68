"""torch's own functions as a port of the seed's steps: arange, bucketize, conv2d, embedding, layer_norm, attention, gelu."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import npembed
from npembed.conformance.adapters import Tensors, packed_ids
from npembed.conformance.adapters.layouts import batch_of, checked_sizes, sizes_in
from npembed.support.typing import Array


def pad_sequence(sequences: Any, batch_first: bool = False, padding_value: float = 0.0, padding_side: str = "right") -> Array:
    """As npembed's."""
    tensors = [torch.tensor(np.asarray(sequence)) for sequence in sequences]
    return np.asarray(torch.nn.utils.rnn.pad_sequence(tensors, batch_first, padding_value, padding_side).numpy())


def patch_conv(pixel_values: Any, weight: Any, bias: Any = None) -> Array:
    """As npembed's."""
    pixels, kernels, biases = (None if array is None else torch.tensor(array) for array in (pixel_values, weight, bias))
    assert pixels is not None
    assert kernels is not None
    kind = torch.promote_types(pixels.dtype, kernels.dtype)
    biases = None if biases is None else biases.to(kind)
    return np.asarray(functional.conv2d(pixels.to(kind), kernels.to(kind), biases, stride=kernels.shape[-1]).numpy())


def boundaries(num_patches_per_side: int, rule: str = "arange") -> Array:
    """As npembed's."""
    return np.asarray(torch.arange(1 / num_patches_per_side, 1.0, 1 / num_patches_per_side).numpy())


def fractional_coords(num_patches: int, rule: str = "arange") -> Array:
    """As npembed's."""
    return np.asarray(torch.arange(0, 1 - 1e-6, 1 / torch.tensor(num_patches)).numpy())


def bucketize(values: Any, boundaries: Any, right: bool = False) -> Array:
    """As npembed's."""
    return np.asarray(torch.bucketize(torch.tensor(values), torch.tensor(boundaries), right=right).numpy())


def bucket_coords(num_patches: int, num_patches_per_side: int = 70, rule: str = "arange") -> Array:
    """As npembed's."""
    return bucketize(fractional_coords(num_patches), boundaries(num_patches_per_side), right=True)


@packed_ids
def position_ids(tgt_sizes: Any, side: int) -> Array:
    """As npembed's."""
    sizes = np.asarray(tgt_sizes).tolist()
    rows = [np.add.outer(bucket_coords(h, side) * side, bucket_coords(w, side)).ravel() for h, w in sizes]
    return np.concatenate(rows)


def embed(strips: Any, tgt_sizes: Any, model: npembed.Model, rule: str | None = None) -> Array:
    """As npembed's."""
    names = ("patch_embedding.weight", "patch_embedding.bias", "position_embedding.weight")
    kernels, bias, table = (torch.tensor(model.weights[f"{model.tower}embeddings.{name}"]) for name in names)
    ids = torch.tensor(position_ids(checked_sizes(strips, tgt_sizes), model.config.vision.num_patches_per_side))
    pixels = batch_of([np.asarray(strip).transpose(2, 0, 1) for strip in strips]).transpose(0, 2, 3, 1)
    features = functional.conv2d(torch.tensor(pixels).to(kernels.dtype), kernels, bias, stride=kernels.shape[-1])
    return np.asarray((features.flatten(2).transpose(1, 2) + functional.embedding(ids, table)).numpy())


def encode(embeddings: Any, tgt_sizes: Any, model: npembed.Model) -> Array:
    """As npembed's: the padded batch at once, the padded keys masked."""
    x = torch.tensor(np.asarray(embeddings)).to(torch.tensor(next(iter(model.weights.values()))).dtype)
    mask = Tensors(torch).mask(sizes_in(tgt_sizes))[:, None, None]  # (B, 1, 1, L)
    x = torch.where(mask[:, 0, 0, :, None], x, 0)
    for number in range(getattr(model.config, "encoder_layers", model.config.vision.num_hidden_layers)):
        layer = f"{model.tower}encoder.layers.{number}"
        x = x + _attention(_norm(x, model, f"{layer}.layer_norm1"), mask, model, f"{layer}.self_attn")
        inner = _linear(_norm(x, model, f"{layer}.layer_norm2"), model, f"{layer}.mlp.fc1")
        x = x + _linear(functional.gelu(inner, approximate="tanh"), model, f"{layer}.mlp.fc2")
    return np.asarray(_norm(x, model, f"{model.tower}post_layernorm").numpy())


def _linear(x: Tensor, model: npembed.Model, name: str) -> Tensor:
    return functional.linear(x, *map(torch.tensor, model.pair(name)))


def _norm(x: Tensor, model: npembed.Model, name: str) -> Tensor:
    weight, bias = map(torch.tensor, model.pair(name))
    return functional.layer_norm(x, x.shape[-1:], weight, bias, model.config.vision.layer_norm_eps)


def _attention(x: Tensor, mask: Tensor, model: npembed.Model, name: str) -> Tensor:
    heads = model.config.vision.num_attention_heads
    q, k, v = (_linear(x, model, f"{name}.{part}_proj").unflatten(-1, (heads, -1)).transpose(1, 2) for part in "qkv")
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return _linear(mixed.transpose(1, 2).flatten(2), model, f"{name}.out_proj")

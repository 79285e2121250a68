"""Embeddings -> hidden states: the SigLIP transformer, each slice by itself."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npembed import checks
from npembed.attention import attend, gelu, layer_norm, linear, weight_and_bias
from npembed.config import VisionConfig
from npembed.model import Model


def encode(
    embeddings: ArrayLike, tgt_sizes: ArrayLike, model: Model, *, progress: Callable[[int, int], None] | None = None
) -> NDArray[Any]:
    """(B, Lmax, D), (B, 2) -> (B, Lmax, D): what the vision tower makes of the embeddings.

    Only the patches that exist are computed, slice by slice. Beside the result, the memory is one slice's.

    Parameters
    ----------
    embeddings : float (B, Lmax, D)
        As `embed` gives them. Lmax may exceed the largest h*w; what is in padded places is not read.
    tgt_sizes : int (B, 2)
        Rows and columns of patches per slice.
    model : Model
        Its float type is the result's.
    progress : callable, optional
        Called after each layer with how many are done, and of how many.

    Returns
    -------
    float32 or float64 (B, Lmax, D)
        Zeros in padded places; upstream leaves them unspecified, and nothing reads them later.

    Raises
    ------
    ValueError, TypeError
        A model without the encoder's arrays; embeddings that do not fit the model or tgt_sizes, with the slice.

    Notes
    -----
    Source: SPEC 7. With `drop_vision_last_layer` the last layer is left out; the last norm is not. A NaN stays in its slice.

    Examples
    --------
    >>> from npembed import Config, VisionConfig, random_model
    >>> tiny = Config(vision=VisionConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2))
    >>> hidden = encode(np.ones((2, 6, 8)), [[2, 3], [1, 4]], random_model(tiny, until="hidden"))
    >>> hidden.shape, hidden[1, 4:].any()
    ((2, 6, 8), np.False_)
    """
    who = "encode"
    model.require("hidden", who)
    config, weights = model.config, model.weights
    sizes = checks.as_tgt_sizes(tgt_sizes, who)
    given = checks.as_patches(embeddings, "embeddings", sizes, config.vision.hidden_size, who)
    result = np.zeros(given.shape, dtype=model.dtype)
    slices = [rows[: h * w] for rows, (h, w) in zip(result, sizes.tolist(), strict=True)]  # views, each (L, D)
    for x, patches in zip(slices, given, strict=True):
        x[:] = patches[: len(x)]
    for number in range(config.encoder_layers):
        for x in slices:
            _run_layer(x, weights, f"vpm.encoder.layers.{number}", config.vision)
        if progress is not None:
            progress(number + 1, config.encoder_layers)
    for x in slices:
        x[:] = layer_norm(x, *weight_and_bias(weights, "vpm.post_layernorm"), config.vision.layer_norm_eps)
    return result


def _run_layer(x: NDArray[Any], weights: Mapping[str, NDArray[Any]], layer: str, vision: VisionConfig) -> None:
    """(L, D), in place: x += attention(norm1(x)), then x += mlp(norm2(x))."""

    def of(name: str) -> tuple[NDArray[Any], NDArray[Any]]:
        return weight_and_bias(weights, f"{layer}.{name}")

    normed = layer_norm(x, *of("layer_norm1"), vision.layer_norm_eps)
    queries, keys, values = (linear(normed, *of(f"self_attn.{name}_proj")) for name in "qkv")
    x += linear(attend(queries, keys, values, vision.num_attention_heads), *of("self_attn.out_proj"))
    normed = layer_norm(x, *of("layer_norm2"), vision.layer_norm_eps)
    x += linear(gelu(linear(normed, *of("mlp.fc1"))), *of("mlp.fc2"))

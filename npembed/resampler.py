"""Hidden states -> vision tokens: learned queries attend to a slice's patches."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npembed import arguments
from npembed.attention import attend, layer_norm, linear
from npembed.model import Model, as_model, linear_shapes, norm_shapes
from npembed.typing import Floats, Shapes

HEAD_DIM = 128
"""Channels per head: E // 128 heads (SPEC 1)."""

EPS = 1e-6
"""Of the resampler's layer norms (SPEC 1); config.json's `layer_norm_eps` is the vision tower's."""


def sincos_table(h: int, w: int, channels: int) -> NDArray[np.float32]:
    """float32 (h*w, E): where each patch lies, row by row, as sines and cosines.

    The first E/2 channels encode the column, the last E/2 the row; each half is sin(t * omega), then cos(t * omega), with
    omega_k = 10000**(-k / (E/4)), k < E/4. Every step is in float32, as upstream.

    Examples
    --------
    >>> sincos_table(2, 1, 4).round(4).tolist()
    [[0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.8414999842643738, 0.5403000116348267]]
    """
    omega = 1 / 10000 ** (np.arange(channels // 4, dtype=np.float32) / (channels / 4))  # (E/4,)
    turns = np.arange(max(h, w), dtype=np.float32)[:, None] * omega  # (max(h, w), E/4)
    codes = np.concatenate([np.sin(turns), np.cos(turns)], axis=1)  # (max(h, w), E/2)
    table = np.empty((h, w, channels), dtype=np.float32)
    table[:, :, : channels // 2] = codes[:w]
    table[:, :, channels // 2 :] = codes[:h, None]
    return table.reshape(h * w, channels)


def resample(hidden: ArrayLike, tgt_sizes: ArrayLike, model: Model) -> Floats:
    """(B, Lmax, D), (B, 2) -> (B, Q, E): the vision tokens of each slice.

    Parameters
    ----------
    hidden : float (B, Lmax, D)
        As `encode` gives them. Lmax may exceed the largest h*w; what is in padded places is not read.
    tgt_sizes : int (B, 2)
        Rows and columns of patches per slice, of any size.
    model : Model
        Its float type is the result's.

    Returns
    -------
    float32 or float64 (B, Q, E)

    Raises
    ------
    ValueError, TypeError
        A model without the resampler's arrays; hidden states that do not fit the model or tgt_sizes, with the slice.

    Notes
    -----
    Source: SPEC 8. The table of positions is float32 in a float64 model too: it is what the weights were trained with, so that
    float64 is exact about the same function. Without `kv_proj`, where D = E, the hidden states are taken as they are. A NaN
    stays in its slice.

    Examples
    --------
    >>> from npembed import Config, VisionConfig, random_model
    >>> vision = VisionConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    >>> tiny = Config(vision=vision, query_num=4, embed_dim=128)
    >>> resample(np.ones((2, 6, 8)), [[2, 3], [1, 4]], random_model(tiny, until="tokens")).shape
    (2, 4, 128)
    """
    who = "resample"
    as_model(model, who).require("tokens", who, "resampler.query")
    config, weights = model.config, model.weights
    sizes = arguments.as_tgt_sizes(tgt_sizes, who)
    given = arguments.as_patches(hidden, "hidden", sizes, config.vision.hidden_size, who)
    to_queries, to_keys, to_values = _in_projections(model)
    learned = layer_norm(weights["resampler.query"], *model.pair("resampler.ln_q"), EPS)
    queries = linear(learned, *to_queries)  # (Q, E), the same for each slice
    result = np.empty((len(sizes), *queries.shape), dtype=model.dtype)
    for tokens, patches, (h, w) in zip(result, given, sizes.tolist(), strict=True):
        x = patches[: h * w].astype(model.dtype, copy=False)  # (L, D)
        if config.vision.hidden_size != config.embed_dim:
            x = x @ weights["resampler.kv_proj.weight"].T  # (L, E)
        x = layer_norm(x, *model.pair("resampler.ln_kv"), EPS)
        keys, values = linear(x + sincos_table(h, w, config.embed_dim), *to_keys), linear(x, *to_values)
        attended = attend(queries, keys, values, config.embed_dim // HEAD_DIM)  # (Q, E)
        attended = linear(attended, *model.pair("resampler.attn.out_proj"))
        attended = layer_norm(attended, *model.pair("resampler.ln_post"), EPS)
        np.matmul(attended, weights["resampler.proj"], out=tokens)
    return result


def _in_projections(model: Model) -> list[tuple[Floats, Floats]]:
    """Weight (E, E) and bias (E,) of the queries, the keys and the values, which are packed in that order."""
    weight, bias = model.weights["resampler.attn.in_proj_weight"], model.weights["resampler.attn.in_proj_bias"]
    return list(zip(np.split(weight, 3), np.split(bias, 3), strict=True))


def resampler_shapes(config: Any) -> Shapes:
    """Name -> shape of the arrays that `resample` reads (SPEC 10)."""
    width, wide = config.vision.hidden_size, config.embed_dim
    shapes: Shapes = {"resampler.query": (config.query_num, wide), "resampler.proj": (wide, wide)}
    if width != wide:
        shapes["resampler.kv_proj.weight"] = (wide, width)
    shapes |= {"resampler.attn.in_proj_weight": (3 * wide, wide), "resampler.attn.in_proj_bias": (3 * wide,)}
    shapes |= linear_shapes("resampler.attn.out_proj", wide, wide)
    return (
        shapes
        | norm_shapes("resampler.ln_q", wide)
        | norm_shapes("resampler.ln_kv", wide)
        | norm_shapes("resampler.ln_post", wide)
    )

"""Hidden states -> one vector for a picture: a learned probe attends to its patches; and vectors of unit length."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from npembed.records.model import Model, as_model, linear_shapes, norm_shapes
from npembed.support import arguments
from npembed.support.typing import Floats, Shapes


def pool(hidden: ArrayLike, tgt_sizes: ArrayLike, model: Model) -> Floats:
    """(B, Lmax, D), (B, 2) -> (B, D): SigLIP's attention head, which makes one vector of each picture.

    Parameters
    ----------
    hidden : float (B, Lmax, D)
        As `encode` gives them. Lmax may exceed the largest h*w; what is in padded places is not read.
    tgt_sizes : int (B, 2)
        Rows and columns of patches per picture.
    model : Model
        Its float type is the result's.

    Returns
    -------
    float32 or float64 (B, D)
        Not of unit length: `unit_length` makes it so, which search by dot product needs.

    Raises
    ------
    ValueError, TypeError
        A model whose family has no such head, or without its arrays; hidden states that do not fit the model or tgt_sizes,
        with the picture.

    Notes
    -----
    Source: SPEC 13.8. The probe is the only query, the patches are keys and values; then y + mlp(layer_norm(y)). A NaN stays
    in its picture.

    Examples
    --------
    >>> from npembed import FAMILIES, random_model
    >>> small = random_model(FAMILIES["siglip"].small(), until="pooled")
    >>> pool(np.ones((2, 729, 16)), [[27, 27], [27, 27]], small).shape
    (2, 16)
    """
    who = "pool"
    as_model(model, who).require("pooled", who)
    vision, ops, head = model.config.vision, model.ops, f"{model.tower}head"
    sizes = arguments.as_tgt_sizes(tgt_sizes, who)
    given = arguments.as_patches(hidden, "hidden", sizes, vision.hidden_size, who)
    packed = model.weights[f"{head}.attention.in_proj_weight"], model.weights[f"{head}.attention.in_proj_bias"]
    to_queries, to_keys, to_values = zip(*(np.split(array, 3) for array in packed), strict=True)
    queries = ops.linear(model.weights[f"{head}.probe"][0], *to_queries)  # (1, D), the same for each picture
    result = np.empty((len(sizes), vision.hidden_size), dtype=model.dtype)
    for vector, patches, (h, w) in zip(result, given, sizes.tolist(), strict=True):
        x = patches[: h * w].astype(model.dtype, copy=False)  # (L, D)
        attended = ops.attend(queries, ops.linear(x, *to_keys), ops.linear(x, *to_values), vision.num_attention_heads)
        y = ops.linear(attended, *model.pair(f"{head}.attention.out_proj"))  # (1, D)
        normed = ops.layer_norm(y, *model.pair(f"{head}.layernorm"), vision.layer_norm_eps)
        inner = ops.gelu(ops.linear(normed, *model.pair(f"{head}.mlp.fc1")))
        vector[:] = ops.add(y, ops.linear(inner, *model.pair(f"{head}.mlp.fc2")))[0]
    return result


def head_shapes(config: Any) -> Shapes:
    """Name -> shape of the arrays that `pool` reads (SPEC 13.8)."""
    head, width, inner = f"{config.family.prefix}head", config.vision.hidden_size, config.vision.intermediate_size
    shapes: Shapes = {f"{head}.probe": (1, 1, width)}
    shapes |= {f"{head}.attention.in_proj_weight": (3 * width, width), f"{head}.attention.in_proj_bias": (3 * width,)}
    shapes |= linear_shapes(f"{head}.attention.out_proj", width, width) | norm_shapes(f"{head}.layernorm", width)
    return shapes | linear_shapes(f"{head}.mlp.fc1", inner, width) | linear_shapes(f"{head}.mlp.fc2", width, inner)


def unit_length(vectors: ArrayLike) -> Floats:
    """(N, D) -> (N, D): each vector divided by its length, so that a dot product is the cosine of the angle.

    Parameters
    ----------
    vectors : float (N, D)
        As `pool` gives them.

    Returns
    -------
    float32 or float64 (N, D)
        float16 and bfloat16 give float32.

    Raises
    ------
    ValueError, TypeError
        Another shape; a vector that is zero, which has no direction, or not finite, with its index.

    Notes
    -----
    Source: what SigLIP's own model does before it compares pictures with texts. The length is taken in float64, so that no
    square overflows or vanishes.

    Examples
    --------
    >>> unit_length([[3.0, 4.0], [0.0, -2.0]]).tolist()
    [[0.6, 0.8], [0.0, -1.0]]
    """
    who = "unit_length"
    given = arguments.as_floats(vectors, "vectors", who)
    arguments.check_shape(given, "vectors", (None, None), who, "(N, D)")
    wide = given.astype(np.float64)
    largest = np.abs(wide).max(axis=1, keepdims=True)  # (N, 1)
    for index, most in enumerate(largest[:, 0].tolist()):
        if not 0 < most < np.inf:
            raise ValueError(f"{who}: vectors[{index}] is {'zero' if most == 0 else 'not finite'}; it has no direction")
    wide /= largest
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    return wide.astype(given.dtype, copy=False)

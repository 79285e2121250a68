"""Embeddings -> hidden states: the SigLIP transformer, each slice by itself."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import ArrayLike

from npembed.records.config import FamilyConfig
from npembed.records.family import Step
from npembed.records.model import Model, as_model, linear_shapes, norm_shapes
from npembed.support import arguments
from npembed.support.typing import Floats, Ids, Shapes


def encode(
    embeddings: ArrayLike,
    tgt_sizes: ArrayLike,
    model: Model,
    *,
    progress: Callable[[int, int], None] | None = None,
    patches_at_once: int = 1,
) -> Floats:
    """(B, Lmax, D), (B, 2) -> (B, Lmax', D): what the vision tower makes of the embeddings.

    The tower's steps are those of the model's family. Only the patches that exist are computed, slice by slice. Beside the
    result, the memory is one slice's.

    Parameters
    ----------
    embeddings : float (B, Lmax, D)
        As `embed` gives them. Lmax may exceed the largest h*w; what is in padded places is not read.
    tgt_sizes : int (B, 2)
        Rows and columns of patches per slice.
    model : Model
        Its float type is the result's.
    progress : callable, optional
        Called after each step of each slice with how many are done, and of how many.
    patches_at_once : int
        Slices of one size that follow each other go through the tower together, as long as they have no more patches than
        this. It is faster for small slices: a product of few rows takes longer by the row. It takes the memory of one slice of
        so many patches.

    Returns
    -------
    float32 or float64 (B, Lmax', D)
        Lmax' is Lmax unless a merger inside the tower leaves fewer places (SPEC 13.4). Zeros in padded places; upstream leaves
        them unspecified, and nothing reads them later. Where padding takes part in the tower (SPEC 13.2) it has values.

    Raises
    ------
    ValueError, TypeError
        A model without the encoder's arrays; embeddings that do not fit the model or tgt_sizes, with the slice.

    Notes
    -----
    Source: SPEC 7. With `drop_vision_last_layer` the last layer is left out; the last norm is not. A NaN stays in its slice.
    Slices that go together do not see each other, but the last bit of a row may depend on how many rows a product has.

    Examples
    --------
    >>> from npembed import Config, VisionConfig, random_model
    >>> tiny = Config(vision=VisionConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2))
    >>> hidden = encode(np.ones((2, 6, 8)), [[2, 3], [1, 4]], random_model(tiny, until="hidden"))
    >>> hidden.shape, hidden[1, 4:].any()
    ((2, 6, 8), np.False_)
    """
    who = "encode"
    as_model(model, who).require("hidden", who)
    family = model.config.family
    sizes = arguments.as_tgt_sizes(tgt_sizes, who)
    most = arguments.as_count(patches_at_once, "patches_at_once", who)
    given = arguments.as_patches(embeddings, "embeddings", sizes, model.config.vision.hidden_size, who)
    after = family.stage("hidden", who).sizes_of(sizes, model.config)  # (B, 2)
    longest = given.shape[1] if np.array_equal(after, sizes) else int(after.prod(axis=1).max())
    result = np.zeros((len(given), longest, given.shape[2]), dtype=model.dtype)
    steps = family.tower(model)
    taking_part = family.places(sizes)  # (B, 2)
    for run in _runs(taking_part, most):
        h, w = size = tuple(taking_part[run.start].tolist())
        x = given[run, : h * w].astype(model.dtype)  # (n, L, D), a copy
        for done, step in enumerate(steps, 1):
            x, size = step(x, size)
            if progress is not None:
                progress(run.start * len(steps) + done * len(x), len(given) * len(steps))
        result[run, : x.shape[1]] = x
    return result


def _runs(sizes: Ids, patches: int) -> Iterator[slice]:
    """(B, 2) -> the rows in order, those together that follow each other and are equal, up to so many patches or one row."""
    start = 0
    for end in range(1, len(sizes) + 1):
        same = end < len(sizes) and (sizes[end] == sizes[start]).all()
        if not same or (end + 1 - start) * sizes[start].prod() > patches:
            yield slice(start, end)
            start = end


def tower_layers(model: Model, numbers: Iterable[int]) -> list[Step]:
    """The transformer's layers of those numbers, as steps."""

    def layer(number: int) -> Step:
        return lambda x, size: (run_layer(x, model, f"{model.tower}encoder.layers.{number}"), size)

    return [layer(number) for number in numbers]


def post_layernorm(model: Model) -> Step:
    """The layer norm after the last layer, as a step."""
    weight, bias = model.pair(f"{model.tower}post_layernorm")
    return lambda x, size: (model.ops.layer_norm(x, weight, bias, model.config.vision.layer_norm_eps), size)


def run_layer(x: Floats, model: Model, layer: str, attended: int | None = None) -> Floats:
    """(n, L, D) -> (n, L, D): x + attention(norm1(x)), and to that + mlp(norm2(it)).

    Each place attends to all of its slice, or to the first `attended`.
    """
    vision, ops = model.config.vision, model.ops
    normed = ops.layer_norm(x, *model.pair(f"{layer}.layer_norm1"), vision.layer_norm_eps)
    queries, keys, values = (ops.linear(normed, *model.pair(f"{layer}.self_attn.{name}_proj")) for name in "qkv")
    of_slices = zip(queries, keys, values, strict=True)
    mixed = np.stack([ops.attend(q, k[:attended], v[:attended], vision.num_attention_heads) for q, k, v in of_slices])
    x = ops.add(x, ops.linear(mixed, *model.pair(f"{layer}.self_attn.out_proj")))
    normed = ops.layer_norm(x, *model.pair(f"{layer}.layer_norm2"), vision.layer_norm_eps)
    inner = ops.gelu(ops.linear(normed, *model.pair(f"{layer}.mlp.fc1")))
    return ops.add(x, ops.linear(inner, *model.pair(f"{layer}.mlp.fc2")))


def layer_shapes(layer: str, width: int, inner: int) -> Shapes:
    """Name -> shape of the arrays of one layer (SPEC 10)."""
    shapes = norm_shapes(f"{layer}.layer_norm1", width) | norm_shapes(f"{layer}.layer_norm2", width)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= linear_shapes(f"{layer}.self_attn.{name}", width, width)
    return shapes | linear_shapes(f"{layer}.mlp.fc1", inner, width) | linear_shapes(f"{layer}.mlp.fc2", width, inner)


def tower_shapes(config: FamilyConfig, layers: int) -> Shapes:
    """Name -> shape of the arrays of so many layers and of the norm after them (SPEC 10)."""
    vision, prefix = config.vision, config.family.prefix
    shapes: Shapes = {}
    for number in range(layers):
        shapes |= layer_shapes(f"{prefix}encoder.layers.{number}", vision.hidden_size, vision.intermediate_size)
    return shapes | norm_shapes(f"{prefix}post_layernorm", vision.hidden_size)

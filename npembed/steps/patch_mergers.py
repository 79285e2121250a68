"""Hidden states -> fewer of them, or vision tokens: each square of 2 x 2 places becomes one (SPEC 13.4)."""

import numpy as np
from numpy.typing import ArrayLike

from npembed.records.config import FamilyConfig
from npembed.records.family import Family, Step
from npembed.records.model import Model, as_model, linear_shapes, norm_shapes
from npembed.support import arguments
from npembed.support.typing import Floats, Ids, Shapes, Size

SIDE = 2
"""Rows, and columns, of a window."""

PLACES = SIDE * SIDE
"""Places in a window."""

MERGER = "model.merger.mlp.0"
"""What the names of the last merger's arrays begin with."""

EPS = 1e-6
"""Of the last merger's layer norm; config.json's `layer_norm_eps` is the vision tower's."""


def divided(tgt_sizes: Ids, unit: int, who: str) -> Ids:
    """(B, 2) -> (B, 2): the sizes in units of so many patches, or an error that names the first slice that is not whole.

    Examples
    --------
    >>> divided(np.array([[28, 36]]), 4, "here").tolist()
    [[7, 9]]
    """
    for index, (h, w) in enumerate(tgt_sizes.tolist()):
        if h % unit or w % unit:
            raise ValueError(f"{who}: tgt_sizes[{index}] is ({h}, {w}); each side must be a multiple of {unit} patches")
    return tgt_sizes // unit


def windows(x: Floats, size: Size) -> Floats:
    """(h*w, D), (h, w) -> (h*w/4, 4, D): the windows row by row, and the places of each row by row.

    Examples
    --------
    >>> windows(np.arange(8)[:, None], (2, 4))[:, :, 0].tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    h, w = size
    grid = x.reshape(h // SIDE, SIDE, w // SIDE, SIDE, -1)
    return grid.transpose(0, 2, 1, 3, 4).reshape(h * w // PLACES, PLACES, -1)


class Merging(Family):
    """A family that merges places by windows, after its tower and, in some configs, inside it."""

    windows = staticmethod(windows)

    def window_merger(self, model: Model) -> Step:
        """The merger inside the tower, as a step: attention within each window, then an MLP from the window to one place."""
        vision, ops, name = model.config.vision, model.ops, f"{model.tower}vit_merger"

        def step(x: Floats, size: Size) -> tuple[Floats, Size]:
            (n, _, width), (h, w) = x.shape, size
            x, size = x.reshape(-1, width), (n * h, w)  # one slice below the other: no window reaches from one into the next
            normed = ops.layer_norm(x, *model.pair(f"{name}.layer_norm1"), vision.layer_norm_eps)
            q, k, v = (self.windows(ops.linear(normed, *model.pair(f"{name}.self_attn.{part}_proj")), size) for part in "qkv")
            attended = ops.attend_in_windows(q, k, v, vision.num_attention_heads)
            attended = ops.linear(attended.reshape(x.shape), *model.pair(f"{name}.self_attn.out_proj"))
            z = ops.add(self.windows(x, size), attended.reshape(-1, PLACES, width))  # (N, 4, D)
            flat = ops.layer_norm(z.reshape(len(z), -1), *model.pair(f"{name}.pre_norm"), vision.layer_norm_eps)
            inner = ops.gelu(ops.linear(flat, *model.pair(f"{name}.linear_1")))
            merged = ops.add(ops.linear(inner, *model.pair(f"{name}.linear_2")), ops.mean(z, axis=1))
            return merged.reshape(n, -1, width), (h // SIDE, w // SIDE)

        return step


def window_merger_shapes(config: FamilyConfig) -> Shapes:
    """Name -> shape of the arrays that `window_merger` reads."""
    width, name = config.vision.hidden_size, f"{config.family.prefix}vit_merger"
    inner = PLACES * config.vision.intermediate_size
    shapes = norm_shapes(f"{name}.layer_norm1", width) | norm_shapes(f"{name}.pre_norm", PLACES * width)
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= linear_shapes(f"{name}.self_attn.{part}", width, width)
    return shapes | linear_shapes(f"{name}.linear_1", inner, PLACES * width) | linear_shapes(f"{name}.linear_2", width, inner)


def merge_patches(hidden: ArrayLike, tgt_sizes: ArrayLike, model: Model) -> Floats:
    """(B, Lmax', D), (B, 2) -> (B, most, E): the vision tokens of each slice, one for each window of 2 x 2 hidden states.

    Parameters
    ----------
    hidden : float (B, Lmax', D)
        As `encode` gives them; what is in padded places is not read.
    tgt_sizes : int (B, 2)
        Rows and columns of patches per slice, as `encode` was given them: multiples of 4 where the tower has the window
        merger, else of 2.
    model : Model
        Its float type is the result's.

    Returns
    -------
    float32 or float64 (B, most, E)
        A slice of h x w patches has h*w/16 tokens where the tower has the window merger, else h*w/4; zeros beyond them.

    Raises
    ------
    ValueError, TypeError
        A model of another family, or without the merger's arrays; sizes that are not such multiples; hidden states that do
        not fit the model or the sizes: with the slice.

    Notes
    -----
    Source: SPEC 13.4. gelu is the erf form here, the tanh form in the tower. A NaN stays in its slice.

    Examples
    --------
    >>> from npembed import FAMILIES, random_model
    >>> family = FAMILIES["minicpm-v-4.6"]
    >>> model = random_model(family.small(), until="tokens")
    >>> merge_patches(np.ones((2, 8, 16)), [[4, 8], [4, 4]], model).shape
    (2, 2, 24)
    """
    who = "merge_patches"
    as_model(model, who).require("tokens", who, f"{MERGER}.linear_1.weight")
    config, family, ops = model.config, model.config.family, model.ops
    assert isinstance(family, Merging)
    sizes = arguments.as_tgt_sizes(tgt_sizes, who)
    counts = divided(sizes, family.unit(config), who).prod(axis=1).tolist()
    after = family.stage("hidden", who).sizes_of(sizes, config)  # (B, 2)
    given = arguments.as_patches(hidden, "hidden", after, config.vision.hidden_size, who, "hidden_sizes")
    result = np.zeros((len(sizes), max(counts), config.embed_dim), dtype=model.dtype)
    for tokens, places, size, count in zip(result, given, after.tolist(), counts, strict=True):
        x = places[: size[0] * size[1]].astype(model.dtype, copy=False)
        flat = family.windows(x, size).reshape(count, -1)  # (count, 4D)
        normed = ops.layer_norm(flat, *model.pair(f"{MERGER}.pre_norm"), EPS)
        inner = ops.gelu_erf(ops.linear(normed, *model.pair(f"{MERGER}.linear_1")))
        tokens[:count] = ops.linear(inner, *model.pair(f"{MERGER}.linear_2"))
    return result


def merged_patches(tgt_sizes: Ids, config: FamilyConfig) -> list[Ids]:
    """(B, 2) -> per slice int64 (M, K): the patches that each token is merged from, window by window."""
    times = config.family.unit(config) // SIDE
    found = []
    for h, w in tgt_sizes.tolist():
        patches = np.arange(h * w)[:, None]
        for time in range(times):
            patches = windows(patches, (h // SIDE**time, w // SIDE**time)).reshape(-1, PLACES ** (time + 1))
        found.append(patches)
    return found


def merger_shapes(config: FamilyConfig) -> Shapes:
    """Name -> shape of the arrays that `merge_patches` reads."""
    wide = PLACES * config.vision.hidden_size
    shapes = norm_shapes(f"{MERGER}.pre_norm", wide) | linear_shapes(f"{MERGER}.linear_1", wide, wide)
    return shapes | linear_shapes(f"{MERGER}.linear_2", config.embed_dim, wide)

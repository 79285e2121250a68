"""Strips -> embeddings: the convolution of each patch plus the row of the position table that its place takes."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npembed import checks
from npembed.model import Model
from npembed.patches import strip_to_patches
from npembed.positions import ids_of

PATCHES_AT_ONCE = 2048
"""Patches per matrix product, unless one slice alone has more: enough for BLAS, and it bounds the memory beside the result."""


def embed(strips: Iterable[ArrayLike], tgt_sizes: ArrayLike, model: Model, rule: str = "arange") -> NDArray[Any]:
    """list of (C, P, L_i*P), (B, 2) -> (B, Lmax, D): the embeddings of every patch.

    What padding the strips, `patch_conv`, looking up `position_ids` and adding would give, but only the patches that exist
    are computed.

    Parameters
    ----------
    strips : iterable of float (C, P, L_i*P)
        One per slice, as `slice_image` gives them.
    tgt_sizes : int (B, 2)
        Rows and columns of patches per slice.
    model : Model
        Its float type is the result's.
    rule : str
        A name in `RULES`.

    Returns
    -------
    float32 or float64 (B, Lmax, D)
        A padded place holds bias + position_weight[0], as upstream; only `patch_attention_mask` tells it apart.

    Raises
    ------
    ValueError, TypeError
        Strips that do not fit the model or tgt_sizes, named with their index; sizes for which the rule gives no usable id.

    Notes
    -----
    Source: SPEC 6; the seed article's last step. In float32 each element lies within
    gamma_(n+1) * (|x| * |w| + |bias| + |position|) of the exact one, n = C*P*P + 2 (SPEC 11).

    Examples
    --------
    >>> from npembed import MINICPM_V_2_6, random_model
    >>> strips = [np.zeros((3, 14, h * w * 14), dtype=np.float32) for h, w in [(28, 37), (39, 26)]]
    >>> embed(strips, [[28, 37], [39, 26]], random_model(MINICPM_V_2_6)).shape
    (2, 1036, 1152)
    """
    who = "embed"
    model.require("embeddings", who)
    vision = model.config.vision
    sizes = checks.as_tgt_sizes(tgt_sizes, who)
    pixels = checks.as_strips(strips, who, vision.num_channels, vision.patch_size)
    checks.check_strips_fit(pixels, sizes, who)
    return _embed_slices(pixels, sizes, model, rule)


def _embed_slices(pixels: Sequence[NDArray[Any]], sizes: NDArray[np.int64], model: Model, rule: str) -> NDArray[Any]:
    """(B, Lmax, D) of strips that fit; the scratch arrays are made once, for fresh memory costs more than its use."""
    vision = model.config.vision
    kernels = model.weights["vpm.embeddings.patch_embedding.weight"].reshape(vision.hidden_size, -1)  # (D, C*P*P)
    positions = model.position_plus_bias  # (G*G, D)
    lengths = sizes.prod(axis=1).tolist()
    result = np.empty((len(sizes), max(lengths), vision.hidden_size), model.dtype)
    own = np.empty(result.shape[1:], model.dtype)  # the positions of one slice
    most = min(sum(lengths), max(PATCHES_AT_ONCE, *lengths))
    patches, features = np.empty((most, kernels.shape[1]), model.dtype), np.empty((most, kernels.shape[0]), model.dtype)
    for group in _groups(lengths):
        for b, rows in group:
            strip_to_patches(pixels[b], out=patches[rows])
        filled = slice(group[-1][1].stop)
        np.matmul(patches[filled], kernels.T, out=features[filled])
        for b, rows in group:
            if b == 0 or (sizes[b] != sizes[b - 1]).any():  # the crops of a picture are all of one size
                ids = ids_of(sizes[b : b + 1], vision.num_patches_per_side, rule, "embed")[0]
                np.take(positions, ids, axis=0, out=own[: len(ids)], mode="clip")  # ids are in range; "raise" would copy
            np.add(features[rows], own[: lengths[b]], out=result[b, : lengths[b]])
            result[b, lengths[b] :] = positions[0]
    return result


def _groups(lengths: list[int]) -> Iterator[list[tuple[int, slice]]]:
    """Runs of slices of at most `PATCHES_AT_ONCE` patches together, or of one slice; each with its rows in the run."""
    group: list[tuple[int, slice]] = []
    stop = 0
    for index, length in enumerate(lengths):
        if group and stop + length > PATCHES_AT_ONCE:
            yield group
            group, stop = [], 0
        group.append((index, slice(stop, stop + length)))
        stop += length
    yield group

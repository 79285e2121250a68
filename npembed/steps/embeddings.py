"""Strips -> embeddings: the convolution of each patch plus the row of the position table that its place takes."""

from collections.abc import Iterable

from numpy.typing import ArrayLike

from npembed.records.config import FamilyConfig
from npembed.records.model import Model, as_model
from npembed.steps.patches import strip_to_patches
from npembed.support import arguments
from npembed.support.typing import Floats, Shapes


def embed(strips: Iterable[ArrayLike], tgt_sizes: ArrayLike, model: Model, rule: str | None = None) -> Floats:
    """list of (C, P, L_i*P), (B, 2) -> (B, Lmax, D): the embeddings of every patch.

    What padding the strips, `patch_conv`, looking up `position_ids` and adding would give, but only the patches that exist
    are computed.

    Parameters
    ----------
    strips : iterable of float (C, P, L_i*P)
        One per slice, as `slice_image` gives them. NaN and infinity are passed on: they spoil the row of their own patch.
    tgt_sizes : int (B, 2)
        Rows and columns of patches per slice.
    model : Model
        Its float type is the result's.
    rule : str, optional
        A name in `RULES`; without it, the rule of the model's family.

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
    >>> import numpy as np
    >>> from npembed import MINICPM_V_2_6, random_model
    >>> strips = [np.zeros((3, 14, h * w * 14), dtype=np.float32) for h, w in [(28, 37), (39, 26)]]
    >>> embed(strips, [[28, 37], [39, 26]], random_model(MINICPM_V_2_6)).shape
    (2, 1036, 1152)
    """
    who = "embed"
    as_model(model, who).require("embeddings", who)
    config = model.config
    sizes = arguments.as_tgt_sizes(tgt_sizes, who)
    pixels = arguments.as_strips(strips, who, config.vision.num_channels, config.vision.patch_size)
    arguments.check_strips_fit(pixels, sizes, who)
    kernels = config.family.kernels(model)  # (D, C*P*P)
    result = config.family.positions(model, sizes, rule)  # (B, Lmax, D); in the padding nothing is added to it
    for places, strip in zip(result, pixels, strict=True):
        patches = strip_to_patches(strip.astype(model.dtype, copy=False))  # (L, C*P*P)
        places[: len(patches)] += model.ops.product(patches, kernels.T)
    return result


def embedding_shapes(config: FamilyConfig) -> Shapes:
    """Name -> shape of the arrays that `embed` reads (SPEC 10)."""
    vision, width = config.vision, config.vision.hidden_size
    prefix = f"{config.family.prefix}embeddings"
    return {
        f"{prefix}.patch_embedding.weight": (width, vision.num_channels, vision.patch_size, vision.patch_size),
        f"{prefix}.patch_embedding.bias": (width,),
        f"{prefix}.position_embedding.weight": (vision.num_patches_per_side**2, width),
    }

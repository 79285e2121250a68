"""Hidden states -> vision tokens: learned queries attend to the patches of a slice, or of a group of frames."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npembed.records.family import Family
from npembed.records.model import Model, as_model, linear_shapes, norm_shapes
from npembed.support import arguments
from npembed.support.messages import brief
from npembed.support.typing import Floats, Shapes, Size

HEAD_DIM = 128
"""Channels per head: E // 128 heads (SPEC 1)."""

EPS = 1e-6
"""Of the resampler's layer norms (SPEC 1); config.json's `layer_norm_eps` is the vision tower's."""


PICTURE = -1
"""The time of a slice that is of a picture and not of a frame."""

MAX_TIME = 71_999
"""Of a frame, at most (SPEC 13.3)."""


def _waves(places: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """float32 (N,) -> float32 (N, channels): sin(t * omega), then cos(t * omega), omega_k = 10000**(-k / (channels/2)).

    The power, the division and the product are each rounded to float32, as upstream.
    """
    half = channels // 2
    exponents = np.arange(half, dtype=np.float32) / np.float32(half)
    powers = 10000 ** exponents.astype(np.float64)  # NumPy's float32 power is not the nearest float32 on every processor
    omega = np.float32(1) / powers.astype(np.float32)  # (channels/2,)
    turns = places[:, None] * omega
    return np.concatenate([np.sin(turns), np.cos(turns)], axis=1)


def sincos_table(h: int, w: int, channels: int) -> NDArray[np.float32]:
    """float32 (h*w, E): where each patch lies, row by row, as sines and cosines.

    The first E/2 channels encode the column, the last E/2 the row; each half is sin(t * omega), then cos(t * omega), with
    omega_k = 10000**(-k / (E/4)), k < E/4. Every step is in float32, as upstream.

    Examples
    --------
    >>> sincos_table(2, 1, 4).round(4).tolist()
    [[0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.8414999842643738, 0.5403000116348267]]
    """
    codes = _waves(np.arange(max(h, w), dtype=np.float32), channels // 2)  # (max(h, w), E/2)
    table = np.empty((h, w, channels), dtype=np.float32)
    table[:, :, : channels // 2] = codes[:w]
    table[:, :, channels // 2 :] = codes[:h, None]
    return table.reshape(h * w, channels)


def time_code(time: int, channels: int) -> NDArray[np.float32]:
    """float32 (E,): when a frame is, as sines and cosines over all channels; zeros for a picture, whose time is -1.

    sin(t * omega), then cos(t * omega), with omega_k = 10000**(-k / (E/2)), k < E/2. Every step is in float32, as
    upstream: with omega or t * omega in float64 the tokens would be 2.5e-4 off at the last time, 71,999.

    Notes
    -----
    Source: SPEC 13.3.

    Examples
    --------
    >>> time_code(1, 4).round(4).tolist()
    [0.8414999842643738, 0.009999999776482582, 0.5403000116348267, 1.0]
    >>> time_code(-1, 4).tolist()
    [0.0, 0.0, 0.0, 0.0]
    """
    return np.zeros(channels, np.float32) if time == PICTURE else _waves(np.array([time], np.float32), channels)[0]


class Resampling(Family):
    """A family whose connector is the resampler: what its keys and values are made of."""

    sincos_table = staticmethod(sincos_table)
    time_code = staticmethod(time_code)

    def keyed(self, places: Floats, size: Size, time: int, model: Model) -> tuple[Floats, Floats]:
        """One slice's (K, D) -> (L, E) twice: what keys are made of, with place and time, and what values are made of."""
        (h, w), wide, ops = size, model.config.embed_dim, model.ops
        x = places[: h * w].astype(model.dtype, copy=False)  # (L, D)
        if model.config.vision.hidden_size != wide:
            x = ops.product(x, model.weights["resampler.kv_proj.weight"].T)  # (L, E)
        x = ops.layer_norm(x, *model.pair("resampler.ln_kv"), EPS)
        keyed = ops.add(x, self.sincos_table(h, w, wide))
        if time != PICTURE:
            ops.add(keyed, self.time_code(time, wide), out=keyed)
        return keyed, x


def resample(
    hidden: ArrayLike, tgt_sizes: ArrayLike, model: Model, temporal_ids: Iterable[Iterable[int]] | None = None
) -> Floats:
    """(B, Lmax, D), (B, 2) -> (B, Q, E): the vision tokens of each slice; with groups of frames (groups, Q, E).

    Parameters
    ----------
    hidden : float (B, Lmax, D)
        As `encode` gives them. Lmax may exceed the largest h*w; what is in padded places is not read.
    tgt_sizes : int (B, 2)
        Rows and columns of patches per slice, of any size.
    model : Model
        Its float type is the result's.
    temporal_ids : groups of int, optional
        For a family that takes frames: the slices in order, as groups, each a list with the time of each of its slices.
        `[[-1], [0, 3, 7]]` is a slice of a picture, then three slices of frames that share Q tokens. A frame's time is
        from 0 to 71,999; -1 is a picture, whose slice is a group of its own. Without it, every slice is one of a picture.

    Returns
    -------
    float32 or float64 (B, Q, E), or (groups, Q, E)

    Raises
    ------
    ValueError, TypeError
        A model without the resampler's arrays; hidden states that do not fit the model or tgt_sizes, with the slice; times for
        a family that takes no frames; times that are not as above, with their place, or not as many as slices.

    Notes
    -----
    Source: SPEC 8 and 13.3. The tables of positions and times are float32 in a float64 model too: they are what the weights
    were trained with, so float64 is exact about the same function. They are added to the keys alone. Without `kv_proj`,
    where D = E, the hidden states are taken as they are. A NaN stays in its group.

    Examples
    --------
    >>> from npembed import FAMILIES, random_model
    >>> family = FAMILIES["minicpm-v-4.5"]
    >>> tiny = random_model(family.small(), until="tokens")
    >>> hidden, sizes = np.ones((4, 6, 16)), [[2, 3], [1, 4], [1, 4], [1, 4]]
    >>> resample(hidden, sizes, tiny).shape, resample(hidden, sizes, tiny, [[-1], [0, 3, 7]]).shape
    ((4, 4, 128), (2, 4, 128))
    """
    who = "resample"
    as_model(model, who).require("tokens", who, "resampler.query")
    sizes = arguments.as_tgt_sizes(tgt_sizes, who)
    given = arguments.as_patches(hidden, "hidden", sizes, model.config.vision.hidden_size, who)
    groups = [[PICTURE]] * len(sizes) if temporal_ids is None else _as_groups(temporal_ids, len(sizes), model, who)
    family, ops = model.config.family, model.ops
    assert isinstance(family, Resampling)
    to_queries, to_keys, to_values = _in_projections(model)
    queries = ops.layer_norm(model.weights["resampler.query"], *model.pair("resampler.ln_q"), EPS)
    queries = ops.linear(queries, *to_queries)  # (Q, E), the same for each group
    result = np.empty((len(groups), *queries.shape), dtype=model.dtype)
    slices = iter(zip(given, sizes.tolist(), strict=True))
    for tokens, times in zip(result, groups, strict=True):
        keyed, plain = zip(*(family.keyed(*next(slices), time, model) for time in times), strict=True)  # of each slice (L, E)
        keys, values = ops.linear(np.concatenate(keyed), *to_keys), ops.linear(np.concatenate(plain), *to_values)
        attended = ops.attend(queries, keys, values, model.config.embed_dim // HEAD_DIM)  # (Q, E)
        attended = ops.linear(attended, *model.pair("resampler.attn.out_proj"))
        attended = ops.layer_norm(attended, *model.pair("resampler.ln_post"), EPS)
        ops.product(attended, model.weights["resampler.proj"], out=tokens)
    return result


def _as_groups(temporal_ids: Any, slices: int, model: Model, who: str) -> list[list[int]]:
    """The times as lists of whole numbers, one for each slice."""
    family = model.config.family
    if not family.frames:
        raise ValueError(f"{who}: {family.title} takes no temporal_ids: its resampler makes the tokens of each slice by itself")
    groups = as_times(temporal_ids, who)
    count = sum(map(len, groups))
    if count != slices:
        raise ValueError(f"{who}: temporal_ids has {count} times in {len(groups)} groups, but tgt_sizes {slices} slices")
    return groups


def as_times(temporal_ids: Any, who: str) -> list[list[int]]:
    """Groups of times, none of them empty: each from 0 to `MAX_TIME`, or -1 alone in its group."""
    groups = []
    for index, group in enumerate(arguments.as_list(temporal_ids, "temporal_ids", who)):
        name = f"temporal_ids[{index}]"
        times = [
            arguments.as_count(time, f"{name}[{place}]", who, least=PICTURE, most=MAX_TIME)
            for place, time in enumerate(_as_group(group, name, who))
        ]
        if PICTURE in times and len(times) > 1:
            raise ValueError(f"{who}: {name} is {times}; -1 is a picture, whose slice must be a group of its own")
        groups.append(times)
    return groups


def _as_group(group: Any, name: str, who: str) -> Sequence[Any]:
    if not isinstance(group, Iterable) or isinstance(group, (str, bytes)):
        raise TypeError(f"{who}: {name} must be a list of times, one per slice of the group; got {brief(group)}")
    times = list(group)
    if not times:
        raise ValueError(f"{who}: {name} is empty; a group needs at least one time")
    return times


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

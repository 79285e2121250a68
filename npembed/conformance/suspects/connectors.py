"""Faults of the connectors, from hidden states to tokens or to a picture's vector: by the function that each family calls."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from npembed.conformance.suspects.suspect import (
    Fault,
    Function,
    Suspect,
    changed_arrays,
    changed_model,
    method,
    part,
    with_vision,
)
from npembed.conformance.suspects.tower import (
    attend_with,
    causal_where,
    emptied,
    exchanged,
    gelu_by_erf,
    gelu_quick,
    gelu_tanh,
    instead,
    norm_with,
    overflowing,
    reads_padding,
    scaled_by,
    short_mask,
    unbiased,
    without_norm,
)
from npembed.families import phi4_multimodal
from npembed.records.model import Model
from npembed.steps import patch_mergers as mergers
from npembed.support.typing import Array, Floats


def _quarters(order: tuple[int, int, int, int]) -> Fault:
    """The resampler's table of positions with its quarters (sin and cos of the column, of the row) rearranged."""

    def change(table: Function) -> Function:
        def other(h: int, w: int, channels: int) -> Array:
            parts = np.split(table(h, w, channels), 4, axis=1)
            return np.concatenate([parts[k] for k in order], axis=1)

        return other

    return method("sincos_table", change)


def _clamped(table: Function) -> Function:
    """Rows and columns from 70 on take the place of the last."""

    def other(h: int, w: int, channels: int) -> Array:
        whole = table(min(h, 70), min(w, 70), channels).reshape(min(h, 70), min(w, 70), channels)
        padded = np.pad(whole, ((0, h - len(whole)), (0, w - whole.shape[1]), (0, 0)), mode="edge")
        return padded.reshape(h * w, channels)

    return other


def _no_table(table: Function) -> Function:
    return lambda h, w, channels: np.zeros((h * w, channels), dtype=np.float32)


def _turned_table(table: Function) -> Function:
    """The table of w rows and h columns, read row by row."""
    return lambda h, w, channels: table(w, h, channels)


def _slow_waves(table: Function) -> Function:
    """omega_k = 10000**(-k / (E/2)), in place of E/4."""

    def other(h: int, w: int, channels: int) -> Array:
        omega = 10000.0 ** (-np.arange(channels // 4) / (channels // 2))
        rows, columns = (np.arange(n)[:, None] * omega for n in (h, w))
        r, c = (np.concatenate([np.sin(turn), np.cos(turn)], axis=1) for turn in (rows, columns))
        both = np.concatenate(
            [np.broadcast_to(c, (h, w, channels // 2)), np.broadcast_to(r[:, None], (h, w, channels // 2))], 2
        )
        return both.reshape(h * w, channels).astype(np.float32)

    return other


def _values_too(keyed: Function) -> Function:
    def other(*args: Any) -> tuple[Floats, Floats]:
        return (keyed(*args)[0],) * 2

    return other


def _values_alone(keyed: Function) -> Function:
    return lambda *args: keyed(*args)[::-1]


def _projections(order: tuple[int, int, int]) -> Fault:
    """The parts of the packed projections, q, k and v, in another order."""

    def change(array: Array) -> Array:
        parts = np.split(array, 3)
        return np.concatenate([parts[k] for k in order])

    return changed_arrays(change, "in_proj_weight", "in_proj_bias")


def _always_kv_proj(function: Function) -> Function:
    """kv_proj is looked for where D = E, too."""

    def faulty(hidden: Any, tgt_sizes: Any, model: Model, *rest: Any) -> Any:
        model.weights["resampler.kv_proj.weight"]
        return function(hidden, tgt_sizes, model, *rest)

    return faulty


def _never_kv_proj(function: Function) -> Function:
    def faulty(hidden: Any, tgt_sizes: Any, model: Model, *rest: Any) -> Any:
        if "resampler.kv_proj.weight" in model.weights:
            raise ValueError("kv_proj is not looked for")
        return function(hidden, tgt_sizes, model, *rest)

    return faulty


def _towers_eps(function: Function) -> Function:
    """`layer_norm_eps` of the vision tower in the resampler, which has an eps of its own."""

    def faulty(hidden: Any, tgt_sizes: Any, model: Model, *rest: Any) -> Any:
        return norm_with(model.config.vision.layer_norm_eps)(function)(hidden, tgt_sizes, model, *rest)

    return faulty


def _more_places(more: float) -> Fault:
    """So many padded places take part in the softmax; each patch keeps its row and column, and padding has no position."""

    def fault(function: Function) -> Function:
        def faulty(hidden: Any, tgt_sizes: Any, model: Model, *rest: Any) -> Any:
            most = np.shape(hidden)[1]

            def change(keyed: Function) -> Function:
                def other(places: Floats, size: Any, time: int, own: Model) -> tuple[Floats, Floats]:
                    real, _ = keyed(places, size, time, own)
                    _, plain = keyed(places, (1, int(min(len(real) + more, most))), time, own)
                    padded = plain.copy()
                    padded[: len(real)] = real
                    return padded, plain

                return other

            return method("keyed", change)(function)(hidden, tgt_sizes, model, *rest)

        return faulty

    return fault


_all_places = _more_places(np.inf)


def _masked_keys(function: Function) -> Function:
    """A boolean mask is added to the scores as a number, over all places."""

    def faulty(hidden: Any, tgt_sizes: Any, model: Model, *rest: Any) -> Any:
        results = []
        for own, size in zip(np.asarray(hidden), np.asarray(tgt_sizes), strict=True):
            added = np.arange(len(own)) < size.prod()
            with_mask = part("attend", instead(partial(attend_with, added)))(_all_places(function))
            results.append(with_mask(own[None], size[None], model, *rest))
        return np.concatenate(results)

    return faulty


def _no_time(code: Function) -> Function:
    return lambda time, channels: np.zeros_like(code(time, channels))


def _with_times(change: Callable[[list[list[int]]], list[list[int]]]) -> Fault:
    """The fault of other times, where times are given."""

    def fault(function: Function) -> Function:
        def faulty(hidden: Any, tgt_sizes: Any, model: Model, temporal_ids: Any = None) -> Any:
            rest = () if temporal_ids is None else (change(temporal_ids),)
            return function(hidden, tgt_sizes, model, *rest)

        return faulty

    return fault


_counted_times = _with_times(lambda groups: [group if group == [-1] else list(range(len(group))) for group in groups])


def _first_frames(function: Function) -> Function:
    def faulty(hidden: Any, tgt_sizes: Any, model: Model, temporal_ids: Any = None) -> Any:
        if temporal_ids is None:
            return function(hidden, tgt_sizes, model)
        firsts = np.cumsum([0, *map(len, temporal_ids[:-1])])
        return function(np.asarray(hidden)[firsts], np.asarray(tgt_sizes)[firsts], model, [group[:1] for group in temporal_ids])

    return faulty


RESAMPLE = (
    Suspect("layer norms with eps 1e-5", norm_with(1e-5)),
    Suspect("layer norms with the vision tower's layer_norm_eps; the resampler's is 1e-6", _towers_eps),
    Suspect("eps 1e-5 in ln_q alone", norm_with(1e-5, "ln_q")),
    Suspect("eps 1e-5 in ln_kv alone", norm_with(1e-5, "ln_kv")),
    Suspect("eps 1e-5 in ln_post alone", norm_with(1e-5, "ln_post")),
    Suspect("the variance is the unbiased one", part("layer_norm", unbiased)),
    Suspect("the attention's scores are not scaled", scaled_by(lambda width, heads: (width / heads) ** 0.5)),
    Suspect("the scores are scaled by all channels, not those of a head", scaled_by(lambda width, heads: heads**-0.5)),
    Suspect("the query is not normed", without_norm("ln_q")),
    Suspect("ln_post is not run", without_norm("ln_post")),
    Suspect("ln_kv is not run", without_norm("ln_kv")),
    Suspect("keys and values are exchanged", _projections((0, 2, 1))),
    Suspect("queries and keys are exchanged in in_proj", _projections((1, 0, 2))),
    Suspect("proj is transposed", changed_arrays(np.transpose, "resampler.proj")),
    Suspect("sines and cosines are exchanged in the table of positions", _quarters((1, 0, 3, 2))),
    Suspect("rows and columns are exchanged in the table of positions", _quarters((2, 3, 0, 1))),
    Suspect("the table of positions has h and w exchanged", method("sincos_table", _turned_table)),
    Suspect("the table's frequencies are 10000**(-k / (E/2)), not E/4", method("sincos_table", _slow_waves)),
    Suspect("the table of positions is clamped at 70 rows and columns", method("sincos_table", _clamped)),
    Suspect("the keys have no positions", method("sincos_table", _no_table)),
    Suspect(
        "the positions are added to the values in place of the keys",
        method("keyed", _values_alone),
        shipped="vLLM's and sglang's MiniCPM-V 4.5",
    ),
    Suspect("the positions are added to keys and values", method("keyed", _values_too)),
    Suspect("padding takes part in the attention's softmax", _all_places),
    Suspect("padding, set to 0, takes part in the attention's softmax", lambda function: emptied(_all_places(function))),
    Suspect("the mask is one place short: the last patch is not attended to", part("attend", short_mask)),
    Suspect("the mask is one place long: the first padded place is attended to", _more_places(1)),
    Suspect("what stands in padded places is read: here NaN", reads_padding),
    Suspect("a boolean mask is added to the scores as a number", _masked_keys),
    Suspect("a boolean mask is added to the scores as a number, padding set to 0", lambda inner: emptied(_masked_keys(inner))),
    Suspect("the softmax's maximum is not taken off its scores", part("attend", overflowing)),
    Suspect("the times of frames are not looked at", method("time_code", _no_time)),
    Suspect("the frames of a group are numbered 0, 1, 2 in place of their times", _counted_times),
    Suspect("only the first frame of a group is looked at", _first_frames),
    Suspect("kv_proj is looked for where D = E, which has none", _always_kv_proj),
    Suspect("kv_proj is not looked for", _never_kv_proj),
)


def _by_columns(shuffle: Function) -> Function:
    """Within each square of places, column by column."""

    def other(x: Floats, size: Any, *factor: int) -> Array:
        right, side = shuffle(x, size, *factor), factor[0] if factor else mergers.SIDE
        return np.asarray(right.reshape(len(right), side, side, -1).swapaxes(1, 2).reshape(right.shape))

    return other


def _turned(shuffle: Function) -> Function:
    """h and w exchanged."""
    return lambda x, size, *rest: shuffle(x, size[::-1], *rest)


MERGE_PATCHES = (
    Suspect(
        "gelu in its tanh form, not the erf form",
        part("gelu_erf", instead(gelu_tanh)),
        shipped="ports of MiniCPM-V 4.6",
    ),
    Suspect("gelu in its quick form, not the erf form", part("gelu_erf", instead(gelu_quick))),
    Suspect("h and w are exchanged in the windows", method("windows", _turned), shipped="ports of MiniCPM-V 4.6"),
    Suspect("the places of a window go column by column", method("windows", _by_columns)),
    Suspect("the layer norm has eps 1e-5", norm_with(1e-5)),
    Suspect("the layer norm is not run", without_norm("pre_norm")),
    Suspect("the variance is the unbiased one", part("layer_norm", unbiased)),
)


def _without_step(make: Function) -> Function:
    """The window merger's attention and MLP are left out: the mean of each window stays."""

    def other(model: Model) -> Any:
        def step(x: Floats, size: Any) -> Any:
            means = [mergers.windows(one, size).mean(axis=1) for one in x]
            return np.stack(means), (size[0] // mergers.SIDE, size[1] // mergers.SIDE)

        return step

    return other


WINDOWS = (
    Suspect(
        "the window merger is left out: the mean of each window stays",
        method("window_merger", _without_step),
        shipped="ports of MiniCPM-V 4.6",
    ),
    Suspect("h and w are exchanged in the window merger", method("windows", _turned)),
    Suspect("the places of a window go column by column", method("windows", _by_columns)),
    Suspect(
        "the window merger's norms have eps 1e-6, whatever the config says",
        norm_with(1e-6, r"vit_merger\.layer_norm1", r"vit_merger\.pre_norm"),
        shipped="mlx-vlm's MiniCPM-V 4.6",
    ),
    Suspect("eps 1e-5 in the window merger's layer_norm1 alone", norm_with(1e-5, r"vit_merger\.layer_norm1")),
    Suspect("eps 1e-5 in the window merger's pre_norm alone", norm_with(1e-5, r"vit_merger\.pre_norm")),
)
"""More suspects of the tower; where it has no window merger they change nothing."""

CROPS = (
    Suspect(
        "the attention is causal where no patch of the batch is masked",
        causal_where(lambda tgt_sizes: not (tgt_sizes % phi4_multimodal.SIDE).any()),
        shipped="transformers' Phi-4-multimodal with sdpa",
    ),
)
"""Suspects of a tower that takes a slice crop by crop."""

SHUFFLE = (
    Suspect(
        "h and w are exchanged in the pixel shuffle",
        method("pixel_shuffle", _turned),
    ),
    Suspect(
        "rows and columns are exchanged in each square of the pixel shuffle",
        method("pixel_shuffle", _by_columns),
    ),
    Suspect(
        "the projection is of another order of channels: place by place within a channel",
        method(
            "pixel_shuffle",
            lambda shuffle: lambda x, size, factor: _channel_major(shuffle(x, size, factor), factor),
        ),
    ),
)


def _channel_major(squares: Array, factor: int) -> Array:
    count = len(squares)
    return squares.reshape(count, factor * factor, -1).transpose(0, 2, 1).reshape(count, -1)


def _rms_with(eps: float) -> Fault:
    return part("rms_norm", lambda norm: lambda x, weight, _: norm(x, weight, eps))


def _context_alone(attend: Function) -> Function:
    """The latents are no keys: the last Q places are left out."""
    return lambda q, k, v, heads: attend(q, k[: len(k) - len(q)], v[: len(k) - len(q)], heads)


def _tiled_heads(repeat: Function) -> Function:
    """Head n uses key head n mod kv heads, not n // (heads / kv heads)."""

    def other(x: Floats, perceiver: Any) -> Array:
        times = perceiver.resampler_n_heads // perceiver.num_key_value_heads
        return np.concatenate([x] * times, axis=1)

    return other


PERCEIVE = (
    Suspect("RMS norms with eps 1e-5", _rms_with(1e-5)),
    Suspect("RMS norms with eps 1e-6, whatever the config says", _rms_with(1e-6)),
    Suspect("the attention's scores are not scaled", scaled_by(lambda width, heads: (width / heads) ** 0.5)),
    Suspect("the latents are not among the keys and values", part("attend", _context_alone)),
    Suspect("the key heads are tiled, not repeated", method("for_every_head", _tiled_heads)),
    Suspect("keys and values are exchanged", exchanged("k_proj", "v_proj")),
    Suspect("the softmax's maximum is not taken off its scores", part("attend", overflowing)),
)


def _mean_of_patches(function: Function) -> Function:
    """The mean over the patches in place of the attention head."""

    def faulty(hidden: Any, tgt_sizes: Any, model: Model) -> Array:
        lengths = np.prod(tgt_sizes, axis=1).tolist()
        return np.stack([own[:length].mean(axis=0) for own, length in zip(np.asarray(hidden), lengths, strict=True)])

    return faulty


def _first_patch(function: Function) -> Function:
    return lambda hidden, tgt_sizes, model: np.asarray(hidden)[:, 0].astype(model.dtype)


def _padded_places(function: Function) -> Function:
    return lambda hidden, tgt_sizes, model: function(hidden, np.tile([1, np.shape(hidden)[1]], (len(hidden), 1)), model)


def _no_mlp(linear: Function) -> Function:
    """The MLP's result is left out: its last map gives zeros."""
    return lambda x, weight, bias: linear(x, weight, bias) * (weight.shape[0] == weight.shape[1])


POOL = (
    Suspect("the probe attends to nothing: the mean of the patches", _mean_of_patches),
    Suspect("the first patch, not the probe's result", _first_patch),
    Suspect("the MLP after the attention is left out", part("linear", _no_mlp)),
    Suspect("gelu in its erf form, not the tanh form", part("gelu", instead(gelu_by_erf))),
    Suspect("gelu in its quick form, not the tanh form", part("gelu", instead(gelu_quick))),
    Suspect("the layer norm has eps 1e-5", norm_with(1e-5)),
    Suspect("the layer norm is not run", without_norm("head.layernorm")),
    Suspect("the attention's scores are not scaled", scaled_by(lambda width, heads: (width / heads) ** 0.5)),
    Suspect("keys and values are exchanged", _projections((0, 2, 1))),
    Suspect("the number of heads is ignored: one head", changed_model(lambda model: with_vision(model, num_attention_heads=1))),
    Suspect("padding takes part in the attention's softmax", _padded_places),
)


SUSPECTS: dict[str, tuple[Suspect, ...]] = {
    "resample": RESAMPLE,
    "merge_patches": MERGE_PATCHES,
    "shuffle_and_project": SHUFFLE,
    "perceive": PERCEIVE,
    "pool": POOL,
}
"""By the name of the function that a family's stage calls."""

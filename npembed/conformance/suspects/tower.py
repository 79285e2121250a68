"""Faults of the vision tower, for a model of any family."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from npembed.conformance.filling import changed_config
from npembed.conformance.suspects.suspect import (
    Fault,
    Function,
    Suspect,
    changed_model,
    method,
    part,
    with_vision,
)
from npembed.records.model import Model
from npembed.support.typing import Array, Floats


def gelu_quick(x: Floats) -> Floats:
    """x * sigmoid(1.702 * x)."""
    return np.asarray(x / (1 + np.exp(-1.702 * x)), dtype=x.dtype)


def gelu_by_erf(x: Floats) -> Floats:
    """x/2 * (1 + erf(x / sqrt(2)))."""
    from scipy.special import erf

    return np.asarray(x / 2 * (1 + erf(x / np.sqrt(2))), dtype=x.dtype)


def gelu_tanh(x: Floats) -> Floats:
    """The tanh form."""
    return np.asarray(x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))), dtype=x.dtype)


def instead(function: Function) -> Fault:
    """A piece in the place of whatever stood there."""
    return lambda original: function


def norm_with(eps: float, *norms: str) -> Fault:
    """Another eps in the layer norms whose names end as one of the patterns; in all without a pattern."""

    def change(model: Model) -> Model:
        own, layer_norm = _weights_of(norms, model), model.ops.layer_norm

        def other(x: Floats, weight: Floats, bias: Floats, given: float) -> Floats:
            return layer_norm(x, weight, bias, eps if not norms or id(weight) in own else given)

        return model.with_ops(model.ops.changed(layer_norm=other))

    return changed_model(change)


def _weights_of(norms: Sequence[str], model: Model) -> set[int]:
    """Which arrays are the weights of norms whose names end as one of the patterns."""
    endings = re.compile(rf"(?:{'|'.join(norms)})\.weight$")
    return {id(array) for name, array in model.weights.items() if norms and endings.search(name)}


def without_norm(*norms: str) -> Fault:
    """The layer norms whose names end as one of the patterns are left out."""

    def change(model: Model) -> Model:
        own, layer_norm = _weights_of(norms, model), model.ops.layer_norm

        def other(x: Floats, weight: Floats, bias: Floats, eps: float) -> Floats:
            return x if id(weight) in own else layer_norm(x, weight, bias, eps)

        return model.with_ops(model.ops.changed(layer_norm=other))

    return changed_model(change)


def unbiased(layer_norm: Function) -> Function:
    def other(x: Floats, weight: Floats, bias: Floats, eps: float) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = np.sqrt(x.var(axis=-1, keepdims=True) + eps) / np.sqrt(x.var(axis=-1, ddof=1, keepdims=True) + eps)
        return np.asarray((layer_norm(x, weight, bias, eps) - bias) * scale + bias, dtype=x.dtype)

    return other


def overflowing(attend: Function) -> Function:
    """The softmax's maximum is not taken off: in float32 its powers overflow from 88.7 on."""

    def other(queries: Floats, keys: Floats, values: Floats, heads: int) -> Floats:
        result = attend(queries, keys, values, heads)
        width = queries.shape[1] // heads
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = (queries[:, part] @ keys[:, part].T) * width**-0.5
            result[(scores.max(axis=1) > 88.7), part] = np.nan
        return np.asarray(result)

    return other


def scaled_by(factor: Callable[[int, int], float]) -> Fault:
    """The scores times factor(width, heads) of what they should be."""

    def change(attend: Function) -> Function:
        return lambda q, k, v, heads: attend(q * np.asarray(factor(q.shape[1], heads), q.dtype), k, v, heads)

    return part("attend", change)


def exchanged(first: str, second: str) -> Fault:
    """The arrays of one name are taken for those of the other."""

    def change(model: Model) -> Model:
        def other(name: str) -> str:
            if f".{first}." in name:
                return name.replace(f".{first}.", f".{second}.")
            return name.replace(f".{second}.", f".{first}.")

        return replace(model, weights={name: model.weights[other(name)] for name in model.weights})

    return changed_model(change)


def emptied(function: Function, change: int = 0) -> Function:
    """Padded places are set to 0 before anything else; where `change` is -1 the last real one, too."""

    def faulty(x: Any, tgt_sizes: Any, model: Model, *rest: Any) -> Any:
        lengths = np.prod(tgt_sizes, axis=1) + change
        real = np.arange(np.shape(x)[1])[:, None] < lengths[:, None, None]  # (B, Lmax, 1)
        return function(np.where(real, x, 0), tgt_sizes, model, *rest)

    return faulty


def _all_places(function: Function) -> Function:
    """Padded places take part in the attention like any other."""

    def faulty(x: Any, tgt_sizes: Any, model: Model, *rest: Any) -> Any:
        places = np.tile([1, np.shape(x)[1]], (len(x), 1))
        return function(x, places, model, *rest)

    return faulty


def short_mask(attend: Function) -> Function:
    """The last patch is no key; where there is no other, the result is not a number."""

    def other(queries: Floats, keys: Floats, values: Floats, heads: int) -> Any:
        if len(keys) < 2:
            return np.full_like(queries, np.nan)
        return attend(queries, keys[:-1], values[:-1], heads)

    return other


def _long_mask(function: Function) -> Function:
    """The first padded place takes part like a patch."""

    def faulty(x: Any, tgt_sizes: Any, model: Model, *rest: Any) -> Any:
        lengths = np.minimum(np.prod(tgt_sizes, axis=1) + 1, np.shape(x)[1])
        return function(x, np.stack([np.ones_like(lengths), lengths], axis=1), model, *rest)

    return faulty


def _causal(attend: Function) -> Function:
    """A patch attends to itself and to those before it alone."""

    def other(queries: Floats, keys: Floats, values: Floats, heads: int) -> Floats:
        later = np.arange(len(keys)) > np.arange(len(queries))[:, None]
        return attend_with(np.where(later, -np.inf, 0.0), queries, keys, values, heads)

    return other


def causal_where(unmasked: Callable[[Array], bool]) -> Fault:
    """The attention is causal in a batch of such sizes."""

    def fault(function: Function) -> Function:
        causal = part("attend", _causal)(function)
        return lambda x, tgt_sizes, *rest: (causal if unmasked(np.asarray(tgt_sizes)) else function)(x, tgt_sizes, *rest)

    return fault


def _as_long(tgt_sizes: Array) -> bool:
    """Whether no slice is shorter than another."""
    return len(set(tgt_sizes.prod(axis=1).tolist())) == 1


def one_more(function: Function) -> Function:
    """A boolean mask is added to the scores: 1 for a patch, 0 for padding."""

    def faulty(x: Any, tgt_sizes: Any, model: Model, *rest: Any) -> Any:
        results = []
        for own, (h, w) in zip(np.asarray(x), np.asarray(tgt_sizes).tolist(), strict=True):
            added = np.arange(len(own)) < h * w
            with_mask = part("attend", instead(partial(attend_with, added)))(function)
            results.append(with_mask(own[None], [(1, len(own))], model, *rest))
        return np.concatenate(results)

    return faulty


def attend_with(added: Array, queries: Floats, keys: Floats, values: Floats, heads: int) -> Floats:
    width = queries.shape[1] // heads
    result = np.empty_like(queries)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = queries[:, part] @ keys[:, part].T * width**-0.5 + added
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        result[:, part] = powers @ values[:, part] / powers.sum(axis=1, keepdims=True)
    return result


def reads_padding(function: Function) -> Function:
    """What stands in padded places is multiplied by 0 and added: a NaN there reaches the whole slice."""

    def faulty(x: Any, *rest: Any) -> Any:
        result = np.array(function(x, *rest))
        result[np.isnan(np.asarray(x)).any(axis=(1, 2))] = np.nan
        return result

    return faulty


def _every_layer(model: Model) -> Model:
    return replace(model, config=changed_config(model.config, {"drop_vision_last_layer": False}))


def _tower_without(drop: Callable[[Sequence[Any]], Sequence[Any]]) -> Fault:
    """Steps of the tower are left out."""

    return method("tower", lambda tower: lambda model: drop(tower(model)))


def _normed(function: Function) -> Function:
    def faulty(x: Any, tgt_sizes: Any, model: Model, *rest: Any) -> Any:
        name = f"{model.tower}post_layernorm"
        return model.ops.layer_norm(function(x, tgt_sizes, model, *rest), *model.pair(name), model.config.vision.layer_norm_eps)

    return faulty


ENCODE = (
    Suspect("gelu in its erf form, not the tanh form", part("gelu", instead(gelu_by_erf))),
    Suspect(
        "gelu in its quick form, x * sigmoid(1.702 x), not the tanh form",
        part("gelu", instead(gelu_quick)),
        shipped="mlx-vlm's Idefics2",
    ),
    Suspect("layer norms with eps 1e-5", norm_with(1e-5)),
    Suspect("layer_norm_eps of the config is ignored: it is 1e-6", norm_with(1e-6)),
    Suspect("eps 1e-5 in post_layernorm alone", norm_with(1e-5, "post_layernorm"), shipped="mlx-vlm's Idefics2 and 3"),
    Suspect("eps 1e-5 in layer_norm1 alone", norm_with(1e-5, r"layers\.\d+\.layer_norm1")),
    Suspect("eps 1e-5 in layer_norm2 alone", norm_with(1e-5, r"layers\.\d+\.layer_norm2")),
    Suspect("eps 1e-6 in post_layernorm alone, whatever the config says", norm_with(1e-6, "post_layernorm")),
    Suspect("the variance is the unbiased one", part("layer_norm", unbiased)),
    Suspect("the attention's scores are not scaled", scaled_by(lambda width, heads: (width / heads) ** 0.5)),
    Suspect("the scores are scaled by all channels, not those of a head", scaled_by(lambda width, heads: heads**-0.5)),
    Suspect("the number of heads is ignored: one head", changed_model(lambda model: with_vision(model, num_attention_heads=1))),
    Suspect("keys and values are exchanged", exchanged("k_proj", "v_proj")),
    Suspect("padding takes part in the attention's softmax", _all_places),
    Suspect("padding, set to 0, takes part in the attention's softmax", lambda function: emptied(_all_places(function))),
    Suspect("the mask is one place short: the last patch is not attended to", part("attend", short_mask)),
    Suspect(
        "the mask is one place short: the last patch is set to 0 and not attended to",
        lambda function: emptied(part("attend", short_mask)(function), -1),
    ),
    Suspect("the mask is one place long: the first padded place is attended to", _long_mask),
    Suspect("the attention is causal", causal_where(lambda tgt_sizes: True)),
    Suspect("the attention is causal where no slice of the batch is padded", causal_where(_as_long)),
    Suspect("what stands in padded places is read: here NaN", reads_padding),
    Suspect("a boolean mask is added to the scores as a number", one_more),
    Suspect(
        "a boolean mask is added to the scores as a number, over padding set to 0", lambda function: emptied(one_more(function))
    ),
    Suspect("the softmax's maximum is not taken off its scores", part("attend", overflowing), "it overflows"),
    Suspect("the last layer is run though drop_vision_last_layer leaves it out", changed_model(_every_layer)),
    Suspect("the last layer is not run", _tower_without(lambda steps: [*steps[:-2], steps[-1]])),
    Suspect("post_layernorm is not run", _tower_without(lambda steps: steps[:-1])),
    Suspect("post_layernorm is run though the family has none", _normed),
    Suspect("layer_norm1 is not run", without_norm(r"layers\.\d+\.layer_norm1")),
    Suspect("layer_norm2 is not run", without_norm(r"layers\.\d+\.layer_norm2")),
)


SUSPECTS = {"encode": ENCODE}

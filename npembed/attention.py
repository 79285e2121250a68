"""What the encoder and the resampler are made of: linear maps, layer norm, attention, gelu.

Each works on one slice, so there is no padding to mask, and in the float type of what it is given.
"""

import math
from collections.abc import Iterator

import numpy as np

from npembed.typing import Floats

ROWS_AT_ONCE = 32
"""Rows that `gelu` takes through all its steps before the next: few enough to stay in a core's cache."""


def linear(x: Floats, weight: Floats, bias: Floats) -> Floats:
    """(..., K), (N, K), (N,) -> (..., N): x @ weight.T + bias, one product for all the rows.

    Examples
    --------
    >>> linear(np.array([[1.0, 2.0]]), np.array([[1.0, 0.0], [0.0, 10.0], [1.0, 1.0]]), np.array([0.0, 0.0, 0.5]))
    array([[ 1. , 20. ,  3.5]])
    """
    result: Floats = x.reshape(-1, x.shape[-1]) @ weight.T
    result += bias
    return result.reshape(*x.shape[:-1], len(weight))


def layer_norm(x: Floats, weight: Floats, bias: Floats, eps: float) -> Floats:
    """(..., D), (D,), (D,) -> (..., D): each row at mean 0 and variance 1, times weight, plus bias.

    The variance is the biased one, the mean of the squares.

    Examples
    --------
    >>> layer_norm(np.array([[1.0, 3.0, 5.0, 7.0]]), np.full(4, 2.0), np.ones(4), eps=4.0)
    array([[-1.        ,  0.33333333,  1.66666667,  3.        ]])
    """
    result: Floats = x - x.mean(axis=-1, keepdims=True)
    variance = np.vecdot(result, result)[..., None] / x.shape[-1]  # (..., 1)
    result /= np.sqrt(variance + eps)
    result *= weight
    result += bias
    return result


def attend(queries: Floats, keys: Floats, values: Floats, heads: int) -> Floats:
    """(M, D), (L, D), (L, D) -> (M, D): per head, softmax(q @ k.T / sqrt(D / heads)) @ v.

    Head n has channels n*D/heads up to (n+1)*D/heads. The scores of one head, (M, L), are all that is held at a time.

    Examples
    --------
    >>> keys, values = np.array([[0.0], [np.log(3.0)]]), np.array([[4.0], [8.0]])
    >>> attend(np.array([[0.0], [1.0]]), keys, values, heads=1)
    array([[6.],
           [7.]])
    """
    result = np.empty_like(queries)
    for head, scores in _exponentials(queries, keys, heads):
        np.divide(scores @ values[:, head], scores.sum(axis=1, keepdims=True), out=result[:, head])
    return result


def _exponentials(queries: Floats, keys: Floats, heads: int) -> Iterator[tuple[slice, Floats]]:
    """(M, D), (L, D) -> per head its channels, and exp(q @ k.T / sqrt(D / heads)), (M, L), each row divided by its largest.

    The scores of one head take the place of those of the head before.
    """
    channels = queries.shape[1] // heads
    scaled = queries * channels**-0.5
    scores = np.empty((len(queries), len(keys)), dtype=queries.dtype)
    for start in range(0, queries.shape[1], channels):
        head = slice(start, start + channels)
        np.matmul(scaled[:, head], keys[:, head].T, out=scores)
        scores -= scores.max(axis=1, keepdims=True)  # so that exp cannot overflow
        np.exp(scores, out=scores)
        yield head, scores


def attention_weights(queries: Floats, keys: Floats, heads: int) -> Floats:
    """(M, D), (L, D) -> (M, L): how far each query attends to each key, the mean over the heads; each row adds up to 1.

    These are what `attend` weighs the values by.

    Examples
    --------
    >>> keys = np.array([[0.0], [np.log(3.0)]])
    >>> attention_weights(np.array([[0.0], [1.0]]), keys, heads=1)
    array([[0.5 , 0.5 ],
           [0.25, 0.75]])
    """
    weights = np.zeros((len(queries), len(keys)), dtype=queries.dtype)
    for _, scores in _exponentials(queries, keys, heads):
        weights += scores / scores.sum(axis=1, keepdims=True)
    weights /= heads
    return weights


def gelu(x: Floats) -> Floats:
    """(..., K) -> (..., K): x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 * x**3))), the tanh form.

    Examples
    --------
    >>> gelu(np.array([[-1.0, 0.0, 1.0]])).round(4)
    array([[-0.1588,  0.    ,  0.8412]])
    """
    slope = math.sqrt(2 / math.pi)
    flat = x.reshape(-1, x.shape[-1])
    result = np.empty_like(flat)
    for start in range(0, len(flat), ROWS_AT_ONCE):
        rows, out = flat[start : start + ROWS_AT_ONCE], result[start : start + ROWS_AT_ONCE]
        np.square(rows, out=out)
        out *= 0.044715 * slope
        out += slope
        out *= rows
        np.tanh(out, out=out)
        out += 1
        out *= rows
        out *= 0.5
    return result.reshape(x.shape)


def gelu_erf(x: Floats) -> Floats:
    """(L, K) -> (L, K): x/2 * (1 + erf(x / sqrt(2))), the erf form, which is up to 5e-4 away from the tanh form.

    Examples
    --------
    >>> gelu_erf(np.array([[-1.0, 0.0, 1.0]])).round(4)
    array([[-0.1587,  0.    ,  0.8413]])
    """
    from scipy.special import erf  # here, because SciPy takes longer to import than the rest of the package

    result: Floats = erf(x * math.sqrt(0.5))
    result += 1
    result *= x
    result *= 0.5
    return result

"""What the steps are made of: products, linear maps, norms, attention, activations, sums.

Each works on arrays without padding, so there is nothing to mask, and in the float type of what it is given.
"""

import math
from collections.abc import Callable, Iterator
from copy import copy
from typing import Any, Self

import numpy as np

from npembed.support.typing import Floats

ROWS_AT_ONCE = 32
"""Rows that `gelu` takes through all its steps before the next: few enough to stay in a core's cache."""


class Arithmetic:
    """The functions that every step computes with. It travels with the model, as `model.ops`.

    This one is exact. The same steps with another one are a run that rounds where a framework rounds, that sums in one order,
    that notes what attends to what, or that has a fault.
    """

    def changed(self, **functions: Callable[..., Any]) -> Self:
        """The same arithmetic with other functions under these names."""
        other = copy(self)
        vars(other).update(functions)
        return other

    def product(self, a: Floats, b: Floats, out: Floats | None = None) -> Floats:
        """(..., M, K), (..., K, N) -> (..., M, N): the matrix product.

        Examples
        --------
        >>> EXACT.product(np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]]))
        array([[11.]])
        """
        return np.matmul(a, b, out=out)

    def linear(self, x: Floats, weight: Floats, bias: Floats) -> Floats:
        """(..., K), (N, K), (N,) -> (..., N): x @ weight.T + bias, one product for all the rows.

        Examples
        --------
        >>> weight = np.array([[1.0, 0.0], [0.0, 10.0], [1.0, 1.0]])
        >>> EXACT.linear(np.array([[1.0, 2.0]]), weight, np.array([0.0, 0.0, 0.5]))
        array([[ 1. , 20. ,  3.5]])
        """
        result = self.product(x.reshape(-1, x.shape[-1]), weight.T)
        result += bias
        return result.reshape(*x.shape[:-1], len(weight))

    def layer_norm(self, x: Floats, weight: Floats, bias: Floats, eps: float) -> Floats:
        """(..., D), (D,), (D,) -> (..., D): each row at mean 0 and variance 1, times weight, plus bias.

        The variance is the biased one, the mean of the squares.

        Examples
        --------
        >>> EXACT.layer_norm(np.array([[1.0, 3.0, 5.0, 7.0]]), np.full(4, 2.0), np.ones(4), eps=4.0)
        array([[-1.        ,  0.33333333,  1.66666667,  3.        ]])
        """
        result: Floats = x - x.mean(axis=-1, keepdims=True)
        variance = np.vecdot(result, result)[..., None] / x.shape[-1]  # (..., 1)
        result /= np.sqrt(variance + eps)
        result *= weight
        result += bias
        return result

    def rms_norm(self, x: Floats, weight: Floats, eps: float) -> Floats:
        """(..., D), (D,) -> (..., D): each row divided by the root of the mean of its squares, times weight.

        Examples
        --------
        >>> EXACT.rms_norm(np.array([[1.0, 7.0]]), np.array([1.0, 2.0]), eps=11.0)
        array([[0.16666667, 2.33333333]])
        """
        result: Floats = x / np.sqrt(np.vecdot(x, x)[..., None] / x.shape[-1] + eps)
        result *= weight
        return result

    def attend(self, queries: Floats, keys: Floats, values: Floats, heads: int) -> Floats:
        """(M, D), (L, D), (L, D) -> (M, D): per head, softmax(q @ k.T / sqrt(D / heads)) @ v.

        Head n has channels n*D/heads up to (n+1)*D/heads. The scores of one head, (M, L), are all that is held at a time.

        Examples
        --------
        >>> keys, values = np.array([[0.0], [np.log(3.0)]]), np.array([[4.0], [8.0]])
        >>> EXACT.attend(np.array([[0.0], [1.0]]), keys, values, heads=1)
        array([[6.],
               [7.]])
        """
        result = np.empty_like(queries)
        for head, scores in self._exponentials(queries, keys, heads):
            np.divide(self.product(scores, values[:, head]), scores.sum(axis=1, keepdims=True), out=result[:, head])
        return result

    def attention_weights(self, queries: Floats, keys: Floats, heads: int) -> Floats:
        """(M, D), (L, D) -> (M, L): how far each query attends to each key, the mean over the heads; each row adds up to 1.

        These are what `attend` weighs the values by.

        Examples
        --------
        >>> keys = np.array([[0.0], [np.log(3.0)]])
        >>> EXACT.attention_weights(np.array([[0.0], [1.0]]), keys, heads=1)
        array([[0.5 , 0.5 ],
               [0.25, 0.75]])
        """
        weights = np.zeros((len(queries), len(keys)), dtype=queries.dtype)
        for _, scores in self._exponentials(queries, keys, heads):
            weights += scores / scores.sum(axis=1, keepdims=True)
        weights /= heads
        return weights

    def _exponentials(self, queries: Floats, keys: Floats, heads: int) -> Iterator[tuple[slice, Floats]]:
        """(M, D), (L, D) -> per head its channels, and exp(q @ k.T / sqrt(D / heads)), (M, L), each row divided by its largest.

        The scores of one head take the place of those of the head before.
        """
        channels = queries.shape[1] // heads
        scaled = queries * channels**-0.5
        scores = np.empty((len(queries), len(keys)), dtype=queries.dtype)
        for start in range(0, queries.shape[1], channels):
            head = slice(start, start + channels)
            self.product(scaled[:, head], keys[:, head].T, out=scores)
            scores -= scores.max(axis=1, keepdims=True)  # so that exp cannot overflow
            np.exp(scores, out=scores)
            yield head, scores

    def attend_in_windows(self, queries: Floats, keys: Floats, values: Floats, heads: int) -> Floats:
        """(N, P, D), (N, P, D), (N, P, D) -> (N, P, D): what `attend` gives for each window of P places by itself.

        Examples
        --------
        >>> values = np.array([[[4.0], [8.0]], [[1.0], [3.0]]])
        >>> EXACT.attend_in_windows(np.zeros((2, 2, 1)), np.ones((2, 2, 1)), values, heads=1)[:, :, 0].tolist()
        [[6.0, 6.0], [2.0, 2.0]]
        """
        count, places, width = queries.shape
        q, k, v = (
            x.reshape(count, places, heads, width // heads).transpose(0, 2, 1, 3) for x in (queries, keys, values)
        )  # (N, heads, P, D / heads)
        scores = self.product(q * (width // heads) ** -0.5, k.swapaxes(2, 3))  # (N, heads, P, P)
        scores -= scores.max(axis=-1, keepdims=True)  # so that exp cannot overflow
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        return self.product(scores, v).transpose(0, 2, 1, 3).reshape(count, places, width)

    def gelu(self, x: Floats) -> Floats:
        """(..., K) -> (..., K): x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 * x**3))), the tanh form.

        Examples
        --------
        >>> EXACT.gelu(np.array([[-1.0, 0.0, 1.0]])).round(4)
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

    def gelu_erf(self, x: Floats) -> Floats:
        """(L, K) -> (L, K): x/2 * (1 + erf(x / sqrt(2))), the erf form, which is up to 5e-4 away from the tanh form.

        Examples
        --------
        >>> EXACT.gelu_erf(np.array([[-1.0, 0.0, 1.0]])).round(4)
        array([[-0.1587,  0.    ,  0.8413]])
        """
        from scipy.special import erf  # here, because SciPy takes longer to import than the rest of the package

        result: Floats = erf(x * math.sqrt(0.5))
        result += 1
        result *= x
        result *= 0.5
        return result

    def silu(self, x: Floats) -> Floats:
        """(L, K) -> (L, K): x / (1 + exp(-x)).

        Examples
        --------
        >>> EXACT.silu(np.array([[-1.0, 0.0, 1.0]])).round(4)
        array([[-0.2689,  0.    ,  0.7311]])
        """
        from scipy.special import expit

        result: Floats = expit(x)
        result *= x
        return result

    def add(self, x: Floats, y: Floats, out: Floats | None = None) -> Floats:
        """x + y."""
        result: Floats = np.add(x, y, out=out)
        return result

    def multiply(self, x: Floats, y: Floats, out: Floats | None = None) -> Floats:
        """x * y, element by element."""
        result: Floats = np.multiply(x, y, out=out)
        return result

    def sum(self, x: Floats, axis: int | tuple[int, ...]) -> Floats:
        """The sum along an axis, or several."""
        result: Floats = x.sum(axis=axis)
        return result

    def mean(self, x: Floats, axis: int) -> Floats:
        """The mean along an axis."""
        result: Floats = x.mean(axis=axis)
        return result


EXACT = Arithmetic()
"""Each function as it is defined."""

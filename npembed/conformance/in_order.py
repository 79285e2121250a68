"""A model whose products are summed in one order, however many threads the BLAS may use.

A BLAS shares a large product among threads, and then the last bits of its sums depend on how many there are. Golden packs
must not: they are computed with arrays that cut each product into tiles, too small to be shared, and add the tiles in order.
"""

from typing import Any

import numpy as np

from npembed.model import Model
from npembed.typing import Array, Floats

TILE = 32
"""Rows and columns of a tile of the result."""

DEPTH = 128
"""How many products a tile adds up. BLAS libraries share no product as small as 32 x 128 x 32 among threads."""


def product(a: Floats, b: Floats) -> Floats:
    """(..., M, K), (..., K, N) -> (..., M, N): the matrix product, tile by tile, the parts of a sum in rising order.

    Examples
    --------
    >>> product(np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]])).tolist()
    [[11.0]]
    """
    if a.ndim == 1 or b.ndim == 1:  # as in NumPy, a row or a column whose axis is not in the result
        whole = product(a[None, :] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b)
        return np.asarray(whole.squeeze(tuple(axis for axis, array in ((-2, a), (-1, b)) if array.ndim == 1)))
    rows, columns = a.shape[-2], b.shape[-1]
    depth = min(a.shape[-1], DEPTH)
    a, b = _tiles(a, TILE, depth), _tiles(b, depth, TILE)  # (..., M/T, K/d, T, d), (..., K/d, N/T, d, T)
    total = np.zeros(1, dtype=np.result_type(a, b))
    for k in range(a.shape[-3]):
        total = total + a[..., :, None, k, :, :] @ b[..., None, k, :, :, :]  # (..., M/T, N/T, T, T)
    whole = total.swapaxes(-3, -2)
    return whole.reshape(*whole.shape[:-4], whole.shape[-4] * TILE, -1)[..., :rows, :columns]


def _tiles(array: Floats, rows: int, columns: int) -> Floats:
    """(..., M, N) -> (..., M/rows, N/columns, rows, columns): cut into tiles, the last ones filled up with zeros."""
    *outer, m, n = array.shape
    padded = np.zeros((*outer, -(-m // rows) * rows, -(-n // columns) * columns), dtype=array.dtype)
    padded[..., :m, :n] = array
    cut = padded.reshape(*outer, padded.shape[-2] // rows, rows, padded.shape[-1] // columns, columns)
    return np.ascontiguousarray(cut.swapaxes(-3, -2))


class InOrder(np.ndarray[Any, Any]):
    """An array whose matrix products, and those of what is made from it, go by `product`."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        """Every other function as NumPy has it, on the plain arrays."""
        plain = [_plain(value) for value in inputs]
        if ufunc is np.matmul and method == "__call__":
            result = product(plain[0], plain[1])
            if out is not None:
                _plain(out[0])[...] = result
        else:
            outs = {} if out is None else {"out": tuple(map(_plain, out))}
            result = getattr(ufunc, method)(*plain, **outs, **options)
        if out is not None:
            return out[0]
        return result.view(InOrder) if isinstance(result, np.ndarray) else result


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, InOrder) else value


def in_order(model: Model, dtype: str) -> Model:
    """The model in that float type, its products summed in one order."""
    result = Model(model.config, {name: array.astype(dtype) for name, array in model.weights.items()})
    object.__setattr__(result, "weights", {name: array.view(InOrder) for name, array in result.weights.items()})
    return result


def plain(array: Array) -> Array:
    """What a stage gave, as a plain array."""
    return np.asarray(_plain(array))

"""A model whose products are summed in one order, however many threads the BLAS may use.

A BLAS shares a large product among threads, and then the last bits of its sums depend on how many there are. Golden packs
must not: they are computed with an arithmetic that cuts each product into tiles, too small to be shared, and adds the tiles in
order.
"""

from dataclasses import replace

import numpy as np

from npembed.records.arithmetic import Arithmetic
from npembed.records.model import Model
from npembed.support.typing import Floats

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


class InOrder(Arithmetic):
    """Exact, but for its products, which go by `product`."""

    def product(self, a: Floats, b: Floats, out: Floats | None = None) -> Floats:
        result = product(a, b)
        if out is not None:
            out[...] = result
        return result


IN_ORDER = InOrder()


def in_order(model: Model, dtype: str) -> Model:
    """The model in that float type, its products summed in one order."""
    return replace(model, weights={name: array.astype(dtype) for name, array in model.weights.items()}, ops=IN_ORDER)

"""Ragged slices -> one rectangular batch, and the mask that tells which places are real."""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npembed.support import arguments
from npembed.support.messages import brief


def pad_sequence(
    sequences: Iterable[ArrayLike],
    batch_first: bool = False,
    padding_value: float = 0.0,
    padding_side: Literal["right", "left"] = "right",
) -> NDArray[Any]:
    """Stack arrays of different lengths, filling the short ones up.

    Parameters
    ----------
    sequences : iterable of (L_i, ...)
        At least one; all of one dtype, and alike in every axis but the first.
    batch_first : bool
        Whether the batch is the first axis of the result or the second.
    padding_value : float
        What fills the rest; it must be a value of the arrays' dtype.
    padding_side : {"right", "left"}
        Where the filling goes.

    Returns
    -------
    (B, Lmax, ...) if batch_first, else (Lmax, B, ...), of the sequences' dtype

    Raises
    ------
    ValueError, TypeError
        No sequences; a scalar; shapes or dtypes that differ, named with their index; a padding value that the dtype
        cannot hold.

    Notes
    -----
    Source: `torch.nn.utils.rnn.pad_sequence`. Where torch casts every sequence to the first one's dtype, this refuses.

    Examples
    --------
    >>> pad_sequence([[1, 2, 3], [4]], batch_first=True)
    array([[1, 2, 3],
           [4, 0, 0]])
    """
    who = "pad_sequence"
    arrays = [
        arguments.as_array(s, f"sequences[{i}]", who) for i, s in enumerate(arguments.as_list(sequences, "sequences", who))
    ]
    first = arguments.as_flag(batch_first, "batch_first", who)
    if not (isinstance(padding_side, str) and padding_side in ("right", "left")):
        raise ValueError(f"{who}: padding_side must be 'right' or 'left'; got {brief(padding_side)}")
    dtype, trailing = arrays[0].dtype, arrays[0].shape[1:]
    for index, array in enumerate(arrays):
        if array.ndim == 0 or array.shape[1:] != trailing:
            raise ValueError(
                f"{who}: sequences[{index}] must have shape (L{''.join(f', {n}' for n in trailing)}{',' * (not trailing)}) "
                f"as sequences[0] has; got {array.shape}"
            )
        if array.dtype != dtype:
            raise TypeError(f"{who}: sequences[{index}] must be of dtype {dtype} as sequences[0] is; got {array.dtype}")
    filler = _filler(padding_value, dtype, who)
    padded = np.full((len(arrays), max(map(len, arrays)), *trailing), filler)  # (B, Lmax, ...)
    for row, array in zip(padded, arrays, strict=True):
        if len(array):
            row[slice(len(array)) if padding_side == "right" else slice(-len(array), None)] = array
    return padded if first else np.ascontiguousarray(padded.swapaxes(0, 1))


def _filler(value: Any, dtype: np.dtype[Any], who: str) -> NDArray[Any]:
    """The padding value as a number of that type, which must hold it."""
    number = arguments.as_array(value, "padding_value", who)
    if number.ndim or number.dtype.kind not in "biuf" or dtype.kind not in "biufcV":
        raise TypeError(f"{who}: padding_value must be a number, and the sequences hold such; got {brief(value)} for {dtype}")
    with np.errstate(invalid="ignore", over="ignore"):  # the next lines refuse what came out wrong
        filler = number.astype(dtype)
    if filler != number if dtype.kind in "iub" else np.isinf(filler) and not np.isinf(number):
        raise ValueError(f"{who}: padding_value {brief(value)} is no value of dtype {dtype}")
    return filler


def pad_pixel_values(strips: Iterable[ArrayLike]) -> NDArray[Any]:
    """list of (C, P, L_i*P) -> (B, C, P, Lmax*P): the strips side by side, zeros at their ends.

    Parameters
    ----------
    strips : iterable of float (C, P, L_i*P)
        One per slice. C and P are the first strip's. NaN and infinity stay as they are.

    Returns
    -------
    float (B, C, P, Lmax*P)
        0.0 (mid-grey, as pixels are normalised) where a strip has ended.

    Raises
    ------
    ValueError, TypeError
        No strips; a strip of another rank, dtype, channels or patch size, or a width that is not a multiple of P.

    Notes
    -----
    Source: SPEC 3. Upstream pads the strips as sequences of pixel columns, and so does this.

    Examples
    --------
    >>> pad_pixel_values([np.ones((3, 14, 28)), np.ones((3, 14, 14))]).shape
    (2, 3, 14, 28)
    """
    who = "pad_pixel_values"
    arrays = arguments.as_strips(strips, who)
    for index, strip in enumerate(arrays):
        if strip.dtype != arrays[0].dtype:
            raise TypeError(f"{who}: strips[{index}] must be of dtype {arrays[0].dtype} as strips[0] is; got {strip.dtype}")
    columns = [np.moveaxis(strip, -1, 0) for strip in arrays]  # (L_i*P, C, P)
    padded = pad_sequence(columns, batch_first=True)  # (B, Lmax*P, C, P)
    return np.ascontiguousarray(np.moveaxis(padded, 1, -1))  # (B, C, P, Lmax*P)


def patch_attention_mask(tgt_sizes: ArrayLike) -> NDArray[np.bool_]:
    """(B, 2) -> bool (B, 1, Lmax): True on the first h*w places of each slice.

    Parameters
    ----------
    tgt_sizes : int (B, 2)
        Rows and columns of patches per slice.

    Returns
    -------
    bool (B, 1, Lmax)

    Raises
    ------
    ValueError, TypeError
        tgt_sizes of another shape, or a side that is not a whole number from 1 to 32,768.

    Notes
    -----
    Source: SPEC 3 and the seed article.

    Examples
    --------
    >>> patch_attention_mask([[1, 3], [2, 1]]).astype(int)
    array([[[1, 1, 1]],
    <BLANKLINE>
           [[1, 1, 0]]])
    """
    lengths = arguments.as_tgt_sizes(tgt_sizes, "patch_attention_mask").prod(axis=1)  # (B,)
    return np.asarray(np.arange(lengths.max()) < lengths[:, None, None])

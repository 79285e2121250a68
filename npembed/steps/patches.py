"""Pictures and strips <-> patches, and the convolution that turns each patch into a vector.

A strip, (C, P, L*P), is how MiniCPM-V stores the pixels of one slice: its patches side by side, row by row of the
picture (SPEC 0). A patch matrix, (L, C*P*P), has one patch a row, flattened as the convolution's kernels are.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npembed.support import arguments


def picture_to_strip(picture: NDArray[Any], patch_size: int) -> NDArray[Any]:
    """(C, H, W) -> (C, P, L*P), of any dtype; H and W are multiples of P.

    Examples
    --------
    >>> picture_to_strip(np.arange(8).reshape(1, 4, 2), patch_size=2).tolist()
    [[[0, 1, 4, 5], [2, 3, 6, 7]]]
    """
    channels, height, width = picture.shape
    cells = picture.reshape(channels, height // patch_size, patch_size, width // patch_size, patch_size)
    return cells.transpose(0, 2, 1, 3, 4).reshape(channels, patch_size, -1)  # (C, h, P, w, P) -> (C, P, h*w*P)


def strip_to_picture(strip: NDArray[Any], tgt_size: tuple[int, int]) -> NDArray[Any]:
    """(C, P, h*w*P) -> (C, h*P, w*P): what `picture_to_strip` undoes.

    Examples
    --------
    >>> strip_to_picture(picture_to_strip(np.arange(8).reshape(1, 4, 2), 2), (2, 1)).ravel().tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    channels, patch_size, _ = strip.shape
    h, w = tgt_size
    cells = strip.reshape(channels, patch_size, h, w, patch_size)
    return cells.transpose(0, 2, 1, 3, 4).reshape(channels, h * patch_size, w * patch_size)


def strip_to_patches(strip: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """(C, P, L*P) -> (L, C*P*P): one patch a row, flattened as the kernels of the convolution are; into `out` if given.

    Examples
    --------
    >>> strip_to_patches(np.array([[[0, 1, 4, 5], [2, 3, 6, 7]]])).tolist()
    [[0, 1, 2, 3], [4, 5, 6, 7]]
    """
    channels, patch_size, _ = strip.shape
    cells = strip.reshape(channels, patch_size, -1, patch_size).transpose(2, 0, 1, 3)  # (C, P, L, P) -> (L, C, P, P)
    if out is None:
        return cells.reshape(len(cells), -1)
    out.reshape(cells.shape)[:] = cells
    return out


def patches_to_strip(patches: NDArray[Any], patch_size: int) -> NDArray[Any]:
    """(L, C*P*P) -> (C, P, L*P): what `strip_to_patches` undoes.

    Examples
    --------
    >>> patches_to_strip(np.arange(8).reshape(2, 4), patch_size=2).tolist()
    [[[0, 1, 4, 5], [2, 3, 6, 7]]]
    """
    cells = patches.reshape(len(patches), -1, patch_size, patch_size)
    return cells.transpose(1, 2, 0, 3).reshape(cells.shape[1], patch_size, -1)  # (L, C, P, P) -> (C, P, L*P)


def patch_conv(pixel_values: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None) -> NDArray[Any]:
    """(B, C, H, W), (D, C, P, P), (D,) -> (B, D, H//P, W//P): the convolution whose stride is its kernel's side.

    No patch overlaps another, so it is one matrix product over the pixels of each patch. On a padded batch of
    strips, (B, C, P, Lmax*P), the result is (B, D, 1, Lmax).

    Parameters
    ----------
    pixel_values : float (B, C, H, W)
        Rows and columns that do not fill a patch are dropped. NaN and infinity are passed on: they spoil their own patch.
    weight : float (D, C, P, P)
        Its float type is the result's: float32 or float64; float16 and bfloat16 count as float32.
    bias : float (D,), optional

    Returns
    -------
    float (B, D, H//P, W//P)

    Raises
    ------
    ValueError, TypeError
        Ranks, channels or lengths that do not fit, kernels that are not square, pixels for less than one patch,
        anything that is not a number.

    Notes
    -----
    Source: SPEC 4; torch's Conv2d with kernel_size = stride = P and padding "valid". A float32 result lies within
    gamma_n * (|x| * |w| + |bias|) of the exact one, n = C*P*P + 2: Higham's componentwise bound (SPEC 11).

    Examples
    --------
    >>> pixels = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> patch_conv(pixels, np.ones((1, 1, 2, 2)), bias=[0.5])
    array([[[[10.5, 18.5],
             [42.5, 50.5]]]])
    """
    who = "patch_conv"
    kernels = arguments.as_floats(weight, "weight", who)
    arguments.check_shape(kernels, "weight", (None, None, None, None), who, "(D, C, P, P)")
    if kernels.shape[2] != kernels.shape[3]:
        raise ValueError(f"{who}: weight must have square kernels (D, C, P, P); got {kernels.shape}")
    side = kernels.shape[2]
    pixels = arguments.as_floats(pixel_values, "pixel_values", who).astype(kernels.dtype, copy=False)
    arguments.check_shape(pixels, "pixel_values", (None, kernels.shape[1], None, None), who, f"(B, {kernels.shape[1]}, H, W)")
    batch, channels, rows, columns = pixels.shape[0], pixels.shape[1], pixels.shape[2] // side, pixels.shape[3] // side
    if not (rows and columns):
        raise ValueError(f"{who}: pixel_values must hold at least one patch of {side} x {side}; got shape {pixels.shape}")
    cells = pixels[:, :, : rows * side, : columns * side].reshape(batch, channels, rows, side, columns, side)
    result = np.einsum("bchpwq,dcpq->bdhw", cells, kernels, optimize=True)
    if bias is not None:
        offsets = arguments.as_floats(bias, "bias", who).astype(kernels.dtype, copy=False)
        arguments.check_shape(offsets, "bias", kernels.shape[:1], who, f"({len(kernels)},)")
        result = result + offsets[:, None, None]
    return np.ascontiguousarray(result)

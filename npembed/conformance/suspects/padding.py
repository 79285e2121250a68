"""Faults of padding, of the mask and of the convolution."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import npembed
from npembed.conformance.suspects.suspect import Fault, Function, Suspect
from npembed.support.typing import Array


def _plus_one(function: Function) -> Function:
    return lambda sequences, batch_first=False, padding_value=0.0, padding_side="right": function(
        sequences, batch_first, padding_value + 1, padding_side
    )


def _padding_with_zero(function: Function) -> Function:
    return lambda sequences, batch_first=False, padding_value=0.0, padding_side="right": function(
        sequences, batch_first, 0.0, padding_side
    )


def _other_axis(function: Function) -> Function:
    return lambda sequences, batch_first=False, *args, **kwargs: function(sequences, not batch_first, *args, **kwargs)


def _right_side(function: Function) -> Function:
    return lambda sequences, batch_first=False, padding_value=0.0, padding_side="right": function(
        sequences, batch_first, padding_value
    )


def _pad_with_one(strips: Any) -> Array:
    columns = [np.moveaxis(strip, -1, 0) for strip in strips]
    return np.moveaxis(npembed.pad_sequence(columns, batch_first=True, padding_value=1), 1, -1)


def _mask_with(change: int, tgt_sizes: Any) -> Array:
    lengths = np.prod(tgt_sizes, axis=1)
    return np.asarray(np.arange(lengths.max()) < lengths[:, None, None] + change)


def _conv_of(change: Callable[[Any, Any, Any], tuple[Any, Any, Any]]) -> Fault:
    """The convolution of changed arguments."""
    return lambda function: lambda pixel_values, weight, bias=None: function(*change(pixel_values, weight, bias))


SUSPECTS: dict[str, tuple[Suspect, ...]] = {
    "pad_sequence": (
        Suspect("pads with padding_value + 1", _plus_one),
        Suspect("ignores padding_value", _padding_with_zero),
        Suspect("ignores batch_first", _other_axis),
        Suspect("ignores padding_side", _right_side),
    ),
    "pad_pixel_values": (Suspect("pads with 1, not 0", lambda function: _pad_with_one),),
    "patch_attention_mask": (
        Suspect("the mask is one place short", lambda function: partial(_mask_with, -1)),
        Suspect("the mask is one place long", lambda function: partial(_mask_with, 1)),
        Suspect("True and False are exchanged", lambda function: lambda tgt_sizes: ~function(tgt_sizes)),
        Suspect("every place is True", lambda function: lambda tgt_sizes: np.ones_like(function(tgt_sizes))),
    ),
    "patch_conv": (
        Suspect("the bias is missing", _conv_of(lambda x, w, b: (x, w, None))),
        Suspect("the kernels are transposed", _conv_of(lambda x, w, b: (x, w.swapaxes(2, 3), b))),
        Suspect("the channels are reversed", _conv_of(lambda x, w, b: (x, w[:, ::-1], b))),
        Suspect("the kernels are turned by 180 degrees", _conv_of(lambda x, w, b: (x, w[:, :, ::-1, ::-1], b))),
    ),
}

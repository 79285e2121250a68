"""Checks of padding and of the mask."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

import npembed
from npembed.conformance import strategies as draw
from npembed.conformance.probes.probe import Array, Call, FunctionCheck, Suspect, call, fill, sizes_of


def _pad_sequence_sweep() -> Iterator[Call]:
    for kwargs in ({}, {"batch_first": True}, {"padding_value": 3}, {"padding_side": "left"}):
        yield call([np.array([1, 2]), np.array([3])], **kwargs)
        yield call([fill("ramp", 1, 2), fill("ramp", 3, 2)], **kwargs)


@st.composite
def _pad_sequence_cases(drawn: st.DrawFn) -> Call:
    trailing = tuple(drawn(st.lists(st.integers(1, 3), max_size=2)))
    lengths = drawn(st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(any))
    sequences = [drawn(draw.floats((length, *trailing))) for length in lengths]
    side, value = drawn(st.sampled_from(("right", "left"))), drawn(st.sampled_from((0.0, 1.0, -2.5)))
    return call(sequences, batch_first=drawn(st.booleans()), padding_value=value, padding_side=side)


def _pad_sequence_plus(sequences: Any, batch_first: Any = False, padding_value: Any = 0.0, padding_side: Any = "right") -> Any:
    return npembed.pad_sequence(sequences, batch_first, padding_value + 1, padding_side)


def _pad_with_one(strips: Any) -> Array:
    columns = [np.moveaxis(strip, -1, 0) for strip in strips]
    return np.moveaxis(npembed.pad_sequence(columns, batch_first=True, padding_value=1), 1, -1)


def _strip_calls() -> Iterator[Call]:
    yield call([fill("ones", 1, 1, 1), fill("ones", 1, 1, 2)])
    yield call([fill("ramp", 3, 2, 4), fill("ramp", 3, 2, 2)])


def _strip_cases() -> st.SearchStrategy[Call]:
    return draw.tgt_sizes(max_patches=12).flatmap(draw.strips).map(call)


def _size_sweep() -> Iterator[Call]:
    for sizes in ([(1, 1)], [(1, 2)], [(2, 1)], [(1, 2), (1, 1)], [(2, 3), (3, 1)]):
        yield call(sizes_of(*sizes))


def _mask_one(change: int, tgt_sizes: Any) -> Array:
    lengths = np.prod(tgt_sizes, axis=1)
    return np.asarray(np.arange(lengths.max()) < lengths[:, None, None] + change)


CHECKS = (
    FunctionCheck(
        name="pad_sequence",
        sweep=_pad_sequence_sweep,
        cases=_pad_sequence_cases,
        suspects=(
            Suspect("pads with padding_value + 1", _pad_sequence_plus),
            Suspect(
                "ignores batch_first", lambda s, batch_first=False, *a, **k: npembed.pad_sequence(s, not batch_first, *a, **k)
            ),
            Suspect(
                "ignores padding_side",
                lambda s, batch_first=False, padding_value=0.0, padding_side="right": npembed.pad_sequence(
                    s, batch_first, padding_value
                ),
            ),
        ),
    ),
    FunctionCheck(
        name="pad_pixel_values",
        sweep=_strip_calls,
        cases=_strip_cases,
        suspects=(Suspect("pads with 1, not 0", _pad_with_one),),
    ),
    FunctionCheck(
        name="patch_attention_mask",
        sweep=_size_sweep,
        cases=lambda: draw.tgt_sizes(max_patches=24).map(call),
        suspects=(
            Suspect("the mask is one place short", partial(_mask_one, -1)),
            Suspect("the mask is one place long", partial(_mask_one, 1)),
            Suspect("True and False are exchanged", lambda tgt_sizes: ~npembed.patch_attention_mask(tgt_sizes)),
        ),
    ),
)

"""Checks of padding and of the mask."""

from collections.abc import Iterator

import numpy as np
from hypothesis import strategies as st

from npembed.conformance import strategies as draw
from npembed.conformance.probes.probe import Call, FunctionCheck, call, fill, sizes_of


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


STRIPS = (
    call([fill("ones", 1, 1, 1), fill("ones", 1, 1, 2)]),
    call([fill("ramp", 3, 2, 4), fill("ramp", 3, 2, 2)]),
)
SIZES = ([(1, 1)], [(1, 2)], [(2, 1)], [(1, 2), (1, 1)], [(2, 3), (3, 1)])

CHECKS = (
    FunctionCheck(name="pad_sequence", sweep=_pad_sequence_sweep, cases=_pad_sequence_cases),
    FunctionCheck(
        name="pad_pixel_values",
        sweep=lambda: STRIPS,
        cases=lambda: draw.tgt_sizes(max_patches=12).flatmap(draw.strips).map(call),
    ),
    FunctionCheck(
        name="patch_attention_mask",
        sweep=lambda: (call(sizes_of(*sizes)) for sizes in SIZES),
        cases=lambda: draw.tgt_sizes(max_patches=24).map(call),
    ),
)

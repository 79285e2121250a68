"""Checks of the convolution."""

from collections.abc import Iterator

from hypothesis import strategies as st

from npembed.conformance import strategies as draw
from npembed.conformance.bounds import patch_conv_scale
from npembed.conformance.probes.probe import Call, FunctionCheck, call, fill, half_sums


def _conv_sweep() -> Iterator[Call]:
    for kind in ("ones", "ramp", "mixed"):
        yield call(fill(kind, 1, 1, 1, 1), fill(kind, 1, 1, 1, 1))
        yield call(fill(kind, 1, 1, 1, 1), fill(kind, 1, 1, 1, 1), fill(kind, 1))
        yield call(fill(kind, 1, 1, 2, 2), fill(kind, 1, 1, 2, 2), fill(kind, 1))
        yield call(fill(kind, 2, 3, 5, 7), fill(kind, 4, 3, 2, 2), fill(kind, 4))
    yield call(fill("one sign", 1, 3, 14, 28), fill("one sign", 2, 3, 14, 14), fill("one sign", 2))


@st.composite
def _conv_cases(drawn: st.DrawFn) -> Call:
    batch, channels, width, side = (drawn(st.integers(1, most)) for most in (3, 3, 4, 4))
    height, length = (drawn(st.integers(side, 3 * side)) for _ in range(2))
    weight = drawn(draw.floats((width, channels, side, side)))
    bias = drawn(st.none() | draw.floats((width,)))
    return call(drawn(draw.floats((batch, channels, height, length))), weight, bias)


CHECKS = (
    FunctionCheck(
        name="patch_conv",
        sweep=_conv_sweep,
        cases=_conv_cases,
        allowed=lambda call, precision: patch_conv_scale(*call.args).allowed(precision),
        hint=half_sums,
    ),
)

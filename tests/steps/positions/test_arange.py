"""torch's float32 arange, to the bit."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from npembed.steps.positions.arange import torch_arange
from tests.oracles import torch


def bits(values: NDArray[np.float32]) -> list[int]:
    return values.view(np.int32).tolist()


def one_at_a_time(start: float, step: float, count: int, lanes: int) -> NDArray[np.float32]:
    """SPEC 5.1 as a loop: pairs of vectors, then what is left."""
    result: list[np.float32] = []
    while count - len(result) >= 2 * lanes:
        for _ in range(2):
            base = np.float32(start + step * len(result))
            result += [np.float32(float(base) + lane * step) for lane in range(lanes)]
    while len(result) < count:
        result.append(np.float32(start + step * len(result)))
    return np.array(result, dtype=np.float32)


@given(start=st.floats(0, 1), step=st.floats(1e-4, 1), count=st.integers(1, 400))
def test_equals_torch_bit_for_bit(start: float, step: float, count: int) -> None:
    end = start + step * count
    assert bits(torch_arange(start, end, step)) == bits(torch.arange(start, end, step, dtype=torch.float32).numpy())


@given(start=st.floats(0, 1), step=st.floats(1e-4, 1), count=st.integers(1, 200), lanes=st.sampled_from([1, 4, 8, 16]))
def test_equals_a_loop_for_any_number_of_lanes(start: float, step: float, count: int, lanes: int) -> None:
    given_back = torch_arange(start, start + step * (count - 0.5), step, lanes=lanes)
    assert bits(given_back) == bits(one_at_a_time(start, step, count, lanes))


def test_a_vector_is_counted_on_from_its_rounded_first_element() -> None:
    eight, four = (torch_arange(0.0, 1.0, 1 / 49, lanes=lanes) for lanes in (8, 4))
    assert np.flatnonzero(eight != four).tolist() == [5, 7, 14, 20, 22, 23, 44, 45, 46, 47]


def test_the_end_is_left_out_and_an_empty_span_has_no_element() -> None:
    assert torch_arange(0.0, 1.0, 0.25).tolist() == [0.0, 0.25, 0.5, 0.75]
    assert torch_arange(0.0, 1.01, 0.25).tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert torch_arange(1.0, 1.0, 1.0).shape == (0,)

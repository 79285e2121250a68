"""What the stages check of their arguments, where the stages' own tests do not reach."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npembed.support import arguments
from tests.tensors import dtype_of

INTEGERS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]


@given(value=st.integers(-(2**70), 2**70), least=st.integers(-5, 5), most=st.none() | st.integers(6, 100))
def test_a_count_is_a_whole_number_in_its_span(value: int, least: int, most: int | None) -> None:
    if least <= value and (most is None or value <= most):
        assert arguments.as_count(value, "n", "test", least=least, most=most) == value
    else:
        span = f"of at least {least}" if most is None else f"from {least} to {most}"
        with pytest.raises(ValueError, match=f"^test: n must be a whole number {span}; got {value}$"):
            arguments.as_count(value, "n", "test", least=least, most=most)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_every_integer_type_becomes_int64(dtype: type) -> None:
    found = arguments.as_integers(np.array([[1, 2], [3, 127]], dtype=dtype), "n", "test")
    assert found.dtype == np.int64
    assert found.tolist() == [[1, 2], [3, 127]]


def test_the_ends_of_int64_are_integers() -> None:
    ends = [-(2**63), 2**63 - 1]
    assert arguments.as_integers(ends, "n", "test").tolist() == ends
    assert arguments.as_integers(np.array([2**63 - 1], dtype=np.uint64), "n", "test").tolist() == [2**63 - 1]


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 2**64, 10**40])
@pytest.mark.parametrize("beside", [[], [1], [-1]])
def test_numbers_beyond_int64_are_refused(value: int, beside: list[int]) -> None:
    with pytest.raises(ValueError, match=rf"^test: n\[{len(beside)}\] is -?\d+, which is too large for int64$"):
        arguments.as_integers([*beside, value], "n", "test")


def test_no_integers_are_an_empty_array_whatever_its_type() -> None:
    assert arguments.as_integers([], "n", "test").dtype == np.int64
    assert arguments.as_integers(np.zeros((0, 2)), "n", "test").shape == (0, 2)


@pytest.mark.parametrize(
    ("dtype", "result"),
    [
        (np.float16, np.float32),
        ("bfloat16", np.float32),
        (np.float32, np.float32),
        (np.float64, np.float64),
        *((dtype, np.float64) for dtype in INTEGERS),
    ],
)
def test_floats_are_float32_or_float64(dtype: type, result: type) -> None:
    array = np.array([1, 2, 3], dtype=dtype_of(dtype))
    found = arguments.as_floats(array, "x", "test")
    assert found.dtype == result
    assert found.tolist() == [1, 2, 3]
    assert np.shares_memory(found, array) == (dtype == result)


@pytest.mark.parametrize("value", [[True], [1j], ["1"], [None], [b"1"], np.array(["2026-01-01"], dtype="datetime64[D]")])
def test_what_is_no_float_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"^test: x must hold floats; got dtype "):
        arguments.as_floats(value, "x", "test")


def test_a_shapes_free_axes_are_of_any_length_but_none() -> None:
    array = np.zeros((2, 3))
    for shape in ((2, 3), (None, 3), (2, None), (None, None)):
        arguments.check_shape(array, "x", shape, "test", "(A, B)")
    for shape in ((2,), (2, 3, None), (3, 3), (None, 2)):
        with pytest.raises(ValueError, match=r"^test: x must have shape \(A, B\); got \(2, 3\)$"):
            arguments.check_shape(array, "x", shape, "test", "(A, B)")
    with pytest.raises(ValueError, match=r"^test: x must have shape \(A, B\); got \(0, 3\)$"):
        arguments.check_shape(array[:0], "x", (None, 3), "test", "(A, B)")

"""Checks of the way into the language model."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

import npembed
from npembed import MINICPM_V_2_6
from npembed.conformance import strategies as draw
from npembed.conformance.probes.probe import Array, Call, FunctionCheck, Suspect, call, fill


def _config(query_num: int) -> Any:
    return replace(MINICPM_V_2_6, query_num=query_num)


def _text_sweep() -> Iterator[Call]:
    for grid in (None, (1, 2), (2, 1), (2, 3)):
        for image_id in (None, 0, 3):
            yield call(grid, image_id, config=_config(2))
    yield call((2, 1), 0)


def _text_cases() -> st.SearchStrategy[Call]:
    side = st.integers(1, 4)
    return st.builds(
        lambda grid, image_id, queries: call(grid, image_id, config=_config(queries)),
        st.none() | st.tuples(side, side),
        st.none() | st.integers(0, 12),
        st.integers(1, 4),
    )


def _turned_grid(grid: Any, image_id: Any = None, config: Any = MINICPM_V_2_6) -> str:
    return npembed.image_placeholder(None if grid is None else grid[::-1], image_id, config)


def _no_newlines(grid: Any, image_id: Any = None, config: Any = MINICPM_V_2_6) -> str:
    return npembed.image_placeholder(grid, image_id, config).replace("\n", "")


def _newline_at_end(grid: Any, image_id: Any = None, config: Any = MINICPM_V_2_6) -> str:
    return npembed.image_placeholder(grid, image_id, config) + ("\n" if grid is not None else "")


def _bounds_sweep() -> Iterator[Call]:
    yield call(np.array([290, 294, 291]), [290, 292], [291, 293])
    yield call(np.array([5, 290, 294, 294, 291, 292, 294, 293, 5]), [290, 292], [291, 293])


def _bounds_cases() -> st.SearchStrategy[Call]:
    return draw.token_sequences().map(lambda drawn: call(drawn.input_ids, drawn.start_ids, drawn.end_ids))


def _bounds_plus(start: int, end: int, *args: Any) -> Array:
    return np.asarray(npembed.image_bounds(*args) + np.array([start, end]))


def _scatter_sweep() -> Iterator[Call]:
    yield call(fill("ones", 3, 1), fill("ramp", 1, 1, 1) * 2, np.array([[1, 2]]))
    yield call(fill("ones", 5, 2), fill("ramp", 1, 2, 2) * 2, np.array([[1, 3]]))
    yield call(fill("mixed", 9, 2), fill("ramp", 2, 2, 2), np.array([[1, 3], [5, 7]]))
    yield call(fill("mixed", 9, 2), fill("ramp", 2, 2, 2), np.array([[5, 7], [1, 3]]))


@st.composite
def _scatter_cases(drawn: st.DrawFn) -> Call:
    sequence = drawn(draw.token_sequences())
    count, length, width = len(sequence.image_bound), len(sequence.input_ids), drawn(st.integers(1, 3))
    queries = int(np.diff(sequence.image_bound[0])[0])
    text, tokens = drawn(draw.floats((length, width))), drawn(draw.floats((count, queries, width)))
    return call(text, tokens + np.float32(100), sequence.image_bound)


def _scatter_moved(change: int, inputs_embeds: Any, vision_tokens: Any, image_bound: Any) -> Array:
    """The tokens of each slice land `change` places from where they should."""
    result = np.array(inputs_embeds)
    for tokens, start in zip(vision_tokens, np.asarray(image_bound)[:, 0].tolist(), strict=True):
        for place, token in enumerate(tokens, start + change):
            if 0 <= place < len(result):
                result[place] = token
    return result


CHECKS = (
    FunctionCheck(
        name="image_placeholder",
        sweep=_text_sweep,
        cases=_text_cases,
        suspects=(
            Suspect("the grid is taken as (rows, columns); it is (columns, rows)", _turned_grid),
            Suspect("the newline between rows of slices is missing", _no_newlines),
            Suspect("there is a newline after the last row of slices", _newline_at_end),
        ),
    ),
    FunctionCheck(
        name="image_bounds",
        sweep=_bounds_sweep,
        cases=_bounds_cases,
        suspects=(
            Suspect("the end is taken as inclusive: it is the place of the end token", partial(_bounds_plus, 0, -1)),
            Suspect("the end is one past the end token; it is the token's own place", partial(_bounds_plus, 0, 1)),
            Suspect("the start is the start token's place; it is one past it", partial(_bounds_plus, -1, 0)),
        ),
    ),
    FunctionCheck(
        name="scatter_image_embeds",
        sweep=_scatter_sweep,
        cases=_scatter_cases,
        suspects=(
            Suspect("the tokens land one place too late", partial(_scatter_moved, 1)),
            Suspect("the tokens land one place too early", partial(_scatter_moved, -1)),
        ),
    ),
)

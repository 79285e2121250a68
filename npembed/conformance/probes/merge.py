"""Checks of the way into the language model."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from npembed import MINICPM_V_2_6
from npembed.conformance import strategies as draw
from npembed.conformance.probes.probe import Call, FunctionCheck, call, fill, refused


def _config(query_num: int, use_image_id: bool = True) -> Any:
    return replace(MINICPM_V_2_6, query_num=query_num, use_image_id=use_image_id)


def _text_sweep() -> Iterator[Call]:
    for grid in (None, (1, 2), (2, 1), (2, 3)):
        for image_id in (None, 0, 3):
            yield call(grid, image_id, config=_config(2))
    yield call((2, 1), 0)
    yield call((2, 1), 5, config=_config(1, use_image_id=False))


def _text_cases() -> st.SearchStrategy[Call]:
    side = st.integers(1, 4)
    return st.builds(
        lambda grid, image_id, queries: call(grid, image_id, config=_config(queries)),
        st.none() | st.tuples(side, side),
        st.none() | st.integers(0, 12),
        st.integers(1, 4),
    )


STARTS, ENDS = draw.START_IDS, draw.END_IDS


def _bounds_sweep() -> Iterator[Call]:
    yield call(np.array([290, 294, 291]), STARTS, ENDS)
    yield call(np.array([5, 290, 294, 294, 291, 292, 294, 293, 5]), STARTS, ENDS)
    yield call(np.array([290, 294, 291, 292, 294, 293, 290, 294, 291]), STARTS, ENDS)
    yield refused(np.array([290, 294, 291, 290, 294]), STARTS, ENDS)  # the last is not closed
    yield refused(np.array([290, 294, 291, 294, 293]), STARTS, ENDS)  # nothing opens the last


def _scatter_sweep() -> Iterator[Call]:
    yield call(fill("ones", 3, 1), fill("ramp", 1, 1, 1) * 2, np.array([[1, 2]]))
    yield call(fill("ones", 5, 2), fill("ramp", 1, 2, 2) * 2, np.array([[1, 3]]))
    yield call(fill("mixed", 9, 2), fill("ramp", 2, 2, 2), np.array([[1, 3], [5, 7]]))
    yield call(fill("mixed", 9, 2), fill("ramp", 2, 2, 2), np.array([[5, 7], [1, 3]]))
    yield refused(fill("mixed", 9, 2), fill("ramp", 1, 2, 2), np.array([[1, 4]]))  # one place more than tokens


@st.composite
def _scatter_cases(drawn: st.DrawFn) -> Call:
    sequence = drawn(draw.token_sequences())
    count, length, width = len(sequence.image_bound), len(sequence.input_ids), drawn(st.integers(1, 3))
    queries = int(np.diff(sequence.image_bound[0])[0])
    text, tokens = drawn(draw.floats((length, width))), drawn(draw.floats((count, queries, width)))
    return call(text, tokens + np.float32(100), sequence.image_bound)


CHECKS = (
    FunctionCheck(name="image_placeholder", sweep=_text_sweep, cases=_text_cases),
    FunctionCheck(
        name="image_bounds",
        sweep=_bounds_sweep,
        cases=lambda: draw.token_sequences().map(lambda drawn: call(drawn.input_ids, drawn.start_ids, drawn.end_ids)),
    ),
    FunctionCheck(name="scatter_image_embeds", sweep=_scatter_sweep, cases=_scatter_cases),
)

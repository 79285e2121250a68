"""Into the language model: where an image's places are in the text, and the vision tokens put there."""

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npembed import arguments


def image_bounds(input_ids: ArrayLike, start_ids: ArrayLike, end_ids: ArrayLike) -> NDArray[np.int64]:
    """(T,) -> int64 (N, 2): where each slice's vision tokens go, from one past its start token to its end token.

    Parameters
    ----------
    input_ids : int (T,)
        The whole text's token ids.
    start_ids, end_ids : int (K,)
        The ids of the tokens that open, and that close, an image or a slice.

    Returns
    -------
    int64 (N, 2)
        In order of place; (0, 2) for a text without images.

    Raises
    ------
    ValueError, TypeError
        Ids of another rank, or that are not whole numbers; an id that both opens and closes; a start token without its end
        token, or the other way round, with its place.

    Notes
    -----
    Source: SPEC 9.

    Examples
    --------
    >>> image_bounds([7, 290, 294, 294, 291, 292, 294, 294, 293, 7], [290, 292], [291, 293]).tolist()
    [[2, 4], [6, 8]]
    """
    who = "image_bounds"
    ids, starts, ends = (
        arguments.as_integers(value, name, who)
        for value, name in ((input_ids, "input_ids"), (start_ids, "start_ids"), (end_ids, "end_ids"))
    )
    for array, name in ((ids, "input_ids"), (starts, "start_ids"), (ends, "end_ids")):
        arguments.check_shape(array, name, (None,), who, f"({'T' if name == 'input_ids' else 'K'},), not empty")
    both = np.intersect1d(starts, ends)
    if len(both):
        raise ValueError(f"{who}: {both[0]} is in both start_ids and end_ids; it can only be in one")
    bounds: list[tuple[int, int]] = []
    start: int | None = None  # the place of the start token that is still open
    for place in np.flatnonzero(np.isin(ids, starts) | np.isin(ids, ends)).tolist():
        if (start is None) != (ids[place] in starts):
            raise ValueError(f"{who}: {_unmatched(ids, place if start is None else start, opens=start is not None)}")
        if start is None:
            start = place
        else:
            bounds.append((start + 1, place))
            start = None
    if start is not None:
        raise ValueError(f"{who}: {_unmatched(ids, start, opens=True)}")
    return np.array(bounds, dtype=np.int64).reshape(-1, 2)


def _unmatched(ids: NDArray[np.int64], place: int, *, opens: bool) -> str:
    kind, other = ("a start", "end token after it") if opens else ("an end", "start token before it")
    return f"input_ids[{place}] = {ids[place]} is {kind} token without its {other}"


def scatter_image_embeds(inputs_embeds: ArrayLike, vision_tokens: ArrayLike, image_bound: ArrayLike) -> NDArray[Any]:
    """(T, E), (N, Q, E), (N, 2) -> (T, E): the text's embeddings, with each slice's vision tokens in their places.

    Parameters
    ----------
    inputs_embeds : float (T, E)
        Its float type is the result's: float32 or float64; float16 and bfloat16 count as float32.
    vision_tokens : float (N, Q, E)
        As `resample` gives them; N may be 0.
    image_bound : int (N, 2)
        Rows start to end - 1 of the text take that slice's Q tokens; in any order, as `image_bounds` gives them.

    Returns
    -------
    float32 or float64 (T, E)
        A new array.

    Raises
    ------
    ValueError, TypeError
        Shapes that do not fit each other; a bound that is reversed, outside the text, not Q long, or that overlaps another,
        with its row.

    Notes
    -----
    Source: SPEC 9.

    Examples
    --------
    >>> scatter_image_embeds(np.zeros((5, 1)), [[[1.0], [2.0]], [[3.0], [4.0]]], [[0, 2], [3, 5]]).ravel().tolist()
    [1.0, 2.0, 0.0, 3.0, 4.0]
    """
    who = "scatter_image_embeds"
    text = arguments.as_floats(inputs_embeds, "inputs_embeds", who)
    arguments.check_shape(text, "inputs_embeds", (None, None), who, "(T, E), not empty")
    bounds = arguments.as_integers(image_bound, "image_bound", who)
    if bounds.ndim != 2 or bounds.shape[1] != 2:
        raise ValueError(f"{who}: image_bound must have shape (N, 2); got {bounds.shape}")
    count, width = len(bounds), text.shape[1]
    tokens = arguments.as_floats(vision_tokens, "vision_tokens", who)
    arguments.check_shape(
        tokens, "vision_tokens", (count, None, width), who, f"(N, Q, E) = ({count}, Q, {width}), Q at least 1"
    )
    _check_bounds(bounds, len(text), tokens.shape[1], who)
    result: NDArray[Any] = text.copy()
    for (start, end), rows in zip(bounds.tolist(), tokens, strict=True):
        result[start:end] = rows
    return result


def _check_bounds(bounds: NDArray[np.int64], places: int, query_num: int, who: str) -> None:
    """Each bound lies in the text and is Q long, and no two share a place."""
    for row, (start, end) in enumerate(bounds.tolist()):
        if not 0 <= start <= end <= places:
            raise ValueError(f"{who}: image_bound[{row}] = ({start}, {end}) must have 0 <= start <= end <= T = {places}")
        if end - start != query_num:
            raise ValueError(
                f"{who}: image_bound[{row}] = ({start}, {end}) is {end - start} long; a slice has {query_num} vision tokens"
            )
    for first, second in pairwise(np.argsort(bounds[:, 0], kind="stable")):
        if bounds[second, 0] < bounds[first, 1]:
            raise ValueError(
                f"{who}: image_bound[{second}] = {tuple(bounds[second].tolist())} overlaps "
                f"image_bound[{first}] = {tuple(bounds[first].tolist())}"
            )

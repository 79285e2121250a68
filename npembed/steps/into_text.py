"""Into the language model: where an image's places are in the text, and the vision tokens put there."""

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npembed.support import arguments


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


def token_places(input_ids: ArrayLike, image_token_id: int, token_counts: ArrayLike) -> NDArray[np.int64]:
    """(T,), (N,) -> int64 (N, 2): where each slice's vision tokens go, by the places of one token id in the text.

    The slices take the places in order, each as many as it has tokens. For families whose slices differ in their numbers of
    tokens, and whose text is found by the token that is repeated; `image_bounds` goes by the tokens around.

    Parameters
    ----------
    input_ids : int (T,)
        The whole text's token ids.
    image_token_id : int
        The id of the token that stands for one vision token.
    token_counts : int (N,)
        Vision tokens per slice, as `run` gives them; N may be 0.

    Returns
    -------
    int64 (N, 2)
        Start, and end, which is one past the last place.

    Raises
    ------
    ValueError, TypeError
        Ids of another rank, or that are not whole numbers; more or fewer places than tokens, or a slice whose places do not
        follow one another, as when its count is another slice's: with the slice.

    Notes
    -----
    Source: SPEC 13.4.

    Examples
    --------
    >>> token_places([7, 294, 294, 294, 8, 294, 9], 294, [3, 1]).tolist()
    [[1, 4], [5, 6]]
    """
    who = "token_places"
    ids = arguments.as_integers(input_ids, "input_ids", who)
    arguments.check_shape(ids, "input_ids", (None,), who, "(T,), not empty")
    token = arguments.as_count(image_token_id, "image_token_id", who, least=0)
    counts = arguments.as_token_counts(token_counts, who)
    places = np.flatnonzero(ids == token)
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    if len(places) != total:
        short = f"; they end in slice {np.searchsorted(ends, len(places), side='right')}" if len(places) < total else ""
        raise ValueError(f"{who}: input_ids has {len(places)} places of id {token}, but token_counts makes {total}{short}")
    for slice_, own in enumerate(np.split(places, ends[:-1]) if total else []):
        if own[-1] - own[0] != len(own) - 1:
            raise ValueError(
                f"{who}: slice {slice_} has {len(own)} vision tokens, but places {own[0]} to {own[-1]} of the text, which they "
                f"would take, are not all of id {token}"
            )
    return np.stack([places[ends - counts], places[ends - 1] + 1], axis=1) if total else np.empty((0, 2), np.int64)


def scatter_image_embeds(
    inputs_embeds: ArrayLike, vision_tokens: ArrayLike, image_bound: ArrayLike, token_counts: ArrayLike | None = None
) -> NDArray[Any]:
    """(T, E), (N, Q, E), (N, 2) -> (T, E): the text's embeddings, with each slice's vision tokens in their places.

    Parameters
    ----------
    inputs_embeds : float (T, E)
        Its float type is the result's: float32 or float64; float16 and bfloat16 count as float32.
    vision_tokens : float (N, Q, E)
        As `resample` gives them; N may be 0.
    image_bound : int (N, 2)
        Rows start to end - 1 of the text take that slice's tokens; in any order, as `image_bounds` or `token_places` gives
        them.
    token_counts : int (N,), optional
        How many of its Q rows are each slice's tokens, the first ones; all of them where this is not given.

    Returns
    -------
    float32 or float64 (T, E)
        A new array.

    Raises
    ------
    ValueError, TypeError
        Shapes that do not fit each other; a count above Q; a bound that is reversed, outside the text, not as long as its
        slice has tokens, or that overlaps another, with its row.

    Notes
    -----
    Source: SPEC 9; with counts SPEC 13.4.

    Examples
    --------
    >>> scatter_image_embeds(np.zeros((5, 1)), [[[1.0], [2.0]], [[3.0], [4.0]]], [[0, 2], [3, 5]]).ravel().tolist()
    [1.0, 2.0, 0.0, 3.0, 4.0]
    >>> scatter_image_embeds(np.zeros((4, 1)), [[[1.0], [2.0]], [[3.0], [0.0]]], [[0, 2], [3, 4]], [2, 1]).ravel().tolist()
    [1.0, 2.0, 0.0, 3.0]
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
    counts = _counts(token_counts, count, tokens.shape[1], who)
    _check_bounds(bounds, len(text), counts, who)
    result: NDArray[Any] = text.copy()
    for (start, end), rows in zip(bounds.tolist(), tokens, strict=True):
        result[start:end] = rows[: end - start]
    return result


def _counts(token_counts: ArrayLike | None, count: int, most: int, who: str) -> list[int]:
    """Vision tokens per slice, at most as many as there are rows."""
    if token_counts is None:
        return [most] * count
    counts: list[int] = arguments.as_token_counts(token_counts, who, count).tolist()
    for index, number in enumerate(counts):
        if number > most:
            raise ValueError(f"{who}: token_counts[{index}] is {number}, but vision_tokens has {most} rows per slice")
    return counts


def _check_bounds(bounds: NDArray[np.int64], places: int, counts: list[int], who: str) -> None:
    """Each bound lies in the text and is as long as its slice has tokens, and no two share a place."""
    for row, ((start, end), query_num) in enumerate(zip(bounds.tolist(), counts, strict=True)):
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

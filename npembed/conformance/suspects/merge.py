"""Faults of the way into the language model."""

import re
from functools import partial
from typing import Any

import numpy as np

import npembed
from npembed.conformance.filling import changed_config
from npembed.conformance.suspects.suspect import Fault, Function, Suspect, changed_result
from npembed.support.typing import Array


def _turned_grid(function: Function) -> Function:
    return lambda grid, *args, **kwargs: function(None if grid is None else grid[::-1], *args, **kwargs)


def _text(change: Any) -> Fault:
    """The fault of a changed text: change(text, grid)."""
    return lambda function: lambda grid, *args, **kwargs: change(function(grid, *args, **kwargs), grid)


def _with_id(change: Any) -> Fault:
    """The fault of another number of the picture."""

    def fault(function: Function) -> Function:
        def faulty(grid: Any, image_id: Any = None, *args: Any, **kwargs: Any) -> Any:
            return function(grid, change(image_id), *args, **kwargs)

        return faulty

    return fault


def _ignoring(**fields: Any) -> Fault:
    """The fault of a config whose fields are not looked at."""

    def fault(function: Function) -> Function:
        def faulty(grid: Any, image_id: Any = None, config: Any = npembed.MINICPM_V_2_6, tgt_sizes: Any = None) -> Any:
            return function(grid, image_id, config=changed_config(config, fields), tgt_sizes=tgt_sizes)

        return faulty

    return fault


def _without_newlines(text: str, grid: Any) -> str:
    return text.replace("\n", "")


def _slices_to_images(text: str, grid: Any) -> str:
    return text.replace("slice>", "image>")


PLACEHOLDER = (
    Suspect("the grid is taken as (rows, columns); it is (columns, rows)", _turned_grid),
    Suspect("the newline between rows of slices is missing", _text(_without_newlines)),
    Suspect("there is a newline after the last row of slices", _text(lambda text, grid: text + "\n" * (grid is not None))),
    Suspect(
        "there is a newline before the first slice",
        _text(lambda text, grid: text.replace("</image><slice>", "</image>\n<slice>", 1)),
    ),
    Suspect("the crops have image tokens, not slice tokens", _text(_slices_to_images)),
    Suspect("the picture's number is missing", _with_id(lambda number: None)),
    Suspect("pictures are numbered from 1", _with_id(lambda number: None if number is None else number + 1)),
    Suspect("a picture's number is written where none is given", _with_id(lambda number: number or 0)),
    Suspect("query_num of the config is ignored: it is 64", _ignoring(query_num=64)),
    Suspect("use_image_id of the config is ignored", _ignoring(use_image_id=True)),
    Suspect("a slice has four times its tokens: they are not merged", _text(lambda text, grid: _times(text, 4))),
    Suspect("a slice has a quarter of its tokens", _text(lambda text, grid: _times(text, 0.25))),
)


def _times(text: str, factor: float) -> str:
    """Every run of one token so many times as long."""
    return re.sub(
        r"(<unk>|<\|image_pad\|>|<\|image\|>|(?<!fake_token_around_)<image>(?=<image>))+", lambda run: _run(run, factor), text
    )


def _run(run: "re.Match[str]", factor: float) -> str:
    token = run.group(1)
    return token * int(len(run.group()) / len(token) * factor)


def _bounds_plus(start: int, end: int) -> Fault:
    return changed_result(lambda bounds, *_: np.asarray(bounds + np.array([start, end])))


def _zipped(function: Function) -> Function:
    """Starts and ends are paired in order, to the shorter list's end."""

    def faulty(input_ids: Any, start_ids: Any, end_ids: Any) -> Array:
        ids = np.asarray(input_ids)
        starts, ends = (np.flatnonzero(np.isin(ids, which)) for which in (start_ids, end_ids))
        count = min(len(starts), len(ends))
        return np.stack([starts[:count] + 1, ends[:count]], axis=1)

    return faulty


def _kinds_apart(function: Function) -> Function:
    """All pictures first, then all slices."""

    def faulty(input_ids: Any, start_ids: Any, end_ids: Any) -> Array:
        kinds = [function(input_ids, [start], [end]) for start, end in zip(start_ids, end_ids, strict=True)]
        return np.concatenate(kinds)

    return faulty


def _scattered(change: int, inputs_embeds: Any, vision_tokens: Any, image_bound: Any, *rest: Any) -> Array:
    """The tokens of each slice land `change` places from where they should."""
    result = np.array(inputs_embeds)
    for tokens, start in zip(vision_tokens, np.asarray(image_bound)[:, 0].tolist(), strict=True):
        for place, token in enumerate(tokens, start + change):
            if 0 <= place < len(result):
                result[place] = token
    return result


def _at_the_end(inputs_embeds: Any, vision_tokens: Any, image_bound: Any, *rest: Any) -> Array:
    result = np.array(inputs_embeds)
    tokens = np.concatenate(list(vision_tokens))
    result[len(result) - len(tokens) :] = tokens
    return result


def _in_order_of_place(function: Function) -> Function:
    """The slices take the places in rising order, whatever row each has."""

    def faulty(inputs_embeds: Any, vision_tokens: Any, image_bound: Any, *rest: Any) -> Any:
        bounds = np.asarray(image_bound)
        return function(inputs_embeds, vision_tokens, bounds[np.argsort(bounds[:, 0])], *rest)

    return faulty


def _added(inputs_embeds: Any, vision_tokens: Any, image_bound: Any, *rest: Any) -> Array:
    result = np.array(inputs_embeds)
    for tokens, (start, end) in zip(vision_tokens, np.asarray(image_bound).tolist(), strict=True):
        result[start:end] += tokens
    return result


SUSPECTS: dict[str, tuple[Suspect, ...]] = {
    "image_placeholder": PLACEHOLDER,
    "image_bounds": (
        Suspect("the end is taken as inclusive: it is the place of the end token", _bounds_plus(0, -1)),
        Suspect("the end is one past the end token; it is the token's own place", _bounds_plus(0, 1)),
        Suspect("the start is the start token's place; it is one past it", _bounds_plus(-1, 0)),
        Suspect("starts and ends are paired by the shorter list", _zipped),
        Suspect("pictures come before slices, not in order of place", _kinds_apart),
    ),
    "token_places": (
        Suspect("the end is taken as inclusive: it is the last place", _bounds_plus(0, -1)),
        Suspect("the start is one place too early", _bounds_plus(-1, 0)),
        Suspect("the start is one place too late", _bounds_plus(1, 0)),
    ),
    "scatter_image_embeds": (
        Suspect("the tokens land one place too late", lambda function: partial(_scattered, 1)),
        Suspect("the tokens land one place too early", lambda function: partial(_scattered, -1)),
        Suspect("the tokens are put at the text's end", lambda function: _at_the_end),
        Suspect("the slices take their places in rising order, not by their rows", _in_order_of_place),
        Suspect(
            "the tokens are added to the text's embeddings, not put in their place",
            lambda function: _added,
        ),
    ),
}

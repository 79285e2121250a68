"""What the stages make of each patch: lengths of vectors, which patches the tower and the tokens attend to or are made of."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from npembed.pages.attention import chosen_places, stage_attention, tower_attention
from npembed.pages.drawing import packed, shades, spread
from npembed.pages.steps import Subject
from npembed.records.family import Slices
from npembed.steps.embeddings import embed
from npembed.steps.patches import strip_to_patches
from npembed.support.typing import Floats, Ids

TOWER_NUMBERS = 600_000
"""Weights of the tower's last layer that a page holds, at most; each is a byte."""

TOKEN_NUMBERS = 700_000
"""Weights of tokens that a page holds, at most."""


def seen(subject: Subject, slices: Slices) -> dict[str, Any]:
    """What the page shows of the stages; empty without weights.

    Returns
    -------
    dict
        `maps`: name -> per slice a number for each place. `places`: per slice, the place that each patch is in, where the tower
        merges patches; else None. `tower`, `tokens`, `gathers`: see `_tower`, `_tokens`, `_gathers`; None where there is none.
    """
    model, sizes = subject.model, slices.tgt_sizes
    if model is None:
        return {}
    embeddings = embed(slices.strips, sizes, model, subject.rule)
    found: dict[str, Any] = {"places": None, "tower": None, "tokens": None, "gathers": None}
    maps = _sum_maps(subject, slices, embeddings)
    if subject.until != "embeddings":
        after = subject.family.stage("hidden", "explain").sizes_of(sizes, subject.config)
        merged = bool((after < sizes).any())
        shown = after if merged else sizes
        each = zip(sizes.tolist(), shown.tolist(), strict=True)
        found["places"] = [place_of(*pair).tolist() for pair in each] if merged else None
        hidden, found["tower"] = _tower(embeddings, sizes, shown, subject)
        maps["hidden state"] = [_lengths(*each) for each in zip(hidden, after.tolist(), shown.tolist(), strict=True)]
        means, found["tokens"] = _tokens(hidden, sizes, shown, subject)
        if means:
            maps["attention of the tokens, their mean" if found["tokens"]["count"] > 1 else "attention of the vector"] = means
        found["gathers"] = _gathers(sizes, subject)
    return found | {"maps": {name: [packed(values) for values in each] for name, each in maps.items()}}


def _sum_maps(subject: Subject, slices: Slices, embeddings: Floats) -> dict[str, list[Floats]]:
    """The lengths of the two parts of each embedding, and of their sum."""
    model, sizes = subject.model, slices.tgt_sizes.tolist()
    assert model is not None
    positions, kernels = subject.family.positions(model, slices.tgt_sizes, subject.rule), subject.family.kernels(model)
    products = [strip_to_patches(strip.astype(model.dtype, copy=False)) @ kernels.T for strip in slices.strips]
    parts: dict[str, Sequence[Floats]] = {
        "patch · W": products,
        "position row + bias": list(positions),
        "embedding, their sum": list(embeddings),
    }
    return {name: [_lengths(*pair, pair[1]) for pair in zip(each, sizes, strict=True)] for name, each in parts.items()}


def _lengths(vectors: Floats, size: Sequence[int], shown: Sequence[int]) -> Floats:
    """(Lmax, D), (h, w), (h', w') -> (h', w'): the length of each place's vector; those beyond h' and w' left out."""
    h, w = size
    result: Floats = np.linalg.norm(vectors[: h * w], axis=-1).reshape(h, w)[: shown[0], : shown[1]]
    return result


def place_of(size: Sequence[int], after: Sequence[int]) -> Ids:
    """(h, w), (h', w') -> int64 (h*w,): the place that each patch is in, where squares of patches are merged into one.

    Examples
    --------
    >>> place_of((2, 4), (1, 2)).tolist()
    [0, 0, 1, 1, 0, 0, 1, 1]
    """
    rows, columns = (np.arange(length) * left // length for length, left in zip(size, after, strict=True))
    return (rows[:, None] * after[1] + columns).ravel()


def _tower(embeddings: Floats, sizes: Ids, shown: Ids, subject: Subject) -> tuple[Floats, dict[str, Any]]:
    """The hidden states; and per slice, the size of the tower's last layer, the places that look and what they see.

    `from` are those places, `stands` says for each patch which of them stands for it, and `weights` are theirs, as `shades`.
    """
    assert subject.model is not None
    places, stands = chosen_places(shown, TOWER_NUMBERS)
    hidden, weights = tower_attention(embeddings, sizes, subject.model, places)
    patches = zip(stands, sizes.tolist(), shown.tolist(), strict=True)
    return hidden, {
        "size": shown.tolist(),
        "from": [each.tolist() for each in places],
        "stands": [each[place_of(size, after)].tolist() for each, size, after in patches],
        "weights": [shades(each) for each in weights],
    }


def _tokens(hidden: Floats, sizes: Ids, shown: Ids, subject: Subject) -> tuple[list[Floats], dict[str, Any] | None]:
    """Per slice, the mean of what the tokens attend to, and what some of them attend to: all, where the page can hold them."""
    assert subject.model is not None
    if subject.until == "hidden":
        return [], None
    weights = stage_attention(subject.until, hidden, sizes, subject.model)
    if weights is None:
        return [], None
    count = len(weights[0])
    held = spread(range(count), max(1, TOKEN_NUMBERS // int(shown.prod(axis=1).sum())))
    means = [each.mean(axis=0).reshape(size) for each, size in zip(weights, shown.tolist(), strict=True)]
    return means, {"count": count, "held": held, "size": shown.tolist(), "weights": [shades(each[held]) for each in weights]}


def _gathers(sizes: Ids, subject: Subject) -> list[dict[str, Any]] | None:
    """Per slice, `patches`: those of each token; and `of`: each patch's token. None where the connector attends to patches."""
    gathers = subject.family.stage(subject.until, "explain").gathers
    if gathers is None:
        return None
    found = []
    for patches, length in zip(gathers(sizes, subject.config), sizes.prod(axis=1).tolist(), strict=True):
        of = np.zeros(length, dtype=np.int64)
        tokens, columns = np.nonzero(patches >= 0)
        of[patches[tokens, columns]] = tokens
        found.append({"patches": [[patch for patch in row if patch >= 0] for row in patches.tolist()], "of": of.tolist()})
    return found

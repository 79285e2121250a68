"""Which patches a stage looks at: the attention that a run used, and the patches that tokens are gathered from.

Nothing here computes a stage a second time. It runs with an arithmetic that notes each call of `attend`; `attention_weights`
then gives the weights of the last one.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from npembed.records.arithmetic import EXACT
from npembed.records.model import Model
from npembed.steps.encoder import encode
from npembed.support.typing import Floats, Ids

Attended = tuple[Floats, Floats, int]
"""What one call of `attend` gets: its queries, its keys and how many heads."""


def watched(model: Model, tell: Callable[[Attended], None]) -> Model:
    """The model, of whose attention `tell` is given what each call attends with."""
    attend = model.ops.attend

    def noted(queries: Floats, keys: Floats, values: Floats, heads: int) -> Floats:
        tell((queries, keys, heads))
        return attend(queries, keys, values, heads)

    return model.with_ops(model.ops.changed(attend=noted))


def tower_attention(
    embeddings: Floats, tgt_sizes: Ids, model: Model, places: Sequence[ArrayLike] | None = None
) -> tuple[Floats, list[Floats]]:
    """(B, Lmax, D), (B, 2) -> what `encode` gives, and per slice (M, L): how far places attend to each other in its last layer.

    Parameters
    ----------
    embeddings : float (B, Lmax, D)
        As `embed` gives them.
    tgt_sizes : int64 (B, 2)
    model : Model
    places : sequence of int64 (M,), optional
        Per slice, the places that look; all by default. A place is a patch, or a window of patches where the tower merges them.

    Returns
    -------
    hidden : float (B, Lmax', D)
    weights : list of float (M, L)
        The mean over the heads. A row adds up to 1, but for what goes to places that are no patches (SPEC 13.2).

    Raises
    ------
    ValueError, TypeError
        As `encode`.

    Examples
    --------
    >>> from npembed import FAMILIES, random_model
    >>> tiny = random_model(FAMILIES["siglip"].small(), until="hidden")
    >>> hidden, (weights,) = tower_attention(np.ones((1, 729, 16)), np.array([[27, 27]]), tiny, [np.array([0, 40])])
    >>> hidden.shape, weights.shape
    ((1, 729, 16), (2, 729))
    """
    now: list[Attended] = []
    layers: list[list[Attended]] = [[] for _ in tgt_sizes]

    def stepped(done: int, total: int) -> None:
        """A step is done: what it attended to, if it did, is the last so far of its slice."""
        if now:
            layers[(done - 1) * len(layers) // total] = now.copy()
            now.clear()

    hidden = encode(embeddings, tgt_sizes, watched(model, now.append), progress=stepped)
    after = model.config.family.stage("hidden", "tower_attention").sizes_of(tgt_sizes, model.config)
    wanted = [None] * len(layers) if places is None else [np.asarray(each) for each in places]
    each = zip(layers, tgt_sizes.tolist(), after.tolist(), wanted, strict=True)
    return hidden, [_of_layer(calls, _groups(model, size, left), looking) for calls, size, left, looking in each]


def _groups(model: Model, size: Sequence[int], after: Sequence[int]) -> list[Ids]:
    """The places of each group that attends to itself alone in the last layer."""
    groups = model.config.family.groups((size[0], size[1]))
    return [np.arange(after[0] * after[1])] if groups is None else [each.ravel() for each in groups]


def _of_layer(calls: Sequence[Attended], groups: Sequence[Ids], looking: Ids | None) -> Floats:
    """(M, L): a layer's weights; 0 between places of different groups."""
    length = sum(map(len, groups))
    looking = np.arange(length) if looking is None else looking
    weights = np.zeros((len(looking), length), dtype=calls[0][0].dtype)
    for (queries, keys, heads), group in zip(calls, groups, strict=True):
        rows = np.flatnonzero(np.isin(looking, group))
        within = np.searchsorted(group, looking[rows])  # places of a group rise
        weights[np.ix_(rows, group)] = EXACT.attention_weights(queries[within], keys, heads)[:, : len(group)]
    return weights


def stage_attention(stage: str, hidden: Floats, tgt_sizes: Ids, model: Model) -> list[Floats] | None:
    """(B, Lmax', D), (B, 2) -> per slice (Q, L): how far each token attends to each place, in the last layer that attends.

    Parameters
    ----------
    stage : str
        The stage that reads the hidden states: "tokens" or "pooled".
    hidden : float (B, Lmax', D)
        As `encode` gives them.
    tgt_sizes : int64 (B, 2)
    model : Model

    Returns
    -------
    list of float (Q, L), or None
        The mean over the heads; a row adds up to 1, but for what tokens attend to beside places (SPEC 13.5). None for a stage
        without attention.

    Raises
    ------
    ValueError, TypeError
        A stage that the family has not, and as that stage's function.

    Examples
    --------
    >>> from npembed import FAMILIES, random_model
    >>> tiny = random_model(FAMILIES["siglip"].small(), until="pooled")
    >>> (weights,) = stage_attention("pooled", np.ones((1, 729, 16)), np.array([[27, 27]]), tiny)
    >>> weights.shape, weights.sum().round(6).item()
    ((1, 729), 1.0)
    """
    family, calls = model.config.family, list[Attended]()
    family.stage(stage, "stage_attention").call({"hidden": hidden, "tgt_sizes": tgt_sizes}, watched(model, calls.append))
    if not calls:
        return None
    lengths = family.stage("hidden", "stage_attention").sizes_of(tgt_sizes, model.config).prod(axis=1).tolist()
    layers = len(calls) // len(lengths)  # as many in each slice
    return [EXACT.attention_weights(*calls[(number + 1) * layers - 1])[:, :length] for number, length in enumerate(lengths)]


def chosen_places(sizes: Ids, most: int) -> tuple[list[Ids], list[Ids]]:
    """(B, 2) -> places whose weights a page can hold, evenly spread; and per place, which of these stands for it.

    So many per slice that a number for each of their pairs with a place of the slice is at most `most` numbers in all, but at
    least one in each slice.

    Examples
    --------
    >>> (places,), (stands,) = chosen_places(np.array([[2, 4]]), 16)
    >>> places.tolist(), stands.tolist()
    ([5, 7], [0, 0, 1, 1, 0, 0, 1, 1])
    """
    step = 1
    while step < sizes.max() and sum(-(-h // step) * -(-w // step) * h * w for h, w in sizes.tolist()) > most:
        step += 1
    found = [_spread(h, w, step) for h, w in sizes.tolist()]
    return [places for places, _ in found], [stands for _, stands in found]


def _spread(h: int, w: int, step: int) -> tuple[Ids, Ids]:
    """The middle place of each square of so many rows and columns; and per place, the number of its square."""
    rows, columns = (np.minimum(np.arange(0, length, step) + step // 2, length - 1) for length in (h, w))
    places = (rows[:, None] * w + columns).ravel()
    stands = (np.arange(h) // step)[:, None] * len(columns) + np.arange(w) // step
    return places, stands.ravel()

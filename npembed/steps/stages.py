"""The stages of the path that the families share, as records; and what runs a family's stages one after the other."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from npembed.records.config import FamilyConfig
from npembed.records.family import Promise, Stage
from npembed.records.model import Model, as_model
from npembed.steps.embeddings import embed, embedding_shapes
from npembed.steps.encoder import encode, tower_shapes
from npembed.steps.into_text import image_bounds, scatter_image_embeds, token_places
from npembed.steps.padding import pad_pixel_values, patch_attention_mask
from npembed.support import arguments
from npembed.support.typing import Array, Ids, Shapes

Progress = Callable[[int, int], None]
"""Called with how many of a stage's steps are done, and of how many."""


def _sliced_sizes(picture: Any, config: FamilyConfig, pixels: str) -> Ids:
    return config.family.cut(picture, config, pixels).tgt_sizes


def _sliced_strips(picture: Any, config: FamilyConfig, pixels: str) -> Array:
    return np.concatenate(config.family.cut(picture, config, pixels).strips, axis=-1)  # (C, P, sum of L_i*P)


SLICED_TGT_SIZES = Stage(
    name="sliced_tgt_sizes",
    function=_sliced_sizes,
    takes=("picture", "config", "pixels"),
    axes="(B, 2)",
    about="rows and columns of patches of each slice that the picture is cut into, in the family's order",
)
SLICED_STRIPS = Stage(
    name="sliced_strips",
    function=_sliced_strips,
    takes=("picture", "config", "pixels"),
    axes="(C, P, sum of L_i*P)",
    about="the normalised pixels of those slices, each as a strip of patches, laid end to end",
)
PIXEL_VALUES = Stage(
    name="pixel_values",
    function=pad_pixel_values,
    takes=("strips.*",),
    axes="(B, C, P, Lmax*P)",
    about="the strips as one batch, each followed by zeros",
)
PATCH_ATTN_MASK = Stage(
    name="patch_attn_mask",
    function=patch_attention_mask,
    takes=("tgt_sizes",),
    axes="(B, 1, Lmax)",
    about="true on the first h*w places of each slice",
)


def _family_ids(tgt_sizes: Any, config: FamilyConfig, rule: str | None) -> Ids:
    """The rows of the position table, as the family numbers its patches."""
    return config.family.position_ids(arguments.as_tgt_sizes(tgt_sizes, "position_ids"), config, rule)


POSITION_IDS = Stage(
    name="position_ids",
    function=_family_ids,
    takes=("tgt_sizes", "config", "rule"),
    by_rule=True,
    axes="(B, Lmax)",
    about="for each patch its row of the position table, row * G + column",
)
EMBEDDINGS = Stage(
    name="embeddings",
    function=embed,
    takes=("strips.*", "tgt_sizes", "model", "rule"),
    arrays=embedding_shapes,
    sizes=lambda tgt_sizes, config: tgt_sizes,
    padding=lambda model, tgt_sizes: model.position_plus_bias[0],
    promise=Promise.COMPONENTWISE,
    by_rule=True,
    axes="(B, Lmax, D)",
    about="each patch as a vector: the convolution of its pixels, plus the bias, plus its position",
)


def hidden_stage(arrays: Callable[[Any], Shapes], sizes: Callable[[Ids, Any], Ids] | None = None) -> Stage:
    """The stage `hidden`: the family's tower, which reads these arrays and leaves so many rows and columns of places."""
    after = sizes or (lambda tgt_sizes, config: tgt_sizes)
    return Stage(
        name="hidden",
        function=encode,
        takes=("embeddings", "tgt_sizes", "model"),
        arrays=arrays,
        sizes=after,
        compares_padding=False,
        companions=lambda tgt_sizes, config: {"hidden_sizes": after(tgt_sizes, config).copy()},
        promise=Promise.DISTANCE,
        steps=True,
        axes="(B, Lmax', D)",
        about="the hidden states after the vision tower and its last norm",
    )


HIDDEN = hidden_stage(lambda config: tower_shapes(config, config.encoder_layers))
"""Of a tower that is every layer that the config does not leave out, then the last norm."""


def tokens_stage(
    function: Callable[..., Array],
    arrays: Callable[[Any], Shapes],
    counts: Callable[[Ids, Any], Ids],
    gathers: Callable[[Ids, Any], list[Ids]] | None = None,
) -> Stage:
    """The stage `tokens`: a connector from hidden states to so many vision tokens per result, `counts` (N,)."""

    def places(tgt_sizes: Ids, config: Any) -> Ids:
        each = counts(tgt_sizes, config)
        return np.stack([each, np.ones_like(each)], axis=1)

    return Stage(
        name="tokens",
        function=function,
        takes=("hidden", "tgt_sizes", "model"),
        arrays=arrays,
        sizes=places,
        companions=lambda tgt_sizes, config: {"token_counts": counts(tgt_sizes, config)},
        promise=Promise.DISTANCE,
        gathers=gathers,
        axes="(B, Q, E)",
        about="the vision tokens of each slice",
    )


IMAGE_BOUND = Stage(
    name="image_bound",
    function=image_bounds,
    takes=("input_ids", "start_ids", "end_ids"),
    axes="(N, 2)",
    about="where each slice's vision tokens go in the text: from, and one past the last",
)
INPUTS_EMBEDS = Stage(
    name="inputs_embeds",
    function=scatter_image_embeds,
    takes=("text_embeds", "vision_tokens", "image_bound"),
    axes="(T, E)",
    about="the text's embeddings with each slice's vision tokens in their places",
)
TOKEN_PLACES = replace(IMAGE_BOUND, function=token_places, takes=("input_ids", "image_token_id", "token_counts"))
"""In place of `IMAGE_BOUND`, for a family that finds its places by the token that is repeated."""
INPUTS_EMBEDS_BY_COUNT = replace(INPUTS_EMBEDS, takes=(*INPUTS_EMBEDS.takes, "token_counts"))
"""In place of `INPUTS_EMBEDS`, for a family whose slices differ in their numbers of tokens."""


def as_bytes(text: str) -> Array:
    """A text as the array that a stage gives: uint8, in UTF-8."""
    return np.frombuffer(text.encode(), dtype=np.uint8)


def _text(grid: Array, image_id: Any, config: FamilyConfig) -> Array:
    return as_bytes(config.family.placeholder((int(grid[0]), int(grid[1])), int(image_id), config))


TEXT = Stage(
    name="text",
    function=_text,
    takes=("grid", "image_id", "config"),
    axes="(bytes,)",
    about="the text that stands for the picture, in UTF-8",
)

TO_THE_MASK = (SLICED_TGT_SIZES, SLICED_STRIPS, PIXEL_VALUES, PATCH_ATTN_MASK)
BEFORE_THE_TOWER = (*TO_THE_MASK, POSITION_IDS)
"""From a picture to what the embeddings read."""


def run(
    strips: Sequence[ArrayLike],
    tgt_sizes: ArrayLike,
    model: Model,
    until: str | None = None,
    rule: str | None = None,
    *,
    progress: Progress | None = None,
    patches_at_once: int = 1,
) -> dict[str, Array]:
    """list of (C, P, L_i*P), (B, 2) -> every stage of the model's family in turn, as arrays by name.

    Parameters
    ----------
    strips : sequence of float (C, P, L_i*P)
        As `slice_image` gives them. NaN and infinity are passed on, and stay in their slice.
    tgt_sizes : int (B, 2)
        Rows and columns of patches per slice.
    model : Model
    until : str, optional
        The last stage; without it, the last whose arrays the model has.
    rule : str, optional
        A name in `RULES`; without it, the rule of the model's family.
    progress : callable, optional
        Called after each step of a long stage with how many are done, and of how many.
    patches_at_once : int
        How many the vision tower takes together, as `encode` says.

    Returns
    -------
    dict of str to array
        `embeddings`, and `hidden`, `tokens` or `pooled` as far as asked; `patch_attn_mask` (B, 1, Lmax), `position_ids`
        (B, Lmax), `tgt_sizes` (B, 2); with hidden states their `hidden_sizes` (B, 2), with tokens `token_counts` (B,).

    Raises
    ------
    ValueError, TypeError
        A stage that the family has not, and what the stages themselves refuse.

    Examples
    --------
    >>> from npembed import Config, VisionConfig, random_model
    >>> tiny = random_model(Config(vision=VisionConfig(hidden_size=8, num_attention_heads=2, patch_size=2, image_size=6)))
    >>> arrays = run([np.zeros((3, 2, 8))], [[2, 2]], tiny)
    >>> {name: array.shape for name, array in arrays.items()}
    {'embeddings': (1, 4, 8), 'patch_attn_mask': (1, 1, 4), 'position_ids': (1, 4), 'tgt_sizes': (1, 2)}
    """
    who = "run"
    family = as_model(model, who).config.family
    sizes = arguments.as_tgt_sizes(tgt_sizes, who)
    stages = family.stages_until(last_stage(model) if until is None else until, who)
    values: dict[str, Any] = {"strips.*": strips, "tgt_sizes": sizes, "rule": rule}
    of_steps = {"progress": progress, "patches_at_once": patches_at_once}
    for stage in stages:
        values[stage.name] = stage.call(values, model, **(of_steps if stage.steps else {}))
    return {stage.name: values[stage.name] for stage in stages} | companions(stages, sizes, model, rule)


def last_stage(model: Model) -> str:
    """The name of the last stage whose arrays, and those of the stages before it, the model has."""
    stages = model.config.family.vision_stages
    have = [stage.name for number, stage in enumerate(stages) if not any(map(model.missing, stages[: number + 1]))]
    return have[-1] if have else stages[0].name


def companions(
    stages: Sequence[Stage],
    tgt_sizes: Ids,
    model: Model,
    rule: str | None = None,
    batches: Sequence[int] | None = None,
) -> dict[str, Array]:
    """What goes with those stages' results: the mask, the ids, the sizes, and each stage's own.

    For results that are joined, `batches` says how many slices each call had: a family's ids may depend on it (SPEC 13.2).
    A family whose position table is interpolated has no ids.
    """
    arrays: dict[str, Array] = {"patch_attn_mask": patch_attention_mask(tgt_sizes)}
    if any(stage.name == "position_ids" for stage in model.config.family.stages):
        arrays["position_ids"] = _ids_of_calls(tgt_sizes, model, rule, batches or [len(tgt_sizes)])
    arrays["tgt_sizes"] = tgt_sizes.copy()
    for stage in stages:
        arrays |= stage.companions(tgt_sizes, model.config)
    return arrays


def _ids_of_calls(tgt_sizes: Ids, model: Model, rule: str | None, batches: Sequence[int]) -> Ids:
    """(B, Lmax): the ids of calls of so many slices each, 0 where a call's own have ended."""
    ids = np.zeros((len(tgt_sizes), int(tgt_sizes.prod(axis=1).max())), dtype=np.int64)
    ends = np.cumsum(batches)
    for rows, sizes in zip(np.split(ids, ends[:-1]), np.split(tgt_sizes, ends[:-1]), strict=True):
        own = POSITION_IDS.call({"tgt_sizes": sizes, "rule": rule}, model)
        rows[:, : own.shape[1]] = own
    return ids


def join(stage: Stage, batches: Sequence[Array], model: Model, tgt_sizes: Ids, *, free: bool = False) -> Array:
    """(N_i, L_i, ...) -> (sum of N_i, max of L_i, ...): results of one stage from several calls, as from one call.

    The new places hold what the stage leaves in padding, which may depend on the slice's row of `tgt_sizes`, those of all the
    calls in order. A result without places, (N_i, D), is laid end to end. With `free`, `batches` is a list that is emptied, so
    that each result is in memory once.
    """
    if stage.sizes is None:
        return np.concatenate(batches)
    filling = np.asarray(stage.padding(model, tgt_sizes))
    longest = max(batch.shape[1] for batch in batches)
    joined = np.empty((sum(map(len, batches)), longest, *batches[0].shape[2:]), dtype=batches[0].dtype)
    start = 0
    for batch in _one_by_one(batches) if free else batches:
        rows = joined[start : start + len(batch)]
        rows[:, : batch.shape[1]] = batch
        rows[:, batch.shape[1] :] = filling[start : start + len(batch)] if filling.ndim == 3 else filling
        start += len(batch)
    return joined


def _one_by_one(batches: Any) -> Iterator[Array]:
    """The list's elements in order; it lets each go before the next."""
    batches.reverse()
    while batches:
        yield batches.pop()

"""The stages chained by name, from strips to the last one that is asked for."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npembed.embeddings import embed
from npembed.encoder import encode
from npembed.model import STAGES, Model, check_stage
from npembed.resampler import resample

Progress: TypeAlias = Callable[[int, int], None]
"""Called with how many of the encoder's layers are done, and of how many."""


def run(
    strips: Sequence[ArrayLike],
    tgt_sizes: ArrayLike,
    model: Model,
    until: str = "embeddings",
    rule: str = "arange",
    progress: Progress | None = None,
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Each stage's name and result in turn, up to and with `until`.

    Parameters
    ----------
    strips : sequence of float (C, P, L_i*P)
    tgt_sizes : int (B, 2)
    model : Model
    until : {"embeddings", "hidden", "tokens"}
    rule : str
        A name in `RULES`.
    progress : callable, optional
        Told of the encoder's layers.

    Yields
    ------
    str, float array
        "embeddings" (B, Lmax, D), "hidden" (B, Lmax, D), "tokens" (B, Q, E).

    Raises
    ------
    ValueError, TypeError
        An unknown stage, and what the stages themselves refuse.

    Examples
    --------
    >>> from npembed import Config, VisionConfig, random_model
    >>> tiny = random_model(Config(vision=VisionConfig(hidden_size=8, num_attention_heads=2, patch_size=2, image_size=6)))
    >>> [(stage, result.shape) for stage, result in run([np.zeros((3, 2, 8))], [[2, 2]], tiny)]
    [('embeddings', (1, 4, 8))]
    """
    last = STAGES.index(check_stage(until, "run"))
    result = embed(strips, tgt_sizes, model, rule)
    yield "embeddings", result
    if last >= STAGES.index("hidden"):
        result = encode(result, tgt_sizes, model, progress=progress)
        yield "hidden", result
    if last >= STAGES.index("tokens"):
        yield "tokens", resample(result, tgt_sizes, model)


def join(stage: str, batches: Sequence[NDArray[Any]], model: Model) -> NDArray[Any]:
    """Results of one stage from several calls -> what one call for all their slices would give.

    Parameters
    ----------
    stage : {"embeddings", "hidden", "tokens"}
    batches : sequence of float (B_i, L_i, D), or (B_i, Q, E) for tokens
    model : Model

    Returns
    -------
    float (sum of B_i, max of L_i, D)
        The new places hold what that stage leaves in padding.
    """
    if check_stage(stage, "join") == "tokens":
        return np.concatenate(batches)
    longest = max(batch.shape[1] for batch in batches)
    filler = model.position_plus_bias[0] if stage == "embeddings" else np.zeros((), dtype=model.dtype)
    joined = np.empty((sum(map(len, batches)), longest, batches[0].shape[2]), dtype=model.dtype)
    start = 0
    for batch in batches:
        stop = start + len(batch)
        joined[start:stop, : batch.shape[1]] = batch
        joined[start:stop, batch.shape[1] :] = filler
        start = stop
    return joined

"""What the stages of a case read: made by name from the records of the family and its stages."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from npembed.conformance.filling import fill, sizes_of
from npembed.conformance.golden.cases import MAX_PATCHES, Case, picture
from npembed.records.family import Stage
from npembed.records.model import Model
from npembed.support.typing import Array, Ids

PLACE_ID, OTHER_IDS = 294, range(290, 294)
"""The token id that stands for one vision token, and those of the marks around."""


@dataclass(frozen=True)
class Input:
    """One tensor, or one per slice, that a pack gives to a port.

    Attributes
    ----------
    axes : str
        Its shape in the letters of SPEC 0.
    about : str
        What it is.
    make : callable
        (case, model) -> the array; for a name that ends in "*", a list of arrays.
    """

    axes: str
    about: str
    make: Callable[[Case, Model], Any]


def case_inputs(case: Case, model: Model, stages: Sequence[Stage]) -> dict[str, Array]:
    """The tensors that those stages read and no earlier one of them gives."""
    given = {stage.name for stage in stages}
    names = dict.fromkeys(name for stage in stages for name in stage.reads if name not in given)
    inputs: dict[str, Array] = {}
    for name in names:
        made = INPUTS[name].make(case, model)
        if name.endswith("*"):
            inputs |= {name.replace("*", str(number)): array for number, array in enumerate(made)}
        else:
            inputs[name] = np.asarray(made)
    return inputs


def _sizes(case: Case, model: Model) -> Ids:
    """The case's sizes, as the family's slices have them."""
    config = model.config
    return sizes_of(*config.family.case_sizes(case.sizes, config))


def _strips(case: Case, model: Model) -> Sequence[Array]:
    """Each slice with pixels of its own."""
    vision, sizes = model.config.vision, _sizes(case, model).tolist()
    return [
        fill(case.kind, len(sizes), vision.num_channels, vision.patch_size, h * w * vision.patch_size)[number]
        for number, (h, w) in enumerate(sizes)
    ]


def _canvas_mask(case: Case, model: Model) -> Array:
    """Each slice at the top left of a canvas that has a row and a column more than the largest."""
    sizes = _sizes(case, model)
    rows, columns = (np.arange(length + 1) for length in sizes.max(axis=0))
    return (rows[:, None] < sizes[:, :1, None]) & (columns < sizes[:, 1:, None])


def _padded_with_nan(case: Case, model: Model, places: Ids) -> Array:
    """One array of states for each of those places; NaN where a slice has ended."""
    longest = int(places.prod(axis=1).max())
    states = fill(case.kind, len(places), longest, model.config.vision.hidden_size)
    states[np.arange(longest) >= places.prod(axis=1)[:, None]] = np.nan
    return states


def _embeddings(case: Case, model: Model) -> Array:
    return _padded_with_nan(case, model, _sizes(case, model))


def _hidden(case: Case, model: Model) -> Array:
    hidden = next(stage for stage in model.config.family.stages if stage.name == "hidden")
    return _padded_with_nan(case, model, hidden.sizes_of(_sizes(case, model), model.config))


GROUPS = ([-1], [0, 4], [71_999, 0, 7])
"""The times of frames, group by group; -1 is a picture."""


def _frame_hidden(case: Case, model: Model) -> Array:
    sizes = _sizes(case, model)
    return fill(case.kind, len(sizes), int(sizes.prod(axis=1).max()), model.config.vision.hidden_size)


def _token_ids(case: Case, model: Model) -> Ids:
    """A text's ids: with a picture and a crop in it, or, for a family that counts places, with every slice of the case."""
    family = model.config.family
    if any("token_counts" in stage.reads for stage in family.stages):
        counts = family.stage("tokens", "golden write").sizes_of(_sizes(case, model), model.config).prod(axis=1)
        ids = [number for count in counts.tolist() for number in (OTHER_IDS[0], *[PLACE_ID] * count, OTHER_IDS[1])]
    else:
        ids = _ids_of_marks(family.placeholder((1, 1), None, model.config, None))
    return np.array([7, 8, *ids, 9])


def _ids_of_marks(text: str) -> list[int]:
    """An id for each mark of a placeholder text, those around the places in order of their first appearance."""
    marks = re.findall(r"<[^<>]+>", text)
    others = [mark for mark in dict.fromkeys(marks) if mark != "<unk>"]
    ids = {"<unk>": PLACE_ID, **dict(zip(others, OTHER_IDS, strict=False))}
    return [ids[mark] for mark in marks]


def _runs(ids: Ids) -> Ids:
    """(T,) -> (N, 2): where each run of places starts, and one past its end."""
    edges = np.diff(np.concatenate([[0], ids == PLACE_ID, [0]]))
    return np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)], axis=1)


def _counts(case: Case, model: Model) -> Ids:
    """(N,) the vision tokens of each of the text's slices."""
    return np.diff(_runs(_token_ids(case, model)), axis=1)[:, 0]


def _start_ids(case: Case, model: Model) -> Ids:
    """The ids that stand directly before places."""
    ids = _token_ids(case, model)
    return np.unique(ids[_runs(ids)[:, 0] - 1])


def _end_ids(case: Case, model: Model) -> Ids:
    """The ids that stand directly after places."""
    ids = _token_ids(case, model)
    return np.unique(ids[_runs(ids)[:, 1]])


def _vision_tokens(case: Case, model: Model) -> Array:
    """What lies beyond a slice's own count is filled too: no port may take it."""
    counts = _counts(case, model)
    return fill("ramp", len(counts), int(counts.max()), model.config.embed_dim)


INPUTS: dict[str, Input] = {
    "picture": Input("(H, W, 3)", "a picture's pixels, red, green and blue", lambda case, model: picture(case)),
    "tgt_sizes": Input("(B, 2)", "rows and columns of patches of each slice", _sizes),
    "strips.*": Input(
        "(C, P, L*P)", "the pixels of slice *, normalised: its L = h*w patches side by side, row by row of the slice", _strips
    ),
    "grid": Input("(2,)", "columns and rows of crops", lambda case, model: np.array([3, 2])),
    "image_id": Input("()", "the picture's number in the conversation", lambda case, model: np.array(0)),
    "input_ids": Input("(T,)", "a text's token ids, with places for vision tokens", _token_ids),
    "start_ids": Input("(K,)", "the ids that open an image or a slice", _start_ids),
    "end_ids": Input("(K,)", "the ids that close an image or a slice", _end_ids),
    "image_token_id": Input("()", "the id that stands for one vision token", lambda case, model: np.array(PLACE_ID)),
    "token_counts": Input("(N,)", "vision tokens of each slice of the text", _counts),
    "text_embeds": Input(
        "(T, E)",
        "the embeddings of the text's tokens",
        lambda case, model: fill("mixed", len(_token_ids(case, model)), model.config.embed_dim),
    ),
    "vision_tokens": Input("(N, Q, E)", "vision tokens to put into the text; not the stage `tokens`", _vision_tokens),
    "patch_mask": Input("(B, H, W)", "true where a slice has a patch", _canvas_mask),
    "embeddings": Input("(B, Lmax, D)", "embeddings to begin with, in place of the stage's; NaN in padded places", _embeddings),
    "hidden": Input("(B, Lmax', D)", "hidden states to begin with, in place of the stage's; NaN in padded places", _hidden),
    "frame_hidden": Input("(B, Lmax, D)", "hidden states of frames; what is in padded places says nothing", _frame_hidden),
    "frame_times": Input("(B,)", "when each frame is; -1 for a picture", lambda case, model: np.concatenate(GROUPS)),
    "frame_groups": Input(
        "(N,)", "how many frames each group has, in order", lambda case, model: np.array([len(group) for group in GROUPS])
    ),
    "num_patches": Input("(M,)", "n = 1 ... M", lambda case, model: np.arange(1, MAX_PATCHES + 1)),
    "num_patches_per_side": Input(
        "()",
        "G, the rows of the position table per side",
        lambda case, model: np.array(model.config.vision.num_patches_per_side),
    ),
}
"""Every tensor that a stage of any family reads from a pack, by its name."""

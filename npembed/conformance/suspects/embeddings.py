"""Faults of the embeddings, for a model of any family."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

import npembed
from npembed.conformance.suspects import positions
from npembed.conformance.suspects.suspect import (
    Fault,
    Function,
    Suspect,
    changed_arrays,
    changed_model,
    changed_result,
    with_family,
)
from npembed.records.model import Model
from npembed.steps.patches import patches_to_strip, strip_to_patches
from npembed.support.typing import Array, Ids

KERNELS, BIAS = "embeddings.patch_embedding.weight", "embeddings.patch_embedding.bias"


def _padded(tgt_sizes: Any) -> Array:
    return ~npembed.patch_attention_mask(tgt_sizes)[:, 0]


def _bias_in_padding(result: Array, strips: Any, tgt_sizes: Any, model: Model, *_: Any) -> Array:
    """No position is added where there is no patch: the padding holds the bias alone."""
    result[_padded(tgt_sizes)] = model.weights[f"{model.tower}{BIAS}"]
    return result


def _empty_padding(result: Array, strips: Any, tgt_sizes: Any, *_: Any) -> Array:
    result[_padded(tgt_sizes)] = 0
    return result


def _ones_in_padding(result: Array, strips: Any, tgt_sizes: Any, model: Model, *_: Any) -> Array:
    """The strips are padded with 1: the padding holds the sum of each kernel, too."""
    result[_padded(tgt_sizes)] += model.config.family.kernels(model).sum(axis=1)
    return result


def _column_major(function: Function) -> Function:
    """The strip's patches are taken column by column of the picture."""

    def faulty(strips: Any, tgt_sizes: Any, *args: Any, **kwargs: Any) -> Array:
        turned = []
        for strip, (h, w) in zip(strips, np.asarray(tgt_sizes).tolist(), strict=True):
            order = np.arange(h * w).reshape(w, h).T.ravel()
            turned.append(patches_to_strip(strip_to_patches(strip)[order], strip.shape[1]))
        return np.asarray(function(turned, tgt_sizes, *args, **kwargs))

    return faulty


def _by_rows(change: Callable[[Array], Array], kernels: Array) -> Array:
    """A change of kernels (D, C, P, P)."""
    return change(kernels) if kernels.ndim == 4 else kernels


def _with_ids(fault: Fault) -> Fault:
    """Rows of the position table by faulty ids: the family's own with that fault."""

    def change(model: Model) -> Model:
        faulty = fault(positions.family_ids(model.config.family))

        def ids(tgt_sizes: Ids, config: Any, rule: Any) -> Ids:
            return np.asarray(faulty(tgt_sizes, config.vision.num_patches_per_side, rule=rule))

        return with_family(model, position_ids=ids)

    return changed_model(change)


def _suspects() -> tuple[Suspect, ...]:
    words = "the position ids: "
    rules = positions.by_rule("matches rule", positions.ids_under)
    ids = (*rules, *positions.of_buckets(), *positions.ids_suspects())
    return (
        Suspect("the padding holds the bias alone; upstream adds position 0", changed_result(_bias_in_padding)),
        Suspect("the padding holds zeros; upstream's holds bias + position 0", changed_result(_empty_padding)),
        Suspect("the strips are padded with 1, not 0", changed_result(_ones_in_padding)),
        Suspect("the bias is missing", changed_arrays(np.zeros_like, BIAS)),
        Suspect("the kernels are transposed", changed_arrays(lambda k: _by_rows(lambda w: w.swapaxes(2, 3), k), KERNELS)),
        Suspect("the channels are reversed", changed_arrays(lambda k: _by_rows(lambda w: w[:, ::-1], k), KERNELS)),
        Suspect(
            "the kernels are turned by 180 degrees",
            changed_arrays(lambda k: _by_rows(lambda w: w[:, :, ::-1, ::-1], k), KERNELS),
        ),
        Suspect("the positions are missing", changed_arrays(np.zeros_like, "position_embedding.weight")),
        Suspect("the strips are read column by column", _column_major),
        *(replace(each, kind=words + each.kind, fault=_with_ids(each.fault)) for each in ids),
    )


SUSPECTS = {"embed": _suspects()}

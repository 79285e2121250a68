"""Checks of one family's functions: the reference passes, and the faults that released ports of it had are caught and named."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import npembed
from npembed import FAMILIES
from npembed.conformance import Status, check_function, check_port
from npembed.conformance.port import checks_of
from npembed.conformance.suspects import SUSPECTS
from npembed.conformance.trial import Trial
from npembed.records.arithmetic import EXACT
from npembed.records.model import Model
from npembed.support.typing import Array


def reference(key: str) -> SimpleNamespace:
    return SimpleNamespace(**{check.attribute: check.reference for check in checks_of(key).values()})


@pytest.mark.parametrize("key", FAMILIES)
def test_the_reference_passes_its_familys_check(key: str) -> None:
    outcomes = check_port(reference(key), family=key, require=checks_of(key), examples=2)
    assert {outcome.name: outcome.summary for outcome in outcomes if outcome.status is not Status.PASS} == {}


def test_a_family_of_one_size_is_checked_with_few_patches() -> None:
    outcomes = check_port(reference("siglip"), family="siglip", stage=["pooled", "embed"], examples=0)
    assert [(outcome.name, outcome.status) for outcome in outcomes] == [("embed", Status.PASS), ("pool", Status.PASS)]


WILD = (
    ("minicpm-v-2.5", "embed", "the position ids: the ids have two dimensions, as MiniCPM-V 2.6's"),
    ("minicpm-v-2.5", "position_ids", "the ids have two dimensions, as MiniCPM-V 2.6's"),
    ("minicpm-v-2.5", "embed", "the position ids: the ids go by each slice's own number of patches"),
    ("minicpm-v-2.5", "position_ids", "the ids go by each slice's own number of patches"),
    ("minicpm-v-2.5", "position_ids", "the boundaries are those of G - 1"),
    ("minicpm-v-4.5", "resample", "the positions are added to the values in place of the keys"),
    ("minicpm-v-4.5", "resample_frames", "the positions are added to the values in place of the keys"),
    ("minicpm-v-4.5", "resample_frames", "the times of frames are not looked at"),
    ("minicpm-v-4.5", "resample_frames", "the frames of a group are numbered 0, 1, 2 in place of their times"),
    ("minicpm-v-4.5", "resample_frames", "only the first frame of a group is looked at"),
    ("minicpm-v-4.6", "position_ids", "matches rule `arange`, not `quotient`"),
    ("minicpm-v-4.6", "position_ids", "G is taken as 70, whatever is given"),
    ("minicpm-v-4.6", "embed", "the position ids: matches rule `arange`, not `quotient`"),
    ("minicpm-v-4.6", "embed", "the position ids: equals the reference with h and w swapped"),
    ("minicpm-v-4.6", "encode", "the window merger's norms have eps 1e-6, whatever the config says"),
    ("minicpm-v-4.6", "encode", "eps 1e-5 in the window merger's layer_norm1 alone"),
    ("minicpm-v-4.6", "encode", "eps 1e-5 in the window merger's pre_norm alone"),
    ("minicpm-v-4.6", "encode", "the window merger is left out: the mean of each window stays"),
    ("minicpm-v-4.6", "merge_patches", "h and w are exchanged in the windows"),
    ("minicpm-v-4.6", "merge_patches", "gelu in its tanh form, not the erf form"),
    ("minicpm-v-4.6", "image_placeholder", "a slice has a quarter of its tokens"),
    ("idefics3", "position_ids", "the ids stand at the first places of a canvas, the patches at those of its mask"),
    ("idefics3", "embed", "the position ids: the ids stand at the first places of a canvas, the patches at those of its mask"),
    ("idefics2", "position_ids", "matches rule `digitize`, not `step`"),
    ("idefics2", "embed", "the position ids: matches rule `digitize`, not `step`"),
    ("phi-4-multimodal", "position_ids", "the ids have two dimensions, as MiniCPM-V 2.6's"),
    ("phi-4-multimodal", "image_placeholder", "a slice has a quarter of its tokens"),
    ("phi-4-multimodal", "position_ids", "row and column are exchanged in the id"),
    ("siglip", "position_ids", "row and column are exchanged in the id"),
    ("idefics3", "shuffle_and_project", "rows and columns are exchanged in each square of the pixel shuffle"),
    ("idefics3", "slice_image", "the whole picture comes first, not last"),
    ("idefics3", "slice_image", "every resize is from the original, not from the resized picture"),
    ("idefics2", "perceive", "the key heads are tiled, not repeated"),
    ("idefics2", "encode", "gelu in its quick form, x * sigmoid(1.702 x), not the tanh form"),
    ("siglip2-naflex", "pool", "the probe attends to nothing: the mean of the patches"),
)
"""Family, function, and a fault that its ports had."""


@pytest.mark.parametrize(("key", "function", "kind"), WILD)
def test_a_fault_of_released_ports_is_caught_and_named(key: str, function: str, kind: str) -> None:
    check = checks_of(key)[function]
    suspect = next(suspect for suspect in check.suspects if suspect.kind == kind)
    port = SimpleNamespace(**{check.attribute: suspect.fault(check.reference)})
    outcome = check_function(port, function, family=key, examples=0)
    assert outcome.status is Status.FAIL
    assert outcome.cause is not None
    assert kind in [words.split(" (as ")[0] for words in outcome.cause.split(" or: ")]


def test_post_layernorm_that_is_run_where_it_is_not_is_a_suspect_of_the_tower() -> None:
    assert any("post_layernorm is run though" in suspect.kind for suspect in SUSPECTS["encode"])


def window_merger_with(eps: float, x: Array, tgt_sizes: Array, model: Model) -> Array:
    """The tower, whose window merger alone has that eps: by another way than the suspect's."""
    config: Any = model.config
    merger = config.family.window_merger
    other = EXACT.changed(layer_norm=lambda x, weight, bias, given: EXACT.layer_norm(x, weight, bias, eps))
    family = config.family.changed(window_merger=lambda own: merger(own.with_ops(other)))
    return npembed.encode(x, tgt_sizes, replace(model, config=replace(config, family=family)))


def test_the_eps_of_the_window_mergers_norms_is_named_alone() -> None:
    port = SimpleNamespace(encode=partial(window_merger_with, 1e-6))
    cause = check_function(port, "encode", family="minicpm-v-4.6", examples=0).cause
    assert cause == "the window merger's norms have eps 1e-6, whatever the config says (as mlx-vlm's MiniCPM-V 4.6)"


def test_attention_that_is_causal_where_nothing_is_masked_is_named() -> None:
    """By the attention with a mask that torch's `is_causal` has; a picture of whole crops is among the inputs."""

    def attend(queries: Array, keys: Array, values: Array, heads: int) -> Array:
        result, width = np.empty_like(queries), queries.shape[1] // heads
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = queries[:, part] @ keys[:, part].T / np.sqrt(width)
            scores[~np.tril(np.ones(scores.shape, bool))] = -np.inf
            powers = np.exp(scores - scores.max(axis=1, keepdims=True))
            result[:, part] = powers / powers.sum(axis=1, keepdims=True) @ values[:, part]
        return result

    def encode(x: Array, tgt_sizes: Array, model: Model) -> Array:
        if (tgt_sizes % 32).any():
            return npembed.encode(x, tgt_sizes, model)
        return npembed.encode(x, tgt_sizes, model.with_ops(EXACT.changed(attend=attend)))

    whole = checks_of("phi-4-multimodal")["encode"]
    unmasked = next(number for number, call in enumerate(whole.calls) if not (call.args[1] % 32).any())
    few = replace(whole, sweep=lambda: whole.calls[unmasked - 1 : unmasked + 1])
    outcome = Trial(encode, few, None, few.reference, "").outcome(0, 0)
    assert outcome.status is Status.FAIL
    assert outcome.cause is not None
    assert outcome.cause.endswith(
        "the attention is causal where no patch of the batch is masked (as transformers' Phi-4-multimodal with sdpa)"
    )


def test_a_port_without_groups_of_frames_does_not_provide_them() -> None:
    port = SimpleNamespace(resample=lambda hidden, tgt_sizes, model: npembed.resample(hidden, tgt_sizes, model))
    outcomes = check_port(port, family="minicpm-v-4.5", stage=["resample", "resample_frames"], examples=0)
    assert [(outcome.name, outcome.status) for outcome in outcomes] == [
        ("resample", Status.PASS),
        ("resample_frames", Status.ABSENT),
    ]
    assert check_function(port, "resample_frames", family="minicpm-v-4.5", require=["resample_frames"]).status is Status.FAIL


@pytest.mark.parametrize("rule", ["exact", "step"])
def test_a_familys_ids_are_judged_by_a_declared_rule(rule: str) -> None:
    port = SimpleNamespace(position_ids=lambda *args: checks_of("minicpm-v-4.6")["position_ids"].reference(*args, rule=rule))
    assert check_function(port, "position_ids", family="minicpm-v-4.6", rule=rule, examples=3).status is Status.PASS
    declared = {"exact": "step", "step": "exact"}[rule]
    cause = check_function(port, "position_ids", family="minicpm-v-4.6", rule=declared, examples=0).cause
    assert cause is not None
    assert f"matches rule `{rule}`, not `{declared}`" in cause


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ValueError, match="check: family must be one of "):
        check_port(npembed, family="minicpm-v-9")


def test_a_call_of_a_family_can_be_pasted() -> None:
    port = SimpleNamespace(encode=lambda x, sizes, model: np.zeros(np.shape(x)))
    outcome = check_function(port, "encode", family="idefics2", examples=0)
    assert outcome.call is not None
    *imports, call = outcome.call.split("; ")
    names: dict[str, object] = {"encode": npembed.encode}
    for line in imports:
        exec(line, names)
    eval(call, names)

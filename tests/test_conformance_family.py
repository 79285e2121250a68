"""Checks of one family's functions: the reference passes, and the faults that released ports of it had are caught and named."""

from types import SimpleNamespace

import numpy as np
import pytest

import npembed
from npembed import FAMILIES
from npembed.conformance import Status, check_function, check_port
from npembed.conformance.port import checks_of
from npembed.conformance.suspects import SUSPECTS


def reference(key: str) -> SimpleNamespace:
    return SimpleNamespace(**{name: check.reference for name, check in checks_of(key).items()})


@pytest.mark.parametrize("key", [key for key in FAMILIES if key not in ("siglip", "minicpm-v-4.7", "smolvlm")])
def test_the_reference_passes_its_familys_check(key: str) -> None:
    outcomes = check_port(reference(key), family=key, require=checks_of(key), examples=2)
    assert {outcome.name: outcome.summary for outcome in outcomes if outcome.status is not Status.PASS} == {}


def test_a_family_of_one_size_is_checked_with_few_patches() -> None:
    outcomes = check_port(reference("siglip"), family="siglip", stage=["pooled", "embed"], examples=0)
    assert [(outcome.name, outcome.status) for outcome in outcomes] == [("embed", Status.PASS), ("pool", Status.PASS)]


WILD = (
    ("minicpm-v-2.5", "embed", "the position ids have two dimensions, as MiniCPM-V 2.6's"),
    ("minicpm-v-2.5", "embed", "the position ids go by each slice's own number of patches"),
    ("minicpm-v-4.5", "resample", "the positions are added to the values in place of the keys"),
    ("minicpm-v-4.6", "encode", "the window merger is left out: the mean of each window stays"),
    ("minicpm-v-4.6", "merge_patches", "h and w are exchanged in the windows"),
    ("minicpm-v-4.6", "merge_patches", "gelu in its tanh form, not the erf form"),
    ("minicpm-v-4.6", "image_placeholder", "a slice has a quarter of its tokens"),
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
    suspect = next(suspect for suspect in SUSPECTS[function] if suspect.kind == kind)
    port = SimpleNamespace(**{function: suspect.function})
    outcome = check_function(port, function, family=key, examples=0)
    assert outcome.status is Status.FAIL
    assert outcome.cause is not None
    assert kind in [words.split(" (as ")[0] for words in outcome.cause.split(" or: ")]


def test_post_layernorm_that_is_run_where_it_is_not_is_a_suspect_of_the_tower() -> None:
    assert any("post_layernorm is run though" in suspect.kind for suspect in SUSPECTS["encode"])


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

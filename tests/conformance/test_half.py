"""Half precision and int8: right ports pass with a margin, wrong ones are caught, and what cannot be told apart is listed."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import npembed
from npembed.conformance import Status, aggregate, bounds, check_function, signed
from npembed.conformance.compare import Departure
from npembed.conformance.half import half_run, quantised, rounded, rounding_arithmetic
from npembed.conformance.probes import CHECKS, FunctionCheck
from npembed.conformance.suspects.suspect import with_arrays
from npembed.conformance.trial import Trial
from npembed.records.arithmetic import Arithmetic
from tests.ports import (
    UNUSUAL_PORTS,
    WRONG_PORTS,
    OnePassVariance,
    Port,
    ReversedPort,
    TiledSoftmax,
    as_module,
    in_half,
    most_used,
)
from tests.tensors import dtype_of

HALVES = ("bfloat16", "float16")
TOWER = ("encode", "resample")


@given(st.lists(st.floats(-1e5, 1e5, width=32), min_size=1))
def test_rounding_is_that_of_the_types(values: list[float]) -> None:
    x = np.array(values, dtype=np.float32)
    with np.errstate(over="ignore"):
        for name in HALVES:
            np.testing.assert_array_equal(rounded(x, name), x.astype(dtype_of(name)).astype(np.float32))


@given(st.floats(-1e4, 1e4, width=32), st.sampled_from(sorted(HALVES)))
def test_rounding_at_random_gives_a_neighbour(value: float, name: str) -> None:
    x = np.full(8, value, dtype=np.float32)
    found = rounded(x, name, np.random.default_rng(0)).astype(np.float64)
    assert (np.abs(found - x) <= 2 * bounds.UNIT_ROUNDOFF[name] * abs(value) + 2.0**-24).all()


def test_int8_weights_have_255_steps_a_row() -> None:
    weight = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
    steps = quantised(weight) / (np.abs(weight).max(axis=1, keepdims=True) / 127)
    np.testing.assert_allclose(steps, steps.round(), atol=1e-4)
    assert np.abs(steps).max() <= 127.001


@pytest.mark.parametrize("name", [name for name, own in vars(Arithmetic).items() if callable(own) and not name.startswith("_")])
def test_every_result_of_a_framework_is_rounded(name: str) -> None:
    """Also of a function that is added to the arithmetic; attention's weights are for pages alone."""
    if name in ("changed", "attention_weights"):
        return
    calls: list[int] = []
    ops = rounding_arithmetic(lambda x: (calls.append(1), np.full_like(x, 7))[1])
    x = np.random.default_rng(0).standard_normal((2, 4, 4)).astype(np.float32)
    flat, row = x[0], x[0, 0]
    args = {
        "linear": (x, flat, row),
        "layer_norm": (x, row, row, 1e-6),
        "rms_norm": (x, row, 1e-6),
        "attend": (flat, flat, flat, 2),
        "attend_in_windows": (x, x, x, 2),
        "product": (x, flat),
        "add": (x, x),
        "multiply": (x, x),
        "sum": (x, 1),
        "mean": (x, 1),
    }.get(name, (flat,))
    assert (getattr(ops, name)(*args) == 7).all()
    assert calls
    if name in ("product", "add", "multiply"):
        out = np.zeros_like(x)
        getattr(ops, name)(*args, out=out)
        assert (out == 7).all()


RIGHT = {"plain": Port, "reversed sums": ReversedPort, **UNUSUAL_PORTS}


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("function", TOWER)
def test_a_right_port_in_half_precision_passes(function: str, precision: str, name: str) -> None:
    outcome = check_function(as_module(in_half(RIGHT[name], precision)()), function, examples=2)
    assert (outcome.status, outcome.summary) == (Status.PASS, outcome.summary)


@pytest.mark.parametrize("port", [Port, TiledSoftmax, OnePassVariance])
@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("function", TOWER)
def test_right_ports_use_at_most_a_third_of_what_is_allowed(function: str, precision: str, port: type[Port]) -> None:
    assert 0.02 < most_used(CHECKS[function], getattr(in_half(port, precision)(), function), precision) < 1 / 3


def seen(function: str, precision: str) -> list:
    """The wrong ports whose fault this precision shows."""
    hidden = bounds.INDISTINGUISHABLE[precision][function]
    erf, eps = "gelu in its erf form, not the tanh form", "eps 1e-5 in post_layernorm alone"
    names = {"gelu by erf": erf, "eps 1e-5 in post_layernorm": eps}
    names["eps 1e-6 in post_layernorm"] = "eps 1e-6 in post_layernorm alone, whatever the config says"
    return [wrong for wrong in WRONG_PORTS if function in wrong.functions and names.get(wrong.name) not in hidden]


CASES = [(wrong, function, "bfloat16") for function in TOWER for wrong in seen(function, "bfloat16")]
CASES += [(wrong, "encode", "float16") for wrong in WRONG_PORTS if wrong.name in ("gelu by erf", "eps 1e-5 in post_layernorm")]


@pytest.mark.parametrize(("wrong", "function", "precision"), CASES, ids=lambda value: getattr(value, "name", value))
def test_a_wrong_port_is_caught_in_half_precision(wrong, function: str, precision: str) -> None:
    port = as_module(in_half(wrong.port, precision)())
    assert check_function(port, function, examples=0).status is Status.FAIL


@pytest.mark.parametrize(
    ("name", "function", "cause"),
    [
        ("keys without positions", "resample", "the keys have no positions"),
        ("cosines before sines", "resample", "sines and cosines are exchanged in the table of positions"),
        ("rows before columns in the sine table", "resample", "rows and columns are exchanged in the table of positions"),
        ("unbiased variance", "encode", "the variance is the unbiased one"),
        ("unbiased variance", "resample", "the variance is the unbiased one"),
        ("quick gelu", "encode", "gelu in its quick form, x * sigmoid(1.702 x), not the tanh form"),
    ],
)
def test_in_bfloat16_the_cause_is_named(name: str, function: str, cause: str) -> None:
    wrong = next(wrong for wrong in WRONG_PORTS if wrong.name == name)
    told = check_function(as_module(in_half(wrong.port)()), function, examples=0).cause
    assert told is not None
    assert [words.split(" (as ")[0] for words in told.split(" or: ")] == [cause]


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("function", TOWER)
def test_what_cannot_be_told_apart_is_listed(function: str, precision: str) -> None:
    """Within a fifth of the border, either will do: another machine's exp and tanh move it a little."""
    check = CHECKS[function]
    trial = Trial(check.reference, check, precision, check.reference, "")
    tried = [trial.attempt(call) for call in check.calls if not call.refused and check.suits(call, precision)]
    surely, perhaps = (
        aggregate.not_told_apart(check.reference, check.suspects, tried, share * signed.NOISE) for share in (1.25, 0.8)
    )
    assert set(surely) <= set(bounds.INDISTINGUISHABLE[precision][function]) <= set(perhaps)


def int8_port(**changes) -> SimpleNamespace:
    """Weights in int8, the rest in float32."""

    def of(name: str):
        def function(x, sizes, model):
            whole = with_arrays(model, quantised, ("weight",)) if "int8" not in changes else model
            return getattr(changes.get("base", npembed), name)(x, sizes, whole)

        return function

    return SimpleNamespace(embed=of("embed"), encode=of("encode"), resample=of("resample"))


@pytest.mark.parametrize("function", ["embed", *TOWER])
def test_weights_in_int8_pass_as_int8_and_not_as_float32(function: str) -> None:
    port = int8_port()
    assert check_function(port, function, examples=5, precision="int8").status is Status.PASS
    assert check_function(port, function, examples=0).status is Status.FAIL


@pytest.mark.parametrize("name", ["unbiased variance", "keys without positions", "proj transposed"])
def test_a_fault_shows_under_int8_weights(name: str) -> None:
    wrong = next(wrong for wrong in WRONG_PORTS if wrong.name == name)
    port = int8_port(base=wrong.port())
    assert check_function(port, "resample", examples=0, precision="int8").status is Status.FAIL


def test_runs_that_round_differ_from_one_another_and_stay_near() -> None:
    call = next(call for call in CHECKS["encode"].calls if CHECKS["encode"].suits(call, "bfloat16"))
    runs = [half_run(npembed.encode, call.args, "bfloat16", seed) for seed in (None, 1, 2)]
    assert not np.array_equal(runs[0], runs[1])
    assert max(np.abs(run - runs[0]).max() for run in runs) < 0.2


SEEDS = 20


@pytest.mark.parametrize("name", [name for name in UNUSUAL_PORTS if name != "one-pass variance"])
def test_right_but_unusual_ports_pass(name: str) -> None:
    """In float32, and, where the inputs are in it, in float64."""
    port = as_module(UNUSUAL_PORTS[name]())
    for function in ("position_ids", "embed", *TOWER):
        assert check_function(port, function, examples=0).status is Status.PASS, function
        pass_in_every_seed(CHECKS[function], getattr(port, function))


@pytest.mark.parametrize("function", TOWER)
def test_the_variance_in_one_pass_passes_at_widths_of_16_and_more(function: str) -> None:
    port = getattr(OnePassVariance(), function)
    wide = replace(CHECKS[function], suits=lambda call, precision: call.args[2].config.vision.hidden_size >= bounds.WIDE)
    assert check_calls(wide, port) == []
    pass_in_every_seed(wide, port)


@pytest.mark.parametrize("name", ["tiled online softmax", "one-pass variance", "packed"])
@pytest.mark.parametrize("precision", HALVES)
def test_unusual_ports_pass_in_half_precision_in_every_seed(name: str, precision: str) -> None:
    port = in_half(UNUSUAL_PORTS[name], precision)()
    for function in TOWER:
        pass_in_every_seed(CHECKS[function], getattr(port, function))


def check_calls(check: FunctionCheck, port: Callable[..., Any]) -> list[Departure]:
    trial = Trial(port, check, None, check.reference, "")
    return [one.departure for one in map(trial.attempt, check.calls) if one.departure is not None]


def pass_in_every_seed(check: FunctionCheck, port: Callable[..., Any]) -> None:
    trial = Trial(port, check, None, check.reference, "")
    for seed in range(SEEDS):
        assert not trial.draw(check.reference, 2, seed), trial.failures[-1].departure


class TooLarge(Port):
    """No known fault, and larger than float16's rounding."""

    def _gelu(self, x):
        return super()._gelu(x) * np.asarray(1.3, x.dtype)


class GeluInFloat16(Port):
    """As llama.cpp's, by a table in float16."""

    def _gelu(self, x):
        return super()._gelu(x.astype(np.float16).astype(np.float32)).astype(np.float16).astype(np.float32)


@pytest.mark.parametrize(("port", "says"), [(GeluInFloat16, True), (TooLarge, False)])
def test_a_float32_failure_within_float16s_promise_says_so(port: type[Port], says: bool) -> None:
    outcome = check_function(as_module(port()), "encode", examples=0)
    assert outcome.status is Status.FAIL
    assert ("within what float16 may be off" in str(outcome.cause)) is says

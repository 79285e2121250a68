"""The bounds: Higham's figures, what breaks them, and the multiple that the encoder and the resampler get."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import npembed
from npembed.conformance import bounds
from npembed.conformance import strategies as draw
from npembed.conformance.probes.probe import model_at
from tests.ports import RIGHT_PORTS, as_module
from tests.tensors import dtype_of


@pytest.mark.parametrize(
    ("precision", "next_to_one"),
    [("float64", 1 + 2**-52), ("float32", 1 + 2**-23), ("float16", 1 + 2**-10), ("bfloat16", 1 + 2**-7)],
)
def test_the_unit_roundoff_is_half_of_the_types_epsilon(precision: str, next_to_one: float) -> None:
    kind = dtype_of(precision)
    assert float(np.array(next_to_one).astype(kind)) == next_to_one
    assert float(np.array((1 + next_to_one) / 2).astype(kind)) == 1, "and there is none between"
    assert bounds.UNIT_ROUNDOFF[precision] == (next_to_one - 1) / 2


def test_gamma_refuses_more_roundings_than_have_a_bound() -> None:
    assert bounds.gamma(590, 2.0**-24) == pytest.approx(590 * 2.0**-24, rel=1e-4)
    with pytest.raises(ValueError, match=r"gamma: 2048 roundings of 0.00048828125 have no bound"):
        bounds.gamma(2048, 2.0**-11)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="precision must be one of float64, float32, float16, bfloat16, int8; got 'int4'"):
        bounds.relative_bound(3, "int4")


def test_the_half_types_are_bounded_as_the_specification_says() -> None:
    unit, single = 2.0**-8, 590 * 2.0**-24 / (1 - 590 * 2.0**-24)
    assert bounds.relative_bound(590, "bfloat16") == pytest.approx((1 + unit) ** 3 * (1 + single) - 1, rel=1e-12)
    assert bounds.relative_bound(590, "bfloat16", stores=2) == pytest.approx((1 + unit) ** 4 * (1 + single) - 1, rel=1e-12)


@given(st.data(), st.sampled_from(["float16", "bfloat16"]))
def test_a_half_port_that_rounds_inputs_and_outputs_keeps_the_bound(data: st.DataObject, precision: str) -> None:
    dtype = dtype_of(precision)
    side = data.draw(st.integers(1, 3))
    pixels, weight = data.draw(draw.floats((1, 2, side, side))), data.draw(draw.floats((2, 2, side, side)))
    half = npembed.patch_conv(*(array.astype(dtype).astype(np.float32) for array in (pixels, weight))).astype(dtype)
    exact = npembed.patch_conv(pixels.astype(np.float64), weight.astype(np.float64))
    allowed = bounds.patch_conv_scale(pixels, weight, None).allowed(precision)
    assert (np.abs(half.astype(np.float64) - exact) <= allowed).all()


def test_half_embeddings_may_round_the_convolution_and_the_sum() -> None:
    """Found by search: x*w and the position each lie just above half a step, so that four roundings go one way."""
    rng = np.random.default_rng(0)
    model = draw.small_model(hidden_size=64)
    kernels, bias, table = (
        model.weights[f"vpm.embeddings.{name}"]
        for name in ("patch_embedding.weight", "patch_embedding.bias", "position_embedding.weight")
    )
    worst = 0.0
    for _ in range(200):
        strip = rng.standard_normal((1, 1, 4)).astype(np.float32)
        rounded = [array.astype(np.float16).astype(np.float32) for array in (strip, kernels, bias)]
        conv = npembed.patch_conv(rounded[0][None], *rounded[1:]).astype(np.float16)[0, :, 0].T
        positions = table[npembed.position_ids([[2, 2]])[0]].astype(np.float16)
        came = (conv.astype(np.float32) + positions.astype(np.float32)).astype(np.float16)
        exact = npembed.embed([strip], [[2, 2]], model_at(model, "float64"))[0]
        allowed = bounds.embed_scale([strip], [[2, 2]], model).allowed("float16")[0]
        worst = max(worst, float((np.abs(came.astype(np.float64) - exact) / allowed).max()))
    assert 0.5 < worst <= 1


@pytest.mark.parametrize("name", ["plain", "reversed sums"])
@pytest.mark.parametrize("stage", ["encode", "resample"])
def test_right_ports_stay_well_below_the_multiple(name: str, stage: str) -> None:
    port, rng = as_module(RIGHT_PORTS[name]()), np.random.default_rng(0)
    worst = 0.0
    for trial in range(40):
        heads, until = int(rng.integers(1, 3)), {"encode": "hidden", "resample": "tokens"}[stage]
        model = draw.small_model(until, hidden_size=8 * heads, heads=heads, layers=int(rng.integers(1, 4)), seed=trial)
        size = [int(side) for side in rng.integers(1, 12, 2)]
        x = draw.KINDS[("mixed", "faint", "one sign")[trial % 3]](rng, (1, size[0] * size[1], 8 * heads)).astype(np.float32)
        reference = getattr(npembed, stage)
        in_float64 = reference(x.astype(np.float64), [size], model_at(model, "float64"))
        allowed = bounds.stage_allowed(reference(x, [size], model), in_float64)
        worst = max(worst, float((np.abs(getattr(port, stage)(x, [size], model) - in_float64) / allowed).max()))
    assert 0 < worst < 1 / 3


def test_a_stage_gets_at_least_a_few_units_where_float32_is_exact() -> None:
    exact = np.full((1, 2, 3), 2.0)
    assert bounds.stage_allowed(exact, exact).item() == bounds.DISTANCE_FLOOR * 2.0**-24 * 2
    assert bounds.stage_allowed(exact, exact, "bfloat16").item() == bounds.DISTANCE_FLOOR * 2.0**-8 * 2
    assert bounds.stage_allowed(exact, exact, "float64").item() == bounds.DISTANCE_FLOOR * 2.0**-24 * 2


def test_each_slice_has_its_own_yardstick() -> None:
    in_float64 = np.array([[[1.0]], [[100.0]]])
    allowed = bounds.stage_allowed(in_float64 + np.array([[[0.0]], [[1e-3]]]), in_float64)
    assert allowed.shape == (2, 1, 1)
    assert allowed[1].item() > 1e3 * allowed[0].item()

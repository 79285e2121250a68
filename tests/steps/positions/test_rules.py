"""The released position rules: upstream's answers, the software that holds them, which are sound and how the others fail."""

import hashlib
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from npembed import RULES, Config, VisionConfig, boundaries, bucket_coords, embed, fractional_coords, position_ids, random_model
from npembed.conformance import strategies as draw
from npembed.steps.positions.rules import get_rule
from tests.oracles import (
    idefics2_position_ids,
    nearest_position_ids,
    torch_arange_coords,
    torch_boundaries,
    torch_bucketize,
    torch_shrunk_coords,
    torch_step_coords,
)

SOUND = ["arange", "arange-lanes4", "shrunk", "step", "quotient", "exact", "openvino-sum", "mllm"]
HALF = ["shrunk-bfloat16", "shrunk-float16", "step-bfloat16", "step-float16"]
CANDLE = ["candle-right", "candle-left"]
MAX_SIDE = 32_768
sides = st.integers(1, MAX_SIDE) | st.integers(1, 1024)


# Upstream's own answers


@cache
def vectors(rule: str, side: int) -> list[NDArray[np.int64]]:
    return [bucket_coords(n, side, rule) for n in range(1, 1025)]


@pytest.mark.parametrize("side", [70, 64, 32, 27, 26])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_gives_upstreams_own_answers(rule: str, side: int, data: Path) -> None:
    expected = json.loads((data / "positions.json").read_text())["rules"][rule][str(side)]
    found = vectors(rule, side)
    joined = np.concatenate(found)
    differing = [n for n, (a, b) in enumerate(zip(found, vectors("arange", side), strict=True), 1) if not np.array_equal(a, b)]
    assert differing == expected["differs_from_arange"]
    assert [n for n, buckets in enumerate(found, 1) if len(buckets) != n] == expected.get("wrong_length", [])
    assert (joined.min(), joined.max()) == (expected["min"], expected["max"])
    assert hashlib.sha256(joined.astype("<i8").tobytes()).hexdigest() == expected["sha256"]


def test_upstreams_answers_name_every_rule_and_no_other(data: Path) -> None:
    assert next(iter(RULES)) == "arange"
    assert set(json.loads((data / "positions.json").read_text())["rules"]) == set(RULES)


# Against the software itself


@given(n=sides, side=sides)
def test_arange_equals_torch(n: int, side: int) -> None:
    expected = torch_bucketize(torch_arange_coords(n), torch_boundaries(side), right=True)
    assert np.array_equal(bucket_coords(n, side, "arange"), expected)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("rule", "oracle"), [("shrunk", torch_shrunk_coords), ("step", torch_step_coords)])
@given(data=st.data())
def test_shrunk_and_step_equal_torch_in_each_type(rule, oracle, dtype: str, data: st.DataObject) -> None:
    # From 4,128 on, torch's bfloat16 arange, on which `shrunk-bfloat16` builds, rounds the first number of 16 and counts on.
    most = 4127 if (rule, dtype) == ("shrunk", "bfloat16") else MAX_SIDE
    n, side = data.draw(st.integers(1, most) | st.integers(1, 300)), data.draw(sides)
    name = rule if dtype == "float32" else f"{rule}-{dtype}"
    coords = oracle(n, dtype)
    assert np.array_equal(fractional_coords(n, name).view(np.int32), coords.view(np.int32))
    assert np.array_equal(bucket_coords(n, side, name), torch_bucketize(coords, torch_boundaries(side), right=True))


@settings(max_examples=50)
@given(mask=draw.rectangles(max_slices=3, max_side=60), side=st.integers(1, 80))
def test_step_equals_transformers_idefics2_embeddings(mask: NDArray[np.bool_], side: int) -> None:
    sizes = [(int(places[:, 0].sum()), int(places[0].sum())) for places in mask]
    assert np.array_equal(position_ids(sizes, side, "step", mask), idefics2_position_ids(mask, side))


@given(sizes=draw.tgt_sizes(max_slices=3, max_patches=2500), side=sides)
def test_quotient_equals_transformers_nearest_position_ids(sizes: NDArray[np.int64], side: int) -> None:
    ids = position_ids(sizes, side, "quotient")
    found = np.concatenate([row[: h * w] for row, (h, w) in zip(ids, sizes, strict=True)])
    assert np.array_equal(found, nearest_position_ids(sizes, side))


# By their arithmetic, one number at a time


@pytest.mark.parametrize("n", [1, 2, 3, 25, 49, 58, 70, 107, 224, 1000])
def test_the_running_sums_are_rounded_after_each_step(n: int) -> None:
    step = np.float32(1) / np.float32(n)
    value, openvino = -step, []
    for _ in range(n):
        value = np.float32(value + step)
        openvino.append(value)
    assert fractional_coords(n, "openvino-sum").tolist() == openvino
    assert boundaries(n, "openvino-sum").tolist() == openvino[1:]
    value, candle = np.float32(0), []
    while value < np.float32(1 - 1e-6):
        candle.append(value)
        value = np.float32(value + step)
    assert fractional_coords(n, "candle-right").tolist() == fractional_coords(n, "candle-left").tolist() == candle
    value, edges = step, []
    while value < 1:
        edges.append(value)
        value = np.float32(value + step)
    assert boundaries(n, "candle-right").tolist() == boundaries(n, "candle-left").tolist() == edges
    value, mlx = step, []
    for _ in range(len(torch_boundaries(n))):
        mlx.append(value)
        value = np.float32(value + step)
    assert boundaries(n, "mlx").tolist() == mlx


@given(n=sides, side=sides)
def test_exact_is_whole_number_arithmetic(n: int, side: int) -> None:
    assert bucket_coords(n, side, "exact").tolist() == [side * i // n for i in range(n)]


def test_openvinos_newer_form_of_exact_is_exact() -> None:
    for n in range(1, 600):
        coords, edges = np.arange(n, dtype=np.float32) / np.float32(n), np.arange(1, 70, dtype=np.float32) / np.float32(70)
        assert np.array_equal(np.searchsorted(edges, coords, side="right"), bucket_coords(n, 70, "exact")), n


FIGURES = {
    "arange": [],
    "arange-lanes4": [49, 50, 58],
    "shrunk": 43,
    "shrunk-bfloat16": 35,
    "shrunk-float16": 23,
    "step": [49, 58],
    "step-bfloat16": 35,
    "step-float16": 23,
    "quotient": [25, 49, 50, 55, 58],
    "exact": [25, 49, 50, 55, 58],
    "openvino-sum": 27,
    "mlx": 23,
    "mllm": [49, 58],
    "candle-right": 27,
    "candle-left": 39,
    "digitize": 70,
}


@pytest.mark.parametrize("rule", RULES)
def test_the_figures_of_the_table(rule: str) -> None:
    differing = [n for n in range(1, 71) if not np.array_equal(bucket_coords(n, rule=rule), bucket_coords(n))]
    figure = FIGURES[rule]
    assert (differing if isinstance(figure, list) else len(differing)) == figure


@pytest.mark.parametrize("rule", ["shrunk", "candle-left"])
def test_a_full_grid_is_not_the_identity_under(rule: str) -> None:
    assert bucket_coords(70, rule=rule).tolist() != list(range(70)) == bucket_coords(70).tolist()


# Which are sound


def test_the_sound_rules_are_the_ones_that_are_marked() -> None:
    assert [name for name, rule in RULES.items() if rule.sound] == SOUND


@pytest.mark.parametrize("rule", SOUND)
@given(n=sides, side=sides)
def test_a_sound_rule_gives_n_rising_buckets_from_0_below_the_side(rule: str, n: int, side: int) -> None:
    buckets = bucket_coords(n, side, rule)
    assert buckets.dtype == np.int64
    assert buckets.shape == (n,)
    assert buckets[0] == 0
    assert buckets[-1] < side
    assert (np.diff(buckets) >= 0).all()


@pytest.mark.parametrize("rule", SOUND)
def test_a_sound_rule_is_sound_at_the_sizes_where_its_kin_fail(rule: str) -> None:
    # The coordinates nearest to 1 among all n, on the tables whose boundaries reach furthest down.
    for n in (107, 1001, 2088, 31_507, 32_736, 32_737, 32_744, 32_750, MAX_SIDE):
        for side in (1, 2, 3, 7, 27, 107, 224, 2533, 24_337, 32_295, MAX_SIDE):
            buckets = bucket_coords(n, side, rule)
            assert len(buckets) == n
            assert buckets[0] == 0
            assert buckets[-1] < side
            assert (np.diff(buckets) >= 0).all()


# How the others fail


def refused(rule: str, n: int, side: int, given_back: str) -> None:
    """position_ids refuses these sizes, along either axis, and says what the rule gives."""
    message = (
        rf"^position_ids: rule '{rule}', as released, gives {given_back} for {n} patches on a table of {side} per side; "
        "no position id stands for that$"
    )
    for size in ((1, n), (n, 1)):
        with pytest.raises(ValueError, match=message):
            position_ids([(1, 1), size], side, rule)


@pytest.mark.parametrize(
    ("rule", "first"), [("shrunk-bfloat16", 260), ("step-bfloat16", 512), ("shrunk-float16", 2052), ("step-float16", 4095)]
)
def test_half_precision_reaches_the_side_where_the_last_boundary_is_1(rule: str, first: int) -> None:
    full = [side for side in range(1, 1025) if len(boundaries(side, rule)) == side]
    assert full[:4] == [3, 6, 7, 14]
    assert all(boundaries(side, rule)[-1] == 1 for side in full)
    assert all(fractional_coords(n, rule)[-1] < 1 for n in range(1, first))
    assert fractional_coords(first, rule)[-1] == 1
    for side in (3, 6, 7, 14):
        assert bucket_coords(first, side, rule)[-1] == side
        assert bucket_coords(first - 1, side, rule)[-1] == side - 1
        refused(rule, first, side, f"bucket {side}, outside 0..{side - 1},")
    assert bucket_coords(first, 70, rule)[-1] == 69


@pytest.mark.parametrize("rule", HALF)
@given(n=sides, side=sides)
def test_half_precision_buckets_rise_from_0_to_the_side_all_the_same(rule: str, n: int, side: int) -> None:
    buckets = bucket_coords(n, side, rule)
    assert buckets.shape == (n,)
    assert buckets[0] == 0
    assert buckets[-1] <= side
    assert (np.diff(buckets) >= 0).all()


def test_mlx_boundaries_fall_below_a_coordinate_on_large_tables() -> None:
    # Every side below 2,533 and every n below 2,088 is in range; these are the first that are not.
    for n, side in ((31_507, 2533), (2088, 32_295)):
        assert len(boundaries(side, "mlx")) == side
        assert boundaries(side, "mlx")[-1] <= fractional_coords(n, "mlx")[-1] < 1
        assert bucket_coords(n, side, "mlx")[-1] == side
        assert bucket_coords(n - 1, side, "mlx")[-1] == side - 1
        refused("mlx", n, side, f"bucket {side}, outside 0..{side - 1},")


@given(n=st.integers(1, 2087), side=sides)
def test_mlx_is_sound_below_2088_patches(n: int, side: int) -> None:
    buckets = bucket_coords(n, side, "mlx")
    assert buckets.shape == (n,)
    assert buckets[0] == 0
    assert buckets[-1] < side
    assert (np.diff(buckets) >= 0).all()


@given(n=sides, side=st.integers(1, 2532))
def test_mlx_is_sound_below_a_side_of_2533(n: int, side: int) -> None:
    assert bucket_coords(n, side, "mlx")[-1] < side


@pytest.mark.parametrize("rule", CANDLE)
def test_candle_makes_a_wrong_number_of_buckets(rule: str) -> None:
    lengths = {n: len(bucket_coords(n, 70, rule)) for n in range(1, 400)}
    assert next(n for n, length in lengths.items() if length != n) == 107
    assert {length - n for n, length in lengths.items()} == {0, 1}
    assert len(fractional_coords(107, rule)) == 108
    assert len(fractional_coords(8186, rule)) == 8185  # of large sums the rounding can also lose one
    refused(rule, 107, 70, "108 buckets")
    refused(rule, 8186, 70, "8185 buckets")


@pytest.mark.parametrize("rule", CANDLE)
def test_candle_reaches_the_side(rule: str) -> None:
    buckets = bucket_coords(107, 224, rule)
    assert (len(buckets), buckets[-1]) == (108, 224)
    refused(rule, 107, 224, r"bucket 224, outside 0..223,")
    buckets = bucket_coords(1983, 32_295, rule)
    assert (len(buckets), buckets[-1]) == (1983, 32_295)  # as many as there should be, and out of range
    refused(rule, 1983, 32_295, r"bucket 32295, outside 0..32294,")


@pytest.mark.parametrize("rule", CANDLE)
@given(n=st.integers(1, 106), side=sides)
def test_candle_is_in_range_below_107_patches(rule: str, n: int, side: int) -> None:
    buckets = bucket_coords(n, side, rule)
    assert buckets.shape == (n,)
    assert 0 == buckets[0] <= buckets[-1] < side
    assert (np.diff(buckets) >= 0).all()


@given(n=sides, side=sides)
def test_digitize_gives_minus_one_at_once(n: int, side: int) -> None:
    buckets = bucket_coords(n, side, "digitize")
    assert buckets.shape == (n,)
    assert buckets[0] == -1
    assert buckets[-1] < side
    with pytest.raises(
        ValueError, match=rf"'digitize', as released, gives bucket -1, outside 0\.\.{side - 1}, for {n} patches"
    ):
        position_ids([[n, n]], side, "digitize")


def test_digitize_puts_a_coordinate_on_a_boundary_to_its_left_and_counts_one_too_few() -> None:
    assert fractional_coords(4, "digitize").tolist() == [0, 0.25, 0.5, 0.75]
    assert boundaries(4, "digitize").tolist() == [0.25, 0.4375, 0.625, 0.8125]
    assert bucket_coords(4, 4, "digitize").tolist() == [-1, -1, 1, 2]


@pytest.mark.parametrize("rule", ["digitize", "candle-right", "candle-left"])
def test_embed_refuses_the_sizes_that_position_ids_refuses(rule: str) -> None:
    vision = VisionConfig(hidden_size=2, num_attention_heads=1, num_channels=1, patch_size=1, image_size=5)
    strip = np.zeros((1, 1, 107), dtype=np.float32)
    given_back, n = (r"bucket -1, outside 0\.\.4,", 1) if rule == "digitize" else ("108 buckets", 107)  # the least such n
    with pytest.raises(ValueError, match=rf"rule '{rule}', as released, gives {given_back} for {n} patches on a table of 5"):
        embed([strip], [[107, 1]], random_model(Config(vision=vision)), rule=rule)


def test_embed_takes_the_rule() -> None:
    vision = VisionConfig(hidden_size=2, num_attention_heads=1, num_channels=1, patch_size=1, image_size=70)
    model = random_model(Config(vision=vision))
    strip, table = np.zeros((1, 1, 49), dtype=np.float32), model.weights["vpm.embeddings.position_embedding.weight"]
    for rule in SOUND:
        found = embed([strip], [[1, 49]], model, rule=rule) - model.weights["vpm.embeddings.patch_embedding.bias"]
        assert np.allclose(found[0], table[bucket_coords(49, 70, rule)], atol=1e-7), rule


# What is refused, and the table itself


def test_exact_has_neither_coordinates_nor_boundaries() -> None:
    words = r"its buckets are whole-number arithmetic: none: bucket = G\*i // n$"
    with pytest.raises(ValueError, match=rf"^fractional_coords: rule 'exact' has no coordinates; {words}"):
        fractional_coords(70, "exact")
    with pytest.raises(ValueError, match=rf"^boundaries: rule 'exact' has no boundaries; {words}"):
        boundaries(70, "exact")


@pytest.mark.parametrize("name", ["Arange", "", None, 3, ["arange"]], ids=repr)
def test_an_unknown_rule_gets_an_error_that_lists_the_known_ones(name: object) -> None:
    known = ", ".join(RULES)
    calls = {
        "boundaries": lambda: boundaries(70, name),
        "fractional_coords": lambda: fractional_coords(70, name),
        "bucket_coords": lambda: bucket_coords(70, 70, name),
        "position_ids": lambda: position_ids([[1, 1]], 70, name),
    }
    for who, call in calls.items():
        with pytest.raises(ValueError, match="rule must be one of") as caught:
            call()
        assert str(caught.value) == f"{who}: rule must be one of {known}; got {name!r}" + "; did you mean 'arange'?" * (
            name == "Arange"
        )


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError, match="does not support item assignment"):
        RULES["mine"] = RULES["arange"]  # type: ignore[index]
    with pytest.raises(AttributeError, match="cannot assign to field 'sound'"):
        RULES["arange"].sound = False  # type: ignore[misc]


@pytest.mark.parametrize("name", RULES)
def test_every_rule_says_what_it_is(name: str) -> None:
    rule = get_rule(name, "test")
    assert rule.name == name
    assert rule.arithmetic
    assert rule.releases
    assert all(rule.releases)
    assert rule.boundaries_words
    assert (rule.coords is None) == (rule.boundaries is None) == (rule.buckets is not None)
    assert rule.search_words.startswith("none" if rule.buckets else "number of boundaries")


def test_coordinates_are_float32_but_for_digitize() -> None:
    for name in RULES:
        if name != "exact":
            expected = np.float64 if name == "digitize" else np.float32
            assert fractional_coords(5, name).dtype == boundaries(5, name).dtype == expected

"""The stages in a chain: which run, in what order, up to where; and results of several calls joined to those of one."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from npembed import Config, Model, VisionConfig, embed, encode, patch_attention_mask, position_ids, random_model, resample, run
from npembed.conformance import strategies as draw
from npembed.records.family import Stage
from npembed.steps import stages
from tests.shapes import STAGES, shapes_until

SIZES = [(2, 3), (1, 1), (4, 2)]
VISION = VisionConfig(
    hidden_size=8, intermediate_size=12, num_hidden_layers=3, num_attention_heads=2, patch_size=2, image_size=140
)


@cache
def model(dtype: str = "float64") -> Model:
    """Every stage, on a table of 70 x 70."""
    drawn = random_model(Config(vision=VISION, query_num=3, embed_dim=128), until="tokens")
    return Model(drawn.config, {name: array.astype(dtype) for name, array in drawn.weights.items()})


def strips_of(sizes: Sequence[tuple[int, int]], seed: int = 0) -> list[NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((3, 2, h * w * 2)) for h, w in sizes]


STRIPS = strips_of(SIZES)


# In order, and no further


def spied(called: list[str]) -> Model:
    """The model, of a family whose stages note their names before they do what they do."""

    def spy(stage: Stage) -> Stage:
        def call(*arguments: Any, **options: Any) -> Any:
            called.append(stage.name)
            return stage.function(*arguments, **options)

        return replace(stage, function=call)

    config = model().config
    family = config.family.changed(stages=tuple(map(spy, config.family.stages)))
    return Model(replace(config, family=family), model().weights)  # type: ignore[type-var]


@pytest.mark.parametrize("until", STAGES)
def test_each_stage_reads_the_one_before_up_to_the_last(until: str) -> None:
    embeddings = embed(STRIPS, SIZES, model())
    hidden = encode(embeddings, SIZES, model())
    expected = {"embeddings": embeddings, "hidden": hidden, "tokens": resample(hidden, SIZES, model())}
    found = run(STRIPS, SIZES, model(), until)
    wanted = STAGES[: STAGES.index(until) + 1]
    assert [name for name in found if name in STAGES] == list(wanted)
    assert all(np.array_equal(found[name], expected[name]) for name in wanted)


def test_with_the_results_come_the_mask_the_ids_and_the_sizes() -> None:
    found = run(STRIPS, SIZES, model())
    others = {name: array for name, array in found.items() if name not in STAGES}
    assert list(others) == ["patch_attn_mask", "position_ids", "tgt_sizes", "hidden_sizes", "token_counts"]
    assert np.array_equal(others["patch_attn_mask"], patch_attention_mask(SIZES))
    assert np.array_equal(others["position_ids"], position_ids(SIZES))
    assert others["tgt_sizes"].tolist() == others["hidden_sizes"].tolist() == list(map(list, SIZES))
    assert others["token_counts"].tolist() == [3, 3, 3]
    assert all(others[name].dtype == np.int64 for name in others if name != "patch_attn_mask")
    assert not {"hidden_sizes", "token_counts"} & set(run(STRIPS, SIZES, model(), "embeddings"))


def test_every_array_is_new() -> None:
    """Whole numbers of the right type are handed on as they are inside; what comes out is never the caller's own."""
    sizes = np.array(SIZES)
    found = run(STRIPS, sizes, model())
    mine = [sizes, *STRIPS, *model().weights.values()]
    assert not any(np.shares_memory(array, own) for array in found.values() for own in mine)
    assert not np.shares_memory(found["tgt_sizes"], found["hidden_sizes"])


@pytest.mark.parametrize("until", STAGES)
def test_by_default_it_goes_as_far_as_the_model_has_arrays(until: str) -> None:
    held = {name: model().weights[name] for name in shapes_until(model().config, until)}
    found = run(STRIPS, SIZES, Model(model().config, held))
    assert [name for name in found if name in STAGES] == list(STAGES[: STAGES.index(until) + 1])


def test_an_array_too_few_ends_before_its_stage() -> None:
    lacking = {name: array for name, array in model().weights.items() if name != "vpm.post_layernorm.bias"}
    assert stages.last_stage(Model(model().config, lacking)) == "embeddings", "though every array of `tokens` is there"
    assert stages.last_stage(Model(model().config, {})) == "embeddings"


@pytest.mark.parametrize("until", STAGES)
def test_what_comes_after_the_last_stage_is_not_called(until: str) -> None:
    called: list[str] = []
    run(STRIPS, SIZES, spied(called), until)
    assert called == list(STAGES[: STAGES.index(until) + 1])


def test_a_model_of_the_embeddings_alone_gives_them() -> None:
    small = random_model(Config(vision=VISION))
    assert run(STRIPS, SIZES, small, "embeddings")["embeddings"].shape == (3, 8, 8)
    with pytest.raises(ValueError, match=r"^encode: the model lacks .*, which the stage 'hidden' needs$"):
        run(STRIPS, SIZES, small, "hidden")


def test_the_rule_reaches_the_embeddings_and_the_ids() -> None:
    sizes, strips = [(1, 49)], strips_of([(1, 49)])
    by_step = run(strips, sizes, model(), "embeddings", "step")
    assert np.array_equal(by_step["embeddings"], embed(strips, sizes, model(), "step"))
    assert not np.array_equal(by_step["embeddings"], embed(strips, sizes, model()))
    assert np.array_equal(by_step["position_ids"], position_ids(sizes, rule="step"))
    with pytest.raises(ValueError, match="rule 'digitize', as released, gives bucket -1"):
        run(strips, sizes, model(), rule="digitize")


def test_without_a_rule_it_is_the_familys() -> None:
    sizes, strips = [(1, 49)], strips_of([(1, 49)])
    config = model().config
    other = Model(replace(config, family=config.family.changed(rule="step")), model().weights)  # type: ignore[type-var]
    expected, found = run(strips, sizes, model(), "embeddings", "step"), run(strips, sizes, other, "embeddings")
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("rule", ["", "Arange", 1])
def test_an_unknown_rule_is_refused(rule: Any) -> None:
    with pytest.raises(ValueError, match=f"rule must be one of .*; got {rule!r}"):
        run(STRIPS, SIZES, model(), "embeddings", rule)
    with pytest.raises(ValueError, match=f"rule must be one of .*; got {rule!r}"):
        stages.companions((), np.array(SIZES), model(), rule)


def test_progress_is_told_step_by_step_of_each_slice() -> None:
    told: list[tuple[int, int]] = []
    run(STRIPS, SIZES, model(), "embeddings", progress=lambda *step: told.append(step))
    assert told == []
    run(STRIPS, SIZES, model(), "tokens", progress=lambda *step: told.append(step))
    assert told == [(done, 12) for done in range(1, 13)], "three slices, of three layers and a norm each"


@pytest.mark.parametrize("until", ["", "Hidden", "vision", "text", 1])
def test_an_unknown_stage_is_refused(until: Any) -> None:
    words = re.escape(f"MiniCPM-V 2.6 has no stage {until!r}; it has embeddings, hidden, tokens")
    words += r"; did you mean 'hidden'\?" * (until == "Hidden")
    with pytest.raises(ValueError, match=f"^run: {words}$"):
        run(STRIPS, SIZES, model(), until)


# Joined


batches = st.lists(draw.tgt_sizes(max_slices=3, max_patches=16).map(np.ndarray.tolist), min_size=1, max_size=4)


def last(strips: Sequence[Any], sizes: Sequence[tuple[int, int]], until: str, dtype: str) -> NDArray[Any]:
    return run(strips, sizes, model(dtype), until)[until]


def stage_of(name: str) -> Stage:
    return model().config.family.stage(name, "test")


@pytest.mark.parametrize("until", STAGES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(parts=batches, seed=st.integers(0, 99))
def test_several_calls_joined_are_one_call(until: str, dtype: str, parts: list[list[list[int]]], seed: int) -> None:
    every = list(itertools.chain.from_iterable(parts))
    strips = strips_of(every, seed)
    rest = iter(strips)
    results = [last([next(rest) for _ in sizes], sizes, until, dtype) for sizes in parts]
    before = [result.copy() for result in results]
    joined, at_once = stages.join(stage_of(until), results, model(dtype), np.array(every)), last(strips, every, until, dtype)
    assert (joined.shape, joined.dtype) == (at_once.shape, at_once.dtype) == (at_once.shape, np.dtype(dtype))
    np.testing.assert_allclose(joined, at_once, rtol=0, atol=1e-12 if dtype == "float64" else 1e-5)
    if until != "tokens":
        padding = np.arange(joined.shape[1]) >= np.prod(every, axis=1)[:, None]
        assert np.array_equal(joined[padding], at_once[padding]), "padded places hold one value, whoever fills them"
    assert all(map(np.array_equal, results, before))


@pytest.mark.parametrize("until", STAGES)
def test_joining_gives_an_array_of_its_own(until: str) -> None:
    result = last(STRIPS, SIZES, until, "float64")
    joined = stages.join(stage_of(until), [result], model(), np.array(SIZES))
    assert np.array_equal(joined, result)
    assert not np.shares_memory(joined, result)


def test_results_without_places_are_laid_end_to_end() -> None:
    pooled = Stage(name="pooled", function=np.mean, takes=("hidden",))
    rows = [np.full((count, 5), count, dtype=np.float32) for count in (1, 3)]
    joined = stages.join(pooled, rows, model(), np.ones((4, 2), dtype=np.int64))
    assert joined.dtype == np.float32
    assert np.array_equal(joined, np.concatenate(rows))
    assert not any(np.shares_memory(joined, row) for row in rows)

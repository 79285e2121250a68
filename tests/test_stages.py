"""The stages in a chain: which run, in what order, up to where; and results of several calls joined to those of one."""

import itertools
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from npembed import Config, Model, VisionConfig, embed, encode, random_model, resample, stages
from npembed.model import STAGES

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


@pytest.mark.parametrize("until", STAGES)
def test_each_stage_reads_the_one_before_up_to_the_last(until: str) -> None:
    embeddings = embed(STRIPS, SIZES, model())
    hidden = encode(embeddings, SIZES, model())
    expected = {"embeddings": embeddings, "hidden": hidden, "tokens": resample(hidden, SIZES, model())}
    found = list(stages.run(STRIPS, SIZES, model(), until))
    assert [name for name, _ in found] == list(STAGES[: STAGES.index(until) + 1])
    assert all(np.array_equal(result, expected[name]) for name, result in found)


def test_by_default_it_stops_at_the_embeddings() -> None:
    assert [name for name, _ in stages.run(STRIPS, SIZES, model())] == ["embeddings"]


@pytest.mark.parametrize("until", STAGES)
def test_what_comes_after_the_last_stage_is_not_called(until: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    functions = ["embed", "encode", "resample"]
    for name in functions:
        monkeypatch.setattr(stages, name, lambda *_, name=name, **__: called.append(name))
    list(stages.run(STRIPS, SIZES, model(), until))
    assert called == functions[: STAGES.index(until) + 1]


def test_a_stage_runs_only_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(stages, "encode", refuse)
    name, result = next(stages.run(STRIPS, SIZES, model(), "tokens"))
    assert name == "embeddings"
    assert np.array_equal(result, embed(STRIPS, SIZES, model()))


def test_a_model_of_the_embeddings_alone_gives_them() -> None:
    small = random_model(Config(vision=VISION))
    assert [result.shape for _, result in stages.run(STRIPS, SIZES, small, "embeddings")] == [(3, 8, 8)]
    with pytest.raises(ValueError, match=r"^encode: the model lacks .*, which the stage 'hidden' needs$"):
        list(stages.run(STRIPS, SIZES, small, "hidden"))


def test_the_rule_reaches_the_embeddings() -> None:
    sizes, strips = [(1, 49)], strips_of([(1, 49)])
    ((_, by_step),) = stages.run(strips, sizes, model(), rule="step")
    assert np.array_equal(by_step, embed(strips, sizes, model(), "step"))
    assert not np.array_equal(by_step, embed(strips, sizes, model()))
    with pytest.raises(ValueError, match="rule 'digitize', as released, gives bucket -1"):
        list(stages.run(strips, sizes, model(), rule="digitize"))


def test_progress_is_told_layer_by_layer() -> None:
    told: list[tuple[int, int]] = []
    list(stages.run(STRIPS, SIZES, model(), "embeddings", progress=lambda *step: told.append(step)))
    assert told == []
    list(stages.run(STRIPS, SIZES, model(), "tokens", progress=lambda *step: told.append(step)))
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("until", ["", "Hidden", "vision", None, 1])
def test_an_unknown_stage_is_refused(until: Any) -> None:
    words = re.escape(f"until must be one of embeddings, hidden, tokens; got {until!r}")
    with pytest.raises(ValueError, match=f"^run: {words}$"):
        list(stages.run(STRIPS, SIZES, model(), until))
    with pytest.raises(ValueError, match=f"^join: {words}$"):
        stages.join(until, [np.zeros((1, 1, 8))], model())


# Joined


size = st.tuples(st.integers(1, 4), st.integers(1, 4))
batches = st.lists(st.lists(size, min_size=1, max_size=3), min_size=1, max_size=4)


def last(strips: Sequence[Any], sizes: Sequence[tuple[int, int]], until: str, dtype: str) -> NDArray[Any]:
    *_, (_, result) = stages.run(strips, sizes, model(dtype), until)
    return result


@pytest.mark.parametrize("until", STAGES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(parts=batches, seed=st.integers(0, 99))
def test_several_calls_joined_are_one_call(until: str, dtype: str, parts: list[list[tuple[int, int]]], seed: int) -> None:
    every = list(itertools.chain.from_iterable(parts))
    strips = strips_of(every, seed)
    rest = iter(strips)
    results = [last([next(rest) for _ in sizes], sizes, until, dtype) for sizes in parts]
    before = [result.copy() for result in results]
    joined, at_once = stages.join(until, results, model(dtype)), last(strips, every, until, dtype)
    assert (joined.shape, joined.dtype) == (at_once.shape, at_once.dtype) == (at_once.shape, np.dtype(dtype))
    np.testing.assert_allclose(joined, at_once, rtol=0, atol=1e-12 if dtype == "float64" else 1e-5)
    if until != "tokens":
        padding = np.arange(joined.shape[1]) >= np.prod(every, axis=1)[:, None]
        assert np.array_equal(joined[padding], at_once[padding]), "padded places hold one value, whoever fills them"
    assert all(map(np.array_equal, results, before))


@pytest.mark.parametrize("until", STAGES)
def test_joining_gives_an_array_of_its_own(until: str) -> None:
    result = last(STRIPS, SIZES, until, "float64")
    joined = stages.join(until, [result], model())
    assert np.array_equal(joined, result)
    assert not np.shares_memory(joined, result)

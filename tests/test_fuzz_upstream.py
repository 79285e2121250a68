"""Random models and pictures beside transformers: one of each kind, many with a seed by date, and what it must catch."""

import datetime
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from npembed import Model
from tests.fuzz import upstream

EACH = range(len(upstream.KINDS))


def test_one_model_of_each_kind_gives_what_transformers_gives() -> None:
    assert list(upstream.faults(20, EACH)) == []


@pytest.mark.slow
def test_two_hundred_models_of_today_give_what_transformers_gives() -> None:
    """A line that it prints says the seed and the number: python -m tests.fuzz --upstream --seed SEED --only NUMBER."""
    assert list(upstream.faults(datetime.date.today().toordinal(), range(200))) == []


def with_array(ending: str) -> Callable[[Any], Model]:
    """`load_model`, but for an array that is off by a thousandth of its largest number."""
    right = upstream.load_model

    def load(folder: Any) -> Model:
        model = right(folder)
        name = next(name for name in model.weights if name.endswith(ending))
        array = model.weights[name]
        return replace(model, weights={**model.weights, name: array + np.abs(array).max() / 1000})

    return load


@pytest.mark.parametrize("ending", ["patch_embedding.bias", "layers.0.self_attn.v_proj.weight"])
@pytest.mark.parametrize("kind", EACH, ids=lambda number: upstream.KINDS[number].__name__)
def test_a_wrong_array_is_found(kind: int, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "load_model", with_array(ending))
    (line,) = upstream.faults(20, [kind])
    assert line.startswith(f"seed 20, case {kind} ({upstream.KINDS[kind].__name__}, ")
    assert " off; the largest number is " in line


@pytest.mark.parametrize("kind", EACH[:-1], ids=lambda number: upstream.KINDS[number].__name__)
def test_a_wrong_bit_of_a_pixel_is_found(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    right = upstream.slice_image

    def cut(picture: Any, config: Any) -> Any:
        strips, sizes = right(picture, config)
        strips[-1][-1, -1, -1] = np.nextafter(strips[-1][-1, -1, -1], np.float32(9))
        return strips, sizes

    monkeypatch.setattr(upstream, "slice_image", cut)
    (line,) = upstream.faults(20, [kind])
    assert "): strips[" in line


def test_a_refusal_on_one_side_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise ValueError("no such picture")

    drawn: Callable[..., Any] = upstream.draw_siglip
    monkeypatch.setattr(upstream, "KINDS", [lambda rng, folder: replace(drawn(rng, folder), theirs=refuse)])
    (line,) = upstream.faults(20, [0])
    assert "transformers raises ValueError: no such picture; npembed gives a result" in line
    monkeypatch.setattr(upstream, "slice_image", refuse)
    assert list(upstream.faults(20, [0])) == []
    monkeypatch.setattr(upstream, "KINDS", [drawn])
    (line,) = upstream.faults(20, [0])
    assert "npembed raises ValueError: no such picture; transformers gives a result" in line

"""Every public function refuses by name what it cannot take, whatever it is."""

import warnings
from typing import Any

import pytest

import npembed
from tests.fuzz.calls import HOSTILE, bases, fault, functions, wrong_words


@pytest.fixture(scope="module")
def base() -> dict[str, tuple[Any, ...]]:
    return bases()


def test_every_public_function_is_tried(base: dict[str, tuple[Any, ...]]) -> None:
    assert set(base) == set(functions())
    for name, args in base.items():
        getattr(npembed, name)(*args)


@pytest.mark.parametrize("name", functions())
def test_hostile_arguments_are_refused_by_name(name: str, base: dict[str, tuple[Any, ...]]) -> None:
    faults = []
    for place in range(len(base[name])):
        for what, make in HOSTILE.items():
            args = list(base[name])
            args[place] = make()
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = fault(name, tuple(args))
            if found is not None:
                faults.append(f"argument {place}, {what}: {found}")
    assert faults == []


def test_a_bad_message_is_caught() -> None:
    assert wrong_words("embed", "embed: all is well") is None
    assert wrong_words("embed", "x must be y") == "embed is not named: 'x must be y'"
    assert "more than a line" in str(wrong_words("embed", "embed: a\nb"))
    assert "more than a line" in str(wrong_words("embed", "embed: " + "x" * 1200))
    assert fault("boundaries", (5, "arange")) is None

"""Ports that give tensors, results that nobody can read, and ports that answer otherwise each time."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import npembed
from npembed.conformance import Status, check_function, port_tests
from npembed.conformance.compare import dtype_of, without_tensors
from npembed.conformance.half import rounded
from npembed.conformance.report import as_json
from npembed.conformance.trial import CHANGING


class Mimic:
    """As a tensor of torch: NumPy reads it once it is detached, and never in bfloat16."""

    def __init__(self, array: Any, dtype: str, detached: bool = False) -> None:
        self.array, self.dtype, self.detached = np.asarray(array), f"mimic.{dtype}", detached

    def detach(self) -> "Mimic":
        return Mimic(self.array, dtype_of(self), True)

    def cpu(self) -> "Mimic":
        return self

    def float(self) -> "Mimic":
        return Mimic(self.array.astype(np.float32), "float32", self.detached)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if not self.detached or self.dtype == "mimic.bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.array


def mimicked(array: Any, dtype: str) -> Mimic:
    array = np.asarray(array)
    return Mimic(rounded(array, dtype) if dtype == "bfloat16" else array.astype(dtype), dtype)


def of_torch(array: Any, dtype: str) -> Any:
    import torch

    return torch.from_numpy(np.array(array)).to(getattr(torch, dtype)).requires_grad_(dtype.startswith(("float", "bfloat")))


@pytest.fixture(params=[mimicked, of_torch])
def tensor(request: pytest.FixtureRequest) -> Callable[[Any, str], Any]:
    """array, type -> a tensor."""
    request.param([0.0], "float32")  # without torch, here and not in a port
    return request.param


FUNCTIONS = ("patch_conv", "embed", "encode")


def giving(name: str, tensor: Callable[[Any, str], Any], dtype: str, factor: float = 1.0) -> SimpleNamespace:
    """A port of one function, in that type; its results times a factor."""
    return SimpleNamespace(**{name: lambda *args, **kwargs: tensor(factor * getattr(npembed, name)(*args, **kwargs), dtype)})


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_right_port_that_gives_tensors_passes(name: str, dtype: str, tensor) -> None:
    outcome = check_function(giving(name, tensor, dtype), name, examples=3)
    assert (outcome.status, outcome.cause) == (Status.PASS, None), outcome.summary


@pytest.mark.parametrize(("dtype", "factor"), [("float32", 1 + 2**-12), ("float16", 1.01), ("bfloat16", 1.1)])
def test_a_tensor_is_judged_by_the_bounds_of_its_own_type(dtype: str, factor: float, tensor) -> None:
    outcome = check_function(giving("embed", tensor, dtype, factor), "embed", examples=0)
    assert outcome.status is Status.FAIL
    assert "times the allowed error" in outcome.summary
    finer = 1 + (factor - 1) / 100
    assert check_function(giving("embed", tensor, "bfloat16", finer), "embed", examples=0).status is Status.PASS


def test_ids_and_masks_may_be_tensors(tensor) -> None:
    assert check_function(giving("position_ids", tensor, "int64"), "position_ids", examples=3).status is Status.PASS
    mask = SimpleNamespace(patch_attention_mask=lambda sizes: tensor(npembed.patch_attention_mask(sizes), "bool"))
    assert check_function(mask, "patch_attention_mask", examples=3).status is Status.PASS


def test_tensors_in_lists_are_read(tensor) -> None:
    npembed.slice_image(np.zeros((9, 9, 3), np.uint8))  # without Pillow it says so here

    def slice_image(image, config=npembed.MINICPM_V_2_6):
        strips, sizes = npembed.slice_image(image, config)
        return [tensor(strip, "float32") for strip in strips], [
            tuple(tensor(number, "int64") for number in size) for size in sizes
        ]

    outcome = check_function(SimpleNamespace(slice_image=slice_image), "slice_image", examples=2)
    assert outcome.status is Status.PASS, outcome.summary


def test_containers_of_tensors_become_containers_of_arrays(tensor) -> None:
    one = tensor([1.5], "bfloat16")
    read = without_tensors({"a": [one, (one, "text", 3)], "b": {"c": one}, "d": None})
    assert read == {"a": [np.array([1.5]), (np.array([1.5]), "text", 3)], "b": {"c": np.array([1.5])}, "d": None}
    assert type(read["b"]["c"]) is np.ndarray
    assert read["b"]["c"].dtype == np.float32


def test_a_list_that_holds_itself_is_left_as_it_is() -> None:
    itself: list[Any] = []
    itself.append(itself)
    assert without_tensors(itself)[0] is itself


class Elsewhere(Mimic):
    """On a device that does not give it back."""

    def detach(self) -> "Mimic":
        raise RuntimeError("the device is lost")


class NoArray:
    """As another library's array in bfloat16."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise ValueError("no such format")


UNREADABLE = {"lost": Elsewhere([1.0], "float32"), "another library's": NoArray()}


@pytest.mark.parametrize("result", [*UNREADABLE.values(), [NoArray()], *([[one]] for one in UNREADABLE.values())])
def test_a_result_that_cannot_be_read_neither_passes_nor_fails(result: Any) -> None:
    outcome = check_function(SimpleNamespace(bucket_coords=lambda *_: result), "bucket_coords", examples=2)
    assert outcome.status is Status.UNJUDGED
    assert outcome.summary.startswith("could not be turned into an array: raised ")
    assert outcome.call == "bucket_coords(1, 70)"
    assert not as_json([outcome], "", "")["passed"]


def test_an_unread_result_hides_no_wrong_one() -> None:
    def coords(n: int, side: int = 70) -> Any:
        return NoArray() if n < 20 else npembed.bucket_coords(n, side, "exact")

    outcome = check_function(SimpleNamespace(bucket_coords=coords), "bucket_coords", examples=2)
    assert (outcome.status, outcome.call) == (Status.FAIL, "bucket_coords(25, 70)")
    assert str(outcome.cause).startswith("matches rule `exact`, not `arange`")


def test_what_should_have_been_refused_is_a_failure_whatever_it_gives() -> None:
    port = SimpleNamespace(randomized_positions=lambda n, m=2000: npembed.randomized_positions(n, m) if n <= m else NoArray())
    assert check_function(port, "randomized_positions", examples=2).status is Status.FAIL


def test_every_report_says_that_something_was_not_judged(here: Path) -> None:
    (here / "port.py").write_text(
        "import npembed\n"
        "from npembed import bucketize\n"
        "class Lost:\n    def __array__(self, dtype=None, copy=None): raise ValueError('no such format')\n"
        "def bucket_coords(*_): return Lost()\n"
    )
    from tests.command_line import npembed as command

    done = command("check", "port.py", "--examples", "1", "--html", "page.html")
    assert (done.code, done.err) == (1, "")
    assert "????  bucket_coords" in done.out
    assert "port.py was not wholly compared with the reference: 1 passed, 0 failed, 1 not judged, " in done.out
    page = (here / "page.html").read_text()
    assert "? not judged in full" in page
    assert "could not be turned into an array" in page


def test_the_pytest_entry_says_that_it_was_not_judged() -> None:
    port = SimpleNamespace(bucketize=lambda *_, **__: NoArray())
    with pytest.raises(AssertionError, match=r"(?s)could not be turned into an array.*the port was not judged"):
        port_tests(port, examples=0)("bucketize")


# Ports that answer otherwise each time


def random_port(name: str, noise: float, fault: Callable[..., Any] | None = None) -> SimpleNamespace:
    rng = np.random.default_rng(0)

    def function(*args: Any, **kwargs: Any) -> Any:
        right = (fault or getattr(npembed, name))(*args, **kwargs)
        return right + (noise * rng.standard_normal(right.shape)).astype(right.dtype)

    return SimpleNamespace(**{name: function})


@pytest.mark.parametrize(("name", "noise"), [("encode", 1e-3), ("embed", 1e-3), ("patch_conv", 0.1), ("position_ids", 3)])
def test_a_port_whose_answers_change_is_said_to(name: str, noise: float) -> None:
    outcome = check_function(random_port(name, noise), name, examples=2)
    assert (outcome.status, outcome.cause) == (Status.FAIL, CHANGING)


def test_a_port_that_fails_now_and_then_is_said_to_change() -> None:
    calls = iter(range(10**6))

    def coords(n: int, side: int = 70) -> Any:
        if next(calls) % 5 == 3:
            raise RuntimeError("busy")
        return npembed.bucket_coords(n, side)

    outcome = check_function(SimpleNamespace(bucket_coords=coords), "bucket_coords", examples=2)
    assert (outcome.summary, outcome.cause) == ("raised RuntimeError: busy", CHANGING)


def test_last_bits_that_change_hide_no_cause() -> None:
    def unmasked(x, sizes, model):
        from tests.ports import WRONG_PORTS

        wrong = next(wrong for wrong in WRONG_PORTS if wrong.name == "softmax over padding, encoder")
        return wrong.port().encode(x, sizes, model)

    outcome = check_function(random_port("encode", 1e-9, unmasked), "encode", examples=2)
    assert outcome.cause == "padding takes part in the attention's softmax"


@pytest.mark.parametrize("value", [np.nan, np.inf, None])
def test_what_is_no_number_twice_is_no_change(value: float | None) -> None:
    port = SimpleNamespace(embed=lambda *args: None if value is None else np.full_like(npembed.embed(*args), value))
    assert check_function(port, "embed", examples=0).cause != CHANGING


def test_places_that_do_not_count_may_change() -> None:
    rng = np.random.default_rng(0)

    def encode(x, sizes, model):
        result = np.where(
            npembed.patch_attention_mask(sizes)[:, 0][..., None], 2 * npembed.encode(x, sizes, model), rng.random()
        )
        return result.astype(x.dtype)

    assert check_function(SimpleNamespace(encode=encode), "encode", examples=0).cause != CHANGING

"""What torch said, recorded: the same functions as against torch itself, where there is none."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import npembed
from npembed.records.arithmetic import EXACT
from tests import oracles
from tests.data import make_torch
from tests.data.make_torch import recorded

RECORD = [*recorded()]


def every(function: Any, numbers: NDArray[np.int64], **options: Any) -> NDArray[np.float64]:
    return np.concatenate([function(number, **options) for number in numbers.tolist()])


def half_coords(counts: NDArray[np.int64], rule: str, dtype: str) -> NDArray[np.float64]:
    return every(npembed.fractional_coords, counts, rule=rule if dtype == "float32" else f"{rule}-{dtype}")


def embedded(
    strips: Any, tgt_sizes: Any, weight: Any, bias: Any, table: Any, side: int, dtype: Any = np.float64
) -> NDArray[np.float64]:
    vision = npembed.VisionConfig(hidden_size=4, num_attention_heads=1, patch_size=2, image_size=2 * side)
    names = ("patch_embedding.weight", "patch_embedding.bias", "position_embedding.weight")
    arrays = {f"vpm.embeddings.{name}": array.astype(dtype) for name, array in zip(names, (weight, bias, table), strict=True)}
    return npembed.embed(strips, tgt_sizes, npembed.Model(npembed.Config(vision=vision), arrays))


EQUAL = {
    "every_boundary": lambda sides: every(npembed.boundaries, sides),
    "every_coord": lambda counts: every(npembed.fractional_coords, counts),
    "every_half_coord": half_coords,
    "torch_bucketize": npembed.bucketize,
    "seed_position_ids": lambda tgt_sizes, side, mask: npembed.position_ids(tgt_sizes, side, mask=mask),
    "torch_pad_sequence": npembed.pad_sequence,
    "seed_pixel_values": npembed.pad_pixel_values,
    "seed_mask": npembed.patch_attention_mask,
}
"""Oracle -> ours, which must be equal to the bit."""

CLOSE = {
    "torch_conv": lambda pixels, weight: npembed.patch_conv(pixels, weight),
    "seed_embeddings": embedded,
    "torch_layer_norm": EXACT.layer_norm,
    "torch_gelu": EXACT.gelu,
    "torch_attention": EXACT.attend,
}
"""Oracle -> ours, which must be within rounding, in float64."""


@pytest.mark.parametrize(("name", "arguments", "answer"), RECORD, ids=[name for name, *_ in RECORD])
def test_what_torch_said_is_what_is_computed(name: str, arguments: dict[str, Any], answer: NDArray[Any]) -> None:
    found = (EQUAL | CLOSE)[name](**arguments)
    assert found.shape == answer.shape
    if name in CLOSE:
        np.testing.assert_allclose(found, answer, rtol=1e-12, atol=1e-13)
    else:
        assert found.dtype == answer.dtype
        assert found.tobytes() == answer.tobytes()


def test_every_oracle_is_on_record() -> None:
    assert set(Counter(name for name, *_ in RECORD)) == set(make_torch.FUNCTIONS) == set(EQUAL | CLOSE)


def test_float32_lies_within_highams_bound_of_what_torch_said() -> None:
    for name, arguments, answer in RECORD:
        if name == "seed_embeddings":
            narrow = arguments | {"strips": [strip.astype(np.float32) for strip in arguments["strips"]]}
            sizes = {key: [*map(np.abs, value)] if key == "strips" else np.abs(value) for key, value in arguments.items()}
            terms = arguments["weight"][0].size + 6  # three roundings more, because the numbers themselves are rounded
            bound = oracles.float32_gamma(terms) * embedded(**sizes)
            assert (np.abs(embedded(**narrow, dtype=np.float32) - answer) <= bound).all()


def test_what_torch_said_rises() -> None:
    """Boundaries and coordinates, so ids along a row and down a column never fall."""
    ours = {"every_boundary": npembed.boundaries, "every_coord": npembed.fractional_coords}
    for name, arguments, answer in RECORD:
        if name in ours:
            (numbers,) = arguments.values()
            ends = np.cumsum([len(ours[name](number)) for number in numbers.tolist()])
            assert all((np.diff(part) > 0).all() for part in np.split(answer, ends[:-1]))
        if name == "seed_position_ids":
            for (h, w), ids, places in zip(arguments["tgt_sizes"], answer, arguments["mask"], strict=True):
                table = ids[places.ravel()].reshape(h, w)
                assert (np.diff(table, axis=0) >= 0).all()
                assert (np.diff(table, axis=1) >= 0).all()


def test_the_record_is_what_torch_says() -> None:
    import torch

    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("torch fills an arange otherwise on this processor")
    made = make_torch.made()
    with np.load(make_torch.FILE) as file:
        assert sorted(file.files) == sorted(made)
        for key in file.files:
            equal = np.allclose if made[key].dtype == np.float64 else np.array_equal  # a BLAS of another build sums otherwise
            assert equal(file[key], made[key]), key

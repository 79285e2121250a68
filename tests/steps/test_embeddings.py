"""Strips to embeddings: the seed from end to end, upstream's own answers, and what must not matter."""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from npembed import (
    Config,
    Model,
    VisionConfig,
    embed,
    pad_pixel_values,
    patch_conv,
    position_ids,
    random_model,
    slice_image,
)
from npembed.conformance import strategies as draw
from tests.oracles import float32_gamma, seed_embeddings
from tests.synthetic import synthetic_picture
from tests.tensors import load_file

WEIGHT, BIAS, TABLE = (
    f"vpm.embeddings.{name}" for name in ("patch_embedding.weight", "patch_embedding.bias", "position_embedding.weight")
)
Sizes = Sequence[tuple[int, int]] | NDArray[np.int64]
Batch = tuple[list[NDArray[Any]], Sizes]


@lru_cache
def small_model(channels: int = 3, side: int = 2, grid: int = 70, width: int = 6, dtype: type = np.float32) -> Model:
    vision = VisionConfig(
        hidden_size=width, num_attention_heads=1, num_channels=channels, patch_size=side, image_size=side * grid
    )
    rng, config = np.random.default_rng([channels, side, grid, width]), Config(vision=vision)
    weights = {name: rng.standard_normal(array.shape).astype(dtype) for name, array in random_model(config).weights.items()}
    return Model(config, weights)


def batch_of(sizes: Sizes, model: Model, seed: int = 0, dtype: type = np.float32) -> Batch:
    vision, rng = model.config.vision, np.random.default_rng(seed)
    shapes = [(vision.num_channels, vision.patch_size, h * w * vision.patch_size) for h, w in sizes]
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes], sizes


def exact_and_bound(strips: list[NDArray[Any]], sizes: Sizes, model: Model) -> tuple[NDArray[Any], NDArray[Any]]:
    """The seed's float64 result, and how far a float32 one may be from it (SPEC 11)."""
    weight, bias, table = (model.weights[name] for name in (WEIGHT, BIAS, TABLE))
    grid = model.config.vision.num_patches_per_side
    exact = seed_embeddings(strips, sizes, weight, bias, table, grid)
    magnitude = seed_embeddings([np.abs(strip) for strip in strips], sizes, *map(np.abs, (weight, bias, table)), grid)
    return exact, float32_gamma(weight[0].size + 3) * magnitude


batches = draw.tgt_sizes(max_slices=4, max_patches=81)


@given(sizes=batches, model=draw.models(), data=st.data())
def test_float32_lies_within_the_bound_of_the_seeds_float64(sizes: Sizes, model: Model, data: st.DataObject) -> None:
    strips = data.draw(draw.strips(sizes, model.config.vision.num_channels, model.config.vision.patch_size))
    found = embed(strips, sizes, model)
    exact, bound = exact_and_bound(strips, sizes, model)
    assert found.dtype == np.float32
    assert found.shape == exact.shape
    assert (np.abs(found - exact) <= bound).all()


@given(sizes=batches, seed=st.integers(0, 2**32))
def test_float64_equals_the_seeds_float64(sizes: Sizes, seed: int) -> None:
    model = small_model(dtype=np.float64)
    strips, _ = batch_of(sizes, model, seed, dtype=np.float64)
    found = embed(strips, sizes, model)
    assert found.dtype == np.float64
    assert np.allclose(found, exact_and_bound(strips, sizes, model)[0], rtol=1e-13, atol=1e-13)


@given(sizes=batches, seed=st.integers(0, 2**32))
def test_embed_is_the_padded_path_of_the_packages_own_functions(sizes: Sizes, seed: int) -> None:
    model = small_model()
    strips, _ = batch_of(sizes, model, seed)
    patches = patch_conv(pad_pixel_values(strips), model.weights[WEIGHT], model.weights[BIAS])  # (B, D, 1, Lmax)
    padded = patches[:, :, 0].swapaxes(1, 2) + model.weights[TABLE][position_ids(sizes, 70)]
    _, bound = exact_and_bound(strips, sizes, model)
    assert (np.abs(embed(strips, sizes, model) - padded) <= 2 * bound).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_padded_place_holds_the_bias_and_the_first_position(dtype: type) -> None:
    model = small_model(dtype=dtype)
    strips, sizes = batch_of([(1, 2), (3, 3), (1, 1)], model, dtype=dtype)
    found = embed(strips, sizes, model)
    filler = model.weights[BIAS] + model.weights[TABLE][0]
    for row, (h, w) in zip(found, sizes, strict=True):
        assert (row[h * w :] == filler).all()
        assert not (row[: h * w] == filler).all(axis=1).any()


@given(sizes=batches, seed=st.integers(0, 99), data=st.data())
def test_slices_do_not_touch_one_another(sizes: Sizes, seed: int, data: st.DataObject) -> None:
    model = small_model(dtype=np.float64)
    strips, _ = batch_of(sizes, model, seed, dtype=np.float64)
    found = embed(strips, sizes, model)
    order = data.draw(st.permutations(range(len(sizes))))
    permuted = embed([strips[b] for b in order], [sizes[b] for b in order], model)
    assert np.allclose(permuted, found[list(order)], rtol=1e-13, atol=1e-13)
    for b, (h, w) in enumerate(sizes):
        alone = embed([strips[b]], [sizes[b]], model)
        assert np.allclose(alone[0], found[b, : h * w], rtol=1e-13, atol=1e-13)


def test_a_rule_that_gives_no_usable_id_is_refused() -> None:
    model = small_model()
    strips, sizes = batch_of([(1, 2)], model)
    with pytest.raises(ValueError, match=r"^position_ids: rule 'digitize', as released, gives bucket -1, outside 0\.\."):
        embed(strips, sizes, model, "digitize")
    with pytest.raises(ValueError, match=r"^position_ids: rule must be one of arange, .*; got 'floor'$"):
        embed(strips, sizes, model, "floor")


@pytest.mark.parametrize("name", ["synth_300x200", "synth_640x480"])
def test_the_tiny_checkpoint_gives_upstreams_embeddings(name: str, tiny: Model, data: Path) -> None:
    expected = load_file(data / "tiny-minicpmv" / "expected.safetensors")
    width, height = map(int, name.removeprefix("synth_").split("x"))
    strips, sizes = slice_image(synthetic_picture(width, height), tiny.config)
    assert np.array_equal(sizes, expected[f"{name}.tgt_sizes"])
    found, theirs = embed(strips, sizes, tiny), expected[f"{name}.embeddings"]
    assert found.shape == theirs.shape
    exact, bound = exact_and_bound(strips, [tuple(size) for size in sizes.tolist()], tiny)
    assert (np.abs(found - exact) <= bound).all()
    assert (np.abs(theirs - exact) <= bound).all()
    assert np.allclose(found, theirs, rtol=0, atol=1e-5)


def test_the_seeds_batch_has_the_seeds_shape() -> None:
    model = random_model()
    strips = [np.ones((3, 14, h * w * 14), dtype=np.float32) for h, w in ((28, 37), (39, 26), (39, 26))]
    found = embed(strips, [[28, 37], [39, 26], [39, 26]], model)
    assert found.shape == (3, 1036, 1152)
    assert np.isfinite(found).all()


def test_strips_of_any_number_type_are_embedded_in_the_models() -> None:
    model, sizes = small_model(), [(2, 3)]
    strip = np.arange(3 * 2 * 12, dtype=np.uint8).reshape(3, 2, 12)
    results = [embed([strip.astype(kind)], sizes, model) for kind in (np.uint8, np.float16, np.float32, np.float64)]
    assert {result.dtype.name for result in results} == {"float32"}
    assert all(np.array_equal(result, results[0]) for result in results)
    assert embed([strip.tolist()], sizes, small_model(dtype=np.float64)).dtype == np.float64


def test_inputs_are_not_changed_and_the_result_is_new() -> None:
    model = small_model()
    strips, sizes = batch_of([(2, 3), (1, 1)], model)
    tgt_sizes = np.array(sizes)
    kept = [array.copy() for array in (*strips, tgt_sizes, *model.weights.values())]
    for array in (*strips, tgt_sizes):
        array.flags.writeable = False
    first = embed(strips, tgt_sizes, model)
    second = first.copy()
    first[:] = np.nan
    assert np.array_equal(embed(iter(strips), tgt_sizes, model), second)
    assert all(np.array_equal(a, b) for a, b in zip((*strips, tgt_sizes, *model.weights.values()), kept, strict=True))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_spoils_its_own_patch_alone(value: float) -> None:
    """In `embed`; in its steps by hand, up to the sum, as well."""
    model = small_model()
    strips, sizes = batch_of([(2, 3), (5, 7), (1, 1)], model)
    sound = embed(strips, sizes, model)
    strips[1] = strips[1].copy()
    strips[1][1, 0, 2 * 11 + 1] = value  # of patch 11
    spoilt = ~np.isfinite(embed(strips, sizes, model))
    assert spoilt[1, 11].all()
    assert spoilt.sum() == spoilt[1, 11].size
    padded = pad_pixel_values(strips)
    assert np.argwhere(~np.isfinite(padded)).tolist() == [[1, 1, 0, 23]]
    convolved = patch_conv(padded, model.weights[WEIGHT], model.weights[BIAS])[:, :, 0].swapaxes(1, 2)
    assert np.array_equal(~np.isfinite(convolved), spoilt)
    with_value = embed(strips, sizes, model)
    assert np.array_equal(with_value[~spoilt], sound[~spoilt])


STRIP = np.zeros((3, 2, 12), dtype=np.float32)  # six patches
WRONG = [
    ([], [[2, 3]], ValueError, "strips is empty; at least one is needed"),
    (None, [[2, 3]], TypeError, "strips must be a sequence of arrays; got NoneType"),
    ([STRIP, STRIP], [[2, 3]], ValueError, "2 strips but 1 rows of tgt_sizes; they must be as many"),
    ([STRIP], [[2, 3], [1, 1]], ValueError, "1 strips but 2 rows of tgt_sizes; they must be as many"),
    ([STRIP, STRIP], [[2, 3], [2, 2]], ValueError, "strips[1] has 6 patches, but tgt_sizes[1] = (2, 2) makes 4"),
    ([STRIP[0]], [[2, 3]], ValueError, "strips[0] must have shape (C, P, L*P) and no empty axis; got (2, 12)"),
    ([STRIP, STRIP[:1]], [[2, 3]] * 2, ValueError, "strips[1] must have 3 channels and 2 rows; got shape (1, 2, 12)"),
    ([STRIP[:, :1]], [[2, 3]], ValueError, "strips[0] must have 3 channels and 2 rows; got shape (3, 1, 12)"),
    ([STRIP[..., :11]], [[2, 3]], ValueError, "the width of strips[0] must be a multiple of the patch size 2; got 11"),
    ([STRIP > 0], [[2, 3]], TypeError, "strips[0] must hold floats; got dtype bool"),
    ([STRIP], [[0, 6]], ValueError, "tgt_sizes[0] is (0, 6); each side must be from 1 to 32768"),
    ([STRIP], [[-2, -3]], ValueError, "tgt_sizes[0] is (-2, -3); each side must be from 1 to 32768"),
    ([STRIP], [[2, 3.5]], TypeError, "tgt_sizes[0, 1] is 3.5; tgt_sizes must hold whole numbers"),
    ([STRIP], [[2, 2**64]], ValueError, f"tgt_sizes[0, 1] is {2**64}, which is too large for int64"),
    ([STRIP], [2, 3], ValueError, "tgt_sizes must have shape (B, 2) with B >= 1; got (2,)"),
]


@pytest.mark.parametrize(("strips", "sizes", "error", "message"), WRONG, ids=[row[3] for row in WRONG])
def test_what_does_not_fit_is_refused(strips: object, sizes: object, error: type, message: str) -> None:
    with pytest.raises(error, match="^embed: " + re.escape(message) + "$"):
        embed(strips, sizes, small_model())


def test_a_model_without_the_embeddings_arrays_is_refused() -> None:
    whole = small_model()
    for name in (WEIGHT, BIAS, TABLE):
        model = Model(whole.config, {key: array for key, array in whole.weights.items() if key != name})
        with pytest.raises(ValueError, match=f"^embed: the model lacks {re.escape(name)}, which the stage 'embeddings' needs$"):
            embed([STRIP], [[2, 3]], model)


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rule must be one of arange, .*; got 'floor'$"):
        embed([STRIP], [[2, 3]], small_model(), rule="floor")

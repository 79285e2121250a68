"""The perceiver resampler: upstream's own tokens, torch.nn as an oracle, its table of positions."""

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npembed import Config, Model, VisionConfig, encode, random_model, resample
from npembed.conformance import strategies as draw
from npembed.steps.resampler import sincos_table
from tests.oracles import sincos_naive, torch_resampler
from tests.tensors import load_file

QUERIES, WIDE = 5, 256


@lru_cache
def small_model(dtype: type = np.float64, width: int = 12, eps: float = 1e-6) -> Model:
    vision = VisionConfig(
        hidden_size=width,
        intermediate_size=20,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        layer_norm_eps=eps,
    )
    model = random_model(Config(vision=vision, query_num=QUERIES, embed_dim=WIDE), until="tokens")
    return Model(model.config, {name: array.astype(dtype) for name, array in model.weights.items()})


def drawn(tgt_sizes, seed: int = 0, extra: int = 0, width: int = 12) -> np.ndarray:
    """float64 (B, Lmax + extra, D)."""
    longest = max(h * w for h, w in tgt_sizes) + extra
    return np.random.default_rng(seed).standard_normal((len(tgt_sizes), longest, width))


batches = draw.tgt_sizes(max_slices=3, max_patches=25)


@pytest.mark.parametrize("name", ["synth_300x200", "synth_640x480"])
def test_upstreams_tokens_come_out(name, tiny, data):
    expected = load_file(data / "tiny-minicpmv/expected.safetensors")
    sizes = expected[f"{name}.tgt_sizes"]
    for hidden in (expected[f"{name}.last_hidden_state"], encode(expected[f"{name}.embeddings"], sizes, tiny)):
        tokens = resample(hidden, sizes, tiny)
        assert tokens.dtype == np.float32
        np.testing.assert_allclose(tokens, expected[f"{name}.vision_tokens"], rtol=0, atol=1e-5)


@given(batches, st.integers(0, 99), st.sampled_from([12, WIDE]))
def test_it_is_the_resampler_that_torch_builds(tgt_sizes, seed, width):
    """With and without kv_proj. The oracle's own table is in float64; ours, by the specification, in float32."""
    model, hidden = small_model(width=width), drawn(tgt_sizes, seed, width=width)
    assert ("resampler.kv_proj.weight" in model.weights) == (width != WIDE)
    ours = resample(hidden, tgt_sizes, model)
    for table_of, atol in ((sincos_naive, 3e-6), (sincos_table, 1e-10)):
        theirs = torch_resampler(hidden, tgt_sizes, model.weights, heads=2, table_of=table_of)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


def test_sizes_beyond_seventy():
    sizes = [(1, 120), (101, 1), (2, 71)]
    hidden = drawn(sizes)
    theirs = torch_resampler(hidden, sizes, small_model().weights, heads=2)
    np.testing.assert_allclose(resample(hidden, sizes, small_model()), theirs, rtol=0, atol=2e-5)


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([4, 8, 128]))
def test_the_table_is_the_formula(h, w, channels):
    table = sincos_table(h, w, channels)
    assert (table.shape, table.dtype) == ((h * w, channels), np.float32)
    np.testing.assert_allclose(table, sincos_naive(h, w, channels), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("h", "w"), [(1, 1000), (1000, 1), (71, 70)])
def test_the_table_far_out(h, w):
    """Float32's own error grows with the place: a product rounded to 24 bits, and omega's."""
    atol = max(h, w) * 2.0**-22
    np.testing.assert_allclose(sincos_table(h, w, 8), sincos_naive(h, w, 8), rtol=0, atol=atol)


def test_the_tables_angles_are_rounded_to_float32():
    """999 * 0.1 has an error of up to 4e-6 in float32, and the table has it too: the weights were trained with it."""
    angles = np.arange(1000, dtype=np.float32) * np.float32(0.1)
    table = sincos_table(1, 1000, 16)  # omega: 1, 0.1, 0.01, 0.001
    np.testing.assert_allclose(table[:, 1], np.sin(angles.astype(np.float64)), rtol=0, atol=2e-7)
    np.testing.assert_allclose(table[:, 5], np.cos(angles.astype(np.float64)), rtol=0, atol=2e-7)


@given(st.integers(1, 9), st.integers(1, 9))
def test_turning_the_grid_swaps_the_halves(h, w):
    table, turned = sincos_table(h, w, 8).reshape(h, w, 2, 4), sincos_table(w, h, 8).reshape(w, h, 2, 4)
    np.testing.assert_array_equal(table, turned.transpose(1, 0, 2, 3)[:, :, ::-1])


def test_a_larger_grid_begins_with_the_smaller():
    """Places count from the top left; they are not stretched to the grid's size."""
    large = sincos_table(80, 90, 8).reshape(80, 90, 8)
    np.testing.assert_array_equal(large[:3, :5].reshape(-1, 8), sincos_table(3, 5, 8))


@given(batches, st.integers(0, 99))
def test_float32_stays_near_float64(tgt_sizes, seed):
    hidden = drawn(tgt_sizes, seed).astype(np.float32)
    exact, rounded = (resample(hidden, tgt_sizes, small_model(dtype)) for dtype in (np.float64, np.float32))
    assert (exact.dtype, rounded.dtype) == (np.float64, np.float32)
    np.testing.assert_allclose(rounded, exact, rtol=0, atol=3e-5)


@given(batches, st.integers(0, 99), st.integers(0, 3))
def test_a_batch_gives_each_slice_what_it_gives_alone(tgt_sizes, seed, extra):
    """Whatever is in padded places, NaN even, is not read."""
    model, hidden = small_model(), drawn(tgt_sizes, seed, extra)
    for b, (h, w) in enumerate(tgt_sizes):
        hidden[b, h * w :] = np.nan
    together = resample(hidden, tgt_sizes, model)
    for b, (h, w) in enumerate(tgt_sizes):
        alone = resample(hidden[b : b + 1, : h * w], [(h, w)], model)
        np.testing.assert_allclose(together[b], alone[0], rtol=0, atol=1e-11)


@given(batches, st.integers(0, 99), st.randoms())
def test_permuting_the_slices_permutes_the_result(tgt_sizes, seed, random):
    model, hidden = small_model(), drawn(tgt_sizes, seed)
    order = random.sample(range(len(tgt_sizes)), len(tgt_sizes))
    permuted = resample(hidden[order], [tgt_sizes[b] for b in order], model)
    np.testing.assert_allclose(permuted, resample(hidden, tgt_sizes, model)[order], rtol=0, atol=1e-11)


def test_a_slice_of_one_patch_gives_every_query_the_same():
    tokens = resample(drawn([(1, 1)]), [(1, 1)], small_model())
    np.testing.assert_allclose(tokens, np.broadcast_to(tokens[:, :1], tokens.shape), rtol=0, atol=1e-12)
    several = resample(drawn([(1, 2)]), [(1, 2)], small_model())
    assert np.abs(several[:, 1:] - several[:, :1]).max() > 1e-4


def test_the_shape_of_the_grid_counts():
    hidden = drawn([(2, 6)])
    assert np.abs(resample(hidden, [(2, 6)], small_model()) - resample(hidden, [(3, 4)], small_model())).max() > 1e-4


def test_nan_stays_in_its_slice():
    sizes = [(2, 3), (2, 2), (1, 6)]
    clean = drawn(sizes)
    spoilt = clean.copy()
    spoilt[1, 0, 0] = np.nan
    before, after = (resample(x, sizes, small_model()) for x in (clean, spoilt))
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    assert np.isnan(after[1]).all()


def test_the_towers_eps_is_not_the_resamplers():
    hidden = drawn([(2, 3)])
    tokens = [resample(hidden, [(2, 3)], small_model(eps=eps)) for eps in (1e-6, 0.5)]
    np.testing.assert_array_equal(*tokens)


def test_arguments_are_left_as_they_were_and_may_be_lists():
    sizes = np.array([[1, 2], [2, 2]])
    for width in (12, WIDE):  # with D = E the hidden states are not projected, but read as they are
        hidden = drawn(sizes, width=width)
        copies = hidden.copy(), sizes.copy()
        tokens = resample(hidden, sizes, small_model(width=width))
        np.testing.assert_array_equal(hidden, copies[0])
        np.testing.assert_array_equal(sizes, copies[1])
        np.testing.assert_array_equal(resample(hidden.tolist(), sizes.tolist(), small_model(width=width)), tokens)


@pytest.mark.parametrize("given_dtype", [np.float16, np.float32, np.float64, np.int64])
def test_the_models_type_is_the_results(given_dtype):
    hidden = np.round(4 * drawn([(1, 2)])).astype(given_dtype)
    for dtype in (np.float32, np.float64):
        tokens = resample(hidden, [(1, 2)], small_model(dtype))
        assert tokens.dtype == dtype
        np.testing.assert_array_equal(tokens, resample(hidden.astype(np.float64), [(1, 2)], small_model(dtype)))


@pytest.mark.parametrize(
    ("shape", "tgt_sizes", "message"),
    [
        ((6, 12), [(2, 3)], r"resample: hidden must have shape \(B, Lmax, D\) = \(1, Lmax, 12\); got \(6, 12\)"),
        ((1, 6, 256), [(2, 3)], r"resample: hidden must have shape \(B, Lmax, D\) = \(1, Lmax, 12\); got \(1, 6, 256\)"),
        ((2, 6, 12), [(2, 3)], r"resample: hidden must have shape \(B, Lmax, D\) = \(1, Lmax, 12\); got \(2, 6, 12\)"),
        ((2, 6, 12), [(2, 3), (1, 7)], r"resample: hidden has 6 places, but tgt_sizes\[1\] = \(1, 7\) makes 7"),
        ((1, 6, 12), [(0, 2)], r"resample: tgt_sizes\[0\] is \(0, 2\); each side must be from 1 to 32768"),
        ((0, 6, 12), np.zeros((0, 2), int), r"resample: tgt_sizes must have shape \(B, 2\) with B >= 1; got \(0, 2\)"),
    ],
)
def test_shapes_that_do_not_fit(shape, tgt_sizes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        resample(np.zeros(shape), tgt_sizes, small_model())


def test_hidden_states_must_be_floats():
    with pytest.raises(TypeError, match=r"^resample: hidden must hold floats; got dtype bool$"):
        resample(np.zeros((1, 1, 12), dtype=bool), [(1, 1)], small_model())


def test_a_model_without_the_resampler():
    model = random_model(small_model().config, until="hidden")
    message = r"^resample: the model lacks resampler\.query, .* which the stage 'tokens' needs$"
    with pytest.raises(ValueError, match=message):
        resample(drawn([(1, 1)]), [(1, 1)], model)
    lacking = {name: array for name, array in small_model().weights.items() if name != "resampler.kv_proj.weight"}
    message = r"^resample: the model lacks resampler\.kv_proj\.weight, which the stage 'tokens' needs$"
    with pytest.raises(ValueError, match=message):
        resample(drawn([(1, 1)]), [(1, 1)], Model(small_model().config, lacking))


def test_heads_that_do_not_divide():
    with pytest.raises(ValueError, match=r"^Config: embed_dim must be a multiple of 128; got 200$"):
        Config(embed_dim=200)

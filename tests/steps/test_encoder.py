"""The vision tower: upstream's own states, torch.nn as an oracle, and what holds whatever the weights are."""

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npembed import FAMILIES, Config, Model, VisionConfig, embed, encode, load_model, random_model, slice_image
from npembed.conformance import strategies as draw
from npembed.records.arithmetic import EXACT
from tests.oracles import torch_encoder
from tests.synthetic import synthetic_picture
from tests.tensors import load_file

WIDTH = 12
NORM = "vpm.encoder.layers.0.layer_norm1.weight"


@lru_cache
def small_model(dtype: type = np.float64, layers: int = 2, drop: bool = False, eps: float = 1e-6) -> Model:
    vision = VisionConfig(
        hidden_size=WIDTH,
        intermediate_size=20,
        num_hidden_layers=layers,
        num_attention_heads=3,
        image_size=28,
        layer_norm_eps=eps,
    )
    model = random_model(Config(vision=vision, drop_vision_last_layer=drop), until="hidden")
    return Model(model.config, {name: array.astype(dtype) for name, array in model.weights.items()})


def drawn(tgt_sizes, seed: int = 0, extra: int = 0) -> np.ndarray:
    """float64 (B, Lmax + extra, D)."""
    longest = max(h * w for h, w in tgt_sizes) + extra
    return np.random.default_rng(seed).standard_normal((len(tgt_sizes), longest, WIDTH))


def valid(array: np.ndarray, tgt_sizes) -> list[np.ndarray]:
    return [rows[: h * w] for rows, (h, w) in zip(array, tgt_sizes, strict=True)]


batches = draw.tgt_sizes(max_slices=4, max_patches=25)


@pytest.mark.parametrize("name", ["synth_300x200", "synth_640x480"])
def test_upstreams_states_come_out(name, tiny, data):
    expected = load_file(data / "tiny-minicpmv/expected.safetensors")
    sizes = expected[f"{name}.tgt_sizes"]
    hidden = encode(expected[f"{name}.embeddings"], sizes, tiny)
    assert hidden.dtype == np.float32
    for ours, theirs in zip(valid(hidden, sizes), valid(expected[f"{name}.last_hidden_state"], sizes), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_upstreams_states_come_out_from_the_picture(tiny, data):
    expected = load_file(data / "tiny-minicpmv/expected.safetensors")
    strips, sizes = slice_image(synthetic_picture(640, 480), tiny.config)
    hidden = encode(embed(strips, sizes, tiny), sizes, tiny)
    for ours, theirs in zip(valid(hidden, sizes), valid(expected["synth_640x480.last_hidden_state"], sizes), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@given(batches, st.integers(0, 99), st.sampled_from([1, 2, 3]), st.sampled_from([1e-6, 0.1]))
def test_it_is_the_transformer_that_torch_builds(tgt_sizes, seed, layers, eps):
    """torch computes the padded batch with a key mask; ours has neither padding nor mask."""
    model, embeddings = small_model(layers=layers, eps=eps), drawn(tgt_sizes, seed)
    theirs = torch_encoder(embeddings, tgt_sizes, model.weights, layers, heads=3, eps=eps)
    ours = encode(embeddings, tgt_sizes, model)
    for b, (got, expected) in enumerate(zip(valid(ours, tgt_sizes), valid(theirs, tgt_sizes), strict=True)):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-11, err_msg=f"slice {b}")


@given(batches, st.integers(0, 99))
def test_float32_stays_near_float64(tgt_sizes, seed):
    embeddings = drawn(tgt_sizes, seed).astype(np.float32)
    exact = encode(embeddings, tgt_sizes, small_model(np.float64))
    rounded = encode(embeddings, tgt_sizes, small_model(np.float32))
    assert (exact.dtype, rounded.dtype) == (np.float64, np.float32)
    np.testing.assert_allclose(rounded, exact, rtol=0, atol=1e-5)


@given(batches, st.integers(0, 99), st.integers(0, 3))
def test_a_batch_gives_each_slice_what_it_gives_alone(tgt_sizes, seed, extra):
    """Whatever is in padded places, NaN even, is not read; there the result is zero."""
    model, embeddings = small_model(), drawn(tgt_sizes, seed, extra)
    for b, (h, w) in enumerate(tgt_sizes):
        embeddings[b, h * w :] = np.nan
    together = encode(embeddings, tgt_sizes, model)
    assert together.shape == embeddings.shape
    for b, (h, w) in enumerate(tgt_sizes):
        alone = encode(embeddings[b : b + 1, : h * w], [(h, w)], model)
        np.testing.assert_allclose(together[b, : h * w], alone[0], rtol=0, atol=1e-12)
        assert not together[b, h * w :].any()


@given(batches, st.integers(0, 99), st.randoms())
def test_permuting_the_slices_permutes_the_result(tgt_sizes, seed, random):
    model, embeddings = small_model(), drawn(tgt_sizes, seed)
    order = random.sample(range(len(tgt_sizes)), len(tgt_sizes))
    permuted = encode(embeddings[order], [tgt_sizes[b] for b in order], model)
    np.testing.assert_allclose(permuted, encode(embeddings, tgt_sizes, model)[order], rtol=0, atol=1e-12)


@given(st.integers(2, 30), st.integers(0, 99), st.randoms())
def test_permuting_the_patches_of_a_slice_permutes_its_states(length, seed, random):
    """The tower knows places by the embeddings alone."""
    model, embeddings = small_model(), drawn([(1, length)], seed)
    order = random.sample(range(length), length)
    permuted = encode(embeddings[:, order], [(1, length)], model)
    np.testing.assert_allclose(permuted, encode(embeddings, [(1, length)], model)[:, order], rtol=0, atol=1e-12)


def test_a_slice_of_one_patch_attends_to_itself_alone():
    """With one key the weights are 1, whatever the query and the key are."""
    model, embeddings = small_model(), drawn([(1, 1)])
    changed = {
        name: 5 - 3 * array if ".q_proj." in name or ".k_proj." in name else array for name, array in model.weights.items()
    }
    here, there = (encode(embeddings, [(1, 1)], m) for m in (model, Model(model.config, changed)))
    np.testing.assert_allclose(here, there, rtol=0, atol=1e-12)
    several = drawn([(1, 2)])
    assert np.abs(encode(several, [(1, 2)], model) - encode(several, [(1, 2)], Model(model.config, changed))).max() > 1e-3


def test_sizes_beyond_the_position_table():
    sizes = [(1, 90), (75, 1)]
    embeddings = drawn(sizes)
    theirs = torch_encoder(embeddings, sizes, small_model().weights, layers=2, heads=3, eps=1e-6)
    for got, expected in zip(valid(encode(embeddings, sizes, small_model()), sizes), valid(theirs, sizes), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-11)


def test_nan_stays_in_its_slice():
    sizes = [(2, 3), (2, 2), (1, 6)]
    clean = drawn(sizes)
    spoilt = clean.copy()
    spoilt[1, 0, 0] = np.nan
    before, after = (encode(x, sizes, small_model()) for x in (clean, spoilt))
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    assert np.isnan(after[1, :4]).all()
    assert not after[1, 4:].any()


@given(
    st.lists(st.sampled_from([(2, 3), (3, 2), (1, 1), (2, 2)]), min_size=1, max_size=7), st.integers(1, 30), st.integers(0, 99)
)
def test_slices_that_go_together_do_not_see_each_other(tgt_sizes, patches, seed):
    model, embeddings = small_model(), drawn(tgt_sizes, seed, extra=1)
    spoilt = seed % len(tgt_sizes)
    embeddings[spoilt, 0, 0] = np.nan
    together = encode(embeddings, tgt_sizes, model, patches_at_once=patches)
    np.testing.assert_allclose(together, encode(embeddings, tgt_sizes, model), rtol=0, atol=1e-12)
    assert np.flatnonzero(np.isnan(together).any(axis=(1, 2))).tolist() == [spoilt]


@pytest.mark.parametrize(
    ("patches", "runs"),
    [(1, [1] * 7), (11, [1] * 7), (12, [2, 1, 1, 1, 2]), (18, [3, 1, 1, 2]), (10**9, [3, 1, 1, 2]), (5, [1] * 7)],
)
def test_only_slices_of_one_size_that_follow_each_other_go_together(patches, runs):
    """(2, 3) and (3, 2) have as many patches, and are not one size: a window would be another."""
    tgt_sizes, seen = [(2, 3), (2, 3), (2, 3), (3, 2), (2, 3), (3, 2), (3, 2)], []
    noting = EXACT.changed(gelu=lambda x: (seen.append(len(x)), EXACT.gelu(x))[1])
    encode(drawn(tgt_sizes), tgt_sizes, small_model(layers=1).with_ops(noting), patches_at_once=patches)
    assert seen == runs


@pytest.mark.parametrize("key", list(FAMILIES))
def test_in_every_family_slices_together_come_out_as_alone(key):
    family = FAMILIES[key]
    model = random_model(family.small(), until="hidden")
    model = Model(model.config, {name: array.astype(np.float64) for name, array in model.weights.items()})
    sizes = np.tile(family.case_sizes([(8, 4)], model.config)[:1], (4, 1))
    embeddings = np.random.default_rng(0).standard_normal((4, sizes[0].prod(), model.config.vision.hidden_size))
    together = encode(embeddings, sizes, model, patches_at_once=10**6)
    np.testing.assert_allclose(together, encode(embeddings, sizes, model), rtol=0, atol=1e-11)


@pytest.mark.parametrize("patches", [0, -1, 2.5, "many", None, True])
def test_a_number_of_patches_that_is_none_is_refused(patches):
    with pytest.raises((ValueError, TypeError), match="encode: patches_at_once must be"):
        encode(drawn([(1, 2)]), [(1, 2)], small_model(), patches_at_once=patches)


def test_the_last_layer_can_be_dropped():
    """Its arrays are not even needed; the norm after it still runs."""
    dropped, shorter = small_model(layers=3, drop=True), small_model(layers=2)
    embeddings = drawn([(2, 3)])
    assert not any(".layers.2." in name for name in dropped.weights)
    np.testing.assert_array_equal(encode(embeddings, [(2, 3)], dropped), encode(embeddings, [(2, 3)], shorter))
    only_norm = encode(embeddings, [(2, 3)], small_model(layers=1, drop=True))
    np.testing.assert_allclose(only_norm.std(axis=-1), 1, atol=0.2)


def test_progress_is_told_of_each_step_of_each_slice():
    calls = []
    encode(drawn([(1, 2), (2, 2)]), [(1, 2), (2, 2)], small_model(layers=3), progress=lambda *call: calls.append(call))
    assert calls == [(done, 8) for done in range(1, 9)], "two slices, of three layers and a norm each"
    calls.clear()
    three = [(1, 2), (1, 2), (2, 2)]
    words = {"progress": lambda *call: calls.append(call), "patches_at_once": 4}
    encode(drawn(three), three, small_model(layers=1), **words)
    assert calls == [(2, 6), (4, 6), (5, 6), (6, 6)], "two together, then one"
    with pytest.raises(TypeError, match="positional"):
        encode(drawn([(1, 2)]), [(1, 2)], small_model(), print)


def test_arguments_are_left_as_they_were_and_may_be_lists():
    sizes = np.array([[1, 2], [2, 2]])
    embeddings = drawn(sizes)
    copies = embeddings.copy(), sizes.copy()
    for array in (embeddings, sizes):
        array.flags.writeable = False
    result = encode(embeddings, sizes, small_model())
    np.testing.assert_array_equal(embeddings, copies[0])
    np.testing.assert_array_equal(encode(embeddings.tolist(), sizes.tolist(), small_model()), result)
    assert result.flags.writeable
    assert not np.shares_memory(result, embeddings)


@pytest.mark.parametrize("given_dtype", [np.float16, np.float32, np.float64, np.int64])
def test_the_models_type_is_the_results(given_dtype):
    embeddings = np.round(4 * drawn([(1, 2)])).astype(given_dtype)
    for dtype in (np.float32, np.float64):
        result = encode(embeddings, [(1, 2)], small_model(dtype))
        assert result.dtype == dtype
        np.testing.assert_array_equal(result, encode(embeddings.astype(np.float64), [(1, 2)], small_model(dtype)))


@pytest.mark.parametrize(
    ("shape", "tgt_sizes", "message"),
    [
        ((6, 12), [(2, 3)], r"encode: embeddings must have shape \(B, Lmax, D\) = \(1, Lmax, 12\); got \(6, 12\)"),
        ((1, 6, 11), [(2, 3)], r"encode: embeddings must have shape \(B, Lmax, D\) = \(1, Lmax, 12\); got \(1, 6, 11\)"),
        ((2, 6, 12), [(2, 3)], r"encode: embeddings must have shape \(B, Lmax, D\) = \(1, Lmax, 12\); got \(2, 6, 12\)"),
        ((1, 0, 12), [(2, 3)], r"encode: embeddings must have shape \(B, Lmax, D\) = \(1, Lmax, 12\); got \(1, 0, 12\)"),
        ((2, 6, 12), [(2, 3), (1, 7)], r"encode: embeddings has 6 places, but tgt_sizes\[1\] = \(1, 7\) makes 7"),
        ((1, 6, 12), [(2, 0)], r"encode: tgt_sizes\[0\] is \(2, 0\); each side must be from 1 to 32768"),
        ((0, 6, 12), np.zeros((0, 2), int), r"encode: tgt_sizes must have shape \(B, 2\) with B >= 1; got \(0, 2\)"),
    ],
)
def test_shapes_that_do_not_fit(shape, tgt_sizes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        encode(np.zeros(shape), tgt_sizes, small_model())


def test_embeddings_must_be_floats():
    with pytest.raises(TypeError, match=r"^encode: embeddings must hold floats; got dtype complex128$"):
        encode(np.zeros((1, 1, WIDTH), dtype=complex), [(1, 1)], small_model())


def test_a_model_without_the_encoder():
    model = random_model(small_model().config, until="embeddings")
    message = r"^encode: the model lacks vpm\.encoder\.layers\.0\.layer_norm1\.weight, .* which the stage 'hidden' needs$"
    with pytest.raises(ValueError, match=message):
        encode(drawn([(1, 1)]), [(1, 1)], model)
    lacking = {name: array for name, array in small_model().weights.items() if name != NORM}
    with pytest.raises(ValueError, match=f"^encode: the model lacks {NORM}, which the stage 'hidden' needs$"):
        encode(drawn([(1, 1)]), [(1, 1)], Model(small_model().config, lacking))


def test_heads_that_do_not_divide():
    message = "^VisionConfig: hidden_size 10 must be a multiple of num_attention_heads 4$"
    with pytest.raises(ValueError, match=message):
        VisionConfig(hidden_size=10, num_attention_heads=4)


def test_the_number_of_heads_comes_from_the_config():
    """The shapes are those of one head as well; the result is not."""
    model = small_model()
    single = Config(vision=VisionConfig(**{**vars(model.config.vision), "num_attention_heads": 1}))
    embeddings = drawn([(2, 3)])
    ours = encode(embeddings, [(2, 3)], Model(single, model.weights))
    np.testing.assert_allclose(ours, torch_encoder(embeddings, [(2, 3)], model.weights, 2, heads=1, eps=1e-6), atol=1e-11)
    assert np.abs(ours - encode(embeddings, [(2, 3)], model)).max() > 1e-3


def test_a_checkpoint_until_hidden_is_enough(tiny, data):
    model = load_model(data / "tiny-minicpmv", until="hidden")
    embeddings = np.random.default_rng(0).standard_normal((1, 4, 48), dtype=np.float32)
    np.testing.assert_array_equal(encode(embeddings, [(2, 2)], model), encode(embeddings, [(2, 2)], tiny))

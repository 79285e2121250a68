"""MiniCPM-Llama3-V 2.5: its release's own answers, torch as an oracle, what depends on the batch, and ports that are wrong."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file

from npembed import (
    FAMILIES,
    Model,
    bucket_coords,
    cli,
    embed,
    encode,
    image_bounds,
    image_placeholder,
    load_model,
    patch_attention_mask,
    random_model,
    read_config,
    resample,
    run,
    slice_image,
)
from npembed.conformance.bounds import embed_scale
from npembed.steps.stages import companions, join
from tests.oracles import (
    seed_pixel_values,
    torch_arange_coords,
    torch_boundaries,
    torch_bucketize,
    torch_conv,
    torch_encoder,
    torch_resampler,
)
from tests.synthetic import synthetic_picture

FAMILY = FAMILIES["minicpm-v-2.5"]
PICTURES = {"synth_300x200": (300, 200), "synth_640x480": (640, 480)}
ALLOWED = 1e-5
"""Of a stage's largest value: how far float32 results may be from the release's."""


@pytest.fixture(scope="session")
def folder(data: Path) -> Path:
    return data / "relatives/minicpm-llama3-v-2_5"


@pytest.fixture(scope="session")
def released(folder):
    return load_model(folder)


@pytest.fixture(scope="session")
def expected(folder):
    return load_file(folder / "expected.safetensors")


def small_model(seed: int = 0) -> Model:
    model = random_model(FAMILY.small(), seed, until="tokens")
    return Model(model.config, {name: array.astype(np.float64) for name, array in model.weights.items()})


def strips_of(sizes, seed: int = 0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((3, 4, h * w * 4)) for h, w in sizes]


def relative(found, right):
    assert found.shape == right.shape
    return np.abs(found - right).max() / np.abs(right).max()


batches = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4)


# The release's own answers


@pytest.mark.parametrize("name", PICTURES)
def test_the_releases_slices_and_text_come_out(name, released, expected, folder):
    answers = json.loads((folder / "expected.json").read_text())[name]
    cut = FAMILY.cut(synthetic_picture(*PICTURES[name]), released.config)
    np.testing.assert_array_equal(cut.tgt_sizes, expected[f"{name}.tgt_sizes"])
    digests = [hashlib.sha256(strip.astype("<f4").tobytes()).hexdigest() for strip in cut.strips]
    assert digests == answers["strips_sha256"]
    assert image_placeholder(cut.grid, 0, released.config) == answers["placeholder"]


@pytest.mark.parametrize("name", PICTURES)
def test_the_releases_arrays_come_out(name, released, expected):
    """Padded places too: they take part. Measured: at most 1e-6."""
    strips, tgt_sizes = slice_image(synthetic_picture(*PICTURES[name]), released.config)
    found = run(strips, tgt_sizes, released)
    np.testing.assert_array_equal(found["position_ids"], expected[f"{name}.position_ids"])
    for ours, theirs in (("embeddings", "embeddings"), ("hidden", "last_hidden_state"), ("tokens", "vision_tokens")):
        assert found[ours].dtype == np.float32
        assert relative(found[ours], expected[f"{name}.{theirs}"]) < ALLOWED


# torch as an oracle


def upstreams_ids(tgt_sizes, side):
    """(B, 2) -> int64 (B, Lmax): the mask's row set whole, its sides counted as the tower counts them."""
    longest = max(h * w for h, w in tgt_sizes)
    mask = torch.zeros((len(tgt_sizes), 1, longest), dtype=torch.bool)
    for b, (h, w) in enumerate(tgt_sizes):
        mask[b, : h * w] = True  # an axis of length 1: the whole row
    ids = []
    for slice_mask in mask:
        rows, columns = int(slice_mask[:, 0].sum()), int(slice_mask[0].sum())
        buckets = [torch_bucketize(torch_arange_coords(n), torch_boundaries(side), right=True) for n in (rows, columns)]
        ids.append(np.add.outer(buckets[0] * side, buckets[1]).ravel())
    return np.array(ids)


def upstreams_embeddings(strips, ids, weights):
    conv = torch_conv(
        seed_pixel_values(strips),
        weights["vpm.embeddings.patch_embedding.weight"],
        weights["vpm.embeddings.patch_embedding.bias"],
    )
    return conv.reshape(*conv.shape[:2], -1).transpose(0, 2, 1) + weights["vpm.embeddings.position_embedding.weight"][ids]


@given(batches, st.integers(0, 99))
def test_it_is_what_torch_computes(tgt_sizes, seed):
    """float64. The oracle's table of the resampler is float64, ours float32, as the release's: hence 3e-6 for tokens."""
    model, strips = small_model(), strips_of(tgt_sizes, seed)
    ids = upstreams_ids(tgt_sizes, model.config.vision.num_patches_per_side)
    embeddings = upstreams_embeddings(strips, ids, model.weights)
    one_row = [(1, ids.shape[1])] * len(ids)
    hidden = torch_encoder(embeddings, one_row, model.weights, layers=2, heads=2, eps=1e-6)
    tokens = torch_resampler(hidden, tgt_sizes, model.weights, heads=1)
    found = run(strips, tgt_sizes, model)
    np.testing.assert_array_equal(found["position_ids"], ids)
    for name, right, atol in (("embeddings", embeddings, 1e-11), ("hidden", hidden, 1e-11), ("tokens", tokens, 3e-6)):
        np.testing.assert_allclose(found[name], right, rtol=0, atol=atol)


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=4))
def test_ids_are_the_first_row_of_the_table(tgt_sizes):
    config = FAMILY.small()
    ids = FAMILY.position_ids(np.array(tgt_sizes), config, "arange")
    longest = max(h * w for h, w in tgt_sizes)
    np.testing.assert_array_equal(ids, np.tile(bucket_coords(longest, 70), (len(tgt_sizes), 1)))
    assert ids.min() >= 0
    assert ids.max() < 70


# What depends on the batch


def test_a_slice_depends_on_the_longest_of_its_batch():
    model, strips = small_model(), strips_of([(2, 3), (4, 5)])
    alone = run(strips[:1], [(2, 3)], model)
    together = run(strips, [(2, 3), (4, 5)], model)
    assert together["position_ids"].shape == (2, 20)
    for name, places in (("embeddings", 6), ("hidden", 6), ("tokens", 4)):
        assert np.abs(together[name][0, :places] - alone[name][0, :places]).max() > 1e-3


@given(batches, st.integers(0, 99))
def test_a_slice_depends_on_nothing_else_of_its_batch(tgt_sizes, seed):
    """Beside the longest alone, each slice gives what it gives in the whole batch."""
    model, strips = small_model(), strips_of(tgt_sizes, seed)
    longest = int(np.argmax([h * w for h, w in tgt_sizes]))
    whole = run(strips, tgt_sizes, model)
    for b in range(len(tgt_sizes)):
        pair = run([strips[b], strips[longest]], [tgt_sizes[b], tgt_sizes[longest]], model)
        for name in ("embeddings", "hidden", "tokens"):
            np.testing.assert_allclose(pair[name][0], whole[name][b], rtol=0, atol=1e-11)


def test_padding_is_embedded_and_attended_to():
    model, sizes = small_model(), [(2, 3), (4, 5)]
    embeddings = embed(strips_of(sizes), sizes, model)
    bias = model.weights["vpm.embeddings.patch_embedding.bias"]
    table = model.weights["vpm.embeddings.position_embedding.weight"]
    np.testing.assert_allclose(embeddings[0, 6:], bias + table[bucket_coords(20)[6:]], rtol=0, atol=1e-15)
    changed = embeddings.copy()
    changed[0, 19] += np.linspace(-1, 1, 16)
    before, after = encode(embeddings, sizes, model), encode(changed, sizes, model)
    assert np.abs(after[0, :6] - before[0, :6]).max() > 1e-4
    np.testing.assert_array_equal(after[1], before[1])


def test_places_beyond_the_batchs_longest_are_not_read():
    model, sizes = small_model(), [(2, 3), (3, 3)]
    embeddings = embed(strips_of(sizes), sizes, model)
    longer = np.full((2, 11, 16), np.nan)
    longer[:, :9] = embeddings
    hidden = encode(longer, sizes, model)
    np.testing.assert_array_equal(hidden[:, :9], encode(embeddings, sizes, model))
    assert not hidden[:, 9:].any()


def test_the_mask_of_the_output_says_where_patches_are():
    found = companions(FAMILY.vision_stages[:1], np.array([(2, 3), (4, 5)]), small_model())
    np.testing.assert_array_equal(found["patch_attn_mask"], patch_attention_mask([(2, 3), (4, 5)]))


def test_results_laid_end_to_end_keep_their_numbers_and_get_zeros():
    """Each picture is a batch of its own; the places that only a longer batch has took part in nothing."""
    model, sizes = small_model(), [[(2, 3), (1, 4)], [(4, 5)]]
    batches = [run(strips_of(each, seed), each, model) for seed, each in enumerate(sizes)]
    for stage in FAMILY.vision_stages:
        joined = join(stage, [batch[stage.name] for batch in batches], model, np.concatenate(sizes))
        most = batches[0][stage.name].shape[1]
        np.testing.assert_array_equal(joined[:2, :most], batches[0][stage.name])
        np.testing.assert_array_equal(joined[2:], batches[1][stage.name])
        assert not joined[:2, most:].any()


def test_the_command_line_takes_each_picture_as_a_batch_of_its_own(folder, expected, tmp_path):
    """The ids too: those of one batch of all pictures would be others."""
    paths = [str(tmp_path / f"{name}.png") for name in PICTURES]
    for path, size in zip(paths, PICTURES.values(), strict=True):
        Image.fromarray(synthetic_picture(*size)).save(path)
    for until, theirs in (("embeddings", "embeddings"), ("tokens", "vision_tokens")):
        out = tmp_path / f"{until}.safetensors"
        assert cli.run(["embed", *paths, "--weights", str(folder), "--until", until, "-o", str(out)]) == 0
        found = load_file(out)
        assert found[until].shape[0] == found["position_ids"].shape[0] == 4
        for picture, name in enumerate(PICTURES):
            slices = found["image_index"] == picture
            right = expected[f"{name}.{theirs}"]
            places = expected[f"{name}.position_ids"].shape[1]
            np.testing.assert_array_equal(found["position_ids"][slices, :places], expected[f"{name}.position_ids"])
            assert not found["position_ids"][slices, places:].any()
            assert relative(found[until][slices, : right.shape[1]], right) < ALLOWED
            assert not found[until][slices, right.shape[1] :].any()


@given(st.lists(batches, min_size=1, max_size=3))
def test_ids_of_joined_results_are_each_batchs_own(drawn):
    model, sizes = small_model(), [np.array(batch) for batch in drawn]
    found = companions((), np.concatenate(sizes), model, batches=[len(batch) for batch in sizes])["position_ids"]
    first = 0
    for batch in sizes:
        own = FAMILY.position_ids(batch, model.config, "arange")
        np.testing.assert_array_equal(found[first : first + len(batch), : own.shape[1]], own)
        assert not found[first : first + len(batch), own.shape[1] :].any()
        first += len(batch)


def test_the_other_rules_are_followed():
    model, strips = small_model(), strips_of([(5, 5)])
    ids = {rule: run(strips, [(5, 5)], model, rule=rule)["position_ids"] for rule in ("arange", "exact")}
    assert ids["arange"][0, 5] == 13
    assert ids["exact"][0, 5] == 14


def test_more_patches_than_one_axis_has():
    message = (
        r"^position_ids: tgt_sizes\[1\] makes 33124 patches; MiniCPM-Llama3-V 2\.5 lays them on one axis, where at most 32768 "
        r"fit$"
    )
    with pytest.raises(ValueError, match=message):
        FAMILY.position_ids(np.array([(1, 1), (182, 182)]), FAMILY.small(), "arange")


def test_the_bound_on_embeddings_goes_by_the_families_own_ids():
    """Padding of a batch takes its rows of the table, too."""
    model, sizes = small_model(), [(2, 3), (4, 5)]
    black = [np.zeros_like(strip) for strip in strips_of(sizes)]
    bias, table = (model.weights[f"vpm.embeddings.{name}"] for name in ("patch_embedding.bias", "position_embedding.weight"))
    right = np.abs(bias) + np.abs(table[bucket_coords(20)])
    np.testing.assert_allclose(embed_scale(black, sizes, model).magnitude, np.stack([right, right]), rtol=1e-12)


# Text and bounds


@pytest.mark.parametrize("grid", [None, (1, 2), (2, 1), (3, 2)])
def test_bounds_lie_between_image_tokens_alone(grid):
    config = replace(FAMILY.small(), query_num=2)
    words = {"<image>": 290, "</image>": 291, "<slice>": 292, "</slice>": 293, "<unk>": 294, "\n": 7}
    ids = [words[word] for word in re.findall(r"<[^>]*>|\n", image_placeholder(grid, 5, config))]
    bounds = image_bounds(ids, [290], [291])
    columns, rows = grid or (0, 0)
    assert len(bounds) == 1 + columns * rows
    assert all(ids[start:end] == [294, 294] for start, end in bounds)
    assert ids.count(292) == ids.count(293) == (grid is not None)
    assert ids.count(7) == max(rows - 1, 0)
    if grid:
        with pytest.raises(ValueError, match=r"^image_bounds: input_ids\[4\] = 292 is a start token without its end token"):
            image_bounds(ids, [290, 292], [291, 293])


# Ports that are wrong


def as_in_two_dimensions(strips, tgt_sizes, model):
    """llama.cpp: MiniCPM-V 2.6's ids, and no padding."""
    other = Model(replace(model.config, family=FAMILIES["minicpm-v-2.6"]), model.weights)
    return run(strips, tgt_sizes, other)


def as_each_by_itself(strips, tgt_sizes, model):
    """vLLM: ids by each slice's own number of patches, padding left out."""
    alone = [run([strip], [size], model) for strip, size in zip(strips, tgt_sizes, strict=True)]
    return {stage.name: join(stage, [each[stage.name] for each in alone], model, tgt_sizes) for stage in FAMILY.vision_stages}


@pytest.mark.parametrize("wrong", [as_in_two_dimensions, as_each_by_itself])
def test_other_software_differs(wrong, released, expected):
    strips, tgt_sizes = slice_image(synthetic_picture(640, 480), released.config)
    ours, theirs = run(strips, tgt_sizes, released), wrong(strips, tgt_sizes, released)
    for name in ("embeddings", "hidden", "tokens"):
        places = tgt_sizes[1].prod() if name != "tokens" else None
        assert relative(theirs[name][1, :places], ours[name][1, :places]) > 100 * ALLOWED


def test_padding_left_out_of_the_attention_differs(released, expected):
    """The release's ids, but a mask as it was meant: what a well-meaning port does."""
    sizes = expected["synth_640x480.tgt_sizes"].astype(np.int64)
    embeddings = expected["synth_640x480.embeddings"]
    other = Model(replace(released.config, family=FAMILIES["minicpm-v-2.6"]), released.weights)
    masked = encode(embeddings, sizes, other)
    places = sizes[1].prod()
    assert relative(masked[1, :places], expected["synth_640x480.last_hidden_state"][1, :places]) > 100 * ALLOWED
    assert relative(masked[0], expected["synth_640x480.last_hidden_state"][0]) < ALLOWED  # the longest slice has no padding
    tokens = resample(masked, sizes, released)
    assert relative(tokens[1], expected["synth_640x480.vision_tokens"][1]) > 10 * ALLOWED


# Config


def config_with(folder: Path, path: Path, top=None, preprocessor=None):
    for name, changes in (("config.json", top), ("preprocessor_config.json", preprocessor)):
        content = json.loads((folder / name).read_text()) | (changes or {})
        (path / name).write_text(json.dumps({key: value for key, value in content.items() if value != "absent"}))
    return read_config(path)


def test_the_preset_is_the_release():
    config = FAMILY.presets()["MiniCPM-Llama3-V 2.5"]
    assert (config.query_num, config.embed_dim, config.resampler_heads, config.use_image_id) == (96, 4096, 32, False)


def test_what_the_config_leaves_out_is_the_releases(folder, tmp_path):
    config = config_with(folder, tmp_path, dict.fromkeys(("query_num", "hidden_size", "slice_mode"), "absent"))
    assert (config.query_num, config.embed_dim, config.slicing.slice_mode) == (96, 4096, True)
    assert config.family is FAMILY


@pytest.mark.parametrize(
    ("top", "preprocessor", "message"),
    [
        ({"slice_mode": False}, {}, r"slice_mode of config\.json is False; supported is True"),
        ({}, {"slice_mode": False}, r"slice_mode of preprocessor_config\.json is False; supported is True"),
        ({}, {"use_image_id": True}, r"use_image_id of preprocessor_config\.json is True; supported is False"),
        ({"use_image_id": True}, {}, r"use_image_id of config\.json is True; supported is False"),
        ({"batch_vision_input": False}, {}, r"batch_vision_input of config\.json is False; supported is True"),
        ({}, {"image_feature_size": 64}, r"image_feature_size of preprocessor_config\.json is 64; supported is 96"),
        ({"drop_vision_last_layer": "absent"}, {}, r"drop_vision_last_layer of config\.json is missing"),
    ],
)
def test_what_its_code_does_not_do_is_refused(top, preprocessor, message, folder, tmp_path):
    with pytest.raises(ValueError, match=rf"^read_config: MiniCPM-Llama3-V 2\.5: {message}.* \(in "):
        config_with(folder, tmp_path, top, preprocessor)


@pytest.mark.parametrize("version", ["v2.5", None, "absent", 2, 2.51])
def test_other_versions_are_not_taken_for_it(version, folder, tmp_path):
    message = r"config\.json has model_type 'minicpmv' and version .*; supported are the numbers .*2\.5"
    with pytest.raises(ValueError, match=message):
        config_with(folder, tmp_path, {"version": version})


def test_it_has_no_frames():
    message = r"^resample: MiniCPM-Llama3-V 2\.5 takes no temporal_ids"
    with pytest.raises(ValueError, match=message):
        resample(np.zeros((1, 1, 16)), [(1, 1)], small_model(), [[-1]])

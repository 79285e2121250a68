"""MiniCPM-V 4.5: its release's own answers for pictures and frames, torch as an oracle, and ports that are wrong."""

import hashlib
import json
import math
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
from torch.nn import functional

from npembed import FAMILIES, Model, image_bounds, image_placeholder, load_model, random_model, resample, run, slice_image
from npembed.families.frames import Frames, frames_placeholders, slice_frames
from npembed.steps.resampler import time_code
from tests.oracles import sincos_naive
from tests.synthetic import synthetic_picture

FAMILY = FAMILIES["minicpm-v-4.5"]
PICTURES = {"synth_300x200": (300, 200), "synth_640x480": (640, 480)}
ALLOWED = 1e-5
"""Of a stage's largest value: how far float32 results may be from the release's."""
LAST = 71_999


@pytest.fixture(scope="session")
def folder(data: Path) -> Path:
    return data / "relatives/minicpm-v-4_5"


@pytest.fixture(scope="session")
def released(folder):
    return load_model(folder)


@pytest.fixture(scope="session")
def expected(folder):
    return load_file(folder / "expected.safetensors")


@pytest.fixture(scope="session")
def video(expected):
    """Hidden states, sizes, groups of times and the release's tokens."""
    ends = np.cumsum(expected["video.group_lengths"])[:-1]
    groups = [times.tolist() for times in np.split(expected["video.temporal_ids"], ends)]
    return expected["video.last_hidden_state"], expected["video.tgt_sizes"], groups, expected["video.vision_tokens"]


def small_model(embed_dim: int = 256, seed: int = 0) -> Model:
    model = random_model(replace(FAMILY.small(), embed_dim=embed_dim), seed, until="tokens")
    return Model(model.config, {name: array.astype(np.float64) for name, array in model.weights.items()})


def hidden_of(sizes, seed: int = 0):
    longest = max(h * w for h, w in sizes)
    return np.random.default_rng(seed).standard_normal((len(sizes), longest, 16))


def relative(found, right):
    assert found.shape == right.shape
    return np.abs(found - right).max() / np.abs(right).max()


sides = st.integers(1, 5)
frames_times = st.lists(st.integers(0, LAST), min_size=1, max_size=3)
groups_of_times = st.lists(st.one_of(st.just([-1]), frames_times), min_size=1, max_size=3)


@st.composite
def videos(draw):
    """Groups of times, and the sizes of their slices, unequal inside a group too; shrinks to one picture of one patch."""
    groups = draw(groups_of_times)
    count = sum(map(len, groups))
    return groups, draw(st.lists(st.tuples(sides, sides), min_size=count, max_size=count))


# The release's own answers


@pytest.mark.parametrize("name", PICTURES)
def test_the_releases_pictures_come_out(name, released, expected, folder):
    """Measured: at most 1e-6."""
    answers = json.loads((folder / "expected.json").read_text())[name]
    cut = FAMILY.cut(synthetic_picture(*PICTURES[name]), released.config)
    np.testing.assert_array_equal(cut.tgt_sizes, expected[f"{name}.tgt_sizes"])
    digests = [hashlib.sha256(strip.astype("<f4").tobytes()).hexdigest() for strip in cut.strips]
    assert digests == answers["strips_sha256"]
    assert image_placeholder(cut.grid, 0, released.config) == answers["placeholder"]
    found = run(cut.strips, cut.tgt_sizes, released)
    np.testing.assert_array_equal(found["position_ids"], expected[f"{name}.position_ids"])
    assert relative(found["tokens"], expected[f"{name}.vision_tokens"]) < ALLOWED
    for ours, theirs in (("embeddings", "embeddings"), ("hidden", "last_hidden_state")):
        for b, (h, w) in enumerate(cut.tgt_sizes):
            assert relative(found[ours][b, : h * w], expected[f"{name}.{theirs}"][b, : h * w]) < ALLOWED


def test_the_releases_groups_of_frames_come_out(video, released):
    """A picture, three frames, and two of which one has the last time that there is. Measured: 6e-7."""
    hidden, sizes, groups, tokens = video
    assert groups == [[-1], [3, 7, 36], [0, LAST]]
    found = resample(hidden, sizes, released, groups)
    assert found.dtype == np.float32
    assert found.shape == tokens.shape == (3, 64, 128)
    assert relative(found, tokens) < ALLOWED


# torch as an oracle, and what follows from the definition


def naive_time_code(time, channels):
    """SPEC 13.3, one number at a time: a power, a division and a product, each rounded to float32."""
    half, code = channels // 2, []
    for wave in (math.sin, math.cos):
        for k in range(half):
            exponent = np.float32(k) / np.float32(half)
            omega = np.float32(1) / np.float32(math.pow(10000.0, float(exponent)))
            code.append(wave(float(np.float32(time) * omega)))
    return np.array(code)


@pytest.mark.parametrize("channels", [4, 128, 4096])
@pytest.mark.parametrize("time", [0, 1, 2, 36, 4096, LAST - 1, LAST])
def test_the_code_of_a_time_is_the_formula(time, channels):
    code = time_code(time, channels)
    assert (code.shape, code.dtype) == ((channels,), np.float32)
    np.testing.assert_allclose(code, naive_time_code(time, channels), rtol=0, atol=2e-7)


@given(st.integers(0, LAST))
def test_the_code_of_any_time_is_the_formula(time):
    np.testing.assert_allclose(time_code(time, 32), naive_time_code(time, 32), rtol=0, atol=2e-7)


def test_a_picture_has_no_time():
    assert not time_code(-1, 128).any()
    assert time_code(0, 128).any()  # the cosines of 0


@pytest.mark.parametrize("formula", ["10000**-x", "float64 power", "float64 product"])
def test_other_ways_to_write_the_time_differ_far_out(formula):
    """Why each step is rounded to float32: an angle of thousands of turns shows the last bit of omega."""
    exponents = np.arange(64, dtype=np.float32) / np.float32(64)
    wide = exponents.astype(np.float64)
    omega = {
        "10000**-x": (10000**-wide).astype(np.float32),
        "float64 power": 1 / 10000**wide,
        "float64 product": (np.float32(1) / (10000**wide).astype(np.float32)).astype(np.float64),
    }[formula]
    turns = np.asarray(LAST, dtype=omega.dtype) * omega
    code = np.concatenate([np.sin(turns), np.cos(turns)])
    assert np.abs(code - time_code(LAST, 128)).max() > 5e-4


def torch_groups(hidden, sizes, groups, weights, heads, *, table_on_values=False):
    """SPEC 13.3 from torch.nn, group by group, float64; with `table_on_values` as vLLM and sglang had released it."""
    w = {name.removeprefix("resampler."): torch.tensor(a) for name, a in weights.items() if name.startswith("resampler.")}

    def norm(y, name):
        return functional.layer_norm(y, y.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

    def project(y, part):
        weight, bias = (w[f"attn.in_proj_{kind}"].chunk(3)[part] for kind in ("weight", "bias"))
        return functional.linear(y, weight, bias).unflatten(-1, (heads, -1)).transpose(0, 1)

    tokens, number = [], 0
    for times in groups:
        keyed, plain = [], []
        for time in times:
            rows, columns = sizes[number]
            x = norm(torch.tensor(hidden[number][: rows * columns]) @ w["kv_proj.weight"].T, "ln_kv")
            table = sincos_naive(rows, columns, x.shape[-1])
            if time >= 0:
                table = table + naive_time_code(time, x.shape[-1])
            keyed.append(x + torch.tensor(table))
            plain.append(x)
            number += 1
        if table_on_values:
            keyed, plain = plain, keyed
        queries = project(norm(w["query"], "ln_q"), 0)
        attended = functional.scaled_dot_product_attention(queries, project(torch.cat(keyed), 1), project(torch.cat(plain), 2))
        attended = functional.linear(attended.transpose(0, 1).flatten(1), w["attn.out_proj.weight"], w["attn.out_proj.bias"])
        tokens.append(norm(attended, "ln_post") @ w["proj"])
    return torch.stack(tokens).numpy()


@given(videos(), st.integers(0, 99))
def test_it_is_what_torch_computes(video, seed):
    """The oracle's table of places is float64, ours float32, as the release's: hence 3e-6."""
    groups, sizes = video
    model, hidden = small_model(), hidden_of(sizes, seed)
    found = resample(hidden, sizes, model, groups)
    assert found.shape == (len(groups), 4, 256)
    np.testing.assert_allclose(found, torch_groups(hidden, sizes, groups, model.weights, heads=2), rtol=0, atol=3e-6)


@given(st.lists(st.tuples(sides, sides), min_size=1, max_size=4), st.integers(0, 99), st.sampled_from([np.float32, np.float64]))
def test_pictures_alone_are_the_two_dimensional_resampler_to_the_bit(sizes, seed, dtype):
    model, hidden = small_model(), hidden_of(sizes, seed).astype(dtype)
    model = Model(model.config, {name: array.astype(dtype) for name, array in model.weights.items()})
    older = Model(replace(model.config, family=FAMILIES["minicpm-v-2.6"]), model.weights)
    found = resample(hidden, sizes, model, [[-1]] * len(sizes))
    np.testing.assert_array_equal(found, resample(hidden, sizes, model))
    np.testing.assert_array_equal(found, resample(hidden, sizes, older))


@given(videos(), st.integers(0, 99), st.randoms())
def test_the_order_of_frames_in_a_group_does_not_matter(video, seed, random):
    """Time is in the code, not in the order: attention has none."""
    groups, sizes = video
    hidden, start, order, shuffled = hidden_of(sizes, seed), 0, [], []
    for times in groups:
        places = random.sample(range(len(times)), len(times))
        order += [start + place for place in places]
        shuffled.append([times[place] for place in places])
        start += len(times)
    found = resample(hidden[order], [sizes[place] for place in order], small_model(), shuffled)
    np.testing.assert_allclose(found, resample(hidden, sizes, small_model(), groups), rtol=0, atol=1e-11)


def test_a_group_is_what_it_is_alone_and_nan_stays_in_it():
    groups, sizes = [[-1], [0, 5, 9], [7]], [(2, 3), (2, 2), (2, 2), (2, 2), (1, 5)]
    hidden = hidden_of(sizes)
    whole = resample(hidden, sizes, small_model(), groups)
    alone = resample(hidden[1:4], sizes[1:4], small_model(), groups[1:2])
    np.testing.assert_allclose(alone[0], whole[1], rtol=0, atol=1e-11)
    hidden[2, 0, 0] = np.nan
    spoilt = resample(hidden, sizes, small_model(), groups)
    np.testing.assert_array_equal(spoilt[[0, 2]], whole[[0, 2]])
    assert np.isnan(spoilt[1]).all()


@pytest.mark.parametrize("change", ["times", "groups"])
def test_times_and_groups_both_count(change):
    sizes = [(2, 3)] * 3
    hidden, groups = hidden_of(sizes), [[0, 1, 2]]
    before = resample(hidden, sizes, small_model(), groups)
    after = resample(hidden, sizes, small_model(), {"times": [[0, 1, 3]], "groups": [[0, 1], [2]]}[change])
    assert np.abs(after[0] - before[0]).max() > 1e-5


def test_groups_may_be_arrays_tuples_and_iterators():
    sizes = [(1, 2)] * 4
    hidden, model = hidden_of(sizes), small_model()
    right = resample(hidden, sizes, model, [[0, 1], [2, 3]])
    for groups in (np.array([[0, 1], [2, 3]]), ((0, 1), (2, 3)), iter([range(2), range(2, 4)])):
        np.testing.assert_array_equal(resample(hidden, sizes, model, groups), right)


# Ports that are wrong


def test_the_position_table_on_the_values_is_caught(video, released):
    """Released in vLLM and sglang: keys and values exchanged. The same oracle, done right, agrees."""
    hidden, sizes, groups, tokens = video
    weights = {name: array.astype(np.float64) for name, array in released.weights.items()}
    right, wrong = (
        torch_groups(hidden.astype(np.float64), sizes.tolist(), groups, weights, heads=1, table_on_values=swapped)
        for swapped in (False, True)
    )
    assert relative(right, tokens) < ALLOWED
    for b in range(3):  # the picture, too
        assert relative(wrong[b], tokens[b]) > 1000 * ALLOWED


def test_frames_taken_for_pictures_are_caught(video, released):
    """A port that leaves the times out, or the groups."""
    hidden, sizes, _, tokens = video
    assert len(resample(hidden, sizes, released)) == 6
    one_time = resample(hidden, sizes, released, [[-1], [0, 0, 0], [0, 0]])
    assert relative(one_time[1], tokens[1]) > 100 * ALLOWED
    assert relative(one_time[2], tokens[2]) > 100 * ALLOWED


# Times that do not fit


@pytest.mark.parametrize(
    ("groups", "kind", "message"),
    [
        ([[-1]], ValueError, "temporal_ids has 1 times in 1 groups, but tgt_sizes 3 slices"),
        ([[0, 1, 2], [3]], ValueError, "temporal_ids has 4 times in 2 groups, but tgt_sizes 3 slices"),
        (
            [[0, 1], [2, -1]],
            ValueError,
            r"temporal_ids\[1\] is \[2, -1\]; -1 is a picture, whose slice must be a group of its own",
        ),
        ([[-1, -1, -1]], ValueError, r"temporal_ids\[0\] is \[-1, -1, -1\]; -1 is a picture, whose slice"),
        ([[0, 1, -2]], ValueError, r"temporal_ids\[0\]\[2\] must be a whole number from -1 to 71999; got -2"),
        ([[0], [1, 72_000]], ValueError, r"temporal_ids\[1\]\[1\] must be a whole number from -1 to 71999; got 72000"),
        ([[0, 1, 2.5]], TypeError, r"temporal_ids\[0\]\[2\] must be a whole number from -1 to 71999; got 2\.5"),
        ([[0, 1, 2.0]], TypeError, r"temporal_ids\[0\]\[2\] must be a whole number from -1 to 71999; got 2\.0"),
        ([[0, 1, True]], TypeError, r"temporal_ids\[0\]\[2\] must be a whole number from -1 to 71999; got True"),
        ([[0, 1, None]], TypeError, r"temporal_ids\[0\]\[2\] must be a whole number from -1 to 71999; got None"),
        ([[0, 1], [], [2]], ValueError, r"temporal_ids\[1\] is empty; a group needs at least one time"),
        ([0, 1, 2], TypeError, r"temporal_ids\[0\] must be a list of times, one per slice of the group; got 0"),
        (["012"], TypeError, r"temporal_ids\[0\] must be a list of times, one per slice of the group; got '012'"),
        ([], ValueError, "temporal_ids is empty; at least one is needed"),
        (7, TypeError, "temporal_ids must be a sequence"),
    ],
)
def test_times_that_do_not_fit(groups, kind, message):
    with pytest.raises(kind, match=f"^resample: {message}"):
        resample(np.zeros((3, 2, 16)), [(1, 2)] * 3, small_model(), groups)


WITHOUT_FRAMES = [key for key in FAMILIES if key != FAMILY.key]
RESAMPLERS = [key for key in WITHOUT_FRAMES if any(stage.function == "resample" for stage in FAMILIES[key].stages)]


@pytest.mark.parametrize("key", RESAMPLERS)
@pytest.mark.parametrize("groups", [[[-1]], [[0]]])
def test_other_families_take_no_times(groups, key):
    family = FAMILIES[key]
    model = random_model(family.small(), until="tokens")
    with pytest.raises(ValueError, match=rf"^resample: {family.title} takes no temporal_ids: its resampler makes the tokens"):
        resample(np.zeros((1, 1, model.config.vision.hidden_size)), [(1, 1)], model, groups)


@pytest.mark.parametrize("key", WITHOUT_FRAMES)
def test_other_families_take_no_frames(key):
    family = FAMILIES[key]
    with pytest.raises(ValueError, match=rf"^slice_frames: {family.title} takes no frames: its tokens are made of each slice"):
        slice_frames([np.zeros((8, 8, 3), np.uint8)], [[0]], family.small())


def test_only_4_5_has_frames():
    """MiniCPM-o 4.5 of the same size has the two-dimensional resampler (SPEC 13.1)."""
    assert [key for key, family in FAMILIES.items() if family.frames] == ["minicpm-v-4.5"]


# Frames into slices


def frame(width, height, shift=0):
    return (synthetic_picture(width, height) + np.uint8(shift)).astype(np.uint8)


@given(
    st.lists(st.tuples(frames_times, st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=3),
    st.booleans(),
)
def test_frames_are_cut_as_pictures_and_the_kth_slices_form_a_group(drawn, picture_first):
    """Groups of different sizes, in the order that the release's processor has them; a picture can be among them."""
    config = FAMILY.small()
    groups = [([-1], 9, 30)] * picture_first + drawn
    frames = [[frame(width, height, shift) for shift in range(len(times))] for times, width, height in groups]
    cut = slice_frames([one for group in frames for one in group], [times for times, *_ in groups], config)
    strips, sizes, ids = [], [], []
    for (times, *_), group in zip(groups, frames, strict=True):
        pictures = [slice_image(one, config) for one in group]
        for k in range(len(pictures[0][1])):
            strips += [strip[k] for strip, _ in pictures]
            sizes += [size[k] for _, size in pictures]
            ids.append(times)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(cut.strips, strips, strict=True))
    np.testing.assert_array_equal(cut.tgt_sizes, sizes)
    assert cut.temporal_ids == ids
    assert cut.first_frames == [sum(len(times) for times, *_ in groups[:n]) for n in range(len(groups))]
    assert len(cut.grids) == len(groups)


def test_from_frames_to_tokens_and_their_places_in_the_text():
    """One run of places per group of slices, in the same order."""
    model = random_model(FAMILY.small(), until="tokens")
    frames = [frame(40, 24, shift) for shift in range(3)] + [frame(16, 16)] + [frame(30, 60, shift) for shift in range(2)]
    cut = slice_frames(frames, [[0, 5, 10], [-1], [15, 20]], model.config)
    hidden = run(cut.strips, cut.tgt_sizes, model, until="hidden")["hidden"]
    tokens = resample(hidden, cut.tgt_sizes, model, cut.temporal_ids)
    texts = frames_placeholders(cut, model.config)
    assert len(texts) == 3
    assert len(tokens) == sum(text.count("<image>") + text.count("<slice>") for text in texts) > 3
    words = {"<image>": 1, "</image>": 2, "<slice>": 3, "</slice>": 4, "<unk>": 5}
    ids = [words.get(word, 9) for word in re.findall(r"<[^>]*>|.", "".join(texts), re.DOTALL)]
    assert len(image_bounds(ids, [1, 3], [2, 4])) == len(tokens)


def test_a_group_has_the_text_of_its_first_frame_and_its_number(released):
    """The release's processor writes nothing for the other frames, and numbers a group by its first."""
    cut = slice_frames([frame(300, 200)] * 3 + [frame(640, 480)], [[0, 5, 10], [15]], released.config)
    assert frames_placeholders(cut, released.config) == [
        image_placeholder(None, 0, released.config),
        image_placeholder((2, 1), 3, released.config),
    ]
    assert "<image_id>" not in "".join(frames_placeholders(cut, released.config, use_image_id=False))


def test_frames_of_one_group_must_be_cut_alike():
    config = FAMILY.small()
    frames = [frame(16, 16), frame(16, 16), frame(40, 20)]
    message = (
        r"^slice_frames: frames\[2\] makes slices of \[\[.*\]\] patches, but the first of its group, frames\[1\], \[\[4, 4\]\]"
    )
    with pytest.raises(ValueError, match=message):
        slice_frames(frames, [[0], [5, 10]], config)
    assert isinstance(slice_frames(frames, [[0, 5], [10]], config), Frames)


@pytest.mark.parametrize(
    ("frames", "times", "kind", "message"),
    [
        ([], [[0]], ValueError, "frames is empty; at least one is needed"),
        ([(8, 8)], [[0, 5]], ValueError, "temporal_ids has 2 times in 1 groups, but there are 1 frames"),
        ([(8, 8)] * 3, [[0], [5]], ValueError, "temporal_ids has 2 times in 2 groups, but there are 3 frames"),
        ([(8, 8)] * 2, [[0, 72_000]], ValueError, r"temporal_ids\[0\]\[1\] must be a whole number from -1 to 71999; got 72000"),
        ([(8, 8)] * 2, [[-1, 0]], ValueError, r"temporal_ids\[0\] is \[-1, 0\]; -1 is a picture"),
    ],
)
def test_frames_and_times_that_do_not_fit(frames, times, kind, message):
    with pytest.raises(kind, match=f"^slice_frames: {message}"):
        slice_frames([Image.new("RGB", size) for size in frames], times, FAMILY.small())


def test_frames_without_a_config():
    with pytest.raises(TypeError, match=r"^slice_frames: config must be a Config; got NoneType$"):
        slice_frames([frame(8, 8)], [[0]], None)
    cut = slice_frames([frame(8, 8)], [[0]], FAMILY.small())
    with pytest.raises(ValueError, match=r"^frames_placeholders: MiniCPM-V 2\.6 takes no frames"):
        frames_placeholders(cut, FAMILIES["minicpm-v-2.6"].small())

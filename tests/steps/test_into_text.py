"""Placeholder text, where the images are in it, and the vision tokens put in their places."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npembed import Config, image_bounds, image_placeholder, scatter_image_embeds
from npembed.conformance import strategies as draw
from npembed.steps.cutting import plan_slices
from tests.tensors import load_file

STARTS, ENDS, UNK, TEXT = [290, 292], [291, 293], 294, 7
SEED_BOUNDS = [[18, 82], [84, 148], [150, 214]]


@pytest.fixture(scope="module")
def expected(data):
    return load_file(data / "tiny-minicpmv/expected.safetensors")


@pytest.fixture(scope="module")
def embed_tokens(data):
    return load_file(data / "tiny-minicpmv/model.safetensors")["llm.model.embed_tokens.weight"]


def ids_of(text: str) -> list[int]:
    """A tokenizer for placeholders: special tokens by their ids, everything else one id per character."""
    known = {"<image>": 290, "</image>": 291, "<slice>": 292, "</slice>": 293, "<unk>": UNK}
    return [known.get(piece, TEXT) for piece in re.findall(r"</?(?:image|slice|unk)>|.", text, flags=re.DOTALL)]


# placeholders


def test_every_placeholder_of_upstream(data):
    rows = json.loads((data / "placeholders.json").read_text())["rows"]
    assert len(rows) >= 15
    for row in rows:
        grid = plan_slices(row["image_size"]).grid
        assert grid == (tuple(row["grid"]) if row["grid"] else None)
        text = row["text_with_unk_counted"].replace("<unk>*64", "<unk>" * 64)
        assert image_placeholder(grid, row["image_id"]) == text


@given(st.none() | st.tuples(st.integers(1, 9), st.integers(1, 9)), st.none() | st.integers(0, 10**6), st.integers(1, 9))
def test_a_placeholder_has_a_place_for_each_slice(grid, image_id, query_num):
    text = image_placeholder(grid, image_id, Config(query_num=query_num))
    columns, rows = grid or (0, 1)
    assert text.count("<unk>") == query_num * (1 + columns * rows)
    assert text.count("<image>") == text.count("</image>") == 1
    assert [line.count("<slice>") for line in text.split("\n")] == [columns] * rows
    assert ("<image_id>" in text) == (image_id is not None)
    bounds = image_bounds(ids_of(text), STARTS, ENDS)
    assert (bounds[:, 1] - bounds[:, 0]).tolist() == [query_num] * (1 + columns * rows)


def test_a_grid_may_be_any_pair():
    assert image_placeholder(np.array([2, 1])) == image_placeholder([2, 1]) == image_placeholder((2, 1))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (((2, 1, 1),), ValueError, r"grid must be \(columns, rows\) or None; got \(2, 1, 1\)"),
        ((4,), ValueError, r"grid must be \(columns, rows\) or None; got 4"),
        (((2, 0),), ValueError, r"grid\[1\] must be a whole number from 1 to 32768; got 0"),
        (((1.5, 2),), TypeError, r"grid\[0\] must be a whole number from 1 to 32768; got 1\.5"),
        ((None, -1), ValueError, r"image_id must be a whole number of at least 0; got -1"),
        ((None, True), TypeError, r"image_id must be a whole number of at least 0; got True"),
    ],
)
def test_placeholders_refuse(arguments, error, message):
    with pytest.raises(error, match=f"^image_placeholder: {message}$"):
        image_placeholder(*arguments)


# bounds


def test_the_seeds_bounds(expected):
    bounds = image_bounds(expected["scatter.input_ids"], STARTS, ENDS)
    assert bounds.tolist() == expected["scatter.image_bound"].tolist() == SEED_BOUNDS
    assert bounds.dtype == np.int64


@given(draw.token_sequences())
def test_bounds_are_what_a_drawn_text_carries(sequence):
    found = image_bounds(sequence.input_ids, sequence.start_ids, sequence.end_ids)
    np.testing.assert_array_equal(found, sequence.image_bound)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.booleans())), st.integers(1, 4))
def test_bounds_are_where_the_images_were_put(pieces, tail):
    ids, bounds = [], []
    for before, length, is_slice in pieces:
        ids += [TEXT] * before + [STARTS[is_slice]]
        bounds.append([len(ids), len(ids) + length])
        ids += [UNK] * length + [ENDS[is_slice]]
    found = image_bounds(ids + [TEXT] * tail, STARTS, ENDS)
    assert found.tolist() == bounds
    assert found.shape == (len(pieces), 2)
    assert found.dtype == np.int64


@pytest.mark.parametrize(
    ("input_ids", "message"),
    [
        ([7, 290, 294], r"input_ids\[1\] = 290 is a start token without its end token after it"),
        ([290, 294, 292, 294, 293], r"input_ids\[0\] = 290 is a start token without its end token after it"),
        ([290, 294, 291, 7, 292], r"input_ids\[4\] = 292 is a start token without its end token after it"),
        ([7, 7, 291], r"input_ids\[2\] = 291 is an end token without its start token before it"),
        ([290, 294, 291, 293], r"input_ids\[3\] = 293 is an end token without its start token before it"),
        ([293, 294, 292], r"input_ids\[0\] = 293 is an end token without its start token before it"),
        ([[290, 291]], r"input_ids must have shape \(T,\), not empty; got \(1, 2\)"),
        (np.zeros(0, int), r"input_ids must have shape \(T,\), not empty; got \(0,\)"),
    ],
)
def test_bounds_refuse_text(input_ids, message):
    with pytest.raises(ValueError, match=f"^image_bounds: {message}$"):
        image_bounds(input_ids, STARTS, ENDS)


@pytest.mark.parametrize(
    ("starts", "ends", "message"),
    [
        (np.zeros(0, int), ENDS, r"start_ids must have shape \(K,\), not empty; got \(0,\)"),
        (STARTS, 291, r"end_ids must have shape \(K,\), not empty; got \(\)"),
        (STARTS, [291, 290], r"290 is in both start_ids and end_ids; it can only be in one"),
    ],
)
def test_bounds_refuse_special_ids(starts, ends, message):
    with pytest.raises(ValueError, match=f"^image_bounds: {message}$"):
        image_bounds([7], starts, ends)


def test_bounds_refuse_fractions():
    with pytest.raises(TypeError, match=r"^image_bounds: input_ids\[1\] is 1\.5; input_ids must hold whole numbers$"):
        image_bounds([1.0, 1.5], STARTS, ENDS)


# scatter


def test_upstreams_input_embeddings_bit_for_bit(expected, embed_tokens):
    text, tokens = embed_tokens[expected["scatter.input_ids"]], expected["synth_640x480.vision_tokens"]
    before = text.copy(), tokens.copy()
    merged = scatter_image_embeds(text, tokens, SEED_BOUNDS)
    assert merged.dtype == np.float32
    np.testing.assert_array_equal(merged, expected["scatter.inputs_embeds"])
    np.testing.assert_array_equal(text, before[0])
    np.testing.assert_array_equal(tokens, before[1])
    assert not np.shares_memory(merged, text)


@given(st.lists(st.integers(0, 4), max_size=4), st.integers(1, 4), st.integers(1, 3), st.randoms())
def test_each_place_holds_its_token_and_the_rest_its_text(gaps, query_num, tail, random):
    """Slices in any order, with none, some or no text between them."""
    bounds, place = [], 0
    for gap in gaps:
        bounds.append((place + gap, place + gap + query_num))
        place = bounds[-1][1]
    random.shuffle(bounds)
    text = -np.arange(1.0, place + tail + 1)[:, None]  # every text row is below 0
    tokens = np.arange(len(bounds) * query_num, dtype=float).reshape(-1, query_num, 1)
    merged = scatter_image_embeds(text, tokens, np.array(bounds, dtype=int).reshape(-1, 2))
    wanted = text.copy()
    for n, (start, _) in enumerate(bounds):
        for q in range(query_num):
            wanted[start + q] = n * query_num + q
    np.testing.assert_array_equal(merged, wanted)


@pytest.mark.parametrize("text_dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("token_dtype", [np.float16, np.float32, np.float64])
def test_the_texts_type_is_the_results(text_dtype, token_dtype):
    merged = scatter_image_embeds(np.zeros((3, 2), text_dtype), np.ones((1, 2, 2), token_dtype), [[0, 2]])
    assert merged.dtype == (np.float64 if text_dtype == np.float64 else np.float32)
    assert merged.tolist() == [[1, 1], [1, 1], [0, 0]]


def test_nan_is_passed_on():
    merged = scatter_image_embeds(np.zeros((3, 1)), [[[np.nan]]], [[1, 2]])
    assert np.isnan(merged).ravel().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([[0, 2], [1, 3]], r"image_bound\[1\] = \(1, 3\) overlaps image_bound\[0\] = \(0, 2\)"),
        ([[3, 5], [2, 4]], r"image_bound\[0\] = \(3, 5\) overlaps image_bound\[1\] = \(2, 4\)"),
        ([[3, 5], [3, 5]], r"image_bound\[1\] = \(3, 5\) overlaps image_bound\[0\] = \(3, 5\)"),
        ([[0, 2], [4, 2]], r"image_bound\[1\] = \(4, 2\) must have 0 <= start <= end <= T = 6"),
        ([[0, 2], [5, 7]], r"image_bound\[1\] = \(5, 7\) must have 0 <= start <= end <= T = 6"),
        ([[-2, 0], [3, 5]], r"image_bound\[0\] = \(-2, 0\) must have 0 <= start <= end <= T = 6"),
        ([[0, 2], [3, 6]], r"image_bound\[1\] = \(3, 6\) is 3 long; a slice has 2 vision tokens"),
        ([[0, 0], [3, 5]], r"image_bound\[0\] = \(0, 0\) is 0 long; a slice has 2 vision tokens"),
        ([0, 2], r"image_bound must have shape \(N, 2\); got \(2,\)"),
        ([[0, 2, 3]], r"image_bound must have shape \(N, 2\); got \(1, 3\)"),
        ([[0, 2]], r"vision_tokens must have shape \(N, Q, E\) = \(1, Q, 3\), Q at least 1; got \(2, 2, 3\)"),
    ],
)
def test_scatter_refuses_bounds(bounds, message):
    with pytest.raises(ValueError, match=f"^scatter_image_embeds: {message}$"):
        scatter_image_embeds(np.zeros((6, 3)), np.zeros((2, 2, 3)), bounds)


@pytest.mark.parametrize(
    ("text", "tokens", "message"),
    [
        ((6,), (1, 2, 3), r"inputs_embeds must have shape \(T, E\), not empty; got \(6,\)"),
        ((1, 6, 3), (1, 2, 3), r"inputs_embeds must have shape \(T, E\), not empty; got \(1, 6, 3\)"),
        ((0, 3), (1, 2, 3), r"inputs_embeds must have shape \(T, E\), not empty; got \(0, 3\)"),
        ((6, 3), (1, 2, 4), r"vision_tokens must have shape \(N, Q, E\) = \(1, Q, 3\), Q at least 1; got \(1, 2, 4\)"),
        ((6, 3), (2, 3), r"vision_tokens must have shape \(N, Q, E\) = \(1, Q, 3\), Q at least 1; got \(2, 3\)"),
        ((6, 3), (1, 0, 3), r"vision_tokens must have shape \(N, Q, E\) = \(1, Q, 3\), Q at least 1; got \(1, 0, 3\)"),
    ],
)
def test_scatter_refuses_shapes(text, tokens, message):
    with pytest.raises(ValueError, match=f"^scatter_image_embeds: {message}$"):
        scatter_image_embeds(np.zeros(text), np.zeros(tokens), [[0, 2]])


def test_scatter_refuses_what_is_no_number():
    with pytest.raises(TypeError, match=r"^scatter_image_embeds: image_bound\[0, 1\] is 2\.5; image_bound must hold whole"):
        scatter_image_embeds(np.zeros((6, 3)), np.zeros((1, 2, 3)), [[0, 2.5]])
    with pytest.raises(TypeError, match=r"^scatter_image_embeds: vision_tokens must hold floats; got dtype <U1$"):
        scatter_image_embeds(np.zeros((6, 3)), [[["a"]]], [[0, 1]])

"""The page of `npembed explain`, without a browser: its numbers are the functions' own, and text from outside is only text."""

import base64
import io
import json
import re
import zlib
from functools import cache

import numpy as np
import pytest
from PIL import Image

import npembed
from npembed import FAMILIES, RULES, bucket_coords, cli, load_model, position_ids, random_model
from npembed.families.idefics2 import perceive
from npembed.families.phi4_multimodal import crops
from npembed.pages import drawing, seen
from npembed.pages.attention import chosen_places, stage_attention, tower_attention, watched
from npembed.pages.explain import SAMPLE, default_config, exact_bytes, explain
from npembed.pages.page import escape_json, render
from npembed.pages.rulers import ruler
from npembed.pages.steps import Subject
from npembed.records.arithmetic import EXACT
from npembed.steps.positions.differences import compare_two
from npembed.steps.resampler import sincos_table
from npembed.support.pictures import Turn, read_image
from tests.families.test_invented_family import LATTICE
from tests.page_reading import Page
from tests.synthetic import synthetic_picture

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&{{ 7*7 }}\u2028.png"
PHOTO = 3000, 2250


def picture(width=640, height=480):
    return Image.fromarray(synthetic_picture(width, height))


def page_of(**given) -> Page:
    given = {"picture": picture(), "name": "a.png", "config": npembed.MINICPM_V_2_6} | given
    return Page(explain(Subject(**given)))


@cache
def page_of_family(key) -> Page:
    """Of the synthetic picture; made once for all tests."""
    return page_of(config=default_config(key))


@pytest.fixture(scope="module")
def plain() -> Page:
    return page_of(compare="exact")


def pixels_of(data: dict) -> np.ndarray:
    kind, _, content = data["image"].partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


# Its numbers are the arrays' own


@pytest.mark.parametrize("key", FAMILIES)
def test_the_pixels_of_a_page_give_back_every_strip(key):
    config, sample = default_config(key), read_image(SAMPLE).picture
    slices = config.family.cut(sample, config)
    shown = page_of(config=config, picture=sample).data["slices"]
    for strip, size, data in zip(slices.strips, slices.tgt_sizes.tolist(), shown, strict=True):
        assert data["size"] == size
        if data["levels"] is None:  # a slice whose numbers come from no bytes
            assert key == "phi-4-multimodal"
            continue
        codes = pixels_of(data)
        assert zlib.crc32(codes.tobytes()) == data["check"]
        levels = np.array(data["levels"]).astype(np.float32)
        numbers = np.stack([levels[channel][codes[:, :, channel]] for channel in range(3)])
        np.testing.assert_array_equal(npembed.steps.patches.picture_to_strip(numbers, config.vision.patch_size), strip)


def test_the_pixels_of_a_picture_are_its_own_bytes_where_black_is_minus_one_and_white_one():
    pixels = synthetic_picture(28, 28)
    codes, levels = drawing.as_levels(pixels.astype(np.float32) / np.float32(255) * 2 - 1)
    np.testing.assert_array_equal(codes, pixels)
    assert levels[0][[0, 255]].tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("key", [key for key, family in FAMILIES.items() if family.rule])
def test_the_ids_of_a_page_are_the_familys(key):
    config = default_config(key)
    family, data = config.family, page_of_family(key).data
    sizes = family.cut(picture(), config).tgt_sizes
    own = family.position_ids(sizes, config, family.rule)
    assert data["rule"] == family.rule
    for rule in data["rules"]:
        ids = family.position_ids(sizes, config, rule)
        for number, length in enumerate(sizes.prod(axis=1)):
            assert data["ids"]["rows"][data["ids"]["of"][rule][number]] == ids[number, :length].tolist()
            assert data["changed"][rule][number] == np.flatnonzero(ids[number, :length] != own[number, :length]).tolist()
    assert set(data["rules"]) | set(data["refused"]) == set(RULES)


@pytest.mark.parametrize("key", [key for key, family in FAMILIES.items() if family.rule])
def test_the_rulers_of_a_page_give_the_ids(key):
    data = page_of_family(key).data
    rulers, side = data["rulers"][data["rule"]], data["side"]
    for number, each in enumerate(data["places"]):
        ids = data["ids"]["rows"][data["ids"]["of"][data["rule"]][number]]
        for (h, r, w, c), id_ in zip(each["at"], ids, strict=True):
            assert rulers[str(h)]["buckets"][r] * side + rulers[str(w)]["buckets"][c] == id_


def test_what_changes_under_another_rule_is_what_compare_two_says():
    data = page_of(picture=picture(1000, 1000)).data
    (h, w) = data["slices"][1]["size"]
    for rule in data["rules"]:
        rows, columns = (compare_two("arange", rule, n)["differ"] for n in (h, w))
        expected = [r * w + c for r in range(h) for c in range(w) if r in rows or c in columns]
        assert data["changed"][rule][1] == expected, rule


@pytest.mark.parametrize(("rule", "where"), [("arange", {"below"}), ("quotient", {"on", "above"}), ("exact", {"exact"})])
def test_a_ruler_says_on_which_side_of_a_boundary_a_coordinate_falls(rule, where):
    found = ruler(25, 70, rule)
    assert [patch for patch, _, _ in found["on"]] == [5, 10, 15, 20]
    assert {side for _, _, side in found["on"]} <= where
    assert found["buckets"] == bucket_coords(25, 70, rule).tolist()
    for patch, bucket, side in found["on"]:
        assert found["buckets"][patch] == bucket - (side == "below")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n", [1, 7, 25, 107])
def test_a_rulers_numbers_are_the_functions(rule, n):
    found = ruler(n, 70, rule)
    assert found["buckets"] == bucket_coords(n, 70, rule).tolist()
    if rule == "exact":
        assert found["coords"] is None
    else:
        coords = npembed.fractional_coords(n, rule)
        np.testing.assert_array_equal(np.array(found["coords"]).astype(coords.dtype), coords)


def test_numbers_keep_their_type():
    for dtype in (np.float32, np.float64):
        values = np.random.default_rng(0).random(100).astype(dtype)
        np.testing.assert_array_equal(np.array(drawing.numbers(values)).astype(dtype), values)


def test_a_picture_of_more_numbers_than_bytes_is_not_coded():
    many = np.linspace(-1, 1, 257, dtype=np.float32).reshape(1, 257, 1).repeat(3, axis=2)
    assert drawing.as_levels(many) is None
    codes, levels = drawing.as_levels(many[:, :256])
    np.testing.assert_array_equal(levels[0][codes[..., 0]], many[:, :256, 0])


# With weights


def made_with_weights(key_or_model, until, size=(60, 40)):
    """(page, arrays of `run`, slices, model) of a small model."""
    model = key_or_model
    if isinstance(model, str):
        model = random_model(FAMILIES[model].small(), until=until)
    slices = model.config.family.cut(picture(*size), model.config)
    page = page_of(picture=picture(*size), config=model.config, model=model, origin="w", until=until)
    return page, npembed.run(slices.strips, slices.tgt_sizes, model, until), slices, model


def floats(packed: dict) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed["float32"]), dtype="<f4").reshape(packed["shape"])


def shaded(weights: dict) -> np.ndarray:
    """float (M, L): the numbers that a page's bytes stand for."""
    most = np.array(weights["most"])[:, None]
    return np.frombuffer(base64.b64decode(weights["bytes"]), dtype=np.uint8).reshape(len(most), -1) / 255 * most


@pytest.mark.parametrize("key", ["minicpm-v-2.6", "minicpm-v-4.6", "phi-4-multimodal"])
def test_the_lengths_of_vectors_are_the_arrays(key):
    page, arrays, slices, _ = made_with_weights(key, "hidden")
    for number, (h, w) in enumerate(slices.tgt_sizes.tolist()):
        found = floats(page.data["seen"]["maps"]["embedding, their sum"][number])
        np.testing.assert_array_equal(found.ravel(), np.linalg.norm(arrays["embeddings"][number, : h * w], axis=-1))
        rows, columns = arrays["hidden_sizes"][number].tolist()
        norms = np.linalg.norm(arrays["hidden"][number, : rows * columns], axis=-1).reshape(rows, columns)
        packed = page.data["seen"]["maps"]["hidden state"][number]
        np.testing.assert_array_equal(floats(packed), norms[:h, :w])
        assert np.float32(packed["least"]) == norms[:h, :w].min()
        assert np.float32(packed["most"]) == norms[:h, :w].max()


def test_a_merging_towers_places_are_windows_of_patches():
    page, _, slices, _ = made_with_weights("minicpm-v-4.6", "hidden")
    for (h, w), places in zip(slices.tgt_sizes.tolist(), page.data["seen"]["places"], strict=True):
        windows = npembed.steps.patch_mergers.windows(np.arange(h * w)[:, None], (h, w)).reshape(-1, 4)
        assert all(np.array(places)[window].tolist() == [number] * 4 for number, window in enumerate(windows))
    assert made_with_weights("minicpm-v-2.6", "hidden")[0].data["seen"]["places"] is None


def softmax(queries, keys, heads):
    """(M, D), (L, D) -> (M, L), the mean over the heads, by the formula."""
    q, k = (x.astype(np.float64).reshape(len(x), heads, -1) for x in (queries, keys))
    scores = np.einsum("mhc,lhc->hml", q, k) / np.sqrt(q.shape[2])
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (scores / scores.sum(axis=-1, keepdims=True)).mean(axis=0)


def last_layer(x, model):
    """(L, D) -> queries and keys of the tower's last layer, from its weights."""
    numbers = [int(found[1]) for name in model.weights if (found := re.search(r"encoder\.layers\.(\d+)\.self_attn", name))]
    layer = f"{model.tower}encoder.layers.{max(numbers)}"
    normed = EXACT.layer_norm(x, *model.pair(f"{layer}.layer_norm1"), model.config.vision.layer_norm_eps)
    return [EXACT.linear(normed, *model.pair(f"{layer}.self_attn.{name}_proj")) for name in "qk"]


@pytest.mark.parametrize(
    "key", ["minicpm-v-2.6", "minicpm-v-2.5", "minicpm-v-4.6", "minicpm-ocr", "siglip", "phi-4-multimodal"]
)
def test_the_towers_attention_is_the_last_layers(key):
    family = FAMILIES[key]
    model = random_model(family.small(), until="hidden")
    slices = family.cut(picture(60, 40), model.config)
    embeddings = npembed.embed(slices.strips, slices.tgt_sizes, model)
    after = family.stage("hidden", "test").sizes_of(slices.tgt_sizes, model.config)
    lengths = (after if key == "minicpm-v-4.6" else slices.tgt_sizes).prod(axis=1).tolist()
    looking = [np.array([0, length // 2, length - 1]) for length in lengths]
    hidden, weights = tower_attention(embeddings, slices.tgt_sizes, model, looking)
    np.testing.assert_array_equal(hidden, npembed.encode(embeddings, slices.tgt_sizes, model))
    for number in (0, len(weights) - 1):
        size, length = tuple(family.places(slices.tgt_sizes)[number].tolist()), lengths[number]
        x = embeddings[[number], : size[0] * size[1]]
        for step in family.tower(model)[:-2]:  # without the last layer and what follows it
            x, size = step(x, size)
        queries, keys = last_layer(x[0], model)
        for place, row in zip(looking[number], weights[number], strict=True):
            group = np.arange(length)
            if family.groups(size) is not None:  # Phi-4's crops attend to themselves; elsewhere keys may be padding's too
                (group,) = [each.ravel() for each in crops(size) if place in each]
                keys_seen = keys[group]
            else:
                keys_seen = keys
            expected = np.zeros(length)
            own = softmax(queries[place][None], keys_seen, model.config.vision.num_attention_heads)[0]
            expected[group] = own[: len(group)]
            np.testing.assert_allclose(row, expected, rtol=2e-4, atol=1e-6)


def test_all_places_look_where_none_are_chosen():
    model = random_model(FAMILIES["minicpm-v-2.6"].small(), until="hidden")
    embeddings = np.random.default_rng(4).standard_normal((2, 6, model.config.vision.hidden_size))
    _, every = tower_attention(embeddings, np.array(SIZES), model)
    _, some = tower_attention(embeddings, np.array(SIZES), model, [[0, 5], [3]])
    assert [each.shape for each in every] == [(6, 6), (4, 4)]
    np.testing.assert_allclose(some[0], every[0][[0, 5]], rtol=1e-5)
    np.testing.assert_allclose(some[1], every[1][[3]], rtol=1e-5)


def connector_keys(model, hidden, number, length):
    """Queries, keys and heads of the connector's last attention, from its weights."""
    key, x = model.config.family.key, hidden[number, :length]
    if key == "siglip":
        head = f"{model.tower}head"
        packed = model.weights[f"{head}.attention.in_proj_weight"], model.weights[f"{head}.attention.in_proj_bias"]
        to_queries, to_keys, _ = zip(*(np.split(array, 3) for array in packed), strict=True)
        probe = model.weights[f"{head}.probe"][0]
        return EXACT.linear(probe, *to_queries), EXACT.linear(x, *to_keys), model.config.vision.num_attention_heads
    packed = model.weights["resampler.attn.in_proj_weight"], model.weights["resampler.attn.in_proj_bias"]
    to_queries, to_keys, _ = zip(*(np.split(array, 3) for array in packed), strict=True)
    queries = EXACT.layer_norm(model.weights["resampler.query"], *model.pair("resampler.ln_q"), 1e-6)
    x = EXACT.layer_norm(x @ model.weights["resampler.kv_proj.weight"].T, *model.pair("resampler.ln_kv"), 1e-6)
    h, w = SIZES[number]
    keys = EXACT.linear(x + sincos_table(h, w, x.shape[1]), *to_keys)
    return EXACT.linear(queries, *to_queries), keys, model.config.embed_dim // 128


SIZES = [[2, 3], [1, 4]]


@pytest.mark.parametrize(("key", "until"), [("minicpm-v-2.6", "tokens"), ("siglip", "pooled")])
def test_the_connectors_attention_is_the_softmax_of_its_queries_and_keys(key, until):
    family = FAMILIES[key]
    model = random_model(family.small(), until=until)
    sizes = np.array(SIZES) if until == "tokens" else np.array([[27, 27]])
    hidden = np.random.default_rng(2).standard_normal((len(sizes), 729, model.config.vision.hidden_size)).astype(np.float32)
    weights = stage_attention(until, hidden, sizes, model)
    for number, length in enumerate(sizes.prod(axis=1).tolist()):
        np.testing.assert_allclose(
            weights[number], softmax(*connector_keys(model, hidden, number, length)), rtol=2e-4, atol=1e-7
        )


def test_the_perceivers_attention_is_its_last_layers():
    """With latents that attend to one patch alone, its weight is what goes to no latent."""
    family = FAMILIES["idefics2"]
    model = random_model(family.small(), until="tokens")
    hidden = np.random.default_rng(2).standard_normal((2, 6, model.config.vision.hidden_size)).astype(np.float32)
    noted = []
    perceive(hidden, SIZES, watched(model, noted.append))
    depth = model.config.perceiver.resampler_depth
    assert len(noted) == 2 * depth
    weights = stage_attention("tokens", hidden, np.array(SIZES), model)
    for number, length in enumerate((6, 4)):
        queries, keys, heads = noted[(number + 1) * depth - 1]
        assert len(keys) == length + model.config.perceiver.resampler_n_latents
        np.testing.assert_allclose(weights[number], softmax(queries, keys, heads)[:, :length], rtol=2e-4, atol=1e-7)
        assert (weights[number].sum(axis=1) < 0.999).all()


@pytest.mark.parametrize("key", [key for key, family in FAMILIES.items() if family.vision_stages[-1].gathers])
def test_the_patches_of_a_token_are_those_that_reach_it(key):
    """A NaN in one place of the hidden states comes out in the token that is made of that place's patches, and in no other."""
    page, arrays, slices, model = made_with_weights(key, "tokens")
    stage, sizes = model.config.family.stage("tokens", "test"), slices.tgt_sizes
    gathered = stage.gathers(sizes, model.config)
    for number, (h, w) in enumerate(sizes.tolist()):
        patches = [patch for row in gathered[number].tolist() for patch in row if patch >= 0]
        assert sorted(patches) == list(range(h * w))
        shown = page.data["seen"]["gathers"][number]
        assert [token for token, row in enumerate(shown["patches"]) if h * w - 1 in row] == [shown["of"][-1]]
    after, number = arrays["hidden_sizes"], len(sizes) - 1
    places = page.data["seen"]["places"]
    for patch in {0, sizes[number].prod() // 2 + 1, sizes[number].prod() - 1}:
        r, c = divmod(int(patch), int(sizes[number, 1]))
        hidden = arrays["hidden"].copy()
        hidden[number, places[number][patch] if places else r * after[number, 1] + c] = np.nan
        tokens = stage.call({"hidden": hidden, "tgt_sizes": sizes}, model)
        (token,) = np.argwhere([patch in row for row in gathered[number]]).ravel()
        found = np.argwhere(np.isnan(tokens[-1]).any(axis=-1)).ravel().tolist()
        assert found == [token]  # the last slice's tokens; of Phi-4's picture, the canvas is the first


@pytest.mark.parametrize(("key", "until"), [("minicpm-v-2.6", "tokens"), ("idefics2", "tokens"), ("siglip2-naflex", "pooled")])
def test_the_attention_on_a_page_is_what_the_functions_give(key, until):
    page, arrays, slices, model = made_with_weights(key, until)
    found, sizes = page.data["seen"], slices.tgt_sizes
    weights = stage_attention(until, arrays["hidden"], sizes, model)
    assert found["tokens"]["held"] == list(range(len(weights[0])))
    name = "attention of the vector" if until == "pooled" else "attention of the tokens, their mean"
    _, looked = tower_attention(arrays["embeddings"], sizes, model)
    for number, size in enumerate(sizes.tolist()):
        np.testing.assert_array_equal(floats(found["maps"][name][number]), weights[number].mean(axis=0).reshape(size))
        _as_coded(found["tokens"]["weights"][number], weights[number])
        _as_coded(found["tower"]["weights"][number], looked[number])
        assert found["tower"]["stands"][number] == found["tower"]["from"][number] == list(range(size[0] * size[1]))


def _as_coded(coded, weights):
    assert np.abs(shaded(coded) - weights).max() <= weights.max() / 510 * 1.001
    np.testing.assert_allclose(coded["most"], weights.max(axis=1), rtol=1e-6)
    np.testing.assert_allclose(coded["sum"], weights.sum(axis=1), atol=6e-5)


@pytest.mark.parametrize("key", ["minicpm-v-2.5", "minicpm-ocr", "siglip2-naflex", "idefics3", "lattice"])
def test_each_kind_of_last_stage_has_its_figures(key):
    """Attention of tokens, or the patches that make them; of a stage that is neither, what the tower attends to."""
    family = LATTICE if key == "lattice" else FAMILIES[key]
    until = family.vision_stages[-1].name
    model = random_model(family.small(), until=until)
    page = made_with_weights(model, until)[0]
    found = page.data["seen"]
    assert found["tower"] is not None
    assert (found["tokens"] is not None) == (key in ("minicpm-v-2.5", "siglip2-naflex"))
    assert (found["gathers"] is not None) == (key in ("minicpm-ocr", "idefics3"))
    assert ("The pooling head then makes one vector" in page.words) == (until == "pooled")
    assert ("makes each token the language model reads of a few patches" in page.words) == (found["gathers"] is not None)


def test_a_page_that_cannot_hold_all_weights_holds_those_of_places_near_every_patch():
    sizes = np.array([[28, 37], [39, 26]])
    places, stands = chosen_places(sizes, 100_000)
    assert sum(len(each) * h * w for each, (h, w) in zip(places, sizes.tolist(), strict=True)) <= 100_000
    for each, nearest, (h, w) in zip(places, stands, sizes.tolist(), strict=True):
        assert len(each) >= 40
        r, c = np.divmod(each[nearest], w)
        rows, columns = np.divmod(np.arange(h * w), w)
        assert max(np.abs(r - rows).max(), np.abs(c - columns).max()) <= 3
    assert [each.tolist() for each in chosen_places(np.array([[1, 3]]), 1)[0]] == [[1]]


def test_attention_weights_are_the_softmax_and_what_attend_mixes_with():
    rng = np.random.default_rng(1)
    queries, keys, values = (rng.standard_normal((rows, 12)) for rows in (3, 10, 10))
    expected = softmax(queries, keys, 3)
    np.testing.assert_allclose(EXACT.attention_weights(queries, keys, 3), expected, rtol=1e-12)
    np.testing.assert_allclose(
        EXACT.attend(queries, keys, np.tile(values[:, :4], 3), 3).reshape(3, 3, 4).mean(axis=1), expected @ values[:, :4]
    )


# The lines of Python


@pytest.mark.parametrize("key", FAMILIES)
def test_the_lines_of_python_on_a_page_run_and_give_what_it_shows(key, tmp_path, monkeypatch):
    name = 'it\'s a "picture".png'
    Image.fromarray(synthetic_picture(300, 200)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    config = default_config(key)
    page = page_of(config=config, name=name, picture=Image.open(name))
    names: dict = {}
    results = [_run(text, names) for text in page.python if "random_model" not in text]
    number, patch = page.data["first"]
    np.testing.assert_array_equal(results[2], names["patches"][patch])
    assert names["slices"].tgt_sizes.tolist() == [each["size"] for each in page.data["slices"]]
    assert names["mask"].shape[2] == page.data["longest"]
    if "ids" in names:
        assert results[-1] == page.data["ids"]["rows"][page.data["ids"]["of"][str(page.data["rule"])][number]][patch]


def test_the_lines_of_python_run_for_the_sample_with_weights(data):
    model = load_model(data / "tiny-minicpmv", "tokens")
    page = page_of(config=model.config, model=model, origin=str(data / "tiny-minicpmv"), until="tokens", name="")
    names: dict = {}
    for text in page.python:
        _run(text, names)
    assert names["arrays"]["tokens"].shape[1] == model.config.query_num
    np.testing.assert_array_equal(names["arrays"]["embeddings"], names["embeddings"])


def test_the_last_line_of_the_sum_runs(data):
    small = FAMILIES["minicpm-v-2.6"].small()
    (line,) = [text for text in page_of(picture=picture(60, 40)).python if "random_model" in text]
    slices = small.family.cut(picture(60, 40), small)
    names = {"npembed": npembed, "config": small, "slices": slices}
    _run(line, names)
    assert names["embeddings"].shape[0] == len(slices.tgt_sizes)


def _run(text: str, names: dict):
    """The lines; the value of the last, if it is one."""
    *before, last = text.splitlines()
    exec("\n".join(before), names)
    try:
        return eval(last, names)
    except SyntaxError:
        exec(last, names)
        return None


# One file, nothing beside it, and text from outside


@pytest.mark.parametrize("key", FAMILIES)
def test_a_page_asks_for_nothing(key):
    page = page_of_family(key)
    assert page.outside() == []
    (policy,) = [attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv")]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_what_a_page_asks_for_is_seen():
    text = '<script>{}</script><link rel="x"><img src="http://a/b.png" onclick="x"><style>a{background:url(x)}</style>'
    assert Page(text).outside() == ["<link>", "src=http://a/b.png", "onclick=", "url(x)"]


def test_a_hostile_name_stays_text():
    page = page_of(name=HOSTILE)
    assert not [attributes for tag, attributes in page.tags if tag == "img" and attributes.get("src") == "x"]
    assert page.outside() == []
    assert "{{ 7*7 }}" in page.words
    assert "49" not in re.findall(r"</script><img src=x onerror=alert\(1\)>\S*", page.words)[0]
    assert repr(HOSTILE) in page.python[0]


def test_a_template_that_is_not_filled_is_an_error():
    with pytest.raises(Exception, match="'title' is undefined"):
        render("base.html.j2")


def test_json_in_a_page_cannot_end_its_element():
    text = json.dumps({"a": HOSTILE}, ensure_ascii=False)
    escaped = escape_json(text)
    assert not set("<>&\u2028") & set(escaped)
    assert json.loads(escaped) == {"a": HOSTILE}


def test_a_page_with_attention_holds_fewer_pixels_so_that_it_stays_small():
    without, with_attention = (
        Subject(picture=None, config=npembed.MINICPM_V_2_6, until=until) for until in ("embeddings", "tokens")
    )
    assert exact_bytes(without) == drawing.EXACT_BYTES
    most = 4 / 3 * (exact_bytes(with_attention) + seen.TOWER_NUMBERS + seen.TOKEN_NUMBERS)
    patches, maps, base64_of_a_float = 5 * 70 * 70, 5, 16 / 3
    assert most + patches * maps * base64_of_a_float < 4_300_000, "what is left is for pictures, ids and words"


def test_a_large_photo_of_nine_slices_stays_small():
    noise = np.random.default_rng(0).integers(0, 256, (*PHOTO[::-1], 3), dtype=np.uint8)
    page = page_of(picture=Image.fromarray(noise), name="noise.jpg")
    assert len(page.data["slices"]) == 10
    assert len(page.text.encode()) < 5_000_000
    left_out = [each["levels"] is None for each in page.data["slices"]]
    assert any(left_out)
    assert not all(left_out)


@pytest.mark.parametrize("size", [(3000, 300), (20, 20), (1, 1), (300, 3000)])
def test_pictures_of_odd_shapes_have_a_page(size):
    page = page_of(picture=picture(*size))
    assert page.outside() == []
    assert page.data["slices"][0]["name"] == "the whole picture"


def test_a_page_leaves_the_picture_as_it_was_and_says_its_size():
    large = picture(1300, 700)
    page = page_of(picture=large)
    assert large.size == (1300, 700)
    np.testing.assert_array_equal(np.asarray(large), synthetic_picture(1300, 700))
    assert page.data["picture"]["size"] == [1300, 700]
    assert "The file holds 1300 × 700 pixels" in page.words


def test_crops_are_named_by_column_and_row():
    names = [each["name"] for each in page_of(picture=picture(1000, 1000)).data["slices"]]
    assert names[:4] == [
        "the whole picture",
        *(f"crop in column {column}, row 0" for column in range(2)),
        "crop in column 0, row 1",
    ]


@pytest.mark.parametrize("turn", [turn for turn in Turn if turn])
def test_a_page_says_what_became_of_an_exif_turn(turn):
    assert f"{turn.words[1:]}." in page_of(turn=turn).words
    assert "EXIF" not in page_of().words


# The command


def run(capsys, *args: str) -> tuple[int, str, str]:
    code = cli.run(list(args))
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_writes_a_page(capsys, tmp_path):
    target = tmp_path / "e.html"
    code, out, err = run(capsys, "explain", "-o", str(target), "--family", "siglip")
    assert (code, err) == (0, "")
    assert "the sample picture through SigLIP" in out
    assert Page(target.read_text()).data["side"] == default_config("siglip").vision.num_patches_per_side
    assert "which replaces the earlier file" in run(capsys, "explain", "-o", str(target))[1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--rule", "nope"], "rule must be one of"),
        (["--family", "nope"], "explain: family must be one of"),
        (["--family", "siglip", "--rule", "exact"], "explain: --rule exact is not for SigLIP"),
        (["--family", "siglip", "--weights", "x"], "explain: --family is for a page without weights"),
        (["--until", "tokens"], "explain: --until tokens needs --weights"),
        (["--article", "--rule", "exact"], "explain: --article takes no picture"),
        (["missing.png"], "missing.png"),
        (["-o", "a.txt"], "must end in .html"),
        (["--rule", "digitize"], "gives bucket -1"),
    ],
)
def test_wrong_use_is_one_line(args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "explain", *args)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_picture_is_not_replaced_by_its_page(capsys, tmp_path):
    photo = tmp_path / "photo.html"
    picture().save(photo, "PNG")
    before = photo.read_bytes()
    code, _, err = run(capsys, "explain", str(photo), "-o", str(photo))
    assert code == 2
    assert "photo.html" in err
    assert photo.read_bytes() == before


def test_the_ids_of_the_sample_are_position_ids(plain):
    sizes = [each["size"] for each in plain.data["slices"]]
    rows = plain.data["ids"]["rows"]
    assert rows[plain.data["ids"]["of"]["arange"][0]] == position_ids(sizes)[0].tolist()

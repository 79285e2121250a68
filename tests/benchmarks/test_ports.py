"""The ports that the conformance kit is tested with are what they say: the right ones right, the wrong ones wrong."""

import hashlib
import importlib.util
import inspect
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import npembed
from npembed import Config, Model, SlicingConfig, VisionConfig, random_model
from tests.ports import PUBLIC, RIGHT_PORTS, WRONG_PORTS, Float16Sums, Port, WrongPort, as_module
from tests.synthetic import synthetic_picture
from tests.tensors import load_file

PLAIN = Port()
RNG = np.random.default_rng(0)
RAGGED = [[1, 2], [3, 2], [1, 1]]
MASK = np.array([[[1, 0, 1], [0, 0, 0]], [[1, 1, 1], [1, 1, 1]], [[0, 0, 0], [0, 1, 0]]], dtype=bool)


def small_model(dtype: str = "float64", side: int = 6) -> Model:
    """Every stage: a table of `side` x `side`, patches of 2 x 2 pixels, 8 channels, E = 128."""
    vision = VisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=2 * side, patch_size=2
    )
    model = random_model(Config(vision=vision, query_num=2, embed_dim=128), until="tokens")
    return Model(model.config, {name: array.astype(dtype) for name, array in model.weights.items()})


MODEL = small_model()
KERNELS, BIAS = (MODEL.weights[f"vpm.embeddings.patch_embedding.{name}"] for name in ("weight", "bias"))
STRIPS = [RNG.standard_normal((3, 2, h * w * 2)) for h, w in RAGGED]
TELLING = [[1, 49], [25, 1]]
HIDDEN = RNG.standard_normal((3, 6, 8))
PICTURE = synthetic_picture(30, 20)
SMALL = Config(slicing=SlicingConfig(scale_resolution=16, max_slice_nums=4, patch_size=4))


def varied(**vision: float) -> Model:
    """`MODEL` with other fields; with `peak` its scores are over 88, with `drop` its last layer is left out."""
    drop, peak, wide = (vision.pop(name, 0) for name in ("drop", "peak", "wide"))
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 2}
    config = Config(
        vision=VisionConfig(**sizes | {"image_size": 12} | vision | ({"hidden_size": 128} if wide else {})),
        query_num=2,
        embed_dim=128,
    )
    weights = {name: array.astype(np.float64) for name, array in random_model(config, until="tokens").weights.items()}
    for name, array in weights.items() if peak else ():
        weights[name] = array * 2000 if "q_proj" in name or "in_proj" in name else array
    return Model(replace(config, drop_vision_last_layer=bool(drop)), weights)


EPS, DROPPED, PEAKED, WIDE = varied(layer_norm_eps=1e-3), varied(drop=1), varied(peak=1), varied(wide=1)
EMPTY = np.where(np.arange(6)[None, :, None] < np.array([2, 6, 1])[:, None, None], HIDDEN, np.nan)
UNEVEN = replace(SMALL, slicing=replace(SMALL.slicing, mean=(0.25, 0.5, 0.625), std=(0.75, 0.5, 0.25)))
TWO = replace(SMALL, slicing=replace(SMALL.slicing, max_slice_nums=2))
SILENT = Config(query_num=2, use_image_id=False)

CALLS: dict[str, list[tuple[Any, ...]]] = {
    "pad_sequence": [([[1, 2], [3]],), ([[1, 2], [3]], True), ([[1, 2], [3]], True, 9, "left")],
    "pad_pixel_values": [(STRIPS,)],
    "patch_attention_mask": [([[1, 1]],), (RAGGED,)],
    "patch_conv": [(RNG.standard_normal((2, 3, 5, 7)), KERNELS, BIAS)],
    "boundaries": [(7,), (12,), (70,)],
    "fractional_coords": [(7,), (25,)],
    "bucketize": [([0.25, 0.5, 0.75], [0.5, 0.75], True), ([0.25, 0.5, 0.75], [0.5, 0.75])],
    "bucket_coords": [(2,), (7,), (25,), (49,), (98,), (5, 7)],
    "position_ids": [([[1, 2]],), ([[2, 1]],), (RAGGED, 6), (RAGGED, 6, "arange", MASK), (TELLING,), ([[1, 98]],)],
    "tgt_sizes_from_mask": [([[[True, True], [False, False]], [[True, False], [True, False]]],)],
    "randomized_positions": [(40, 50, 0)],
    "flattened_position_ids": [(RAGGED,), ([[1, 25]],), (RAGGED, 7)],
    "embed": [
        (STRIPS, RAGGED, MODEL),
        ([np.ones((3, 2, 98)), np.ones((3, 2, 50))], TELLING, small_model(side=70)),
        ([np.ones((3, 2, 196))], [[1, 98]], small_model(side=70)),
    ],
    "encode": [(HIDDEN, RAGGED, model) for model in (MODEL, EPS, DROPPED, PEAKED)]
    + [(EMPTY, RAGGED, MODEL), (HIDDEN[1:2], [[3, 2]], MODEL)],
    "resample": [
        *((HIDDEN, RAGGED, model) for model in (MODEL, PEAKED)),
        (EMPTY, RAGGED, MODEL),
        (RNG.standard_normal((1, 80, 8)), [[1, 80]], MODEL),
        (RNG.standard_normal((3, 6, 128)), RAGGED, WIDE),
    ],
    "image_placeholder": [(None,), ((1, 2), 0), (None, 3, SILENT)],
    "image_bounds": [([5, 1, 0, 0, 2, 3, 0, 0, 4], [1, 3], [2, 4]), ([1, 0, 2, 1, 0], [1, 3], [2, 4])],
    "scatter_image_embeds": [(np.zeros((6, 2)), RNG.standard_normal((2, 2, 2)), [[1, 3], [4, 6]])],
    "slice_image": [(PICTURE, own) for own in (SMALL, UNEVEN, TWO)]
    + [(synthetic_picture(34, 10), SMALL), (synthetic_picture(64, 40), SMALL), (synthetic_picture(20, 20), SMALL)],
}
"""Per function, small inputs by hand."""


def results(port: Any, name: str, arguments: tuple[Any, ...]) -> list[Any]:
    """What a function gives, as a list of texts or arrays, of which every element counts."""
    result = getattr(port, name)(*arguments)
    if name == "encode":
        return [result[Port().patch_attention_mask(arguments[1])[:, 0]]]  # what is in padded places is free
    return [*result[0], result[1]] if isinstance(result, tuple) else [result]


def departs(port: Any, name: str, arguments: tuple[Any, ...], by: float = 0.0) -> bool:
    """Whether the result is another than the plain port's, by more than rounding if `by` is more."""
    try:
        plain = results(PLAIN, name, arguments)
    except ValueError:  # which is to be refused
        plain = None
    try:
        found = results(port, name, arguments)
    except Exception:
        return plain is not None
    if plain is None or len(found) != len(plain):
        return True
    pairs = zip(found, plain, strict=True)
    return any(got != plain if isinstance(plain, str) else _apart(got, plain, by) for got, plain in pairs)


def _apart(got: Any, plain: NDArray[Any], by: float) -> bool:
    return np.shape(got) != plain.shape or not (np.abs(np.asarray(got, dtype=np.float64) - plain) <= by).all()


# The plain port


def test_the_names_and_arguments_are_the_packages_own() -> None:
    module = as_module(PLAIN)
    assert sorted(vars(module)) == sorted(PUBLIC)
    for name in set(PUBLIC) & set(npembed.__all__):
        ours, theirs = (inspect.signature(getattr(owner, name)).parameters.values() for owner in (module, npembed))
        contract = [(p.name, p.default) for p in theirs if p.kind is not p.KEYWORD_ONLY]
        assert [(p.name, p.default) for p in ours] == contract, name


def test_buckets_are_upstreams(data: Path) -> None:
    expected = json.loads((data / "positions.json").read_text())["rules"]["arange"]["70"]["sha256"]
    vectors = [PLAIN.bucket_coords(n, 70).astype("<i8").tobytes() for n in range(1, 1025)]
    assert hashlib.sha256(b"".join(vectors)).hexdigest() == expected


def test_slices_are_upstreams(data: Path) -> None:
    for row in json.loads((data / "slicing.json").read_text())["rows"]:
        source, refined, grid = PLAIN._plan(*row["image_size"], SlicingConfig(max_slice_nums=row["max_slice_nums"]))
        given = tuple(None if row[key] is None else tuple(row[key]) for key in ("source_size", "refine_size", "grid"))
        assert (source, refined, grid) == given, row["image_size"]


def test_strips_are_upstreams(data: Path) -> None:
    images = json.loads((data / "pixel_values.json").read_text())["images"]
    for row in (image for image in images if image["image_size"] in ([300, 200], [640, 480])):
        strips, sizes = PLAIN.slice_image(synthetic_picture(*row["image_size"]))
        assert sizes.tolist() == row["tgt_sizes"]
        assert [hashlib.sha256(strip.astype("<f4").tobytes()).hexdigest() for strip in strips] == row["sha256"]


@pytest.mark.parametrize("name", ["synth_300x200", "synth_640x480"])
def test_every_stage_is_upstreams(name: str, tiny: Model, data: Path) -> None:
    expected = load_file(data / "tiny-minicpmv" / "expected.safetensors")
    embeddings, hidden, tokens = (expected[f"{name}.{key}"] for key in ("embeddings", "last_hidden_state", "vision_tokens"))
    width, height = map(int, name.removeprefix("synth_").split("x"))
    strips, sizes = PLAIN.slice_image(synthetic_picture(width, height), tiny.config)
    real = PLAIN.patch_attention_mask(sizes)[:, 0]
    np.testing.assert_allclose(PLAIN.embed(strips, sizes, tiny), embeddings, rtol=0, atol=1e-5)
    np.testing.assert_allclose(PLAIN.encode(embeddings, sizes, tiny)[real], hidden[real], rtol=0, atol=1e-5)
    np.testing.assert_allclose(PLAIN.resample(hidden, sizes, tiny), tokens, rtol=0, atol=1e-5)


def test_the_way_into_the_text_is_upstreams(data: Path) -> None:
    for row in json.loads((data / "placeholders.json").read_text())["rows"]:
        text = row["text_with_unk_counted"].replace("<unk>*64", "<unk>" * 64)
        assert PLAIN.image_placeholder(row["grid"], row["image_id"]) == text
    expected = load_file(data / "tiny-minicpmv" / "expected.safetensors")
    ids, bounds = expected["scatter.input_ids"], expected["scatter.image_bound"]
    assert PLAIN.image_bounds(ids, [290, 292], [291, 293]).tolist() == bounds.tolist()
    table = load_file(data / "tiny-minicpmv" / "model.safetensors")["llm.model.embed_tokens.weight"]
    scattered = PLAIN.scatter_image_embeds(table[ids], expected["synth_640x480.vision_tokens"], bounds)
    np.testing.assert_array_equal(scattered, expected["scatter.inputs_embeds"])


def test_other_rules_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="this port knows the rule 'arange' only, not 'exact'"):
        PLAIN.embed(STRIPS, RAGGED, MODEL, rule="exact")


# The other right ports


@pytest.mark.parametrize("name", PUBLIC)
def test_the_order_of_summation_changes_no_more_than_rounding(name: str) -> None:
    port = RIGHT_PORTS["reversed sums"]()
    assert not any(departs(port, name, arguments, by=1e-12) for arguments in CALLS[name])


def worst_error(port: Port, one_sign: bool) -> float:
    """The largest error of a convolution of 3 x 14 x 14 pixels, in units of what SPEC 11 allows a port of that type."""
    rng = np.random.default_rng(1)
    pixels, weight, bias = (rng.standard_normal(shape) for shape in ((1, 3, 14, 140), (16, 3, 14, 14), (16,)))
    if one_sign:
        pixels, weight, bias = np.abs(pixels), np.abs(weight), np.abs(bias)
    got = port.patch_conv(pixels, weight.astype(np.float32), bias)
    exact = np.einsum("bcpwq,dcpq->bdw", pixels.reshape(1, 3, 14, 10, 14), weight.astype(np.float32).astype(np.float64))
    magnitude = np.einsum("bcpwq,dcpq->bdw", np.abs(pixels).reshape(1, 3, 14, 10, 14), np.abs(weight)) + np.abs(bias)[:, None]
    sums = 590 * 2.0**-24
    unit = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}[got.dtype.name]
    allowed = ((1 + unit) ** 3 * (1 + sums / (1 - sums)) - 1) * magnitude
    return float((np.abs(got[:, :, 0].astype(np.float64) - exact - bias[:, None]) / allowed).max())


@pytest.mark.parametrize("one_sign", [True, False])
@pytest.mark.parametrize("name", RIGHT_PORTS)
def test_right_ports_stay_within_the_bound(name: str, one_sign: bool) -> None:
    assert worst_error(RIGHT_PORTS[name](), one_sign) <= 1


def test_half_ports_give_their_own_type() -> None:
    types = {name: port().embed(STRIPS, RAGGED, small_model("float32")).dtype.name for name, port in RIGHT_PORTS.items()}
    assert types == {"plain": "float32", "reversed sums": "float32", "float16": "float16", "bfloat16": "bfloat16"}


# The wrong ports


@pytest.mark.parametrize("wrong", WRONG_PORTS, ids=lambda wrong: wrong.name)
def test_a_wrong_port_is_wrong_where_it_says_and_nowhere_else(wrong: WrongPort) -> None:
    port = wrong.port()
    found = {name for name in PUBLIC for arguments in CALLS[name] if departs(port, name, arguments)}
    assert found == set(wrong.functions)
    assert all(any(departs(port, name, arguments, by=1e-8) for arguments in CALLS[name]) for name in found), "only rounding"


@pytest.mark.parametrize("wrong", [w for w in WRONG_PORTS if w.smallest], ids=lambda wrong: wrong.name)
def test_the_smallest_input_is_one(wrong: WrongPort) -> None:
    assert wrong.smallest is not None
    name, arguments = wrong.smallest
    assert departs(wrong.port(), name, arguments)
    if name == "bucket_coords":
        assert not any(departs(wrong.port(), name, (n,)) for n in range(1, arguments[0]))
    if name == "position_ids":
        assert not departs(wrong.port(), name, ([[1, 1]],))


def test_every_function_has_a_wrong_port() -> None:
    assert {name for wrong in WRONG_PORTS for name in wrong.functions} == set(PUBLIC)
    assert len({wrong.name for wrong in WRONG_PORTS}) == len(WRONG_PORTS)


def test_sums_in_float16_break_the_bound() -> None:
    assert worst_error(Float16Sums(), one_sign=True) > 2


# The worked example


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = Path(npembed.__file__).parent / "conformance" / "examples" / "plain_python_port.py"
    spec = importlib.util.spec_from_file_location("plain_python_port", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EMBEDDING_STAGE = [name for name in PUBLIC[: PUBLIC.index("embed") + 1] if name != "randomized_positions"]


@pytest.mark.parametrize("name", EMBEDDING_STAGE)
def test_the_example_gives_what_the_plain_port_gives(name: str, example: ModuleType) -> None:
    for arguments in CALLS[name]:
        assert isinstance(getattr(example, name)(*arguments), list)
        assert not departs(example, name, arguments, by=1e-12)
        assert np.asarray(getattr(example, name)(*arguments)).dtype.kind == getattr(PLAIN, name)(*arguments).dtype.kind


def test_the_example_has_upstreams_buckets(example: ModuleType) -> None:
    for side in (7, 27, 70):
        for n in range(1, 130):
            assert example.bucket_coords(n, side) == PLAIN.bucket_coords(n, side).tolist()


def test_the_example_needs_no_array_library(example: ModuleType) -> None:
    assert {name for name, value in vars(example).items() if inspect.ismodule(value)} == {"math", "struct"}

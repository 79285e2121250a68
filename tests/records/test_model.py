"""A model's arrays: their shapes, their one float type, and the seeded random ones."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npembed import MINICPM_V_2_6, Config, Model, VisionConfig, random_model
from tests.shapes import STAGES, shapes_until, stage_shapes
from tests.tensors import dtype_of

VISION = VisionConfig(
    hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=28, num_channels=1
)
SMALL = Config(vision=VISION, query_num=3, embed_dim=128)
WEIGHT, BIAS, TABLE = (
    f"vpm.embeddings.{name}" for name in ("patch_embedding.weight", "patch_embedding.bias", "position_embedding.weight")
)

# The arrays' names and shapes


def test_the_embeddings_arrays_of_minicpm_v_2_6() -> None:
    assert stage_shapes(MINICPM_V_2_6, "embeddings") == {WEIGHT: (1152, 3, 14, 14), BIAS: (1152,), TABLE: (4900, 1152)}


def test_the_resamplers_arrays_of_minicpm_v_2_6() -> None:
    assert stage_shapes(MINICPM_V_2_6, "tokens") == {
        "resampler.query": (64, 3584),
        "resampler.proj": (3584, 3584),
        "resampler.kv_proj.weight": (3584, 1152),
        "resampler.attn.in_proj_weight": (10752, 3584),
        "resampler.attn.in_proj_bias": (10752,),
        "resampler.attn.out_proj.weight": (3584, 3584),
        "resampler.attn.out_proj.bias": (3584,),
        **{f"resampler.{norm}.{kind}": (3584,) for norm in ("ln_q", "ln_kv", "ln_post") for kind in ("weight", "bias")},
    }


def test_every_array_of_the_tiny_checkpoint_is_named_and_of_its_shape(tiny: Model) -> None:
    assert {name: array.shape for name, array in tiny.weights.items()} == shapes_until(tiny.config, "tokens")


def test_no_projection_where_both_widths_are_one() -> None:
    config = Config(vision=VisionConfig(hidden_size=128, num_attention_heads=2), embed_dim=128)
    assert "resampler.kv_proj.weight" not in stage_shapes(config, "tokens")


def test_a_dropped_last_layer_has_no_arrays() -> None:
    dropped = Config(vision=VISION, drop_vision_last_layer=True, embed_dim=128)
    gone = set(stage_shapes(SMALL, "hidden")) - set(stage_shapes(dropped, "hidden"))
    assert len(gone) == 16
    assert all(name.startswith("vpm.encoder.layers.1.") for name in gone)


def test_each_stage_adds_its_own_arrays() -> None:
    whole: dict[str, tuple[int, ...]] = {}
    for stage in STAGES:
        assert not set(whole) & set(stage_shapes(SMALL, stage))
        whole |= stage_shapes(SMALL, stage)
        assert shapes_until(SMALL, stage) == whole


@pytest.mark.parametrize("name", ["vision", "", "Hidden", "text", None, 1])
def test_an_unknown_stage_is_refused(name: Any) -> None:
    """Also one that reads no array of the model: `until` cannot be it."""
    for call in (SMALL.family.stage, SMALL.family.stages_until):
        message = f"test: MiniCPM-V 2.6 has no stage {name!r}; it has embeddings, hidden, tokens"
        message += "; did you mean 'hidden'?" * (name == "Hidden")
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call(name, "test")


# Model


def arrays(dtype: type = np.float32) -> dict[str, np.ndarray]:
    return {name: np.ones(shape, dtype=dtype) for name, shape in stage_shapes(SMALL, "embeddings").items()}


@pytest.mark.parametrize("dtype", [np.float16, "bfloat16", np.float32])
def test_half_precision_is_widened_to_float32(dtype: type) -> None:
    weights = {name: (array / 3).astype(dtype_of(dtype)) for name, array in arrays().items()}
    model = Model(SMALL, weights)
    assert model.dtype == np.float32
    for name, array in model.weights.items():
        assert array.dtype == np.float32
        assert np.array_equal(array, weights[name].astype(np.float32))


@pytest.mark.parametrize("name", [WEIGHT, BIAS, TABLE])
def test_one_float64_array_makes_all_float64(name: str) -> None:
    weights = arrays() | {name: arrays(np.float64)[name] / 3}
    model = Model(SMALL, weights)
    assert model.dtype == np.float64
    assert {array.dtype.name for array in model.weights.values()} == {"float64"}
    assert np.array_equal(model.weights[name], weights[name])


def test_arrays_are_shared_and_read_only_here_alone() -> None:
    weights = arrays()
    model = Model(SMALL, weights)
    for name, array in model.weights.items():
        assert np.shares_memory(array, weights[name])
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0
        weights[name][:] = 2
    weights.clear()
    assert set(model.weights) == set(stage_shapes(SMALL, "embeddings"))


def test_a_model_says_what_it_is() -> None:
    assert repr(Model(SMALL, {})) == "Model(hidden_size=8, num_patches_per_side=2, float32, stages: none)"
    model = random_model(SMALL, until="tokens")
    assert repr(model) == "Model(hidden_size=8, num_patches_per_side=2, float32, stages: embeddings, hidden, tokens)"
    assert Model(SMALL, {}).dtype == np.float32


def test_what_a_model_lacks_is_named() -> None:
    model = Model(SMALL, {name: array for name, array in arrays().items() if name != BIAS})
    assert model.missing(SMALL.family.stage("embeddings", "test")) == [BIAS]
    with pytest.raises(ValueError, match=rf"^test: the model lacks {re.escape(BIAS)}, which the stage 'embeddings' needs$"):
        model.require("embeddings", "test")
    names = ", ".join(list(stage_shapes(SMALL, "hidden"))[:3])
    with pytest.raises(ValueError, match=rf"^test: the model lacks {names} and 31 more, which the stage 'hidden' needs$"):
        model.require("hidden", "test")
    random_model(SMALL, until="hidden").require("hidden", "test")


def test_the_position_table_takes_up_the_bias() -> None:
    model = Model(SMALL, arrays() | {BIAS: np.arange(8, dtype=np.float32)})
    assert np.array_equal(model.position_plus_bias, np.tile(np.arange(8) + 1, (4, 1)))
    assert model.position_plus_bias is model.position_plus_bias
    assert model.position_plus_bias.dtype == np.float32


def test_other_arrays_are_kept() -> None:
    assert Model(SMALL, {"llm.model.embed_tokens.weight": np.ones((5, 2))}).weights["llm.model.embed_tokens.weight"].shape == (
        5,
        2,
    )


WRONG = [
    (None, {}, TypeError, "config must be a Config; got None"),
    (SMALL, [], TypeError, "weights must map names to arrays; got list"),
    (SMALL, {BIAS: np.ones(9)}, ValueError, f"weights['{BIAS}'] must have shape (8,) by the config; got (9,)"),
    (SMALL, {BIAS: np.ones((8, 1))}, ValueError, f"weights['{BIAS}'] must have shape (8,) by the config; got (8, 1)"),
    (SMALL, {TABLE: np.ones((9, 8))}, ValueError, f"weights['{TABLE}'] must have shape (4, 8) by the config; got (9, 8)"),
    (
        SMALL,
        {"resampler.proj": np.ones((128, 8))},
        ValueError,
        "weights['resampler.proj'] must have shape (128, 128) by the config; got (128, 8)",
    ),
    (SMALL, {BIAS: np.ones(8, dtype=bool)}, TypeError, f"weights['{BIAS}'] must hold floats; got dtype bool"),
    (SMALL, {BIAS: ["a"] * 8}, TypeError, f"weights['{BIAS}'] must hold floats; got dtype <U1"),
    (SMALL, {BIAS: np.ones(8) * 1j}, TypeError, f"weights['{BIAS}'] must hold floats; got dtype complex128"),
    (SMALL, {BIAS: [[1], [1, 2]]}, ValueError, f"weights['{BIAS}'] must be an array; "),
]


@pytest.mark.parametrize(("config", "weights", "error", "message"), WRONG, ids=[row[3] for row in WRONG])
def test_what_is_no_model_is_refused(config: object, weights: object, error: type, message: str) -> None:
    with pytest.raises(error, match="^Model: " + re.escape(message)):
        Model(config, weights)  # type: ignore[arg-type]


# Random models


@given(seed=st.integers(0, 2**64), until=st.sampled_from(STAGES))
def test_a_seed_gives_the_same_arrays_whatever_the_last_stage(seed: int, until: str) -> None:
    model, again, longer = random_model(SMALL, seed), random_model(SMALL, seed, until), random_model(SMALL, seed, "tokens")
    assert {name: array.shape for name, array in again.weights.items()} == shapes_until(SMALL, until)
    for name, array in model.weights.items():
        assert array.dtype == np.float32
        assert np.array_equal(array, again.weights[name])
    for name, array in again.weights.items():
        assert np.array_equal(array, longer.weights[name])


def test_other_seeds_and_other_arrays_are_other_numbers() -> None:
    first, second = random_model(SMALL, 0, "tokens"), random_model(SMALL, 1, "tokens")
    assert not any(np.array_equal(first.weights[name], second.weights[name]) for name in first.weights)
    starts = [array.ravel()[:3].tobytes() for array in first.weights.values()]
    assert len(set(starts)) == len(starts)


def test_the_seed_is_0_and_the_sizes_are_minicpm_v_2_6s_by_default() -> None:
    model = random_model()
    assert model.config == MINICPM_V_2_6
    assert set(model.weights) == {WEIGHT, BIAS, TABLE}
    weight = random_model(MINICPM_V_2_6, 0, "embeddings").weights[BIAS]
    assert np.array_equal(model.weights[BIAS], weight)


def test_random_arrays_are_of_the_size_that_they_say() -> None:
    config = Config(vision=VisionConfig(num_hidden_layers=1, hidden_size=128, intermediate_size=512, num_attention_heads=2))
    weights = random_model(config, until="hidden").weights
    spread = {
        WEIGHT: (3 * 14 * 14) ** -0.5,
        TABLE: 0.02,
        BIAS: 0.02,
        "vpm.encoder.layers.0.mlp.fc1.weight": 128**-0.5,
        "vpm.encoder.layers.0.mlp.fc2.weight": 512**-0.5,
        "vpm.post_layernorm.weight": 0.02,
        "vpm.post_layernorm.bias": 0.02,
    }
    for name, deviation in spread.items():
        mean = 1 if name == "vpm.post_layernorm.weight" else 0
        assert weights[name].std() == pytest.approx(deviation, rel=0.25), name
        assert weights[name].mean() == pytest.approx(mean, abs=deviation / 2), name


def test_what_random_models_refuse() -> None:
    with pytest.raises(ValueError, match=r"^random_model: seed must be a whole number of at least 0; got -1$"):
        random_model(SMALL, -1)
    with pytest.raises(TypeError, match=r"^random_model: seed must be a whole number of at least 0; got 1\.5$"):
        random_model(SMALL, 1.5)  # type: ignore[arg-type]
    for until in ("all", None):
        words = f"random_model: MiniCPM-V 2.6 has no stage {until!r}; it has embeddings, hidden, tokens"
        with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
            random_model(SMALL, 0, until)  # type: ignore[arg-type]

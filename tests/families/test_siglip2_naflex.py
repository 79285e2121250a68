"""SigLIP2 NaFlex, against transformers' own processor and models."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers import Siglip2Config, Siglip2Model, Siglip2VisionConfig, Siglip2VisionModel
from transformers.models.siglip2.image_processing_pil_siglip2 import (
    Siglip2ImageProcessorPil,
    get_image_size_for_max_num_patches,
)
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

from npembed import FAMILIES, Model, embed, encode, image_placeholder, load_model, random_model, read_config, run, slice_image
from npembed.conformance.bounds import stage_allowed
from npembed.families import siglip2_naflex
from npembed.families.siglip2_naflex import fitted_size, resized_table
from npembed.steps import stages
from npembed.steps.pooling import pool

VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "patch_size": 8,
    "num_patches": 49,  # G = 7
}
MOST = 60
PROCESSOR = {"patch_size": 8, "max_num_patches": MOST, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2]}
TEXT = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 20}
TOKENS = {"bos_token_id": 0, "eos_token_id": 1}
TO_THE_BIT = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
"""Whether torch resizes a table as SPEC 13.8 says here; elsewhere its last bits may differ."""


def with_random_numbers(model: Any, seed: int = 0) -> Any:
    """The model with no array at zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.1 if parameter.ndim == 1 else 1.0 if "probe" in name or "position" in name else 0.25
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return model.eval()


def save(folder: Path, vision: dict[str, Any], processor: dict[str, Any], seed: int = 0) -> Path:
    """A whole Siglip2Model, as transformers saves it."""
    config = Siglip2Config(vision_config=vision, text_config={**TEXT, **TOKENS})
    with_random_numbers(Siglip2Model(config), seed).save_pretrained(folder)
    Siglip2ImageProcessorPil(**processor).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("naflex"), VISION, PROCESSOR)


@pytest.fixture(scope="session")
def alone(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its vision model saved alone."""
    folder = tmp_path_factory.mktemp("naflex-alone")
    Siglip2Model.from_pretrained(whole).vision_model.save_pretrained(folder)
    Siglip2ImageProcessorPil(**PROCESSOR).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model(whole: Path) -> Model:
    return load_model(whole)


def changed(folder: Path, to: Path, file: str, edit: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of the folder in which the JSON file is edited."""
    shutil.copytree(folder, to)
    content = json.loads((to / file).read_text())
    edit(content)
    (to / file).write_text(json.dumps(content))
    return to


def noise(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng([seed, width, height])
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def patches_of(strip: NDArray[Any]) -> NDArray[Any]:
    """(C, P, L*P) -> (L, P*P*C): patch by patch, channels last."""
    patch = strip.shape[1]
    cut = [strip[:, :, start : start + patch] for start in range(0, strip.shape[2], patch)]
    return np.stack([np.moveaxis(piece, 0, -1).ravel() for piece in cut])


def relative(came: NDArray[Any], expected: NDArray[Any]) -> float:
    assert came.shape == expected.shape
    return float(np.abs(came - expected).max() / np.abs(expected).max())


# Sizes and pixels


side = st.one_of(
    st.integers(1, 64), st.integers(1, 6000), st.sampled_from([16 * k + d for k in range(1, 40) for d in (-1, 0, 1)])
)


@given(width=side, height=side, patch=st.sampled_from([8, 14, 16]), most=st.sampled_from([1, 2, 64, 256, 576, 1024]))
def test_every_size_is_upstreams(width: int, height: int, patch: int, most: int) -> None:
    expected = get_image_size_for_max_num_patches(height, width, patch, most)
    assert fitted_size(width, height, patch, most) == expected[::-1]


def test_four_hundred_sizes_are_upstreams() -> None:
    rng = np.random.default_rng(13)
    drawn = np.exp(rng.uniform(0, np.log(9000), (370, 2))).astype(int).tolist()
    extreme = [(1, 1), (1, 9000), (9000, 1), (16, 16), (256, 256), (255, 257)]
    extreme += [(454, 22928), (11735, 2567), (447, 23021)]  # where the interval and its precision tell
    near = [(256 + a, 256 * k + b) for a in (-1, 0, 1) for b in (-1, 0, 1) for k in (1, 2, 3)]
    for width, height in [*extreme, *near, *drawn]:
        expected = get_image_size_for_max_num_patches(height, width, 16, 256)
        assert fitted_size(width, height, 16, 256) == expected[::-1], (width, height)


@given(width=side, height=side)
def test_a_size_is_whole_patches_and_not_too_many(width: int, height: int) -> None:
    columns, rows = np.array(fitted_size(width, height, 16, 256)) / 16
    assert columns % 1 == rows % 1 == 0
    assert 1 <= columns * rows <= 256


@pytest.mark.parametrize(
    "size", [(1, 1), (640, 480), (480, 640), (56, 56), (57, 55), (3, 500), (500, 3), (1, 90), (1000, 700), (90, 31)]
)
def test_pixels_equal_upstreams(size: tuple[int, int], model: Model, whole: Path) -> None:
    picture = noise(*size)
    (strip,), tgt_sizes = slice_image(picture, model.config)
    expected = Siglip2ImageProcessorPil.from_pretrained(whole)(picture, return_tensors="np")
    patches = int(tgt_sizes.prod())
    assert tgt_sizes.tolist() == expected["spatial_shapes"].tolist()
    assert expected["pixel_attention_mask"][0].tolist() == [1] * patches + [0] * (MOST - patches)
    assert np.array_equal(patches_of(strip), expected["pixel_values"][0, :patches])
    assert model.config.family.cut(picture, model.config).boxes.tolist() == [[0, 0, *size]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "CMYK"])
def test_only_rgb_is_taken_unless_the_config_says_otherwise(mode: str, model: Model, whole: Path, tmp_path: Path) -> None:
    picture = noise(60, 31).convert(mode)
    processor = Siglip2ImageProcessorPil.from_pretrained(whole)
    with pytest.raises(ValueError):  # noqa: PT011  # its own words depend on the mode
        processor(picture, return_tensors="np")
    with pytest.raises(ValueError, match=rf"^slice_image: SigLIP2 NaFlex: image has mode {mode}, .*convert it to RGB first$"):
        slice_image(picture, model.config)
    folder = changed(whole, tmp_path / "rgb", "preprocessor_config.json", lambda c: c.update(do_convert_rgb=True))
    (strip,), tgt_sizes = slice_image(picture, read_config(folder))
    expected = Siglip2ImageProcessorPil.from_pretrained(folder)(picture, return_tensors="np")
    assert np.array_equal(patches_of(strip), expected["pixel_values"][0, : tgt_sizes.prod()])


def test_an_array_counts_as_rgb(model: Model) -> None:
    picture = noise(60, 31)
    (one,), _ = slice_image(picture, model.config)
    (two,), _ = slice_image(np.asarray(picture), model.config)
    assert np.array_equal(one, two)


# The table


def torch_table(table: NDArray[Any], h: int, w: int) -> NDArray[Any]:
    """(G, G, D) -> (h, w, D): transformers' own resize."""
    resized = Siglip2VisionEmbeddings.resize_positional_embeddings(torch.tensor(table), torch.tensor([[h, w]]), h * w)
    return resized.numpy().reshape(h, w, -1)


def same_as_torch(table: NDArray[Any], h: int, w: int) -> bool:
    came, expected = resized_table(table, h, w), torch_table(table, h, w)
    assert came.dtype == expected.dtype == np.float32
    if TO_THE_BIT:
        return np.array_equal(came, expected)
    return bool(np.abs(came - expected).max() <= 1e-6 * np.abs(table).max())


def table_of(grid: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((grid, grid, width)).astype(np.float32)


@pytest.mark.parametrize(("grid", "width"), [(16, 5), (7, 24), (1, 3), (2, 9)])
def test_the_resized_table_is_torchs(grid: int, width: int) -> None:
    table = table_of(grid, width)
    lengths = [*range(1, 20), 24, 31, 32, 33, 64, 100, 256]
    wrong = [(h, w) for h in lengths for w in lengths if h * w <= 1024 and not same_as_torch(table, h, w)]
    assert wrong == []


@given(grid=st.integers(1, 40), h=st.integers(1, 90), w=st.integers(1, 90), width=st.integers(1, 20), seed=st.integers(0, 9))
def test_any_resized_table_is_torchs(grid: int, h: int, w: int, width: int, seed: int) -> None:
    assert same_as_torch(table_of(grid, width, seed), h, w)


def test_in_one_column_each_row_is_the_first_as_in_torch() -> None:
    table = table_of(16, 4)
    tall = resized_table(table, 9, 1)
    assert (tall == tall[:1]).all()
    assert np.array_equal(tall, torch_table(table, 9, 1)) or not TO_THE_BIT
    assert not (resized_table(table, 16, 1) == tall[0]).all()


def test_a_table_of_its_own_size_is_itself() -> None:
    table = table_of(7, 3)
    same = resized_table(table, 7, 7)
    assert np.array_equal(same, table)
    assert not np.shares_memory(same, table)


def test_a_constant_table_stays_constant() -> None:
    np.testing.assert_allclose(resized_table(np.full((7, 7, 2), 3, np.float32), 5, 11), 3, rtol=1e-6)


# Stages


PICTURES = [noise(64, 48), noise(56, 56, 1), noise(9, 300, 2), noise(500, 3, 3), noise(33, 20, 4)]


def ours(model: Model, pictures: Any = PICTURES, **options: Any) -> dict[str, NDArray[Any]]:
    cut = [slice_image(picture, model.config) for picture in pictures]
    strips = [strip for own, _ in cut for strip in own]
    return run(strips, np.concatenate([tgt for _, tgt in cut]), model, **options)


def upstream_arrays(folder: Path, pictures: Any) -> dict[str, NDArray[Any]]:
    """The arrays of transformers' own vision model, padded to as many patches as a picture may have."""
    vision = Siglip2Model.from_pretrained(folder).vision_model
    inputs = Siglip2ImageProcessorPil.from_pretrained(folder)(pictures, return_tensors="pt")
    with torch.no_grad():
        out = vision(**inputs)
        embeddings = vision.embeddings(inputs["pixel_values"], inputs["spatial_shapes"])
    tensors = {"embeddings": embeddings, "hidden": out.last_hidden_state, "pooled": out.pooler_output}
    tensors |= {"sizes": inputs["spatial_shapes"], "pixels": inputs["pixel_values"]}
    return {name: tensor.numpy() for name, tensor in tensors.items()}


@pytest.fixture(scope="session")
def upstream(whole: Path) -> dict[str, NDArray[Any]]:
    return upstream_arrays(whole, PICTURES)


def test_every_stage_is_upstreams(model: Model, upstream: dict[str, NDArray[Any]]) -> None:
    came = ours(model)
    longest = came["embeddings"].shape[1]
    assert came["tgt_sizes"].tolist() == upstream["sizes"].tolist()
    assert relative(came["embeddings"], upstream["embeddings"][:, :longest]) < 1e-5
    assert relative(came["pooled"], upstream["pooled"]) < 1e-5
    mask = came["patch_attn_mask"][:, 0]
    assert mask.sum(axis=1).tolist() == upstream["sizes"].prod(axis=1).tolist()
    assert relative(came["hidden"][mask], upstream["hidden"][:, :longest][mask]) < 1e-5
    assert "position_ids" not in came
    assert not mask.all()


def test_padding_holds_the_first_vector_and_the_bias(model: Model, upstream: dict[str, NDArray[Any]]) -> None:
    came = ours(model)
    _, bias = model.pair("vision_model.embeddings.patch_embedding")
    table = model.weights["vision_model.embeddings.position_embedding.weight"].reshape(7, 7, -1)
    for places, (h, w) in zip(came["embeddings"], came["tgt_sizes"].tolist(), strict=True):
        assert np.array_equal(places[h * w :], np.broadcast_to(bias + resized_table(table, h, w)[0, 0], places[h * w :].shape))


def test_results_joined_are_those_of_one_call(model: Model) -> None:
    both = ours(model)
    for name in ("embeddings", "hidden", "pooled"):
        stage = model.config.family.stage(name, "test")
        parts = [ours(model, part, until=name)[name] for part in (PICTURES[:1], PICTURES[1:2], PICTURES[2:])]
        joined = stages.join(stage, parts, model, both["tgt_sizes"])
        assert relative(joined, both[name]) < 1e-5
        if name == "embeddings":
            padding = ~both["patch_attn_mask"][:, 0]
            assert np.array_equal(joined[padding], both[name][padding])


def test_a_vision_model_alone_gives_the_same(alone: Path, model: Model, tmp_path: Path) -> None:
    expected, older = ours(model), tmp_path / "older"
    shutil.copytree(alone, older)
    arrays = load_file(alone / "model.safetensors")
    save_file({f"vision_model.{name}": array for name, array in arrays.items()}, older / "model.safetensors")
    for folder, prefix in ((alone, ""), (older, "vision_model.")):
        other = load_model(folder)
        came = ours(other)
        assert other.tower == prefix
        assert all(np.array_equal(came[name], expected[name]) for name in expected)


def test_a_float64_model_takes_the_table_that_float32_gives(model: Model) -> None:
    wide = Model(model.config, {name: array.astype(np.float64) for name, array in model.weights.items()})
    came, expected = ours(model), ours(wide)
    assert expected["embeddings"].dtype == expected["pooled"].dtype == np.float64
    assert relative(came["pooled"], expected["pooled"]) < 1e-5
    own = wide.config.family.positions(wide, np.array([[3, 5]]), None)[0]
    rows = model.weights["vision_model.embeddings.position_embedding.weight"].reshape(7, 7, -1)
    bias = wide.weights["vision_model.embeddings.patch_embedding.bias"]
    assert np.array_equal(own, resized_table(rows, 3, 5).reshape(15, -1) + bias)


def test_without_a_head_there_is_no_vector(tmp_path: Path) -> None:
    Siglip2VisionModel(Siglip2VisionConfig(**VISION, vision_use_head=False)).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"patch_size": 8}')
    with pytest.raises(ValueError, match=r"no stage 'pooled'; it has embeddings, hidden$"):
        load_model(tmp_path, until="pooled")


# Bad input


def test_what_does_not_fit_is_refused(model: Model) -> None:
    (strip,), tgt_sizes = slice_image(PICTURES[0], model.config)
    with pytest.raises(ValueError, match=r"^embed: SigLIP2 NaFlex: its positions follow no rule, .*; got rule 'step'$"):
        run([strip], tgt_sizes, model, rule="step")
    with pytest.raises(ValueError, match=r"^position_ids: SigLIP2 NaFlex has none; its position table is resized"):
        model.config.family.position_ids(tgt_sizes, model.config, None)
    with pytest.raises(ValueError, match=r"has no stage 'tokens'; it has embeddings, hidden, pooled$"):
        run([strip], tgt_sizes, model, until="tokens")
    with pytest.raises(ValueError, match=r"^image_placeholder: SigLIP2 NaFlex has no text that stands for a picture"):
        image_placeholder(None, config=model.config)
    with pytest.raises(ValueError, match=r"^embed: strips\[0\] has \d+ patches, but tgt_sizes\[0\] = \(3, 1\) makes 3$"):
        embed([strip], [[3, 1]], model)


def test_an_array_that_no_stage_reads_is_refused(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "more")
    arrays = load_file(whole / "model.safetensors") | {"vision_model.merger.weight": np.ones(1, np.float32)}
    save_file(arrays, tmp_path / "more" / "model.safetensors")
    with pytest.raises(ValueError, match=r"has vision_model.merger.weight, which no stage of SigLIP2 NaFlex reads"):
        load_model(tmp_path / "more")


# Configs


def table(text: str) -> dict[str, str]:
    """Key -> what it is, from lines "what: key key"."""
    lines = (line.split(":") for line in text.strip().splitlines())
    return {key: what.strip() for what, keys in lines for key in keys.split()}


VISION_KEYS = table("""
    honoured: hidden_size intermediate_size num_hidden_layers num_attention_heads num_channels
    honoured: num_patches layer_norm_eps vision_use_head
    fixed: hidden_act model_type
    without effect: attention_dropout dtype architectures transformers_version
""")
"""And patch_size, which two files must agree on."""
PROCESSOR_KEYS = table("""
    honoured: max_num_patches do_convert_rgb resample image_mean image_std
    fixed: do_resize do_rescale do_normalize rescale_factor
    fixed: do_center_crop do_pad image_processor_type data_format
    without effect: size default_to_square crop_size pad_size input_data_format return_tensors device
    without effect: disable_grouping image_seq_length processor_class
""")
OTHER: dict[str, Any] = {
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_channels": 4,
    "num_patches": 64,
    "layer_norm_eps": 1e-3,
    "vision_use_head": False,
    "do_convert_rgb": True,
    "resample": 3,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.1, 0.2, 0.3],
}
"""Another value that can be honoured; 7 for a key that is not here."""


def test_every_key_that_transformers_writes_is_in_the_tables(whole: Path, alone: Path) -> None:
    within = json.loads((whole / "config.json").read_text())["vision_config"]
    every = within.keys() | json.loads((alone / "config.json").read_text()).keys()
    assert every == {*VISION_KEYS, "patch_size"}
    assert json.loads((whole / "preprocessor_config.json").read_text()).keys() <= {*PROCESSOR_KEYS, "patch_size"}


@pytest.mark.parametrize(
    ("file", "key", "what"),
    [("config.json", key, what) for key, what in VISION_KEYS.items()]
    + [("preprocessor_config.json", key, what) for key, what in PROCESSOR_KEYS.items()],
)
def test_every_key_is_honoured_fixed_or_without_effect(file: str, key: str, what: str, whole: Path, tmp_path: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        inside = content["vision_config"] if file == "config.json" else content
        inside[key] = OTHER.get(key, 7) if what == "honoured" else {} if key == "size" else "another"

    folder, before = changed(whole, tmp_path / "edited", file, edit), read_config(whole)
    if what == "fixed":
        with pytest.raises(
            ValueError, match=rf"read_config: SigLIP2 NaFlex: {key} of \w+(\.json)? is 'another'; supported is "
        ):
            read_config(folder)
    else:
        assert (read_config(folder) == before) == (what == "without effect")


def test_absent_and_null_keys_are_the_classes_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2", "vision_config": dict.fromkeys(VISION_KEYS)}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(dict.fromkeys(PROCESSOR_KEYS)))
    config, defaults, processor = read_config(tmp_path), Siglip2VisionConfig(), Siglip2ImageProcessorPil()
    assert isinstance(config, siglip2_naflex.NaflexConfig)
    for name, value in vars(config.vision).items():
        assert name == "image_size" or value == getattr(defaults, name), name
    assert config.vision.num_patches_per_side**2 == defaults.num_patches
    assert config.max_num_patches == processor.max_num_patches
    assert (config.resample, config.mean, config.std) == ("BILINEAR", tuple(processor.image_mean), tuple(processor.image_std))
    assert not config.do_convert_rgb
    assert not processor.do_convert_rgb
    assert config == next(iter(FAMILIES["siglip2-naflex"].presets().values()))


@pytest.mark.parametrize(
    ("file", "edit", "words"),
    [
        ("config.json", {"image_size": 224}, "image_size of vision_config is 224; the key is not known here"),
        ("config.json", {"num_patches": 50}, "num_patches of vision_config must be the square of a whole number; got 50"),
        ("config.json", {"num_patches": 0}, "num_patches of vision_config must be the square of a whole number; got 0"),
        ("config.json", {"num_patches": True}, "num_patches of vision_config must be the square of a whole number; got True"),
        ("config.json", {"patch_size": 16}, "patch_size is 8 for pictures but 16 in vision_config"),
        ("preprocessor_config.json", {"patch_size": None}, "patch_size is 16 for pictures but 8 in vision_config"),
        ("preprocessor_config.json", {"do_convert_rgb": 1}, "NaflexConfig: do_convert_rgb must be a bool; got 1"),
        ("preprocessor_config.json", {"max_num_patches": 0}, "max_num_patches must be a whole number"),
        ("preprocessor_config.json", {"crop": 2}, "crop of preprocessor_config.json is 2; the key is not known here"),
    ],
)
def test_what_would_change_the_numbers_is_refused(
    file: str, edit: dict[str, Any], words: str, whole: Path, tmp_path: Path
) -> None:
    folder = changed(whole, tmp_path / "bad", file, lambda c: (c["vision_config"] if file == "config.json" else c).update(edit))
    with pytest.raises((ValueError, TypeError), match=words):
        read_config(folder)


def test_configs_become_json_and_come_back(tmp_path: Path, alone: Path) -> None:
    family = FAMILIES["siglip2-naflex"]
    for config in (family.small(), *family.presets().values(), read_config(alone)):
        top, preprocessor = config.family.as_json(config)
        (tmp_path / "config.json").write_text(json.dumps(top))
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
        assert read_config(tmp_path) == config


def test_a_small_random_model_runs_to_the_end() -> None:
    family = FAMILIES["siglip2-naflex"]
    assert ours(random_model(family.small(), until="pooled"))["pooled"].shape == (5, 16)


# Wrong ports


def embedded(model: Model, tgt_sizes: Any, **faults: Callable[..., Any]) -> NDArray[Any]:
    """The embeddings of one picture with another map of patches or another table."""
    (strip,) = (slice_image(PICTURES[0], model.config)[0],)
    weight, bias = model.pair("vision_model.embeddings.patch_embedding")
    rows = model.weights["vision_model.embeddings.position_embedding.weight"].astype(np.float32).reshape(7, 7, -1)
    patches = faults.get("patches", patches_of)(strip[0])
    (h, w), width = tgt_sizes, rows.shape[-1]
    return patches @ weight.T + bias + faults.get("resized", resized_table)(rows, h, w).reshape(h * w, width)


def without_antialias(rows: NDArray[Any], h: int, w: int) -> NDArray[Any]:
    tensor = torch.tensor(rows).permute(2, 0, 1)[None]
    return torch.nn.functional.interpolate(tensor, size=(h, w), mode="bilinear")[0].permute(1, 2, 0).numpy()


def channels_first(strip: NDArray[Any]) -> NDArray[Any]:
    patch = strip.shape[1]
    return np.stack([strip[:, :, start : start + patch].ravel() for start in range(0, strip.shape[2], patch)])


@pytest.mark.parametrize(
    "faults",
    [
        {"patches": channels_first},
        {"resized": without_antialias},
        {"resized": lambda rows, h, w: resized_table(rows, w, h)},  # h and w exchanged
        {"resized": lambda rows, h, w: rows[np.arange(h) * 7 // h][:, np.arange(w) * 7 // w]},  # the nearest row
    ],
)
def test_a_wrong_port_of_the_embeddings_is_far_off(faults: dict[str, Callable[..., Any]], model: Model) -> None:
    came = ours(model, PICTURES[:1], until="embeddings")
    size = tuple(came["tgt_sizes"][0].tolist())
    assert size[0] != size[1]
    assert relative(embedded(model, size), came["embeddings"][0]) < 1e-6
    assert relative(embedded(model, size, **faults), came["embeddings"][0]) > 1e-2


def test_attending_to_padding_is_outside_the_allowed_distance(model: Model) -> None:
    came = ours(model)
    sizes, longest = came["tgt_sizes"], came["embeddings"].shape[1]
    wide = Model(model.config, {name: array.astype(np.float64) for name, array in model.weights.items()})
    everything = np.array([[longest, 1]] * len(sizes))
    for name, before, function in (("hidden", "embeddings", encode), ("pooled", "hidden", pool)):
        exact = function(came[before], sizes, wide)
        allowed = stage_allowed(came[name].astype(np.float64), exact)
        wrong = function(came[before], everything, wide)
        index = int(sizes.prod(axis=1).argmin())
        places = int(sizes[index].prod())
        distance = np.abs(wrong[index][:places] - exact[index][:places]).max()
        assert distance > allowed[index].max(), name


def test_keys_of_siglip_are_not_taken_for_naflex() -> None:
    assert not set(FAMILIES["siglip"].model_types) & set(FAMILIES["siglip2-naflex"].model_types)

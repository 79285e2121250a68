"""SigLIP and SigLIP2 of fixed size, against transformers' own processor and models."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from scipy import special
from transformers import SiglipConfig, SiglipModel, SiglipVisionConfig, SiglipVisionModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from npembed import (
    FAMILIES,
    Model,
    cli,
    embed,
    encode,
    image_placeholder,
    load_model,
    random_model,
    read_config,
    run,
    slice_image,
)
from npembed.conformance.bounds import stage_allowed
from npembed.families import siglip
from npembed.records.arithmetic import EXACT
from npembed.steps import stages
from npembed.steps.pooling import pool, unit_length

VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 46,  # G = 5, and six pixels that fill no patch
    "patch_size": 8,
}
G = 5
PROCESSOR = {"size": {"height": 46, "width": 46}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2]}
TEXT = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 20}
TOKENS = {"bos_token_id": 0, "eos_token_id": 1}


def with_random_numbers(model: Any, seed: int = 0) -> Any:
    """The model with no array at zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.1 if parameter.ndim == 1 else 1.0 if "probe" in name else 0.25
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return model.eval()


def save(folder: Path, vision: dict[str, Any], processor: dict[str, Any], seed: int = 0) -> Path:
    """A whole SiglipModel, as transformers saves it."""
    config = SiglipConfig(vision_config=vision, text_config={**TEXT, **TOKENS})
    with_random_numbers(SiglipModel(config), seed).save_pretrained(folder)
    SiglipImageProcessorPil(**processor).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("siglip"), VISION, PROCESSOR)


@pytest.fixture(scope="session")
def alone(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its vision model saved alone."""
    folder = tmp_path_factory.mktemp("siglip-alone")
    vision = SiglipModel.from_pretrained(whole).vision_model
    vision.save_pretrained(folder)
    SiglipImageProcessorPil(**PROCESSOR).save_pretrained(folder)
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
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels, None if channels < 4 and mode != "LA" else mode)


def strip_of(pixels: NDArray[Any], side: int, patch: int) -> NDArray[Any]:
    """(3, H, W) -> (3, P, L*P): the patches cut one by one."""
    cut = [pixels[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch] for r in range(side) for c in range(side)]
    return np.concatenate(cut, axis=-1)


def upstream_pixels(picture: Any, folder: Path) -> NDArray[Any]:
    return SiglipImageProcessorPil.from_pretrained(folder)(picture, return_tensors="np")["pixel_values"]


def relative(came: NDArray[Any], expected: NDArray[Any]) -> float:
    assert came.shape == expected.shape
    return float(np.abs(came - expected).max() / np.abs(expected).max())


# Pictures


def sizes(count: int) -> list[tuple[int, int]]:
    """Sizes from 1 x 1 to extreme aspects, those next to the model's own drawn often."""
    rng = np.random.default_rng(13)
    near = [(46 + a, 46 + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    extreme = [(1, 1), (1, 2), (2, 1), (1, 900), (900, 1), (3, 2000), (2000, 3)]
    drawn = np.exp(rng.uniform(0, np.log(600), (count - len(near) - len(extreme), 2))).astype(int).tolist()
    return [*near, *extreme, *map(tuple, drawn)]


def test_pixels_of_every_size_equal_upstreams(model: Model, whole: Path) -> None:
    processor = SiglipImageProcessorPil.from_pretrained(whole)
    for width, height in sizes(300):
        picture = noise(width, height)
        (strip,), tgt_sizes = slice_image(picture, model.config)
        expected = processor(picture, return_tensors="np")["pixel_values"][0]
        assert tgt_sizes.tolist() == [[G, G]]
        assert strip.dtype == expected.dtype == np.float32
        assert np.array_equal(strip, strip_of(expected, G, 8)), (width, height)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P", "1", "CMYK", "array"])
def test_pictures_of_every_mode_equal_upstreams(mode: str, model: Model, whole: Path) -> None:
    if mode in ("P", "1"):
        picture: Any = noise(60, 31).convert(mode)
    else:
        picture = np.asarray(noise(60, 31)) if mode == "array" else noise(60, 31, mode=mode)
    ((strip,), _), expected = slice_image(picture, model.config), upstream_pixels(picture, whole)[0]
    assert np.array_equal(strip, strip_of(expected, G, 8))


def test_a_palettes_transparency_is_laid_on_white(model: Model, whole: Path) -> None:
    picture = noise(60, 31).quantize(8)
    picture.info["transparency"] = 3
    (strip,), _ = slice_image(picture, model.config)
    assert np.array_equal(strip, strip_of(upstream_pixels(picture, whole)[0], G, 8))
    (opaque,), _ = slice_image(np.asarray(picture.convert("RGB")), model.config)
    assert not np.array_equal(strip, opaque)


@pytest.mark.parametrize("number", range(6))
def test_the_filter_is_the_preprocessors(number: int, whole: Path, tmp_path: Path) -> None:
    folder = changed(whole, tmp_path / "filter", "preprocessor_config.json", lambda c: c.update(resample=number))
    picture = noise(77, 31)
    (strip,), _ = slice_image(picture, read_config(folder))
    assert np.array_equal(strip, strip_of(upstream_pixels(picture, folder)[0], G, 8))


def test_boxes_leave_out_what_fills_no_patch(model: Model) -> None:
    slices = model.config.family.cut(noise(92, 23), model.config)
    assert slices.boxes.tolist() == [[0, 0, 80, 20]]
    assert slices.grid is None


def test_a_picture_of_another_size_than_the_models_is_refused(whole: Path, tmp_path: Path) -> None:
    other = changed(whole, tmp_path / "other", "preprocessor_config.json", lambda c: c["size"].update(height=48))
    words = r"slice_image: SigLIP .*: 48 x 46 pixels, as the preprocessor file or its default says, make 6 x 5 patches"
    with pytest.raises(ValueError, match=words):
        slice_image(noise(5, 5), read_config(other))
    (whole_size := tmp_path / "none").mkdir()
    shutil.copy(whole / "config.json", whole_size)
    (whole_size / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"224 x 224 pixels.* make 28 x 28 patches; the model takes 5 x 5$"):
        slice_image(noise(5, 5), read_config(whole_size))


# Stages


def upstream_arrays(folder: Path, pictures: Any) -> dict[str, NDArray[Any]]:
    """The arrays of transformers' own vision model."""
    vision = SiglipModel.from_pretrained(folder).vision_model
    pixels = torch.tensor(upstream_pixels(pictures, folder))
    with torch.no_grad():
        out = vision(pixels)
        tensors = {"embeddings": vision.embeddings(pixels), "hidden": out.last_hidden_state, "pooled": out.pooler_output}
    return {name: tensor.numpy() for name, tensor in tensors.items()} | {"pixels": pixels.numpy()}


@pytest.fixture(scope="session")
def upstream(whole: Path) -> Callable[[Any], dict[str, NDArray[Any]]]:
    return partial(upstream_arrays, whole)


PICTURES = [noise(64, 48), noise(46, 46, 1), noise(9, 300, 2), noise(33, 20, 3, "RGBA")]


def ours(model: Model, pictures: Any = PICTURES, **options: Any) -> dict[str, NDArray[Any]]:
    cut = [slice_image(picture, model.config) for picture in pictures]
    strips = [strip for own, _ in cut for strip in own]
    return run(strips, np.concatenate([tgt for _, tgt in cut]), model, **options)


def test_every_stage_is_upstreams(model: Model, upstream: Callable[[Any], dict[str, NDArray[Any]]]) -> None:
    came, expected = ours(model), upstream(PICTURES)
    for name in ("embeddings", "hidden", "pooled"):
        assert came[name].dtype == np.float32
        assert relative(came[name], expected[name]) < 1e-5, name
    assert np.array_equal(came["position_ids"], np.tile(np.arange(G * G), (4, 1)))
    assert came["patch_attn_mask"].all()
    assert came["tgt_sizes"].tolist() == [[G, G]] * 4


def test_a_vision_model_alone_gives_the_same(alone: Path, whole: Path, model: Model, tmp_path: Path) -> None:
    expected = ours(model)
    bare = load_model(alone)
    assert bare.tower == ""
    older = tmp_path / "older"  # releases before 5 put the prefix before a vision model alone, too
    shutil.copytree(alone, older)
    arrays = load_file(alone / "model.safetensors")
    save_file({f"vision_model.{name}": array for name, array in arrays.items()}, older / "model.safetensors")
    prefixed = load_model(older)
    assert prefixed.tower == "vision_model."
    for other in (bare, prefixed):
        came = ours(other)
        assert came.keys() == expected.keys()
        assert all(np.array_equal(came[name], expected[name]) for name in came)


def test_transformers_reads_both_layouts_of_a_vision_model_alone(alone: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    shutil.copytree(alone, older)
    arrays = load_file(alone / "model.safetensors")
    prefixed = {f"vision_model.{name}": array for name, array in arrays.items()}
    save_file(prefixed, older / "model.safetensors", metadata={"format": "pt"})
    one, two = (SiglipVisionModel.from_pretrained(folder).state_dict() for folder in (alone, older))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_float64_model_gives_float64(model: Model) -> None:
    wide = Model(model.config, {name: array.astype(np.float64) for name, array in model.weights.items()})
    came, expected = ours(model), ours(wide)
    assert expected["pooled"].dtype == np.float64
    assert relative(came["pooled"], expected["pooled"]) < 1e-5


def test_a_picture_alone_gives_what_it_gives_among_others(model: Model) -> None:
    together = ours(model)["pooled"]
    for index, picture in enumerate(PICTURES):
        assert relative(ours(model, [picture])["pooled"][0], together[index]) < 1e-5


def test_what_is_in_padded_places_is_not_read(model: Model) -> None:
    hidden = ours(model)["hidden"]
    padded = np.concatenate([hidden, np.full_like(hidden[:, :3], np.nan)], axis=1)
    assert np.array_equal(pool(padded, [[G, G]] * 4, model), pool(hidden, [[G, G]] * 4, model))


def test_vectors_of_several_calls_are_joined_end_to_end(model: Model) -> None:
    both = ours(model)
    stage = model.config.family.stage("pooled", "test")
    parts = [ours(model, PICTURES[:1])["pooled"], ours(model, PICTURES[1:])["pooled"]]
    assert relative(stages.join(stage, parts, model, both["tgt_sizes"]), both["pooled"]) < 1e-5


def test_only_what_is_needed_is_read(whole: Path) -> None:
    assert not any("head" in name for name in load_model(whole, until="hidden").weights)
    assert list(load_model(whole, until="embeddings").weights) == [
        f"vision_model.embeddings.{name}"
        for name in ("patch_embedding.weight", "patch_embedding.bias", "position_embedding.weight")
    ]


def test_without_a_head_there_is_no_vector(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "headless"
    SiglipVisionModel(SiglipVisionConfig(**VISION, vision_use_head=False)).save_pretrained(folder)
    shutil.copy(whole / "preprocessor_config.json", folder)
    headless = load_model(folder)
    assert [stage.name for stage in headless.config.family.vision_stages] == ["embeddings", "hidden"]
    with pytest.raises(ValueError, match=r"no stage 'pooled'; it has embeddings, hidden$"):
        load_model(folder, until="pooled")
    kept = changed(whole, tmp_path / "kept", "config.json", lambda c: c["vision_config"].update(vision_use_head=False))
    with pytest.raises(ValueError, match=r"vision_model.head.attention.* which no stage of SigLIP.* reads"):
        load_model(kept)


# Bad input


def test_what_does_not_fit_is_refused(model: Model) -> None:
    (strip,), tgt_sizes = slice_image(PICTURES[0], model.config)
    for h, w in ((1, 25), (5, 4)):
        words = rf"tgt_sizes\[1\] is \({h}, {w}\); the model takes 5 x 5 patches$"
        with pytest.raises(ValueError, match=words):
            embed([strip, strip[:, :, : h * w * 8]], [[G, G], [h, w]], model)
    with pytest.raises(ValueError, match=r"its positions follow no rule, so none can be chosen; got rule 'step'$"):
        run([strip], tgt_sizes, model, rule="step")
    with pytest.raises(ValueError, match=r"has no stage 'tokens'; it has embeddings, hidden, pooled$"):
        run([strip], tgt_sizes, model, until="tokens")
    with pytest.raises(ValueError, match=r"^image_placeholder: SigLIP.* has no text that stands for a picture"):
        image_placeholder(None, config=model.config)
    with pytest.raises(ValueError, match=r"^pool: hidden must have shape .* \(1, Lmax, 24\); got \(1, 25, 7\)$"):
        pool(np.zeros((1, 25, 7)), [[G, G]], model)
    with pytest.raises(ValueError, match=r"^pool: the model lacks vision_model.head.probe.*, which the stage 'pooled' needs$"):
        pool(np.zeros((1, 25, 24)), [[G, G]], random_model(model.config, until="hidden"))


def test_minicpm_v_has_no_vector() -> None:
    with pytest.raises(ValueError, match=r"^pool: MiniCPM-V 2.6 has no stage 'pooled'; it has embeddings, hidden, tokens$"):
        pool(np.zeros((1, 25, 24)), [[G, G]], random_model())


def test_an_array_that_no_stage_reads_is_refused(whole: Path, alone: Path, tmp_path: Path) -> None:
    for number, (folder, name) in enumerate([(whole, "vision_model.merger.weight"), (alone, "merger.weight")]):
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        save_file({**load_file(folder / "model.safetensors"), name: np.ones(1, np.float32)}, copy / "model.safetensors")
        with pytest.raises(ValueError, match=f"has {name}, which no stage of SigLIP"):
            load_model(copy)


# Configs


def table(text: str) -> dict[str, str]:
    """Key -> what it is, from lines "what: key key"."""
    lines = (line.split(":") for line in text.strip().splitlines())
    return {key: what.strip() for what, keys in lines for key in keys.split()}


VISION_KEYS = table("""
    honoured: hidden_size intermediate_size num_hidden_layers num_attention_heads num_channels
    honoured: image_size patch_size layer_norm_eps vision_use_head
    fixed: hidden_act model_type
    without effect: attention_dropout dtype architectures transformers_version
""")
PROCESSOR_KEYS = table("""
    honoured: size resample image_mean image_std
    fixed: do_convert_rgb do_resize do_rescale do_normalize rescale_factor
    fixed: do_center_crop do_pad image_processor_type data_format
    without effect: default_to_square crop_size pad_size input_data_format return_tensors device
    without effect: disable_grouping image_seq_length processor_class
""")
OTHER: dict[str, Any] = {
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_channels": 4,
    "image_size": 64,
    "patch_size": 4,
    "layer_norm_eps": 1e-3,
    "vision_use_head": False,
    "size": {"height": 50, "width": 60},
    "resample": 2,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.1, 0.2, 0.3],
}
"""Another value that can be honoured; 7 for a key that is not here."""


def test_every_key_that_transformers_writes_is_in_the_tables(whole: Path, alone: Path) -> None:
    within = json.loads((whole / "config.json").read_text())["vision_config"]
    assert within.keys() | json.loads((alone / "config.json").read_text()).keys() == VISION_KEYS.keys()
    assert json.loads((whole / "preprocessor_config.json").read_text()).keys() <= PROCESSOR_KEYS.keys()


@pytest.mark.parametrize(
    ("file", "key", "what"),
    [("config.json", key, what) for key, what in VISION_KEYS.items()]
    + [("preprocessor_config.json", key, what) for key, what in PROCESSOR_KEYS.items()],
)
def test_every_key_is_honoured_fixed_or_without_effect(file: str, key: str, what: str, whole: Path, tmp_path: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        inside = content["vision_config"] if file == "config.json" else content
        inside[key] = OTHER.get(key, 7) if what == "honoured" else "another"

    folder, before = changed(whole, tmp_path / "edited", file, edit), read_config(whole)
    if what == "fixed":
        with pytest.raises(ValueError, match=rf"read_config: SigLIP.*: {key} of \w+(\.json)? is 'another'; supported is "):
            read_config(folder)
    elif key == "vision_use_head":
        assert read_config(folder).family.vision_stages == before.family.vision_stages[:-1]
    else:
        assert (read_config(folder) == before) == (what == "without effect")


def test_absent_and_null_keys_are_the_classes_defaults(whole: Path, tmp_path: Path) -> None:
    def empty(content: dict[str, Any]) -> None:
        content["vision_config"] = dict.fromkeys(VISION_KEYS)

    folder = changed(whole, tmp_path / "bare", "config.json", empty)
    (folder / "preprocessor_config.json").write_text(json.dumps(dict.fromkeys(PROCESSOR_KEYS)))
    config, defaults, processor = read_config(folder), SiglipVisionConfig(), SiglipImageProcessorPil()
    assert isinstance(config, siglip.SiglipConfig)
    for name, value in vars(config.vision).items():
        assert value == getattr(defaults, name), name
    assert config.size == (processor.size["height"], processor.size["width"])
    assert (config.resample, config.mean, config.std) == ("BICUBIC", processor.image_mean, processor.image_std)
    assert config == FAMILIES["siglip"].presets()["SigLIP base (224)"]
    (folder / "config.json").write_text('{"model_type": "siglip"}')
    assert read_config(folder) == config


@pytest.mark.parametrize(
    ("file", "edit", "words"),
    [
        ("config.json", {"window": 2}, "window of vision_config is 2; the key is not known here"),
        ("config.json", {"vision_use_head": 1}, "vision_use_head of vision_config must be true or false; got 1"),
        ("config.json", {"hidden_size": 25}, "hidden_size 25 must be a multiple of num_attention_heads 3"),
        ("config.json", {"image_size": [46, 46]}, "image_size must be a whole number"),
        ("preprocessor_config.json", {"crop": 2}, "crop of preprocessor_config.json is 2; the key is not known here"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 46}}, "must give height and width; got {'shortest_edge': 46}"),
        ("preprocessor_config.json", {"size": 46}, "size of preprocessor_config.json must be a JSON object; got 46"),
        ("preprocessor_config.json", {"size": {"height": 0, "width": 4}}, r"size\[0\] must be a whole number"),
        ("preprocessor_config.json", {"resample": 6}, "resample of preprocessor_config.json must be from 0 to 5; got 6"),
        ("preprocessor_config.json", {"image_std": [0, 1, 1]}, "SiglipConfig: std must be at least 1e-06"),
        ("preprocessor_config.json", {"image_mean": [0.5]}, "SiglipConfig: mean must be three numbers, one per channel; got"),
        ("preprocessor_config.json", {"do_resize": False}, "do_resize of preprocessor_config.json is False; supported is True"),
    ],
)
def test_what_would_change_the_numbers_is_refused(
    file: str, edit: dict[str, Any], words: str, whole: Path, tmp_path: Path
) -> None:
    folder = changed(whole, tmp_path / "bad", file, lambda c: (c["vision_config"] if file == "config.json" else c).update(edit))
    with pytest.raises((ValueError, TypeError), match=words):
        read_config(folder)


def test_an_unknown_key_of_a_vision_model_alone_is_refused(alone: Path, tmp_path: Path) -> None:
    folder = changed(alone, tmp_path / "bad", "config.json", lambda c: c.update(window=2))
    with pytest.raises(ValueError, match=r"window of config.json is 2; the key is not known here"):
        read_config(folder)


def test_one_number_stands_for_each_channel_s_level(whole: Path, tmp_path: Path) -> None:
    folder = changed(whole, tmp_path / "one", "preprocessor_config.json", lambda c: c.update(image_mean=0.4, image_std=0.3))
    picture = noise(77, 31)
    (strip,), _ = slice_image(picture, read_config(folder))
    assert np.array_equal(strip, strip_of(upstream_pixels(picture, folder)[0], G, 8))


def test_what_processor_config_json_says_of_pictures_comes_first(whole: Path, tmp_path: Path) -> None:
    folder = changed(whole, tmp_path / "new", "preprocessor_config.json", lambda c: c.update(resample=0))
    inside = json.loads((whole / "preprocessor_config.json").read_text()) | {"resample": 2}
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": inside, "processor_class": "SiglipProcessor"}))
    picture = noise(77, 31)
    (strip,), _ = slice_image(picture, read_config(folder))
    assert np.array_equal(strip, strip_of(upstream_pixels(picture, folder)[0], G, 8))
    (folder / "processor_config.json").write_text('{"processor_class": "SiglipProcessor"}')
    config = read_config(folder)
    assert isinstance(config, siglip.SiglipConfig)
    assert config.resample == "NEAREST"
    (folder / "processor_config.json").write_text('{"image_processor": 3}')
    with pytest.raises(ValueError, match=r"image_processor of processor_config.json must be a JSON object"):
        read_config(folder)


def test_configs_become_json_and_come_back(tmp_path: Path, alone: Path) -> None:
    family = FAMILIES["siglip"]
    configs = [family.small(), *family.presets().values(), read_config(alone)]
    configs.append(replace(configs[0], family=siglip.in_layout(family, False, False), resample="BILINEAR"))
    for config in configs:
        top, preprocessor = config.family.as_json(config)
        (tmp_path / "config.json").write_text(json.dumps(top))
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
        assert read_config(tmp_path) == config


def test_so400m_drops_the_pixels_that_fill_no_patch() -> None:
    family = FAMILIES["siglip"]
    config = family.presets()["SigLIP so400m (384)"]
    (strip,), tgt_sizes = slice_image(noise(40, 30), config)
    assert (strip.shape, tgt_sizes.tolist()) == ((3, 14, 27 * 27 * 14), [[27, 27]])


def test_a_small_random_model_runs_to_the_end() -> None:
    family = FAMILIES["siglip"]
    small = random_model(family.small(), until="pooled")
    assert ours(small, PICTURES[:1])["pooled"].shape == (1, 16)


# Unit length


def test_unit_length_is_upstreams() -> None:
    vectors = np.random.default_rng(0).standard_normal((7, 33)).astype(np.float32)
    tensor = torch.tensor(vectors)
    expected = (tensor / tensor.norm(p=2, dim=-1, keepdim=True)).numpy()
    came = unit_length(vectors)
    assert came.dtype == np.float32
    np.testing.assert_allclose(came, expected, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(unit_length(vectors.astype(np.float64)), axis=1), 1, rtol=1e-15)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1.0, 1e160, 1e300])
def test_no_length_overflows_or_vanishes(scale: float) -> None:
    np.testing.assert_allclose(unit_length(np.array([[3.0, -4.0]]) * scale), [[0.6, -0.8]], rtol=1e-12)


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        ([[1.0], [0.0]], r"vectors\[1\] is zero; it has no direction"),
        ([[1.0, np.nan]], r"vectors\[0\] is not finite"),
        ([[1.0, np.inf]], r"vectors\[0\] is not finite"),
        ([1.0, 2.0], r"vectors must have shape \(N, D\); got \(2,\)"),
        (np.zeros((0, 3)), r"vectors must have shape \(N, D\); got \(0, 3\)"),
        ([["a"]], "vectors must hold floats"),
    ],
)
def test_what_has_no_direction_is_refused(vectors: Any, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^unit_length: {words}"):
        unit_length(vectors)


# The command line


def said(command: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = cli.run(command.split())
    return code, capsys.readouterr().err


def saved(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # it is no dict


def test_the_command_line_gives_vectors(whole: Path, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = []
    for number, picture in enumerate(PICTURES):
        picture.save(name := tmp_path / f"{number}.png")
        names.append(str(name))
    command = f"embed {' '.join(names)} --weights {whole} --until pooled -o {tmp_path}/"
    assert said(f"{command}plain.npz", capsys) == (0, "")
    assert said(f"{command}vectors.safetensors", capsys) == (0, "")
    assert said(f"{command}unit.safetensors --normalize", capsys) == (0, "")
    (plain, about), (unit, normalized) = (saved(tmp_path / f"{name}.safetensors") for name in ("vectors", "unit"))
    assert relative(plain["pooled"], ours(model)["pooled"]) < 1e-5
    assert np.array_equal(unit["pooled"], unit_length(plain["pooled"]))
    assert normalized == about | {"normalized": "unit length"}
    assert (about["family"], about["stage"]) == ("siglip", "pooled")
    assert "rule" not in about
    assert plain["image_index"].tolist() == [0, 1, 2, 3]


def test_the_command_line_refuses_in_one_line(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"embed --weights {whole} -o {tmp_path}/never.npz"
    for words, expected in {
        "--until hidden --normalize": "hidden has one for each place: add --until pooled, which npembed corpus takes by itself",
        "--normalize": "embeddings has one for each place: add --until pooled, which npembed corpus takes by itself",
        "--until tokens": "has no stage 'tokens'; it has embeddings, hidden, pooled",
        "--until pooled --rule step": "its positions follow no rule, so none can be chosen; got rule 'step'",
    }.items():
        code, err = said(f"{command} {words}", capsys)
        assert code == 2
        assert re.fullmatch(rf"npembed: .*{re.escape(expected)}\n", err)
    assert not list(tmp_path.iterdir())


# Wrong ports


def head(hidden: NDArray[Any], model: Model, *, query: Any = None, order: str = "qkv", erf: bool = False) -> NDArray[Any]:
    """The pooling head with a fault: another query, another order of the packed map, the erf gelu."""
    name = f"{model.tower}head"
    weights = {part: np.split(model.weights[f"{name}.attention.in_proj_weight"], 3)[order.index(part)] for part in "qkv"}
    biases = {part: np.split(model.weights[f"{name}.attention.in_proj_bias"], 3)[order.index(part)] for part in "qkv"}
    vectors = []
    for x in hidden:
        probe = model.weights[f"{name}.probe"][0] if query is None else query(x)
        q, k, v = (EXACT.linear(y, weights[part], biases[part]) for part, y in zip("qkv", (probe, x, x), strict=True))
        y = EXACT.linear(EXACT.attend(q, k, v, 3), *model.pair(f"{name}.attention.out_proj"))
        inner = EXACT.linear(EXACT.layer_norm(y, *model.pair(f"{name}.layernorm"), 1e-6), *model.pair(f"{name}.mlp.fc1"))
        tanh = np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3))
        inner = inner / 2 * (1 + (special.erf(inner / np.sqrt(2)) if erf else tanh))
        vectors.append((y + EXACT.linear(inner, *model.pair(f"{name}.mlp.fc2")))[0])
    return np.array(vectors)


def without_post_layernorm(embeddings: NDArray[Any], tgt_sizes: Any, model: Model) -> NDArray[Any]:
    steps = model.config.family.tower(model)[:-1]
    x = embeddings
    for step in steps:
        x, _ = step(x, (G, G))
    return x


PORTS: dict[str, tuple[str, Callable[..., NDArray[Any]]]] = {
    "the mean of the patches for the head": ("pooled", lambda hidden, sizes, model: hidden.mean(axis=1)),
    "the probe's own value, not attended": ("pooled", lambda hidden, sizes, model: head(hidden[:, :1], model)),
    "the mean of the patches as the probe": (
        "pooled",
        lambda hidden, sizes, model: head(hidden, model, query=lambda x: x.mean(axis=0, keepdims=True)),
    ),
    "the packed map read as k, q, v": ("pooled", lambda hidden, sizes, model: head(hidden, model, order="kqv")),
    "erf for tanh in the head": ("pooled", lambda hidden, sizes, model: head(hidden, model, erf=True)),
    "post_layernorm left out": ("hidden", without_post_layernorm),
}


@pytest.mark.parametrize("fault", PORTS)
def test_a_wrong_port_is_outside_the_allowed_distance(fault: str, model: Model) -> None:
    stage, port = PORTS[fault]
    wide = Model(model.config, {name: array.astype(np.float64) for name, array in model.weights.items()})
    before = ours(model)[{"hidden": "embeddings", "pooled": "hidden"}[stage]]
    function = {"hidden": encode, "pooled": pool}[stage]
    exact, single = (function(before, [[G, G]] * 4, one) for one in (wide, model))
    allowed = stage_allowed(single, exact)
    assert (np.abs(single - exact) <= allowed).all()
    assert (np.abs(port(before.astype(np.float64), [[G, G]] * 4, wide) - exact) > allowed).any()


def test_the_port_with_no_fault_is_within_the_allowed_distance(model: Model) -> None:
    before = ours(model)["hidden"]
    assert relative(head(before, model), pool(before, [[G, G]] * 4, model)) < 1e-6


@pytest.mark.parametrize(
    "fault",
    [
        lambda picture: picture.crop((0, 0, min(picture.size), min(picture.size))),  # the aspect kept, the rest cut off
        lambda picture: picture.resize((46, 46), Image.Resampling.BILINEAR),
        lambda picture: picture.transpose(Image.Transpose.TRANSPOSE),  # width and height exchanged
    ],
)
def test_another_way_of_resizing_gives_other_pixels(fault: Callable[[Any], Any], model: Model) -> None:
    picture = noise(64, 48)
    (right,), _ = slice_image(picture, model.config)
    (wrong,), _ = slice_image(fault(picture), model.config)
    assert not np.array_equal(right, wrong)


def test_recognised_by_model_type_alone() -> None:
    assert FAMILIES["siglip"].model_types == ("siglip", "siglip_vision_model")
    assert re.search("SigLIP", FAMILIES["siglip"].title)

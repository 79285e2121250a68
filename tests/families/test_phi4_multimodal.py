"""Phi-4-multimodal: its processor's own answers, torch's resizing, and transformers' own modules on a small saved model."""

import hashlib
import io
import json
import warnings
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file, save_file
from torch import nn
from transformers import AutoConfig
from transformers.image_transforms import convert_to_rgb
from transformers.models.phi4_multimodal import modeling_phi4_multimodal as upstream

from npembed import VisionConfig, embed, encode, image_placeholder, load_model, random_model, slice_image
from npembed.families import FAMILIES, config_of
from npembed.families.phi4_multimodal import Config, assemble, crop_ids, plan_canvas
from npembed.steps.patches import strip_to_picture
from npembed.steps.pixels import resize_bytes
from npembed.steps.pixels.shrink import shrink_bicubic
from npembed.steps.stages import join, run
from tests.synthetic import synthetic_picture

torch.set_num_threads(1)

FAMILY = FAMILIES["phi-4-multimodal"]
CLOSE = 1e-5
"""Of the largest number, how far floats may differ; 1.2e-6 was measured."""

NATIVE = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
native_only = pytest.mark.skipif(not NATIVE, reason="on this processor torch resizes by other arithmetic")

UNIT, SIDE = 64, 32
"""Of the small model: pixels and patches along each side of a crop."""

PICTURES = {  # width, height: columns, rows, resized width, resized height (all worked out by hand from SPEC 13.7)
    (64, 64): (1, 1, 64, 64),
    (50, 36): (1, 1, 64, 46),  # 23 rows of patches
    (37, 50): (1, 1, 47, 64),  # 24 columns: 17 pixels are white, 8 patches masked
    (100, 70): (2, 2, 128, 89),  # 45 rows
    (70, 100): (2, 2, 89, 128),  # 45 columns
    (150, 40): (3, 1, 192, 51),  # 26 rows
    (200, 200): (2, 2, 128, 128),  # five crops by four would be too many
}


@lru_cache
def answers():
    """What upstream's own image processor made; tests/data/README.md says how."""
    from tests.conftest import DATA

    return json.loads((DATA / "phi4_multimodal.json").read_text())


# What a picture is cut into


def test_the_canvas_is_the_processors_for_every_size():
    plans = answers()["plans"]
    assert sum(plan is not None for *_, plan in plans) >= 300
    for width, height, expected in plans:
        if expected is None:
            with pytest.raises(ValueError, match=rf"picture of \({width}, {height}\).* at least 10 pixels"):
                plan_canvas((width, height), Config())
            continue
        plan = plan_canvas((width, height), Config())
        assert [*plan.grid, *plan.size, *plan.patches] == expected, (width, height)


@native_only
@pytest.mark.parametrize("expected", answers()["pictures"], ids=lambda expected: "x".join(map(str, expected["size"])))
def test_pixels_sizes_and_the_count_of_tokens_are_the_processors(expected):
    strips, sizes = slice_image(synthetic_picture(*expected["size"]), Config())
    pictures = [strip_to_picture(strip, tuple(size)) for strip, size in zip(strips, sizes.tolist(), strict=True)]
    assert sizes.tolist() == [[32, 32], expected["patches"]]
    assert [hashlib.sha256(np.ascontiguousarray(picture)).hexdigest() for picture in pictures] == [
        expected["whole"],
        expected["canvas"],
    ]
    assert image_placeholder((1, 1), None, Config(), sizes) == "<|image|>" * expected["tokens"]


@given(st.tuples(st.integers(1, 3000), st.integers(1, 3000)))
def test_every_crop_has_patches(size):
    try:
        plan = plan_canvas(size, Config())
    except ValueError:
        return
    (columns, rows), (h, w) = plan.grid, plan.patches
    assert columns * rows <= 36
    assert 32 * (rows - 1) < h <= 32 * rows
    assert 32 * (columns - 1) < w <= 32 * columns
    assert h == 32 * rows or w == 32 * columns  # only one side is padded


def torch_bytes(pixels, width, height):
    """uint8 (H, W, 3) -> uint8 (3, height, width)."""
    planes = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()[None]
    return nn.functional.interpolate(planes, (height, width), mode="bilinear", antialias=True)[0]


@native_only
def test_bytes_are_resized_as_torch_does():
    rng = np.random.default_rng(3)
    for number in range(300):
        (h, w), (height, width) = rng.integers(1, rng.choice([20, 300, 700]), (2, 2)).tolist()
        pixels = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
        if number % 3 == 0:
            pixels[:] = rng.choice(np.array([0, 255], np.uint8), (h, w, 1))
        expected = torch_bytes(pixels, width, height).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(resize_bytes(pixels, (width, height)), expected, f"{(w, h)} to {(width, height)}")


@native_only
@pytest.mark.parametrize("factors", [(1, 1), (1, 2), (2, 1), (3, 2), (4, 5), (6, 6), (36, 1), (1, 18), (12, 3)])
def test_the_whole_is_shrunk_as_torch_does(factors):
    columns, rows = factors
    pixels = np.random.default_rng(4).uniform(-1, 1, (3, 16 * rows, 16 * columns)).astype(np.float32)
    expected = nn.functional.interpolate(torch.from_numpy(pixels)[None], (16, 16), mode="bicubic")[0].numpy()
    np.testing.assert_array_equal(shrink_bicubic(pixels, columns, rows), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "1", "CMYK"])
def test_colours_are_converted_as_transformers_does(mode):
    picture = Image.fromarray(np.dstack([synthetic_picture(60, 50), np.full((50, 60), 90, np.uint8)]))
    if mode == "P":
        few = picture.convert("RGB").quantize(16)
        few.save(file := io.BytesIO(), "PNG", transparency=few.getpixel((30, 25)))
        picture = Image.open(file)
    else:
        picture = picture.convert(mode)
    expected = slice_image(convert_to_rgb(picture, return_numpy=True), Config())[0]
    given = slice_image(picture, Config())[0]
    np.testing.assert_array_equal(given[1], expected[1])
    with warnings.catch_warnings(action="ignore"):  # Pillow warns of what is dropped here
        dropped = slice_image(np.asarray(picture.convert("RGB")), Config())[0]
    assert np.array_equal(given[1], dropped[1]) == (mode in ("1", "CMYK"))  # a port that drops alpha is seen


def test_a_picture_with_16_bits_is_refused():
    with pytest.raises(ValueError, match="slice_image: image has mode I;16"):
        slice_image(Image.new("I;16", (50, 50)), Config())


def test_boxes_are_in_the_pixels_of_the_original():
    slices = FAMILY.cut(synthetic_picture(640, 480), Config())
    assert slices.grid == (2, 2)
    np.testing.assert_allclose(slices.boxes, [[0, 0, 640, 640], [0, 0, 640, 480]])


# The small model, saved as transformers saves it


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("phi4"))


def save(path, seed=5, **changes):
    """A small random Phi-4-multimodal, and its processor's file as the processor itself writes it."""
    torch.manual_seed(seed)
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision |= {"patch_size": 2, "image_size": 54, "crop_size": UNIT} | changes
    audio = {"hidden_size": 8, "intermediate_size": 8, "num_blocks": 1, "num_attention_heads": 1, "ext_pw_out_channel": 8}
    audio |= {"depthwise_separable_out_channel": 8, "nemo_conv_channels": 8, "input_size": 8}
    config = AutoConfig.for_model(
        "phi4_multimodal",
        **{"hidden_size": 24, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8},
        **{"num_key_value_heads": 1, "pad_token_id": 0, "vision_config": vision, "audio_config": audio},
    )
    model = upstream.Phi4MultimodalForCausalLM(config)
    with torch.no_grad():
        for name, array in model.model.embed_tokens_extend.image_embed.named_parameters():
            norm = name.endswith("weight") and array.ndim == 1
            array.copy_(torch.randn_like(array) * 0.3 + (1 if norm else 0))
    model.save_pretrained(path)
    processor = answers()["preprocessor_config"] | {"patch_size": 2, "size": {"height": UNIT, "width": UNIT}, "dynamic_hd": 4}
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


@pytest.fixture(scope="session")
def model(folder):
    return load_model(folder)


@pytest.fixture(scope="session")
def image_embed(folder):
    """transformers' own module, with attention as `eager` computes it."""
    return oracle(folder, "eager")


def oracle(folder, attention):
    whole = upstream.Phi4MultimodalForCausalLM.from_pretrained(folder, attn_implementation=attention).eval()
    return whole.model.embed_tokens_extend.image_embed


def torch_batch(sizes):
    """The pixels (N, crops, 3, 64, 64), mask and sizes that upstream's processor would give, by torch alone."""
    pictures, masks, canvases = [], [], []
    for width, height in sizes:
        columns, rows, w, h = PICTURES[width, height]
        resized = torch_bytes(synthetic_picture(width, height), w, h)
        canvas = nn.functional.pad(resized, (0, UNIT * columns - w, 0, UNIT * rows - h), value=255)
        canvas = (canvas.to(torch.float32) - 127.5) / 127.5
        whole = nn.functional.interpolate(canvas[None], (UNIT, UNIT), mode="bicubic")
        mask = torch.ones(SIDE * rows, SIDE * columns)
        mask[mask.shape[0] - (UNIT * rows - h) // 2 :] = 0
        mask[:, mask.shape[1] - (UNIT * columns - w) // 2 :] = 0
        parts = [canvas[:, UNIT * r : UNIT * (r + 1), UNIT * c : UNIT * (c + 1)] for r in range(rows) for c in range(columns)]
        mask_parts = [mask[SIDE * r : SIDE * (r + 1), SIDE * c : SIDE * (c + 1)] for r in range(rows) for c in range(columns)]
        pictures.append(torch.stack([whole[0], *parts]))
        masks.append(torch.stack([torch.ones(SIDE, SIDE), *mask_parts]))
        canvases.append((UNIT * rows, UNIT * columns))
    most = max(map(len, pictures))
    pixels = torch.stack([nn.functional.pad(p, (0, 0, 0, 0, 0, 0, 0, most - len(p))) for p in pictures])
    mask = torch.stack([nn.functional.pad(m, (0, 0, 0, 0, 0, most - len(m)), value=1) for m in masks])
    return pixels, mask, torch.tensor(canvases)


def laid_out(crops, size):
    """(1 + crops, 32*32, ...) of one picture -> the whole (32, 32, ...) and the canvas (32*rows, 32*columns, ...)."""
    columns, rows = PICTURES[size][:2]
    whole, *parts = np.asarray(crops).reshape(len(crops), SIDE, SIDE, *crops.shape[2:])
    bands = [np.concatenate(parts[r * columns : (r + 1) * columns], axis=1) for r in range(rows)]
    return whole, np.concatenate(bands, axis=0)


def ours(sizes, model, until=None):
    """Every stage's arrays of these synthetic pictures together."""
    cut = [slice_image(synthetic_picture(*size), model.config) for size in sizes]
    return run([strip for strips, _ in cut for strip in strips], np.concatenate([sizes for _, sizes in cut]), model, until)


def assert_close(given, expected, within=CLOSE):
    assert given.shape == expected.shape
    assert np.abs(given - expected).max() <= within * np.abs(expected).max()


@native_only
@pytest.mark.parametrize("size", PICTURES)
def test_the_small_models_pixels_are_torchs(size, model):
    pixels, mask, _ = torch_batch([size])
    strips, sizes = slice_image(synthetic_picture(*size), model.config)
    whole, canvas = (strip_to_picture(strip, tuple(s)) for strip, s in zip(strips, sizes.tolist(), strict=True))
    np.testing.assert_array_equal(whole, pixels[0, 0])
    columns, rows = PICTURES[size][:2]
    crops = pixels[0, 1:].reshape(rows, columns, 3, UNIT, UNIT).permute(2, 0, 3, 1, 4).reshape(3, rows * UNIT, columns * UNIT)
    h, w = sizes[1].tolist()
    np.testing.assert_array_equal(canvas, crops[:, : 2 * h, : 2 * w])
    _, places = laid_out(mask[0].flatten(1), size)
    assert places.sum() == h * w == places[:h, :w].sum()


@pytest.mark.parametrize("size", PICTURES)
def test_embeddings_ids_and_hidden_states_are_transformers(size, model, image_embed):
    pixels, mask, _ = torch_batch([size])
    tower, given = image_embed.img_processor, ours([size], model, "hidden")
    looked_up = []
    hook = tower.embeddings.position_embedding.register_forward_hook(lambda module, ids, out: looked_up.append(ids[0]))
    with torch.no_grad():
        states = tower(pixels[0], patch_attention_mask=mask[0].bool(), output_hidden_states=True).hidden_states
    hook.remove()
    for slice_, (ids, embedded, hidden) in enumerate(
        zip(*(laid_out(array, size) for array in (looked_up[0], states[0], states[-2])), strict=True)
    ):
        h, w = given["tgt_sizes"][slice_].tolist()
        np.testing.assert_array_equal(given["position_ids"][slice_, : h * w], ids[:h, :w].ravel())
        assert_close(given["embeddings"][slice_, : h * w], embedded[:h, :w].reshape(h * w, -1))
        even_h, even_w = given["hidden_sizes"][slice_].tolist()
        assert (even_h, even_w) == (h + h % 2, w + w % 2)
        assert_close(given["hidden"][slice_, : even_h * even_w], hidden[:even_h, :even_w].reshape(even_h * even_w, -1))


def upstream_tokens(image_embed, sizes):
    """Each picture's tokens (Q, E), from transformers' own connector, and from one batch."""
    pixels, mask, canvases = torch_batch(sizes)
    counts = [token_count(size) for size in sizes]
    ids = torch.full((1, sum(counts)), image_embed.config.vision_config.image_token_id)
    text = torch.zeros(1, sum(counts), image_embed.config.hidden_size)
    with torch.no_grad():
        filled = image_embed(ids, text, image_pixel_values=pixels, image_sizes=canvases, image_attention_mask=mask)
    return np.split(filled[0].numpy(), np.cumsum(counts)[:-1])


def token_count(size):
    mask = torch_batch([size])[1]
    _, places = laid_out(mask[0].flatten(1), size)
    r, c = int(places[::2, 0].sum()), int(places[0, ::2].sum())
    return 256 + 16 + 1 + r * (c + 1)


@pytest.mark.parametrize("sizes", [*([size] for size in PICTURES), [(50, 36), (70, 100), (64, 64)]], ids=str)
def test_tokens_are_transformers(sizes, model, image_embed):
    given = ours(sizes, model)
    assert given["token_counts"].tolist() == [token_count(size) for size in sizes]
    for tokens, count, expected in zip(
        given["tokens"], given["token_counts"], upstream_tokens(image_embed, sizes), strict=True
    ):
        assert_close(tokens[:count], expected)
        assert not tokens[count:].any()


@pytest.mark.parametrize(("layer", "layers"), [(-1, 3), (-3, 1), (1, 1), (3, 3), (-4, 0)])
def test_the_feature_layer_is_honoured(layer, layers, folder, model, image_embed, monkeypatch):
    monkeypatch.setattr(image_embed, "layer_idx", layer)
    config = replace(model.config, feature_layer=layer)
    assert config.encoder_layers == layers
    full = load_file(folder / "model.safetensors")
    needed = replace(model, config=config, weights={name: full[name] for name in full if name.startswith(FAMILY.owns)})
    given = ours([(50, 36)], needed)
    assert_close(given["tokens"][0], upstream_tokens(image_embed, [(50, 36)])[0])


def test_the_feature_layer_0_that_upstream_cannot_take_is_refused(model, image_embed, monkeypatch):
    with pytest.raises(ValueError, match="feature_layer must not be 0"):
        replace(model.config, feature_layer=0)
    monkeypatch.setattr(image_embed, "layer_idx", 0)
    with pytest.raises(TypeError, match="'NoneType' object is not subscriptable"):
        upstream_tokens(image_embed, [(64, 64)])


def test_pictures_one_by_one_are_as_pictures_together(model):
    sizes = [(50, 36), (100, 70)]
    together, alone = ours(sizes, model), [ours([size], model) for size in sizes]
    for stage in FAMILY.vision_stages:
        joined = join(stage, [arrays[stage.name] for arrays in alone], model, together["tgt_sizes"])
        np.testing.assert_array_equal(joined, together[stage.name])


def test_float64_agrees_with_float32(model):
    wide = replace(model, weights={name: array.astype(np.float64) for name, array in model.weights.items()})
    narrow, exact = (ours([(70, 100)], m)["tokens"] for m in (model, wide))
    assert exact.dtype == np.float64
    assert_close(narrow, exact)


def test_a_nan_stays_in_its_slice(model):
    strips, sizes = slice_image(synthetic_picture(100, 70), model.config)
    strips[1][0, 0, 0] = np.nan
    hidden = run(strips, sizes, model, "hidden")["hidden"]
    assert np.isfinite(hidden[0]).all()
    assert np.isnan(hidden[1]).any()


# Ports that go wrong


def is_seen(wrong, right):
    """Whether it is more than what is allowed."""
    return wrong.shape != right.shape or np.abs(wrong - right).max() > CLOSE * np.abs(right).max()


def test_sdpa_without_a_mask_is_causal_in_transformers(folder, model, image_embed):
    """transformers 5.23.0: where no patch is masked its sdpa attention takes the tower for causal; eager does not."""
    sdpa = oracle(folder, "sdpa")
    full, padded = [(64, 64)], [(50, 36)]
    assert_close(upstream_tokens(sdpa, padded)[0], ours(padded, model)["tokens"][0])
    assert is_seen(upstream_tokens(sdpa, full)[0], ours(full, model)["tokens"][0])
    assert not is_seen(upstream_tokens(image_embed, full)[0], ours(full, model)["tokens"][0])


def without_mask(image_embed, monkeypatch):
    """Every patch attends to the padding, too."""
    forward = image_embed.img_processor.forward
    monkeypatch.setattr(
        image_embed.img_processor, "forward", lambda pixels, patch_attention_mask, **more: forward(pixels, **more)
    )


def one_layer_more(image_embed, monkeypatch):
    monkeypatch.setattr(image_embed, "layer_idx", -1)


def post_layernorm(image_embed, monkeypatch):
    features = image_embed.img_processor.forward

    def normed(*args, **kwargs):
        out = features(*args, **kwargs)
        states = [None if state is None else image_embed.img_processor.post_layernorm(state) for state in out.hidden_states]
        out["hidden_states"] = tuple(states)
        return out

    monkeypatch.setattr(image_embed.img_processor, "forward", normed)


def tanh_in_the_connector(image_embed, monkeypatch):
    monkeypatch.setattr(nn.functional, "gelu", partial(nn.functional.gelu, approximate="tanh"))


def no_average(image_embed, monkeypatch):
    """Every second patch in place of the mean."""
    pooling = image_embed.image_token_compression
    monkeypatch.setattr(pooling, "forward", lambda x: x[:, :, :32:2, :32:2].contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize("fault", [without_mask, one_layer_more, post_layernorm, tanh_in_the_connector, no_average])
def test_a_faulty_port_differs(fault, model, image_embed, monkeypatch):
    fault(image_embed, monkeypatch)
    assert is_seen(upstream_tokens(image_embed, [(50, 36)])[0], ours([(50, 36)], model)["tokens"][0])


def test_a_port_that_leaves_masked_patches_out_of_the_average_differs(model):
    given = ours([(50, 36)], model)
    hidden, (h, w) = given["hidden"].copy(), given["tgt_sizes"][1].tolist()
    hidden[1, h * w : (h + 1) * w] = hidden[1, (h - 1) * w : h * w]  # the mean of the last row by itself
    assert is_seen(assemble(hidden, given["tgt_sizes"], model), given["tokens"])


def test_a_port_with_the_whole_first_differs(model):
    tokens = ours([(100, 70)], model)["tokens"]
    assert is_seen(np.roll(tokens, 273, axis=1), tokens)


def test_a_port_that_exchanges_rows_and_columns_differs(model):
    given = ours([(100, 70)], model)
    h, w = given["hidden_sizes"][1].tolist()
    turned = given["hidden"].copy()
    turned[1, : h * w] = turned[1, : h * w].reshape(h, w, -1).swapaxes(0, 1).reshape(h * w, -1)
    assert is_seen(assemble(turned, given["tgt_sizes"], model), given["tokens"])
    assert given["token_counts"].tolist() != [273 + w // 2 * (h // 2 + 1)]


def test_a_port_that_resizes_with_pillow_differs():
    picture = synthetic_picture(300, 200)
    ours = resize_bytes(picture, (448, 298))
    pillow = np.asarray(Image.fromarray(picture).resize((448, 298), Image.Resampling.BILINEAR))
    assert (ours != pillow).any()
    whole = slice_image(picture, Config())[0][0]
    original = np.asarray(Image.fromarray(picture).resize((448, 448), Image.Resampling.BICUBIC)).transpose(2, 0, 1) / 127.5 - 1
    assert np.abs(strip_to_picture(whole, (32, 32)) - original).max() > 0.1


def test_a_port_that_numbers_the_canvas_as_one_differs(model):
    from npembed import position_ids

    sizes = [[32, 32], [45, 64]]
    assert not np.array_equal(position_ids(sizes, 27, "step"), crop_ids(sizes, model.config))


# Configs and checkpoints


def tiny_top(**vision):
    own = {"model_type": "phi4_multimodal_vision", "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    return {"model_type": "phi4_multimodal", "hidden_size": 24, "vision_config": own | vision}


def read(top, processor=None):
    return config_of(top, {} if processor is None else processor, "read_config", "here")


def test_an_empty_config_is_the_release():
    assert read({"model_type": "phi4_multimodal"}) == Config()
    assert read({"model_type": "phi4_multimodal"}, answers()["preprocessor_config"]) == Config()
    assert FAMILY.presets() == {"Phi-4-multimodal": Config()}
    vision = Config().vision
    theirs = AutoConfig.for_model("phi4_multimodal").vision_config
    assert all(getattr(vision, name) == getattr(theirs, name) for name in VisionConfig.__dataclass_fields__)


HONOURED_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_channels": 4,
    "image_size": 896,
    "layer_norm_eps": 1e-5,
    "feature_layer": -3,
    "image_token_id": 7,
}
FIXED_VISION = {
    "hidden_act": "gelu",
    "model_type": "siglip_vision_model",
    "crop_size": 224,
    "patch_size": 16,
    "use_hd_transform": False,
    "hd_transform_order": "glb_sub",
}
HONOURED_PROCESSOR = {"dynamic_hd": 9, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
FIXED_PROCESSOR = {
    "do_rescale": False,
    "do_normalize": False,
    "do_convert_rgb": False,
    "resample": 2,
    "rescale_factor": 1.0,
    "image_processor_type": "SiglipImageProcessor",
    "patch_size": 16,
    "size": {"height": 224, "width": 448},
}
IDLE_PROCESSOR = {
    "crop_size": None,
    "data_format": "channels_first",
    "default_to_square": True,
    "device": None,
    "disable_grouping": None,
    "input_data_format": None,
    "return_tensors": None,
    "mel_max_frequency": 7690,
    "do_resize": False,
    "do_pad": True,
    "do_center_crop": False,
    "processor_class": "Phi4MultimodalProcessor",
    "sampling_rate": 16000,
    "hop_length": 160,
    "feature_extractor_type": "Phi4MultimodalFeatureExtractor",
}


@pytest.mark.parametrize(("key", "value"), HONOURED_VISION.items())
def test_a_vision_key_is_honoured(key, value):
    config = read(tiny_top(**{key: value}))
    assert getattr(config.vision if hasattr(config.vision, key) else config, key) == value


@pytest.mark.parametrize(("key", "value"), HONOURED_PROCESSOR.items())
def test_a_processor_key_is_honoured(key, value):
    config = read(tiny_top(), answers()["preprocessor_config"] | {key: value})
    field = key.removeprefix("image_")
    assert getattr(config, field) == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(("key", "value"), FIXED_VISION.items())
def test_a_vision_key_that_is_not_supported_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"Phi-4-multimodal: .*{'crop_size' if key == 'patch_size' else key}"):
        read(tiny_top(**{key: value}))


@pytest.mark.parametrize(("key", "value"), FIXED_PROCESSOR.items())
def test_a_processor_key_that_is_not_supported_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"Phi-4-multimodal: {'height of ' if key == 'size' else ''}{key}"):
        read(tiny_top(), {key: value})


@pytest.mark.parametrize(("key", "value"), IDLE_PROCESSOR.items())
def test_a_processor_key_without_effect_changes_nothing(key, value):
    assert read(tiny_top(), {key: value}) == read(tiny_top())


def test_a_config_as_converted_checkpoints_have_it_is_read():
    converted = tiny_top(use_hd_transform=True, hd_transform_order="sub_glb", crop_size=448)
    assert read(converted, {"image_processor_type": "Phi4MultimodalImageProcessorFast"}) == read(tiny_top())


def test_an_unknown_key_is_refused():
    with pytest.raises(ValueError, match="new_norm of vision_config"):
        read(tiny_top(new_norm=True))
    with pytest.raises(ValueError, match="sharpen of preprocessor_config"):
        read(tiny_top(), {"sharpen": 1})
    with pytest.raises(ValueError, match="width of size is missing; supported is 64"):
        read(tiny_top(patch_size=2, crop_size=64), {"size": {"height": 64}, "patch_size": 2})
    with pytest.raises(ValueError, match=r"patch_size of preprocessor_config\.json is missing; supported is 2"):
        read(tiny_top(patch_size=2, crop_size=64), {"size": {"height": 64, "width": 64}})


def test_what_the_config_refuses():
    for values, message in [
        ({"crop_size": 224}, "crop_size must be 32 patches of 14, 448; got 224"),
        ({"feature_layer": 28}, "feature_layer must be a whole number from -28 to 27"),
        ({"std": (0.5, 0.5, 0.0)}, "std must be at least"),
        ({"embed_dim": 0}, "embed_dim"),
        ({"image_token_id": -1}, "image_token_id"),
    ]:
        with pytest.raises(ValueError, match=message):
            Config(**values)
    with pytest.raises(TypeError, match="vision must be a VisionConfig"):
        Config(vision=None)


def resaved(folder, tmp_path, change):
    """The checkpoint with its arrays changed."""
    arrays = load_file(folder / "model.safetensors")
    change(arrays)
    save_file(arrays, tmp_path / "model.safetensors")
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    return tmp_path


def test_an_array_that_no_stage_reads_is_refused(folder, tmp_path):
    extra = "model.embed_tokens_extend.image_embed.img_processor.encoder.layers.0.gate"
    with pytest.raises(ValueError, match=f"has {extra}, which no stage of Phi-4-multimodal reads"):
        load_model(resaved(folder, tmp_path, lambda arrays: arrays.update({extra: np.ones(1, np.float32)})))


def test_an_array_that_is_missing_is_named(folder, tmp_path):
    lost = "model.embed_tokens_extend.image_embed.sub_img_feature_extensor"
    with pytest.raises(ValueError, match=f"lacks {lost}, which the stage 'tokens' needs; until='hidden' still works"):
        load_model(resaved(folder, tmp_path, lambda arrays: arrays.pop(lost)), until="tokens")


def test_what_upstream_never_uses_is_not_needed_or_read(folder, model, tmp_path):
    idle = FAMILY.unread(model.config)
    assert len(idle) == 16 + 2 + 3 + 2 + 2 + 4  # a layer, the last norm, the head
    names = set(load_file(folder / "model.safetensors"))
    assert set(idle) <= names
    assert not set(idle) & set(model.weights)


def test_a_stage_that_the_family_has_not_is_refused(folder):
    with pytest.raises(ValueError, match="Phi-4-multimodal has no stage 'pooled'; it has embeddings, hidden, tokens"):
        load_model(folder, until="pooled")


def test_slices_that_make_no_pictures_are_refused():
    model = random_model(FAMILY.small(), until="tokens")
    with pytest.raises(ValueError, match="two rows per picture, the whole and the canvas; got 1"):
        assemble(np.ones((1, 1024, 16)), [[32, 32]], model)
    with pytest.raises(ValueError, match=r"tgt_sizes\[0\] is \(31, 32\), but a picture's first slice is 32 x 32"):
        assemble(np.ones((2, 1024, 16)), [[31, 32], [32, 32]], model)
    with pytest.raises(ValueError, match=r"hidden has 1024 places, but tgt_sizes\[1\] = \(32, 34\)"):
        assemble(np.ones((2, 1024, 16)), [[32, 32], [32, 33]], model)
    with pytest.raises(ValueError, match="image_placeholder: tgt_sizes is needed"):
        image_placeholder((1, 1), None, model.config)


def test_padding_beyond_a_slice_is_not_read():
    model = random_model(FAMILY.small(), until="tokens")
    sizes = np.array([[32, 32], [31, 33]])
    embeddings = np.random.default_rng(0).standard_normal((2, 1100, 16)).astype(np.float32)
    hidden = encode(embeddings, sizes, model)
    assert hidden.shape == (2, 32 * 34, 16)
    embeddings[0, 1024:], embeddings[1, 1023:] = np.nan, np.nan
    np.testing.assert_array_equal(encode(embeddings, sizes, model), hidden)
    assert embed([np.zeros((3, 2, 2 * 1024)), np.zeros((3, 2, 2 * 1023))], sizes, model).shape == (2, 1024, 16)


def test_a_pictures_number_is_refused(model):
    with pytest.raises(ValueError, match="a text of Phi-4-multimodal has no picture's number; got image_id 0"):
        image_placeholder((1, 1), 0, model.config, [[32, 32], [32, 32]])

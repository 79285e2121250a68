"""Idefics3 and SmolVLM against transformers' own PIL processors and modules, on small random models in the real layout."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import Idefics3Config as TransformersIdefics3Config
from transformers import SmolVLMConfig as TransformersSmolVLMConfig
from transformers.image_processing_backends import PilBackend
from transformers.image_transforms import convert_to_rgb
from transformers.models.idefics3 import modeling_idefics3
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.smolvlm import modeling_smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from npembed import (
    FAMILIES,
    Model,
    embed,
    encode,
    image_placeholder,
    load_model,
    position_ids,
    random_model,
    read_config,
    run,
    scatter_image_embeds,
    slice_image,
    token_places,
)
from npembed.conformance.bounds import stage_allowed
from npembed.families.idefics3 import Idefics3Config, TilingConfig, pixel_shuffle, plan_tiles, shuffle_and_project
from npembed.steps.patches import picture_to_strip
from npembed.steps.pixels.strips import as_rgb, as_rgb_on_white

KEYS = ("idefics3", "smolvlm")


@dataclass(frozen=True)
class Kind:
    """One family's classes in transformers."""

    config: Any
    model: Any
    vision: Any
    processor: Any


KINDS = {
    "idefics3": Kind(
        TransformersIdefics3Config,
        modeling_idefics3.Idefics3ForConditionalGeneration,
        modeling_idefics3.Idefics3VisionEmbeddings,
        Idefics3ImageProcessorPil,
    ),
    "smolvlm": Kind(
        TransformersSmolVLMConfig,
        modeling_smolvlm.SmolVLMForConditionalGeneration,
        modeling_smolvlm.SmolVLMVisionEmbeddings,
        SmolVLMImageProcessorPil,
    ),
}

SHAPES: dict[str, dict[str, Any]] = {
    "patch 14": {"patch": 14, "image": 266, "tile": 89, "edge": 267, "scale": 3},  # 6 patches and 5 pixels; G = 19
    "patch 16": {"patch": 16, "image": 512, "tile": 64, "edge": 192, "scale": 2},
    "not split": {"patch": 14, "image": 364, "tile": 70, "edge": 150, "scale": 5, "do_image_splitting": False},
}
"""What the small models are made of."""


@dataclass(frozen=True)
class Saved:
    """A small model of transformers, as it is and as it was saved."""

    folder: Path
    model: Any
    processor: Any
    ours: Model

    @property
    def config(self) -> Any:
        return self.ours.config


def shake(model: torch.nn.Module, seed: int) -> None:
    """Random numbers into every array, norms and biases too."""
    generator = torch.Generator().manual_seed(seed)
    for name, array in model.named_parameters():
        noise = torch.randn(array.shape, generator=generator)
        spread = 0.3 if array.ndim == 1 else array[0].numel() ** -0.5
        array.data = noise * spread + (1.0 if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")) else 0.0)


@pytest.fixture(scope="session", params=[(key, shape) for key in KEYS for shape in SHAPES], ids=lambda pair: "-".join(pair))
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    key, shape = request.param
    return save(tmp_path_factory.mktemp("saved"), key, SHAPES[shape])


def save(folder: Path, key: str, sizes: dict[str, Any], seed: int = 1) -> Saved:
    """A small model and its image processor; what `sizes` leaves out is the same in all of them."""
    kind = KINDS[key]
    config = kind.config(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": sizes["patch"],
            "image_size": sizes["image"],
            **sizes.get("vision", {}),
        },
        text_config={
            "model_type": "llama",
            "hidden_size": 20,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "vocab_size": 32,
            "pad_token_id": 0,
        },
        scale_factor=sizes["scale"],
        image_token_id=31,
    )
    model = kind.model(config).eval()
    shake(model, seed)
    processor = kind.processor(
        size={"longest_edge": sizes["edge"]},
        max_image_size={"longest_edge": sizes["tile"]},
        do_image_splitting=sizes.get("do_image_splitting", True),
        image_mean=sizes.get("mean", [0.5, 0.4, 0.6]),
        image_std=sizes.get("std", [0.5, 0.25, 0.3]),
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Saved(folder, model, processor, load_model(folder))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise over a gradient."""
    noise = np.random.default_rng([seed, width, height]).integers(0, 120, (height, width, 3))
    return Image.fromarray((noise + np.linspace(0, 135, width)[None, :, None]).astype(np.uint8))


def strips_of(pixel_values: Any, patch: int) -> list[Any]:
    """(1, n, 3, t, t) -> the strip of each tile, by torch's own unfold."""
    strips = []
    for tile in pixel_values[0]:
        patches = torch.nn.functional.unfold(tile[None], kernel_size=patch, stride=patch)[0]  # (3*P*P, L)
        strips.append(patches.reshape(3, patch, patch, -1).permute(0, 1, 3, 2).reshape(3, patch, -1).numpy())
    return strips


def theirs(saved: Saved, image: Any) -> dict[str, Any]:
    """Every stage's result by transformers' own code."""
    given = saved.processor(images=image, return_tensors="pt", return_row_col_info=True)
    inner = saved.model.model
    seen: dict[str, Any] = {}
    hook = inner.vision_model.embeddings.register_forward_hook(lambda module, args, result: seen.update(embeddings=result))
    with torch.no_grad():
        out = inner.get_image_features(given["pixel_values"], given["pixel_attention_mask"], return_dict=True)
    hook.remove()
    tiles = len(out.last_hidden_state)
    return {
        "pixel_values": given["pixel_values"],
        "rows": given["rows"][0][0],
        "columns": given["cols"][0][0],
        "embeddings": seen["embeddings"].numpy(),
        "hidden": out.last_hidden_state.numpy(),
        "tokens": out.pooler_output[0].reshape(tiles, -1, out.pooler_output[0].shape[-1]).numpy(),
    }


def close(ours: Any, others: Any) -> None:
    """Within 1e-5 of the largest; measured: at most 1.0e-6."""
    assert ours.shape == others.shape
    assert np.abs(ours - others).max() <= 1e-5 * np.abs(others).max()


# From a picture to its tokens, through the saved folder


SIZES = [(200, 150), (150, 200), (64, 64), (89, 89), (90, 89), (300, 100), (1, 1), (3, 500), (500, 2), (267, 178)]


@pytest.mark.parametrize("size", SIZES)
def test_the_strips_are_transformers_bit_for_bit(saved: Saved, size: tuple[int, int]) -> None:
    given = saved.processor(images=picture(*size), return_tensors="pt", return_row_col_info=True)
    expected = strips_of(given["pixel_values"], saved.config.vision.patch_size)
    slices = saved.config.family.cut(picture(*size), saved.config)
    assert slices.tgt_sizes.tolist() == [[saved.config.patches_per_side] * 2] * len(expected)
    assert all(np.array_equal(ours, other) for ours, other in zip(slices.strips, expected, strict=True))
    rows, columns = given["rows"][0][0], given["cols"][0][0]
    assert slices.grid == ((columns, rows) if rows else None)


@pytest.mark.parametrize("size", [(200, 150), (3, 500), (64, 64)])
def test_every_stage_is_transformers(saved: Saved, size: tuple[int, int]) -> None:
    expected = theirs(saved, picture(*size))
    strips, tgt_sizes = slice_image(picture(*size), saved.config)
    arrays = run(strips, tgt_sizes, saved.ours)
    for name in ("embeddings", "hidden", "tokens"):
        close(arrays[name], expected[name])
    assert arrays["token_counts"].tolist() == [expected["tokens"].shape[1]] * len(strips)
    assert arrays["patch_attn_mask"].all()


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("side", [7, 19, 24, 26, 27, 32, 40, 70])
def test_the_ids_are_transformers(key: str, side: int) -> None:
    for tile in sorted({1, 2, side - 1, side, side + 1, 25, 36, 49, 58}):
        config = SimpleNamespace(hidden_size=1, image_size=side, patch_size=1, num_channels=1)
        module = KINDS[key].vision(config)
        module.patch_embedding.weight.data.zero_()
        module.patch_embedding.bias.data.zero_()
        module.position_embedding.weight.data[:, 0] = torch.arange(side * side)  # so that the result is the id
        with torch.no_grad():
            expected = module(torch.zeros(1, 1, tile, tile), torch.ones(1, tile, tile, dtype=torch.bool))[0, :, 0].long()
        family = FAMILIES[key]
        ours = family.position_ids(
            np.array([[tile, tile]]),
            SimpleNamespace(vision=SimpleNamespace(num_patches_per_side=side)),
            family.rule,
        )
        assert ours[0].tolist() == expected.tolist()


@pytest.mark.parametrize("side", [16, 20, 24, 26, 27, 32, 70])
def test_a_table_of_a_tile_s_side_is_taken_in_order(side: int) -> None:
    assert position_ids([[side, side]], side, "step")[0].tolist() == list(range(side * side))


@pytest.mark.parametrize("side", [19, 25, 31, 40])
def test_but_not_of_every_side(side: int) -> None:
    assert position_ids([[side, side]], side, "step")[0].tolist() != list(range(side * side))


# Sizes


class Recorder:
    """transformers' processor with its resizes recorded and their pixels left out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, processor: Any) -> None:
        self.sizes: list[tuple[int, int]] = []
        self.processor = processor
        monkeypatch.setattr(PilBackend, "resize", self._resize)

    def _resize(self, image: Any, size: Any, **options: Any) -> Any:
        self.sizes.append((size.width, size.height))
        return np.broadcast_to(np.uint8(7), (3, size.height, size.width))

    def __call__(self, size: tuple[int, int], edge: int, tile: int, split: bool = True) -> Any:
        """(first size, second size, grid)"""
        self.sizes.clear()
        given = self.processor._preprocess(
            [[np.broadcast_to(np.uint8(7), (3, size[1], size[0]))]],
            do_resize=True,
            size=SimpleNamespace(longest_edge=edge),
            resample=1,
            do_rescale=False,
            rescale_factor=1,
            do_normalize=False,
            image_mean=None,
            image_std=None,
            do_pad=False,
            do_image_splitting=split,
            max_image_size={"longest_edge": tile},
            return_row_col_info=True,
            return_tensors=None,
        )
        rows, columns = given["rows"][0][0], given["cols"][0][0]
        return self.sizes[0], self.sizes[1], (columns, rows) if rows else None


TILINGS = [(1456, 364), (2048, 512), (1536, 384), (80, 40), (300, 89), (5000, 364), (9000, 512), (364, 364), (97, 364)]


def near(unit: int) -> st.SearchStrategy[int]:
    """A multiple of the unit, or one pixel beside it."""
    return st.tuples(st.integers(1, 12), st.integers(-1, 1)).map(lambda pair: max(pair[0] * unit + pair[1], 1))


lengths = st.one_of(st.integers(1, 6000), near(364), near(512), near(2), st.sampled_from([1, 2, 3, 4095, 4096, 4097, 30_000]))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("split", [True, False])
def test_the_sizes_are_transformers(key: str, split: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch, KINDS[key].processor())

    @settings(max_examples=400 if split else 100)
    @example((640, 480), (1456, 364))
    @example((1, 30_000), (9000, 512))
    @given(st.tuples(lengths, lengths), st.sampled_from(TILINGS))
    def check(size: tuple[int, int], edges: tuple[int, int]) -> None:
        plan = plan_tiles(size, TilingConfig(longest_edge=edges[0], max_image_size=edges[1], do_image_splitting=split))
        assert (plan.first_size, plan.second_size, plan.grid) == recorder(size, *edges, split)

    check()


def test_the_size_in_the_specification() -> None:
    plan = plan_tiles((640, 480), TilingConfig())
    assert plan.grid == (4, 3)
    assert len(slice_image(picture(640, 480), default_of("idefics3"))[0]) == 13


@given(st.tuples(lengths, lengths), st.sampled_from(TILINGS))
def test_tiles_are_whole_and_cover_the_second_size(size: tuple[int, int], edges: tuple[int, int]) -> None:
    plan = plan_tiles(size, TilingConfig(longest_edge=edges[0], max_image_size=edges[1]))
    columns, rows = plan.grid or (1, 1)
    assert plan.second_size == (columns * edges[1], rows * edges[1])
    assert max(plan.first_size) <= 4096


def default_of(key: str) -> Idefics3Config:
    config = next(iter(FAMILIES[key].presets().values()))
    assert isinstance(config, Idefics3Config)
    return config


def small(key: str, **changes: Any) -> Idefics3Config:
    config: Idefics3Config = FAMILIES[key].small()
    return replace(config, **changes)


def test_boxes_are_what_each_tile_s_patches_see() -> None:
    """Measured with pictures that are white in one box: its own tile is then white, the others are black."""
    tiling = TilingConfig(longest_edge=80, max_image_size=40)
    config = small("idefics3", tiling=tiling)
    slices = config.family.cut(np.zeros((60, 80, 3), np.uint8), config)
    assert slices.grid == (2, 2)
    assert slices.boxes.tolist() == [[0, 0, 40, 30], [40, 0, 80, 30], [0, 30, 40, 60], [40, 30, 80, 60], [0, 0, 80, 60]]
    for number, (left, top, right, bottom) in enumerate(slices.boxes[:4].astype(int)):
        image = np.zeros((60, 80, 3), np.uint8)
        image[top:bottom, left:right] = 255
        means = [strip.mean() for strip in config.family.cut(image, config).strips]
        assert np.argmax(means) == number


def test_a_box_leaves_out_what_fills_no_patch() -> None:
    config = small("idefics3", tiling=TilingConfig(longest_edge=88, max_image_size=44, do_image_splitting=False))
    config = replace(config, vision=replace(config.vision, patch_size=6))
    assert config.family.cut(np.zeros((44, 88, 3), np.uint8), config).boxes.tolist() == [[0, 0, 84, 42]]


# Alpha


def palette(transparency: Any) -> Image.Image:
    image = picture(40, 30).quantize(16)
    image.info["transparency"] = transparency
    return image


def with_alpha(mode: str) -> Image.Image:
    """Every alpha from 0 to 255."""
    image = picture(64, 32).convert("RGBA")
    image.putalpha(Image.fromarray((np.arange(64 * 32).reshape(32, 64) % 256).astype(np.uint8)))
    return image.convert(mode)


def keyed(mode: str, transparency: Any) -> Image.Image:
    image = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8), (32, 1))).convert(mode)
    image.info["transparency"] = transparency
    return image


ALPHA = {
    "RGBA": with_alpha("RGBA"),
    "LA": with_alpha("LA"),
    "PA": with_alpha("RGBA").quantize(16).convert("PA"),
    "P with one transparent entry": palette(3),
    "P with entry 0 transparent": palette(0),
    "P with an alpha per entry": palette(bytes(range(0, 256, 16))),
    "RGB with a transparent colour": keyed("RGB", (9, 9, 9)),
    "L with a transparent level": keyed("L", 9),
    "L with level 0 transparent": keyed("L", 0),
}
OPAQUE = {"RGB": picture(40, 30), "L": picture(40, 30).convert("L"), "1": picture(40, 30).convert("1")}
OPAQUE |= {mode: picture(40, 30).convert(mode) for mode in ("CMYK", "YCbCr", "HSV", "LAB", "P")}


@pytest.mark.parametrize("image", [*ALPHA.values(), *OPAQUE.values()], ids=[*ALPHA, *OPAQUE])
def test_alpha_is_laid_on_white_as_transformers_does(image: Image.Image) -> None:
    assert np.array_equal(np.asarray(as_rgb_on_white(image)), convert_to_rgb(image.copy(), return_numpy=True))


@pytest.mark.parametrize("name", ALPHA)
def test_dropping_alpha_is_not_the_same(name: str) -> None:
    assert not np.array_equal(np.asarray(as_rgb_on_white(ALPHA[name])), np.asarray(as_rgb(ALPHA[name])))


def test_without_alpha_it_is_the_plain_conversion() -> None:
    for image in OPAQUE.values():
        assert np.array_equal(np.asarray(as_rgb_on_white(image)), np.asarray(as_rgb(image)))


def test_transparent_pictures_are_cut_as_transformers_cuts_them(saved: Saved) -> None:
    given = saved.processor(images=ALPHA["RGBA"], return_tensors="pt")
    expected = strips_of(given["pixel_values"], saved.config.vision.patch_size)
    strips, _ = slice_image(ALPHA["RGBA"], saved.config)
    assert all(np.array_equal(ours, other) for ours, other in zip(strips, expected, strict=True))


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (Image.new("I;16", (4, 4)), "mode I;16, 16- or 32-bit greyscale"),
        (Image.new("F", (4, 4)), "mode F, 16- or 32-bit greyscale"),
        (Image.new("RGBA", (0, 4)), "must not be empty"),
        (np.zeros((4, 4), np.uint8), r"must be uint8 of shape \(H, W, 3\)"),
        ("photo.png", "must be a PIL image or a uint8 array; got str"),
    ],
)
def test_what_is_no_picture_is_refused(image: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        as_rgb_on_white(image)


# Tiles that count as padding


def dark(key: str, folder: Path) -> Saved:
    """A model to which black is 0."""
    family = FAMILIES[key]
    tiling = TilingConfig(longest_edge=80, max_image_size=40, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    ours = random_model(replace(family.small(), tiling=tiling), seed=1, until="tokens")
    config = ours.config
    top, preprocessor = family.as_json(config)
    top["text_config"] |= {"num_hidden_layers": 1, "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 8}
    top["text_config"] |= {"num_key_value_heads": 2, "pad_token_id": 0}
    model = KINDS[key].model(
        KINDS[key].config(**{name: top[name] for name in ("scale_factor", "text_config", "vision_config")})
    )
    missing, unexpected = model.load_state_dict({n: torch.tensor(a) for n, a in ours.weights.items()}, strict=False)
    assert not unexpected
    assert not [name for name in missing if "vision_model" in name or "connector" in name]
    return Saved(folder, model.eval(), KINDS[key].processor(**preprocessor), ours)


@pytest.mark.parametrize("key", KEYS)
def test_a_tile_that_is_all_0_is_dropped(key: str, tmp_path: Path) -> None:
    saved = dark(key, tmp_path)
    image = np.zeros((60, 80, 3), np.uint8)
    image[:20, 50:] = 200  # in the upper right tile alone
    expected = theirs(saved, Image.fromarray(image))
    slices = saved.config.family.cut(image, saved.config)
    assert expected["pixel_values"].shape[1] == 5
    assert len(slices.strips) == len(expected["hidden"]) == 2
    assert slices.boxes.tolist() == [[40, 0, 80, 30], [0, 0, 80, 60]]
    assert slices.grid == (2, 2)
    close(run(slices.strips, slices.tgt_sizes, saved.ours)["tokens"], expected["tokens"])


def test_smolvlm_keeps_the_first_of_a_black_picture(tmp_path: Path) -> None:
    saved = dark("smolvlm", tmp_path)
    expected = theirs(saved, Image.new("RGB", (80, 60)))
    slices = saved.config.family.cut(Image.new("RGB", (80, 60)), saved.config)
    assert len(slices.strips) == len(expected["hidden"]) == 1
    close(run(slices.strips, slices.tgt_sizes, saved.ours)["tokens"], expected["tokens"])


def test_idefics3_keeps_nothing_of_it_and_fails_and_so_it_is_refused(tmp_path: Path) -> None:
    saved = dark("idefics3", tmp_path)
    with pytest.raises(RuntimeError, match="tensor of 0 elements"):
        theirs(saved, Image.new("RGB", (80, 60)))
    with pytest.raises(ValueError, match="slice_image: every pixel is 0 once normalised, which Idefics3 drops as padding"):
        slice_image(Image.new("RGB", (80, 60)), saved.config)


# Text


def their_text(key: str, grid: tuple[int, int] | None, tokens: int) -> str:
    columns, rows = grid or (0, 0)
    if key == "smolvlm":
        return get_image_prompt_string(rows, columns, tokens, "<fake_token_around_image>", "<image>", "<global-img>")
    words = {"fake_image_token": "<fake_token_around_image>", "image_token": "<image>", "global_image_tag": "<global-img>"}
    state = SimpleNamespace(image_seq_len=tokens, **words)
    return Idefics3Processor.replace_image_token(state, {"rows": [[rows]], "cols": [[columns]]}, 0)


@pytest.mark.parametrize("key", KEYS)
def test_the_text_is_transformers(key: str) -> None:
    config = default_of(key)
    grids = [None, *((columns, rows) for columns in range(1, 7) for rows in range(1, 7) if columns * rows > 1)]
    for grid in grids:
        assert image_placeholder(grid, config=config) == their_text(key, grid, config.tokens_per_tile)


def test_the_text_has_a_place_for_every_token(saved: Saved) -> None:
    slices = saved.config.family.cut(picture(200, 150), saved.config)
    tokens = run(slices.strips, slices.tgt_sizes, saved.ours)["token_counts"].sum()
    assert image_placeholder(slices.grid, config=saved.config).count("<image>") == tokens


def test_the_tokens_take_the_places_that_transformers_gives_them(saved: Saved) -> None:
    image = picture(200, 150)
    grid = saved.config.family.cut(image, saved.config).grid
    tokens = theirs(saved, image)["tokens"]
    words = re.findall(r"<image>|<[^>]*>|\n|.", "Say: " + image_placeholder(grid, config=saved.config) + " What?")
    ids = np.array([31 if word == "<image>" else len(word) for word in words])
    text = np.random.default_rng(0).standard_normal((len(ids), 20), dtype=np.float32)
    places = token_places(ids, 31, [tokens.shape[1]] * len(tokens))
    mask = torch.tensor(ids == 31)[None, :, None]
    expected = torch.tensor(text)[None].masked_scatter(mask, torch.tensor(tokens).reshape(-1, 20))[0].numpy()
    assert np.array_equal(scatter_image_embeds(text, tokens, places), expected)
    inner = saved.model.model
    if hasattr(inner, "inputs_merger"):
        merged = inner.inputs_merger(torch.tensor(ids)[None], torch.tensor(text)[None], torch.tensor(tokens).reshape(-1, 20))
        assert np.array_equal(merged[0].numpy(), expected)


def test_a_picture_with_a_tile_dropped_has_more_places_than_tokens() -> None:
    """As in transformers, which refuses it too."""
    with pytest.raises(ValueError, match="input_ids has 10 places of id 31, but token_counts makes 8"):
        token_places([31] * 10, 31, [4, 4])


def test_the_stages_go_from_the_picture_to_the_text_s_embeddings() -> None:
    for key in KEYS:
        model = random_model(small(key), until="tokens")
        values: dict[str, Any] = {"picture": np.asarray(picture(80, 60))}
        found = {stage.name: stage for stage in FAMILIES[key].stages}
        slices = FAMILIES[key].cut(values["picture"], model.config)
        assert found["sliced_tgt_sizes"].call(values, model).tolist() == slices.tgt_sizes.tolist()
        assert found["text"].call(values, model).tobytes().decode() == image_placeholder((2, 2), config=model.config)
        assert list(found)[-2:] == ["image_bound", "inputs_embeds"]


def test_texts_that_cannot_be_are_refused() -> None:
    config = small("smolvlm")
    with pytest.raises(ValueError, match="image_id must be None, because SmolVLM's text numbers no picture; got 0"):
        image_placeholder((2, 2), image_id=0, config=config)
    with pytest.raises(ValueError, match=r"grid is \(7, 2\); the text has tags for 6 columns and rows at most"):
        image_placeholder((7, 2), config=config)
    with pytest.raises(
        ValueError, match="image_placeholder: a tile has 10 patches a side; it must be a multiple of scale_factor 3"
    ):
        image_placeholder(None, config=replace(config, scale_factor=3))


# Configs


VISION_SIZES = {"hidden_size": 8, "num_attention_heads": 4, "intermediate_size": 5, "num_hidden_layers": 3}
VISION_SIZES |= {"num_channels": 1, "image_size": 196, "patch_size": 13, "layer_norm_eps": 1e-5}
HONOURED = {f"vision_config.{key}": value for key, value in VISION_SIZES.items()}
HONOURED |= {"scale_factor": 7, "text_config.hidden_size": 12}
HONOURED |= {"preprocessor.size": {"longest_edge": 99}, "preprocessor.max_image_size": {"longest_edge": 40}}
HONOURED |= {"preprocessor.image_mean": [0.1, 0.2, 0.3], "preprocessor.image_std": [0.1, 0.2, 0.3]}
HONOURED |= {"preprocessor.do_image_splitting": None}  # the other of true and false
FIXED = {"vision_config.hidden_act": "gelu", "preprocessor.resample": 3, "preprocessor.rescale_factor": 1 / 127.5}
FIXED |= {f"preprocessor.do_{name}": False for name in ("resize", "rescale", "normalize", "convert_rgb", "pad")}
FIXED |= {"preprocessor.image_processor_type": "Idefics2ImageProcessor"}
WITHOUT_EFFECT = {"vision_config.attention_dropout": 0.5, "vision_config.initializer_range": 1.0}
WITHOUT_EFFECT |= {"vision_config.model_type": "siglip_vision_model", "vision_config.use_base_siglip": True}
WITHOUT_EFFECT |= {"vision_config.size": {"longest_edge": 9}, "vision_config.max_image_size": {"longest_edge": 9}}
WITHOUT_EFFECT |= {"vision_config.tie_word_embeddings": True, "preprocessor.processor_class": "X"}
WITHOUT_EFFECT |= {"preprocessor.video_sampling": {"fps": 1}, "tie_word_embeddings": True, "image_token_id": 7}


def jsons(saved: Saved) -> dict[str, Any]:
    """config.json, with preprocessor_config.json under "preprocessor"."""
    top = json.loads((saved.folder / "config.json").read_text())
    return top | {"preprocessor": json.loads((saved.folder / "preprocessor_config.json").read_text())}


def read(content: dict[str, Any]) -> Any:
    top = {key: value for key, value in content.items() if key != "preprocessor"}
    family = FAMILIES[content["model_type"]]
    return family.read_config(top, content["preprocessor"])


def changed(saved: Saved, path: str, value: Any) -> dict[str, Any]:
    content = jsons(saved)
    *sections, key = path.split(".")
    section = content[sections[0]] if sections else content
    section[key] = (not section[key]) if value is None else value
    return content


def test_the_table_has_every_key_of_a_saved_config(saved: Saved) -> None:
    content, table = jsons(saved), {*HONOURED, *FIXED, *WITHOUT_EFFECT}
    for section in ("vision_config", "preprocessor"):
        assert {f"{section}.{key}" for key in content[section]} <= table


@pytest.mark.parametrize("path", HONOURED)
def test_a_key_that_is_honoured_changes_the_config(saved: Saved, path: str) -> None:
    assert read(changed(saved, path, HONOURED[path])) != saved.config


@pytest.mark.parametrize("path", FIXED)
def test_a_key_that_is_fixed_is_refused_by_name(saved: Saved, path: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{path.split('.')[-1]} of ")):
        read(changed(saved, path, FIXED[path]))


@pytest.mark.parametrize("path", WITHOUT_EFFECT)
def test_a_key_without_effect_changes_nothing(saved: Saved, path: str) -> None:
    assert read(changed(saved, path, WITHOUT_EFFECT[path])) == saved.config


@pytest.mark.parametrize("path", ["vision_config.window", "preprocessor.rotate"])
def test_a_key_that_is_not_known_is_refused(saved: Saved, path: str) -> None:
    with pytest.raises(ValueError, match=f"{path.split('.')[1]} of .* is 1; the key is not known here"):
        read(changed(saved, path, 1))


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("preprocessor.size", {"height": 3, "width": 3}, "height of size is 3; the key is not known"),
        ("preprocessor.size", 364, "size of preprocessor_config.json must be a JSON object; got 364"),
        ("preprocessor.max_image_size", {}, "max_image_size of preprocessor_config.json is {}; it must have longest_edge"),
        ("preprocessor.max_image_size", {"longest_edge": 9}, "max_image_size 9 must be at least patch_size"),
        ("preprocessor.max_image_size", {"longest_edge": 5000}, "max_image_size must be a whole number from 1 to 4096"),
        ("preprocessor.image_std", [0, 1, 1], "std must be at least"),
        ("preprocessor.image_mean", [0.5], "mean must be three numbers"),
        ("preprocessor.do_image_splitting", "yes", "do_image_splitting must be true or false; got 'yes'"),
        ("scale_factor", 0, "scale_factor must be a whole number from 1"),
        ("vision_config.patch_size", [14, 14], "patch_size must be a whole number"),
        ("text_config", {"model_type": "qwen2"}, "hidden_size of text_config is missing; its default is known for .*'llama'"),
    ],
)
def test_a_value_that_cannot_be_is_refused(saved: Saved, path: str, value: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        read(changed(saved, path, value))


@pytest.mark.parametrize("key", KEYS)
def test_what_is_absent_is_the_class_s_own_default(key: str) -> None:
    kind, family = KINDS[key], FAMILIES[key]
    ours: Idefics3Config = family.read_config({"model_type": key}, {})
    config, processor = kind.config(), kind.processor()
    for name in VISION_SIZES:
        assert getattr(ours.vision, name) == getattr(config.vision_config, name)
    assert (ours.scale_factor, ours.embed_dim) == (config.scale_factor, config.text_config.hidden_size)
    edges = (processor.size.longest_edge, processor.max_image_size["longest_edge"])
    assert (ours.tiling.longest_edge, ours.tiling.max_image_size) == edges
    assert (ours.tiling.mean, ours.tiling.std) == (tuple(processor.image_mean), tuple(processor.image_std))
    assert ours.tiling.do_image_splitting == processor.do_image_splitting


def test_a_released_config_that_leaves_much_out_is_read() -> None:
    """SmolVLM2 of 256M parameters: layers and the width of the MLP are the class's own."""
    vision = {"hidden_size": 768, "image_size": 512, "max_image_size": {"longest_edge": 512}, "model_type": "smolvlm_vision"}
    vision |= {"num_attention_heads": 12, "patch_size": 16, "size": {"longest_edge": 2048}, "use_base_siglip": True}
    top = {"model_type": "smolvlm", "scale_factor": 4, "vision_config": vision, "text_config": {"hidden_size": 576}}
    preprocessor = {"max_image_size": {"longest_edge": 512}, "size": {"longest_edge": 2048}}
    family = FAMILIES["smolvlm"]
    assert family.read_config(top, preprocessor) == family.presets()["SmolVLM2 256M"]


@pytest.mark.parametrize("key", KEYS)
def test_configs_go_to_json_and_back(key: str) -> None:
    family = FAMILIES[key]
    for config in (family.small(), *family.presets().values()):
        top, preprocessor = json.loads(json.dumps(family.as_json(config)))
        assert family.read_config(top, preprocessor) == config


# Folders


def test_a_processor_saved_as_a_whole_is_read(saved: Saved, tmp_path: Path) -> None:
    """transformers 5 puts the image processor into processor_config.json, and takes it from there first."""
    content = jsons(saved)
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": content["preprocessor"]}))
    assert read_config(tmp_path) == saved.config
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"max_image_size": {"longest_edge": 50}}))
    assert read_config(tmp_path) == saved.config
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_seq_len": 64}))
    assert read_config(tmp_path).tiling.max_image_size == 50
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": [1]}))
    with pytest.raises(ValueError, match=r"image_processor of processor_config.json must be a JSON object; got \[1\]"):
        read_config(tmp_path)


@pytest.mark.parametrize("name", ["model.vision_model.head.probe", "model.connector.modality_projection.proj.bias"])
def test_an_array_that_no_stage_reads_is_refused(saved: Saved, tmp_path: Path, name: str) -> None:
    saved.processor.save_pretrained(tmp_path)
    state = {**saved.model.state_dict(), name: torch.zeros(4)}
    saved.model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=f"has {re.escape(name)}, which no stage of (Idefics3|SmolVLM) reads"):
        load_model(tmp_path)


def test_a_model_saved_without_its_head_has_other_names_and_is_refused(saved: Saved, tmp_path: Path) -> None:
    saved.model.model.save_pretrained(tmp_path)
    shutil.copy(saved.folder / "preprocessor_config.json", tmp_path)
    with pytest.raises(ValueError, match=r"lacks model\.vision_model\.embeddings\.patch_embedding\.weight"):
        load_model(tmp_path)


def test_a_stage_that_the_family_has_not_is_refused(saved: Saved) -> None:
    with pytest.raises(ValueError, match="has no stage 'pooled'; it has embeddings, hidden, tokens"):
        load_model(saved.folder, until="pooled")


# Sizes that the connector cannot take


@pytest.mark.parametrize("size", [(2, 4), (4, 2), (3, 3)])
def test_tiles_that_cannot_be_shuffled_are_refused(size: tuple[int, int]) -> None:
    model = random_model(small("idefics3"), until="tokens")
    with pytest.raises(ValueError, match=re.escape(f"tgt_sizes[1] is {size}; Idefics3 takes square tiles whose side is a")):
        shuffle_and_project(np.ones((2, 9, 16)), [(2, 2), size], model)


def test_tiles_of_different_sides_have_different_counts() -> None:
    model = random_model(small("smolvlm"), until="tokens")
    rng = np.random.default_rng(0)
    arrays = run([rng.standard_normal((3, 4, n * n * 4)) for n in (2, 6)], [[2, 2], [6, 6]], model)
    assert arrays["token_counts"].tolist() == [1, 9]
    assert not arrays["tokens"][0, 1:].any()


# Wrong ports, with faults seen in the wild


@pytest.fixture(scope="module")
def own() -> Model:
    return random_model(small("smolvlm"), seed=2, until="tokens")


def exact(model: Model) -> Model:
    return Model(model.config, {name: array.astype(np.float64) for name, array in model.weights.items()})


def rows_and_columns_exchanged(x: Any, size: Any, factor: int) -> Any:
    squares = x.reshape(size[0] // factor, factor, size[1] // factor, factor, -1).transpose(2, 3, 0, 1, 4)
    return squares.transpose(0, 2, 1, 3, 4).reshape(-1, factor * factor * x.shape[-1])


def patches_of_a_square_by_columns(x: Any, size: Any, factor: int) -> Any:
    squares = x.reshape(size[0] // factor, factor, size[1] // factor, factor, -1).transpose(0, 2, 3, 1, 4)
    return squares.reshape(-1, factor * factor * x.shape[-1])


def four_neighbours_in_reading_order(x: Any, size: Any, factor: int) -> Any:
    return x.reshape(-1, factor * factor * x.shape[-1])


@pytest.mark.parametrize(
    "wrong", [rows_and_columns_exchanged, patches_of_a_square_by_columns, four_neighbours_in_reading_order]
)
def test_a_wrong_shuffle_is_far_off(own: Model, wrong: Callable[..., Any]) -> None:
    strips, sizes = slice_image(picture(80, 60), own.config)
    hidden = run(strips, sizes, own, until="hidden")["hidden"]
    right, truth = shuffle_and_project(hidden, sizes, own), shuffle_and_project(hidden, sizes, exact(own))
    allowed = stage_allowed(right, truth)
    assert (np.abs(right - truth) <= allowed).all()
    config: Any = own.config
    port = replace(own, config=replace(config, family=config.family.changed(pixel_shuffle=wrong)))
    off = np.abs(shuffle_and_project(hidden, sizes, port) - truth).max(axis=(1, 2), keepdims=True)
    assert (off > 1000 * allowed).all()


def test_a_wrong_shuffle_is_wrong_on_one_square_too() -> None:
    x = np.arange(16.0)[:, None]
    right = pixel_shuffle(x, (4, 4), 2)
    assert right[0].tolist() == [0, 1, 4, 5]
    for wrong in (rows_and_columns_exchanged, patches_of_a_square_by_columns, four_neighbours_in_reading_order):
        assert not np.array_equal(wrong(x, (4, 4), 2), right)


def test_the_last_norm_left_out_is_far_off(own: Model) -> None:
    strips, sizes = slice_image(picture(80, 60), own.config)
    embeddings = embed(strips, sizes, own)
    right, truth = encode(embeddings, sizes, own), encode(embeddings, sizes, exact(own))
    x = embeddings[:1].copy()
    for step in own.config.family.tower(own)[:-1]:
        x, _ = step(x, (10, 10))
    assert np.abs(x[0] - truth[0]).max() > 1000 * stage_allowed(right, truth)[0, 0, 0]


def test_the_whole_first_is_another_batch(own: Model) -> None:
    strips, _ = slice_image(picture(80, 60), own.config)
    assert not np.array_equal([strips[-1], *strips[:-1]], strips)


def test_a_resize_from_the_original_gives_other_pixels(saved: Saved) -> None:
    """Of the whole, in place of one from the second size; and of the tiles, in place of one from the first size."""
    config, image = saved.config, picture(200, 150)
    side = config.tiling.max_image_size
    plan = plan_tiles(image.size, config.tiling)
    slices = config.family.cut(image, config)
    n, P = config.patches_per_side, config.vision.patch_size
    levels = (np.asarray(image.resize((side, side), Image.Resampling.LANCZOS)) / 255 - config.tiling.mean) / config.tiling.std
    whole = picture_to_strip(levels[: n * P, : n * P].transpose(2, 0, 1), P)
    assert np.abs(whole - slices.strips[-1]).max() > 1 / 255
    if plan.grid:
        direct = np.asarray(image.resize(plan.second_size, Image.Resampling.LANCZOS))
        levels = (direct / 255 - config.tiling.mean) / config.tiling.std
        tile = picture_to_strip(levels[: n * P, : n * P].transpose(2, 0, 1), P)
        assert np.abs(tile - slices.strips[0]).max() > 1 / 255

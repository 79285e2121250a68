"""Idefics2 against transformers' own PIL processor and modules, on small random models in the real layout."""

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
from transformers import Idefics2Config as TransformersConfig
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil, get_resize_output_image_size
from transformers.models.idefics2.modeling_idefics2 import (
    Idefics2ForConditionalGeneration,
    Idefics2PerceiverResampler,
    Idefics2VisionEmbeddings,
)
from transformers.models.idefics2.processing_idefics2 import Idefics2Processor

from npembed import (
    FAMILIES,
    Model,
    embed,
    encode,
    image_placeholder,
    load_model,
    random_model,
    read_config,
    run,
    scatter_image_embeds,
    slice_image,
    token_places,
)
from npembed.conformance.bounds import stage_allowed
from npembed.families import idefics2
from npembed.families.idefics2 import Idefics2Config, PerceiverConfig, SizingConfig, perceive, resized_size
from npembed.records.arithmetic import EXACT

FAMILY = FAMILIES["idefics2"]

SHAPES: dict[str, dict[str, Any]] = {
    "whole": {"patch": 14, "image": 980, "edges": (40, 120)},
    "split": {"patch": 14, "image": 378, "edges": (30, 100), "do_image_splitting": True},
    "other eps": {"patch": 5, "image": 350, "edges": (20, 60), "do_image_splitting": True, "perceiver_width": 4096},
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
    """Random numbers into every array, norms, biases and latents too."""
    generator = torch.Generator().manual_seed(seed)
    for name, array in model.named_parameters():
        noise = torch.randn(array.shape, generator=generator)
        spread = 0.3 if array.ndim == 1 else array[0].numel() ** -0.5
        array.data = noise * spread + (1.0 if array.ndim == 1 and "bias" not in name else 0.0)


def build(sizes: dict[str, Any], seed: int = 1) -> tuple[Any, Any]:
    """transformers' model and image processor; what `sizes` leaves out is the same in all of them."""
    config = TransformersConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": sizes["patch"],
            "image_size": sizes["image"],
            **sizes.get("vision", {}),
        },
        perceiver_config={
            "hidden_size": sizes.get("perceiver_width", 20),
            "resampler_n_latents": 5,
            "resampler_depth": 2,
            "resampler_n_heads": 6,
            "resampler_head_dim": 8,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-3,
            **sizes.get("perceiver", {}),
        },
        text_config={
            "model_type": "mistral",
            "hidden_size": 20,
            "intermediate_size": 28,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "vocab_size": 32,
            "pad_token_id": 0,
            "rms_norm_eps": 1e-2,
        },
        image_token_id=31,
    )
    model = Idefics2ForConditionalGeneration(config).eval()
    shake(model, seed)
    processor = Idefics2ImageProcessorPil(
        size=dict(zip(("shortest_edge", "longest_edge"), sizes["edges"], strict=True)),
        do_image_splitting=sizes.get("do_image_splitting", False),
        image_mean=sizes.get("mean", [0.5, 0.4, 0.6]),
        image_std=sizes.get("std", [0.5, 0.25, 0.3]),
    )
    return model, processor


@pytest.fixture(scope="session", params=SHAPES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save(tmp_path_factory.mktemp("saved"), SHAPES[request.param])


def save(folder: Path, sizes: dict[str, Any], seed: int = 1) -> Saved:
    model, processor = build(sizes, seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Saved(folder, model, processor, load_model(folder))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise over a gradient."""
    noise = np.random.default_rng([seed, width, height]).integers(0, 120, (height, width, 3))
    return Image.fromarray((noise + np.linspace(0, 135, width)[None, :, None]).astype(np.uint8))


def counting(pixel_mask: Any, patch: int) -> Any:
    """(n, H, W) -> bool (n, H//P, W//P): the patches of the canvas all of whose pixels count."""
    cells = pixel_mask.unfold(1, patch, patch).unfold(2, patch, patch)
    return (cells == 1).all(dim=-1).all(dim=-1)


def theirs(saved: Saved, images: Any) -> dict[str, Any]:
    """Every stage's result by transformers' own code, slice by slice, without what is masked."""
    given = saved.processor(images=images, return_tensors="pt")
    inner, patch = saved.model.model, saved.config.vision.patch_size
    seen: dict[str, Any] = {}
    hook = inner.vision_model.embeddings.register_forward_hook(lambda module, args, result: seen.update(embeddings=result))
    with torch.no_grad():
        out = inner.get_image_features(given["pixel_values"], given["pixel_attention_mask"], return_dict=True)
    hook.remove()
    canvas = given["pixel_values"].flatten(0, 1)
    mask = counting(given["pixel_attention_mask"].flatten(0, 1), patch)
    patches = torch.nn.functional.unfold(canvas, kernel_size=patch, stride=patch).transpose(1, 2)  # (n, L, 3*P*P)
    own = [each.flatten() for each in mask]
    return {
        "tgt_sizes": torch.stack([mask[:, :, 0].sum(dim=1), mask[:, 0].sum(dim=1)], dim=1).tolist(),
        "strips": [
            rows[each].reshape(-1, 3, patch, patch).permute(1, 2, 0, 3).reshape(3, patch, -1).numpy()
            for rows, each in zip(patches, own, strict=True)
        ],
        "embeddings": [rows[each].numpy() for rows, each in zip(seen["embeddings"], own, strict=True)],
        "hidden": [rows[each].numpy() for rows, each in zip(out.last_hidden_state, own, strict=True)],
        "tokens": torch.cat(out.pooler_output).reshape(len(mask), -1, out.pooler_output[0].shape[-1]).numpy(),
    }


def close(ours: Any, others: Any) -> None:
    """Within 1e-5 of the largest; measured: at most 1.6e-6."""
    assert ours.shape == others.shape
    assert np.abs(ours - others).max() <= 1e-5 * np.abs(others).max()


# From a picture to its tokens, through the saved folder


SIZES = [(200, 150), (150, 200), (64, 64), (121, 120), (300, 31), (2, 2), (3, 500), (500, 2), (113, 57), (41, 40)]


@pytest.mark.parametrize("size", SIZES)
def test_the_strips_are_transformers_bit_for_bit(saved: Saved, size: tuple[int, int]) -> None:
    expected = theirs(saved, picture(*size))
    strips, tgt_sizes = slice_image(picture(*size), saved.config)
    assert tgt_sizes.tolist() == expected["tgt_sizes"]
    assert all(np.array_equal(ours, other) for ours, other in zip(strips, expected["strips"], strict=True))


@pytest.mark.parametrize("size", [(200, 150), (3, 500), (113, 57)])
def test_every_stage_is_transformers(saved: Saved, size: tuple[int, int]) -> None:
    expected = theirs(saved, picture(*size))
    arrays = run(*slice_image(picture(*size), saved.config), saved.ours)
    for name in ("embeddings", "hidden"):
        for ours, other in zip(arrays[name], expected[name], strict=True):
            close(ours[: len(other)], other)
    close(arrays["tokens"], expected["tokens"])
    assert arrays["token_counts"].tolist() == [5] * len(expected["tokens"])


def test_pictures_together_on_one_canvas_are_what_each_is_alone(saved: Saved) -> None:
    """The canvas is the batch's largest; what is beside a picture is masked."""
    images = [picture(200, 60), picture(50, 170)]
    expected = theirs(saved, [[image] for image in images])
    slices = [slice_image(image, saved.config) for image in images]
    strips, sizes = [strip for own, _ in slices for strip in own], np.concatenate([own for _, own in slices])
    assert sizes.tolist() == expected["tgt_sizes"]
    assert all(np.array_equal(ours, other) for ours, other in zip(strips, expected["strips"], strict=True))
    close(run(strips, sizes, saved.ours)["tokens"], expected["tokens"])


@pytest.mark.parametrize("side", [7, 27, 70])
def test_the_ids_are_transformers(side: int) -> None:
    module = Idefics2VisionEmbeddings(SimpleNamespace(hidden_size=1, image_size=side, patch_size=1, num_channels=1))
    module.patch_embedding.weight.data.zero_()
    module.patch_embedding.bias.data.zero_()
    module.position_embedding.weight.data[:, 0] = torch.arange(side * side)  # so that the result is the id
    sizes = np.array([[1, 1], [25, 2], [49, 3], [3, 49], [50, 58], [70, 70], [9, 35], [58, 1], [1, 43]])
    mask = torch.zeros(len(sizes), 70, 70, dtype=torch.bool)
    for own, (h, w) in zip(mask, sizes.tolist(), strict=True):
        own[:h, :w] = True
    with torch.no_grad():
        found = module(torch.zeros(len(sizes), 1, 70, 70), mask)[:, :, 0].long()
    config = SimpleNamespace(vision=SimpleNamespace(num_patches_per_side=side))
    ids = FAMILY.position_ids(sizes, config, FAMILY.rule)
    for own, expected, each, (h, w) in zip(ids, found, mask, sizes.tolist(), strict=True):
        assert own[: h * w].tolist() == expected[each.flatten()].tolist()


def test_the_rule_is_not_the_one_of_the_release_before() -> None:
    sizes = np.array([[49, 1]])
    config = SimpleNamespace(vision=SimpleNamespace(num_patches_per_side=70))
    assert not np.array_equal(FAMILY.position_ids(sizes, config, "step"), FAMILY.position_ids(sizes, config, "arange"))


# Sizes


def near(unit: int) -> st.SearchStrategy[int]:
    """A multiple of the unit, or one pixel beside it."""
    return st.tuples(st.integers(1, 12), st.integers(-1, 1)).map(lambda pair: max(pair[0] * unit + pair[1], 1))


lengths = st.one_of(st.integers(1, 6000), near(378), near(980), near(14), st.sampled_from([1, 2, 3, 979, 980, 981, 30_000]))
EDGES = [(378, 980), (336, 672), (14, 50), (1, 7), (100, 100), (200, 100)]


@settings(max_examples=500)
@example((3000, 10), (378, 980))
@given(st.tuples(lengths, lengths), st.sampled_from(EDGES))
def test_the_sizes_are_transformers(size: tuple[int, int], edges: tuple[int, int]) -> None:
    limits = SimpleNamespace(shortest_edge=edges[0], longest_edge=edges[1])
    height, width = get_resize_output_image_size(np.broadcast_to(np.uint8(0), (3, size[1], size[0])), limits)
    assert resized_size(size, SizingConfig(*edges)) == (width, height)


@settings(max_examples=300)
@given(st.tuples(st.integers(2, 3000), st.integers(2, 3000)))
def test_the_quarters_are_transformers(size: tuple[int, int]) -> None:
    width, height = size
    columns, rows = np.broadcast_to(np.arange(width), (height, width)), np.arange(height)[:, None].repeat(1, 1)
    rows = np.broadcast_to(rows, (height, width))
    pieces = Idefics2ImageProcessorPil().split_images(np.broadcast_to(columns, (3, height, width)))
    below = Idefics2ImageProcessorPil().split_images(np.broadcast_to(rows, (3, height, width)))
    expected = [
        (int(x[0, 0, 0]), int(y[0, 0, 0]), int(x[0, 0, -1]) + 1, int(y[0, -1, 0]) + 1)
        for x, y in zip(pieces, below, strict=True)
    ]
    assert [*idefics2._quarters(width, height), (0, 0, width, height)] == expected


def small(**changes: Any) -> Idefics2Config:
    config: Idefics2Config = FAMILY.small()
    return replace(config, **changes)


SPLIT = SizingConfig(shortest_edge=14, longest_edge=50, do_image_splitting=True)


def test_boxes_are_what_each_slice_s_patches_see() -> None:
    slices = small(sizing=SPLIT).family.cut(np.zeros((33, 41, 3), np.uint8), small(sizing=SPLIT))
    assert slices.tgt_sizes.tolist() == [[4, 5], [4, 5], [4, 5], [4, 5], [8, 10]]
    assert slices.boxes.tolist() == [[0, 0, 20, 16], [20, 0, 40, 16], [0, 16, 20, 32], [20, 16, 40, 32], [0, 0, 40, 32]]
    assert slices.grid == (2, 2)
    whole = small().family.cut(np.zeros((40, 80, 3), np.uint8), small())  # resized to 50 x 25: 12 x 6 patches
    assert whole.boxes.tolist() == [[0, 0, 48 / 50 * 80, 24 / 25 * 40]]
    assert whole.grid is None


def test_a_picture_too_small_to_be_split_is_refused() -> None:
    with pytest.raises(ValueError, match="slice_image: a picture that is split into quarters needs 2 x 2 pixels; got 1 x 30"):
        slice_image(np.zeros((30, 1, 3), np.uint8), small(sizing=SPLIT))


def test_a_picture_without_room_for_a_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="slice_image: a piece of 3 x 2 pixels has no room for a patch of side 4"):
        slice_image(np.zeros((2, 3, 3), np.uint8), small(sizing=SizingConfig(1, 9)))


# Alpha, and pieces that count as padding


def test_alpha_is_laid_on_white(saved: Saved) -> None:
    image = picture(64, 32).convert("RGBA")
    image.putalpha(Image.fromarray((np.arange(64 * 32).reshape(32, 64) % 256).astype(np.uint8)))
    expected = theirs(saved, image)["strips"]
    strips, _ = slice_image(image, saved.config)
    assert all(np.array_equal(ours, other) for ours, other in zip(strips, expected, strict=True))


def test_the_processor_that_writes_the_text_drops_alpha_before() -> None:
    """So it differs from the image processor, which is the reference."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 4), dtype=np.uint8))
    own = Idefics2ImageProcessorPil()
    options = {"text_kwargs": {}, "images_kwargs": {}}
    state = SimpleNamespace(
        image_processor=own, tokenizer=SimpleNamespace(init_kwargs={}), _merge_kwargs=lambda **given: options
    )
    whole = Idefics2Processor.__call__(state, images=image)["pixel_values"]
    assert np.array_equal(whole, own(images=image.convert("RGB"))["pixel_values"])
    assert not np.array_equal(whole, own(images=image)["pixel_values"])


def test_a_piece_that_is_all_0_is_dropped() -> None:
    model, processor = build(SHAPES["split"])
    processor.image_mean, processor.image_std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    image = np.zeros((60, 80, 3), np.uint8)
    image[:20, 50:] = 200  # in the upper right quarter alone
    sizing = SizingConfig(30, 100, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), do_image_splitting=True)
    slices = small(sizing=sizing).family.cut(image, small(sizing=sizing))
    given = processor(images=Image.fromarray(image), return_tensors="pt")
    with torch.no_grad():
        kept = model.model.get_image_features(given["pixel_values"], given["pixel_attention_mask"]).last_hidden_state
    assert given["pixel_values"].shape[1] == 5
    assert len(slices.strips) == len(kept) == 2
    assert slices.boxes[0].tolist() == [40, 0, 80, 28 / 30 * 30]
    with pytest.raises(ValueError, match="every pixel is 0 once normalised, which Idefics2 drops as padding"):
        slice_image(np.zeros((60, 80, 3), np.uint8), small(sizing=sizing))


# Text


class Tokenizer:
    """As much of one as the processor's text needs; it gives the text itself."""

    image_token, image_boundary_token, image_token_id = "<image>", "<fake_token_around_image>", 31

    def __call__(self, text: list[str], **options: Any) -> dict[str, Any]:
        return {"text": text}


def their_text(prompt: str, places: int, split: bool) -> str:
    tokenizer = Tokenizer()
    state = SimpleNamespace(
        tokenizer=tokenizer,
        fake_image_token=tokenizer.image_boundary_token,
        image_token=tokenizer.image_token,
        image_seq_len=places,
        image_processor=SimpleNamespace(do_image_splitting=split),
        _merge_kwargs=lambda **options: {"text_kwargs": {}, "images_kwargs": {}},
        _check_special_mm_tokens=lambda *args, **options: None,
    )
    tokenizer.init_kwargs = {}  # type: ignore[attr-defined]
    found: str = Idefics2Processor.__call__(state, text=prompt)["text"][0]
    return found


@pytest.mark.parametrize("grid", [None, (2, 2)])
def test_the_text_is_transformers(grid: tuple[int, int] | None) -> None:
    config = small()
    ours = image_placeholder(grid, config=config)
    assert ours == their_text("<image>", 4, split=grid is not None)
    assert ours.count("<image>") == 4 * (5 if grid else 1)
    both = ours + ours.removeprefix("<fake_token_around_image>")
    assert both == their_text("<image><image>", 4, split=grid is not None)


def test_the_tokens_take_the_places_that_transformers_gives_them(saved: Saved) -> None:
    image = picture(200, 150)
    grid = saved.config.family.cut(image, saved.config).grid
    tokens = theirs(saved, image)["tokens"]
    words = re.findall(r"<image>|<[^>]*>|.", "Say: " + image_placeholder(grid, config=saved.config) + " What?")
    ids = np.array([31 if word == "<image>" else len(word) for word in words])
    text = np.random.default_rng(0).standard_normal((len(ids), 20), dtype=np.float32)
    expected = saved.model.model.inputs_merger(
        torch.tensor(ids)[None], torch.tensor(text)[None], torch.tensor(tokens).reshape(-1, 20)
    )
    places = token_places(ids, 31, [tokens.shape[1]] * len(tokens))
    assert np.array_equal(scatter_image_embeds(text, tokens, places), expected[0].numpy())


def test_the_stage_of_the_text_goes_by_the_picture() -> None:
    model = random_model(small(sizing=SPLIT), until="tokens")
    stage = next(stage for stage in FAMILY.stages if stage.name == "text")
    found = stage.call({"picture": np.asarray(picture(80, 60))}, model).tobytes().decode()
    assert found == image_placeholder((2, 2), config=model.config)


def test_texts_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="image_id must be None, because Idefics2's text numbers no picture; got 3"):
        image_placeholder(None, image_id=3, config=small())
    with pytest.raises(ValueError, match=r"grid must be \(2, 2\) or None: Idefics2 splits in quarters; got \(3, 2\)"):
        image_placeholder((3, 2), config=small())


# Configs


VISION_SIZES = {"hidden_size": 8, "num_attention_heads": 4, "intermediate_size": 5, "num_hidden_layers": 3}
VISION_SIZES |= {"num_channels": 1, "image_size": 196, "patch_size": 13, "layer_norm_eps": 1e-5}
PERCEIVER_SIZES = {"resampler_n_latents": 7, "resampler_depth": 1, "resampler_n_heads": 4, "resampler_head_dim": 4}
PERCEIVER_SIZES |= {"num_key_value_heads": 3}
HONOURED = {f"vision_config.{key}": value for key, value in VISION_SIZES.items()}
HONOURED |= {f"perceiver_config.{key}": value for key, value in PERCEIVER_SIZES.items()}
HONOURED |= {"text_config.hidden_size": 12, "text_config.intermediate_size": 12}
HONOURED |= {"preprocessor.size": {"shortest_edge": 22, "longest_edge": 99}}
HONOURED |= {"preprocessor.image_mean": [0.1, 0.2, 0.3], "preprocessor.image_std": [0.1, 0.2, 0.3]}
HONOURED |= {"preprocessor.do_image_splitting": None}  # the other of true and false
BY_WIDTH = {"perceiver_config.hidden_size", "perceiver_config.rms_norm_eps", "text_config.rms_norm_eps"}
"""Honoured too: which of the two eps counts depends on whether the two widths are the same."""
FIXED = {"vision_config.hidden_act": "gelu", "preprocessor.resample": 3, "preprocessor.rescale_factor": 1 / 127.5}
FIXED |= {f"preprocessor.do_{name}": False for name in ("resize", "rescale", "normalize", "convert_rgb", "pad")}
FIXED |= {"preprocessor.image_processor_type": "Idefics3ImageProcessor"}
FIXED |= {"perceiver_config.hidden_act": "gelu", "text_config.hidden_act": "gelu"}
WITHOUT_EFFECT = {"vision_config.attention_dropout": 0.5, "vision_config.initializer_range": 1.0}
WITHOUT_EFFECT |= {"perceiver_config.attention_dropout": 0.5, "perceiver_config.initializer_range": 1.0}
WITHOUT_EFFECT |= {"vision_config.model_type": "idefics2", "perceiver_config.model_type": "idefics2"}
WITHOUT_EFFECT |= {"preprocessor.processor_class": "X", "tie_word_embeddings": True, "image_token_id": 7}


def jsons(saved: Saved) -> dict[str, Any]:
    """config.json, with preprocessor_config.json under "preprocessor"."""
    top = json.loads((saved.folder / "config.json").read_text())
    return top | {"preprocessor": json.loads((saved.folder / "preprocessor_config.json").read_text())}


def read(content: dict[str, Any]) -> Any:
    top = {key: value for key, value in content.items() if key != "preprocessor"}
    return FAMILY.read_config(top, content["preprocessor"])


def changed(saved: Saved, path: str, value: Any) -> dict[str, Any]:
    content = jsons(saved)
    *sections, key = path.split(".")
    section = content[sections[0]] if sections else content
    section[key] = (not section[key]) if value is None else value
    return content


def test_the_table_has_every_key_of_a_saved_config(saved: Saved) -> None:
    content, table = jsons(saved), {*HONOURED, *FIXED, *WITHOUT_EFFECT, *BY_WIDTH}
    for section in ("vision_config", "perceiver_config", "preprocessor"):
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


@pytest.mark.parametrize("path", ["vision_config.window", "preprocessor.rotate", "perceiver_config.qk_norm"])
def test_a_key_that_is_not_known_is_refused(saved: Saved, path: str) -> None:
    with pytest.raises(ValueError, match=f"{path.split('.')[1]} of .* is 1; the key is not known here"):
        read(changed(saved, path, 1))


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("preprocessor.size", {"longest_edge": 9}, "size of preprocessor_config.json is .*; it must have shortest_edge and"),
        ("preprocessor.size", {"height": 3, "width": 3}, "height of size is 3; the key is not known"),
        (
            "preprocessor.size",
            {"shortest_edge": 9, "longest_edge": 99_999},
            "longest_edge must be a whole number from 1 to 16384",
        ),
        ("preprocessor.do_image_splitting", 1, "do_image_splitting must be true or false; got 1"),
        ("perceiver_config.num_key_value_heads", 4, "resampler_n_heads 6 must be a multiple of num_key_value_heads 4"),
        ("perceiver_config.resampler_depth", 0, "resampler_depth must be a whole number from 1"),
        (
            "text_config",
            {"model_type": "qwen2", "hidden_size": 20},
            "_.* of text_config is missing; .* for model_type 'mistral'",
        ),
    ],
)
def test_a_value_that_cannot_be_is_refused(saved: Saved, path: str, value: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        read(changed(saved, path, value))


@pytest.mark.parametrize("eps", ["1e-3", [], 0, 1, True])
def test_an_eps_that_is_none_is_refused(eps: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="rms_norm_eps must"):
        PerceiverConfig(rms_norm_eps=eps)


WIDTHS: list[dict[str, Any]] = [
    {},
    {"text_config": {}},
    {"text_config": {"hidden_size": 20}},
    {"text_config": {"hidden_size": 20, "rms_norm_eps": 0.5}},
    {"text_config": {"rms_norm_eps": 0.5}},
    {"perceiver_config": {"hidden_size": 20}},
    {"perceiver_config": {"hidden_size": 20}, "text_config": {}},
    {"perceiver_config": {"hidden_size": 20, "rms_norm_eps": 0.25}, "text_config": {"hidden_size": 20, "rms_norm_eps": 0.5}},
    {"perceiver_config": {"hidden_size": 20, "rms_norm_eps": 0.25}, "text_config": {"hidden_size": 24, "rms_norm_eps": 0.5}},
]


@pytest.mark.parametrize("top", WIDTHS)
def test_what_is_absent_is_the_class_s_own_default_and_eps_by_the_widths(top: dict[str, Any]) -> None:
    ours: Idefics2Config = FAMILY.read_config({"model_type": "idefics2", **top}, {})
    config, processor = TransformersConfig(**json.loads(json.dumps(top))), Idefics2ImageProcessorPil()
    for name in VISION_SIZES:
        assert getattr(ours.vision, name) == getattr(config.vision_config, name)
    for name in (*PERCEIVER_SIZES, "rms_norm_eps"):
        assert getattr(ours.perceiver, name) == getattr(config.perceiver_config, name)
    assert ours.embed_dim == config.text_config.hidden_size == config.perceiver_config.hidden_size
    assert ours.intermediate_size == config.text_config.intermediate_size
    assert (ours.sizing.shortest_edge, ours.sizing.longest_edge) == (processor.size.shortest_edge, processor.size.longest_edge)
    assert (ours.sizing.mean, ours.sizing.std) == (tuple(processor.image_mean), tuple(processor.image_std))
    assert ours.sizing.do_image_splitting == processor.do_image_splitting


def test_the_released_config_is_read() -> None:
    """Of the release with 8B parameters: what it leaves to the classes is left out here."""
    vision = {"hidden_size": 1152, "image_size": 980, "intermediate_size": 4304, "model_type": "idefics2"}
    vision |= {"num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14}
    top = {"model_type": "idefics2", "vision_config": vision, "perceiver_config": {"model_type": "idefics2"}}
    top["text_config"] = {"model_type": "mistral", "rms_norm_eps": 1e-05}
    assert FAMILY.read_config(top, {"do_image_splitting": True}) == FAMILY.presets()["Idefics2 8B"]


def test_configs_go_to_json_and_back() -> None:
    for config in (FAMILY.small(), *FAMILY.presets().values()):
        top, preprocessor = json.loads(json.dumps(FAMILY.as_json(config)))
        assert FAMILY.read_config(top, preprocessor) == config


# Folders


def test_a_processor_saved_as_a_whole_is_read(saved: Saved, tmp_path: Path) -> None:
    content = jsons(saved)
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": content["preprocessor"]}))
    assert read_config(tmp_path) == saved.config


@pytest.mark.parametrize(
    "name", ["model.vision_model.head.probe", "model.connector.perceiver_resampler.layers.2.self_attn.q_proj.weight"]
)
def test_an_array_that_no_stage_reads_is_refused(saved: Saved, tmp_path: Path, name: str) -> None:
    saved.processor.save_pretrained(tmp_path)
    saved.model.save_pretrained(tmp_path, state_dict={**saved.model.state_dict(), name: torch.zeros(4)})
    with pytest.raises(ValueError, match=f"has {re.escape(name)}, which no stage of Idefics2 reads"):
        load_model(tmp_path)


def test_a_model_saved_without_its_head_has_other_names_and_is_refused(saved: Saved, tmp_path: Path) -> None:
    saved.model.model.save_pretrained(tmp_path)
    shutil.copy(saved.folder / "preprocessor_config.json", tmp_path)
    with pytest.raises(ValueError, match=r"lacks model\.vision_model\.embeddings\.patch_embedding\.weight"):
        load_model(tmp_path)


def test_a_stage_that_the_family_has_not_is_refused(saved: Saved) -> None:
    with pytest.raises(ValueError, match="Idefics2 has no stage 'pooled'; it has embeddings, hidden, tokens"):
        load_model(saved.folder, until="pooled")


def test_hidden_states_that_do_not_fit_are_refused() -> None:
    model = random_model(small(), until="tokens")
    with pytest.raises(ValueError, match=r"perceive: hidden has 6 places, but tgt_sizes\[1\] = \(3, 3\) makes 9"):
        perceive(np.ones((2, 6, 16)), [(2, 3), (3, 3)], model)


# Properties of the perceiver


def test_it_is_transformers_perceiver_at_its_real_sizes_of_heads() -> None:
    """16 heads of 96 channels that share 4 heads of keys and values; 64 latents."""
    config = SimpleNamespace(
        vision=SimpleNamespace(hidden_size=12), perceiver=PerceiverConfig(resampler_depth=1), embed_dim=40, intermediate_size=8
    )
    full = small(perceiver=config.perceiver, embed_dim=40)
    model = random_model(full, seed=3, until="tokens")
    x = np.random.default_rng(0).standard_normal((9, 40), dtype=np.float32)
    from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig

    module = Idefics2PerceiverResampler(Idefics2PerceiverConfig(hidden_size=40, resampler_depth=1)).eval()
    prefix = "model.connector.perceiver_resampler."
    state = {name.removeprefix(prefix): torch.tensor(a) for name, a in model.weights.items() if name.startswith(prefix)}
    module.load_state_dict(state)
    with torch.no_grad():
        expected = module(torch.tensor(x)[None], torch.ones(1, 9))[0].numpy()
    latents = idefics2._perceiver_layer(model.weights[prefix + "latents"], x, model, prefix + "layers.0")
    close(EXACT.rms_norm(latents, model.weights[prefix + "norm.weight"], 1e-6), expected)


def test_large_numbers_pass_through_the_gate() -> None:
    config = small()
    model = random_model(config, until="tokens")
    x = np.array([[-1e4] * 16, [1e4] * 16], np.float32)
    assert np.isfinite(idefics2.gated(x, model, "model.connector.modality_projection")).all()


# Wrong ports, with faults seen in the wild


@pytest.fixture(scope="module")
def own() -> Model:
    return random_model(small(sizing=SPLIT), seed=2, until="tokens")


def exact(model: Model) -> Model:
    return Model(model.config, {name: array.astype(np.float64) for name, array in model.weights.items()})


def heads_in_turn(x: Any, perceiver: PerceiverConfig) -> Any:
    """Query head n takes head n % kv of the keys; right is n // (heads / kv)."""
    return np.tile(x, perceiver.resampler_n_heads // perceiver.num_key_value_heads)


def layer_norm_for_rms_norm(x: Any, weight: Any, eps: float) -> Any:
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + eps) * weight


def with_heads_in_turn(model: Model) -> Model:
    config: Any = model.config
    return replace(model, config=replace(config, family=FAMILY.changed(for_every_head=heads_in_turn)))


def with_gate_and_up_exchanged(model: Model) -> Model:
    names = {"gate_proj": "up_proj", "up_proj": "gate_proj"}
    other = {name: next((name.replace(*pair) for pair in names.items() if pair[0] in name), name) for name in model.weights}
    return replace(model, weights={name: model.weights[other[name]] for name in model.weights})


@pytest.mark.parametrize(
    "wrong",
    [
        with_heads_in_turn,
        lambda model: model.with_ops(EXACT.changed(rms_norm=layer_norm_for_rms_norm)),
        with_gate_and_up_exchanged,
    ],
    ids=["heads in turn", "layer norm for RMS norm", "gate and up exchanged"],
)
def test_a_wrong_perceiver_is_far_off(own: Model, wrong: Callable[[Model], Model]) -> None:
    strips, sizes = slice_image(picture(80, 60), own.config)
    hidden = run(strips, sizes, own, until="hidden")["hidden"]
    truth = perceive(hidden, sizes, exact(own))
    right = perceive(hidden, sizes, own)
    allowed = stage_allowed(right, truth)
    assert (np.abs(right - truth) <= allowed).all()
    off = np.abs(perceive(hidden, sizes, wrong(own)) - truth).max(axis=(1, 2), keepdims=True)
    assert (off > 100 * allowed).all()


def test_latents_left_out_of_the_keys_are_far_off(own: Model) -> None:
    strips, sizes = slice_image(picture(80, 60), own.config)
    hidden = run(strips, sizes, own, until="hidden")["hidden"]
    right, truth = perceive(hidden, sizes, own), perceive(hidden, sizes, exact(own))
    wrong = own.with_ops(EXACT.changed(attend=lambda q, k, v, heads: EXACT.attend(q, k[: -len(q)], v[: -len(q)], heads)))
    off = np.abs(perceive(hidden, sizes, wrong) - truth).max(axis=(1, 2), keepdims=True)
    assert (off > 100 * stage_allowed(right, truth)).all()


def test_the_last_norm_left_out_is_far_off(own: Model) -> None:
    strips, sizes = slice_image(picture(80, 60), own.config)
    embeddings = embed(strips, sizes, own)
    right, truth = encode(embeddings, sizes, own), encode(embeddings, sizes, exact(own))
    h, w = sizes[0].tolist()
    x = embeddings[:1, : h * w].copy()
    for step in own.config.family.tower(own)[:-1]:
        x, _ = step(x, (h, w))
    assert np.abs(x[0] - truth[0, : h * w]).max() > 100 * stage_allowed(right, truth)[0, 0, 0]


def test_a_patch_of_which_any_pixel_counts_is_one_too_many(saved: Saved) -> None:
    """Idefics3 counts it, Idefics2 does not."""
    image = picture(113, 57)
    given = saved.processor(images=[[image], [picture(57, 113)]], return_tensors="pt")
    patch = saved.config.vision.patch_size
    mask = given["pixel_attention_mask"].flatten(0, 1).unfold(1, patch, patch).unfold(2, patch, patch)
    wrong = (mask.sum(dim=(-1, -2)) > 0)[: mask.shape[0] // 2]
    sizes = torch.stack([wrong[:, :, 0].sum(dim=1), wrong[:, 0].sum(dim=1)], dim=1).tolist()
    assert sizes != slice_image(image, saved.config)[1].tolist()


def test_the_whole_first_and_a_resize_before_the_split_are_other_batches(own: Model) -> None:
    image = picture(120, 90)
    strips, _ = slice_image(image, own.config)
    assert strips[0].shape != strips[-1].shape or not np.array_equal(strips[0], strips[-1])
    whole = image.resize(resized_size(image.size, own.config.sizing), Image.Resampling.BILINEAR)
    early, _ = slice_image(whole, own.config)
    assert not all(ours.shape == other.shape for ours, other in zip(early, strips, strict=True))

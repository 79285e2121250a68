"""The contests of single stages: position ids, slicing a JPEG, the encoder."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

import npembed
from benchmarks.cases import CHANNELS, ENCODER_SIZE, JPEG_SIZE, PATCH, cells, mixed_sizes
from benchmarks.contest import OURS, PRODUCT, Contest, Contestant, DisagreementError
from benchmarks.embedding import seed_mask, seed_position_ids
from npembed import Config, Model, VisionConfig
from npembed.steps.cutting import SlicePlan, plan_slices

Floats = NDArray[Any]

SIDE = npembed.MINICPM_V_2_6.vision.num_patches_per_side

ENCODER_TOLERANCE = 2.0**-18
"""How far float32 may be from float64 after one layer, as a share of the largest value: 64 units of roundoff."""


def ids_contest() -> Contest:
    """256 slices of mixed sizes; nobody remembers anything between calls."""
    sizes = np.array(mixed_sizes())
    as_tensor = torch.tensor(sizes)
    mask = seed_mask(as_tensor)

    def seed() -> Tensor:
        with torch.inference_mode():
            return seed_position_ids(mask, as_tensor, SIDE)

    expected = seed().numpy()

    def check(name: str, result: Any) -> None:
        if not np.array_equal(np.asarray(result), expected):
            raise DisagreementError(f"{name}: other position ids than the seed's loop")

    ours = Contestant(OURS, lambda: npembed.position_ids(sizes))
    return Contest([ours, Contestant("seed-torch", seed)], check)


def make_jpeg(size: tuple[int, int]) -> bytes:
    """A JPEG of smooth waves with some noise, which compresses like a photograph: about 2 bits per pixel."""
    width, height = size
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    waves = [np.sin(x / (50 + 30 * channel)) + np.cos(y / (70 - 20 * channel)) for channel in range(CHANNELS)]
    noise = np.random.default_rng(0).standard_normal((height, width, 1), dtype=np.float32)
    pixels = np.clip(128 + 50 * np.stack(waves, axis=-1) + 6 * noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def slicing_contest() -> Contest:
    """npembed's slices of a 12-megapixel JPEG against what Pillow needs to decode and resize it."""
    jpeg, plan = make_jpeg(JPEG_SIZE), plan_slices(JPEG_SIZE)

    def pillow() -> list[Image.Image]:
        picture = Image.open(io.BytesIO(jpeg))
        picture.load()
        sizes = [size for size in (plan.source_size, plan.refine_size) if size]
        return [picture.resize(size, resample=Image.Resampling.BICUBIC) for size in sizes]

    expected = expected_strips(pillow(), plan)

    def check(name: str, result: Any) -> None:
        strips = result[0] if name == OURS else expected_strips(result, plan)
        if len(strips) != len(expected) or not all(map(np.array_equal, strips, expected)):
            raise DisagreementError(f"{name}: other strips than Pillow's pictures make")

    ours = Contestant(OURS, lambda: npembed.slice_image(Image.open(io.BytesIO(jpeg))))
    return Contest([ours, Contestant("pillow", pillow)], check)


def expected_strips(pictures: list[Image.Image], plan: SlicePlan) -> list[Floats]:
    """Source and refined picture -> strips, step by step."""
    source, *refined = (np.asarray(picture).astype(np.float32) for picture in pictures)
    slices = [source]
    if refined and plan.grid:
        columns, rows = plan.grid
        height, width = refined[0].shape[0] // rows, refined[0].shape[1] // columns
        boxes = [(row * height, column * width) for row in range(rows) for column in range(columns)]
        slices += [refined[0][top : top + height, left : left + width] for top, left in boxes]
    half = np.float32(0.5)
    normalised = [((pixels / np.float32(255) - half) / half).transpose(2, 0, 1) for pixels in slices]
    return [cells(picture).transpose(0, 2, 1, 3, 4).reshape(CHANNELS, PATCH, -1) for picture in normalised]


def encoder_contest() -> Contest:
    """One slice, one layer of full size and the last norm; all 27 layers are alike and take 27 times as long."""
    vision = VisionConfig(num_hidden_layers=1)
    model = npembed.random_model(Config(vision=vision), until="hidden")
    h, w = ENCODER_SIZE
    given = np.random.default_rng(0).standard_normal((1, h * w, vision.hidden_size), dtype=np.float32)
    sizes = np.array([ENCODER_SIZE])
    layers = torch_layers(model, torch.float32, given)
    exact_layers = torch_layers(model, torch.float64, given)().numpy()
    exact_products = bare_products(given[0].astype(np.float64), model)

    def check(name: str, result: Any) -> None:
        exact = exact_products if name == PRODUCT else exact_layers
        distance = np.abs(np.asarray(result) - exact).max()
        if not distance <= ENCODER_TOLERANCE * np.abs(exact).max():
            raise DisagreementError(
                f"{name}: {distance:.2g} from float64, where the largest value is {np.abs(exact).max():.2g}"
            )

    ours = Contestant(OURS, lambda: npembed.encode(given, sizes, model))
    floor = Contestant(PRODUCT, lambda: bare_products(given[0], model))
    return Contest([ours, Contestant("torch-layers", layers), floor], check)


def bare_products(x: Floats, model: Model) -> Floats:
    """(L, D) -> (L, D): the layer's matrix products in a row, with nothing between them."""
    layer, heads = "vpm.encoder.layers.0", model.config.vision.num_attention_heads
    queries, keys, values, out = (model.weights[f"{layer}.self_attn.{name}_proj.weight"].T for name in ("q", "k", "v", "out"))
    split = [np.split(x @ matrix, heads, axis=1) for matrix in (queries, keys, values)]  # each heads of (L, D/heads)
    mixed = np.concatenate([(q @ k.T) @ v for q, k, v in zip(*split, strict=True)], axis=1)
    return np.asarray(mixed @ out @ model.weights[f"{layer}.mlp.fc1.weight"].T @ model.weights[f"{layer}.mlp.fc2.weight"].T)


def torch_layers(model: Model, dtype: torch.dtype, given: Floats) -> Callable[[], Tensor]:
    """(1, L, D) -> (1, L, D), by torch's own linear, layer_norm, scaled_dot_product_attention and gelu."""
    vision = model.config.vision
    weights = {name.removeprefix("vpm."): torch.tensor(array, dtype=dtype) for name, array in model.weights.items()}
    x = torch.tensor(given, dtype=dtype)

    def of(name: str) -> tuple[Tensor, Tensor]:
        return weights[f"{name}.weight"], weights[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], *of(name), eps=vision.layer_norm_eps)

    def attention(x: Tensor, name: str) -> Tensor:
        heads = [
            functional.linear(x, *of(f"{name}.{part}_proj")).unflatten(-1, (vision.num_attention_heads, -1)).transpose(1, 2)
            for part in "qkv"
        ]
        mixed = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return functional.linear(mixed, *of(f"{name}.out_proj"))

    def run() -> Tensor:
        with torch.inference_mode():
            y = x
            for layer in (f"encoder.layers.{number}" for number in range(vision.num_hidden_layers)):
                y = y + attention(norm(y, f"{layer}.layer_norm1"), f"{layer}.self_attn")
                inner = functional.linear(norm(y, f"{layer}.layer_norm2"), *of(f"{layer}.mlp.fc1"))
                y = y + functional.linear(functional.gelu(inner, approximate="tanh"), *of(f"{layer}.mlp.fc2"))
            return norm(y, "post_layernorm")

    return run

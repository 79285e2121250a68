"""Adapters: a module of transformers becomes a port in a few lines, and passes; models of other shapes do, too."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import npembed
from npembed.conformance import Status, check_function
from npembed.conformance.adapters import Tensors, from_pictures, on_canvas, packed, sliced
from npembed.conformance.probes import CHECKS
from npembed.conformance.trial import Trial
from npembed.patches import strip_to_picture

torch = pytest.importorskip("torch")
siglip = pytest.importorskip("transformers.models.siglip.modeling_siglip")
idefics2 = pytest.importorskip("transformers.models.idefics2.modeling_idefics2")

TYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def siglip_port(precision: str) -> SimpleNamespace:
    """transformers' own encoder, in about fifteen lines."""
    as_torch = Tensors(torch, TYPES[precision])

    @as_torch.port
    def encode(embeddings: Any, tgt_sizes: Any, model: Any) -> Any:
        vision = model.config.vision
        config = siglip.SiglipVisionConfig(
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            num_hidden_layers=model.config.encoder_layers,
            num_attention_heads=vision.num_attention_heads,
            layer_norm_eps=vision.layer_norm_eps,
            attn_implementation="eager",
        )
        encoder = as_torch.load(siglip.SiglipEncoder(config), model, "vpm.encoder.")
        norm = as_torch.load(torch.nn.LayerNorm(vision.hidden_size, vision.layer_norm_eps), model, "vpm.post_layernorm.")
        kind = next(encoder.parameters()).dtype
        real = torch.where(as_torch.mask(tgt_sizes)[..., None], embeddings, 0).to(kind)
        mask = as_torch.additive_mask(tgt_sizes).to(kind)
        return norm(encoder(inputs_embeds=real, attention_mask=mask).last_hidden_state)

    return SimpleNamespace(encode=encode, PRECISION=precision)


@pytest.mark.parametrize("precision", TYPES)
def test_transformers_own_encoder_passes(precision: str) -> None:
    port, check = siglip_port(precision), CHECKS["encode"]
    outcome = check_function(port, "encode", examples=0)
    assert (outcome.status, outcome.cause) == (Status.PASS, None), outcome.summary
    trial = Trial(port.encode, check, precision, check.reference, "")
    for seed in range(12):
        assert not trial.draw(check.reference, 3, seed), trial.failures[-1].departure


def idefics2_embeddings(pixels: Any, mask: Any, model: Any) -> Any:
    """transformers' Idefics2VisionEmbeddings, on a canvas with a mask."""
    vision, as_torch = model.config.vision, Tensors(torch)
    config = idefics2.Idefics2VisionConfig(
        hidden_size=vision.hidden_size,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        num_channels=vision.num_channels,
    )
    module = as_torch.load(idefics2.Idefics2VisionEmbeddings(config), model, f"{model.tower}embeddings.")
    kind = next(module.parameters()).dtype
    with torch.no_grad():
        return module(as_torch.tensor(pixels).to(kind), torch.from_numpy(mask)).numpy()


def test_a_model_on_a_canvas_becomes_a_port_and_its_rule_is_judged() -> None:
    embed = on_canvas(idefics2_embeddings)
    one = CHECKS["embed"]

    def with_padding(strips: Any, tgt_sizes: Any, model: Any, rule: Any = None) -> Any:
        result = embed(strips, tgt_sizes, model)
        places = npembed.patch_attention_mask(tgt_sizes)[:, 0, :, None]
        return np.where(places, result, model.position_plus_bias[0]).astype(result.dtype)

    port = SimpleNamespace(embed=with_padding)
    assert check_function(port, "embed", rule="step", examples=0).status is Status.PASS
    cause = check_function(port, "embed", examples=0).cause
    assert cause is not None
    assert "matches rule `step`" in cause
    assert one.by_rule


def test_a_model_of_one_sequence_becomes_a_port() -> None:
    def tokens(places: Any, ends: Any, tgt_sizes: Any, model: Any) -> Any:
        parts = [places[start:end][None] for start, end in pairwise(ends)]
        hidden = [npembed.encode(part, size[None], model)[0] for part, size in zip(parts, tgt_sizes, strict=True)]
        return np.concatenate(hidden)

    assert check_function(SimpleNamespace(encode=packed(tokens)), "encode", examples=3).status is Status.PASS


def test_a_model_of_pictures_becomes_a_port() -> None:
    sizes, model = np.array([[2, 3], [1, 2]]), npembed.conformance.strategies.small_model(channels=3, patch_size=2)
    strips = [np.random.default_rng(0).standard_normal((3, 2, h * w * 2)).astype(np.float32) for h, w in sizes.tolist()]

    def patches(picture: Any, model: Any) -> Any:
        weight = model.weights["vpm.embeddings.patch_embedding.weight"]
        return npembed.patch_conv(picture[None], weight)[0].reshape(len(weight), -1).T

    result = from_pictures(patches)(strips, sizes, model)
    assert result.shape == (2, 6, 2)
    np.testing.assert_allclose(result[1, :2], patches(strip_to_picture(strips[1], (1, 2)), model))
    assert not result[1, 2:].any()


def test_a_slicing_unit_becomes_a_port() -> None:
    def pictures(image: Any, config: Any) -> Any:
        strips, sizes = npembed.slice_image(image, config)
        return [strip_to_picture(strip, tuple(size)) for strip, size in zip(strips, sizes.tolist(), strict=True)]

    def slice_image(image: Any, config: Any = npembed.MINICPM_V_2_6) -> Any:
        return sliced(pictures)(image, config)

    assert check_function(SimpleNamespace(slice_image=slice_image), "slice_image", examples=3).status is Status.PASS


def test_a_module_whose_array_the_model_lacks_is_refused() -> None:
    model = npembed.conformance.strategies.small_model("hidden")
    with pytest.raises(ValueError, match=r"Tensors.load: the model has no array vpm.nothing.weight, which the module needs"):
        Tensors(torch).load(torch.nn.LayerNorm(2), model, "vpm.nothing.")

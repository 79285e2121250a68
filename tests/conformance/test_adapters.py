"""Adapters: a module of transformers becomes a port in a few lines, and passes; models of other shapes do, too."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import npembed
from npembed.conformance import Status, check_function
from npembed.conformance.adapters import (
    Tensors,
    from_pictures,
    ids_on_canvas,
    on_canvas,
    packed,
    packed_ids,
    packed_strips,
    places_on_canvas,
    slice_by_slice,
    sliced,
    strip_by_strip,
)
from npembed.conformance.probes import CHECKS
from npembed.conformance.trial import Trial
from npembed.steps.patches import strip_to_picture
from tests.ports import most_used

torch = pytest.importorskip("torch")
siglip = pytest.importorskip("transformers.models.siglip.modeling_siglip")
idefics2 = pytest.importorskip("transformers.models.idefics2.modeling_idefics2")

TYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def siglip_port(precision: str, autocast: bool = False) -> SimpleNamespace:
    """transformers' own encoder, in about fifteen lines."""
    as_torch = Tensors(torch, None if autocast else TYPES[precision])

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
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return norm(encoder(inputs_embeds=real, attention_mask=mask).last_hidden_state)

    return SimpleNamespace(encode=encode, PRECISION=precision)


@pytest.mark.parametrize(("precision", "autocast"), [*((precision, False) for precision in TYPES), ("bfloat16", True)])
def test_transformers_own_encoder_passes(precision: str, autocast: bool) -> None:
    port, check = siglip_port(precision, autocast), CHECKS["encode"]
    outcome = check_function(port, "encode", examples=0)
    assert (outcome.status, outcome.cause) == (Status.PASS, None), outcome.summary
    trial = Trial(port.encode, check, precision, check.reference, "")
    for seed in range(12):
        assert not trial.draw(check.reference, 2, seed), trial.failures[-1].departure
    if precision != "float32":
        assert most_used(check, port.encode, precision) < 1 / 3


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
    port = SimpleNamespace(embed=on_canvas(idefics2_embeddings))
    assert check_function(port, "embed", rule="step", examples=0).status is Status.PASS
    cause = check_function(port, "embed", examples=0).cause
    assert cause is not None
    assert "matches rule `step`" in cause


def test_a_model_of_one_sequence_becomes_a_port() -> None:
    def tokens(places: Any, ends: Any, tgt_sizes: Any, model: Any) -> Any:
        parts = [places[start:end][None] for start, end in pairwise(ends)]
        hidden = [npembed.encode(part, size[None], model)[0] for part, size in zip(parts, tgt_sizes, strict=True)]
        return np.concatenate(hidden)

    assert check_function(SimpleNamespace(encode=packed(tokens)), "encode", examples=3).status is Status.PASS


def test_a_packed_models_slices_may_come_out_with_other_sizes() -> None:
    def halves(places: Any, ends: Any, tgt_sizes: Any, model: Any) -> Any:
        return np.concatenate([places[start:end:2] for start, end in pairwise(ends)])

    x = np.arange(8.0).reshape(2, 4, 1)
    result = packed(halves, after=lambda sizes, model: [(h, w // 2) for h, w in sizes])(x, [[1, 4], [1, 2]], None)
    assert result[..., 0].tolist() == [[0, 2], [4, 0]]
    with pytest.raises(ValueError, match=r"the model gave 3 places for slices of \[\(1, 4\), \(1, 2\)\], which have 6"):
        packed(halves)(x, [[1, 4], [1, 2]], None)


def test_a_tower_on_a_canvas_becomes_a_port_and_so_does_one_of_single_slices() -> None:
    def on_grid(places: Any, mask: Any, model: Any) -> Any:
        result = np.zeros_like(places)
        for row, own, page in zip(result, places, mask, strict=True):
            row[page.ravel()] = npembed.encode(own[page.ravel()][None], [[1, int(page.sum())]], model)[0]
        return result

    def alone(places: Any, size: Any, model: Any) -> Any:
        return npembed.encode(places[None], [size], model)[0]

    for encode in (places_on_canvas(on_grid), slice_by_slice(alone)):
        assert check_function(SimpleNamespace(encode=encode), "encode", examples=3).status is Status.PASS


def by_columns(mask: Any, side: int) -> Any:
    """Ids on a canvas that are wrong wherever a slice has two rows."""
    return np.arange(mask[0].size).reshape(mask[0].shape).T.reshape(1, -1).repeat(len(mask), axis=0)


def test_ids_on_a_canvas_and_end_to_end_become_ports() -> None:
    def on_grid(mask: Any, side: int) -> Any:
        places = np.zeros((len(mask), mask[0].size), dtype=np.int64)
        for row, page in zip(places, mask, strict=True):
            row[page.ravel()] = npembed.position_ids([[page[:, 0].sum(), page[0].sum()]], side)[0]
        return places

    def end_to_end(tgt_sizes: Any, side: int) -> Any:
        return np.concatenate([npembed.position_ids(size[None], side)[0] for size in tgt_sizes])

    for position_ids in (ids_on_canvas(on_grid), packed_ids(end_to_end)):
        assert check_function(SimpleNamespace(position_ids=position_ids), "position_ids", examples=3).status is Status.PASS
    wrong = SimpleNamespace(position_ids=ids_on_canvas(by_columns))
    assert check_function(wrong, "position_ids", examples=0).status is Status.FAIL


def test_strips_end_to_end_and_one_by_one_become_ports() -> None:
    def of_one(strip: Any, size: Any, model: Any) -> Any:
        return npembed.embed([strip], [size], model)[0]

    def end_to_end(pixels: Any, tgt_sizes: Any, model: Any) -> Any:
        ends = np.cumsum(tgt_sizes.prod(axis=1))[:-1] * pixels.shape[2]
        strips = np.split(pixels[0], ends, axis=-1)
        return np.concatenate([of_one(strip, size, model) for strip, size in zip(strips, tgt_sizes, strict=True)])

    for embed in (strip_by_strip(of_one), packed_strips(end_to_end)):
        assert check_function(SimpleNamespace(embed=embed), "embed", examples=3).status is Status.PASS


def test_what_cannot_be_laid_out_is_refused() -> None:
    strip = np.zeros((1, 1, 6), dtype=np.float32)
    for adapter in (on_canvas, packed_strips, strip_by_strip, from_pictures):
        with pytest.raises(ValueError, match=r"a strip of shape \(1, 1, 6\) has no 2 x 2 patches"):
            adapter(lambda *args: None)([strip], [[2, 2]], None)
    with pytest.raises(ValueError, match=r"tgt_sizes must be positive; got \[\(0, 2\)\]"):
        packed_ids(lambda *args: None)([[0, 2]])


def test_a_model_of_pictures_becomes_a_port() -> None:
    sizes, model = np.array([[2, 3], [1, 2]]), npembed.conformance.strategies.small_model(channels=3, patch_size=2)
    strips = [np.random.default_rng(0).standard_normal((3, 2, h * w * 2)).astype(np.float32) for h, w in sizes.tolist()]

    def patches(picture: Any, model: Any) -> Any:
        weight = model.weights["vpm.embeddings.patch_embedding.weight"]
        return npembed.patch_conv(picture[None], weight)[0].reshape(len(weight), -1).T

    result = from_pictures(patches)(strips, sizes, model)
    assert result.shape == (2, 6, 2)
    np.testing.assert_allclose(result[1, :2], patches(strip_to_picture(strips[1], (1, 2)), model))
    assert (result[1, 2:] == model.position_plus_bias[0]).all()


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


def test_a_part_of_a_model_fills_a_part_of_a_module_and_has_its_place() -> None:
    model = npembed.conformance.strategies.small_model("hidden", hidden_size=2)
    whole = torch.nn.ModuleDict({"post_layernorm": torch.nn.LayerNorm(2), "head": torch.nn.Linear(2, 2)})
    head = whole["head"].weight.detach().clone()
    only_norm = npembed.Model(model.config, {name: a for name, a in model.weights.items() if "post_layernorm" in name})
    loaded = Tensors(torch).load(whole, only_norm, "vpm.", part=True)
    assert loaded["post_layernorm"].weight.tolist() == model.weights["vpm.post_layernorm.weight"].tolist()
    assert torch.equal(loaded["head"].weight, head)
    with pytest.raises(ValueError, match=r"Tensors.load: ModuleDict has no array embeddings\.\S+, which the model has"):
        Tensors(torch).load(whole, model, "vpm.", part=True)

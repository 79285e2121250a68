"""MiniCPM-V 4.6 and 4.7 and MiniCPM-OCR, beside transformers' own image processor, text and modules."""

import json
import random
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.minicpm_ocr.configuration_minicpm_ocr import MiniCPMOcrConfig, MiniCPMOcrVisionConfig
from transformers.models.minicpm_ocr.modeling_minicpm_ocr import MiniCPMOcrForConditionalGeneration
from transformers.models.minicpm_ocr.processing_minicpm_ocr import MiniCPMOcrProcessor
from transformers.models.minicpmv4_6.configuration_minicpmv4_6 import MiniCPMV4_6Config, MiniCPMV4_6VisionConfig
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil
from transformers.models.minicpmv4_6.modeling_minicpmv4_6 import MiniCPMV4_6ForConditionalGeneration
from transformers.models.minicpmv4_6.processing_minicpmv4_6 import MiniCPMV4_6Processor
from transformers.models.minicpmv4_7.configuration_minicpmv4_7 import MiniCPMV4_7Config, MiniCPMV4_7VisionConfig
from transformers.models.minicpmv4_7.modeling_minicpmv4_7 import MiniCPMV4_7ForConditionalGeneration
from transformers.models.minicpmv4_7.processing_minicpmv4_7 import MiniCPMV4_7Processor

import npembed
from npembed import FAMILIES, image_placeholder, merge_patches, scatter_image_embeds, slice_image, token_places
from npembed.conformance.bounds import stage_allowed
from npembed.conformance.probes.probe import model_at
from npembed.families.minicpmv4_6 import MergerConfig
from npembed.records.arithmetic import EXACT
from npembed.steps.cutting import plan_slices
from npembed.steps.patch_mergers import MERGER, windows
from npembed.weights import read_config

torch.set_num_threads(1)  # its waiting threads and NumPy's would slow each other down

PAD = 294
UPSTREAM = {
    "minicpm-v-4.6": (MiniCPMV4_6Config, MiniCPMV4_6ForConditionalGeneration, MiniCPMV4_6Processor),
    "minicpm-v-4.7": (MiniCPMV4_7Config, MiniCPMV4_7ForConditionalGeneration, MiniCPMV4_7Processor),
    "minicpm-ocr": (MiniCPMOcrConfig, MiniCPMOcrForConditionalGeneration, MiniCPMOcrProcessor),
}
CASES = [("minicpm-v-4.6", "16x"), ("minicpm-v-4.6", "4x"), ("minicpm-v-4.7", "16x"), ("minicpm-ocr", "4x")]
TEXT = {
    "model_type": "qwen3_5_text",
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 12,
    "vocab_size": 300,
    "layer_types": ["full_attention"],
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "patch_size": 4,
    "image_size": 280,
    "layer_norm_eps": 1e-5,
}


def upstream_model(key: str, mode: str, vision=VISION, insert_layer_id=1, seed=7):
    """A small model of transformers with every weight, bias and norm random."""
    config_class, model_class, _ = UPSTREAM[key]
    ids = {"image_token_id": PAD} | (
        {"image_start_id": 1, "image_end_id": 2, "slice_start_id": 3, "slice_end_id": 4, "newline_id": 5}
        if key == "minicpm-v-4.7"
        else {}
    )
    model = model_class(
        config_class(text_config=TEXT, vision_config=vision, insert_layer_id=insert_layer_id, downsample_mode=mode, **ids)
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1 and "position" not in name:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(0.3 * noise + ("norm" in name and name.endswith("weight")))
    return model.eval()


def upstream_processor(mode: str, **options):
    return MiniCPMV4_6ImageProcessorPil(**{"patch_size": 4, "scale_resolution": 32, "downsample_mode": mode} | options)


@pytest.fixture(scope="session", params=CASES, ids=["-".join(case) for case in CASES])
def pair(request, tmp_path_factory):
    key, mode = request.param
    return save(tmp_path_factory.mktemp(key), key, mode, upstream_model(key, mode), upstream_processor(mode))


def save(folder, key, mode, model, processor):
    """A folder as transformers saves it, its model there and here, and its image processor."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if key == "minicpm-ocr":  # its own image processor, which needs torchvision, saves these
        path = folder / "preprocessor_config.json"
        saved = json.loads(path.read_text())
        path.write_text(
            json.dumps(saved | {"image_processor_type": "MiniCPMOcrImageProcessor", "small_image_upsize": "always"})
        )
    return SimpleNamespace(
        key=key,
        mode=mode,
        folder=folder,
        theirs=model,
        processor=processor,
        ours=npembed.load_model(folder),
        text=UPSTREAM[key][2],
    )


@pytest.fixture(scope="session")
def merging(tmp_path_factory):
    """The folder of 4.6 with the window merger, for tests of one case."""
    folder = tmp_path_factory.mktemp("merging")
    upstream_model("minicpm-v-4.6", "16x").save_pretrained(folder)
    upstream_processor("16x").save_pretrained(folder)
    return folder


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng([width, height]).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def processed(processor, image):
    """pixel_values (3, P, sum of L*P), target_sizes, grid as (columns, rows) or None."""
    result = processor(image, return_tensors="np")
    rows, columns = result["grids"][0]
    return result["pixel_values"][0], result["target_sizes"], (columns, rows) if rows else None


def relative(ours, theirs) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


# cutting

SIZES = [(1, 1), (1, 5000), (5000, 1), (640, 480), (448, 448), (449, 448), (1344, 1344), (1345, 1344), (3, 7), (20000, 31)]


def many_sizes(count: int) -> list[tuple[int, int]]:
    """Seeded sizes, half of them beside a place where a division rounds to the next unit."""
    draw = random.Random(46)
    sizes = list(SIZES)
    while len(sizes) < count:
        if len(sizes) % 2:
            sizes.append((draw.randint(1, 3000), draw.randint(1, 3000)))
        else:
            sizes.append(tuple(max(1, draw.choice((28, 14)) * draw.randint(0, 110) + draw.randint(-1, 1)) for _ in range(2)))
    return sizes


def upstream_sizes(size, mode: str, slice_mode: bool = True, **options):
    """tgt_sizes and grid by the image processor's own functions for sizes."""
    processor = upstream_processor(mode, patch_size=14, scale_resolution=448, **options)
    width, height = size
    grid = processor.get_sliced_grid((height, width), processor.max_slice_nums, 448) if slice_mode else None
    source = processor.find_best_resize((height, width), 448, 14, mode, allow_upscale=grid is None)
    sizes = [source]
    if grid:
        refined = processor.get_refine_size((height, width), grid, 448, 14, mode, allow_upscale=True)
        sizes += [(refined[0] // grid[0], refined[1] // grid[1])] * (grid[0] * grid[1])
    return [[h // 14, w // 14] for h, w in sizes], (grid[1], grid[0]) if grid else None


@pytest.mark.parametrize("mode", ["16x", "4x"])
def test_four_hundred_sizes_are_cut_as_transformers_cuts_them(mode):
    config = MergerConfig(downsample_mode=mode)
    grids = set()
    for size in many_sizes(400):
        plan = plan_slices(size, config.slicing, config.unit * 14)
        assert (plan.tgt_sizes.tolist(), plan.grid) == upstream_sizes(size, mode), size
        assert not (plan.tgt_sizes % config.unit).any()
        grids.add(plan.grid)
    assert len(grids) > 15


@given(st.tuples(st.integers(1, 4000), st.integers(1, 4000)), st.sampled_from(["16x", "4x"]), st.integers(1, 20))
def test_any_size_is_cut_as_transformers_cuts_it(size, mode, most):
    config = MergerConfig(downsample_mode=mode)
    plan = plan_slices(size, replace(config.slicing, max_slice_nums=most), config.unit * 14)
    assert (plan.tgt_sizes.tolist(), plan.grid) == upstream_sizes(size, mode, max_slice_nums=most)


def test_the_spec_s_example():
    assert plan_slices((640, 480), unit=56).tgt_sizes.tolist() == [[28, 36], [40, 28], [40, 28]]


PICTURES = [
    (40, 30),
    (64, 48),
    (1, 1),
    (3, 200),
    (200, 3),
    (31, 33),
    (97, 60),
    (90, 91),
    (32, 32),
    (33, 32),
    (56, 40),
    (55, 41),
]


@pytest.mark.parametrize("size", PICTURES, ids=str)
def test_pixels_sizes_and_text_equal(pair, size):
    image = picture(*size)
    pixels, sizes, grid = processed(pair.processor, image)
    strips, tgt_sizes = slice_image(image, pair.ours.config)
    assert tgt_sizes.tolist() == sizes.tolist()
    assert np.array_equal(np.concatenate(strips, axis=-1), pixels)
    slices = pair.ours.config.family.cut(image, pair.ours.config)
    assert slices.grid == grid
    assert len(slices.boxes) == len(sizes)
    for image_id in (None, 0, 3):
        came = image_placeholder(slices.grid, image_id, pair.ours.config, tgt_sizes)
        assert came == upstream_text(pair, image, image_id)


def upstream_text(pair, image, image_id, **options):
    """What the processor of the family puts in the place of a picture."""
    words = {
        "image_start_token": "<image>",
        "image_end_token": "</image>",
        "slice_start_token": "<slice>",
        "slice_end_token": "</slice>",
        "image_token": "<|image_pad|>",
        "image_id_start_token": "<image_id>",
        "image_id_end_token": "</image_id>",
    }
    fake = SimpleNamespace(**words, slice_mode=True, video_token="<|video_pad|>")
    inputs = pair.processor(image, return_tensors="np")
    text = pair.text.replace_image_token(fake, inputs, 0, image_token_divisor=4 if pair.mode == "4x" else 16)
    if image_id is None:
        return text
    sample = ["<|image_pad|>" * (image_id + 1)]
    return pair.text._prepend_local_ids(fake, sample, [""] * image_id + [text], "<|image_pad|>")[-1]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "1", "P", "CMYK"])
def test_every_mode_of_picture(pair, mode):
    image = picture(50, 41, mode)
    pixels, _, _ = processed(pair.processor, image)
    assert np.array_equal(np.concatenate(slice_image(image, pair.ours.config)[0], axis=-1), pixels)


@pytest.mark.parametrize("mode", ["P", "RGB"])
def test_a_transparent_colour_becomes_white(pair, mode):
    image = Image.new(mode, (50, 41), 3 if mode == "P" else (1, 2, 3))
    image.info["transparency"] = 3 if mode == "P" else (1, 2, 3)
    pixels, _, _ = processed(pair.processor, image)
    assert (pixels == 1).all()
    assert np.array_equal(np.concatenate(slice_image(image, pair.ours.config)[0], axis=-1), pixels)


@pytest.mark.parametrize("mode", ["16x", "4x"])
def test_other_means_and_no_slicing(mode):
    options = {"slice_mode": False, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.3, 0.2, 0.7]}
    family = FAMILIES["minicpm-v-4.6"]
    slicing = replace(family.small().slicing, slice_mode=False, mean=(0.1, 0.2, 0.3), std=(0.3, 0.2, 0.7))
    config = replace(family.small(), slicing=slicing, downsample_mode=mode)
    for size in [(200, 130), (5, 9), (33, 32)]:
        pixels, sizes, grid = processed(upstream_processor(mode, **options), picture(*size))
        strips, tgt_sizes = slice_image(picture(*size), config)
        assert grid is None
        assert tgt_sizes.tolist() == sizes.tolist()
        assert np.array_equal(np.concatenate(strips, axis=-1), pixels)


def test_sixteen_bit_greyscale_is_refused():
    image = Image.fromarray(np.zeros((9, 9), dtype=np.uint16))
    image.info["transparency"] = 3
    with pytest.raises(ValueError, match="slice_image: image has mode I;16"):
        slice_image(image, MergerConfig())


# stages

LARGE = [(8, 12), (20, 4), (12, 28), (4, 4), (4, 56), (28, 52)]


def batch(pair, sizes=LARGE, seed=0):
    """Strips of those sizes, and transformers' three results for them, one array per slice."""
    draw = np.random.default_rng(seed)
    strips = [draw.standard_normal((3, 4, h * w * 4)).astype(np.float32) for h, w in sizes]
    return strips, np.array(sizes), upstream_arrays(pair, np.concatenate(strips, axis=-1), sizes)


def upstream_arrays(pair, strips, sizes):
    """transformers' three results for those strips, end to end, one array per slice."""
    pixels, tgt_sizes = torch.tensor(strips)[None], torch.tensor(sizes)
    with torch.no_grad():
        embeddings = pair.theirs.model.vision_tower.embeddings(pixels, target_sizes=tgt_sizes)[0]
        features = pair.theirs.get_image_features(pixels, tgt_sizes)
    counts = [h * w for h, w in sizes]
    after = [count // 4 if pair.mode == "16x" else count for count in counts]
    return {
        "embeddings": np.split(embeddings.numpy(), np.cumsum(counts)[:-1]),
        "hidden": np.split(features.last_hidden_state[0].numpy(), np.cumsum(after)[:-1]),
        "tokens": [tokens.numpy() for tokens in features.pooler_output],
    }


def test_every_stage_is_transformers_within_the_promise(pair):
    strips, sizes, theirs = batch(pair)
    ours = npembed.run(strips, sizes, pair.ours)
    unit = 4 if pair.mode == "16x" else 2
    assert ours["token_counts"].tolist() == [h * w // unit**2 for h, w in sizes]
    assert ours["hidden_sizes"].tolist() == (sizes // (2 if pair.mode == "16x" else 1)).tolist()
    for stage in ("embeddings", "hidden", "tokens"):
        for own, slice_ in zip(ours[stage], theirs[stage], strict=True):
            assert relative(own[: len(slice_)], slice_) < 1e-5  # 2.1e-6 measured, in hidden
            if stage != "embeddings":
                assert not own[len(slice_) :].any()


def test_float64_is_as_near(pair):
    strips, sizes, theirs = batch(pair, [(4, 8)])
    tokens = npembed.run(strips, sizes, model_at(pair.ours, "float64"))["tokens"]
    assert tokens.dtype == np.float64
    assert relative(tokens[0], theirs["tokens"][0]) < 1e-5


def test_ids_equal(pair):
    for sizes in ([(25, 2), (49, 50)], [(55, 58), (1, 70)], [(80, 107)]):
        ids = npembed.run([np.zeros((3, 4, h * w * 4)) for h, w in sizes], sizes, pair.ours, until="embeddings")["position_ids"]
        own = np.concatenate([row[: h * w] for row, (h, w) in zip(ids, sizes, strict=True)])
        table = pair.theirs.model.vision_tower.embeddings
        weight = table.position_embedding.weight.data.clone()
        try:
            table.position_embedding.weight.data[:] = torch.arange(4900.0)[:, None]
            table.patch_embedding.bias.data, bias = torch.zeros(16), table.patch_embedding.bias.data
            with torch.no_grad():
                pixels = torch.zeros(1, 3, 4, len(own) * 4)
                assert table(pixels, target_sizes=torch.tensor(sizes))[0, :, 0].tolist() == own.tolist()
        finally:
            table.position_embedding.weight.data[:] = weight
            table.patch_embedding.bias.data = bias


def test_the_older_rule_can_be_asked_for(pair):
    strips, sizes = [np.zeros((3, 4, 100 * 4))], [(25, 4)]
    older = npembed.run(strips, sizes, pair.ours, until="embeddings", rule="arange")
    assert np.array_equal(older["position_ids"], npembed.position_ids(sizes, 70, "arange"))
    assert not np.array_equal(older["position_ids"], npembed.run(strips, sizes, pair.ours, until="embeddings")["position_ids"])


def test_a_nan_stays_in_its_slice(pair):
    strips, sizes, _ = batch(pair, [(4, 8), (8, 4)])
    whole = npembed.run(strips, sizes, pair.ours)["tokens"]
    strips[0][0, 0, 0] = np.nan
    tokens = npembed.run(strips, sizes, pair.ours)["tokens"]
    assert np.isnan(tokens[0]).all()
    assert np.array_equal(tokens[1], whole[1])


def test_a_picture_into_the_language_model(pair):
    image = picture(97, 60)
    strips, sizes = slice_image(image, pair.ours.config)
    text = f"ab{image_placeholder(pair.ours.config.family.cut(image, pair.ours.config).grid, 0, pair.ours.config, sizes)}c"
    ids = ids_of(text)
    arrays = npembed.run(strips, sizes, pair.ours)
    table = pair.theirs.get_input_embeddings().weight.detach().numpy()
    bounds = token_places(ids, pair.ours.config.image_token_id, arrays["token_counts"])
    ours = scatter_image_embeds(table[ids], arrays["tokens"], bounds, arrays["token_counts"])
    seen = {}

    class SeenError(Exception):
        pass

    def look(module, args, kwargs):
        seen["embeds"] = kwargs["inputs_embeds"][0]
        raise SeenError

    hook = pair.theirs.model.language_model.register_forward_pre_hook(look, with_kwargs=True)
    extra = {"mm_token_type_ids": (torch.tensor([ids]) == PAD).int()} if pair.key == "minicpm-v-4.7" else {}
    pixels, target_sizes = torch.tensor(np.concatenate(strips, axis=-1))[None], torch.tensor(sizes)
    try:
        with torch.no_grad(), pytest.raises(SeenError):
            pair.theirs(input_ids=torch.tensor([ids]), pixel_values=pixels, target_sizes=target_sizes, **extra)
    finally:
        hook.remove()
    assert relative(ours, seen["embeds"].numpy()) < 1e-5


def ids_of(text: str) -> list[int]:
    known = {"<image>": 1, "</image>": 2, "<slice>": 3, "</slice>": 4, "\n": 5, "<|image_pad|>": PAD}
    pieces = re.findall(r"</?(?:image|slice)>|<\|image_pad\|>|.", text, flags=re.DOTALL)
    return [known.get(piece, 7) for piece in pieces]


def test_slices_of_one_batch_may_differ_in_their_numbers_of_tokens(pair):
    strips, sizes, theirs = batch(pair, [(4, 8), (12, 16)])
    tokens = npembed.run(strips, sizes, pair.ours)["tokens"]
    assert tokens.shape[1] == len(theirs["tokens"][1]) > len(theirs["tokens"][0])


def test_sizes_that_are_no_whole_units_are_refused(pair):
    unit = pair.ours.config.unit
    bad = [[unit, unit], [unit, unit + 1]]
    strips = [np.zeros((3, 4, h * w * 4)) for h, w in bad]
    who = "encode" if pair.mode == "16x" else "merge_patches"
    message = rf"{who}: tgt_sizes\[1\] is \({unit}, {unit + 1}\); each side must be a multiple of 2 patches"
    with pytest.raises(ValueError, match=message):
        npembed.run(strips, bad, pair.ours)
    with pytest.raises(ValueError, match=rf"image_placeholder: tgt_sizes\[1\] is .* a multiple of {unit} patches"):
        image_placeholder((1, 1), None, pair.ours.config, [[unit, unit], [unit, 2 * unit - 1]])


def test_hidden_states_that_do_not_fit_are_refused(merging):
    model = npembed.load_model(merging)
    with pytest.raises(ValueError, match=r"merge_patches: hidden has 7 places, but hidden_sizes\[0\] = \(2, 4\) makes 8"):
        merge_patches(np.zeros((1, 7, 16)), [[4, 8]], model)
    with pytest.raises(
        ValueError, match=r"merge_patches: tgt_sizes\[0\] is \(2, 4\); each side must be a multiple of 4 patches"
    ):
        merge_patches(np.zeros((1, 8, 16)), [[2, 4]], model)


def test_a_connector_of_another_family_is_refused(merging, tiny):
    with pytest.raises(ValueError, match=r"merge_patches: in MiniCPM-V 2.6 this does not give the stage 'tokens'"):
        merge_patches(np.zeros((1, 4, 16)), [[2, 2]], tiny)
    with pytest.raises(ValueError, match=r"resample: in MiniCPM-V 4.6 this does not give the stage 'tokens'"):
        npembed.resample(np.zeros((1, 4, 16)), [[4, 4]], npembed.load_model(merging))


# text and places


def test_text_needs_sizes():
    config = MergerConfig()
    with pytest.raises(ValueError, match=r"image_placeholder: MiniCPM-V 4.6 needs tgt_sizes"):
        image_placeholder(None, 0, config)
    with pytest.raises(ValueError, match=r"grid \(2, 1\) makes 3 slices, but tgt_sizes has 1 rows"):
        image_placeholder((2, 1), 0, config, [[4, 4]])
    with pytest.raises(ValueError, match="grid None makes 1 slices, but tgt_sizes has 2 rows"):
        image_placeholder(None, 0, config, [[4, 4], [4, 4]])


def test_image_ids_may_be_left_out_by_the_config():
    config = MergerConfig(use_image_id=False)
    assert image_placeholder(None, 5, config, [[4, 8]]) == "<image>" + 2 * "<|image_pad|>" + "</image>"


def test_the_stage_text_is_that_of_the_picture(pair):
    image = np.asarray(picture(97, 60))
    stage = next(stage for stage in pair.ours.config.family.stages if stage.name == "text")
    values = {"picture": image, "image_id": np.array(2), "sliced_tgt_sizes": slice_image(image, pair.ours.config)[1]}
    assert set(stage.reads) == set(values)
    assert bytes(stage.call(values, pair.ours)).decode() == upstream_text(pair, picture(97, 60), 2)


counts_of_slices = st.lists(st.integers(1, 6), max_size=6)


@given(counts_of_slices, st.data())
def test_places_are_where_upstream_scatters(counts, data):
    ids = [7]
    for count in counts:
        ids += [PAD] * count + [8] * data.draw(st.integers(0, 2))
    tokens = np.zeros((len(counts), max(counts, default=1), 2))
    flat = np.arange(1.0, 2 * sum(counts) + 1).reshape(-1, 2)
    for row, count in enumerate(counts):
        start = sum(counts[:row])
        tokens[row, :count] = flat[start : start + count]
    text = np.full((len(ids), 2), -1.0)
    bounds = token_places(ids, PAD, counts)
    assert bounds.dtype == np.int64
    assert bounds.shape == (len(counts), 2)
    mask = (torch.tensor(ids) == PAD)[:, None].expand(-1, 2)
    expected = torch.tensor(text).masked_scatter(mask, torch.tensor(flat)).numpy()
    assert np.array_equal(scatter_image_embeds(text, tokens, bounds, counts), expected)


BAD_PLACES = [
    ([[PAD]], PAD, [1], r"input_ids must have shape \(T,\), not empty"),
    ([PAD, 7], PAD, [[1]], r"token_counts must have shape \(N,\); got \(1, 1\)"),
    ([PAD, 7], PAD, [1, 0], r"token_counts\[1\] is 0; a slice has at least 1 vision token"),
    ([PAD, 7], -1, [1], "image_token_id must be a whole number of at least 0; got -1"),
    ([PAD, 7], None, [1], "image_token_id must be a whole number of at least 0; got None"),
    ([PAD, PAD, 7, PAD], PAD, [2, 2], "input_ids has 3 places of id 294, but token_counts makes 4; they end in slice 1"),
    ([PAD, PAD, 7, PAD], PAD, [2], "input_ids has 3 places of id 294, but token_counts makes 2"),
    ([PAD, PAD, 7, PAD], PAD, [1, 2], "slice 1 has 2 vision tokens, but places 1 to 3 of the text, which they would take"),
    ([7], PAD, [1], "input_ids has 0 places of id 294, but token_counts makes 1; they end in slice 0"),
]


@pytest.mark.parametrize(("ids", "token", "counts", "message"), BAD_PLACES, ids=[row[3][:30] for row in BAD_PLACES])
def test_places_that_do_not_fit(ids, token, counts, message):
    with pytest.raises((ValueError, TypeError), match=message):
        token_places(ids, token, counts)


BAD_COUNTS = [
    ([2], r"token_counts must have shape \(2,\); got \(1,\)"),
    ([2, 4], r"token_counts\[1\] is 4, but vision_tokens has 3 rows per slice"),
    ([3, 2], r"image_bound\[0\] = \(0, 2\) is 2 long; a slice has 3 vision tokens"),
    ([2, 3], r"image_bound\[1\] = \(2, 4\) is 2 long; a slice has 3 vision tokens"),
]


@pytest.mark.parametrize(("counts", "message"), BAD_COUNTS, ids=[str(row[0]) for row in BAD_COUNTS])
def test_counts_that_do_not_fit(counts, message):
    with pytest.raises(ValueError, match=f"scatter_image_embeds: {message}"):
        scatter_image_embeds(np.zeros((4, 1)), np.zeros((2, 3, 1)), [[0, 2], [2, 4]], counts)


def test_the_erf_form_is_torch_s():
    x = np.linspace(-8, 8, 2001)[None].astype(np.float32)
    assert np.abs(EXACT.gelu_erf(x) - torch.nn.functional.gelu(torch.tensor(x)).numpy()).max() < 1e-6
    assert EXACT.gelu_erf(x).dtype == np.float32
    assert 1e-4 < np.abs(EXACT.gelu_erf(x) - EXACT.gelu(x)).max() < 5e-4


# configs

CHANGES = {
    "config.json": {
        "insert_layer_id": (2, "honoured"),
        "image_token_id": (9, "honoured"),
        "downsample_mode": ("8x", "fixed"),
        "merge_kernel_size": ([4, 4], "fixed"),
        "merger_times": (2, "fixed"),
        "drop_vision_last_layer": (True, "without effect"),
        "image_size": (1120, "without effect"),
        "patch_size": (99, "without effect"),
        "video_token_id": (3, "without effect"),
        "tie_word_embeddings": (True, "without effect"),
    },
    "vision_config": {
        "hidden_size": (32, "honoured"),
        "intermediate_size": (25, "honoured"),
        "num_hidden_layers": (3, "honoured"),
        "num_attention_heads": (4, "honoured"),
        "num_channels": (1, "honoured"),
        "image_size": (140, "honoured"),
        "layer_norm_eps": (1e-6, "honoured"),
        "hidden_act": ("gelu", "fixed"),
        "window_kernel_size": ([4, 4], "fixed"),
        "insert_layer_id": (3, "without effect"),
        "attention_dropout": (0.5, "without effect"),
        "model_type": ("other", "without effect"),
    },
    "text_config": {"hidden_size": (48, "honoured"), "num_hidden_layers": (9, "without effect")},
    "preprocessor_config.json": {
        "max_slice_nums": (4, "honoured"),
        "scale_resolution": (64, "honoured"),
        "slice_mode": (False, "honoured"),
        "image_mean": ([0.1, 0.2, 0.3], "honoured"),
        "image_std": ([0.1, 0.2, 0.3], "honoured"),
        "use_image_id": (False, "honoured"),
        "downsample_mode": ("8x", "fixed"),
        "do_convert_rgb": (False, "fixed"),
        "do_normalize": (False, "fixed"),
        "do_rescale": (False, "fixed"),
        "do_resize": (False, "fixed"),
        "resample": (2, "fixed"),
        "rescale_factor": (1.0, "fixed"),
        "image_processor_type": ("MiniCPMVImageProcessor", "fixed"),
        "crop": (1, "fixed"),
    },
}
FLAT_CHANGES = [(where, key, *change) for where, keys in CHANGES.items() for key, change in keys.items()]


def read_files(folder):
    names = ("config.json", "preprocessor_config.json")
    return [json.loads((folder / name).read_text()) for name in names]


def write_files(folder, top, preprocessor):
    folder.mkdir(exist_ok=True)
    for name, content in (("config.json", top), ("preprocessor_config.json", preprocessor)):
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(("where", "key", "value", "kind"), FLAT_CHANGES, ids=[f"{row[0]}-{row[1]}" for row in FLAT_CHANGES])
def test_every_key_is_honoured_or_fixed_or_without_effect(merging, tmp_path, where, key, value, kind):
    top, preprocessor = read_files(merging)
    place = {"config.json": top, "preprocessor_config.json": preprocessor}.get(where)
    (top[where] if place is None else place)[key] = value
    folder = write_files(tmp_path / "changed", top, preprocessor)
    if kind == "fixed":
        with pytest.raises(ValueError, match=rf"read_config: MiniCPM-V 4.6: {key} of {where} is"):
            read_config(folder)
    else:
        assert (read_config(folder) == read_config(merging)) == (kind == "without effect")


def test_the_table_has_every_key_that_transformers_saves(merging):
    top, preprocessor = read_files(merging)
    known = {"architectures", "dtype", "model_type", "text_config", "transformers_version", "vision_config"}
    assert set(top) - known == set(CHANGES["config.json"])
    assert set(top["vision_config"]) - {"patch_size"} == set(CHANGES["vision_config"])
    assert set(preprocessor) - {"patch_size"} == set(CHANGES["preprocessor_config.json"]) - {"crop"}


REFUSED = [
    ({"insert_layer_id": -1}, {}, "insert_layer_id must be a whole number from 0 to 3; got -1"),
    ({"insert_layer_id": 4}, {}, "insert_layer_id must be a whole number from 0 to 3; got 4"),
    (
        {"downsample_mode": "4x", "insert_layer_id": -1},
        {"downsample_mode": "4x"},
        "insert_layer_id must be .* at least 0; got -1",
    ),
    ({"downsample_mode": "4x"}, {}, "downsample_mode is '4x' by config.json but '16x' by preprocessor_config.json"),
    ({}, {"downsample_mode": "4x"}, "downsample_mode is '16x' by config.json but '4x' by preprocessor_config.json"),
    ({"downsample_mode": "16X"}, {}, "downsample_mode of config.json is '16X'; supported is '16x' or '4x'"),
    ({}, {"patch_size": 14}, "patch_size is 14 for slicing but 4 in vision_config"),
    ({}, {"small_image_upsize": "always"}, "small_image_upsize of preprocessor_config.json is 'always'; the key is not known"),
    ({"text_config": {"model_type": "llama"}}, {}, "hidden_size of text_config is missing, and its default for .* 'llama'"),
    ({"text_config": {"hidden_size": "wide"}}, {}, "hidden_size of text_config must be a whole number"),
    ({"image_token_id": -2}, {}, "image_token_id must be a whole number of at least 0"),
]


@pytest.mark.parametrize(("top", "preprocessor", "message"), REFUSED, ids=[row[2][:45] for row in REFUSED])
def test_what_is_refused(merging, tmp_path, top, preprocessor, message):
    saved = read_files(merging)
    folder = write_files(tmp_path / "bad", saved[0] | top, saved[1] | preprocessor)
    with pytest.raises((ValueError, TypeError), match=rf"read_config: MiniCPM-V 4.6: .*{message}"):
        read_config(folder)


def test_ocr_in_its_other_modes_is_refused_by_name(tmp_path):
    family = FAMILIES["minicpm-ocr"]
    top, preprocessor = family.as_json(family.small())
    for mode in ("adaptive", "never"):
        folder = write_files(tmp_path / mode, top, preprocessor | {"small_image_upsize": mode})
        message = (
            f"MiniCPM-OCR in fixed mode: small_image_upsize of preprocessor_config.json is '{mode}'; supported is 'always'"
        )
        with pytest.raises(ValueError, match=message):
            read_config(folder)


DEFAULTS = {
    "minicpm-v-4.6": (MiniCPMV4_6VisionConfig, MiniCPMV4_6Config),
    "minicpm-v-4.7": (MiniCPMV4_7VisionConfig, MiniCPMV4_7Config),
    "minicpm-ocr": (MiniCPMOcrVisionConfig, MiniCPMOcrConfig),
}


@pytest.mark.parametrize("key", list(DEFAULTS))
def test_what_is_left_out_is_the_class_s_default(tmp_path, key):
    vision_class, top_class = DEFAULTS[key]
    top = {"model_type": top_class.model_type, "vision_config": {"patch_size": 14}}
    config = read_config(write_files(tmp_path / "bare", top, {}))
    defaults, whole = vision_class(), top_class()
    assert all(getattr(config.vision, name) == getattr(defaults, name) for name in vars(config.vision) if name != "patch_size")
    assert config.downsample_mode == whole.downsample_mode
    assert (config.insert_layer_id, config.embed_dim) == (whole.insert_layer_id, whole.text_config.hidden_size)
    processor = MiniCPMV4_6ImageProcessorPil()
    for name in ("scale_resolution", "max_slice_nums", "patch_size", "slice_mode"):
        assert getattr(config.slicing, name) == getattr(processor, name)
    assert (list(config.slicing.mean), list(config.slicing.std)) == (list(processor.image_mean), list(processor.image_std))
    assert config.use_image_id == processor.use_image_id
    with pytest.raises(ValueError, match="patch_size is 14 for slicing but 16 in vision_config"):
        read_config(write_files(tmp_path / "bare", {"model_type": top_class.model_type}, {}))


def test_the_release_s_own_files(tmp_path):
    """What openbmb/MiniCPM-V-4.6 has in them, without its language model."""
    vision = {"hidden_size": 1152, "image_size": 980, "intermediate_size": 4304, "num_attention_heads": 16}
    vision |= {"num_hidden_layers": 27, "patch_size": 14, "layer_norm_eps": 1e-06, "model_type": "minicpmv4_6_vision"}
    top = {"model_type": "minicpmv4_6", "image_size": 1120, "drop_vision_last_layer": False, "vision_config": vision}
    top |= {"text_config": {"model_type": "qwen3_5_text", "hidden_size": 1024}}
    preprocessor = {"image_processor_type": "MiniCPMV4_6ImageProcessor", "processor_class": "MiniCPMV4_6Processor"}
    preprocessor |= {"max_slice_nums": 9, "scale_resolution": 448, "patch_size": 14, "use_image_id": True, "slice_mode": True}
    preprocessor |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    assert read_config(write_files(tmp_path / "release", top, preprocessor)) == MergerConfig()


@pytest.mark.parametrize("key", list(UPSTREAM))
def test_a_config_is_read_back_as_it_was_written(tmp_path, key):
    family = FAMILIES[key]
    for config in (*family.presets().values(), family.small()):
        assert read_config(write_files(tmp_path / "again", *family.as_json(config))) == config


def test_a_processor_saved_whole_counts_before_the_older_file(merging, tmp_path):
    top, preprocessor = read_files(merging)
    folder = write_files(tmp_path / "whole", top, preprocessor | {"max_slice_nums": 2})
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": preprocessor | {"max_slice_nums": 5}}))
    assert read_config(folder).slicing.max_slice_nums == 5
    assert MiniCPMV4_6ImageProcessorPil.from_pretrained(folder).max_slice_nums == 5
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "MiniCPMV4_6Processor"}))
    assert read_config(folder).slicing.max_slice_nums == 2
    assert MiniCPMV4_6ImageProcessorPil.from_pretrained(folder).max_slice_nums == 2


def test_fields_that_are_no_sizes():
    for changed, message in [
        ({"downsample_mode": "2x"}, "MergerConfig: downsample_mode must be '16x' or '4x'; got '2x'"),
        ({"vision": None}, "MergerConfig: vision must be a VisionConfig; got None"),
        ({"embed_dim": 0}, "embed_dim must be a whole number"),
        ({"slicing": npembed.SlicingConfig(patch_size=16)}, "patch_size is 16 in slicing but 14 in vision"),
        ({"insert_layer_id": 27}, "insert_layer_id must be a whole number from 0 to 26; got 27"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            MergerConfig(**changed)
    assert MergerConfig(insert_layer_id=27, downsample_mode="4x").insert_layer_id == 27


# checkpoints


def resaved(folder, tmp_path, change):
    """The folder again, its tensors changed."""
    from safetensors.numpy import load_file, save_file

    target = write_files(tmp_path / "resaved", *read_files(folder))
    save_file(change(load_file(folder / "model.safetensors")), target / "model.safetensors")
    return target


def test_a_tensor_that_no_stage_reads_is_refused(merging, tmp_path):
    for name in ("model.vision_tower.head.weight", "model.merger.mlp.1.linear_1.weight"):
        folder = resaved(merging, tmp_path, lambda arrays, name=name: arrays | {name: np.zeros(3, dtype=np.float32)})
        with pytest.raises(ValueError, match=f"load_model: .* has {name}, which no stage of MiniCPM-V 4.6 reads"):
            npembed.load_model(folder)


def test_a_model_without_its_prefix_is_refused(merging, tmp_path):
    folder = resaved(merging, tmp_path, lambda arrays: {name.removeprefix("model."): a for name, a in arrays.items()})
    with pytest.raises(ValueError, match=r"lacks model.vision_tower.embeddings.patch_embedding.weight"):
        npembed.load_model(folder)


def test_without_the_window_merger_only_the_other_mode_loads(merging, tmp_path):
    folder = resaved(merging, tmp_path, lambda arrays: {name: a for name, a in arrays.items() if "vit_merger" not in name})
    with pytest.raises(ValueError, match=r"lacks model.vision_tower.vit_merger.* which the stage 'hidden' needs"):
        npembed.load_model(folder)
    top, preprocessor = read_files(folder)
    write_files(folder, top | {"downsample_mode": "4x"}, preprocessor | {"downsample_mode": "4x"})
    assert npembed.load_model(folder).config.unit == 2


def test_a_stage_that_the_family_has_not(merging):
    with pytest.raises(ValueError, match="has no stage 'pooled'; it has embeddings, hidden, tokens"):
        npembed.load_model(merging, until="pooled")


# wrong ports: each gives something else than the reference by more than is allowed


@pytest.fixture(scope="module")
def merged(merging):
    """The model, hidden states of two slices, and how far tokens may lie from the reference."""
    model = npembed.load_model(merging)
    sizes = np.array([[8, 12], [4, 20]])
    strips = [np.random.default_rng(n).standard_normal((3, 4, h * w * 4)) for n, (h, w) in enumerate(sizes)]
    arrays = npembed.run(strips, sizes, model)
    exact = merge_patches(arrays["hidden"], sizes, model_at(model, "float64"))
    allowed = stage_allowed(arrays["tokens"], exact)
    assert (np.abs(arrays["tokens"] - exact) <= allowed).all()
    return SimpleNamespace(model=model, sizes=sizes, arrays=arrays, exact=exact, allowed=allowed, strips=strips)


def merger_with(cut=windows, act=EXACT.gelu_erf, eps=1e-6):
    """A merger that takes its windows in another way, or has another activation."""

    def port(hidden, tgt_sizes, model):
        result = np.zeros((len(hidden), max(h * w // 16 for h, w in tgt_sizes), model.config.embed_dim))
        for row, places, (h, w) in zip(result, hidden, tgt_sizes.tolist(), strict=True):
            flat = cut(places[: h * w // 4].astype(np.float64), (h // 2, w // 2)).reshape(h * w // 16, -1)
            normed = EXACT.layer_norm(flat, *model.pair(f"{MERGER}.pre_norm"), eps)
            inner = act(EXACT.linear(normed, *model.pair(f"{MERGER}.linear_1")))
            row[: len(flat)] = EXACT.linear(inner, *model.pair(f"{MERGER}.linear_2"))
        return result

    return port


WRONG_MERGERS = {
    "tanh for erf": merger_with(act=EXACT.gelu),
    "rows and columns of a window exchanged": merger_with(cut=lambda x, size: windows(x, size)[:, [0, 2, 1, 3]]),
    "rows and columns of the grid exchanged": merger_with(cut=lambda x, size: windows(x, size[::-1])),
    "four in a row for a window": merger_with(cut=lambda x, size: x.reshape(-1, 4, x.shape[1])),
    "windows column by column": merger_with(
        cut=lambda x, size: windows(x, size).reshape(size[0] // 2, size[1] // 2, 4, -1).swapaxes(0, 1)
    ),
}


def test_the_right_merger_is_within_what_is_allowed(merged):
    assert (np.abs(merger_with()(merged.arrays["hidden"], merged.sizes, merged.model) - merged.exact) <= merged.allowed).all()


@pytest.mark.parametrize("fault", list(WRONG_MERGERS))
def test_a_wrong_merger_is_too_far_away(merged, fault):
    came = WRONG_MERGERS[fault](merged.arrays["hidden"], merged.sizes, merged.model)
    assert (np.abs(came - merged.exact) > merged.allowed).any()


def test_a_merger_with_the_tower_s_eps_is_too_far_away_where_there_is_little_contrast(merged):
    faint = merged.arrays["hidden"] * np.float32(0.01)
    exact = merge_patches(faint, merged.sizes, model_at(merged.model, "float64"))
    allowed = stage_allowed(merge_patches(faint, merged.sizes, merged.model), exact)
    assert (np.abs(merger_with()(faint, merged.sizes, merged.model) - exact) <= allowed).all()
    assert (np.abs(merger_with(eps=1e-5)(faint, merged.sizes, merged.model) - exact) > allowed).any()


def wrong_tower(model, fault):
    """The hidden states of the embeddings by a tower with a fault in, or instead of, its window merger."""
    family = model.config.family
    steps = list(family.tower(model))
    place = model.config.insert_layer_id + 1

    def mean(x, size):
        return windows(x[0], size).mean(axis=1)[None], (size[0] // 2, size[1] // 2)

    def exchanged(x, size):
        rows, columns = size
        x, _ = right(x, (columns, rows))
        return x, (rows // 2, columns // 2)

    right = steps.pop(place)
    if fault == "left out, the mean for it":
        steps.insert(place, mean)
    elif fault == "one layer early":
        steps.insert(place - 1, right)
    elif fault == "after the last layer":
        steps.insert(len(steps) - 1, right)
    elif fault == "rows and columns exchanged":
        steps.insert(place, exchanged)
    else:
        steps.insert(place, right)
    if fault == "no last norm":
        steps.pop()
    return steps


@pytest.mark.parametrize(
    "fault",
    ["left out, the mean for it", "one layer early", "after the last layer", "rows and columns exchanged", "no last norm"],
)
def test_a_wrong_tower_is_too_far_away(merged, fault):
    steps = wrong_tower(merged.model, fault)
    exact = npembed.encode(merged.arrays["embeddings"], merged.sizes, model_at(merged.model, "float64"))
    allowed = stage_allowed(merged.arrays["hidden"], exact)
    right = wrong_tower(merged.model, "")
    for number, (h, w) in enumerate(merged.sizes.tolist()):
        for chain, far in ((steps, True), (right, False)):
            x, size = merged.arrays["embeddings"][[number], : h * w], (h, w)
            for step in chain:
                x, size = step(x, size)
            assert (np.abs(x[0] - exact[number, : h * w // 4]) > allowed[number]).any() == far


def test_wrong_counts_of_tokens_are_refused(merged):
    sizes = np.array([[8, 12], [16, 4]])
    right = (sizes // 4).prod(axis=1)
    text = image_placeholder((1, 1), None, merged.model.config, sizes)
    ids = ids_of(text)
    assert token_places(ids, PAD, right).shape == (2, 2)
    with pytest.raises(ValueError, match="but token_counts makes 40"):  # 16 for 4: as if there were no window merger
        token_places(ids, PAD, (sizes // 2).prod(axis=1))
    with pytest.raises(ValueError, match="slice 1 has 6 vision tokens, but places 5 to 12 of the text"):
        token_places(ids, PAD, right[[1, 0]])


def test_one_resize_too_many_gives_other_pixels():
    family = FAMILIES["minicpm-v-4.6"]
    config = family.small()
    image = picture(97, 60)
    plan = plan_slices(image.size, config.slicing, 16)
    assert plan.grid
    whole = image.resize(plan.source_size, Image.Resampling.BICUBIC)
    again = np.asarray(whole.resize(plan.refine_size, Image.Resampling.BICUBIC))
    once = np.asarray(image.resize(plan.refine_size, Image.Resampling.BICUBIC))
    strips, _ = slice_image(image, config)
    assert not np.array_equal(again, once)
    own = np.sort((np.concatenate(strips[1:], axis=-1) * 0.5 + 0.5).ravel() * 255).round().astype(np.uint8)
    assert np.array_equal(own, np.sort(once.ravel()))
    assert not np.array_equal(own, np.sort(again.ravel()))


# properties of the merger


@given(st.integers(1, 4), st.integers(1, 4))
def test_windows_are_squares_row_by_row(rows, columns):
    h, w = 2 * rows, 2 * columns
    numbers = np.arange(h * w).reshape(h, w)
    came = windows(numbers.reshape(-1, 1), (h, w))[:, :, 0]
    expected = [numbers[r : r + 2, c : c + 2].ravel() for r in range(0, h, 2) for c in range(0, w, 2)]
    assert np.array_equal(came, expected)


def test_attention_stays_in_its_window():
    draw = np.random.default_rng(3)
    q, k, v = (draw.standard_normal((3, 4, 8)) for _ in range(3))
    came = EXACT.attend_in_windows(q, k, v, heads=2)
    split = [torch.tensor(x).unflatten(-1, (2, -1)).transpose(1, 2) for x in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2).numpy()
    assert np.abs(came - expected).max() < 1e-12


@pytest.mark.parametrize("key", list(UPSTREAM))
def test_a_small_seeded_model_runs_through_every_vision_stage(key):
    family = FAMILIES[key]
    config = family.small()
    model = npembed.random_model(config, until="tokens")
    strips, sizes = slice_image(np.zeros((48, 90, 3), dtype=np.uint8), config)
    arrays = npembed.run(strips, sizes, model)
    assert arrays["tokens"].shape == (len(sizes), arrays["token_counts"].max(), config.embed_dim)
    assert family.unit(config) == config.unit

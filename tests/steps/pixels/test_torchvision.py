"""The pixels of transformers' torchvision processors, bit for bit, for each family that has one."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from npembed import FAMILIES, slice_image
from npembed.steps.patches import strip_to_picture
from tests.torchvision_alone import Job, ask

MODELS = "transformers.models"
PROCESSORS = {
    "siglip": f"{MODELS}.siglip.image_processing_siglip:SiglipImageProcessor",
    "siglip2-naflex": f"{MODELS}.siglip2.image_processing_siglip2:Siglip2ImageProcessor",
    "idefics2": f"{MODELS}.idefics2.image_processing_idefics2:Idefics2ImageProcessor",
    "idefics3": f"{MODELS}.idefics3.image_processing_idefics3:Idefics3ImageProcessor",
    "smolvlm": f"{MODELS}.smolvlm.image_processing_smolvlm:SmolVLMImageProcessor",
    "minicpm-v-4.6": f"{MODELS}.minicpmv4_6.image_processing_minicpmv4_6:MiniCPMV4_6ImageProcessor",
    "minicpm-v-4.7": f"{MODELS}.minicpmv4_6.image_processing_minicpmv4_6:MiniCPMV4_6ImageProcessor",
    "minicpm-ocr": f"{MODELS}.minicpm_ocr.image_processing_minicpm_ocr:MiniCPMOcrImageProcessor",
    "phi-4-multimodal": f"{MODELS}.phi4_multimodal.image_processing_phi4_multimodal:Phi4MultimodalImageProcessor",
}
OLDER = {"idefics3": "idefics3, bicubic", "smolvlm": "smolvlm, bicubic"}
"""Families whose pixels another rule changes: transformers takes bicubic for Lanczos where torchvision has no Lanczos."""
SIZES = [(30, 20), (64, 48), (100, 75), (75, 101), (200, 33), (41, 260), (128, 128), (333, 257)]
native_only = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="on this processor torch resizes by other arithmetic",
)


def pictures() -> list[Image.Image]:
    """Noise of many sizes, and one that must be laid on white."""
    rng = np.random.default_rng(11)
    noise = [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in SIZES]
    return [*noise, Image.fromarray(rng.integers(0, 256, (50, 90, 4), dtype=np.uint8), "RGBA")]


def as_taken(key: str) -> list[Image.Image]:
    """The pictures; NaFlex's processor converts none, so it gets those that are RGB."""
    return [picture if key != "siglip2-naflex" else picture.convert("RGB") for picture in pictures()]


def configs(key: str) -> list[Any]:
    """The small one, and those that vary other parts of it."""
    family = FAMILIES[key]
    return [family.small(), *family.variants().values()]


def options_of(config: Any) -> dict[str, Any]:
    """What the processor is made with: all that the config's preprocessor file says."""
    options = dict(config.family.as_json(config)[1])
    options.pop("image_processor_type")
    return {key: value for key, value in options.items() if key not in ("video_sampling", "small_image_upsize")}


CASES = [(key, number) for key in PROCESSORS for number in range(len(configs(key)))]


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """For each config of each family: what its processor makes of each picture by itself."""
    jobs: list[Job] = []
    for key, number in CASES:
        options = options_of(configs(key)[number])
        jobs += [(PROCESSORS[key], options, (own,), {"return_tensors": "pt"}) for own in as_taken(key)]
    for key in OLDER:
        options = options_of(configs(key)[0]) | {"resample": int(Image.Resampling.BICUBIC)}
        jobs += [(PROCESSORS[key], options, (own,), {"return_tensors": "pt"}) for own in as_taken(key)]
    answers = ask(jobs, tmp_path_factory.mktemp("torchvision"))
    each, cases = len(pictures()), [*CASES, *((name, 0) for name in OLDER.values())]
    return {case: answers[place * each : (place + 1) * each] for place, case in enumerate(cases)}


def shown(strip: Any, size: Any) -> Any:
    return strip_to_picture(strip, tuple(size))


def compare(key: str, found: dict[str, Any], strips: list[Any], sizes: Any, config: Any) -> None:
    """Every strip with upstream's arrays, which have another layout in each family."""
    side = config.vision.patch_size
    if key == "siglip":
        filled = sizes[0][0] * side
        np.testing.assert_array_equal(shown(strips[0], sizes[0]), found["pixel_values"][0][:, :filled, :filled])
    elif key == "siglip2-naflex":
        h, w = sizes[0]
        assert found["spatial_shapes"].tolist() == [[h, w]]
        patches = shown(strips[0], (h, w)).reshape(3, h, side, w, side).transpose(1, 3, 2, 4, 0).reshape(h * w, -1)
        np.testing.assert_array_equal(patches, found["pixel_values"][0][: h * w])
    elif key.startswith("minicpm"):
        assert found["target_sizes"].tolist() == sizes.tolist()
        np.testing.assert_array_equal(np.concatenate(strips, axis=2), found["pixel_values"][0])
    elif key == "phi-4-multimodal":
        compare_canvas(found, strips, sizes, side)
    else:
        assert len(strips) == found["pixel_values"].shape[1]
        for strip, (h, w), pixels in zip(strips, sizes.tolist(), found["pixel_values"][0], strict=True):
            np.testing.assert_array_equal(shown(strip, (h, w)), pixels[:, : h * side, : w * side])


def compare_canvas(found: dict[str, Any], strips: list[Any], sizes: Any, side: int) -> None:
    """Phi-4: the whole, then the canvas, of which upstream has the crops row by row."""
    pixels, unit = found["image_pixel_values"][0], 32 * side
    np.testing.assert_array_equal(shown(strips[0], sizes[0]), pixels[0])
    columns, rows = -(-int(sizes[1][1]) // 32), -(-int(sizes[1][0]) // 32)
    canvas = np.concatenate([np.concatenate(list(pixels[1 + r * columns :][:columns]), axis=2) for r in range(rows)], axis=1)
    assert canvas.shape == (3, unit * rows, unit * columns)
    h, w = sizes[1]
    np.testing.assert_array_equal(shown(strips[1], sizes[1]), canvas[:, : h * side, : w * side])


@native_only
@pytest.mark.parametrize(("key", "number"), CASES)
def test_pixels_are_those_of_the_torchvision_processor(key: str, number: int, upstream: Any) -> None:
    config = configs(key)[number]
    for picture, found in zip(as_taken(key), upstream[key, number], strict=True):
        strips, sizes = slice_image(picture, config, pixels="torchvision")
        compare(key, found, strips, sizes, config)


@native_only
@pytest.mark.parametrize("key", OLDER)
def test_pixels_are_those_of_an_older_torchvision(key: str, upstream: Any) -> None:
    config = configs(key)[0]
    for picture, found in zip(as_taken(key), upstream[OLDER[key], 0], strict=True):
        strips, sizes = slice_image(picture, config, pixels="torchvision-bicubic")
        compare(key, found, strips, sizes, config)

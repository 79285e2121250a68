"""The pixel rules: what each computes, by torch's own arithmetic, and what they refuse."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import npembed
from npembed.steps.pixels import PIXEL_RULES, fused_levels, get_pixel_rule, resize_bytes
from tests.synthetic import synthetic_picture

PHOTO = Image.fromarray(synthetic_picture(120, 90))
HALVES = (0.5, 0.5, 0.5)
SCALES = [
    (HALVES, HALVES),
    ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    ((0.0,) * 3, (1.0,) * 3),
]


def as_torch_normalises(mean, std):
    """float32 (3, 256): the arithmetic of transformers' torchvision processors, by torch."""
    means, deviations = (torch.tensor(values) * (1.0 / 0.00392156862745098) for values in (mean, std))
    bytes_ = torch.arange(256, dtype=torch.uint8).expand(3, 256).to(torch.float32)
    return ((bytes_ - means[:, None]) / deviations[:, None]).numpy()


@pytest.mark.parametrize(("mean", "std"), SCALES)
def test_levels_are_those_of_torchs_arithmetic(mean, std):
    np.testing.assert_array_equal(fused_levels(mean, std), as_torch_normalises(mean, std))


def test_half_of_the_levels_differ_from_pillows_rule_in_the_last_bit():
    plain, fused = (PIXEL_RULES[name].levels(HALVES, HALVES) for name in ("pillow", "torchvision"))
    assert (plain != fused).sum(axis=1).tolist() == [128] * 3
    assert np.abs(plain - fused).max() < 2**-23


@pytest.mark.parametrize("resample", ["BILINEAR", "BICUBIC", "LANCZOS"])
def test_each_rule_resizes_as_its_software_does(resample):
    pillow = np.asarray(PHOTO.resize((50, 40), Image.Resampling[resample]))
    found = {name: rule.resize(PHOTO, (50, 40), resample) for name, rule in PIXEL_RULES.items()}
    assert np.array_equal(found["pillow"], pillow)
    assert np.array_equal(found["torchvision"], resize_bytes(np.asarray(PHOTO), (50, 40), resample))
    assert (found["torchvision"] != pillow).any()
    older = "BICUBIC" if resample == "LANCZOS" else resample
    assert np.array_equal(found["torchvision-bicubic"], resize_bytes(np.asarray(PHOTO), (50, 40), older))


def test_the_table_says_all_of_each_rule():
    assert list(PIXEL_RULES) == ["pillow", "torchvision", "torchvision-bicubic"]
    for name, rule in PIXEL_RULES.items():
        assert rule.name == name
        assert rule.arithmetic
        assert rule.releases
    with pytest.raises(TypeError):
        PIXEL_RULES["new"] = PIXEL_RULES["pillow"]


def test_the_readme_has_a_line_for_each_rule():
    rows = [f"| `{rule.name}` | {rule.arithmetic} | {'; '.join(rule.releases)} |" for rule in PIXEL_RULES.values()]
    text = (Path(npembed.__file__).parent / "steps" / "pixels" / "README.md").read_text("utf-8")
    assert "|---|---|---|\n" + "\n".join(rows) + "\n\n" in text


def test_a_filter_that_torch_has_not_is_refused():
    for name in ("torchvision", "torchvision-bicubic"):
        with pytest.raises(
            ValueError, match=r"^slice_image: resample is NEAREST, which the pixel rules of torch have not; they "
        ):
            PIXEL_RULES[name].resize(PHOTO, (5, 5), "NEAREST")


@pytest.mark.parametrize("name", PIXEL_RULES)
def test_a_picture_too_thin_to_be_resized_is_refused(name):
    thin = Image.new("RGB", (1, 200_000))
    with pytest.raises(
        ValueError, match=r"^slice_image: a picture of 1 x 200000 pixels is too thin to be resized to 448 x 448$"
    ):
        PIXEL_RULES[name].resize(thin, (448, 448), "BICUBIC")


@pytest.mark.parametrize("name", ["torchvison", "Pillow", "", None, 3, []])
def test_an_unknown_rule_is_refused(name):
    with pytest.raises(ValueError, match=r"^f: pixels must be one of pillow, torchvision, torchvision-bicubic; got "):
        get_pixel_rule(name, "f")
    if name == "torchvison":
        with pytest.raises(ValueError, match=r"did you mean 'torchvision'\?$"):
            get_pixel_rule(name, "f")


@pytest.mark.parametrize("name", PIXEL_RULES)
def test_levels_are_shared_and_nobody_can_change_them(name):
    levels = PIXEL_RULES[name].levels(HALVES, HALVES)
    with pytest.raises(ValueError, match="read-only"):
        levels[:] = 9
    assert PIXEL_RULES[name].levels(HALVES, HALVES)[0, 0] == -1

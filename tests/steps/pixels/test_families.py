"""Which families have which pixel rule, and what a rule changes in a picture's slices: the pixels, and nothing else."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from npembed import FAMILIES, PIXEL_RULES, SlicingConfig, slice_image
from npembed.families.siglip import SiglipConfig
from tests.synthetic import synthetic_picture

WITH_A_CHOICE = (
    "minicpm-v-4.6",
    "minicpm-v-4.7",
    "minicpm-ocr",
    "siglip",
    "siglip2-naflex",
    "idefics3",
    "smolvlm",
    "idefics2",
)
OWN_PIXELS = "phi-4-multimodal"
PICTURE = Image.fromarray(synthetic_picture(150, 100))


def test_a_family_without_a_choice_refuses_another_rule_by_name() -> None:
    without = set(FAMILIES) - {*WITH_A_CHOICE, OWN_PIXELS}
    assert without == {"minicpm-v-2.5", "minicpm-v-2.6", "minicpm-v-4.0", "minicpm-v-4.5", "minicpm-o-2.6", "minicpm-o-4.5"}
    for key in without:
        config = FAMILIES[key].small()
        with pytest.raises(ValueError, match=f"^slice_image: {FAMILIES[key].title} has no pixel rule torchvision: "):
            slice_image(PICTURE, config, "torchvision")
        slice_image(PICTURE, config, "pillow")


@pytest.mark.parametrize("key", WITH_A_CHOICE)
def test_a_rule_changes_the_pixels_and_nothing_else(key: str) -> None:
    config = FAMILIES[key].small()
    cut = {name: config.family.cut(PICTURE, config, name) for name in PIXEL_RULES}
    plain = cut["pillow"]
    default = config.family.cut(PICTURE, config)
    assert all(map(np.array_equal, default.strips, plain.strips))
    for name in ("torchvision", "torchvision-bicubic"):
        assert cut[name].grid == plain.grid
        assert np.array_equal(cut[name].tgt_sizes, plain.tgt_sizes)
        assert np.array_equal(cut[name].boxes, plain.boxes)
        gaps = [np.abs(a - b).max() for a, b in zip(cut[name].strips, plain.strips, strict=True)]
        assert 0 < max(gaps) < 0.5
    same = all(map(np.array_equal, cut["torchvision"].strips, cut["torchvision-bicubic"].strips))
    assert same == (key not in ("idefics3", "smolvlm")), "bicubic stands for Lanczos"


def test_phi_4_has_its_own_pixels_under_each_rule() -> None:
    config = FAMILIES[OWN_PIXELS].small()
    strips = [slice_image(PICTURE, config, name)[0] for name in PIXEL_RULES]
    assert all(map(np.array_equal, strips[0], other) for other in strips[1:])


@pytest.mark.parametrize("key", ["idefics3", "idefics2"])
def test_what_counts_as_padding_goes_by_the_rules_own_levels(key: str) -> None:
    """Byte 51 with a mean of 0.2 is 0 in both; a mean of 0.2 + 1e-8 is in float32 the same number, 0.20000002 is not."""
    family, blank = FAMILIES[key], Image.new("RGB", (80, 80), (51, 51, 51))
    config: Any = family.small()
    part = "tiling" if key == "idefics3" else "sizing"
    own = replace(config, **{part: replace(getattr(config, part), mean=(0.2,) * 3)})
    for name, rule in PIXEL_RULES.items():
        zero = (rule.levels((0.2,) * 3, (0.5,) * 3)[:, 51] == 0).all()
        if zero:
            with pytest.raises(ValueError, match="every pixel is 0 once normalised"):
                slice_image(blank, own, name)
        else:
            assert slice_image(blank, own, name)[0]


def test_a_filter_that_torch_has_not_is_refused_under_its_rules_alone() -> None:
    base: Any = FAMILIES["siglip"].small()
    config = SiglipConfig(vision=base.vision, size=base.size, resample="HAMMING")
    slice_image(PICTURE, config)
    with pytest.raises(ValueError, match=r"^slice_image: resample is HAMMING, which the pixel rules of torch have not"):
        slice_image(PICTURE, config, "torchvision")


@pytest.mark.parametrize("name", ["torchvison", "PILLOW", "", None, 0])
def test_an_unknown_rule_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match=r"^slice_image: pixels must be one of pillow, torchvision, torchvision-bicubic; got "):
        slice_image(PICTURE, FAMILIES["siglip"].small(), name)


def test_slices_are_cut_by_the_rule_of_each_call() -> None:
    """Nothing of one call stays for the next."""
    config = FAMILIES["minicpm-v-4.6"].small()
    first = slice_image(PICTURE, config)[0]
    slice_image(PICTURE, config, "torchvision")
    assert all(map(np.array_equal, first, slice_image(PICTURE, config)[0]))
    assert SlicingConfig().max_slice_nums == 9

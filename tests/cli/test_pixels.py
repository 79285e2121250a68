"""`npembed embed` and `corpus` with `--pixels`: numbers of the pixels that a rule makes, and the rules that are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import npembed.corpus as npembed_corpus
from npembed import FAMILIES, embed, load_model, random_model, slice_image
from tests.command_line import assert_refused, done_well, metadata, npembed, saved
from tests.synthetic import synthetic_picture

PICTURE = synthetic_picture(90, 60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small checkpoint of SigLIP, and a picture."""
    family = FAMILIES["siglip"]
    model = random_model(family.small(), until="pooled")
    for name, content in zip(("config.json", "preprocessor_config.json"), family.as_json(model.config), strict=True):
        (tmp_path / name).write_text(json.dumps(content))
    save_file(dict(model.weights), tmp_path / "model.safetensors")
    saved(PICTURE, tmp_path / "picture.png")
    return tmp_path


def test_embeddings_are_of_the_pixels_that_the_rule_makes(folder: Path) -> None:
    model, found = load_model(folder), {}
    for rule in ("pillow", "torchvision"):
        out = folder / f"{rule}.safetensors"
        done_well(npembed("embed", folder / "picture.png", "--weights", folder, "--pixels", rule, "-o", out))
        found[rule] = load_file(out)["embeddings"]
        assert np.array_equal(found[rule], embed(*slice_image(PICTURE, model.config, rule), model))
    assert (found["pillow"] != found["torchvision"]).any()
    assert metadata(folder / "torchvision.safetensors")["pixels"] == "torchvision"
    assert "pixels" not in metadata(folder / "pillow.safetensors")


def test_a_corpus_is_made_by_the_rule_and_keeps_to_it(folder: Path) -> None:
    out, words = folder / "out", ("--weights", folder, "--workers", 1, "--until", "embeddings")
    done_well(npembed("corpus", folder / "picture.png", out, *words, "--pixels", "torchvision"))
    made = npembed_corpus.open(out)
    assert made.manifest["settings"]["pixels"] == "torchvision"
    model = load_model(folder)
    expected = embed(*slice_image(PICTURE, model.config, "torchvision"), model)
    found = made[str(folder / "picture.png")]["embeddings"]
    assert np.array_equal(found.reshape(expected.shape), expected)
    assert_refused(npembed("corpus", folder / "picture.png", out, *words), "was made with pixels 'torchvision', not 'pillow'")
    assert_refused(
        npembed("corpus", folder / "picture.png", folder / "b", "--pixels", "torchvision"), "has no pixel rule torch"
    )


def test_a_rule_that_is_not_there_is_refused(folder: Path) -> None:
    words = ("embed", folder / "picture.png", "-o", folder / "out.safetensors", "--pixels")
    assert_refused(npembed(*words, "torch", "--weights", folder), "embed: pixels must be one of pillow, torchvision, ")
    assert_refused(npembed(*words, "torchvision"), "embed: MiniCPM-V 2.6 has no pixel rule torchvision: ")
    assert not (folder / "out.safetensors").exists()

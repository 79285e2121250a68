"""A family that nobody has released, made here: what the house promises of a family holds of it, and no source is touched.

It shows what a family costs: a module's worth of code with one subclass, and one line in the table. It has a tower under a
name of its own, another position rule, pictures that are not cut, and after the hidden states a stage of its own, `norms`,
in place of a connector.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import npembed.families
from npembed import (
    FAMILIES,
    Model,
    VisionConfig,
    embed,
    encode,
    image_placeholder,
    load_model,
    position_ids,
    random_model,
    read_config,
    run,
    slice_image,
)
from npembed.conformance import check_outputs, failed, first_departing, read_pack, write_pack
from npembed.families.keys import Json, Keys
from npembed.families.tower import SiglipTower
from npembed.records.config import FamilyConfig, SlicingConfig
from npembed.records.family import Family, Promise, Slices, Stage, Step
from npembed.steps.pixels import PixelRule
from npembed.steps.pixels.strips import as_rgb
from npembed.steps.stages import BEFORE_THE_TOWER, EMBEDDINGS, HIDDEN, TEXT, join
from npembed.support.output_files import load_tensors, save_tensors
from npembed.support.typing import Floats, Ids, Shapes, Size
from tests.command_line import assert_refused, done_well, metadata, state
from tests.command_line import npembed as command
from tests.synthetic import synthetic_picture

# The family's module


@dataclass(frozen=True)
class LatticeConfig(FamilyConfig):
    """Sizes, and what the norms are multiplied with beside their array."""

    vision: VisionConfig
    family: Family
    factor: float = 1.0
    embed_dim: int = 1


def norms(hidden: Floats, tgt_sizes: Ids, model: Model) -> Floats:
    """(B, Lmax, D), (B, 2) -> (B, Lmax, 1): each place's weighted length; -1 in padded places."""
    weighted = np.asarray(hidden).astype(model.dtype) * model.weights["gauge.weight"]
    factor = model.dtype.type(model.config.factor)  # type: ignore[attr-defined]
    lengths = np.sqrt((weighted * weighted).sum(axis=2, keepdims=True)) * factor
    places = np.arange(lengths.shape[1]) < np.asarray(tgt_sizes).prod(axis=1)[:, None]
    return np.where(places[..., None], lengths, model.dtype.type(-1))


def norms_shapes(config: LatticeConfig) -> Shapes:
    return {"gauge.weight": (config.vision.hidden_size,)}


NORMS = Stage(
    name="norms",
    function=norms,
    takes=("hidden", "tgt_sizes", "model"),
    arrays=norms_shapes,
    sizes=lambda tgt_sizes, config: tgt_sizes,
    padding=lambda model, tgt_sizes: -1.0,
    companions=lambda tgt_sizes, config: {"norm_counts": tgt_sizes.prod(axis=1)},
    promise=Promise.DISTANCE,
)


class Lattice(SiglipTower):
    key, title, model_types = "lattice", "Lattice 1", ("lattice",)
    cuts_by_config = True
    prefix = "eyes."
    owns = ("eyes.", "gauge.")
    rule = "quotient"
    stages = (*BEFORE_THE_TOWER, EMBEDDINGS, HIDDEN, NORMS, TEXT)
    checked = "nothing but itself"

    def read_config(self, top: Json, preprocessor: Json) -> LatticeConfig:
        config, processor = Keys(top, "config.json"), Keys(preprocessor, "preprocessor_config.json")
        vision = config.section("vision_config")
        sizes = vision.given(**{f.name: f.name for f in fields(VisionConfig)})
        vision.finish()
        factor = config.value("factor", 1.0)
        config.without_effect("model_type")
        config.finish()
        processor.finish()
        return LatticeConfig(vision=VisionConfig(**sizes), factor=factor, family=self)

    def as_json(self, config: LatticeConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"model_type": "lattice", "factor": config.factor, "vision_config": asdict(config.vision)}, {}

    def presets(self) -> Mapping[str, LatticeConfig]:
        return {"Lattice 1": LatticeConfig(vision=VisionConfig(), family=self)}

    def small(self) -> LatticeConfig:
        sizes = VisionConfig(
            hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, patch_size=4, image_size=280
        )
        return LatticeConfig(vision=sizes, family=self, factor=2.5)

    def slices(self, picture: Any, config: LatticeConfig, rule: PixelRule) -> Slices:
        """The whole picture, at the nearest size of whole patches."""
        image, side = as_rgb(picture), config.vision.patch_size
        columns, rows = (max(round(length / side), 1) for length in image.size)
        pixels = rule.resize(image, (columns * side, rows * side), "BICUBIC")
        strip = rule.strip(pixels, side, SlicingConfig())
        return Slices([strip], np.array([[rows, columns]]), np.array([[0.0, 0.0, *image.size]]))

    def tower(self, model: Model) -> Sequence[Step]:
        """Every layer, the last norm, and then each place as far from the slice's mean as it is."""

        def centre(x: Floats, size: Size) -> tuple[Floats, Size]:
            return x - x.mean(axis=0), size

        return [*super().tower(model), centre]

    def placeholder(self, grid: Size | None, image_id: int | None, config: LatticeConfig, tgt_sizes: Ids | None = None) -> str:
        return f"<picture {image_id}>"


LATTICE = Lattice()

# What a family must be given by the house


SIZES = [[2, 3], [1, 1], [25, 1]]
"""At 25 patches `quotient` gives other ids than `arange`."""


@pytest.fixture
def lattice(monkeypatch: pytest.MonkeyPatch) -> Family:
    """The family, with its line in the table."""
    table = MappingProxyType({**FAMILIES, LATTICE.key: LATTICE})
    for place in ("npembed.families.FAMILIES", "npembed.cli.common.FAMILIES"):
        monkeypatch.setattr(place, table)
    return LATTICE


@pytest.fixture
def model(lattice: Family) -> Model:
    return random_model(lattice.small(), seed=5, until="norms")


def save(folder: Path, model: Model, **changed: Any) -> Path:
    """A checkpoint's folder, with some keys of config.json changed."""
    folder.mkdir()
    top, _ = LATTICE.as_json(model.config)  # type: ignore[arg-type]
    (folder / "config.json").write_text(json.dumps(top | changed))
    save_tensors(folder / "model.safetensors", model.weights, {})
    return folder


@pytest.fixture
def folder(model: Model, tmp_path: Path) -> Path:
    return save(tmp_path / "weights", model)


@pytest.fixture
def strips() -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((3, 4, h * w * 4)).astype(np.float32) for h, w in SIZES]


def test_it_is_recognised_and_its_folder_read(folder: Path, model: Model) -> None:
    assert read_config(folder) == model.config
    loaded = load_model(folder)
    assert loaded.config == model.config
    assert set(loaded.weights) == set(model.weights)
    assert all(np.array_equal(loaded.weights[name], model.weights[name]) for name in model.weights)
    assert repr(loaded) == "Model(hidden_size=8, num_patches_per_side=70, float32, stages: embeddings, hidden, norms)"


def test_without_its_line_it_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "weights", random_model(LATTICE.small(), until="norms"))
    with pytest.raises(ValueError, match=r"load_model: config\.json has model_type 'lattice', which is not supported"):
        load_model(path)


def test_only_what_is_asked_for_is_read(folder: Path, model: Model) -> None:
    names = {until: set(load_model(folder, until).weights) for until in ("embeddings", "hidden", "norms")}
    assert names["norms"] - names["hidden"] == {"gauge.weight"}
    assert names["embeddings"] < names["hidden"]
    assert all(name.startswith("eyes.") for name in names["hidden"])


def test_what_no_stage_of_it_reads_is_refused_by_name(model: Model, tmp_path: Path) -> None:
    more = Model(model.config, model.weights | {"gauge.bias": np.ones(8, dtype=np.float32)})
    with pytest.raises(ValueError, match=r"has gauge\.bias, which no stage of Lattice 1 reads; so it is refused"):
        load_model(save(tmp_path / "more", more))
    lacking = Model(model.config, {name: array for name, array in model.weights.items() if name != "gauge.weight"})
    with pytest.raises(ValueError, match=r"lacks gauge\.weight, which the stage 'norms' needs; until='hidden' still works"):
        load_model(save(tmp_path / "lacking", lacking), "norms")
    with pytest.raises(ValueError, match=r"Lattice 1: colour of config\.json is 'blue'; the key is not known here"):
        load_model(save(tmp_path / "key", model, colour="blue"))


def test_run_goes_through_its_stages(model: Model, strips: list[NDArray[np.float32]]) -> None:
    found = run(strips, SIZES, model)
    embeddings = embed(strips, SIZES, model)
    hidden = encode(embeddings, SIZES, model)
    expected = {
        "embeddings": embeddings,
        "hidden": hidden,
        "norms": norms(hidden, np.array(SIZES), model),
        "position_ids": position_ids(SIZES, rule="quotient"),
        "hidden_sizes": np.array(SIZES),
        "norm_counts": np.array([6, 1, 25]),
    }
    assert list(found)[:3] == ["embeddings", "hidden", "norms"]
    assert set(found) == set(expected) | {"patch_attn_mask", "tgt_sizes"}
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert not np.array_equal(found["embeddings"], embed(strips, SIZES, model, "arange")), "its own rule, not another's"
    np.testing.assert_allclose(found["hidden"][0, :6].mean(axis=0), 0, atol=1e-6)
    assert set(run(strips, SIZES, model, "hidden")) == set(found) - {"norms", "norm_counts"}
    with pytest.raises(ValueError, match=r"^run: Lattice 1 has no stage 'tokens'; it has embeddings, hidden, norms$"):
        run(strips, SIZES, model, "tokens")


@pytest.mark.parametrize("until", ["embeddings", "hidden", "norms"])
def test_several_calls_are_joined_as_one(until: str, model: Model, strips: list[NDArray[np.float32]]) -> None:
    at_once = run(strips, SIZES, model, until)[until]
    parts = [run([strip], [size], model, until)[until] for strip, size in zip(strips, SIZES, strict=True)]
    joined = join(model.config.family.stage(until, "test"), parts, model, np.array(SIZES))
    assert joined.shape == at_once.shape
    np.testing.assert_allclose(joined, at_once, rtol=0, atol=1e-5)
    padding = np.arange(25) >= np.prod(SIZES, axis=1)[:, None]
    assert np.array_equal(joined[padding], at_once[padding])
    assert until != "norms" or (joined[padding] == -1).all()


def test_pictures_and_text_are_its_own(model: Model) -> None:
    strips, tgt_sizes = slice_image(synthetic_picture(61, 30), model.config)  # type: ignore[arg-type]
    assert (len(strips), tgt_sizes.tolist()) == (1, [[8, 15]])
    assert image_placeholder(None, 3, model.config) == "<picture 3>"


# Packs


@pytest.fixture
def pack(model: Model, tmp_path: Path) -> Path:
    write_pack(tmp_path / "pack", model)
    return tmp_path / "pack"


def test_a_pack_has_its_stages_and_takes_its_own_answers(pack: Path) -> None:
    read = read_pack(pack)
    assert read.manifest["rule"] == "quotient"
    stages = [stage["stage"] for stage in read.manifest["cases"][0]["stages"]]
    assert stages == [stage.name for stage in LATTICE.stages]
    outcomes = check_outputs(read, pack)
    assert not failed(outcomes)
    others = {case["name"]: [stage["stage"] for stage in case["stages"]] for case in read.manifest["cases"]}
    others = {name: own for name, own in others.items() if own != stages}
    assert others == {
        "every-n": ["bucket_coords"],
        "masked": ["masked_position_ids"],
        "nan-in-embeddings": ["hidden"],
        "nan-in-hidden": ["norms"],
    }
    assert len(outcomes) == (len(read.manifest["cases"]) - 4) * len(stages) + 4


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_pack_takes_another_computation_of_the_same(precision: str, pack: Path, model: Model, tmp_path: Path) -> None:
    at = Model(model.config, {name: array.astype(precision) for name, array in model.weights.items()})
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    read = read_pack(pack)
    for case in read.manifest["cases"]:
        given, told = read.tensors(case["input"]), [stage["stage"] for stage in case["stages"]]
        values: dict[str, Any] = dict(given)
        for stage in LATTICE.stages:
            if stage.name in told:
                values[stage.name] = stage.call(values, at)
        save_tensors(outputs / case["expected"], {name: values[name] for name in values if name not in given}, {})
    assert not failed(check_outputs(read, outputs, stages=[stage.name for stage in LATTICE.stages]))


def _edited(stage: str, change: Callable[[NDArray[Any]], NDArray[Any]], pack: Path, outputs: Path) -> Path:
    """The pack's own answers, with one stage's changed in every case."""
    outputs.mkdir()
    for case in read_pack(pack).manifest["cases"]:
        tensors = load_tensors(pack / case["expected"])
        changed = {stage: change(tensors[stage])} if stage in tensors else {}
        save_tensors(outputs / case["expected"], tensors | changed, {})
    return outputs


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("position_ids", lambda ids: ids + (ids == ids.max())),
        ("embeddings", lambda embeddings: embeddings * np.float32(1.001)),
        ("hidden", lambda hidden: hidden + np.float32(0.01)),
        ("norms", lambda norms: norms * np.float32(1.001)),
        ("norms", lambda norms: np.where(norms < 0, np.float32(0), norms)),
        ("text", lambda text: text[::-1]),
    ],
)
def test_a_pack_names_the_stage_that_departs(stage: str, change: Any, pack: Path, tmp_path: Path) -> None:
    outcomes = check_outputs(read_pack(pack), _edited(stage, change, pack, tmp_path / "outputs"))
    assert first_departing(read_pack(pack), outcomes) == stage


# The command line


def test_the_command_line_embeds_with_it(folder: Path, model: Model, here: Path) -> None:
    pictures = [synthetic_picture(61, 30), synthetic_picture(12, 40)]
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(f"{number}.png")
    out = done_well(command("embed", "0.png", "1.png", "--weights", folder, "--until", "norms"))
    assert out.startswith(f"npembed {npembed.__version__}, Lattice 1, rule quotient, weights: {folder}\n")
    assert "\n0.png: 61×30 pixels, no grid, slices 8×15, 120 patches, " in out
    assert out.endswith("\nnorms (2, 120, 1) float32 is in norms.safetensors\n")
    found = load_tensors("norms.safetensors")
    slices = [LATTICE.cut(picture, model.config) for picture in pictures]
    each = [run(one.strips, one.tgt_sizes, model) for one in slices]
    assert np.array_equal(found["norms"], join(NORMS, [one["norms"] for one in each], model, np.array([[8, 15], [10, 3]])))
    assert found["tgt_sizes"].tolist() == found["hidden_sizes"].tolist() == [[8, 15], [10, 3]]
    assert found["norm_counts"].tolist() == [120, 30]
    assert found["slice_boxes"].tolist() == [[0, 0, 61, 30], [0, 0, 12, 40]]
    assert np.array_equal(found["position_ids"], position_ids([[8, 15], [10, 3]], rule="quotient"))
    said = metadata(Path("norms.safetensors"))
    assert (said["family"], said["stage"], said["rule"]) == ("lattice", "norms", "quotient")


def test_a_rule_can_be_asked_for(folder: Path, here: Path) -> None:
    Image.fromarray(synthetic_picture(100, 4)).save("long.png")
    for rule in ("quotient", "arange"):
        done_well(command("embed", "long.png", "--weights", folder, "--rule", rule, "-o", f"{rule}.npz"))
        assert np.array_equal(load_tensors(f"{rule}.npz")["position_ids"], position_ids([[1, 25]], rule=rule))


def test_its_stages_are_its_own(folder: Path, weights: Path, here: Path) -> None:
    before = state(here)
    for path, until, title in ((folder, "tokens", "Lattice 1"), (weights, "norms", "MiniCPM-V 2.6")):
        refused = command("embed", "--weights", path, "--until", until)
        assert_refused(refused, f"load_model: {title} has no stage '{until}'; it has embeddings, hidden, ")
    assert state(here) == before


def test_the_command_line_writes_and_checks_its_packs(folder: Path, here: Path) -> None:
    done_well(command("golden", "write", "pack", "--weights", folder))
    *lines, verdict = done_well(command("golden", "check", "pack", "pack")).splitlines()
    norms_row = next(line for line in lines if line.startswith("norms "))
    having = [case for case in read_pack("pack").manifest["cases"] if "norms" in [each["stage"] for each in case["stages"]]]
    assert norms_row.split()[1:] == ["."] * len(having)
    assert verdict.startswith("pack agrees with the reference: ")

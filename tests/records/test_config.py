"""The sizes: what they may be, and how a checkpoint's folder states them."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from npembed import FAMILIES, MINICPM_V_2_6, Config, SlicingConfig, VisionConfig, read_config

STATED = {"model_type": "minicpmv", "version": 2.6, "drop_vision_last_layer": False}
"""What a config.json must say of itself."""


def folder(path: Path, config: Any = None, preprocessor: Any = None) -> Path:
    """A checkpoint's folder with these two files, config.json with what it must say; text is written as it is."""
    path.mkdir(exist_ok=True)
    config = STATED | config if isinstance(config, dict) else config
    for name, content in (("config.json", config), ("preprocessor_config.json", preprocessor)):
        if content is not None:
            (path / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


# The preset


def test_the_preset_is_minicpm_v_2_6() -> None:
    sizes = {field.name: getattr(MINICPM_V_2_6, field.name) for field in dataclasses.fields(MINICPM_V_2_6)}
    assert sizes.pop("family") is FAMILIES["minicpm-v-2.6"]
    assert sizes | {name: dataclasses.asdict(sizes[name]) for name in ("vision", "slicing")} == {
        "vision": {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "num_channels": 3,
            "image_size": 980,
            "patch_size": 14,
            "layer_norm_eps": 1e-6,
        },
        "slicing": {
            "scale_resolution": 448,
            "max_slice_nums": 9,
            "patch_size": 14,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "slice_mode": True,
        },
        "query_num": 64,
        "embed_dim": 3584,
        "drop_vision_last_layer": False,
        "use_image_id": True,
    }
    assert MINICPM_V_2_6.vision.num_patches_per_side == 70
    assert MINICPM_V_2_6.resampler_heads == 28
    assert MINICPM_V_2_6.encoder_layers == 27
    assert Config() == MINICPM_V_2_6


def test_what_follows_from_the_sizes() -> None:
    assert Config(drop_vision_last_layer=True).encoder_layers == 26
    assert Config(embed_dim=256).resampler_heads == 2
    assert VisionConfig(image_size=995).num_patches_per_side == 71
    assert VisionConfig(image_size=993).num_patches_per_side == 70


def test_a_config_cannot_be_changed_and_can_be_a_key() -> None:
    for config in (Config(), VisionConfig(), SlicingConfig(mean=[0.5, 0.5, 0.5])):  # type: ignore[arg-type]
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.patch_size = 3  # type: ignore[union-attr, misc]
        assert len({config, dataclasses.replace(config)}) == 1


# What a size may be


@pytest.mark.parametrize(
    ("kind", "name"),
    [(VisionConfig, field.name) for field in dataclasses.fields(VisionConfig) if field.name != "layer_norm_eps"]
    + [(SlicingConfig, name) for name in ("scale_resolution", "max_slice_nums", "patch_size")]
    + [(Config, name) for name in ("query_num", "embed_dim")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_sizes_are_whole_numbers_of_at_least_one(kind: type, name: str) -> None:
    for value, error in (
        (0, ValueError),
        (-3, ValueError),
        (1.5, TypeError),
        (14.0, TypeError),
        ("3", TypeError),
        (True, TypeError),
    ):
        most = 4096 if name == "scale_resolution" else 1048576
        with pytest.raises(error, match=rf"^{kind.__name__}: {name} must be a whole number from 1 to {most}; got {value!r}$"):
            kind(**{name: value})


WRONG: list[tuple[Any, dict[str, Any], type, str]] = [
    (VisionConfig, {"num_attention_heads": 7}, ValueError, "hidden_size 1152 must be a multiple of num_attention_heads 7"),
    (VisionConfig, {"image_size": 13}, ValueError, "image_size // patch_size must be from 1 to 32768; got 13 // 14"),
    (
        VisionConfig,
        {"image_size": 32_769, "patch_size": 1},
        ValueError,
        "image_size // patch_size must be from 1 to 32768; got 32769 // 1",
    ),
    (VisionConfig, {"layer_norm_eps": 0}, ValueError, "layer_norm_eps must lie between 0 and 1; got 0"),
    (VisionConfig, {"layer_norm_eps": 1.0}, ValueError, "layer_norm_eps must lie between 0 and 1; got 1.0"),
    (VisionConfig, {"layer_norm_eps": math.nan}, ValueError, "layer_norm_eps must lie between 0 and 1; got nan"),
    (VisionConfig, {"layer_norm_eps": "1e-6"}, TypeError, "layer_norm_eps must be a number; got '1e-6'"),
    (VisionConfig, {"layer_norm_eps": True}, TypeError, "layer_norm_eps must be a number; got True"),
    (SlicingConfig, {"mean": (0.5, 0.5)}, ValueError, "mean must be three numbers, one per channel; got (0.5, 0.5)"),
    (SlicingConfig, {"mean": 0.5}, ValueError, "mean must be three numbers, one per channel; got 0.5"),
    (SlicingConfig, {"std": "abc"}, ValueError, "std must be three numbers, one per channel; got 'abc'"),
    (SlicingConfig, {"std": (1, 1, "1")}, TypeError, "std must be three numbers, one per channel; got (1, 1, '1')"),
    (SlicingConfig, {"mean": (1, 1, True)}, TypeError, "mean must be three numbers, one per channel; got (1, 1, True)"),
    (SlicingConfig, {"std": (1, 0, 1)}, ValueError, "std must be at least 1e-06; got (1.0, 0.0, 1.0)"),
    (SlicingConfig, {"std": (1, -1, 1)}, ValueError, "std must be at least 1e-06; got (1.0, -1.0, 1.0)"),
    (SlicingConfig, {"std": (9e-7, 1, 1)}, ValueError, "std must be at least 1e-06; got (9e-07, 1.0, 1.0)"),
    (SlicingConfig, {"slice_mode": 0}, TypeError, "slice_mode must be true or false; got 0"),
    (SlicingConfig, {"std": (1, math.nan, 1)}, ValueError, "std must be finite; got (1, nan, 1)"),
    (SlicingConfig, {"mean": (1, 1, math.inf)}, ValueError, "mean must be finite; got (1, 1, inf)"),
    (Config, {"embed_dim": 100}, ValueError, "embed_dim must be a multiple of 128; got 100"),
    (Config, {"vision": {}}, TypeError, "vision must be a VisionConfig; got {}"),
    (Config, {"slicing": None}, TypeError, "slicing must be a SlicingConfig; got None"),
    (Config, {"drop_vision_last_layer": 1}, TypeError, "drop_vision_last_layer must be a bool; got 1"),
    (Config, {"use_image_id": None}, TypeError, "use_image_id must be a bool; got None"),
    (Config, {"family": "minicpm-v-2.6"}, TypeError, "family must be a Family; got 'minicpm-v-2.6'"),
]


@pytest.mark.parametrize(("kind", "sizes", "error", "message"), WRONG, ids=[row[3] for row in WRONG])
def test_sizes_that_are_none_are_refused(kind: Any, sizes: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=f"^{kind.__name__}: {re.escape(message)}$"):
        kind(**sizes)


# A checkpoint's folder


def test_the_tiny_checkpoints_sizes(data: Path) -> None:
    config = read_config(data / "tiny-minicpmv")
    assert config == read_config(str(data / "tiny-minicpmv"))
    assert config == Config(
        vision=VisionConfig(hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4),
        query_num=64,
        embed_dim=256,
    )
    assert config.vision.num_patches_per_side == 70  # not the 448 at the top of config.json


def test_what_no_file_gives_is_minicpm_v_2_6s(tmp_path: Path) -> None:
    assert read_config(folder(tmp_path, {})) == MINICPM_V_2_6
    assert read_config(folder(tmp_path, {"vision_config": None, "query_num": None, "slice_config": None})) == MINICPM_V_2_6


def test_the_preset_and_its_files_are_each_others(tmp_path: Path) -> None:
    for family in FAMILIES.values():
        for config in (*family.presets().values(), family.small()):
            assert read_config(folder(tmp_path, *family.as_json(config))) == config


TOP = {"image_size": 300, "slice_config": {"scale_resolution": 200, "max_slice_nums": 4, "patch_size": 14}}
READ: list[tuple[dict[str, Any], dict[str, Any] | None, SlicingConfig]] = [
    ({"image_size": 300}, None, SlicingConfig(scale_resolution=300)),
    (TOP, None, SlicingConfig(scale_resolution=200, max_slice_nums=4)),
    (TOP, {"max_slice_nums": 6}, SlicingConfig(scale_resolution=200, max_slice_nums=6)),
    (TOP, {"scale_resolution": 100, "max_slice_nums": 2}, SlicingConfig(scale_resolution=100, max_slice_nums=2)),
    ({"image_size": 300}, {"scale_resolution": 100}, SlicingConfig(scale_resolution=100)),
    ({}, {"norm_mean": [0, 0.5, 1], "norm_std": [1, 2, 3]}, SlicingConfig(mean=(0.0, 0.5, 1.0), std=(1.0, 2.0, 3.0))),
    ({}, {"image_mean": [0, 0.5, 1], "image_std": [1, 2, 3]}, SlicingConfig(mean=(0.0, 0.5, 1.0), std=(1.0, 2.0, 3.0))),
    ({}, {"norm_mean": [0.1, 0.5, 1], "image_mean": [0.1, 0.5, 1]}, SlicingConfig(mean=(0.1, 0.5, 1.0))),
    ({}, {"scale_resolution": None}, SlicingConfig()),
    ({"slice_mode": False}, None, SlicingConfig(slice_mode=False)),
    ({}, {"slice_mode": False, "max_slice_nums": 9}, SlicingConfig(slice_mode=False)),
    ({"slice_mode": False}, {"slice_mode": True}, SlicingConfig()),
    ({"slice_mode": True}, {"slice_mode": False}, SlicingConfig(slice_mode=False)),
    ({"slice_mode": True}, {"max_slice_nums": 3}, SlicingConfig(max_slice_nums=3)),
]


@pytest.mark.parametrize(("config", "preprocessor", "slicing"), READ)
def test_which_file_wins(config: dict[str, Any], preprocessor: Any, slicing: SlicingConfig, tmp_path: Path) -> None:
    assert read_config(folder(tmp_path, config, preprocessor)) == Config(slicing=slicing)


@pytest.mark.parametrize(("older", "processor", "patch_size"), [(None, None, 14), (10, None, 10), (14, 10, 10), (None, 10, 10)])
def test_which_files_patch_size_wins(older: Any, processor: Any, patch_size: int, tmp_path: Path) -> None:
    config = {"slice_config": {"patch_size": older}}
    sizes = {"vision_config": {"patch_size": patch_size, "image_size": 70 * patch_size}}
    found = read_config(folder(tmp_path, config | sizes, {"patch_size": processor}))
    assert (found.slicing.patch_size, found.vision.patch_size) == (patch_size, patch_size)
    other = {"vision_config": {"patch_size": patch_size + 1}}
    with pytest.raises(ValueError, match=f"patch_size is {patch_size} for slicing but {patch_size + 1} in vision_config"):
        read_config(folder(tmp_path, config | other, {"patch_size": processor}))


@pytest.mark.parametrize("value", [0, "no", []])
def test_a_slice_mode_that_is_neither_true_nor_false_is_refused(value: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^read_config: .* slice_mode must be true or false; got .* \(in "):
        read_config(folder(tmp_path, {"slice_mode": value}))


def test_the_vision_tower_is_read_from_its_own_section(tmp_path: Path) -> None:
    vision = {field.name: getattr(VisionConfig(), field.name) * 2 for field in dataclasses.fields(VisionConfig)}
    top = {
        "hidden_size": 128,
        "query_num": 5,
        "drop_vision_last_layer": True,
        "image_size": 77,
        "slice_config": {"patch_size": vision["patch_size"]},
        "vision_config": vision,
    }
    assert read_config(folder(tmp_path, top)) == Config(
        vision=VisionConfig(**vision),
        slicing=SlicingConfig(scale_resolution=77, patch_size=28),
        query_num=5,
        embed_dim=128,
        drop_vision_last_layer=True,
    )


def test_names_with_spaces_and_other_letters(tmp_path: Path) -> None:
    assert read_config(folder(tmp_path / "мой model 模型", {"query_num": 3})).query_num == 3


@pytest.mark.parametrize("where", ["nothing", "a file", "an empty folder"])
def test_a_folder_without_config_json_is_refused(where: str, tmp_path: Path) -> None:
    path = tmp_path / where
    if where == "a file":
        path.write_text("{}")
    elif where == "an empty folder":
        path.mkdir()
    words = "has no config.json" if where == "an empty folder" else "is not a folder, [^\n]+"
    with pytest.raises(ValueError, match=f"^read_config: {re.escape(str(path))} {words}$"):
        read_config(path)


@pytest.mark.parametrize("content", ["", "{", "{'a': 1}", "not json", "\x00"])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_file_that_is_no_json_is_refused(content: str, name: str, tmp_path: Path) -> None:
    path = folder(tmp_path, {}) / name
    path.write_text(content)
    with pytest.raises(ValueError, match=f"^read_config: {re.escape(str(path))} cannot be read as JSON: "):
        read_config(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"config\.json cannot be read as JSON: 'utf-8' codec"):
        read_config(tmp_path)


def test_a_preprocessor_config_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (folder(tmp_path, {}) / "preprocessor_config.json").mkdir()
    with pytest.raises(ValueError, match=r"preprocessor_config\.json is a folder, not a file$"):
        read_config(tmp_path)


@pytest.mark.parametrize(("content", "kind"), [("[]", "list"), ("3", "int"), ("null", "NoneType"), ('"{}"', "str")])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_json_that_is_no_object_is_refused(content: str, kind: str, name: str, tmp_path: Path) -> None:
    path = folder(tmp_path, {}) / name
    path.write_text(content)
    with pytest.raises(ValueError, match=f"^read_config: {re.escape(str(path))} must hold a JSON object; got {kind}$"):
        read_config(tmp_path)


WRONG_FILES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"vision_config": 3}, {}, "vision_config of config.json must be a JSON object; got 3"),
    ({"slice_config": [1]}, {}, "slice_config of config.json must be a JSON object; got [1]"),
    (
        {"vision_config": {"num_hidden_layers": 10**20}},
        {},
        "VisionConfig: num_hidden_layers must be a whole number from 1 to 1048576; got 100000000000000000000",
    ),
    ({"query_num": 0}, {}, "Config: query_num must be a whole number from 1 to 1048576; got 0"),
    ({"query_num": "64"}, {}, "Config: query_num must be a whole number from 1 to 1048576; got '64'"),
    ({"hidden_size": 100}, {}, "Config: embed_dim must be a multiple of 128; got 100"),
    ({"drop_vision_last_layer": "no"}, {}, "Config: drop_vision_last_layer must be a bool; got 'no'"),
    (
        {"vision_config": {"patch_size": 14.5}},
        {},
        "VisionConfig: patch_size must be a whole number from 1 to 1048576; got 14.5",
    ),
    ({"vision_config": {"layer_norm_eps": []}}, {}, "VisionConfig: layer_norm_eps must be a number; got []"),
    ({"image_size": {}}, {}, "SlicingConfig: scale_resolution must be a whole number from 1 to 4096; got {}"),
    ({}, {"max_slice_nums": -1}, "SlicingConfig: max_slice_nums must be a whole number from 1 to 1048576; got -1"),
    ({}, {"norm_mean": [0.5]}, "SlicingConfig: mean must be three numbers, one per channel; got [0.5]"),
    ({}, {"norm_std": [1, 1, 0]}, "SlicingConfig: std must be at least 1e-06; got (1.0, 1.0, 0.0)"),
    ({"drop_vision_last_layer": None}, {}, "drop_vision_last_layer of config.json is missing; true or false is needed"),
]


@pytest.mark.parametrize(("config", "preprocessor", "message"), WRONG_FILES, ids=[row[2] for row in WRONG_FILES])
def test_a_size_that_is_none_is_refused_with_its_folder(config: Any, preprocessor: Any, message: str, tmp_path: Path) -> None:
    path = folder(tmp_path, config, preprocessor)
    with pytest.raises(ValueError, match=f"^{re.escape(f'read_config: MiniCPM-V 2.6: {message} (in {path})')}$"):
        read_config(path)


# Keys that change numbers


CHANGED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"vision_config": {"hidden_act": "gelu"}}, {}, "hidden_act of vision_config is 'gelu'; supported is 'gelu_pytorch_tanh'"),
    ({"insert_layer_id": 3}, {}, "insert_layer_id of config.json is 3; supported is absent"),
    ({}, {"resample": 2}, "resample of preprocessor_config.json is 2; supported is 3"),
    ({}, {"do_normalize": False}, "do_normalize of preprocessor_config.json is False; supported is True"),
    ({}, {"do_rescale": 1}, "do_rescale of preprocessor_config.json is 1; supported is True"),
    ({}, {"rescale_factor": 0.5}, "rescale_factor of preprocessor_config.json is 0.5; supported is 0.00392"),
    ({}, {"image_feature_size": 32}, "image_feature_size of preprocessor_config.json is 32; supported is 64"),
    ({}, {"unk": "<pad>"}, "unk of preprocessor_config.json is '<pad>'; supported is '<unk>'"),
    (
        {},
        {"norm_mean": [0.5] * 3, "image_mean": [0.4] * 3},
        "norm_mean and image_mean of preprocessor_config.json differ; one of them must go",
    ),
    ({"vision_config": {"x": 1}}, {}, "x of vision_config is 1; the key is not known here and may change the numbers"),
    ({"slice_config": {"x": 1}}, {}, "x of slice_config is 1; the key is not known here and may change the numbers"),
    ({}, {"x": 1}, "x of preprocessor_config.json is 1; the key is not known here and may change the numbers"),
]


@pytest.mark.parametrize(("config", "preprocessor", "message"), CHANGED, ids=[row[2] for row in CHANGED])
def test_a_key_that_changes_numbers_is_refused_by_its_name(
    config: Any, preprocessor: Any, message: str, tmp_path: Path
) -> None:
    words = f"read_config: MiniCPM-V 2.6: {message}"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}.*{re.escape(f'(in {tmp_path})')}$"):
        read_config(folder(tmp_path, config, preprocessor))


def test_an_encoder_has_at_most_1024_layers() -> None:
    assert VisionConfig(num_hidden_layers=1024).num_hidden_layers == 1024
    with pytest.raises(ValueError, match=r"^VisionConfig: num_hidden_layers must be a whole number from 1 to 1024; got 1025$"):
        VisionConfig(num_hidden_layers=1025)

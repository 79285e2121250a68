"""Which family a checkpoint is of, what each key of its configs does, and what is refused; pictures that are not sliced."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from npembed import FAMILIES, image_placeholder, load_model, read_config, run, slice_image
from npembed.families import config_of, keys, minicpm_llama3_v_2_5, minicpmv, recognise
from tests.synthetic import synthetic_picture

PICTURES = {"synth_300x200": (300, 200), "synth_640x480": (640, 480)}
ALLOWED = 1e-5
"""Of a stage's largest value: how far float32 results may be from the release's."""

VISION = {
    "hidden_size": 1152,
    "image_size": 980,
    "intermediate_size": 4304,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
}
OF_THE_LANGUAGE_MODEL = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151748,
}
TOP = OF_THE_LANGUAGE_MODEL | {
    "_name_or_path": "openbmb/MiniCPM-V-4_5",
    "architectures": ["MiniCPMV"],
    "auto_map": {"AutoModel": "modeling_minicpmv.MiniCPMV"},
    "batch_vision_input": True,
    "drop_vision_last_layer": False,
    "hidden_size": 3584,
    "image_size": 448,
    "model_type": "minicpmv",
    "patch_size": 14,
    "query_num": 64,
    "slice_config": {"max_slice_nums": 9, "patch_size": 14, "model_type": "minicpmv"},
    "slice_mode": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "vision_config": VISION,
}
PREPROCESSOR = {
    "auto_map": {"AutoImageProcessor": "image_processing_minicpmv.MiniCPMVImageProcessor"},
    "image_feature_size": 64,
    "image_processor_type": "MiniCPMVImageProcessor",
    "im_end": "</image>",
    "im_id_end": "</image_id>",
    "im_id_start": "<image_id>",
    "im_start": "<image>",
    "max_slice_nums": 9,
    "norm_mean": [0.5, 0.5, 0.5],
    "norm_std": [0.5, 0.5, 0.5],
    "patch_size": 14,
    "processor_class": "MiniCPMVProcessor",
    "scale_resolution": 448,
    "slice_end": "</slice>",
    "slice_mode": True,
    "slice_start": "<slice>",
    "unk": "<unk>",
    "use_image_id": True,
    "version": 2.6,
}
AUDIO = {"feature_extractor_type": "MiniCPMAAudioFeatureExtractor", "sampling_rate": 16000, "hop_length": 160, "n_fft": 400}
WITHOUT_IDS = {
    key: value for key, value in PREPROCESSOR.items() if key not in ("im_id_start", "im_id_end", "use_image_id", "slice_mode")
}

RELEASED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "minicpm-v-2.5": (
        TOP | {"version": 2.5, "hidden_size": 4096, "query_num": 96, "mm_use_im_start_end": True, "pretraining_tp": 1},
        WITHOUT_IDS | {"image_feature_size": 96, "version": 2.5},
    ),
    "minicpm-v-2.6": (TOP | {"version": 2.6, "use_image_id": True, "vision_batch_size": 16}, PREPROCESSOR),
    "minicpm-v-4.0": (TOP | {"version": 4.0, "hidden_size": 2560, "vision_batch_size": 16}, PREPROCESSOR),
    "minicpm-v-4.5": (TOP | {"version": 4.5, "hidden_size": 4096, "batch_3d_resampler": True}, PREPROCESSOR),
    "minicpm-o-2.6": (
        TOP
        | {"version": 2.6, "model_type": "minicpmo", "vision_batch_size": 16, "use_image_id": True}
        | {"audio_config": {}, "tts_config": {}, "init_vision": True, "init_audio": True, "init_tts": True},
        PREPROCESSOR | AUDIO,
    ),
}
"""The keys of the released files, as far as known: config.json and preprocessor_config.json."""

HONOURED, FIXED, NO_EFFECT, LANGUAGE = "honoured", "fixed", "without effect", None
"""What a key is: the config depends on it; other values are refused; passed over; not asked for, as it is not the picture's."""

OTHER: dict[str, dict[str, tuple[str | None, Any]]] = {
    "config.json": {
        **dict.fromkeys(OF_THE_LANGUAGE_MODEL, (LANGUAGE, "something else")),
        **dict.fromkeys(
            ("_name_or_path", "architectures", "auto_map", "torch_dtype", "transformers_version"), (LANGUAGE, "else")
        ),
        **dict.fromkeys(
            ("vision_batch_size", "batch_3d_resampler", "mm_use_im_start_end", "pretraining_tp"), (LANGUAGE, "else")
        ),
        **dict.fromkeys(("audio_config", "tts_config", "init_vision", "init_audio", "init_tts"), (LANGUAGE, "else")),
        "batch_vision_input": (FIXED, False),
        "drop_vision_last_layer": (HONOURED, True),
        "hidden_size": (HONOURED, 1024),
        "image_size": (HONOURED, 336),
        "patch_size": (FIXED, 16),
        "query_num": (HONOURED, 32),
        "slice_config": (HONOURED, {"max_slice_nums": 4}),
        "slice_mode": (HONOURED, False),
        "use_image_id": (HONOURED, False),
        "vision_config": (HONOURED, VISION | {"num_hidden_layers": 3}),
        "insert_layer_id": (FIXED, 6),
    },
    "vision_config": {
        "hidden_size": (HONOURED, 1024),
        "image_size": (HONOURED, 448),
        "intermediate_size": (HONOURED, 4000),
        "num_attention_heads": (HONOURED, 8),
        "num_hidden_layers": (HONOURED, 26),
        "num_channels": (HONOURED, 1),
        "layer_norm_eps": (HONOURED, 1e-5),
        "patch_size": (HONOURED, 7),
        "hidden_act": (FIXED, "gelu"),
        "model_type": (NO_EFFECT, "siglip"),
        "attention_dropout": (NO_EFFECT, 0.5),
    },
    "slice_config": {
        "max_slice_nums": (HONOURED, 4),
        "scale_resolution": (HONOURED, 336),
        "patch_size": (HONOURED, 7),
        "model_type": (NO_EFFECT, "else"),
    },
    "preprocessor_config.json": {
        "max_slice_nums": (HONOURED, 4),
        "scale_resolution": (HONOURED, 336),
        "patch_size": (HONOURED, 7),
        "slice_mode": (HONOURED, False),
        "use_image_id": (HONOURED, False),
        "norm_mean": (HONOURED, [0.4, 0.5, 0.5]),
        "norm_std": (HONOURED, [0.4, 0.5, 0.5]),
        "image_feature_size": (FIXED, 65),
        "image_processor_type": (FIXED, "SiglipImageProcessor"),
        "do_resize": (FIXED, False),
        "do_rescale": (FIXED, False),
        "do_normalize": (FIXED, False),
        "do_convert_rgb": (FIXED, False),
        "do_center_crop": (FIXED, True),
        "do_pad": (FIXED, True),
        "resample": (FIXED, 2),
        "rescale_factor": (FIXED, 1 / 256),
        "im_start": (FIXED, "<img>"),
        "im_end": (FIXED, "</img>"),
        "im_id_start": (FIXED, "<id>"),
        "im_id_end": (FIXED, "</id>"),
        "slice_start": (FIXED, "<crop>"),
        "slice_end": (FIXED, "</crop>"),
        "unk": (FIXED, "<pad>"),
        **dict.fromkeys(("auto_map", "processor_class", "version", *AUDIO), (NO_EFFECT, "else")),
    },
}
"""Section -> key -> what it is, and another value for it."""

SPECIAL = {
    ("minicpm-v-2.5", "config.json", "slice_mode"): FIXED,
    ("minicpm-v-2.5", "config.json", "use_image_id"): FIXED,
    ("minicpm-v-2.5", "preprocessor_config.json", "slice_mode"): FIXED,
    ("minicpm-v-2.5", "preprocessor_config.json", "use_image_id"): FIXED,
}
"""Where a family differs: what it has no code for."""


def what(key: str, section: str, name: str) -> tuple[str | None, Any]:
    kind, value = OTHER[section][name]
    if (key, section, name) in SPECIAL:
        return SPECIAL[key, section, name], not value if name == "use_image_id" else value
    return kind, value


@pytest.fixture
def said(monkeypatch):
    """(section, key) -> what the reading of a config said that the key is; where it said two things, that it is fixed."""
    read = []

    class Recording(keys.Keys):
        def __init__(self, content, where):
            super().__init__(content, where)
            read.append(self)

        def section(self, key):
            return Recording(super().section(key).content, key)

    for module in (minicpmv, minicpm_llama3_v_2_5):
        monkeypatch.setattr(module, "Keys", Recording)

    def of(section, key):
        words = {each.said.get(key) for each in read if each.where == section} - {None}
        return FIXED if FIXED in words else words.pop() if words else None

    return of


# What each key does


@pytest.mark.parametrize("key", RELEASED)
def test_each_key_of_the_released_files_is_what_the_table_says(key, said):
    top, preprocessor = RELEASED[key]
    config = config_of(top, preprocessor, "test", "here")
    assert config.family is FAMILIES[key]
    sections = {
        "config.json": top,
        "vision_config": top["vision_config"],
        "slice_config": top["slice_config"],
        "preprocessor_config.json": preprocessor,
    }
    for section, content in sections.items():
        for name in content:
            if (section, name) not in {("config.json", "model_type"), ("config.json", "version")}:  # they say which family
                assert said(section, name) == what(key, section, name)[0], f"{name} of {section}"


@pytest.mark.parametrize("key", RELEASED)
def test_the_released_files_give_the_preset(key):
    family = FAMILIES[key]
    assert config_of(*RELEASED[key], "test", "here") == next(iter(family.presets().values()))


CHANGES = [(key, section, name) for key in RELEASED for section, names in OTHER.items() for name in names]


@pytest.mark.parametrize(("key", "section", "name"), CHANGES)
def test_each_key_does_what_the_table_says(key, section, name):
    """Honoured: the config is another. Fixed: refused by name. Without effect, or the language model's: the same config."""
    kind, value = what(key, section, name)
    top, preprocessor = RELEASED[key]
    if section != "preprocessor_config.json":
        preprocessor = {}  # whose values would win
    if name == "patch_size" and kind is HONOURED:  # both must agree: of slicing and of the tower
        top = {each: content for each, content in top.items() if each != "patch_size"} | {"slice_config": {"patch_size": value}}
        top |= {"vision_config": VISION | {"patch_size": value}}
        preprocessor = preprocessor and preprocessor | {"patch_size": value}
    before = config_of(*(RELEASED[key] if preprocessor else (RELEASED[key][0], {})), "test", "here")
    changed = {
        "config.json": lambda: (top | {name: value}, preprocessor),
        "vision_config": lambda: (top | {"vision_config": top["vision_config"] | {name: value}}, preprocessor),
        "slice_config": lambda: (top | {"slice_config": top["slice_config"] | {name: value}}, preprocessor),
        "preprocessor_config.json": lambda: (top, preprocessor | {name: value}),
    }[section]()
    if section == "slice_config" and name == "scale_resolution":
        changed[0].pop("image_size", None)
    if kind is FIXED:
        with pytest.raises(ValueError, match=rf"^test: .*: {name} of {section} is .*; supported is .* \(in here\)$"):
            config_of(*changed, "test", "here")
    else:
        assert (config_of(*changed, "test", "here") != before) == (kind is HONOURED)


@pytest.mark.parametrize("key", RELEASED)
@pytest.mark.parametrize("section", ["vision_config", "slice_config", "preprocessor_config.json"])
def test_a_key_that_is_not_known_is_refused(key, section):
    top, preprocessor = RELEASED[key]
    if section == "preprocessor_config.json":
        preprocessor = preprocessor | {"sharpen": 2}
    else:
        top = top | {section: top[section] | {"sharpen": 2}}
    message = rf"^test: .*: sharpen of {section} is 2; the key is not known here and may change the numbers"
    with pytest.raises(ValueError, match=message):
        config_of(top, preprocessor, "test", "here")


def test_the_other_spelling_of_mean_and_std():
    top, preprocessor = RELEASED["minicpm-v-2.6"]
    plain = {name: value for name, value in preprocessor.items() if not name.startswith("norm_")}
    other = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    config = config_of(top, plain | other, "test", "here")
    assert (config.slicing.mean, config.slicing.std) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    same = {"image_mean": preprocessor["norm_mean"], "image_std": preprocessor["norm_std"]}
    assert config_of(top, preprocessor | same, "test", "here") == config_of(top, preprocessor, "test", "here")
    for name in ("mean", "std"):
        message = rf"^test: MiniCPM-V 2\.6: norm_{name} and image_{name} of preprocessor_config\.json differ"
        with pytest.raises(ValueError, match=message):
            config_of(top, preprocessor | {f"image_{name}": [0.4, 0.5, 0.6]}, "test", "here")


def test_a_patch_size_for_slicing_alone_is_refused():
    top, preprocessor = RELEASED["minicpm-v-2.6"]
    with pytest.raises(ValueError, match=r"patch_size is 7 for slicing but 14 in vision_config"):
        config_of(top, preprocessor | {"patch_size": 7}, "test", "here")


def test_drop_vision_last_layer_must_be_said():
    top = {name: value for name, value in RELEASED["minicpm-v-2.6"][0].items() if name != "drop_vision_last_layer"}
    for config in (top, top | {"drop_vision_last_layer": None}):
        with pytest.raises(ValueError, match=r"drop_vision_last_layer of config\.json is missing; true or false is needed"):
            config_of(config, {}, "test", "here")


# Which family it is

MODEL_TYPES = [
    *("minicpmv", "minicpmo", "minicpmv4_6", "minicpmv4_7", "minicpm_ocr", "idefics2", "idefics3", "smolvlm"),
    *("phi4_multimodal", "siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model"),
    *("llava", "qwen2_5_vl", "clip", "internvl", "minicpm", "MiniCPMV", "minicpmv4.6", ""),
]
RECOGNISED = {
    ("minicpmv", 2.5): "minicpm-v-2.5",
    ("minicpmv", 2.6): "minicpm-v-2.6",
    ("minicpmv", 4): "minicpm-v-4.0",
    ("minicpmv", "2.6"): "minicpm-v-2.6",
    ("minicpmv", "4.0"): "minicpm-v-4.0",
    ("minicpmo", "4.5"): "minicpm-o-4.5",
    ("minicpmv", 4.5): "minicpm-v-4.5",
    ("minicpmo", 2.6): "minicpm-o-2.6",
    ("minicpmo", 4.5): "minicpm-o-4.5",
}


@pytest.mark.parametrize(("model_type", "version"), RECOGNISED)
def test_a_family_is_known_by_model_type_and_version(model_type, version):
    assert recognise({"model_type": model_type, "version": version}, "test") is FAMILIES[RECOGNISED[model_type, version]]


@pytest.mark.parametrize(
    "version",
    [
        "2.60",
        " 2.6",
        "2,6",
        "v2.6",
        "4",
        "٢.٦",
        "",
        3,
        2,
        2.0,
        2.4,
        2.7,
        46,
        4.6,
        None,
        True,
        [2.6],
        {"major": 2},
        float("nan"),
    ],
)
@pytest.mark.parametrize("model_type", ["minicpmv", "minicpmo"])
def test_other_versions_are_refused_with_the_numbers_that_are_supported(model_type, version):
    """A version as text is one only where it is exactly the text of a supported number: nothing is guessed."""
    numbers = ", ".join(str(n) for f in FAMILIES.values() if model_type in f.model_types for n in f.versions)
    message = f"test: config.json has model_type {model_type!r} and version {version!r}; supported are the numbers {numbers}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        recognise({"model_type": model_type, "version": version}, "test")


@pytest.mark.parametrize("model_type", ["minicpmv", "minicpmo"])
def test_no_version_is_refused(model_type):
    with pytest.raises(ValueError, match=rf"^test: config\.json has model_type '{model_type}' and version None; supported are"):
        recognise({"model_type": model_type}, "test")


def test_4_0_of_minicpmo_is_no_release():
    with pytest.raises(ValueError, match=r"model_type 'minicpmo' and version 4\.0; supported are the numbers 2\.6, 4\.5"):
        recognise({"model_type": "minicpmo", "version": 4.0}, "test")


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_model_type_is_some_familys_or_refused_with_all_that_are_supported(model_type):
    """Whichever of SPEC 13.1 are there: no other is taken for one of them."""
    if any(model_type in family.model_types for family in FAMILIES.values()):
        families = [family for family in FAMILIES.values() if model_type in family.model_types]
        assert all(family.versions for family in families) or len(families) == 1
        return
    titles = ", ".join(family.title for family in FAMILIES.values())
    message = f"test: config.json has model_type {model_type!r}, which is not supported; supported are {titles}"
    for version in ({}, {"version": 2.6}):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            recognise({"model_type": model_type} | version, "test")


def test_the_layout_of_phi_4_s_own_code_is_told_from_the_one_that_is_read():
    message = (
        "test: config.json has model_type 'phi4mm', the layout of the release's own code; the one that is read is that of the "
    )
    message += "branch for transformers, phi4_multimodal: of the Hub, microsoft/Phi-4-multimodal-instruct@refs/pr/70"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        recognise({"model_type": "phi4mm"}, "test")


@pytest.mark.parametrize(
    "top", [{}, {"model_type": None}, {"model_type": 26}, {"version": 2.6}, {"architectures": ["MiniCPMV"]}]
)
def test_without_a_model_type_nothing_is_guessed(top):
    with pytest.raises(ValueError, match=r"^test: config\.json has no model_type, so its family is not known; supported are"):
        recognise(top, "test")


def test_a_refusal_says_which_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(ValueError, match=r"^read_config: config\.json has model_type 'llava'") as refusal:
        read_config(tmp_path)
    assert str(refusal.value).endswith(f"(in {tmp_path})")


def test_no_two_families_claim_one_config():
    claims = [
        (model_type, version)
        for family in FAMILIES.values()
        for model_type in family.model_types
        for version in (family.versions or (None,))
    ]
    assert len(claims) == len(set(claims))


# How pictures become pixels


OWN = ("minicpm-v-2.5", "minicpm-v-2.6", "minicpm-v-4.0", "minicpm-v-4.5", "minicpm-o-2.6", "minicpm-o-4.5")
"""Families whose own config.json says how pictures are cut."""


@pytest.mark.parametrize("key", FAMILIES)
def test_a_checkpoint_that_does_not_say_how_pictures_become_pixels_is_refused(key, tmp_path):
    """transformers refuses it too; its classes' defaults are seldom what a release was made with."""
    family = FAMILIES[key]
    config = family.small()
    top, preprocessor = family.as_json(config)
    top |= {"slice_config": {"patch_size": 4}} if key in OWN else {}
    (tmp_path / "config.json").write_text(json.dumps(top))
    words = "has no preprocessor_config.json, nor an image_processor in processor_config.json, so it is not known how pictures "
    words += "become pixels; take the file from the repository of this model, or of the one that it was made from"
    for processor in (None, {}, {"image_processor": None}, {"image_seq_len": 64}):
        if processor is not None:
            (tmp_path / "processor_config.json").write_text(json.dumps(processor))
        if key in OWN:
            assert read_config(tmp_path).family is family
        else:
            with pytest.raises(ValueError, match=f"^read_config: {re.escape(str(tmp_path))} {re.escape(words)}$"):
                read_config(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": preprocessor}))
    assert read_config(tmp_path) == config
    (tmp_path / "processor_config.json").unlink()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    assert read_config(tmp_path) == config


@pytest.mark.parametrize("key", [key for key in FAMILIES if key not in OWN])
def test_one_number_stands_for_each_channel(key):
    """As in transformers; MiniCPM-V's own code has no such thing."""
    family = FAMILIES[key]
    top, preprocessor = family.as_json(family.small())
    one, three = ({"image_mean": mean, "image_std": std} for mean, std in ((0.25, 1), ([0.25] * 3, [1.0] * 3)))
    want = config_of(top, preprocessor | three, "test", "here")
    for given in (one, one | {"image_std": three["image_std"]}, three | {"image_std": 1}):
        assert config_of(top, preprocessor | given, "test", "here") == want
    for wrong in (True, "0.5", [0.25], []):
        with pytest.raises((ValueError, TypeError), match="mean must be three numbers"):
            config_of(top, preprocessor | {"image_mean": wrong}, "test", "here")


def test_an_empty_image_processor_is_one(tmp_path):
    """transformers takes its class's defaults then, whatever preprocessor_config.json says."""
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    (tmp_path / "processor_config.json").write_text('{"image_processor": {}}')
    (tmp_path / "preprocessor_config.json").write_text('{"resample": 2}')
    assert read_config(tmp_path).resample == "BICUBIC"


# Arrays that no stage reads


def checkpoint(path: Path, source: Path, more: dict[str, Any], config: dict[str, Any] | None = None) -> Path:
    """A copy of a small checkpoint in two shards, whose index has more names."""
    arrays = load_file(source / "model.safetensors")
    names = sorted(arrays)
    files = {f"model-{k}-of-2.safetensors": {name: arrays[name] for name in names[k - 1 :: 2]} for k in (1, 2)}
    for file, content in files.items():
        save_file(content, path / file)
    index = {"weight_map": {name: file for file, content in files.items() for name in content} | more}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    top = json.loads((source / "config.json").read_text()) | (config or {})
    (path / "config.json").write_text(json.dumps(top))
    (path / "preprocessor_config.json").write_text((source / "preprocessor_config.json").read_text())
    return path


SMALL = ["minicpm-llama3-v-2_5", "minicpm-v-4_5", "minicpm-v-2_6-noslice"]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    "unread",
    [
        "vpm.embeddings.class_embedding",
        "vpm.encoder.layers.3.layer_norm1.weight",
        "vpm.merger.linear_1.weight",
        "vpm.head.probe",
        "resampler.temporal_embed",
    ],
)
@pytest.mark.parametrize("until", [None, "embeddings"])
def test_an_index_that_names_more_of_the_tower_than_is_read_is_refused(unread, until, name, data, tmp_path):
    source = data / "relatives" / name
    folder = checkpoint(tmp_path, source, {unread: "model-3-of-3.safetensors"})
    title = read_config(source).family.title
    message = f"load_model: {folder} has {unread}, which no stage of {title} reads; so it is refused"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_model(folder, until)


@pytest.mark.parametrize("name", SMALL)
def test_what_is_not_the_pictures_is_not_asked_for(name, data, tmp_path):
    """The language model, and MiniCPM-o's ears and voice; their files need not be there."""
    source = data / "relatives" / name
    others = ("llm.model.embed_tokens.weight", "apm.conv1.weight", "tts.dvae.coef", "vpm2.weight")
    folder = checkpoint(tmp_path, source, dict.fromkeys(others, "model-3-of-3.safetensors"))
    found, right = load_model(folder), load_model(source)
    assert set(found.weights) == set(right.weights)
    assert all(np.array_equal(found.weights[key], right.weights[key]) for key in right.weights)


@pytest.mark.parametrize("name", SMALL)
def test_the_layer_that_is_left_out_may_be_there(name, data, tmp_path):
    folder = checkpoint(tmp_path, data / "relatives" / name, {}, {"drop_vision_last_layer": True})
    model = load_model(folder)
    assert model.config.encoder_layers == 2
    assert not any(".layers.2." in key for key in model.weights)


# Pictures that are not sliced


@pytest.fixture(scope="session")
def noslice(data: Path) -> Path:
    return data / "relatives/minicpm-v-2_6-noslice"


@pytest.mark.parametrize("name", PICTURES)
def test_without_slice_mode_the_releases_answers_come_out(name, noslice):
    """From the folder to the tokens. Measured: at most 1.1e-6."""
    model, expected = load_model(noslice), load_file(noslice / "expected.safetensors")
    answers = json.loads((noslice / "expected.json").read_text())[name]
    cut = model.config.family.cut(synthetic_picture(*PICTURES[name]), model.config)
    np.testing.assert_array_equal(cut.tgt_sizes, expected[f"{name}.tgt_sizes"])
    digests = [hashlib.sha256(strip.astype("<f4").tobytes()).hexdigest() for strip in cut.strips]
    assert digests == answers["strips_sha256"]
    assert cut.grid is None
    assert image_placeholder(cut.grid, 0, model.config) == answers["placeholder"]
    found = run(cut.strips, cut.tgt_sizes, model)
    np.testing.assert_array_equal(found["position_ids"], expected[f"{name}.position_ids"])
    for ours, theirs in (("embeddings", "embeddings"), ("hidden", "last_hidden_state"), ("tokens", "vision_tokens")):
        right = expected[f"{name}.{theirs}"]
        assert found[ours].shape == right.shape
        assert np.abs(found[ours] - right).max() < ALLOWED * np.abs(right).max()


def test_rows_and_columns_that_fill_no_patch_are_dropped(noslice):
    config = read_config(noslice)
    for width, height, sizes in [(640, 480, [[34, 45]]), (14, 14, [[1, 1]]), (27, 41, [[2, 1]]), (1000, 29, [[2, 71]])]:
        picture = synthetic_picture(width, height)
        strips, tgt_sizes = slice_image(picture, config)
        assert tgt_sizes.tolist() == sizes
        (h, w), cropped = sizes[0], picture[: sizes[0][0] * 14, : sizes[0][1] * 14]
        np.testing.assert_array_equal(strips[0], slice_image(cropped, config)[0][0])
        box = config.family.cut(picture, config).boxes
        assert box.tolist() == [[0, 0, w * 14, h * 14]]


@pytest.mark.parametrize("size", [(13, 20), (20, 13), (1, 1)])
def test_a_picture_smaller_than_a_patch_is_refused_without_slice_mode(size, noslice):
    with pytest.raises(ValueError, match=r"^slice_image: with slice_mode false a picture needs 14 x 14 pixels; got \("):
        slice_image(synthetic_picture(*size), read_config(noslice))


def test_the_preprocessors_slice_mode_wins():
    top, preprocessor = RELEASED["minicpm-v-2.6"]
    silent = {name: value for name, value in preprocessor.items() if name != "slice_mode"}
    for in_top, in_preprocessor, right in [(True, False, False), (False, True, True), (False, None, False), (None, None, True)]:
        given = silent if in_preprocessor is None else silent | {"slice_mode": in_preprocessor}
        config = config_of(top | {"slice_mode": in_top}, given, "test", "here")
        assert config.slicing.slice_mode is right


def test_a_sliced_and_a_whole_picture_differ(noslice):
    """A port that slices all the same is caught by the sizes."""
    config = read_config(noslice)
    sliced = replace(config, slicing=replace(config.slicing, slice_mode=True))
    assert slice_image(synthetic_picture(640, 480), sliced)[1].tolist() == [[28, 37], [39, 26], [39, 26]]

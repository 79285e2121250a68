"""Reading a checkpoint's folder: one file or shards, each type, only what is needed, and what is broken or not known."""

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from npembed import Config, VisionConfig, embed, load_model, random_model
from npembed.weights.contents import contents
from npembed.weights.opening import open_source
from tests.shapes import STAGES, shapes_until, stage_shapes

VISION = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28}
CONFIG = Config(vision=VisionConfig(**VISION), query_num=3, embed_dim=128)
WEIGHT, BIAS, TABLE = (
    f"vpm.embeddings.{name}" for name in ("patch_embedding.weight", "patch_embedding.bias", "position_embedding.weight")
)
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
Arrays = dict[str, NDArray[Any]]


def arrays(until: str = "tokens") -> Arrays:
    return dict(random_model(CONFIG, seed=3, until=until).weights)


def folder(path: Path, files: Mapping[str, Arrays], index: Any = None, drop: bool = False) -> Path:
    """A checkpoint's folder: config.json, these files and, if there are several, an index."""
    path.mkdir(exist_ok=True)
    stated = {"model_type": "minicpmv", "version": 2.6, "drop_vision_last_layer": drop}
    top = stated | {"query_num": 3, "hidden_size": 128, "vision_config": VISION}
    (path / "config.json").write_text(json.dumps(top))
    for file, content in files.items():
        save_file({name: np.array(array, order="C") for name, array in content.items()}, path / file)
    if index is None and len(files) > 1:
        index = {"weight_map": {name: file for file, content in files.items() for name in content}}
    if index is not None:
        (path / INDEX).write_text(index if isinstance(index, str) else json.dumps(index))
    return path


def single(path: Path, content: Arrays) -> Path:
    return folder(path, {SINGLE: content})


def shards(content: Arrays, count: int = 3) -> dict[str, Arrays]:
    names = sorted(content)
    return {f"model-{k}-of-{count}.safetensors": {name: content[name] for name in names[k::count]} for k in range(count)}


def equal(found: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> bool:
    return set(found) == set(expected) and all(np.array_equal(found[name], expected[name]) for name in found)


# What can be read


def test_the_tiny_checkpoint_is_read_to_the_bit(data: Path) -> None:
    theirs = load_file(data / "tiny-minicpmv" / SINGLE)
    model = load_model(str(data / "tiny-minicpmv"))
    assert equal(model.weights, {name: array for name, array in theirs.items() if not name.startswith("llm.")})
    assert model.config.embed_dim == 256


@pytest.mark.parametrize("until", [None, *STAGES])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_file_and_shards_are_the_same(until: str | None, count: int, tmp_path: Path) -> None:
    content = arrays()
    path = single(tmp_path, content) if count == 1 else folder(tmp_path, shards(content, count))
    model = load_model(path, until)
    wanted = shapes_until(CONFIG, until or "tokens")
    assert model.config == CONFIG
    assert equal(model.weights, {name: content[name] for name in wanted})


@pytest.mark.parametrize("held", STAGES)
def test_without_until_every_stage_that_is_held_is_read(held: str, tmp_path: Path) -> None:
    content = arrays(held)
    assert equal(load_model(single(tmp_path, content)).weights, content)


@pytest.mark.parametrize(
    ("dtype", "widened"),
    [(np.float16, np.float32), (ml_dtypes.bfloat16, np.float32), (np.float32, np.float32), (np.float64, np.float64)],
)
def test_each_float_type_is_read(dtype: type, widened: type, tmp_path: Path) -> None:
    content = {name: array.astype(dtype) for name, array in arrays("embeddings").items()}
    model = load_model(single(tmp_path, content))
    assert model.dtype == widened
    assert equal(model.weights, {name: array.astype(widened) for name, array in content.items()})


def test_types_can_be_mixed(tmp_path: Path) -> None:
    content = arrays("embeddings")
    content |= {WEIGHT: content[WEIGHT].astype(ml_dtypes.bfloat16), BIAS: content[BIAS].astype(np.float16)}
    assert load_model(single(tmp_path, content)).dtype == np.float32
    content[TABLE] = content[TABLE].astype(np.float64)
    assert load_model(single(tmp_path / "b", content)).dtype == np.float64


@pytest.mark.parametrize("name", ["lm_head.weight", "llm.embeddings.patch_embedding.bias", "vpmx.weight", "apm.resampler.proj"])
def test_arrays_that_are_not_the_towers_or_the_connectors_are_passed_over(name: str, tmp_path: Path) -> None:
    content = arrays("embeddings")
    assert equal(load_model(single(tmp_path, content | {name: np.ones(3)})).weights, content)


def test_the_layer_that_is_left_out_may_be_there(tmp_path: Path) -> None:
    content = arrays()
    model = load_model(folder(tmp_path, {SINGLE: content}, drop=True))
    assert equal(model.weights, {name: content[name] for name in content if ".layers.1." not in name})


def test_folders_with_spaces_and_other_letters(tmp_path: Path) -> None:
    content = arrays("embeddings")
    assert equal(load_model(single(tmp_path / "моя модель 模型", content)).weights, content)


def test_the_only_safetensors_file_can_have_any_name(tmp_path: Path) -> None:
    content = arrays("embeddings")
    assert equal(load_model(folder(tmp_path, {"vision tower.safetensors": content})).weights, content)


def test_the_arrays_outlive_the_files(tmp_path: Path) -> None:
    content = arrays("embeddings")
    model = load_model(single(tmp_path, content))
    (tmp_path / SINGLE).write_bytes(b"")
    assert equal(model.weights, content)
    assert np.isfinite(embed([np.ones((3, 14, 14))], [[1, 1]], model)).all()


# Only what is needed


def test_shards_that_are_not_needed_may_be_missing(tmp_path: Path) -> None:
    content = arrays()
    files = {"vision.safetensors": {name: content[name] for name in shapes_until(CONFIG, "hidden")}}
    files["rest.safetensors"] = {name: content[name] for name in stage_shapes(CONFIG, "tokens")}
    folder(tmp_path, files)
    (tmp_path / "rest.safetensors").unlink()
    assert set(load_model(tmp_path, "hidden").weights) == set(shapes_until(CONFIG, "hidden"))
    message = f"load_model: the checkpoint's file {tmp_path / 'rest.safetensors'} is missing"
    for until in ("tokens", None):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            load_model(tmp_path, until)


def test_shards_that_are_not_needed_may_be_broken(tmp_path: Path) -> None:
    folder(tmp_path, {"a.safetensors": arrays("embeddings"), "b.safetensors": {"llm.weight": np.ones(3)}})
    (tmp_path / "b.safetensors").write_bytes(b"broken")
    assert equal(load_model(tmp_path).weights, arrays("embeddings"))


def test_an_array_that_is_not_needed_may_be_of_any_type(tmp_path: Path) -> None:
    content = arrays("embeddings")
    path = single(tmp_path, content | {"llm.quantised": np.ones(3, dtype=np.int8)})
    assert equal(load_model(path).weights, content)


MEMORY = """
import resource, sys
from npembed import load_model
load_model(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load_model(sys.argv[2])
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * (1 if sys.platform == "darwin" else 1024))
"""


def test_a_checkpoint_of_gigabytes_costs_no_more_memory_than_what_is_read(tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="the peak of memory is measured on Unix alone")
    content = arrays("embeddings")
    small = single(tmp_path / "small", content)
    large = single(tmp_path / "large", content)
    whole = (large / SINGLE).read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header, numbers = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    more = 3 * 2**30  # bytes of an array that is not asked for, none of which is on the disk
    header["llm.weight"] = {"dtype": "F32", "shape": [more // 4], "data_offsets": [len(numbers), len(numbers) + more]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (large / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text + numbers)
    os.truncate(large / SINGLE, 8 + len(text) + len(numbers) + more)
    ran = subprocess.run([sys.executable, "-c", MEMORY, small, large], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 50 * 2**20


# What is broken


FC1 = "vpm.encoder.layers.0.mlp.fc1.weight"
BYTES = np.zeros((12, 4), dtype=np.uint8)
QUANTISED = {
    "GPTQ": (
        {
            "qweight": np.zeros((1, 12), np.int32),
            "qzeros": np.zeros((1, 2), np.int32),
            "scales": np.ones((1, 12), np.float16),
            "g_idx": np.zeros(8, np.int32),
        },
        True,
    ),
    "AWQ": ({"qweight": np.zeros((8, 2), np.int32), "qzeros": np.zeros((1, 2), np.int32), "scales": np.ones((1, 12))}, True),
    "bitsandbytes, nf4": (
        {
            "weight": BYTES.reshape(-1, 1),
            "weight.absmax": np.ones(1, np.float32),
            "weight.quant_map": np.ones(16),
            "weight.quant_state.bitsandbytes__nf4": np.zeros(9, np.uint8),
        },
        False,
    ),
    "bitsandbytes, int8": ({"weight": np.zeros((12, 8), np.int8), "SCB": np.ones(12, np.float32)}, False),
    "compressed-tensors": ({"weight_packed": np.zeros((12, 1), np.int32), "weight_scale": np.ones((12, 1))}, True),
    "fp8": ({"weight": np.zeros((12, 8), ml_dtypes.float8_e4m3fn), "weight_scale_inv": np.ones((1, 1))}, False),
}  # what stands beside or in place of one linear map's numbers, and whether its `weight` is gone
"""Each as the library of that name saves it."""


@pytest.mark.parametrize("until", [None, "embeddings", "hidden"])
@pytest.mark.parametrize(("added", "gone"), QUANTISED.values(), ids=QUANTISED)
def test_a_quantised_checkpoint_is_told_what_to_take(added: Arrays, gone: bool, until: str | None, tmp_path: Path) -> None:
    """Whatever is asked for: the rest of its numbers are not those of the checkpoint that it was made from, either."""
    content = arrays()
    if gone:
        del content[FC1]
    content |= {f"{FC1.removesuffix('weight')}{name}": array for name, array in added.items()}
    with pytest.raises(ValueError, match=r"The checkpoint is quantised: take the one that it was made from, or an mmproj file"):
        load_model(single(tmp_path, content), until)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_a_weight_of_a_quantised_type_alone_is_told_so_too(dtype: Any, tmp_path: Path) -> None:
    content = arrays()
    path = single(tmp_path, content | {FC1: content[FC1].astype(dtype)})
    with pytest.raises(ValueError, match=r"mlp\.fc1\.weight in .*model\.safetensors is of dtype .*The checkpoint is quantised"):
        load_model(path)


def refused(path: Path, message: str, until: str | None = None) -> None:
    with pytest.raises(ValueError, match=f"^load_model: {re.escape(message)}"):
        load_model(path, until)


def test_no_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none", f"{tmp_path / 'none'} is not a folder")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", f"{tmp_path / 'file'} is not a folder")


def test_no_config(tmp_path: Path) -> None:
    (single(tmp_path, arrays("embeddings")) / "config.json").unlink()
    refused(tmp_path, f"{tmp_path} has no config.json")


@pytest.mark.parametrize("files", [{}, {"a.safetensors": {"x": np.ones(1)}, "b.safetensors": {"y": np.ones(1)}}])
def test_no_weights_or_several_files_without_an_index(files: dict[str, Arrays], tmp_path: Path) -> None:
    (folder(tmp_path, files) / INDEX).unlink(missing_ok=True)
    refused(tmp_path, f"{tmp_path} has neither {SINGLE} nor {INDEX}")


def test_an_unknown_stage(tmp_path: Path) -> None:
    refused(single(tmp_path, arrays()), "MiniCPM-V 2.6 has no stage 'logits'; it has embeddings, hidden, tokens", "logits")


@pytest.mark.parametrize("name", [WEIGHT, BIAS, TABLE])
@pytest.mark.parametrize("until", [None, "embeddings", "tokens"])
def test_an_array_of_the_first_stage_is_missing(name: str, until: str | None, tmp_path: Path) -> None:
    content = arrays()
    del content[name]
    refused(single(tmp_path, content), f"{tmp_path} lacks {name}, which the stage 'embeddings' needs", until)


@pytest.mark.parametrize("until", [None, "hidden", "tokens"])
def test_a_stage_is_held_in_part(until: str | None, tmp_path: Path) -> None:
    content, name = arrays(), "vpm.encoder.layers.1.mlp.fc2.bias"
    del content[name]
    message = f"{tmp_path} lacks {name}, which the stage 'hidden' needs; until='embeddings' still works"
    refused(single(tmp_path, content), message, until)
    assert equal(load_model(tmp_path, "embeddings").weights, arrays("embeddings"))


def test_a_stage_that_is_asked_for_is_not_held(tmp_path: Path) -> None:
    single(tmp_path, arrays("hidden"))
    names = "resampler.query, resampler.proj, resampler.kv_proj.weight and 10 more"
    refused(tmp_path, f"{tmp_path} lacks {names}, which the stage 'tokens' needs; until='hidden' still works", "tokens")


@pytest.mark.parametrize("prefix", ["model.vision_model.", "model.vision_tower.", ""])
def test_nothing_is_guessed_from_a_tensors_name(prefix: str, tmp_path: Path) -> None:
    """The same arrays under another prefix are no MiniCPM-V 2.6, whatever config.json says."""
    renamed = {prefix + name.removeprefix("vpm."): array for name, array in arrays("embeddings").items()}
    refused(single(tmp_path, renamed), f"{tmp_path} lacks {WEIGHT}, {BIAS}, {TABLE}, which the stage 'embeddings' needs")


WRAPPED = {
    "base_model.model.": lambda name: f"base_model.model.{name}",
    "module.": lambda name: f"module.{name}",
    "_orig_mod.": lambda name: f"_orig_mod.{name}",
    "_orig_mod.module.": lambda name: f"_orig_mod.module.{name}",
    "model.": lambda name: f"model.{name}",
    "vpm._orig_mod.": lambda name: name.replace("vpm.", "vpm._orig_mod."),
    "vpm.module.": lambda name: name.replace("vpm.", "vpm.module."),
}
"""What the names begin with that a wrapped model's checkpoint has -> each name in it."""


@pytest.mark.parametrize("prefix", WRAPPED)
@pytest.mark.parametrize("until", [None, "hidden"])
def test_names_behind_a_prefix_are_said_to_be_there(prefix: str, until: str | None, tmp_path: Path) -> None:
    path = single(tmp_path, {WRAPPED[prefix](name): array for name, array in arrays("hidden").items()})
    words = f"; {WEIGHT} is there behind {prefix!r}, which a wrapper of the model has added: save the model without it"
    with pytest.raises(ValueError, match=rf"^load_model: {re.escape(str(path))} (lacks|has) .*{re.escape(words)}") as caught:
        load_model(path, until)
    assert ("(PEFT: merge_and_unload)" in str(caught.value)) == (prefix == "base_model.model.")
    assert words in contents(open_source(path)).stages[0].problem


def test_names_of_another_model_are_not_said_to_be_there(tmp_path: Path) -> None:
    path = single(tmp_path, {f"other{name}": array for name, array in arrays("embeddings").items()})
    with pytest.raises(ValueError, match=r"lacks .*which the stage 'embeddings' needs$"):
        load_model(path)


@pytest.mark.parametrize("name", [SINGLE, INDEX, "a.safetensors", "config.json", "preprocessor_config.json"])
def test_a_link_that_leads_nowhere_is_named(name: str, tmp_path: Path) -> None:
    folder(
        tmp_path,
        {"a.safetensors": arrays("embeddings")},
        index={"weight_map": dict.fromkeys(arrays("embeddings"), "a.safetensors")},
    )
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to(tmp_path / "gone")
    refused(tmp_path, f"{tmp_path / name} is a link that leads nowhere")
    refused(tmp_path / name if name == SINGLE else tmp_path, f"{tmp_path / name} is a link that leads nowhere")


def test_a_folder_that_is_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(tmp_path / "gone")
    refused(tmp_path / "model", f"{tmp_path / 'model'} is a link that leads nowhere")


# Folders that hold the checkpoint's folder


def test_the_hub_client_s_folder_of_a_repository_is_told_where_its_checkpoint_is(tmp_path: Path) -> None:
    repository, commits = tmp_path / "models--x--y", ("0" * 40, "a" * 40, "f" * 40)
    (repository / "refs").mkdir(parents=True)
    (repository / "snapshots").mkdir()
    refused(repository, f"{repository} has no config.json, and none of its snapshots/ has one")
    for commit in commits:
        single(repository / "snapshots" / commit, arrays("embeddings"))
    (repository / "refs" / "main").write_text(commits[1])
    refused(repository, f"{repository} has no config.json, but snapshots/{commits[1]} has one: name that folder")
    refused(
        repository / "snapshots", f"{repository / 'snapshots'} has no config.json, but {commits[0]} has one: name that folder"
    )
    assert load_model(repository / "snapshots" / commits[1]).weights
    (repository / "refs" / "main").write_text("gone")
    refused(repository, f"{repository} has no config.json, but snapshots/{commits[0]} has one: name that folder")


def test_a_folder_of_an_adapter_alone_is_told_to_be_merged(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    words = "has no config.json, but an adapter, adapter_config.json: merge it into its model first (PEFT: merge_and_unload)"
    refused(tmp_path, f"{tmp_path} {words}")


@pytest.mark.parametrize(
    ("name", "words"), [("m.gguf", "but m.gguf: a GGUF file is read by its own"), ("m.bin", "but a pickle")]
)
def test_a_folder_without_a_config_is_told_what_it_has(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("")
    refused(tmp_path, f"{tmp_path} has no config.json, {words}")


@pytest.mark.parametrize(
    ("name", "until"),
    [
        ("vpm.embeddings.class_embedding", "embeddings"),
        ("vpm.encoder.layers.2.layer_norm1.bias", "embeddings"),
        ("vpm.head.probe", None),
        ("resampler.temporal_pos_embed", "hidden"),
        ("resampler.pos_embed", "tokens"),
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_an_array_of_the_tower_or_the_connector_that_no_stage_reads(
    name: str, until: str | None, count: int, tmp_path: Path
) -> None:
    """Whatever is asked for: it would change the numbers of a later stage, so the family is not the one that is stated."""
    content = arrays() | {name: np.ones(3, dtype=np.float32)}
    path = single(tmp_path, content) if count == 1 else folder(tmp_path, shards(content, count))
    refused(path, f"{tmp_path} has {name}, which no stage of MiniCPM-V 2.6 reads; so it is refused", until)


def test_many_arrays_that_no_stage_reads_are_counted(tmp_path: Path) -> None:
    more = {f"vpm.encoder.layers.2.{part}": np.ones(3) for part in "edcba"}
    names = "vpm.encoder.layers.2.a, vpm.encoder.layers.2.b, vpm.encoder.layers.2.c and 2 more"
    refused(single(tmp_path, arrays() | more), f"{tmp_path} has {names}, which no stage of MiniCPM-V 2.6 reads")


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_a_number_that_is_not_finite(number: float, dtype: type, tmp_path: Path) -> None:
    content = arrays("embeddings")
    content[WEIGHT] = content[WEIGHT].astype(dtype)
    content[WEIGHT][3, 2, 1, 0] = number
    content[WEIGHT][7] = number
    words = (
        f"{WEIGHT} in {single(tmp_path, content) / SINGLE} holds {np.float64(number)} at [3, 2, 1, 0]; weights must be finite"
    )
    refused(tmp_path, words)


def test_numbers_whose_sum_is_too_large_are_finite(tmp_path: Path) -> None:
    content = {name: array.astype(np.float64) for name, array in arrays("embeddings").items()}
    content[BIAS][:2] = np.finfo(np.float64).max
    with np.errstate(over="raise"):
        assert equal(load_model(single(tmp_path, content)).weights, content)


def test_an_empty_file(tmp_path: Path) -> None:
    (single(tmp_path, arrays("embeddings")) / SINGLE).write_bytes(b"")
    refused(tmp_path, f"{tmp_path / SINGLE} is not a whole safetensors file: ")


@pytest.mark.parametrize("kept", [4, 8, 100, -1, -1000])
def test_a_file_cut_short(kept: int, tmp_path: Path) -> None:
    file = single(tmp_path, arrays("embeddings")) / SINGLE
    file.write_bytes(file.read_bytes()[:kept])
    refused(tmp_path, f"{file} is not a whole safetensors file: ")


def test_a_file_with_something_more_at_its_end(tmp_path: Path) -> None:
    file = single(tmp_path, arrays("embeddings")) / SINGLE
    file.write_bytes(file.read_bytes() + b"more")
    refused(tmp_path, f"{file} is not a whole safetensors file: ")


@pytest.mark.parametrize("place", [0, 7, 8, 20])
def test_a_file_with_a_corrupt_header(place: int, tmp_path: Path) -> None:
    file = single(tmp_path, arrays("embeddings")) / SINGLE
    content = bytearray(file.read_bytes())
    content[place] = 0xFF
    file.write_bytes(content)
    refused(tmp_path, f"{file} is not a whole safetensors file: ")


def test_a_shard_cut_short(tmp_path: Path) -> None:
    folder(tmp_path, shards(arrays("embeddings")))
    file = tmp_path / "model-1-of-3.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    refused(tmp_path, f"{file} is not a whole safetensors file: ")


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint8, np.bool_, ml_dtypes.float8_e4m3fn])
def test_a_type_that_is_no_float(dtype: type, tmp_path: Path) -> None:
    names = {np.int8: "I8", np.int64: "I64", np.uint8: "U8", np.bool_: "BOOL", ml_dtypes.float8_e4m3fn: "F8_E4M3"}
    content = arrays("embeddings")
    file = single(tmp_path, content | {BIAS: np.ones(8, dtype=np.int8)}) / SINGLE
    whole = file.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    start, end = header[BIAS]["data_offsets"]
    if np.dtype(dtype).itemsize > 1:  # as many bytes as before, whatever they mean
        header[BIAS]["shape"] = [(end - start) // np.dtype(dtype).itemsize]
    header[BIAS]["dtype"] = names[dtype]
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
    refused(tmp_path, f"{BIAS} in {file} is of dtype {names[dtype]}; it must be one of F16, BF16, F32, F64")


@pytest.mark.parametrize("shape", [(9,), (8, 1), (), (0,)])
def test_a_wrong_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    content = arrays("embeddings") | {BIAS: np.ones(shape, dtype=np.float32)}
    refused(single(tmp_path, content), f"{BIAS} in {tmp_path / SINGLE} must have shape (8,) by the config; got {shape}")


NO_JSON, NO_OBJECT = "cannot be read as JSON: ", "must hold a JSON object; got "
INDEXES = {"": NO_JSON, "not json": NO_JSON, "[]": NO_OBJECT, "3": NO_OBJECT, "null": NO_OBJECT}
INDEXES |= dict.fromkeys(
    ("{}", '{"weight_map": null}', '{"weight_map": []}', '{"weight_map": {}}'), "is no index of shards: its weight_map "
)


@pytest.mark.parametrize(("index", "words"), INDEXES.items(), ids=repr)
def test_an_index_that_is_none(index: str, words: str, tmp_path: Path) -> None:
    folder(tmp_path, shards(arrays("embeddings")), index=index)
    refused(tmp_path, f"{tmp_path / INDEX} {words}")


OUTSIDE = [
    "../x.safetensors",
    "/etc/x.safetensors",
    "sub/x.safetensors",
    "..",
    ".",
    "",
    "..\\x.safetensors",
    "C:\\x",
    3,
    None,
    ["x"],
]


@pytest.mark.parametrize("file", OUTSIDE, ids=repr)
def test_an_index_that_points_outside_the_folder(file: object, tmp_path: Path) -> None:
    content = arrays("embeddings")
    save_file(content, tmp_path / "x.safetensors")
    folder(tmp_path / "model", {}, index={"weight_map": dict.fromkeys(content, file)})
    name = next(iter(content))
    message = f"{tmp_path / 'model' / INDEX} puts {name} into {file!r}; it must be the name of a file inside the folder"
    refused(tmp_path / "model", message)


def test_an_index_that_lies_about_a_shard(tmp_path: Path) -> None:
    files = shards(arrays("embeddings"), 2)
    names = {name: file for file, content in files.items() for name in content}
    names[BIAS] = next(file for file in files if file != names[BIAS])
    folder(tmp_path, files, index={"weight_map": names})
    refused(tmp_path, f"{tmp_path / names[BIAS]} does not hold {BIAS}, though {INDEX} says so")


def test_an_index_beside_a_single_file_is_not_read(tmp_path: Path) -> None:
    content = arrays("embeddings")
    assert equal(load_model(folder(tmp_path, {SINGLE: content}, index="not json")).weights, content)


def test_a_shard_that_is_a_folder(tmp_path: Path) -> None:
    folder(tmp_path, {}, index={"weight_map": dict.fromkeys(arrays("embeddings"), "a.safetensors")})
    (tmp_path / "a.safetensors").mkdir()
    refused(tmp_path, f"{tmp_path / 'a.safetensors'} is a folder, not a file")

"""A folder of things that are wrong: pictures, checkpoints and ports, and old outputs that must stay as they are."""

import json
import os
import shutil
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from npembed import Config, VisionConfig, random_model
from tests.command_line import done_well, npembed, saved
from tests.synthetic import synthetic_picture

STATED = {"model_type": "minicpmv", "version": 2.6, "drop_vision_last_layer": False}
"""What a config.json must say of itself."""
SMALL = Config(
    vision=VisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2),
    query_num=2,
    embed_dim=128,
)
BIAS = "vpm.embeddings.patch_embedding.bias"
KERNELS = "vpm.embeddings.patch_embedding.weight"
TABLE = "vpm.embeddings.position_embedding.weight"


def checkpoint(folder: Path, arrays: Mapping[str, NDArray[Any]] | None, config: Any = MappingProxyType({})) -> Path:
    """A checkpoint's folder; without arrays, no model.safetensors; config is what config.json says beside the right keys.

    Or it is config.json's whole text, or None for no config.json.
    """
    folder.mkdir(parents=True)
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    stated = STATED | {"hidden_size": 128, "query_num": 2, "vision_config": vision}
    if isinstance(config, Mapping):
        config = json.dumps(stated | dict(config))
    if config is not None:
        (folder / "config.json").write_text(config)
    if arrays is not None:
        save_file(dict(arrays), folder / "model.safetensors")
    return folder


def bad_checkpoints(folder: Path) -> None:
    whole = random_model(SMALL, until="tokens").weights
    first = {name: array for name, array in whole.items() if name.startswith("vpm.embeddings.")}
    checkpoint(folder / "whole", whole)
    checkpoint(folder / "no-resampler", {name: array for name, array in whole.items() if name.startswith("vpm.")})
    checkpoint(folder / "no-encoder", first)
    checkpoint(folder / "no-bias", {name: array for name, array in whole.items() if name != BIAS})
    checkpoint(folder / "no-config", first, config=None)
    checkpoint(folder / "no-arrays", None)
    checkpoint(folder / "config-cut", first, config='{"hidden_size":')
    checkpoint(folder / "config-list", first, config="[]")
    checkpoint(folder / "config-size", first, config={"vision_config": {"hidden_size": 0}})
    checkpoint(folder / "other-family", first, config={"model_type": "idefics9"})
    checkpoint(folder / "version-text", first, config={"version": "v2.6"})
    checkpoint(folder / "no-type", first, config={"model_type": None})
    checkpoint(folder / "other-act", first, config={"vision_config": {"hidden_act": "gelu"}})
    checkpoint(folder / "unread", first | {"vpm.head.probe": np.ones(3, dtype=np.float32)})
    checkpoint(folder / "infinite", first | {BIAS: np.array([0, 0, np.inf, 0, np.nan, 0, 0, 0], dtype=np.float32)})
    checkpoint(folder / "shape", first | {TABLE: first[TABLE][:-1]})
    checkpoint(folder / "integers", first | {KERNELS: first[KERNELS].astype(np.int32)})
    checkpoint(folder / "two-towers", first | {f"other.{name.removeprefix('vpm.')}": first[name] for name in first})
    (content := checkpoint(folder / "cut", first) / "model.safetensors").write_bytes(content.read_bytes()[:-1])
    (checkpoint(folder / "text", None) / "model.safetensors").write_text("these are no arrays")
    for name, shard in (("no-shard", "gone.safetensors"), ("outside", "../whole/model.safetensors")):
        index = json.dumps({"weight_map": dict.fromkeys(first, shard)})
        (checkpoint(folder / name, None) / "model.safetensors.index.json").write_text(index)
    (checkpoint(folder / "index-cut", None) / "model.safetensors.index.json").write_text('{"weight_map":')
    renamed = {name.replace("vpm.", "model.vision." if "bias" in name else "tower."): array for name, array in first.items()}
    checkpoint(folder / "renamed", renamed)


def bad_pictures(folder: Path) -> None:
    picture = synthetic_picture(60, 40)
    saved(picture, folder / "picture.png")
    for name in ("cut.png", "cut.jpg", "cut.gif", "cut.webp"):
        content = saved(picture, folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    content = bytearray(saved(picture, folder / "odd.dds").read_bytes())
    content[80] = 0  # the flags of its pixel format; Pillow's error for them is no ValueError
    (folder / "odd.dds").write_bytes(content)
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("a thousand words")
    saved(picture[..., 0].astype(np.uint16) * 256, folder / "deep.png")
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(1000))]
    framed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    (folder / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))


PORT = """
def boundaries(num_patches_per_side, rule="arange"):
    import npembed
    return npembed.boundaries(num_patches_per_side, rule)
"""


def make_site(folder: Path) -> None:
    """Fill an empty folder."""
    bad_pictures(folder)
    bad_checkpoints(folder / "w")
    for name in ("embeddings", "hidden", "tokens", "old"):
        (folder / f"{name}.safetensors").write_bytes(b"old")
    for name in ("folder", "folder.npz"):
        (folder / name).mkdir()
        (folder / name / "kept.txt").write_text("kept")
    ports = {"port": PORT, "nothing": "x = 1\n", "broken": "def f(:\n", "raises": "1 / 0\n", "leaves": "raise SystemExit(0)\n"}
    for name, code in ports.items():
        (folder / f"{name}.py").write_text(code)
    done_well(npembed("golden", "write", folder / "pack"))
    shutil.copytree(folder / "pack", folder / "unreadable")
    (folder / "unreadable" / "seed.safetensors").write_bytes(b"old")
    (folder / "link").symlink_to("pack/seed.safetensors")
    os.link(folder / "w" / "whole" / "model.safetensors", folder / "hard.safetensors")
    (folder / "same.safetensors").symlink_to("picture.png")
    (folder / "read-only.safetensors").write_bytes(b"old")
    (folder / "read-only.safetensors").chmod(0o444)
    if os.name == "posix":
        os.mkfifo(folder / "fifo.npz")

"""The config that an mmproj file implies: its metadata and shapes, in the layout of the released checkpoints' own files."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from npembed.families import FAMILIES
from npembed.records.family import GgufNames
from npembed.weights.gguf import GgufFile
from npembed.weights.source import WHO, Entry

MAX_SLICE_NUMS = 9
"""Of every released MiniCPM-V; no file says it."""

VERSIONS = {2: ("minicpmv", 2.5), 3: ("minicpmv", 2.6), 4: ("minicpmo", 2.6), 5: ("minicpmv", 4.0)} | {
    6: ("minicpmv", 4.5),
    100045: ("minicpmo", 4.5),
}
"""`clip.minicpmv_version` -> config.json's model_type and version. 6 is MiniCPM-o 4.0's too."""

GGUF_NAMES: Mapping[str, GgufNames] = {family.gguf.projector: family.gguf for family in FAMILIES.values() if family.gguf}
"""By `clip.projector_type`; several families may have one projector, and then one table."""

BLOCK = re.compile(r"v\.blk\.(0|[1-9][0-9]*)\.")


def spelled(pattern: str, block: int | str, tail: str) -> str:
    """The name for which a pattern with `N` and `*` stands.

    Examples
    --------
    >>> spelled("v.blk.N.ln1.*", 3, "bias")
    'v.blk.3.ln1.bias'
    """
    return pattern.replace("*", tail).replace(".N.", f".{block}.")


def stored_blocks(file: GgufFile) -> int:
    """How many blocks are stored: 0, 1, 2 … without a gap."""
    found = sorted({int(match[1]) for match in map(BLOCK.match, file.entries) if match})
    if found != list(range(len(found))):
        missing = next(n for n, number in enumerate(found) if n != number)
        raise ValueError(f"{WHO}: {file.where} holds the block v.blk.{found[-1]}, but no v.blk.{missing}")
    return len(found)


def patch_shape(file: GgufFile) -> tuple[int, ...]:
    """(D, C, P, P), the shape of the convolution's weights."""
    entry = file.entries.get("v.patch_embd.weight")
    if entry is None:
        raise ValueError(f"{WHO}: {file.where} holds no v.patch_embd.weight; it is no mmproj file with a vision tower")
    if len(entry.shape) != 4 or entry.shape[2] != entry.shape[3]:
        raise ValueError(f"{WHO}: v.patch_embd.weight in {file.where} must have shape (D, C, P, P); got {entry.shape}")
    return entry.shape


class Facts:
    """The metadata of a file, each value with its type checked; and the notes that reading them leaves."""

    def __init__(self, file: GgufFile) -> None:
        self.file, self.notes = file, list[str]()

    def fail(self, words: str) -> ValueError:
        return ValueError(f"{WHO}: {self.file.where} {words}")

    def value(self, key: str, kind: type, length: int | None = None) -> Any:
        """The value of a key that must be there."""
        value = self.file.metadata.get(key)
        if value is None:
            raise self.fail(f"states no {key}, which is needed")
        values = value if length is not None and isinstance(value, list) else [value]
        if any(type(each) is not kind for each in values) or (length is not None and len(values) != length):
            what = kind.__name__ if length is None else f"a list of {length} {kind.__name__}"
            raise self.fail(f"states {key} {str(value)[:40]!r}; it must be {what}")
        return value

    def decimal(self, key: str) -> float:
        """A float32 as the shortest decimal that rounds to it, which is what the config said."""
        return float(str(np.float32(self.value(key, float))))

    def decimals(self, key: str, length: int) -> list[float]:
        return [float(str(np.float32(value))) for value in self.value(key, float, length)]

    def agree(self, key: str, found: int, where: str) -> None:
        """What the metadata may leave out, but not contradict."""
        if key in self.file.metadata and self.value(key, int) != found:
            raise self.fail(f"states {key} {self.file.metadata[key]}, but {where} says {found}")

    def projector(self) -> str:
        """The projector, which is what decides the family."""
        if self.file.metadata.get("general.type") == "adapter":
            raise self.fail("is an adapter; merge it into its model first (PEFT: merge_and_unload), and convert that")
        stated = self.file.metadata.get("clip.projector_type", self.file.metadata.get("clip.vision.projector_type"))
        if not isinstance(stated, str) or stated not in GGUF_NAMES:
            what = "states no clip.projector_type" if stated is None else f"has the projector {str(stated)[:40]!r}"
            raise self.fail(f"{what}; known are {', '.join(GGUF_NAMES)}")
        return stated

    def blocks(self, legacy: bool) -> int:
        """The blocks that are stored; a legacy file may state one less, and a file without blocks says how many."""
        stored, stated = stored_blocks(self.file), self.value("clip.vision.block_count", int)
        if legacy and stored == stated + 1:
            self.notes.append(
                f"{self.file.where} states {stated} blocks and holds {stored}; all {stored} are run, as the checkpoint does "
                "(llama.cpp leaves the last one out)"
            )
        elif stored and stored != stated:
            raise self.fail(f"states clip.vision.block_count {stated}, but holds {stored} blocks")
        if legacy and stored == 26 and patch_shape(self.file)[0] == 1152:
            self.notes.append(
                f"{self.file.where} holds 26 blocks; the released checkpoints have 27, so hidden and tokens differ"
            )
        return stored or int(stated)

    def normalisation(self, prefix: str) -> dict[str, list[float]]:
        found = {f"{prefix}_{name}": self.decimals(f"clip.vision.image_{name}", 3) for name in ("mean", "std")}
        if any(value != 0.5 for values in found.values() for value in values):
            stated = " and ".join(f"{name} {values}" for name, values in found.items())
            self.notes.append(f"{self.file.where} states {stated}; the released checkpoints have 0.5 everywhere")
        return found

    def tower(self, entries: Mapping[str, Entry], names: GgufNames, kind: str) -> dict[str, Any]:
        """The `vision_config`."""
        width, channels, patch, _ = patch_shape(self.file)
        if not self.value("clip.use_gelu", bool):
            raise self.fail("states clip.use_gelu false; only gelu, in the tanh form, is known")
        table = entries.get(names.names["v.position_embd.weight"])
        side = 0 if table is None else math.isqrt(table.shape[0])
        if table is None or table.shape != (side * side, width):
            raise self.fail(f"must hold v.position_embd.weight of shape (G², {width}); got {table and table.shape}")
        first = entries.get(spelled(names.names["v.blk.N.ffn_up.*"], 0, "weight"))
        hidden = first.shape[0] if first else self.value("clip.vision.feed_forward_length", int)
        self.agree("clip.vision.patch_size", patch, "v.patch_embd.weight")
        self.agree("clip.vision.embedding_length", width, "v.patch_embd.weight")
        self.agree("clip.vision.feed_forward_length", hidden, "v.blk.0.ffn")
        return {
            "model_type": kind,
            "hidden_size": width,
            "image_size": side * patch,
            "intermediate_size": hidden,
            "layer_norm_eps": self.decimal("clip.vision.attention.layer_norm_epsilon"),
            "num_attention_heads": self.value("clip.vision.attention.head_count", int),
            "num_channels": channels,
            "num_hidden_layers": self.blocks(names.legacy),
            "patch_size": patch,
        }

    def width_of(self, entries: Mapping[str, Entry], name: str, axis: int) -> int:
        """One side of a matrix that must be there."""
        if name not in entries or len(entries[name].shape) != 2:
            raise self.fail(f"must hold {name} with two axes; got {entries[name].shape if name in entries else 'none'}")
        return entries[name].shape[axis]


Configs = tuple[dict[str, Any], dict[str, Any]]
"""config.json and preprocessor_config.json."""


def _version(facts: Facts, queries: int) -> tuple[str, float]:
    """model_type and version. 96 queries are 2.5's; some converters stated 3 whatever the model was, some nothing."""
    stated = facts.file.metadata.get("clip.minicpmv_version")
    if stated is not None and (type(stated) is not int or stated not in VERSIONS):
        raise facts.fail(f"states clip.minicpmv_version {str(stated)[:40]}; known are {', '.join(map(str, VERSIONS))}")
    if queries == 96:
        taken, expected = 2, stated in (None, 2, 3)
    else:
        taken, expected = (3, False) if stated in (None, 2) else (int(stated), True)
    if not expected:
        said = "does not state clip.minicpmv_version" if stated is None else f"states clip.minicpmv_version {stated}"
        facts.notes.append(f"{facts.file.where} {said}; by its {queries} queries it is taken for version {VERSIONS[taken][1]}")
    return VERSIONS[taken]


def _resampler_configs(facts: Facts, entries: Mapping[str, Entry]) -> Configs:
    """MiniCPM-V 2.5 to 4.5 and o."""
    queries, width = (facts.width_of(entries, "resampler.query", axis) for axis in (0, 1))
    if facts.file.metadata.get("clip.minicpmv_query_num", 0) != 0:
        facts.agree("clip.minicpmv_query_num", queries, "resampler.query")
    kind, version = _version(facts, queries)
    if version == 4.0:
        facts.notes.append(
            f"{facts.file.where} may hold resampler.proj divided by the language model's scale_emb, as its converter does "
            "for some models; if so, its tokens are the checkpoint's divided by that"
        )
    vision = facts.tower(entries, GGUF_NAMES["resampler"], "idefics2" if version == 2.5 else "siglip")
    ids = {} if version == 2.5 else {"use_image_id": True}
    config = {
        "model_type": kind,
        "version": version,
        "hidden_size": width,
        "query_num": queries,
        "image_size": facts.value("clip.vision.image_size", int),
        "patch_size": vision["patch_size"],
        "drop_vision_last_layer": False,
        "slice_mode": True,
        "vision_config": vision,
    }
    three = {"batch_3d_resampler": True} if (kind, version) == ("minicpmv", 4.5) else {}
    return config | ids | three, _resampler_preprocessor(config) | ids | facts.normalisation("norm")


def _resampler_preprocessor(config: Mapping[str, Any]) -> dict[str, Any]:
    """What preprocessor_config.json repeats of the config, or adds."""
    old = config["version"] == 2.5
    return {
        "image_processor_type": "MiniCPMVImageProcessor",
        "image_feature_size": config["query_num"],
        "max_slice_nums": MAX_SLICE_NUMS,
        "patch_size": config["patch_size"],
        "scale_resolution": config["image_size"],
        "version": 2.5 if old else 2.6,
    } | ({} if old else {"slice_mode": True})


def _mode(facts: Facts, entries: Mapping[str, Entry]) -> str:
    """16x with the window merger, 4x without it."""
    factor = facts.value("clip.vision.projector.scale_factor", int)
    if factor not in (4, 2):
        raise facts.fail(f"states clip.vision.projector.scale_factor {factor}; it must be 4 or 2")
    windows = any(".vit_merger." in name for name in entries)
    if windows != (factor == 4):
        held = "a" if windows else "no"
        raise facts.fail(f"states clip.vision.projector.scale_factor {factor}, but holds {held} v.vit_merger")
    return "16x" if windows else "4x"


def _v46_configs(facts: Facts, entries: Mapping[str, Entry]) -> Configs:
    """MiniCPM-V 4.6; 4.7 has the same arrays and numbers."""
    mode = _mode(facts, entries)
    vision = facts.tower(entries, GGUF_NAMES["minicpmv4_6"], "minicpmv4_6_vision")
    width = facts.width_of(entries, "model.merger.mlp.0.linear_2.weight", 0)
    facts.agree("clip.vision.projection_dim", width, "mm.down.weight")
    config = {
        "model_type": "minicpmv4_6",
        "downsample_mode": mode,
        "insert_layer_id": facts.value("clip.vision.wa_layer_indexes", int, 1)[0] if mode == "16x" else 6,
        "merger_times": 1,
        "drop_vision_last_layer": False,
        "text_config": {"hidden_size": width},
        "vision_config": vision,
    }
    preprocessor = {
        "image_processor_type": "MiniCPMV4_6ImageProcessor",
        "downsample_mode": mode,
        "max_slice_nums": MAX_SLICE_NUMS,
        "scale_resolution": facts.value("clip.vision.image_size", int),
        "patch_size": vision["patch_size"],
        "slice_mode": True,
        "use_image_id": True,
    }
    return config, preprocessor | facts.normalisation("image")


def _idefics3_configs(facts: Facts, entries: Mapping[str, Entry]) -> Configs:
    """Idefics3 and SmolVLM, whose numbers are made alike; the file's name for the model decides between them."""
    names = [str(facts.file.metadata.get(f"general.{key}", "")).lower() for key in ("basename", "name")]
    kind, title = ("smolvlm", "SmolVLM") if any("smolvlm" in name for name in names) else ("idefics3", "Idefics3")
    vision = facts.tower(entries, GGUF_NAMES["idefics3"], f"{kind}_vision")
    facts.agree("clip.vision.image_size", vision["image_size"], "v.position_embd.weight")
    factor = facts.value("clip.vision.projector.scale_factor", int)
    width, inner = (facts.width_of(entries, "model.connector.modality_projection.proj.weight", axis) for axis in (0, 1))
    if inner != vision["hidden_size"] * factor**2:
        raise facts.fail(f"states clip.vision.projector.scale_factor {factor}, but mm.model.fc.weight has rows of {inner}")
    facts.agree("clip.vision.projection_dim", width, "mm.model.fc.weight")
    config = {
        "model_type": kind,
        "scale_factor": factor,
        "text_config": {"hidden_size": width},
        "vision_config": vision,
    }
    preprocessor = {
        "image_processor_type": f"{title}ImageProcessor",
        **dict.fromkeys(("do_convert_rgb", "do_image_splitting", "do_normalize", "do_pad", "do_rescale", "do_resize"), True),
        "max_image_size": {"longest_edge": vision["image_size"]},
        "size": {"longest_edge": facts.value("clip.vision.preproc_image_size", int)},
        "resample": 1,
        "rescale_factor": 1 / 255,
    }
    return config, preprocessor | facts.normalisation("image")


CONFIGS: Mapping[str, Callable[[Facts, Mapping[str, Entry]], Configs]] = {
    "resampler": _resampler_configs,
    "minicpmv4_6": _v46_configs,
    "idefics3": _idefics3_configs,
}

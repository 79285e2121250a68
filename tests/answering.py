"""How a port of `tests.ports` answers a golden pack: the files that it would write."""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import npembed
from npembed.conformance import Pack
from npembed.records.model import Model
from npembed.support.output_files import load_tensors, save_tensors
from npembed.support.typing import Array

STAGES: Mapping[str, tuple[str, ...]] = {
    "slice_image": ("sliced_tgt_sizes", "sliced_strips"),
    "pad_pixel_values": ("pixel_values",),
    "patch_attention_mask": ("patch_attn_mask",),
    "position_ids": ("position_ids", "masked_position_ids"),
    "bucket_coords": ("bucket_coords",),
    "embed": ("embeddings",),
    "encode": ("hidden",),
    "resample": ("tokens", "frame_tokens"),
    "image_placeholder": ("text",),
    "image_bounds": ("image_bound",),
    "scatter_image_embeds": ("inputs_embeds",),
}
"""The stages that each public function gives."""


def answer(pack: Pack, port: Any, folder: Path, functions: Iterable[str] = STAGES, *, chained: bool = False) -> Path:
    """The port's files: what these functions give, each from the pack's values, or from what the port itself gave before.

    What a function raises on leaves its tensor out, as it would a file.
    """
    folder.mkdir()
    wanted = {stage for function in functions for stage in STAGES.get(function, ())}
    models = {case["model"]: _model(pack.folder / case["model"]) for case in pack.manifest["cases"]}
    for case in pack.manifest["cases"]:
        tensors = _of_case(pack, port, case, models[case["model"]], wanted, chained)
        if tensors:
            save_tensors(folder / case["expected"], tensors, {})
    return folder


def _model(folder: Path) -> Model:
    """With every array of the checkpoint, those too that no stage reads."""
    return Model(npembed.read_config(folder), load_tensors(folder / "model.safetensors"))


def _of_case(
    pack: Pack, port: Any, case: dict[str, Any], model: Model, wanted: Collection[str], chained: bool
) -> dict[str, Array]:
    model = port.own_model(model) if hasattr(port, "own_model") else model
    given, own = pack.tensors(case["input"]), {}
    read = {**pack.tensors(case["expected"]), **given}
    for stage in (told["stage"] for told in case["stages"] if told["stage"] in wanted):
        try:
            own[stage] = np.asarray(_CALLS[stage](port, {**read, **(own if chained else {})}, model))
        except (KeyError, ValueError, IndexError):
            continue
    return own


def _strips(read: Mapping[str, Array]) -> list[Array]:
    return [read[f"strips.{number}"] for number in range(len(read["tgt_sizes"]))]


def _side(model: Model) -> int:
    return model.config.vision.num_patches_per_side


def _every_bucket(port: Any, read: Mapping[str, Array], model: Model) -> Array:
    return np.concatenate([port.bucket_coords(n, _side(model)) for n in read["num_patches"].tolist()])


def _frame_tokens(port: Any, read: Mapping[str, Array], model: Model) -> Array:
    ends = np.cumsum(read["frame_groups"])[:-1]
    groups = [group.tolist() for group in np.split(read["frame_times"], ends)]
    return port.resample(read["frame_hidden"], read["tgt_sizes"], model, groups)


def _text(port: Any, read: Mapping[str, Array], model: Model) -> Array:
    text = port.image_placeholder(read["grid"].tolist(), int(read["image_id"]), model.config)
    return np.frombuffer(text.encode(), dtype=np.uint8)


_CALLS: Mapping[str, Callable[[Any, Mapping[str, Array], Model], Any]] = {
    "sliced_tgt_sizes": lambda port, read, model: port.slice_image(read["picture"], model.config)[1],
    "sliced_strips": lambda port, read, model: np.concatenate(port.slice_image(read["picture"], model.config)[0], axis=-1),
    "pixel_values": lambda port, read, model: port.pad_pixel_values(_strips(read)),
    "patch_attn_mask": lambda port, read, model: port.patch_attention_mask(read["tgt_sizes"]),
    "position_ids": lambda port, read, model: port.position_ids(read["tgt_sizes"], _side(model)),
    "masked_position_ids": lambda port, read, model: port.position_ids(
        read["tgt_sizes"], _side(model), mask=read["patch_mask"]
    ),
    "bucket_coords": _every_bucket,
    "embeddings": lambda port, read, model: port.embed(_strips(read), read["tgt_sizes"], model),
    "hidden": lambda port, read, model: port.encode(read["embeddings"], read["tgt_sizes"], model),
    "tokens": lambda port, read, model: port.resample(read["hidden"], read["tgt_sizes"], model),
    "frame_tokens": _frame_tokens,
    "text": _text,
    "image_bound": lambda port, read, model: port.image_bounds(read["input_ids"], read["start_ids"], read["end_ids"]),
    "inputs_embeds": lambda port, read, model: port.scatter_image_embeds(
        read["text_embeds"], read["vision_tokens"], read["image_bound"]
    ),
}


def at_precision(port: Any, precision: str) -> SimpleNamespace:
    """The port, which takes the pack's models in that float type."""

    def own_model(model: Model) -> Model:
        return Model(model.config, {name: array.astype(precision) for name, array in model.weights.items()})

    names = {function: getattr(port, function) for function in STAGES}
    return SimpleNamespace(**names, own_model=own_model)

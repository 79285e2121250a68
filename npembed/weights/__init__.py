"""Where a model's arrays come from: a folder, a GGUF file, the Hub, any URL; one interface, a module per kind of source.

- `source`: the interface, and what every kind of source shares.
- `safetensors_header`: the names, types and places of the arrays in a safetensors file, from the file's first bytes.
- `ranges`: parts of files, on this machine or over HTTP, checked.
- `gguf`: the container of llama.cpp; `mmproj`, `gguf_names`, `gguf_config`: its vision towers as a source.
- `remote`: a checkpoint's folder that is somewhere else. `hub`, `cache`: a repository of the Hugging Face Hub, and what is kept
  of it.
- `url`: a folder or a file at any URL.
- `folder`: a checkpoint's folder on this machine. `seeded`: random weights.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from npembed.config import FamilyConfig
from npembed.families import config_of
from npembed.model import Model, all_shapes, shapes_of, some
from npembed.typing import Floats
from npembed.weights.folder import Folder
from npembed.weights.seeded import random_model
from npembed.weights.source import Source

__all__ = ["load_model", "random_model", "read_config"]


def read_config(folder: str | Path) -> FamilyConfig:
    """The sizes that a checkpoint's folder states, as its family reads them.

    Parameters
    ----------
    folder : path
        Holds config.json and, if the family has one, preprocessor_config.json, whose values win; before it counts the
        `image_processor` of processor_config.json, as in transformers. What neither gives is the default of the family's own
        code.

    Returns
    -------
    Config, or another family's

    Raises
    ------
    ValueError
        No folder, no config.json; a file that is not a JSON object; a family that is not supported; a key that is not known
        and may change the numbers; a size that is not a size. Each is named with its folder.

    Notes
    -----
    Source: SPEC 1 and 13.1.

    Examples
    --------
    >>> read_config("no/such/folder")
    Traceback (most recent call last):
    ...
    ValueError: read_config: no/such/folder is not a folder
    """
    return _config(Folder(folder, "read_config"), "read_config")


def _config(source: Source, who: str) -> FamilyConfig:
    top = source.json("config.json")
    if top is None:
        raise ValueError(f"{who}: {source.where} has no config.json")
    return config_of(top, _preprocessor(source, who), who, source.where)


def _preprocessor(source: Source, who: str) -> Mapping[str, Any]:
    """How pictures are cut: `image_processor` of processor_config.json, which transformers 5 saves, or the older file."""
    nested = (source.json("processor_config.json") or {}).get("image_processor")
    if nested is None:
        return source.json("preprocessor_config.json") or {}
    if not isinstance(nested, dict):
        raise ValueError(
            f"{who}: image_processor of processor_config.json must be a JSON object; got {nested!r} (in {source.where})"
        )
    return nested


def load_model(source: str | Path, until: str | None = None) -> Model:
    """The model in a checkpoint's folder; only the arrays that are needed are read.

    Parameters
    ----------
    source : path
        A folder with config.json, and model.safetensors or shards with model.safetensors.index.json.
    until : str, optional
        The last stage that is wanted. Without it: every stage that the checkpoint holds.

    Returns
    -------
    Model

    Raises
    ------
    ValueError
        What `read_config` refuses; no folder, no weights; a shard that is missing, truncated or no safetensors file; an index
        that is not JSON or that points outside the folder; an array that is missing, of a dtype other than F16, BF16, F32 or
        F64, of a shape that the config does not give, or with a number that is not finite; an array of the vision tower or
        the connector that no stage reads.
    ImportError
        Without the extra `weights`.

    Notes
    -----
    Source: SPEC 10 and 13.

    Examples
    --------
    >>> load_model("no/such/folder")
    Traceback (most recent call last):
    ...
    ValueError: load_model: no/such/folder is not a folder
    """
    opened = Folder(source)
    config = _config(opened, "load_model")
    names = set(opened.names())
    config = config.family.layout(config, names)
    _refuse_unread(config, names, opened.where)
    family = config.family
    stages = family.vision_stages if until is None else family.stages_until(until, "load_model")
    weights: dict[str, Floats] = {}
    for number, stage in enumerate(stages):
        shapes = shapes_of(stage, config)
        missing = [name for name in shapes if name not in names]
        if until is None and number and len(missing) == len(shapes):
            break
        if missing:
            works = f"; until={stages[number - 1].name!r} still works" if number else ""
            raise ValueError(f"load_model: {opened.where} lacks {some(missing)}, which the stage {stage.name!r} needs{works}")
        weights |= {name: opened.read(name, shape) for name, shape in shapes.items()}
    return Model(config, weights)


def _refuse_unread(config: FamilyConfig, names: Collection[str], where: str) -> None:
    """An error if the tower or the connector has an array that no stage reads: it would change the numbers."""
    family = config.family
    known = {*all_shapes(config), *family.unread(config)}
    unread = sorted(name for name in names if name.startswith(family.owns) and name not in known)
    if unread:
        raise ValueError(f"load_model: {where} has {some(unread)}, which no stage of {family.title} reads; so it is refused")

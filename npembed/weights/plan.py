"""What is to be read of a source: its config, the stages that are wanted, and the arrays that they need."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from npembed.families import config_of
from npembed.records.config import FamilyConfig
from npembed.records.model import all_shapes, shapes_of, some
from npembed.support.typing import Shapes
from npembed.weights.source import WHO, Source, behind, quantised


@dataclass(frozen=True)
class Plan:
    """What is to be read of a source.

    Attributes
    ----------
    config : Config, or another family's
    stage : str
        The last stage that is wanted, or that the source has.
    shapes : mapping of str to tuple of int
        The arrays that the stages need.
    """

    config: FamilyConfig
    stage: str
    shapes: Shapes


def read_source_config(source: Source, who: str) -> FamilyConfig:
    """The config that a source's JSON files state."""
    top = source.json("config.json")
    if top is None:
        raise ValueError(f"{who}: {source.where} has no config.json{source.hint()}")
    return config_of(top, _preprocessor(source, who), who, source.where)


def _preprocessor(source: Source, who: str) -> Mapping[str, Any] | None:
    """How pictures are cut: `image_processor` of processor_config.json, which transformers 5 saves, or the older file."""
    nested = (source.json("processor_config.json") or {}).get("image_processor")
    if nested is None:
        return source.json("preprocessor_config.json")
    if not isinstance(nested, dict):
        raise ValueError(
            f"{who}: image_processor of processor_config.json must be a JSON object; got {nested!r} (in {source.where})"
        )
    return nested


def plan(source: Source, until: str | None) -> Plan:
    """What is to be read until that stage, or until the last stage that the source has; found out by names alone.

    Raises
    ------
    ValueError
        A config that is refused; arrays that are missing, or that no stage reads.
    """
    stated = read_source_config(source, WHO)
    names = set(source.names())
    config = stated.family.layout(stated, names)
    if unread := unknown(config, names):
        words = f"{WHO}: {source.where} has {some(unread)}, which no stage of {config.family.title} reads; so it is refused"
        missing = [name for name in all_shapes(config) if name not in names]
        raise ValueError(words + behind(missing, unread) + quantised(unread))
    family = config.family
    stages = family.vision_stages if until is None else family.stages_until(until, WHO)
    shapes: Shapes = {}
    for number, stage in enumerate(stages):
        own = shapes_of(stage, config)
        missing = [name for name in own if name not in names]
        if until is None and number and len(missing) == len(own):
            stages = stages[:number]
            break
        if missing:
            works = f"; until={stages[number - 1].name!r} still works" if number else ""
            words = f"{WHO}: {source.where} lacks {some(missing)}, which the stage {stage.name!r} needs{works}"
            raise ValueError(words + behind(missing, names) + quantised(names))
        shapes |= own
    return Plan(config, stages[-1].name, shapes)


def unknown(config: FamilyConfig, names: Collection[str]) -> list[str]:
    """The arrays of the tower or the connector that no stage reads: they would change the numbers."""
    family = config.family
    known = {*all_shapes(config), *family.unread(config)}
    return sorted(name for name in names if name.startswith(family.owns) and name not in known)

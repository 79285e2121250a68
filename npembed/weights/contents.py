"""What a source of weights holds, per stage, without reading a number of it."""

from collections.abc import Collection
from dataclasses import dataclass

from npembed.records.config import FamilyConfig
from npembed.records.family import Stage
from npembed.records.model import all_shapes, shapes_of, some
from npembed.weights.plan import read_source_config, unknown
from npembed.weights.source import WHO, Source, behind, check_entries


@dataclass(frozen=True)
class StageContents:
    """What a source holds of the arrays that are needed until one stage.

    Attributes
    ----------
    name : str
    arrays : int
        How many are needed.
    nbytes : int
        Of those that are there, as stored.
    types : tuple of str
        safetensors' or GGUF's names, the most frequent first.
    problem : str
        Why the stage does not work; "" where it does.
    """

    name: str
    arrays: int
    nbytes: int
    types: tuple[str, ...]
    problem: str


@dataclass(frozen=True)
class Contents:
    """What a source holds.

    Attributes
    ----------
    where : str
    config : Config, or another family's
    stages : tuple of StageContents
    unknown : list of str
        Arrays of the tower or the connector that no stage reads, because of which the source is refused.
    others : list of str
        Arrays outside them: the language model's.
    """

    where: str
    config: FamilyConfig
    stages: tuple[StageContents, ...]
    unknown: list[str]
    others: list[str]


def contents(source: Source) -> Contents:
    """What a source holds; only its config and the headers of its files are read."""
    stated = read_source_config(source, WHO)
    names = set(source.names())
    config = stated.family.layout(stated, names)
    stages = config.family.vision_stages
    others = sorted(name for name in names - set(all_shapes(config)) if not name.startswith(config.family.owns))
    found = tuple(_contents(source, config, stages[: number + 1], names) for number in range(len(stages)))
    return Contents(source.where, config, found, unknown(config, names), others)


def _contents(source: Source, config: FamilyConfig, stages: Collection[Stage], names: Collection[str]) -> StageContents:
    """Of the last of these stages."""
    shapes = {name: shape for stage in stages for name, shape in shapes_of(stage, config).items()}
    missing = [name for name in shapes if name not in names]
    there = {name: shape for name, shape in shapes.items() if name in names}
    *_, last = stages
    try:
        check_entries(source, there)
        entries, problem = (
            [source.entry(name) for name in there],
            f"lacks {some(missing)}{behind(missing, names)}" if missing else "",
        )
    except ValueError as error:
        entries, problem = [], str(error).removeprefix(f"{WHO}: ")
    types = [entry.dtype for entry in entries]
    ranked = tuple(sorted(dict.fromkeys(types), key=lambda kind: (-types.count(kind), kind)))
    return StageContents(last.name, len(shapes), sum(entry.nbytes for entry in entries), ranked, problem)

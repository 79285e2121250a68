"""The README.md of a pack: what every tensor in it is, from the manifest and the records of the stages."""

import re
from pathlib import Path
from string import Template
from typing import Any

from npembed.conformance.bounds import DISTANCE_FLOOR, DISTANCE_MULTIPLE, HALF_FLOOR, HALF_MULTIPLE, WIDE
from npembed.conformance.golden.inputs import INPUTS
from npembed.conformance.golden.more_stages import MORE_STAGES
from npembed.families import get_family
from npembed.records.family import Stage

TEMPLATE = Path(__file__).with_name("pack_readme.md")


def readme(manifest: dict[str, Any]) -> str:
    """The text of the README, from a manifest as far as it is made."""
    family = get_family(manifest["family"], "golden write")
    stages = {stage.name: stage for stage in (*family.stages, *MORE_STAGES)}
    used = dict.fromkeys(stage["stage"] for case in manifest["cases"] for stage in case["stages"])
    tolerances = {stage["stage"]: stage["tolerance"]["kind"] for case in manifest["cases"] for stage in case["stages"]}
    read = dict.fromkeys(name for stage in used for name in stages[stage].reads if name in INPUTS)
    given = {re.sub(r"\.\d+$", ".*", name) for case in manifest["cases"] for name in case["inputs"]}
    reads = [name for name in read if name in given]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        family=family.title,
        key=family.key,
        rule=f"position rule `{manifest['rule']}`" if manifest["rule"] else "whose positions follow no rule",
        version=manifest["npembed"],
        count=len(manifest["cases"]),
        models=_models(manifest["models"]),
        inputs=_rows((f"`{name}`", INPUTS[name].axes, INPUTS[name].about) for name in reads),
        stages=_rows(_stage_row(stages[name], tolerances[name]) for name in used),
        padding=_padding(manifest, stages),
        multiple=DISTANCE_MULTIPLE,
        floor=DISTANCE_FLOOR,
        half_multiple=HALF_MULTIPLE,
        half_floor=HALF_FLOOR,
        wide=WIDE,
        cases=_rows((f"`{case['name']}`", f"`{case['model']}`", case["about"]) for case in manifest["cases"]),
    )


def _rows(rows: Any) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _stage_row(stage: Stage, tolerance: str) -> tuple[str, ...]:
    return f"`{stage.name}`", stage.axes, stage.about, ", ".join(f"`{name}`" for name in stage.reads), tolerance


def _models(models: dict[str, dict[str, Any]]) -> str:
    """A table of the sizes, and how they are called in config.json."""
    names = list(next(iter(models.values())))
    head = f"\n\n| model | {' | '.join(names)} |\n|---|{'---|' * len(names)}\n"
    rows = _rows((f"`{where}`", *(str(sizes[name]) for name in names)) for where, sizes in models.items())
    words = (
        "\n\nA model's folder is a checkpoint of the family: config.json, preprocessor_config.json, model.safetensors. In "
        "config.json `vision_config.hidden_size` is D, and a `hidden_size` elsewhere is E; G is `vision_config.image_size` "
        "// P, and an `image_size` at the top says nothing of it."
    )
    absent = "\n\nThe model is a checkpoint that is not in the pack; its config is, in the folder `given`."
    return head + rows + (absent if "given" in models else words)


def _padding(manifest: dict[str, Any], stages: dict[str, Stage]) -> str:
    """Which padded places are compared, and which are not, by the records."""
    used = {stage["stage"] for case in manifest["cases"] for stage in case["stages"]}
    partly = {stage["stage"] for case in manifest["cases"] for stage in case["stages"] if stage["places"] == "patches"}
    words = ["In the input `strips.*` have no padding."] if "pixel_values" in used else []
    if "embeddings" in used:
        words.append(
            "In a padded place the pixels are 0 and the position is that of id 0, so `embeddings` hold the bias plus the "
            "first row of positions there, unless the family says otherwise; it is compared."
        )
    if "hidden" in used and "hidden" in partly:
        words.append(
            "Padded places of `hidden` hold zeros and are not compared: only the first `counts[b]` places of slice b are."
        )
    elif "hidden" in used:
        words.append("All places of `hidden` are compared, padded ones too: in this family they take part in the tower.")
    if "tokens" in used:
        words.append("`tokens` hold zeros beyond a slice's own count; that is compared.")
    return " ".join(words)

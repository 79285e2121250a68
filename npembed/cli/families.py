"""`npembed families`: every family that is supported, what it is known by, its stages, and how it was checked."""

import json
from typing import Annotated, Any

import typer

from npembed.families import FAMILIES
from npembed.records.family import Family


def families(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the families of models: how each is recognised, its stages, its rule, how it was checked."""
    found = [_about(family) for family in FAMILIES.values()]
    if as_json:
        print(json.dumps({"families": found}, ensure_ascii=False, indent=1), flush=True)
        return
    for about in found:
        versions = f", version {' or '.join(map(str, about['versions']))}" if about["versions"] else ""
        print(f"{about['key']}: {about['title']}")
        print(f"  model_type {' or '.join(about['model_types'])}{versions}")
        print(f"  stages {', '.join(about['stages'])}; position rule: {about['rule'] or 'none'}")
        print(f"  sizes of {', '.join(about['presets'])}")
        print(f"  compared with {about['checked']}", flush=True)


def _about(family: Family) -> dict[str, Any]:
    """What the command says of one family."""
    return {
        "key": family.key,
        "title": family.title,
        "model_types": list(family.model_types),
        "versions": list(family.versions),
        "stages": [stage.name for stage in family.vision_stages],
        "rule": family.rule,
        "presets": list(family.presets()),
        "checked": family.checked,
    }

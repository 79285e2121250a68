"""`npembed families` says of every family what its record says."""

import json

import pytest

from npembed import FAMILIES
from npembed.cli import run


def test_the_json_is_the_records(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["families", "--json"]) == 0
    found = {about["key"]: about for about in json.loads(capsys.readouterr().out)["families"]}
    assert list(found) == list(FAMILIES)
    for key, family in FAMILIES.items():
        assert found[key]["title"] == family.title
        assert found[key]["stages"] == [stage.name for stage in family.vision_stages]
        assert found[key]["versions"] == list(family.versions)
        assert found[key]["rule"] == family.rule
        assert found[key]["checked"] == family.checked


def test_the_screen_names_each_family_its_stages_and_its_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["families"]) == 0
    shown = capsys.readouterr().out
    for family in FAMILIES.values():
        assert f"{family.key}: {family.title}\n" in shown
        assert f"stages {', '.join(stage.name for stage in family.vision_stages)}; " in shown
        assert f"compared with {family.checked}\n" in shown
    assert "siglip: SigLIP and SigLIP2 of fixed size\n  model_type siglip" in shown

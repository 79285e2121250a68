"""The state of the ports: the table of releases, and the page that is made from a JSON. Nothing is installed."""

import importlib.util
import json
import sys
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import npembed
from benchmarks.ports import command, environment, page
from benchmarks.ports.environment import MODULES, Environment, NotRunError, last_words
from benchmarks.ports.releases import RELEASES, TORCH, releases

OF_TRANSFORMERS = ("transformers-4.54.1", "transformers-4.57.6", "transformers-newest")

PASSING = {"name": "embed", "status": "pass", "summary": "31 inputs"}
FAILING = {
    "name": "encode",
    "status": "fail",
    "summary": "element [0, 0, 0] is -1.678, should be -1.679 ± 5e-06",
    "call": "encode(…)",
    "came": "[-1.678]",
    "expected": "[-1.679]",
    "cause": "eps 1e-5 in post_layernorm alone",
    "worst": 7.86,
}
IDEFICS3 = {
    "module": "mlx_idefics3",
    "title": "Idefics3",
    "family": "idefics3",
    "rules": ["mlx"],
    "judged_by": "mlx",
    "nearest": ["mlx", 0],
    "outcomes": [PASSING, FAILING],
}
MINICPM = {
    "module": "mlx_minicpmv4_6",
    "title": "MiniCPM-V 4.6",
    "family": "minicpm-v-4.6",
    "not_run": "no module of that name",
}
WITH = {"npembed": "0.1.0", "commit": "abc1234", "processor": "A processor", "system": "Linux x86_64"}
DONE: dict[str, Any] = {
    "format": page.FORMAT,
    "releases": {
        "mlx-vlm": {
            "when": "2026-11-25 08:00 UTC",
            "with": WITH,
            "versions": {"mlx-vlm": "0.7.10", "mlx": "0.32.4"},
            "ports": [IDEFICS3, MINICPM],
        },
        "openvino": {"when": "2026-11-25 08:10 UTC", "with": WITH, "ports": [], "not_run": "no wheel for this Python"},
    },
}


def port_done(**changes: Any) -> dict[str, Any]:
    """The JSON of one port alone, with some keys changed."""
    done = deepcopy(DONE)
    done["releases"] = {"mlx-vlm": done["releases"]["mlx-vlm"] | {"ports": [IDEFICS3 | changes]}}
    return done


# The releases


def test_each_release_has_a_name_a_package_and_ports() -> None:
    names = [release.name for release in RELEASES]
    assert len(set(names)) == len(names)
    for release in RELEASES:
        assert any(requirement.split("==")[0] == release.package for requirement in release.requirements)
        assert release.ports


def test_the_releases_that_were_asked_for_are_there() -> None:
    names = {release.name for release in RELEASES}
    versions = ("4.54.1", "4.55.2", "4.57.6", "5.12.0", "5.23.0", "newest")
    assert {f"transformers-{version}" for version in versions} | {"mlx-vlm", "onnxruntime", "openvino", "torch"} == names


def test_torch_is_pinned_wherever_it_is_installed() -> None:
    assert "==" in TORCH
    needing = [release for release in RELEASES if {"transformers", "mlx-vlm", "torch"} & {release.package}]
    assert all(TORCH in release.requirements for release in needing)


def test_each_port_has_a_family_and_a_module_that_says_what_it_is() -> None:
    for release in RELEASES:
        for port in release.ports:
            assert port.family in npembed.FAMILIES, port
            file = MODULES / f"{port.module}.py"
            assert file.is_file(), port
            assert file.read_text(encoding="utf-8").startswith('"""'), port


def test_each_module_is_a_ports_or_is_shared() -> None:
    shared = {"torch_towers", "mlx_towers", "onnx_graphs", "which_rule", "check_ports"}
    ports = {port.module for release in RELEASES for port in release.ports}
    assert {file.stem for file in MODULES.glob("*.py")} == ports | shared


def test_releases_are_picked_by_name() -> None:
    assert [release.name for release in releases(["torch", "mlx-vlm"])] == ["mlx-vlm", "torch"]
    assert releases(None) == RELEASES
    with pytest.raises(ValueError, match=r"--only must be one of transformers-4\.54\.1, .*; got 'jax'"):
        releases(["jax"])


def test_a_wrong_name_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(["--only", "jax"])
    assert "--only must be one of" in capsys.readouterr().err


# The page


def test_the_page_shows_what_passes_and_what_departs_with_its_size_and_smallest_input() -> None:
    text = page.markdown(DONE)
    assert "| mlx-vlm 0.7.10 | Idefics3 | `mlx` |  | pass | **FAIL** 7.9 × |  |  |" in text
    assert "### mlx-vlm 0.7.10: Idefics3" in text
    for line in (
        "- **encode**: element [0, 0, 0] is -1.678, should be -1.679 ± 5e-06",
        "  - smallest input: `encode(…)`",
        "  - likely cause: eps 1e-5 in post_layernorm alone",
    ):
        assert line in text.splitlines()


def test_the_page_says_when_and_with_what() -> None:
    text = page.markdown(DONE)
    assert "Run on 2026-11-25, npembed 0.1.0 (abc1234), A processor, Linux x86_64." in text
    assert "| mlx-vlm | 2026-11-25 08:00 UTC | mlx-vlm 0.7.10, mlx 0.32.4 |" in text


def test_each_run_says_its_own_day() -> None:
    done = deepcopy(DONE)
    done["releases"]["openvino"]["when"] = "2026-12-01 00:00 UTC"
    lines = page.markdown(done).splitlines()
    assert "- openvino: run on 2026-12-01, npembed 0.1.0 (abc1234), A processor, Linux x86_64." in lines


def test_what_was_not_run_is_said_with_its_reason() -> None:
    lines = page.markdown(DONE).splitlines()
    assert "- mlx-vlm 0.7.10: MiniCPM-V 4.6: no module of that name" in lines
    assert "- openvino: no wheel for this Python" in lines
    missing = ", ".join(release.name for release in RELEASES if release.name not in DONE["releases"])
    assert f"Not in this run at all: {missing}." in lines
    assert any(line.startswith("- transformers-4.54.1; ") and line.endswith("not been run for it") for line in lines)


def test_the_familys_own_rule_is_bold_and_none_is_said_with_the_nearest() -> None:
    assert "| **`step`** |" in page.markdown(port_done(rules=["step"]))
    assert "| `quotient` or `exact` |" in page.markdown(port_done(rules=["quotient", "exact"]))
    text = page.markdown(port_done(rules=[], judged_by=None, nearest=["mlx", 12]))
    assert "| none; nearest is `mlx`, 12 of 600 sizes differ |" in text
    assert "| Idefics3 |  |" in page.markdown(port_done(rules=[], judged_by=None, nearest=None))


def test_a_failure_without_a_cause_or_a_size_is_one_all_the_same() -> None:
    plain = {"name": "encode", "status": "fail", "summary": "raised ValueError: no", "worst": "infinite"}
    text = page.markdown(port_done(outcomes=[plain]))
    assert "| **FAIL** |" in text
    assert "  - no known cause" in text.splitlines()


def test_what_was_found_by_hand_is_on_the_page_where_its_port_departs() -> None:
    (note,) = (port.note for port in releases(["mlx-vlm"])[0].ports if port.module == "mlx_idefics3")
    assert f"\n\nFound by hand: {note}\n\n" in page.markdown(port_done())
    assert "Found by hand" not in page.markdown(port_done(outcomes=[PASSING]))


def test_releases_that_depart_alike_have_one_section() -> None:
    done = port_done()
    done["releases"]["torch"] = done["releases"]["mlx-vlm"] | {"versions": {"torch": "2.13.0"}}
    assert "### mlx-vlm 0.7.10, torch 2.13.0: Idefics3" in page.markdown(done)


def test_a_page_of_passes_says_that_nothing_departs() -> None:
    text = page.markdown(port_done(outcomes=[PASSING]))
    assert "FAIL" not in text.split("## At a glance")[1]
    assert "## What departs\n\nNothing.\n" in text


def test_long_calls_are_cut_on_the_page() -> None:
    text = page.markdown(port_done(outcomes=[FAILING | {"call": "1, " * 1000}]))
    assert max(map(len, text.splitlines())) < 1000


def test_the_page_in_the_tree_is_the_one_that_its_json_makes() -> None:
    done = json.loads(command.JSON.read_text(encoding="utf-8"))
    assert command.PAGE.read_text(encoding="utf-8") == page.markdown(done)
    assert list(done["releases"]) == [release.name for release in RELEASES if release.name in done["releases"]]


def test_no_folder_of_a_machine_is_in_the_page_or_its_json() -> None:
    for file in (command.JSON, command.PAGE):
        text = file.read_text(encoding="utf-8")
        assert not [word for word in ("/tmp/", "/root/", "/home/", "site-packages/", "\\Users\\") if word in text]


def test_what_is_known_to_be_found_is_on_the_page() -> None:
    done = json.loads(command.JSON.read_text(encoding="utf-8"))["releases"]

    def port(release: str, title: str) -> Any:
        return next(each for each in done[release]["ports"] if each["title"] == title)

    def failing(release: str, title: str) -> set[str]:
        return {outcome["name"] for outcome in port(release, title)["outcomes"] if outcome["status"] == "fail"}

    rules = {name: port(name, "Idefics2")["rules"] for name in OF_TRANSFORMERS}
    assert rules == dict(zip(OF_TRANSFORMERS, (["arange"], ["shrunk"], ["step"]), strict=True))
    assert "quotient" in port("transformers-newest", "MiniCPM-V 4.6")["rules"]
    assert port("transformers-5.12.0", "MiniCPM-V 4.6")["rules"] == ["arange"]
    assert port("mlx-vlm", "Idefics2")["rules"] == ["digitize"]
    assert {"position_ids", "encode"} <= failing("mlx-vlm", "Idefics2")
    assert {"position_ids", "embed", "encode"} <= failing("mlx-vlm", "Idefics3")


# What runs the kit


def test_each_release_is_put_among_those_that_are_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "JSON", tmp_path / "ports.json")
    for name in ("torch", "mlx-vlm", "torch"):
        command.keep(releases([name])[0], {"not_run": name, "ports": []})
    found = command.read()
    assert found["format"] == page.FORMAT
    assert [(name, release["not_run"]) for name, release in found["releases"].items()] == [
        ("mlx-vlm", "mlx-vlm"),
        ("torch", "torch"),
    ]


def test_ports_that_were_not_looked_at_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "JSON", tmp_path / "ports.json")
    (release,) = releases(["mlx-vlm"])
    for modules in (None, ["mlx_smolvlm"], ["mlx_minicpmo", "mlx_idefics2"]):
        chosen = command._with_ports(release, modules)
        command.keep(release, {"ports": [{"module": port.module, "run": modules} for port in chosen.ports]})
    ports = command.read()["releases"]["mlx-vlm"]["ports"]
    assert [port["module"] for port in ports] == [port.module for port in release.ports]
    assert [port["run"] for port in ports if port["module"] == "mlx_smolvlm"] == [["mlx_smolvlm"]]
    assert [port["run"] for port in ports if port["module"] == "mlx_idefics3"] == [None]


class Canned(Environment):
    """An environment that installs nothing: `make`, `versions` and `run` give what they are told."""

    said: dict[str, Any]

    def make(self) -> None:
        """Or an error."""
        if "error" in self.said:
            raise NotRunError(self.said["error"])

    def versions(self) -> dict[str, str]:
        """One that the page says, one that it does not."""
        return {"mlx": "0.32.4", "idna": "3"}

    def run(self, words: Any, limit: float) -> str:
        """A line for each port, up to the one at which the process dies."""
        script, results, _, *ports = words
        assert script == "check_ports.py"
        for port in ports:
            if port.split(":")[0] == self.said.get("dies"):
                raise NotRunError("stopped")
            with open(results, "a", encoding="utf-8") as file:
                file.write(json.dumps({"not_run": f"no {port}"}) + "\n")
        return ""


def canned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **said: Any) -> dict[str, Any]:
    """What the command says of mlx-vlm in an environment of that kind."""
    place = Canned(tmp_path / "none", ())
    object.__setattr__(place, "said", said)
    monkeypatch.setattr(command, "environment", lambda release, cache: place)
    return command.check_release(releases(["mlx-vlm"])[0], tmp_path, keep=False, limit=1)


def test_a_release_that_cannot_be_installed_is_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    about = canned(monkeypatch, tmp_path, error="ERROR: no wheel")
    assert (about["not_run"], about["ports"]) == ("ERROR: no wheel", [])


def test_each_port_has_what_was_said_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    about = canned(monkeypatch, tmp_path)
    assert about["versions"] == {"mlx": "0.32.4"}
    assert [(port["title"], port["not_run"]) for port in about["ports"]][:2] == [
        ("Idefics2", "no mlx_idefics2:idefics2"),
        ("Idefics3", "no mlx_idefics3:idefics3"),
    ]


@pytest.mark.parametrize("dies", ["mlx_idefics2", "mlx_smolvlm", "mlx_minicpmv4_6"])
def test_a_process_that_dies_takes_one_port_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dies: str) -> None:
    ports = canned(monkeypatch, tmp_path, dies=dies)["ports"]
    assert [port["module"] for port in ports] == [port.module for port in releases(["mlx-vlm"])[0].ports]
    assert [port["module"] for port in ports if port["not_run"] == "stopped"] == [dies]


class Own(Environment):
    """One whose interpreter is this one."""

    @property
    def python(self) -> Path:
        """Of the test."""
        return Path(sys.executable)


def test_a_child_that_fails_is_an_error_without_this_machines_folders(tmp_path: Path) -> None:
    place = Own(tmp_path, ())
    with pytest.raises(NotRunError, match=r"^a word of ENVIRONMENT$"):
        place.run(["-c", f"import sys; sys.exit('a word of {tmp_path}')"], 60)
    with pytest.raises(NotRunError, match=r"^exit code 2$"):
        place.run(["-c", "import sys; sys.exit(2)"], 60)
    assert place.without_paths(f"{tmp_path}/lib and {environment.CHECKOUT}/npembed") == "ENVIRONMENT/lib and ./npembed"
    assert last_words("a\nERROR: b\nc\n\n") == "ERROR: b"
    assert last_words("a\nb\n") == "b"


PORT = '''
import npembed

RULE = "{rule}"

def position_ids(tgt_sizes, side=70, rule="", mask=None):
    """By the port's own rule."""
    return npembed.position_ids(tgt_sizes, side, RULE, mask)
'''
"""A port of the ids alone."""


def test_ports_are_checked_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rule in ("step", "quotient"):
        (tmp_path / f"ids_{rule}.py").write_text(PORT.format(rule=rule), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(MODULES))
    results = tmp_path / "results"
    script = module("check_ports")
    monkeypatch.setattr(script.which_rule, "MOST", 64)
    script.main(str(results), "0", "ids_step:minicpm-v-2.6", "nothing_of_that_name:siglip", "ids_quotient:minicpm-v-2.6")
    step, nothing, quotient = map(json.loads, results.read_text(encoding="utf-8").splitlines())
    assert [(outcome["name"], outcome["status"]) for outcome in step["outcomes"]] == [("position_ids", "pass")]
    assert "cannot be imported: ModuleNotFoundError" in nothing["not_run"]
    assert (quotient["judged_by"], quotient["outcomes"][0]["status"]) == ("quotient", "pass")


# Which rule


def module(name: str) -> Any:
    """A script of the port modules' folder."""
    spec = importlib.util.spec_from_file_location(name, MODULES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def which_rule() -> Any:
    """For slices of up to 64 patches."""
    found = module("which_rule")
    found.MOST = 64
    return found


@pytest.mark.parametrize("rule", ["arange", "shrunk", "quotient", "mlx"])
def test_the_rule_of_a_ports_ids_is_found(rule: str) -> None:
    port = SimpleNamespace(position_ids=lambda sizes, side: npembed.position_ids(sizes, side, rule))
    counts = which_rule().misses(port)
    fitting = [name for name, count in counts.items() if not count]
    assert rule in fitting
    assert fitting in ([rule], ["quotient", "exact"])


@pytest.mark.parametrize("rule", ["shrunk-float16", "step-float16"])
def test_rules_that_part_beyond_the_sizes_are_told_apart_there(rule: str) -> None:
    port = SimpleNamespace(position_ids=lambda sizes, side: npembed.position_ids(sizes, side, rule))
    assert which_rule().told_apart(port, ["shrunk-float16", "step-float16"]) == [rule]
    assert which_rule().rules_of(port)["judged_by"] == rule


def test_rules_stay_that_never_part_or_that_a_port_leaves_together() -> None:
    quotient = SimpleNamespace(position_ids=lambda sizes, side: npembed.position_ids(sizes, side, "quotient"))
    assert which_rule().told_apart(quotient, ["quotient", "exact"]) == ["quotient", "exact"]
    neither = SimpleNamespace(position_ids=lambda sizes, side: npembed.position_ids(sizes, side, "step-float16") + 1)
    assert which_rule().told_apart(neither, ["shrunk-float16", "step-float16"]) == ["shrunk-float16", "step-float16"]


def test_ids_that_no_row_stands_for_are_found_too_and_wrong_ones_fit_no_rule() -> None:
    def digitized(sizes: Any, side: int) -> Any:
        buckets = [[npembed.bucket_coords(n, side, "digitize") for n in size] for size in sizes.tolist()]
        return npembed.pad_sequence([np.add.outer(h * side, w).ravel() for h, w in buckets], batch_first=True)

    counts = which_rule().misses(SimpleNamespace(position_ids=digitized))
    assert [name for name, count in counts.items() if not count] == ["digitize"]
    counts = which_rule().misses(SimpleNamespace(position_ids=lambda sizes, side: npembed.position_ids(sizes, side) + 1))
    assert all(counts.values())
    assert not which_rule()._has_rows("digitize")
    assert which_rule()._has_rows("shrunk")

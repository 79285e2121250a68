"""Check ports in the environment of their release: `python check_ports.py RESULTS EXAMPLES MODULE:FAMILY ...`.

One process for all, because importing a framework takes longer than checking a port. Each port adds a line of JSON to RESULTS
as it is done, so that what is done stays if the process dies: what `which_rule.py` says, `outcomes` of `npembed check`,
`seconds`; or `not_run`, why not.
"""

import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import which_rule

import npembed
from npembed import cli
from npembed.conformance import load_port

DEFAULT = npembed.MINICPM_V_2_6.family.key
"""What the kit checks without `--family`, piece by piece."""


def check(module: str, family: str, examples: str) -> dict[str, Any]:
    """What is known of one port."""
    try:
        found = which_rule.rules_of(load_port(module))
        rule = ["--rule", found["judged_by"]] if found["judged_by"] else []
        words = [module, *rule, "--examples", examples]
        if family == DEFAULT:
            return found | {"outcomes": outcomes(words)}
        ids = outcomes([*words, "--stage", "position_ids"]) if found["nearest"] else []  # no family's own check has them
        return found | {"outcomes": ids + outcomes([*words, "--family", family])}
    except Exception as error:  # whatever a release raises is why its port was not checked
        return {"not_run": f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)}


def outcomes(words: list[str]) -> list[dict[str, Any]]:
    """What `npembed check` finds, but for what the port does not provide; or its line of refusal as an error."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        file, errors = Path(folder, "report.json"), io.StringIO()
        with contextlib.redirect_stderr(errors):
            cli.run(["check", *words, "--json", str(file)])
        if not file.is_file():
            raise ValueError(errors.getvalue().strip())
        found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["outcomes"]
    return [outcome for outcome in found if outcome["status"] != "not provided"]


def main(results: str, examples: str, *ports: str) -> None:
    """A line for each port."""
    for port in ports:
        start = time.monotonic()
        found = check(*port.split(":"), examples)
        with open(results, "a", encoding="utf-8") as file:
            file.write(json.dumps(found | {"seconds": round(time.monotonic() - start)}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

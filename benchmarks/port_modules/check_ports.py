"""Check ports in the environment of their release: `python check_ports.py RESULTS EXAMPLES MODULE:FAMILY ...`.

One process for all, because importing a framework takes longer than checking a port. Each port adds a line of JSON to RESULTS
as it is done, so that what is done stays if the process dies: what `which_rule.py` says, `outcomes` as of `npembed check`,
`seconds`; or `not_run`, why not.
"""

import json
import sys
import time
from typing import Any

import which_rule

import npembed
from npembed.conformance import Status, check_port, load_port

PLAIN = (npembed.MINICPM_V_2_6.family.key, "phi-4-multimodal")
"""What is checked without `--family`, piece by piece: the first because that is what the kit checks then; the second because
its own check finds no sizes: it tries slices alone, and this family takes a whole picture with its crops."""


def check(module: str, family: str, examples: int) -> dict[str, Any]:
    """What is known of one port."""
    try:
        port = load_port(module)
        found = which_rule.rules_of(port)
        options: dict[str, Any] = {"rule": found["judged_by"], "examples": examples}
        if family in PLAIN:
            return found | {"outcomes": outcomes(port, **options)}
        ids = outcomes(port, stage=["position_ids"], **options) if found["nearest"] else []  # no family's own check has them
        return found | {"outcomes": ids + outcomes(port, family=family, **options)}
    except Exception as error:  # whatever a release raises is why its port was not checked
        return {"not_run": str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"}


def outcomes(port: Any, **options: Any) -> list[dict[str, Any]]:
    """What the kit finds, but for what the port does not provide."""
    return [outcome.as_json() for outcome in check_port(port, **options) if outcome.status is not Status.ABSENT]


def main(results: str, examples: str, *ports: str) -> None:
    """A line for each port."""
    for port in ports:
        start = time.monotonic()
        found = check(*port.split(":"), int(examples))
        with open(results, "a", encoding="utf-8") as file:
            file.write(json.dumps(found | {"seconds": round(time.monotonic() - start)}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

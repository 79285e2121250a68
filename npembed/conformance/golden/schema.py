"""Whether a manifest is as `manifest.schema.json` says: its rules, read from that file, without a package for it."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).with_name("manifest.schema.json")

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}


@cache
def schema() -> dict[str, Any]:
    """The rules."""
    rules: dict[str, Any] = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return rules


def fault(value: Any) -> str | None:
    """The first thing in a manifest that is not as the schema says, with its place; None if there is none.

    Examples
    --------
    >>> fault({"format": 1})
    'npembed is missing'
    >>> fault([])
    'the manifest must be of type object; got []'
    """
    return _fault(value, schema(), "")


def _fault(value: Any, rules: dict[str, Any], where: str) -> str | None:
    """Each keyword that the schema uses, in turn."""
    if "$ref" in rules:
        return _fault(value, schema()["$defs"][rules["$ref"].rpartition("/")[2]], where)
    if "oneOf" in rules:
        found = [_fault(value, option, where) for option in rules["oneOf"]]
        return None if None in found else _nearest(value, rules["oneOf"], found)
    shown, name = repr(value)[:60], where or "the manifest"
    if "const" in rules and (value != rules["const"] or isinstance(value, bool)):
        return f"{name} must be {rules['const']!r}; got {shown}"
    if "enum" in rules and value not in rules["enum"]:
        return f"{name} must be one of {rules['enum']}; got {shown}"
    if "type" in rules and not _is_of(value, rules["type"]):
        return f"{name} must be of type {rules['type']}; got {shown}"
    if "pattern" in rules and not re.fullmatch(rules["pattern"], value):
        return f"{name} must match {rules['pattern']}; got {shown}"
    if "minimum" in rules and not value >= rules["minimum"]:
        return f"{name} must be at least {rules['minimum']}; got {shown}"
    if isinstance(value, dict):
        return _fault_in_object(value, rules, where)
    return _fault_in_array(value, rules, name) if isinstance(value, list) else None


def _nearest(value: Any, options: list[dict[str, Any]], found: list[str | None]) -> str | None:
    """What is wrong by the option whose `kind` the value has; by the first if by none."""
    kind = value.get("kind") if isinstance(value, dict) else None
    kinds = [schema()["$defs"][option["$ref"].rpartition("/")[2]]["properties"]["kind"]["const"] for option in options]
    return found[kinds.index(kind) if kind in kinds else 0]


def _is_of(value: Any, types: str | list[str]) -> bool:
    names = [types] if isinstance(types, str) else types
    return not isinstance(value, bool) and any(isinstance(value, _TYPES[name]) for name in names)


def _fault_in_object(value: dict[str, Any], rules: dict[str, Any], where: str) -> str | None:
    properties, others = rules.get("properties", {}), rules.get("additionalProperties", True)
    for name in rules.get("required", ()):
        if name not in value:
            return f"{_path(where, name)} is missing"
    for name, element in value.items():
        if "propertyNames" in rules:
            wrong = _fault(name, rules["propertyNames"], f"the name {name[:60]!r} in {where}")
            if wrong is not None:
                return wrong
        if name in properties:
            wrong = _fault(element, properties[name], _path(where, name))
        elif others is False:
            wrong = f"{_path(where, name[:60])} is not known"
        else:
            wrong = None if others is True else _fault(element, others, _path(where, name))
        if wrong is not None:
            return wrong
    return None


def _fault_in_array(value: list[Any], rules: dict[str, Any], where: str) -> str | None:
    if len(value) < rules.get("minItems", 0):
        return f"{where} must have at least {rules['minItems']} elements"
    found = (_fault(element, rules.get("items", {}), f"{where}[{number}]") for number, element in enumerate(value))
    return next((wrong for wrong in found if wrong is not None), None)


def _path(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name

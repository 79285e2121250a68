"""Templates -> one HTML file that asks for nothing beside it."""

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import Any

import npembed
from npembed.support.messages import shown

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
"""What a browser lets a page do: show pictures that it holds, and run its own script and no other."""


def render(name: str, scripts: tuple[str, ...] = (), **values: Any) -> str:
    """The page of that template, as text.

    Parameters
    ----------
    name : str
        A template: "explain.html.j2".
    scripts : tuple of str
        The scripts that it runs, laid end to end.
    **values
        What fills it. Text is escaped; the data that the scripts read is under `data`.

    Raises
    ------
    ImportError
        Without the extra `pages`.
    """
    script = "\n".join(map(_text, scripts))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = json.dumps(values.pop("data", {}), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    page: str = (
        _environment()
        .get_template(name)
        .render(
            policy=POLICY.format(digest=digest),
            style=_markup()(_text("style.css")),
            script=_markup()(script),
            island=_markup()(escape_json(data)),
            version=npembed.__version__,
            **values,
        )
    )
    return page


def check_extra() -> None:
    """An error if the extra `pages` is not there, before the work rather than after it."""
    _environment()


def escape_json(text: str) -> str:
    r"""JSON -> the same JSON in which nothing can end the element that it stands in.

    Examples
    --------
    >>> print(escape_json('"</script>&"'))
    "\u003c/script\u003e\u0026"
    """
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _text(name: str) -> str:
    """A file among the templates."""
    return (files("npembed.pages") / "templates" / name).read_text(encoding="utf-8").strip()


def _markup() -> Any:
    from markupsafe import Markup  # comes with Jinja

    return Markup


@cache
def _environment() -> Any:
    """Jinja, which escapes whatever fills a template and refuses a name that nothing fills."""
    try:
        import jinja2
    except ImportError:
        raise ImportError("pages need Jinja: pip install 'npembed[pages]'") from None
    loader = jinja2.FunctionLoader(_text)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["shown"] = lambda text: shown(str(text))  # `str` here: what nothing fills is to raise
    return environment

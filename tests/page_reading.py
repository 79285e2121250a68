"""What the tests of pages share: a page's parts without a browser."""

import json
import re
from html.parser import HTMLParser
from typing import Any


class _Parts(HTMLParser):
    """Every tag with its attributes, and the text of scripts and of the lines of Python."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.python: list[str] = []
        self.words: list[str] = []
        self._inside: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag == "script":
            self.scripts.append("")
            self._inside = self.scripts
        elif tag == "pre" and attributes.get("class") == "python":
            self.python.append("")
            self._inside = self.python
        elif tag == "style":
            self._inside = [""]

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "pre", "style"):
            self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside is None:
            self.words.append(data)
        else:
            self._inside[-1] += data


class Page:
    """A page, read."""

    def __init__(self, text: str) -> None:
        parts = _Parts()
        parts.feed(text)
        self.text, self.tags, self.python = text, parts.tags, parts.python
        self.words = re.sub(r"\s+", " ", " ".join(parts.words))
        self.data = json.loads(parts.scripts[0])

    def outside(self) -> list[str]:
        """Whatever it would ask for elsewhere."""
        found = [f"<{tag}>" for tag, _ in self.tags if tag in ("link", "iframe", "object", "embed", "base", "form")]
        for _, attributes in self.tags:
            for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
                value = attributes.get(name)
                if value and not value.startswith(("data:image/", "#")):
                    found.append(f"{name}={value}")
            found += [f"{name}=" for name in attributes if name.startswith("on")]
        return found + re.findall(r"@import|url\((?!#)[^)]*\)", re.sub(r"<script.*?</script>", "", self.text, flags=re.DOTALL))

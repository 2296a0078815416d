"""Whether a page is valid HTML that needs nothing else: checked with the standard library."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "br", "hr"}
FLOW_ONLY = {
    "table", "div", "section", "article", "details", "svg", "header", "main", "h1", "h2", "h3", "p",
}  # fmt: skip
"""What may not stand in a paragraph."""

CHILDREN = {
    "table": {"caption", "thead", "tbody"},
    "thead": {"tr"},
    "tbody": {"tr"},
    "tr": {"th", "td"},
    "html": {"head", "body"},
    "head": {"meta", "title", "style"},
}
PARENTS = {"caption": {"table"}, "tr": {"thead", "tbody"}, "th": {"tr"}, "td": {"tr"}}
ELEMENTS = {
    "html", "head", "meta", "title", "style", "body", "header", "main", "section", "article", "h1",
    "h2", "h3", "p", "a", "strong", "span", "code", "bdi", "mark", "div", "details", "summary",
    "table", "caption", "thead", "tbody", "tr", "th", "td", "svg", "desc", "text", "line",
    "polyline", "circle", "rect",
}  # fmt: skip
ATTRIBUTES = {
    "lang", "charset", "name", "content", "http-equiv", "id", "class", "href", "scope", "role",
    "tabindex", "aria-label", "aria-labelledby", "viewbox", "x", "y", "x1", "x2", "y1", "y2", "cx",
    "cy", "r", "width", "height", "points",
}  # fmt: skip


class Page(HTMLParser):
    """Parses a page and gathers what is wrong with it, and its text.

    Attributes:
        faults: What is wrong.
        ids: Every id.
        targets: Where links and labels point.
        words: The text of the page, without the style sheet.
        elements: How often each element occurs.
    """

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.faults: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.words = ""
        self.elements: dict[str, int] = {}
        self._open: list[str] = []
        if not html.startswith("<!DOCTYPE html>\n"):
            self.faults.append("no doctype")
        self.feed(html)
        self.close()
        self.faults += [f"<{name}> is not closed" for name in self._open]
        self.faults += [f"id {name} twice" for name in set(self.ids) if self.ids.count(name) > 1]
        self.faults += [f"no id {name}" for name in self.targets if name not in self.ids]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        parent = self._open[-1] if self._open else ""
        self.elements[tag] = self.elements.get(tag, 0) + 1
        if tag not in ELEMENTS:
            self.faults.append(f"<{tag}> is none of ours")
        if tag in FLOW_ONLY and "p" in self._open:
            self.faults.append(f"<{tag}> in a paragraph")
        if parent in CHILDREN and tag not in CHILDREN[parent]:
            self.faults.append(f"<{tag}> in <{parent}>")
        if tag in PARENTS and parent not in PARENTS[tag]:
            self.faults.append(f"<{tag}> in <{parent}>")
        if tag not in VOID:
            self._open.append(tag)
        names = [name for name, _ in attrs]
        if len(set(names)) < len(names):
            self.faults.append(f"an attribute twice in <{tag}>")
        for name, value in attrs:
            self._look_at(tag, name, value)

    def _look_at(self, tag: str, name: str, value: str | None) -> None:
        if name not in ATTRIBUTES:
            self.faults.append(f"attribute {name} of <{tag}>")
        if name == "id":
            self.ids.append(value or "")
        if name == "href":
            if not (value or "").startswith("#"):
                self.faults.append(f"a link out of the page: {value}")
            self.targets.append((value or "")[1:])
        if name == "aria-labelledby":
            self.targets += (value or "").split()

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open[-1] != tag:
            self.faults.append(f"</{tag}> where {self._open[-1:]} is open")
            return
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.words += data

    def handle_comment(self, data: str) -> None:
        self.faults.append(f"a comment: {data}")

    def handle_pi(self, data: str) -> None:
        self.faults.append(f"an instruction: {data}")


def require_whole_page(html: str) -> Page:
    """The page, once nothing is wrong with it."""
    page = Page(html)
    assert page.faults == []
    assert not re.search(r"url\(|@import|https?://|javascript:", html)
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", html)
    assert len(html.encode()) <= 1_000_000
    return page

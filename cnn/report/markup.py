"""HTML in which every string is escaped, unless it was made here."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

_VOID = frozenset({"meta"})
# What the HTML standard does not allow in a document: controls, surrogates, noncharacters.
_NONCHARACTERS = "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
_ILLEGAL = re.compile(
    f"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef{_NONCHARACTERS}]"
)


class Markup(str):
    """HTML that goes into a page as it stands."""

    __slots__ = ()


Child = str | int | None | Iterable["Child"]
"""What goes into an element. A plain string is escaped; None is left out."""


def escape(text: str) -> Markup:
    """Any text as HTML that shows it; what a document may not hold becomes U+FFFD."""
    return Markup(html.escape(_ILLEGAL.sub("\ufffd", text)))


def element(name: str, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """``element("td", "a < b", class_="x")`` → ``<td class="x">a &lt; b</td>``.

    Args:
        name: The element's.
        *children: What it holds.
        **attributes: Their names with ``_`` for ``-``, and a ``_`` at the end that is dropped;
            None and False are left out, True is an attribute without a value.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{fragment(*children)}</{name}>")


def fragment(*children: Child) -> Markup:
    """Children one after the other."""
    return Markup("".join(map(_render, children)))


def _render(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str):
        return escape(child)
    if isinstance(child, int):
        return f"{child:,}"
    return "".join(map(_render, child))


def _attribute(name: str, value: str | float | bool | None) -> str:
    name = name.removesuffix("_").replace("_", "-")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    shown = f"{value:.6g}" if isinstance(value, float) else str(value)
    return f' {name}="{escape(shown)}"'

"""A text whose words are coloured by what they contribute."""

from __future__ import annotations

from collections.abc import Sequence

from cnn.report.markup import Markup, element, escape, fragment

MAX_CHARACTERS = 1_000
"""Of a text that is shown: a page of long texts would be large."""

_LEVELS = (0.08, 0.25, 0.5, 0.75)
"""Shares of the largest contribution of the text from which on a piece has the next colour."""


def shaded_text(pieces: Sequence[tuple[str, float]]) -> Markup:
    """A text in pieces → a paragraph; colours and underlines grow with the contributions."""
    largest = max((abs(value) for _, value in pieces), default=0.0)
    shown, room = [], MAX_CHARACTERS
    for piece, value in pieces:
        if room <= 0:
            break
        shown.append(_shaded(piece[:room], value, largest))
        room -= len(piece)
    if room < 0:
        shown.append(escape("…"))
    return _paragraph(fragment(shown))


def plain_text(text: str) -> Markup:
    """A text without colours."""
    return _paragraph(escape(shortened(text, MAX_CHARACTERS)))


def shortened(text: str, most: int) -> str:
    """The beginning of a text, with ``…`` where something was cut."""
    return text if len(text) <= most else f"{text[:most]}…"


def _paragraph(content: Markup) -> Markup:
    # bdi: what turns the direction of writing in a text stays inside it.
    return element("p", element("bdi", content), class_="text")


def _shaded(piece: str, value: float, largest: float) -> Markup:
    level = sum(abs(value) >= bound * largest for bound in _LEVELS) if largest > 0 else 0
    if level == 0:
        return escape(piece)
    return element("mark", piece, class_=f"{'f' if value > 0 else 'a'}{level}")

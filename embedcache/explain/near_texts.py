"""Texts that people take for the same text: other bytes, so another key.

A store keeps keys, not texts. To tell that it holds *nearly* the text that was asked for,
the text is changed as files, editors and preprocessing change texts, and the keys of the
results are looked up.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

_MARK = "\ufeff"
_FASTTEXT_LABELS = re.compile(r"(__label__\S+ )+")


@dataclass(frozen=True, slots=True)
class NearText:
    """A text made from another.

    Attributes:
        what: In what it differs, to be read after "the same text".
        text: The text itself.
    """

    what: str
    text: str


def near_texts(text: str) -> list[NearText]:
    """What a text often is in another file, each once and none the text itself.

    White space at the ends and inside, line ends, a byte order mark, quotes, fastText labels,
    HTML entities, Unicode normal forms, case, and UTF-8 read as Windows-1252; one change at a
    time, and the one pair that pipelines make most: lower-cased with white space collapsed.

    Args:
        text: Any text without lone surrogates.

    Returns:
        About a dozen, the likeliest first.
    """
    found: dict[str, str] = {}
    for what, changed in _changes(text):
        if changed != text:
            found.setdefault(changed, what)
    return [NearText(what, changed) for changed, what in found.items()]


def _changes(text: str) -> Iterator[tuple[str, str]]:
    yield "without white space at its end", text.rstrip()
    yield "without white space at its start", text.lstrip()
    yield "without white space at its ends", text.strip()
    yield "with white space collapsed to single spaces", re.sub(r"\s+", " ", text)
    collapsed = " ".join(text.split())
    yield "with white space collapsed, and none at its ends", collapsed
    yield "with a trailing space", text + " "
    yield "with a leading space", " " + text
    yield from _line_ends(text)
    yield "without its byte order mark", text.removeprefix(_MARK)
    yield "with a byte order mark", _MARK + text
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        yield f"in Unicode's {form}", unicodedata.normalize(form, text)
    yield "lower-cased", text.lower()
    yield "case-folded", text.casefold()
    yield "with a capital first letter", text[:1].upper() + text[1:]
    yield "upper-cased", text.upper()
    yield "lower-cased with white space collapsed", collapsed.lower()
    yield from _wrappings(text)
    # Undefined bytes or letters: then it was not read so.
    with suppress(UnicodeError):
        yield "with UTF-8 that was read as Windows-1252", text.encode().decode("cp1252")
    with suppress(UnicodeError):
        yield "before its UTF-8 was read as Windows-1252", text.encode("cp1252").decode()


def _line_ends(text: str) -> Iterator[tuple[str, str]]:
    yield r"with a trailing line feed (\n)", text + "\n"
    yield r"with a trailing carriage return (\r)", text + "\r"
    yield r"with a trailing line end (\r\n)", text + "\r\n"
    feeds = text.replace("\r\n", "\n").replace("\r", "\n")
    yield r"with \n as its line ends", feeds
    yield r"with \r\n as its line ends", feeds.replace("\n", "\r\n")
    read = text.replace("\\r", "\r").replace("\\n", "\n").replace("\\t", "\t")
    yield r"with \n, \r and \t read as line ends and tabs", read


def _wrappings(text: str) -> Iterator[tuple[str, str]]:
    """What csv, fastText and web pages put around or into a text."""
    doubled = text.replace('"', '""')
    yield "in double quotes", f'"{doubled}"'
    if len(text) > 1 and text[0] == text[-1] == '"':
        yield "without its double quotes", text[1:-1].replace('""', '"')
    yield "without its fastText labels", _FASTTEXT_LABELS.sub("", text, count=1)
    yield "with HTML entities read", html.unescape(text)
    yield "with HTML entities", html.escape(text, quote=False)

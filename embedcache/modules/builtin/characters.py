"""What `en-words-128` does to each character, as tables that a graph can look up.

Every code point is treated by itself, whatever stands around it: it is lower-cased,
decomposed (NFD), and its marks are dropped; what stays is part of a word, a token of its
own (punctuation and symbols), or a separator. Because the treatment of a character does
not depend on its neighbours and treating it twice changes nothing, a token that is
tokenised again gives itself: the cache relies on that.

A character whose decomposition has several base characters (a Hangul syllable) stays
whole. The tables follow the Unicode version of the Python that builds them
(`unicodedata.unidata_version`) and are frozen into the SavedModel.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

__all__ = ["PAGE_SIZE", "CharacterKind", "CharacterPages", "build_pages", "character_kind"]

PAGE_SIZE = 256
_NUM_CODE_POINTS = 0x110000
_ZERO_WIDTH_SPACE = "\u200b"


class CharacterKind(IntEnum):
    """What a character is to the tokeniser; the value is the low two bits of an entry."""

    WORD = 0
    PUNCTUATION = 1
    SPACE = 2
    DROPPED = 3


@dataclass(frozen=True, slots=True)
class CharacterPages:
    """A two-level table over all code points.

    The entry of code point c is ``entries[starts[c >> 8] + (c & 255)]``: its low two bits
    are the `CharacterKind`, the rest (an arithmetic shift) is what to add to c to have the
    simplified code point. Equal pages are kept once.

    Attributes:
        starts: (4352,) int32, where a block of 256 code points begins in `entries`.
        entries: (pages * 256,) int32.
    """

    starts: npt.NDArray[np.int32]
    entries: npt.NDArray[np.int32]


def character_kind(character: str) -> CharacterKind:
    """Return the kind of one character that is already simplified."""
    category = unicodedata.category(character)
    if category[0] in "PS":
        return CharacterKind.PUNCTUATION
    # The zero-width space is a format character (Cf) whose one purpose is to separate words.
    if category[0] == "Z" or category == "Cc" or character == _ZERO_WIDTH_SPACE:
        return CharacterKind.SPACE
    # Marks without a width of their own, soft hyphens, joiners, directional marks.
    if category in ("Mn", "Me", "Cf"):
        return CharacterKind.DROPPED
    return CharacterKind.WORD


def simplify_character(character: str) -> str:
    """Return a character in lower case without accents, or "" where only marks are left."""
    while True:
        decomposed = unicodedata.normalize("NFD", character.lower())
        bases = [base for base in decomposed if unicodedata.category(base) not in ("Mn", "Me")]
        if len(bases) > 1:
            return character
        if not bases or bases[0] == character:
            return "".join(bases)
        character = bases[0]


def build_pages() -> CharacterPages:
    """Build the tables for every code point; surrogates, which no text holds, are words."""
    entries = np.zeros(_NUM_CODE_POINTS, np.int32)
    for code_point in range(_NUM_CODE_POINTS):
        simple = simplify_character(chr(code_point))
        if simple:
            entries[code_point] = (ord(simple) - code_point) * 4 + character_kind(simple)
        else:
            entries[code_point] = CharacterKind.DROPPED
    pages, page_of_block = np.unique(entries.reshape(-1, PAGE_SIZE), axis=0, return_inverse=True)
    starts = page_of_block.reshape(-1) * PAGE_SIZE
    return CharacterPages(starts.astype(np.int32), pages.reshape(-1).astype(np.int32))

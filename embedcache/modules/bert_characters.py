"""What BERT's tokeniser does to each character, as tables that a graph can look up.

The rules are those of `BasicTokenizer` in google-research/bert, `tokenization.py`, as
Hugging Face's BertTokenizer applies them: each code point by itself, whatever stands around
it. Control, format and private-use characters and U+FFFD are dropped; a CJK ideograph or a
punctuation mark is a word of its own; lower-casing and stripping of accents (NFD without the
non-spacing marks) may turn one code point into several, such as a Hangul syllable into its
letters. So a capital sigma becomes σ at the end of a word too. The tables follow the Unicode
version of the Python that builds them (`unicodedata.unidata_version`). Needs no TensorFlow.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

__all__ = ["KIND_BITS", "PAGE_SIZE", "BertCharacterKind", "BertCharacters", "build_characters"]

PAGE_SIZE = 256
KIND_BITS = 3
_NUM_CODE_POINTS = 0x110000
_SURROGATES = range(0xD800, 0xE000)
# The blocks that `_is_chinese_char` of google-research/bert names.
_IDEOGRAPHS = (
    (0x3400, 0x4DC0),
    (0x4E00, 0xA000),
    (0xF900, 0xFB00),
    (0x20000, 0x2A6E0),
    (0x2A700, 0x2B740),
    (0x2B740, 0x2B820),
    (0x2B820, 0x2CEB0),
    (0x2F800, 0x2FA20),
)
# ASCII's symbols count as punctuation, such as $ and ^, though Unicode says otherwise.
_ASCII_MARKS = ((33, 48), (58, 65), (91, 97), (123, 127))


class BertCharacterKind(IntEnum):
    """What becomes of a code point; the value is the low `KIND_BITS` bits of an entry."""

    WORD = 0
    ALONE = 1
    SPACE = 2
    DROPPED = 3
    EXPANDED = 4


@dataclass(frozen=True, slots=True)
class BertCharacters:
    """A two-level table over all code points, and what the few that expand become.

    The entry of code point c is ``entries[starts[c >> 8] + (c & 255)]``. Its low `KIND_BITS`
    bits are the kind; the rest (an arithmetic shift) is what to add to c to have the
    normalised code point or, for EXPANDED, a row of the ragged array `expansions`. Equal
    pages are kept once.

    Attributes:
        starts: (4352,) int32, where a block of 256 code points begins in `entries`.
        entries: (pages * 256,) int32.
        expansion_splits: (rows + 1,) int32, where a row begins in `expansions`.
        expansions: (outputs,) int32, a normalised code point and its kind each.
    """

    starts: npt.NDArray[np.int32]
    entries: npt.NDArray[np.int32]
    expansion_splits: npt.NDArray[np.int32]
    expansions: npt.NDArray[np.int32]


def build_characters(
    *, lower_case: bool, strip_accents: bool, split_ideographs: bool
) -> BertCharacters:
    """Build the tables for every code point; about a quarter of a second.

    Args:
        lower_case: whether to lower-case.
        strip_accents: whether to decompose (NFD) and drop non-spacing marks.
        split_ideographs: whether a CJK ideograph is a word of its own.
    """
    kinds = _kinds(drop_marks=strip_accents, split_ideographs=split_ideographs)
    entries = kinds.astype(np.int32)
    # Reading single bytes is several times faster than reading single items of an array.
    kind_of, dropped = kinds.tobytes(), int(BertCharacterKind.DROPPED)
    splits, expansions = [0], list[int]()
    for code_point in _changed_code_points(lower_case, strip_accents):
        kind = kind_of[code_point]
        if kind in (BertCharacterKind.DROPPED, BertCharacterKind.SPACE):
            continue
        outputs = [
            # An ideograph stays a word of its own when it is normalised.
            (ord(output) << KIND_BITS) + max(kind_of[ord(output)], kind)
            for output in _normalize(chr(code_point), lower_case, strip_accents)
            if kind_of[ord(output)] != dropped
        ]
        if len(outputs) == 1:
            entries[code_point] = outputs[0] - (code_point << KIND_BITS)
        else:
            row = len(splits) - 1
            entries[code_point] = (row << KIND_BITS) + BertCharacterKind.EXPANDED
            expansions += outputs
            splits.append(len(expansions))
    starts, pages = _share_pages(entries)
    return BertCharacters(starts, pages, np.array(splits, np.int32), np.array(expansions, np.int32))


def _share_pages(
    entries: npt.NDArray[np.int32],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return the starts and the distinct pages of a table of all code points."""
    pages = entries.reshape(-1, PAGE_SIZE)
    place_of: dict[bytes, int] = {}
    places = [place_of.setdefault(page.tobytes(), len(place_of)) for page in pages]
    distinct = np.frombuffer(b"".join(place_of), np.int32)
    return np.array(places, np.int32) * PAGE_SIZE, distinct


def _kinds(*, drop_marks: bool, split_ideographs: bool) -> npt.NDArray[np.uint8]:
    """Return the kind of every code point before it is normalised, (0x110000,) uint8."""
    joined = "".join(map(unicodedata.category, map(chr, range(_NUM_CODE_POINTS)))).encode("ascii")
    # Two letters a category, such as Mn: its class and its subclass.
    letters = np.frombuffer(joined, np.uint8).reshape(-1, 2)
    classes, subclasses = letters[:, 0], letters[:, 1]
    kinds = np.full(_NUM_CODE_POINTS, BertCharacterKind.WORD, np.uint8)
    kinds[classes == ord("P")] = BertCharacterKind.ALONE
    for first, limit in _ASCII_MARKS:
        kinds[first:limit] = BertCharacterKind.ALONE
    if split_ideographs:
        for first, limit in _IDEOGRAPHS:
            kinds[first:limit] = BertCharacterKind.ALONE
    # Control, format and private use; what is not assigned (Cn) stays part of a word.
    for subclass in b"cfo":
        kinds[(classes == ord("C")) & (subclasses == subclass)] = BertCharacterKind.DROPPED
    if drop_marks:
        kinds[(classes == ord("M")) & (subclasses == ord("n"))] = BertCharacterKind.DROPPED
    kinds[0xFFFD] = BertCharacterKind.DROPPED
    kinds[classes == ord("Z")] = BertCharacterKind.SPACE
    kinds[[ord(space) for space in "\t\n\r"]] = BertCharacterKind.SPACE
    return kinds


def _changed_code_points(lower_case: bool, strip_accents: bool) -> list[int]:
    """Return, in their order, the code points that are not their own normal form."""
    changed: list[int] = []
    for first in range(0, _NUM_CODE_POINTS, PAGE_SIZE):
        if first in _SURROGATES:
            continue
        block = "".join(map(chr, range(first, first + PAGE_SIZE)))
        # Most blocks hold nothing that changes, and are told so at once.
        if _normalize(block, lower_case, strip_accents) != block:
            changed += [
                ord(character)
                for character in block
                if _normalize(character, lower_case, strip_accents) != character
            ]
    return changed


def _normalize(text: str, lower_case: bool, strip_accents: bool) -> str:
    """Return a text in lower case and decomposed, as far as asked for."""
    lowered = text.lower() if lower_case else text
    return unicodedata.normalize("NFD", lowered) if strip_accents else lowered

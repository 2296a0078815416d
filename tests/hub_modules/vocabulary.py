"""The words and word pieces of the tiny modules, and BERT's splitting of text in plain Python.

The Python here is the reference that the TensorFlow graphs of `preprocess` are tested
against, and that a reader of a module's ``vocab.txt`` can be tested against.
"""

from __future__ import annotations

import re
import string
import unicodedata
from pathlib import Path

_WORD_TEXT = """
the a an and of to in is on at not it was for this that with you he she they we i
cat cats dog dogs mat sat ran fog film good bad long one two spaces hello world house
very best worst great awful movie plot acting fun boring new old small big
The This Hello rain Spain falls mainly plain
der die das Hund und Katze el la perro y casa de playa le chat est sur table
+ 2 = 4 ! . , ' ? 今日 は いい 天気
"""
_WHOLE_TEXT = """
the and of to in is on at not it was for this that with you cat dog mat sat film
good bad long one two hello world house very best movie plot nan rain 今 日 天
"""
# What a bag-of-words module knows: words of several languages, as the product's probe has.
WORDS = tuple(_WORD_TEXT.split())

SPECIAL_PIECES = ("[PAD]", "[unused0]", "[unused1]", "[unused2]", "[UNK]", "[CLS]", "[SEP]")
UNKNOWN = "[UNK]"
_MARKS = (*string.punctuation, "¿", "¡", "…", "。", "、")
_LETTERS = tuple(string.ascii_lowercase + string.digits)
_WHOLE = tuple(_WHOLE_TEXT.split())
_ENDINGS = ("ing", "ed", "er", "ly", "ness", "able", "tion")
PIECES = (
    *SPECIAL_PIECES,
    "[MASK]",
    *_MARKS,
    *_LETTERS,
    *(f"##{letter}" for letter in _LETTERS),
    *_WHOLE,
    *(f"##{ending}" for ending in _ENDINGS),
)
MAX_PIECE_CHARS = max(len(piece.removeprefix("##")) for piece in (*_WHOLE, *_ENDINGS))
# BERT's own limit: a longer word is unknown.
MAX_WORD_CHARS = 100
# Characters that BERT takes for punctuation though Unicode does not.
ASCII_SYMBOLS = "$+<=>^`|~"


def piece_ids(pieces: list[str]) -> list[int]:
    """Word pieces → their line numbers in ``vocab.txt``."""
    return [PIECES.index(piece) for piece in pieces]


def write_pieces(file: Path) -> Path:
    """Write ``vocab.txt``: one piece a line."""
    file.write_text("".join(f"{piece}\n" for piece in PIECES), encoding="utf-8")
    return file


def write_words(file: Path) -> Path:
    """Write the vocabulary of a bag-of-words module: one word a line."""
    file.write_text("".join(f"{word}\n" for word in WORDS), encoding="utf-8")
    return file


def split_words(text: str, *, lower_case: bool = True) -> list[str]:
    """BERT's basic tokeniser: text → words and punctuation marks.

    After ``BasicTokenizer`` of Devlin et al. (2018): control characters go, Chinese
    characters and punctuation stand alone, and with ``lower_case`` accents go too.
    """
    kept = (" " if _is_space(c) else c for c in text if not _is_control(c))
    spaced = "".join(f" {c} " if "\u4e00" <= c <= "\u9fff" else c for c in kept)
    if lower_case:
        decomposed = unicodedata.normalize("NFD", spaced.lower())
        spaced = "".join(c for c in decomposed if unicodedata.category(c) != "Mn")
    alone = "".join(f" {c} " if _is_punctuation(c) else c for c in spaced)
    return alone.split()


def word_pieces(word: str) -> list[str]:
    """Greedy longest-match-first WordPiece of one word; ``[UNK]`` if it cannot be built."""
    if len(word) > MAX_WORD_CHARS:
        return [UNKNOWN]
    known = set(PIECES)
    pieces: list[str] = []
    start = 0
    while start < len(word):
        mark = "##" if start else ""
        ends = (end for end in range(len(word), start, -1) if mark + word[start:end] in known)
        end = next(ends, None)
        if end is None:
            return [UNKNOWN]
        pieces.append(mark + word[start:end])
        start = end
    return pieces


def text_pieces(text: str, *, lower_case: bool = True) -> list[list[str]]:
    """Text → the pieces of each of its words."""
    return [word_pieces(word) for word in split_words(text, lower_case=lower_case)]


def text_piece_ids(text: str, *, lower_case: bool = True) -> list[int]:
    """Text → the flat ids of its pieces, without special ones."""
    nested = text_pieces(text, lower_case=lower_case)
    return piece_ids([piece for pieces in nested for piece in pieces])


def _is_space(char: str) -> bool:
    return char in " \t\n\r" or unicodedata.category(char) == "Zs"


def _is_control(char: str) -> bool:
    if char in "\t\n\r":
        return False
    return char in "\0\ufffd" or unicodedata.category(char).startswith("C")


def _is_punctuation(char: str) -> bool:
    return char in ASCII_SYMBOLS or bool(re.match("P", unicodedata.category(char)))

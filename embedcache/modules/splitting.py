"""Splitting texts where the module leaves that to its caller. Needs no TensorFlow.

Each splitter has a name that is part of the view: a splitter that changes gets a new one.

| name | tokens |
|---|---|
| ``space`` | between single spaces, empty ones too: as nnlm counts |
| ``space-nonempty`` | the same without empty ones: ELMo, ``tf.compat.v1.string_split`` |
| ``whitespace`` | between runs of ASCII whitespace: ``tf.strings.split``'s default |
| ``space-words`` | ``space-nonempty`` without those that are punctuation only |
| ``whitespace-words`` | ``whitespace`` without those |
| ``words-1`` | words and single marks: granularities ``token``, ``window`` |
| ``sentences-1`` | sentences: granularity ``sentence`` |
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from embedcache.encoder import TokenizedTexts
from embedcache.ragged import splits_of_lengths

Ranges = list[tuple[int, int]]

WORDS = "words-1"
SENTENCES = "sentences-1"

_SPACE_TOKEN = re.compile(rb"[^ ]+")
_WHITESPACE_TOKEN = re.compile(rb"[^ \t\n\r\f\v]+")
_WORD = re.compile(r"\w+(?:['’\-]\w+)*|[^\w\s]")
_SHADOW = "_"
"""Any character of words: see `split_words`."""
# The end of a sentence: marks with what closes after them, where white space or the text's
# end follows; East Asian full stops need no space. A line end always is one. A run of marks
# is tried once and whole, or a line of a million dots would take hours.
_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’)\]»]*+(?=\s|$)|[。！？]+[”’」』）]*|\n+")
_NOT_SPACE = re.compile(r"\S")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'“‘])(?:mr|mrs|ms|dr|prof|st|vs|etc|e\.g|i\.e|cf|fig|jr|sr|inc|approx|[a-z])\.$",
    re.IGNORECASE,
)
_LONGEST_ABBREVIATION = 10


def split_texts(texts: Sequence[bytes], tokenizer: str) -> TokenizedTexts:
    """Split texts by one of the splitters above.

    Args:
        texts: n texts as UTF-8.
        tokenizer: Its name.
    """
    if tokenizer == "space":
        return _split_at_spaces(texts)
    ranges = [_SPLITTERS[tokenizer](text) for text in texts]
    tokens = [text[a:b] for text, found in zip(texts, ranges, strict=True) for a, b in found]
    return TokenizedTexts(
        tokens, splits_of_lengths([len(found) for found in ranges]), spans_of_ranges(ranges)
    )


def _split_at_spaces(texts: Sequence[bytes]) -> TokenizedTexts:
    """The commonest splitter, with the spans counted in one go."""
    split = [text.split(b" ") for text in texts]
    tokens = [token for tokens in split for token in tokens]
    splits = splits_of_lengths([len(tokens) for tokens in split])
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
    ends = np.cumsum(lengths + 1) - 1
    starts = ends - lengths
    # From places in all texts, each followed by a space, to places in the token's own text.
    spans = np.stack([starts, ends], axis=1)
    spans -= np.repeat(starts[splits[:-1]], np.diff(splits))[:, np.newaxis]
    return TokenizedTexts(tokens, splits, spans.astype(np.uint32))


def spans_of_ranges(ranges: Sequence[Ranges]) -> NDArray[np.uint32]:
    """The byte ranges of each text's tokens, one text after the other: (T, 2) uint32."""
    flat = [end for found in ranges for pair in found for end in pair]
    return np.array(flat, np.uint32).reshape(-1, 2)


def _by_pattern(pattern: re.Pattern[bytes]) -> Callable[[bytes], Ranges]:
    return lambda text: [match.span() for match in pattern.finditer(text)]


def _words_by_pattern(pattern: re.Pattern[bytes]) -> Callable[[bytes], Ranges]:
    """Without tokens that a module which removes punctuation would find empty."""

    def split(text: bytes) -> Ranges:
        return [
            match.span() for match in pattern.finditer(text) if not _is_punctuation(match.group())
        ]

    return split


def _is_punctuation(token: bytes) -> bool:
    text = token.decode(errors="replace")
    return all(unicodedata.category(character).startswith("P") for character in text)


def split_words(text: bytes) -> Ranges:
    """The byte ranges of words and of single marks.

    Accents and vowel signs that are characters of their own belong to the word they stand
    in, and so do joiners (rule WB4 of Unicode's UAX 29): most words of Hindi have some.
    """
    decoded = text.decode(errors="replace")
    # To `re` they are no part of words; in its eyes they are letters.
    seen = decoded if text.isascii() else "".join(map(_shadow_of, decoded))
    return _byte_ranges(decoded, (match.span() for match in _WORD.finditer(seen)))


def _shadow_of(character: str) -> str:
    return _SHADOW if unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf") else character


def split_sentences(text: bytes) -> Ranges:
    """The byte ranges of a text's sentences, without the white space between them.

    A sentence ends at ``. ! ? …`` before white space, at an East Asian full stop, and at a
    line end; not after the full stop of a common abbreviation or an initial, nor where a
    lower-case letter follows a full stop or an ellipsis (``the U.S. team``). A mark that
    stands alone between spaces, as in corpora that are tokenised already, always ends one.
    """
    decoded = text.decode(errors="replace")
    return _byte_ranges(decoded, _sentence_ranges(decoded))


def _sentence_ranges(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for match in _END.finditer(text):
        if _ends_sentence(text, match):
            yield from _trimmed(text, start, match.end())
            start = match.end()
    yield from _trimmed(text, start, len(text))


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    marks, begin = match.group(), match.start()
    if not marks.startswith((".", "…")):
        return True
    stands_alone = begin > 0 and text[begin - 1].isspace()
    if stands_alone:
        return True
    if marks == "." and _ABBREVIATION.search(
        text[max(0, begin - _LONGEST_ABBREVIATION) : match.end()]
    ):
        return False
    following = _NOT_SPACE.search(text, match.end())
    return following is None or not following.group().islower()


def _trimmed(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The range without white space at its ends; nothing if that is all there is."""
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    end -= len(piece) - len(piece.rstrip())
    if start < end:
        yield start, end


def _byte_ranges(text: str, ranges: Iterator[tuple[int, int]]) -> Ranges:
    """From ranges of characters to ranges of UTF-8 bytes."""
    found = list(ranges)
    if text.isascii():
        return found
    sizes = np.fromiter((len(character.encode()) for character in text), np.int64, len(text))
    places = splits_of_lengths(sizes)
    return [(int(places[start]), int(places[end])) for start, end in found]


def with_context(text: bytes, words: Ranges, context_words: int) -> list[bytes]:
    """For each word the piece of text from some words before it to as many after it."""
    last = len(words) - 1
    return [
        text[words[max(0, at - context_words)][0] : words[min(last, at + context_words)][1]]
        for at in range(len(words))
    ]


_SPLITTERS: dict[str, Callable[[bytes], Ranges]] = {
    "space-nonempty": _by_pattern(_SPACE_TOKEN),
    "whitespace": _by_pattern(_WHITESPACE_TOKEN),
    "space-words": _words_by_pattern(_SPACE_TOKEN),
    "whitespace-words": _words_by_pattern(_WHITESPACE_TOKEN),
    WORDS: split_words,
    SENTENCES: split_sentences,
}

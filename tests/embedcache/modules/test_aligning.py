"""Where a module's simplified tokens stand in the text."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.modules.aligning import align_texts, align_tokens
from embedcache.ragged import splits_of_lengths

fixed = settings(derandomize=True, deadline=None)


def found_in(text: str, tokens: list[str]) -> list[str]:
    encoded = text.encode()
    ranges = align_tokens(encoded, [token.encode() for token in tokens])
    return [encoded[start:end].decode() for start, end in ranges]


@pytest.mark.parametrize(
    ("text", "tokens", "found"),
    [
        ("", [], []),
        ("a b a", ["a", "b", "a"], ["a", "b", "a"]),
        ("Good Film!", ["good", "film", "!"], ["Good", "Film", "!"]),
        ("GOOD", ["Good"], ["GOOD"]),
        ("Été à Nîmes", ["ete", "a", "nimes"], ["Été", "à", "Nîmes"]),
        ("e\u0301te\u0301 vu", ["ete", "vu"], ["e\u0301te", "vu"]),
        ("naïve", ["nai", "ve"], ["naï", "ve"]),
        ("ΟΔΟΣ Α", ["οδος", "α"], ["ΟΔΟΣ", "Α"]),
        ("İstanbul x", ["istanbul", "x"], ["İstanbul", "x"]),
        ("Straße y", ["strasse", "y"], ["Straße", "y"]),
        ("漢字 かな", ["漢", "字", "かな"], ["漢", "字", "かな"]),
        ("한국 말", [unicodedata.normalize("NFD", "한국"), "말"], ["한국", "말"]),
        ("😀 ok", ["😀", "ok"], ["😀", "ok"]),
    ],
)
def test_token_is_found_whatever_its_case_and_accents(
    text: str, tokens: list[str], found: list[str]
) -> None:
    assert found_in(text, tokens) == found


@pytest.mark.parametrize("text", ["a b c", "é b c"])
def test_token_that_is_not_there_gets_an_empty_range_where_it_was_looked_for(text: str) -> None:
    encoded = text.encode()
    first = len(text[0].encode())
    ranges = align_tokens(encoded, [text[0].encode(), b"[UNK]", "ÿz".encode(), b"c", b"[END]"])
    end = len(encoded)
    assert ranges[0] == (0, first)
    for start, stop in ranges[1:3]:
        assert first <= start == stop <= first + 1
    assert ranges[3:] == [(end - 1, end), (end, end)]


def test_token_of_an_empty_text_or_without_letters_has_an_empty_range() -> None:
    assert align_tokens(b"", [b"a", b""]) == [(0, 0), (0, 0)]
    assert align_tokens("\u0301".encode(), [b"a"]) == [(0, 0)]
    assert align_tokens(b"ab", [b"", b"a", b"", b"b"]) == [(0, 0), (0, 1), (1, 1), (1, 2)]


letters = st.text("abcdéÉÅ漢ßΣς한İ", min_size=1, max_size=5)


def simplified(word: str) -> str:
    decomposed = unicodedata.normalize("NFD", word.lower())
    return "".join(letter for letter in decomposed if unicodedata.category(letter) != "Mn")


@fixed
@given(words=st.lists(letters, max_size=8), gap=st.sampled_from([" ", "  ", "\t", " \n"]))
def test_simplified_words_are_found_at_their_places(words: list[str], gap: str) -> None:
    assert found_in(gap.join(words), [simplified(word) for word in words]) == words


@fixed
@given(
    text=st.text("ab é漢Å\u0301한", max_size=15),
    tokens=st.lists(st.text("abeé漢a\u1112x", max_size=4), max_size=8),
)
def test_any_tokens_give_ranges_that_ascend_between_characters(
    text: str, tokens: list[str]
) -> None:
    encoded = text.encode()
    ranges = align_tokens(encoded, [token.encode() for token in tokens])
    assert len(ranges) == len(tokens)
    for start, end in ranges:
        assert 0 <= start <= end <= len(encoded)
        encoded[start:end].decode()  # fails where a character is cut in two
    assert all(before[0] <= after[0] for before, after in pairwise(ranges))


@st.composite
def tokenized(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A text of small letters and its tokens, some of which may be another's than its own."""
    words = draw(st.lists(st.text("abé漢.", min_size=1, max_size=4), max_size=6))
    gaps = draw(st.lists(st.sampled_from(["", " ", "  ", "\t"]), min_size=7, max_size=7))
    text = gaps[-1] + "".join(word + gap for word, gap in zip(words, gaps, strict=False))
    cased = draw(st.booleans())
    tokens = [word.encode() for word in words]
    if draw(st.booleans()) and tokens:
        place = draw(st.integers(0, len(tokens) - 1))
        tokens[place] = draw(st.sampled_from([b"[UNK]", b"a", b"xyz"]))
    if draw(st.booleans()):
        tokens.insert(draw(st.integers(0, len(tokens))), b"")
    return (text.upper() if cased else text).encode(), tokens


@fixed
@given(texts=st.lists(tokenized(), max_size=6))
def test_texts_together_are_aligned_as_each_alone(texts: list[tuple[bytes, list[bytes]]]) -> None:
    tokens = [token for _, own in texts for token in own]
    splits = splits_of_lengths([len(own) for _, own in texts])
    spans = align_texts([text for text, _ in texts], tokens, splits)
    assert (spans.dtype, spans.shape) == (np.uint32, (len(tokens), 2))
    alone = [list(pair) for text, own in texts for pair in align_tokens(text, own)]
    assert spans.tolist() == alone

"""Splitting texts into words and sentences, and where these stand."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.modules.splitting import (
    SENTENCES,
    WORDS,
    Ranges,
    split_sentences,
    split_texts,
    split_words,
    with_context,
)

SPLITTERS = (
    "space",
    "space-nonempty",
    "whitespace",
    "space-words",
    "whitespace-words",
    WORDS,
    SENTENCES,
)
fixed = settings(derandomize=True, deadline=None)
characters = st.sampled_from("abA.!?…  \t\n\"'’-,)1é漢。！” \u0301\u200d😀ßि")
any_text = st.text(characters, max_size=40) | st.text(max_size=20)


def pieces(split: Callable[[bytes], Ranges], text: str) -> list[str]:
    encoded = text.encode()
    return [encoded[start:end].decode() for start, end in split(encoded)]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        ("  \n\t ", []),
        ("one", ["one"]),
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("  One.   Two.  ", ["One.", "Two."]),
        ("Wait... What?! Yes!!! Fine.", ["Wait...", "What?!", "Yes!!!", "Fine."]),
        ("Wait … Then go… Now.", ["Wait …", "Then go…", "Now."]),
        ("it was ... odd", ["it was ...", "odd"]),
        ("It was... odd", ["It was... odd"]),
        # Corpora that are tokenised already, in lower case as a rule.
        ("a film . it is good .", ["a film .", "it is good ."]),
        ("is it ? no ! why ...", ["is it ?", "no !", "why ..."]),
        ("he said `` stop . '' and left", ["he said `` stop .", "'' and left"]),
        # Abbreviations, initials and numbers.
        ("Mr. Smith met Dr. Who. They ran.", ["Mr. Smith met Dr. Who.", "They ran."]),
        ("See fig. 3, i.e. this. Or e.g. that.", ["See fig. 3, i.e. this.", "Or e.g. that."]),
        ("J. R. Tolkien wrote. He did.", ["J. R. Tolkien wrote.", "He did."]),
        ("(cf. Kim) It works.", ["(cf. Kim) It works."]),
        ("the U.S. team won. It did.", ["the U.S. team won.", "It did."]),
        ("It costs 3.50 now. Or 1,000.", ["It costs 3.50 now.", "Or 1,000."]),
        ("Use python.org or a.b.c today. Do.", ["Use python.org or a.b.c today.", "Do."]),
        ("It grew by 3. Then 4.", ["It grew by 3.", "Then 4."]),
        ("The letter xdr. Then.", ["The letter xdr.", "Then."]),
        # What closes after the mark belongs to it.
        ('"Stop." She ran.', ['"Stop."', "She ran."]),
        ("“Really?” (No.) Yes.", ["“Really?”", "(No.)", "Yes."]),
        ('He said "Dr." He left.', ['He said "Dr."', "He left."]),
        # Lines end sentences, with or without a mark.
        ("a title\nand a text\n\nmore", ["a title", "and a text", "more"]),
        ("one\r\ntwo.\r\nthree", ["one", "two.", "three"]),
        ("Mr.\nSmith", ["Mr.", "Smith"]),
        # East Asian full stops need no space.
        ("今日は。明日は？はい！", ["今日は。", "明日は？", "はい！"]),
        ("「行く。」と言った。終わり", ["「行く。」", "と言った。", "終わり"]),
        ("Été à l'eau. Où ?  Là", ["Été à l'eau.", "Où ?", "Là"]),
        ("привет. как дела", ["привет. как дела"]),
        ("Привет. Как дела", ["Привет.", "Как дела"]),
        (".", ["."]),
        ("...", ["..."]),
    ],
)
def test_sentences_are_as_a_reader_takes_them(text: str, sentences: list[str]) -> None:
    assert pieces(split_sentences, text) == sentences


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("  a  b ", ["a", "b"]),
        (
            "it's a well-known rock'n'roll act.",
            ["it's", "a", "well-known", "rock'n'roll", "act", "."],
        ),
        ("it’s - 'ok'!?", ["it’s", "-", "'", "ok", "'", "!", "?"]),
        ("3.5% of $1,000", ["3", ".", "5", "%", "of", "$", "1", ",", "000"]),
        ("snake_case #tag @me", ["snake_case", "#", "tag", "@", "me"]),
        ("déjà 漢字 слово", ["déjà", "漢字", "слово"]),
        ("cafe\u0301s e\u0301t", ["cafe\u0301s", "e\u0301t"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("ok😀😀", ["ok", "😀", "😀"]),
        ("a\u00a0b\u3000c", ["a", "b", "c"]),
    ],
)
def test_words_and_marks_are_told_apart(text: str, words: list[str]) -> None:
    assert pieces(split_words, text) == words


@fixed
@given(text=any_text, split=st.sampled_from([split_words, split_sentences]))
def test_ranges_ascend_end_between_characters_and_leave_out_white_space_only(
    text: str, split: Callable[[bytes], Ranges]
) -> None:
    encoded = text.encode()
    ranges = split(encoded)
    assert all(start < end for start, end in ranges)
    assert all(before[1] <= after[0] for before, after in pairwise(ranges))
    assert not ranges or ranges[-1][1] <= len(encoded)
    edges = [0, *(edge for pair in ranges for edge in pair), len(encoded)]
    # Decoding fails where a range cuts a character in two.
    gaps = [encoded[start:end].decode() for start, end in zip(edges[::2], edges[1::2], strict=True)]
    assert "".join(gaps).strip() == ""
    for start, end in ranges:
        piece = encoded[start:end].decode()
        assert piece == piece.strip() != ""
        assert split is split_sentences or not re.search(r"\s", piece)


@fixed
@given(texts=st.lists(any_text.map(str.encode), max_size=6), tokenizer=st.sampled_from(SPLITTERS))
def test_spans_are_those_of_the_tokens(texts: list[bytes], tokenizer: str) -> None:
    found = split_texts(texts, tokenizer)
    assert found.spans is not None
    assert found.spans.shape == (len(found.tokens), 2)
    assert (found.spans.dtype, found.row_splits.dtype) == (np.uint32, np.int64)
    assert found.row_splits.tolist()[0] == 0
    assert len(found.row_splits) == len(texts) + 1
    for text, start, stop in zip(texts, found.row_splits, found.row_splits[1:], strict=False):
        spans = found.spans[start:stop].tolist()
        assert [text[a:b] for a, b in spans] == list(found.tokens[start:stop])
        assert spans == sorted(spans)


@fixed
@given(texts=st.lists(st.text("ab é\t", max_size=12).map(str.encode), max_size=6))
def test_spans_between_single_spaces_are_counted_token_by_token(texts: list[bytes]) -> None:
    spans, lengths = [], []
    for text in texts:
        position = 0
        tokens = text.split(b" ")
        for token in tokens:
            spans.append([position, position + len(token)])
            position += len(token) + 1
        lengths.append(len(tokens))
    found = split_texts(texts, "space")
    assert found.spans is not None
    assert found.spans.tolist() == spans
    assert np.diff(found.row_splits).tolist() == lengths


@pytest.mark.parametrize(
    ("tokenizer", "tokens"),
    [
        ("space", ["", "a,b", "", "!?", "c\td", "«", ""]),
        ("space-nonempty", ["a,b", "!?", "c\td", "«"]),
        ("whitespace", ["a,b", "!?", "c", "d", "«"]),
        ("space-words", ["a,b", "c\td"]),
        ("whitespace-words", ["a,b", "c", "d"]),
        (WORDS, ["a", ",", "b", "!", "?", "c", "d", "«"]),
        (SENTENCES, ["a,b  !?", "c\td «"]),
    ],
)
def test_each_splitter_has_its_own_tokens(tokenizer: str, tokens: list[str]) -> None:
    found = split_texts([b"", " a,b  !? c\td « ".encode()], tokenizer)
    empty = [b""] if tokenizer == "space" else []
    assert found.tokens == empty + [token.encode() for token in tokens]
    assert found.row_splits.tolist() == [0, len(empty), len(empty) + len(tokens)]


def test_unknown_splitter_is_a_fault_of_the_caller() -> None:
    with pytest.raises(KeyError):
        split_texts([b"a"], "words-0")


@pytest.mark.parametrize("unit", [".", "!?", '."', "...\n", "a. ", "。", "a.b", ".”"])
def test_time_to_split_grows_no_faster_than_the_text(unit: str) -> None:
    # A pattern that tries every place of a run anew would take minutes here, not milliseconds.
    text = (unit * (400_000 // len(unit)) + "x").encode()
    ranges = split_sentences(text)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == len(text)


@pytest.mark.parametrize(
    ("context_words", "windows"),
    [
        (0, ["a", "b", ",", "c"]),
        (1, ["a  b", "a  b,", "b, c", ", c"]),
        (2, ["a  b,", "a  b, c", "a  b, c", "b, c"]),
        (9, ["a  b, c"] * 4),
    ],
)
def test_context_is_the_text_from_some_words_before_to_as_many_after(
    context_words: int, windows: list[str]
) -> None:
    text = b"a  b, c"
    assert with_context(text, split_words(text), context_words) == [w.encode() for w in windows]
    assert with_context(b"", [], context_words) == []

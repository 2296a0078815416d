"""BERT's tokeniser in TensorFlow, against hand-made expectations and plain Python."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.errors import ModuleError
from embedcache.modules.bert_characters import (
    KIND_BITS,
    PAGE_SIZE,
    BertCharacterKind,
    build_characters,
)
from embedcache.modules.bert_packing import pack_pieces
from embedcache.modules.bert_tokenizer import BertTokenizer, SpecialPieces
from embedcache.modules.wordpiece import split_word

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES += ["un", "##aff", "##able", "##ab", "##l", "##e", "a", "##a", "cafe", "café", "##s", "s"]
PIECES += ["'", "low", "##er", "Low", "[", "]", "sep", "中", "国", "中国", "中a", "=", "$", "^"]
PIECES += ["5", "##0", "0", ".", "!", "ᄒ", "##ᅡ", "##ᆫ", "i", "οσ", "ά", "α", "##İ", "x", "ß"]
PIECES += ["##ς", "##σ", "ο", "\U00010400", "\U00010428", "##o"]
TRICKY = "aA sSeElLoOwW.!'$^5 0\t\n\r\x00\x07\xa0\xad\u200d\u2028\ufffdéÉe\u0301中国豈한ΟΣΆİ≠ß𐐀𐐨"
TEXTS = st.text(st.one_of(st.sampled_from(TRICKY), st.characters(codec="utf-8")), max_size=30)


@pytest.fixture(scope="module")
def vocab_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vocab(tmp_path_factory.mktemp("vocab") / "vocab.txt", PIECES)


@pytest.fixture(scope="module")
def uncased(vocab_file: Path) -> BertTokenizer:
    return BertTokenizer(vocab_file, lower_case=True)


@pytest.fixture(scope="module")
def cased(vocab_file: Path) -> BertTokenizer:
    return BertTokenizer(vocab_file, lower_case=False)


def write_vocab(path: Path, pieces: list[str], end: str = "\n") -> Path:
    path.write_bytes("".join(piece + end for piece in pieces).encode())
    return path


def pieces_of(ids: Any) -> list[list[str]]:
    return [[PIECES[piece] for piece in row] for row in ids.to_list()]


def split(tokenizer: BertTokenizer, *texts: str | bytes) -> list[list[str]]:
    return pieces_of(tokenizer.tokenize(tf.constant(list(texts), tf.string)))


# Plain Python, a text at a time


def plain_characters(text: str, *, lower: bool, strip: bool) -> Iterator[tuple[str, str]]:
    """Each character's normal form, and whether it is of a word, alone, or a space."""
    for character in text:
        category = unicodedata.category(character)
        if character in "\t\n\r" or category[0] == "Z":
            yield " ", "space"
        elif category not in ("Cc", "Cf", "Co") and character != "\ufffd":
            alone = is_ideograph(ord(character))
            normal = character.lower() if lower else character
            if strip:
                decomposed = unicodedata.normalize("NFD", normal)
                normal = "".join(mark for mark in decomposed if unicodedata.category(mark) != "Mn")
            for output in normal:
                is_mark = unicodedata.category(output)[0] == "P" or output in "$+<=>^`|~"
                yield output, "alone" if alone or is_mark else "word"


def is_ideograph(code: int) -> bool:
    return (
        0x4E00 <= code <= 0x9FFF
        or 0x3400 <= code <= 0x4DBF
        or 0x20000 <= code <= 0x2A6DF
        or 0x2A700 <= code <= 0x2B73F
        or 0x2B740 <= code <= 0x2B81F
        or 0x2B820 <= code <= 0x2CEAF
        or 0xF900 <= code <= 0xFAFF
        or 0x2F800 <= code <= 0x2FA1F
    )


def plain_words(text: str, *, lower: bool, strip: bool) -> list[str]:
    spaced = "".join(
        f" {output} " if kind == "alone" else output
        for output, kind in plain_characters(text, lower=lower, strip=strip)
    )
    return [word for word in spaced.split(" ") if word]


# Pieces


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("unaffable", ["un", "##aff", "##able"]),
        ("UNABLE  Lower\tlow\n", ["un", "##able", "low", "##er", "low"]),
        # The longest match is taken first, and it is not taken back.
        ("unabl", ["un", "##ab", "##l"]),
        ("Café cafe\u0301s", ["cafe", "cafe", "##s"]),
        ("a's.!", ["a", "'", "s", ".", "!"]),
        # ASCII's symbols are punctuation, though Unicode says otherwise.
        ("$5.00^a=a", ["$", "5", ".", "0", "##0", "^", "a", "=", "a"]),
        # A mark that overlays another is a letter of its own only until it is decomposed.
        ("a\u2260a", ["a", "=", "a"]),
        ("中国a国", ["中", "国", "a", "国"]),
        ("\u4e2d\ufe00国", ["中", "国"]),
        ("한", ["ᄒ", "##ᅡ", "##ᆫ"]),
        # A capital sigma becomes the same letter wherever it stands; Ά loses its accent.
        ("ΟΣ Ά İ", ["οσ", "α", "i"]),
        ("ß \U00010400", ["ß", "\U00010428"]),
        # The name of a special piece is text like any other.
        ("[SEP]", ["[", "sep", "]"]),
        ("##s", ["[UNK]", "[UNK]", "s"]),
        # One letter that is nowhere makes the whole word unknown, and no other.
        ("unaffablez a z", ["[UNK]", "a", "[UNK]"]),
        ("a" * 100, ["a"] + ["##a"] * 99),
        ("a" * 101, ["[UNK]"]),
        ("a" * 101 + ".s", ["[UNK]", ".", "s"]),
        # Spaces of other kinds split; control, format and private-use characters are nothing.
        ("a\xa0a\u2003a\u2028a\u3000a", ["a"] * 5),
        ("u\x00n\u200da\xadb\x0bl\u200be\ue000", ["un", "##able"]),
        ("l\ufffdow", ["low"]),
        ("\ufefflow", ["low"]),
        ("", []),
        (" \t\x07\u0301", []),
    ],
)
def test_lower_case_texts_are_split_as_published(
    uncased: BertTokenizer, text: str, pieces: list[str]
) -> None:
    assert split(uncased, text) == [pieces]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Low low LOW", ["Low", "low", "[UNK]"]),
        ("café cafe", ["café", "cafe"]),
        # Nothing is composed either: the accent stays a letter that is not known.
        ("cafe\u0301", ["[UNK]"]),
        ("中国 [SEP]", ["中", "国", "[", "[UNK]", "]"]),
        ("aİ 한", ["a", "##İ", "[UNK]"]),
    ],
)
def test_cased_texts_keep_capitals_and_accents(
    cased: BertTokenizer, text: str, pieces: list[str]
) -> None:
    assert split(cased, text) == [pieces]


def test_accents_are_stripped_or_kept_when_asked_for(vocab_file: Path) -> None:
    kept = BertTokenizer(vocab_file, lower_case=True, strip_accents=False)
    stripped = BertTokenizer(vocab_file, lower_case=False, strip_accents=True)
    assert split(kept, "CAFÉ Ά cafe") == [["café", "ά", "cafe"]]
    assert split(stripped, "café Low LOW") == [["cafe", "Low", "[UNK]"]]


def test_ideographs_stay_together_when_asked_for(vocab_file: Path) -> None:
    together = BertTokenizer(vocab_file, lower_case=True, split_ideographs=False)
    assert split(together, "中国 中A") == [["中国", "中a"]]


def test_invalid_utf8_is_left_out(uncased: BertTokenizer) -> None:
    assert split(uncased, b"\xffun\xfeable\xe4\xb8 low\xf0\x9f", b"\xff") == [
        ["un", "##able", "low"],
        [],
    ]


def test_no_texts_give_no_rows(uncased: BertTokenizer) -> None:
    none = tf.constant([], tf.string)
    assert uncased.tokenize(none).to_list() == []
    assert uncased.tokenize_words(none).to_list() == []
    assert [column.to_list() for column in uncased.tokenize_with_offsets(none)] == [[], [], []]


def test_words_hold_their_pieces(uncased: BertTokenizer) -> None:
    words = uncased.tokenize_words(tf.constant(["unable, low", "", "z"]))
    assert words.dtype == tf.int32
    assert [[[PIECES[piece] for piece in word] for word in row] for row in words.to_list()] == [
        [["un", "##able"], ["[UNK]"], ["low"]],
        [],
        [["[UNK]"]],
    ]


# Offsets


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("unable low", ["un", "able", "low"]),
        ("  Café's\u2003low", ["Café", "'", "s", "low"]),
        # What is dropped is in a piece's span only where it stands within the piece.
        ("Cafe\u0301 Cafe\u0301s", ["Cafe", "Cafe", "s"]),
        ("u\u200dn\xadaff", ["u\u200dn", "aff"]),
        ("中国a", ["中", "国", "a"]),
        ("a한", ["a한"]),
        ("한.", ["한", "한", "한", "."]),
        ("\U00010400low é.", ["\U00010400low", "é", "."]),
        ("a" * 101 + " a", ["a" * 101, "a"]),
    ],
)
def test_offsets_are_bytes_of_the_original_text(
    uncased: BertTokenizer, text: str, spans: list[str]
) -> None:
    ids, starts, ends = uncased.tokenize_with_offsets(tf.constant([text, "a", text]))
    assert (starts.dtype, ends.dtype) == (tf.int64, tf.int64)
    raw = text.encode()
    for row in (0, 2):
        found = zip(starts[row].numpy(), ends[row].numpy(), strict=True)
        assert [raw[start:end].decode() for start, end in found] == spans
    assert ids.to_list() == uncased.tokenize(tf.constant([text, "a", text])).to_list()


def test_offsets_are_right_behind_invalid_bytes(uncased: BertTokenizer) -> None:
    _, starts, ends = uncased.tokenize_with_offsets(tf.constant([b"\xff\xfea \xe4\xb8 low\x80s"]))
    assert (starts.to_list(), ends.to_list()) == ([[2, 7, 11]], [[3, 10, 12]])


# All characters and any text


@pytest.mark.parametrize("normalized", [True, False])
def test_every_code_point_is_treated_as_published(normalized: bool) -> None:
    characters = build_characters(
        lower_case=normalized, strip_accents=normalized, split_ideographs=True
    )
    names = {BertCharacterKind.WORD: "word", BertCharacterKind.ALONE: "alone"}

    def treated(code: int) -> list[tuple[str, str]]:
        page = characters.starts[code // PAGE_SIZE]
        entry = int(characters.entries[page + code % PAGE_SIZE])
        kind, payload = BertCharacterKind(entry % (1 << KIND_BITS)), entry >> KIND_BITS
        if kind == BertCharacterKind.DROPPED:
            return []
        if kind == BertCharacterKind.SPACE:
            return [(" ", "space")]
        if kind != BertCharacterKind.EXPANDED:
            return [(chr(code + payload), names[kind])]
        first, limit = characters.expansion_splits[payload : payload + 2]
        return [
            (chr(output >> KIND_BITS), names[BertCharacterKind(output % (1 << KIND_BITS))])
            for output in characters.expansions[first:limit].tolist()
        ]

    # Whole planes of private use are alike: every 61st there is enough.
    codes = [*range(0x32000), *range(0x32000, 0xE0000, 61), *range(0xE0000, 0x110000, 61)]
    wrong = [
        hex(code)
        for code in codes
        if not 0xD800 <= code < 0xE000
        and treated(code) != list(plain_characters(chr(code), lower=normalized, strip=normalized))
    ]
    assert wrong == []


@settings(deadline=None, derandomize=True)
@given(texts=st.lists(TEXTS))
def test_any_texts_give_the_pieces_of_plain_python(
    uncased: BertTokenizer, cased: BertTokenizer, texts: list[str]
) -> None:
    vocab = {piece: row for row, piece in enumerate(PIECES)}
    for tokenizer, normalized in ((uncased, True), (cased, False)):
        found = tokenizer.tokenize_words(tf.constant(texts, tf.string)).to_list()
        assert found == [
            [
                [vocab[piece] for piece in split_word(word, vocab)]
                for word in plain_words(text, lower=normalized, strip=normalized)
            ]
            for text in texts
        ]


@settings(deadline=None, derandomize=True)
@given(text=TEXTS)
def test_spans_of_any_text_ascend_and_end_in_it(uncased: BertTokenizer, text: str) -> None:
    _, starts, ends = uncased.tokenize_with_offsets(tf.constant([text], tf.string))
    spans = list(zip(starts[0].numpy().tolist(), ends[0].numpy().tolist(), strict=True))
    assert spans == sorted(spans)
    assert all(0 <= start < end <= len(text.encode()) for start, end in spans)
    for start, end in spans:
        text.encode()[start:end].decode()


# As a part of a graph


def test_batches_of_any_size_are_traced_once(vocab_file: Path) -> None:
    tokenizer = BertTokenizer(vocab_file, lower_case=True)
    for texts in ([], ["a"], ["low", "a한"] * 50):
        tokenizer.tokenize(tf.constant(texts, tf.string))
        tokenizer.tokenize_with_offsets(tf.constant(texts, tf.string))
    assert tokenizer.tokenize.experimental_get_tracing_count() == 1
    assert tokenizer.tokenize_with_offsets.experimental_get_tracing_count() == 1


def test_a_saved_tokenizer_needs_the_vocabulary_no_more(tmp_path: Path) -> None:
    vocab_file = write_vocab(tmp_path / "words.txt", PIECES)
    tokenizer = BertTokenizer(vocab_file, lower_case=True)
    texts = tf.constant(["Unaffable 한 z", "", "a.中"])
    expected = [column.to_list() for column in tokenizer.tokenize_with_offsets(texts)]
    tf.saved_model.save(tokenizer, str(tmp_path / "saved"))
    vocab_file.unlink()
    (tmp_path / "saved").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "assets" / "words.txt").is_file()
    loaded = tf.saved_model.load(str(tmp_path / "moved"))
    assert [column.to_list() for column in loaded.tokenize_with_offsets(texts)] == expected


# Vocabularies


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_may_end_either_way(tmp_path: Path, end: str) -> None:
    vocab_file = write_vocab(tmp_path / "vocab.txt", PIECES, end)
    tokenizer = BertTokenizer(vocab_file, lower_case=True)
    assert split(tokenizer, "unable low z") == [["un", "##able", "low", "[UNK]"]]
    assert tokenizer.vocab_size == len(PIECES)
    assert tokenizer.special == SpecialPieces(padding=0, unknown=1, start=2, end=3, mask=4)


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([*PIECES, "low"], r"vocab\.txt holds a piece twice"),
        (PIECES[4:], r"vocab\.txt lacks \[PAD\], \[UNK\], \[CLS\], \[SEP\]"),
        ([], r"vocab\.txt lacks \[PAD\]"),
    ],
)
def test_a_vocabulary_that_is_no_berts_is_an_error(
    tmp_path: Path, pieces: list[str], message: str
) -> None:
    with pytest.raises(ModuleError, match=message):
        BertTokenizer(write_vocab(tmp_path / "vocab.txt", pieces), lower_case=True)


def test_a_vocabulary_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModuleError, match=r"vocab\.txt"):
        BertTokenizer(tmp_path / "vocab.txt", lower_case=True)


# Packing


SPECIAL = SpecialPieces(padding=0, unknown=1, start=2, end=3, mask=4)


def pack(*segments: list[list[int]], seq_length: int) -> dict[str, list[list[int]]]:
    ragged = [tf.ragged.constant(rows, tf.int32, row_splits_dtype=tf.int64) for rows in segments]
    packed = pack_pieces(ragged, seq_length, SPECIAL)
    return {name: tensor.numpy().tolist() for name, tensor in packed.items()}


def test_one_segment_is_framed_padded_and_cut() -> None:
    assert pack([[7, 8], [], [7, 8, 9, 10]], seq_length=5) == {
        "input_word_ids": [[2, 7, 8, 3, 0], [2, 3, 0, 0, 0], [2, 7, 8, 9, 3]],
        "input_mask": [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]],
        "input_type_ids": [[0] * 5] * 3,
    }


def test_two_segments_are_told_apart() -> None:
    assert pack([[7], []], [[8, 9], [9]], seq_length=7) == {
        "input_word_ids": [[2, 7, 3, 8, 9, 3, 0], [2, 3, 9, 3, 0, 0, 0]],
        "input_mask": [[1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0, 0]],
        "input_type_ids": [[0, 0, 0, 1, 1, 1, 0], [0, 0, 1, 1, 0, 0, 0]],
    }


@pytest.mark.parametrize(
    ("sizes", "kept"),
    [((9, 9), (3, 2)), ((9, 1), (4, 1)), ((1, 9), (1, 4)), ((2, 9), (2, 3)), ((2, 3), (2, 3))],
)
def test_of_two_segments_the_longer_one_is_cut(
    sizes: tuple[int, int], kept: tuple[int, int]
) -> None:
    first, second = ([[50 + place for place in range(size)]] for size in sizes)
    packed = pack(first, second, seq_length=8)["input_word_ids"][0]
    assert packed == [2, *first[0][: kept[0]], 3, *second[0][: kept[1]], 3]


def test_a_length_too_short_for_any_piece_still_has_its_shape() -> None:
    assert pack([[7, 8]], seq_length=1)["input_word_ids"] == [[2]]

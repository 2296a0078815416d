"""Reading files of word vectors: every format, exact numbers, and one line for what is bad."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedcache.errors import ModuleError
from embedcache.modules.convert.vector_files import (
    FORMATS,
    MAX_DIM,
    MAX_LINE_BYTES,
    MAX_WORD_BYTES,
    WordVectors,
    read_word_vectors,
)
from embedcache.modules.convert.vector_lines import LineError, count_numbers, parse_lines

ReadBytes = Callable[..., WordVectors]
Vectors = NDArray[np.float32]

WORDS = [b"the", b",", "Größe".encode(), b"12", "日本".encode(), b"-", b"\xff\xfe"]
VECTORS = np.random.default_rng(5).normal(size=(len(WORDS), 6)).astype(np.float32)


def as_lines(words: list[bytes], vectors: Vectors, end: bytes = b"\n") -> bytes:
    rows = zip(words, vectors, strict=True)
    return b"".join(b" ".join([word, *(b"%r" % float(x) for x in row)]) + end for word, row in rows)


def as_glove(words: list[bytes], vectors: Vectors) -> bytes:
    return as_lines(words, vectors)


def as_word2vec_text(words: list[bytes], vectors: Vectors) -> bytes:
    return b"%d %d\n" % vectors.shape + as_lines(words, vectors)


def as_fasttext(words: list[bytes], vectors: Vectors) -> bytes:
    """fastText and word2vec.c end each line with a space."""
    return b"%d %d\n" % vectors.shape + as_lines(words, vectors, b" \n")


def as_word2vec_binary(words: list[bytes], vectors: Vectors, end: bytes = b"\n") -> bytes:
    rows = zip(words, vectors, strict=True)
    header = b"%d %d\n" % vectors.shape
    return header + b"".join(word + b" " + row.astype("<f4").tobytes() + end for word, row in rows)


def as_gensim_binary(words: list[bytes], vectors: Vectors) -> bytes:
    """gensim puts nothing between the rows."""
    return as_word2vec_binary(words, vectors, b"")


WRITERS = {
    as_glove: "glove",
    as_word2vec_text: "word2vec-text",
    as_fasttext: "word2vec-text",
    as_word2vec_binary: "word2vec-bin",
    as_gensim_binary: "word2vec-bin",
}


@pytest.fixture
def read(tmp_path: Path) -> ReadBytes:
    """Writes bytes to ``v`` and reads them as word vectors."""

    def read_bytes(content: bytes, **options: Any) -> WordVectors:
        path = tmp_path / "v"
        path.write_bytes(content)
        return read_word_vectors(path, **options)

    return read_bytes


@pytest.fixture
def error_of(read: ReadBytes, tmp_path: Path) -> Callable[..., str]:
    """The one line of the error that reading gives, without the folder."""

    def message_of(content: bytes, **options: Any) -> str:
        with pytest.raises(ModuleError) as caught:
            read(content, **options)
        message = str(caught.value)
        assert "\n" not in message
        assert message.startswith(f"{tmp_path}/v")
        return message.removeprefix(f"{tmp_path}/")

    return message_of


# What is read


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("write", WRITERS)
def test_every_format_gives_back_its_words_and_bits(
    read: ReadBytes, write: Any, pack: Any, told: bool
) -> None:
    found = read(pack(write(WORDS, VECTORS)), format=WRITERS[write] if told else None)
    assert (found.words, found.format, found.duplicates) == (WORDS, WRITERS[write], 0)
    assert found.vectors.dtype == np.float32
    assert found.vectors.tobytes() == VECTORS.tobytes()


characters = st.characters(exclude_characters=" \n\r\ufeff", exclude_categories=["Cs"])
word = st.text(characters, min_size=1)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(
    st.lists(word, min_size=1, max_size=8, unique=True),
    st.integers(1, 9).flatmap(lambda dim: st.lists(finite, min_size=8 * dim, max_size=8 * dim)),
    st.sampled_from(sorted(WRITERS, key=lambda write: write.__name__)),
    st.booleans(),
)
def test_what_was_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    words: list[str],
    numbers: list[float],
    write: Any,
    is_compressed: bool,
) -> None:
    vectors = np.array(numbers, np.float32).reshape(8, -1)[: len(words)]
    encoded = [word.encode() for word in words]
    content = write(encoded, vectors)
    path = tmp_path_factory.getbasetemp() / "written"
    path.write_bytes(gzip.compress(content, 0) if is_compressed else content)
    found = read_word_vectors(path, format=WRITERS[write])
    assert found.words == encoded
    assert found.vectors.tobytes() == vectors.tobytes()


digits = st.text("0123456789", min_size=1, max_size=18)
decimals = st.builds(
    "{}{}{}{}{}".format,
    st.sampled_from(["", "-", "+"]),
    digits | st.sampled_from(["", "0", "1"]),
    st.sampled_from(["", "0", "5", ".", ".000", ".5"]),
    digits,
    st.sampled_from(["", "", "e5", "E-7", "e+03", "e-40"]),
).filter(lambda text: abs(float(text)) < 3e38)


@given(st.lists(decimals, min_size=1, max_size=60))
def test_every_decimal_is_the_number_that_python_and_float32_make_of_it(texts: list[str]) -> None:
    _, vectors = parse_lines(f"word {' '.join(texts)}\n".encode(), len(texts))
    expected = np.array([float(text) for text in texts], np.float32)
    assert vectors[0].tobytes() == expected.tobytes()


def test_seventeen_digits_beside_the_middle_of_two_numbers_are_rounded_as_by_python() -> None:
    """Their digits as a float64 would be rounded once more, to the other float32."""
    texts = ["1.8575472235679626", "1.8221943974494934", "1.9460617899894714"]
    _, vectors = parse_lines(f"word {' '.join(texts)}\n".encode(), 3)
    assert vectors[0].tobytes() == np.array([float(text) for text in texts], np.float32).tobytes()


@pytest.mark.parametrize("text", [".5", "-.5", "5.", "-5.", "-0.0", "0", "123456789.123456"])
def test_unusual_decimals_are_numbers(text: str) -> None:
    _, vectors = parse_lines(f"word {text} 0.25\n".encode(), 2)
    assert vectors.tobytes() == np.array([[float(text), 0.25]], np.float32).tobytes()


@pytest.mark.parametrize(
    "text",
    ["", ".", "-", "-.", "+.", "1.2.3", "1..2", "0.1-", "--0.1", "0.-1", "1_0.0", "0x1.0", "1e",
     "٣.٤", "0.1:", "0./1", ":.1", "1234567.12345678:", "0.\x001"],
)  # fmt: skip
def test_what_only_looks_like_a_number_is_none(text: str) -> None:
    with pytest.raises(LineError, match=r"number 2 of 3, .*, is not a number"):
        parse_lines(f"word 0.5 {text} 0.25\n".encode(), 3)


def test_words_of_glove_may_hold_spaces(read: ReadBytes) -> None:
    content = b". . . 0.5 0.25\nat name@domain.com -1.5 2\n1 3 4\n\xc2\xa0x 5 6\n  7 8\n"
    found = read(content)
    assert found.words == [b". . .", b"at name@domain.com", b"1", b"\xc2\xa0x", b" "]
    assert found.vectors.tolist() == [[0.5, 0.25], [-1.5, 2], [3, 4], [5, 6], [7, 8]]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b" \n", b" \r\n"])
@pytest.mark.parametrize("is_whole", [True, False])
def test_line_ends_of_other_systems_and_a_last_line_without_one(
    read: ReadBytes, end: bytes, is_whole: bool
) -> None:
    content = b"a 1 2" + end + b"b 3 4" + (end if is_whole else b"")
    for header in (b"", b"2 2" + end):
        found = read(header + content)
        assert (found.words, found.vectors.tolist()) == ([b"a", b"b"], [[1, 2], [3, 4]])


def test_byte_order_mark_is_no_part_of_the_first_word(read: ReadBytes) -> None:
    assert read(b"\xef\xbb\xbfa 1 2\nb 3 4\n").words == [b"a", b"b"]
    assert read(b"\xef\xbb\xbf1 2\na 1 2\n").format == "word2vec-text"


@pytest.mark.parametrize("write", WRITERS)
def test_first_of_equal_words_wins(read: ReadBytes, write: Any) -> None:
    vectors = np.arange(12, dtype=np.float32).reshape(6, 2)
    found = read(write([b"a", b"b", b"a", b"c", b"b", b"a"], vectors))
    assert (found.words, found.duplicates) == ([b"a", b"b", b"c"], 3)
    assert found.vectors.tolist() == [[0, 1], [2, 3], [6, 7]]


@pytest.mark.parametrize("write", WRITERS)
def test_max_words_counts_distinct_words(read: ReadBytes, write: Any) -> None:
    content = write([b"a", b"a", b"b", b"c"], np.eye(4, 2, dtype=np.float32))
    for max_words in (1, 2, 3, 4):
        found = read(content, max_words=max_words)
        assert found.words == [b"a", b"b", b"c"][:max_words]
        assert found.vectors.shape == (min(max_words, 3), 2)


def test_what_follows_max_words_is_not_looked_at(read: ReadBytes) -> None:
    assert read(b"a 1 2\nb 3 4\nrubbish", max_words=2).words == [b"a", b"b"]
    assert read(b"3 2\na 1 2\nb 3 4\nrubbish", max_words=2).words == [b"a", b"b"]
    binary = as_word2vec_binary([b"a", b"b", b"c"], np.full((3, 2), 0.5, np.float32))
    assert read(binary[:-3] + b"\xff\xff\xff", max_words=2).words == [b"a", b"b"]


@pytest.mark.parametrize("pack", [bytes, lambda content: gzip.compress(content, 1)])
@pytest.mark.parametrize("write", WRITERS)
def test_rows_across_blocks_are_whole(read: ReadBytes, write: Any, pack: Any) -> None:
    words = [b"%x" % (number * 7919) for number in range(30_000)]
    vectors = np.random.default_rng(1).normal(size=(len(words), 16)).astype(np.float32)
    content = write(words, vectors)
    assert len(content) > 3 << 19  # the head and a block
    found = read(pack(content))
    assert found.words == words
    assert found.vectors.tobytes() == vectors.tobytes()
    assert found.vectors.base is None


def test_longest_word_of_a_binary_file_is_read_and_a_longer_one_refused(
    read: ReadBytes, error_of: Callable[..., str]
) -> None:
    vectors = np.full((2, 3), 0.5, np.float32)
    longest = b"x" * MAX_WORD_BYTES
    assert read(as_word2vec_binary([b"a", longest], vectors)).words == [b"a", longest]
    error = error_of(as_word2vec_binary([b"a", longest + b"x"], vectors))
    assert error.startswith("v: word 2: no word stands there; ")


@given(st.binary(max_size=200), st.sampled_from([None, *FORMATS]))
def test_any_bytes_are_vectors_or_an_error_of_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, file_format: str | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    for beginning in (b"", b"2 2\n", b"a 1 2\n"):
        path.write_bytes(beginning + content)
        found = read_or_refuse(path, file_format)
        if isinstance(found, ModuleError):
            assert "\n" not in str(found)
        else:
            assert len(set(found.words)) == len(found.vectors) > 0
            assert np.isfinite(found.vectors).all()


def read_or_refuse(path: Path, file_format: str | None) -> WordVectors | ModuleError:
    try:
        return read_word_vectors(path, format=file_format)
    except ModuleError as error:
        return error


# What is refused

WRONG = "; give its format, one of glove, word2vec-text, word2vec-bin, or correct the file"
AGAIN = "; fetch or write the file again"
ONE_ROW = b"\0\0\x80\x3f\0\0\0\x40"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "v: the file is empty; give a file of word vectors"),
        (b"a b c\n", "v:1: 'a b c' is not a word followed by its numbers" + WRONG),
        (b"\n", "v:1: '' is not a word followed by its numbers" + WRONG),
        (b"a 1 x 2\n", "v:1: 'a 1 x 2' is not a word followed by its numbers" + WRONG),
        (b"a 1 2\nb 1\n", "v:2: 1 of 2 numbers follow the word" + WRONG),
        (b"a 1 2\n\nb 1 2\n", "v:2: 0 of 2 numbers follow the word" + WRONG),
        (
            b"a 1 2\nb 1 2\nc 1 2 3\n",
            "v:3: more numbers than expected: '1' stands before the last ones" + WRONG,
        ),
        (b"a 1 2\nb 1 x\n", "v:2: number 2 of 2, 'x', is not a number" + WRONG),
        (b"a 1 2\nb  1\n", "v:2: number 1 of 2, '', is not a number" + WRONG),
        (b"a 1 2\nb nan 2\n", "v:2: number 1 of 2, 'nan', is not a finite number" + WRONG),
        (b"a 1 2\nb 1 -Inf\n", "v:2: number 2 of 2, '-Inf', is not a finite number" + WRONG),
        (b"a 1 2\nb 1 1e39\n", "v:2: number 2 of 2, '1e39', is beyond float32" + WRONG),
        (b"a 1 2\n 1 2\n", "v:2: the line begins with a space, so its word is empty" + WRONG),
        (b"a 1 2\nb\rc 1 2\n", "v:2: a carriage return stands inside the line" + WRONG),
        (b"1 2\na 1 x\n", "v:2: number 2 of 2, 'x', is not a number" + WRONG),
        (b"2 2\na 1 2\n\xc3\xc3 1\n", "v:3: 1 of 2 numbers follow the word" + WRONG),
        (
            b"2 2\nabcdefgh 1 2\n",
            "v:2: the file ends after 1 of the 2 words that its header promises" + AGAIN,
        ),
        (
            b"1 2\na 1 2\nb 1 2\n",
            "v:3: more lines than the 1 that the header promises; correct the header",
        ),
        (b"0 2\n", "v:1: the header promises 0 words of 2 numbers, which is no use" + AGAIN
         + f"; widths go from 1 to {MAX_DIM}"),
        (b"1 0\na\n", "v:1: the header promises 1 words of 0 numbers, which is no use" + AGAIN
         + f"; widths go from 1 to {MAX_DIM}"),
        (
            b"9 2\na 1 2\n",
            "v:1: the header promises 9 words of 2 numbers, at least 57 bytes, but the file has 10"
            + AGAIN,
        ),
        (
            b"1 2\na " + ONE_ROW[:-1],
            "v:1: the header promises 1 words of 2 numbers, at least 14 bytes, but the file has 13"
            + AGAIN,
        ),
        (b"1 2\nab " + ONE_ROW[:-1], "v: word 1: the file ends before its vector does: truncated"
         + AGAIN),
        (
            b"2 2\nab " + ONE_ROW + b"\ncde " + ONE_ROW[:-4],
            "v: word 2: the file ends before its vector does: truncated" + AGAIN,
        ),
        (
            b"2 2\nabcdefghijkl " + ONE_ROW,
            "v: word 2: the file ends before its vector does: truncated" + AGAIN,
        ),
        (b"2 2\na " + ONE_ROW + b"\nb\nc " + ONE_ROW, r"v: word 2: the word 'b\nc' holds a line end"
         + WRONG),
        (b"2 2\na " + ONE_ROW + b"b\r " + ONE_ROW, r"v: word 2: the word 'b\r' holds a line end"
         + WRONG),
        (b"2 2\na " + ONE_ROW + b"\n " + ONE_ROW, "v: word 2: no word stands there" + WRONG),
        (
            b"2 2\na " + ONE_ROW + b"b " + ONE_ROW[:4] + b"\0\0\xc0\x7f",
            "v: word 2: number 2 of 2 is nan, not a finite number" + WRONG,
        ),
        (
            b"2 2\na " + ONE_ROW + b"b \0\0\x80\xff" + ONE_ROW[:4],
            "v: word 2: number 1 of 2 is -inf, not a finite number" + WRONG,
        ),
        (
            b"1 2\na " + ONE_ROW + b"\nb " + ONE_ROW,
            "v: more bytes follow the 1 words that the header promises" + WRONG,
        ),
    ],
)  # fmt: skip
def test_bad_file_is_an_error_of_one_line(
    error_of: Callable[..., str], content: bytes, expected: str
) -> None:
    assert error_of(content) == expected


@pytest.mark.parametrize("file_format", ["word2vec-text", "word2vec-bin"])
def test_header_that_is_missing_is_asked_for(
    error_of: Callable[..., str], file_format: str
) -> None:
    assert error_of(b"the 0.5 2\n", format=file_format) == (
        "v:1: 'the 0.5 2' is not a header, a count of words and a width" + WRONG
    )


def test_told_format_decides_where_the_content_is_ambiguous(read: ReadBytes) -> None:
    """A word "1" with one number might be a header."""
    content = b"1 1\n2 2\n"
    assert read(content).words == [b"2"]
    assert read(content, format="glove").words == [b"1", b"2"]


@pytest.mark.parametrize(
    ("magic", "kind"),
    [
        (b"PK\x03\x04", "a zip archive; unpack it and give the file inside"),
        (b"\xba\x16\x4f\x2f", "a fastText model (.bin); give the file .vec that comes with it"),
        (b"\x80\x04\x95", "a Python pickle; write it with gensim's save_word2vec_format"),
        (b"BZh91", "compressed with bzip2; decompress it"),
        (b"\xff\xfea\0", "UTF-16 text; convert it to UTF-8"),
    ],
)
def test_file_of_another_kind_is_called_what_it_is(
    error_of: Callable[..., str], magic: bytes, kind: str
) -> None:
    assert error_of(magic + b"\0\0") == f"v: no word vectors: this is {kind}"


def test_damaged_gzip_is_refused(error_of: Callable[..., str]) -> None:
    packed = gzip.compress(as_glove(WORDS, VECTORS))
    again = "; fetch or compress the file again"
    assert error_of(packed[:-9]) == (
        "v: the gzip data ends too early: the file is truncated" + again
    )
    assert error_of(packed[:-8] + bytes(8)).startswith("v: the gzip data is damaged (CRC check")
    assert error_of(b"\x1f\x8bnothing, really").startswith("v: the gzip data is damaged (")


def test_missing_file_and_folder_are_errors_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModuleError) as caught:
        read_word_vectors(tmp_path / "none")
    assert str(caught.value) == f"{tmp_path}/none: No such file or directory; check the path"
    with pytest.raises(ModuleError) as caught:
        read_word_vectors(tmp_path)
    assert str(caught.value) == f"{tmp_path}: not a file; give a file of word vectors"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"format": "vec"}, "'vec' is no format of word vectors; use glove, word2vec-text"),
        ({"max_words": 0}, "max_words is 0: no word would be left; use 1 or more"),
    ],
)
def test_option_without_a_legal_value_is_refused(
    read: ReadBytes, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModuleError, match=f"^{re.escape(reason)}"):
        read(b"a 1\n", **options)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(
    "header", [b"1000000000 300", b"30 60000", b"9" * 30 + b" 300", b"3 " + b"9" * 30]
)
@pytest.mark.parametrize("file_format", ["word2vec-text", "word2vec-bin"])
def test_absurd_header_is_refused_before_memory_is_taken(
    error_of: Callable[..., str], header: bytes, pack: Any, file_format: str
) -> None:
    tracemalloc.start()
    try:
        error = error_of(pack(header + b"\na 1 2\n"), format=file_format)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert error.startswith("v:1: the header promises ")
    assert peak < 3 << 20  # the head is read in 1 MiB


def test_line_without_end_is_refused_before_it_is_in_memory(error_of: Callable[..., str]) -> None:
    packed = gzip.compress(b"a 1\nb" + bytes(40 << 20), 1)
    tracemalloc.start()
    try:
        error = error_of(packed)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert error == (
        f"v: a line is longer than {MAX_LINE_BYTES} bytes; give a file of word vectors"
    )
    assert peak < 6 * MAX_LINE_BYTES


def test_too_little_memory_is_an_error_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.write(b"4000000 300\na " + ONE_ROW)
        file.truncate(4_000_000 * 1210)
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from embedcache.errors import ModuleError\n"
        "from embedcache.modules.convert.vector_files import read_word_vectors\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n"
        "try: read_word_vectors(Path(sys.argv[1]))\n"
        "except ModuleError as error: print(error)\n"
    )
    root = Path(__file__).parents[4]
    done = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout == (
        f"{path}: no memory for 4000000 vectors of 300 numbers (4800000000 bytes); read fewer of"
        " them with max_words\n"
    )


@pytest.mark.parametrize(
    ("line", "count"),
    [(b"a 1 2", 2), (b"a", 0), (b"1 2 3", 2), (b". . 1", 1), (b"a 1 b 2", 0), (b"a 1 ", 0)],
)
def test_numbers_of_a_line_are_those_that_end_it(line: bytes, count: int) -> None:
    assert count_numbers(line) == count

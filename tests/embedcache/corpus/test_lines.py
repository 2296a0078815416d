"""Files → lines: exact bytes, gzip, and whatever is no text."""

from __future__ import annotations

import gzip
import re
import tracemalloc
from codecs import BOM_UTF8

import pytest

from embedcache.corpus.lines import BINARY_MAGIC


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"a\nb\n", [b"a", b"b"]),
        (b"a\nb", [b"a", b"b"]),
        (b"a\r\nb\rc\n\n \n", [b"a", b"b", b"c", b"", b" "]),
        (b"\n", [b""]),
        (b"\r\r\n", [b"", b""]),
        (BOM_UTF8 + b"a\n" + BOM_UTF8 + b"b\n", [b"a", BOM_UTF8 + b"b"]),
        ("\u2028é\x85\x0c\n".encode(), ["\u2028é\x85\x0c".encode()]),
        (b' "a"\t\\ \n', [b' "a"\t\\ ']),
    ],
)
def test_txt_gives_each_line_exactly(write, read, content, texts):
    batch = read(write("a.txt", content))
    assert batch.texts == texts
    assert batch.lines == list(range(1, len(texts) + 1))
    assert batch.labels is batch.splits is batch.ids is None


def test_invalid_utf8_names_file_and_line(write, read, error_of):
    path = write("corpus.txt", b"ok\n" * 6 + "é".encode() + b"x\xff\nok\n")
    assert error_of(path) == (
        "corpus.txt:7: invalid UTF-8 at byte 4 of the line (0xff); convert the file to UTF-8, or"
        " put U+FFFD for such bytes with --encoding-errors replace"
    )
    assert read(path, encoding_errors="replace").texts[6] == "éx\ufffd".encode()


def test_every_format_refuses_invalid_utf8_and_nul(write, error_of, file_format):
    lines = {"jsonl": b'{"text": "%s"}\n', "fasttext": b"__label__a %s\n"}
    line = lines.get(file_format, b"%s\n")
    start = b"" if file_format in ("txt", "fasttext", "jsonl") else b"text\n"
    number = 2 + bool(start)
    for junk, reason in ((b"\xe9", "invalid UTF-8"), (b"\0", "NUL character")):
        path = write("a", start + line % b"ok" + line % junk)
        assert error_of(path, format=file_format).startswith(f"a:{number}: {reason} at byte ")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_utf16_and_utf32_are_told_by_their_mark(write, error_of, encoding):
    path = write("a.txt", "\ufeffabc\n".encode(encoding))
    name = encoding[:6].upper()
    assert error_of(path).startswith(f"a.txt:1: this is {name} text (its first bytes are ")
    assert f"iconv -f {name} -t UTF-8" in error_of(path, block=1)


@pytest.mark.parametrize("magic", sorted(BINARY_MAGIC))
def test_binary_file_is_called_what_it_is(write, error_of, magic):
    path = write("a.txt", magic + b"\xff\0")
    kind = BINARY_MAGIC[magic]
    assert error_of(path) == f"a.txt:1: this is no text but {kind}; give its text as UTF-8"


@pytest.mark.parametrize("end", [b"", b"\n", b"\r", b"\r\n", b"\r\nmore"])
@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_longest_line_is_read_and_a_longer_one_refused(write, read, error_of, end, block):
    longest = write("a.txt", b"x\n12345678" + end)
    assert read(longest, block=block, max_text_bytes=8).texts[1] == b"12345678"
    longer = write("b.txt", b"x\n123456789" + end)
    assert error_of(longer, block=block, max_text_bytes=8) == (
        "b.txt:2: the line is longer than 8 bytes; split it, or allow it with --max-text-bytes"
    )


def test_long_line_is_refused_before_it_is_in_memory(tmp_path, error_of, file_format):
    content = b"text\n" if file_format not in ("txt", "fasttext", "jsonl") else b""
    with gzip.open(tmp_path / "a.gz", "wb", compresslevel=1) as file:
        file.write(content + b'"')
        for _ in range(40):
            file.write(b"x" * (1 << 20))
    tracemalloc.start()
    message = error_of(str(tmp_path / "a.gz"), format=file_format, block=1 << 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f"a.gz:{1 + bool(content)}: the line is longer than 1048576 bytes" in message
    assert peak < 6 << 20


def test_replacement_characters_count_as_bytes_of_the_line(write, read, error_of):
    path = write("a.txt", b"\xff" * 4 + b"\n")
    assert read(path, encoding_errors="replace", max_text_bytes=12).texts == ["\ufffd".encode() * 4]
    assert "longer than 11 bytes" in error_of(path, encoding_errors="replace", max_text_bytes=11)


@pytest.mark.parametrize(
    "content", [b"", BOM_UTF8, gzip.compress(b"")], ids=["empty", "mark", "gzip"]
)
def test_empty_file_holds_no_documents(write, error_of, file_format, content):
    message = error_of(write("a.txt", content), format=file_format)
    assert message == "a.txt: the file holds no documents; leave it out or fill it"


@pytest.mark.parametrize(
    ("file_format", "content"),
    [("csv", "text,label\n"), ("tsv-raw", "text\n\n"), ("jsonl", "\n \n"), ("fasttext", "\n\n")],
)
def test_file_without_records_holds_no_documents(write, error_of, file_format, content):
    assert "holds no documents" in error_of(write("a", content), format=file_format)


def test_gzip_is_told_by_its_bytes_whatever_the_name(write, read):
    packed = gzip.compress(b"text\tlabel\n") + gzip.compress(b"a\tx\n")  # two members
    for name in ("a.tsv", "a.tsv.gz", "A.TSV.GZ"):
        batch = read(write(name, packed))
        assert (batch.texts, batch.labels) == ([b"a"], [("x",)])
    plain = write("b.tsv.gz", "text\nnot packed\n")
    assert read(plain).texts == [b"not packed"]


def test_truncated_gzip_names_the_line_it_got_to(write, read, error_of):
    content = "".join(f"{number * 7919 % 65537}\n" for number in range(50_000)).encode()
    packed = gzip.compress(content)
    assert len(read(write("whole.gz", packed)).texts) == 50_000
    message = error_of(write("half.gz", packed[: len(packed) // 2]), block=4096)
    found = re.fullmatch(r"half\.gz:(\d+): the gzip data ends too early: .*; fetch .*", message)
    assert found
    assert 1 < int(found[1]) < 50_000


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[:-8] + b"\0" * 8,
        lambda packed: packed[:10] + b"\xff" * 9 + packed[19:],
        lambda packed: packed + b"trailing",
    ],
)
def test_damaged_gzip_is_refused(write, error_of, damage):
    path = write("a.gz", damage(gzip.compress(b"some text\n" * 9)))
    assert "the gzip data is damaged (" in error_of(path)

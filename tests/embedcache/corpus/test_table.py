"""csv and tsv: quotes, columns and rows."""

from __future__ import annotations

import csv
import tracemalloc

import pytest

from embedcache.errors import CorpusError


@pytest.mark.parametrize(("name", "d"), [("a.csv", ","), ("a.tsv", "\t")])
def test_quoted_fields_hold_delimiters_line_ends_and_quotes(write, read, name, d):
    content = f'text{d}label\n"a{d}b"{d}x\r\n\n"c\r\nd\n"{d}\n"say ""hi"""{d}"y"\nit\'s 5" {d}z'
    batch = read(write(name, content))
    assert batch.texts == [f"a{d}b".encode(), b"c\r\nd\n", b'say "hi"', b"it's 5\" "]
    assert batch.labels == [("x",), (), ("y",), ("z",)]
    assert batch.lines == [2, 4, 7, 8]


def test_tsv_raw_takes_quotes_and_backslashes_literally(write, read, error_of):
    path = write("a.tsv", 'text\tlabel\n"open\tx\n\\n ""\t"y"\n')
    batch = read(path, format="tsv-raw")
    assert (batch.texts, batch.labels) == ([b'"open', b'\\n ""'], [("x",), ('"y"',)])
    assert error_of(path) == (
        "a.tsv:2: stray quote: in the record that starts here, text follows a closing quote;"
        " double the quotes inside a quoted field, or read quotes as plain characters with"
        " --format tsv-raw"
    )


@pytest.mark.parametrize("block", [1, 5, 1 << 20])
@pytest.mark.parametrize("size", [1, 4096])
def test_unclosed_quote_names_the_line_where_its_record_starts(write, error_of, block, size):
    path = write("a.csv", 'text,label\n"a\nb",x\n"c,y\nd,z\n')
    message = error_of(path, block=block, size=size)
    assert message.startswith("a.csv:4: a quote is opened in the record that starts here and never")
    assert "tsv-raw" not in message


@pytest.mark.parametrize("block", [5, 1 << 20])
@pytest.mark.parametrize("size", [1, 3, 4096])
def test_record_of_many_lines_is_bounded(write, read, error_of, block, size):
    longest = write("a.tsv", 'text\tlabel\nv\tw\n"12\n34\n5"\tx\ny\tz\n')
    assert read(longest, block=block, size=size, max_text_bytes=11).texts[1] == b"12\n34\n5"
    message = error_of(longest, block=block, size=size, max_text_bytes=10)
    assert message.startswith("a.tsv:3: the record that starts here is longer than 10 bytes, or ")
    assert "--format tsv-raw" in message


def test_unclosed_quote_does_not_draw_the_file_into_memory(write, error_of):
    path = write("a.tsv", b'text\n"' + b"a line of text\n" * 1_000_000)
    tracemalloc.start()
    message = error_of(path, max_text_bytes=1 << 17, block=1 << 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert message.startswith("a.tsv:2: the record that starts here is longer than 131072 bytes")
    assert peak < 6 << 20


def test_limit_of_csv_is_raised_where_a_text_may_be_longer_and_never_lowered(write, read, error_of):
    before = csv.field_size_limit(1000)
    try:
        short = write("a.csv", 'text\n"x"\n')
        long = write("b.csv", 'text\n"{}"\n'.format("x" * 1998))
        assert read(short, max_text_bytes=9).texts == [b"x"]
        assert csv.field_size_limit() == 1000
        assert read(long, max_text_bytes=2000).texts == [b"x" * 1998]
        assert "longer than 1999 bytes" in error_of(long, max_text_bytes=1999)
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize("quoted", ["", '"q"\tx\n'])
@pytest.mark.parametrize(("row", "width"), [("a\tb\tc", "3 fields"), ("a", "1 field")])
def test_ragged_row_names_its_width_and_the_header_s(write, error_of, quoted, row, width):
    content = f"text\tlabel\n{quoted}a\tb\n\n{row}\na\tb\n"
    for options in ({}, {"format": "tsv-raw"}):
        message = error_of(write("a.tsv", content), **options)
        number = 4 + bool(quoted)
        assert message.startswith(f"a.tsv:{number}: the row has {width}, the header 2; ")


@pytest.mark.parametrize(
    ("header", "options", "cells"),
    [
        ("label,text,split", {}, ("2", "1", "3", None)),
        ("label,sentence,id", {}, ("2", "1", None, None)),
        ("sentence,text,x", {}, ("2", None, None, None)),
        ("a,b,c", {"text_field": "c", "label_field": "a"}, ("3", "1", None, None)),
        ("a,b,c", {"text_field": "c", "split_field": "b", "id_field": "a"}, ("3", None, "2", "1")),
        ("text,label,split", {"label_field": "split"}, ("1", "3", None, None)),
        ('"text",",","a\nb"', {"label_field": ",", "id_field": "a\nb"}, ("1", "2", None, "3")),
    ],
)
def test_columns_are_found_by_default_or_by_name(write, read, header, options, cells):
    batch = read(write("a.csv", f"\n{header}\n1,2,3\n"), **options)
    text, label, split, document = cells
    assert batch.texts == [text.encode()]
    assert batch.labels == (None if label is None else [(label,)])
    assert batch.splits == (None if split is None else [split])
    assert batch.ids == (None if document is None else [document])


@pytest.mark.parametrize(
    ("header", "options", "reason"),
    [
        ("a,b", {}, "no column is named text or sentence; name one with --text-field: the header"),
        ("a,b", {}, "has 'a', 'b'"),
        ("text,b", {"text_field": "x"}, "no column 'x'; name another with --text-field: there is"),
        ("text,b", {"label_field": "x"}, "there is 'text', 'b'"),
        ("text,b", {"split_field": "x"}, "with --split-field"),
        ("text,b", {"id_field": "x"}, "with --id-field"),
        ("text,text", {}, "2 columns are named 'text'; rename all but one"),
        ("text,b,b", {"id_field": "b"}, "2 columns are named 'b'"),
        (",".join(map(str, range(50))), {}, "'19' and 30 more"),
    ],
)
def test_unknown_or_doubled_column_is_refused(write, error_of, header, options, reason):
    message = error_of(write("a.csv", f"{header}\n1,2\n"), **options)
    assert message.startswith("a.csv:1: ")
    assert reason in message


def test_doubled_column_that_is_not_used_does_no_harm(write, read):
    batch = read(write("a.csv", "text,b,b\n1,2,3\n"))
    assert batch.texts == [b"1"]


def test_split_of_the_source_wins_over_a_default_column_but_not_over_a_named_one(write, read):
    path = write("a.csv", "text,split\na,x\n")
    assert read(path).splits == ["x"]
    assert read(path, split="dev").splits == ["dev"]
    with pytest.raises(CorpusError, match="the source names the split dev, and --split-field"):
        read(path, split="dev", split_field="split")


@pytest.mark.parametrize("name", ["", "te st", "é"])
def test_split_that_is_no_name_is_refused(write, error_of, name):
    path = write("a.csv", f"text,split\na,x\nb,{name}\n")
    assert error_of(path).startswith(f"a.csv:3: {name!r} cannot name a split; ")

"""How a format is told, the options, and fastText."""

from __future__ import annotations

import pytest

from embedcache.corpus import CorpusOptions, CorpusReader, Source


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.txt", "{}\n", [b"{}"]),
        ("a.txt", "\n__label__x y\n", [b"y"]),
        ("a.txt.gz", "\r\n__label__x y\n", [b"y"]),
        ("a.csv", "text\n__label__x\n", [b"__label__x"]),
        ("a.TSV", "text\ny\n", [b"y"]),
        ("a.jsonl", '{"text": "y"}', [b"y"]),
        ("a.ndjson.gz", '{"text": "y"}', [b"y"]),
        ("a.json", '{"text": "y"}', [b"y"]),
        ("a.train", "__label__x y\n", [b"y"]),
        ("a.train", '\n{"text": "y"}\n', [b"y"]),
        ("a.train", 'y\n{"text": "y"}\n', [b"y", b'{"text": "y"}']),
        ("a", "y __label__x\n", [b"y __label__x"]),
    ],
)
def test_format_is_told_by_name_then_by_content(write, read, name, content, texts):
    assert read(write(name, content)).texts == texts
    assert read(write(name, content), block=1).texts == texts


def test_named_format_wins_over_name_and_content(write, read):
    path = write("a.csv", "__label__x y\n")
    assert read(path, format="txt").texts == [b"__label__x y"]


@pytest.mark.parametrize(
    "options",
    [
        {"format": "parquet"},
        {"encoding_errors": "ignore"},
        {"max_text_bytes": 0},
        {"max_text_bytes": 1 << 31},
    ],
)
def test_illegal_options_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be "):
        CorpusOptions(**options)


def test_batches_below_one_document_are_refused():
    with pytest.raises(ValueError, match="batch_documents must be at least 1"):
        CorpusReader([Source("a", None)], batch_documents=0)


@pytest.mark.parametrize("role", ["text", "label", "split", "id"])
def test_field_options_are_refused_for_formats_without_fields(write, error_of, role):
    path = write("a.txt", "x\n")
    assert error_of(path, **{f"{role}_field": "y"}).startswith(
        f"a.txt: --{role}-field is given, but the file is read as txt"
    )


def test_fasttext_labels_are_cut_off_and_the_text_kept(write, read):
    content = "__label__a x  y \n\n__label__b __label__c  z\n__label__é\n__label__a __label__b \n"
    batch = read(write("a.txt", content))
    assert batch.texts == [b"x  y ", b" z", b"", b""]
    assert batch.labels == [("a",), ("b", "c"), ("é",), ("a", "b")]
    assert batch.lines == [1, 3, 4, 5]


def test_label_prefix_inside_a_fasttext_text_is_text(write, read):
    batch = read(write("a.txt", "__label__a x __label__b\n"))
    assert (batch.texts, batch.labels) == ([b"x __label__b"], [("a",)])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("no label", "no label: the line does not begin with __label__"),
        (" __label__a x", "no label"),
        ("__label__ x", "a label has no name"),
        ("__label__", "a label has no name"),
        ("__label__a __label__ x", "a label has no name"),
        ("__label__a\tx y", "a tab follows a label"),
    ],
)
def test_fasttext_line_without_label_is_refused(write, error_of, line, reason):
    message = error_of(write("a.txt", f"__label__a x\n\n{line}\n"))
    assert message.startswith(f"a.txt:3: {reason}")
    assert message.endswith("or read the file with --format txt")

"""Which files a corpus is, and which cannot be read at all."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from embedcache.corpus import CorpusReader, Source, files, lines, parse_sources, sources_of
from embedcache.errors import CorpusError


def test_split_names_are_cut_off_paths():
    assert parse_sources(["train=a.tsv", "dev=b=c.tsv", "train=-"]) == [
        Source("a.tsv", "train"),
        Source("b=c.tsv", "dev"),
        Source("-", "train"),
    ]
    assert parse_sources(["corpus.txt", "-"]) == [Source("corpus.txt", None), Source("-", None)]


def test_existing_file_wins_over_the_split_reading(tmp_path, write, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_sources(["train=a.txt"]) == [Source("a.txt", "train")]
    write("train=a.txt", "x")
    assert parse_sources(["train=a.txt"]) == [Source("train=a.txt", None)]


@pytest.mark.parametrize("path", ["runs/lr=0.1.txt", "./a=b", "a.b=c"])
def test_equals_sign_inside_a_path_names_no_split(path):
    assert parse_sources([path]) == [Source(path, None)]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "names no file"),
        ([""], "empty name"),
        (["train="], "empty name (split train)"),
        (["=a.tsv"], "'' cannot name the split of 'a.tsv'"),
        (["the test=a.tsv"], "'the test' cannot name the split"),
        (["train=a.tsv", "b.tsv"], "'b.tsv' has no split, but 'a.tsv' has train"),
        (["-", "-"], "standard input is named twice"),
        (["train=-", "dev=-"], "standard input is named twice"),
    ],
)
def test_sources_that_do_not_fit_are_refused(arguments, reason):
    with pytest.raises(CorpusError, match=re.escape(reason)):
        parse_sources(arguments)


@pytest.mark.parametrize(
    ("corpus", "sources"),
    [
        ("train=a.tsv", [Source("train=a.tsv", None)]),
        (Path("a.tsv"), [Source("a.tsv", None)]),
        (["a.tsv", Path("b.tsv")], [Source("a.tsv", None), Source("b.tsv", None)]),
        ([Source("a", "x"), Source("b", "x")], [Source("a", "x"), Source("b", "x")]),
        ({"train": "a", "dev": Path("b")}, [Source("a", "train"), Source("b", "dev")]),
        ({"train": ["a", "b"]}, [Source("a", "train"), Source("b", "train")]),
    ],
)
def test_python_interface_takes_paths_and_mappings(corpus, sources):
    assert sources_of(corpus) == sources


@pytest.mark.parametrize("corpus", [[], {}, {"a b": "c"}, [Source("a", "x"), "b"], ""])
def test_python_interface_refuses_what_the_command_line_refuses(corpus):
    with pytest.raises(CorpusError):
        sources_of(corpus)


def test_all_files_are_checked_before_the_first_is_read(tmp_path, write):
    good = write("a.txt", "x\n")
    reader = CorpusReader(sources_of([good, str(tmp_path / "missing.txt")]))
    with pytest.raises(CorpusError, match=r"missing\.txt: no such file; "):
        next(iter(reader))
    assert reader.bytes_read == 0


def test_directory_socket_and_missing_file_are_told_apart(tmp_path, write, error_of, monkeypatch):
    assert "this is a directory; name the files in it" in error_of(str(tmp_path))
    assert "missing: no such file" in error_of(str(tmp_path / "missing"))
    assert "x: Not a directory; check the path" in error_of(write("file", "x") + "/x")
    assert "null byte" in error_of("a\0b")
    monkeypatch.chdir(tmp_path)  # a socket's path may have about 100 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        assert "this is a socket" in error_of("socket")


def test_unreadable_file_is_refused(write, error_of, monkeypatch):
    path = write("secret.txt", "x\n")
    monkeypatch.setattr(files.os, "access", lambda path, mode: False)
    assert error_of(path).startswith("secret.txt: permission denied; ")


def test_failing_open_and_read_are_corpus_errors(write, error_of, monkeypatch):
    path = write("a.txt", "x\n")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(lines, "open", refuse, raising=False)
        assert error_of(path).startswith("a.txt: Permission denied; ")
    blocks = iter([b"on", b"e\ntwo"])

    def read_two(self, size):
        for block in blocks:
            return block
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(lines, "HEAD_BYTES", 1)
    monkeypatch.setattr(files.CountedFile, "read", read_two)
    assert error_of(path).startswith("a.txt:2: Input/output error; ")


def test_odd_file_name_stays_on_one_line(tmp_path, error_of):
    assert "'" in error_of(str(tmp_path / "a\nb.txt"))

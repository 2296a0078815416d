"""Every bad corpus ends in one line that names the place, and changes nothing stored."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CommandLine = Any
Built = Any
Processes = Any


@pytest.fixture(scope="module")
def kept(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that nothing here may change."""
    store: Path = built.copy(tmp_path_factory.mktemp("kept") / "store")
    return store


@pytest.fixture
def refused(
    ec: CommandLine, kept: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., str]]:
    """Runs `build` on what has to be refused; relative paths are in an empty folder."""
    monkeypatch.chdir(tmp_path)

    @contextmanager
    def unchanged() -> Iterator[None]:
        def state() -> list[object]:
            files = {str(path) for path in kept.rglob("*") if path.name != "catalog.sqlite"}
            commands = (("stats",), ("datasets", "list"), ("verify",))
            return [*(ec.json(kept, *command) for command in commands), files]

        before = state()
        yield
        assert state() == before

    def run(*arguments: str, stdin: bytes = b"") -> str:
        line: str = ec.error(kept, "build", *arguments, stdin=stdin)
        return line

    with unchanged():
        yield run


# Name of the file, its bytes, what the error begins with, what else it says.
BAD_FILES: dict[str, tuple[str, bytes, str, str]] = {
    "empty": ("a.txt", b"", "a.txt: the file holds no documents", ""),
    "only a byte order mark": ("a.txt", b"\xef\xbb\xbf", "a.txt: the file holds no doc", ""),
    "not UTF-8": (
        "a.txt", b"one\ntwo \xe9t\xe9\n", "a.txt:2: invalid UTF-8 at byte 5",
        "--encoding-errors replace",
    ),
    "cut in the middle of a character": (
        "a.txt", b"one\r\ntwo\rthree\nfo\xc3", "a.txt:4: invalid UTF-8 at byte 3", "",
    ),
    "surrogate in UTF-8": ("a.txt", b"x\n\xed\xa0\x80\n", "a.txt:2: invalid UTF-8", ""),
    "UTF-16": ("a.txt", "one\n".encode("utf-16"), "a.txt:1: this is UTF-16", "iconv"),
    "NUL": ("a.txt", b"one\nt\0wo\n", "a.txt:2: NUL character at byte 2", ""),
    "NUL in JSON": ("a.jsonl", b'{"text": "a\\u0000b"}\n', "a.jsonl:1:", "NUL"),
    "lone surrogate": (
        "a.jsonl", b'{"text": "a"}\n{"text": "b\\ud800"}\n', "a.jsonl:2:", "lone surrogate",
    ),
    "10 MB line": (
        "a.txt", b"one\n" + b"x" * 10_000_000 + b"\ntwo\n",
        "a.txt:2: the line is longer than 1048576 bytes", "--max-text-bytes",
    ),
    "10 MB line without an end": ("a.txt", b"x" * 10_000_000, "a.txt:1: the line is longer", ""),
    "row too short": ("a.csv", b"text,label\na,b\nc\n", "a.csv:3:", "1"),
    "row too long": ("a.csv", b"text,label\na,b\nc,d,e\n", "a.csv:3:", "3"),
    "open quote": ("a.csv", b'text,label\n"a,b\nc,d\n', "a.csv:2:", "quote"),
    "no text column": ("a.csv", b"words,label\na,b\n", "a.csv:1:", "'words', 'label'"),
    "no text field": ("a.jsonl", b'{"words": "a"}\n', "a.jsonl:1:", "'words'"),
    "not JSON": ("a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl:2: invalid JSON", ""),
    "JSON but no object": ("a.jsonl", b"[1]\n", "a.jsonl:1: not a JSON object", "array"),
    "text that is no string": ("a.jsonl", b'{"text": 1}\n', "a.jsonl:1:", "a number"),
    "truncated gzip": (
        "a.txt.gz", gzip.compress(b"one\ntwo\n" * 100)[:-12], "a.txt.gz:1: the gzip data ends", "",
    ),
    "damaged gzip": (
        "a.gz", gzip.compress(b"one\n")[:-8] + bytes(8), "a.gz:1: the gzip data is damaged", "",
    ),
    "bad line in gzip": ("a.gz", gzip.compress(b"one\n\xff\n"), "a.gz:2: invalid UTF-8", ""),
    "zip archive": ("a.txt", b"PK\x03\x04rest", "a.txt:1:", "a zip archive"),
    "split with a space": ("a.csv", b"text,split\na,x y\n", "a.csv:2:", "cannot name a split"),
    "only labels": ("a.txt", b"__label__\n", "a.txt:1:", "label"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "start", "part"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_file_is_named_with_its_line(
    refused: Callable[..., str], name: str, content: bytes, start: str, part: str
) -> None:
    Path(name).write_bytes(content)
    line = refused(name)
    assert line.removeprefix("error: ").startswith(start)
    assert part in line


@pytest.mark.parametrize(
    ("arguments", "start", "part"),
    [
        (("no.txt",), "no.txt: no such file", "check the path"),
        (("folder",), "folder: this is a directory", "name the files in it"),
        (("a.csv", "--text-field", "nope"), "a.csv:1: there is no column 'nope'", "'text', 'y'"),
        (("a.csv", "--label-field", "nope"), "a.csv:1: there is no column 'nope'", "'text', 'y'"),
        (("a.txt", "--text-field", "text"), "a.txt: --text-field is given", "no fields"),
        (("a.txt", "--format", "jsonl"), "a.txt:1: invalid JSON", ""),
        (("a.txt", "--max-text-bytes", "2"), "a.txt:1: the line is longer than 2 bytes", ""),
        (("train=a.txt", "a.csv"), "'a.csv' has no split", "SPLIT=PATH"),
        (("my split=a.txt",), "'my split' cannot name the split", "letters"),
        (("train=",), "a file of the corpus has an empty name", "train"),
        (("-", "-"), "standard input is named twice", ""),
        (("a.txt", "no.txt"), "no.txt: no such file", ""),
        (("train=a.csv", "--split-field", "y"), "a.csv: the source names the split train", ""),
        (("no\nsuch.txt",), "'no\\nsuch.txt': no such file", ""),
        (("no\udce9.txt",), "'no\\udce9.txt': no such file", ""),
    ],
    ids=str,
)
def test_bad_argument_is_named(
    refused: Callable[..., str], arguments: tuple[str, ...], start: str, part: str
) -> None:
    Path("folder").mkdir()
    Path("a.txt").write_text("one\n", encoding="utf-8")
    Path("a.csv").write_text("text,y\none,1\n", encoding="utf-8")
    line = refused(*arguments)
    assert line.removeprefix("error: ").startswith(start)
    assert part in line


@pytest.mark.parametrize(
    ("content", "start"),
    [
        (b"", "<stdin>: the file holds no documents"),
        (b"one\n\xff\n", "<stdin>:2: invalid UTF-8"),
        (gzip.compress(b"one\n" * 100, mtime=0)[:20], "<stdin>:1: the gzip data ends too early"),
    ],
)
def test_bad_standard_input_is_named(
    refused: Callable[..., str], content: bytes, start: str
) -> None:
    assert refused("-", stdin=content).removeprefix("error: ").startswith(start)


def test_the_second_file_is_named_too(refused: Callable[..., str], built: Built) -> None:
    Path("bad.txt").write_bytes(b"one\n\0\n")
    assert refused(str(built.corpus), "bad.txt").startswith("error: bad.txt:2: NUL character")


def test_a_text_that_is_too_long_is_named(ec: CommandLine, copied: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "a.txt"
    corpus.write_text("one\none two three four\n", encoding="utf-8")
    options = ("--max-tokens", "3", "--overflow", "error")
    line = ec.error(copied, "build", corpus, *options)
    assert line.startswith(f"error: {corpus}:2: 4 tokens, the limit is 3")
    assert len(ec.json(copied, "datasets", "list")["datasets"]) == 1
    assert ec.json(copied, "build", corpus, "--max-tokens", "4", "--overflow", "error")


def test_what_is_not_utf8_can_be_replaced(ec: CommandLine, copied: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "a.txt"
    corpus.write_bytes(b"caf\xe9 \xff\n")
    assert "a.txt:1: invalid UTF-8 at byte 4" in ec.error(copied, "build", corpus)
    assert ec.json(copied, "build", corpus, "--encoding-errors", "replace")["misses"] == 1
    assert ec.json(copied, "get", "caf\ufffd \ufffd")["num_tokens"] >= 1


def test_line_ends_marks_and_gzip_do_not_change_a_text(
    ec: CommandLine, built: Built, copied: Path, tmp_path: Path
) -> None:
    ends = ("\n", "\r\n", "\r")
    lines = [text + ends[number % 3] for number, text in enumerate(built.texts)]
    content = b"\xef\xbb\xbf" + "".join(lines).encode()
    variants = {"mixed.txt": content, "mixed": content, "mixed.gz": gzip.compress(content)}
    for name, variant in variants.items():
        (tmp_path / name).write_bytes(variant)
        record = ec.json(copied, "build", tmp_path / name)
        assert (record["texts"], record["hits"], record["misses"]) == (120, 120, 0)
    record = ec.json(copied, "build", "-", stdin=content)
    assert (record["dataset"], record["hits"], record["misses"]) == ("stdin", 120, 0)


def test_a_long_line_is_read_where_it_is_allowed(
    ec: CommandLine, copied: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "a.txt"
    corpus.write_bytes(b"word " * 250_000 + b"\n")
    assert "--max-text-bytes" in ec.error(copied, "build", corpus)
    record = ec.json(copied, "build", corpus, "--max-text-bytes", "2000000")
    assert (record["misses"], record["tokens"], record["truncated"]) == (1, 512, 1)


@pytest.mark.parametrize("command", [("get",), ("predict", "last")])
def test_an_argument_that_is_not_utf8_is_refused(
    process: Processes, built: Built, command: tuple[str, ...]
) -> None:
    done = process("--store", built.store, *command, "caf\udce9")
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "lone surrogate at character" in line


@pytest.mark.parametrize(
    ("content", "start"),
    [
        (b"", "error: <stdin>: the file holds no documents"),
        (b"one\n\xff\n", "error: <stdin>:2: invalid UTF-8"),
        (b"\0", "error: <stdin>:1: NUL character"),
    ],
)
def test_bad_lines_to_predict_are_named(
    ec: CommandLine, built: Built, content: bytes, start: str
) -> None:
    assert ec.error(built.store, "predict", "last", stdin=content).startswith(start)

"""Batches, digests, memory, pipes and standard input."""

from __future__ import annotations

import gzip
import io
import os
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import xxhash

import embedcache.corpus
from embedcache.corpus import CorpusReader, Source, documents, sources_of
from embedcache.errors import CorpusError

REPOSITORY = Path(embedcache.corpus.__file__).parents[2]


def run_python(code: str, **options) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True, **options)


def test_batch_never_spans_two_sources(write):
    paths = [write(f"{number}.txt", "x\n" * 5) for number in range(2)]
    reader = CorpusReader(sources_of({"train": paths}), batch_documents=3)
    batches = list(reader)
    assert [len(batch.texts) for batch in batches] == [3, 2, 3, 2]
    assert [batch.source.path for batch in batches] == [p for p in paths for _ in "12"]
    assert [batch.lines for batch in batches] == [range(1, 4), range(4, 6)] * 2
    assert batches[0].splits == ["train"] * 3


@pytest.mark.parametrize("size", [1, 2, 5, 64])
def test_batch_holds_no_more_than_asked_for_where_records_run_over_lines(write, size):
    path = write("a.csv", "text\n" + '"a\nb\nc"\n' * 500)
    batches = list(CorpusReader(sources_of(path), batch_documents=size))
    assert max(len(batch.texts) for batch in batches) <= size
    assert [line for batch in batches for line in batch.lines] == list(range(2, 1502, 3))


def test_bytes_and_digests_are_those_of_the_files_on_disk(write):
    packed = gzip.compress(b"text\n" * 9_000)
    paths = [write("a.txt.gz", packed), write("b.txt", "x\ny")]
    reader = CorpusReader(sources_of(paths))
    assert (reader.bytes_read, reader.bytes_total) == (0, len(packed) + 3)
    for _ in range(2):  # each iteration reads the files again
        batches = iter(reader)
        next(batches)
        assert reader.digests == {}
        assert len(packed) >= reader.bytes_read > 0
        list(batches)
        assert reader.bytes_read == reader.bytes_total
        assert reader.digests == {
            paths[0]: xxhash.xxh3_128_hexdigest(packed),
            paths[1]: xxhash.xxh3_128_hexdigest(b"x\ny"),
        }


def test_total_of_a_missing_file_is_an_error_and_of_standard_input_none(tmp_path):
    assert CorpusReader([Source("-", None)]).bytes_total is None
    with pytest.raises(CorpusError, match="no such file"):
        _ = CorpusReader([Source(str(tmp_path / "x"), None)]).bytes_total


def test_iteration_that_stops_early_closes_the_file(write):
    batches = iter(CorpusReader(sources_of(write("a.txt", "x\n" * 9)), batch_documents=1))
    next(batches)
    batches.close()  # an open file would be a ResourceWarning, which is an error here


def test_named_pipe_is_read_as_a_file_of_unknown_size(tmp_path):
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    writer = threading.Thread(target=Path(path).write_bytes, args=(b'{"text": "a"}\n',))
    writer.start()
    reader = CorpusReader(sources_of(path))
    assert reader.bytes_total is None
    assert [batch.texts for batch in reader] == [[b"a"]]
    writer.join()


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_standard_input_is_read_whether_packed_or_not(pack):
    code = (
        "from embedcache.corpus import CorpusReader, parse_sources\n"
        "reader = CorpusReader(parse_sources(['train=-']))\n"
        "for b in reader: print(b.texts, b.labels, b.splits, reader.bytes_total)\n"
    )
    done = run_python(code, input=pack("__label__x é\n".encode()))
    assert done.stdout == b"[b'\\xc3\\xa9'] [('x',)] ['train'] None\n"


SLOW_READER = """
import os, signal, sys
from embedcache.corpus import CorpusReader, parse_sources
from embedcache.errors import CorpusError

def stop(*_):
    raise SystemExit(77)

signal.signal(signal.SIGTERM, stop)
os.set_blocking(0, {blocking})
print("ready", flush=True)
try:
    for batch in CorpusReader(parse_sources(["-"])):
        pass
except CorpusError as error:
    sys.exit(str(error))
"""


@contextmanager
def slow_reader(*, blocking: bool) -> Iterator[subprocess.Popen[bytes]]:
    """A process that reads its standard input, which stays open, to the end."""
    command = [sys.executable, "-c", SLOW_READER.format(blocking=blocking)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=pipe, stdout=pipe, stderr=pipe) as reader:
        try:
            assert reader.stdout.readline() == b"ready\n"
            yield reader
        finally:
            reader.kill()


@pytest.mark.parametrize("attempt", range(3))
def test_signal_handler_runs_while_a_block_waits_for_its_rest(attempt):
    content = b"a line\n" * (3 << 16)  # a block of 1 MiB, and a part of the next
    with slow_reader(blocking=True) as reader:
        # Nothing between the two calls: the signal shall come before the reader has the last
        # bytes, for one that waits for more is woken by a signal in any case.
        num_written = os.write(reader.stdin.fileno(), content)
        os.kill(reader.pid, signal.SIGTERM)
        assert num_written == len(content)
        assert reader.wait(timeout=20) == 77


def test_standard_input_that_does_not_block_is_refused_rather_than_cut_short():
    with slow_reader(blocking=False) as reader:
        reader.stdin.write(b"a line\n")
        reader.stdin.flush()
        assert reader.wait(timeout=20) == 1
        assert reader.stderr.read().startswith(b"<stdin>:1: standard input is set not to block; ")


def test_errors_in_standard_input_name_it(error_of, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\n\xff\n")))
    assert error_of("-").startswith("<stdin>:2: invalid UTF-8")
    monkeypatch.setattr(sys, "stdin", None)
    assert error_of("-") == "<stdin>: standard input is closed; name a file instead"


def test_importing_the_reader_is_light():
    done = run_python(
        "import sys, embedcache.corpus\nprint({'numpy', 'tensorflow', 'h5py'} & set(sys.modules))"
    )
    assert done.stdout == b"set()\n"


@pytest.mark.parametrize(
    ("name", "start", "line"),
    [
        ("a.txt", "", "a text of some forty bytes, number {}\n"),
        ("b.txt", "", "__label__{} a text of some forty bytes\n"),
        ("a.tsv", "text\tlabel\n", "a text of some forty bytes\t{}\n"),
        ("b.tsv", "text\tlabel\n", '"a text of some\nforty bytes"\t{}\n'),
        ("a.jsonl", "", '{{"text": "a text of some forty bytes", "label": {}}}\n'),
    ],
)
def test_memory_does_not_grow_with_the_file(write, monkeypatch, name, start, line):
    monkeypatch.setattr(documents, "MAX_KNOWN_LABELS", 1 << 10)
    peaks = []
    for num_lines in (5_000, 50_000):
        body = "".join(map(line.format, range(num_lines)))
        path = write(name, start + body)
        del body
        tracemalloc.start()
        reader = CorpusReader(sources_of(path), batch_documents=256, _block_bytes=1 << 16)
        assert sum(len(batch.texts) for batch in reader) == num_lines
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]

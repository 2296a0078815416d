"""What is read does not depend on blocks and batches, and equals a plain reference."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from codecs import BOM_UTF8

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

in_fresh_folder = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
block_sizes = st.integers(1, 7)
characters = st.sampled_from("ab \té漢😀\u2028\x85\x0b\x1c,\"'\\")


def reference_lines(content: bytes) -> list[bytes]:
    lines = re.split(rb"\r\n|\r|\n", content.removeprefix(BOM_UTF8))
    return lines if lines[-1] else lines[:-1]


def is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def quote(cell: str, delimiter: str, force: bool) -> str:
    if force or not cell or set(cell) & {delimiter, '"', "\r", "\n"}:
        return '"' + cell.replace('"', '""') + '"'
    return cell


@in_fresh_folder
@given(
    pieces=st.lists(characters | st.sampled_from(["\n", "\r", "\r\n"]), min_size=1),
    bom=st.sampled_from([b"", BOM_UTF8]),
    block=block_sizes,
    size=st.integers(1, 5),
    gz=st.booleans(),
)
def test_lines_do_not_depend_on_blocks(write, read, pieces, bom, block, size, gz):
    content = bom + "".join(pieces).encode()
    path = write("a.txt", gzip.compress(content) if gz else content)
    assert read(path, block=block, size=size).texts == reference_lines(content)


@in_fresh_folder
@given(content=st.binary(min_size=1, max_size=40), block=block_sizes)
def test_any_bytes_give_the_reference_or_one_error(write, read, error_of, content, block):
    content = b"-" + content  # no magic bytes
    path = write("a.txt", content)
    lines = reference_lines(content)
    bad = [n for n, line in enumerate(lines, 1) if b"\0" in line or not is_utf8(line)]
    if bad:
        assert error_of(path, block=block).startswith(f"a.txt:{bad[0]}: ")
    else:
        assert read(path, block=block).texts == lines
    if b"\0" not in content:
        replaced = [line.decode("utf-8", "replace").encode() for line in lines]
        assert read(path, block=block, encoding_errors="replace").texts == replaced


@in_fresh_folder
@given(
    rows=st.lists(
        st.lists(
            st.tuples(st.text(characters | st.sampled_from("\r\n"), max_size=6), st.booleans()),
            min_size=3,
            max_size=3,
        ),
        min_size=1,
        max_size=8,
    ),
    ends=st.lists(st.sampled_from(["\n", "\r\n", "\r", "\n\n", "\r\n\n"]), min_size=8),
    delimiter=st.sampled_from(",\t"),
    block=block_sizes,
    size=st.integers(1, 5),
)
def test_tables_do_not_depend_on_blocks(write, read, rows, ends, delimiter, block, size):
    content, line, starts = f"text{delimiter}label{delimiter}id\n", 2, []
    for row, end in zip(rows, ends, strict=False):
        starts.append(line)
        record = delimiter.join(quote(cell, delimiter, force) for cell, force in row) + end
        line += len(re.findall(r"\r\n|\r|\n", record))
        content += record
    path = write("a.csv" if delimiter == "," else "a.tsv", content)
    batch = read(path, block=block, size=size, id_field="id")
    texts, labels, ids = zip(*[[cell for cell, _ in row] for row in rows], strict=True)
    assert batch.texts == [text.encode() for text in texts]
    assert batch.labels == [(label,) if label else () for label in labels]
    assert batch.ids == list(ids)
    assert batch.lines == starts


@in_fresh_folder
@given(body=st.text('a,"\r\n', min_size=1, max_size=30), block=block_sizes, size=st.integers(1, 5))
def test_any_table_is_read_as_csv_reads_it_or_refused(write, read, error_of, body, block, size):
    path = write("a.csv", "text,label\n" + body)
    try:
        rows = [row for row in csv.reader(io.StringIO(body, newline=""), strict=True) if row]
    except csv.Error:
        rows = []
    if rows and all(len(row) == 2 for row in rows):
        assert read(path, block=block, size=size).texts == [row[0].encode() for row in rows]
    else:
        error_of(path, block=block, size=size)


@in_fresh_folder
@given(
    records=st.lists(
        st.fixed_dictionaries(
            {"text": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))},
            optional={"label": st.none() | st.integers(-9, 9) | st.just("l")},
        ),
        min_size=1,
        max_size=6,
    ),
    ascii_only=st.booleans(),
    end=st.sampled_from(["\n", "\r\n", "\r", "\n \n"]),
    block=block_sizes,
    size=st.integers(1, 5),
)
def test_json_lines_do_not_depend_on_blocks(write, read, records, ascii_only, end, block, size):
    records[0].setdefault("label", None)
    lines = [json.dumps(record, ensure_ascii=ascii_only) for record in records]
    batch = read(write("a.jsonl", end.join(lines)), block=block, size=size)
    assert batch.texts == [record["text"].encode() for record in records]
    labels = [record.get("label") for record in records]
    assert batch.labels == [() if label is None else (str(label),) for label in labels]

"""JSON lines: a document is an object."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from embedcache.corpus.documents import (
    DocumentBatch,
    Fields,
    LabelMemo,
    LineNumbers,
    choose_fields,
    defaults_left_out,
    repeated,
    splits_of_names,
)
from embedcache.corpus.lines import LineReader
from embedcache.corpus.messages import corpus_error, quoted
from embedcache.corpus.sources import CorpusOptions, Source


def iter_json(
    source: Source, reader: LineReader, options: CorpusOptions, max_documents: int
) -> Iterator[DocumentBatch]:
    """The documents of a JSON lines file."""
    fields: Fields | None = None
    known = LabelMemo(_labels_of_string)
    for records, lines in iter_objects(reader, max_objects=max_documents):
        if fields is None:
            fields = choose_fields(source, options, list(records[0]), lines[0], "field")
            late = defaults_left_out(source, fields)
        if late:
            _require_none_of(late, source, records, lines)
        texts = _texts_of_records(source, records, lines, fields.text)
        labels = splits = ids = None
        if fields.label is not None:
            values = [record.get(fields.label) for record in records]
            labels = _labels_of_values(source, values, lines, known)
        if fields.split is not None:
            names = _names_of_records(source, records, lines, fields.split)
            splits = splits_of_names(source, names, lines)
        if fields.id is not None:
            ids = _names_of_records(source, records, lines, fields.id)
        splits = splits or repeated(source.split, len(texts))
        yield DocumentBatch(source, texts, labels, splits, ids, lines)


def iter_objects(
    reader: LineReader, *, max_objects: int
) -> Iterator[tuple[list[dict[str, Any]], LineNumbers]]:
    """The JSON objects, one per line, with their line numbers; blank lines are left out.

    Raises:
        CorpusError: for a line that is not one JSON object.
    """
    decode = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode
    for chunk in reader.iter_chunks(max_objects):
        records: list[dict[str, Any]] = []
        blanks: set[int] = set()
        lines = b"\n".join(chunk.lines).decode().split("\n")
        for number, line in enumerate(lines, chunk.first_line):
            try:
                record, end = decode(line)
                whole = end == len(line)
            except (ValueError, RecursionError):
                whole = False
            if not whole:  # blank, or with spaces around the object, or no JSON
                if not line.strip(" \t"):
                    blanks.add(number)
                    continue
                record = _decode_line(reader.path, number, line)
            if type(record) is not dict:
                raise corpus_error(
                    reader.path,
                    number,
                    f"not a JSON object but {_name_of_json_type(record)}",
                    'write one object per line, such as {"text": "..."}',
                )
            records.append(record)
        numbers: LineNumbers = range(chunk.first_line, chunk.first_line + len(lines))
        if blanks:
            numbers = [number for number in numbers if number not in blanks]
        if records:
            yield records, numbers


def _decode_line(path: str, number: int, line: str) -> Any:
    try:
        return json.loads(line, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        reason = f"invalid JSON at column {error.colno} ({error.msg})"
    except RecursionError:
        reason = "invalid JSON (nested too deeply)"
    except ValueError as error:  # a constant, or an integer of thousands of digits
        reason = f"invalid JSON ({error})"
    raise corpus_error(path, number, reason, "write one JSON object per line")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _texts_of_records(
    source: Source, records: list[dict[str, Any]], lines: LineNumbers, field: str
) -> list[bytes]:
    try:
        texts = [record[field].encode() for record in records]
    except (KeyError, AttributeError, UnicodeEncodeError):
        pass
    else:
        if b"\0" not in b"".join(texts):
            return texts
    for record, line in zip(records, lines, strict=True):
        if field not in record:
            raise corpus_error(
                source.path, line, f"no field {quoted(field)}", "give every object a text"
            )
        value = record[field]
        if type(value) is not str:
            reason = f"the field {quoted(field)} is {_name_of_json_type(value)}, not a string"
            raise corpus_error(source.path, line, reason, "make it a string")
        if defect := _defect_of_string(value):
            reason = f"the field {quoted(field)} holds {defect}"
            raise corpus_error(source.path, line, reason, "remove it")
    raise AssertionError("one of the records has no text that can be stored")


def _names_of_records(
    source: Source, records: list[dict[str, Any]], lines: LineNumbers, field: str
) -> list[str]:
    names: list[str] = []
    for record, line in zip(records, lines, strict=True):
        value: Any = record.get(field)
        if type(value) is int:
            value = str(value)
        defect = _defect_of_string(value) if type(value) is str else _name_of_json_type(value)
        if defect is not None:
            held = f"the field {quoted(field)} holds {defect}"
            reason = held if field in record else f"no field {quoted(field)}"
            raise corpus_error(source.path, line, reason, "write a string or an integer")
        names.append(value)
    return names


def _labels_of_values(
    source: Source, values: list[Any], lines: LineNumbers, known: LabelMemo[str]
) -> list[tuple[str, ...]]:
    labels: list[tuple[str, ...]] = []
    for value, line in zip(values, lines, strict=True):
        try:
            if type(value) is str:
                labels.append(known[value])
            elif value is None:
                labels.append(())
            elif type(value) is list:
                labels.append(tuple([_name_of_value(name) for name in value]))
            else:
                labels.append((_name_of_value(value),))
        except ValueError as error:
            raise corpus_error(
                source.path,
                line,
                f"the label field holds {error}",
                "write a string, a number, a boolean, null, or an array of strings",
            ) from None
    return labels


def _labels_of_string(value: str) -> tuple[str, ...]:
    return (_name_of_value(value),) if value else ()


def _require_none_of(
    late: set[str], source: Source, records: list[dict[str, Any]], lines: LineNumbers
) -> None:
    """Refuse a label or a split that begins in the middle of a file, rather than lose it."""
    for record, line in zip(records, lines, strict=True):
        if not late.isdisjoint(record):
            name = min(late.intersection(record))
            raise corpus_error(
                source.path,
                line,
                f"the field {quoted(name)} is here, but not in the first object",
                f"give it to the first object too, or name the field with --{name}-field",
            )


def _name_of_value(value: object) -> str:
    """A JSON scalar as a label; the error says what it is instead."""
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is int or type(value) is float:
        return str(value)
    if type(value) is not str:
        raise ValueError(_name_of_json_type(value))
    if defect := _defect_of_string(value):
        raise ValueError(defect)
    if not value:
        raise ValueError("an empty string in its array")
    return value


def _name_of_json_type(value: object) -> str:
    """What JSON calls the type of a decoded value."""
    if value is None:
        return "null"
    names = {str: "a string", bool: "a boolean", dict: "an object", list: "an array"}
    return names.get(type(value), "a number")


def _defect_of_string(text: str) -> str | None:
    """What UTF-8 cannot hold, or a text may not: JSON can write both."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"a lone surrogate at character {error.start + 1}"
    nul = text.find("\0")
    return f"a NUL at character {nul + 1}" if nul >= 0 else None

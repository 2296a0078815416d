"""JSON lines: objects, fields and labels."""

from __future__ import annotations

import json

import pytest


def test_json_labels_of_every_type(write, read):
    values = ["a", 3, True, False, 0.5, 1.0, 1, None, ["b", "c"], [], "", [1, True]]
    records = [{"text": "t", "label": value} for value in values] + [{"text": "t"}]
    path = write("a.jsonl", "\n".join(map(json.dumps, records)))
    expected = [("a",), ("3",), ("true",), ("false",), ("0.5",), ("1.0",), ("1",), ()]
    expected += [("b", "c"), (), (), ("1", "true"), ()]
    assert read(path).labels == expected


def test_json_fields_splits_and_ids(write, read):
    content = '\n {"sentence": "a\\u2028", "split": "x", "n": 7, "label": "l"} \n\n'
    content += '{"split": "y", "n": "", "sentence": "b\u2028"}'
    batch = read(write("a.jsonl", content), id_field="n")
    assert batch.texts == ["a\u2028".encode(), "b\u2028".encode()]
    assert (batch.splits, batch.ids, batch.lines) == (["x", "y"], ["7", ""], [2, 4])
    assert batch.labels == [("l",), ()]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "a"', "invalid JSON at column 13 ("),
        ('  {"text": }', "invalid JSON at column 12 ("),
        ('{"text": "a"} x', "invalid JSON at column 15 (Extra data)"),
        ('{"text": "a"}{"text": "b"}', "invalid JSON at column 14 (Extra data)"),
        ('{"text": "a", "x": NaN}', "invalid JSON (NaN is not JSON)"),
        ('{"text": "a", "x": ' + "9" * 5000 + "}", "invalid JSON ("),
        ('{"text": ' + "[" * 200_000, "invalid JSON (nested too deeply)"),
        ('"text"', "not a JSON object but a string"),
        ('[{"text": "a"}]', "not a JSON object but an array"),
        ("null", "not a JSON object but null"),
        ("12", "not a JSON object but a number"),
        ('{"label": "a"}', "no field 'text'"),
        ('{"text": 3}', "the field 'text' is a number, not a string"),
        ('{"text": null}', "the field 'text' is null, not a string"),
        ('{"text": "a\\ud800"}', "the field 'text' holds a lone surrogate at character 2"),
        ('{"text": "\\u0000"}', "the field 'text' holds a NUL at character 1"),
        ('{"text": "a", "label": {}}', "the label field holds an object"),
        ('{"text": "a", "label": [null]}', "the label field holds null"),
        ('{"text": "a", "label": [""]}', "the label field holds an empty string in its array"),
        ('{"text": "a", "label": "\\udc00"}', "the label field holds a lone surrogate at char"),
        ('{"text": "a", "label": ["\\u0000"]}', "the label field holds a NUL at character 1"),
    ],
)
def test_bad_json_line_is_refused(write, error_of, line, reason):
    content = f'{{"text": "ok", "label": "x"}}\n\n{line}\n{{"text": "ok"}}\n'
    message = error_of(write("a.jsonl", content))
    assert message.startswith(f"a.jsonl:3: {reason}")


@pytest.mark.parametrize(
    ("content", "options", "reason"),
    [
        ('{"a": 1, "b": 2}', {}, "1: no field is named text or sentence; name one with --text-f"),
        ('{"a": 1, "b": 2}', {}, "the first object has 'a', 'b'"),
        ('{"text": "a"}', {"label_field": "y"}, "1: there is no field 'y'; name another with --la"),
        ('{"text": "a"}', {"split_field": "y"}, "there is 'text'"),
        ('{"text": "a", "i": 1}\n{"text": "b"}', {"id_field": "i"}, "2: no field 'i'"),
        ('{"text": "a", "i": 1.5}', {"id_field": "i"}, "1: the field 'i' holds a number"),
        ('{"text": "a", "i": "\\ud800"}', {"id_field": "i"}, "holds a lone surrogate"),
        ('{"text": "a", "split": null}', {}, "1: the field 'split' holds null"),
        ('{"text": "a", "split": "b c"}', {}, "1: 'b c' cannot name a split"),
        ('{"text": "a"}\n{"text": "b", "label": "x"}', {}, "2: the field 'label' is here, but not"),
        ('{"text": "a"}\n{"text": "b", "split": "x"}', {}, "2: the field 'split' is here, but not"),
    ],
)
def test_missing_or_wrong_json_field_is_refused(write, error_of, content, options, reason):
    message = error_of(write("a.jsonl", content), **options)
    assert message.startswith("a.jsonl:")
    assert reason in message


def test_label_that_begins_late_is_read_once_the_first_object_has_null(write, read):
    path = write("a.jsonl", '{"text": "a", "label": null}\n{"text": "b", "label": "x"}')
    assert read(path).labels == [(), ("x",)]

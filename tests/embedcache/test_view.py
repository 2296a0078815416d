"""FeatureView: its fingerprint, and what it refuses."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict, fields, replace
from hashlib import blake2b
from typing import Any

import pytest

from embedcache.errors import StoreVersionError
from embedcache.view import FeatureView

VIEW = FeatureView(
    module_digest="00112233445566778899aabbccddeeff",
    signature="__call__",
    tokenizer="space",
    dim=3,
)
# Spelled out: a field that is added, renamed or given another default breaks this test, and
# with it every store there is. `printf … | b2sum --length=128` gives the fingerprint.
GOLDEN_JSON = (
    '{"dim":3,"dtype":"float16","granularity":"token","max_tokens":512,'
    '"module_digest":"00112233445566778899aabbccddeeff","output":"","overflow":"truncate",'
    '"schema":1,"signature":"__call__","tokenizer":"space"}'
)
GOLDEN_FINGERPRINT = "55c7319f7c696f377c00e49d5fbab778"
RECORD = json.loads(GOLDEN_JSON)
# The same for a view that needs the fields of schema 2.
GOLDEN_JSON_2 = (
    '{"context_words":0,"dim":3,"dtype":"float16","granularity":"token",'
    '"keep_special_tokens":false,"max_tokens":512,'
    '"module_digest":"00112233445566778899aabbccddeeff","num_layers":3,"output":"all:1,2,3",'
    '"overflow":"truncate","overlap_tokens":0,"preprocess_digest":"","schema":2,'
    '"signature":"__call__","tokenizer":"space"}'
)

OTHER_VALUES: dict[str, Any] = {
    "module_digest": "f" * 32,
    "signature": "default",
    "output": "sequence",
    "granularity": "sentence",
    "tokenizer": "module",
    "dim": 4,
    "max_tokens": 511,
    "overflow": "error",
    "dtype": "float32",
    "preprocess_digest": "e" * 32,
    "keep_special_tokens": True,
    "num_layers": 3,
    "context_words": 2,
    "overlap_tokens": 64,
}


def test_fingerprint_is_that_of_every_version() -> None:
    assert VIEW.to_json() == GOLDEN_JSON
    assert VIEW.fingerprint == GOLDEN_FINGERPRINT
    assert blake2b(GOLDEN_JSON.encode(), digest_size=16).hexdigest() == GOLDEN_FINGERPRINT


def test_view_that_needs_newer_fields_has_a_newer_schema() -> None:
    layers = replace(VIEW, num_layers=3, output="all:1,2,3")
    assert (VIEW.schema, layers.schema) == (1, 2)
    assert replace(VIEW, dtype="bfloat16").schema == replace(layers, dtype="int8").schema == 3
    assert layers.to_json() == GOLDEN_JSON_2
    assert FeatureView.from_json(GOLDEN_JSON_2) == layers


def test_every_field_changes_the_fingerprint() -> None:
    assert set(OTHER_VALUES) == {field.name for field in fields(FeatureView)}
    changed = {replace(VIEW, **{name: value}) for name, value in OTHER_VALUES.items()}
    fingerprints = {view.fingerprint for view in changed}
    assert len(fingerprints) == len(OTHER_VALUES)
    assert VIEW.fingerprint not in fingerprints


def test_equal_views_have_equal_fingerprints() -> None:
    assert FeatureView(**asdict(VIEW)).fingerprint == VIEW.fingerprint
    assert pickle.loads(pickle.dumps(VIEW)) == VIEW


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dtype", "int4"),
        ("dtype", ""),
        ("overflow", "stitch"),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("max_tokens", 5.0),
        ("dim", 0),
        ("dim", "4"),
        ("output", None),
        ("signature", b"default"),
    ],
)
def test_illegal_value_is_refused_by_the_name_of_its_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be .*: got {value!r}"):
        replace(VIEW, **{field: value})


def test_json_comes_back_as_the_same_view() -> None:
    changed = replace(VIEW, output='quoted "é"\n', max_tokens=1, dtype="float32")
    assert changed.to_json().isascii()
    for view in (VIEW, changed):
        assert FeatureView.from_json(view.to_json()) == view


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "null",
        "{}",
        json.dumps(RECORD | {"extra": 1}),
        json.dumps({name: value for name, value in RECORD.items() if name != "output"}),
        json.dumps(RECORD | {"dim": -1}),
        json.dumps(RECORD | {"dim": [3]}),
        json.dumps(RECORD | {"schema": 2}),
        json.dumps(RECORD | {"schema": "1"}),
        json.dumps(asdict(VIEW) | {"schema": 1}),
        json.dumps(asdict(VIEW) | {"schema": 2}),
    ],
)
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        FeatureView.from_json(text)


def test_view_of_a_newer_schema_asks_for_an_upgrade() -> None:
    text = json.dumps(asdict(VIEW) | {"schema": 4, "new_field": "x"})
    with pytest.raises(StoreVersionError, match="schema 4, this embedcache reads up to 3; upgrade"):
        FeatureView.from_json(text)

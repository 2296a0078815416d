"""Imports of NumPy's ``.npz``: what an export wrote, and what any program may write."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import embedcache
from embedcache.errors import ExchangeError
from embedcache.exchange.exporting import export_dataset
from embedcache.exchange.importing import ImportReport, import_features
from embedcache.keys import keys_of_texts
from embedcache.store.database.records import DatasetRecord
from embedcache.store.dataset import DatasetWriter
from embedcache.store.store import FeatureStore
from embedcache.view import FeatureView

Import = Callable[..., ImportReport]
Lines = Callable[..., Path]
Register = Callable[..., None]

LINES = ["one two", "three", "", "one two"]
MATRICES = [
    np.array([[1, 2, 3], [4, 5, 6]], np.float32),
    np.array([[7, 8, 9]], np.float32),
    np.zeros((0, 3), np.float32),
    np.array([[1, 2, 3], [4, 5, 6]], np.float32),
]
PACKED = {
    "values": np.concatenate(MATRICES),
    "row_splits": np.array([0, 2, 3, 3, 5]),
}


def save(path: Path, arrays: Mapping[str, Any], *, compressed: bool = False) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, allow_pickle=True, **arrays)
    return path


def check(store: FeatureStore, report: ImportReport) -> None:
    for matrix, wanted in zip(store.get(report.view, LINES), MATRICES, strict=True):
        np.testing.assert_array_equal(matrix, wanted, strict=True)


# What an export wrote


def test_export_comes_back_bit_for_bit_with_all_that_it_says(
    filled: FeatureStore, programs: ModuleType, corpus: dict[str, list[Any]], tmp_path: Path
) -> None:
    path = tmp_path / "a.npz"
    export_dataset(filled, "name", path)
    with embedcache.open_store(tmp_path / "other") as other:
        report = import_features(other, path, name="copied")
        texts = corpus["texts"]
        for matrix, text in zip(other.get(report.view, texts), texts, strict=True):
            np.testing.assert_array_equal(matrix, programs.matrix_of(text), strict=True)
        # The version is the digest of keys, labels, splits and ids in their order.
        assert report.version == filled.load_dataset("name").version
        assert report.dataset == "a"
        export_dataset(other, "a", tmp_path / "b.npz")
        again = import_features(other, tmp_path / "b.npz", name="copied")
        assert (again.misses, again.hits, again.view) == (0, 61, report.view)
    one, two = np.load(path), np.load(tmp_path / "b.npz")
    for name in set(one.files) - {"metadata"}:
        np.testing.assert_array_equal(one[name], two[name], strict=True)


def test_export_of_a_split_comes_back(
    filled: FeatureStore, corpus: dict[str, list[Any]], tmp_path: Path
) -> None:
    export_dataset(filled, "name", tmp_path / "a.npz", split="test")
    report = import_features(filled, tmp_path / "a.npz", name="copied", dataset="test-only")
    dataset = filled.load_dataset("test-only")
    assert dataset.count_splits() == {"test": 22}
    np.testing.assert_array_equal(dataset.keys, keys_of_texts(corpus["texts"][40:]))
    assert filled.contains(report.view, corpus["texts"][40:]).all()


def test_layers_and_cut_texts_are_those_of_the_exported_view(
    store: FeatureStore, programs: ModuleType, register: Register, tmp_path: Path
) -> None:
    view = replace(programs.VIEW, output="all:3,4", num_layers=2, max_tokens=7)
    store.catalog.add_view(view, "builtin:nothing")
    writer = store.writer(view)
    values = np.arange(12, dtype=np.float16).reshape(3, 4)
    keys = keys_of_texts(["a", "b"])
    writer.add_values(keys, np.array([1, 2]), np.array([True, False]), values=values)
    writer.flush()
    register("name", ["a", "b"], view=view)
    export_dataset(store, "name", tmp_path / "a.npz")
    report = import_features(store, tmp_path / "a.npz", name="copied")
    copied = store.catalog.find_view(report.view).view
    assert copied == replace(
        view, module_digest=copied.module_digest, signature="imported", preprocess_digest=""
    )
    reader = store.reader(report.view)
    assert reader.locate(keys).truncated.tolist() == [True, False]


@settings(max_examples=15, deadline=None)
@given(
    matrices=st.lists(
        npst.arrays(
            np.uint16,
            st.tuples(st.integers(0, 4), st.just(2)),
            # The bits of float16 numbers that are finite, of either sign.
            elements=st.integers(0, 0x7BFF) | st.integers(0x8000, 0xFBFF),
        ).map(lambda bits: bits.view(np.float16)),
        min_size=1,
        max_size=8,
    )
)
def test_any_features_survive_export_and_import(
    tmp_path_factory: pytest.TempPathFactory, matrices: list[Any]
) -> None:
    folder = tmp_path_factory.mktemp("round")
    texts = [f"text {number}" for number in range(len(matrices))]
    view = FeatureView(module_digest="0" * 32, signature="__call__", tokenizer="module", dim=2)
    with embedcache.open_store(folder / "store") as store:
        store.catalog.add_view(view, "builtin:nothing")
        writer = store.writer(view)
        lengths = np.array([len(matrix) for matrix in matrices])
        values = np.concatenate(matrices)
        keys = keys_of_texts(texts)
        writer.add_values(keys, lengths, np.zeros(len(texts), np.bool_), values=values)
        writer.flush()
        with DatasetWriter(store.layout.tmp) as documents:
            documents.add(keys, None, None, None)
            version, num_unique = documents.finish()
            documents.publish(store.layout.dataset_path(version))
        record = DatasetRecord("name", version, len(texts), num_unique, [], 0.0)
        store.catalog.add_dataset(record, view=view.fingerprint, report={})
        export_dataset(store, "name", folder / "a.npz")
        report = import_features(store, folder / "a.npz", name="copied")
        for matrix, wanted in zip(store.get(report.view, texts), matrices, strict=True):
            assert matrix.tobytes() == wanted.tobytes()


# What any program may write


@pytest.mark.parametrize("compressed", [False, True])
def test_packed_values_are_the_lines_in_their_order(
    store: FeatureStore, take: Import, write_lines: Lines, tmp_path: Path, compressed: bool
) -> None:
    path = save(tmp_path / "a.npz", PACKED, compressed=compressed)
    report = take(path, write_lines(*LINES))
    check(store, report)
    assert (report.dtype, report.dim, report.unique, report.differing) == ("float32", 3, 3, 0)
    view = store.catalog.find_view(report.view).view
    assert (view.tokenizer, view.output, view.overflow) == ("imported", "", "error")


@pytest.mark.parametrize("prefix", ["", "arr_"])
def test_array_a_line_is_named_by_its_number(
    store: FeatureStore, take: Import, write_lines: Lines, tmp_path: Path, prefix: str
) -> None:
    arrays = {f"{prefix}{number}": matrix for number, matrix in enumerate(MATRICES)}
    check(store, take(save(tmp_path / "a.npz", arrays), write_lines(*LINES)))


def test_arrays_of_layers_and_in_fortran_order_are_taken(
    store: FeatureStore, take: Import, write_lines: Lines, tmp_path: Path
) -> None:
    layers = np.arange(2 * 3 * 4, dtype=np.float16).reshape(2, 3, 4)
    path = save(tmp_path / "a.npz", {"0": np.asfortranarray(layers), "1": layers[:, :1]})
    report = take(path, write_lines("a", "b"))
    wanted = np.concatenate([layers[0], layers[1]], axis=1)
    np.testing.assert_array_equal(store.get(report.view, ["a"])[0], wanted, strict=True)
    assert report.layers == 2
    one = take(path, write_lines("a", "b"), layer="1")
    np.testing.assert_array_equal(store.get(one.view, ["a"])[0], layers[1], strict=True)


@pytest.mark.parametrize("kind", ["uint8", "text", "bytes"])
def test_keys_stand_for_the_text_file(
    store: FeatureStore, take: Import, tmp_path: Path, kind: str
) -> None:
    keys: Any = keys_of_texts(LINES)
    names = [key.tobytes().hex() for key in keys]
    keys = {"uint8": keys, "text": np.array(names), "bytes": np.array(names, "S32")}[kind]
    report = take(save(tmp_path / "my.features.npz", {**PACKED, "keys": keys}))
    check(store, report)
    assert report.dataset == "my"
    assert len(store.load_dataset("my")) == 4


def test_keys_and_a_text_file_must_agree(
    store: FeatureStore, take: Import, write_lines: Lines, tmp_path: Path
) -> None:
    path = save(tmp_path / "a.npz", {**PACKED, "keys": keys_of_texts(LINES)})
    check(store, take(path, write_lines(*LINES)))
    with pytest.raises(ExchangeError, match=r"sentences.txt:2: is not the text whose key"):
        take(path, write_lines("one two", "four", "", "one two"))


def test_texts_are_read_in_blocks(
    store: FeatureStore, take: Import, write_lines: Lines, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("embedcache.exchange.filling._BLOCK_TEXTS", 1)
    check(store, take(save(tmp_path / "a.npz", PACKED), write_lines(*LINES)))


def test_same_text_with_other_features_is_refused_naming_both_lines(
    store: FeatureStore, take: Import, write_lines: Lines, tmp_path: Path
) -> None:
    values = PACKED["values"].copy()
    values[4, 0] = -1
    path = save(tmp_path / "a.npz", {**PACKED, "values": values})
    with pytest.raises(
        ExchangeError, match=r"sentences.txt:4\): has other features than .* in .*sentences.txt:1"
    ):
        take(path, write_lines(*LINES))


def test_other_features_under_the_same_name_are_refused(
    store: FeatureStore, take: Import, write_lines: Lines, tmp_path: Path
) -> None:
    report = take(save(tmp_path / "a.npz", PACKED), write_lines(*LINES))
    other = save(tmp_path / "b.npz", {**PACKED, "values": -PACKED["values"]})
    with pytest.raises(ExchangeError, match="give another name with --as"):
        take(other, write_lines(*LINES))
    check(store, report)
    assert take(other, write_lines(*LINES), name="other").misses == 3


def test_zero_of_the_other_sign_is_another_feature(
    store: FeatureStore, take: Import, write_lines: Lines, tmp_path: Path
) -> None:
    for name, zero, kept in (("a", 0.0, True), ("b", -0.0, False)):
        path = save(tmp_path / f"{name}.npz", {"0": np.full((1, 2), zero, np.float32)})
        if kept:
            take(path, write_lines("x"))
        else:
            with pytest.raises(ExchangeError, match="has other features"):
                take(path, write_lines("x"))


# What is refused


def _raw(**entries: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in entries.items():
                archive.writestr(f"{name}.npy", content)

    return write


def _arrays(**changes: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        arrays = {**PACKED, **changes}
        save(path, {name: array for name, array in arrays.items() if array is not None})

    return write


def _only(**arrays: Any) -> Callable[[Path], None]:
    return lambda path: (save(path, arrays), None)[1]


def _npy(shape: str, descr: str, content: bytes = b"") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    text = header.ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content


def _flipped(path: Path) -> None:
    save(path, PACKED)
    content = bytearray(path.read_bytes())
    content[content.index(PACKED["values"].tobytes()) + 2] ^= 1
    path.write_bytes(content)


KEYS = keys_of_texts(LINES)
LABELLED = {
    "keys": KEYS,
    "label_codes": np.array([0, 0]),
    "label_splits": np.array([0, 1, 1, 1, 2]),
    "label_names": np.array(["a"]),
}


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (lambda path: path.write_bytes(b""), "neither .npz nor HDF5"),
        (lambda path: path.write_bytes(b"PK\x03\x04nonsense"), "cannot be read as .npz"),
        (_flipped, "cannot be read as .npz .*CRC"),
        (_raw(), "holds nothing; expected"),
        (_raw(values=b"", row_splits=b""), "cannot be read as .npz"),
        (_raw(values=_npy("(1<<40, 3)", "'<f4'"), row_splits=b""), "cannot be read as .npz"),
        (_raw(values=_npy("(1099511627776, 3)", "'<f4'"), row_splits=b""), "claims"),
        (_raw(values=_npy("(2, 3)", "'<f4'", bytes(23)), row_splits=b""), "claims"),
        (_raw(values=_npy("(-2, -3)", "'<f4'", bytes(24)), row_splits=b""), "shape"),
        (_raw(values=_npy("(2, 3)", "'|O'", bytes(48)), row_splits=b""), "claims"),
        (_arrays(values=np.array([["a"]], object)), "claims"),
        (_arrays(values=np.ones((5, 3), np.int64)), "holds int64; features must be float"),
        (_arrays(values=np.ones((5, 3), np.complex64)), "holds complex64"),
        (_arrays(values=np.ones(15, np.float32)), r"'values' is \(15,\)"),
        (_arrays(values=np.ones((5, 0), np.float32)), r"has the shape \(5, 0\)"),
        (_arrays(values=np.asfortranarray(PACKED["values"])), "ascontiguousarray"),
        (_arrays(row_splits=np.array([0, 2, 3, 3, 4])), "must run from 0 to 5"),
        (_arrays(row_splits=np.array([1, 2, 3, 3, 5])), "must run from 0 to 5"),
        (_arrays(row_splits=np.array([0, 3, 2, 3, 5])), "must not decrease"),
        (_arrays(row_splits=np.array([0, -(2**63), 2, 3, 5])), "must not decrease"),
        (_arrays(row_splits=np.array([], np.int64)), "row_splits"),
        (_arrays(row_splits=np.array([0.0, 2, 3, 3, 5])), "one row of whole numbers"),
        (_arrays(row_splits=np.array([[0, 5]])), "one row of whole numbers"),
        (_arrays(row_splits=None), "holds 'values'; expected values and row_splits"),
        (_only(**{"0": MATRICES[0], "2": MATRICES[1]}), "there is no '1'"),
        (_only(**{"0": MATRICES[0], "1": np.ones((2, 2), np.float32)}), "must agree"),
        (_only(**{"0": np.ones(3, np.float32)}), r"array '0' has the shape \(3,\)"),
        (_arrays(keys=KEYS[:3]), "'keys' has 3 entries; expected 4"),
        (_arrays(keys=KEYS[:, :8]), r"'keys' is \(4, 8\) uint8; it must be"),
        (_arrays(keys=np.array(["xy" * 16] * 4)), "non-hexadecimal"),
        (_arrays(keys=np.array(["ab"] * 4)), "hexadecimal digits"),
        (_arrays(**{**LABELLED, "label_codes": np.array([0, 1])}), "'label_names' lacks"),
        (_arrays(**{**LABELLED, "label_codes": np.array([0, -1])}), "'label_names' lacks"),
        (_arrays(**{**LABELLED, "label_splits": np.arange(5)}), "does not fit 'label_codes'"),
        (_arrays(**{**LABELLED, "label_splits": np.arange(4)}), "has 4 entries; expected 5"),
        (_arrays(keys=KEYS, truncated=np.zeros(3, np.bool_)), "'truncated' has 3 entries"),
        (_arrays(keys=KEYS, ids=np.array(["a"])), "'ids' has 1 entries"),
    ],
)
def test_archive_that_is_not_what_it_should_be_is_refused(
    store: FeatureStore, take: Import, write_lines: Lines, tmp_path: Path,
    write: Callable[[Path], None], match: str,
) -> None:  # fmt: skip
    path = tmp_path / "a.npz"
    write(path)
    with pytest.raises(ExchangeError, match=match) as caught:
        take(path, write_lines(*LINES))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert store.catalog.shards() == []
    assert store.catalog.datasets() == []


def test_view_that_does_not_fit_its_values_or_is_too_new_is_refused(
    store: FeatureStore, take: Import, write_lines: Lines, tmp_path: Path
) -> None:
    view = FeatureView(module_digest="0" * 32, signature="__call__", tokenizer="module", dim=4)
    record = json.loads(view.to_json())
    for change, match in (({}, "of dim 4, its values of 3"), ({"schema": 99}, "upgrade")):
        metadata = json.dumps({"view": {**record, **change}})
        path = save(tmp_path / "a.npz", {**PACKED, "metadata": np.array(metadata)})
        with pytest.raises(ExchangeError, match=match):
            take(path, write_lines(*LINES))


@pytest.mark.parametrize("metadata", ["made by me", "[]", '{"view": 3}', '{"view": {}}', "{}"])
def test_metadata_of_other_programs_are_passed_over(
    store: FeatureStore, take: Import, write_lines: Lines, tmp_path: Path, metadata: str
) -> None:
    path = save(tmp_path / "a.npz", {**PACKED, "metadata": np.array(metadata)})
    check(store, take(path, write_lines(*LINES)))


def test_hdf5_formats_are_not_npz(take: Import, write_lines: Lines, tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", PACKED)
    with pytest.raises(ExchangeError, match="cannot be read as HDF5"):
        take(path, write_lines(*LINES), format="allennlp")


def test_other_number_of_texts_is_told(take: Import, write_lines: Lines, tmp_path: Path) -> None:
    with pytest.raises(ExchangeError, match=r"features of 4 texts, but .* has 3"):
        take(save(tmp_path / "a.npz", PACKED), write_lines("a", "b", "c"))

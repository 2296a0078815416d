"""Shards that another program made to claim what is not so: refused from the metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xxhash

import embedcache.store.shards.shard as shard_module
from embedcache.errors import CorruptShardError, StoreVersionError
from embedcache.store.shards.format import FORMAT_VERSION
from embedcache.store.shards.shard import Shard
from embedcache.view import SCHEMA_VERSION

Change = Callable[[h5py.File], None]


def _forge(
    source: Path,
    target: Path,
    change: Change = lambda _file: None,
    *,
    attributes: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
) -> Path:
    """Write a shard anew with something changed, and checksums that fit all the same.

    ``data`` and ``attributes`` replace arrays and attributes (None leaves one out); ``change``
    is done to the file last.
    """
    with h5py.File(source, "r") as file:
        attrs = {**file.attrs, **(attributes or {})}
        arrays = {name: dataset[()] for name, dataset in file.items()} | dict(data or {})
    checksums = arrays.pop("checksums")
    if "checksums" not in (data or {}):
        checksums = _checksums(attrs, arrays)
    with h5py.File(target, "w") as file:
        for name, array in arrays.items():
            if array is not None:
                file[name] = array
        file["checksums"] = checksums
        for name, value in attrs.items():
            if value is not None:
                file.attrs[name] = value
        change(file)
    return target


def _checksums(attrs: Mapping[str, Any], arrays: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    plain = {
        name: value.decode() if isinstance(value, bytes) else int(value)
        for name, value in attrs.items()
        if isinstance(value, bytes | np.integer | int)
    }
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    sums = [xxhash.xxh3_64_intdigest(text.encode())]
    sums += [
        xxhash.xxh3_64_intdigest(np.asarray(arrays[name]).tobytes())
        for name in sorted(arrays)
        if arrays[name] is not None and np.asarray(arrays[name]).nbytes
    ]
    return np.array(sums, "<u8")


def _without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it an error to map any data."""

    def refuse(*_: object) -> None:
        raise AssertionError("data was read before the structure was checked")

    monkeypatch.setattr(shard_module, "_map_arrays", refuse)


@pytest.mark.parametrize("name", ["dense.h5", "dictionary.h5", "dense-v2.h5", "dictionary-v2.h5"])
def test_forged_shard_with_nothing_changed_is_taken(
    golden: Path, tmp_path: Path, name: str
) -> None:
    # Else all that follows could be refused for another reason than the one meant.
    forged = Shard(_forge(golden / name, tmp_path / name))
    forged.verify_all()
    rows = np.arange(4)
    np.testing.assert_array_equal(forged.read(rows).values, Shard(golden / name).read(rows).values)
    np.testing.assert_array_equal(forged.read_spans(1), Shard(golden / name).read_spans(1))


def _replace(name: str, **how: Any) -> Change:
    """Make a dataset anew with other arguments for h5py."""

    def change(file: h5py.File) -> None:
        array = file[name][()]
        del file[name]
        file.create_dataset(name, **({"data": array} | how))

    return change


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(shape=(6, 3), dtype="<f2")
    layout[:] = h5py.VirtualSource("/etc/passwd", "values", shape=(6, 3))
    del file["values"]
    file.create_virtual_dataset("values", layout)


def _external(file: h5py.File) -> None:
    del file["values"]
    file.create_dataset("values", (6, 3), "<f2", external=[("/etc/passwd", 0, 36)])


def _link(link: Any) -> Change:
    def change(file: h5py.File) -> None:
        del file["values"]
        file["values"] = link

    return change


def _group(file: h5py.File) -> None:
    del file["values"]
    file.create_group("values")


def _datatype(file: h5py.File) -> None:
    del file["values"]
    file["values"] = np.dtype("<f2")


def _compact(file: h5py.File) -> None:
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.COMPACT)
    array = file["values"][()]
    del file["values"]
    space = h5py.h5s.create_simple(array.shape)
    made = h5py.h5d.create(file.id, b"values", h5py.h5t.IEEE_F16LE, space, creation)
    h5py.Dataset(made)[...] = array


def _extra(file: h5py.File) -> None:
    file["note"] = 1


def _without(name: str) -> Change:
    def change(file: h5py.File) -> None:
        del file[name]

    return change


STRUCTURES: dict[str, tuple[Change, str]] = {
    "virtual dataset": (_virtual, "not stored plainly"),
    "external storage": (_external, "not stored plainly"),
    "chunks": (_replace("values", chunks=(2, 3)), "not stored plainly"),
    "compression": (_replace("values", compression="gzip"), "not stored plainly"),
    "compact storage": (_compact, "not stored plainly"),
    "compressed checksums": (_replace("checksums", compression="gzip"), "not stored plainly"),
    "soft link": (_link(h5py.SoftLink("/keys")), "'values' is a link"),
    "external link": (_link(h5py.ExternalLink("/etc/passwd", "/x")), "'values' is a link"),
    "group": (_group, "'values' is not a dataset"),
    "datatype": (_datatype, "'values' is not a dataset"),
    "extra name": (_extra, "'note'.*expected"),
    "no values": (_without("values"), "expected"),
    "no checksums": (_without("checksums"), "expected"),
    "float64": (_replace("values", dtype="<f8"), "float64; expected"),
    "big-endian": (_replace("row_splits", dtype=">i8"), ">i8; expected"),
    "signed keys": (_replace("keys", dtype="i1"), "int8; expected"),
    "strings": (
        _replace("flags", data=["a"] * 4, dtype=h5py.string_dtype()),
        "'flags' is .*object; expected",
    ),
    "narrow keys": (_replace("keys", data=np.zeros((4, 8), "u1")), "'keys' is"),
    "other dim": (_replace("values", data=np.zeros((6, 4), "<f2")), "'values' is"),
    "too few rows": (_replace("values", data=np.zeros((5, 3), "<f2")), "'values' is"),
    "flat values": (_replace("values", data=np.zeros(18, "<f2")), "'values' is"),
    "scalar": (_replace("values", data=np.float16(1)), "'values' is"),
    "no dataspace": (_replace("values", data=h5py.Empty("<f2")), "'values' has no shape"),
    "checksums in two axes": (_replace("checksums", data=np.zeros((5, 1), "<u8")), "'checksums'"),
}


@pytest.mark.parametrize("case", STRUCTURES)
def test_foreign_structure_is_refused_before_data_is_read(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    change, reason = STRUCTURES[case]
    path = _forge(golden / "dense.h5", tmp_path / "forged.h5", change)
    _without_data(monkeypatch)
    with pytest.raises(CorruptShardError, match=reason) as caught:
        Shard(path)
    assert "\n" not in str(caught.value)


TOKEN_STRUCTURES: dict[str, tuple[Change, str]] = {
    "too few ids": (_replace("token_ids", data=np.zeros(5, "<u4")), "'token_ids' is"),
    "ids in two axes": (_replace("token_ids", data=np.zeros((6, 1), "<u4")), "'token_ids' is"),
    "signed ids": (_replace("token_ids", dtype="<i4"), "int32; expected"),
    "wide ids": (_replace("token_ids", dtype="<u8"), "uint64; expected"),
    "big-endian ids": (_replace("token_ids", dtype=">u4"), ">u4; expected"),
    "chunked ids": (_replace("token_ids", chunks=(2,)), "'token_ids' is not stored plainly"),
    "too many spans": (_replace("spans", data=np.zeros((7, 2), "<u4")), "'spans' is"),
    "spans of three": (_replace("spans", data=np.zeros((6, 3), "<u4")), "'spans' is"),
    "flat spans": (_replace("spans", data=np.zeros(12, "<u4")), "'spans' is"),
    "spans of a text": (_replace("spans", data=np.zeros((4, 2), "<u4")), "'spans' is"),
    "wide spans": (_replace("spans", dtype="<u8"), "uint64; expected"),
    "compressed spans": (_replace("spans", compression="gzip"), "'spans' is not stored plainly"),
    "extra name": (_extra, r"'note'.*expected.* and perhaps \['spans', 'token_ids'\]"),
    "no values": (_without("values"), "expected"),
}


@pytest.mark.parametrize("case", TOKEN_STRUCTURES)
def test_foreign_structure_of_tokens_is_refused_before_data_is_read(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    change, reason = TOKEN_STRUCTURES[case]
    path = _forge(golden / "dense-v2.h5", tmp_path / "forged.h5", change)
    _without_data(monkeypatch)
    with pytest.raises(CorruptShardError, match=reason) as caught:
        Shard(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", ["token_ids", "spans"])
def test_version_1_with_token_arrays_is_refused_before_data_is_read(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    left_out = {"token_ids": "spans", "spans": "token_ids"}[kept]
    for version in (2, 1):
        path = _forge(
            golden / "dense-v2.h5",
            tmp_path / f"{version}.h5",
            attributes={"version": version},
            data={left_out: None},
        )
        if version == 2:
            Shard(path).verify_all()
    _without_data(monkeypatch)
    with pytest.raises(CorruptShardError, match=f"'{kept}'.*expected.* in version 1"):
        Shard(path)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("flag", [1, 2, 3, 4, 6, 128, 255])
def test_flag_that_the_version_does_not_know_is_refused(
    golden: Path, tmp_path: Path, version: int, flag: int
) -> None:
    path = _forge(
        golden / "dense.h5",
        tmp_path / "forged.h5",
        attributes={"version": version},
        data={"flags": np.array([0, 0, 0, flag], "u1")},
    )
    if flag <= {1: 1, 2: 3}[version]:
        assert Shard(path).flags.tolist() == [0, 0, 0, flag]
        return
    with pytest.raises(CorruptShardError, match=f"flags that version {version} does not know"):
        Shard(path)


@pytest.mark.parametrize("version", [0, -1, -(1 << 63)])
def test_version_that_never_was_is_refused(golden: Path, tmp_path: Path, version: int) -> None:
    path = _forge(
        golden / "dense.h5", tmp_path / "forged.h5", attributes={"version": np.int64(version)}
    )
    with pytest.raises(CorruptShardError, match=f"there is no shard format {version}"):
        Shard(path)


def test_small_file_that_claims_petabytes_is_refused(golden: Path, tmp_path: Path) -> None:
    num_tokens = 1 << 50

    def claim(file: h5py.File) -> None:
        del file["values"]
        file.create_dataset("values", (num_tokens, 3), "<f2")

    path = _forge(
        golden / "dense.h5",
        tmp_path / "forged.h5",
        claim,
        attributes={"num_tokens": num_tokens},
        data={"row_splits": np.array([0, 0, 0, 0, num_tokens])},
    )
    assert path.stat().st_size < 20_000
    with pytest.raises(CorruptShardError, match="claims 6755399441055744 bytes"):
        Shard(path)


def test_absurd_number_of_texts_is_refused(golden: Path, tmp_path: Path) -> None:
    for num_texts in (-1, 0, 5, 1 << 62):
        path = tmp_path / f"{num_texts}.h5"
        _forge(golden / "dense.h5", path, attributes={"num_texts": num_texts})
        with pytest.raises(CorruptShardError, match="expected"):
            Shard(path)


VIEW_OF_DIM_4 = json.dumps(
    {
        "dim": 4, "dtype": "float16", "granularity": "token", "max_tokens": 512,
        "module_digest": "", "output": "", "overflow": "truncate", "schema": 1,
        "signature": "__call__", "tokenizer": "space",
    },
    sort_keys=True,
    separators=(",", ":"),
).encode()  # fmt: skip

ATTRIBUTES: dict[str, tuple[dict[str, Any], str]] = {
    "of variable length": ({"view": "a string of variable length"}, "attribute 'view' is object"),
    "number for string": ({"view": 5}, "attribute 'view' is int64"),
    "string for number": ({"num_texts": np.bytes_(b"4")}, r"attribute 'num_texts' is \|S1"),
    "float for number": ({"num_texts": 4.0}, "attribute 'num_texts' is float64"),
    "narrow number": ({"num_texts": np.int32(4)}, "attribute 'num_texts' is int32"),
    "array for number": ({"num_texts": np.array([4])}, r"attribute 'num_texts' is int64 \(1,\)"),
    "nothing": ({"num_texts": h5py.Empty("<i8")}, "attribute 'num_texts' is int64 None"),
    "one too many": ({"note": 1}, "attributes are not those of a shard"),
    "one too few": ({"num_texts": None}, "attributes are not those of a shard"),
    "no format": ({"format": None}, "it is not a shard"),
    "another format": ({"format": np.bytes_(b"keras")}, "it is not a shard"),
    "format of variable length": ({"format": "embedcache-shard"}, "attribute 'format' is object"),
    "no version": ({"version": None}, "version"),
    "unknown encoding": ({"encoding": np.bytes_(b"int8")}, "unknown encoding 'int8'"),
    "other encoding": ({"encoding": np.bytes_(b"dictionary")}, "expected"),
    "other blocks": ({"block_bytes": 4096}, "blocks of 4096 bytes"),
    "no JSON": ({"view": np.bytes_(b"{")}, "cannot be read"),
    "not ASCII": ({"view": np.bytes_("é".encode())}, "cannot be read"),
    "JSON of something else": ({"view": np.bytes_(b'["dim"]')}, "a view has the fields"),
    "deep JSON": ({"view": np.bytes_(b"[" * 50_000)}, "cannot be read"),
    "another view": ({"view": np.bytes_(VIEW_OF_DIM_4)}, "do not belong together"),
    "another dim": ({"dim": 4}, "do not belong together"),
    "another fingerprint": ({"fingerprint": np.bytes_(b"0" * 32)}, "do not belong together"),
}


@pytest.mark.parametrize("case", ATTRIBUTES)
def test_foreign_attributes_are_refused_before_data_is_read(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    attributes, reason = ATTRIBUTES[case]
    path = _forge(golden / "dense.h5", tmp_path / "forged.h5", attributes=attributes)
    _without_data(monkeypatch)
    with pytest.raises(CorruptShardError, match=reason) as caught:
        Shard(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700


OFFSETS: dict[str, list[int]] = {
    "decrease": [0, 3, 2, 5, 6],
    "overrun": [0, 2, 5, 5, 7],
    "fall short": [0, 2, 5, 5, 5],
    "begin late": [1, 2, 5, 5, 6],
    "below zero": [0, -1, 5, 5, 6],
    "wrap around": [0, 1 << 62, -(1 << 63), -(1 << 62), 6],
}


@pytest.mark.parametrize("case", OFFSETS)
def test_offsets_that_decrease_or_overrun_are_refused(
    golden: Path, tmp_path: Path, case: str
) -> None:
    splits = np.array(OFFSETS[case], np.int64)
    path = _forge(golden / "dense.h5", tmp_path / "forged.h5", data={"row_splits": splits})
    with pytest.raises(CorruptShardError, match="row_splits decrease or overrun"):
        Shard(path)


def test_keys_that_do_not_ascend_are_refused(golden: Path, tmp_path: Path) -> None:
    keys = np.array(Shard(golden / "dense.h5").keys)
    for number, wrong in enumerate((keys[::-1], keys[[0, 1, 1, 3]], keys[[1, 0, 2, 3]])):
        path = _forge(golden / "dense.h5", tmp_path / f"{number}.h5", data={"keys": wrong})
        with pytest.raises(CorruptShardError, match="keys do not ascend"):
            Shard(path)


def test_code_past_the_dictionary_is_refused(golden: Path, tmp_path: Path) -> None:
    codes = np.array([0, 1, 2, 0, 3, 0], "<u4")
    path = _forge(golden / "dictionary.h5", tmp_path / "forged.h5", data={"codes": codes})
    shard = Shard(path)
    for read in (shard.verify_all, lambda: shard.read(np.array([0]))):
        with pytest.raises(CorruptShardError, match="code points past the dictionary"):
            read()


@pytest.mark.parametrize("name", ["dense-v2.h5", "dictionary-v2.h5"])
def test_span_that_ends_before_it_starts_is_refused(
    golden: Path, tmp_path: Path, name: str
) -> None:
    spans = np.array([[0, 0], [0, 3], [0, 1], [6, 2], [7, 11], [0, 2]], "<u4")
    path = _forge(golden / name, tmp_path / "forged.h5", data={"spans": spans})
    for read in (Shard.verify_all, lambda shard: shard.read_spans(1)):
        with pytest.raises(CorruptShardError, match="a span ends before it starts"):
            read(Shard(path))


@pytest.mark.parametrize(
    "checksums", [np.zeros(0, "<u8"), np.zeros(3, "<u8"), np.zeros(6, "<u8"), np.zeros(5, "<u8")]
)
def test_checksums_that_do_not_fit_are_refused(
    golden: Path, tmp_path: Path, checksums: Any
) -> None:
    path = _forge(golden / "dense.h5", tmp_path / "forged.h5", data={"checksums": checksums})
    with pytest.raises(CorruptShardError, match=r"checksums for 5 blocks|attributes are not what"):
        Shard(path)


@pytest.mark.parametrize("content", [b"", b"a text file\n", b"\x89HDF\r\n\x1a\n", bytes(5000)])
def test_what_is_no_hdf5_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.h5"
    path.write_bytes(content)
    with pytest.raises(CorruptShardError, match=r"file\.h5: cannot be read") as caught:
        Shard(path)
    assert "\n" not in str(caught.value)


def test_folder_in_place_of_a_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptShardError, match="Is a directory"):
        Shard(tmp_path)


def test_another_programs_hdf5_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    with h5py.File(path, "w") as file:
        file["weights"] = np.zeros(3)
    with pytest.raises(CorruptShardError, match="it is not a shard"):
        Shard(path)


def test_newer_version_asks_for_an_upgrade_whatever_else_is_new(
    golden: Path, tmp_path: Path
) -> None:
    path = _forge(
        golden / "dense.h5",
        tmp_path / "newer.h5",
        _extra,
        attributes={
            "version": FORMAT_VERSION + 1,
            "compression": np.bytes_(b"zstd"),
            "num_texts": None,
        },
    )
    with pytest.raises(
        StoreVersionError, match=r"newer\.h5: shard format \d, .* upgrade"
    ) as caught:
        Shard(path)
    assert "\n" not in str(caught.value)


def test_view_of_a_newer_schema_asks_for_an_upgrade(golden: Path, tmp_path: Path) -> None:
    newer = SCHEMA_VERSION + 1
    with h5py.File(golden / "dense.h5", "r") as file:
        view = json.loads(file.attrs["view"]) | {"schema": newer, "pooling": "none"}
    path = _forge(
        golden / "dense.h5",
        tmp_path / "newer.h5",
        attributes={"view": np.bytes_(json.dumps(view).encode())},
    )
    with pytest.raises(StoreVersionError, match=rf"newer\.h5: view schema {newer}, .* upgrade"):
        Shard(path)

"""Exports: every format holds the same documents, whole or not at all."""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import embedcache
from embedcache.errors import DiskFullError, ExchangeError, KeyNotFoundError, UnknownNameError
from embedcache.exchange import records as records_module
from embedcache.exchange.exporting import export_dataset
from embedcache.keys import keys_of_texts
from embedcache.store.store import FeatureStore

Register = Callable[..., None]
FORMATS = ["npz", "parquet", "tfrecord", "datasets"]
ENDINGS = {"npz": "a.npz", "parquet": "a.parquet", "tfrecord": "a.tfrecord", "datasets": "a_folder"}


def read_npz(path: Path) -> Iterator[dict[str, Any]]:
    archive = np.load(path)
    bounds, labels = archive["row_splits"], archive["label_splits"]
    for number, key in enumerate(archive["keys"]):
        codes = archive["label_codes"][labels[number] : labels[number + 1]]
        yield {
            "key": key.tobytes().hex(),
            "id": str(archive["ids"][number]) if "ids" in archive.files else None,
            "split": str(archive["split_names"][archive["split_codes"][number]]),
            "labels": [str(archive["label_names"][code]) for code in codes],
            "features": archive["values"][bounds[number] : bounds[number + 1]],
        }


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    pq = pytest.importorskip("pyarrow.parquet")
    table = pq.read_table(path)
    metadata = json.loads(table.schema.metadata[b"embedcache"])
    numbers = table.to_pandas().features
    for row, flat in zip(table.drop_columns("features").to_pylist(), numbers, strict=True):
        yield {
            "key": row["key"], "id": row.get("id"), "split": row["split"] or "",
            "labels": row["labels"], "features": flat.reshape(row["length"], metadata["dim"]),
        }  # fmt: skip


def read_tfrecord(path: Path) -> Iterator[dict[str, Any]]:
    import tensorflow as tf

    metadata = json.loads(path.with_name(f"{path.name}.json").read_text())
    for raw in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        found = tf.train.Example.FromString(raw).features.feature
        flat = np.frombuffer(found["features"].bytes_list.value[0], metadata["dtype"])
        length, dim = (found[name].int64_list.value[0] for name in ("length", "dim"))
        ids = found["id"].bytes_list.value if "id" in found else [b""]
        yield {
            "key": found["key"].bytes_list.value[0].decode(),
            "id": ids[0].decode() or None,
            "split": found["split"].bytes_list.value[0].decode(),
            "labels": [label.decode() for label in found["labels"].bytes_list.value],
            "features": flat.reshape(length, dim),
        }


def read_datasets(path: Path) -> Iterator[dict[str, Any]]:
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_from_disk(str(path))
    dtype = np.dtype(loaded.features["features"].dtype)
    numbers = loaded.select_columns(["features"]).with_format("numpy", dtype=dtype)
    for row, values in zip(loaded.remove_columns("features"), numbers, strict=True):
        yield {
            "key": row["key"], "id": row.get("id"), "split": row["split"] or "",
            "labels": row["labels"], "features": values["features"],
        }  # fmt: skip


READERS: dict[str, Callable[[Path], Iterator[dict[str, Any]]]] = {
    "npz": read_npz,
    "parquet": read_parquet,
    "tfrecord": read_tfrecord,
    "datasets": read_datasets,
}


def metadata_of(path: Path, chosen: str) -> dict[str, Any]:
    if chosen == "npz":
        text = str(np.load(path)["metadata"])
    elif chosen == "parquet":
        pq = pytest.importorskip("pyarrow.parquet")
        text = pq.read_schema(path).metadata[b"embedcache"].decode()
    elif chosen == "tfrecord":
        text = path.with_name(f"{path.name}.json").read_text()
    else:
        datasets = pytest.importorskip("datasets")
        text = datasets.load_from_disk(str(path)).info.description
    record = json.loads(text)
    assert isinstance(record, dict)
    return record


@pytest.fixture(params=FORMATS)
def chosen(request: pytest.FixtureRequest) -> str:
    chosen = str(request.param)
    if chosen in ("parquet", "datasets"):
        pytest.importorskip({"parquet": "pyarrow"}.get(chosen, chosen))
    return chosen


def export(store: FeatureStore, folder: Path, chosen: str, **settings: Any) -> Path:
    path = folder / ENDINGS[chosen]
    report = export_dataset(store, "name", path, format=chosen, **settings)
    assert report.path == str(path)
    return path


def test_every_format_holds_each_document_in_corpus_order_bit_for_bit(
    filled: FeatureStore, programs: ModuleType, corpus: dict[str, list[Any]], tmp_path: Path,
    chosen: str,
) -> None:  # fmt: skip
    found = list(READERS[chosen](export(filled, tmp_path, chosen)))
    assert len(found) == len(corpus["texts"])
    keys = [key.tobytes().hex() for key in keys_of_texts(corpus["texts"])]
    assert [row["key"] for row in found] == keys
    assert [row["split"] for row in found] == corpus["splits"]
    assert [row["labels"] for row in found] == [list(labels) for labels in corpus["labels"]]
    assert [row["id"] for row in found] == corpus["ids"]
    for row, text in zip(found, corpus["texts"], strict=True):
        np.testing.assert_array_equal(row["features"], programs.matrix_of(text), strict=True)


def test_blocks_of_any_size_give_the_same_documents(
    filled: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    whole = list(READERS[chosen](export(filled, tmp_path, chosen)))
    real = records_module.block_ranges
    monkeypatch.setattr(
        records_module, "block_ranges", lambda sizes: real(sizes, max_bytes=40, max_texts=7)
    )
    other = tmp_path / "other"
    other.mkdir()
    parts = list(READERS[chosen](export(filled, other, chosen)))
    for one, another in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one.pop("features"), another.pop("features"), strict=True)
        assert one == another


def test_float32_stays_float32(
    store: FeatureStore, programs: ModuleType, register: Register, tmp_path: Path, chosen: str
) -> None:
    view = replace(programs.VIEW, dtype="float32")
    store.catalog.add_view(view, "builtin:nothing")
    writer = store.writer(view)
    values = np.array([[1e-30, 3.1415927, -0.0, 70000.0]], np.float32)
    keys = keys_of_texts(["a"])
    writer.add_values(keys, np.array([1]), np.zeros(1, np.bool_), values=values)
    writer.flush()
    register("name", ["a"], view=view)
    (row,) = READERS[chosen](export(store, tmp_path, chosen))
    assert row["features"].tobytes() == values.tobytes()
    assert row["features"].dtype == np.float32
    assert row["labels"] == []
    assert row["split"] == ""
    assert row["id"] is None


def test_file_says_what_it_is(
    filled: FeatureStore, programs: ModuleType, tmp_path: Path, chosen: str
) -> None:
    found = metadata_of(export(filled, tmp_path, chosen, split="test"), chosen)
    version = filled.load_dataset("name").version
    assert found["embedcache"] == embedcache.__version__
    assert (found["dataset"], found["version"], found["split"]) == ("name", version, "test")
    assert found["fingerprint"] == programs.VIEW.fingerprint
    assert embedcache.FeatureView.from_json(json.dumps(found["view"])) == programs.VIEW
    assert (found["dim"], found["dtype"], found["module"]) == (4, "float16", "builtin:nothing")


def test_split_gives_its_documents_only(
    filled: FeatureStore, corpus: dict[str, list[Any]], tmp_path: Path, chosen: str
) -> None:
    found = list(READERS[chosen](export(filled, tmp_path, chosen, split="test")))
    assert [row["id"] for row in found] == corpus["ids"][40:]
    assert {row["split"] for row in found} == {"test"}


def test_unknown_split_or_dataset_or_view_leaves_nothing(
    filled: FeatureStore, tmp_path: Path
) -> None:
    target = tmp_path / "a.npz"
    with pytest.raises(UnknownNameError, match=r"no split 'dev'; its splits: train, test"):
        export_dataset(filled, "name", target, split="dev")
    with pytest.raises(UnknownNameError, match=r"no dataset 'nope'"):
        export_dataset(filled, "nope", target)
    with pytest.raises(UnknownNameError, match=r"no view 'ffff'"):
        export_dataset(filled, "name", target, view="ffff")
    assert not target.exists()


def test_texts_that_the_view_lacks_are_counted_with_the_command_that_mends_it(
    filled: FeatureStore, register: Register, tmp_path: Path
) -> None:
    register("more", ["text 1", "unseen", "another"])
    with pytest.raises(KeyNotFoundError, match=r"lacks 2 of 3 texts .*`embedcache build") as caught:
        export_dataset(filled, "more", tmp_path / "a.npz")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.npz").exists()


def test_ending_names_the_format(filled: FeatureStore, tmp_path: Path) -> None:
    report = export_dataset(filled, None, tmp_path / "A.NPZ")
    assert report.format == "npz"
    assert report.bytes == (tmp_path / "A.NPZ").stat().st_size
    with pytest.raises(ExchangeError, match=r"give --format npz\|parquet\|tfrecord\|datasets, or"):
        export_dataset(filled, None, tmp_path / "a.csv")


def test_what_is_there_is_replaced_only_when_told(
    filled: FeatureStore, tmp_path: Path, chosen: str
) -> None:
    path = export(filled, tmp_path, chosen, split="train")
    with pytest.raises(ExchangeError, match=r"is there already.*--force"):
        export(filled, tmp_path, chosen)
    assert len(list(READERS[chosen](path))) == 40
    export(filled, tmp_path, chosen, force=True)
    assert len(list(READERS[chosen](path))) == 62


def test_same_export_gives_the_same_bytes(filled: FeatureStore, tmp_path: Path) -> None:
    for name in ("one.npz", "two.npz"):
        export_dataset(filled, "name", tmp_path / name)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_only_its_owner_can_read_an_export(
    filled: FeatureStore, tmp_path: Path, chosen: str
) -> None:
    path = export(filled, tmp_path, chosen)
    files = list(path.iterdir()) if path.is_dir() else [path]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_folder_of_something_else_is_never_replaced(filled: FeatureStore, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    precious = tmp_path / "a_folder" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("years of work")
    with pytest.raises(ExchangeError, match="is not a folder of Hugging Face datasets"):
        export(filled, tmp_path, "datasets", force=True)
    with pytest.raises(ExchangeError, match="is a folder; name a file"):
        export_dataset(filled, "name", precious.parent, format="npz", force=True)
    assert precious.read_text() == "years of work"


def test_place_that_cannot_be_written_is_told_in_one_line(
    filled: FeatureStore, tmp_path: Path
) -> None:
    with pytest.raises(ExchangeError, match="there is no folder"):
        export_dataset(filled, "name", tmp_path / "no" / "a.npz")
    (tmp_path / "file").write_text("")
    with pytest.raises(ExchangeError) as caught:
        export_dataset(filled, "name", tmp_path / "file" / "a.npz")
    assert "\n" not in str(caught.value)


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """No file may become longer: what a full disk looks like to whoever writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("num_bytes", [0, 100, 900, 2000])
def test_full_disk_is_one_line_and_leaves_nothing(
    filled: FeatureStore, tmp_path: Path, chosen: str, num_bytes: int
) -> None:
    with file_size_limit(num_bytes), pytest.raises(DiskFullError) as caught:
        export(filled, tmp_path, chosen)
    assert "no space left on the device" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["store"]


def test_full_disk_leaves_what_was_there(filled: FeatureStore, tmp_path: Path, chosen: str) -> None:
    path = export(filled, tmp_path, chosen, split="train")
    before = sorted(os.listdir(tmp_path))
    with file_size_limit(1000), pytest.raises(DiskFullError):
        export(filled, tmp_path, chosen, force=True)
    assert sorted(os.listdir(tmp_path)) == before
    assert len(list(READERS[chosen](path))) == 40


def test_interrupted_export_leaves_nothing(
    filled: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    def interrupted(records: records_module.ExportRecords) -> Iterator[Any]:
        yield next(real(records))
        raise KeyboardInterrupt

    real = records_module.ExportRecords.blocks
    monkeypatch.setattr(records_module.ExportRecords, "blocks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(filled, tmp_path, chosen)
    assert sorted(os.listdir(tmp_path)) == ["store"]


@pytest.mark.parametrize(("chosen", "package"), [("parquet", "pyarrow"), ("datasets", "datasets")])
def test_missing_package_is_one_line_with_the_command(
    filled: FeatureStore, tmp_path: Path, chosen: str, package: str
) -> None:
    script = (
        "import sys\nsys.modules[sys.argv[1]] = None\n"
        "from embedcache import open_store\nfrom embedcache.errors import ExchangeError\n"
        "from embedcache.exchange.exporting import export_dataset\n"
        "try:\n    export_dataset(open_store(sys.argv[2]), 'name', 'x', format=sys.argv[3])\n"
        "except ExchangeError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, package, str(filled.path), chosen],
        capture_output=True, text=True, check=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(embedcache.__file__).parents[1])},
    )  # fmt: skip
    (line,) = done.stdout.splitlines()
    assert f"pip install 'embedcache[{chosen}]'" in line
    assert package in line


def test_light_formats_leave_tensorflow_pyarrow_and_datasets_out(
    filled: FeatureStore, tmp_path: Path
) -> None:
    script = (
        "import sys\nfrom embedcache import open_store\n"
        "from embedcache.exchange.exporting import export_dataset\n"
        "export_dataset(open_store(sys.argv[1]), 'name', 'x.npz')\n"
        "print(*{'tensorflow', 'keras', 'pyarrow', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(filled.path)],
        capture_output=True, text=True, check=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(embedcache.__file__).parents[1])},
    )  # fmt: skip
    assert done.stdout.split() == []


def test_ranges_are_within_bounds_and_cover_every_text() -> None:
    sizes = np.array([5, 100, 1, 1, 1, 0, 0, 30, 9])
    ranges = list(records_module.block_ranges(sizes, max_bytes=10, max_texts=3))
    assert ranges == [(0, 1), (1, 2), (2, 5), (5, 7), (7, 8), (8, 9)]
    assert list(records_module.block_ranges(sizes[:0])) == []


def test_lines_are_found_across_pieces() -> None:
    text = b"one\n\nthree is longer\nfour\n"
    for piece_bytes in range(1, 30):
        found = list(records_module._lines(memoryview(text), piece_bytes=piece_bytes))
        assert found == [b"one", b"", b"three is longer", b"four"]

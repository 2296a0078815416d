"""What ``docs/exchange.md`` tells people to type works as it stands there."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cli.main import run
from embedcache.store.store import FeatureStore

DOCUMENT = (Path(__file__).parents[3] / "docs" / "exchange.md").read_text(encoding="utf-8")
BLOCKS = [textwrap.dedent(found) for found in re.findall(r"(?:^(?: {4}.*)?\n)+", DOCUMENT, re.M)]


def block_with(words: str) -> str:
    """The one block of Python that holds these words."""
    (found,) = [block for block in BLOCKS if words in block and "embedcache import" not in block]
    return found


def commands(name: str) -> list[list[str]]:
    """The lines of the document that call a command with real names."""
    lines = [line for block in BLOCKS for line in block.splitlines()]
    found = [shlex.split(line, comments=True) for line in lines]
    return [words[2:] for words in found if words[:2] == ["embedcache", name]]


@pytest.fixture
def documented(
    filled: FeatureStore, register: Any, corpus: dict[str, list[Any]], programs: ModuleType,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> ModuleType:  # fmt: skip
    """The dataset that the document speaks of, and its exports in the current folder."""
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMBEDCACHE_STORE", str(filled.path))
    columns = {name: corpus[name] for name in ("labels", "splits")}
    register("sst2", corpus["texts"], **columns)
    for words in commands("export"):
        view = programs.VIEW.fingerprint[:8]
        assert run(["export", *[view if word == "5d8af36d" else word for word in words]]) == 0
    return programs


def test_every_export_of_the_document_is_made(documented: ModuleType, tmp_path: Path) -> None:
    exports = {"sst2.npz", "sst2.parquet", "sst2.tfrecord", "sst2.tfrecord.json", "sst2_features"}
    assert exports <= {path.name for path in tmp_path.iterdir()}


def test_numpy_reads_an_export_as_the_document_says(
    documented: ModuleType, corpus: dict[str, list[Any]]
) -> None:
    names: dict[str, Any] = {}
    exec(block_with('np.load("sst2.npz")'), names)
    first = documented.matrix_of(corpus["texts"][0])
    np.testing.assert_array_equal(names["first"], first, strict=True)
    assert names["labels"].tolist()[:3] == ["a", "ü b", "b"]
    assert names["view"]["dim"] == 4


def test_pandas_reads_an_export_as_the_document_says(
    documented: ModuleType, corpus: dict[str, list[Any]]
) -> None:
    names: dict[str, Any] = {}
    exec(block_with('pq.read_table("sst2.parquet")'), names)
    train = [text for text, split in zip(corpus["texts"], corpus["splits"], strict=True)
             if split == "train"]  # fmt: skip
    for matrix, text in zip(names["features"], train, strict=True):
        np.testing.assert_array_equal(matrix, documented.matrix_of(text), strict=True)


def test_tensorflow_reads_an_export_as_the_document_says(
    documented: ModuleType, corpus: dict[str, list[Any]]
) -> None:
    names: dict[str, Any] = {}
    exec(block_with("tf.data.TFRecordDataset"), names)
    found = list(names["records"].as_numpy_iterator())
    for (matrix, labels), text, wanted in zip(
        found, corpus["texts"], corpus["labels"], strict=True
    ):
        np.testing.assert_array_equal(matrix, documented.matrix_of(text), strict=True)
        assert tuple(label.decode() for label in labels) == wanted


def test_hugging_face_reads_an_export_as_the_document_says(
    documented: ModuleType, corpus: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    names: dict[str, Any] = {}
    exec(block_with("load_from_disk"), names)
    assert len(names["train"]) == 40
    rows = names["dataset"].with_format("numpy", dtype=np.float16)
    for row, text in zip(rows, corpus["texts"], strict=True):
        np.testing.assert_array_equal(row["features"], documented.matrix_of(text), strict=True)


def test_key_of_a_text_is_made_as_the_document_says(filled: FeatureStore) -> None:
    names: dict[str, Any] = {}
    exec(block_with("blake2b").replace("a text of the corpus", "text 1"), names)
    assert filled.load_dataset("name").keys[1].tobytes() == names["key"]


def test_every_import_of_the_document_works(
    documented: ModuleType, foreign: ModuleType, tmp_path: Path
) -> None:
    lines = ["one two three", "four five"]
    for name in ("sentences.txt", "dataset_file.txt"):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    (tmp_path / "train.fasttext").write_text("".join(f"__label__a {line}\n" for line in lines))
    foreign.write_allennlp(tmp_path / "elmo.hdf5", lines)
    foreign.write_bilm(tmp_path / "lm_embeddings.hdf5", lines)
    calls = [words for words in commands("import") if "FEATURES" not in words]
    assert len(calls) == 4
    for words in calls:
        assert run(["import", *words]) == 0, words
    exec(block_with("import_features"), {})
    assert (tmp_path / "features" / "embedcache.json").exists()


def test_npz_that_the_document_makes_can_be_imported(
    store: FeatureStore, take: Any, write_lines: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block_with('"mine.npz"'), names)
    exec(block_with('"mine_each.npz"'), names)
    for name in ("mine", "mine_each"):
        report = take(tmp_path / f"{name}.npz", write_lines("a b c", "d"), name=name)
        for matrix, wanted in zip(
            store.get(report.view, ["a b c", "d"]), names["matrices"], strict=True
        ):
            np.testing.assert_array_equal(matrix, wanted, strict=True)

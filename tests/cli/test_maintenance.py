"""The commands of an operator: compact, gc, repair, store, and deleting."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

import embedcache
from cli.sizes import size
from embedcache.store.dataset import DatasetWriter

CommandLine = Any
Built = Any

A = [f"a {number}" for number in range(20)]
B = [f"b {number}" for number in range(20)]


@pytest.fixture(scope="session")
def upkeep() -> ModuleType:
    path = Path(__file__).parents[1] / "embedcache" / "store" / "maintenance_programs.py"
    spec = importlib.util.spec_from_file_location("cli_tests_maintenance_programs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def opened(tmp_path: Path, upkeep: ModuleType) -> Iterator[embedcache.FeatureStore]:
    """Datasets a and b in four shards of one view."""
    with embedcache.open_store(tmp_path / "store") as store:
        for texts in (A[:10], A[10:], B[:10], [*B[10:], A[0]]):
            upkeep.put(store, texts)
        upkeep.register(store, "a", A)
        upkeep.register(store, "b", B)
        yield store


def _files(store: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}


# compact


def test_compact_tells_what_it_did(
    ec: CommandLine, opened: embedcache.FeatureStore, upkeep: ModuleType
) -> None:
    record = ec.json(opened.path, "compact", "--grace", "0")
    (view,) = record["views"]
    assert view["view"] == upkeep.VIEW.fingerprint
    assert (view["shards_before"], view["shards_after"], view["rewritten"]) == (4, 1, 4)
    assert (view["duplicates"], record["deleted"]["files"]) == (1, 4)
    upkeep.assert_served(opened, A + B)
    assert "1 shard, nothing to gain" in ec.ok(opened.path, "compact")


def test_compact_in_words(ec: CommandLine, opened: embedcache.FeatureStore) -> None:
    shown = ec.ok(opened.path, "compact", "--max-shard-bytes", "1MB", "--encoding", "dictionary")
    assert "4 → 1 shard" in shown
    assert "1 text lay twice" in shown
    assert "4 files" in shown
    assert "wait for their grace" in shown


# gc


def test_gc_only_tells_unless_it_is_told_to_do_it(
    ec: CommandLine, opened: embedcache.FeatureStore, upkeep: ModuleType
) -> None:
    ec.ok(opened.path, "datasets", "delete", "b")
    before = _files(opened.path)
    for arguments in ((), ("--dry-run",)):
        record = ec.json(opened.path, "gc", "--grace", "0", *arguments)
        assert record["dry_run"]
        (view,) = record["views"]
        assert (view["texts"], view["unused_texts"], view["shards_retired"]) == (41, 20, 1)
        assert view["shards_rewritten"] == 1
        assert record["bytes_after"] == record["bytes_before"] - view["freed_bytes"]
        shown = ec.ok(opened.path, "gc", "--grace", "0", *arguments)
        assert "20 of 41 texts unused" in shown
        assert shown.endswith("nothing was deleted; --yes does it\n")
    assert _files(opened.path) == before
    record = ec.json(opened.path, "gc", "--grace", "0", "--yes")
    assert not record["dry_run"]
    assert record["retired"]["files"] == 2
    upkeep.assert_served(opened, A)
    assert not any(upkeep.present(opened, B))
    assert "dropped 0 B" in ec.ok(opened.path, "gc", "--yes", "--grace", "0")


def test_gc_drops_the_longest_unused_to_fit(
    ec: CommandLine, opened: embedcache.FeatureStore, upkeep: ModuleType
) -> None:
    upkeep.age(opened)
    opened.catalog.record_use(upkeep.VIEW.fingerprint, opened.catalog.find_dataset("a").version)
    half = ec.json(opened.path, "stats")["bytes"] * 2 // 3
    record = ec.json(opened.path, "gc", "--max-bytes", str(half), "--yes")
    (dropped,) = record["dropped"]
    assert (dropped["datasets"], dropped["view"]) == (["b"], upkeep.VIEW.fingerprint)
    assert 0 < dropped["bytes"] <= record["bytes_before"] - record["bytes_after"]
    assert record["bytes_after"] <= half
    upkeep.assert_served(opened, A)
    shown = ec.ok(opened.path, "gc", "--max-bytes", "0 B", "--grace", "0")
    assert "to fit: a@" in shown


def test_gc_lists_files_that_nothing_names(
    ec: CommandLine, opened: embedcache.FeatureStore, upkeep: ModuleType
) -> None:
    (opened.layout.tmp / "0123").write_bytes(b"1234")
    opened.layout.quarantine.mkdir()
    (opened.layout.quarantine / "old.h5").write_bytes(b"1234")
    with DatasetWriter(opened.layout.tmp) as writer:
        writer.add(embedcache.keys.keys_of_texts(A[:3]), None, None, None)
        version, _ = writer.finish()
        writer.publish(opened.layout.dataset_path(version))
    opened.catalog.add_module_digest("/nowhere", "stamp", "c" * 32)
    upkeep.age(opened, 40 * 86400)
    record = ec.json(opened.path, "gc", "--quarantine")
    assert record["garbage"] == [
        {"kind": "tmp", "path": "tmp/0123", "bytes": 4},
        {"kind": "quarantine", "path": "quarantine/old.h5", "bytes": 4},
    ]
    assert record["unregistered"] == [f"datasets/{version}"]
    assert record["modules"] == {"paths": 1, "facts": 0, "bytes": 0}
    shown = ec.ok(opened.path, "gc", "--quarantine", "--yes")
    assert "tmp: tmp/0123, 4 B" in shown
    assert "`embedcache repair` registers it" in shown
    assert not (opened.layout.quarantine / "old.h5").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("gc", "--yes", "--dry-run"), "exclude each other"),
        (("gc", "--max-bytes", "much"), "is no size; write one such as"),
        (("compact", "--max-shard-bytes", "10 parsecs"), "is no size"),
        (("compact", "--grace", "-1"), "is not in the range"),
        (("compact", "--encoding", "both"), "is not one of"),
        (("store", "push"), "Missing argument"),
        (("views", "delete"), "Missing argument"),
        (("datasets", "forget"), "Missing argument"),
    ],
    ids=str,
)
def test_wrong_usage_is_told(
    ec: CommandLine, opened: embedcache.FeatureStore, arguments: tuple[str, ...], said: str
) -> None:
    before = _files(opened.path)
    done = ec(opened.path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr.replace("\n", " ")
    assert _files(opened.path) == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [("10GB", 10**10), ("500 mb", 5 * 10**8), ("1.5GiB", 3 << 29), ("17", 17), ("2kb", 2000)],
)
def test_sizes_are_read_as_people_write_them(text: str, expected: int) -> None:
    assert size(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1", "1e9", "10 G B"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        size(text)


# Deleting


def test_dataset_is_deleted(ec: CommandLine, opened: embedcache.FeatureStore) -> None:
    version = opened.catalog.find_dataset("b").version
    record = ec.json(opened.path, "datasets", "delete", "b")
    assert record["deleted"] == [{"name": "b", "version": version}]
    assert record["bytes"] > 0
    assert "no dataset 'b'" in ec.error(opened.path, "datasets", "delete", "b")
    assert "a@" in ec.ok(opened.path, "datasets", "delete", "a", "--all")


def test_dataset_of_two_versions_asks_which(
    ec: CommandLine, opened: embedcache.FeatureStore, upkeep: ModuleType
) -> None:
    upkeep.register(opened, "a", A[:5])
    assert "--all" in ec.error(opened.path, "datasets", "delete", "a")
    assert len(ec.json(opened.path, "datasets", "delete", "a", "--all")["deleted"]) == 2


def test_view_is_deleted_with_yes_only(
    ec: CommandLine, opened: embedcache.FeatureStore, upkeep: ModuleType
) -> None:
    name = upkeep.VIEW.fingerprint[:8]
    before = _files(opened.path)
    line = ec.error(opened.path, "views", "delete", name)
    assert "4 shards, 41 texts" in line
    assert line.endswith("they are deleted with --yes")
    assert _files(opened.path) == before
    size_before = ec.json(opened.path, "stats")["bytes"]
    record = ec.json(opened.path, "views", "delete", name, "--yes", "--grace", "0")
    assert record == {
        "view": upkeep.VIEW.fingerprint, "shards": 4, "texts": 41, "bytes": size_before,
    }  # fmt: skip
    assert ec.json(opened.path, "views", "list") == {"views": []}
    assert list(opened.layout.shards.glob("*/*")) == []


def test_texts_are_forgotten_with_yes_only(
    ec: CommandLine, opened: embedcache.FeatureStore, upkeep: ModuleType, tmp_path: Path
) -> None:
    corpus = tmp_path / "gone.tsv"
    corpus.write_text("".join(["body\tid\n", *(f"{text}\t1\n" for text in A[:3])]))
    options = ("--text-field", "body", "--format", "tsv")
    before = _files(opened.path)
    line = ec.error(opened.path, "datasets", "forget", corpus, *options)
    assert "of 3 texts, the store has 4 features in 2 shards" in line
    assert line.endswith("they are removed with --yes")
    assert _files(opened.path) == before
    record = ec.json(opened.path, "datasets", "forget", corpus, *options, "--yes")
    assert (record["num_keys"], record["texts"], record["shards"]) == (3, 4, 2)
    (replaced,) = record["datasets"]
    assert (replaced["name"], replaced["num_documents"]) == ("a", 3)
    assert upkeep.traces_of(opened.path, A[:3]) == []
    upkeep.assert_served(opened, A[3:] + B)
    shown = ec.ok(opened.path, "datasets", "forget", "-", "--yes", stdin=A[5].encode() + b"\n")
    assert "removed 1 feature from 1 shard" in shown
    assert "dataset a@" in shown


def test_forgetting_a_corpus_that_cannot_be_read_touches_nothing(
    ec: CommandLine, opened: embedcache.FeatureStore, tmp_path: Path
) -> None:
    before = _files(opened.path)
    ec.error(opened.path, "datasets", "forget", tmp_path / "nope.txt", "--yes")
    ec.error(opened.path, "datasets", "forget", "-", "--yes", stdin=b"good\n\xff\n")
    assert _files(opened.path) == before


# The store as a whole


def test_info_tells_what_the_store_takes(ec: CommandLine, opened: embedcache.FeatureStore) -> None:
    record = ec.json(opened.path, "store", "info")
    assert (record["views"], record["shards"], record["texts"]) == (1, 4, 41)
    assert record["bytes"]["live"] == ec.json(opened.path, "stats")["bytes"]
    shown = ec.ok(opened.path, "store", "info")
    assert "1 view, 4 shards, 41 texts, 2 datasets, 0 runs" in shown
    assert "quarantine" in shown
    assert "free" in shown


def test_verify_tells_retired_shards_and_texts_that_lie_twice(
    ec: CommandLine, opened: embedcache.FeatureStore
) -> None:
    opened.catalog.retire_shards([opened.catalog.shards()[1].digest])
    record = ec.json(opened.path, "verify")
    assert (record["retired"], record["duplicates"], record["orphans"]) == (1, 1, [])
    shown = ec.ok(opened.path, "verify")
    assert "texts that lie twice: 1" in shown
    assert "retired shards that wait to be deleted: 1" in shown


def test_repair_brings_back_a_catalog(
    ec: CommandLine, opened: embedcache.FeatureStore, upkeep: ModuleType
) -> None:
    opened.close()
    opened.layout.catalog.write_bytes(b"not a catalog")
    assert "error: " in ec.error(opened.path, "stats")
    record = ec.json(opened.path, "repair")
    assert (record["catalog"], record["shards"], len(record["datasets"])) == ("damaged", 4, 2)
    upkeep.assert_served(opened, A + B)
    assert "nothing was amiss" in ec.ok(opened.path, "repair")
    ec.error(opened.path / "nope", "repair")


def test_repaired_run_predicts_again(ec: CommandLine, built: Built, copied: Path) -> None:
    (copied / "catalog.sqlite").unlink()
    record = ec.json(copied, "repair")
    assert (record["catalog"], record["runs"]) == ("lost", [built.train["run"]])
    before = ec.json(built.store, "predict", "last", built.texts[0])
    assert ec.json(copied, "predict", "last", built.texts[0]) == before
    again = ec.json(copied, "build", built.corpus)
    assert (again["misses"], again["version"]) == (0, built.build["version"])


# Between stores


def test_push_and_pull_copy_what_is_lacking(
    ec: CommandLine, opened: embedcache.FeatureStore, upkeep: ModuleType, tmp_path: Path
) -> None:
    away, home = tmp_path / "away", tmp_path / "home"
    record = ec.json(opened.path, "store", "push", away)
    assert (record["path"], record["shards"], record["datasets"]) == (str(away), 4, 2)
    assert ec.json(opened.path, "store", "push", away)["shards"] == 0
    shown = ec.ok(home, "store", "pull", away, "--dataset", "a")
    assert "copied 3 shards" in shown
    with embedcache.open_store(home) as store:
        upkeep.assert_served(store, A)
    assert ec.json(home, "verify")["rows"] == 31
    ec.ok(home, "store", "pull", away, "--view", upkeep.VIEW.fingerprint[:8])
    assert "4 shards had nothing new" in ec.ok(home, "store", "push", away)


def test_pull_from_nowhere_makes_nothing(ec: CommandLine, tmp_path: Path) -> None:
    assert "no embedcache store there" in ec.error(
        tmp_path / "home", "store", "pull", tmp_path / "nope"
    )
    assert "no embedcache store there" in ec.error(
        tmp_path / "nope", "store", "push", tmp_path / "away"
    )
    assert list(tmp_path.iterdir()) == []


def test_damaged_shard_is_told_by_push_and_is_status_1(
    ec: CommandLine, opened: embedcache.FeatureStore, tmp_path: Path
) -> None:
    path = next(opened.layout.shards.glob("*/*"))
    path.write_bytes(path.read_bytes()[:-1])
    done = ec(opened.path, "store", "push", tmp_path / "away", "--json")
    assert (done.returncode, done.stderr) == (1, "")
    record = json.loads(done.stdout)
    assert (record["shards"], len(record["damaged"])) == (3, 1)
    done = ec(opened.path, "store", "push", tmp_path / "third")
    assert "damaged, and not copied: shards/" in done.stdout


def test_copied_store_knows_its_view_and_module(
    ec: CommandLine, built: Built, tmp_path: Path
) -> None:
    away = tmp_path / "away"
    ec.ok(built.store, "store", "push", away)
    shutil.copy(built.corpus, tmp_path / "helpdesk.txt")
    assert ec.json(away, "build", tmp_path / "helpdesk.txt")["misses"] == 0
    assert ec.json(away, "views", "show", built.build["view"]) == ec.json(
        built.store, "views", "show", built.build["view"]
    )

"""What scripts rely on: the JSON objects' keys and types, and that nothing else is printed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedcache

CommandLine = Any
Processes = Any
Built = Any

BUILD = {
    "dataset": str, "version": str, "view": str, "module": str, "texts": int, "unique": int,
    "hits": int, "misses": int, "tokens": int, "truncated": int, "windowed": int,
    "shards": int, "bytes": int, "seconds": float, "loading_seconds": float,
    "texts_per_second": float, "fidelity": dict,
    "hint": type(None),
}  # fmt: skip
PLAN = {
    "store": str, "view": str, "module": str, "texts": int, "unique": int, "hits": int,
    "misses": int, "tokens": int, "bytes": int, "free_bytes": int,
}  # fmt: skip
TRAIN = {
    "run": str, "dataset": str, "version": str, "view": str, "seed": int, "epochs": int,
    "best_epoch": int, "dev": dict, "test": type(None), "folds": type(None), "seconds": float,
    "seconds_per_epoch": float, "input_overhead": float, "leaks": list,
}  # fmt: skip
SCORES = {"accuracy": float, "macro_f1": float, "loss": float}
MEASURED = SCORES | {"accuracy_interval": list, "auc": type(None), "ece": float}
FOLD = {"fold": int, "epochs": int, "best_epoch": int, "dev": dict, "test": dict}
VIEW = {
    "fingerprint": str, "module": str, "texts": int, "tokens": int, "bytes": int, "shards": int,
}  # fmt: skip
FIELDS = {
    "fingerprint": str, "handle": str, "schema": int, "module_digest": str, "signature": str,
    "output": str, "granularity": str, "tokenizer": str, "max_tokens": int, "overflow": str,
    "dtype": str, "dim": int, "preprocess": str, "preprocess_digest": str,
    "keep_special_tokens": bool, "num_layers": int, "context_words": int, "overlap_tokens": int,
    "checked_texts": int, "max_difference": float, "rms_error": float, "max_error": float,
}  # fmt: skip


def _types(record: Mapping[str, object]) -> dict[str, type]:
    return {name: type(value) for name, value in record.items()}


def _files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _dataset_with_test_split(built: Built, folder: Path) -> list[str]:
    lines = built.corpus.read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "a.txt").write_text("".join(lines[:90]), encoding="utf-8")
    (folder / "b.txt").write_text("".join(lines[90:]), encoding="utf-8")
    return [f"train={folder / 'a.txt'}", f"test={folder / 'b.txt'}"]


def test_build_reports_what_it_did(built: Built) -> None:
    assert _types(built.build) == BUILD
    assert built.build["dataset"] == "helpdesk"
    assert built.build["module"] == "builtin:en-words-128"
    assert (built.build["texts"], built.build["hits"], built.build["misses"]) == (120, 0, 120)
    assert built.build["shards"] == 1


def test_dry_run_reports_what_a_build_would_do(ec: CommandLine, built: Built) -> None:
    plan = ec.json(built.store, "build", built.corpus, "--dry-run")
    assert _types(plan) == PLAN
    assert plan["view"] == built.build["view"]
    assert (plan["texts"], plan["unique"], plan["hits"], plan["misses"]) == (120, 120, 120, 0)


def test_dry_run_makes_no_store_and_counts_as_the_build_does(
    ec: CommandLine, tmp_path: Path, tiny_module: str
) -> None:
    store, corpus = tmp_path / "folder" / "store", tmp_path / "a.txt"
    arguments = ("build", corpus, "--module", tiny_module)
    corpus.write_text("one two\nthree\none two\n", encoding="utf-8")
    for number in range(2):
        plan = ec.json(store, *arguments, "--dry-run")
        if number == 0:
            assert not store.parent.exists()
        report = ec.json(store, *arguments)
        same = ("view", "texts", "unique", "hits", "misses")
        assert {name: plan[name] for name in same} == {name: report[name] for name in same}
        assert report["misses"] == 2 - number
        with corpus.open("a", encoding="utf-8") as file:
            file.write("four\n")


def test_dry_run_leaves_a_store_as_it_is(ec: CommandLine, copied: Path, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("never seen\n", encoding="utf-8")
    before = _files(copied)
    assert ec.json(copied, "build", tmp_path / "new.txt", "--dry-run")["misses"] == 1
    assert _files(copied) == before


def test_dry_run_keeps_nothing_of_a_module_that_the_store_does_not_know(
    ec: CommandLine, built: Built, copied: Path, tiny_module: str
) -> None:
    before = _files(copied)
    plan = ec.json(copied, "build", built.corpus, "--dry-run", "--module", tiny_module)
    assert (plan["hits"], plan["misses"]) == (0, 120)
    assert _files(copied) == before


def test_train_reports_the_run(built: Built) -> None:
    assert _types(built.train) == TRAIN
    assert _types(built.train["dev"]) == MEASURED
    assert (built.train["epochs"], built.train["seed"]) == (2, 0)
    assert built.train["version"] == built.build["version"]
    assert built.train["view"] == built.build["view"]


def test_train_reports_the_test_split(
    ec: CommandLine, built: Built, copied: Path, tmp_path: Path
) -> None:
    sources = _dataset_with_test_split(built, tmp_path)
    assert ec.json(copied, "build", *sources)["misses"] == 0
    record = ec.json(copied, "train", "--preset", "basic", "--epochs", "1")
    assert _types(record) == TRAIN | {"test": dict}
    assert _types(record["test"]) == MEASURED


def test_train_reports_every_fold(ec: CommandLine, copied: Path) -> None:
    record = ec.json(copied, "train", "--preset", "basic", "--epochs", "1", "--folds", "2")
    assert _types(record) == TRAIN | {"test": dict, "folds": list}
    assert [fold["fold"] for fold in record["folds"]] == [0, 1]
    for fold in record["folds"]:
        assert _types(fold) == FOLD
        assert _types(fold["dev"]) == _types(fold["test"]) == SCORES


def test_get_gives_the_stored_numbers(ec: CommandLine, built: Built) -> None:
    record = ec.json(built.store, "get", built.texts[3])
    assert _types(record) == {
        "key": str, "view": str, "num_tokens": int, "dim": int, "dtype": str, "truncated": bool,
        "windowed": bool, "tokens": list, "spans": list, "token_ids": type(None), "values": list,
    }  # fmt: skip
    surfaces = [built.texts[3].encode()[start:end].decode() for start, end in record["spans"]]
    assert record["tokens"] == surfaces
    assert len(surfaces) == record["num_tokens"]
    assert "".join(surfaces) == built.texts[3].replace(" ", "")
    assert record["view"] == built.build["view"]
    assert (record["dim"], record["dtype"], record["truncated"]) == (128, "float16", False)
    values = np.array(record["values"], np.float16)
    assert values.shape == (record["num_tokens"], record["dim"])
    with embedcache.open_store(built.store, create=False) as store:
        (matrix,) = store.get(built.build["view"], [built.texts[3]])
    np.testing.assert_array_equal(values, matrix)


def test_stats_counts_what_the_store_holds(ec: CommandLine, built: Built) -> None:
    record = ec.json(built.store, "stats")
    assert _types(record) == {
        "path": str, "views": list, "datasets": int, "runs": int, "bytes": int,
    }  # fmt: skip
    (view,) = record["views"]
    assert _types(view) == VIEW
    assert view == {
        "fingerprint": built.build["view"], "module": "builtin:en-words-128", "texts": 120,
        "tokens": built.build["tokens"], "bytes": built.build["bytes"], "shards": 1,
    }  # fmt: skip
    assert record["path"] == str(built.store)
    assert (record["datasets"], record["runs"]) == (1, 1)
    assert record["bytes"] == built.build["bytes"]


def test_verify_lists_what_is_wrong(ec: CommandLine, built: Built) -> None:
    assert ec.json(built.store, "verify") == {
        "shards": 1, "rows": 120, "corrupt": [], "orphans": [], "missing": [], "fixed": False,
        "retired": 0, "duplicates": 0,
    }  # fmt: skip


def test_predict_gives_every_labels_probability(ec: CommandLine, built: Built) -> None:
    texts = [built.texts[0], built.texts[5]]
    record = ec.json(built.store, "predict", "last", *texts)
    assert set(record) == {"run", "predictions"}
    assert record["run"] == built.train["run"]
    assert [prediction["text"] for prediction in record["predictions"]] == texts
    for prediction in record["predictions"]:
        assert _types(prediction) == {
            "text": str, "label": str, "probability": float, "probabilities": dict,
        }  # fmt: skip
        probabilities = prediction["probabilities"]
        assert list(probabilities) == sorted(set(built.labels))
        assert sum(probabilities.values()) == pytest.approx(1.0, abs=1e-4)
        assert prediction["probability"] == max(probabilities.values())
        assert probabilities[prediction["label"]] == prediction["probability"]


def test_runs_are_the_objects_that_train_printed(ec: CommandLine, built: Built) -> None:
    assert ec.json(built.store, "runs", "list") == {"runs": [built.train], "unfinished": []}
    shown = ec.json(built.store, "runs", "show", "last")
    config, labels, history = (shown.pop(name) for name in ("config", "labels", "history"))
    assert {name: shown.pop(name) for name in built.train} == built.train
    assert set(shown) == {
        "task", "tags", "evaluation", "cost", "versions", "code", "platform", "started_at",
        "finished_at",
    }  # fmt: skip
    assert set(config) == {
        "preset", "embedding", "epochs", "batch_size", "batch_tokens", "length_buckets",
        "optimizer", "learning_rate", "max_norm", "dropout", "kernel_sizes", "filters",
        "class_weights", "task", "patience", "seed", "dev_fraction", "folds", "on_leak",
        "near_duplicates",
    }  # fmt: skip
    assert (config["preset"], config["epochs"]) == ("basic", 2)
    assert labels == sorted(set(built.labels))
    assert [epoch["epoch"] for epoch in history] == [1, 2]
    assert set(history[0]) == {
        "fold", "epoch", "epochs", "steps", "train_loss", "train_accuracy", "dev", "is_best",
        "seconds", "step_s", "wait_s",
    }  # fmt: skip


def test_datasets_are_listed_and_shown(ec: CommandLine, built: Built) -> None:
    (row,) = ec.json(built.store, "datasets", "list")["datasets"]
    assert _types(row) == {
        "name": str, "version": str, "texts": int, "unique": int, "created_at": float,
    }  # fmt: skip
    shown = ec.json(built.store, "datasets", "show", "helpdesk")
    digest = shown["sources"][0].pop("digest")
    assert len(digest) == 32
    assert shown == {
        "name": "helpdesk",
        "version": row["version"],
        "view": built.build["view"],
        "texts": 120,
        "unique": 120,
        "splits": {},
        "labels": {name: built.labels.count(name) for name in sorted(set(built.labels))},
        "sources": [{"path": str(built.corpus), "split": None}],
    }
    assert ec.json(built.store, "datasets", "show", f"helpdesk@{row['version'][:6]}")


def test_views_are_listed_and_shown(ec: CommandLine, built: Built) -> None:
    record = ec.json(built.store, "views", "list")
    assert set(record) == {"views"}
    assert record["views"] == ec.json(built.store, "stats")["views"]
    shown = ec.json(built.store, "views", "show", built.build["view"][:8])
    assert _types(shown) == FIELDS
    assert shown["fingerprint"] == built.build["view"]
    assert shown["handle"] == built.build["module"]


def test_an_empty_store_has_empty_lists(ec: CommandLine, tmp_path: Path) -> None:
    embedcache.open_store(tmp_path / "store").close()
    for noun in ("runs", "datasets", "views"):
        more = {"unfinished": []} if noun == "runs" else {}
        assert ec.json(tmp_path / "store", noun, "list") == {noun: [], **more}
        assert len(ec.ok(tmp_path / "store", noun, "list").splitlines()) == 1
    assert ec.json(tmp_path / "store", "stats")["views"] == []


def test_json_is_alone_on_stdout_and_no_library_talks(
    process: Processes, built: Built, tmp_path: Path, tiny_module: str
) -> None:
    store = ("--store", tmp_path / "store")
    commands = (
        ("build", built.corpus, "--module", tiny_module),
        ("train", "--preset", "basic", "--epochs", "1"),
        ("predict", "last", "a text that nobody has seen"),
    )
    for command in commands:
        done = process(*store, *command, "--json")
        assert done.returncode == 0, done.stderr
        assert isinstance(json.loads(done.stdout), dict)
        # A build that takes longer than ten seconds tells how far it is.
        assert all(" texts/s" in line for line in done.stderr.splitlines())


def test_without_json_only_our_own_lines_go_to_stderr(ec: CommandLine, copied: Path) -> None:
    done = ec(copied, "train", "--preset", "basic", "--epochs", "2")
    assert done.returncode == 0
    assert all(line.startswith("epoch ") for line in done.stderr.splitlines())
    assert len(done.stderr.splitlines()) == 2
    assert done.stdout.splitlines()[-1].startswith("run ")

"""The way through the commands that the README shows, on the bundled example."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

CommandLine = Any
Processes = Any
Built = Any


def test_a_second_build_computes_nothing(ec: CommandLine, built: Built, copied: Path) -> None:
    record = ec.json(copied, "build", built.corpus)
    assert (record["hits"], record["misses"], record["shards"]) == (120, 0, 0)
    assert record["version"] == built.build["version"]
    lines = ec.ok(copied, "build", built.corpus).splitlines()
    assert lines[0] == "120 texts, 120 distinct: 120 hits, 0 misses"
    assert lines[-1].startswith(f"dataset helpdesk@{record['version'][:12]}, view ")


def test_a_build_says_what_it_computed(ec: CommandLine, tmp_path: Path, tiny_module: str) -> None:
    (tmp_path / "a.txt").write_text("one two\none two three four\n", encoding="utf-8")
    options = ("--module", tiny_module, "--max-tokens", "3")
    lines = ec.ok(tmp_path / "store", "build", tmp_path / "a.txt", *options).splitlines()
    assert lines[0] == "2 texts, 2 distinct: 0 hits, 2 misses"
    assert re.fullmatch(r"5 tokens, 1 texts? cut in 1 new shard, \d\.\d kB", lines[1])
    assert re.fullmatch(
        r"checked alone against the module: 2 texts, largest difference 0\.\d+", lines[2]
    )
    assert re.fullmatch(
        r"storing changed the numbers by [\d.e-]+ of their size, one by up to [\d.e-]+ of the"
        r" largest in its row",
        lines[3],
    )
    assert re.fullmatch(r"\d+\.\d\d s, [\d,]+ texts/s", lines[4])


def test_a_dry_run_says_that_nothing_was_written(ec: CommandLine, built: Built) -> None:
    lines = ec.ok(built.store, "build", built.corpus, "--dry-run").splitlines()
    assert lines[0] == "120 texts, 120 distinct: 120 hits, 0 misses"
    assert lines[-1] == "nothing was written (--dry-run)"


def test_a_run_labels_texts_that_are_given(ec: CommandLine, built: Built) -> None:
    lines = ec.ok(built.store, "predict", "last", built.texts[0], built.texts[1]).splitlines()
    assert len(lines) == 2
    for line, text in zip(lines, built.texts, strict=False):
        label, share, shown = line.split("\t")
        assert label in built.labels
        assert re.fullmatch(r"\d+\.\d %", share)
        assert shown == text


def test_a_run_labels_the_lines_of_standard_input(
    ec: CommandLine, built: Built, copied: Path
) -> None:
    given = f"{built.texts[0]}\r\n\n{built.texts[1]}".encode()
    named = ec.json(copied, "predict", "last", built.texts[0], "", built.texts[1])
    for arguments in (("-",), ()):
        assert ec.json(copied, "predict", "last", *arguments, stdin=given) == named


def test_a_run_labels_texts_that_were_never_seen_and_keeps_their_features(
    ec: CommandLine, copied: Path
) -> None:
    text = "My parcel never came — where is it? ☂"
    assert "no features" in ec.error(copied, "get", text)
    record = ec.json(copied, "predict", "last", text)
    assert record["predictions"][0]["text"] == text
    assert ec.json(copied, "get", text)["num_tokens"] > 5
    assert ec.json(copied, "predict", "last", text) == record


def test_runs_are_listed_and_shown(ec: CommandLine, built: Built) -> None:
    name = built.train["run"]
    header, row = ec.ok(built.store, "runs", "list").splitlines()
    assert header.split() == ["run", "dataset", "seed", "dev", "test", "finished"]
    assert row.split()[:3] == [name, "helpdesk", "0"]
    for wanted in (name, name[:-2], "last"):
        shown = ec.ok(built.store, "runs", "show", wanted)
        assert re.search(rf"^run +{name}$", shown, re.MULTILINE)
        assert "'learning_rate': 0.001" in shown


def test_stats_and_verify_are_readable(ec: CommandLine, built: Built) -> None:
    lines = ec.ok(built.store, "stats").splitlines()
    assert lines[0].startswith(f"{built.store}: ")
    assert lines[1] == "1 dataset, 1 run"
    assert lines[3].split()[:3] == [built.build["view"][:12], built.build["module"], "120"]
    lines = ec.ok(built.store, "verify").splitlines()
    assert lines[0].endswith(", 120 texts")
    assert lines[-1] == "nothing wrong"


def test_datasets_and_views_are_readable(ec: CommandLine, built: Built) -> None:
    _, row = ec.ok(built.store, "datasets", "list").splitlines()
    assert row.split()[:3] == ["helpdesk", built.build["version"][:12], "120"]
    assert "'billing': 23" in ec.ok(built.store, "datasets", "show", "helpdesk")
    _, row = ec.ok(built.store, "views", "list").splitlines()
    assert row.split() == [built.build["view"][:12], built.build["module"], "120"]
    shown = ec.ok(built.store, "views", "show", built.build["view"])
    assert re.search(r"^dtype +float16$", shown, re.MULTILINE)


def test_a_stored_text_is_shown_and_another_is_not(ec: CommandLine, built: Built) -> None:
    first, second, *rows = ec.ok(built.store, "get", built.texts[2]).splitlines()
    assert first.startswith("key ")
    assert second == f"{len(rows)} tokens × 128 float16"
    line = ec.error(built.store, "get", built.texts[2] + " ")
    assert built.build["view"][:12] in line
    assert "`embedcache build`" in line


def test_the_store_is_the_one_of_the_environment_unless_it_is_named(
    process: Processes, ec: CommandLine, built: Built, tmp_path: Path
) -> None:
    named = process("--store", built.store, "stats", EMBEDCACHE_STORE=str(tmp_path))
    given = process("stats", EMBEDCACHE_STORE=str(built.store))
    default = process("stats", XDG_DATA_HOME=str(tmp_path), HOME=str(tmp_path))
    assert named.stdout == given.stdout == ec.ok(built.store, "stats")
    assert default.returncode == 1
    assert str(tmp_path) in default.stderr


def test_a_tilde_is_the_home_folder(
    ec: CommandLine, built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(built.store.parent))
    assert ec.ok(Path("~") / built.store.name, "stats") == ec.ok(built.store, "stats")
    assert not os.path.exists("~")

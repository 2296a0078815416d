"""`embedcache modules convert`, and builds with what it makes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cli.convert import _COMBINERS, _FORMATS
from embedcache.modules.convert.vector_files import FORMATS
from embedcache.modules.convert.word_vectors import COMBINERS
from tests.embedcache.modules.bert_checkpoints import CONFIG, random_tensors, write_checkpoint

CommandLine = Any
Processes = Any


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty module cache, which is the test's default one."""
    path = tmp_path / "modules"
    monkeypatch.setenv("EMBEDCACHE_MODULES", str(path))
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("the cat sat\na good film\nthe cat sat\n", encoding="utf-8")
    return path


def _of(record: Mapping[str, Any], handle: object) -> dict[str, Any]:
    (found,) = [module for module in record["modules"] if module["handle"] == str(handle)]
    return dict(found)


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    path = tmp_path / "vectors.txt"
    path.write_text("the 0.5 1 2\ncat 1 0 -1\nsat 0 0.25 1\nthe 9 9 9\n", encoding="utf-8")
    return path


def test_converted_vectors_can_be_built_with_by_the_command_that_is_printed(
    ec: CommandLine, store: Path, tmp_path: Path, corpus: Path, vectors: Path
) -> None:
    target = tmp_path / "my vectors"
    lines = ec.ok(store, "modules", "convert", "vectors", vectors, target).splitlines()
    assert lines[:2] == [
        f"wrote {target}", "3 words of 3 numbers (glove); 1 word stood there again",
    ]  # fmt: skip
    words = shlex.split(lines[2].removeprefix("next: embedcache "))
    assert words == ["build", "CORPUS", "--module", str(target)]
    build = ec.json(store, words[0], corpus, *words[2:])
    assert build["misses"] == 2
    matrix = ec.json(store, "get", "the cat sat", "--view", build["view"])["values"]
    assert matrix == [[0.5, 1, 2], [1, 0, -1], [0, 0.25, 1]]
    report = ec.json(store, "modules", "inspect", target)
    assert (report["kind"], report["combiner"]) == ("bag-of-words", "sqrtn")


def test_options_of_vectors_reach_the_module(
    ec: CommandLine, store: Path, tmp_path: Path, vectors: Path
) -> None:
    target = tmp_path / "module"
    record = ec.json(
        store, "modules", "convert", "vectors", vectors, target, "--format", "glove",
        "--combiner", "mean", "--lower-case", "--max-words", "2",
    )  # fmt: skip
    assert record == {
        "module": str(target), "format": "glove", "vocab_size": 2, "dim": 3, "duplicates": 0,
    }  # fmt: skip
    assert ec.json(store, "modules", "inspect", target)["combiner"] == "mean"


def test_vectors_that_cannot_be_converted_are_one_line(
    ec: CommandLine, store: Path, tmp_path: Path, vectors: Path
) -> None:
    convert = ("modules", "convert", "vectors")
    assert "nope.txt: No such file" in ec.error(store, *convert, "nope.txt", tmp_path / "m")
    line = ec.error(store, *convert, vectors, tmp_path)
    assert f"{tmp_path}: holds files already" in line
    vectors.write_text("the 1 2\ncat 1\n", encoding="utf-8")
    assert "vectors.txt:2" in ec.error(store, *convert, vectors, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_choices_are_those_of_the_conversion() -> None:
    assert _FORMATS == FORMATS
    assert _COMBINERS == COMBINERS


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    settings = CONFIG | {"model_type": "bert", "max_position_embeddings": 160}
    write_checkpoint(tmp_path / "checkpoint", settings, random_tensors(settings))
    return tmp_path / "checkpoint"


def test_converted_bert_can_be_built_with_by_the_command_that_is_printed(
    ec: CommandLine, store: Path, tmp_path: Path, corpus: Path, checkpoint: Path
) -> None:
    target = tmp_path / "hub"
    *said, last = ec.ok(store, "modules", "convert", "bert", checkpoint, target).splitlines()
    assert said[0] == f"wrote {target / 'encoder'} and {target / 'preprocess'}"
    assert said[1].startswith(f"{CONFIG['num_hidden_layers']} layers of {CONFIG['hidden_size']}")
    words = shlex.split(last.removeprefix("next: embedcache "))
    assert words == ["build", "CORPUS", "--module", str(target / "encoder")]
    build = ec.json(store, words[0], corpus, *words[2:], "--layer", "mean")
    assert (build["misses"], build["fidelity"]["texts"] > 0) == (2, True)
    fields = ec.json(store, "views", "show", build["view"])
    assert fields["dim"] == CONFIG["hidden_size"]
    used = _of(ec.json(store, "modules", "list"), target / "preprocess")["views"]
    assert used == [{"fingerprint": build["view"], "texts": 2}]


def test_conversion_of_bert_reports_as_json(
    ec: CommandLine, store: Path, tmp_path: Path, checkpoint: Path
) -> None:
    target = tmp_path / "hub"
    record = ec.json(
        store, "modules", "convert", "bert", checkpoint, target, "--max-seq-length", "8"
    )
    assert record == {
        "module": str(target / "encoder"), "preprocess": str(target / "preprocess"),
        "layers": CONFIG["num_hidden_layers"], "dim": CONFIG["hidden_size"],
        "vocab_size": CONFIG["vocab_size"], "max_length": 160,
        "lower_case": record["lower_case"],
    }  # fmt: skip
    report = ec.json(store, "modules", "inspect", target / "preprocess")
    (call,) = report["calls"]
    assert {tuple(spec["shape"]) for spec in call["outputs"]} == {(None, 8)}


def test_checkpoint_that_cannot_be_converted_is_one_line(
    ec: CommandLine, store: Path, tmp_path: Path, checkpoint: Path
) -> None:
    convert = ("modules", "convert", "bert")
    line = ec.error(store, *convert, tmp_path / "nope", tmp_path / "hub")
    assert "config.json" in line
    line = ec.error(store, *convert, checkpoint, tmp_path / "hub", "--max-seq-length", "4000")
    assert "not 4000: give another --max-seq-length" in line
    (checkpoint / "config.json").write_text(json.dumps(CONFIG | {"model_type": "gpt2"}))
    assert "only 'bert' can be converted" in ec.error(store, *convert, checkpoint, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()

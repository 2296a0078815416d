"""`export` and `import`: what they print, their JSON, and their errors."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

CommandLine = Any
Processes = Any
Built = Any


@pytest.fixture
def features(built: Built, tmp_path: Path) -> Path:
    """HDF5 of one dataset a line for the corpus of `built`, three layers of four numbers."""
    path = tmp_path / "elmo.hdf5"
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for number, text in enumerate(built.texts):
            shape = (3, len(text.split()), 4)
            file.create_dataset(
                str(number), shape, dtype="float32", data=rng.standard_normal(shape)
            )
    return path


def test_export_tells_what_it_wrote(ec: CommandLine, built: Built, tmp_path: Path) -> None:
    target = tmp_path / "a.npz"
    record = ec.json(built.store, "export", "helpdesk", "--to", target)
    assert set(record) == {
        "path", "format", "dataset", "version", "view", "split", "texts", "tokens", "dim", "dtype",
        "bytes", "seconds",
    }  # fmt: skip
    assert record["path"] == str(target)
    assert (record["format"], record["dataset"], record["split"]) == ("npz", "helpdesk", None)
    assert (record["version"], record["view"]) == (built.build["version"], built.build["view"])
    assert (record["texts"], record["dim"], record["dtype"]) == (120, 128, "float16")
    assert record["bytes"] == target.stat().st_size
    said = ec.ok(built.store, "export", "--to", target, "--force")
    first, second = said.splitlines()
    assert first.startswith("120 texts, ")
    assert second.startswith(f"dataset helpdesk@{record['version'][:12]}, view ")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--to", "a.csv"), "its ending names no format"),
        (("nope", "--to", "a.npz"), "no dataset 'nope'"),
        (("--to", "a.npz", "--view", "ffff"), "no view 'ffff'"),
        (("--to", "a.npz", "--split", "dev"), "has no split 'dev'"),
        (("--to", "no/a.npz"), "there is no folder"),
    ],
)
def test_export_that_cannot_be_is_one_line(
    ec: CommandLine, built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...], match: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert match in ec.error(built.store, "export", *arguments)
    assert os.listdir(tmp_path) == []


def test_export_without_a_place_is_wrong_usage(ec: CommandLine, built: Built) -> None:
    done = ec(built.store, "export")
    assert done.returncode == 2
    assert "--to" in done.stderr


def test_import_train_and_all_else_on_the_view(
    ec: CommandLine, built: Built, features: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    call = ("import", features, "--texts", built.corpus, "--as", "elmo")
    record = ec.json(store, *call)
    assert set(record) == {
        "dataset", "version", "view", "module", "texts", "unique", "hits", "misses", "tokens",
        "differing", "blank", "layers", "dim", "dtype", "shards", "bytes", "seconds",
    }  # fmt: skip
    assert (record["dataset"], record["module"]) == ("helpdesk", "imported:elmo")
    assert (record["texts"], record["layers"], record["dim"]) == (120, 3, 12)
    assert record["hits"] + record["misses"] == record["unique"]
    again = ec.ok(store, *call).splitlines()
    assert again[0] == f"120 texts, {record['unique']} distinct: {record['unique']} hits, 0 misses"
    assert again[-1].endswith("(imported:elmo)")

    assert ec.json(store, "get", built.texts[0])["dim"] == 12
    (view,) = ec.json(store, "stats")["views"]
    assert (view["module"], view["texts"]) == ("imported:elmo", record["unique"])
    assert ec.json(store, "verify")["corrupt"] == []
    assert ec.json(store, "export", "--to", tmp_path / "a.npz")["texts"] == 120
    ec.ok(store, "modules", "list")
    ec.ok(store, "views", "show", record["view"])
    run = ec.json(store, "train", "--preset", "basic", "--epochs", "1")
    assert run["view"] == record["view"]
    assert len(ec.json(store, "predict", "last", built.texts[0])["predictions"]) == 1
    assert "its features were imported" in ec.error(store, "predict", "last", "never seen before")
    wrong = ec.error(store, "build", built.corpus, "--module", "imported:elmo")
    assert "imported:elmo: names features that were imported" in wrong


def test_import_takes_splits_and_fields_as_build_does(ec: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("body,class,number\nx y,p,7\n")
    (tmp_path / "b.csv").write_text("body,class,number\nz,q,8\n")
    np.savez(tmp_path / "f.npz", np.ones((2, 3), np.float16), np.ones((1, 3), np.float16))
    record = ec.json(
        tmp_path / "store", "import", tmp_path / "f.npz", "--as", "mine",
        "--texts", f"train={tmp_path / 'a.csv'}", "--texts", f"test={tmp_path / 'b.csv'}",
        "--texts-format", "csv", "--text-field", "body", "--label-field", "class",
        "--id-field", "number", "--dataset", "named", "--dtype", "float32",
    )  # fmt: skip
    assert (record["dataset"], record["dtype"]) == ("named", "float32")
    shown = ec.json(tmp_path / "store", "datasets", "show", "named")
    assert shown["labels"] == {"p": 1, "q": 1}
    assert shown["splits"] == {"train": 1, "test": 1}


def test_import_says_what_was_not_kept(ec: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a b\n\na b\n")
    with h5py.File(tmp_path / "e.hdf5", "w") as file:
        file["0"] = np.ones((2, 3), np.float32)
        file["1"] = np.zeros((2, 3), np.float32)
    said = ec.ok(
        tmp_path / "store", "import", tmp_path / "e.hdf5", "--texts", tmp_path / "t.txt",
        "--as", "elmo", "--format", "allennlp",
    )  # fmt: skip
    lines = said.splitlines()
    assert lines[0] == "3 texts, 2 distinct: 0 hits, 2 misses"
    assert lines[1].startswith("2 tokens × 3 float32 in 1 new shard, ")
    assert lines[2] == "1 blank line: kept as texts of no tokens"
    assert lines[3].startswith("1 text with other features than were kept")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("nope.hdf5", "--as", "x", "--texts", "t.txt"), "nope.hdf5: No such file"),
        (("t.txt", "--as", "x", "--texts", "t.txt"), "neither .npz nor HDF5"),
        (("f.npz", "--as", "x"), "name the text file with --texts"),
        (("f.npz", "--as", "x", "--texts", "nope.txt"), "nope.txt: no such file"),
        (("f.npz", "--as", "", "--texts", "t.txt"), "cannot name imported features"),
        (("f.npz", "--as", "x", "--texts", "t.txt", "--dataset", "a@b"), "cannot name a dataset"),
        (("f.npz", "--as", "x", "--texts", "t.txt", "--layer", "1"), "leave --layer 1 out"),
        (("f.npz", "--as", "x", "--texts", "t.txt", "--text-field", "y"), "--text-field is given"),
    ],
)
def test_import_that_cannot_be_is_one_line(
    ec: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...], match: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text("a\n")
    np.savez(tmp_path / "f.npz", np.ones((1, 3), np.float32))
    assert match in ec.error(tmp_path / "store", "import", *arguments)


def test_import_without_a_name_is_wrong_usage(ec: CommandLine, tmp_path: Path) -> None:
    done = ec(tmp_path / "store", "import", "f.npz")
    assert done.returncode == 2
    assert "--as" in done.stderr


def test_import_and_export_of_npz_load_no_tensorflow(
    process: Processes, built: Built, features: Path, tmp_path: Path
) -> None:
    program = (
        "import sys; from cli.main import run; status = run(sys.argv[1:]);"
        "print(status, *{'tensorflow', 'keras', 'pyarrow', 'datasets'} & set(sys.modules))"
    )
    store = tmp_path / "store"
    for words in (
        ("import", features, "--texts", built.corpus, "--as", "elmo"),
        ("export", "--to", tmp_path / "a.npz"),
    ):
        done = process("--store", store, *words, program=(sys.executable, "-c", program))
        assert done.stdout.splitlines()[-1] == "0", done.stderr

"""`embedcache modules inspect`, on real modules of every kind."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import embedcache
from embedcache.modules.handles import files_digest
from tests.embedcache.modules.hub_subjects import HubModules, shared_hub_modules

CommandLine = Any
Processes = Any

ROOT = Path(__file__).resolve().parents[2]
BUILTIN = "builtin:en-words-128"
REPORT = {
    "handle": str, "path": str, "files": int, "bytes": int, "digest": str, "pinned": str,
    "pin_agrees": bool, "format": str, "signatures": list, "calls": list, "kind": str,
    "called": str, "output": str, "dim": int, "tokenizer": str, "combiner": type(None),
    "layers": list, "outputs": list, "max_length": int, "vocab_size": int, "special_ids": dict,
    "preprocess": str, "usable": bool, "reason": type(None), "build": str, "granularity": str,
    "row_dim": int, "dtype": str,
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty module cache, which is the test's default one."""
    path = tmp_path / "modules"
    monkeypatch.setenv("EMBEDCACHE_MODULES", str(path))
    return path


@pytest.fixture(scope="module")
def hub(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> HubModules:
    return shared_hub_modules(pytestconfig, tmp_path_factory)


@pytest.fixture
def changeable(tmp_path: Path, tiny_module: str) -> Path:
    """A copy of the tiny module that the test may change."""
    return Path(shutil.copytree(tiny_module, tmp_path / "changeable"))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("the cat sat\na good film\nthe cat sat\n", encoding="utf-8")
    return path


def _types(record: Mapping[str, object]) -> dict[str, type]:
    return {name: type(value) for name, value in record.items()}


def _change(module: Path) -> str:
    """Change a module's files; their digest now."""
    (module / "assets").mkdir(exist_ok=True)
    (module / "assets" / "extra").write_bytes(b"changed")
    return files_digest(module)


def test_inspect_reports_an_encoder_with_its_preprocessor(
    ec: CommandLine, store: Path, hub: HubModules
) -> None:
    encoder, preprocess = hub.path("bert"), hub.preprocess("bert")
    ec.ok(store, "modules", "pin", encoder)
    report = ec.json(store, "modules", "inspect", encoder, "--preprocess", preprocess)
    assert _types(report) == REPORT
    files = [path for path in encoder.rglob("*") if path.is_file()]
    assert report["files"] == len(files)
    assert report["bytes"] == sum(path.stat().st_size for path in files)
    assert report["digest"] == report["pinned"] == files_digest(encoder)
    assert (report["pin_agrees"], report["usable"]) == (True, True)
    assert report["kind"] == "preprocessed-encoder"
    assert (report["called"], report["output"]) == ("__call__", "sequence_output")
    assert report["layers"] == [{"name": "1", "dim": 8}, {"name": "2", "dim": 8}]
    assert report["special_ids"] == {"before": [5], "after": [6]}
    assert (report["max_length"], report["vocab_size"]) == (160, 162)
    assert report["preprocess"] == str(preprocess)
    (call,) = report["calls"]
    assert {spec["name"]: (spec["dtype"], spec["shape"]) for spec in call["inputs"]} == {
        name: ("int32", [None, None]) for name in ("input_word_ids", "input_mask", "input_type_ids")
    }
    assert {"name": "default", "dtype": "float32", "shape": [None, 8]} in call["outputs"]
    assert "--layer can be 1 to 2, sequence_output, mean, all;" in report["build"]


@pytest.mark.parametrize(
    ("name", "kind", "saved_format", "row"),
    [
        ("nnlm-tf1", "bag-of-words", "TF1 Hub module", "the vector of one token: 8 numbers"),
        ("nnlm", "bag-of-words", "TF2 SavedModel", "the vector of one token: 8 numbers"),
        ("use", "sentence-encoder", "TF2 SavedModel", "the vector of one sentence: 16 numbers"),
        ("use-lite", "sentence-encoder", "TF1 Hub module", "the vector of one sentence"),
        ("elmo", "elmo", "TF1 Hub module", "elmo of one word: 16 numbers"),
        ("tf1-bert", "tf1-bert", "TF1 Hub module", "sequence_output of one word piece: 8 numbers"),
    ],
)
def test_inspect_tells_what_a_row_of_each_kind_is(
    ec: CommandLine, store: Path, hub: HubModules, corpus: Path, name: str, kind: str,
    saved_format: str, row: str,
) -> None:  # fmt: skip
    path = hub.path(name)
    report = ec.json(store, "modules", "inspect", path)
    assert (report["kind"], report["format"], report["usable"]) == (kind, saved_format, True)
    assert f"A row is {row}" in report["build"]
    assert report["signatures"] or report["calls"]
    assert not store.exists()
    # What it says is what a build makes, also where rows are stored once that come often.
    lines = [f"the cat sat . The cat sat . And {number} ." for number in range(50)]
    corpus.write_text("\n".join(lines), encoding="utf-8")
    view = ec.json(store, "build", corpus, "--module", path)["view"]
    fields = ec.json(store, "views", "show", view)
    assert (report["granularity"], report["row_dim"], report["dtype"]) == (
        fields["granularity"], fields["dim"], fields["dtype"],
    )  # fmt: skip
    with embedcache.open_store(store) as opened:
        (shard,) = (opened.layout.shards / view).iterdir()
    assert ("dictionary encoding" in report["build"]) == _is_dictionary(shard)


def _is_dictionary(shard: Path) -> bool:
    import h5py

    with h5py.File(shard) as file:
        return "dictionary" in file


def test_inspect_prints_lines_for_a_person(ec: CommandLine, tmp_path: Path) -> None:
    lines = ec.ok(tmp_path / "store", "modules", "inspect", BUILTIN).splitlines()
    fields = dict(line.split("  ", 1) for line in lines if "  " in line)
    assert fields["kind"].strip() == "bag-of-words"
    assert fields["combiner"].strip() == "sqrtn"
    assert fields["pinned"].strip() == "no"
    assert fields["__call__"].strip() == "text string (?) → float32 (?, 128)"
    assert lines[-1].startswith("build: A row is the vector of one token: 128 numbers in float16;")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("image", "does not take a batch of strings"),
        ("no-signature", "neither callable nor with a signature for texts"),
        ("wrong-signature", "its signatures: response_encoder("),
        ("rank3", "returned shape (2, 2, 8) for 2 texts"),
        ("bert", "no preprocessor is known for it"),
    ],
)
def test_what_a_build_refuses_inspect_tells_with_the_same_reason(
    ec: CommandLine, store: Path, hub: HubModules, corpus: Path, name: str, reason: str
) -> None:
    path = hub.path(name)
    report = ec.json(store, "modules", "inspect", path)
    assert (report["usable"], report["build"], report["row_dim"]) == (False, None, None)
    assert reason in report["reason"]
    assert ec.ok(store, "modules", "inspect", path).splitlines()[-1] == (
        f"build refuses: {report['reason']}"
    )
    assert ec.error(store, "build", corpus, "--module", path) == f"error: {report['reason']}"


def test_json_is_alone_also_where_a_module_is_refused(
    process: Processes, store: Path, hub: HubModules
) -> None:
    done = process("--store", store, "modules", "inspect", hub.path("image"), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["usable"] is False
    done = process("--store", store, "modules", "inspect", hub.path("custom-op-missing"), "--json")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)


def test_preprocessor_is_told_to_be_one(ec: CommandLine, store: Path, hub: HubModules) -> None:
    report = ec.json(store, "modules", "inspect", hub.preprocess("bert-call-only"))
    assert (report["kind"], report["usable"]) == ("preprocessor", False)
    assert "is a preprocessor; name its encoder with --module" in report["reason"]
    assert report["special_ids"] == {"before": [5], "after": [6]}
    assert report["max_length"] == 128


def test_preprocessor_that_cuts_is_the_limit_of_its_encoder(
    ec: CommandLine, store: Path, hub: HubModules
) -> None:
    encoder, preprocess = hub.path("bert-call-only"), hub.preprocess("bert-call-only")
    report = ec.json(store, "modules", "inspect", encoder, "--preprocess", preprocess)
    assert (report["usable"], report["max_length"]) == (True, 128)


def test_wrong_preprocessor_is_a_reason_and_one_that_is_not_there_an_error(
    ec: CommandLine, store: Path, hub: HubModules, tiny_module: str
) -> None:
    encoder = hub.path("bert")
    report = ec.json(store, "modules", "inspect", encoder, "--preprocess", tiny_module)
    reason = f"{tiny_module}: is no preprocessor but of the kind bag-of-words; name the one that"
    assert report["reason"].startswith(reason)
    report = ec.json(store, "modules", "inspect", tiny_module, "--preprocess", encoder)
    assert report["reason"].endswith("(bag-of-words); leave --preprocess out")
    line = ec.error(store, "modules", "inspect", encoder, "--preprocess", "nothing-there")
    assert line.startswith("error: nothing-there: no such folder")


@pytest.mark.parametrize("command", ["inspect", "fetch", "pin"])
@pytest.mark.parametrize(
    ("handle", "said"),
    [
        ("nothing-there", "no such folder"),
        ("", "handle is empty"),
        ("ftp://example.org/m", "cannot start with ftp://"),
        ("builtin:nope", "no built-in module is named 'nope'"),
        ("corpus.txt", "is a file, not a folder"),
        ("nothing-there.tar.gz", "the archive cannot be read"),
        ("corpus.tar.gz", "is not a gzipped archive"),
    ],
    ids=str,
)
def test_handle_of_nothing_is_one_line_and_makes_nothing(
    ec: CommandLine, store: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, command: str,
    handle: str, said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(corpus.parent)
    shutil.copy(corpus, "corpus.tar.gz")
    assert said in ec.error(store, "modules", command, handle)
    assert not store.exists()


def test_module_that_cannot_be_loaded_is_an_error(
    ec: CommandLine, store: Path, hub: HubModules
) -> None:
    path = hub.path("custom-op-missing")
    line = ec.error(store, "modules", "inspect", path)
    assert "SentencepieceTokenizeOp" in line
    assert "tensorflow-text" in line


def test_damaged_module_is_an_error(ec: CommandLine, store: Path, changeable: Path) -> None:
    (changeable / "saved_model.pb").write_bytes(b"no protocol buffer")
    assert "cannot be loaded as a SavedModel" in ec.error(store, "modules", "inspect", changeable)
    (changeable / "saved_model.pb").unlink()
    assert "no SavedModel there" in ec.error(store, "modules", "inspect", changeable)


def test_inspect_writes_nothing_to_the_store(
    ec: CommandLine, store: Path, tiny_module: str, corpus: Path
) -> None:
    ec.ok(store, "build", corpus)
    before = ec.json(store, "modules", "list")
    assert ec.json(store, "modules", "inspect", tiny_module)["pinned"] is None
    assert ec.json(store, "modules", "list") == before


def test_changed_module_is_told_and_pin_accepts_it(
    ec: CommandLine, store: Path, corpus: Path, changeable: Path
) -> None:
    ec.ok(store, "build", corpus, "--module", changeable)
    old = files_digest(changeable)
    new = _change(changeable)
    report = ec.json(store, "modules", "inspect", changeable)
    assert (report["digest"], report["pinned"], report["pin_agrees"]) == (new, old, False)
    assert (report["usable"], report["kind"]) == (False, "bag-of-words")
    assert f"`embedcache modules pin {changeable}`" in report["reason"]
    shown = ec.ok(store, "modules", "inspect", changeable)
    assert f"{old}: the files have changed" in shown
    said = ec.ok(store, "modules", "pin", changeable)
    assert said == f"{changeable}: pinned {new} (before: {old}) in {store}\n"
    assert ec.json(store, "modules", "inspect", changeable)["usable"] is True
    assert ec.json(store, "build", corpus, "--module", changeable)["misses"] == 2


def test_keys_of_the_report_are_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    section = text.split("embedcache modules inspect HANDLE")[1].split("embedcache modules fetch")[
        0
    ]
    named = set(re.findall(r"\b[a-z_]+\b", " ".join(re.findall(r"`([^`]+)`", section))))
    assert set(REPORT) | {"before", "after", "name", "dtype", "shape", "dim"} <= named

"""A module that cannot be used is told in one line, and leaves the store as it was."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embedcache.errors import ModuleMemoryError
from embedcache.modules.handles import files_digest
from embedcache.modules.sequences import PieceEncoder
from tests.cli.conftest import CommandLine
from tests.embedcache.modules.hub_subjects import HubModules, shared_hub_modules

# Of the two lengths in each pair the encoder pads the shorter to the longer.
PADDED = [" ".join(["the"] * length) for length in (34, 35, 44, 45, 58, 59)]


@pytest.fixture(scope="module")
def hub(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> HubModules:
    return shared_hub_modules(pytestconfig, tmp_path_factory)


@pytest.fixture(scope="module")
def ec() -> CommandLine:
    return CommandLine()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., Path]:
    """Writes texts to a file, a line each."""

    def write(*texts: str) -> Path:
        path = tmp_path / "corpus.txt"
        path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        return path

    return write


def require_clean(ec: CommandLine, store: Path, *, texts: int = 0) -> None:
    """Fail unless the store is well and holds so many texts."""
    found = ec.json(store, "verify")
    assert (found["corrupt"], found["orphans"], found["missing"]) == ([], [], [])
    assert found["rows"] == texts
    assert found["shards"] == (texts > 0)


def copied(source: Path | None, target: Path) -> Path:
    """A copy that a test may damage."""
    assert source is not None
    return Path(shutil.copytree(source, target))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("image", "not a text module"),
        ("no-signature", "its signatures: none"),
        ("wrong-signature", r"its signatures: response_encoder\("),
        ("rank3", r"returned shape \(2, 2, 8\)"),
        ("classifier-ints", r"returned shape \(2,\)"),
        ("custom-op-missing", "tensorflow-text"),
    ],
)
def test_what_is_no_text_module_is_refused(
    name: str, says: str, ec: CommandLine, hub: HubModules, store: Path, corpus: Any
) -> None:
    line = ec.error(store, "build", corpus("a cat"), *hub.arguments(name))
    assert line.startswith(f"error: {hub.path(name)}: ")
    assert re.search(says, line), line
    require_clean(ec, store)
    assert ec.json(store, "views", "list")["views"] == []


def test_no_module_there_is_told(ec: CommandLine, store: Path, corpus: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text", encoding="utf-8")
    for name in ("absent", "empty", "file"):
        line = ec.error(store, "build", corpus("a cat"), "--module", tmp_path / name)
        assert str(tmp_path / name) in line
    require_clean(ec, store)


def _without_variables(path: Path) -> None:
    shutil.rmtree(path / "variables")


def _without_an_asset(path: Path) -> None:
    (path / "assets" / "tokens.txt").unlink()


def _cut(name: str) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        (file,) = path.glob(name)
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])

    return cut


def _emptied(path: Path) -> None:
    (path / "saved_model.pb").write_bytes(b"")


def _unfinished(path: Path) -> None:
    (path / "saved_model.pb").rename(path / "saved_model.pb.part")


@pytest.mark.parametrize(
    "damage",
    [
        _without_variables,
        _without_an_asset,
        _cut("saved_model.pb"),
        _cut("variables/variables.data*"),
        _cut("variables/variables.index"),
        _emptied,
        _unfinished,
    ],
)
@pytest.mark.parametrize("name", ["nnlm", "nnlm-tf1"])
def test_half_a_download_is_refused(
    name: str, damage: Any, ec: CommandLine, hub: HubModules, store: Path, corpus: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    path = copied(hub.path(name), tmp_path / "module")
    damage(path)
    line = ec.error(store, "build", corpus("a cat"), "--module", path)
    assert line.startswith(f"error: {path}: ")
    assert "fetch it again" in line
    assert 'File "' not in line, "TensorFlow's stack is no reason"
    require_clean(ec, store)


def test_module_that_has_changed_is_refused_with_both_digests(
    ec: CommandLine, hub: HubModules, store: Path, corpus: Any, tmp_path: Path
) -> None:
    path = copied(hub.path("nnlm"), tmp_path / "module")
    before = files_digest(path)
    ec.json(store, "build", corpus("a cat"), "--module", path)
    kept = ec.json(store, "get", "a cat")
    shutil.rmtree(path)
    copied(hub.path("wiki-words"), path)
    line = ec.error(store, "build", corpus("a cat", "a dog"), "--module", path)
    assert before in line
    assert files_digest(path) in line
    assert "embedcache modules pin" in line
    require_clean(ec, store, texts=1)
    assert ec.json(store, "get", "a cat") == kept


def test_preprocessor_that_has_changed_is_refused_with_both_digests(
    ec: CommandLine, hub: HubModules, store: Path, corpus: Any, tmp_path: Path
) -> None:
    path = copied(hub.preprocess("bert"), tmp_path / "preprocess")
    before = files_digest(path)
    hub.tell(store, "bert", "bert-cased")
    arguments = ("--module", hub.path("bert"), "--preprocess", path)
    ec.json(store, "build", corpus("a cat"), *arguments)
    shutil.rmtree(path)
    copied(hub.preprocess("bert-cased"), path)
    line = ec.error(store, "build", corpus("a cat", "a dog"), *arguments)
    assert before in line
    assert files_digest(path) in line
    require_clean(ec, store, texts=1)


@pytest.mark.parametrize("name", ["nan-sentence", "nan-encoder"])
def test_nan_is_refused_by_the_place_of_its_text(
    name: str, ec: CommandLine, hub: HubModules, store: Path, corpus: Any
) -> None:
    file = corpus("a cat", "the dog sat", "one nan film", "a mat")
    line = ec.error(store, "build", file, *hub.arguments(name))
    assert line.startswith(f"error: {file}:3: ")
    assert "NaN" in line
    # Sound texts that were computed before may be kept; the view knows no other.
    assert "no features" in ec.error(store, "get", "one nan film")
    found = ec.json(store, "verify")
    assert (found["corrupt"], found["orphans"], found["missing"]) == ([], [], [])


@pytest.mark.parametrize("name", ["leaky-encoder", "random-encoder"])
def test_encoder_whose_rows_depend_on_the_batch_is_refused(
    name: str, ec: CommandLine, hub: HubModules, store: Path, corpus: Any
) -> None:
    file = corpus(*PADDED)
    line = ec.error(store, "build", file, *hub.arguments(name))
    assert re.match(rf"error: {re.escape(str(file))}:\d: in a batch {hub.path(name)} gives", line)
    assert "use another module" in line
    require_clean(ec, store)


@pytest.mark.parametrize(
    ("module", "preprocess", "says"),
    [
        ("preprocess", None, "is a preprocessor; name its encoder with --module"),
        ("bert", "electra", "is no preprocessor"),
        ("bert", "nnlm", "is no preprocessor"),
        ("bert", None, "no preprocessor is known for it"),
        ("bert", "absent", "absent"),
        ("nnlm", "preprocess", "leave --preprocess out"),
        ("tf1-bert", "preprocess", "leave --preprocess out"),
    ],
)
def test_module_in_the_wrong_place_is_refused(
    module: str, preprocess: str | None, says: str, ec: CommandLine, hub: HubModules, store: Path,
    corpus: Any, tmp_path: Path,
) -> None:  # fmt: skip
    def path(name: str) -> Path | None:
        if name == "absent":
            return tmp_path / name
        return hub.preprocess("bert") if name == "preprocess" else hub.path(name)

    hub.tell(store, "bert")
    beside = () if preprocess is None else ("--preprocess", path(preprocess))
    arguments = ("build", corpus("a cat"), "--module", path(module), *beside)
    line = ec.error(store, *arguments)
    assert says in line
    require_clean(ec, store)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("bert", ("--granularity", "sentence"), "gives a row a token"),
        ("bert", ("--layer", "3"), r"no layer '3'; there are: 1 to 2, sequence_output"),
        ("nnlm", ("--layer", "1"), "has no layers"),
        ("use", ("--keep-special-tokens",), "has no special tokens"),
        ("nnlm", ("--context-words", "1"), "belongs to --granularity window"),
        ("bert-call-only", ("--overflow", "window"), "has no tokenize"),
        ("bert", ("--max-tokens", "2", "--keep-special-tokens"), "leave no room"),
    ],
)
def test_option_that_does_not_fit_the_module_is_refused(
    name: str, options: tuple[str, ...], says: str, ec: CommandLine, hub: HubModules, store: Path,
    corpus: Any,
) -> None:  # fmt: skip
    hub.tell(store, name)
    line = ec.error(store, "build", corpus("a cat"), *hub.arguments(name), *options)
    assert re.search(says, line), line
    require_clean(ec, store)


def test_text_that_its_preprocessor_has_cut_can_be_refused(
    ec: CommandLine, hub: HubModules, store: Path, corpus: Any
) -> None:
    hub.tell(store, "bert-call-only")
    file, arguments = corpus("a cat", "the " * 130), hub.arguments("bert-call-only")
    line = ec.error(store, "build", file, *arguments, "--overflow", "error")
    assert re.search(r"corpus\.txt:2: longer than the preprocessor's own length", line), line
    require_clean(ec, store)


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """From now on a batch of more than 200 pieces does not fit; those that did not."""
    failed: list[tuple[int, ...]] = []
    encode = PieceEncoder.encode_batch

    def limited(
        encoder: PieceEncoder, tokens: NDArray[np.int32], lengths: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        if tokens.size > 200:
            failed.append(tokens.shape)
            raise ModuleMemoryError("the module: out of memory; give a smaller --batch-tokens")
        return encode(encoder, tokens, lengths)

    monkeypatch.setattr(PieceEncoder, "encode_batch", limited)
    return failed


def test_batch_too_large_for_the_memory_is_computed_in_smaller_ones(
    ec: CommandLine, hub: HubModules, tmp_path: Path, corpus: Any, request: Any
) -> None:
    # Padded as those that the leaky encoder is refused for: a sound one is not.
    texts = [f"{text} {word}" for text in PADDED for word in ("sat", "dog", "mat", "film")]
    arguments = ("build", corpus(*texts), *hub.arguments("bert"), "--dtype", "float32")
    for name in ("enough", "small"):
        hub.tell(tmp_path / name, "bert")
    ec.json(tmp_path / "enough", *arguments)
    failed = request.getfixturevalue("small_memory")
    report = ec.json(tmp_path / "small", *arguments)
    assert failed
    assert report["misses"] == len(texts)
    assert report["fidelity"]["texts"] > 0
    for text in texts:
        rows = [ec.json(tmp_path / name, "get", text)["values"] for name in ("enough", "small")]
        np.testing.assert_allclose(*rows, rtol=0, atol=1e-5)


def test_text_too_large_for_the_memory_is_told_by_its_place(
    ec: CommandLine, hub: HubModules, store: Path, corpus: Any, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fails(encoder: PieceEncoder, tokens: NDArray[np.int32], lengths: Any) -> Any:
        if tokens.shape[1] > 100:
            raise ModuleMemoryError("the module: out of memory; give a smaller --batch-tokens")
        return encode(encoder, tokens, lengths)

    encode = PieceEncoder.encode_batch
    monkeypatch.setattr(PieceEncoder, "encode_batch", fails)
    hub.tell(store, "bert")
    file = corpus("a cat", "the " * 120, "a dog")
    line = ec.error(store, "build", file, *hub.arguments("bert"))
    assert line.startswith(f"error: {file}:2: ")
    assert "out of memory" in line
    found = ec.json(store, "verify")
    assert (found["corrupt"], found["orphans"], found["missing"]) == ([], [], [])
    assert "no features" in ec.error(store, "get", "the " * 120)

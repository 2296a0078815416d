"""Embedder: one module for many batches, with a real SavedModel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedcache
from embedcache.compute.fidelity import FIRST_SAMPLE
from embedcache.embedder import EmbedCounts, Embedder
from embedcache.errors import (
    CorpusError,
    EncodingError,
    FidelityError,
    ModuleChangedError,
    ModuleError,
    UnknownNameError,
)
from embedcache.keys import keys_of_texts
from embedcache.modules.bag_of_words import BagOfWordsEncoder
from embedcache.pinning import PinnedModule
from embedcache.store.store import FeatureStore

MakeModule = Callable[..., Path]


@pytest.fixture(scope="module")
def module(make_module: MakeModule) -> str:
    return str(make_module(twist="nan"))


@pytest.fixture
def view(store: FeatureStore, tmp_path: Path, module: str) -> str:
    """A view whose module has a NaN row for the word "nan"."""
    corpus = tmp_path / "a.txt"
    corpus.write_text("".join(f"text {number}\n" for number in range(20)))
    return embedcache.build(store, corpus, module=module).view


@pytest.fixture
def num_loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The handles of the modules that were loaded, one for each time."""
    loaded: list[str] = []
    load = PinnedModule.load_encoder

    def count(self: PinnedModule, view: Any) -> Any:
        loaded.append(self.handle)
        return load(self, view)

    monkeypatch.setattr(PinnedModule, "load_encoder", count)
    return loaded


def test_the_module_is_loaded_once_for_many_batches(
    store: FeatureStore, view: str, num_loaded: list[str]
) -> None:
    with Embedder(store, view) as embedder:
        assert not embedder.is_loaded
        assert embedder.embed_texts(["text 1", "text 2"]) == EmbedCounts(0, 0, ())
        assert num_loaded == []
        counts = [embedder.embed_texts([f"one {number}", "and text 1"]) for number in range(4)]
        assert embedder.is_loaded
        embedder.load()
    assert len(num_loaded) == 1
    assert [each.computed for each in counts] == [2, 1, 1, 1]
    assert [each.tokens for each in counts] == [5, 2, 2, 2]
    # Each batch is durable by itself.
    named = {record.digest for record in store.catalog.shards(view)}
    assert {digest for each in counts for digest in each.shards} < named
    assert len(named) == 5


def test_what_was_computed_is_there_when_it_returns(store: FeatureStore, view: str) -> None:
    texts = ["never seen", "text 3", "never seen"]
    embedder = Embedder(store, view)
    embedder.embed_texts(texts)
    with embedcache.open_store(store.path) as other:
        assert other.get(view, texts).lengths.tolist() == [2, 2, 2]


def test_embedding_text_by_text_gives_what_a_build_gives(
    store: FeatureStore, view: str, module: str, tmp_path: Path
) -> None:
    texts = [f"a longer text with number {number} in it" for number in range(30)]
    with Embedder(store, view) as embedder:
        for text in texts:
            embedder.embed_texts([text])
    corpus = tmp_path / "b.txt"
    corpus.write_text("\n".join(texts) + "\n")
    with embedcache.open_store(tmp_path / "other") as other:
        built = other.get(embedcache.build(other, corpus, module=module).view, texts)
    np.testing.assert_array_equal(store.get(view, texts).values, built.values)


def test_only_the_first_texts_are_computed_again(store: FeatureStore, view: str) -> None:
    before = store.catalog.find_view(view).checked_texts
    with Embedder(store, view) as embedder:
        for number in range(3 * FIRST_SAMPLE):
            embedder.embed_texts([f"small batch {number}"])
    assert store.catalog.find_view(view).checked_texts == before + FIRST_SAMPLE


def test_findings_are_kept_once(store: FeatureStore, view: str) -> None:
    before = store.catalog.find_view(view).checked_texts
    embedder = Embedder(store, view)
    embedder.embed_texts(["a first text", "a second one"])
    for _ in range(3):
        embedder.finish()
    assert store.catalog.find_view(view).checked_texts == before + 2
    embedder.embed_texts(["a third text"])
    embedder.finish()
    assert store.catalog.find_view(view).checked_texts == before + 3


def test_an_error_after_a_build_has_finished_keeps_its_findings_once(
    store: FeatureStore, tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "b.txt"
    corpus.write_text("".join(f"other {number}\n" for number in range(20)))

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("embedcache.precompute.DatasetWriter.publish", fail)
    with pytest.raises(ZeroDivisionError):
        embedcache.build(store, corpus, module=module)
    (record,) = store.catalog.views()
    assert record.checked_texts == FIRST_SAMPLE


def test_a_bad_text_does_not_spoil_the_batches_after_it(store: FeatureStore, view: str) -> None:
    with Embedder(store, view) as embedder:
        with pytest.raises(EncodingError, match=r"^texts:2: .*'nan'"):
            embedder.embed_texts(["good", "this is nan"])
        assert embedder.embed_texts(["good", "better"]).computed >= 1
    assert store.contains(view, ["good", "better"]).all()
    assert not store.contains(view, ["this is nan"]).any()


def test_a_module_that_has_proved_unfit_stores_nothing_more(
    store: FeatureStore, view: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = BagOfWordsEncoder.embed_tokens, []

    def embed_tokens(self: BagOfWordsEncoder, tokens: Sequence[bytes]) -> Any:
        calls.append(tokens)
        return real(self, tokens) + len(calls)

    monkeypatch.setattr(BagOfWordsEncoder, "embed_tokens", embed_tokens)
    embedder = Embedder(store, view)
    checked = store.catalog.find_view(view).checked_texts
    for text in ("one more", "and another"):
        with pytest.raises(FidelityError):
            embedder.embed_texts([text])
    monkeypatch.undo()
    with pytest.raises(FidelityError):
        embedder.embed_texts(["a third"])
    embedder.finish()
    assert not store.contains(view, ["one more", "and another", "a third"]).any()
    assert store.catalog.find_view(view).checked_texts == checked


def test_bad_names_bad_texts_and_changed_modules_are_told(
    store: FeatureStore, tmp_path: Path, make_module: MakeModule
) -> None:
    with pytest.raises(UnknownNameError):
        Embedder(store, "zz")
    path = make_module(seed=9)
    corpus = tmp_path / "a.txt"
    corpus.write_text("one\n")
    view = embedcache.build(store, corpus, module=str(path)).view
    with Embedder(store, view) as embedder, pytest.raises(CorpusError, match="lone surrogate"):
        embedder.embed_texts(["\ud800"])
    with (path / "saved_model.pb").open("ab") as file:
        file.write(b"\x9a\x06\x00")  # an unknown protocol buffer field: loads as before
    embedder = Embedder(store, view)
    with pytest.raises(ModuleChangedError):
        embedder.load()
    path.rename(path.with_name(f"{path.name}-gone"))
    with pytest.raises(ModuleError):
        embedder.load()
    # What is stored needs no module.
    assert embedder.embed_texts(["one"]).computed == 0


def test_leaving_saves_the_index(store: FeatureStore, view: str) -> None:
    path = store.layout.index_path(view)
    with Embedder(store, view) as embedder:
        embedder.embed_texts(["something new"])
        before = path.read_bytes()
    assert path.read_bytes() != before
    assert store.reader(view).contains(keys_of_texts(["something new"])).all()


def test_a_run_loads_the_module_once_for_many_predictions(
    store: FeatureStore, tmp_path: Path, module: str, num_loaded: list[str]
) -> None:
    import cnn

    lines = [f"{word} number {number}\t{word}" for number in range(30) for word in ("good", "bad")]
    corpus = tmp_path / "labelled.tsv"
    corpus.write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    embedcache.build(store, corpus, module=module, dataset="d")
    run = cnn.train(store, "d", cnn.TrainConfig(epochs=1, filters=4, kernel_sizes=(2,)))
    num_loaded.clear()
    first = run.predict(["good film", "bad film"])
    run.predict(["good film again", "bad film"])
    assert len(num_loaded) == 1
    assert run.predict_stored(["good film", "bad film"]) == first
    with pytest.raises(embedcache.errors.KeyNotFoundError):
        run.predict_stored(["good film", "not stored"])
    assert len(num_loaded) == 1

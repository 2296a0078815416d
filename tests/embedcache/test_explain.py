"""Why texts hit and miss; views come from real settings, features need no module."""

from __future__ import annotations

import itertools
import shlex
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import click
import pytest

import embedcache
from cli.view_options import VIEW_SETTINGS, view_options
from embedcache.errors import CorpusError, ModuleChangedError, ModuleError, UnknownNameError
from embedcache.explain import (
    Explanation,
    OtherView,
    explain_text,
    explain_texts,
    hint_of_build,
    near_texts,
    view_differences,
    view_to_build,
)
from embedcache.keys import key_of_text
from embedcache.modules import probe
from embedcache.modules.facts import (
    BAG_OF_WORDS,
    PREPROCESSED_ENCODER,
    PREPROCESSOR,
    SENTENCE_ENCODER,
    Layer,
    ModuleFacts,
)
from embedcache.modules.handles import files_digest
from embedcache.modules.settings import ViewSettings
from embedcache.store.database.records import ViewRecord
from embedcache.store.store import FeatureStore
from embedcache.view import FeatureView
from tests.embedcache.store.programs import VIEW, add_texts, matrix_of, put

WORDS = ModuleFacts(
    kind=BAG_OF_WORDS, signature="__call__", dim=4, tokenizer="space", combiner="sum"
)
SENTENCES = ModuleFacts(kind=SENTENCE_ENCODER, signature="__call__", dim=4, tokenizer="module")
ENCODER = ModuleFacts(
    kind=PREPROCESSED_ENCODER,
    signature="__call__ of a dict",
    output="sequence_output",
    dim=8,
    tokenizer="pieces",
    layers=(Layer(name="1", dim=8), Layer(name="2", dim=8)),
    outputs=(Layer(name="sequence_output", dim=8),),
)
PREPROCESS = ModuleFacts(
    kind=PREPROCESSOR, signature="tokenize", dim=0, tokenizer="preprocessor",
    start_ids=(101,), end_ids=(102,),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _never_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "probe_module", None)


def make_module(store: FeatureStore, path: Path, facts: ModuleFacts, content: bytes = b"") -> str:
    """A folder that looks like a module, of which the catalog recalls what it is."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "saved_model.pb").write_bytes(content or path.name.encode())
    store.catalog.add_module_facts(files_digest(path), facts.to_json())
    return str(path)


def put_under(store: FeatureStore, record: ViewRecord, texts: Sequence[str]) -> None:
    """Make texts durable under a view, with its handles."""
    store.catalog.add_view(record.view, record.handle, preprocess=record.preprocess)
    writer = store.writer(record.view)
    add_texts(writer, texts, dim=record.view.dim)
    writer.flush()


def record_of(view: FeatureView, handle: str = "m", preprocess: str = "") -> ViewRecord:
    return ViewRecord(view.fingerprint, view, handle, preprocess)


# Hits


def test_a_stored_text_is_a_hit_with_its_length_and_shard(store: FeatureStore) -> None:
    put(store, ["one", "two"])
    put(store, ["three"])
    found = explain_text(store, VIEW, "three")
    assert (found.hit, found.view, found.module) == (True, VIEW.fingerprint, "builtin:nothing")
    assert found.tokens == len(matrix_of("three"))
    assert (found.truncated, found.windowed) == (False, False)
    assert found.shard == store.catalog.shards(VIEW.fingerprint)[1].digest
    assert (found.key, found.text_bytes) == (key_of_text("three").hex(), 5)
    assert (found.others, found.variants) == ((), ())


def test_every_hit_names_the_shard_that_holds_it(store: FeatureStore) -> None:
    texts = [f"text {number}" for number in range(40)]
    for start in range(0, 40, 10):
        put(store, texts[start : start + 10])
    digests = [record.digest for record in store.catalog.shards(VIEW.fingerprint)]
    found = explain_texts(store, VIEW, texts)
    assert [one.shard for one in found] == [digest for digest in digests for _ in range(10)]


def test_a_hit_stays_one_whatever_other_views_hold(store: FeatureStore) -> None:
    put(store, ["one"])
    put(store, ["one", "one "], view=replace(VIEW, max_tokens=7))
    found = explain_text(store, VIEW, "one")
    assert (found.hit, found.others, found.variants) == (True, (), ())


def test_a_view_may_be_named_by_the_beginning_of_its_fingerprint(store: FeatureStore) -> None:
    put(store, ["one"])
    assert explain_text(store, VIEW.fingerprint[:8], "one").hit
    with pytest.raises(UnknownNameError, match="no view"):
        explain_text(store, "zz", "one")


# Other views


def test_a_text_under_another_view_names_the_field_and_the_option(store: FeatureStore) -> None:
    stored = replace(VIEW, max_tokens=256)
    put(store, ["one"], view=stored)
    found = explain_text(store, VIEW, "one")
    assert not found.hit
    assert found.tokens is found.truncated is found.shard is None
    (other,) = found.others
    assert (other.view, other.module) == (stored.fingerprint, "builtin:nothing")
    assert found.to_record()["others"][0]["differences"] == (
        {
            "field": "max_tokens", "stored": 256, "asked": 512, "option": "--max-tokens 256",
            "follows": "", "note": "",
        },
    )  # fmt: skip
    assert other.options == "--max-tokens 256"


def test_the_nearest_view_comes_first_and_those_without_the_text_not_at_all(
    store: FeatureStore,
) -> None:
    far = replace(VIEW, max_tokens=256, overflow="error")
    near = replace(VIEW, max_tokens=128)
    newer = replace(VIEW, max_tokens=32)
    put(store, ["one"], view=near)
    put(store, ["one"], view=newer)
    put(store, ["one"], view=far)
    put(store, ["two"], view=replace(VIEW, max_tokens=64))
    found = explain_text(store, VIEW, "one")
    assert [other.view for other in found.others] == [
        newer.fingerprint, near.fingerprint, far.fingerprint,
    ]  # fmt: skip


def test_a_text_under_no_view_has_no_others(store: FeatureStore) -> None:
    put(store, ["one"], view=replace(VIEW, max_tokens=256))
    found = explain_text(store, VIEW, "something else")
    assert (found.hit, found.others, found.variants) == (False, (), ())


def test_many_texts_are_explained_in_their_order(store: FeatureStore) -> None:
    put(store, ["hit"])
    put(store, ["other"], view=replace(VIEW, max_tokens=256))
    texts = ["nowhere", "other", "hit", "hit ", "other", "hit"]
    found = explain_texts(store, VIEW, texts)
    assert found == [explain_text(store, VIEW, text) for text in texts]
    assert [one.hit for one in found] == [False, False, True, False, False, True]
    assert [len(one.others) for one in found] == [0, 1, 0, 0, 1, 0]
    assert [len(one.variants) for one in found] == [0, 0, 0, 1, 0, 0]
    assert explain_texts(store, VIEW, []) == []


def test_other_files_behind_the_same_handle_are_told_from_another_module() -> None:
    asked = record_of(VIEW, "folder")
    other = replace(VIEW, module_digest="1" * 32, dim=8)
    (files, width) = view_differences(record_of(other, "folder"), asked)
    assert (files.field, files.option) == ("module_digest", None)
    assert files.note == "the same module, whose files have changed"
    assert (width.field, width.option, width.follows) == ("dim", None, "module_digest")
    (files, _) = view_differences(record_of(other, "my module"), asked)
    assert (files.option, files.note) == ("--module 'my module'", "another module")
    # Which of its own options that module was built with is not known.
    assert OtherView(other.fingerprint, "my module", (files,)).options is None
    (files, _) = view_differences(record_of(other, ""), asked)
    assert files.option is None
    assert "lost with the catalog" in files.note


def test_a_changed_preprocessor_is_told_from_another_one() -> None:
    asked = record_of(replace(VIEW, preprocess_digest="1" * 32), "m", "p")
    stored = replace(VIEW, preprocess_digest="2" * 32)
    (same,) = view_differences(record_of(stored, "m", "p"), asked)
    assert (same.option, same.note) == (None, "the same preprocessor, whose files have changed")
    (other,) = view_differences(record_of(stored, "m", "q"), asked)
    assert (other.option, other.note) == ("--preprocess q", "another preprocessor")


def test_what_no_option_can_bring_back_is_not_promised() -> None:
    store_view = replace(VIEW, max_tokens=9, signature="default")
    differences = view_differences(record_of(store_view), record_of(VIEW))
    other = OtherView(store_view.fingerprint, "m", differences)
    assert [found.option for found in differences] == [None, "--max-tokens 9"]
    assert "another version" in differences[0].note
    assert other.options is None


def _settings(facts: ModuleFacts) -> Iterator[dict[str, object]]:
    """Options of builds that a module of these facts takes."""
    layers: tuple[str | None, ...] = (None,)
    rows: list[tuple[str | None, int | None]] = [(None, None)]
    special = (False,)
    if facts.kind == PREPROCESSED_ENCODER:
        layers, special = (None, "1", "2,1", "mean", "all"), (False, True)
    else:
        rows += [("token", None), ("sentence", None), ("window", None), ("window", 4)]
    lengths = ((512, "truncate", "float16"), (256, "error", "float16"), (256, "window", "float32"))
    for layer, row, keep, (length, overflow, dtype) in itertools.product(
        layers, rows, special, lengths
    ):
        yield {
            "layer": layer, "granularity": row[0], "context_words": row[1],
            "keep_special_tokens": keep, "max_tokens": length, "overflow": overflow,
            "dtype": dtype,
        }  # fmt: skip


@click.command()
@view_options
def _parse(**settings: object) -> dict[str, object]:
    return settings


def _words_of(settings: dict[str, object]) -> list[str]:
    """The command line of these settings."""
    words: list[str] = []
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value not in (None, False):
            words += [flag, str(value)]
    return words


def _with_options(words: Sequence[str], options: str) -> list[str]:
    """A command line as a person would change it who was told these options."""
    changed = list(words)
    given = iter(shlex.split(options))
    for word in given:
        if word != "without":
            changed.append(word)
            continue
        flag = next(given)
        if flag in changed:
            place = changed.index(flag)
            del changed[place : place + (1 if flag == "--keep-special-tokens" else 2)]
    return changed


@pytest.mark.parametrize("facts", [WORDS, SENTENCES, ENCODER], ids=lambda facts: facts.kind)
def test_the_options_that_are_named_make_the_stored_view(
    store: FeatureStore, tmp_path: Path, facts: ModuleFacts
) -> None:
    handle = make_module(store, tmp_path / "module", facts)
    make_module(store, tmp_path / "preprocess", PREPROCESS)

    def view_of(words: Sequence[str]) -> ViewRecord:
        parsed = _parse.main(list(words), standalone_mode=False)
        settings = ViewSettings(**{name: parsed[name] for name in VIEW_SETTINGS})
        return view_to_build(store, handle, settings)

    store.catalog.add_view(VIEW, "one view at least")
    commands = [_words_of(settings) for settings in _settings(facts)]
    views = [view_of(words) for words in commands]
    pairs = 0
    for stored in views:
        for words, asked in zip(commands, views, strict=True):
            differences = view_differences(stored, asked)
            other = OtherView(stored.fingerprint, handle, differences)
            assert other.options is not None
            assert view_of(_with_options(words, other.options)).view == stored.view
            pairs += bool(differences)
    assert pairs > 100


# The view asked for


def test_the_view_of_a_build_is_known_without_loading_and_nothing_is_kept(
    store: FeatureStore, tmp_path: Path
) -> None:
    put(store, ["one"])
    handle = make_module(store, tmp_path / "words", WORDS)
    asked = view_to_build(store, handle, ViewSettings(max_tokens=9))
    assert (asked.handle, asked.view.max_tokens) == (handle, 9)
    assert asked.view.module_digest == files_digest(tmp_path / "words")
    assert store.catalog.module_pins() == []
    assert [record.fingerprint for record in store.catalog.views()] == [VIEW.fingerprint]
    found = explain_text(store, asked, "one")
    assert (found.view, found.module) == (asked.fingerprint, handle)
    assert found.others[0].differences[0].note == "another module"


def test_a_store_without_views_says_so(store: FeatureStore, tmp_path: Path) -> None:
    handle = make_module(store, tmp_path / "words", WORDS)
    with pytest.raises(UnknownNameError, match="holds no features yet; `embedcache build"):
        view_to_build(store, handle, ViewSettings())


def test_a_module_that_a_build_would_refuse_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    put(store, ["one"])
    with pytest.raises(ModuleError, match="nowhere"):
        view_to_build(store, str(tmp_path / "nowhere"), ViewSettings())
    handle = make_module(store, tmp_path / "words", WORDS)
    store.catalog.pin_module(handle, "0" * 32)
    with pytest.raises(ModuleChangedError, match="`embedcache modules pin"):
        view_to_build(store, handle, ViewSettings())


def test_a_text_that_no_key_can_be_made_of_is_refused(store: FeatureStore) -> None:
    put(store, ["one"])
    with pytest.raises(CorpusError, match="lone surrogate"):
        explain_text(store, VIEW, "\udc80")


# Nearly the same text


@pytest.mark.parametrize(
    ("stored", "asked", "what"),
    [
        ("a b ", "a b", "with a trailing space"),
        ("a b", "a b ", "without white space at its end"),
        ("a b", "\ta b\n", "without white space at its ends"),
        (" a b", "a b", "with a leading space"),
        ("a b", " a b", "without white space at its start"),
        ("a b", "a\u00a0 b", "with white space collapsed to single spaces"),
        ("a b", " a  b ", "with white space collapsed, and none at its ends"),
        ("a b\n", "a b", r"with a trailing line feed (\n)"),
        ("a b\r", "a b", r"with a trailing carriage return (\r)"),
        ("a\r\nb", "a\nb", r"with \r\n as its line ends"),
        ("a\nb", "a\rb", r"with \n as its line ends"),
        ("a\nb", r"a\nb", r"with \n, \r and \t read as line ends and tabs"),
        ("\ufeffa b", "a b", "with a byte order mark"),
        ("a b", "\ufeffa b", "without its byte order mark"),
        ("caf\u00e9", "cafe\u0301", "in Unicode's NFC"),
        ("cafe\u0301", "caf\u00e9", "in Unicode's NFD"),
        ("file", "\ufb01le", "in Unicode's NFKC"),
        ("a b", "A B", "lower-cased"),
        ("strasse", "Stra\u00dfe", "case-folded"),
        ("A b", "a b", "with a capital first letter"),
        ("A B", "a b", "upper-cased"),
        ("a b", "A  b", "lower-cased with white space collapsed"),
        ('"say ""a"""', 'say "a"', "in double quotes"),
        ('say "a"', '"say ""a"""', "without its double quotes"),
        ("a b", "__label__x __label__y a b", "without its fastText labels"),
        ("a & b", "a &amp; b", "with HTML entities read"),
        ("a &lt; b", "a < b", "with HTML entities"),
        ("cafÃ©", "café", "with UTF-8 that was read as Windows-1252"),
        ("café", "cafÃ©", "before its UTF-8 was read as Windows-1252"),
    ],
)
def test_a_text_that_is_nearly_the_same_is_found(
    store: FeatureStore, stored: str, asked: str, what: str
) -> None:
    put(store, [stored, "quite another text"])
    (variant, *_) = explain_text(store, VIEW, asked).variants
    assert (variant.what, variant.key) == (what, key_of_text(stored).hex())
    assert variant.views == (VIEW.fingerprint,)


def test_a_text_that_differs_in_a_word_is_not_nearly_the_same(store: FeatureStore) -> None:
    put(store, ["a b", ""])
    assert explain_text(store, VIEW, "a c").variants == ()


def test_a_variant_names_the_view_asked_for_first_and_then_the_nearest(
    store: FeatureStore,
) -> None:
    far = replace(VIEW, max_tokens=256, overflow="error")
    near = replace(VIEW, max_tokens=256)
    for view in (far, near, VIEW):
        put(store, ["a "], view=view)
    (variant,) = explain_text(store, VIEW, "a").variants
    assert variant.views == (VIEW.fingerprint, near.fingerprint, far.fingerprint)


def test_variants_are_looked_for_only_where_no_view_holds_the_text(store: FeatureStore) -> None:
    put(store, ["a "])
    put(store, ["a"], view=replace(VIEW, max_tokens=256))
    found = explain_text(store, VIEW, "a")
    assert (len(found.others), found.variants) == (1, ())


@pytest.mark.parametrize("text", ["", " ", '"', "a", "\ufeff", "é\r\n", "__label__x ", "&", "\x81"])
def test_near_texts_are_distinct_and_never_the_text_itself(text: str) -> None:
    texts = [near.text for near in near_texts(text)]
    assert len(set(texts)) == len(texts) > 3
    assert text not in texts
    for near in texts:
        near.encode()


def test_near_texts_of_a_decomposed_text_are_composed_too() -> None:
    text = "e\u0301"
    assert unicodedata.normalize("NFC", text) in {near.text for near in near_texts(text)}


# The hint after a build


def _build(store: FeatureStore, view: FeatureView, texts: Sequence[str], handle: str = "m") -> int:
    """As a build under this view; tells how many shards it wrote."""
    put_under(store, record_of(view, handle), texts)
    return 1


def test_a_build_of_what_another_view_has_gets_a_hint(store: FeatureStore) -> None:
    texts = [f"text {number}" for number in range(30)]
    stored = replace(VIEW, max_tokens=256)
    _build(store, stored, texts[:24])
    num_shards = _build(store, VIEW, texts)
    hint = hint_of_build(store, VIEW.fingerprint, num_shards=num_shards)
    assert hint is not None
    assert (hint.view.view, hint.view.options) == (stored.fingerprint, "--max-tokens 256")
    assert (hint.texts, hint.computed, hint.is_estimate) == (24, 30, False)
    assert hint.to_record() == {
        "view": stored.fingerprint,
        "texts": 24,
        "differences": (
            {
                "field": "max_tokens", "stored": 256, "asked": 512,
                "option": "--max-tokens 256", "follows": "", "note": "",
            },
        ),
    }  # fmt: skip


def test_only_what_the_build_itself_computed_counts(store: FeatureStore) -> None:
    """A corpus that grew: its old texts lie under both views, its new ones under neither."""
    old = [f"old {number}" for number in range(30)]
    _build(store, VIEW, old)
    _build(store, replace(VIEW, max_tokens=256), old)
    num_shards = _build(store, VIEW, ["new 1", "new 2"])
    assert hint_of_build(store, VIEW.fingerprint, num_shards=num_shards) is None
    assert hint_of_build(store, VIEW.fingerprint, num_shards=0) is None
    assert hint_of_build(store, VIEW.fingerprint, num_shards=2) is not None


def test_another_module_gets_no_hint_but_changed_files_do(store: FeatureStore) -> None:
    _build(store, replace(VIEW, module_digest="1" * 32), ["one"], handle="other")
    num_shards = _build(store, VIEW, ["one"])
    assert hint_of_build(store, VIEW.fingerprint, num_shards=num_shards) is None
    _build(store, replace(VIEW, module_digest="2" * 32), ["one"])
    hint = hint_of_build(store, VIEW.fingerprint, num_shards=num_shards)
    assert hint is not None
    assert [found.field for found in hint.view.differences] == ["module_digest"]
    assert hint.view.options is None


def test_a_view_that_holds_less_than_half_gets_no_hint(store: FeatureStore) -> None:
    texts = [f"text {number}" for number in range(10)]
    _build(store, replace(VIEW, max_tokens=256), texts[:4])
    num_shards = _build(store, VIEW, texts)
    assert hint_of_build(store, VIEW.fingerprint, num_shards=num_shards) is None
    _build(store, replace(VIEW, max_tokens=256), texts[4:5])
    assert hint_of_build(store, VIEW.fingerprint, num_shards=num_shards) is not None


def test_the_nearest_view_gives_the_hint(store: FeatureStore) -> None:
    for view in (
        replace(VIEW, max_tokens=256, overflow="error"),
        replace(VIEW, max_tokens=128),
        replace(VIEW, max_tokens=64, overflow="error"),
    ):
        _build(store, view, ["one", "two"])
    num_shards = _build(store, VIEW, ["one", "two"])
    hint = hint_of_build(store, VIEW.fingerprint, num_shards=num_shards)
    assert hint is not None
    assert hint.view.options == "--max-tokens 128"


def test_a_hint_from_a_sample_is_an_estimate(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedcache.explain.hint._HINT_KEYS", 100)
    monkeypatch.setattr("embedcache.explain.hint._HINT_SHARDS", 4)
    texts = [f"text {number}" for number in range(2000)]
    _build(store, replace(VIEW, max_tokens=256), texts)
    for start in range(0, 2000, 250):
        _build(store, VIEW, texts[start : start + 250])
    hint = hint_of_build(store, VIEW.fingerprint, num_shards=8)
    assert hint is not None
    assert (hint.texts, hint.computed, hint.is_estimate) == (2000, 2000, True)


def test_a_damaged_store_costs_the_hint_and_not_the_build(
    store: FeatureStore, tmp_path: Path
) -> None:
    _build(store, replace(VIEW, max_tokens=256), ["one"])
    num_shards = _build(store, VIEW, ["one"])
    assert hint_of_build(store, VIEW.fingerprint, num_shards=num_shards) is not None
    (record,) = store.catalog.shards(VIEW.fingerprint)
    store.layout.shard_path(VIEW.fingerprint, record.digest).write_bytes(b"")
    with embedcache.open_store(store.path) as again:
        assert hint_of_build(again, VIEW.fingerprint, num_shards=num_shards) is None


def test_explanations_of_the_package_are_those_of_the_room() -> None:
    assert embedcache.explain_text is explain_text
    assert embedcache.Explanation is Explanation

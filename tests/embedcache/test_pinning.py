"""Handle → view with what the catalog recalls; whatever needs TensorFlow is tested elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import embedcache
from embedcache.errors import ModuleChangedError, ModuleError, UnknownNameError
from embedcache.modules import probe
from embedcache.modules.facts import (
    BAG_OF_WORDS,
    PREPROCESSED_ENCODER,
    PREPROCESSOR,
    PROBE_VERSION,
    Layer,
    ModuleFacts,
)
from embedcache.modules.handles import files_digest
from embedcache.modules.settings import ViewSettings
from embedcache.pinning import module_digest, pin_module, pin_module_of_view
from embedcache.store.database.catalog import Catalog

WORDS = ModuleFacts(
    kind=BAG_OF_WORDS, signature="__call__", dim=8, tokenizer="space", combiner="sum"
)
ENCODER = ModuleFacts(
    kind=PREPROCESSED_ENCODER,
    signature="__call__ of a dict",
    output="sequence_output",
    dim=8,
    tokenizer="pieces",
    outputs=(Layer(name="sequence_output", dim=8),),
)
PREPROCESS = ModuleFacts(
    kind=PREPROCESSOR,
    signature="tokenize",
    dim=0,
    tokenizer="preprocessor",
    start_ids=(101,),
    end_ids=(102,),
)


@pytest.fixture
def catalog(store: embedcache.FeatureStore) -> Catalog:
    return store.catalog


def make_folder(catalog: Catalog, path: Path, facts: ModuleFacts) -> Path:
    """A folder that looks like a module, of which the catalog recalls what it is."""
    path.mkdir(parents=True)
    (path / "saved_model.pb").write_bytes(path.name.encode())
    catalog.add_module_facts(files_digest(path), facts.to_json())
    return path


def test_facts_are_the_same_after_json() -> None:
    for facts in (WORDS, ENCODER, PREPROCESS):
        assert ModuleFacts.from_json(facts.to_json()) == facts


def test_facts_of_another_version_of_the_probe_are_none() -> None:
    record = json.loads(WORDS.to_json())
    assert ModuleFacts.from_json(json.dumps({**record, "probe": PROBE_VERSION - 1})) is None
    assert ModuleFacts.from_json(json.dumps({**record, "more": 1})) is None
    # What version 1 wrote, before there were kinds.
    old = {"dim": 8, "kind": "bag-of-words", "output": "", "probe": 1, "signature": "__call__",
           "tokenizer": "space", "combiner": "sum"}  # fmt: skip
    assert ModuleFacts.from_json(json.dumps(old)) is None


def test_known_module_is_pinned_at_its_first_meeting_and_not_probed(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "probe_module", None)
    path = make_folder(catalog, tmp_path / "words", WORDS)
    pinned = pin_module(catalog, str(path))
    assert (pinned.handle, pinned.path, pinned.facts) == (str(path), path, WORDS)
    assert pinned.preprocess_handle == ""
    assert [(pin.handle, pin.digest) for pin in catalog.module_pins()] == [
        (str(path), files_digest(path))
    ]
    monkeypatch.chdir(tmp_path)
    assert pin_module(catalog, "words").handle == str(path), "the same from another folder"
    assert len(catalog.module_pins()) == 1


def test_nothing_is_kept_where_a_plan_only_asks(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_folder(catalog, tmp_path / "words", WORDS)
    before = catalog._path.read_bytes()
    assert pin_module(catalog, str(path), keep=False).facts == WORDS
    assert catalog._path.read_bytes() == before
    # Without a catalog what it is must be found out.
    monkeypatch.setattr(probe, "probe_module", lambda handle, _path: replace(WORDS, dim=9))
    assert pin_module(None, str(path)).facts.dim == 9


def test_facts_of_an_older_probe_are_found_anew_and_kept(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_folder(catalog, tmp_path / "words", replace(WORDS, probe=PROBE_VERSION - 1))
    probed: list[str] = []

    def probe_module(handle: str, _path: Path) -> ModuleFacts:
        probed.append(handle)
        return WORDS

    monkeypatch.setattr(probe, "probe_module", probe_module)
    for _ in range(2):
        assert pin_module(catalog, str(path)).facts == WORDS
    assert probed == [str(path)]
    kept = catalog.module_facts(files_digest(path))
    assert kept is not None
    assert ModuleFacts.from_json(kept) == WORDS


def test_other_files_behind_a_pinned_handle_are_refused_until_they_are_accepted(
    catalog: Catalog, tmp_path: Path
) -> None:
    path = make_folder(catalog, tmp_path / "words", WORDS)
    old = pin_module(catalog, str(path)).digest
    (path / "saved_model.pb").write_bytes(b"other")
    new = files_digest(path)
    catalog.add_module_facts(new, WORDS.to_json())
    with pytest.raises(ModuleChangedError, match=f"{new}, .*{old}; .*`embedcache modules pin") as e:
        pin_module(catalog, str(path))
    assert "\n" not in str(e.value)
    catalog.pin_module(str(path), new)
    assert pin_module(catalog, str(path)).digest == new


def test_digest_is_read_anew_when_sizes_or_times_have_changed(
    catalog: Catalog, tmp_path: Path
) -> None:
    path = make_folder(catalog, tmp_path / "words", WORDS)
    first = module_digest(catalog, path)
    assert module_digest(catalog, path) == first == module_digest(None, path)
    (path / "saved_model.pb").write_bytes(b"longer than it was")
    assert module_digest(catalog, path) == files_digest(path) != first


# Preprocessors


def test_preprocessor_beside_an_encoder_is_found(catalog: Catalog, tmp_path: Path) -> None:
    encoder = make_folder(catalog, tmp_path / "encoder", ENCODER)
    with pytest.raises(ModuleError, match=r"no preprocessor is known for it; .* --preprocess"):
        pin_module(catalog, str(encoder))
    beside = make_folder(catalog, tmp_path / "preprocess", PREPROCESS)
    pinned = pin_module(catalog, str(encoder))
    assert pinned.preprocess_handle == str(beside)
    other = make_folder(catalog, tmp_path / "other", replace(PREPROCESS, padding_id=7))
    named = pin_module(catalog, str(encoder), preprocess=str(other))
    assert named.preprocess_handle == str(other)
    views = [pinned.view(ViewSettings()), named.view(ViewSettings())]
    assert views[0].preprocess_digest == files_digest(beside)
    assert views[1].preprocess_digest == files_digest(other)
    assert views[0].fingerprint != views[1].fingerprint


def test_preprocessor_in_the_wrong_place_is_told(catalog: Catalog, tmp_path: Path) -> None:
    words = make_folder(catalog, tmp_path / "a" / "words", WORDS)
    encoder = make_folder(catalog, tmp_path / "a" / "encoder", ENCODER)
    preprocess = make_folder(catalog, tmp_path / "b" / "preprocess", PREPROCESS)
    with pytest.raises(ModuleError, match="is a preprocessor; name its encoder with --module"):
        pin_module(catalog, str(preprocess))
    with pytest.raises(ModuleError, match=r"splits texts by itself .bag-of-words.; leave --prepr"):
        pin_module(catalog, str(words), preprocess=str(preprocess))
    with pytest.raises(ModuleError, match="is no preprocessor but of the kind bag-of-words"):
        pin_module(catalog, str(encoder), preprocess=str(words))


def test_module_of_a_view_is_the_one_it_was_made_with(catalog: Catalog, tmp_path: Path) -> None:
    encoder = make_folder(catalog, tmp_path / "encoder", ENCODER)
    preprocess = make_folder(catalog, tmp_path / "preprocess", PREPROCESS)
    pinned = pin_module(catalog, str(encoder))
    view = pinned.view(ViewSettings())
    catalog.add_view(view, pinned.handle, preprocess=pinned.preprocess_handle)
    assert pin_module_of_view(catalog, catalog.find_view(view.fingerprint)) == pinned
    # New files that were accepted as such still are not the old view's.
    (preprocess / "saved_model.pb").write_bytes(b"other")
    new = files_digest(preprocess)
    catalog.add_module_facts(new, PREPROCESS.to_json())
    catalog.pin_module(str(preprocess), new)
    with pytest.raises(
        ModuleChangedError, match=rf"preprocess: .*view {view.fingerprint[:12]} was"
    ):
        pin_module_of_view(catalog, catalog.find_view(view.fingerprint))


def test_view_whose_handle_was_lost_asks_for_a_build(catalog: Catalog) -> None:
    view = embedcache.view.FeatureView(
        module_digest="0" * 32, signature="__call__", tokenizer="space", dim=8
    )
    catalog.add_view(view, "")
    with pytest.raises(UnknownNameError, match="handle was lost with the catalog; run"):
        pin_module_of_view(catalog, catalog.find_view(view.fingerprint))

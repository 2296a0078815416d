"""What the probe finds of modules of every kind, and how it refuses what is none."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedcache
from embedcache.errors import ModuleError
from embedcache.modules.facts import PROBE_VERSION, SEQUENCE_KINDS, ModuleFacts
from embedcache.modules.probe import probe_module
from embedcache.precompute import BuildOptions
from embedcache.store.store import FeatureStore
from tests.embedcache.modules.hub_subjects import HubModules, names_of, shared_hub_modules
from tests.hub_modules.bert_encoder import make_bert_v1_tf2
from tests.hub_modules.elmo import expected_elmo, make_elmo
from tests.hub_modules.kinds import GOOD_MODULES
from tests.hub_modules.vocabulary import PIECES, piece_ids

KINDS = {module.name: module.kind for module in GOOD_MODULES}
LAYERS = {
    "keras": [],
    "bert": [("1", 8), ("2", 8)],
    "electra": [("1", 12), ("2", 12), ("3", 12)],
    "elmo": [("word_emb", 8), ("lstm_outputs1", 16), ("lstm_outputs2", 16)],
    "elmo-like": [("lstm_outputs1", 12), ("lstm_outputs2", 12)],
}


@pytest.fixture(scope="module")
def hub(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> HubModules:
    return shared_hub_modules(pytestconfig, tmp_path_factory)


@pytest.mark.parametrize("name", names_of())
def test_kind_is_found_and_can_be_kept(name: str, hub: HubModules) -> None:
    facts = hub.pinned(name).facts
    assert facts.kind == KINDS[name]
    assert ModuleFacts.from_json(facts.to_json()) == facts


@pytest.mark.parametrize(
    ("name", "tokenizer"),
    [
        ("exporter-example", "space"),
        ("exporter-example-skips-empty", "space-words"),
        ("nnlm", "space"),
        ("nnlm-with-normalization", "space"),
        ("nnlm-lower-case", "space"),
        ("nnlm-signature", "space"),
        ("nnlm-tf1", "space-words"),
        ("nnlm-tf1-sentences", "space-words"),
        ("swivel", "space-words"),
        ("swivel-with-oov", "space-words"),
        ("wiki-words", "space"),
        ("wiki-words-with-normalization", "space"),
    ],
)
def test_bag_of_words_is_found_by_how_it_combines_tokens(
    name: str, tokenizer: str, hub: HubModules
) -> None:
    facts = hub.pinned(name).facts
    assert (facts.tokenizer, facts.combiner, facts.dim) == (tokenizer, "sqrtn", 8)
    called = (
        "default" if name in ("nnlm-signature", "nnlm-tf1", "nnlm-tf1-sentences") else "__call__"
    )
    assert facts.signature == called


@pytest.mark.parametrize(
    ("name", "signature", "output"),
    [
        ("use", "__call__", ""),
        ("use-tf1", "default", "default"),
        ("use-large", "__call__", ""),
        ("use-large-signature", "serving_default", "outputs"),
        ("sentence-t5", "__call__", ""),
        ("use-lite", "default", "default"),
    ],
)
def test_sentence_encoder_is_found_by_what_it_returns(
    name: str, signature: str, output: str, hub: HubModules
) -> None:
    facts = hub.pinned(name).facts
    assert (facts.signature, facts.output, facts.dim, facts.combiner) == (signature, output, 16, "")
    assert facts.tokenizer == ("sentencepiece" if name == "use-lite" else "parts")


@pytest.mark.parametrize("name", names_of("preprocessed-encoder", "tf1-bert"))
def test_encoder_is_found_with_its_layers_and_its_longest_sequence(
    name: str, hub: HubModules
) -> None:
    facts = hub.pinned(name).facts
    dim = 12 if name == "electra" else 8
    assert (facts.output, facts.dim) == ("sequence_output", dim)
    assert [(layer.name, layer.dim) for layer in facts.outputs] == [("sequence_output", dim)]
    has_layers = facts.kind == "preprocessed-encoder" and name not in (
        "bert-keras3",
        "fixed-length",
    )
    expected = LAYERS.get(name, LAYERS["bert"]) if has_layers else []
    assert [(layer.name, layer.dim) for layer in facts.layers] == expected
    # Tried out: the tables of positions have 160 rows.
    limits = (0, 32) if name == "fixed-length" else (160, 0)
    assert (facts.max_length, facts.fixed_length) == limits


@pytest.mark.parametrize("name", names_of("elmo"))
def test_elmo_is_found_with_its_layers_from_the_bottom(name: str, hub: HubModules) -> None:
    facts = hub.pinned(name).facts
    dim = 12 if name == "elmo-like" else 16
    assert (facts.signature, facts.output, facts.dim) == ("tokens", "elmo", dim)
    expected = LAYERS.get(name, LAYERS["elmo"])
    assert [(layer.name, layer.dim) for layer in facts.layers] == expected
    assert [(layer.name, layer.dim) for layer in facts.outputs] == [("elmo", dim)]


@pytest.mark.parametrize(
    ("name", "signature", "max_length", "offsets"),
    [
        ("bert", "tokenize", 0, "lower"),
        ("bert-cased", "tokenize", 0, "cased"),
        ("bert-call-only", "__call__", 128, "lower"),
        ("albert", "tokenize", 0, "lower"),
        ("fixed-length", "tokenize", 0, "lower"),
    ],
)
def test_preprocessor_is_found_with_its_special_tokens(
    name: str, signature: str, max_length: int, offsets: str, hub: HubModules
) -> None:
    preprocess = hub.pinned(name).preprocess
    assert preprocess is not None
    facts = preprocess.facts
    assert (facts.kind, facts.dim) == ("preprocessor", 0)
    assert (facts.signature, facts.max_length, facts.offsets) == (signature, max_length, offsets)
    around = [*facts.start_ids, *facts.end_ids, facts.padding_id]
    assert around == piece_ids(["[CLS]", "[SEP]", "[PAD]"])
    assert facts.vocab_size == len(PIECES)
    assert ModuleFacts.from_json(facts.to_json()) == facts


def test_only_encoders_of_word_pieces_have_preprocessors(hub: HubModules) -> None:
    for name in ("nnlm", "use", "elmo", "tf1-bert", "bert-v1-tf2"):
        assert hub.pinned(name).preprocess is None
    kinds = {hub.pinned(name).facts.kind for name in ("bert", "elmo", "tf1-bert")}
    assert kinds == set(SEQUENCE_KINDS)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("image", r"signatures: serving_default\(images\). It is not a text module"),
        ("no-signature", r"neither callable nor .*its signatures: none\. It is not a text module"),
        ("wrong-signature", r"its signatures: response_encoder\((context, input|input, context)\)"),
        ("rank3", r"returned shape \(2, 2, 8\) for 2 texts; .* one vector a text"),
        ("classifier-ints", r"returned shape \(2,\) for 2 texts|returns int64, not vectors"),
        ("custom-op-missing", r"Sentencepiece.* tensorflow-text"),
    ],
)
def test_what_is_no_text_module_is_refused_in_one_line(
    name: str, says: str, hub: HubModules
) -> None:
    with pytest.raises(ModuleError) as caught:
        probe_module("the handle", hub.path(name))
    message = str(caught.value)
    assert message.startswith("the handle: ")
    assert re.search(says, message), message
    assert "\n" not in message


def test_facts_of_another_probe_are_probed_again(hub: HubModules) -> None:
    facts = hub.pinned("elmo").facts
    assert ModuleFacts.from_json(replace(facts, probe=PROBE_VERSION + 1).to_json()) is None
    record: dict[str, Any] = json.loads(facts.to_json())
    del record["layers"]
    assert ModuleFacts.from_json(json.dumps(record)) is None


def test_elmo_that_splits_texts_itself_gives_the_same_rows(
    tmp_path: Path, store: FeatureStore
) -> None:
    path = make_elmo(tmp_path / "texts-only", texts_only=True)
    facts = probe_module("m", path)
    assert (facts.kind, facts.signature, facts.output) == ("elmo", "default", "elmo")
    texts = ["the cat sat", "a", "two  spaces here", ""]
    corpus = tmp_path / "a.txt"
    corpus.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    options = BuildOptions(dtype="float32")
    report = embedcache.build(store, corpus, module=str(path), options=options)
    for text, rows in zip(texts[:3], store.get(report.view, texts), strict=False):
        expected = expected_elmo(text.split())["elmo"]
        np.testing.assert_allclose(rows, expected, atol=1e-5)
    assert len(store.get(report.view, [""])[0]) == 0


def test_list_taking_bert_without_a_vocabulary_takes_a_preprocessor(
    tmp_path: Path, store: FeatureStore, hub: HubModules
) -> None:
    path = make_bert_v1_tf2(tmp_path / "no-vocabulary", with_vocabulary=False)
    corpus = tmp_path / "a.txt"
    corpus.write_text("the cat sat\n", encoding="utf-8")
    with pytest.raises(ModuleError, match=r"no preprocessor is known for it; .*--preprocess"):
        embedcache.build(store, corpus, module=str(path))
    options = BuildOptions(preprocess=str(hub.preprocess("bert")))
    report = embedcache.build(store, corpus, module=str(path), options=options)
    named = embedcache.build(store, corpus, module=str(hub.path("bert-v1-tf2")))
    rows = [store.get(view, ["the cat sat"]).values for view in (report.view, named.view)]
    np.testing.assert_array_equal(*rows)

"""The tiny modules in the TF1 Hub format with rows of tokens: ELMo and BERT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hub_modules import elmo
from tests.hub_modules.calling import (
    load_path,
    name_of,
    named,
    of_kind,
    packed_ids,
    piece_inputs,
    strings,
)
from tests.hub_modules.kinds import HubModule
from tests.hub_modules.shelf import ModuleShelf
from tests.hub_modules.tf1_bert import make_tf1_bert
from tests.hub_modules.transformer import expected_layers
from tests.hub_modules.vocabulary import PIECES

Loader = Callable[[str], Any]


@pytest.mark.parametrize("name", ["elmo", "elmo-train-graph"])
def test_elmo_outputs_are_those_of_numpy(name: str, load: Loader, tf: Any) -> None:
    outputs = load(name).signatures["tokens"](
        tokens=tf.constant([["the", "cat", "sat"], ["dog", "", ""]]),
        sequence_len=tf.constant([3, 1]),
    )
    for row, tokens in enumerate((["the", "cat", "sat"], ["dog"])):
        expected = elmo.expected_elmo(tokens)
        assert set(outputs) == set(expected)
        for key, rows in expected.items():
            found = outputs[key].numpy()[row]
            found = found if key == "default" else found[: len(tokens)]
            np.testing.assert_allclose(found, rows, atol=1e-5)


def test_elmo_splits_at_spaces_and_pads_to_the_longest(load: Loader) -> None:
    outputs = load("elmo").signatures["default"](text=strings("the  cat", "dog", ""))
    shapes = {key: tuple(value.shape) for key, value in outputs.items()}
    wide = (3, 2, 16)
    assert shapes == {
        "word_emb": (3, 2, 8),
        "lstm_outputs1": wide,
        "lstm_outputs2": wide,
        "elmo": wide,
        "default": (3, 16),
    }
    expected = elmo.expected_elmo(["the", "cat"])
    np.testing.assert_allclose(outputs["elmo"][0], expected["elmo"], atol=1e-5)
    assert not outputs["default"].numpy()[2].any()


def test_elmo_rows_depend_on_both_sides() -> None:
    first, *_ = elmo.expected_elmo(["the", "cat", "sat"])["elmo"]
    assert np.abs(first - elmo.expected_elmo(["the", "dog", "sat"])["elmo"][0]).max() > 0.01
    last = elmo.expected_elmo(["the", "cat", "sat"])["elmo"][-1]
    assert np.abs(last - elmo.expected_elmo(["the", "dog", "sat"])["elmo"][-1]).max() > 0.01


def test_elmo_like_has_a_tag_and_no_signature_for_text(
    shelf: ModuleShelf, load: Loader, tf: Any
) -> None:
    module = named("elmo-like")
    assert not (shelf.path_of(module) / "tfhub_module.pb").exists()
    assert set(load(module.name).signatures) == {"tokens"}
    assert "word_emb" not in load(module.name).signatures["tokens"].structured_outputs
    tf.saved_model.load(str(shelf.path_of(module)), tags=["serve"])


@pytest.mark.parametrize("name", ["elmo-train-graph", "tf1-bert"])
def test_two_graphs_can_be_loaded_with_tags_only(name: str, shelf: ModuleShelf, tf: Any) -> None:
    path = str(shelf.path_of(named(name)))
    with pytest.raises(ValueError, match="requires a `tags=` argument"):
        tf.saved_model.load(path)
    assert "tokens" in tf.saved_model.load(path, tags=[]).signatures
    assert "tokens" in tf.saved_model.load(path, tags=["train"]).signatures


_OF_TF1 = [module for module in of_kind("tf1-bert") if module.name.startswith("tf1")]


@pytest.mark.parametrize("module", _OF_TF1, ids=name_of)
def test_tf1_bert_rows_are_those_of_numpy(module: HubModule, load: Loader) -> None:
    names = ("input_ids", "input_mask", "segment_ids")
    tokens = load(module.name).signatures["tokens"]
    outputs = tokens(**piece_inputs("the cat", "dog", length=9, names=names))
    assert set(outputs) == {"pooled_output", "sequence_output"}
    for row, text in enumerate(("the cat", "dog")):
        rows = outputs["sequence_output"][row, : len(packed_ids(text))]
        np.testing.assert_allclose(rows, expected_layers(packed_ids(text))[-1], atol=2e-5)


def test_tf1_bert_tells_its_vocabulary_by_a_placeholder_and_an_asset(load: Loader) -> None:
    model = load("tf1-bert")
    told = model.signatures["tokenization_info"]()
    assert told["vocab_file"].numpy() == b"SAVEDMODEL-ASSET"
    assert told["do_lower_case"].numpy()
    (asset,) = model.asset_paths
    lines = Path(asset.asset_path.numpy().decode()).read_text(encoding="utf-8").splitlines()
    assert lines == list(PIECES)


def test_tf1_bert_may_be_cased_and_may_predict_masked_pieces(
    tmp_path: Path, load: Loader, tf: Any
) -> None:
    cased = load_path(make_tf1_bert(tmp_path / "cased", lower_case=False))
    assert not cased.signatures["tokenization_info"]()["do_lower_case"].numpy()
    assert set(cased.signatures) == {"tokens", "tokenization_info"}
    inputs = piece_inputs("the cat", length=9, names=("input_ids", "input_mask", "segment_ids"))
    outputs = load("tf1-bert-mlm").signatures["mlm"](**inputs, mlm_positions=tf.constant([[1, 2]]))
    assert outputs["mlm_logits"].shape == (1, 2, len(PIECES))

"""The tiny preprocessors and transformer encoders: interfaces and numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hub_modules import bert_encoder
from tests.hub_modules.calling import (
    encode,
    load_path,
    name_of,
    named,
    of_kind,
    packed_ids,
    piece_inputs,
    strings,
)
from tests.hub_modules.kinds import HubModule
from tests.hub_modules.preprocess import SPECIAL_TOKENS
from tests.hub_modules.shelf import ModuleShelf
from tests.hub_modules.transformer import INPUT_NAMES, TransformerRecipe, expected_layers
from tests.hub_modules.vocabulary import PIECES, piece_ids, text_piece_ids, text_pieces

TEXTS = ("the cat sat", "Hello, world!", "", "zzz  dog", "the cat's goodness")
ENCODERS = [module for module in of_kind("preprocessed-encoder") if module.preprocess is not None]

Loader = Callable[[str], Any]


PIECE_TEXTS = (
    "The cat's  sitting, goodness! naïve Über",
    "",
    "今日は good\tnan \u00a0x",
    "a$b ~ é Ω x\u200by " + "z" * 101,
    "¿one? (two) [long]…",
)


@pytest.fixture(scope="session")
def bert_preprocess(load_preprocess: Loader) -> Any:
    return load_preprocess("bert")


def test_preprocessor_tokenizes_as_bert_does(bert_preprocess: Any, tf: Any) -> None:
    tokens = bert_preprocess.tokenize(strings(*PIECE_TEXTS))
    assert (tokens.dtype, tokens.shape.as_list()) == (tf.int32, [len(PIECE_TEXTS), None, None])
    found = [[[PIECES[piece] for piece in word] for word in words] for words in tokens.to_list()]
    assert found == [text_pieces(text) for text in PIECE_TEXTS]


def test_wordpiece_reference_splits_as_published() -> None:
    # The rules of BERT's own tokeniser, by hand over this vocabulary.
    assert text_pieces("Hello, goodness ΩΩ xat") == [
        ["hello"],
        [","],
        ["good", "##ness"],
        ["[UNK]"],
        ["x", "##a", "##t"],
    ]


def test_cased_preprocessor_keeps_case(load_preprocess: Loader) -> None:
    cased = load_preprocess("bert-cased")
    found = cased.tokenize(strings("The cat")).to_list()[0]
    expected = [piece_ids(pieces) for pieces in text_pieces("The cat", lower_case=False)]
    assert found == expected
    assert found[0] == piece_ids(["[UNK]"])


def test_albert_preprocessor_does_not_group_by_words(load_preprocess: Loader) -> None:
    tokens = load_preprocess("albert").tokenize(strings(*PIECE_TEXTS))
    assert tokens.shape.as_list() == [len(PIECE_TEXTS), None]
    assert tokens.to_list() == [text_piece_ids(text) for text in PIECE_TEXTS]


def test_preprocessor_tells_its_special_tokens_and_its_vocabulary(
    bert_preprocess: Any, shelf: ModuleShelf, tf: Any
) -> None:
    told = bert_preprocess.tokenize.get_special_tokens_dict()
    assert {name: int(value) for name, value in told.items()} == SPECIAL_TOKENS
    assert told["vocab_size"].dtype == tf.int32
    file = shelf.preprocess_of(named("bert")) / "assets" / "vocab.txt"
    assert file.read_text(encoding="utf-8").splitlines() == list(PIECES)


def test_calling_a_preprocessor_packs_to_128(
    bert_preprocess: Any, load_preprocess: Loader, tf: Any
) -> None:
    least = load_preprocess("bert-call-only")
    expected = piece_inputs(*PIECE_TEXTS, length=128)
    for model in (bert_preprocess, least):
        packed = model(strings(*PIECE_TEXTS))
        assert set(packed) == set(expected)
        for name, values in expected.items():
            assert packed[name].dtype == tf.int32
            np.testing.assert_array_equal(packed[name], values)
    assert not hasattr(least, "tokenize")
    assert not hasattr(least, "bert_pack_inputs")


@pytest.mark.parametrize("grouped", [True, False])
def test_packing_takes_a_length_and_cuts_to_a_prefix(
    bert_preprocess: Any, grouped: bool, tf: Any
) -> None:
    tokens = bert_preprocess.tokenize(strings("the cat sat on the mat", "dog"))
    tokens = tokens if grouped else tokens.merge_dims(1, 2)
    packed = bert_preprocess.bert_pack_inputs([tokens], seq_length=tf.constant(5))
    expected = [
        piece_ids(["[CLS]", "the", "cat", "sat", "[SEP]"]),
        piece_ids(["[CLS]", "dog", "[SEP]", "[PAD]", "[PAD]"]),
    ]
    assert packed["input_word_ids"].numpy().tolist() == expected
    assert packed["input_mask"].numpy().tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert bert_preprocess.bert_pack_inputs([tokens])["input_mask"].shape == (2, 128)
    assert bert_preprocess.bert_pack_inputs([tokens], seq_length=7)["input_mask"].shape == (2, 7)


def test_packing_two_segments_gives_each_its_turns(bert_preprocess: Any) -> None:
    first = bert_preprocess.tokenize(strings("the cat sat on the mat", "dog"))
    second = bert_preprocess.tokenize(strings("hello world it is", "cat cat cat cat"))
    packed = bert_preprocess.bert_pack_inputs([first, second], seq_length=8)
    pieces = [[PIECES[piece] for piece in row] for row in packed["input_word_ids"].numpy()]
    assert pieces == [
        ["[CLS]", "the", "cat", "sat", "[SEP]", "hello", "world", "[SEP]"],
        ["[CLS]", "dog", "[SEP]", "cat", "cat", "cat", "cat", "[SEP]"],
    ]
    assert packed["input_type_ids"].numpy().tolist() == [[0] * 5 + [1] * 3, [0] * 3 + [1] * 5]


def test_a_batch_of_nothing_can_be_preprocessed(bert_preprocess: Any, tf: Any) -> None:
    empty = tf.constant([], tf.string, shape=[0])
    assert bert_preprocess.tokenize(empty).to_list() == []
    assert bert_preprocess(empty)["input_mask"].shape == (0, 128)


@pytest.mark.parametrize("module", ENCODERS, ids=name_of)
def test_encoder_runs_on_its_preprocessor(
    module: HubModule, load: Loader, load_preprocess: Loader
) -> None:
    inputs = load_preprocess(module.name)(strings(*TEXTS))
    outputs = encode(load(module.name), inputs)
    length, dim = inputs["input_mask"].shape[1], 12 if module.name == "electra" else 8
    assert outputs["sequence_output"].shape == (len(TEXTS), length, dim)
    assert outputs["pooled_output"].shape == (len(TEXTS), dim)
    if module.name != "electra":
        np.testing.assert_array_equal(outputs["default"], outputs["pooled_output"])


@pytest.mark.parametrize("name", ["bert", "bert-keras2", "bert-keras3"])
def test_encoder_rows_are_those_of_numpy(name: str, load: Loader) -> None:
    text = "the cat's goodness"
    outputs = encode(load(name), piece_inputs(text, length=20))
    expected = expected_layers(packed_ids(text))
    used = len(packed_ids(text))
    np.testing.assert_allclose(outputs["sequence_output"][0, :used], expected[-1], atol=2e-5)
    layers = outputs.get("encoder_outputs", [])
    assert len(layers) == (0 if name == "bert-keras3" else 2)
    for layer, rows in zip(layers, expected, strict=False):
        np.testing.assert_allclose(layer[0, :used], rows, atol=2e-5)


def test_albert_and_electra_differ_as_they_claim(load: Loader) -> None:
    inputs = piece_inputs("the cat", length=9)
    used = len(packed_ids("the cat"))
    albert, electra = load("albert"), load("electra")
    assert albert.sp_model_file.asset_path.numpy().endswith(b"assets/30k-clean.model")
    assert set(electra(inputs)) == {"pooled_output", "sequence_output", "encoder_outputs"}
    recipes = ((albert, bert_encoder.ALBERT), (electra, bert_encoder.ELECTRA))
    for model, recipe in recipes:
        rows = model(inputs)["sequence_output"][0, :used]
        expected = expected_layers(packed_ids("the cat"), recipe=recipe)
        assert len(model(inputs)["encoder_outputs"]) == len(expected) == recipe.num_layers
        np.testing.assert_allclose(rows, expected[-1], atol=2e-5)


@pytest.mark.parametrize("name", ["bert", "bert-keras2", "bert-keras3", "albert", "electra"])
def test_padding_does_not_change_rows(name: str, load: Loader) -> None:
    model, used = load(name), len(packed_ids("the cat"))
    short, long = (
        encode(model, piece_inputs("the cat", length=length))["sequence_output"][0, :used]
        for length in (used, 60)
    )
    np.testing.assert_allclose(short, long, atol=1e-5)


def test_padding_changes_the_rows_of_the_leaky_encoder(load: Loader) -> None:
    model, used = load("leaky-encoder"), len(packed_ids("the cat"))
    short, long = (
        model(piece_inputs("the cat", length=length))["sequence_output"][0, :used]
        for length in (used, 60)
    )
    assert np.abs(short - long).max() > 0.01


def test_no_two_calls_of_the_random_encoder_agree(load: Loader) -> None:
    inputs = piece_inputs("the cat", length=9)
    for name, agree in (("random-encoder", False), ("bert", True)):
        first, second = (load(name)(inputs)["sequence_output"] for _ in range(2))
        assert np.allclose(first, second) is agree


def test_context_changes_rows(load: Loader) -> None:
    model = load("bert")
    rows = model(piece_inputs("cat dog", "cat film", length=6))["sequence_output"].numpy()
    assert np.abs(rows[0, 1] - rows[1, 1]).max() > 0.01


def test_nan_encoder_spoils_the_text_with_nan_only(load: Loader) -> None:
    rows = load("nan-encoder")(piece_inputs("cat nan", "cat", length=6))
    assert np.isnan(rows["sequence_output"][0]).all()
    assert np.isfinite(rows["sequence_output"][1]).all()


@pytest.mark.parametrize("made_by", ["module", "keras2"])
def test_encoder_fails_beyond_its_positions(made_by: Any, tmp_path: Path, tf: Any) -> None:
    recipe = TransformerRecipe(max_positions=64)
    model = load_path(
        bert_encoder.make_bert_encoder(tmp_path / "m", recipe=recipe, made_by=made_by)
    )
    assert model(piece_inputs("cat", length=64))["sequence_output"].shape == (1, 64, 8)
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError)):
        model(piece_inputs("cat", length=65))


def test_fixed_length_encoder_takes_its_length_only(load: Loader, tf: Any) -> None:
    model = load("fixed-length")
    assert model(piece_inputs("cat", length=32))["sequence_output"].shape == (1, 32, 8)
    specs = model.signatures["serving_default"].structured_input_signature[1]
    assert {tuple(spec.shape) for spec in specs.values()} == {(None, 32)}
    with pytest.raises(TypeError, match="Can not cast"):
        model(piece_inputs("cat", length=31))


def test_keras2_signature_names_its_outputs_after_layers(load: Loader) -> None:
    signature = load("bert-keras2").signatures["serving_default"]
    assert set(signature.structured_input_signature[1]) == set(INPUT_NAMES)
    names = {"bert_encoder", *(f"bert_encoder_{number}" for number in range(1, 5))}
    assert set(signature.structured_outputs) == names


def test_keras3_export_cannot_be_called(load: Loader) -> None:
    model = load("bert-keras3")
    assert not callable(model)
    assert {"serve", "serving_default"} == set(model.signatures)


@pytest.mark.parametrize("name", ["bert-v1-tf2", "bert-v1-tf2-keras2"])
def test_bert_version_1_takes_and_gives_lists(name: str, load: Loader) -> None:
    model = load(name)
    inputs = piece_inputs("the cat", length=9)
    pooled, rows = model([inputs[key] for key in INPUT_NAMES])
    assert (pooled.shape, rows.shape) == ((1, 8), (1, 9, 8))
    used = len(packed_ids("the cat"))
    np.testing.assert_allclose(
        rows[0, :used], expected_layers(packed_ids("the cat"))[-1], atol=2e-5
    )
    file = Path(model.vocab_file.asset_path.numpy().decode())
    assert file.read_text(encoding="utf-8").splitlines() == list(PIECES)
    assert model.do_lower_case.numpy()

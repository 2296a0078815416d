"""The tiny bag-of-words modules and sentence encoders: interfaces and numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hub_modules import bag_of_words, sentence_encoder
from tests.hub_modules import use_lite as lite
from tests.hub_modules.calling import (
    load_path,
    name_of,
    named,
    of_kind,
    strings,
    vectors,
)
from tests.hub_modules.kinds import HubModule
from tests.hub_modules.saving import TF1_HUB_MARK
from tests.hub_modules.shelf import ModuleShelf

TEXTS = ("the cat sat", "sat cat the", "Hello, world!", "", "zzz  dog", "the cat's goodness")

Loader = Callable[[str], Any]


@pytest.mark.parametrize("module", of_kind("bag-of-words"), ids=name_of)
def test_bag_of_words_gives_one_vector_a_text(module: HubModule, load: Loader) -> None:
    found = vectors(load(module.name), *TEXTS)
    assert found.shape == (len(TEXTS), 8)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    expected = bag_of_words.expected_vector(["the", "cat", "sat"])
    np.testing.assert_allclose(found[0], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "text", "tokens"),
    [
        ("exporter-example", "the  zzz, cat", ["the", "", "zzz", "cat"]),
        ("exporter-example-skips-empty", "the  zzz, cat", ["the", "zzz", "cat"]),
        ("nnlm", "the  cat, sat", ["the", "", "cat,", "sat"]),
        ("nnlm", "Hello world", ["Hello", "world"]),
        ("nnlm-with-normalization", "the cat, sat !", ["the", "cat", "sat", ""]),
        ("nnlm-lower-case", "Hello world", ["hello", "world"]),
        ("nnlm-signature", "the cat", ["the", "cat"]),
        ("nnlm-tf1", "the  cat, zzz", ["the", "cat", "zzz"]),
        ("swivel", "the  cat, zzz", ["the", "cat", "zzz"]),
        ("wiki-words", "the cat !", ["the", "cat", "!"]),
        ("wiki-words-with-normalization", "the cat,", ["the", "cat"]),
    ],
)
def test_text_is_the_root_mean_of_its_tokens(
    name: str, text: str, tokens: list[str], load: Loader
) -> None:
    zero_oov = name.startswith("exporter") or "tf1" in name
    expected = bag_of_words.expected_vector(tokens, zero_oov=zero_oov)
    np.testing.assert_allclose(vectors(load(name), text)[0], expected, rtol=1e-4)


def test_exporter_example_is_float64_and_has_no_signature(load: Loader, tf: Any) -> None:
    model = load("exporter-example")
    assert dict(model.signatures) == {}
    assert model(strings("cat")).dtype == tf.float64
    assert model(strings("", "")).numpy().tolist() == [[0.0] * 8] * 2


def test_nnlm_has_the_signature_default_and_may_have_nothing_else(load: Loader, tf: Any) -> None:
    both, signature = load("nnlm"), load("nnlm-signature")
    assert (callable(both), callable(signature)) == (True, False)
    for model in (both, signature):
        assert model.signatures["default"](strings("cat"))["default"].dtype == tf.float32


def test_tf1_nnlm_has_the_files_and_the_input_names_of_the_tf1_hub_format(
    shelf: ModuleShelf, load: Loader
) -> None:
    for name, key in (("nnlm-tf1", "default"), ("nnlm-tf1-sentences", "sentences")):
        module = named(name)
        assert (shelf.path_of(module) / "tfhub_module.pb").read_bytes() == TF1_HUB_MARK
        assert not callable(load(module.name))
        signature = load(module.name).signatures["default"]
        assert set(signature.structured_input_signature[1]) == {key}


def test_swivel_with_oov_tells_unknown_words_apart(load: Loader) -> None:
    unknown = [f"unknown{number}" for number in range(20)]
    one, several = (
        np.unique(vectors(load(name), *unknown), axis=0) for name in ("swivel", "swivel-with-oov")
    )
    assert len(one) == 1
    assert len(several) > 1


@pytest.mark.parametrize("seed", [0, 1])
def test_weights_depend_on_the_seed_alone(seed: int, tmp_path: Path) -> None:
    found = [
        vectors(load_path(bag_of_words.make_nnlm(tmp_path / str(number), seed=drawn)), "the cat")
        for number, drawn in enumerate((seed, seed, seed + 1))
    ]
    assert (found[0] == found[1]).all()
    assert not np.allclose(found[0], found[2])


@pytest.mark.parametrize(
    "module",
    [module for module in of_kind("sentence-encoder") if module.name != "use-lite"],
    ids=name_of,
)
def test_sentence_encoder_minds_the_order_and_not_the_neighbours(
    module: HubModule, load: Loader
) -> None:
    model = load(module.name)
    found = vectors(model, *TEXTS)
    assert (found.shape, found.dtype) == ((len(TEXTS), 16), np.float32)
    assert np.abs(found[0] - found[1]).max() > 0.01
    np.testing.assert_allclose(vectors(model, TEXTS[0])[0], found[0], rtol=1e-5)
    assert not found[TEXTS.index("")].any()


@pytest.mark.parametrize("name", ["use", "use-tf1", "use-large-signature", "sentence-t5"])
def test_sentence_encoder_is_no_combination_of_its_words(name: str, load: Loader) -> None:
    model = load(name)
    rows = vectors(model, "the", "cat", "sat")
    whole = vectors(model, "the cat sat")[0]
    for combined in (rows.sum(axis=0), rows.mean(axis=0), rows.sum(axis=0) / np.sqrt(3)):
        assert np.abs(combined - whole).max() > 0.01


def test_use_returns_a_tensor_and_sentence_t5_a_list(load: Loader, tf: Any) -> None:
    assert tf.is_tensor(load("use")(strings("cat")))
    result = load("sentence-t5")(strings("cat"))
    assert isinstance(result, list)
    assert [part.shape for part in result] == [(1, 16)]


def test_use_large_has_inputs_and_outputs_and_may_be_no_callable(load: Loader) -> None:
    signature_only, both = load("use-large-signature"), load("use-large")
    assert (callable(signature_only), callable(both)) == (False, True)
    outputs = signature_only.signatures["serving_default"](inputs=strings("the cat"))
    assert set(outputs) == {"outputs"}
    np.testing.assert_array_equal(outputs["outputs"], both(strings("the cat")))


def test_tf1_use_has_the_vectors_of_use(load: Loader) -> None:
    use, tf1 = (vectors(load(name), *TEXTS) for name in ("use", "use-tf1"))
    np.testing.assert_allclose(tf1, use, rtol=1e-5, atol=1e-7)


def test_use_lite_takes_the_parts_of_a_sparse_matrix_of_its_own_pieces(load: Loader) -> None:
    import sentencepiece

    model = load("use-lite")
    (asset,) = model.asset_paths
    reader = sentencepiece.SentencePieceProcessor()
    reader.Load(asset.asset_path.numpy().decode())
    ids = [reader.EncodeAsIds(text) for text in ("the cat sat", "", "hello")]
    found = model.signatures["default"](
        indices=int64s(
            [[row, place] for row, part in enumerate(ids) for place in range(len(part))]
        ),
        values=int64s([piece for part in ids for piece in part]),
        dense_shape=int64s([3, max(map(len, ids))]),
    )["default"].numpy()
    assert (found.shape, reader.GetPieceSize()) == ((3, 16), lite.NUM_PIECES)
    np.testing.assert_allclose(found[0], lite.expected_vector(ids[0]), atol=1e-6)
    assert not found[1].any()


def test_use_lite_tells_its_pieces_by_a_placeholder_and_an_asset(load: Loader) -> None:
    model = load("use-lite")
    assert model.signatures["spm_path"]()["default"].numpy() == b"SAVEDMODEL-ASSET"
    (asset,) = model.asset_paths
    assert asset.asset_path.numpy().decode().endswith(f"use-lite/assets/{lite.SPM_NAME}")


def int64s(values: Any) -> Any:
    import tensorflow as tf

    return tf.constant(values, tf.int64)


def test_sentence_t5_reads_as_many_steps_as_the_longest_text(tmp_path: Path) -> None:
    path = sentence_encoder.make_sentence_t5(tmp_path / "m")
    graph = load_path(path).__call__.concrete_functions[0].graph.as_graph_def()
    operations = {node.op for function in graph.library.function for node in function.node_def}
    operations |= {node.op for node in graph.node}
    assert operations & {"While", "StatelessWhile"}

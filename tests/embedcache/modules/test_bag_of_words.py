"""Bag-of-words modules, on real SavedModels with nnlm's ways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from embedcache.errors import ModuleError
from embedcache.modules.bag_of_words import (
    TOKENS_PER_CALL,
    BagOfWordsEncoder,
    combine_rows,
)
from embedcache.modules.convert.word_vectors import convert_word_vectors
from embedcache.modules.facts import Layer, ModuleFacts
from embedcache.modules.handles import files_digest, files_stamp, resolve_handle
from embedcache.modules.probe import probe_module
from embedcache.modules.saved_model import load_saved_model

MakeModule = Callable[..., Path]
TEXTS = [b"the cat sat", b"", b"a  b, c", "é ü 日本".encode(), b"x " * 3000]


def _load(path: Path, handle: str = "m") -> BagOfWordsEncoder:
    return BagOfWordsEncoder(handle, load_saved_model(handle, path), probe_module(handle, path))


def _matrices(encoder: BagOfWordsEncoder, texts: list[bytes]) -> list[NDArray[np.float32]]:
    tokenized = encoder.tokenize_texts(texts)
    return np.split(encoder.embed_tokens(tokenized.tokens), tokenized.row_splits[1:-1])


@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn"])
@pytest.mark.parametrize("interface", ["both", "call", "signature"])
def test_probe_finds_interface_and_combiner(
    make_module: MakeModule, combiner: str, interface: str
) -> None:
    path = make_module(combiner=combiner, interface=interface)
    facts = probe_module("m", path)
    assert facts.combiner == combiner
    assert facts.signature == ("default" if interface == "signature" else "__call__")
    assert (facts.kind, facts.tokenizer, facts.dim) == ("bag-of-words", "space", 8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_combine_to_the_modules_own_vectors(make_module: MakeModule, dtype: str) -> None:
    path = make_module(dtype=dtype, interface="call")
    encoder = _load(path)
    matrices = _matrices(encoder, TEXTS)
    assert matrices[0].dtype == np.float32
    vectors = encoder.embed_sentences(TEXTS)
    for matrix, vector in zip(matrices, vectors, strict=True):
        np.testing.assert_allclose(combine_rows(matrix, "sqrtn"), vector, rtol=1e-3, atol=1e-4)


def test_empty_tokens_between_spaces_count(make_module: MakeModule) -> None:
    path = make_module()
    encoder = _load(path)
    assert np.diff(encoder.tokenize_texts(TEXTS).row_splits).tolist() == [3, 1, 4, 3, 3001]


def test_result_does_not_depend_on_batch_or_order(make_module: MakeModule) -> None:
    path = make_module()
    encoder = _load(path)
    together = _matrices(encoder, TEXTS)
    for position in (3, 0, 2, 1):
        alone = _matrices(encoder, [TEXTS[position]])[0]
        np.testing.assert_array_equal(alone, together[position])


def test_more_tokens_than_one_call_takes_keep_their_order(make_module: MakeModule) -> None:
    path = make_module()
    encoder = _load(path)
    tokens = [str(number).encode() for number in range(2 * TOKENS_PER_CALL + 5)]
    rows = encoder.embed_tokens(tokens)
    for position in (0, TOKENS_PER_CALL - 1, TOKENS_PER_CALL, len(tokens) - 1):
        np.testing.assert_array_equal(rows[position], encoder.embed_tokens([tokens[position]])[0])


def test_builtin_module_tokenizes_by_itself() -> None:
    path = resolve_handle("builtin:en-words-128")
    facts = probe_module("builtin:en-words-128", path)
    assert (facts.tokenizer, facts.combiner, facts.dim) == ("module", "sqrtn", 128)
    encoder = BagOfWordsEncoder("m", load_saved_model("m", path), facts)
    assert encoder.tokenize_texts([b"Don't stop!", b""]).tokens == [
        b"don",
        b"'",
        b"t",
        b"stop",
        b"!",
    ]


def test_facts_survive_json_and_older_probes_are_not_believed() -> None:
    facts = ModuleFacts(
        kind="elmo", signature="tokens", output="elmo", tokenizer="space-nonempty", dim=3,
        layers=(Layer(name="1", dim=3),), start_ids=(101,),
    )  # fmt: skip
    assert ModuleFacts.from_json(facts.to_json()) == facts
    assert ModuleFacts.from_json(facts.to_json().replace('"probe": 2', '"probe": 1')) is None


def test_words_that_only_the_module_knows_are_probed_too(tmp_path: Path) -> None:
    words = ["и", "в", "не", "на", "я", "быть", "он", "что"]
    rows = np.random.default_rng(0).normal(size=(len(words), 3))
    lines = [" ".join([word, *map(str, row)]) for word, row in zip(words, rows, strict=True)]
    (tmp_path / "vectors.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    convert_word_vectors(tmp_path / "vectors.txt", tmp_path / "module", combiner="mean")
    facts = probe_module("m", tmp_path / "module")
    assert (facts.kind, facts.combiner) == ("bag-of-words", "mean")


def test_encoder_of_sentences_is_told_apart(make_module: MakeModule) -> None:
    facts = probe_module("my-encoder", make_module(twist="encoder"))
    assert (facts.kind, facts.combiner) == ("sentence-encoder", "")


def test_tokenizer_of_its_own_that_does_not_explain_its_vectors_is_left(
    make_module: MakeModule,
) -> None:
    assert probe_module("m", make_module(twist="splits")).tokenizer == "space"


def test_module_that_takes_no_text_is_refused(tmp_path: Path) -> None:
    import tensorflow as tf

    class Image(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32)])
        def __call__(self, image: object) -> object:
            return image

    tf.saved_model.save(Image(), str(tmp_path))
    with pytest.raises(ModuleError, match="does not take a batch of strings") as error:
        probe_module("m", tmp_path)
    assert "\n" not in str(error.value)


def test_module_without_call_or_signature_is_refused(tmp_path: Path) -> None:
    import tensorflow as tf

    tf.saved_model.save(tf.Module(), str(tmp_path))
    with pytest.raises(ModuleError, match="its signatures: none"):
        probe_module("m", tmp_path)


def test_damaged_saved_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"not a protocol buffer")
    with pytest.raises(ModuleError, match="cannot be loaded as a SavedModel") as error:
        load_saved_model("m", resolve_handle(str(tmp_path)))
    assert "\n" not in str(error.value)


def test_missing_folder_and_folder_without_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModuleError, match="no such folder"):
        resolve_handle(str(tmp_path / "nothing"))
    with pytest.raises(ModuleError, match="no SavedModel there"):
        resolve_handle(str(tmp_path))
    with pytest.raises(ModuleError, match="en-words-128"):
        resolve_handle("builtin:no-such")


def test_half_downloaded_module_is_refused(make_module: MakeModule) -> None:
    path = make_module()
    (path / "variables" / "variables.index").unlink()
    with pytest.raises(ModuleError, match="half-downloaded"):
        resolve_handle(str(path))


def test_url_that_cannot_be_reached_is_one_line() -> None:
    # Port 9 of loopback: nothing listens there.
    with pytest.raises(ModuleError, match="cannot be fetched") as error:
        resolve_handle("http://127.0.0.1:9/module/1")
    assert "\n" not in str(error.value)


def test_digest_is_of_names_and_contents_only(make_module: MakeModule, tmp_path: Path) -> None:
    import shutil

    path = make_module()
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    assert files_digest(copy) == files_digest(path)
    assert files_stamp(path) == files_stamp(path)
    before = files_stamp(copy)
    with (copy / "saved_model.pb").open("ab") as file:
        file.write(b"\0")
    assert files_digest(copy) != files_digest(path)
    assert files_stamp(copy) != before

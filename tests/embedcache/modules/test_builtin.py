"""The committed SavedModel `en-words-128`, and the tables and tools it is made with."""

from __future__ import annotations

import csv
import importlib
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from embedcache.errors import ModuleError
from embedcache.modules.builtin import BUILTIN_NAMES, builtin_path
from embedcache.modules.builtin.characters import build_pages
from embedcache.modules.builtin.words_module import quantize_rows

NAME = "en-words-128"
DIM = 128
PROJECT = Path(__file__).resolve().parents[3]
# The Unicode version of the Python that made the committed module's tables.
UNICODE_VERSION = "14.0.0"
UNKNOWN = "qqzzxv"
SENTENCES = [
    "A gob of drivel, so sickly sweet!",
    "the film is good",
    "the film is not good , it is great",
    "",
    "Crème brûlée costs $12.50 (or less) …",
    f"the {UNKNOWN} film",
]


@pytest.fixture(scope="module")
def module() -> Any:
    return tf.saved_model.load(str(builtin_path(NAME)))


@pytest.fixture(scope="module")
def vocab() -> list[str]:
    content = (builtin_path(NAME) / "assets" / "vocab.txt").read_text(encoding="utf-8")
    return content.removesuffix("\n").split("\n")


def embed(module: Any, texts: list[str]) -> np.ndarray:
    return module(tf.constant(texts, tf.string)).numpy()


def tokenize(module: Any, texts: list[str]) -> list[list[str]]:
    tokens = module.tokenize(tf.constant(texts, tf.string)).to_list()
    return [[token.decode("utf-8") for token in row] for row in tokens]


# The package


def test_builtin_path_is_a_saved_model() -> None:
    assert [(builtin_path(name) / "saved_model.pb").is_file() for name in BUILTIN_NAMES] == [True]


def test_unknown_name_is_an_error_of_one_line_that_lists_the_names() -> None:
    with pytest.raises(ModuleError, match=NAME) as caught:
        builtin_path("../en-words-128")
    assert "\n" not in str(caught.value)


def test_importing_the_package_does_not_load_tensorflow() -> None:
    code = (
        "import sys, embedcache.modules.builtin, embedcache.modules.builtin.characters, "
        "embedcache.modules.wordpiece; sys.exit('tensorflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT)


def test_everything_in_the_package_is_at_most_12_megabytes() -> None:
    package = Path(importlib.import_module("embedcache.modules.builtin").__file__ or "").parent
    files = [path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) <= 12_000_000


# The interface of a TF2 Hub text module


def test_texts_become_float32_vectors(module: Any) -> None:
    vectors = embed(module, SENTENCES)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(SENTENCES), DIM)


def test_a_batch_of_no_texts_gives_no_vectors_and_no_tokens(module: Any) -> None:
    assert embed(module, []).shape == (0, DIM)
    assert tokenize(module, []) == []


def test_the_only_signature_is_serving_default_from_text_to_default(module: Any) -> None:
    assert list(module.signatures) == ["serving_default"]
    serve = module.signatures["serving_default"]
    assert serve.structured_input_signature[1] == {
        "text": tf.TensorSpec([None], tf.string, name="text")
    }
    served = serve(text=tf.constant(SENTENCES))
    assert list(served) == ["default"]
    np.testing.assert_array_equal(served["default"], embed(module, SENTENCES))


def test_the_module_is_frozen_and_tells_its_variables(module: Any) -> None:
    assert len(module.variables) == 4
    assert not any(variable.trainable for variable in module.variables)
    assert list(module.trainable_variables) == []
    assert list(module.regularization_losses) == []


def test_tokens_come_as_a_ragged_tensor_of_strings(module: Any) -> None:
    tokens = module.tokenize(tf.constant(["a b", "c"]))
    assert isinstance(tokens, tf.RaggedTensor)
    assert tokens.dtype == tf.string
    assert tokens.shape.as_list() == [2, None]


def test_other_batch_sizes_do_not_trace_again(module: Any) -> None:
    embed(module, ["a"])
    tokenize(module, ["a"])
    functions = (module.__call__, module.tokenize)
    before = [function.experimental_get_tracing_count() for function in functions]
    for batch_size in (0, 2, 3, 64):
        embed(module, ["a b"] * batch_size)
        tokenize(module, ["a b"] * batch_size)
    assert [function.experimental_get_tracing_count() for function in functions] == before
    assert [len(function.concrete_functions) for function in functions] == [1, 1]


def test_the_graph_holds_core_operations_only() -> None:
    saved = saved_model_pb2.SavedModel.FromString(
        (builtin_path(NAME) / "saved_model.pb").read_bytes()
    )
    graph = saved.meta_graphs[0].graph_def
    nodes = [node.op for node in graph.node]
    nodes += [node.op for function in graph.library.function for node in function.node_def]
    assert len(nodes) > 50
    assert sorted({op for op in nodes if not hasattr(tf.raw_ops, op)}) == []


def test_a_copy_works_where_the_original_is_not(module: Any, tmp_path: Path) -> None:
    copy = tf.saved_model.load(str(shutil.copytree(builtin_path(NAME), tmp_path / "copy")))
    np.testing.assert_array_equal(embed(copy, SENTENCES), embed(module, SENTENCES))


# What a text's vector is


def test_a_text_is_the_sum_of_its_tokens_over_the_root_of_their_number(module: Any) -> None:
    for text, tokens in zip(SENTENCES, tokenize(module, SENTENCES), strict=True):
        alone = embed(module, tokens)
        expected = alone.sum(axis=0) / np.sqrt(max(len(tokens), 1))
        np.testing.assert_allclose(embed(module, [text])[0], expected, rtol=1e-6, atol=1e-6)


def test_an_unknown_token_is_zeros_and_counts(module: Any) -> None:
    known, both, unknown = embed(module, ["film", f"film {UNKNOWN}", UNKNOWN])
    assert not unknown.any()
    assert known.any()
    np.testing.assert_allclose(both, known / np.sqrt(2), rtol=1e-6)


@pytest.mark.parametrize(
    "text", ["", " ", "\t\n\r", "\u3000\u2028", "\u0301", "\u200b\ufeff\u00ad"]
)
def test_a_text_without_tokens_is_zeros(module: Any, text: str) -> None:
    assert tokenize(module, [text]) == [[]]
    assert not embed(module, [text]).any()


def test_a_text_does_not_depend_on_the_batch_it_stands_in(module: Any) -> None:
    together = embed(module, SENTENCES * 7)
    alone = np.concatenate([embed(module, [text]) for text in SENTENCES * 7])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(embed(module, SENTENCES[::-1]), embed(module, SENTENCES)[::-1])


def test_a_text_does_not_depend_on_the_order_of_its_tokens(module: Any) -> None:
    one, other = embed(module, ["not good , it is great", "great is it , good not"])
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_words_of_like_meaning_lie_together(module: Any) -> None:
    words = ["awful", "terrible", "splendid", "wonderful", "carburetor", "september"]
    vectors = embed(module, words)
    cosines = vectors @ vectors.T / np.outer(*[np.linalg.norm(vectors, axis=1)] * 2)
    np.fill_diagonal(cosines, -1)
    assert [words[nearest] for nearest in cosines[:4].argmax(axis=1)] == [
        "terrible",
        "awful",
        "wonderful",
        "splendid",
    ]


# The tokeniser


def test_case_and_accents_do_not_count(module: Any) -> None:
    variants = ["cafe", "Café", "CAFÉ", "cafe\u0301", "CaFe\u0301"]
    assert tokenize(module, variants) == [["cafe"]] * len(variants)
    vectors = embed(module, variants)
    np.testing.assert_array_equal(vectors, np.broadcast_to(vectors[0], vectors.shape))


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("dog's", ["dog", "'", "s"]),
        ("Well...no?!", ["well", ".", ".", ".", "no", "?", "!"]),
        ("re-imagining", ["re", "-", "imagining"]),
        ("«¿Qué?» – €5", ["«", "¿", "que", "?", "»", "–", "€", "5"]),
        ("a_b #tag", ["a", "_", "b", "#", "tag"]),
        ("🙂👍🏽", ["🙂", "👍", "🏽"]),
        ("汉字，かな。", ["汉字", "，", "かな", "。"]),
        ("İstanbul ΟΔΟΣ ẞ", ["istanbul", "οδοσ", "ß"]),
        ("soft\u00adhyphen zero\u200bwidth", ["softhyphen", "zero", "width"]),
        ("a\u00a0b\u2009c\x01d\x7fe\u0085f", ["a", "b", "c", "d", "e", "f"]),
    ],
)
def test_texts_are_split_into_words_and_single_marks(
    module: Any, text: str, tokens: list[str]
) -> None:
    assert tokenize(module, [text]) == [tokens]


def test_bytes_that_are_not_utf8_are_replacement_characters(module: Any) -> None:
    tokens = module.tokenize(tf.constant([b"caf\xe9 \xff"])).to_list()
    assert tokens == [[b"caf", b"\xef\xbf\xbd", b"\xef\xbf\xbd"]]


def plain_tokens(text: str) -> list[str]:
    """Tokenise slowly, by the words of the model card."""
    letters = unicodedata.normalize("NFD", "".join(character.lower() for character in text))
    spaced = ""
    for letter in letters:
        category = unicodedata.category(letter)
        if category[0] in "PS":
            spaced += f" {letter} "
        elif category[0] == "Z" or category == "Cc":
            spaced += " "
        elif category not in ("Mn", "Me", "Cf"):
            spaced += letter
    return spaced.split(" ")


def test_tokens_are_those_of_a_plain_implementation(module: Any) -> None:
    # Latin, Greek, Cyrillic, general punctuation, currency: the same in all Unicode versions.
    blocks = [(0x00, 0x250), (0x300, 0x370), (0x391, 0x3CA), (0x400, 0x460), (0x2010, 0x2060)]
    letters = [chr(code) for first, end in blocks for code in range(first, end)]
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(letters, size)) for size in rng.integers(1, 40, 500)]
    expected = [[token for token in plain_tokens(text) if token] for text in texts]
    assert tokenize(module, texts) == expected


def test_a_token_of_any_code_point_gives_itself_when_tokenised_again(module: Any) -> None:
    codes = [*range(0xD800), *range(0xE000, 0x30000), *range(0xE0000, 0xE0200), 0x10FFFF]
    tokens = module.tokenize(tf.constant([chr(code) for code in codes]))
    assert set(tokens.row_lengths().numpy()) == {0, 1}
    distinct = sorted(set(tokens.values.numpy()))
    assert len(distinct) > 100_000
    again = module.tokenize(tf.constant(distinct))
    assert again.values.numpy().tolist() == distinct
    assert set(again.row_lengths().numpy()) == {1}


def test_a_token_of_any_text_gives_itself_when_tokenised_again(module: Any) -> None:
    rng = np.random.default_rng(1)
    codes = rng.integers(1, 0x30000, (2000, 12))
    # Half of the characters from where words, marks and accents are.
    codes = np.where(rng.random(codes.shape) < 0.5, codes % 0x400 + 1, codes)
    codes = np.where((codes >= 0xD800) & (codes < 0xE000), 0x41, codes)
    texts = ["".join(map(chr, row)) for row in codes]
    distinct = sorted({token for row in tokenize(module, texts) for token in row})
    assert len(distinct) > 4000
    assert tokenize(module, distinct) == [[token] for token in distinct]


@pytest.mark.skipif(
    unicodedata.unidata_version != UNICODE_VERSION,
    reason=f"the committed tables follow Unicode {UNICODE_VERSION}",
)
def test_the_committed_character_tables_are_those_the_code_builds(module: Any) -> None:
    pages = build_pages()
    stored = {variable.name.split(":")[0]: variable for variable in module.variables}
    np.testing.assert_array_equal(stored["page_starts"], pages.starts)
    np.testing.assert_array_equal(stored["page_entries"], pages.entries)


# The table


def test_the_vocabulary_has_no_duplicates_and_only_single_tokens(
    module: Any, vocab: list[str]
) -> None:
    assert len(vocab) > 75_000
    assert len(set(vocab)) == len(vocab)
    assert tokenize(module, vocab) == [[token] for token in vocab]


def test_every_vector_is_exact_in_float16(module: Any, vocab: list[str]) -> None:
    table = embed(module, vocab)
    np.testing.assert_array_equal(table.astype(np.float16).astype(np.float32), table)
    magnitudes = np.abs(table[table != 0])
    assert magnitudes.min() >= np.finfo(np.float16).tiny
    assert table.any(axis=1).all()


def test_at_least_979_of_1000_tokens_of_sst2_are_known(module: Any, vocab: list[str]) -> None:
    path = PROJECT.parent / "shared" / "data" / "sst2.test.tsv"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    with path.open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file, delimiter="\t")]
    known = set(vocab)
    tokens = [token for row in tokenize(module, texts) for token in row]
    assert np.mean([token in known for token in tokens]) >= 0.979


def test_quantised_rows_are_exact_in_float16_and_close_to_what_they_were() -> None:
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(500, 16)) * np.exp(rng.normal(size=(500, 1)))
    vectors[7] = 0
    vectors[8] = 127 / 128  # a scale that needs no rounding up
    codes, scales = quantize_rows(vectors)
    assert codes.dtype == np.int8
    assert scales.dtype == np.float32
    assert np.abs(codes.astype(int)).max() <= 127
    assert not codes[7].any()
    assert set(codes[8]) == {127}
    fractions, _ = np.frexp(scales)
    np.testing.assert_array_equal(fractions * 16, np.rint(fractions * 16))
    restored = codes * scales[:, np.newaxis]
    np.testing.assert_array_equal(restored.astype(np.float16).astype(np.float32), restored)
    assert (np.abs(restored - vectors) <= scales[:, np.newaxis] / 2 * (1 + 1e-6)).all()

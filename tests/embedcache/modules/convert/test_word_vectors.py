"""Word vectors as a module: its interface, its numbers, and the store's rows of them."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedcache
from embedcache.errors import ModuleError
from embedcache.modules.convert.word_vectors import (
    COMBINERS,
    ConvertedWords,
    convert_word_vectors,
)
from embedcache.modules.handles import files_digest
from embedcache.modules.probe import probe_module
from embedcache.precompute import BuildOptions

PROJECT = Path(__file__).parents[4]
DIM = 5
# Some of the probe's words among them, as in any file of vectors of some language.
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "mat",
    ",",
    ".",
    "2",
    "+",
    "Größe",
    "größe",
    "日本",
    "naïve",
    "❤️",
]
VECTORS = np.random.default_rng(3).normal(size=(len(WORDS), DIM)).astype(np.float32)
ROW = dict(zip(WORDS, VECTORS, strict=True))
TEXTS = ["the cat sat on the mat", "", "cat  cat", "Größe 日本 dog ❤️", "The", " ", "naïve , . !"]

Convert = Callable[..., Path]


def glove_of(words: list[str], vectors: np.ndarray) -> bytes:
    rows = zip(words, vectors, strict=True)
    return b"".join(f"{w} {' '.join(repr(float(x)) for x in row)}\n".encode() for w, row in rows)


@pytest.fixture(scope="session")
def convert(tmp_path_factory: pytest.TempPathFactory) -> Convert:
    """Converts `WORDS`, once for the same options, and gives the module's folder."""
    made: dict[tuple[Any, ...], Path] = {}

    def convert_words(**options: Any) -> Path:
        key = tuple(sorted(options.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("words")
            source = folder / "words.txt"
            source.write_bytes(glove_of(WORDS, VECTORS))
            made[key] = convert_word_vectors(source, folder / "module", **options).path
        return made[key]

    return convert_words


@pytest.fixture(scope="session")
def load(convert: Convert) -> Callable[..., Any]:
    def load_converted(**options: Any) -> Any:
        import tensorflow as tf

        return tf.saved_model.load(str(convert(**options)))

    return load_converted


def embed(module: Any, texts: list[str]) -> np.ndarray:
    import tensorflow as tf

    vectors: np.ndarray = module(tf.constant(texts, tf.string)).numpy()
    return vectors


def tokenize(module: Any, texts: list[str]) -> list[list[str]]:
    import tensorflow as tf

    ragged = module.tokenize(tf.constant(texts, tf.string)).to_list()
    return [[token.decode() for token in tokens] for tokens in ragged]


def matrix_of(text: str) -> np.ndarray:
    """What a text's rows should be: unknown and empty tokens are zeros."""
    return np.stack([ROW.get(token, np.zeros(DIM, np.float32)) for token in text.split(" ")])


# The interface


def test_module_has_the_interface_of_nnlm(convert: Convert, load: Callable[..., Any]) -> None:
    import tensorflow as tf

    module = load()
    assert [tuple(variable.shape) for variable in module.variables] == [(len(WORDS) + 1, DIM)]
    assert list(module.trainable_variables) == list(module.regularization_losses) == []
    assert sorted(module.signatures) == ["default", "serving_default"]
    for signature in module.signatures.values():
        output = signature(text=tf.constant(["the cat"]))
        assert list(output) == ["default"]
        np.testing.assert_array_equal(output["default"], embed(module, ["the cat"]))
    tokens = (convert() / "assets" / "tokens.txt").read_text(encoding="utf-8")
    assert tokens == "".join(f"{word}\n" for word in WORDS)


@pytest.mark.parametrize("combiner", COMBINERS)
def test_text_is_the_combination_of_its_tokens(load: Callable[..., Any], combiner: str) -> None:
    combine = {
        "sum": lambda rows: rows.sum(axis=0),
        "mean": lambda rows: rows.mean(axis=0),
        "sqrtn": lambda rows: rows.sum(axis=0) / np.sqrt(len(rows)),
    }[combiner]
    expected = np.stack([combine(matrix_of(text).astype(np.float64)) for text in TEXTS])
    found = embed(load(combiner=combiner), TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("combiner", COMBINERS)
def test_vector_of_each_word_is_the_one_in_the_file(
    load: Callable[..., Any], combiner: str
) -> None:
    np.testing.assert_array_equal(embed(load(combiner=combiner), WORDS), VECTORS)


def test_unknown_and_empty_texts_are_zeros(load: Callable[..., Any]) -> None:
    unknown = ["", " ", "dog", "THE", "cat,", "the\tcat", "the\n"]
    assert not embed(load(), unknown).any()
    assert embed(load(), []).shape == (0, DIM)


def test_bytes_that_are_no_utf8_are_unknown_and_do_no_harm(load: Callable[..., Any]) -> None:
    import tensorflow as tf

    vectors = load()(tf.constant([b"\xff\xfe", b"cat \xff"])).numpy()
    np.testing.assert_allclose(vectors[1], ROW["cat"] / np.sqrt(2), rtol=1e-6)
    assert not vectors[0].any()


def test_tokens_end_at_single_spaces_only(load: Callable[..., Any]) -> None:
    texts = ["", " ", "a  b", "The cat,\tsat ", "日本 Größe"]
    assert tokenize(load(), texts) == [text.split(" ") for text in texts]


def test_normalizing_module_looks_up_lower_case(load: Callable[..., Any]) -> None:
    module = load(normalize=True)
    np.testing.assert_array_equal(embed(module, ["THE"])[0], ROW["the"])
    np.testing.assert_array_equal(embed(module, ["GRÖßE", "NAÏVE"]), [ROW["größe"], ROW["naïve"]])
    assert tokenize(module, ["The GRÖßE  "]) == [["the", "größe", "", ""]]
    assert not embed(load(), ["THE", "GRÖßE"]).any()


def test_more_buckets_for_unknown_words_change_no_vector(load: Callable[..., Any]) -> None:
    module = load(num_oov_buckets=7)
    assert module.variables[0].shape == (len(WORDS) + 7, DIM)
    unknown = [f"unknown{number}" for number in range(40)]
    assert not embed(module, unknown).any()
    np.testing.assert_array_equal(embed(module, TEXTS), embed(load(), TEXTS))


def test_words_with_spaces_do_not_move_the_rows_of_others(tmp_path: Path) -> None:
    import tensorflow as tf

    source = tmp_path / "words"
    source.write_bytes(b"the 1 2\n. . . 3 4\ncat 5 6\nthe 7 8\ndog 9 10\n")
    converted = convert_word_vectors(source, tmp_path / "module")
    assert converted == ConvertedWords(tmp_path / "module", 4, 2, "glove", 1)
    module = tf.saved_model.load(str(converted.path))
    texts = ["the", "cat", "dog", ". . ."]
    assert embed(module, texts).tolist() == [[1, 2], [5, 6], [9, 10], [0, 0]]


def test_max_words_and_format_are_heard(tmp_path: Path) -> None:
    source = tmp_path / "words"
    source.write_bytes(b"2 1\na 1\n\nnonsense")
    with pytest.raises(ModuleError, match=r"words:3: 0 of 1 numbers follow the word; "):
        convert_word_vectors(source, tmp_path / "module")
    converted = convert_word_vectors(source, tmp_path / "module", format="glove", max_words=2)
    assert converted == ConvertedWords(tmp_path / "module", 2, 1, "glove", 0)


# What features are built of it


@pytest.mark.parametrize("combiner", COMBINERS)
def test_probe_finds_a_bag_of_words(convert: Convert, combiner: str) -> None:
    facts = probe_module("m", convert(combiner=combiner))
    assert (facts.kind, facts.combiner, facts.dim) == ("bag-of-words", combiner, DIM)
    assert (facts.signature, facts.tokenizer) == ("__call__", "module")


@pytest.mark.parametrize("normalize", [False, True])
def test_rows_in_the_store_are_the_vectors_of_the_file(
    convert: Convert, store: embedcache.FeatureStore, tmp_path: Path, normalize: bool
) -> None:
    corpus = tmp_path / "corpus.txt"
    texts = [text for text in TEXTS if text.strip()]
    corpus.write_text("\n".join(texts), encoding="utf-8")
    report = embedcache.build(
        store,
        corpus,
        module=str(convert(normalize=normalize)),
        options=BuildOptions(dtype="float32"),
    )
    features = store.get(report.view, texts)
    for text, matrix in zip(texts, features, strict=True):
        np.testing.assert_array_equal(matrix, matrix_of(text.lower() if normalize else text))


# What is written


def test_table_is_in_a_variable_and_no_path_of_this_machine_in_the_graph(tmp_path: Path) -> None:
    source = tmp_path / "words"
    table = np.random.default_rng(0).normal(size=(9000, 32)).astype(np.float32)
    source.write_bytes(glove_of([f"w{number}" for number in range(len(table))], table))
    path = convert_word_vectors(source, tmp_path / "module").path
    graph = (path / "saved_model.pb").read_bytes()
    assert len(graph) < 1 << 17 < table.nbytes
    assert str(tmp_path).encode() not in graph
    assert (path / "variables" / "variables.data-00000-of-00001").stat().st_size > table.nbytes
    import tensorflow as tf

    module = tf.saved_model.load(str(path))  # more rows than are copied at a time
    np.testing.assert_array_equal(embed(module, ["w0", "w4095", "w4096", "w8999"]),
                                  table[[0, 4095, 4096, 8999]])  # fmt: skip


def test_same_file_is_the_same_module_in_another_process(tmp_path: Path) -> None:
    source = tmp_path / "words"
    source.write_bytes(glove_of(WORDS, VECTORS))
    script = (
        "import sys; from pathlib import Path\n"
        "from embedcache.modules.convert.word_vectors import convert_word_vectors\n"
        "convert_word_vectors(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    targets = [tmp_path / "one" / "m", tmp_path / "another"]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, source, target],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for target in targets
    ]
    assert [process.communicate()[0] for process in running] == [b"", b""]
    assert files_digest(targets[0]) == files_digest(targets[1])


def test_empty_folder_is_a_good_target_and_nothing_else_is_left(tmp_path: Path) -> None:
    source = tmp_path / "words"
    source.write_bytes(b"the 1 2\n")
    target = tmp_path / "module"
    target.mkdir()
    assert convert_word_vectors(source, target).path == target
    assert sorted(path.name for path in tmp_path.iterdir()) == ["module", "words"]
    assert sorted(path.name for path in target.iterdir()) == [
        "assets",
        "saved_model.pb",
        "variables",
    ]


# What is refused


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "words"
    path.write_bytes(b"the 1 2\n")
    return path


def error_of(source: Path, target: Path, **options: Any) -> str:
    with pytest.raises(ModuleError) as caught:
        convert_word_vectors(source, target, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_target_that_holds_something_is_refused_and_kept(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "module"
    target.mkdir()
    (target / "mine").write_text("precious")
    assert error_of(source, target) == (
        f"{target}: holds files already; name a new folder, or empty this one"
    )
    assert [path.name for path in target.iterdir()] == ["mine"]
    assert error_of(source, source) == f"{source}: is no folder; name a new one"
    assert source.read_bytes() == b"the 1 2\n"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"combiner": "max"}, "'max' is no combiner; use sqrtn, mean, sum"),
        ({"num_oov_buckets": 0}, "num_oov_buckets is 0: unknown words need 1 or more"),
        ({"max_words": -1}, "max_words is -1: no word would be left; use 1 or more"),
    ],
)
def test_option_without_a_legal_value_is_refused(
    source: Path, tmp_path: Path, options: dict[str, Any], expected: str
) -> None:
    assert error_of(source, tmp_path / "module", **options) == expected


def test_target_that_cannot_be_made_is_an_error_of_one_line(source: Path) -> None:
    target = source / "below" / "module"
    assert error_of(source, target) == (
        f"{target}: cannot be written (Not a directory); name another folder, or make room"
    )


def test_failure_in_the_middle_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embedcache.modules.convert import vector_module

    def save_half(directory: Path, *_: Any, **__: Any) -> None:
        directory.mkdir()
        (directory / "saved_model.pb").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(vector_module, "save_vector_module", save_half)
    target = tmp_path / "module"
    assert error_of(source, target) == (
        f"{target}: cannot be written (No space left on device); name another folder, or make room"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["words"]


def test_bad_file_is_refused_without_tensorflow_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "words").write_bytes(b"the 1 2\ncat 1\n")
    script = (
        "import sys; from pathlib import Path\n"
        "from embedcache.errors import ModuleError\n"
        "from embedcache.modules.convert.word_vectors import convert_word_vectors\n"
        "try: convert_word_vectors(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except ModuleError as error: print(error, 'tensorflow' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "words", tmp_path / "module"],
        capture_output=True,
        text=True,
        check=True,
        cwd=PROJECT,
    )
    assert done.stdout == (
        f"{tmp_path}/words:2: 1 of 2 numbers follow the word; give its format, one of glove,"
        " word2vec-text, word2vec-bin, or correct the file False\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["words"]

"""WordPiece and the BERT encoder, on tiny checkpoints with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from embedcache.errors import ModuleError
from embedcache.modules.bert_config import BertConfig
from embedcache.modules.bert_encoder import load_encoder
from embedcache.modules.builtin import distill
from embedcache.modules.safetensors import read_safetensors
from embedcache.modules.wordpiece import load_vocab, split_word, whole_words
from tests.embedcache.modules.bert_checkpoints import (
    CONFIG,
    PIECES,
    plain_bert,
    random_tensors,
    write_checkpoint,
    write_safetensors,
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "tiny", CONFIG, random_tensors(CONFIG))


# The encoder


def test_hidden_states_are_those_of_plain_numpy(checkpoint: Path) -> None:
    piece_ids = [2, 6, 7, 8, 3]
    states = load_encoder(checkpoint)(tf.constant([piece_ids]), tf.ones([1, 5]))
    expected = plain_bert(CONFIG, random_tensors(CONFIG), piece_ids, [0] * 5)
    assert len(states) == len(expected) == 4
    for state, plain in zip(states, expected, strict=True):
        assert state.dtype == tf.float32
        assert state.shape == (1, 5, 12)
        assert np.abs(state.numpy()[0] - plain).max() <= 1e-5


def test_padding_and_segments_give_what_each_sequence_gives_alone(checkpoint: Path) -> None:
    sequences = [([2, 14, 3], [0, 0, 0]), ([2, 12, 3, 6, 7, 8, 3], [0, 0, 0, 1, 1, 1, 1])]
    piece_ids, segment_ids, mask = np.zeros((3, 2, 7), np.int32)
    for row, (pieces, segments) in enumerate(sequences):
        piece_ids[row, : len(pieces)] = pieces
        segment_ids[row, : len(pieces)] = segments
        mask[row, : len(pieces)] = 1
    states = load_encoder(checkpoint)(piece_ids, mask, segment_ids)
    for row, (pieces, segments) in enumerate(sequences):
        expected = plain_bert(CONFIG, random_tensors(CONFIG), pieces, segments)
        for state, plain in zip(states, expected, strict=True):
            assert np.abs(state.numpy()[row, : len(pieces)] - plain).max() <= 1e-5


def test_fewer_layers_give_the_first_states(checkpoint: Path) -> None:
    piece_ids, mask = tf.constant([[2, 13, 3]]), tf.ones([1, 3])
    all_states = load_encoder(checkpoint)(piece_ids, mask)
    first_states = load_encoder(checkpoint, num_layers=1)(piece_ids, mask)
    assert len(first_states) == 2
    for state, other in zip(first_states, all_states, strict=False):
        np.testing.assert_array_equal(state, other)


def test_names_may_begin_with_bert(checkpoint: Path, tmp_path: Path) -> None:
    prefixed = {f"bert.{name}": array for name, array in random_tensors(CONFIG).items()}
    other = write_checkpoint(tmp_path / "prefixed", CONFIG, prefixed)
    piece_ids, mask = tf.constant([[2, 13, 3]]), tf.ones([1, 3])
    one, two = (load_encoder(folder)(piece_ids, mask)[-1] for folder in (checkpoint, other))
    np.testing.assert_array_equal(one, two)


def test_an_encoder_can_be_traced_once_for_all_shapes_and_has_no_trainable_weights(
    checkpoint: Path,
) -> None:
    encoder = load_encoder(checkpoint)
    encode = tf.function(encoder, input_signature=[tf.TensorSpec([None, None], tf.int32)] * 2)
    for batch_size, length in ((1, 3), (4, 7)):
        ids = tf.fill([batch_size, length], 5)
        assert encode(ids, tf.ones_like(ids))[-1].shape == (batch_size, length, 12)
    assert encode.experimental_get_tracing_count() == 1
    assert encoder.trainable_variables == ()


@pytest.mark.parametrize("activation", ["relu", "gelu_new"])
def test_other_activations_are_finite_and_differ(
    checkpoint: Path, tmp_path: Path, activation: str
) -> None:
    config = CONFIG | {"hidden_act": activation}
    other = write_checkpoint(tmp_path / "other", config, random_tensors(config))
    piece_ids, mask = tf.constant([[2, 13, 3]]), tf.ones([1, 3])
    one, two = (load_encoder(folder)(piece_ids, mask)[-1] for folder in (checkpoint, other))
    assert np.isfinite(two).all()
    assert np.abs(one - two).max() > 1e-5


# Checkpoints


def test_tensors_come_back_with_their_dtype_and_shape(tmp_path: Path) -> None:
    tensors = {
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "ids": np.arange(4).reshape(1, 4),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.array(2.5, np.float32),
        "brain": (np.array([1.0, -2.5], np.float32).view(np.uint32) >> 16).astype(np.uint16),
    }
    write_safetensors(tmp_path / "some.safetensors", tensors)
    found = read_safetensors(tmp_path / "some.safetensors")
    np.testing.assert_array_equal(found.pop("brain"), np.array([1.0, -2.5], np.float32))
    assert list(found) == list(tensors)[:-1]
    for name, array in found.items():
        assert array.dtype == tensors[name].dtype
        np.testing.assert_array_equal(array, tensors[name])


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"[]"])
def test_what_is_not_safetensors_is_an_error_of_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModuleError, match=r"model\.safetensors") as caught:
        read_safetensors(path)
    assert "\n" not in str(caught.value)


def test_a_cut_checkpoint_is_an_error(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModuleError, match=r"model\.safetensors"):
        load_encoder(checkpoint)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModuleError, match=r"config\.json"):
        load_encoder(tmp_path)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    del tensors["encoder.layer.1.output.dense.bias"]
    folder = write_checkpoint(tmp_path / "lacking", CONFIG, tensors)
    with pytest.raises(ModuleError, match=r"encoder\.layer\.1\.output\.dense\.bias"):
        load_encoder(folder)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG) | {"embeddings.LayerNorm.bias": np.zeros(7, np.float32)}
    folder = write_checkpoint(tmp_path / "wrong", CONFIG, tensors)
    with pytest.raises(ModuleError, match=r"LayerNorm\.bias .*\(7,\).*\(12,\)"):
        load_encoder(folder)


def test_more_layers_than_there_are_is_an_error(checkpoint: Path) -> None:
    with pytest.raises(ModuleError, match="3 layers"):
        load_encoder(checkpoint, num_layers=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "swish"}, "swish"),
        ({"num_attention_heads": 5}, "5 heads"),
        ({"position_embedding_type": "relative_key"}, "relative"),
        ({"hidden_size": "12"}, "'12' for hidden_size"),
        ({"num_attention_heads": 0}, "0 for num_attention_heads"),
        ({"layer_norm_eps": None}, "None for layer_norm_eps"),
    ],
)
def test_a_configuration_that_is_not_known_is_an_error(
    tmp_path: Path, change: dict, message: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(ModuleError, match=message):
        BertConfig.from_json(tmp_path / "config.json")


def test_a_configuration_that_lacks_a_size_names_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 12}))
    with pytest.raises(ModuleError, match="num_hidden_layers"):
        BertConfig.from_json(tmp_path / "config.json")


@pytest.mark.parametrize("content", ["{", "[]", '"hidden_size"', "\xff"])
def test_a_configuration_that_is_no_json_object_is_an_error_of_one_line(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(ModuleError, match=r"config\.json") as caught:
        BertConfig.from_json(tmp_path / "config.json")
    assert "\n" not in str(caught.value)


# WordPiece


@pytest.mark.parametrize(
    ("word", "pieces"),
    [
        ("unaffable", ["un", "##aff", "##able"]),
        ("cafe", ["cafe"]),
        ("dogs", ["dog", "##s"]),
        ("s", ["s"]),
        ("lower", ["low", "##er"]),
        # The longest match is taken: "##able" before "##ab", though then nothing may follow.
        ("unable", ["un", "##able"]),
        ("unables", ["un", "##able", "##s"]),
        ("unabl", ["un", "##ab", "##l"]),
        # One letter that is nowhere makes the whole word unknown.
        ("unaffablex", ["[UNK]"]),
        ("x", ["[UNK]"]),
        ("a" * 101, ["[UNK]"]),
        ("", []),
    ],
)
def test_words_are_split_into_the_longest_pieces(word: str, pieces: list[str]) -> None:
    assert split_word(word, {piece: row for row, piece in enumerate(PIECES)}) == pieces


def test_whole_words_leave_out_continuations_and_specials(checkpoint: Path) -> None:
    vocab = load_vocab(checkpoint / "vocab.txt")
    assert list(vocab.values()) == list(range(len(PIECES)))
    assert whole_words(vocab) == ["[", "un", "a", "cafe", "dog", "s", "'", "low"]


def test_a_vocabulary_with_a_piece_twice_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("a\nb\na\n")
    with pytest.raises(ModuleError, match="twice"):
        load_vocab(tmp_path / "vocab.txt")


# The distillation


def test_each_word_is_the_mean_of_its_pieces_alone_in_the_encoder(checkpoint: Path) -> None:
    vocab = load_vocab(checkpoint / "vocab.txt")
    words = ["unaffable", "a", "dogs", "lower", "cafe"]
    vectors = distill.encode_words(load_encoder(checkpoint), vocab, words, (2, 0))
    assert vectors.shape == (2, 5, 12)
    for row, word in enumerate(words):
        ids = [vocab[piece] for piece in ["[CLS]", *split_word(word, vocab), "[SEP]"]]
        states = plain_bert(CONFIG, random_tensors(CONFIG), ids, [0] * len(ids))
        for vector, layer in zip(vectors[:, row], (2, 0), strict=True):
            assert np.abs(vector - states[layer][1:-1].mean(axis=0)).max() <= 1e-5


def test_averaged_layers_weigh_the_same_whatever_their_size_and_mean() -> None:
    layers = np.random.default_rng(4).normal(size=(2, 50, 6)).astype(np.float32)
    moved = np.stack([layers[0] * 100 + 7, layers[1]])
    averaged = distill.average_layers(moved)
    np.testing.assert_allclose(averaged, distill.average_layers(layers), atol=1e-5)
    np.testing.assert_allclose(averaged.mean(axis=0), 0, atol=1e-6)


def test_reduced_vectors_keep_the_geometry_and_have_the_size_asked_for() -> None:
    rng = np.random.default_rng(3)
    # Four directions only, so that four components lose nothing.
    vectors = (rng.normal(size=(200, 4)) @ rng.normal(size=(4, 12)) + 5).astype(np.float32)
    reduced = distill.reduce_dimensions(vectors, 4, target_rms=0.25)
    assert np.sqrt(np.mean(reduced**2)) == pytest.approx(0.25)
    np.testing.assert_allclose(reduced.mean(axis=0), 0, atol=1e-6)
    assert (np.diff(reduced.var(axis=0)) < 0).all()
    before = np.linalg.norm(vectors[:50, None] - vectors[None, :50], axis=-1)
    after = np.linalg.norm(reduced[:50, None] - reduced[None, :50], axis=-1)
    factor = before.sum() / after.sum()
    np.testing.assert_allclose(after * factor, before, rtol=1e-4, atol=1e-4)


def test_distilling_twice_gives_the_same_vocabulary_codes_and_scales(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = CONFIG | {"num_hidden_layers": max(distill._LAYERS)}
    folder = write_checkpoint(tmp_path / "four", config, random_tensors(config))
    words = tmp_path / "words"
    words.write_text("Café\nunaffable\ndog's\nDogs\nlower\nunable\n", encoding="utf-8")
    monkeypatch.setattr(distill, "_DIM", 4)
    pages = distill.build_pages()
    monkeypatch.setattr(distill, "build_pages", lambda: pages)
    modules = []
    for name in ("one", "two"):
        options = [
            "--encoder",
            str(folder),
            "--words",
            str(words),
            "--output",
            str(tmp_path / name),
        ]
        distill.main(options)
        modules.append(tf.saved_model.load(str(tmp_path / name)))
    assert "12 tokens of 4 dimensions" in capsys.readouterr().out
    vocabs = [(tmp_path / name / "assets" / "vocab.txt").read_text() for name in ("one", "two")]
    # The encoder's words first, then the list's that are one token each: not "dog's".
    known = ["[", "un", "a", "cafe", "dog", "s", "'", "low", "unaffable", "dogs", "lower", "unable"]
    assert vocabs[0].split() == known
    assert vocabs[1] == vocabs[0]
    for one, two in zip(modules[0].variables, modules[1].variables, strict=True):
        np.testing.assert_array_equal(one, two)

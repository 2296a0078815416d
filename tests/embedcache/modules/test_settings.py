"""Module + what the user asks for → view. None of it needs TensorFlow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from embedcache.errors import ModuleError
from embedcache.modules.facts import (
    BAG_OF_WORDS,
    ELMO,
    PREPROCESSED_ENCODER,
    PREPROCESSOR,
    SENTENCE_ENCODER,
    TF1_BERT,
    Layer,
    ModuleFacts,
)
from embedcache.modules.loading import ModuleFiles
from embedcache.modules.settings import ViewSettings, view_of_module
from embedcache.view import FeatureView

NUMBERED = tuple(Layer(name=str(number), dim=8) for number in (1, 2, 3))
FACTS = {
    BAG_OF_WORDS: ModuleFacts(
        kind=BAG_OF_WORDS, signature="__call__", dim=8, tokenizer="space", combiner="sqrtn"
    ),
    SENTENCE_ENCODER: ModuleFacts(
        kind=SENTENCE_ENCODER, signature="default", output="default", dim=8, tokenizer="parts"
    ),
    PREPROCESSED_ENCODER: ModuleFacts(
        kind=PREPROCESSED_ENCODER,
        signature="__call__ of a dict",
        output="sequence_output",
        dim=8,
        tokenizer="pieces",
        layers=NUMBERED,
        outputs=(Layer(name="sequence_output", dim=8),),
        max_length=512,
    ),
    ELMO: ModuleFacts(
        kind=ELMO,
        signature="default",
        output="elmo",
        dim=8,
        tokenizer="space-nonempty",
        layers=(Layer(name="word_emb", dim=4), Layer(name="lstm_outputs1", dim=8)),
        outputs=(Layer(name="elmo", dim=8),),
    ),
    TF1_BERT: ModuleFacts(
        kind=TF1_BERT,
        signature="tokens",
        output="sequence_output",
        dim=8,
        tokenizer="pieces",
        outputs=(Layer(name="sequence_output", dim=8),),
    ),
}
PREPROCESS = ModuleFacts(
    kind=PREPROCESSOR,
    signature="tokenize",
    dim=0,
    tokenizer="preprocessor",
    start_ids=(101,),
    end_ids=(102,),
)


def view_of(kind: str, *, preprocess: ModuleFacts | None = PREPROCESS, **given: Any) -> FeatureView:
    has_one = kind == PREPROCESSED_ENCODER
    return view_of_module(
        ModuleFiles("h", Path("/m"), FACTS[kind]),
        ViewSettings(**given),
        digest="a" * 32,
        preprocess_digest="b" * 32 if has_one else "",
        preprocess=preprocess if has_one else None,
    )


def fields_of(view: FeatureView, *names: str) -> tuple[Any, ...]:
    return tuple(getattr(view, name) for name in names)


@pytest.mark.parametrize(
    ("kind", "granularity", "tokenizer", "output"),
    [
        (BAG_OF_WORDS, "token", "space", ""),
        (SENTENCE_ENCODER, "sentence", "sentences-1", "default"),
        (PREPROCESSED_ENCODER, "token", "preprocessor", "sequence_output"),
        (ELMO, "token", "space-nonempty", "elmo"),
        (TF1_BERT, "token", "pieces", "sequence_output"),
    ],
)
def test_view_of_a_module_without_settings_is_what_suits_its_kind(
    kind: str, granularity: str, tokenizer: str, output: str
) -> None:
    view = view_of(kind)
    assert fields_of(view, "granularity", "tokenizer", "output") == (granularity, tokenizer, output)
    assert fields_of(view, "signature", "dim", "module_digest") == (
        FACTS[kind].signature, 8, "a" * 32
    )  # fmt: skip
    assert view.preprocess_digest == ("b" * 32 if kind == PREPROCESSED_ENCODER else "")
    assert fields_of(view, "max_tokens", "overflow", "dtype") == (512, "truncate", "float16")
    assert fields_of(view, "keep_special_tokens", "context_words", "overlap_tokens") == (
        False,
        0,
        0,
    )


@pytest.mark.parametrize("kind", [BAG_OF_WORDS, SENTENCE_ENCODER])
def test_vectors_of_texts_become_rows_of_sentences_words_or_windows(kind: str) -> None:
    sentence = view_of(kind, granularity="sentence")
    assert fields_of(sentence, "tokenizer", "context_words") == ("sentences-1", 0)
    window = view_of(kind, granularity="window")
    assert fields_of(window, "tokenizer", "context_words") == ("words-1", 2)
    assert view_of(kind, granularity="window", context_words=0).context_words == 0
    assert view_of(kind, granularity="window", context_words=5).context_words == 5
    word = view_of(kind, granularity="token")
    assert word.tokenizer == ("space" if kind == BAG_OF_WORDS else "words-1")
    fingerprints = {view.fingerprint for view in (sentence, window, word)}
    assert len(fingerprints) == 3


def test_layers_decide_the_width_and_the_output() -> None:
    view = view_of(PREPROCESSED_ENCODER, layer="all:1,3")
    assert fields_of(view, "output", "dim", "num_layers") == ("all:1,3", 16, 2)
    view = view_of(PREPROCESSED_ENCODER, layer="mean")
    assert fields_of(view, "output", "dim", "num_layers") == ("mean:1,2,3", 8, 1)
    view = view_of(ELMO, layer="word_emb,elmo")
    assert fields_of(view, "output", "dim", "num_layers") == ("word_emb,elmo", 12, 1)
    with pytest.raises(ModuleError, match=r"^h: no layer '7'; there are: 1 to 3"):
        view_of(PREPROCESSED_ENCODER, layer="7")


def test_other_settings_are_taken_as_they_are() -> None:
    view = view_of(
        PREPROCESSED_ENCODER,
        keep_special_tokens=True,
        max_tokens=128,
        overflow="error",
        dtype="float32",
    )
    assert fields_of(view, "keep_special_tokens", "max_tokens") == (True, 128)
    assert fields_of(view, "overflow", "dtype", "overlap_tokens") == ("error", "float32", 0)


@pytest.mark.parametrize(
    ("max_tokens", "overlap"), [(4096, 64), (256, 64), (100, 25), (3, 0), (1, 0)]
)
def test_windows_overlap_by_a_quarter_and_64_tokens_at_most(max_tokens: int, overlap: int) -> None:
    for kind in (PREPROCESSED_ENCODER, ELMO):
        view = view_of(kind, overflow="window", max_tokens=max_tokens)
        assert view.overlap_tokens == overlap


REFUSED = [
    (BAG_OF_WORDS, {"layer": "1"}, "has no layers .bag-of-words.; leave --layer out"),
    (SENTENCE_ENCODER, {"layer": "last"}, "has no layers .sentence-encoder.; leave --layer out"),
    (BAG_OF_WORDS, {"keep_special_tokens": True}, "no special tokens .*leave --keep-special-tok"),
    (SENTENCE_ENCODER, {"keep_special_tokens": True}, "no special tokens .*; leave --keep-special"),
    (ELMO, {"keep_special_tokens": True}, "no special tokens .elmo.; leave --keep-special-tokens"),
    (BAG_OF_WORDS, {"context_words": 2}, "--context-words belongs to --granularity window, not t"),
    (SENTENCE_ENCODER, {"context_words": 0}, "--context-words belongs .* window, not sentence"),
    (ELMO, {"context_words": 1}, "--context-words belongs to --granularity window, not token"),
    *(
        (kind, {"granularity": other}, f"gives a row a token .{kind}.; --granularity {other} is")
        for kind in (PREPROCESSED_ENCODER, ELMO, TF1_BERT)
        for other in ("sentence", "window")
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "given", "reason"), REFUSED)
def test_setting_that_does_not_fit_the_module_is_one_line(
    kind: str, given: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModuleError, match=f"^h: .*{reason}") as caught:
        view_of(kind, **given)
    assert "\n" not in str(caught.value)


def test_special_tokens_are_kept_of_modules_that_have_them() -> None:
    for kind in (PREPROCESSED_ENCODER, TF1_BERT):
        assert view_of(kind, keep_special_tokens=True).keep_special_tokens


def test_preprocessor_that_cuts_texts_itself_cannot_give_windows() -> None:
    cutting = replace(PREPROCESS, signature="__call__", max_length=128)
    with pytest.raises(ModuleError, match=r"^h: its preprocessor cuts every text at 128 tokens"):
        view_of(PREPROCESSED_ENCODER, preprocess=cutting, overflow="window")
    for overflow in ("truncate", "error"):
        view = view_of(PREPROCESSED_ENCODER, preprocess=cutting, overflow=overflow)
        assert view.overflow == overflow
    assert view_of(PREPROCESSED_ENCODER, overflow="window").overflow == "window"

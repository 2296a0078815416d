"""Every tiny module by name, for tests that run on all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.hub_modules import bad, bag_of_words, bert_encoder, elmo, preprocess, sentence_encoder
from tests.hub_modules.tf1_bert import make_tf1_bert
from tests.hub_modules.use_lite import make_use_lite

Maker = Callable[[Path], Path]
KINDS = ("bag-of-words", "sentence-encoder", "preprocessed-encoder", "elmo", "tf1-bert")


@dataclass(frozen=True, slots=True)
class HubModule:
    """One tiny module.

    Attributes:
        name: Unique; fit for a file name and a test's id.
        kind: One of `KINDS`; for a bad one, what it looks like.
        make: Makes it in a folder that does not exist.
        preprocess: Makes its preprocessor, where it has one.
    """

    name: str
    kind: str
    make: Maker
    preprocess: Maker | None = None


def _bag(name: str, make: Maker) -> HubModule:
    return HubModule(name, "bag-of-words", make)


def _sentence(name: str, make: Maker) -> HubModule:
    return HubModule(name, "sentence-encoder", make)


def _encoder(
    name: str, make: Maker, preprocess_maker: Maker = preprocess.make_bert_preprocess
) -> HubModule:
    return HubModule(name, "preprocessed-encoder", make, preprocess_maker)


GOOD_MODULES = (
    _bag("exporter-example", bag_of_words.make_exporter_example),
    _bag(
        "exporter-example-skips-empty",
        partial(bag_of_words.make_exporter_example, skips_empty=True),
    ),
    _bag("nnlm", bag_of_words.make_nnlm),
    _bag("nnlm-with-normalization", partial(bag_of_words.make_nnlm, normalized=True)),
    _bag("nnlm-lower-case", partial(bag_of_words.make_nnlm, lower_cases=True)),
    _bag("nnlm-signature", partial(bag_of_words.make_nnlm, interface="signature")),
    _bag("nnlm-tf1", bag_of_words.make_nnlm_tf1),
    _bag("nnlm-tf1-sentences", partial(bag_of_words.make_nnlm_tf1, input_name="sentences")),
    _bag("swivel", bag_of_words.make_swivel),
    _bag("swivel-with-oov", partial(bag_of_words.make_swivel, with_oov=True)),
    _bag("wiki-words", bag_of_words.make_wiki_words),
    _bag("wiki-words-with-normalization", partial(bag_of_words.make_wiki_words, normalized=True)),
    _sentence("use", sentence_encoder.make_use),
    _sentence("use-tf1", sentence_encoder.make_use_tf1),
    _sentence("use-large", partial(sentence_encoder.make_use_large, callable_too=True)),
    _sentence("use-large-signature", sentence_encoder.make_use_large),
    _sentence("sentence-t5", sentence_encoder.make_sentence_t5),
    _sentence("use-lite", make_use_lite),
    _encoder("bert", bert_encoder.make_bert_encoder),
    _encoder("bert-keras2", partial(bert_encoder.make_bert_encoder, made_by="keras2")),
    _encoder("bert-keras3", partial(bert_encoder.make_bert_encoder, made_by="keras3")),
    _encoder(
        "bert-cased",
        bert_encoder.make_bert_encoder,
        partial(preprocess.make_bert_preprocess, lower_case=False),
    ),
    _encoder(
        "bert-call-only", bert_encoder.make_bert_encoder, preprocess.make_call_only_preprocess
    ),
    _encoder("albert", bert_encoder.make_albert, preprocess.make_albert_preprocess),
    _encoder("electra", bert_encoder.make_electra),
    _encoder(
        "fixed-length",
        bert_encoder.make_fixed_length_encoder,
        partial(preprocess.make_bert_preprocess, seq_length=32),
    ),
    # As TF1's they name their own vocabulary, and need no preprocessor.
    HubModule("bert-v1-tf2", "tf1-bert", bert_encoder.make_bert_v1_tf2),
    HubModule(
        "bert-v1-tf2-keras2",
        "tf1-bert",
        partial(bert_encoder.make_bert_v1_tf2, made_by="keras2"),
    ),
    HubModule("elmo", "elmo", elmo.make_elmo),
    HubModule("elmo-train-graph", "elmo", partial(elmo.make_elmo, train_graph=True)),
    HubModule("elmo-like", "elmo", elmo.make_elmo_like),
    HubModule("tf1-bert", "tf1-bert", make_tf1_bert),
    HubModule("tf1-bert-one-graph", "tf1-bert", partial(make_tf1_bert, train_graph=False)),
    HubModule("tf1-bert-mlm", "tf1-bert", partial(make_tf1_bert, with_mlm=True)),
)

BAD_MODULES = (
    HubModule("image", "", bad.make_image_module),
    HubModule("no-signature", "", bad.make_no_signature),
    HubModule("custom-op-missing", "sentence-encoder", bad.make_custom_op_missing),
    HubModule("wrong-signature", "", bad.make_wrong_signature),
    HubModule("rank3", "", bad.make_rank3),
    HubModule("classifier-ints", "", bad.make_classifier_ints),
    HubModule("nan-sentence", "sentence-encoder", bad.make_nan_sentence_encoder),
    _encoder("leaky-encoder", bert_encoder.make_leaky_encoder),
    _encoder("random-encoder", bert_encoder.make_random_encoder),
    _encoder("nan-encoder", bert_encoder.make_nan_encoder),
)

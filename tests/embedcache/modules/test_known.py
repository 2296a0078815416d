"""Which preprocessor goes with which encoder of TF Hub."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from embedcache.modules.known import known_preprocess

TFHUB = "https://tfhub.dev/"
KAGGLE = "https://www.kaggle.com/models/"


@pytest.mark.parametrize(
    ("encoder", "preprocessor"),
    [
        ("tensorflow/bert_en_uncased_L-12_H-768_A-12/4", "tensorflow/bert_en_uncased_preprocess/3"),
        (
            "tensorflow/small_bert/bert_en_uncased_L-2_H-128_A-2/2",
            "tensorflow/bert_en_uncased_preprocess/3",
        ),
        (
            "tensorflow/bert_en_wwm_uncased_L-24_H-1024_A-16/4",
            "tensorflow/bert_en_uncased_preprocess/3",
        ),
        ("google/experts/bert/pubmed/squad2/2", "tensorflow/bert_en_uncased_preprocess/3"),
        ("google/experts/bert/wiki_books/2", "tensorflow/bert_en_uncased_preprocess/3"),
        ("google/electra_small/2", "tensorflow/bert_en_uncased_preprocess/3"),
        ("google/electra_base/2", "tensorflow/bert_en_uncased_preprocess/3"),
        ("google/electra_large/2", "tensorflow/bert_en_uncased_preprocess/3"),
        (
            "tensorflow/mobilebert_en_uncased_L-24_H-128_B-512_A-4_F-4_OPT/1",
            "tensorflow/bert_en_uncased_preprocess/3",
        ),
        ("tensorflow/talkheads_ggelu_bert_en_base/1", "tensorflow/bert_en_uncased_preprocess/3"),
        (
            "google/universal-sentence-encoder-cmlm/en-base/1",
            "tensorflow/bert_en_uncased_preprocess/3",
        ),
        ("tensorflow/bert_en_cased_L-12_H-768_A-12/4", "tensorflow/bert_en_cased_preprocess/3"),
        (
            "tensorflow/bert_en_wwm_cased_L-24_H-1024_A-16/4",
            "tensorflow/bert_en_cased_preprocess/3",
        ),
        (
            "tensorflow/bert_multi_cased_L-12_H-768_A-12/4",
            "tensorflow/bert_multi_cased_preprocess/3",
        ),
        (
            "tensorflow/mobilebert_multi_cased_L-24_H-128_B-512_A-4_F-4_OPT/1",
            "tensorflow/bert_multi_cased_preprocess/3",
        ),
        ("tensorflow/bert_zh_L-12_H-768_A-12/4", "tensorflow/bert_zh_preprocess/3"),
        ("tensorflow/albert_en_xxlarge/3", "tensorflow/albert_en_preprocess/3"),
        ("google/LaBSE/2", "google/universal-sentence-encoder-cmlm/multilingual-preprocess/2"),
        (
            "google/universal-sentence-encoder-cmlm/multilingual-base-br/1",
            "google/universal-sentence-encoder-cmlm/multilingual-preprocess/2",
        ),
    ],
)
def test_encoders_of_tfhub_have_their_preprocessor(encoder: str, preprocessor: str) -> None:
    assert known_preprocess(TFHUB + encoder) == TFHUB + preprocessor


@pytest.mark.parametrize(
    ("encoder", "preprocessor"),
    [
        ("tensorflow/bert/{}/en-uncased-l-12-h-768-a-12/4", "bert/{}/en-uncased-preprocess/3"),
        ("tensorflow/bert/{}/bert-en-uncased-l-6-h-768-a-12/2", "bert/{}/en-uncased-preprocess/3"),
        ("tensorflow/bert/{}/en-cased-l-12-h-768-a-12/4", "bert/{}/en-cased-preprocess/3"),
        ("tensorflow/bert/{}/multi-cased-l-12-h-768-a-12/4", "bert/{}/multi-cased-preprocess/3"),
        ("tensorflow/bert/{}/zh-l-12-h-768-a-12/4", "bert/{}/zh-preprocess/3"),
        ("google/experts-bert/{}/pubmed/2", "bert/{}/en-uncased-preprocess/3"),
        ("google/universal-sentence-encoder/{}/cmlm-en-base/1", "bert/{}/en-uncased-preprocess/3"),
        ("tensorflow/albert/{}/en-base/3", "albert/{}/en-preprocess/3"),
    ],
)
def test_encoders_of_kaggle_have_their_preprocessor(encoder: str, preprocessor: str) -> None:
    url = KAGGLE + encoder.format("TensorFlow2")
    expected = "tensorflow/" + preprocessor
    assert known_preprocess(url) == KAGGLE + expected.format("TensorFlow2")
    assert known_preprocess(encoder.format("tensorFlow2")) == expected.format("tensorFlow2")


def test_labse_of_kaggle_takes_cmlms_preprocessor() -> None:
    cmlm = "google/universal-sentence-encoder/tensorFlow2/cmlm-multilingual-preprocess/2"
    assert known_preprocess("google/labse/tensorFlow2/labse/2") == cmlm
    assert known_preprocess("google/labse/tensorFlow2/labse/1") is None


def test_style_of_the_handle_is_kept() -> None:
    long_form = (
        "https://kaggle.com/models/tensorflow/bert/frameworks/tensorFlow2/variations/"
        "en-uncased-l-12-h-768-a-12/versions/4?tfhub-redirect=true"
    )
    short = "https://www.kaggle.com/models/tensorflow/bert/TensorFlow2/en-uncased-preprocess/3"
    assert known_preprocess(long_form) == short
    mirror = "https://hub.tensorflow.google.cn/tensorflow/"
    assert known_preprocess(mirror + "bert_zh_L-12_H-768_A-12/4") == mirror + "bert_zh_preprocess/3"


@pytest.mark.parametrize(
    "handle",
    [
        "builtin:en-words-128",
        "",
        "ftp://tfhub.dev/google/LaBSE/2",
        "/models/bert_en_uncased_L-12_H-768_A-12",
        TFHUB + "google/nnlm-en-dim128/2",
        TFHUB + "tensorflow/bert_en_uncased_preprocess/3",
        TFHUB + "google/LaBSE/1",
        TFHUB + "google/LaBSE",
        TFHUB + "somebody/bert_en_uncased_L-12_H-768_A-12/4",
        "https://example.org/tensorflow/bert_en_uncased_L-12_H-768_A-12/4",
        "google/nnlm/tensorFlow2/en-dim128/1",
        KAGGLE + "tensorflow/bert/TensorFlow2/en-uncased-preprocess/3",
    ],
)
def test_what_is_no_known_encoder_has_no_preprocessor(handle: str) -> None:
    assert known_preprocess(handle) is None


def test_folder_named_like_an_encoder_of_kaggle_has_no_preprocessor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = "tensorflow/bert/tensorFlow2/en-uncased-l-12-h-768-a-12/4"
    monkeypatch.chdir(tmp_path)
    assert known_preprocess(handle) is not None
    (tmp_path / handle).mkdir(parents=True)
    assert known_preprocess(handle) is None


def test_looking_up_a_preprocessor_loads_no_tensorflow() -> None:
    code = (
        "import sys\n"
        "from embedcache.modules.known import known_preprocess\n"
        f"assert known_preprocess({TFHUB + 'google/LaBSE/2'!r})\n"
        "assert not {'tensorflow', 'tensorflow_hub'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

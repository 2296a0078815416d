"""Which preprocessor belongs to a known encoder of TF Hub.

A BERT-like encoder takes token ids, not text; the SavedModel that makes them from text is
published beside it, and named on the encoder's page. This is those pages as a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from embedcache.errors import ModuleError
from embedcache.modules.parsing import kaggle_parts, kaggle_url, parse_handle

_TFHUB_HOSTS = ("tfhub.dev", "www.tfhub.dev", "hub.tensorflow.google.cn")


@dataclass(frozen=True, slots=True)
class _Preprocessor:
    """One preprocessor under its two names.

    Attributes:
        tfhub: On TF Hub, ``OWNER/NAME/VERSION``.
        kaggle: On Kaggle, ``(OWNER, MODEL, FRAMEWORK, VARIATION, VERSION)``.
    """

    tfhub: str
    kaggle: tuple[str, str, str, str, str]


def _of_bert(language: str) -> _Preprocessor:
    return _Preprocessor(
        f"tensorflow/bert_{language.replace('-', '_')}_preprocess/3",
        ("tensorflow", "bert", "tensorFlow2", f"{language}-preprocess", "3"),
    )


_EN_UNCASED = _of_bert("en-uncased")
_EN_CASED = _of_bert("en-cased")
_MULTI_CASED = _of_bert("multi-cased")
_ZH = _of_bert("zh")
_ALBERT_EN = _Preprocessor(
    "tensorflow/albert_en_preprocess/3",
    ("tensorflow", "albert", "tensorFlow2", "en-preprocess", "3"),
)
_CMLM = _Preprocessor(
    "google/universal-sentence-encoder-cmlm/multilingual-preprocess/2",
    ("google", "universal-sentence-encoder", "tensorFlow2", "cmlm-multilingual-preprocess", "2"),
)

# The encoder's name without its version, in small letters with dashes (see _find):
# tensorflow/small_bert/bert_en_uncased_L-2_H-128_A-2 on TF Hub is on Kaggle the variation
# bert-en-uncased-l-2-h-128-a-2 of tensorflow/bert, so that it has two rows.
_ENCODERS: tuple[tuple[str, _Preprocessor], ...] = (
    ("tensorflow/bert-en-uncased-l-*", _EN_UNCASED),
    ("tensorflow/small-bert-bert-en-uncased-l-*", _EN_UNCASED),
    ("tensorflow/bert-bert-en-uncased-l-*", _EN_UNCASED),
    ("tensorflow/bert-en-wwm-uncased-l-*", _EN_UNCASED),
    ("tensorflow/mobilebert-en-uncased-*", _EN_UNCASED),
    ("tensorflow/talkheads-ggelu-bert-en-*", _EN_UNCASED),
    ("tensorflow/talking-heads-ggelu-bert-en-*", _EN_UNCASED),
    ("google/experts-bert-*", _EN_UNCASED),
    ("google/electra-small", _EN_UNCASED),
    ("google/electra-base", _EN_UNCASED),
    ("google/electra-large", _EN_UNCASED),
    ("google/universal-sentence-encoder-cmlm-en-*", _EN_UNCASED),
    ("tensorflow/bert-en-cased-l-*", _EN_CASED),
    ("tensorflow/bert-en-wwm-cased-l-*", _EN_CASED),
    ("tensorflow/bert-multi-cased-l-*", _MULTI_CASED),
    ("tensorflow/mobilebert-multi-cased-*", _MULTI_CASED),
    ("tensorflow/bert-zh-l-*", _ZH),
    ("tensorflow/albert-en-*", _ALBERT_EN),
    ("google/universal-sentence-encoder-cmlm-multilingual-*", _CMLM),
    ("google/labse", _CMLM),
    ("google/labse-labse", _CMLM),
)
# LaBSE/1 takes lists of ids made with another vocabulary.
_FIRST_VERSIONS = {"google/labse": 2, "google/labse-labse": 2}


def known_preprocess(handle: str) -> str | None:
    """The handle of the preprocessor that a known encoder of TF Hub goes with.

    Args:
        handle: An encoder's URL on tfhub.dev or Kaggle, or its name on Kaggle.

    Returns:
        The preprocessor's handle in the same style, or None: the handle names something else
        (a folder, say), or nothing that is known here.
    """
    try:
        parsed = parse_handle(handle)
    except ModuleError:
        return None
    if parsed.kind != "url":
        return None
    if parts := kaggle_parts(parsed.target):
        owner, model, _, variation, version = parts
        found = _find(owner, f"{model}-{variation}", version)
        if found is None:
            return None
        return "/".join(found.kaggle) if parsed.guessed else kaggle_url(found.kaggle)
    split = urlsplit(parsed.target)
    owner, _, rest = split.path.strip("/").partition("/")
    name, _, version = rest.rpartition("/")
    if split.netloc not in _TFHUB_HOSTS or not version.isdecimal():
        return None
    found = _find(owner, name.replace("/", "-"), version)
    return f"{split.scheme}://{split.netloc}/{found.tfhub}" if found else None


def _find(owner: str, name: str, version: str) -> _Preprocessor | None:
    flat = f"{owner}/{name}".lower().replace("_", "-")
    if flat.endswith("-preprocess") or int(version) < _FIRST_VERSIONS.get(flat, 1):
        return None
    return next((found for pattern, found in _ENCODERS if fnmatchcase(flat, pattern)), None)

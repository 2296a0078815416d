"""A local BERT checkpoint → two SavedModels with the interface of the BERTs on TF Hub.

A checkpoint is a folder in Hugging Face's layout: `config.json`, `model.safetensors`,
`vocab.txt` and, if there is one, `tokenizer_config.json`. Importing this module does not
load TensorFlow; converting does.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedcache.errors import ModuleError
from embedcache.modules.bert_config import BertConfig, read_settings
from embedcache.modules.wordpiece import is_special, load_vocab
from embedcache.quiet import quiet_native_stderr

__all__ = ["ConvertedBert", "convert_bert_checkpoint"]

_PREPROCESS = "preprocess"
_ENCODER = "encoder"
_TOKENIZERS = ("BertTokenizer", "BertTokenizerFast")
_CAPITAL = re.compile("[A-Z]")
_USUAL_SEQ_LENGTH = 128


@dataclass(frozen=True, slots=True)
class ConvertedBert:
    """What a conversion wrote.

    Attributes:
        preprocess: folder of the preprocessor's SavedModel.
        encoder: folder of the encoder's.
        num_layers: transformer layers.
        dim: width of a hidden state.
        vocab_size: number of pieces.
        max_positions: the longest input, special pieces included.
        lower_case: whether the preprocessor lower-cases.
    """

    preprocess: Path
    encoder: Path
    num_layers: int
    dim: int
    vocab_size: int
    max_positions: int
    lower_case: bool


@dataclass(frozen=True, slots=True)
class _TokenizerSettings:
    """How texts are tokenised; the names are those of `tokenizer_config.json`."""

    do_lower_case: bool
    strip_accents: bool | None
    tokenize_chinese_chars: bool


def convert_bert_checkpoint(
    checkpoint: Path, target: Path, *, max_seq_length: int | None = None
) -> ConvertedBert:
    """Convert a checkpoint; nothing is left at `target` unless all of it succeeds.

    Args:
        checkpoint: folder with `config.json`, `model.safetensors` and `vocab.txt`.
        target: where the folders `preprocess` and `encoder` go; empty, or not there yet.
        max_seq_length: pieces that the preprocessor pads to and cuts at, special ones
            included; None: 128, as on TF Hub, or as many as there are positions. The encoder
            itself takes any length that the checkpoint has positions for.

    Raises:
        ModuleError: the checkpoint is no BERT's, a file is missing or damaged, or the target
            cannot be written or is not empty.
    """
    settings = _read_bert_settings(checkpoint / "config.json")
    config = BertConfig.from_json(checkpoint / "config.json")
    vocab = load_vocab(checkpoint / "vocab.txt")
    tokenizing = _read_tokenizer_settings(checkpoint, settings, vocab)
    if max_seq_length is None:
        max_seq_length = min(_USUAL_SEQ_LENGTH, config.max_positions)
    _check_sizes(checkpoint, config, vocab, max_seq_length)
    _check_target(target)
    try:
        place = target.resolve()
        place.parent.mkdir(parents=True, exist_ok=True)
        # A sibling, so that it is on the same file system and can be renamed.
        with tempfile.TemporaryDirectory(prefix=f".{place.name}.", dir=place.parent) as scratch:
            written = Path(scratch) / "modules"
            _write_modules(checkpoint, written, config, tokenizing, max_seq_length)
            written.replace(place)
    except OSError as error:
        raise ModuleError(
            f"cannot write to {target}: {error}; name another folder or make room"
        ) from error
    return ConvertedBert(
        preprocess=target / _PREPROCESS,
        encoder=target / _ENCODER,
        num_layers=config.num_layers,
        dim=config.hidden_dim,
        vocab_size=config.vocab_size,
        max_positions=config.max_positions,
        lower_case=tokenizing.do_lower_case,
    )


def _write_modules(
    checkpoint: Path,
    folder: Path,
    config: BertConfig,
    tokenizing: _TokenizerSettings,
    max_seq_length: int,
) -> None:
    """Write both SavedModels into a new folder."""
    with quiet_native_stderr():
        import tensorflow as tf

        from embedcache.modules.bert_encoder import BertEncoder
        from embedcache.modules.bert_tokenizer import BertTokenizer
        from embedcache.modules.convert import bert_modules
        from embedcache.modules.safetensors import read_safetensors

    tokenizer = BertTokenizer(
        checkpoint / "vocab.txt",
        lower_case=tokenizing.do_lower_case,
        strip_accents=tokenizing.strip_accents,
        split_ideographs=tokenizing.tokenize_chinese_chars,
    )
    weights = checkpoint / "model.safetensors"
    tensors = read_safetensors(weights)
    try:
        encoder = bert_modules.EncoderModule(BertEncoder(config, tensors), tensors)
    except ModuleError as error:
        raise ModuleError(f"{weights}: {error}") from error
    preprocess = bert_modules.PreprocessModule(tokenizer, max_seq_length)
    folder.mkdir()
    try:
        # TensorFlow tells where it writes assets: a folder that is about to be renamed.
        with quiet_native_stderr():
            bert_modules.save_preprocess(preprocess, folder / _PREPROCESS)
            bert_modules.save_encoder(encoder, folder / _ENCODER)
    except tf.errors.OpError as error:
        raise OSError(" ".join(str(error).split())) from error


def _read_bert_settings(path: Path) -> dict[str, Any]:
    """Read `config.json`, and refuse what is not a BERT encoder's."""
    settings = read_settings(path)
    model_type = settings.get("model_type", "bert")
    if model_type != "bert":
        raise ModuleError(
            f"{path} is of model_type {model_type!r}: only 'bert' can be converted, and the"
            " encoders that name themselves so"
        )
    if settings.get("is_decoder", False):
        raise ModuleError(f"{path} is a decoder's (is_decoder): only an encoder can be converted")
    return settings


def _read_tokenizer_settings(
    checkpoint: Path, config: Mapping[str, Any], vocab: Mapping[str, int]
) -> _TokenizerSettings:
    """Return how texts are tokenised, by `tokenizer_config.json` if there is one.

    Without a word about it, a vocabulary without capital letters is a lower-case one.
    """
    path = checkpoint / "tokenizer_config.json"
    settings = read_settings(path) if path.exists() else {}
    if settings.get("tokenizer_class", _TOKENIZERS[0]) not in _TOKENIZERS:
        raise ModuleError(
            f"{path} asks for {settings['tokenizer_class']!r}: only BertTokenizer is known"
        )
    if not settings.get("do_basic_tokenize", True):
        raise ModuleError(f"{path} leaves words unsplit (do_basic_tokenize): it must be true")
    lower_case = settings.get("do_lower_case", config.get("do_lower_case"))
    if lower_case is None:
        lower_case = not any(_CAPITAL.search(piece) for piece in vocab if not is_special(piece))
    found = _TokenizerSettings(
        do_lower_case=lower_case,
        strip_accents=settings.get("strip_accents"),
        tokenize_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    for name in ("do_lower_case", "strip_accents", "tokenize_chinese_chars"):
        value = getattr(found, name)
        if type(value) is not bool and not (name == "strip_accents" and value is None):
            raise ModuleError(f"{path} has {value!r} for {name}: it must be true or false")
    return found


def _check_sizes(
    checkpoint: Path, config: BertConfig, vocab: Mapping[str, int], max_seq_length: int
) -> None:
    """Refuse a vocabulary of another encoder, and rows that the encoder cannot take."""
    if len(vocab) != config.vocab_size:
        raise ModuleError(
            f"{checkpoint / 'vocab.txt'} has {len(vocab)} pieces, but config.json says"
            f" {config.vocab_size}: take both from the same checkpoint"
        )
    if not 3 <= max_seq_length <= config.max_positions:
        raise ModuleError(
            f"{checkpoint} takes 3 to {config.max_positions} pieces at once, not"
            f" {max_seq_length}: give another --max-seq-length"
        )


def _check_target(target: Path) -> None:
    """Refuse a target that holds something."""
    try:
        is_free = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    except OSError as error:
        raise ModuleError(f"cannot write to {target}: {error}; name another folder") from error
    if not is_free:
        raise ModuleError(f"{target} is not an empty folder: name another one, or remove it")

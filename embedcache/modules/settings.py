"""Module + what the user asks for → view. Needs no TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass

from embedcache.errors import ModuleError
from embedcache.modules.facts import (
    BAG_OF_WORDS,
    PREPROCESSED_ENCODER,
    SENTENCE_ENCODER,
    SEQUENCE_KINDS,
    TF1_BERT,
    ModuleFacts,
)
from embedcache.modules.layers import choose_layers
from embedcache.modules.loading import ModuleFiles
from embedcache.modules.splitting import SENTENCES, WORDS
from embedcache.view import MAX_TOKENS_DEFAULT, FeatureView

CONTEXT_WORDS_DEFAULT = 2
"""Words on either side of a window's own: five together, as wide as Kim's (2014) widest kernel."""
_OVERLAP_TOKENS = 64
"""Tokens that two windows of a long text share: each token has 32 of context at least, in
windows of 256 and more; shorter ones share a quarter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSettings:
    """What of a view can be chosen.

    Attributes:
        granularity: ``"token"``, ``"sentence"`` or ``"window"``; None: what suits the module.
        layer: As ``--layer`` has it (see `choose_layers`); None: the module's own output.
        keep_special_tokens: Whether rows of special tokens are kept.
        context_words: With ``"window"``: words on either side; None: 2.
        max_tokens: Rows kept of a text at most; with ``overflow="window"`` the longest window.
        overflow: ``"truncate"``, ``"error"`` or ``"window"`` for a longer one.
        dtype: Storage dtype: ``"float16"``, ``"float32"``, ``"bfloat16"`` or ``"int8"``.
    """

    granularity: str | None = None
    layer: str | None = None
    keep_special_tokens: bool = False
    context_words: int | None = None
    max_tokens: int = MAX_TOKENS_DEFAULT
    overflow: str = "truncate"
    dtype: str = "float16"


def view_of_module(
    module: ModuleFiles,
    settings: ViewSettings,
    *,
    digest: str,
    preprocess_digest: str,
    preprocess: ModuleFacts | None,
) -> FeatureView:
    """The view of a module with these settings.

    Args:
        module: Probed.
        settings: What the user asks for.
        digest: Of the module's files.
        preprocess_digest: Of its preprocessor's; empty without one.
        preprocess: What that one's probe found.

    Raises:
        ModuleError: if a setting does not fit the module.
    """
    facts = module.facts
    granularity = _granularity(module, settings)
    _check_settings(module, settings, granularity, preprocess)
    output, dim, num_layers = facts.output, facts.dim, 1
    if facts.kind in SEQUENCE_KINDS:
        choice = choose_layers(module.handle, facts, settings.layer)
        output, dim, num_layers = choice.output, choice.dim, choice.num_layers
    context_words = 0
    if granularity == "window":
        context_words = _or_default(settings.context_words)
    overlap_tokens = 0
    if settings.overflow == "window":
        overlap_tokens = min(_OVERLAP_TOKENS, settings.max_tokens // 4)
    return FeatureView(
        module_digest=digest,
        signature=facts.signature,
        output=output,
        granularity=granularity,
        tokenizer=_tokenizer(facts, granularity),
        dim=dim,
        max_tokens=settings.max_tokens,
        overflow=settings.overflow,
        dtype=settings.dtype,
        preprocess_digest=preprocess_digest,
        keep_special_tokens=settings.keep_special_tokens,
        num_layers=num_layers,
        context_words=context_words,
        overlap_tokens=overlap_tokens,
    )


def _or_default(context_words: int | None) -> int:
    return CONTEXT_WORDS_DEFAULT if context_words is None else context_words


def _granularity(module: ModuleFiles, settings: ViewSettings) -> str:
    kind = module.facts.kind
    if kind in SEQUENCE_KINDS:
        if settings.granularity not in (None, "token"):
            raise ModuleError(
                f"{module.handle}: gives a row a token ({kind}); --granularity"
                f" {settings.granularity} is for modules that give one vector a text"
            )
        return "token"
    return settings.granularity or ("sentence" if kind == SENTENCE_ENCODER else "token")


def _check_settings(
    module: ModuleFiles,
    settings: ViewSettings,
    granularity: str,
    preprocess: ModuleFacts | None,
) -> None:
    handle, kind = module.handle, module.facts.kind
    if settings.layer is not None and kind not in SEQUENCE_KINDS:
        raise ModuleError(f"{handle}: has no layers ({kind}); leave --layer out")
    if settings.keep_special_tokens and kind not in (PREPROCESSED_ENCODER, TF1_BERT):
        raise ModuleError(
            f"{handle}: has no special tokens ({kind}); leave --keep-special-tokens out"
        )
    if settings.context_words is not None and granularity != "window":
        raise ModuleError(
            f"{handle}: --context-words belongs to --granularity window, not {granularity}"
        )
    if preprocess is not None and preprocess.max_length and settings.overflow == "window":
        raise ModuleError(
            f"{handle}: its preprocessor cuts every text at {preprocess.max_length} tokens and has"
            " no tokenize; --overflow window needs one that has"
        )


def _tokenizer(facts: ModuleFacts, granularity: str) -> str:
    """The name of what splits the text."""
    if facts.kind == BAG_OF_WORDS and granularity == "token":
        return facts.tokenizer
    if facts.kind in (BAG_OF_WORDS, SENTENCE_ENCODER):
        return SENTENCES if granularity == "sentence" else WORDS
    return "preprocessor" if facts.kind == PREPROCESSED_ENCODER else facts.tokenizer

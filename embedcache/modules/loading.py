"""Module files + view → encoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedcache.encoder import SequenceEncoder, TokenEncoder
from embedcache.modules.facts import (
    BAG_OF_WORDS,
    ELMO,
    SENTENCE_ENCODER,
    TF1_BERT,
    ModuleFacts,
)
from embedcache.modules.layers import choose_layers
from embedcache.modules.saved_model import asset_of, load_saved_model, signatures_of
from embedcache.view import FeatureView


@dataclass(frozen=True, slots=True)
class ModuleFiles:
    """Where a probed module lies.

    Attributes:
        handle: What the user named it by.
        path: The SavedModel's folder.
        facts: What the probe found.
    """

    handle: str
    path: Path
    facts: ModuleFacts


def load_encoder(
    module: ModuleFiles, view: FeatureView, *, preprocess: ModuleFiles | None = None
) -> TokenEncoder | SequenceEncoder:
    """Load a module, and its preprocessor, for a view of it. This imports TensorFlow.

    Args:
        module: The module.
        view: Says the layers and the granularity.
        preprocess: The preprocessor of a preprocessed encoder.

    Raises:
        ModuleError: if one of them cannot be loaded.
    """
    model = load_saved_model(module.handle, module.path)
    kind = module.facts.kind
    if kind == BAG_OF_WORDS and view.granularity == "token":
        from embedcache.modules.bag_of_words import BagOfWordsEncoder

        return BagOfWordsEncoder(module.handle, model, module.facts)
    if kind in (BAG_OF_WORDS, SENTENCE_ENCODER):
        from embedcache.modules.sentence_encoder import PartsEncoder, sentence_call

        return PartsEncoder(
            module.handle,
            sentence_call(module.handle, model, module.path, module.facts),
            module.facts.dim,
            granularity=view.granularity,
            context_words=view.context_words,
        )
    choice = choose_layers(module.handle, module.facts, view.output)
    if kind == ELMO:
        from embedcache.modules.sequences import ElmoEncoder

        return ElmoEncoder(module.handle, model.signatures[module.facts.signature], choice)
    from embedcache.modules.sequences import PieceEncoder, piece_outputs

    tokenizer = _vocabulary_tokenizer(module, model) if kind == TF1_BERT else _load(preprocess)
    outputs = piece_outputs(model, module.facts.signature)
    return PieceEncoder(module.handle, outputs, tokenizer, module.facts, choice)


def _load(preprocess: ModuleFiles | None) -> Any:
    from embedcache.modules.pieces import HubPreprocessor

    if preprocess is None:
        raise ValueError("a preprocessed encoder needs its preprocessor")
    model = load_saved_model(preprocess.handle, preprocess.path)
    return HubPreprocessor(preprocess.handle, model, preprocess.path, preprocess.facts)


def _vocabulary_tokenizer(module: ModuleFiles, model: Any) -> Any:
    """The tokenizer of a module that names its vocabulary file and whether it lower-cases."""
    from embedcache.modules.pieces import TOKENIZATION_SIGNATURE, VocabularyTokenizer

    if TOKENIZATION_SIGNATURE in signatures_of(model):
        signature = TOKENIZATION_SIGNATURE
        path = asset_of(module.handle, module.path, model, signature, "vocab_file")
        lower_case = model.signatures[signature]()["do_lower_case"]
    else:
        path = Path(model.vocab_file.asset_path.numpy().decode())
        lower_case = model.do_lower_case
    if hasattr(lower_case, "numpy"):
        lower_case = lower_case.numpy()
    return VocabularyTokenizer(path, lower_case=bool(lower_case))

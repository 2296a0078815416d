"""The command that computes what a view lacks of a dataset, for the error that says so."""

from __future__ import annotations

import shlex

from embedcache.store.database.records import ViewRecord

# Words of views (see `embedcache.modules.splitting`, `embedcache.modules.layers`), by which the
# kind of a module is told without loading it.
_IMPORTED_SIGNATURE = "imported"
"""Of views whose features come from other programs (`embedcache import`)."""
_PARTS_TOKENIZERS = ("sentences-1", "words-1")
_PIECES_TOKENIZERS = ("preprocessor", "pieces")
_ELMO_TOKENIZER = "space-nonempty"  # some bags of words have it too
_ELMO_OUTPUTS = ("elmo", "lstm_outputs", "word_emb")


def build_command(dataset: str, record: ViewRecord) -> str:
    """The command that computes what a view lacks of a dataset, as a shell takes it.

    The handle of a view whose catalog was lost is for the user to fill in, as the corpus is.
    """
    view = record.view
    if view.signature == _IMPORTED_SIGNATURE:
        name = record.handle.partition(":")[2] or "NAME"
        return f"embedcache import FILE --texts CORPUS --as {shlex.quote(name)}"
    options = {
        "--module": record.handle or "HANDLE",
        "--preprocess": record.preprocess,
        "--dataset": dataset,
        "--granularity": view.granularity if view.tokenizer in _PARTS_TOKENIZERS else "",
        "--layer": view.output if _names_layers(record) else "",
        "--context-words": str(view.context_words) if view.granularity == "window" else "",
        "--max-tokens": str(view.max_tokens),
        "--overflow": view.overflow,
        "--dtype": view.dtype,
    }
    words = [word for name, value in options.items() if value for word in (name, value)]
    if view.keep_special_tokens:
        words.append("--keep-special-tokens")
    return f"embedcache build CORPUS {shlex.join(words)}"


def _names_layers(record: ViewRecord) -> bool:
    """Whether a view's output is what ``--layer`` takes, not the one vector of a text."""
    output, tokenizer = record.view.output, record.view.tokenizer
    if not output or tokenizer in _PARTS_TOKENIZERS:
        return False
    is_elmo = tokenizer == _ELMO_TOKENIZER and output.startswith(_ELMO_OUTPUTS)
    is_choice = output.isdecimal() or "," in output or ":" in output
    return tokenizer in _PIECES_TOKENIZERS or is_elmo or is_choice

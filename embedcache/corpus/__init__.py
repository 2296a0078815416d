r"""Files → documents: text, and perhaps a label, a split and an id of its own.

    for batch in CorpusReader(parse_sources(["train=a.tsv", "test=b.jsonl.gz"])):
        keys = keys_of_utf8(batch.texts)

A text is the exact bytes of its file: nothing is stripped or normalised but the line end.
Files are streamed, so memory does not grow with them. gzip is recognised by its magic bytes,
whatever the file's name; a UTF-8 byte order mark at the beginning is taken off.

========  ====================================================================================
format    a document is
========  ====================================================================================
txt       a line; an empty line is a document with an empty text. No labels
fasttext  a line: one or more ``__label__x``, each followed by one space, then the text. Empty
          lines are skipped
csv, tsv  a row of a table with a header row; ``"`` quotes fields, which may then hold line ends
tsv-raw   the same without quoting: a tab always separates, ``"`` and ``\`` stand for themselves
jsonl     a line with one JSON object
========  ====================================================================================

Without `CorpusOptions.format` a file's name decides, less ``.gz``: ``.csv``, ``.tsv``,
``.jsonl`` (``.ndjson``, ``.json``), ``.txt``. Then its content does: a ``.txt`` file, one of
another name and standard input are fasttext if the first line that is not empty begins with
``__label__``; the latter two are jsonl if it begins with ``{``; else all are txt.
"""

from __future__ import annotations

from embedcache.corpus.documents import DocumentBatch
from embedcache.corpus.reader import CorpusReader
from embedcache.corpus.sources import FORMATS, CorpusOptions, Source, parse_sources, sources_of

__all__ = [
    "FORMATS",
    "CorpusOptions",
    "CorpusReader",
    "DocumentBatch",
    "Source",
    "parse_sources",
    "sources_of",
]

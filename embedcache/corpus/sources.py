"""The files of a corpus, and the options by which they are read."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from embedcache.corpus.messages import STDIN, quoted
from embedcache.errors import CorpusError

FORMATS = ("txt", "fasttext", "csv", "tsv", "tsv-raw", "jsonl")
ENCODING_ERRORS = ("strict", "replace")
MAX_TEXT_BYTES_LIMIT = (1 << 31) - 1
"""Highest `CorpusOptions.max_text_bytes`: csv keeps its own limit in a C long."""

SPLIT_NAME = re.compile("[A-Za-z0-9_-]+")

CorpusPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Source:
    """One file of a corpus.

    Attributes:
        path: The file; ``"-"`` is standard input.
        split: The split that all its documents belong to; None if the corpus names none for
            this file.
    """

    path: str
    split: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusOptions:
    """How files are read.

    Attributes:
        format: One of `FORMATS` for all files; None tells each file's by its name and content.
        text_field: The column or JSON field of the text; None takes ``text``, else ``sentence``.
        label_field: That of the label; None takes ``label`` if there is one.
        split_field: That of the split; None takes ``split`` if there is one and the source
            names no split.
        id_field: That of the document's own id; None reads no ids.
        encoding_errors: ``"strict"`` refuses what is not UTF-8; ``"replace"`` puts U+FFFD there.
        max_text_bytes: Longest text, and longest line or quoted record that holds one. Bounds
            what a file without line ends can cost.

    Raises:
        ValueError: if an option has no legal value.
    """

    format: str | None = None
    text_field: str | None = None
    label_field: str | None = None
    split_field: str | None = None
    id_field: str | None = None
    encoding_errors: str = "strict"
    max_text_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}: got {self.format!r}")
        if self.encoding_errors not in ENCODING_ERRORS:
            raise ValueError(
                f"encoding_errors must be {' or '.join(ENCODING_ERRORS)}:"
                f" got {self.encoding_errors!r}"
            )
        if not 1 <= self.max_text_bytes <= MAX_TEXT_BYTES_LIMIT:
            raise ValueError(
                f"max_text_bytes must be from 1 to {MAX_TEXT_BYTES_LIMIT}:"
                f" got {self.max_text_bytes}"
            )


def parse_sources(arguments: Sequence[str]) -> list[Source]:
    """The sources that a command line names: ``SPLIT=PATH`` each, or ``PATH`` each.

    ``-`` is standard input. An argument that is the name of a file as it stands is read so,
    even if it holds a ``=``. A split named several times is the files one after the other.

    Raises:
        CorpusError: for no argument, an empty path, a split name with other characters than
            ASCII letters, digits, ``_`` and ``-``, splits for some files only, or standard
            input twice. Whether the files exist is checked only when they are read.
    """
    return require_agreement([_parse_source(argument) for argument in arguments])


def sources_of(
    corpus: CorpusPath
    | Mapping[str, CorpusPath | Sequence[CorpusPath]]
    | Sequence[CorpusPath | Source],
) -> list[Source]:
    """The sources of the Python interface.

    Args:
        corpus: A path, several paths, or paths (one or several) by split. A path is taken as
            it stands, without the ``SPLIT=`` of the command line.

    Raises:
        CorpusError: as `parse_sources`.
    """
    if isinstance(corpus, str | os.PathLike):
        return require_agreement([Source(os.fspath(corpus), None)])
    sources: list[Source] = []
    if isinstance(corpus, Mapping):
        for split, paths in corpus.items():
            several = [paths] if isinstance(paths, str | os.PathLike) else paths
            sources += [Source(os.fspath(path), split) for path in several]
    else:
        for item in corpus:
            sources.append(item if isinstance(item, Source) else Source(os.fspath(item), None))
    return require_agreement(sources)


def _parse_source(argument: str) -> Source:
    split, equals, path = argument.partition("=")
    # A prefix with a slash or a dot is a part of a path: `runs/lr=0.1.txt`.
    if not equals or re.search(r"[/.\\]", split) or os.path.exists(argument):
        return Source(argument, None)
    return Source(path, split)


def require_agreement(sources: list[Source]) -> list[Source]:
    """The sources as they are, once they are known to fit together."""
    if not sources:
        raise CorpusError("the corpus names no file; name at least one, or - for standard input")
    for source in sources:
        if source.split is not None and not SPLIT_NAME.fullmatch(source.split):
            raise CorpusError(
                f"{quoted(source.split)} cannot name the split of {quoted(source.path)}; use"
                " letters, digits, _ and -"
            )
        if not source.path:
            raise CorpusError(
                "a file of the corpus has an empty name"
                f"{'' if source.split is None else f' (split {source.split})'}; name a file"
            )
    named = [source for source in sources if source.split is not None]
    if named and len(named) < len(sources):
        unnamed = next(source for source in sources if source.split is None)
        raise CorpusError(
            f"{quoted(unnamed.path)} has no split, but {quoted(named[0].path)} has"
            f" {named[0].split}; write SPLIT=PATH for every file, or for none"
        )
    if sum(source.path == STDIN for source in sources) > 1:
        raise CorpusError("standard input is named twice, but can be read once; name - once")
    return sources

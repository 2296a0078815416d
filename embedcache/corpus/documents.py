"""What the documents of every format share: their batches, fields, labels and splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from embedcache.corpus.messages import corpus_error, listed, quoted
from embedcache.corpus.sources import SPLIT_NAME, CorpusOptions, Source

MAX_KNOWN_LABELS = 1 << 14
"""Labels whose tuple is shared. Bounds the memory of a file in which each row has its own."""

_TEXT_FIELDS = ("text", "sentence")
_LABEL_FIELDS = ("label",)
_SPLIT_FIELDS = ("split",)

LineNumbers = list[int] | range
_Cell = TypeVar("_Cell")


@dataclass(frozen=True, slots=True)
class DocumentBatch:
    """Successive documents of one source; every list has one entry per document.

    Attributes:
        source: The file they are from.
        texts: The exact UTF-8 bytes of each text: what its key is made of.
        labels: The labels of each document, ``()`` for one that has none; None if the file
            carries no labels.
        splits: The split of each; None if neither the source nor a field names one.
        ids: The id of each; None if no `CorpusOptions.id_field` was named.
        lines: The line, from 1, where each document starts.
    """

    source: Source
    texts: list[bytes]
    labels: list[tuple[str, ...]] | None
    splits: list[str] | None
    ids: list[str] | None
    lines: list[int] | range


class LabelMemo(dict[_Cell, tuple[str, ...]]):
    """Labels by what the file says, made once: batches share the tuples."""

    def __init__(self, make: Callable[[_Cell], tuple[str, ...]]) -> None:
        super().__init__()
        self._make: Callable[[_Cell], tuple[str, ...]] = make

    def __missing__(self, cell: _Cell) -> tuple[str, ...]:
        if len(self) >= MAX_KNOWN_LABELS:
            self.clear()
        labels = self[cell] = self._make(cell)
        return labels


@dataclass(frozen=True, slots=True)
class Fields:
    """The columns or JSON fields in use."""

    text: str
    label: str | None
    split: str | None
    id: str | None


def choose_fields(
    source: Source, options: CorpusOptions, names: Sequence[str], line: int, noun: str
) -> Fields:
    """The fields that the options name, or the default ones, of those there are."""
    asked = {options.text_field, options.label_field, options.split_field, options.id_field}

    def choose(role: str, name: str | None, defaults: Sequence[str]) -> str | None:
        if name is None:
            free = (each for each in defaults if each in names and each not in asked)
            name = next(free, None)
        elif name not in names:
            reason = f"there is no {noun} {quoted(name)}"
            advice = f"name another with --{role}-field: there is {listed(names)}"
            raise corpus_error(source.path, line, reason, advice)
        if noun == "column" and name is not None and names.count(name) > 1:
            reason = f"{names.count(name)} columns are named {quoted(name)}"
            raise corpus_error(source.path, line, reason, "rename all but one")
        return name

    text = choose("text", options.text_field, _TEXT_FIELDS)
    if text is None:
        first = "the header in the first row" if noun == "column" else "the first object"
        raise corpus_error(
            source.path,
            line,
            f"no {noun} is named {' or '.join(_TEXT_FIELDS)}",
            f"name one with --text-field: {first} has {listed(names)}",
        )
    label = choose("label", options.label_field, _LABEL_FIELDS)
    split_defaults = _SPLIT_FIELDS if source.split is None else ()
    split = choose("split", options.split_field, split_defaults)
    return Fields(text, label, split, choose("id", options.id_field, ()))


def defaults_left_out(source: Source, fields: Fields) -> set[str]:
    """The default fields that the first object has not."""
    left_out: set[str] = set()
    if fields.label is None:
        left_out.update(_LABEL_FIELDS)
    if fields.split is None and source.split is None:
        left_out.update(_SPLIT_FIELDS)
    return left_out - {fields.text, fields.label, fields.split, fields.id}


def splits_of_names(source: Source, names: Sequence[str], lines: LineNumbers) -> list[str]:
    """The splits that a file names itself, each name one object; other characters are refused."""
    shared = {name: name for name in names}
    bad = {name for name in shared if not SPLIT_NAME.fullmatch(name)}
    if bad:
        line, name = next(
            (line, name) for line, name in zip(lines, names, strict=True) if name in bad
        )
        raise corpus_error(
            source.path,
            line,
            f"{quoted(name)} cannot name a split",
            "use letters, digits, _ and -",
        )
    return [shared[name] for name in names]


def repeated(split: str | None, num_documents: int) -> list[str] | None:
    """The split of a source, for each of its documents."""
    return None if split is None else [split] * num_documents

"""Why a model says what it says: the word windows that made its filters fire."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnn.attribution import Attribution, Network, open_network
from cnn.feed import ladder_length
from cnn.metrics import decide
from cnn.run import Run, _batches_by_length
from cnn.spec import MULTILABEL, model_inputs
from embedcache.store.reader import ViewReader
from embedcache.store.refs import FeatureRefs
from embedcache.stream.batch import Batch, padded_length
from embedcache.stream.token_table import TokenNumbers

Span = tuple[int, int]
"""Characters [start, end) of a text."""


@dataclass(frozen=True, slots=True)
class Window:
    """Side-by-side tokens at which filters fired most.

    Attributes:
        tokens: Numbers of the tokens, half open, from 0 on.
        span: The characters that they stand for, gaps between tokens included; None where
            the shard does not tell.
        width: Width of the kernel, in tokens; more than there are ``tokens`` where the window
            was cut at an edge of the text.
        filters: The filters of that width, numbered from 0 on, that fired here; empty in a model
            without filters.
        contribution: What they add to the label's logit, together.
    """

    tokens: tuple[int, int]
    span: Span | None
    width: int
    filters: tuple[int, ...]
    contribution: float


@dataclass(frozen=True, slots=True)
class LabelExplanation:
    """Where the logit of one label comes from: ``bias + rest + Σ windows``, to rounding.

    Attributes:
        label: The label.
        logit: The number that the softmax (the sigmoid of a multilabel model) is taken of.
        bias: The part of it that depends on no word.
        windows: The windows that add or take most, the largest first by size.
        rest: What all other windows add together.
        token_contributions: For each token its share of all windows that it lies in, each
            spread evenly over its tokens; their sum is that of all windows.
    """

    label: str
    logit: float
    bias: float
    windows: tuple[Window, ...]
    rest: float
    token_contributions: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TextExplanation:
    """Why a run labels a text as it does.

    Attributes:
        text: The text.
        spans: The characters that each token stands for; None for one that stands for none, such
            as a special token. None where the shard does not tell at all.
        probabilities: The probability of every label: of these logits, in float64.
        labels: An explanation of each label that was asked for.
    """

    text: str
    spans: tuple[Span | None, ...] | None
    probabilities: Mapping[str, float]
    labels: tuple[LabelExplanation, ...]

    def to_record(self) -> list[dict[str, Any]]:
        """The labels' explanations as JSON values; each window with its words if known."""
        record = [asdict(label) for label in self.labels]
        for label in record:
            for window in label["windows"]:
                span = window["span"]
                window["text"] = None if span is None else self.text[slice(*span)]
        return record


def explain_texts(
    run: Run,
    texts: Sequence[str],
    *,
    top: int = 10,
    labels: Sequence[Sequence[str]] | None = None,
) -> list[TextExplanation]:
    """For each text the word windows that made the run's filters fire.

    Features that the store holds are used; what is missing is embedded and kept, as
    `Run.predict` does. How contributions are defined is told in `cnn.attribution`.

    Args:
        run: A finished run.
        texts: n texts.
        top: Windows to keep for each label.
        labels: For each text the labels to explain; None: those that the run predicts, or
            the most probable if it predicts none.

    Returns:
        An explanation of each text, in order.

    Raises:
        ValueError: if ``top`` is below 0, a label is none of the run's, or there are not n
            entries of labels.
        TrainingError: if the model's file is missing or damaged.
        UnknownNameError: if the store no longer knows the run's view.
        ModuleError: if the module is needed and cannot be loaded.
    """
    if isinstance(texts, str):
        raise TypeError("texts must be a sequence of strings, not one string: put it in a list")
    if top < 0:
        raise ValueError(f"top must be at least 0: got {top}")
    unknown = sorted({name for names in labels or () for name in names} - set(run.labels))
    if unknown:
        raise ValueError(f"run {run.name} has no label {unknown[0]!r}: it has {run.labels}")
    if labels is not None and len(labels) != len(texts):
        raise ValueError(f"{len(labels)} entries of labels for {len(texts)} texts")
    run._embed_missing(texts)
    found: dict[int, TextExplanation] = {}
    for at, part, spans in _attributions(run, texts):
        probabilities = _probabilities(part.logits, run.task)
        given = labels[at] if labels is not None else _predicted(run, probabilities)
        found[at] = TextExplanation(
            text=texts[at],
            spans=spans,
            probabilities=dict(zip(run.labels, probabilities.tolist(), strict=True)),
            labels=tuple(
                _explain_label(part, spans, run.labels.index(label), label=label, top=top)
                for label in given
            ),
        )
    return [found[at] for at in range(len(texts))]


def stored_texts(run: Run, texts: Sequence[str]) -> NDArray[np.bool_]:
    """Which texts the run can read without embedding anything, (n,) bool.

    Raises:
        UnknownNameError: if the store no longer knows the run's view.
    """
    return run._store.contains(run.record["view"], texts)


def character_spans(text: str, byte_spans: Sequence[Sequence[int]]) -> tuple[Span | None, ...]:
    """UTF-8 bytes [start, end) of a text → characters; None for an empty range.

    A range that cuts a character has all of it.
    """
    if text.isascii():
        return tuple((start, end) if start < end else None for start, end in byte_spans)
    encoded = np.frombuffer(text.encode(), np.uint8)
    # Every byte but a continuation byte, 0b10xxxxxx, begins a character.
    begun = np.concatenate([np.zeros(1, np.int64), np.cumsum((encoded & 0xC0) != 0x80)])
    return tuple(
        (int(begun[start + 1]) - 1, int(begun[end])) if start < end else None
        for start, end in byte_spans
    )


def shaded_pieces(
    text: str, spans: Sequence[Span | None], contributions: Sequence[float]
) -> list[tuple[str, float]]:
    """A text cut where its tokens begin and end, each piece with what its tokens contribute.

    Args:
        text: The text.
        spans: The characters of each token; they may overlap.
        contributions: Of each token.

    Returns:
        Pieces that make the text when joined; 0 for what belongs to no token.
    """
    covered = [
        (*span, value) for span, value in zip(spans, contributions, strict=True) if span is not None
    ]
    cuts = sorted({0, len(text), *(edge for start, end, _ in covered for edge in (start, end))})
    places = {cut: place for place, cut in enumerate(cuts)}
    values = [0.0] * len(cuts)
    for start, end, value in covered:
        for place in range(places[start], places[end]):
            values[place] += value
    pieces = [text[start:end] for start, end in itertools.pairwise(cuts)]
    return list(zip(pieces, values[:-1], strict=True))


def _probabilities(logits: NDArray[np.float64], task: str) -> NDArray[np.float64]:
    """What the model makes of logits, (C,): each label's sigmoid, or the softmax of all."""
    if task == MULTILABEL:
        return np.exp(-np.logaddexp(0.0, -logits))
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum())


def _predicted(run: Run, probabilities: NDArray[np.float64]) -> tuple[str, ...]:
    """What the run predicts; of a multilabel run that predicts nothing the most probable."""
    decided = decide(probabilities[None], run.task)[0]
    places = np.flatnonzero(decided).tolist() if run.task == MULTILABEL else [int(decided)]
    return tuple(run.labels[at] for at in places or [int(probabilities.argmax())])


def _explain_label(
    part: Attribution, spans: Sequence[Span | None] | None, place: int, *, label: str, top: int
) -> LabelExplanation:
    """One label's share of what a text was taken apart into."""
    values = part.contributions[:, place]
    order = np.argsort(-np.abs(values), kind="stable")
    return LabelExplanation(
        label=label,
        logit=float(part.logits[place]),
        bias=float(part.bias[place]),
        windows=tuple(_window(part, spans, at, float(values[at])) for at in order[:top].tolist()),
        rest=float(values[order[top:]].sum()),
        token_contributions=tuple(part.spread_over_tokens(place).tolist()),
    )


def _window(
    part: Attribution, spans: Sequence[Span | None] | None, at: int, contribution: float
) -> Window:
    start, stop = int(part.starts[at]), int(part.stops[at])
    known = [span for span in (spans or ())[start:stop] if span is not None]
    span = (min(known)[0], max(end for _, end in known)) if known else None
    return Window((start, stop), span, int(part.widths[at]), part.filters[at], contribution)


def _attributions(
    run: Run, texts: Sequence[str]
) -> Iterator[tuple[int, Attribution, tuple[Span | None, ...] | None]]:
    """Each text's place, what it was taken apart into, and the characters of its tokens."""
    refs, reader = run._store.locate(run.record["view"], texts)
    table = run.load_table()
    numbers = None if table is None else TokenNumbers(reader, table)
    network: Network | None = None
    for places in _batches_by_length(refs.lengths, row_bytes=reader.view.dim * 4):
        model = run.load_model()
        network = network or open_network(model, run.config["kernel_sizes"])
        part = refs.take(places)
        batch = _read_batch(reader, part, numbers)
        parts = network.attribute(model_inputs(model, batch), batch.lengths)
        records = reader.token_records(part)
        for at, attribution, record in zip(places.tolist(), parts, records, strict=True):
            known = record.spans
            spans = None if known is None else character_spans(texts[at], known.tolist())
            yield at, attribution, spans


def _read_batch(reader: ViewReader, refs: FeatureRefs, numbers: TokenNumbers | None) -> Batch:
    """The features of some texts, as a model takes them; without labels."""
    lengths = refs.lengths.astype(np.int32)
    length = ladder_length(padded_length(int(lengths.max())))
    values = np.empty((len(refs), length, reader.view.dim), reader.dtype)
    reader.gather_padded(refs, values)
    return Batch(
        values,
        lengths,
        np.full(len(refs), -1, np.int32),
        refs.keys,
        None if numbers is None else numbers.gather_padded(refs, length),
    )

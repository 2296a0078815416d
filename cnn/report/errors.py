"""The texts that a run was most wrong about, and the words that misled it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnn.explaining import (
    LabelExplanation,
    Span,
    TextExplanation,
    explain_texts,
    shaded_pieces,
    stored_texts,
)
from cnn.metrics import decide
from cnn.predictions import NO_FOLD, Predictions
from cnn.report.figures import RunFigures, text_losses
from cnn.run import Run
from cnn.spec import MULTILABEL

_ALL_WINDOWS = 1 << 30
_SHOWN_WINDOWS = 5


@dataclass(frozen=True, slots=True)
class WorstError:
    """A text that was labelled wrong.

    Attributes:
        key: Of the text.
        number: Of the document in the corpus, from 1 on.
        fold: The fold that it was tested in, from 0 on; None without folds.
        own: Its own labels.
        predicted: Those that the run gave it.
        loss: Its cross-entropy, in nats; of multilabel that of its worst decision.
        toward: The label that the run was wrong to give, or to hold for improbable.
        against: The label that it should have given instead; None for multilabel.
        probabilities: Of these two.
    """

    key: bytes
    number: int
    fold: int | None
    own: tuple[str, ...]
    predicted: tuple[str, ...]
    loss: float
    toward: str
    against: str | None
    probabilities: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class MisleadingWindow:
    """Words, and what they added to the label that was wrongly given, less the other's.

    Attributes:
        words: The words; None where the shard does not tell which.
        tokens: Numbers of the tokens, half open.
        num_filters: Filters that fired there.
        width: Of their kernels.
        contribution: To the logit of `WorstError.toward`, less that to `WorstError.against`.
    """

    words: str | None
    tokens: tuple[int, int]
    num_filters: int
    width: int
    contribution: float


@dataclass(frozen=True, slots=True)
class Reading:
    """How the kept model reads a text.

    Attributes:
        pieces: The text in pieces, each with what its tokens add; None without spans.
        windows: The windows that add or take most.
    """

    pieces: Sequence[tuple[str, float]] | None
    windows: tuple[MisleadingWindow, ...]


def worst_errors(figures: RunFigures, count: int) -> list[WorstError]:
    """The wrongly labelled texts of the highest loss, each text once.

    Args:
        figures: Of the run.
        count: How many at most.
    """
    predictions = figures.of_part
    if predictions is None or len(predictions) == 0:
        return []
    is_multilabel = figures.task == MULTILABEL
    losses = text_losses(predictions)
    decided = decide(predictions.probabilities, figures.task)
    wrong = (decided != predictions.labels).reshape(len(predictions), -1)
    if is_multilabel:
        # A label may be nearly right by chance: of a text the worst of its wrong decisions.
        losses = np.where(wrong, losses, 0.0).max(axis=1)
    candidates = np.flatnonzero(wrong.any(axis=1))
    order = candidates[np.argsort(-losses[candidates], kind="stable")]
    found: dict[bytes, WorstError] = {}
    for at in order.tolist():
        if len(found) >= count:
            break
        error = _error_of(figures.labels, predictions, at, decided=decided[at], loss=losses[at])
        found.setdefault(error.key, error)
    return list(found.values())


def read_errors(
    run: Run, errors: Sequence[WorstError], texts: Mapping[bytes, str]
) -> dict[bytes, Reading]:
    """How the run's model reads the texts of errors: those that are known and still stored.

    Nothing is embedded: a report must not need the module.
    """
    known = [error for error in errors if error.key in texts]
    is_stored = stored_texts(run, [texts[error.key] for error in known])
    chosen = [error for error, stored in zip(known, is_stored.tolist(), strict=True) if stored]
    explanations = explain_texts(
        run,
        [texts[error.key] for error in chosen],
        top=_ALL_WINDOWS,
        labels=[
            (error.toward,) if error.against is None else (error.toward, error.against)
            for error in chosen
        ],
    )
    return {
        error.key: _reading(explanation)
        for error, explanation in zip(chosen, explanations, strict=True)
    }


def _error_of(
    labels: tuple[str, ...],
    predictions: Predictions,
    at: int,
    *,
    decided: NDArray[np.int64],
    loss: float,
) -> WorstError:
    own, probabilities = predictions.labels[at], predictions.probabilities[at]
    fold = int(predictions.fold[at])
    toward, against = _labels_of_error(labels, decided, own, probabilities)
    shown = [label for label in (toward, against) if label is not None]
    return WorstError(
        key=predictions.keys[at].tobytes(),
        number=int(predictions.rows[at]) + 1,
        fold=None if fold == NO_FOLD else fold,
        own=_names(labels, own),
        predicted=_names(labels, decided),
        loss=float(loss),
        toward=toward,
        against=against,
        probabilities={label: float(probabilities[labels.index(label)]) for label in shown},
    )


def _labels_of_error(
    labels: tuple[str, ...],
    decided: NDArray[np.int64],
    own: NDArray[np.int64],
    probabilities: NDArray[np.float32],
) -> tuple[str, str | None]:
    if np.ndim(own) == 0:
        return labels[int(decided)], labels[int(own)]
    distance = np.abs(own - probabilities.astype(np.float64))
    return labels[int(np.where(decided != own, distance, -1.0).argmax())], None


def _names(labels: tuple[str, ...], chosen: NDArray[np.int64]) -> tuple[str, ...]:
    if np.ndim(chosen) == 0:
        return (labels[int(chosen)],)
    return tuple(labels[place] for place in np.flatnonzero(chosen).tolist())


def _reading(explanation: TextExplanation) -> Reading:
    toward, *others = explanation.labels
    shares = np.array(toward.token_contributions)
    totals = _totals(toward)
    for other in others:
        shares = shares - np.array(other.token_contributions)
        for place, value in _totals(other).items():
            totals[place] = totals.get(place, 0.0) - value
    spans = explanation.spans
    ranked = sorted(totals, key=lambda place: -abs(totals[place]))[:_SHOWN_WINDOWS]
    return Reading(
        pieces=None if spans is None else shaded_pieces(explanation.text, spans, shares.tolist()),
        windows=tuple(
            MisleadingWindow(
                words=None if span is None else explanation.text[slice(*span)],
                tokens=tokens,
                num_filters=num_filters,
                width=width,
                contribution=totals[tokens, span, num_filters, width],
            )
            for tokens, span, num_filters, width in ranked
        ),
    )


def _totals(label: LabelExplanation) -> dict[tuple[tuple[int, int], Span | None, int, int], float]:
    return {
        (window.tokens, window.span, len(window.filters), window.width): window.contribution
        for window in label.windows
    }

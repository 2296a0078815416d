"""What `predict` prints of a block of texts, in each of its formats."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from cli.common import percent, plural

if TYPE_CHECKING:
    from cnn.explaining import LabelExplanation, TextExplanation, Window
    from cnn.run import Prediction

_SHOWN_WORDS = 60
_LABEL_MARK = "|"
_CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), "�") | {
    ord(space): " " for space in "\n\r\t"
}
_STRONG = 0.5
"""Share of a text's largest contribution from which on a word is bold."""

_WEAK = 0.08
"""Share below which a word has no colour."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text and what a run says of it.

    Attributes:
        text: The text.
        prediction: What the run says.
        explanation: Why; None if it was not asked for.
        is_multilabel: Whether the run gives a text any number of labels.
    """

    text: str
    prediction: Prediction
    explanation: TextExplanation | None
    is_multilabel: bool

    def to_record(self) -> dict[str, Any]:
        """As JSON values."""
        prediction = self.prediction
        record: dict[str, Any] = {
            "text": self.text,
            "label": prediction.label,
            "probability": prediction.probability,
            "probabilities": dict(prediction.probabilities),
        }
        if self.is_multilabel:
            record["labels"] = list(prediction.labels)
        if self.explanation is not None:
            record["explanation"] = self.explanation.to_record()
        return record


def text_lines(block: Sequence[Labelled]) -> str:
    """A line a text: label, probability, text; below it what decided, if that was asked for."""
    return "".join(_text_lines(each) for each in block)


def jsonl_lines(block: Sequence[Labelled]) -> str:
    """An object a line."""
    return "".join(
        f"{json.dumps(each.to_record(), ensure_ascii=False, allow_nan=False)}\n" for each in block
    )


def csv_lines(block: Sequence[Labelled]) -> str:
    """A row a text; its header is `csv_header`'s."""
    return _csv_rows(
        [
            each.text,
            _LABEL_MARK.join(each.prediction.labels),
            each.prediction.probability,
            *each.prediction.probabilities.values(),
        ]
        for each in block
    )


def csv_header(labels: Sequence[str]) -> str:
    """``text,label,probability`` and a column ``p_LABEL`` for each label."""
    return _csv_rows([["text", "label", "probability", *(f"p_{label}" for label in labels)]])


def one_line(text: str) -> str:
    """A text that moves no cursor: spaces for line ends and tabs, U+FFFD for other controls."""
    return text.translate(_CONTROLS)


def _csv_rows(rows: Any) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _text_lines(labelled: Labelled) -> str:
    prediction, explanation = labelled.prediction, labelled.explanation
    given = prediction.labels
    # Without a label: the probability of the most probable, to tell by how much it missed.
    shares = [percent(prediction.probabilities[label]) for label in given or (prediction.label,)]
    text = _coloured(explanation) if explanation is not None else one_line(labelled.text)
    first = f"{', '.join(given) or '-'}\t{', '.join(shares)}\t{text}\n"
    if explanation is None:
        return first
    return first + "".join(_explained(each, explanation.text) for each in explanation.labels)


def _explained(label: LabelExplanation, text: str) -> str:
    bias = _signed(label.bias)
    lines = [f"    {label.label}: logit {_signed(label.logit)}, of it {bias} without a word"]
    lines += [
        click.style(
            f"      {_signed(window.contribution)}  {_words(window, text)}",
            fg="green" if window.contribution > 0 else "red",
        )
        for window in label.windows
    ]
    if label.rest:
        lines.append(f"      {_signed(label.rest)}  all other windows")
    return "\n".join([*lines, ""])


def _words(window: Window, text: str) -> str:
    if window.span is None:
        start, stop = window.tokens
        said = f"token {start + 1}" if stop - start == 1 else f"tokens {start + 1} to {stop}"
    else:
        said = one_line(text[slice(*window.span)])
        said = said if len(said) <= _SHOWN_WORDS else f"{said[:_SHOWN_WORDS]}…"
    count = len(window.filters)
    fired = f"  ({plural(count, 'filter')} of width {window.width})" if count else ""
    return said + fired


def _signed(value: float) -> str:
    """``0.5`` → ``+0.50``; what rounds to nothing is ``+0.00``."""
    return f"{round(value, 2) + 0.0:+.2f}"


def _coloured(explanation: TextExplanation) -> str:
    """The text; words that speak for the first label green, those against it red."""
    from cnn.explaining import shaded_pieces

    if explanation.spans is None or not explanation.labels:
        return one_line(explanation.text)
    shares = explanation.labels[0].token_contributions
    pieces = shaded_pieces(explanation.text, explanation.spans, shares)
    largest = max((abs(value) for _, value in pieces), default=0.0)
    return "".join(_coloured_piece(one_line(piece), value, largest) for piece, value in pieces)


def _coloured_piece(piece: str, value: float, largest: float) -> str:
    if largest == 0 or abs(value) < _WEAK * largest or not piece.strip():
        return piece
    is_strong = abs(value) >= _STRONG * largest
    return click.style(piece, fg="green" if value > 0 else "red", bold=is_strong)


def json_object(run: str, block: Sequence[Labelled]) -> Mapping[str, Any]:
    """What ``--json`` prints."""
    return {"run": run, "predictions": [each.to_record() for each in block]}

"""The part of a page that shows the texts that a run was most wrong about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cnn.report.errors import MisleadingWindow, Reading, WorstError
from cnn.report.figures import RunFigures
from cnn.report.markup import Markup, element, fragment
from cnn.report.shading import plain_text, shaded_text, shortened
from cnn.report.shown import percent

_MAX_WORDS_CHARACTERS = 80


def errors_section(
    figures: RunFigures,
    errors: Sequence[WorstError],
    texts: Mapping[bytes, str],
    readings: Mapping[bytes, Reading],
) -> Markup | None:
    """The worst errors, each with its text and the words that misled the run.

    Args:
        figures: Of the run.
        errors: The worst first.
        texts: By key, as far as they were found.
        readings: By key, as far as the features are still stored.
    """
    if figures.of_part is None:
        return None
    if not errors:
        return fragment(
            element("h3", "Worst errors"),
            element("p", f"No text of {figures.part} was labelled wrong."),
        )
    num_missing = sum(error.key not in texts for error in errors)
    return fragment(
        element("h3", "Worst errors"),
        element("p", _introduction(figures, errors, has_readings=bool(readings))),
        _missing_note(num_missing) if num_missing else None,
        [_error(error, texts.get(error.key), readings.get(error.key)) for error in errors],
    )


def _introduction(figures: RunFigures, errors: Sequence[WorstError], *, has_readings: bool) -> str:
    said = f"The wrongly labelled texts of {figures.part} with the highest loss."
    if not has_readings:
        return said
    said += (
        " Orange, underlined: words that speak for the wrong decision; blue, dotted: words that"
        " speak against it."
    )
    if any(error.fold is not None for error in errors):
        said += (
            " Each text was labelled by the model of its own fold; the words are those that the"
            " kept model reads, which may judge otherwise."
        )
    return said


def _missing_note(num_missing: int) -> Markup:
    return element(
        "p",
        f"The text of {num_missing} of them was not found: texts are not kept in a store, and the"
        " files that the corpus was built from have moved or changed. Name the files with ",
        element("code", "embedcache runs report RUN -o report.html --texts PATH"),
        ".",
    )


def _error(error: WorstError, text: str | None, reading: Reading | None) -> Markup:
    place = f"document {error.number:,} of the corpus"
    if error.fold is not None:
        place += f", tested in fold {error.fold + 1}"
    own, predicted = (", ".join(labels) or "no label" for labels in (error.own, error.predicted))
    shown: Markup
    if text is None:
        shown = element("p", "key ", element("code", error.key.hex()))
    elif reading is None or reading.pieces is None:
        shown = plain_text(text)
    else:
        shown = shaded_text(reading.pieces)
    chances = ", ".join(
        f"{label} {percent(probability)}" for label, probability in error.probabilities.items()
    )
    return element(
        "article",
        element(
            "p",
            element("strong", predicted),
            " instead of ",
            element("strong", own),
            element("span", f" · {chances} · loss {error.loss:.2f} · {place}", class_="soft"),
        ),
        shown,
        _window_table(error, reading.windows) if reading and reading.windows else None,
        class_="error",
    )


def _window_table(error: WorstError, windows: Sequence[MisleadingWindow]) -> Markup:
    versus = f" rather than {error.against}" if error.against is not None else ""
    rows = [
        element(
            "tr",
            element("td", element("bdi", _words(window))),
            element("td", _filters(window)),
            element("td", f"{round(window.contribution, 2) + 0.0:+.2f}"),
        )
        for window in windows
    ]
    head = [element("th", title, scope="col") for title in ("words", "filters that fired", "adds")]
    return element(
        "details",
        element("summary", "Words that decided"),
        element(
            "table",
            element("caption", f"What they add to the logit of {error.toward}{versus}"),
            element("thead", element("tr", head)),
            element("tbody", rows),
            class_="windows",
        ),
    )


def _filters(window: MisleadingWindow) -> str:
    return f"{window.num_filters} of width {window.width}" if window.num_filters else "–"


def _words(window: MisleadingWindow) -> str:
    if window.words is None:
        return f"tokens {window.tokens[0] + 1} to {window.tokens[1]}"
    return shortened(window.words, _MAX_WORDS_CHARACTERS)

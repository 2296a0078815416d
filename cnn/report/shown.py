"""Numbers, records and tables as people read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cnn.report.markup import Child, Markup, element

NOTHING = "–"
_MAX_ENTRIES = 20
_SECONDS = ("_s", "seconds", "seconds_per_epoch")


def percent(fraction: float | None) -> str:
    """``0.796`` → ``79.6 %``; None → ``–``."""
    return NOTHING if fraction is None else f"{100 * fraction:.1f} %"


def number(value: float | None, digits: int = 4) -> str:
    """``0.44036`` → ``0.4404``; None → ``–``."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def num_bytes(value: float) -> str:
    """``5201920`` → ``5.2 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def seconds(value: float) -> str:
    """``5940`` → ``1 h 39 min``; ``75`` → ``1 min 15 s``; ``3.5`` → ``3.50 s``."""
    if value < 60:
        return f"{value:.2f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"


def field_value(name: str, value: Any) -> str:
    """A value of a record, with the unit that its name tells."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        shown = [field_value("", each) for each in value[:_MAX_ENTRIES]]
        more = [f"… {len(value) - _MAX_ENTRIES:,} more"] if len(value) > _MAX_ENTRIES else []
        return ", ".join(shown + more) or NOTHING
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {field_value(str(key), each)}" for key, each in value.items())
    if isinstance(value, int | float):
        if name == "at" or name.endswith("_at"):
            return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M} UTC"
        if name.endswith("bytes"):
            return num_bytes(value)
        if name.endswith(_SECONDS):
            return seconds(value)
        return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    return str(value)


def flat_fields(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The fields of a nested record, one after the other: name and value."""
    for key, value in record.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping) and value:
            yield from flat_fields(value, f"{name} · ")
        elif _is_records(value):
            for position, each in enumerate(value[:_MAX_ENTRIES], 1):
                yield from flat_fields(each, f"{name} {position} · ")
        else:
            yield name, field_value(str(key), value)


def record_table(caption: str, record: Mapping[str, Any]) -> Markup:
    """A record as a table of two columns."""
    rows = [
        element("tr", element("th", name, scope="row"), element("td", value))
        for name, value in flat_fields(record)
    ]
    return scrolling(
        caption,
        element("table", element("caption", caption), element("tbody", rows), class_="record"),
    )


def table(caption: str, header: Sequence[Child], rows: Sequence[Sequence[Child]]) -> Markup:
    """A table whose first column names the rows."""
    head = [element("th", cell, scope="col") for cell in header]
    body = [
        element("tr", element("th", row[0], scope="row"), [element("td", cell) for cell in row[1:]])
        for row in rows
    ]
    return scrolling(
        caption,
        element(
            "table",
            element("caption", caption),
            element("thead", element("tr", head)),
            element("tbody", body),
        ),
    )


def scrolling(name: str, content: Markup) -> Markup:
    """Something wide, in a region that scrolls by itself, with the keyboard too."""
    return element("div", content, class_="wide", role="region", aria_label=name, tabindex="0")


def details(summary: str, *content: Child) -> Markup:
    """What is shown when asked for."""
    return element("details", element("summary", summary), *content)


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) for v in value)

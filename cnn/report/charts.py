"""Charts as inline SVG. What they show stands in a table beside them, for who cannot see it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cnn.report.markup import Markup, element, fragment

_WIDTH, _HEIGHT = 460.0, 260.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 20.0, 28.0, 40.0
_COUNTS = 44.0
"""Height of the band of counts below a calibration diagram."""

_MAX_POINTS = 200
"""Of a line: more than the pixels of a chart show nothing new, and make the page large."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a chart.

    Attributes:
        name: What the legend calls it; lines of one name share an entry.
        points: (x, y), ascending in x, all finite.
        style: Its CSS class, ``"train"`` or ``"dev"``.
        marks: Points to put a dot on.
    """

    name: str
    points: Sequence[Point]
    style: str
    marks: Sequence[Point] = ()


@dataclass(frozen=True, slots=True)
class Bin:
    """A bin of a calibration diagram.

    Attributes:
        low: Lower bound of the confidences.
        high: Upper bound.
        count: Predictions in it.
        confidence: Their mean confidence; None if there are none.
        accuracy: Share of them that was right; None if there are none.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class _Axes:
    """From numbers to places in the picture."""

    x: tuple[float, float]
    y: tuple[float, float]

    def place(self, point: Point) -> Point:
        across = (point[0] - self.x[0]) / (self.x[1] - self.x[0])
        up = (point[1] - self.y[0]) / (self.y[1] - self.y[0])
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )


def line_chart(
    name: str, title: str, lines: Sequence[Line], *, format_y: Callable[[float], str]
) -> Markup:
    """Lines over the epochs.

    Args:
        name: Unlike that of any other chart of the page: ids are made of it.
        title: What it shows.
        lines: At least one point among them.
        format_y: How numbers are written on the upright axis.
    """
    every = [point for line in lines for point in line.points]
    lowest, highest = min(y for _, y in every), max(y for _, y in every)
    # Somewhat below the last number that is drawn: a tick must not lie outside.
    ticks = nice_ticks(lowest, highest)
    axes = _Axes(
        (min(x for x, _ in every) - 0.5, max(x for x, _ in every) + 0.5),
        (min(lowest, ticks[0]), max(highest, ticks[-1])),
    )
    content = fragment(
        [_horizontal(axes, y, format_y(y)) for y in ticks],
        [_under(axes, x, f"{x:g}") for x in _whole_ticks(axes.x)],
        _x_title("epoch"),
        [_polyline(axes, line) for line in lines],
        [_dot(axes, point, line.style) for line in lines for point in line.marks],
        _legend(lines),
    )
    described = ", ".join(
        f"{line.name} from {format_y(line.points[0][1])} to {format_y(line.points[-1][1])}"
        for line in lines[:4]
        if line.points
    )
    return _picture(name, title, f"{title} over the epochs: {described}", content)


def calibration_chart(name: str, title: str, bins: Sequence[Bin]) -> Markup:
    """How often predictions of each confidence were right, and below how many there were."""
    axes = _Axes((0.0, 1.0), (0.0, 1.0))
    ticks = (0.0, 0.25, 0.5, 0.75, 1.0)
    content = fragment(
        [_horizontal(axes, tick, f"{100 * tick:.0f} %") for tick in ticks],
        [_under(axes, tick, f"{100 * tick:.0f} %") for tick in ticks],
        [_bar(axes, each, each.accuracy) for each in bins if each.accuracy is not None],
        _segment(axes, (0.0, 0.0), (1.0, 1.0), "ideal"),
        _counts(axes, bins),
        element(
            "text", "share that was right, by confidence", x=_WIDTH - _RIGHT, y=16.0, class_="y"
        ),
        element("text", "count", x=_LEFT - 6, y=_HEIGHT + 20, class_="y"),
    )
    described = f"{title}; the table below has the numbers"
    return _picture(name, title, described, content, height=_HEIGHT + _COUNTS)


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers at equal distances, about from ``low`` to ``high``, at least two.

    By steps of 1, 2 or 5 times a power of ten: Heckbert, "Nice numbers for graph labels",
    Graphics Gems (1990).
    """
    span = high - low or max(abs(high), 1.0) * 0.1
    rough = span / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((each * power for each in (1, 2, 5) if each * power >= rough), 10 * power)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [count * step for count in range(first, max(last, first + 1) + 1)]


def thinned(points: Sequence[Point], most: int = _MAX_POINTS) -> list[Point]:
    """The first, the last, and so many of those between that a line looks the same."""
    if len(points) <= most:
        return list(points)
    stride = (len(points) - 1) / (most - 1)
    return [points[round(place * stride)] for place in range(most)]


def _picture(
    name: str, title: str, described: str, content: Markup, *, height: float = _HEIGHT
) -> Markup:
    return element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", described, id=f"{name}-desc"),
        element("text", title, x=_LEFT, y=16.0, class_="title"),
        content,
        viewBox=f"0 0 {_WIDTH:g} {height:g}",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
    )


def _polyline(axes: _Axes, line: Line) -> Markup:
    places = [axes.place(point) for point in thinned(line.points)]
    if len(places) == 1:
        return _dot(axes, line.points[0], line.style)
    written = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return element("polyline", points=written, class_=line.style)


def _dot(axes: _Axes, point: Point, style: str) -> Markup:
    x, y = axes.place(point)
    return element("circle", cx=round(x, 1), cy=round(y, 1), r=3.5, class_=style)


def _segment(axes: _Axes, start: Point, end: Point, style: str) -> Markup:
    (x1, y1), (x2, y2) = axes.place(start), axes.place(end)
    places = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    return element("line", **{key: round(each, 1) for key, each in places.items()}, class_=style)


def _bar(axes: _Axes, each: Bin, height: float) -> Markup:
    left, top = axes.place((each.low, height))
    right, bottom = axes.place((each.high, 0.0))
    return _rect(left + 1, top, right - left - 2, bottom - top, "right")


def _counts(axes: _Axes, bins: Sequence[Bin]) -> Markup:
    """Bars of how many predictions each bin has, hanging below the axis' numbers."""
    most = max((each.count for each in bins), default=0) or 1
    bars = []
    for each in bins:
        (left, _), (right, _) = axes.place((each.low, 0.0)), axes.place((each.high, 0.0))
        height = _COUNTS * each.count / most
        if each.count:
            bars.append(_rect(left + 1, _HEIGHT - 8, right - left - 2, max(height, 1.0), "count"))
    return fragment(bars)


def _rect(x: float, y: float, width: float, height: float, style: str) -> Markup:
    places = {"x": x, "y": y, "width": width, "height": height}
    return element("rect", **{key: round(each, 1) for key, each in places.items()}, class_=style)


def _horizontal(axes: _Axes, y: float, label: str) -> Markup:
    across = _segment(axes, (axes.x[0], y), (axes.x[1], y), "grid")
    _, place = axes.place((axes.x[0], y))
    return fragment(across, element("text", label, x=_LEFT - 6, y=round(place + 4, 1), class_="y"))


def _under(axes: _Axes, x: float, label: str) -> Markup:
    place, _ = axes.place((x, axes.y[0]))
    return element("text", label, x=round(place, 1), y=_HEIGHT - _BOTTOM + 15, class_="x")


def _x_title(title: str) -> Markup:
    return element("text", title, x=(_LEFT + _WIDTH - _RIGHT) / 2, y=_HEIGHT - 6, class_="x")


def _whole_ticks(bounds: Point) -> list[float]:
    first, last = math.ceil(bounds[0]), math.floor(bounds[1])
    step = max(1, math.ceil((last - first + 1) / 12))
    return [float(each) for each in range(first, last + 1, step)]


def _legend(lines: Sequence[Line]) -> Markup:
    named = {line.name: line.style for line in lines}
    entries: list[Markup] = []
    x = _WIDTH - _RIGHT
    for name, style in reversed(named.items()):
        x -= 6.5 * len(name)
        entries.append(element("text", name, x=x, y=16.0))
        entries.append(element("line", x1=x - 26, y1=12.0, x2=x - 4, y2=12.0, class_=style))
        x -= 36
    return fragment(entries)
